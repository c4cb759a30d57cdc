"""Acceptance on a real GPU: facts, accuracy, probes, cost to the neighbour, the daemon end to end.

    python -m benchmarks.gpu_acceptance [--only facts,accuracy,…] [--out DIR] [--minutes 9]

Runs on a machine with an otherwise unused NVIDIA GPU, torch and this project's packages; needs no
network. Each part has its own time box and process: one that fails or hangs affects only its own
figures. Leaves <gpu>-<date>.json in the folder (default benchmarks/results) and the recordings
of the driver's answers in its folder recordings, and prints a table.

Exit code: 0 when every part that was asked for ran, 1 when one failed or could not run, 2 for a
mistake on the command line. A goal that was missed is a row of the table, not a failure.

    --rehearse    small workloads on the host processor; without a driver, on the tests' fake driver
                  (needs gcc and the package nvidia-nvml-dev). The figures are not of a GPU: the
                  results are marked as a rehearsal and never become documentation
    --document    write docs/accuracy.md from the results in the folder, and do nothing else
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_acceptance_parts.document import render, write_page
from benchmarks.gpu_acceptance_parts.runner import PARTS, ROOT, Request, run_parts
from benchmarks.gpu_acceptance_parts.schema import encode, file_stem, free_path


RESULTS = ROOT / "benchmarks" / "results"
MINUTES = 9.0
DRIVER_LIBRARY = "libnvidia-ml.so.1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_acceptance",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument(
        "--only", type=_parts, default=tuple(PARTS), help=f"some of {', '.join(PARTS)}"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--minutes", type=_minutes, default=MINUTES, help="for everything together")
    parser.add_argument("--gpu", type=int, default=0, help="NVML index (default 0)")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="small workloads on the host processor; without a driver, on the tests' fake driver",
    )
    parser.add_argument("--document", action="store_true", help="only write docs/accuracy.md")
    parsed = parser.parse_args(arguments)
    if parsed.document:
        try:
            print(f"written: {write_page(parsed.out, ROOT / 'docs' / 'accuracy.md')}")
        except (ValueError, OSError) as error:
            parser.error(str(error))
        return 0
    try:
        parsed.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {parsed.out}: {error.strerror}")
    if parsed.rehearse and not _has_driver():
        return _rehearse_on_the_fake_driver(
            parser, sys.argv[1:] if arguments is None else arguments
        )
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as scratch:
        request = Request(
            parts=parsed.only,
            seconds=parsed.minutes * 60,
            gpu=parsed.gpu,
            rehearsal=parsed.rehearse,
            out=parsed.out,
            scratch=Path(scratch),
        )
        results = run_parts(request)
    if any(part.status != "not_run" for part in results.parts):
        stem = file_stem(results.machine.gpu, results.started)
        path = free_path(parsed.out, stem, ".rehearsal.json" if results.rehearsal else ".json")
        path.write_bytes(encode(results))
        print(f"results: {path}", file=sys.stderr)
    print(render(results))
    return 0 if results.sound else 1


def _has_driver() -> bool:
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return False
    return True


def _rehearse_on_the_fake_driver(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Run the same command with the fake driver library in place of the missing one."""
    from tests.fake_nvml.build import BuildError, build  # only a rehearsal needs the tests

    try:
        build()
    except BuildError as error:
        parser.error(f"--rehearse: no GPU driver, and the fake one cannot be built: {error}")
    command = (sys.executable, "-m", "benchmarks.gpu_acceptance", *arguments)
    fake = (sys.executable, "-m", "tests.fake_nvml", "--gpus", "1", "--")
    return subprocess.run((*fake, *command), cwd=ROOT, check=False).returncode


def _parts(text: str) -> tuple[str, ...]:
    wanted = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in wanted if name not in PARTS]
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'}: parts are {', '.join(PARTS)}"
        )
    return tuple(name for name in PARTS if name in wanted)


def _minutes(text: str) -> float:
    value = float(text)
    if not 0.5 <= value <= 120:
        raise argparse.ArgumentTypeError("must be between 0.5 and 120")
    return value


if __name__ == "__main__":
    sys.exit(main())
