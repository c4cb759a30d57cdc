"""`flopwatch probe`: full-length runs on simulated workers, graded on numbers worked by hand."""

import argparse
import json
from dataclasses import replace

import pytest

from exporter.cli import probe as command
from exporter.cli.probe import ProbeError, check_device, print_table, select_devices
from exporter.config.load import ConfigOrigin, load_config
from probes.burn_in import BurnIn
from probes.config import ProbeConfig
from probes.facts import ProcessFacts
from probes.judgement import Baseline, Contention, Judgement
from probes.protocol import KernelInfo
from probes.supervisor import WorkerFailedError
from probes.thresholds import Row, compare_siblings, grade, peak_of
from tests.probes.simulation import COPY, GEMM, LAUNCH, Ending, FakeWorker, Host, gpu


UP = KernelInfo(name="copy_host_to_device", quantity="bandwidth", label="host_to_device")
BEST = (455_840.0,) * 5
PAIR = (gpu(0), gpu(1))


def judged(value=1.0, efficiency=None, outcome="ok"):
    return Judgement(outcome, value, value, efficiency, Contention(1.0, 1.0), checked=True)


class TestGrades:
    @pytest.mark.parametrize(("efficiency", "expected"), [(0.47, "ok"), (0.46, "low")])
    def test_a_gemm_is_low_below_its_reference(self, efficiency, expected):
        """0.75 of 0.62: an efficiency of 0.465."""
        assert grade(GEMM, gpu(), judged(efficiency=efficiency), None, None)[0] == expected

    @pytest.mark.parametrize(
        ("ratio", "expected"), [(1.0, "ok"), (0.96, "ok"), (0.94, "note"), (0.89, "low")]
    )
    def test_a_device_is_held_to_its_own_baseline(self, ratio, expected):
        """Five per cent below is worth a note, ten are too many."""
        assert grade(GEMM, gpu(), judged(efficiency=0.8), ratio, None)[0] == expected

    def test_higher_is_worse_for_a_latency(self):
        """1.12 of the baseline is 0.893 of its speed."""
        assert grade(LAUNCH, gpu(), judged(), 1.12, None)[0] == "low"
        assert grade(LAUNCH, gpu(), judged(), 0.5, None)[0] == "ok"

    def test_memory(self):
        """0.75 of 0.76 of 3.35 TB/s: 1.91 TB/s."""
        assert grade(COPY, gpu(), judged(1.90e12), None, 3.35e12)[0] == "low"
        assert grade(COPY, gpu(), judged(1.92e12), None, 3.35e12)[0] == "ok"

    @pytest.mark.parametrize(
        ("peak", "lowest"), [(63.0e9, 48e9), (31.5e9, 21e9), (15.75e9, 0.66 * 15.75e9)]
    )
    def test_pcie(self, peak, lowest):
        """48 GB/s of generation 5, 21 of 4, two thirds of an older one."""
        assert grade(UP, gpu(), judged(lowest * 0.99), None, peak)[0] == "low"
        assert grade(UP, gpu(), judged(lowest * 1.01), None, peak)[0] == "ok"

    @pytest.mark.parametrize(
        ("outcome", "expected"),
        [("mismatch", "corrupt"), ("contended", "contended"), ("throttled", "throttled")],
    )
    def test_outcomes(self, outcome, expected):
        """A measurement that was not accepted has its own grade."""
        assert grade(GEMM, gpu(), judged(None, outcome=outcome), None, None)[0] == expected

    def test_a_host_processor_is_only_held_to_itself(self):
        """Its low precisions may be emulated."""
        cpu = replace(gpu(), kind="cpu")

        assert grade(GEMM, cpu, judged(efficiency=0.01), None, None)[0] == "ok"
        assert grade(GEMM, cpu, judged(efficiency=0.01), 0.5, None)[0] == "low"

    def test_the_peak_of_a_processor_is_that_of_the_cores_used(self):
        """One thread of 32 cores."""
        cpu = replace(gpu(), kind="cpu", sm_count=32, peak_flops={"bf16": 3.2e12})

        assert peak_of(GEMM, cpu, 1) == pytest.approx(1e11)
        assert peak_of(GEMM, replace(cpu, kind="cuda"), 132) == 3.2e12


class TestSiblings:
    def row(self, gpu, value):
        return Row(
            gpu,
            f"GPU-{gpu}",
            "H100",
            "gemm_bf16",
            "flops",
            "ok",
            value,
            None,
            None,
            None,
            None,
            "ok",
        )

    def test_a_lagging_value_is_low(self):
        """89 of a median of 100."""
        rows = compare_siblings([self.row(str(n), v) for n, v in enumerate((100, 101, 89, 100))])

        assert [row.grade for row in rows] == ["ok", "ok", "low", "ok"]

    def test_two_values_have_no_median(self):
        """Two devices alone do not show which of them is right."""
        rows = compare_siblings([self.row("0", 100), self.row("1", 50)])

        assert [row.grade for row in rows] == ["ok", "ok"]


class TestFullProbe:
    def rows(self, host, devices, baselines=None, wanted=lambda kernel: True, steps=None):
        probe = BurnIn(
            devices,
            ProbeConfig(),
            baselines or {},
            0.5,
            factory=lambda facts, config: FakeWorker(host, list(facts), config),
            monotonic=host.clock.monotonic,
        )
        return list(probe.rows(wanted, (lambda _: None) if steps is None else steps.append))

    def test_every_kernel_of_every_device_has_a_row(self, tmp_path):
        """And a step that announces it."""
        host, steps = Host(tmp_path), []
        host.kernels = (GEMM, LAUNCH)
        rows = self.rows(host, [gpu(0), gpu(1)], steps=steps)

        assert [(row.gpu, row.kernel) for row in rows] == [
            ("0", "gemm_bf16"),
            ("0", "launch"),
            ("1", "gemm_bf16"),
            ("1", "launch"),
        ]
        assert [(step.gpu, step.position, step.count) for step in steps][:2] == [
            ("0", 0, 2),
            ("0", 1, 2),
        ]
        assert rows[0].value == pytest.approx(8e14)
        assert rows[0].efficiency_ratio == pytest.approx(0.8431, abs=1e-4)
        assert rows[0].grade == "ok"

    def test_it_runs_for_its_time_with_one_shape(self, tmp_path):
        """First the size is chosen, then it stays."""
        host = Host(tmp_path)
        self.rows(host, [gpu()])

        assert host.requests[0].shape == ()
        assert {request.shape for request in host.requests[1:]} == {(2048, 2048, 11920)}

    def test_the_baseline_of_the_daemon_counts(self, tmp_path):
        """Half of what it was under the same versions is low; under others it is not compared."""
        host = Host(tmp_path)
        half = Baseline(
            versions=host.versions, shape=(64, 64, 64), best=2 * 455_840.0, recent=BEST, digest="aa"
        )
        (row,) = self.rows(host, [gpu()], {"GPU-0": {"gemm_bf16": half}})
        assert row.baseline_ratio == pytest.approx(0.5, rel=1e-4)
        assert row.grade == "low"
        assert host.requests[0].shape == (64, 64, 64)

        host.versions = "other"
        (row,) = self.rows(host, [gpu()], {"GPU-0": {"gemm_bf16": half}})
        assert row.baseline_ratio is None
        assert row.grade == "ok"

    def test_a_kernel_that_kills_its_worker_fails_alone(self, tmp_path):
        """The next one gets a new worker."""
        host = Host(tmp_path)
        host.kernels = (GEMM, LAUNCH)
        host.script.append(Ending("hang"))
        rows = self.rows(host, [gpu()])

        assert [row.grade for row in rows] == ["failed", "ok"]
        assert rows[0].outcome == "timeout"
        assert len(host.started) == 2

    def test_a_device_that_cannot_be_opened_is_reported_with_the_others(self, tmp_path):
        """One GPU of a node has fallen off the bus: it has a row, and so have the healthy ones."""
        host = Host(tmp_path)
        host.describe_fails = {"GPU-0": "CUDA error: unknown error"}
        rows = self.rows(host, [gpu(0), gpu(1)])

        assert [(row.gpu, row.kernel, row.grade) for row in rows] == [
            ("0", "open", "failed"),
            ("1", "gemm_bf16", "ok"),
        ]
        assert rows[0].why == "CUDA error: unknown error"
        assert rows[0].value is None

    def test_a_device_that_is_lost_midway_keeps_its_rows(self, tmp_path):
        """What was measured before stays; the rest is one row."""
        host = Host(tmp_path)
        host.kernels = (GEMM, LAUNCH, COPY)

        def lose():
            if len(host.requests) == 2:
                host.script.append(Ending("crash"))
                host.describe_fails = {"GPU-0": "CUDA error: no device"}

        host.after_run = lose
        rows = self.rows(host, [gpu(0)])

        assert [(row.kernel, row.grade) for row in rows] == [
            ("gemm_bf16", "ok"),
            ("launch", "failed"),
            ("open", "failed"),
        ]

    def test_without_a_worker_there_is_no_table(self, tmp_path):
        """For example torch is missing: that is not a device's row."""
        host = Host(tmp_path)
        host.start_fails = "torch_missing"
        with pytest.raises(WorkerFailedError):
            self.rows(host, [gpu(0)])

    def test_a_shape_that_no_longer_fits_has_no_baseline(self, tmp_path):
        """The worker chose another one: its bits and its speed are not the old one's."""
        host = Host(tmp_path)
        old = Baseline(
            versions=host.versions, shape=(64, 64, 64), best=1e9, recent=BEST, digest="bb"
        )
        host.script.extend([Ending(share=0.001, changes={"shape": (2048, 2048, 1024)})] * 100)
        (row,) = self.rows(host, [gpu()], {"GPU-0": {"gemm_bf16": old}})

        assert row.grade == "ok"
        assert row.baseline_ratio is None
        assert [request.shape for request in host.requests[:2]] == [
            (64, 64, 64),
            (2048, 2048, 1024),
        ]

    def test_only_what_is_wanted_runs(self, tmp_path):
        """By precision, for one."""
        host = Host(tmp_path)
        host.kernels = (GEMM, LAUNCH)
        rows = self.rows(host, [gpu()], wanted=lambda kernel: kernel.label == "bf16")

        assert [row.kernel for row in rows] == ["gemm_bf16"]


class TestCommand:
    @pytest.fixture
    def flopwatch(self, tmp_path, monkeypatch):
        """Runs `flopwatch probe` on simulated devices; returns the exit code."""
        host = Host(tmp_path)
        monkeypatch.setenv("FLOPWATCH_STATE_FILE", str(tmp_path / "state.json"))
        monkeypatch.setattr("exporter.logging_setup.set_up_logging", lambda level, format_: None)

        def run(*arguments, devices=PAIR, kernels=(GEMM, LAUNCH), script=(), start_fails=None):
            host.kernels, host.start_fails = kernels, start_fails
            host.script.extend(script)
            monkeypatch.setattr(command, "read_devices", lambda config, **_: list(devices))
            monkeypatch.setattr(
                command,
                "BurnIn",
                lambda *given: BurnIn(
                    *given,
                    factory=lambda facts, config: FakeWorker(host, list(facts), config),
                    monotonic=host.clock.monotonic,
                ),
            )
            parser = argparse.ArgumentParser()
            command.add_probe(parser.add_subparsers())
            parsed = parser.parse_args(["probe", *arguments])
            return parsed.run(parsed)

        return run

    def test_a_table(self, flopwatch, capsys):
        """One line a kernel and device, exit code 0."""
        assert flopwatch() == 0

        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 5
        assert "800 TFLOP/s" in out
        assert "84.3%" in out
        assert "1755 MHz" in out
        assert "gpu 1  launch  2/2" in err

    def test_json(self, flopwatch, capsys):
        """The same as data, nothing else on either stream."""
        assert flopwatch("--json", "--gpu", "1") == 0

        out, err = capsys.readouterr()
        rows = json.loads(out)
        assert [(row["gpu"], row["kernel"], row["grade"]) for row in rows] == [
            ("1", "gemm_bf16", "ok"),
            ("1", "launch", "ok"),
        ]
        assert err == ""

    def test_below_the_thresholds_the_exit_code_is_one(self, flopwatch, capsys):
        """A mismatch is."""
        wrong = Ending(changes={"repeats_agree": False})

        assert flopwatch("--gpu", "0", kernels=(GEMM,), script=[Ending(), *[wrong] * 20]) == 1
        assert "corrupt" in capsys.readouterr().out

    def test_one_precision(self, flopwatch, capsys):
        """Only its GEMMs."""
        assert flopwatch("--precision", "bf16", "--json") == 0
        assert {row["kernel"] for row in json.loads(capsys.readouterr().out)} == {"gemm_bf16"}

    @pytest.mark.parametrize(
        ("arguments", "options", "text"),
        [
            (("--gpu", "7"), {}, "--gpu 7: no such device; known: 0, 1"),
            (("--precision", "fp3"), {}, "--precision fp3: unknown"),
            (("--gpu", "0"), {"start_fails": "torch_missing"}, "the probes need torch"),
            (("--precision", "fp8"), {}, "no device has fp8"),
            ((), {"devices": ()}, "there is no device"),
            ((), {"devices": (gpu(mig=True),)}, "MIG is on"),
            ((), {"devices": (gpu(free_memory_bytes=10**9),)}, "too little free memory"),
            ((), {"devices": (gpu(compute_mode="prohibited"),)}, "prohibits contexts"),
        ],
    )
    def test_mistakes_are_reported_in_one_line(self, flopwatch, arguments, options, text):
        """As FlopwatchErrors, which the command line prints without a traceback."""
        with pytest.raises(ProbeError, match=text):
            flopwatch(*arguments, **options)

    @pytest.mark.parametrize("seconds", ["abc", "0", "-1", "nan", "1e9"])
    def test_no_time_to_run_for(self, flopwatch, capsys, seconds):
        """One line with the flag and what it wants."""
        with pytest.raises(SystemExit):
            flopwatch("--seconds", seconds)

        last = capsys.readouterr().err.splitlines()[-1]
        assert f"--seconds: {seconds}: must be a number of seconds" in last

    def test_a_gpu_in_use_is_probed_with_a_warning(self, capsys):
        """The user who runs the command decides."""
        config = load_config(ConfigOrigin(file=None, flags={}, environment={}))
        check_device(gpu(processes=(ProcessFacts(1, 1e6),)), config)

        assert "in use by 1 process" in capsys.readouterr().err

    def test_devices_by_uuid(self):
        """Named twice, probed once."""
        assert select_devices([gpu(0), gpu(1)], ["GPU-1", "1"]) == [gpu(1)]

    def test_figures(self, capsys):
        """In the unit that a person would choose."""
        base = Row("0", "u", "n", "k", "flops", "ok", 1.5e15, 3e15, 0.5, None, 1e9, "ok")
        rows = [
            base,
            replace(base, quantity="bandwidth", value=3.2e12),
            replace(base, quantity="latency", value=4.2e-6),
            replace(base, value=None, grade="failed", why="a kernel hangs"),
        ]
        print_table(rows)
        out = capsys.readouterr().out

        assert "1.5 PFLOP/s" in out
        assert "3.2 TB/s" in out
        assert "4.20 us" in out
        assert "failed: a kernel hangs" in out
