#!/bin/sh
# Slurm epilog: removes the ended job from all devices. Runs as root on the node.
# Install as /etc/slurm/epilog.d/50-flopwatch.sh; the counterpart of prolog.sh.
#
# An epilog that fails drains the node. This one always exits 0 and reports through logger(1).
# slurmd sets no PATH.
export PATH="${PATH:+$PATH:}/usr/sbin:/usr/bin:/sbin:/bin"
jobs=${FLOPWATCH_JOBS:-/run/flopwatch/jobs}
lock_seconds=${FLOPWATCH_LOCK_SECONDS:-5}

report() {
  timeout 5 logger -t flopwatch-epilog -p daemon.warning -- "job ${SLURM_JOB_ID:-unknown}: $1" 2>/dev/null
}

# A line is "1235", or "1235 1234_7" for an array task.
forget() {
  failed=0
  for file in "$jobs"/[0-9]* "$jobs"/nvidia[0-9]* "$jobs"/GPU-* "$jobs"/MIG-*; do
    grep -qsE "^$SLURM_JOB_ID( |\$)" "$file" || continue
    rest=$(grep -vE "^$SLURM_JOB_ID( |\$)" "$file")
    if [ -z "$rest" ]; then
      rm -f "$file" || failed=1
    elif printf '%s\n' "$rest" >"$jobs/.new"; then
      mv -f "$jobs/.new" "$file" || failed=1
    else
      # No space for a second file: overwrite the old one, which is longer.
      rm -f "$jobs/.new"
      printf '%s\n' "$rest" >"$file" || failed=1
    fi
  done
  return $failed
}

main() {
  [ -n "${SLURM_JOB_ID:-}" ] && [ -d "$jobs" ] || return 0
  umask 022
  (umask 077 && : >>"$jobs/.lock") && chmod 0600 "$jobs/.lock" || return 1
  (
    flock -w "$lock_seconds" 9 || { echo "another prolog or epilog holds $jobs/.lock"; exit 1; }
    forget
  ) 9<>"$jobs/.lock"
}

trap 'exit 0' HUP INT TERM
message=$( { main 2>&1; } || echo "not forgotten" )
[ -z "$message" ] || report "$message"
exit 0
