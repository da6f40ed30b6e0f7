"""`python -m vrft.run.worker RUN_DIR`, but the last process may not take much more memory: enough for 3 rows."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch
from trl import GRPOTrainer

import vrft.run.worker

ROW = 2**30  # bytes of address space, never touched


def with_a_limit(compute_loss):
    """`GRPOTrainer._compute_loss`, which from the third step on first takes a GiB for each row."""

    def compute(self, model, inputs):
        if self.state.global_step >= 2:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            before = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (size + 7 * ROW // 2, before[1]))
            scratch = torch.empty(len(inputs["completion_ids"]) * ROW, dtype=torch.uint8)
            del scratch
            resource.setrlimit(resource.RLIMIT_AS, before)
        return compute_loss(self, model, inputs)

    return compute


if __name__ == "__main__":
    if int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        GRPOTrainer._compute_loss = with_a_limit(GRPOTrainer._compute_loss)
    sys.exit(vrft.run.worker.main())
