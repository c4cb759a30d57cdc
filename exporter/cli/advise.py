"""`flopwatch advise`: which changes would help each workload, and by how much."""

import argparse
import math
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from exporter.cli.bill import PrometheusApi, Series
from exporter.cli.top import DEFAULT_URL, access_of, add_access_flags, fetch_document
from exporter.errors import FlopwatchError
from exporter.status.document import span


if TYPE_CHECKING:
    from exporter.advice.advise import AdviceDocument, LeverAdvice, TrackRecord

_WIDTH = 100
_WORKLOAD = "cluster, job, instance, workload, model"


def add_advise(subparsers: Any) -> None:
    """Register `flopwatch advise`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "advise",
        help="print which change would help each workload, and by how much",
        description=(
            "Print the levers of each served model, best first: predicted throughput and cost per "
            "token relative to today's, the evidence, the track record, and what to change."
        ),
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--url", default=DEFAULT_URL, metavar="URL", help=f"a daemon (default {DEFAULT_URL})"
    )
    source.add_argument(
        "--prometheus",
        metavar="URL",
        help="a Prometheus server: print sums over its fleet, without evidence",
    )
    add_access_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the advice."""
    if parsed.prometheus:
        rows = read_fleet(PrometheusApi(parsed.prometheus), time.time())
        text = _json(rows) if parsed.json else fleet_table(rows)
    else:
        from exporter.advice.advise import ADVICE_PATH, API_VERSION, AdviceDocument

        access = access_of(parsed)
        document = fetch_document(access, ADVICE_PATH, AdviceDocument, API_VERSION, "advice")
        text = _json(document) if parsed.json else text_of(document)
    sys.stdout.write(text)
    return 0


def _json(found: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(found)).decode() + "\n"


def text_of(document: "AdviceDocument") -> str:
    """The advice as text for a terminal."""
    if not document.workloads:
        return (
            "No advice: no served model has been observed for two minutes. Levers need an engine's "
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


def read_fleet(api: PrometheusApi, at_unix_seconds: float) -> list[FleetRow]:
    """The levers of all workloads in a Prometheus, the largest savings first."""
    rows: dict[str, FleetRow] = {}

    def found(query: str) -> Iterator[tuple[FleetRow, Series]]:
        for series in api.query(query, at_unix_seconds):
            lever = series.labels.get("lever", "")
            yield rows.setdefault(lever, FleetRow(lever)), series

    useful = f"sum by ({_WORKLOAD}) (rate(flopwatch_model_flop_total[10m]))"
    for bound in ("low", "high"):
        gain = f'flopwatch_lever_gain_ratio{{bound="{bound}"}} - 1'
        query = f"sum by (lever) (({gain}) * on ({_WORKLOAD}) group_left () {useful})"
        for row, series in found(query):
            if math.isfinite(series.value):
                setattr(row, f"flops_{bound}", series.value)
    for row, series in found('count by (lever) (flopwatch_lever_gain_ratio{bound="low"})'):
        row.workloads = int(series.value)
    for row, series in found(_saved_query()):
        row.saved_per_day[series.labels.get("currency", "")] = series.value
    for row, series in found("sum by (lever, outcome) (flopwatch_lever_backtests_total)"):
        row.compared += series.value
        row.held += series.value * (series.labels.get("outcome") == "inside")
    if not rows:
        raise FlopwatchError(
            f"{api.shown}: no flopwatch_lever_gain_ratio; is this exporter scraped?"
        )
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
