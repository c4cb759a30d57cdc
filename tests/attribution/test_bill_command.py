"""`flopwatch bill` against a real Prometheus with two days of history, every figure by hand."""

import csv
import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest

from exporter.cli.bill import Series, names_a_holder, read_rows


# 2026-11-01T00:00:00Z, and a sample a minute from an hour before to an hour after two days.
START = 1793491200
HOURS = 48
MINUTE = 60
# In minutes.
NOON, DAY = 720, 1440
# Who holds which instances of GPU 5, with the labels of its series, its slices, its FLOP/s, and the
# models that engines serve on its instances, by instance.
OWN = 'namespace="monitoring",pod="flopwatch-x"'
INSTANCES = (
    ('holder="pod",namespace="violet",pod="m",container="c",hpc_job="",workload=""',
     3e12, {1: "large", 2: "large"}),
    # Of an exporter that is scraped without honor_labels.
    (f'holder="job",{OWN},container="",hpc_job="7",workload=""', 2e12, {3: "medium", 4: "medium"}),
    ('holder="pod",namespace="violet",pod="n",container="c",hpc_job="",workload=""',
     1.5e12, {5: "large", 6: "small"}),
    ('holder="pod",namespace="grey",pod="o",container="c",hpc_job="",workload=""', 5e11, {7: ""}),
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="Prometheus is not installed"
)  # fmt: skip


def history() -> str:
    """Two GPUs at 2.50 and 1 an hour. GPU 0: pod a of team red has 3/4 of the work, b of blue 1/4.

    Both halves are idle for 0.25 of the time. GPU 1 is nobody's, and idle. Every GPU takes 360 W.
    GPU 3 has two engines, which take turns and have 2 and 1 TFLOP/s. GPU 4 has a pod whose engine
    changed its model on the first day; both days it did 6 TFLOP/s. GPU 2, at 1 an hour on another node, had short jobs that no two scrapes saw: 5 TFLOP/s, 100 W.
    GPU 5, at 7 an hour, has MIG instances of one slice out of seven, see `INSTANCES`.
    """
    lines: list[str] = []

    minutes = range(-60, (HOURS + 1) * 60 + 1)

    def counter(name: str, labels: str, per_second: float) -> None:
        for minute in range(-60, (HOURS + 1) * 60 + 1):
            value = per_second * (minute + 60) * MINUTE
            lines.append(f"{name}{{{labels}}} {value!r} {START + minute * MINUTE}")

    def family(name: str, kind: str) -> None:
        lines.append(f"# TYPE {name} {kind}")

    target = 'job="flopwatch",instance="node-1:9907"'
    gpu = [f'{target},gpu="{number}",uuid="GPU-{number}"' for number in (0, 1, 3, 4, 5)]
    mig = [f'{target},gpu="5",uuid="MIG-{number}",mig="{number}"' for number in range(8)]
    engine = {
        name: f'{gpu[2]},holder="workload",{OWN},container="",hpc_job="",workload="{name}"'
        for name in ("first", "second")
    }
    rolled = f'{gpu[3]},holder="pod",namespace="green",pod="r",container="c",hpc_job="",workload=""'
    red = f'{gpu[0]},holder="pod",namespace="red",pod="a",container="c",hpc_job="",workload=""'
    blue = f'{gpu[0]},holder="pod",{OWN},exported_namespace="blue",exported_pod="b",container="c",hpc_job="",workload=""'
    none = f'{gpu[1]},holder="none",namespace="",pod="",container="",hpc_job="",workload=""'
    other = 'job="flopwatch",instance="node-2:9907",gpu="0",uuid="GPU-2"'
    family("flopwatch_flop", "counter")
    counter("flopwatch_flop_total", f'{gpu[0]},pipe="tensor"', 4e12)
    counter("flopwatch_flop_total", f'{gpu[0]},pipe="fp32"', 9e12)
    counter("flopwatch_flop_total", f'{gpu[2]},pipe="tensor"', 3e12)
    counter("flopwatch_flop_total", f'{gpu[3]},pipe="tensor"', 6e12)
    counter("flopwatch_flop_total", f'{gpu[4]},pipe="tensor"', 7e12)
    counter("flopwatch_flop_total", f'{other},pipe="tensor"', 5e12)
    family("flopwatch_energy_joules", "counter")
    for each, watts in ((gpu[0], 360.0), (gpu[1], 360.0), (other, 100.0)):
        counter("flopwatch_energy_joules_total", each, watts)
    family("flopwatch_gpu_seconds", "counter")
    counter("flopwatch_gpu_seconds_total", f'{gpu[0]},state="tensor"', 0.75)
    counter("flopwatch_gpu_seconds_total", f'{gpu[0]},state="idle"', 0.25)
    counter("flopwatch_gpu_seconds_total", f'{gpu[1]},state="idle"', 1.0)
    counter("flopwatch_gpu_seconds_total", f'{gpu[4]},state="tensor"', 1.0)
    counter("flopwatch_gpu_seconds_total", f'{other},state="tensor"', 0.9)
    counter("flopwatch_gpu_seconds_total", f'{other},state="idle"', 0.1)
    family("flopwatch_holder_flop", "counter")
    counter("flopwatch_holder_flop_total", red, 3e12)
    counter("flopwatch_holder_flop_total", blue, 1e12)
    counter("flopwatch_holder_flop_total", none, 0.0)
    counter("flopwatch_holder_flop_total", engine["first"], 2e12)
    counter("flopwatch_holder_flop_total", engine["second"], 1e12)
    counter("flopwatch_holder_flop_total", rolled, 6e12)
    for holder, flops, models in INSTANCES:
        counter("flopwatch_holder_flop_total", f"{gpu[4]},{holder}", flops)
        for number in models:
            counter("flopwatch_holder_flop_total", f"{mig[number]},{holder}", flops / len(models))
    family("flopwatch_holder_energy_joules", "counter")
    counter("flopwatch_holder_energy_joules_total", red, 240.0)
    counter("flopwatch_holder_energy_joules_total", blue, 120.0)
    counter("flopwatch_holder_energy_joules_total", none, 360.0)
    family("flopwatch_holder_gpu_seconds", "counter")
    counter("flopwatch_holder_gpu_seconds_total", f'{red},state="tensor"', 0.5)
    counter("flopwatch_holder_gpu_seconds_total", f'{red},state="idle"', 0.125)
    counter("flopwatch_holder_gpu_seconds_total", f'{blue},state="tensor"', 0.25)
    counter("flopwatch_holder_gpu_seconds_total", f'{blue},state="idle"', 0.125)
    counter("flopwatch_holder_gpu_seconds_total", f'{none},state="idle"', 1.0)
    for holder, _flops, models in INSTANCES:
        seconds = f'{holder},state="tensor"'
        counter("flopwatch_holder_gpu_seconds_total", f"{gpu[4]},{seconds}", len(models) / 7)
        for number in models:
            counter("flopwatch_holder_gpu_seconds_total", f"{mig[number]},{seconds}", 1.0)
    served = [
        (holder, number, model)
        for holder, _flops, models in INSTANCES
        for number, model in models.items()
    ]
    for name, labels, value in (
        ("flopwatch_price_per_gpu_hour", f'{gpu[0]},currency="USD",pod="before"', 2.5),
        ("flopwatch_price_per_gpu_hour", f'{gpu[0]},currency="USD",pod="after"', 2.5),
        ("flopwatch_price_per_gpu_hour", f'{gpu[1]},currency="USD"', 1.0),
        ("flopwatch_price_per_gpu_hour", f'{gpu[4]},currency="USD"', 7.0),
        *(
            ("flopwatch_price_per_gpu_hour", f'{mig[number]},currency="USD"', 1.0)
            for _, number, _ in served
        ),
        ("flopwatch_price_per_gpu_hour", f'{other},currency="USD"', 1.0),
        *(
            ("flopwatch_holder_basis_info", f'{mig[number]},{holder},basis="exclusive"', 1.0)
            for holder, number, _ in served
        ),
        ("flopwatch_workload_gpu_info", f'{gpu[0]},workload="chat"', 1.0),
        ("flopwatch_workload_gpu_info", f'{gpu[2]},workload="first"', 1.0),
        ("flopwatch_workload_gpu_info", f'{gpu[2]},workload="second"', 1.0),
        ("flopwatch_workload_gpu_info", f'{gpu[3]},workload="rolled"', 1.0),
        *(
            ("flopwatch_workload_gpu_info", f'{mig[number]},workload="on-{number}"', 1.0)
            for _, number, model in served
            if model
        ),
        *(
            (
                "flopwatch_model_info",
                f'{target},workload="on-{number}",model="{model}",engine="vllm"',
                1.0,
            )
            for _, number, model in served
            if model
        ),
        ("flopwatch_model_info", f'{target},workload="chat",model="llama",engine="vllm"', 1.0),
        ("flopwatch_model_info", f'{target},workload="first",model="one",engine="vllm"', 1.0),
        ("flopwatch_model_info", f'{target},workload="second",model="two",engine="vllm"', 1.0),
        ("flopwatch_model_info", f'{target},workload="rolled",model="old",engine="vllm"', 1.0),
        ("flopwatch_model_info", f'{target},workload="rolled",model="new",engine="vllm"', 1.0),
    ):
        if f"# TYPE {name} gauge" not in lines:
            family(name, "gauge")
        for minute in minutes:
            # The rollouts of a model and of the exporter are at noon of the first day, and GPU 1 cost
            # 3 an hour until then.
            ended = ('model="old"' in labels or 'pod="before"' in labels) and minute >= NOON
            begins = ('model="new"' in labels or 'pod="after"' in labels) and minute < NOON
            price = name == "flopwatch_price_per_gpu_hour"
            dearer = price and 'uuid="GPU-1"' in labels and minute <= NOON
            # On the second day GPU 2 cost half for six hours, and had no price from noon on.
            cheaper = price and 'uuid="GPU-2"' in labels and minute > DAY
            if not (ended or begins or (cheaper and minute >= DAY + NOON)):
                shown = 3.0 if dearer else 0.5 if cheaper and minute < DAY + NOON // 2 else value
                lines.append(f"{name}{{{labels}}} {shown} {START + minute * MINUTE}")
    return "\n".join([*lines, "# EOF", ""])


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "history.txt").write_text(history())
    subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history.txt", "data"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "prometheus.yml").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            "--storage.tsdb.retention.time=10y",
            f"--web.listen-address={address}",
            "--log.level=error",
        ]
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                    break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def bill(prometheus: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exporter", "bill", "--prometheus", prometheus]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def rows(prometheus: str, *arguments: str) -> dict[str, dict[str, float]]:
    period = ("--from", "2026-11-01", "--to", "2026-11-03", "--csv")
    result = bill(prometheus, *period, *arguments)
    assert result.returncode == 0, result.stderr
    reader = csv.DictReader(io.StringIO(result.stdout))
    found = {}
    for line in reader:
        name = line.pop(reader.fieldnames[0])
        found[name] = {key: float(value) for key, value in line.items()}
    return found


def test_two_days_by_namespace(prometheus: str) -> None:
    """172,800 s: red held 0.625 of a GPU at 2.50 an hour, blue 0.375, and a GPU at 1 was nobody's."""
    seconds = HOURS * 3600
    found = rows(prometheus)

    assert list(found) == [
        "(nobody)",
        "(not attributed)",
        "red",
        "violet",
        "blue",
        "(none)",
        "grey",
        "green",
    ]  # by time held
    assert found["red"] == pytest.approx(
        {
            "flop": 3e12 * seconds,
            "gpu_seconds": 0.625 * seconds,
            "idle_gpu_seconds": 0.125 * seconds,
            "energy_joules": 240 * seconds,
            "cost_usd": 0.625 * HOURS * 2.5,
        },
        rel=2e-3,
    )
    assert found["blue"]["cost_usd"] == pytest.approx(0.375 * HOURS * 2.5, rel=2e-3)
    assert found["(nobody)"]["cost_usd"] == pytest.approx(HOURS * 1.0, rel=2e-3)
    # The rows sum to the fleet: four GPUs for two days, and no instance counts again.
    assert sum(row["gpu_seconds"] for row in found.values()) == pytest.approx(4 * seconds, rel=2e-3)


def test_what_no_holder_accounts_for_has_a_row(prometheus: str) -> None:
    """GPU 2's jobs ended before a second scrape: nobody's series grew, but the device's did."""
    seconds = HOURS * 3600

    assert rows(prometheus)["(not attributed)"] == pytest.approx(
        {
            "flop": 5e12 * seconds,
            "gpu_seconds": seconds,
            "idle_gpu_seconds": 0.1 * seconds,
            "energy_joules": 100 * seconds,
            "cost_usd": HOURS * 1.0,
        },
        rel=0.01,
    )
    # Part of the holders cannot be compared with the devices.
    assert set(rows(prometheus, "--match", 'namespace="red"')) == {"red"}


def test_the_price_at_the_end_of_a_day_is_that_of_the_whole_day(prometheus: str) -> None:
    """GPU 1 cost 3 an hour until noon and 1 since: 24, not 48. A bill of the morning has its price.

    GPU 2 had no price at the end of the second day: the higher one of that day counts, 1 an hour.
    """
    morning = ("--to", "2026-11-01T12:00", "--match", 'uuid="GPU-1"')

    assert rows(prometheus, "--to", "2026-11-02")["(nobody)"]["cost_usd"] == pytest.approx(
        24.0, rel=2e-3
    )
    assert rows(prometheus, *morning)["(nobody)"]["cost_usd"] == pytest.approx(12 * 3.0, rel=2e-3)
    found = rows(prometheus, "--from", "2026-11-02")
    assert found["(not attributed)"]["cost_usd"] == pytest.approx(24.0, rel=0.01)


def test_by_model(prometheus: str) -> None:
    """What the GPUs of each model used, with the rest under its own name; nothing counts twice."""
    found = rows(prometheus, "--by", "model")

    assert set(found) == {
        "llama", "one", "two", "(several)", "new", "(nobody)", "(not attributed)",
        "large", "medium", "(none)",
    }  # fmt: skip
    assert found["llama"]["flop"] == pytest.approx(4e12 * HOURS * 3600, rel=2e-3)
    # Each engine's own, on the GPU that they share.
    assert found["one"]["flop"] == pytest.approx(2e12 * HOURS * 3600, rel=2e-3)
    assert found["two"]["flop"] == pytest.approx(1e12 * HOURS * 3600, rel=2e-3)
    # The day of the rollout, and the one after it. The pod on instances 5 and 6 has two models.
    assert found["new"]["flop"] == pytest.approx(6e12 * 24 * 3600, rel=2e-3)
    assert found["(several)"]["flop"] == pytest.approx((6e12 + 2 * 1.5e12) * 24 * 3600, rel=2e-3)


def test_the_models_of_pods_and_jobs_on_mig_instances(prometheus: str) -> None:
    """GPU 5 costs 7 an hour: who holds two of its seven slices pays 2, for the model of its instances."""
    found = rows(prometheus, "--by", "model", "--match", 'gpu="5"')

    assert {name: row["cost_usd"] for name, row in found.items()} == pytest.approx(
        {"large": 2.0 * HOURS, "medium": 2.0 * HOURS, "(several)": 2.0 * HOURS, "(none)": HOURS},
        rel=2e-3,
    )
    assert found["large"]["flop"] == pytest.approx(3e12 * HOURS * 3600, rel=2e-3)
    assert found["medium"]["gpu_seconds"] == pytest.approx(2 / 7 * HOURS * 3600, rel=2e-3)


def test_part_of_the_fleet(prometheus: str) -> None:
    """Matchers as in PromQL."""
    assert set(rows(prometheus, "--match", 'uuid="GPU-0"')) == {"red", "blue"}


def test_pods_of_an_exporter_without_honor_labels(prometheus: str) -> None:
    """The holder's labels, not those of the exporter's own pod."""
    found = rows(prometheus, "--by", "pod")

    assert {"a", "b"} <= set(found)
    assert "flopwatch-x" not in found


@pytest.mark.parametrize("matcher", ['exported_namespace!="blue"', '"namespace"!="blue"'])
def test_part_of_the_holders_is_not_compared_with_the_fleet(matcher: str) -> None:
    """However the label is written, what other holders did is not missing."""
    assert names_a_holder(matcher)
    assert not names_a_holder('uuid="GPU-0", my_namespace="x"')


def test_a_table_for_people(prometheus: str) -> None:
    """With the total, in readable units."""
    result = bill(prometheus, "--from", "2026-11-01", "--to", "2026-11-02", "--by", "pod")

    assert result.returncode == 0
    assert "total" in result.stdout
    assert "96.00" in result.stdout  # GPU hours of four GPUs


@pytest.mark.parametrize("by", ["namespace", "pod", "hpc_job", "workload", "model"])
def test_queries_fit_into_the_request_line_that_proxies_allow(by: str) -> None:
    """nginx refuses lines above 8 KiB by default (large_client_header_buffers)."""
    asked: list[str] = []

    class Api:
        def query(self, expression: str, _at: float) -> list[Series]:
            asked.append(expression)
            return []

    read_rows(Api(), by, "", START, 86400.0)  # type: ignore[arg-type]

    assert len(asked) >= 5
    assert max(len(urllib.parse.urlencode({"query": each})) for each in asked) < 4096


def test_a_password_in_the_address_is_not_printed(prometheus: str) -> None:
    """Errors end up in logs and tickets."""
    url = prometheus.replace("http://", "http://bob:hunter2@")
    result = bill(url, "--from", "2020-01-01", "--to", "2020-01-02")

    assert result.stderr.startswith(
        f"flopwatch: {prometheus}: no flopwatch_holder_gpu_seconds_total"
    )
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "yesterday"), "'yesterday' is not a time; write 2026-11-01"),
        (("--from", "now", "--to", "1h"), "must be after --from"),
        (("--match", "cluster=eu"), "--match 'cluster=eu': unexpected identifier \"eu\""),
        (("--match", '{uuid="GPU-0"}'), "write label matchers as in PromQL: 'cluster=\"eu\"'"),
        (("--from", "2020-01-01", "--to", "2020-01-02"), "no flopwatch_holder_gpu_seconds_total"),
    ],
)
def test_mistakes_are_one_line(prometheus: str, arguments: tuple[str, ...], message: str) -> None:
    """With the remedy."""
    result = bill(prometheus, *arguments)

    assert result.returncode != 0
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
