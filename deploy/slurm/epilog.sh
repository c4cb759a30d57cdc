#!/bin/sh
# Slurm epilog: the job has ended, whatever it held. Install as /etc/slurm/epilog.d/50-flopwatch.sh.
set -eu

jobs=${FLOPWATCH_JOBS:-/run/flopwatch/jobs}
[ -n "${SLURM_JOB_ID:-}" ] && [ -d "$jobs" ] || exit 0

(
  flock 9
  for file in "$jobs"/[0-9]*; do
    [ -f "$file" ] || continue
    sed -i "/^$SLURM_JOB_ID\$/d" "$file"
    [ -s "$file" ] || rm -f "$file"
  done
) 9> "$jobs/.lock"
