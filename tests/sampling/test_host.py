"""What the host's view contains, and what it must not contain."""

from collections.abc import Mapping

import pytest

from exporter.collect.host import HostSampling
from exporter.collect.sampler import Sampler, TickStatistics
from exporter.collect.settings import SamplingSettings
from exporter.state import State


MODES: Mapping[str, str] = {"nvml": "off", "gpm": "off", "dcgm": "off", "cpu": "on"}


@pytest.fixture
def host() -> HostSampling:
    return HostSampling(lambda: SamplingSettings(modes=MODES), lambda: State(at_seconds=0.0))


def test_late_messages_of_a_removed_device_are_ignored(
    host: HostSampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may be in the middle of a tick when it is removed: none of its readings come back."""
    monkeypatch.setattr(Sampler, "start", lambda _self: None)
    host._start_cpu()
    (sampler,) = host._samplers.values()
    words = sampler.device.failed(None, TickStatistics())  # type: ignore[arg-type]
    sampler._publish(words)
    assert [device.identity.index for device in host.published(0.0).devices] == ["cpu0"]

    host._remove("cpu0")
    sampler._publish(words)

    assert host.published(0.0).devices == ()


def test_a_device_without_a_thread_is_not_listed(
    host: HostSampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If none can start, the device is found again later, and is not shown as down until then."""

    def refuse(_self: Sampler) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Sampler, "start", refuse)
    with pytest.raises(RuntimeError):
        host._start_cpu()

    assert host.published(0.0).devices == ()
