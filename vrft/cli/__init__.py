"""The command line: `main.py`, then one file a verb beside its `conf/VERB.yaml`."""
