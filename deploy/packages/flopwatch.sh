#!/bin/sh
# The modules are of no Python in particular: the first that is new enough runs them.
for python in python3.13 python3.12 python3.11 python3; do
  if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
    # Its subprocesses find the modules by this, too.
    export PYTHONPATH="/usr/lib/flopwatch${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
    exec "$python" -P -m flopwatch "$@"
  fi
done
echo "flopwatch: needs Python 3.11, 3.12 or 3.13, and finds none" >&2
exit 2
