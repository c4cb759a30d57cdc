"""The service: it observes, advises, counts its hits and remembers them across a restart."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from exporter.advice.advise import AdviceDocument, TrackRecord
from exporter.advisor import Advisor
from exporter.attribution.settings import PriceRule
from exporter.cli import advise as command
from exporter.cli.bill import Series
from exporter.cli.main import main
from exporter.inference.service import Served
from exporter.metrics.levers import lever_samples
from exporter.state import State
from tests.advice.hosts import served_at, state_at


class Host:
    """A steady load; from `changed_seconds` on 15 requests run in passes that are 3 % longer."""

    def __init__(self, changed_seconds: float = float("inf")) -> None:
        self.now = 1000.0
        self._changed = changed_seconds

    def state(self) -> State:
        return state_at(self.now)

    def served(self, _state: State) -> Sequence[Served]:
        extra = max(0.0, self.now - self._changed)
        served = served_at(self.now)
        shown = served.shown
        if extra:
            shown = replace(
                shown,
                running_requests=15.0,
                decode_tokens=(shown.decode_tokens or 0.0) + (1.4 - 1) * 402.0 * extra,
                prefill_tokens=(shown.prefill_tokens or 0.0) + (1.4 - 1) * 200.0 * extra,
                cached_tokens=(shown.cached_tokens or 0.0) + (1.4 - 1) * 100.0 * extra,
            )
        prompts = served.prompts + (1.4 - 1) * 2.0 * extra
        passes = served.passes - (1 - 1.4 / 1.5) * 40.0 * extra
        return [replace(served, shown=shown, prompts=prompts, passes=passes)]


def advisor(host: Host, folder: Path) -> Advisor:
    return Advisor(
        host.state,
        host.served,
        prices=[PriceRule(per_gpu_hour=2.5, currency="USD")],
        state_path=folder / "state.json",
    )


def watch(service: Advisor, host: Host, seconds: float) -> None:
    end = host.now + seconds
    while host.now < end:
        host.now += 15.0
        service.observe()


def test_after_two_minutes_there_is_advice(tmp_path: Path) -> None:
    host = Host()
    service = advisor(host, tmp_path)
    watch(service, host, 100.0)
    assert service.snapshot().workloads == ()
    watch(service, host, 60.0)

    (advice,) = service.snapshot().workloads
    assert advice.predictions[0].lever in {"larger_batch", "weights_fp8"}
    assert {"weights_fp4", "tensor_parallel"} <= {absent.lever for absent in advice.absent}


def test_every_prediction_has_its_two_bounds_as_samples(tmp_path: Path) -> None:
    host = Host()
    service = advisor(host, tmp_path)
    watch(service, host, 200.0)
    (advice,) = service.snapshot().workloads
    samples = list(lever_samples(service.snapshot()))
    gains = {
        tuple(dict(sample.labels)[name] for name in ("lever", "bound")): sample.value
        for sample in samples
        if sample.family.name == "flopwatch_lever_gain_ratio"
    }

    assert len(gains) == 2 * len(advice.predictions)
    for prediction in advice.predictions:
        assert gains[prediction.lever, "low"] == prediction.gain.low
        assert gains[prediction.lever, "high"] == prediction.gain.high


def test_a_change_is_counted_and_the_count_survives_a_restart(tmp_path: Path) -> None:
    host = Host(changed_seconds=2000.0)
    service = advisor(host, tmp_path)
    watch(service, host, 3000.0)

    records = service.snapshot().records
    assert records["chat"]["larger_batch"].total == 1
    again = advisor(host, tmp_path)
    again.start()
    again.stop(5.0)
    assert again.snapshot().records == records
    counted = {
        dict(sample.labels)["outcome"]: sample.value
        for sample in lever_samples(again.snapshot())
        if sample.family.name == "flopwatch_lever_backtests_total"
    }
    assert sum(counted.values()) == 1
    assert set(counted) == {"inside", "below", "above"}


def test_a_pending_comparison_survives_a_restart(tmp_path: Path) -> None:
    """The batch grows at 2000 s, the daemon restarts at 2400 s: still compared at about 2700 s.

    Without the state file the new daemon would know nothing of the batch before.
    """
    host = Host(changed_seconds=2000.0)
    service = advisor(host, tmp_path)
    watch(service, host, 1400.0)
    assert not service.snapshot().records

    again = advisor(host, tmp_path)
    again.start()
    again.stop(5.0)
    watch(again, host, 700.0)
    assert again.snapshot().records["chat"]["larger_batch"].total == 1


def test_a_damaged_trial_in_the_state_file_is_left_out(tmp_path: Path) -> None:
    host = Host(changed_seconds=2000.0)
    watch(advisor(host, tmp_path), host, 1400.0)
    file = tmp_path / "state.json"
    file.write_text(file.read_text().replace('"uuid"', '"not_a_uuid"'))

    again = advisor(host, tmp_path)
    again.start()
    again.stop(5.0)
    watch(again, host, 700.0)
    assert not again.snapshot().records


def test_the_document_is_what_the_command_prints(tmp_path: Path) -> None:
    host = Host()
    service = advisor(host, tmp_path)
    watch(service, host, 200.0)
    document = msgspec.json.decode(service.document(), type=AdviceDocument)
    text = command.text_of(document)

    (workload,) = document.workloads
    first = workload.levers[0]
    assert first.saved_per_day == pytest.approx(
        24 * 2.5 * (1 - (first.cost_per_token.low + first.cost_per_token.high) / 2)
    )
    assert "chat  tiny" in text
    assert "no track record yet" in text
    assert "USD a day" in text
    assert "weights_fp4: GPU 0 (NVIDIA H100 80GB HBM3) has no fp4 arithmetic" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_track_record_is_described_in_words() -> None:
    assert command.record_text(TrackRecord(9, 11, 20, 30)) == "9 of 11 predictions held here"
    assert command.record_text(TrackRecord(0, 0, 20, 30)) == "none here; 20 of 30 held on this host"
    assert command.record_text(TrackRecord(0, 0, 0, 0)) == "no track record yet"


def test_without_an_engine_the_command_says_what_is_missing() -> None:
    assert "workloads" in command.text_of(AdviceDocument())


def test_an_address_without_a_daemon_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--url", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err == "flopwatch: http://127.0.0.1:9: connection refused\n"


class Prometheus:
    """Answers by what a query is about."""

    def query(self, expression: str, at_unix_seconds: float) -> list[Series]:
        if "flopwatch_lever_backtests_total" in expression:
            return [
                Series({"lever": "larger_batch", "outcome": "inside"}, 9.0),
                Series({"lever": "larger_batch", "outcome": "below"}, 2.0),
            ]
        if "per_gpu_hour" in expression:
            return [Series({"lever": "larger_batch", "currency": "USD"}, 1200.0)]
        if "count by" in expression:
            return [Series({"lever": "larger_batch"}, 3.0), Series({"lever": "full_clocks"}, 1.0)]
        value = 1.5e15 if 'bound="low"' in expression else 2.5e15
        return [Series({"lever": "larger_batch"}, value)]


def test_the_fleets_levers_are_ranked_by_what_they_save() -> None:
    rows = command.read_fleet(Prometheus(), 0.0)  # type: ignore[arg-type]
    table = command.fleet_table(rows).splitlines()

    assert [row.lever for row in rows] == ["larger_batch", "full_clocks"]
    assert table[1].split() == (
        ["larger_batch", "3", "+1.50", "to", "+2.50", "1,200", "USD", "9", "of", "11", "held"]
    )
