"""Derives the work of each window from an engine's readings, with estimates where needed.

Attention depends on the distribution of tokens over sequences. Engines report the lengths of ended
requests, and the number and total tokens of running ones. The work so far is thus the sum over
ended and running requests, and the work of a window is the difference of two such sums. Errors in
the estimate of running requests are corrected when they end, and nothing is counted twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from exporter.inference.launch import Launch
from exporter.inference.lengths import LengthModel, Point, joined, paired, spread_out
from exporter.inference.models.cost import (
    PREFILL_CHUNK_TOKENS,
    Stretch,
    Work,
    chunk_count,
    decoded_tokens,
)
from exporter.inference.reading import Finished, InFlight, ModelReading


# The number of consecutive scrapes with more sequences started than running after which the
# difference counts as aborted requests: engines count those as started and never as ended.
ABORTED_AFTER_SCRAPES = 3
# Above this share of computed tokens, the whole prompt counts as computed.
_UNCACHED = 0.99
_NOTHING = InFlight(0.0, 0.0, 0.0)


@dataclass(slots=True)
class Progress:
    """The state of one model across windows. Owned by its records; not thread-safe."""

    prompts: LengthModel = field(default_factory=LengthModel)
    computed: LengthModel = field(default_factory=LengthModel)
    answers: LengthModel = field(default_factory=LengthModel)
    # Stretches of the sequences that were running at the last reading.
    prefills: tuple[Stretch, ...] = ()
    decodes: tuple[Stretch, ...] = ()
    running: float = 0.0
    # Sequences that were started and will never be reported as ended.
    aborted: InFlight = _NOTHING
    surplus: list[float] = field(default_factory=list)
    mean_prompt: float | None = None
    mean_answer: float | None = None
    context: float | None = None
    computed_share: float = 1.0
    # If an engine counts no requests: the running ones whose prompt was not seen yet, and the
    # prompt of ended ones.
    unprompted: float = 0.0
    ended_prompt: float | None = None
    # Cache hits that were counted before their prompt: computed prompt tokens cannot be negative.
    debt: float = 0.0

    def work_of(
        self,
        reading: ModelReading,
        launch: Launch | None = None,
        *,
        changed: bool = False,
        restarted: bool = False,
    ) -> Work:
        """Return the work since the last reading.

        `changed` means that a different process answered than last time, or the first one: its
        running sequences began before it was tracked, unless it has `restarted` since.
        """
        launch = launch or Launch()
        if changed:
            self.aborted, self.surplus = _NOTHING, []
        if reading.finished is not None and reading.in_flight is not None:
            prefills, decodes, running = self._by_request(
                reading, reading.finished, reading.in_flight, changed=changed, restarted=restarted
            )
        else:
            if reading.prompts is None and reading.finished is None:
                reading = self._counted(reading, changed=changed)
            prefills, decodes = self._by_token(reading)
            running = reading.running_requests or 0.0
        work = Work(
            prefill_tokens=self._computed(reading),
            decode_tokens=reading.generated_tokens or 0.0,
            prompts=_prompts(reading) if reading.ended is None else reading.ended,
            first_tokens=_prompts(reading),
            rejected_tokens=_rejected(reading),
            acceptance_length=_acceptance_length(reading),
            prefills=prefills,
            decodes=decodes,
            ranks=max(1, reading.ranks),
            chunk_tokens=launch.chunk_tokens or reading.chunk_tokens or PREFILL_CHUNK_TOKENS,
        )
        work = _with_passes(work, reading, launch, (self.running, running))
        self.running = running
        self.context = _mean_context(work) or self.context
        return work

    def _computed(self, reading: ModelReading) -> float:
        """Computed prompt tokens; hits counted before their prompts are carried over as a debt."""
        tokens = (reading.computed_tokens or 0.0) + self.debt
        self.debt = min(0.0, tokens)
        return max(0.0, tokens)

    def _by_request(
        self,
        reading: ModelReading,
        finished: Finished,
        in_flight: InFlight,
        *,
        changed: bool,
        restarted: bool,
    ) -> tuple[tuple[Stretch, ...], tuple[Stretch, ...], float]:
        """Stretches from the ended requests and the running sequences."""
        prefills, decodes = self._ended(finished, reading)
        flight, lost = self._under_way(in_flight, reading)
        now_prefills, now_decodes = self._running(flight)
        lost_prefills, lost_decodes = self._running(lost)
        before = (self.prefills, self.decodes)
        if restarted:
            before = ((), ())  # all of it is new; the last process's running work stays counted
        elif changed:
            before = (tuple(now_prefills), tuple(now_decodes))
        if not changed or restarted:
            prefills += lost_prefills  # they ended here: their work stays counted
            decodes += lost_decodes
        prefills += [*now_prefills, *map(_negated, before[0])]
        decodes += [*now_decodes, *map(_negated, before[1])]
        self.prefills, self.decodes = tuple(now_prefills), tuple(now_decodes)
        return tuple(prefills), tuple(decodes), flight.requests

    def _ended(
        self, finished: Finished, reading: ModelReading
    ) -> tuple[list[Stretch], list[Stretch]]:
        count, prompts, answers = self._lengths(finished)
        prefills = [
            Stretch(weight, max(0.0, whole - new), min(whole, new))
            for weight, whole, new in self._parts(finished, prompts, reading)
            if new > 0
        ]
        if not prompts and answers:
            count, prompts = 1.0, [Point(1.0, self.mean_prompt or 0.0)]
        decodes = [
            Stretch(prompt.weight / count * answer.weight, prompt.length, answer.length - 1)
            for prompt in prompts
            for answer in answers
            if answer.length > 1
        ]
        return prefills, decodes

    def _lengths(self, finished: Finished) -> tuple[float, list[Point], list[Point]]:
        """The number of prompts, and the lengths of prompts and answers."""
        count = finished.requests if finished.accepted is None else finished.accepted
        prompts = self.prompts.points(finished.prompt_tokens, count, finished.prompts)
        answers = self.answers.points(finished.answer_tokens, finished.requests, finished.answers)
        self.mean_prompt = _mean(prompts, self.mean_prompt)
        self.mean_answer = _mean(answers, self.mean_answer)
        return count, prompts, answers

    def _parts(
        self, finished: Finished, prompts: Sequence[Point], reading: ModelReading
    ) -> list[tuple[float, float, float]]:
        """(weight, tokens, computed tokens) of prompts, assuming that longer ones computed more."""
        computed = self._computed_points(finished, prompts, reading)
        new = sum(point.weight * point.length for point in computed)
        if new < _UNCACHED * sum(point.weight * point.length for point in prompts):
            # Which lengths within a bucket were cached is not known: use their mean.
            prompts = joined(prompts)
        return paired(prompts, computed)

    def _computed_points(
        self, finished: Finished, prompts: Sequence[Point], reading: ModelReading
    ) -> list[Point]:
        """Computed tokens of the ended prompts: as reported, else the window's share of each."""
        if finished.computed_tokens is not None:
            return self.computed.points(
                finished.computed_tokens, finished.requests, finished.computed
            )
        cached = reading.reused_tokens
        new = max(0.0, reading.computed_tokens or 0.0)
        if new + cached > 0:
            self.computed_share = new / (new + cached)
        return [replace(point, length=point.length * self.computed_share) for point in prompts]

    def _under_way(self, reported: InFlight, reading: ModelReading) -> tuple[InFlight, InFlight]:
        """The running sequences, and those found to be aborted."""
        if max(0.0, reported.requests) < self.aborted.requests:
            # Some of them ended after all: there cannot be more of them than sequences remaining.
            share = max(0.0, reported.requests) / self.aborted.requests
            self.aborted = self.aborted * share
        flight = reported - self.aborted
        running = reading.running_requests
        if running is None or flight.requests <= 0:
            self.surplus = []
            return flight, _NOTHING
        surplus = max(0.0, flight.requests - running - (reading.waiting_requests or 0.0))
        self.surplus = [*self.surplus[-(ABORTED_AFTER_SCRAPES - 1) :], surplus]
        gone = min(self.surplus) if len(self.surplus) == ABORTED_AFTER_SCRAPES else 0.0
        if running == 0 and not reading.waiting_requests:
            gone = flight.requests
        if gone <= 0:
            return flight, _NOTHING
        lost = flight * (gone / flight.requests)
        self.aborted = self.aborted + lost
        self.surplus = []
        return flight - lost, lost

    def _running(self, flight: InFlight) -> tuple[list[Stretch], list[Stretch]]:
        """Stretches of the running sequences, assuming equal lengths.

        The result errs low, never high: a counter cannot decrease, and missing work is added when
        the requests end.
        """
        count = flight.requests
        if count <= 0 or flight.prompt_tokens <= 0:
            return [], []
        length = flight.prompt_tokens / count
        new = flight.prompt_tokens if flight.computed_tokens is None else flight.computed_tokens
        share = min(1.0, new / flight.prompt_tokens)
        decoded = max(0.0, flight.answer_tokens - count) / count
        prefills = [Stretch(count, length * (1 - share), length * share)]
        return prefills, [Stretch(count, length, decoded)] if decoded > 0 else []

    def _counted(self, reading: ModelReading, *, changed: bool) -> ModelReading:
        """Add the numbers of requests started and ended, if the engine counts none (llama.cpp).

        They follow from the running requests now and before, and from lower limits: prompt tokens
        belong to at least one request, and to more than one if no sequence was ever that long.
        Requests that began and ended between two scrapes count as one if there is no other
        evidence.
        """
        running = reading.running_requests or 0.0
        before = running if changed else self.running
        tokens = (reading.computed_tokens or 0.0) + reading.reused_tokens
        self.unprompted += max(0.0, running - before)
        began = ended = 0.0
        if tokens > 0:
            began = max(1.0, self.unprompted)
            if reading.longest_sequence:
                began = max(began, -(-tokens // reading.longest_sequence))
            self.unprompted = 0.0
        if reading.generated_tokens:
            ended = max(1.0, before + began - running)
        # An ended request was running before, unless none was.
        self.ended_prompt = self.mean_prompt if before >= 1 else None
        return replace(reading, prompts=began, ended=ended)

    def _by_token(self, reading: ModelReading) -> tuple[tuple[Stretch, ...], tuple[Stretch, ...]]:
        """Stretches if an engine reports only tokens: the means of the window represent all."""
        new = reading.computed_tokens or 0.0
        cached = reading.reused_tokens
        prompts = _prompts(reading)
        if reading.finished is not None and reading.finished.requests > 0:
            self._lengths(reading.finished)
        elif prompts > 0:
            self.mean_prompt = (new + cached) / prompts
        prefills: list[Stretch] = []
        if new > 0:
            length = (new + cached) / prompts if prompts else self.mean_prompt or (new + cached)
            count = (new + cached) / length if length else 0.0
            share = new / (new + cached)
            prefills = [
                Stretch(point.weight, point.length * (1 - share), point.length * share)
                for point in spread_out(count, new + cached, self.prompts.relative_variance)
            ]
        if reading.ended:
            answer = (reading.generated_tokens or 0.0) / reading.ended
            prompt = self.ended_prompt or self.mean_prompt or 0.0
            return tuple(prefills), (Stretch(reading.ended, prompt, answer - 1),)
        decoded = max(0.0, (reading.generated_tokens or 0.0) - prompts)
        context = self._decode_context(reading)
        decodes = [Stretch(decoded, max(0.0, context - 1), 1.0)] if decoded and context else []
        return tuple(prefills), tuple(decodes)

    def _decode_context(self, reading: ModelReading) -> float | None:
        """Mean keys that a decoded token attends to.

        The larger of two estimates that both err low: the mean prompt plus half of the mean answer,
        and the used cache divided by the running requests (a shared prefix is stored once). Without
        either, the value of the last window.
        """
        estimates = []
        if self.mean_prompt is not None:
            estimates.append(self.mean_prompt + (self.mean_answer or 0.0) / 2)
        if reading.cache_used_tokens and reading.running_requests:
            estimates.append(reading.cache_used_tokens / reading.running_requests)
        return max(estimates, default=self.context)


def _with_passes(
    work: Work, reading: ModelReading, launch: Launch, running: tuple[float, float]
) -> Work:
    """Add the forward passes: reported by the engine, or estimated from its tokens.

    Prefill: one per chunk. Decode: every running sequence gains `acceptance_length` tokens per
    pass. Steps without an output token (all but the last chunk of a prompt, if nothing else runs)
    are not in any engine's count of all passes.
    """
    prompts = work.prompts if work.first_tokens is None else work.first_tokens
    sequence_passes = decoded_tokens(work) / work.acceptance_length
    chunks = sum(
        stretch.weight * chunk_count(stretch.new, work.chunk_tokens) for stretch in work.prefills
    )
    # Short prompts share a pass: as many tokens as fit.
    least = max(work.prefill_tokens / work.chunk_tokens, 0.0)
    all_passes = reading.passes
    if all_passes is None and reading.observed_passes is not None:
        advanced = sequence_passes + prompts
        all_passes = true_passes(reading.observed_passes, launch.api_servers or 1, advanced)
        # A pass advances at most the sequences that were running or arrived; requests need not be
        # spread evenly over the API servers.
        most = running[0] + prompts
        if most > 0:
            all_passes = min(reading.observed_passes, max(all_passes, advanced / most))
    if all_passes is not None:
        together, alone = 1.0, 1.0
        if not reading.chunks_as_one:
            if all_passes > 0:
                together = max(1.0, (sequence_passes + prompts) / all_passes)
            alone = (running[0] < 1) / 2 + (running[1] < 1) / 2
        silent = max(0.0, chunks - prompts) * alone / together
        passes = max(all_passes + silent, least)
        # If there were fewer passes than prompts, prompts shared passes.
        prefill = min(passes, max(min(prompts, all_passes), least) + silent)
        return replace(work, prefill_passes=prefill, decode_passes=passes - prefill)
    prefill_passes = reading.prefill_passes
    if prefill_passes is None:
        prefill_passes = max(min(prompts, chunks) if chunks > 0 else prompts, least)
    decode_passes = reading.decode_passes
    if decode_passes is None:
        sequences = max(1.0, (running[0] + running[1]) / 2)
        decode_passes = sequence_passes / sequences
    return replace(work, prefill_passes=prefill_passes, decode_passes=decode_passes)


def _mean_context(work: Work) -> float | None:
    """Mean keys of the window's decoded tokens, for display."""
    tokens = sum(stretch.weight * stretch.new for stretch in work.decodes)
    if tokens <= 0:
        return None
    pairs = sum(
        stretch.weight * (stretch.new * stretch.cached + stretch.new * (stretch.new + 1) / 2)
        for stretch in work.decodes
    )
    return pairs / tokens if pairs > 0 else None


def _mean(points: Sequence[Point], before: float | None) -> float | None:
    weight = sum(point.weight for point in points)
    return sum(p.weight * p.length for p in points) / weight if weight > 0 else before


def _prompts(reading: ModelReading) -> float:
    if reading.prompts is not None:
        return reading.prompts
    return reading.finished.requests if reading.finished is not None else 0.0


def _acceptance_length(reading: ModelReading) -> float:
    """Tokens that one sequence gains per pass: accepted drafts and the one after them.

    Sequences without drafts in a pass gain one token.
    """
    accepted = reading.accepted_tokens
    decoded = (reading.generated_tokens or 0.0) - _prompts(reading)
    if reading.drafts and accepted is not None and decoded > accepted:
        return decoded / (decoded - accepted)
    return max(1.0, reading.acceptance_length or 1.0)


def _rejected(reading: ModelReading) -> float:
    return max(0.0, (reading.draft_tokens or 0.0) - (reading.accepted_tokens or 0.0))


def _negated(stretch: Stretch) -> Stretch:
    return replace(stretch, weight=-stretch.weight)


def true_passes(observed: float, api_servers: int, sequence_passes: float) -> float:
    """Return the passes behind `observed` counts, summed over `api_servers` that share an engine.

    An API server counts a pass if one of its own requests gains a token in it. A pass over R
    sequences that are spread at random over A servers is seen by A·(1 - (1 - 1/A)^R) of them on
    average, so p passes over `sequence_passes` in all are counted p·A·(1 - (1 - 1/A)^(s/p)) times:
    solved for p, which lies between observed / A and observed.
    """
    if observed <= 0 or api_servers <= 1 or sequence_passes <= 0:
        return max(0.0, observed)
    low, high = observed / api_servers, observed
    for _ in range(60):
        middle = (low + high) / 2
        seen = middle * api_servers * (1 - (1 - 1 / api_servers) ** (sequence_passes / middle))
        if seen > observed:
            high = middle
        else:
            low = middle
    return (low + high) / 2
