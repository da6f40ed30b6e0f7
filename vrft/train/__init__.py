"""The long jobs that change weights: GRPO, SFT, and the pre-training of the tiny model."""
