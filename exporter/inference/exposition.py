"""Extracts the relevant samples from an engine's exposition, whatever else it contains."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


# The form of a sample line, to count malformed lines. Possessive quantifiers, so that no line,
# however many blanks it has, takes more than one pass.
_SAMPLE_LINE = re.compile(r"[A-Za-z_:][\w:]*+(?:\s*+\{.*\})?\s++[-+\w.]++(?:\s++-?\d++)?+\s*+")
_NAME = re.compile(r"(?:#\s+(?:HELP|TYPE)\s+)?([A-Za-z_:][\w:]*)")
# Engines behind a proxy that does not support colons (Ray Serve adds its own prefix too).
_COLON_PREFIXES = ("vllm_", "sglang_")
# Old versions of vLLM count cache hits in blocks under the name that later ones use for tokens; the
# samples of a counter whose help text says so carry this label.
IN_BLOCKS = ("unit", "blocks")
_BLOCKS_HELP = re.compile(r"#\s+HELP\s+\S+\s.*\bin terms of number of (?:cached|queried) blocks")
# The longest real lines are configuration infos of some two thousand characters.
LONGEST_LINE = 16 * 1024
# More wanted series than any engine has; beyond this the exposition is rejected.
LARGEST_SAMPLE_COUNT = 20_000
# A server that computes a million tokens per second needs 30 years for this many. Larger values, such
# as a blank of 2^64 - 1, are not counts of tokens or requests.
LARGEST_COUNT = 1e15
# The same for the engine's own estimate of its FLOP: an exaFLOP/s for 30 years.
LARGEST_FLOP = 1e27


class Sample(NamedTuple):
    """One sample; `value` accumulates since the daemon first saw it, `raw` is the engine's."""

    name: str
    labels: Mapping[str, str]
    value: float
    raw: float


@dataclass(frozen=True, slots=True)
class EngineExposition:
    """The wanted samples of one scrape."""

    samples: tuple[Sample, ...]
    # Prefixes of metric names seen anywhere, including comments: they identify the engine.
    prefixes: frozenset[str] = frozenset()
    malformed_lines: int = 0


@dataclass(slots=True)
class _Scan:
    wanted: list[str] = field(default_factory=list)
    prefixes: set[str] = field(default_factory=set)
    in_blocks: set[str] = field(default_factory=set)
    malformed: int = 0


def parse(
    text: str,
    names: Collection[str],
    prefixes: Iterable[str],
    rename: Callable[[str], str] = str,
) -> EngineExposition:
    """Return the samples named `names`, and the `prefixes` that occur.

    `rename` gives the name under which an engine's samples are looked up.

    Malformed lines, and values that are too large to be true, are counted and skipped; they never
    affect the valid ones.
    """
    scan = _scan(text, names, tuple(prefixes), rename)
    samples: list[Sample] = []
    for line in scan.wanted[:LARGEST_SAMPLE_COUNT]:
        try:
            found = list(_samples(line, rename, scan.in_blocks))
        # The errors of prometheus_client on a malformed line; an integer may be too large for a
        # float.
        except (ValueError, IndexError, OverflowError):
            scan.malformed += 1
            continue
        plausible = [sample for sample in found if _is_plausible(sample)]
        scan.malformed += len(plausible) < len(found)
        samples += plausible
    return EngineExposition(tuple(samples), frozenset(scan.prefixes), scan.malformed)


def _is_plausible(sample: Sample) -> bool:
    return abs(sample.value) < (LARGEST_FLOP if "flop" in sample.name else LARGEST_COUNT)


def canonical_name(name: str) -> str:
    """Return a metric's own name: `ray_vllm_prompt_tokens` is `vllm:prompt_tokens`."""
    name = name.removeprefix("ray_")
    if name.startswith(_COLON_PREFIXES):
        return name.replace("_", ":", 1)
    return name


def _scan(
    text: str, names: Collection[str], prefixes: tuple[str, ...], rename: Callable[[str], str]
) -> _Scan:
    """Sort lines in one cheap pass: an exposition has thousands, of which few matter."""
    scan = _Scan()
    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped:
            continue
        if len(stripped) > LONGEST_LINE:
            scan.malformed += not stripped.startswith("#")
            continue
        match = _NAME.match(stripped)
        name = canonical_name(match.group(1)) if match else ""
        if not stripped.startswith("#"):
            if _SAMPLE_LINE.fullmatch(stripped) is None:
                scan.malformed += 1
                continue
            if rename(name) in names:
                scan.wanted.append(stripped)
        elif "blocks" in stripped and _BLOCKS_HELP.match(stripped):
            scan.in_blocks.add(rename(name))
        if name and len(scan.prefixes) < len(prefixes):
            scan.prefixes.update(prefix for prefix in prefixes if name.startswith(prefix))
    return scan


def _samples(line: str, rename: Callable[[str], str], in_blocks: set[str]) -> Iterator[Sample]:
    # 2 MB, needed only with an engine.
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    for family in text_string_to_metric_families(line + "\n"):
        for sample in family.samples:
            value = float(sample.value)
            if math.isnan(value):  # what an engine exposes where it has no value
                continue
            name = rename(canonical_name(sample.name))
            labels = sample.labels
            if in_blocks & {name, name.removesuffix("_total")}:
                labels = {**labels, IN_BLOCKS[0]: IN_BLOCKS[1]}
            yield Sample(name, labels, value, value)
