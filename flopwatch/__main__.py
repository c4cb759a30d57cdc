"""The command `flopwatch`, and `python -m flopwatch`."""

import signal
import sys


def main() -> int:
    """Run the command. Ctrl-C at any moment ends it without a word of Python's."""
    # While modules load, and once the command is done, the default of the system: the process ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from exporter.cli.main import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
