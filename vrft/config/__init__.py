"""The config: what it may hold, what is checked, and how it is frozen."""
