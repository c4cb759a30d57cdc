"""Finding engines that are not configured, and the GPUs that their processes hold."""

import os
import socket
import sys

from exporter.inference.discovery import (
    DEFAULT_PORTS,
    Endpoint,
    discover_pods,
    discover_ports,
    serving_processes,
)
from tests.inference.engines import server
from tests.inference.engines.server import exposition, serving


class TestPorts:
    def test_an_engine_is_known_by_its_metrics(self):
        """An endpoint that answers is identified; other programs are left alone."""
        with (
            serving(server.text(exposition("sglang-current"))) as engine,
            serving(server.text(exposition("node-exporter"))) as other,
        ):
            found = discover_ports([engine.port, other.port])

        assert found == (Endpoint(f"sglang-{engine.port}", "sglang", engine.url),)

    def test_tensorrt_llm_has_its_own_path(self):
        """/metrics answers JSON there; /prometheus/metrics is tried next."""
        with serving(lambda exchange: None) as engine:

            def by_path(exchange):
                prometheus = "/prometheus/" in engine.requests[-1]
                body = exposition("tensorrt-llm-current") if prometheus else '[{"iter": 1}]'
                server.text(body)(exchange)

            engine.answer = by_path
            found = discover_ports([engine.port])

        url = f"http://127.0.0.1:{engine.port}/prometheus/metrics"
        assert found == (Endpoint(f"tensorrt_llm-{engine.port}", "tensorrt_llm", url),)

    def test_closed_ports_are_no_error(self):
        """Without an engine none is found."""
        with serving(server.text("")) as engine:
            port = engine.port

        assert discover_ports([port]) == ()

    def test_the_engines_own_ports_are_checked(self):
        """vLLM and TensorRT-LLM on 8000, SGLang on 30000, TGI on 3000."""
        assert {8000, 30000, 3000} <= set(DEFAULT_PORTS)


class TestPods:
    def test_listed_addresses_are_asked(self):
        """A hook lists names and addresses; those that are engines are kept by name."""
        with serving(server.text(exposition("tgi"))) as engine:
            found = discover_pods(lambda: [("chat-0", engine.url), ("dead", "http://127.0.0.1:1")])

        assert found == (Endpoint("chat-0", "tgi", engine.url),)


def stat(pid, command, parent, *, started):
    """/proc/<pid>/stat, as far as the start time."""
    return f"{pid} ({command}) S {parent} {'0 ' * 17}{started} 0"


class TestProcesses:
    def test_the_listener_of_this_process_is_found(self):
        """A real socket of this process, looked up in /proc."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            assert os.getpid() in serving_processes(f"http://127.0.0.1:{port}/metrics")

    def test_workers_belong_to_their_server(self, tmp_path):
        """Listener 10 has the worker 11, and 11 the worker 12; 20 is someone else, and so is 9."""
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "tcp").write_text(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
            "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 0 0 0 777 1\n"
            "   1: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 0 0 0 888 1\n"
        )
        for pid, parent, command in (
            (10, 1, "vllm"),
            (11, 10, "a) b"),
            (12, 11, "w"),
            (20, 1, "x"),
            (9, 11, "older than the parent whose id is another's now"),
        ):
            (tmp_path / str(pid) / "fd").mkdir(parents=True)
            (tmp_path / str(pid) / "stat").write_text(stat(pid, command, parent, started=pid))
        (tmp_path / "10" / "fd" / "3").symlink_to("socket:[777]")
        (tmp_path / "20" / "fd" / "3").symlink_to("socket:[888]")

        assert serving_processes("http://127.0.0.1:8000/metrics", tmp_path) == {10, 11, 12}

    def test_process_ids_leave_nothing_behind(self, tmp_path, monkeypatch):
        """The interpreter never frees interned strings, and process ids come and go."""
        interned = []
        (tmp_path / "4711" / "fd").mkdir(parents=True)
        (tmp_path / "4711" / "fd" / "3").symlink_to("socket:[777]")
        (tmp_path / "4711" / "stat").write_text(stat(4711, "vllm", 1, started=1))
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "tcp").write_text(
            "header\n   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 0 0 0 777 1\n"
        )
        monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or text)

        assert serving_processes("http://127.0.0.1:8000/metrics", tmp_path) == {4711}
        assert "4711" not in interned

    def test_another_hosts_processes_are_not_ours(self):
        """A remote engine has no local processes."""
        assert serving_processes("http://10.0.0.1:8000/metrics") == frozenset()
