"""Reloads with configurations that cannot be used."""

from tests.daemon.process import passive
from tests.fake_nvml import H100, Load
from tests.faults.invariants import Witness


GOOD = passive("sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}\n")
BAD = [
    "sampling: {interval: 0}",
    "sampling: [1, 2]",
    "sampling: {interval: 250ms",
    "\x00\x01\x02",
    "a: &a [*a]",
    "? [1, 2]\n: 3",
    "sampling: {interval: 1e400s}",
    "limits: {series: -1}",
    "gpus: [{match: {index: 99999999999999999999}}]",
    "workloads: [{name: x, engine: vllm, url: 'ftp://x'}]",
    "- 1\n- 2",
    "'just text'",
    "sampling: !!python/object/apply:os.system [true]",
    "{" * 2000,
    "[" * 2000 + "]" * 2000,
    "sampling: {interval: 1s, interval: 2s}",
    "\ufeff\ufeffsampling: {}",
    "x" * 200_000,
]


def test_a_burst_of_bad_configurations(start) -> None:
    """The old one stays active through every one of them, and a good one is taken again."""
    fake, daemon = start([H100], config=GOOD)
    fake.gpu(0).set_load(Load.decode())
    witness = Witness(daemon, window_seconds=1.5)
    before = witness.until(lambda scrape: scrape.has("flopwatch_sm_active_ratio"))

    for text in BAD:
        refused = daemon.log.count("configuration_refused")
        daemon.config_file.write_text(text)
        daemon.reload()
        daemon.wait_for(lambda refused=refused: daemon.log.count("configuration_refused") > refused)
    scrape = witness.scrape()
    assert scrape.value("flopwatch_config_last_reload_successful") == 0
    assert scrape.value("flopwatch_config_last_reload_success_timestamp_seconds") == before.value(
        "flopwatch_config_last_reload_success_timestamp_seconds"
    )
    daemon.config_file.write_bytes(b"\xff\xfe\x80")
    daemon.reload()
    daemon.config_file.unlink()
    daemon.reload()
    witness.watch(1)

    daemon.config_file.write_text(GOOD)
    daemon.reload()
    scrape = witness.until(
        lambda scrape: scrape.value("flopwatch_config_last_reload_successful") == 1
    )
    assert scrape.has("flopwatch_sm_active_ratio")
    assert "Traceback" not in daemon.log
