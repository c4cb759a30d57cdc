#!/bin/sh
# Slurm prolog: notes which job holds which GPU. Runs as root on the node, before the job.
# Install as /etc/slurm/prolog.d/50-flopwatch.sh; docs/install.md tells how.
#
# It writes a file per device into /run/flopwatch/jobs, a job a line. The file is named by what identifies
# the device: its UUID where the driver tells it, else its device node (nvidia4 is minor number 4). Slurm's
# own numbers are minor numbers where gres.conf names device files; NVML's indices may differ. An array task
# is written as "1235 1234_7": its job id, and the name that squeue shows.
#
# A prolog that fails drains the node. This one always exits 0 and reports through logger(1).
PATH=${PATH:+$PATH:}/usr/sbin:/usr/bin:/sbin:/bin
jobs=${FLOPWATCH_JOBS:-/run/flopwatch/jobs}
driver=${FLOPWATCH_DRIVER:-/proc/driver/nvidia/gpus}
lock_seconds=${FLOPWATCH_LOCK_SECONDS:-5}

report() {
  timeout 5 logger -t flopwatch-prolog -p daemon.warning -- "job ${SLURM_JOB_ID:-unknown}: $1" 2>/dev/null
}

# The UUID of the GPU with this minor number; nothing where the driver does not tell.
uuid_of() {
  for file in "$driver"/*/information; do
    [ -r "$file" ] || continue
    awk -F ': *[ \t]*' -v minor="$1" '
      /^GPU UUID/ { uuid = $2 }
      /^Device Minor/ { found = ($2 == minor) }
      END { if (found && uuid ~ /^GPU-[0-9a-f-]+$/) print uuid }' "$file"
  done | head -n 1
}

# What the job holds, a name a line.
devices() {
  # MIG instances are named by UUID in CUDA_VISIBLE_DEVICES, and by nothing that is unique elsewhere.
  case ${CUDA_VISIBLE_DEVICES:-} in
    *MIG-*)
      echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -E '^MIG-[0-9a-f-]+$'
      return
      ;;
  esac
  # "0,2-3" is 0 2 3.
  for range in $(echo "$SLURM_JOB_GPUS" | tr ',' ' '); do
    first=${range%-*} last=${range#*-}
    case $first$last in
      *[!0-9]* | '') report "SLURM_JOB_GPUS=$SLURM_JOB_GPUS is not understood"; continue ;;
    esac
    seq "$first" "$last" | head -n 64 | while read -r minor; do
      name=$(uuid_of "$minor")
      echo "${name:-nvidia$minor}"
    done
  done
}

note() {
  line=$SLURM_JOB_ID
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    line="$line ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  fi
  for device in $(devices); do
    grep -qsxF "$line" "$jobs/$device" || echo "$line" >>"$jobs/$device" || {
      echo "cannot write $jobs/$device"
      return 1
    }
  done
}

main() {
  [ -n "${SLURM_JOB_ID:-}" ] && [ -n "${SLURM_JOB_GPUS:-}" ] || return 0
  umask 022
  mkdir -p "$jobs" || return 1
  # Root's alone: whoever can open the lock can hold it, and jobs must not wait for a user.
  (umask 077 && : >>"$jobs/.lock") && chmod 0600 "$jobs/.lock" || return 1
  (
    flock -w "$lock_seconds" 9 || { echo "another prolog or epilog holds $jobs/.lock"; exit 1; }
    note
  ) 9<>"$jobs/.lock"
}

# The job starts in any case; at worst flopwatch does not name it before it uses its GPU.
trap 'exit 0' HUP INT TERM
message=$( { main 2>&1; } || echo "not noted" )
[ -z "$message" ] || report "$message"
exit 0
