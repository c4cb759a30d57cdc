"""A custom source: one file and one line, as docs/how-to-add-a-source.md says."""

from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess
from tests.fake_nvml import H100, FakeNvml, Load


EXAMPLE = '''
"""Source `example`: half of the SMs are always busy with tensor work."""

import time

from exporter.collect.settings import SamplingSettings
from exporter.collect.device import ActivitySource
from exporter.readings import ActivityWindow, FastReading
from exporter.device_state import SourceHealth


class Example(ActivitySource):
    """Windows from tick to tick."""

    _since: float | None = None

    def open(self) -> bool:
        return self.device.identity.index == "0"

    def read(self, fast: FastReading, settings: SamplingSettings) -> ActivityWindow | None:
        before, self._since = self._since, fast.at_seconds
        if before is None:
            return None
        shares = dict(graphics=1.0, sm=0.5, tensor=0.5, hmma_tensor=0.5, dram=0.0)
        return ActivityWindow("example", before, fast.at_seconds, **shares)

    @property
    def open_since_seconds(self) -> float | None:
        return self._since

    def restart(self) -> None:
        self._since = None

    def health(self, *, up: bool) -> dict[str, SourceHealth]:
        return {"example": SourceHealth(up and self._since is not None, time.time())}
'''
# The line of SOURCES in exporter/collect/sources.py, before all others.
REGISTERED = (
    "-c",
    (
        "import sys\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "import example, exporter.collect.sources as sources\n"
        "sources.SOURCES = (example.Example, *sources.SOURCES)\n"
        "from exporter.cli.main import main\n"
        "sys.exit(main())"
    ),
)


def test_a_registered_source_is_used_counted_and_shown(tmp_path: Path) -> None:
    """It takes precedence over GPM where it opens; GPU 1 still uses GPM."""
    (tmp_path / "example.py").write_text(EXAMPLE)
    config = 'sources: {cpu: "off", dcgm: "off"}\nprobes: {enabled: false}\n'
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with DaemonProcess(
            tmp_path, config=config, environment=fake.env, program=(*REGISTERED, str(tmp_path))
        ) as daemon:
            scrape = daemon.wait_until(
                lambda s: (
                    s.total("flopwatch_flop_total", gpu="0", source="example") > 0
                    and s.total("flopwatch_flop_total", gpu="1", source="gpm_cycles") > 0
                )
            )

    assert scrape.value("flopwatch_source_up", gpu="0", source="example") == 1
    assert scrape.value("flopwatch_sm_active_ratio", gpu="0") == 0.5
    # 0.5 x 132 SMs x 1980 MHz x 4096 FLOP a clock, of 989.4 TFLOP/s.
    achieved = scrape.value("flopwatch_achieved_flops", gpu="0", precision="bf16")
    assert achieved == pytest.approx(0.5 * 132 * 1.98e9 * 4096, rel=0.01)
    assert scrape.value("flopwatch_source_up", gpu="1", source="example") == 0
    assert scrape.total("flopwatch_flop_total", gpu="0", source="gpm_cycles") == 0
