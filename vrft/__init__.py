"""vrft: visual reinforcement fine-tuning, composed by Hydra."""

__version__ = "0.1.0"
