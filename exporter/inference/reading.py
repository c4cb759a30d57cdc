"""What one scrape of an engine says, in one vocabulary for all engines."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from exporter.inference.exposition import Sample


# Models told apart behind one endpoint: an engine serves one, a router some.
LARGEST_MODEL_COUNT = 32
LONGEST_MODEL_NAME = 200


@dataclass(frozen=True, slots=True)
class Buckets:
    """Increases of a histogram: `counts[i]` observations in (bounds[i - 1], bounds[i]].

    The last bound is infinite.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """Requests that ended in the window, and their tokens; lengths where the engine tells them.

    Tokens that are None are only known to lie in the buckets.
    """

    requests: float
    prompt_tokens: float | None
    answer_tokens: float | None = 0.0
    # Prompt tokens computed here, without cache hits; None: as the window's tokens have it.
    computed_tokens: float | None = None
    prompts: Buckets | None = None
    answers: Buckets | None = None
    computed: Buckets | None = None
    # Prompts that the prompt tokens belong to, where they are not those of the ended requests.
    accepted: float | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """Sequences whose first token is out and which have not ended, and their tokens so far."""

    requests: float
    prompt_tokens: float
    answer_tokens: float
    # Of the prompt, what was computed here; None where the engine does not tell.
    computed_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class ModelReading:
    """One model behind an endpoint: what happened since the last scrape, and what is now.

    Counts are increases since the last scrape of the same engine; None where the engine does not
    tell. An empty `model` means that the engine does not name it.
    """

    model: str = ""
    # Counts.
    computed_tokens: float | None = None  # prompt tokens, without cache hits
    cached_tokens: float | None = None  # prompt tokens taken from a cache of this server
    external_tokens: float | None = None  # prompt tokens that another server or store computed
    generated_tokens: float | None = None
    prompts: float | None = None  # requests whose first token came out
    passes: float | None = None  # forward passes of any kind, once per rank and pass
    observed_passes: float | None = None  # the same, once per API server that saw a token of it
    prefill_passes: float | None = None
    decode_passes: float | None = None
    # Tokens of one prefill pass unless the server was started with others; and whether the passes
    # above count all chunks of a prompt that are computed together as one.
    chunk_tokens: float | None = None
    chunks_as_one: bool = False
    ranks: int = 1  # data-parallel ranks behind the counts
    drafts: float | None = None  # speculative steps of one sequence
    draft_tokens: float | None = None
    accepted_tokens: float | None = None
    preemptions: float | None = None
    recomputed_tokens: float | None = None  # computed again after a preemption
    engine_flop: float | None = None  # the engine's own estimate, per GPU
    # Requests that ended, where only their number is known; and the longest sequence ever.
    ended: float | None = None
    longest_sequence: float | None = None
    # Requests that ended, and those that go on.
    finished: Finished | None = None
    in_flight: InFlight | None = None
    # Now.
    running_requests: float | None = None
    waiting_requests: float | None = None
    cache_usage_ratio: float | None = None
    cache_used_tokens: float | None = None
    decode_context: float | None = None  # mean, told by the engine
    acceptance_length: float | None = None  # tokens per sequence and pass, told by the engine
    # Settings.
    cache_data_type: str | None = None
    precision: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    gpus: int | None = None  # of the whole engine, on all hosts
    role: str | None = None  # prefill, decode, both


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One successful scrape. `seconds` is monotonic, `timestamp_seconds` wall-clock time."""

    engine: str
    seconds: float
    timestamp_seconds: float
    models: tuple[ModelReading, ...]
    malformed_lines: int = 0
    # The first scrape of an engine is the base of the counts: all of them are zero.
    first: bool = False
    # Restarts of the engine seen so far: it may serve something else since.
    restarts: int = 0
    # Changes of the process that answers, restarts included.
    switches: int = 0
    # The exposition names no start time of a process: several API servers wrote it.
    multiprocess: bool = False


class Samples:
    """The samples of one model, with the sums that engines need. A missing name gives None."""

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
        """The sum over the series of the first of `names` that is there."""
        for name in names:
            values = [sample.value for sample in self.all(name, **labels)]
            if values:
                return sum(values)
        return None

    def total(self, *names: str, **labels: str) -> float | None:
        """As `sum`, of what the engine has counted since it started."""
        for name in names:
            values = [sample.raw for sample in self.all(name, **labels)]
            if values:
                return sum(values)
        return None

    def mean(self, *names: str) -> float | None:
        """The mean over the series of the first of `names` that is there."""
        for name in names:
            values = [sample.value for sample in self.all(name)]
            if values:
                return sum(values) / len(values)
        return None

    def label(self, name: str, *labels: str) -> str | None:
        """The first of `labels` that a series of `name` has; None where it says nothing."""
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
            bound = _number(sample.labels.get("le"))
            if bound is not None:
                cumulative[bound] = cumulative.get(bound, 0.0) + sample.value
        if len(cumulative) < 2:  # a lone +Inf says no more than the count
            return None
        bounds = tuple(sorted(cumulative))
        below, counts = 0.0, []
        for bound in bounds:
            counts.append(max(0.0, cumulative[bound] - below))
            below = max(below, cumulative[bound])
        return Buckets(bounds, tuple(counts))


def _same_name(name: str) -> str:
    return name


@dataclass(frozen=True, slots=True)
class Engine:
    """How one engine's metrics are read. Adding an engine is adding one file with one of these."""

    name: str
    # Its metric names start with one of these.
    prefixes: tuple[str, ...]
    counters: frozenset[str]
    gauges: frozenset[str]
    read: Callable[[Samples], ModelReading]
    # Where it serves metrics by default, for discovery.
    ports: tuple[int, ...]
    # Histograms whose buckets, sums and counts are read.
    histograms: frozenset[str] = frozenset()
    path: str = "/metrics"
    # For the documentation: what to turn on, and what it tells.
    title: str = ""
    enable: str = "nothing"
    tells: str = ""
    # Scraped at least this often, whatever the configured interval: where the number of requests
    # must be seen, for no counter tells it.
    longest_interval_seconds: float = math.inf
    # An engine that has served nothing yet may expose nothing at all.
    silent_at_start: bool = False
    # Keeps of several series that say the same thing only one.
    deduplicate: Callable[[Iterable[Sample]], Iterable[Sample]] = tuple
    # The name under which a sample is read: NIM drops vLLM's prefix.
    rename: Callable[[str], str] = _same_name
    # Metrics that show who passes another engine's names through; discovery asks for them first.
    marker: str = ""
    rank: int = 0
    # All names that the reading uses.
    names: Collection[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        """Derive all names once; a scrape looks each line up in them."""
        object.__setattr__(self, "names", self.series | self.gauges)

    @property
    def series(self) -> frozenset[str]:
        """All names that count up."""
        parts = ("_bucket", "_sum", "_count")
        return self.counters | {name + part for name in self.histograms for part in parts}


def positive_difference(total: float | None, part: float | None) -> float | None:
    """Return total - part, at least 0; a missing part counts as 0, a missing total gives None."""
    return None if total is None else max(0.0, total - (part or 0.0))


def by_model(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Group samples by the model they name; those that name none belong to every model."""
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
        # An engine that has served nothing yet may not have said whom it serves.
        return {"": common} if common else {}
    return {model: [*own, *common] for model, own in named.items()}


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return None if value is None or math.isnan(value) else value
