"""The result of one scrape of an engine: the exposition's samples, and what an engine's file reads in them.

`ModelReading` is the common vocabulary of all engines.
"""

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
# The limit of models per endpoint: an engine serves one, a router several.
LARGEST_MODEL_COUNT = 32
LONGEST_MODEL_NAME = 200


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


@dataclass(frozen=True, slots=True)
class Buckets:
    """Increases of a histogram: `counts[i]` observations in (bounds[i - 1], bounds[i]].

    The last bound is infinite.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """Requests that ended in the window, and their tokens; with lengths if the engine reports them.

    Token counts that are None are known only through the buckets.
    """

    requests: float
    prompt_tokens: float | None
    answer_tokens: float | None = 0.0
    # Prompt tokens computed here, without cache hits; None: derived from the window's tokens.
    computed_tokens: float | None = None
    prompts: Buckets | None = None
    answers: Buckets | None = None
    computed: Buckets | None = None
    # Prompts to which the prompt tokens belong, if not those of the ended requests.
    accepted: float | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """Sequences that have produced their first token and not ended, and their tokens so far."""

    requests: float
    prompt_tokens: float
    answer_tokens: float
    # The part of the prompt computed here; None if the engine does not report it.
    computed_tokens: float | None = None

    def __add__(self, other: "InFlight") -> "InFlight":
        """Both together."""
        known = [part for part in (self.computed_tokens, other.computed_tokens) if part is not None]
        return InFlight(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            sum(known) if known else None,
        )

    def __sub__(self, other: "InFlight") -> "InFlight":
        """What remains without the other, at least 0."""
        computed = self.computed_tokens
        return InFlight(
            max(0.0, self.requests - other.requests),
            max(0.0, self.prompt_tokens - other.prompt_tokens),
            max(0.0, self.answer_tokens - other.answer_tokens),
            None if computed is None else max(0.0, computed - (other.computed_tokens or 0.0)),
        )

    def __mul__(self, share: float) -> "InFlight":
        """A share of them."""
        computed = self.computed_tokens
        return InFlight(
            self.requests * share,
            self.prompt_tokens * share,
            self.answer_tokens * share,
            None if computed is None else computed * share,
        )


@dataclass(frozen=True, slots=True)
class ModelReading:
    """One model behind an endpoint: counts since the last scrape, and present values.

    Counts are increases since the last scrape of the same engine; None if the engine does not
    report them. An empty `model` means that the engine does not name it.
    """

    model: str = ""
    # Counts.
    computed_tokens: float | None = None  # prompt tokens, without cache hits
    cached_tokens: float | None = None  # prompt tokens taken from a cache of this server
    external_tokens: float | None = None  # prompt tokens that another server or store computed
    generated_tokens: float | None = None
    prompts: float | None = None  # requests that produced their first token
    passes: float | None = None  # forward passes of any kind, once per rank and pass
    observed_passes: float | None = (
        None  # the same, counted by each API server that saw a token of it
    )
    prefill_passes: float | None = None
    decode_passes: float | None = None
    # Default tokens of one prefill pass, if the server was not started with another number; and
    # whether the passes above count all chunks of a prompt that are computed together as one.
    chunk_tokens: float | None = None
    chunks_as_one: bool = False
    ranks: int = 1  # data-parallel ranks behind the counts
    drafts: float | None = None  # speculative steps of one sequence
    draft_tokens: float | None = None
    accepted_tokens: float | None = None
    preemptions: float | None = None
    recomputed_tokens: float | None = None  # computed again after a preemption
    engine_flop: float | None = None  # the engine's own estimate, per GPU
    # Requests that ended, if only their number is known; and the longest sequence ever.
    ended: float | None = None
    longest_sequence: float | None = None
    # Requests that ended, and those still running.
    finished: Finished | None = None
    in_flight: InFlight | None = None
    # Now.
    running_requests: float | None = None
    waiting_requests: float | None = None
    cache_usage_ratio: float | None = None
    cache_used_tokens: float | None = None
    acceptance_length: float | None = None  # tokens per sequence and pass, reported by the engine
    # Settings.
    cache_data_type: str | None = None
    precision: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    gpus: int | None = None  # of the whole engine, on all hosts
    role: str | None = None  # prefill, decode, both

    @property
    def reused_tokens(self) -> float:
        """Prompt tokens that were not computed here, from a cache or another server."""
        return (self.cached_tokens or 0.0) + (self.external_tokens or 0.0)


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One successful scrape. `seconds` is monotonic, `timestamp_seconds` wall-clock time."""

    engine: str
    seconds: float
    timestamp_seconds: float
    models: tuple[ModelReading, ...]
    malformed_lines: int = 0
    # The first scrape of an engine is the baseline of the counts: all of them are zero.
    first: bool = False
    # Restarts of the engine seen so far: it may serve a different model now.
    restarts: int = 0
    # Changes of the answering process, including restarts.
    switches: int = 0
    # The exposition has no process start time: several API servers wrote it.
    multiprocess: bool = False


class Samples:
    """The samples of one model, with sums for the engine modules. A missing name gives None."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def all(self, name: str, **labels: str) -> Iterator[Sample]:
        """The samples of `name` with these label values."""
        for sample in self._by_name.get(name, ()):
            if all(sample.labels.get(label) == value for label, value in labels.items()):
                yield sample

    def has(self, *names: str) -> bool:
        """Whether the engine exposes one of `names`."""
        return any(name in self._by_name for name in names)

    def sum(self, *names: str, **labels: str) -> float | None:
        """The sum over the series of the first of `names` that exists."""
        samples = self._first(names, labels)
        return sum(sample.value for sample in samples) if samples else None

    def total(self, *names: str, **labels: str) -> float | None:
        """Like `sum`, but of the engine's counts since it started."""
        samples = self._first(names, labels)
        return sum(sample.raw for sample in samples) if samples else None

    def mean(self, *names: str) -> float | None:
        """The mean over the series of the first of `names` that exists."""
        samples = self._first(names, {})
        return sum(sample.value for sample in samples) / len(samples) if samples else None

    def _first(self, names: Iterable[str], labels: Mapping[str, str]) -> list[Sample]:
        """The samples of the first of `names` that has any with these labels."""
        found = (list(self.all(name, **labels)) for name in names)
        return next((samples for samples in found if samples), [])

    def label(self, name: str, *labels: str) -> str | None:
        """The first of `labels` that a series of `name` has; None if it is empty."""
        for sample in self.all(name):
            for label in labels:
                value = sample.labels.get(label, "")
                if value and value != "None":
                    return value
        return None

    def label_values(self, name: str, label: str) -> frozenset[str]:
        """All values of a label of `name`."""
        return frozenset(sample.labels.get(label, "") for sample in self.all(name))

    def label_values_of(self, label: str) -> frozenset[str]:
        """All values that `label` has on any sample."""
        return frozenset(
            sample.labels[label]
            for samples in self._by_name.values()
            for sample in samples
            if label in sample.labels
        )

    def buckets(self, name: str) -> Buckets | None:
        """The increases of the histogram `name`, over all of its series; None without buckets."""
        cumulative: dict[float, float] = {}
        for sample in self.all(f"{name}_bucket"):
            bound = number(sample.labels.get("le"))
            if bound is not None:
                cumulative[bound] = cumulative.get(bound, 0.0) + sample.value
        if len(cumulative) < 2:  # a lone +Inf adds nothing to the count
            return None
        bounds = tuple(sorted(cumulative))
        below, counts = 0.0, []
        for bound in bounds:
            counts.append(max(0.0, cumulative[bound] - below))
            below = max(below, cumulative[bound])
        return Buckets(bounds, tuple(counts))


@dataclass(frozen=True, slots=True)
class Engine:
    """How to read one engine's metrics. To add an engine, add one module with an instance."""

    name: str
    # Its metric names start with one of these.
    prefixes: tuple[str, ...]
    counters: frozenset[str]
    gauges: frozenset[str]
    read: Callable[[Samples], ModelReading]
    # Default metrics ports, for discovery.
    ports: tuple[int, ...]
    # Histograms whose buckets, sums and counts are read.
    histograms: frozenset[str] = frozenset()
    path: str = "/metrics"
    # For the documentation: what to enable, and what the engine reports.
    title: str = ""
    enable: str = "on by default"
    reports: str = ""
    # Scraped at least this often, whatever the configured interval, if the number of requests must
    # be observed because there is no counter for it.
    longest_interval_seconds: float = math.inf
    # An engine that has served nothing yet may expose nothing at all.
    silent_at_start: bool = False
    # Keeps only one of several redundant series.
    deduplicate: Callable[[Iterable[Sample]], Iterable[Sample]] = tuple
    # The name under which a sample is read: NIM drops vLLM's prefix.
    rename: Callable[[str], str] = str
    # Metrics that identify an engine which also exposes another engine's names; discovery checks
    # these first.
    marker: str = ""
    rank: int = 0
    # All names that the reading uses.
    names: Collection[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        """Derive all names once; a scrape looks each line up in them."""
        object.__setattr__(self, "names", self.series | self.gauges)

    @property
    def series(self) -> frozenset[str]:
        """The names of all counter series."""
        parts = ("_bucket", "_sum", "_count")
        return self.counters | {name + part for name in self.histograms for part in parts}

    def matches(self, prefixes: Collection[str]) -> bool:
        """Whether an exposition with these prefixes has metrics of this engine."""
        return any(prefix in prefixes for prefix in self.prefixes)


def positive_difference(total: float | None, part: float | None) -> float | None:
    """Return total - part, at least 0; a missing part counts as 0, a missing total gives None."""
    return None if total is None else max(0.0, total - (part or 0.0))


def by_model(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Group samples by model; those without a model belong to every model."""
    named: dict[str, list[Sample]] = {}
    common: list[Sample] = []
    for sample in samples:
        model = sample.labels.get("model_name") or sample.labels.get("model") or ""
        if not model:
            common.append(sample)
            continue
        model = model[:LONGEST_MODEL_NAME]
        if model in named or len(named) < LARGEST_MODEL_COUNT:
            named.setdefault(model, []).append(sample)
    if not named:
        # An engine that has not served any request may not report its model yet.
        return {"": common} if common else {}
    return {model: [*own, *common] for model, own in named.items()}


def number(text: str | None) -> float | None:
    """Return the value of a label; None if it is empty, not a number or NaN."""
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return None if value is None or math.isnan(value) else value


def positive_integer(text: str | None) -> int | None:
    """Return a positive number below 2^31, as in a label or an option; None if it is not one."""
    if not text or len(text) > 10 or not text.isdecimal():
        return None
    return int(text) if 0 < int(text) < 1 << 31 else None
