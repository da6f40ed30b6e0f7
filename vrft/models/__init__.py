"""Models: families, loading, prompts, decoding, and what `vrft.json` holds."""
