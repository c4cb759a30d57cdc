"""Corrupts inputs, guided by code coverage: `python -m tests.fuzz.guided config`.

Needs `pip install atheris`. Slower per input than `python -m tests.fuzz`, but it learns which
inputs reach a new branch. More arguments are libFuzzer's: `-max_total_time=600`, a folder to keep
the corpus in. It stops at the first finding.
"""

import sys
import tempfile
from pathlib import Path

import structlog

from tests.fuzz.targets import TARGETS


try:
    import atheris
except ImportError:
    raise SystemExit("this needs atheris: pip install atheris") from None


def main() -> None:
    """Run one target until libFuzzer ends; what breaks it is written to tests/fuzz/findings."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"usage: python -m tests.fuzz.guided {{{','.join(TARGETS)}}} [LIBFUZZER]")
    target = TARGETS[sys.argv.pop(1)]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    findings = Path(__file__).parent / "findings" / f"{target.name}-"
    # Instruments what is loaded already: this project's modules and the libraries beneath them.
    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup(
            [sys.argv[0], corpus, f"-artifact_prefix={findings}", *sys.argv[1:]], target.run
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
