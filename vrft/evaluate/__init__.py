"""Evaluation: completions are generated once (`generate`) and judged afterwards without a model (`score`)."""
