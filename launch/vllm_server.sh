#!/usr/bin/env bash
# Start the server of rollout=vllm_server: launch/vllm_server.sh MODEL [options of `vllm serve`].
# MODEL is the run's model.path. On GPUs that the training does not use: CUDA_VISIBLE_DEVICES=4,5,6,7 launch/vllm_server.sh …
# Then: CUDA_VISIBLE_DEVICES=0,1,2,3 vrft train … rollout=vllm_server launch=torchrun launch.nproc_per_node=4
set -euo pipefail
model=${1:?usage: launch/vllm_server.sh MODEL [options of vllm serve]}
shift
# Each as TRL 1.16 needs it: weights taken over NCCL, log probabilities after temperature, images apart from tokens.
scale_out=()
python -c 'import sys, vllm; sys.exit(tuple(map(int, vllm.__version__.split(".")[:2])) < (0, 30))' && scale_out=(--enable-scale-out)
export VLLM_SERVER_DEV_MODE=1
exec vllm serve "$model" --host 127.0.0.1 --port 8000 \
  --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1 \
  --generation-config vllm "${scale_out[@]}" "$@"
