#!/bin/sh
# Slurm prolog: records which job holds which GPU. Runs as root on the node, before the job.
# Install as /etc/slurm/prolog.d/50-flopwatch.sh; see docs/install.md.
#
# It writes one file per device into /run/flopwatch/jobs, with one job per line. The file's name is the
# device's UUID if the driver reports it, else its device node (nvidia4 is minor number 4).
# SLURM_JOB_GPUS counts the devices of `slurmd -G`, which are neither NVML's indices nor minor numbers.
#
# A prolog that fails drains the node. This one always exits 0 and reports through logger(1).
# slurmd sets no PATH.
export PATH="${PATH:+$PATH:}/usr/sbin:/usr/bin:/sbin:/bin"

settings() {
  # FLOPWATCH_SLURM_ARRAY_NAMES=yes writes array tasks as "1235 1234_7": the job id, and the name that squeue
  # shows. It asks slurmctld once per GPU job, which Slurm advises against on clusters with many short jobs.
  [ ! -r /etc/default/flopwatch-slurm ] || . /etc/default/flopwatch-slurm
  jobs=${FLOPWATCH_JOBS:-/run/flopwatch/jobs}
  driver=${FLOPWATCH_DRIVER:-/proc/driver/nvidia/gpus}
  lock_seconds=${FLOPWATCH_LOCK_SECONDS:-5}
}

report() {
  timeout 5 logger -t flopwatch-prolog -p daemon.warning -- "job ${SLURM_JOB_ID:-unknown}: $1" 2>/dev/null
}

# Slurm's GPUs in Slurm's order, one device file per line. Cached until the configuration changes.
device_files() {
  list=$jobs/.devices
  conf=${SLURM_CONF:-/etc/slurm/slurm.conf}
  if [ ! -s "$list" ] || [ "$conf" -nt "$list" ] || [ "${conf%/*}/gres.conf" -nt "$list" ]; then
    timeout 10 slurmd -G 2>&1 | awk '
      / Name=gpu / {
        for (i = 1; i <= NF; i++) if (sub(/^File=/, "", $i)) {
          # /dev/nvidia[4-5,7] is nvidia4, nvidia5 and nvidia7; a list without brackets is used unchanged.
          if (!match($i, /\[[0-9,-]+\]/)) { gsub(/,/, "\n", $i); print $i; continue }
          prefix = substr($i, 1, RSTART - 1)
          count = split(substr($i, RSTART + 1, RLENGTH - 2), ranges, ",")
          for (r = 1; r <= count; r++) {
            split(ranges[r] "-" ranges[r], ends, "-")
            for (n = ends[1] + 0; n <= ends[2] + 0; n++) print prefix n
          }
        }
      }' >"$list.new" && mv -f "$list.new" "$list" || { rm -f "$list.new"; return 1; }
  fi
  cat "$list"
}

# The UUID of the GPU with this minor number; empty if the driver does not report it.
uuid_of() {
  for file in "$driver"/*/information; do
    [ -r "$file" ] || continue
    awk -F ':[ \t]*' -v minor="$1" '
      /^GPU UUID/ { uuid = $2 }
      /^Device Minor/ { found = ($2 == minor) }
      END { if (found && uuid ~ /^GPU-[0-9a-f-]+$/) print uuid }' "$file"
  done | head -n 1
}

# The devices that the job holds, one name per line.
devices() {
  # MIG instances are named by UUID in CUDA_VISIBLE_DEVICES.
  case ${CUDA_VISIBLE_DEVICES:-} in
    *MIG-*)
      echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -E '^MIG-[0-9a-f-]+$'
      return
      ;;
  esac
  files=$(device_files)
  # "0,2-3" is 0 2 3.
  for range in $(echo "$SLURM_JOB_GPUS" | tr ',' ' '); do
    first=${range%-*} last=${range#*-}
    case $first$last in
      *[!0-9]*) report "SLURM_JOB_GPUS=$SLURM_JOB_GPUS is not understood"; continue ;;
    esac
    for index in $(seq "$first" "$last" | head -n 64); do
      file=$(echo "$files" | sed -n "$((index + 1))p")
      minor=${file#/dev/nvidia}
      case $minor in
        '' | *[!0-9]*) report "GPU $index of Slurm is no device file of slurmd -G (${file:-none})"; continue ;;
      esac
      name=$(uuid_of "$minor")
      echo "${name:-nvidia$minor}"
    done
  done
}

# The last task of an array keeps the array's own job id: scontrol then shows all of its tasks.
array_name() {
  timeout 3 scontrol -o show job "$SLURM_JOB_ID" 2>/dev/null |
    sed -n "s/^JobId=$SLURM_JOB_ID ArrayJobId=\([0-9]*\) ArrayTaskId=\([0-9]*\) .*/ \1_\2/p"
}

note() {
  line=$SLURM_JOB_ID
  [ "${FLOPWATCH_SLURM_ARRAY_NAMES:-no}" != yes ] || line=$line$(array_name)
  for device in $(devices); do
    grep -qsxF "$line" "$jobs/$device" || echo "$line" >>"$jobs/$device" || {
      echo "cannot write $jobs/$device"
      return 1
    }
  done
}

main() {
  [ -n "${SLURM_JOB_ID:-}" ] && [ -n "${SLURM_JOB_GPUS:-}" ] || return 0
  settings
  umask 022
  mkdir -p "$jobs" || return 1
  # Only for root: whoever can open the lock can hold it, and jobs must not wait for a user.
  (umask 077 && : >>"$jobs/.lock") && chmod 0600 "$jobs/.lock" || return 1
  (
    flock -w "$lock_seconds" 9 || { echo "another prolog or epilog holds $jobs/.lock"; exit 1; }
    note
  ) 9<>"$jobs/.lock"
}

# The job starts in any case. At worst, flopwatch does not name it before it uses its GPU.
trap 'exit 0' HUP INT TERM
message=$( { main 2>&1; } || echo "not noted" )
[ -z "$message" ] || report "$message"
exit 0
