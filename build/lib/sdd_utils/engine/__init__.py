"""What makes it fast: decoding, scoring, packed weights, streamed tensors, vLLM."""
