"""The version of this package, and the revision that it was built from."""

import os


VERSION = "0.1.0"
# Set by the container build; a checkout or a wheel does not know its commit.
REVISION = os.environ.get("FLOPWATCH_REVISION", "unknown")
