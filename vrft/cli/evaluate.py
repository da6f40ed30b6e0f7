"""`vrft evaluate`: a model or a checkpoint judged on the test sets. An experiment that trains nothing."""

from vrft.cli.train import run

__all__ = ["run"]
