"""Rows of the table, their bounds, and the page that shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine_accuracy.environments import LLAMA_CPP, VLLM


DOCUMENT = Path("docs/accuracy-engines.md")
FLOP_BOUND_LONG, FLOP_BOUND_SHORT, BYTES_BOUND = 0.01, 0.03, 0.05
LONG_SECONDS = 60.0
# Which answer belongs to which prompt is in no histogram; see the page.
PAIRED_BOUND = 0.10


@dataclass(frozen=True, slots=True)
class Row:
    """One case seen at one interval. Errors are relative, None where flopwatch exports nothing."""

    engine: str
    case: str
    interval_seconds: float
    seconds: float
    tokens_off: float
    prefill_error: float | None
    decode_error: float | None
    bytes_error: float | None
    # Requests that nobody waited for: whether the token of their last pass counts is a matter of
    # microseconds.
    aborted: int = 0
    own_bound: float | None = None

    @property
    def flop_bound(self) -> float:
        """1 % over a minute and more, else 3 %, unless the case has its own."""
        if self.own_bound is not None:
            return self.own_bound
        return FLOP_BOUND_LONG if self.seconds >= LONG_SECONDS else FLOP_BOUND_SHORT


def table(rows: Sequence[Row], *, head: bool = True) -> str:
    """The rows in Markdown."""
    lines = [
        "| engine | case | interval | length | tokens | prefill FLOP | decode FLOP | bytes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    body = [
        f"| {row.engine} | {row.case} | {row.interval_seconds:g} s | {row.seconds:.0f} s "
        f"| {_tokens(row)} "
        f"| {_percent(row.prefill_error)} | {_percent(row.decode_error)} "
        f"| {_percent(row.bytes_error)} |"
        for row in rows
    ]
    return "\n".join([*(lines if head else []), *body])


def failures(rows: Sequence[Row]) -> list[str]:
    """Which figures are above their bounds."""
    found = []
    for row in rows:
        name = f"{row.engine}, {row.case}, interval {row.interval_seconds:g} s"
        if abs(row.tokens_off) > row.aborted:
            found.append(f"{name}: tokens {row.tokens_off:+.0f}")
        for what, error, bound in (
            ("prefill FLOP", row.prefill_error, row.flop_bound),
            ("decode FLOP", row.decode_error, row.flop_bound),
            ("bytes", row.bytes_error, BYTES_BOUND),
        ):
            if error is not None and abs(error) > bound:
                found.append(f"{name}: {what} {error:+.1%}, bound {bound:.0%}")
    return found


def write_document(rows: Sequence[Row]) -> None:
    """Write the page with the measured table."""
    DOCUMENT.write_text(
        "# Accuracy against real engines\n\n"
        "`make test-engines` wrote this page. It serves a small Llama with random weights (hidden size "
        "256, 4 layers, 8 query and 2 key-value heads of 32, MLP 704, vocabulary 1024) on the "
        f"processor, with `{VLLM}` and `{LLAMA_CPP}`, sends requests of known lengths and compares "
        "flopwatch with the sum over every token of every forward pass, as vLLM's scheduler made "
        "them and llama.cpp's answers say. Two workloads of flopwatch watch each engine, at intervals of 1 s and of 15 s.\n\n"
        "Bounds: tokens exact; FLOPs within 1 % over a minute or more and 3 % over less; bytes "
        "within 5 %. The command fails above them. The model is tiny, so attention, which is "
        "what is estimated, is a larger share of its FLOPs than of a real model's.\n\n"
        + table(rows)
        + "\n\nAn empty cell means that there was nothing to count.\n\n"
        "**Aborted requests**: vLLM schedules one pass ahead, so two passes are under way when a client hangs up. What they "
        "compute comes out after the API server has forgotten the request, and vLLM counts it nowhere; neither does the table. Whether "
        "a pass was still counted is a matter of microseconds, so one token per aborted request is allowed either way. "
        "No counter of vLLM tells these tokens.\n\n"
        "**Restart**: the engine is stopped when all of its work has been scraped, and started again on the same port. What an engine does "
        "after its last scrape ends with it.\n\n"
        "**Why not less than 1 % and 3 %**: of requests that end within one scrape, the engine's histograms tell the "
        "buckets of their lengths and the sum. Lengths within one bucket are taken as equal. A minute holds enough requests for these errors "
        "to cancel.\n\n"
        "**Several API servers** each count a pass that they see a token of. Which server a request goes to is chance, and how many requests run at once varies: "
        "over 20 s with some dozens of requests, bytes were off by -0.1 % in one run and by -6.6 % in another. These cases last a minute, and the bound of 5 % is for a minute.\n\n"
        "**Long answers to long prompts**: which answer belongs to which prompt is in no metric, so within one scrape they count as independent. A few "
        f"requests whose lengths go together are then off in decode attention; for them the bound is {PAIRED_BOUND:.0%}.\n"
    )


def _tokens(row: Row) -> str:
    if row.tokens_off == 0:
        return "exact"
    return f"{row.tokens_off:+.0f}" + (f" of {row.aborted} aborted" if row.aborted else "")


def _percent(error: float | None) -> str:
    if error is None:
        return ""
    return "exact" if error == 0 else f"{error:+.2%}"
