"""Calibration against a counter served over HTTP, with simulated workers."""

import argparse
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from exporter.cli import calibrate
from exporter.cli.calibrate import (
    CalibrationError,
    Calibrator,
    Comparison,
    ScrapedCounter,
    probes_held_off,
    report,
)
from exporter.cli.probe import ProbeError
from exporter.services import Calibration, read_calibrations
from flopwatch.state_file import StateFile
from probes.config import ProbeConfig
from probes.protocol import KernelInfo
from probes.supervisor import WorkerFailedError
from tests.probes.simulation import COPY, Ending, FakeWorker, Host, gpu


BF16 = KernelInfo(name="gemm_bf16", quantity="flops", label="bf16")
FP32 = KernelInfo(name="gemm_fp32", quantity="flops", label="fp32")
FP8 = KernelInfo(name="gemm_fp8", quantity="flops", label="fp8")
# Every simulated request executes 12 runs of 100 GFLOP.
REQUEST_FLOP = 1.2e12


class Daemon:
    """Serves `flopwatch_flop_total` like a daemon that sees the simulated work."""

    def __init__(self, host, share=1.0):
        self.host, self.share = host, share
        self.background = 0.0
        self.scrapes = 0
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = daemon.exposition().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def exposition(self):
        self.scrapes += 1
        done = {"gemm_bf16": 0.0, "gemm_fp32": 0.0, "gemm_fp8": 0.0}
        for request in self.host.requests:
            done[request.kernel] += REQUEST_FLOP
        noise = self.background * self.scrapes
        series = (
            ("tensor", "bf16", "gpm", self.share * done["gemm_bf16"] + noise),
            ("tensor", "bf16", "dcgm", 5.0),
            ("fp32", "fp32", "gpm", done["gemm_fp32"]),
        )
        lines = ["# TYPE flopwatch_flop_total counter"]
        for pipe, precision, source, value in series:
            lines.append(
                f'flopwatch_flop_total{{gpu="0",uuid="GPU-0",pipe="{pipe}",'
                f'precision="{precision}",source="{source}"}} {value}'
            )
        lines.append(
            'flopwatch_flop_total{gpu="1",uuid="GPU-1",pipe="tensor",precision="bf16",source="gpm"} 7'
        )
        return "\n".join(lines) + "\n"


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def daemon(host):
    made = Daemon(host)
    yield made
    made.server.shutdown()
    made.server.server_close()


def compare(host, daemon, kernels):
    host.kernels = kernels
    calibrator = Calibrator(
        gpu(0),
        ProbeConfig(),
        ScrapedCounter(daemon.url),
        factory=lambda devices, config: FakeWorker(host, list(devices), config),
        monotonic=host.clock.monotonic,
        sleep=lambda seconds: None,
    )
    return list(calibrator.compare(2.0))


def test_an_exact_counter_has_no_error(host, daemon):
    """The work between the readings is what was counted, without the search for a size."""
    (seen,) = compare(host, daemon, (BF16,))

    assert seen.true_flop == pytest.approx(REQUEST_FLOP * (len(host.requests) - 1))
    assert seen.error_ratio == pytest.approx(0.0)


def test_the_error_is_signed(host, daemon):
    """A counter that sees 96 % of the work is off by -4 %."""
    daemon.share = 0.96

    (seen,) = compare(host, daemon, (BF16,))

    assert seen.error_ratio == pytest.approx(-0.04)


def test_copies_are_not_flop_and_fp32_is_not_tensor_work(host, daemon):
    """Only GEMMs are compared, fp32 with its own pipe."""
    seen = compare(host, daemon, (COPY, FP32))

    assert [(each.precision, each.error_ratio) for each in seen] == [("fp32", pytest.approx(0.0))]


def test_work_valued_in_another_precision_has_no_error(host, daemon):
    """The counter has the tensor pipe's work as bf16 only: fp8 cannot be compared."""
    (seen,) = compare(host, daemon, (FP8,))

    assert seen.error_ratio is None


def test_a_counter_that_never_rests(host, daemon):
    """Another process uses the GPU: no figure rather than a wrong one."""
    daemon.background = 1e9

    with pytest.raises(CalibrationError, match="not idle"):
        compare(host, daemon, (BF16,))


def test_a_worker_that_dies(host, daemon):
    """The command says so, and the worker is closed."""
    host.script.append(Ending("crash"))

    with pytest.raises(WorkerFailedError, match="gemm_bf16: crash"):
        compare(host, daemon, (BF16,))


def test_a_daemon_that_is_not_there():
    """One line with the address and a question."""
    with pytest.raises(CalibrationError, match=r"127\.0\.0\.1:1/metrics: connection"):
        ScrapedCounter("http://127.0.0.1:1/metrics").read("GPU-0")


def test_errors_are_kept_in_the_state_file(tmp_path, capsys):
    """By device and precision, with their time; those that could not be stated are left out."""
    state = StateFile(tmp_path / "state.json")
    assert report(Comparison("0", "GPU-0", "bf16", 1e15, 1.01e15), state, 1.7e9)
    assert not report(Comparison("0", "GPU-0", "fp8", 1e15, None), state, 1.7e9)
    assert read_calibrations(state) == {"GPU-0": {"bf16": Calibration(pytest.approx(0.01), 1.7e9)}}
    assert "error +1.00%" in capsys.readouterr().out


def test_a_password_in_the_address_is_not_printed():
    """Errors end up in logs and tickets."""
    with pytest.raises(CalibrationError, match="is the daemon running") as caught:
        ScrapedCounter("http://bob:hunter2@127.0.0.1:9/metrics").read("GPU-0")

    assert "hunter2" not in str(caught.value)


def test_results_before_a_worker_died_are_kept(host, daemon, monkeypatch, tmp_path):
    """The second precision ends the worker: the command fails, with the first one's error saved."""
    host.kernels = (BF16, FP32)
    host.script.extend([Ending("dies in gemm_fp32")] * 100)
    monkeypatch.setattr(calibrate, "read_devices", lambda config: [gpu(0)])
    monkeypatch.setattr(
        calibrate,
        "Calibrator",
        lambda *given: Calibrator(
            *given,
            factory=lambda devices, config: FakeWorker(host, list(devices), config),
            monotonic=host.clock.monotonic,
            sleep=lambda seconds: None,
        ),
    )
    monkeypatch.setenv("FLOPWATCH_STATE_FILE", str(tmp_path / "state" / "state.json"))
    monkeypatch.setenv("FLOPWATCH_PROBES_PAUSE_FILE", str(tmp_path / "pause"))
    parser = argparse.ArgumentParser()
    calibrate.add_calibrate(parser.add_subparsers())
    parsed = parser.parse_args(["calibrate", "--url", daemon.url])

    with pytest.raises(ProbeError, match="GPU 0: the probe worker failed: gemm_fp32: dies"):
        parsed.run(parsed)
    assert read_calibrations(StateFile(tmp_path / "state" / "state.json"))["GPU-0"].keys() == {
        "bf16"
    }
    assert not (tmp_path / "pause").exists()


class TestPauseFile:
    def test_it_is_there_meanwhile(self, tmp_path):
        """And removed afterwards, also after an error."""
        file = tmp_path / "run" / "pause"

        def work():
            with probes_held_off(file):
                assert file.exists()
                raise KeyError

        with pytest.raises(KeyError):
            work()
        assert not file.exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_it_ends_with_the_command(self, tmp_path, number):
        """By a supervisor or its terminal: a leftover file would pause the probes permanently."""
        file = tmp_path / "pause"
        before = signal.getsignal(number)

        def work():
            with probes_held_off(file):
                signal.raise_signal(number)

        with pytest.raises(SystemExit) as caught:
            work()
        assert caught.value.code == 128 + number
        assert not file.exists()
        assert signal.getsignal(number) == before

    def test_the_operators_file_is_kept(self, tmp_path):
        """An operator who paused the probes before still wants them paused."""
        file = tmp_path / "pause"
        file.touch()
        with probes_held_off(file):
            pass

        assert file.exists()

    def test_without_permission_to_create_it_the_daemon_continues(self, tmp_path):
        """Below a file there can be no folder."""
        (tmp_path / "file").touch()
        with probes_held_off(tmp_path / "file" / "pause"):
            pass
        with probes_held_off(None):
            pass


def test_without_a_gpu_there_is_nothing_to_calibrate(monkeypatch, tmp_path):
    """One line, and exit code 2 by way of FlopwatchError."""
    monkeypatch.setattr(calibrate, "read_devices", lambda config: [])
    parser = argparse.ArgumentParser()
    calibrate.add_calibrate(parser.add_subparsers())

    parsed = parser.parse_args(["calibrate"])
    with pytest.raises(CalibrationError, match="there is no GPU"):
        parsed.run(parsed)
