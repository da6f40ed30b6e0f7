#!/usr/bin/env bash
# One run on several machines, by ssh: launch/torchrun.sh "node1 node2" 8 run.dir=runs/NAME experiment=…
# They share this folder, and `vrft` is on the PATH of this shell. 8: processes a machine. PORT=29500: where they meet, on the
# first. The first machine checks, makes the run directory and writes the report; the others wait until it is there.
# Ctrl-C, or a signal to one of the machines, saves and stops on all; the same command with run.resume=true goes on.
set -euo pipefail
usage='usage: launch/torchrun.sh "HOST HOST …" NPROC run.dir=DIR [overrides]'
read -ra hosts <<<"${1:?$usage}"
nproc=${2:?$usage}
shift 2

started=()
for node in "${!hosts[@]}"; do
    command=(env "PATH=$PATH" vrft train launch=torchrun "launch.nproc_per_node=$nproc" "launch.nnodes=${#hosts[@]}"
        "launch.node_rank=$node" "launch.rdzv_endpoint=${hosts[0]}:${PORT:-29500}" "$@")
    # -tt: what runs there gets SIGHUP when ssh ends.
    ssh -tt "${hosts[$node]}" "cd $(printf %q "$PWD") && exec $(printf '%q ' "${command[@]}")" </dev/null &
    started+=("$!")
done
trap 'kill "${started[@]}" 2>/dev/null' INT TERM HUP
code=0
for one in "${started[@]}"; do
    ended=0
    wait "$one" || ended=$?
    while kill -0 "$one" 2>/dev/null; do wait "$one" || ended=$?; done # a signal ends `wait` before its time
    if [ "$code" != 2 ] && [ "$ended" != 0 ]; then code=$ended; fi
    if [ "$ended" = 2 ]; then kill "${started[@]}" 2>/dev/null || true; fi # what the first refuses the others wait for in vain
done
exit "$code"
