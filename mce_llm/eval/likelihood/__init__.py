"""How probable a language model finds the reference solutions of a data set, and where in them."""
