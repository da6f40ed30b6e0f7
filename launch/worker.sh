#!/usr/bin/env bash
# Start the workers of a frozen run directory by hand: launch/worker.sh RUN_DIR [NPROC].
# The directory's config.yaml was written by `vrft train`, which derived the batch sizes for its launch.nproc_per_node.
set -euo pipefail
run_dir=${1:?usage: launch/worker.sh RUN_DIR [NPROC]}
exec python -m torch.distributed.run --standalone --nproc-per-node "${2:-1}" -m vrft.run.worker "$run_dir"
