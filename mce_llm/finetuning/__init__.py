"""What the fine-tuning recipe is made of: its settings, models, adapters, quantisation, merging and output folder."""
