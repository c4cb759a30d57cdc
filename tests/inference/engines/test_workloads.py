"""The whole way: engines on local ports to FLOPs, MFU and MBU, worked by hand on a tiny model."""

import subprocess
from pathlib import Path

import pytest

from exporter.errors import ConfigError
from exporter.inference.config import DiscoveryConfig, WorkloadConfig
from exporter.inference.discovery import Endpoint
from exporter.inference.service import WorkloadService
from exporter.inference.snapshot import GpuRef
from exporter.metrics.models import workload_samples
from tests.inference.engines import server
from tests.inference.engines.gpus import gpu, host
from tests.inference.engines.server import EXPOSITIONS, exposition, serving


TINY = Path(__file__).parent / "tiny.json"
GPUS = (GpuRef("0", "GPU-a"), GpuRef("1", "GPU-b"))
# Two GPUs of 10 MFLOP/s in bf16 and 1 MB/s; neither multiplies in fp8.
HOST = host(gpu("0", "GPU-a", {"bf16": 1e7}), gpu("1", "GPU-b", {"bf16": 1e7}))


class Time:
    """A clock of 15 s between scrapes."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Stage:
    """A service that scrapes only when the test says so, over a real local server or a script."""

    def __init__(self, *entries, gpus=HOST, fetch=None, **options):
        self.clock = Time()
        self.service = WorkloadService(
            state=lambda: gpus,
            clock=self.clock,
            wall_clock=lambda: 1.7e9 + self.clock.now,
            fetch=fetch or (lambda _url, _timeout: self.text),
            **options,
        )
        self.text = ""
        self.service.configure(entries)

    def scrape(self, text, seconds=15.0):
        self.text = text
        self.clock.now += seconds
        for workload in self.service._workloads.values():
            workload.scraper.scrape()
        return self.service.snapshot()


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """Scrapes happen only when a test says so."""
    monkeypatch.setattr("exporter.inference.scraper.Scraper.start", lambda _self: None)


def chat(**changes):
    settings = {
        "name": "chat",
        "engine": "vllm",
        "url": "http://127.0.0.1:8000/metrics",
        "model": TINY,
        "gpus": (0, "GPU-b"),
    }
    return WorkloadConfig(**(settings | changes))


def two_scrapes(**changes):
    stage = Stage(chat(**changes))
    stage.scrape(exposition("vllm-current"))
    (workload,) = stage.scrape(exposition("vllm-current-later")).workloads
    return workload


# 800 tokens computed in 4 prompts of 300, a third of each cached: 200 new after 100.
# Linear 800·2304, attention 4·(200·100 + 200·201/2)·64, logits 4·160.
PREFILL_FLOP = 1_843_200 + 10_265_600 + 640
# 4 answers of 25 tokens, of which 24 left decode passes: they attend to 301 + … + 324 = 7500 keys.
DECODE_FLOP = 96 * (2304 + 160) + 4 * 7500 * 64
# 30 passes of 2464 bytes; the cache twice over, as two GPUs share one key-value head:
# 896 tokens written, 30,000 read in decode, 4 prefixes of 100, 32 bytes a token.
DRAM_BYTES = 30 * 2464 + 2 * 32 * (896 + 4 * 7500 + 4 * 100)


class TestAccounting:
    def test_the_first_scrape_is_the_base(self):
        """Counters start at zero, so that their first rate is right; no window, no ratio."""
        (workload,) = Stage(chat()).scrape(exposition("vllm-current")).workloads
        (model,) = workload.models

        assert (model.prefill_tokens, model.decode_tokens) == (0, 0)
        assert (model.prefill_flop, model.decode_flop, model.dram_bytes) == (0, 0, 0)
        assert (model.flops_utilization, model.bandwidth_utilization) == (None, None)

    def test_one_window(self):
        """Tokens, FLOPs and bytes of fifteen seconds, as worked out above."""
        (model,) = two_scrapes().models

        assert (model.prefill_tokens, model.decode_tokens) == (800, 100)
        assert model.prefill_flop == pytest.approx(PREFILL_FLOP)
        assert model.decode_flop == pytest.approx(DECODE_FLOP)
        assert model.dram_bytes == pytest.approx(DRAM_BYTES)
        assert model.decode_context_tokens == 312.5

    def test_utilization(self):
        """MFU of 2·10 MFLOP/s, MBU of 2·1 MB/s, over 15 s."""
        (model,) = two_scrapes().models

        assert model.flops_utilization == pytest.approx((PREFILL_FLOP + DECODE_FLOP) / 15 / 2e7)
        assert model.bandwidth_utilization == pytest.approx(DRAM_BYTES / 15 / 2e6)

    def test_state_and_identity(self):
        """Queue, cache, GPUs, parameters: 80 + 80 + 2·(576 + 16) + 8 = 1352."""
        workload = two_scrapes()
        (model,) = workload.models

        assert workload.gpus == GPUS
        assert (model.model, model.precision) == ("acme/tiny", "bf16")
        assert (model.running_requests, model.waiting_requests) == (8, 2)
        assert (model.parameters, model.active_parameters) == (1352, 1352)
        assert model.weight_bytes == 2 * 1352
        assert model.engine_flop == 2 * 2e6

    def test_counters_survive_failures_and_restarts(self):
        """Down, then a new process with 70 and 9000 tokens: both are added."""
        stage = Stage(chat())
        stage.scrape(exposition("vllm-current"))
        stage.scrape(exposition("vllm-current-later"))
        (down,) = stage.scrape(exposition("node-exporter")).workloads
        (again,) = stage.scrape(exposition("vllm-restarted")).workloads
        (model,) = again.models

        assert (down.up, down.reason, down.models) == (False, "wrong_engine", ())
        assert (model.prefill_tokens, model.decode_tokens) == (870, 9100)

    def test_an_idle_engine_has_a_utilization_of_zero(self):
        """Nothing served is a measurement, not a missing value."""
        stage = Stage(chat())
        stage.scrape(exposition("vllm-current"))
        (workload,) = stage.scrape(exposition("vllm-current")).workloads

        assert workload.models[0].flops_utilization == 0

    def test_an_engine_that_reports_no_tokens(self):
        """Up, with its model and GPUs, and no counters of tokens."""
        stage = Stage(chat(engine="tensorrt_llm"))
        (workload,) = stage.scrape(exposition("tensorrt-llm-1.1")).workloads

        assert workload.up
        assert workload.models[0].prefill_tokens is None

    @pytest.mark.parametrize("name", [path.stem for path in sorted(EXPOSITIONS.glob("*.txt"))])
    @pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt_llm", "tgi"])
    def test_any_exposition_for_any_engine(self, name, engine):
        """Whatever an engine sends twice, it is up with sane numbers, or down for a reason."""
        stage = Stage(chat(engine=engine))
        stage.scrape(exposition(name))
        (workload,) = stage.scrape(exposition(name)).workloads

        assert workload.up or workload.reason == "wrong_engine"
        for model in workload.models:
            assert (model.flops_utilization or 0) >= 0


class TestModels:
    def test_a_model_that_cannot_be_described_still_counts_tokens(self, tmp_path):
        """Tokens are exported, FLOPs absent, and one line names the missing fields."""
        broken = tmp_path / "config.json"
        broken.write_text('{"model_type": "qwen3", "hidden_size": 8}')

        (model,) = two_scrapes(model=broken).models

        assert (model.prefill_tokens, model.decode_tokens) == (800, 100)
        assert (model.prefill_flop, model.dram_bytes, model.flops_utilization) == (None,) * 3
        assert "missing fields: intermediate_size" in model.problem

    def test_a_model_that_cannot_be_found(self):
        """Without a path, and not in the hub's cache: the remedy is named."""
        (model,) = two_scrapes(model=None).models

        assert model.problem == "config.json not found: set `model` of the workload to its path"

    def test_the_engine_names_a_model_that_can_be_found(self):
        """What the engine serves is looked up by its name."""
        stage = Stage(chat(model=None), locate={"acme/tiny": TINY}.get)
        (workload,) = stage.scrape(exposition("vllm-current")).workloads

        assert workload.models[0].parameters == 1352

    def test_a_file_that_appears_later_is_found(self, tmp_path):
        """Ten minutes on, the engine may have downloaded it."""
        path = tmp_path / "config.json"
        stage = Stage(chat(model=path))
        stage.scrape(exposition("vllm-current"))
        path.write_text(TINY.read_text())
        (early,) = stage.scrape(exposition("vllm-current")).workloads
        (late,) = stage.scrape(exposition("vllm-current"), seconds=600).workloads

        assert early.models[0].parameters is None
        assert late.models[0].parameters == 1352

    def test_a_restarted_engine_may_serve_another_model(self, tmp_path):
        """The file is read again when the engine's process is a new one."""
        path = tmp_path / "config.json"
        path.write_text(TINY.read_text())
        stage = Stage(chat(model=path))
        stage.scrape(exposition("vllm-current"))
        path.write_text(TINY.read_text().replace('"vocab_size": 10', '"vocab_size": 20'))
        (same,) = stage.scrape(exposition("vllm-current-later")).workloads
        (new,) = stage.scrape(exposition("vllm-restarted")).workloads

        assert same.models[0].parameters == 1352
        assert new.models[0].parameters == 1352 + 2 * 80

    def test_an_engine_without_names_gets_one(self):
        """TGI names no model: the folder of the file is its name."""
        stage = Stage(chat(engine="tgi", model=Path("/models/acme-tiny/config.json")))
        (workload,) = stage.scrape(exposition("tgi")).workloads

        assert workload.models[0].model == "acme-tiny"


class TestPrecision:
    def precision(self, *, gpus=HOST, name="tensorrt-llm-current", **changes):
        stage = Stage(chat(engine="tensorrt_llm", **changes), gpus=gpus)
        (workload,) = stage.scrape(exposition(name)).workloads
        return workload.models[0].precision, stage.service.precisions()

    def test_the_engine_says_fp8_and_the_gpus_have_it(self):
        """It becomes the headline precision of the workload's GPUs."""
        peaks = {"bf16": 1e7, "fp8": 1e7}
        gpus = host(gpu("0", "GPU-a", peaks), gpu("1", "GPU-b", peaks))

        assert self.precision(gpus=gpus) == ("fp8", {"GPU-a": "fp8", "GPU-b": "fp8"})

    def test_the_engine_says_fp8_but_the_gpus_lack_it(self):
        """Weights are then expanded to the model's own type."""
        assert self.precision()[0] == "bf16"

    def test_the_configuration_is_trusted(self):
        """The operator's setting is kept, even without a peak to compare with."""
        assert self.precision(precision="int8")[0] == "int8"


class TestGpus:
    def test_unknown_ones_are_left_out(self):
        """A GPU that is gone loses only its own label."""
        stage = Stage(chat(gpus=(1, 7)))
        (workload,) = stage.scrape(exposition("vllm-current")).workloads

        assert workload.gpus == (GpuRef("1", "GPU-b"),)

    def test_a_missing_peak_leaves_no_ratio(self):
        """Half a peak would be a wrong ratio."""
        stage = Stage(chat(), gpus=host(gpu("0", "GPU-a", {"bf16": 1e7}), gpu("1", "GPU-b", {})))
        stage.scrape(exposition("vllm-current"))
        (workload,) = stage.scrape(exposition("vllm-current-later")).workloads

        assert workload.models[0].flops_utilization is None
        assert workload.models[0].prefill_flop == pytest.approx(PREFILL_FLOP)

    def test_from_the_engines_processes(self, monkeypatch):
        """Without configuration: the GPUs that hold a process behind the address."""
        monkeypatch.setattr(
            "exporter.inference.service.serving_processes", lambda _url: frozenset({41, 42})
        )
        held = host(gpu("0", "GPU-a", {}, pids=[7]), gpu("1", "GPU-b", {}, pids=[42]))
        stage = Stage(chat(gpus=()), gpus=held)
        (workload,) = stage.scrape(exposition("vllm-current")).workloads

        assert workload.gpus == (GPUS[1],)

    def test_an_engine_that_has_ended_holds_no_gpu(self, monkeypatch):
        """What others do on the GPU afterwards is not its work; one that only fails to answer keeps it."""
        running = subprocess.Popen(["sleep", "600"])
        monkeypatch.setattr(
            "exporter.inference.service.serving_processes", lambda _url: frozenset({running.pid})
        )
        held = host(gpu("0", "GPU-a", {}, pids=[running.pid]))
        stage = Stage(chat(gpus=()), gpus=held)
        seen = []
        for text in (exposition("vllm-current"), "", ""):
            (workload,) = stage.scrape(text).workloads
            seen.append((workload.up, workload.gpus, workload.processes))
            if len(seen) == 2:
                running.kill()
                running.wait()

        assert seen == [
            (True, GPUS[:1], {running.pid}),
            (False, GPUS[:1], {running.pid}),
            (False, (), frozenset()),
        ]


class TestOnAProcessor:
    """A host without a GPU: MFU and MBU divide by what its probes measured."""

    PROCESSOR = host(gpu("cpu0", "CPU-a", {"fp32": 2e6}, bandwidth=1e6))

    def test_by_configuration(self):
        """`gpus: [cpu0]`. The bf16 model is multiplied in fp32, as no bf16 unit is there: of 2 MFLOP/s."""
        stage = Stage(chat(gpus=("cpu0",)), gpus=self.PROCESSOR)
        stage.scrape(exposition("vllm-current"))
        (model,) = stage.scrape(exposition("vllm-current-later")).workloads[0].models

        assert model.precision == "fp32"
        assert model.flops_utilization == pytest.approx((PREFILL_FLOP + DECODE_FLOP) / 15 / 2e6)
        # One cache, not one on each of two GPUs.
        one_cache = 30 * 2464 + 32 * (896 + 4 * 7500 + 4 * 100)
        assert model.bandwidth_utilization == pytest.approx(one_cache / 15 / 1e6)

    def test_an_engine_on_this_host_finds_it_by_itself(self, monkeypatch):
        """Its process is here, and there is nothing else to compute on."""
        monkeypatch.setattr(
            "exporter.inference.service.serving_processes", lambda _url: frozenset({41})
        )
        stage = Stage(chat(gpus=()), gpus=self.PROCESSOR)
        (workload,) = stage.scrape(exposition("vllm-current")).workloads

        assert workload.gpus == (GpuRef("cpu0", "CPU-a"),)

    def test_an_engine_elsewhere_does_not(self, monkeypatch):
        """No process of this host is behind its address."""
        monkeypatch.setattr(
            "exporter.inference.service.serving_processes", lambda _url: frozenset()
        )
        stage = Stage(chat(gpus=()), gpus=self.PROCESSOR)
        (workload,) = stage.scrape(exposition("vllm-current")).workloads

        assert workload.gpus == ()


class TestConfiguration:
    def test_unaffected_parts_continue(self):
        """A reload keeps the counters of the workloads that it leaves alone."""
        stage = Stage(chat(), chat(name="old", url="http://127.0.0.1:8001/metrics"))
        stage.scrape(exposition("vllm-current"))
        stage.scrape(exposition("vllm-current-later"))

        stage.service.configure([chat(), chat(name="new", url="http://127.0.0.1:8002/metrics")])
        workloads = stage.service.snapshot().workloads

        assert [(workload.name, workload.up) for workload in workloads] == [
            ("chat", True),
            ("new", False),
        ]
        assert workloads[0].models[0].decode_tokens == 100

    def test_two_of_one_name_are_refused(self):
        """Their series would be the same."""
        with pytest.raises(ConfigError, match="'chat' is used 2 times"):
            WorkloadService().configure([chat(), chat()])

    def test_snapshots_compare_equal_until_something_changes(self):
        """So that an exposition is rendered once per change."""
        stage = Stage(chat())
        stage.scrape(exposition("vllm-current"))
        before = stage.service.snapshot()

        assert stage.service.snapshot() == before
        assert stage.scrape(exposition("vllm-current-later")) != before


class TestDiscovery:
    def test_found_engines_are_scraped_and_forgotten_when_silent(self):
        """Known addresses are left alone; ten minutes of silence end a found one."""
        with serving(server.text(exposition("vllm-current"))) as engine:
            service = WorkloadService(discovery=DiscoveryConfig(ports=(engine.port,)))
            service.configure([chat(name="other")])
            service._adopt(service._found())
            service._adopt(service._found())

        assert [workload.name for workload in service.snapshot().workloads] == [
            "other",
            f"vllm-{engine.port}",
        ]

        service._wall_clock = lambda: 4e9
        service._adopt(())

        assert [workload.name for workload in service.snapshot().workloads] == ["other"]

    def test_an_engine_with_several_addresses_is_scraped_once(self):
        """Configured as localhost, found as 127.0.0.1: it must not count twice."""
        service = WorkloadService()
        service.configure([chat(url="http://localhost:8000/v1/metrics")])

        service._adopt([Endpoint("vllm-8000", "vllm", "http://127.0.0.1:8000/metrics")])

        assert [workload.name for workload in service.snapshot().workloads] == ["chat"]

    def test_an_engine_that_was_found_by_its_processes(self):
        """A pod's address is not ours, and its processes still say which GPUs it uses."""
        held = host(gpu("0", "GPU-a", {}, pids=(4242,)), gpu("1", "GPU-b", {}, pids=(7,)))
        stage = Stage(gpus=held)
        pod = Endpoint("chat-0", "vllm", "http://10.0.0.7:8000/metrics", frozenset({4242, 4243}))

        stage.service._adopt([pod])
        (workload,) = stage.scrape(exposition("vllm-current")).workloads

        assert (workload.name, workload.gpus) == ("chat-0", (GpuRef("0", "GPU-a"),))


class TestHosts:
    """An engine whose GPUs are not all on this host."""

    def test_other_hosts_are_not_known(self):
        """Four-way tensor parallel on two GPUs here: no MFU rather than twice of it."""
        (model,) = two_scrapes(tensor_parallel=4).models

        assert (model.flops_utilization, model.bandwidth_utilization) == (None, None)
        assert model.prefill_flop == pytest.approx(PREFILL_FLOP)

    @pytest.mark.parametrize("gpus", [(0, "GPU-b", 9), (0, "GPU-b", "GPU-none")])
    def test_a_configured_gpu_is_not_there(self, gpus):
        """A third of its peak is unknown: no MFU rather than half as much again. FLOPs are counted."""
        workload = two_scrapes(gpus=gpus)
        (model,) = workload.models

        assert (model.flops_utilization, model.bandwidth_utilization) == (None, None)
        assert not model.all_gpus_here
        assert model.prefill_flop == pytest.approx(PREFILL_FLOP)
        assert workload.gpus == GPUS

    def test_the_configuration_says_how_many_there_are(self):
        """Two of four GPUs are here, and the others like them: half of what two alone would have."""
        (model,) = two_scrapes(tensor_parallel=4, gpus_total=4).models

        assert model.flops_utilization == pytest.approx((PREFILL_FLOP + DECODE_FLOP) / 15 / 4e7)


class TestPoints:
    def samples(self, workload_snapshot):
        return {
            (point.family.name, *(value for _label, value in point.labels)): point.value
            for point in workload_samples(workload_snapshot)
        }

    def test_an_engine_that_is_up(self):
        """Everything that the contract promises of a model."""
        stage = Stage(chat())
        stage.scrape(exposition("vllm-current"))
        samples = self.samples(stage.scrape(exposition("vllm-current-later")))

        assert samples["flopwatch_workload_up", "chat"] == 1
        assert samples["flopwatch_workload_gpu_info", "1", "GPU-b", "chat"] == 1
        assert samples["flopwatch_model_info", "chat", "acme/tiny", "vllm", "bf16"] == 1
        assert samples["flopwatch_model_tokens_total", "chat", "acme/tiny", "prefill"] == 800
        assert samples[
            "flopwatch_model_flop_total", "chat", "acme/tiny", "decode"
        ] == pytest.approx(DECODE_FLOP)
        assert samples["flopwatch_model_dram_bytes_total", "chat", "acme/tiny"] == pytest.approx(
            DRAM_BYTES
        )
        assert samples["flopwatch_model_requests", "chat", "acme/tiny", "waiting"] == 2
        assert ("flopwatch_model_flops_utilization_ratio", "chat", "acme/tiny") in samples
        assert ("flopwatch_model_bandwidth_utilization_ratio", "chat", "acme/tiny") in samples

    def test_an_engine_that_is_down(self):
        """Down, the reason, and nothing else."""
        stage = Stage(chat())
        samples = self.samples(stage.scrape(exposition("node-exporter")))

        assert samples == {
            ("flopwatch_workload_up", "chat"): 0,
            ("flopwatch_workload_errors_total", "chat", "wrong_engine"): 1,
            ("flopwatch_workload_malformed_lines_total", "chat"): 0,
        }

    def test_a_mig_instance_has_its_label(self):
        """Like every series of a MIG instance."""
        gpus = host(gpu("0", "MIG-a", {}, mig="3"))
        snapshot = Stage(chat(gpus=("MIG-a",)), gpus=gpus).scrape(exposition("vllm-current"))

        assert self.samples(snapshot)["flopwatch_workload_gpu_info", "0", "MIG-a", "3", "chat"] == 1

    def test_labels_are_those_of_the_families(self):
        """Every point carries exactly the labels that its family declares."""
        stage = Stage(chat())
        stage.scrape(exposition("vllm-current"))
        snapshot = stage.scrape(exposition("vllm-current-later"))

        for point in workload_samples(snapshot):
            assert tuple(name for name, _value in point.labels) == point.family.label_names
