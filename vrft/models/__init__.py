"""Models: families, loading, decoding, and the tiny model's parts."""
