"""One part's process: `python -m benchmarks.gpu_acceptance_parts.child PART`, its order on stdin."""

import importlib
import os
import sys
from pathlib import Path

import msgspec

from benchmarks.gpu_acceptance_parts.context import Context, Order, Reporter, TimeBox, log_to_stderr


def main() -> int:
    """Run the part; its failures are in its file, and this still ends with 0."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    log_to_stderr()
    if order.survey.uuid and not order.rehearsal:
        # The one GPU by its UUID, which does not change with its index; workloads inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = order.survey.uuid
    report = Reporter(Path(order.lines), TimeBox(order.seconds))
    context = Context(
        report=report,
        survey=order.survey,
        gpu=order.gpu,
        rehearsal=order.rehearsal,
        out=Path(order.out),
        scratch=Path(order.scratch),
    )
    if order.survey.in_use_by:
        report.left_out(
            "a GPU of its own", f"{order.survey.in_use_by} other processes are on the GPU"
        )
    module = importlib.import_module(f"benchmarks.gpu_acceptance_parts.{order.part}")
    try:
        module.run(context)
    except Exception as error:
        report.error(order.part, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
