"""vrft: visual reinforcement fine-tuning, composed by Hydra."""
