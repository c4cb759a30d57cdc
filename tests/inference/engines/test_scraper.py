"""One endpoint on its own: states, reasons, backoff, restarts; and what is logged."""

import threading

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import Reason, ScrapeError
from exporter.inference.engines import ENGINES
from exporter.inference.scraper import Scraper
from tests.inference.engines import server
from tests.inference.engines.server import exposition, serving


class Clock:
    """Time that passes only when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Script:
    """Answers scrapes in turn; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, url, timeout_seconds):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def scraper_of(*answers, engine="vllm", clock=None, on_reading=None):
    readings = []
    scraper = Scraper(
        "chat",
        ENGINES[engine],
        "http://127.0.0.1:1/metrics",
        on_reading or readings.append,
        fetch=Script(*answers),
        clock=clock or Clock(),
        wall_clock=lambda: 1.7e9,
    )
    return scraper, readings


class TestStates:
    def test_a_good_scrape(self):
        """Up, with a reading and the time of success."""
        scraper, readings = scraper_of(exposition("vllm-current"))

        scraper.scrape()

        state = scraper.state()
        assert (state.up, state.reason) == (True, None)
        assert state.last_success_timestamp_seconds == 1.7e9
        assert readings[0].first
        assert readings[0].models[0].generated_tokens == 0

    def test_counts_are_those_of_the_window(self):
        """Fifteen seconds later: 800 computed, 400 cached, 100 generated, 30 passes."""
        scraper, readings = scraper_of(exposition("vllm-current"), exposition("vllm-current-later"))

        scraper.scrape()
        scraper.scrape()

        model = readings[1].models[0]
        assert not readings[1].first
        assert (model.computed_tokens, model.cached_tokens) == (800, 400)
        assert (model.generated_tokens, model.prompts, model.observed_passes) == (100, 4, 30)
        assert (model.finished.requests, model.finished.prompt_tokens) == (4, 1200)
        assert model.engine_flop == 2e6

    def test_a_restarted_engine(self):
        """The new process's counts are new, even those that already passed the old ones."""
        scraper, readings = scraper_of(exposition("vllm-current"), exposition("vllm-restarted"))

        scraper.scrape()
        scraper.scrape()

        model = readings[1].models[0]
        assert (model.computed_tokens, model.generated_tokens) == (70, 9000)
        assert (model.observed_passes, model.prompts) == (4500, 1)

    @pytest.mark.parametrize("reason", list(Reason))
    def test_every_failure_is_a_state(self, reason):
        """Down for a reason, counted; the last success stays known."""
        scraper, readings = scraper_of(exposition("vllm-current"), ScrapeError(reason))

        scraper.scrape()
        scraper.scrape()

        state = scraper.state()
        assert (state.up, state.reason) == (False, reason)
        assert state.errors == {reason: 1}
        assert state.last_success_timestamp_seconds == 1.7e9
        assert len(readings) == 1

    @pytest.mark.parametrize("name", ["node-exporter", "sglang-current"])
    def test_another_programs_metrics(self, name):
        """Neither another exporter nor another engine is mistaken for vLLM."""
        scraper, readings = scraper_of(exposition(name))

        scraper.scrape()

        assert scraper.state().reason is Reason.WRONG_ENGINE
        assert readings == []

    def test_tgi_may_be_silent_before_its_first_request(self):
        """An empty answer is TGI that has served nothing, but no vLLM."""
        tgi, readings = scraper_of("", engine="tgi")
        vllm, _none = scraper_of("")

        tgi.scrape()
        vllm.scrape()

        assert tgi.state().up
        assert readings[0].models == ()
        assert vllm.state().reason is Reason.WRONG_ENGINE

    def test_malformed_lines_affect_no_other_lines(self):
        """The engine is up, the lines are counted."""
        scraper, readings = scraper_of(exposition("vllm-malformed"))

        scraper.scrape()

        assert scraper.state().up
        assert scraper.state().malformed_lines == 4
        assert readings[0].malformed_lines == 4

    def test_an_internal_error_does_not_stop_the_daemon(self):
        """An exception in accounting is a failed scrape like any other."""

        def broken(_reading):
            raise ZeroDivisionError

        scraper, _readings = scraper_of(exposition("vllm-current"), on_reading=broken)

        scraper.scrape()

        assert scraper.state().reason is Reason.INTERNAL


class TestHanging:
    def test_a_scrape_that_does_not_come_back_is_hung(self):
        """Shown after three timeouts while it lasts, and counted once it ends."""
        clock, entered, release = Clock(), threading.Event(), threading.Event()

        def stuck(_url, _timeout):
            entered.set()
            release.wait()
            return exposition("vllm-current")

        scraper = Scraper(
            "chat", ENGINES["vllm"], "http://x", lambda _reading: None, fetch=stuck, clock=clock
        )
        thread = threading.Thread(target=scraper.scrape)
        thread.start()
        entered.wait()

        clock.now += 14.9
        before = scraper.state()
        clock.now += 0.2
        hung = scraper.state()
        release.set()
        thread.join()

        assert before.reason is None
        assert (hung.up, hung.reason, hung.errors) == (False, Reason.HUNG, {"hung": 1})
        assert scraper.state().up
        assert scraper.state().errors == {"hung": 1}


class TestBackoff:
    def test_a_dead_engine_is_scraped_less_and_less_often(self):
        """15 s, 30 s, then a minute at most; at once as usual after success."""
        failure = ScrapeError(Reason.CONNECTION)
        scraper, _readings = scraper_of(*[failure] * 40, exposition("vllm-current"))

        delays = [scraper.delay_seconds()]
        for _ in range(40):
            scraper.scrape()
            delays.append(scraper.delay_seconds())
        scraper.scrape()

        assert delays[:3] == [15, 30, 60]
        assert set(delays[3:]) == {60}
        assert scraper.delay_seconds() == 15


class TestLogging:
    def test_one_event_per_change(self):
        """Three failures of two kinds and a recovery are three events."""
        refused, late = ScrapeError(Reason.CONNECTION, "refused"), ScrapeError(Reason.TIMEOUT)
        scraper, _readings = scraper_of(refused, refused, late, exposition("vllm-current"))

        with structlog.testing.capture_logs() as events:
            for _ in range(4):
                scraper.scrape()

        assert [(event["event"], event.get("reason")) for event in events] == [
            ("workload_scrape_failed", "connection"),
            ("workload_scrape_failed", "timeout"),
            ("workload_scrape_recovered", None),
        ]

    def test_malformed_lines_are_logged_once(self):
        """Again only after a clean scrape."""
        bad, good = exposition("vllm-malformed"), exposition("vllm-current")
        scraper, _readings = scraper_of(bad, bad, good, bad)

        with structlog.testing.capture_logs() as events:
            for _ in range(4):
                scraper.scrape()

        assert [event["event"] for event in events] == ["workload_malformed_lines"] * 2


class TestThread:
    def test_it_scrapes_at_once_and_stops(self):
        """The first reading comes without waiting for an interval; stop ends the thread."""
        arrived = threading.Event()
        with serving(server.text(exposition("vllm-current"))) as engine:
            scraper = Scraper("chat", ENGINES["vllm"], engine.url, lambda _reading: arrived.set())
            scraper.start()
            assert arrived.wait(30)
            scraper.stop()
            scraper.join(30)

        assert not scraper._thread.is_alive()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [0.0, 0.0, -5.0, 5.0, -3600.0, 3600.0, -86_400.0]
            ),  # NTP, before the scrape
            st.sampled_from([0, 0, 1, 2]),  # the replica that answers
            st.integers(0, 1000),  # tokens of each since the last scrape
            st.sampled_from([None, None, None, 0, 1, 2]),  # a replica that was restarted meanwhile
        ),
        max_size=30,
    )
)
def test_steps_of_the_wall_clock_count_nothing_twice(steps) -> None:
    """Three replicas behind one address: at most what they generated while we watched, however NTP steps."""
    true_seconds, offset, watched = 10_000.0, 0.0, 0
    started = [100.0, 4000.0, 9990.0]  # by each replica's clock then
    counted = [80_000, 5000, 70_000]
    answers = []
    readings = []

    def fetch(_url, _timeout):
        number = answers.pop()
        return (
            "# TYPE process_start_time_seconds gauge\n"
            f"process_start_time_seconds {started[number]}\n"
            "# TYPE vllm:generation_tokens_total counter\n"
            f'vllm:generation_tokens_total{{model_name="m"}} {counted[number]}\n'
        )

    scraper = Scraper(
        "chat",
        ENGINES["vllm"],
        "http://127.0.0.1:1/metrics",
        readings.append,
        fetch=fetch,
        clock=lambda: true_seconds,
        wall_clock=lambda: true_seconds + offset,
    )
    answers.append(0)
    scraper.scrape()
    for step, replica, tokens, restarted in steps:
        true_seconds += 15.0
        offset += step
        for number in range(3):
            counted[number] += tokens
            watched += tokens
        if restarted is not None:
            started[restarted], counted[restarted] = true_seconds + offset - 1, 0
        answers.append(replica)
        scraper.scrape()

    windows = [reading.models[0].generated_tokens for reading in readings]
    assert len(windows) == len(steps) + 1
    assert all(window >= 0 for window in windows)
    assert sum(windows) <= watched
