"""From what an engine tells to the work of a window."""

from exporter.inference.reading import ModelReading
from exporter.inference.window import Lengths, work_of


class TestLengths:
    def test_of_the_requests_that_ended(self):
        """Four requests of 1200 and 100 tokens: 300 and 25; context 300 + 25/2."""
        reading = ModelReading(
            finished_requests=4, finished_prompt_tokens=1200, finished_answer_tokens=100
        )

        work, lengths = work_of(reading, Lengths())

        assert (work.prompt_length, work.decode_context) == (300, 312.5)
        assert (lengths.prompt, lengths.answer) == (300, 25)

    def test_a_window_in_which_none_ended_keeps_the_last(self):
        """Long answers outlive a window."""
        work, _lengths = work_of(ModelReading(finished_requests=0), Lengths(300, 25, 312.5))

        assert (work.prompt_length, work.decode_context) == (300, 312.5)

    def test_the_first_window_takes_the_engines_lifetime(self):
        """Before any request has ended under our eyes, the engine's own averages serve."""
        reading = ModelReading(lifetime_prompt_length=100, lifetime_answer_length=50)

        work, _lengths = work_of(reading, Lengths())

        assert (work.prompt_length, work.decode_context) == (100, 125)

    def test_the_larger_of_two_low_estimates(self):
        """4000 cached tokens of 8 running requests are 500 a request, more than 312.5."""
        reading = ModelReading(
            finished_requests=4,
            finished_prompt_tokens=1200,
            finished_answer_tokens=100,
            cache_used_tokens=4000,
            running_requests=8,
        )

        assert work_of(reading, Lengths())[0].decode_context == 500

    def test_what_the_engine_tells_wins(self):
        """SGLang knows the lengths of its running sequences."""
        reading = ModelReading(
            decode_context=450, cache_used_tokens=8000, running_requests=8, finished_requests=0
        )

        assert work_of(reading, Lengths(300, 25))[0].decode_context == 450


class TestSpeculation:
    def test_from_counters(self):
        """20 drafts of 3 tokens, 30 accepted: 2.5 tokens a pass, 30 thrown away."""
        reading = ModelReading(drafts=20, draft_tokens=60, accepted_tokens=30)

        work, _lengths = work_of(reading, Lengths())

        assert (work.acceptance_length, work.rejected_tokens) == (2.5, 30)

    def test_from_a_gauge(self):
        """SGLang tells the length itself."""
        assert work_of(ModelReading(acceptance_length=2.5), Lengths())[0].acceptance_length == 2.5

    def test_without(self):
        """One token a pass."""
        work, _lengths = work_of(ModelReading(), Lengths())

        assert (work.acceptance_length, work.rejected_tokens) == (1.0, 0.0)


def test_running_requests_are_the_mean_of_both_ends():
    """Eight at the last scrape, four now: six in between."""
    work, _lengths = work_of(ModelReading(running_requests=4), Lengths(running_requests=8))

    assert work.running_requests == 6
