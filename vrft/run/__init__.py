"""One run: its directory, the parent process, the workers and what they leave behind."""
