"""One notification per incident, by a real Alertmanager with the shipped configuration."""

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus.stack import ALERTMANAGER, DEPLOY, free_port


pytestmark = pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager is not installed")

PATIENCE_SECONDS = 30.0
TEXT = """\
critical: GPU 3 on node7 has GPULost
Likely: heat.
Held by GPU 3: pod chat/llama-0
Dashboard: https://grafana.example/d/flopwatch-gpu?var-gpu=3
Runbook: https://docs.example/GPULost.md

warning: GPU 4 on node7 has GPUPowerBrake
Likely: heat.
Held by GPU 4: pod chat/llama-0
Dashboard: https://grafana.example/d/flopwatch-gpu?var-gpu=4
Runbook: https://docs.example/GPUPowerBrake.md

Alertmanager: https://alerts.example"""


class Inbox:
    """A webhook receiver: the notifications of each receiver, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.told.append((self.path.strip("/"), json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, receiver: str) -> list[dict[str, Any]]:
        return [told for name, told in self.told if name == receiver]


@contextmanager
def alertmanager(folder: Path) -> Iterator[tuple[str, Inbox]]:
    """The shipped configuration, with its receivers pointed at an inbox and its waits shortened."""
    inbox = Inbox()
    config = yaml.safe_load((DEPLOY / "alertmanager.yml").read_text())
    config["templates"] = [str(DEPLOY / "templates" / "*.tmpl")]
    url = f"http://127.0.0.1:{inbox.server.server_port}"
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": f"{url}/{receiver['name']}"}]
    config["route"]["group_wait"] = "1s"
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    assert ALERTMANAGER is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                ALERTMANAGER,
                f"--config.file={folder}/alertmanager.yml",
                f"--storage.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://127.0.0.1:{port}", inbox
        finally:
            process.terminate()
            process.wait(20)
            inbox.server.shutdown()
            inbox.server.server_close()


def send(url: str, alerts: list[dict[str, Any]]) -> None:
    body = json.dumps(alerts).encode()
    request = urllib.request.Request(
        f"{url}/api/v2/alerts", body, {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def alert(name: str, severity: str, gpu: str = "", instance: str = "node7") -> dict[str, Any]:
    labels = {"alertname": name, "severity": severity, "cluster": "c", "instance": instance}
    if gpu:
        labels["gpu"] = gpu
    return {
        "labels": labels,
        "annotations": {
            "summary": f"GPU {gpu} on {instance} has {name}",
            "description": "Likely: heat.",
            "dashboard": f"https://grafana.example/d/flopwatch-gpu?var-gpu={gpu}",
            "runbook_url": f"https://docs.example/{name}.md",
            "holders": f"GPU {gpu}: pod chat/llama-0\n",
        },
    }


def until(told: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_faulty_host_is_one_page_with_a_count(tmp_path: Path) -> None:
    """Eight GPUs lose their links: the pager rings once, with all eight; another host's alert is another incident."""
    with alertmanager(tmp_path) as (url, inbox):
        send(
            url,
            [alert("NVLinkDown", "critical", str(gpu)) for gpu in range(8)]
            + [alert("GPULost", "critical", "0", "node9")],
        )
        until(lambda: len(inbox.of("pager")) >= 2)
        pages = {page["groupLabels"]["instance"]: page for page in inbox.of("pager")}

    assert len(inbox.of("pager")) == 2
    assert len(pages["node7"]["alerts"]) == 8
    assert len(pages["node9"]["alerts"]) == 1


def test_a_down_host_silences_its_other_alerts(tmp_path: Path) -> None:
    """FlopwatchDown is the only page; the alerts that it inhibits send nothing."""
    with alertmanager(tmp_path) as (url, inbox):
        send(url, [alert("FlopwatchDown", "critical"), alert("GPULost", "critical", "3")])
        until(lambda: inbox.of("pager"))
        names = [one["labels"]["alertname"] for page in inbox.of("pager") for one in page["alerts"]]

    assert names == ["FlopwatchDown"]


def test_info_alerts_go_to_a_receiver_that_notifies_no_one(tmp_path: Path) -> None:
    """An info alert reaches the digest, neither pager nor chat."""
    with alertmanager(tmp_path) as (url, inbox):
        send(url, [alert("GPUXidBurst", "info", "2")])
        until(lambda: inbox.of("digest"))

    assert not inbox.of("pager")
    assert not inbox.of("chat")


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_the_text_names_number_cause_and_place(tmp_path: Path) -> None:
    """Title and text of two alerts, word for word: count, holder, absolute links."""
    alerts = [alert("GPULost", "critical", "3"), alert("GPUPowerBrake", "warning", "4")]
    data = tmp_path / "data.json"
    data.write_text(
        json.dumps(
            {
                "receiver": "chat",
                "status": "firing",
                "alerts": [one | {"status": "firing"} for one in alerts],
                "groupLabels": {"cluster": "c", "instance": "node7"},
                "commonLabels": {},
                "commonAnnotations": {},
                "externalURL": "https://alerts.example",
            }
        )
    )

    def rendered(name: str) -> str:
        done = subprocess.run(
            [
                "amtool",
                "template",
                "render",
                f"--template.glob={DEPLOY}/templates/*.tmpl",
                f"--template.data={data}",
                f'--template.text={{{{ template "{name}" . }}}}',
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert rendered("flopwatch.title") == "[2 firing] node7: GPU 3 on node7 has GPULost and 1 more"
    assert rendered("flopwatch.text") == TEXT
