"""`python -m flopwatch`: the same command as `flopwatch`."""

import sys

from exporter.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
