"""Commands that install missing parts on this machine."""

import importlib.util
import os
import sys


# The extra `probes` of pyproject.toml.
TORCH_REQUIREMENTS = ("numpy>=1.26", "torch>=2.5,<3")
# Set in the container images, in which nothing can be installed.
_IMAGE_VARIABLE = "FLOPWATCH_IMAGE"


def state_remedy() -> str:
    """How to provide a place for the state file."""
    if os.environ.get(_IMAGE_VARIABLE):
        return "mount a volume at /var/lib/flopwatch that this user may write to"
    return "make it writable for this user, free some space, or set state_file to a writable file"


def torch_remedy() -> str:
    """How to install torch in this environment."""
    if os.environ.get(_IMAGE_VARIABLE):
        return "use the image that is built with --target full"
    wanted = " ".join(f"'{requirement}'" for requirement in TORCH_REQUIREMENTS)
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {sys.executable} {wanted}"
    return f"{sys.executable} -m pip install {wanted}"
