"""How answers are read and compared: numbers and their marks, LaTeX, and symbolic equality; `eval.answers` is the face."""
