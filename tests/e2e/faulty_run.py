"""`python -m vrft.run.worker RUN_DIR`, but on one process the loss of one step is NaN: RUN_DIR RANK STEP."""

from __future__ import annotations

import math
import os
import sys

from trl import GRPOTrainer

import vrft.run.worker


def nan_loss_at(step: int, compute_loss):
    """`GRPOTrainer._compute_loss`, and NaN in the given step, from 1."""

    def compute(self, model, inputs):
        return compute_loss(self, model, inputs) * (math.nan if self.state.global_step + 1 == step else 1.0)

    return compute


if __name__ == "__main__":
    *sys.argv, rank, step = sys.argv  # the worker reads its own arguments
    if os.environ["RANK"] == rank:
        GRPOTrainer._compute_loss = nan_loss_at(int(step), GRPOTrainer._compute_loss)
    sys.exit(vrft.run.worker.main())
