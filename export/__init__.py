"""Export: merge an adapter, write GGUF, quantize it, and prove that nothing was lost."""
