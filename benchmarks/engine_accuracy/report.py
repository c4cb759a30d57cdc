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
    # Requests were aborted: their tokens are known only as a range, see the page.
    aborts: bool = False
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
    """The figures above their bounds."""
    found = []
    for row in rows:
        name = f"{row.engine}, {row.case}, interval {row.interval_seconds:g} s"
        if row.tokens_off:
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
        "This page is written by `make test-engines`. The command serves a small Llama with random "
        "weights (hidden size 256, 4 layers, 8 query and 2 key-value heads of 32, MLP 704, vocabulary "
        f"1024) on the processor, with `{VLLM}` and `{LLAMA_CPP}`, and sends requests of known lengths. "
        "It compares flopwatch with the sum over every token of every forward pass, as recorded in "
        "vLLM's scheduler and reported in llama.cpp's answers. Two workloads of flopwatch scrape each "
        "engine, at intervals of 1 s and 15 s.\n\n"
        "Bounds: tokens exact; FLOPs within 1 % over a minute or more and 3 % over less; bytes "
        "within 5 %. The command fails if one is exceeded. Attention is the part that is estimated. "
        "Because the model is tiny, attention is a larger share of its FLOPs than in a real model.\n\n"
        + table(rows)
        + "\n\nAn empty cell means that there was nothing to count.\n\n"
        "**Aborted requests**: vLLM counts each token that its API server could still deliver, at least what "
        "the client received before it hung up and at most what the engine computed until it learned of that. "
        "`in range` means that flopwatch's tokens lie between the two. FLOPs and bytes are compared with "
        "those of that number of tokens. No vLLM counter reports what was computed and never delivered.\n\n"
        "**Restart**: the engine is stopped when all of its work has been scraped, and started again on "
        "the same port. What an engine computes after its last scrape is lost when it stops.\n\n"
        "**Why the bounds are not below 1 % and 3 %**: for requests that end within one scrape interval, "
        "the engine's histograms report only the buckets of their lengths and the sum. Lengths within one "
        "bucket are assumed to be equal. Over a minute there are enough requests for these errors to cancel.\n\n"
        "**Several API servers**: each one counts every pass from which it gets a token. Requests are "
        "assigned to servers at random, and the number of concurrent requests varies. Over 20 s with a few "
        "dozen requests, bytes were off by -6.6 % in one run and by +5.9 % in another. The random cases of "
        "several servers and of data-parallel ranks, which have a server each, therefore last a minute, and "
        "the bound of 5 % applies to a minute.\n\n"
        "**Long answers to long prompts**: no metric reports which answer belongs to which prompt, so within "
        "one scrape interval their lengths are assumed to be independent. If there are only a few requests "
        "and their lengths are correlated, decode attention is off. For this case the bound is "
        f"{PAIRED_BOUND:.0%}.\n"
    )


def _tokens(row: Row) -> str:
    if row.tokens_off == 0:
        return "in range" if row.aborts else "exact"
    return f"{row.tokens_off:+.0f}"


def _percent(error: float | None) -> str:
    if error is None:
        return ""
    return "exact" if error == 0 else f"{error:+.2%}"
