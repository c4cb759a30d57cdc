#!/bin/sh
# Install flopwatch into a virtual environment: install.sh PYTHON EXTRAS. Says first what that downloads.
#
# torch is the only large part. Its build with CUDA libraries is needed on NVIDIA GPUs alone; on other
# hosts the CPU build is taken where the package index in use has one.
set -eu

python=$1
extras=$2
version=$(sed -n 's/^torch==//p' constraints.txt)

# Without setuptools' page of warnings that the folder is used in place: that is what it is for.
export PYTHONWARNINGS=ignore

pip() {
    "$python" -m pip --disable-pip-version-check --quiet "$@"
}

has_nvidia_gpu() {
    grep -qs 0x10de /sys/bus/pci/devices/*/vendor || [ -e /dev/nvidiactl ]
}

case ",$extras," in
*,probes,*)
    if "$python" -c 'import torch' 2>/dev/null; then
        echo "Installing flopwatch: a download of about 10 MB; torch is there already."
    elif has_nvidia_gpu; then
        echo "Installing flopwatch with torch and its CUDA libraries for the probes: a download of about 2.7 GB."
        echo "Without probes it is about 10 MB: make run EXTRAS="
    else
        echo "Installing flopwatch with torch for the probes: a download of about 200 MB (no NVIDIA GPU here: the CPU build)."
        echo "Without probes it is about 10 MB: make run EXTRAS="
        # The index's other files carry no local version, so this one either is the CPU build or is not there.
        if ! pip install --constraint constraints.txt "torch==$version+cpu" 2>/dev/null &&
            [ "$(uname -m)" = x86_64 ]; then
            echo "The package index in use has no CPU build of torch $version. The other build has CUDA libraries,"
            echo "which this host does not need: about 2.7 GB. Interrupt and use one of these instead:"
            echo "  make run EXTRAS=                             without probes"
            echo "  PIP_EXTRA_INDEX_URL=<an index with it> make run   see pytorch.org, \"Start locally\", CPU"
        fi
    fi
    ;;
*)
    echo "Installing flopwatch without probes: a download of about 10 MB."
    ;;
esac
pip install --constraint constraints.txt --editable ".${extras:+[$extras]}"
