"""A vLLM plugin that records every forward pass: the truth that flopwatch is compared with.

Copied into vLLM's environment, it runs in its engine core. One JSON line per step: the process, the
wall-clock time, and for every sequence in the step its name, the tokens computed before it, the
tokens it computes now, and the length of its prompt.
"""

import functools
import json
import os
import time
from pathlib import Path
from typing import Any


def register() -> None:
    """Wrap the scheduler of this process, if the environment names a folder for the steps."""
    folder = os.environ.get("FLOPWATCH_STEPS")
    if not folder:
        return
    from vllm.v1.core.sched.scheduler import Scheduler  # type: ignore[import-not-found]

    inner = Scheduler.schedule
    if hasattr(inner, "__wrapped__"):
        return
    log = (Path(folder) / f"{os.getpid()}.jsonl").open("a", buffering=1)

    @functools.wraps(inner)
    def schedule(self: Any, *arguments: Any, **options: Any) -> Any:
        before = {name: request.num_computed_tokens for name, request in self.requests.items()}
        output = inner(self, *arguments, **options)
        sequences = []
        for name, new in output.num_scheduled_tokens.items():
            request = self.requests[name]
            started = {
                fresh.req_id: fresh.num_computed_tokens for fresh in output.scheduled_new_reqs
            }
            resumed = request.num_computed_tokens - new
            sequences.append(
                [name, started.get(name, resumed), new, request.num_prompt_tokens, before.get(name)]
            )
        if sequences:
            log.write(json.dumps([os.getpid(), time.time(), sequences]) + "\n")
        return output

    Scheduler.schedule = schedule
