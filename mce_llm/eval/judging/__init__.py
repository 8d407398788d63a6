"""How answers are found, read and compared: numbers, LaTeX, markers, symbolic equality. `eval.answers` is the interface."""
