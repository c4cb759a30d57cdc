"""The command `flopwatch`, and `python -m flopwatch`."""

import signal
import sys


def main() -> int:
    """Run the command. Ctrl-C ends it at any moment without a traceback."""
    # While modules load, and after the command is done, use the system default: the process ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from exporter.cli.main import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
