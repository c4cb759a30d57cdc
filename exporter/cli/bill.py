"""`flopwatch bill`: who used the GPUs over a period, and what it cost, from Prometheus."""

import argparse
import contextlib
import csv
import json
import math
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from exporter.errors import FlopwatchError, ScrapeError
from exporter.http_client import fetch, without_credentials


# A query over more would load weeks of samples at once.
_STEP_SECONDS = 86400.0
_DEVICE = ("cluster", "job", "instance", "gpu", "uuid")
_ENGINE = ("cluster", "job", "instance", "workload")
# A holder on a GPU, with or without honor_labels.
_HOLDER = (
    *("cluster", "job", "instance", "gpu", "holder", "hpc_job", "workload"),
    *("namespace", "pod", "container", "exported_namespace", "exported_pod", "exported_container"),
)
# FLOP, joules and seconds by state: the counter and its matcher.
_Counters = tuple[tuple[str, str], tuple[str, str], tuple[str, str]]
_HOLDER_COUNTERS: _Counters = (
    ("flopwatch_holder_flop_total", ""),
    ("flopwatch_holder_energy_joules_total", ""),
    ("flopwatch_holder_gpu_seconds_total", ""),
)
_DEVICE_COUNTERS: _Counters = (
    ("flopwatch_flop_total", 'pipe="tensor"'),
    ("flopwatch_energy_joules_total", ""),
    ("flopwatch_gpu_seconds_total", ""),
)
# Of an engine or a device whose model changed within a day, or of a device or holder of several.
_SEVERAL = "(several)"
# Shown for a holder without such a label. Capacity without a holder has its own row.
_NOBODY = "(nobody)"
_NO_LABEL = "(none)"
# What the devices counted and no holder's series shows: holders that left before a second scrape.
_REST = "(not attributed)"
# Below this part of the fleet, it is how Prometheus extrapolates.
_REST_LEAST = 0.005
_HOLDER_MATCHER = re.compile(
    r"(?:^|[,{\s])\"?(?:exported_)?(?:holder|namespace|pod|container|hpc_job|workload|state)\"?\s*(?:=|!)"
)
# By model, each holder of each GPU is a series of about 300 bytes.
_ANSWER_BYTES = 64 * 1024 * 1024
# Prometheus explains a query that it refuses in a line or two.
_REFUSAL_BYTES = 4096
_AMOUNTS = ("flop", "held_seconds", "idle_seconds", "joules")
_GROUPS = ("namespace", "pod", "hpc_job", "workload", "model")


Labels = Mapping[str, str]


@dataclass(slots=True)
class Row:
    """One line of the bill: FLOP, GPU seconds held and idle, joules, cost by currency."""

    flop: float = 0.0
    held_seconds: float = 0.0
    idle_seconds: float = 0.0
    joules: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)

    def less(self, other: "Row") -> "Row":
        """What this row has more than another; no amount is below zero."""
        rest = {name: max(0.0, getattr(self, name) - getattr(other, name)) for name in _AMOUNTS}
        costs = {
            name: max(0.0, self.costs[name] - other.costs.get(name, 0.0)) for name in self.costs
        }
        return Row(**rest, costs=costs)

    def add(self, other: "Row") -> None:
        """Add the amounts of another row."""
        for name in _AMOUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for currency, cost in other.costs.items():
            self.costs[currency] = self.costs.get(currency, 0.0) + cost


@dataclass(frozen=True, slots=True)
class Series:
    """One element of an instant vector."""

    labels: Labels
    value: float


class PrometheusApi:
    """Queries a Prometheus-compatible API. `url` may carry a user name and a password.

    `shown` is the address for messages.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self.shown = without_credentials(self._url)
        self._timeout_seconds = timeout_seconds

    def query(self, expression: str, at_unix_seconds: float) -> list[Series]:
        """The instant vector of an expression. Raises FlopwatchError with Prometheus' message."""
        arguments = urllib.parse.urlencode({"query": expression, "time": f"{at_unix_seconds:.3f}"})
        try:
            text = fetch(
                f"{self._url}/api/v1/query?{arguments}",
                timeout_seconds=self._timeout_seconds,
                limit_bytes=_ANSWER_BYTES,
                refusal_bytes=_REFUSAL_BYTES,
            )
            answer = json.loads(text)
            found = answer["data"]["result"]
            return [
                Series(dict(each["metric"]), float(each["value"][1]))
                for each in found
                if answer["data"]["resultType"] == "vector"
            ]
        except ScrapeError as error:
            message = _refusal(error) or f"{error}; is this the address of a Prometheus server?"
            raise FlopwatchError(f"{self.shown}: {message}") from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise FlopwatchError(
                f"{self.shown}: the response is not from a Prometheus API"
            ) from None


def _refusal(error: ScrapeError) -> str | None:
    """Prometheus' own reason for refusing a query."""
    try:
        answer = json.loads(error.answer)
        return " ".join(str(answer["error"]).split()) if answer["status"] == "error" else None
    except (ValueError, KeyError, TypeError):
        return None


def add_bill(subparsers: Any) -> None:
    """Register `flopwatch bill`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bill",
        help="print who used the GPUs over a period, and what it cost",
        description=(
            "Print FLOP, GPU hours, energy and cost of a period by tenant, from the counters that "
            "Prometheus has scraped. The rows sum to the total of the fleet."
        ),
    )
    parser.add_argument(
        "--prometheus", required=True, metavar="URL", help="address of the Prometheus"
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="24h",
        metavar="TIME",
        help="start: 2026-11-01, 2026-11-01T08:00 (UTC), or how long ago: 24h, 7d (default 24h)",
    )
    parser.add_argument(
        "--to", dest="end", default="now", metavar="TIME", help="end, likewise (default now)"
    )
    parser.add_argument(
        "--by",
        choices=_GROUPS,
        default="namespace",
        help="one row for each of these (default namespace)",
    )
    parser.add_argument(
        "--match",
        default="",
        metavar="MATCHERS",
        help="label matchers for part of the fleet, as in PromQL: 'cluster=\"eu\"'",
    )
    parser.add_argument("--csv", action="store_true", help="print CSV, in base units")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the bill."""
    now = time.time()
    start, end = parse_time(parsed.start, now), parse_time(parsed.end, now)
    if end <= start:
        raise FlopwatchError(f"--to ({parsed.end}) must be after --from ({parsed.start})")
    api = PrometheusApi(parsed.prometheus)
    steps = list(_steps(start, end))
    _check_matchers(api, parsed.match, end)
    rows: dict[str, Row] = {}
    fleet = Row()
    for step_end, seconds in _with_progress(steps):
        # The fleet first: a scrape that arrives in between must not look like more holders.
        if not names_a_holder(parsed.match):
            fleet.add(read_fleet(api, parsed.match, step_end, seconds))
        for name, row in read_rows(api, parsed.by, parsed.match, step_end, seconds).items():
            rows.setdefault(name, Row()).add(row)
    rest = fleet.less(_total(rows))
    compared = ("flop", "held_seconds", "joules")
    if any(getattr(rest, name) > _REST_LEAST * getattr(fleet, name) for name in compared):
        rows[_REST] = rest
    if not rows:
        raise FlopwatchError(
            f"{api.shown}: no flopwatch_holder_gpu_seconds_total between "
            f"{_shown(start)} and {_shown(end)}; is this exporter scraped?"
        )
    if parsed.csv:
        _print_csv(rows, parsed.by)
    else:
        _print_table(rows, parsed.by, f"{_shown(start)} to {_shown(end)}")
    return 0


def names_a_holder(match: str) -> bool:
    """Whether label matchers select holders: what the devices counted cannot be selected by them."""
    return _HOLDER_MATCHER.search(match) is not None


def read_rows(
    api: PrometheusApi, by: str, match: str, end: float, seconds: float
) -> dict[str, Row]:
    """The rows of one step: `seconds` that end at `end` (Unix time)."""
    window = f"[{seconds:.0f}s]"
    model_of = read_models(api, end, window) if by == "model" else None

    def grouped(expression: str, *more: str) -> str:
        # A model is no label of the counters: it is found for each holder of each device.
        labels = ("uuid", *_HOLDER) if model_of else ("holder", by)
        if by in {"namespace", "pod"}:
            # Without honor_labels, Prometheus puts the exporter's own in their place, also where
            # the holder is not a pod.
            others = "job|workload|process|none"
            expression = f'label_replace({expression}, "{by}", "", "holder", "{others}")'
            expression = f'label_replace({expression}, "{by}", "$1", "exported_{by}", "(.+)")'
        return f"sum by ({', '.join((*labels, *more))}) ({expression})"

    def name(labels: Labels) -> str:
        if labels.get("holder") == "none":
            return _NOBODY
        return (model_of(labels) if model_of else labels.get(by)) or _NO_LABEL

    return _read(api, _HOLDER_COUNTERS, match, end, window=window, grouped=grouped, name=name)


def read_fleet(api: PrometheusApi, match: str, end: float, seconds: float) -> Row:
    """What the devices themselves counted in one step, whoever held them."""

    def summed(expression: str, *more: str) -> str:
        return f"sum by ({', '.join(more)}) ({expression})"

    window = f"[{seconds:.0f}s]"
    rows = _read(
        api, _DEVICE_COUNTERS, match, end, window=window, grouped=summed, name=lambda _labels: ""
    )
    return _total(rows)


def read_models(api: PrometheusApi, end: float, window: str) -> Callable[[Labels], str | None]:
    """Finds the model that the holder of a device is charged for, by the labels of its series.

    An engine is charged for its model, others for that of their MIG instances, else for that of the
    device; `_SEVERAL` where there is more than one.
    """
    engines, devices, holders = _Models(_ENGINE), _Models(_DEVICE), _Models(_HOLDER)

    def series_of(name: str, *labels: str) -> Iterator[Labels]:
        query = f"group by ({', '.join(labels)}) (last_over_time({name}{window}))"
        return (series.labels for series in api.query(query, end))

    for labels in series_of("flopwatch_model_info", *_ENGINE, "model"):
        engines.add(labels, labels.get("model"))
    for labels in series_of("flopwatch_workload_gpu_info", *_DEVICE, "workload"):
        if model := engines.one(labels):
            devices.add(labels, model)
    # Engines serve on MIG instances, and the work of their holders is counted on the GPU.
    for labels in series_of('flopwatch_holder_basis_info{mig!=""}', "uuid", *_HOLDER):
        holders.add(labels, devices.one(labels))

    def model_of(labels: Labels) -> str | None:
        known = next((each for each in (engines, holders) if each.has(labels)), devices)
        return known.one(labels)

    return model_of


class _Models:
    """The models of each engine, device or holder, which some labels identify."""

    def __init__(self, key: Sequence[str]) -> None:
        self._key = key
        self._found: dict[tuple[str, ...], set[str | None]] = {}

    def _of(self, labels: Labels) -> tuple[str, ...]:
        return tuple(labels.get(name, "") for name in self._key)

    def add(self, labels: Labels, model: str | None) -> None:
        self._found.setdefault(self._of(labels), set()).add(model)

    def has(self, labels: Labels) -> bool:
        return self._of(labels) in self._found

    def one(self, labels: Labels) -> str | None:
        """The model; `_SEVERAL` if there are several, None if there is none."""
        found = self._found.get(self._of(labels), {None})
        return next(iter(found)) if len(found) == 1 else _SEVERAL


def _read(
    api: PrometheusApi,
    counters: _Counters,
    match: str,
    end: float,
    *,
    window: str,
    grouped: Callable[..., str],
    name: Callable[[Labels], str],
) -> dict[str, Row]:
    """Rows, by `name` of their labels, from counters of FLOP, joules and seconds by state."""
    rows: dict[str, Row] = {}

    def take(expression: str, amount: Callable[[Series], Row]) -> None:
        for series in api.query(expression, end):
            if math.isfinite(series.value):
                rows.setdefault(name(series.labels), Row()).add(amount(series))

    def increase(counter: tuple[str, str], matcher: str = "") -> str:
        family, own = counter
        # A MIG instance's work is part of its GPU's.
        chosen = ",".join(filter(None, (own, 'mig=""', match, matcher)))
        return f"increase({family}{{{chosen}}}{window})"

    flop, joules, seconds = counters
    take(grouped(increase(flop)), lambda series: Row(flop=series.value))
    take(grouped(increase(joules)), lambda series: Row(joules=series.value))
    take(grouped(increase(seconds)), lambda series: Row(held_seconds=series.value))
    idle = increase(seconds, 'state="idle"')
    take(grouped(idle), lambda series: Row(idle_seconds=series.value))
    # The price at the end; of a device that is gone by then, the highest that it had.
    price, device = "flopwatch_price_per_gpu_hour", ", ".join(_DEVICE)
    by_device = f"max by ({device}, currency)"
    prices = (
        f"{by_device} ({price}) or on ({device}) topk by ({device}) "
        f"(1, {by_device} (last_over_time({price}{window})))"
    )
    priced = f"{increase(seconds)} * on ({device}) group_left (currency) (({prices}) / 3600)"
    take(
        grouped(priced, "currency"),
        lambda series: Row(costs={series.labels.get("currency", ""): series.value}),
    )
    return rows


def _check_matchers(api: PrometheusApi, match: str, end: float) -> None:
    """Raises FlopwatchError if they are no label matchers."""
    if not match:
        return
    try:
        api.query(f"count(flopwatch_gpu_up{{{match}}})", end)
    except FlopwatchError as error:
        if "parse error" not in str(error):
            raise
        raise FlopwatchError(
            f"--match {match!r}: {str(error).rpartition('parse error: ')[2]}; "
            "write label matchers as in PromQL: 'cluster=\"eu\"'"
        ) from None


def parse_time(text: str, now: float) -> float:
    """Unix time of `now`, `7d` (ago), or a date with optional UTC time. Raises FlopwatchError."""
    from flopwatch.option_parsers import duration

    if text == "now":
        return now
    with contextlib.suppress(ValueError):
        return now - float(duration()(text.removeprefix("-")))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise FlopwatchError(
            f"{text!r} is not a time; write 2026-11-01, 2026-11-01T08:00, 24h or now"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _steps(start: float, end: float) -> Iterator[tuple[float, float]]:
    """The end and length of each step of the period."""
    while start < end:
        step_end = min(start + _STEP_SECONDS, end)
        yield step_end, step_end - start
        start = step_end


def _with_progress(steps: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """The steps, with a progress bar on standard error if it is a terminal and there are several."""
    if len(steps) < 2 or not sys.stderr.isatty():
        return steps
    from rich.console import Console
    from rich.progress import track

    return track(steps, "Reading days", console=Console(stderr=True), transient=True)


def _sorted(rows: Mapping[str, Row]) -> list[tuple[str, Row]]:
    return sorted(rows.items(), key=lambda item: (-item[1].held_seconds, item[0]))


def _total(rows: Mapping[str, Row]) -> Row:
    total = Row()
    for row in rows.values():
        total.add(row)
    return total


def _print_csv(rows: Mapping[str, Row], by: str) -> None:
    currencies = sorted(_total(rows).costs)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        [by, "flop", "gpu_seconds", "idle_gpu_seconds", "energy_joules"]
        + [f"cost_{currency.lower()}" for currency in currencies]
    )
    for name, row in _sorted(rows):
        amounts = [row.flop, row.held_seconds, row.idle_seconds, row.joules]
        amounts += [row.costs.get(currency, 0.0) for currency in currencies]
        writer.writerow([name, *(f"{amount:.6g}" for amount in amounts)])


def _print_table(rows: Mapping[str, Row], by: str, period: str) -> None:
    from rich.console import Console
    from rich.table import Table

    total = _total(rows)
    table = Table(title=period, title_justify="left")
    table.add_column(by, overflow="fold")
    headings = ["PFLOP", "GPU hours", "idle GPU hours", "idle", "kWh", *sorted(total.costs)]
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in _sorted(rows):
        table.add_row(name, *_cells(row, sorted(total.costs)))
    table.add_section()
    table.add_row("total", *_cells(total, sorted(total.costs)))
    Console().print(table)
    if not total.costs:
        print("No prices: set `prices` in the configuration of the exporters.", file=sys.stderr)


def _cells(row: Row, currencies: Sequence[str]) -> list[str]:
    idle = row.idle_seconds / row.held_seconds if row.held_seconds else 0.0
    return [
        f"{row.flop / 1e15:,.1f}",
        f"{row.held_seconds / 3600:,.2f}",
        f"{row.idle_seconds / 3600:,.2f}",
        f"{idle:.0%}",
        f"{row.joules / 3.6e6:,.2f}",
        *(f"{row.costs.get(currency, 0.0):,.2f}" for currency in currencies),
    ]


def _shown(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
