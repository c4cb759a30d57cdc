"""From an engine's readings to the work of a window: requests that ended, and those under way."""

import math

import pytest

from exporter.inference.launch import Launch
from exporter.inference.lengths import LengthModel
from exporter.inference.models.cost import decode_attention_flop_after, prefill_attention_flop
from exporter.inference.progress import Progress, true_passes
from exporter.inference.reading import Buckets, Finished, InFlight, ModelReading
from tests.inference.models.shapes import TINY


BOUNDS = (50.0, 100.0, 200.0, 500.0, 1000.0, math.inf)


def reading(**said):
    said.setdefault("finished", Finished(0, 0, 0))
    said.setdefault("in_flight", InFlight(0, 0, 0))
    return ModelReading(**said)


def attention(work):
    """Attention FLOPs of prompts and answers."""
    return (
        sum(s.weight * prefill_attention_flop(TINY, s.new, s.cached) for s in work.prefills),
        sum(s.weight * decode_attention_flop_after(TINY, s.new, s.cached) for s in work.decodes),
    )


def pairs(*stretches):
    """FLOPs of (cached, new) stretches: 64 a pair of query and key."""
    return sum(64 * (new * cached + new * (new + 1) // 2) for cached, new in stretches)


class TestRequests:
    def test_one_that_begins_and_ends_in_a_window(self):
        """A prompt of 100 and an answer of 50 tokens, to the last pair."""
        work = Progress().work_of(
            reading(
                computed_tokens=100, generated_tokens=50, prompts=1, finished=Finished(1, 100, 50)
            )
        )

        assert attention(work) == (pairs((0, 100)), pairs((100, 49)))

    def test_one_that_spans_three_scrapes(self):
        """The prompt when its first token is out; then the tokens so far; nothing twice."""
        progress = Progress()
        first = progress.work_of(
            reading(
                computed_tokens=700,
                generated_tokens=21,
                prompts=1,
                in_flight=InFlight(1, 700, 21),
                running_requests=1,
            )
        )
        second = progress.work_of(
            reading(
                computed_tokens=0,
                generated_tokens=100,
                prompts=0,
                in_flight=InFlight(1, 700, 121),
                running_requests=1,
            )
        )
        last = progress.work_of(
            reading(
                computed_tokens=0, generated_tokens=79, prompts=0, finished=Finished(1, 700, 200)
            )
        )

        assert attention(first) == (pairs((0, 700)), pairs((700, 20)))
        assert attention(second) == (0, pairs((720, 100)))
        assert attention(last) == (0, pairs((820, 79)))

    def test_work_in_progress_at_the_first_scrape_is_not_counted(self):
        """The first reading is a base for running requests too."""
        progress = Progress()
        base = progress.work_of(
            reading(in_flight=InFlight(1, 700, 21), running_requests=1), changed=True
        )
        rest = progress.work_of(
            reading(
                computed_tokens=0, generated_tokens=179, prompts=0, finished=Finished(1, 700, 200)
            )
        )

        assert attention(base) == (0, 0)
        assert attention(rest) == (0, pairs((720, 179)))

    def test_a_restarted_engine(self):
        """What runs in the new process is new; what the old one had under way stays counted."""
        progress = Progress()
        progress.work_of(reading(in_flight=InFlight(1, 700, 21), running_requests=1))

        work = progress.work_of(
            reading(in_flight=InFlight(1, 100, 11), running_requests=1),
            changed=True,
            restarted=True,
        )

        assert attention(work) == (pairs((0, 100)), pairs((100, 10)))

    def test_an_aborted_request(self):
        """Its end is never reported: once nothing runs it has ended, and its work stays counted."""
        progress = Progress()
        work = progress.work_of(
            reading(in_flight=InFlight(1, 300, 41), running_requests=0, waiting_requests=0)
        )
        idle = progress.work_of(
            reading(in_flight=InFlight(1, 300, 41), running_requests=0, waiting_requests=0)
        )

        assert attention(work) == (pairs((0, 300)), pairs((300, 40)))
        assert attention(idle) == (0, 0)

    def test_requests_that_were_wrongly_assumed_aborted(self):
        """A lagging gauge showed that nothing ran: once the requests have ended, no error remains."""
        progress = Progress()
        progress.work_of(
            reading(in_flight=InFlight(1, 300, 41), running_requests=0, waiting_requests=0)
        )
        progress.work_of(reading(finished=Finished(1, 300, 60)))
        work = progress.work_of(reading(in_flight=InFlight(1, 100, 11), running_requests=1))

        assert attention(work) == (pairs((0, 100)), pairs((100, 10)))

    def test_cached_prompts(self):
        """640 of 700 tokens cached: 60 new ones that attend to all before them."""
        work = Progress().work_of(
            reading(
                computed_tokens=60,
                cached_tokens=640,
                generated_tokens=1,
                prompts=1,
                finished=Finished(1, 700, 1, 60),
            )
        )

        assert attention(work) == (pairs((640, 60)), 0)

    def test_hits_that_are_counted_before_their_prompt(self):
        """An old counter of hits runs ahead: what is missing is taken from the next window."""
        progress = Progress()

        works = [progress.work_of(reading(computed_tokens=tokens)) for tokens in (-500, 800, 100)]

        assert [work.prefill_tokens for work in works] == [0, 300, 100]

    def test_prompts_that_are_counted_when_they_are_accepted(self):
        """TGI: a burst of 100 prompts of 300 tokens, none of which has ended. +480 % before."""
        work = Progress().work_of(
            reading(
                computed_tokens=30_000, prompts=0, finished=Finished(0, 30_000, 0, accepted=100)
            )
        )

        assert attention(work)[0] == 100 * pairs((0, 300))


class TestLengths:
    def test_few_long_prompts_among_many_short_ones(self):
        """24 prompts of 30 and 4 of 900: 3.26 M squared tokens; the mean alone has 0.67 M."""
        points = LengthModel().points(4320, 28, Buckets((20, *BOUNDS), (0, 24, 0, 0, 0, 4, 0)))

        squares = sum(point.weight * point.length**2 for point in points)
        assert sum(point.weight * point.length for point in points) == pytest.approx(4320)
        assert squares == pytest.approx(24 * 30**2 + 4 * 900**2, rel=0.1)

    def test_equal_lengths_are_learned(self):
        """Prompts of 700 tokens, again and again: their spread goes to nothing."""
        model = LengthModel()
        for _ in range(60):
            points = model.points(4 * 700, 4, Buckets(BOUNDS, (0, 0, 0, 0, 4, 0)))

        assert sum(p.weight * p.length**2 for p in points) == pytest.approx(4 * 700**2, rel=0.002)

    def test_one_request_needs_no_buckets(self):
        """Its length is the sum."""
        (point,) = LengthModel().points(700, 1, None)

        assert (point.weight, point.length) == (1, 700)


class TestPasses:
    def test_two_api_servers_count_a_pass_twice(self):
        """The recorded 401 counts of 16 sequences of 200 passes: 200.5, where 201 is right."""
        assert true_passes(401, 2, 3200) == pytest.approx(200.5, abs=0.01)

    def test_a_pass_over_one_sequence_is_counted_once(self):
        """A lone sequence belongs to one server."""
        assert true_passes(200, 2, 200) == pytest.approx(200, abs=0.01)

    def test_chunks_without_output_are_counted(self):
        """900 tokens in chunks of 128: 8 passes, of which the engine counts the last."""
        work = Progress().work_of(
            reading(
                computed_tokens=900,
                generated_tokens=1,
                prompts=1,
                observed_passes=1,
                running_requests=0,
                finished=Finished(1, 900, 1),
            ),
            Launch(chunk_tokens=128),
        )

        assert (work.prefill_passes, work.decode_passes) == (8, 0)


class TestSpeculation:
    def test_from_counters(self):
        """101 tokens, 60 of them accepted drafts: 40 passes gained 100, 2.5 each."""
        work = Progress().work_of(
            reading(
                generated_tokens=101, prompts=1, drafts=40, draft_tokens=120, accepted_tokens=60
            )
        )

        assert (work.acceptance_length, work.rejected_tokens) == (2.5, 60)

    def test_from_a_gauge(self):
        """SGLang reports the length itself."""
        assert Progress().work_of(reading(acceptance_length=2.5)).acceptance_length == 2.5
