"""The statistics of two methods on the same questions, for one training seed or several."""
