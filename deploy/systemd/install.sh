#!/bin/sh
# Install the service: install.sh [--probes] [--perf] [--root FOLDER]; take it away again: install.sh --remove
#
# --probes and --perf add drop-ins: what CUDA needs, and the processor's own count of operations.
# Files and user only with --root (for packages and images); else the service is started as well.
# An existing /etc/default/flopwatch is kept, also by --remove, as is the state in /var/lib/flopwatch.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=""
probes=""
perf=""
remove=""
while [ $# -gt 0 ]; do
  case $1 in
    --probes) probes=yes ;;
    --perf) perf=yes ;;
    --remove) remove=yes ;;
    --root) [ $# -gt 1 ] || { echo "install.sh: --root needs a folder" >&2; exit 2; }; root=$2; shift ;;
    *) echo "install.sh: unknown option '$1' (known: --probes, --perf, --remove, --root FOLDER)" >&2; exit 2 ;;
  esac
  shift
done

if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
  echo "install.sh: must be run as root" >&2
  exit 1
fi

if [ -z "$root" ] && [ -z "$remove" ] && [ -e /usr/lib/systemd/system/flopwatch.service ]; then
  echo "install.sh: a package has installed the service already; for the processor's counters copy /usr/share/flopwatch/systemd/perf.conf to /etc/systemd/system/flopwatch.service.d/" >&2
  exit 1
fi

if [ -n "$remove" ]; then
  [ -n "$root" ] || systemctl disable --now flopwatch.service || true
  rm -rf "$root/etc/systemd/system/flopwatch.service" "$root/etc/systemd/system/flopwatch.service.d" \
    "$root/usr/lib/sysusers.d/flopwatch.conf" "$root/usr/lib/tmpfiles.d/flopwatch.conf" "$root/run/flopwatch"
  [ -n "$root" ] || systemctl daemon-reload
  exit 0
fi

install -D -m 0644 "$here/flopwatch.service" "$root/etc/systemd/system/flopwatch.service"
install -D -m 0644 "$here/flopwatch.sysusers" "$root/usr/lib/sysusers.d/flopwatch.conf"
install -D -m 0644 "$here/flopwatch.tmpfiles" "$root/usr/lib/tmpfiles.d/flopwatch.conf"
[ -e "$root/etc/default/flopwatch" ] || install -D -m 0644 "$here/flopwatch.default" "$root/etc/default/flopwatch"
if [ -n "$probes" ]; then
  install -D -m 0644 "$here/flopwatch.service.d/probes.conf" "$root/etc/systemd/system/flopwatch.service.d/probes.conf"
  sed -i 's/^FLOPWATCH_PROBES_ENABLED=false$/FLOPWATCH_PROBES_ENABLED=true/' "$root/etc/default/flopwatch"
fi
if [ -n "$perf" ]; then
  install -D -m 0644 "$here/flopwatch.service.d/perf.conf" "$root/etc/systemd/system/flopwatch.service.d/perf.conf"
fi

systemd-sysusers ${root:+"--root=$root"} flopwatch.conf
systemd-tmpfiles ${root:+"--root=$root"} --create flopwatch.conf
if [ -z "$root" ]; then
  systemctl daemon-reload
  systemctl enable flopwatch.service
  systemctl restart flopwatch.service
fi
