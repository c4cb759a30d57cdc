#!/bin/sh
# Slurm prolog: notes which job holds which GPU, in dcgm-exporter's format: a file per GPU, a job a line.
# Runs as root on the node, before the job. Install as /etc/slurm/prolog.d/50-flopwatch.sh.
set -eu

jobs=${FLOPWATCH_JOBS:-/run/flopwatch/jobs}
[ -n "${SLURM_JOB_ID:-}" ] && [ -n "${SLURM_JOB_GPUS:-}" ] || exit 0

mkdir -p "$jobs"
# "0,2-3" is 0 2 3. Jobs that share a GPU start and end at the same time: one writes after the other.
(
  flock 9
  for range in $(echo "$SLURM_JOB_GPUS" | tr ',' ' '); do
    for gpu in $(seq "${range%-*}" "${range#*-}"); do
      grep -qsx "$SLURM_JOB_ID" "$jobs/$gpu" || echo "$SLURM_JOB_ID" >> "$jobs/$gpu"
    done
  done
) 9> "$jobs/.lock"
