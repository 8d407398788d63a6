"""Studies: arms × training seeds × evaluations, trained and evaluated one after the other, resumable, and compared."""
