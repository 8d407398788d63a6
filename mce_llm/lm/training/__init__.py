"""What happens around the loss in a training run: what is measured, guarded, saved and shown."""
