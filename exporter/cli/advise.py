"""`flopwatch advise`: which changes would help each workload, and by how much."""

import argparse
import math
import sys
import textwrap
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.errors import FlopwatchError
from exporter.status.document import span


if TYPE_CHECKING:
    from exporter.advice.advise import AdviceDocument, LeverAdvice, TrackRecord
    from exporter.cli.remote import PrometheusApi

_DEFAULT_URL = "http://127.0.0.1:9907"
_TIMEOUT_SECONDS = 5.0
_WIDTH = 100
_WORKLOAD = "cluster, job, instance, workload, model"


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "advise",
        help="print which change would help each workload, and by how much",
        description=(
            "Print the levers of each served model, best first: predicted throughput and cost per "
            "token over today's, the evidence, how earlier predictions held, and what to change."
        ),
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--url", metavar="URL", help=f"a daemon, with user:password@ if needed ({_DEFAULT_URL})"
    )
    source.add_argument(
        "--prometheus",
        metavar="URL",
        help="a Prometheus server: sums over the whole fleet, without evidence",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the advice."""
    if parsed.prometheus:
        from exporter.cli.remote import PrometheusApi

        rows = read_fleet(PrometheusApi(parsed.prometheus), time.time())
        sys.stdout.write(_fleet_json(rows) if parsed.json else fleet_table(rows))
        return 0
    document = fetch_document(parsed.url or _DEFAULT_URL)
    if parsed.json:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"
    else:
        text = text_of(document)
    sys.stdout.write(text)
    return 0


def fetch_document(url: str) -> "AdviceDocument":
    """The advice of a daemon. Raises FlopwatchError with a one-line message for the user."""
    import msgspec

    from exporter.advice.advise import ADVICE_PATH, API_VERSION, AdviceDocument
    from exporter.http_client import ScrapeError, fetch, without_credentials

    address = url if "://" in url else f"http://{url}"
    shown = without_credentials(address)
    try:
        text = fetch(address.rstrip("/") + ADVICE_PATH, timeout_seconds=_TIMEOUT_SECONDS)
        document = msgspec.json.decode(text, type=AdviceDocument)
    except ScrapeError as error:
        raise FlopwatchError(f"{shown}: {error}; is it the address of a flopwatch?") from None
    except msgspec.DecodeError:
        raise FlopwatchError(f"{shown}: the answer is not flopwatch advice") from None
    if document.api_version != API_VERSION:
        raise FlopwatchError(
            f"{shown}: serves advice version {document.api_version}, but this program reads version {API_VERSION}"
        )
    return document


def text_of(document: "AdviceDocument") -> str:
    """The advice as text for a terminal."""
    if not document.workloads:
        return (
            "No advice: no served model has been watched for two minutes. Levers need an engine's "
            "metrics (`workloads` in the configuration).\n"
        )
    lines: list[str] = []
    for workload in document.workloads:
        lines += [
            f"{workload.workload}  {workload.model}  (last {span(workload.window_seconds)})",
            f"  {'lever':22} {'throughput':>16} {'cost per token':>16}  record",
        ]
        for lever in workload.levers:
            lines += _lever_lines(lever)
        if not workload.levers:
            lines.append("  no lever can be predicted")
        lines.append("  Not predicted:")
        lines += [
            line
            for absent in workload.absent
            for line in _wrapped(f"{absent.lever}: {absent.reason}", "    ")
        ]
        lines.append("")
    return "\n".join(lines)


def _lever_lines(lever: "LeverAdvice") -> list[str]:
    throughput = _percent(lever.throughput.low, lever.throughput.high)
    cost = _percent(lever.cost_per_token.low, lever.cost_per_token.high)
    lines = [f"  {lever.lever:22} {throughput:>16} {cost:>16}  {record_text(lever.record)}"]
    lines += _wrapped(lever.evidence, "    ")
    lines += _wrapped(f"-> {lever.action}", "    ")
    if lever.saved_per_day is not None and lever.saved_per_day > 0:
        lines.append(f"    worth {lever.saved_per_day:,.0f} {lever.currency} a day")
    return lines


def record_text(record: "TrackRecord") -> str:
    """The track record as text."""
    if record.compared_here:
        return f"{record.held_here} of {record.compared_here} predictions held here"
    if record.compared:
        return f"none here; {record.held} of {record.compared} held on this host"
    return "no track record yet"


def _percent(low: float, high: float) -> str:
    first, second = f"{100 * (low - 1):+.0f}", f"{100 * (high - 1):+.0f}"
    if first == second:
        return "no change" if first in {"+0", "-0"} else f"{first} %"
    return f"{first} to {second} %"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


@dataclass(slots=True)
class FleetRow:
    """One lever across the fleet. FLOP/s and money are sums of range ends over all workloads."""

    lever: str
    workloads: int = 0
    flops_low: float = 0.0
    flops_high: float = 0.0
    saved_per_day: dict[str, float] = field(default_factory=dict)
    held: float = 0.0
    compared: float = 0.0


def read_fleet(api: "PrometheusApi", at_unix_seconds: float) -> list[FleetRow]:
    """The levers of all workloads in a Prometheus, the largest savings first."""
    rows: dict[str, FleetRow] = defaultdict(lambda: FleetRow(""))

    def row(lever: str) -> FleetRow:
        found = rows[lever]
        found.lever = lever
        return found

    useful = f"sum by ({_WORKLOAD}) (rate(flopwatch_model_flop_total[10m]))"
    for bound in ("low", "high"):
        gain = f'flopwatch_lever_gain_ratio{{bound="{bound}"}} - 1'
        query = f"sum by (lever) (({gain}) * on ({_WORKLOAD}) group_left () {useful})"
        for series in api.query(query, at_unix_seconds):
            if math.isfinite(series.value):
                setattr(row(series.labels.get("lever", "")), f"flops_{bound}", series.value)
    counted = 'count by (lever) (flopwatch_lever_gain_ratio{bound="low"})'
    for series in api.query(counted, at_unix_seconds):
        row(series.labels.get("lever", "")).workloads = int(series.value)
    for series in api.query(_saved_query(), at_unix_seconds):
        currency = series.labels.get("currency", "")
        row(series.labels.get("lever", "")).saved_per_day[currency] = series.value
    for series in api.query(
        "sum by (lever, outcome) (flopwatch_lever_backtests_total)", at_unix_seconds
    ):
        found = row(series.labels.get("lever", ""))
        found.compared += series.value
        found.held += series.value * (series.labels.get("outcome") == "inside")
    if not rows:
        raise FlopwatchError("it has no flopwatch_lever_gain_ratio; does it scrape flopwatch?")
    return sorted(
        rows.values(),
        key=lambda r: (-sum(r.saved_per_day.values()), -(r.flops_low + r.flops_high), r.lever),
    )


def _saved_query() -> str:
    """Money per day at mid-range: price of the workload's GPUs x 24 h x saved share."""
    saved = f"1 - avg by ({_WORKLOAD}, lever) (flopwatch_lever_cost_ratio)"
    price = (
        "sum by (cluster, job, instance, workload, currency) (flopwatch_workload_gpu_info "
        "* on (cluster, job, instance, gpu, uuid) group_left (currency) "
        "flopwatch_price_per_gpu_hour)"
    )
    return (
        f"sum by (lever, currency) (24 * ({saved}) "
        f"* on (cluster, job, instance, workload) group_left (currency) {price})"
    )


def fleet_table(rows: list[FleetRow]) -> str:
    """The fleet's levers as text for a terminal."""
    most = max(
        (abs(value) for each in rows for value in (each.flops_low, each.flops_high)), default=0
    )
    unit, title = (1e15, "useful PFLOPS") if most >= 1e15 else (1e12, "useful TFLOPS")
    lines = [f"{'lever':22} {'workloads':>9} {title:>18} {'worth a day':>18}  record"]
    for each in rows:
        flops = f"{each.flops_low / unit:+.2f} to {each.flops_high / unit:+.2f}"
        money = ", ".join(f"{v:,.0f} {k}" for k, v in sorted(each.saved_per_day.items())) or "-"
        record = (
            f"{each.held:.0f} of {each.compared:.0f} held"
            if each.compared
            else "no track record yet"
        )
        lines.append(f"{each.lever:22} {each.workloads:9} {flops:>18} {money:>18}  {record}")
    return "\n".join(lines) + "\n"


def _fleet_json(rows: list[FleetRow]) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n"
