"""Pretraining of encoders: the networks around a loss, its optimizers and schedules, and what is watched meanwhile."""
