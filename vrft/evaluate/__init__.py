"""Evaluation: `completions` generates completions once; `score` scores them later, without a model."""
