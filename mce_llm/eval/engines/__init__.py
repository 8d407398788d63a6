"""What generates answers: the settings of decoding, batches in transformers, and vLLM."""
