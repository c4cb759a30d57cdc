"""Two published clusters look busy and are not: the time split says where their time went.

Half of their GPUs show a utilization of 98 % or more beside 9 to 14 % of tensor activity. Played through
the daemon as a GPU at each quantile, the split must show the gap, and must not guess what was not
recorded.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.process import Scrape, passive
from tests.dcgm.server import DcgmExporter, Device, collecting
from tests.evidence.tables import table
from tests.fake_nvml import A100, H100, Load
from tests.fake_nvml.profiles import NOT_SUPPORTED


SECONDS = "flopwatch_gpu_seconds_total"
DRAM_METRIC = 10
COLLECT_SECONDS = 1.0
ROWS = table("fleet-quantiles")
# By hand, from g, s and t in percent: tensor t, other SM activity s - t, underfill g - s, idle 100
# - g.
EXPECTED = (
    {"tensor": 0.094, "unresolved": 0.241, "underfill": 0.645, "idle": 0.02},
    {"tensor": 0.206, "unresolved": 0.523, "underfill": 0.261, "idle": 0.01},
    {"tensor": 0.251, "unresolved": 0.664, "underfill": 0.085, "idle": 0.0},
    {"tensor": 0.140, "unresolved": 0.362, "underfill": 0.488, "idle": 0.01},
    {"tensor": 0.204, "unresolved": 0.527, "underfill": 0.259, "idle": 0.01},
    {"tensor": 0.238, "unresolved": 0.571, "underfill": 0.191, "idle": 0.0},
)


def load(row: dict[str, str], sm_clock_mhz: float) -> Load:
    """A GPU at this quantile, at its full clock."""
    tensor = float(row["tensor_active"]) / 100
    return Load(
        graphics=float(row["gpu_utilization"]) / 100,
        sm=float(row["sm_active"]) / 100,
        any_tensor=tensor,
        hmma_tensor=tensor,
        sm_clock_mhz=sm_clock_mhz,
        power_watts=300,
    )


def shares(before: Scrape, after: Scrape, gpu: int) -> dict[str, float]:
    """The states' shares of the time between two scrapes, those that are not 0."""
    grown = {
        dict(labels)["state"]: value - before.series(SECONDS, gpu=str(gpu))[labels]
        for labels, value in after.series(SECONDS, gpu=str(gpu)).items()
    }
    total = sum(grown.values())
    return {state: value / total for state, value in grown.items() if value > 0.001 * total}


def least_seconds(scrape: Scrape) -> float:
    """The shortest time that was accounted of any GPU, 0 while one has none."""
    return min(scrape.total(SECONDS, gpu=str(gpu)) for gpu in range(len(ROWS)))


def test_full_utilization_is_mostly_empty_sms(start) -> None:
    """By GPM: at the median 64.5 % of the time the GPU was busy and most SMs were not.

    DRAM activity was not recorded and the driver does not report it here either: whether memory or
    something else held up the SMs stays unresolved, and no bytes are counted.
    """
    profile = replace(H100, metric_codes={DRAM_METRIC: NOT_SUPPORTED})
    fake, daemon = start([profile] * len(ROWS), config=passive("sampling: {interval: 250ms}\n"))
    for gpu, row in enumerate(ROWS):
        fake.gpu(gpu).set_load(load(row, H100.max_sm_clock_mhz))
    begun = least_seconds(daemon.scrape()) if daemon.scrape().has(SECONDS) else 0.0
    before = daemon.wait_until(lambda scrape: least_seconds(scrape) > begun + 1.5)
    after = daemon.wait_until(lambda scrape: least_seconds(scrape) > least_seconds(before) + 2)

    for gpu, (row, expected) in enumerate(zip(ROWS, EXPECTED, strict=True)):
        found = shares(before, after, gpu)
        assert found == pytest.approx(
            {state: share for state, share in expected.items() if share}, abs=0.004
        ), row
        assert not after.has("flopwatch_dram_bytes_total", gpu=str(gpu))
        # What dashboards show as "GPU utilization" at the same time.
        utilization = after.value("flopwatch_engine_utilization_ratio", gpu=str(gpu), engine="gpu")
        assert utilization == pytest.approx(float(row["gpu_utilization"]) / 100, abs=0.006)


def test_a_dcgm_exporter_shows_the_same(start, tmp_path: Path) -> None:
    """As recorded: A100s without GPM, whose activities come from a dcgm-exporter on the node."""
    with DcgmExporter() as dcgm:
        fake, daemon = start(
            [A100] * len(ROWS),
            config="probes: {enabled: false}\nsources: {cpu: 'off'}\n"
            f"sampling: {{interval: 250ms}}\ndcgm: {{url: '{dcgm.url}'}}\n",
        )
        devices = []
        for gpu, row in enumerate(ROWS):
            fake.gpu(gpu).set_load(load(row, A100.max_sm_clock_mhz))
            devices.append(
                Device(
                    {"gpu": str(gpu), "UUID": fake.gpu(gpu).uuid, "Hostname": "kalos"},
                    {
                        "DCGM_FI_PROF_GR_ENGINE_ACTIVE": float(row["gpu_utilization"]) / 100,
                        "DCGM_FI_PROF_SM_ACTIVE": float(row["sm_active"]) / 100,
                        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": float(row["tensor_active"]) / 100,
                    },
                )
            )
        with collecting(dcgm, devices, COLLECT_SECONDS):
            before = daemon.wait_until(
                lambda scrape: all(
                    scrape.total("flopwatch_flop_total", gpu=str(gpu)) > 0
                    for gpu in range(len(ROWS))
                )
            )
            after = daemon.wait_until(
                lambda scrape: least_seconds(scrape) > least_seconds(before) + 4
            )

    for gpu, expected in enumerate(EXPECTED):
        assert shares(before, after, gpu) == pytest.approx(
            {state: share for state, share in expected.items() if share}, abs=0.01
        )
