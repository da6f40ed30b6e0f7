"""What a run left, shown: page, tables, pictures, W&B."""
