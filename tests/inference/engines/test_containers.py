"""Engines found by the processes that hold GPUs: in pods, on the host, and without access."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from exporter.errors import Reason, ScrapeError
from exporter.inference.discovery import LARGEST_SOCKET_COUNT, ContainerDiscovery, Endpoint
from tests.inference.engines.server import exposition


TABLE = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


# An engine that listens on an address and says on which port.
ENGINE = textwrap.dedent(
    """
    import http.server, sys
    body = sys.stdin.read().encode()
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers(); self.wfile.write(body)
        def log_message(self, *_): pass
    server = http.server.HTTPServer((sys.argv[1], 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
    """
)


class Proc:
    """A fake /proc."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "self/ns").mkdir(parents=True)
        (folder / "self/ns/net").symlink_to("net:[1]")

    def add(
        self,
        pid,
        *,
        parent=1,
        namespace=2,
        hidden=False,
        host="",
        address="10.0.0.7",
        ports=(),
        command="python",
        cgroup="0::/serving",
    ):
        """A process; `ports` are (port, inode) that its namespace listens on and it holds."""
        home = self.folder / str(pid)
        for name in ("ns", "net", "fd", "root/etc"):
            (home / name).mkdir(parents=True)
        (home / "stat").write_text(f"{pid} (engine) S {parent} " + "0 " * 17 + f"{pid} 0\n")
        (home / "comm").write_text(f"{command}\n")
        (home / "cgroup").write_text(f"{cgroup}\n")
        if not hidden:
            (home / "ns/net").symlink_to(f"net:[{namespace}]")
        lines = [
            f"   0: 00000000:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 {inode} 1\n"
            for port, inode in ports
        ]
        (home / "net/tcp").write_text(TABLE + "".join(lines))
        trie = f"  |-- 127.0.0.1\n     /32 host LOCAL\n  |-- {address}\n     /32 host LOCAL\n"
        (home / "net/fib_trie").write_text(trie)
        (home / "root/etc/hostname").write_text(f"{host}\n")
        return self

    def holds(self, pid, inode):
        """The process has this socket open."""
        (self.folder / str(pid) / "fd" / "3").symlink_to(f"socket:[{inode}]")
        return self


class Network:
    """Answers some addresses; all others refuse."""

    def __init__(self, **answers):
        self.answers = {key.replace("_", "."): text for key, text in answers.items()}
        self.asked = []

    def __call__(self, url, timeout_seconds):
        self.asked.append(url)
        for place, text in self.answers.items():
            if url == f"http://{place}/metrics":
                return text
        raise ScrapeError(Reason.CONNECTION)


@pytest.fixture(name="proc")
def _proc(tmp_path):
    return Proc(tmp_path)


def looked(proc, network, pids):
    found = ContainerDiscovery(fetch=network, proc=proc.folder, clock=lambda: 1.0)
    return tuple(found.discover(pids)), found


def test_a_pod(proc):
    """The worker holds the GPU, its parent listens: the pod's name and address, and all processes."""
    proc.add(100, host="chat-0", ports=[(8000, 55)]).holds(100, 55)
    proc.add(101, parent=100, host="chat-0", ports=[(8000, 55)])
    network = Network()
    network.answers = {"10.0.0.7:8000": exposition("vllm-current")}

    found, _discovery = looked(proc, network, {101})

    url = "http://10.0.0.7:8000/metrics"
    assert found == (Endpoint("chat-0", "vllm", url, frozenset({100, 101})),)


def test_two_engines_in_a_pod_are_distinguished_by_port(proc):
    """Each with the processes below the one that listens."""
    both = [(8000, 55), (30000, 66)]
    proc.add(100, host="duo", ports=both).holds(100, 55)
    proc.add(101, parent=100, host="duo", ports=both)
    proc.add(200, host="duo", ports=both).holds(200, 66)
    network = Network()
    network.answers = {
        "10.0.0.7:8000": exposition("vllm-current"),
        "10.0.0.7:30000": exposition("sglang-current"),
    }

    found, _discovery = looked(proc, network, {101, 200})

    assert {endpoint.name: endpoint.processes for endpoint in found} == {
        "duo-8000": frozenset({100, 101}),
        "duo-30000": frozenset({200}),
    }


def test_a_socket_without_an_engine_is_not_retried_at_once(proc):
    """Queried once at each path, not at every discovery."""
    proc.add(100, host="web", ports=[(9999, 55)]).holds(100, 55)
    network = Network()
    found = ContainerDiscovery(fetch=network, proc=proc.folder, clock=lambda: 1.0)

    assert tuple(found.discover({100})) == ()
    asked = len(network.asked)
    assert tuple(found.discover({100})) == ()

    assert len(network.asked) == asked > 0


def test_another_engine_at_the_same_address_is_found(proc):
    """A pod's address was given to another pod: it is asked again after ten minutes."""
    proc.add(100, host="chat-0", ports=[(8000, 55)]).holds(100, 55)
    network = Network()
    now = [1.0]
    discovery = ContainerDiscovery(fetch=network, proc=proc.folder, clock=lambda: now[0])
    engines = []
    for at_seconds, recording in (
        (1.0, "vllm-current"),
        (500.0, "sglang-current"),
        (601.0, "sglang-current"),
    ):
        now[0] = at_seconds
        network.answers = {"10.0.0.7:8000": exposition(recording)}
        engines += [endpoint.engine for endpoint in discovery.discover({100})]

    assert engines == ["vllm", "vllm", "sglang"]


def test_few_sockets_are_asked(proc):
    """A program with hundreds of ports is not scanned."""
    ports = [(20_000 + number, number) for number in range(200)]
    proc.add(100, ports=ports)
    network = Network()

    looked(proc, network, {100})

    assert len({url.split("/")[2] for url in network.asked}) == LARGEST_SOCKET_COUNT


class TestOnThisHost:
    """Every service of the host listens in one network namespace: the nearest engine is the one."""

    PORTS = ((8000, 55), (8001, 66), (8002, 77))

    @pytest.fixture(name="network")
    def _network(self):
        network = Network()
        network.answers = {
            f"127.0.0.1:{port}": exposition("vllm-current") for port, _inode in self.PORTS
        }
        return network

    def add(self, proc, pid, parent, **options):
        """A process of the host."""
        return proc.add(pid, parent=parent, namespace=1, ports=self.PORTS, **options)

    def urls(self, proc, network, pids):
        """The addresses that are found, each with its processes."""
        found, _discovery = looked(proc, network, pids)
        return {int(endpoint.url.split(":")[2].split("/")[0]): endpoint for endpoint in found}

    def test_two_engines_of_one_launcher(self, proc, network):
        """Each process that holds a GPU serves by itself: its own socket, and not its sibling's."""
        self.add(proc, 100, 1)
        self.add(proc, 101, 100).holds(101, 55)
        self.add(proc, 102, 100).holds(102, 66)

        found = self.urls(proc, network, {101})

        assert {port: endpoint.processes for port, endpoint in found.items()} == {
            8000: frozenset({101})
        }

    def test_a_router_beside_its_worker(self, proc, network):
        """A launcher started both (Text Generation Inference): the worker's GPU is the router's."""
        self.add(proc, 100, 1)
        self.add(proc, 101, 100).holds(101, 55)
        self.add(proc, 102, 100)

        found = self.urls(proc, network, {102})

        assert found[8000].processes == frozenset({101, 102})

    def test_an_engine_without_a_gpu_from_the_same_shell(self, proc, network):
        """Training on the GPU is not attributed to the engine that runs on the processor."""
        self.add(proc, 100, 1, command="bash")
        self.add(proc, 101, 100).holds(101, 55)
        self.add(proc, 102, 100)

        assert self.urls(proc, network, {102}) == {}

    def test_an_engine_of_another_service(self, proc, network):
        """A common parent in another control group starts many services."""
        self.add(proc, 100, 1, cgroup="0::/system.slice/nodes.service")
        self.add(proc, 101, 100, cgroup="0::/system.slice/other.service").holds(101, 55)
        self.add(proc, 102, 100)

        assert self.urls(proc, network, {102}) == {}


def test_without_the_hosts_process_ids(proc):
    """The driver names processes that do not exist here: the log says what is needed."""
    found, seen = looked(proc, Network(), {4242})

    assert found == ()
    assert "host's PID namespace" in seen.unavailable


def test_without_permission_to_inspect(proc):
    """Another user's namespace cannot be read."""
    proc.add(100, hidden=True)

    found, seen = looked(proc, Network(), {100})

    assert found == ()
    assert "CAP_SYS_PTRACE" in seen.unavailable


def test_an_idle_host_has_no_missing_values(proc):
    """No process holds a GPU: nothing to report."""
    found, seen = looked(proc, Network(), set())

    assert (found, seen.unavailable) == ((), None)


def test_a_real_process_of_this_host():
    """A child that serves vLLM's metrics is found through the real /proc, and only its socket."""
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE, "127.0.0.1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    # A daemon ignores its own children, so a sibling of the engine plays the daemon.
    daemon = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        engine.stdin.write(exposition("vllm-current"))
        engine.stdin.close()
        port = int(engine.stdout.readline())
        (endpoint,) = ContainerDiscovery(own_pid=daemon.pid).discover({engine.pid})
    finally:
        for process in (engine, daemon):
            process.kill()
            process.wait()
        engine.stdout.close()
        daemon.stdin.close()

    assert endpoint.url == f"http://127.0.0.1:{port}/metrics"
    assert endpoint.engine == "vllm"
    assert engine.pid in endpoint.processes


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture(name="namespace")
def _namespace():
    """A network namespace of its own, reached over a pair of virtual interfaces as a pod is."""
    name = f"fw{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("ip") is None or not ip("netns", "add", name):
        pytest.skip("needs root and ip netns")
    inside = ("netns", "exec", name, "ip")
    outer, inner = f"{name}a", f"{name}b"
    made = (
        ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        and ip("link", "set", inner, "netns", name)
        and ip("addr", "add", "10.213.47.1/30", "dev", outer)
        and ip("link", "set", outer, "up")
        and ip(*inside, "addr", "add", "10.213.47.2/30", "dev", inner)
        and ip(*inside, "link", "set", inner, "up")
    )
    try:
        if not made:
            pytest.skip("needs virtual interfaces")
        yield name
    finally:
        ip("netns", "del", name)
        ip("link", "del", outer)


def test_a_real_network_namespace(namespace):
    """An engine in another namespace is found by its process, at the address that it has there."""
    engine = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", ENGINE, "0.0.0.0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        engine.stdin.write(exposition("vllm-current"))
        engine.stdin.close()
        port = int(engine.stdout.readline())
        (endpoint,) = ContainerDiscovery(own_pid=engine.pid + 1).discover({engine.pid})
    finally:
        engine.kill()
        engine.wait()
        engine.stdout.close()

    assert (endpoint.engine, endpoint.url) == ("vllm", f"http://10.213.47.2:{port}/metrics")
    assert endpoint.processes == {engine.pid}
