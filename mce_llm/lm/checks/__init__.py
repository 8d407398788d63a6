"""What is assumed of a model, checked on a small one of the same class before anything is trained."""
