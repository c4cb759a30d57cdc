"""What one scrape of an engine says, in one vocabulary for all engines."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from exporter.inference.exposition import Sample


# Models told apart behind one endpoint: an engine serves one, a router some.
LARGEST_MODEL_COUNT = 32
LONGEST_MODEL_NAME = 200


@dataclass(frozen=True, slots=True)
class ModelReading:
    """One model behind an endpoint: what happened since the last scrape, and what is now.

    Counts are increases since the last scrape of the same engine; None where the engine does not
    tell. An empty `model` means that the engine does not name it.
    """

    model: str = ""
    # Counts.
    computed_tokens: float | None = None  # prompt tokens, without cache hits
    cached_tokens: float | None = None  # prompt tokens taken from a cache
    generated_tokens: float | None = None
    prompts: float | None = None  # requests whose first token came out
    passes: float | None = None  # forward passes of any kind
    prefill_passes: float | None = None
    decode_passes: float | None = None
    drafts: float | None = None  # speculative steps of one sequence
    draft_tokens: float | None = None
    accepted_tokens: float | None = None
    engine_flops: float | None = None  # the engine's own estimate, per GPU
    # Requests that ended, and their tokens: the lengths of prompts and answers.
    finished_requests: float | None = None
    finished_prompt_tokens: float | None = None
    finished_answer_tokens: float | None = None
    # The same since the engine started, for the first windows.
    lifetime_prompt_length: float | None = None
    lifetime_answer_length: float | None = None
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

    def has(self, name: str) -> bool:
        """Whether the engine exposes `name`."""
        return name in self._by_name

    def sum(self, *names: str, **labels: str) -> float | None:
        """The sum over the series of the first of `names` that is there."""
        for name in names:
            values = [sample.value for sample in self.all(name, **labels)]
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

    def lifetime_mean(self, total: str, count: str) -> float | None:
        """The mean since the engine started, of a sum over a count."""
        totals = [sample.raw for sample in self.all(total)]
        counts = [sample.raw for sample in self.all(count)]
        if not totals or sum(counts) <= 0:
            return None
        return sum(totals) / sum(counts)

    def label(self, name: str, label: str) -> str | None:
        """A label of the first series of `name`; None where it is missing or says nothing."""
        for sample in self.all(name):
            value = sample.labels.get(label, "")
            if value and value != "None":
                return value
        return None


@dataclass(frozen=True, slots=True)
class Engine:
    """How one engine's metrics are read. Adding an engine is adding one of these."""

    name: str
    # Its metric names start with one of these.
    prefixes: tuple[str, ...]
    counters: frozenset[str]
    gauges: frozenset[str]
    read: Callable[[Samples], ModelReading]
    # Where it serves metrics by default, for discovery.
    ports: tuple[int, ...]
    path: str = "/metrics"
    # An engine that has served nothing yet may expose nothing at all.
    silent_at_start: bool = False
    # Keeps of several series that say the same thing only one.
    deduplicate: Callable[[Iterable[Sample]], Iterable[Sample]] = tuple

    @property
    def names(self) -> Collection[str]:
        """All names that the engine's reading uses."""
        return self.counters | self.gauges


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
