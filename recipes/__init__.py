"""Fine-tuning scripts and their configurations; nothing in the package imports from here."""
