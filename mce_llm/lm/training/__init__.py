"""Training with the matrix loss: trainer mixin, step guard, checkpoints, model card and monitoring."""
