"""The committed dashboards are fresh, speak the metric contract, and are free of what dashboard-linter complains of."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.build import LEAST_GRAFANA, main, stale
from tests.grafana.boards import (
    FOLDER,
    ROOT,
    Target,
    boards,
    exported,
    metrics_of,
    panels,
    recorded,
    substituted,
    targets,
)


BOARDS = boards()
LINT = yaml.safe_load((FOLDER / ".lint").read_text())["exclusions"]


def excused(rule: str, *, board: str = "", metric: str | None = None) -> bool:
    for entry in LINT.get(rule, {}).get("entries", []):
        if entry.get("dashboard") == board:
            return True
        if metric is not None and "metric" in entry and re.match(entry["metric"], metric):
            return True
    return False


def variable(board: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [v for v in board["templating"]["list"] if v["name"] == name]
    return dict(found)


def test_committed_json_is_fresh() -> None:
    """`python -m grafana.build` would change nothing."""
    assert stale() == []


def test_check_names_the_stale_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` fails and names a dashboard whose JSON was edited by hand."""
    for path in FOLDER.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "fleet.json").write_text("{}\n")
    monkeypatch.setattr("grafana.build.FOLDER", tmp_path)

    assert main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("stale: grafana/dashboards/fleet.json")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_every_query_parses(tmp_path: Path) -> None:
    """promtool accepts every expression of every panel as a rule."""
    rules = [
        {"record": f"query:{index}:", "expr": substituted(target.expr)}
        for index, target in enumerate(targets())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", targets(), ids=str)
def test_query_uses_known_metrics(target: Target) -> None:
    """Every metric of a query is in the catalogue, recorded by a rule, or Prometheus's own."""
    known = recorded() | set(exported())

    assert metrics_of(target.expr) - known == set()


def test_every_recorded_series_is_made_of_known_metrics() -> None:
    """Rules and alerts use nothing that the exporter does not export."""
    known = recorded() | set(exported())
    for path in sorted((FOLDER.parents[1] / "deploy" / "prometheus").glob("*/*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                assert metrics_of(rule["expr"]) - known == set(), rule


@pytest.mark.parametrize("target", targets(), ids=str)
def test_counters_are_seen_as_rates(target: Target) -> None:
    """target-counter-agg: counters are used with rate, irate or increase; raw totals restart."""
    if target.panel == "XIDs":
        pytest.skip("how often an XID came since the exporter's start is a count for people")
    kinds = exported()
    for name in metrics_of(target.expr):
        if name in kinds and kinds[name] == "counter":
            uses = len(re.findall(rf"(?<![:\w]){name}(?![\w:])", target.expr))
            rated = len(re.findall(rf"(?:rate|irate|increase)\({name}(?![\w:])", target.expr))
            assert uses == rated, target


@pytest.mark.parametrize("target", targets(), ids=str)
def test_rates_use_the_rate_interval(target: Target) -> None:
    """target-rate-interval: rates take $__rate_interval; increases name the span that their title promises."""
    assert re.findall(r"(?<!\w)(?:rate|irate)\([^][]*\[(?!\$__rate_interval\])", target.expr) == []


@pytest.mark.parametrize("target", targets(), ids=str)
def test_selectors_keep_the_selection(target: Target) -> None:
    """target-job and target-instance: the first selector of each metric has the dashboard's job and instance."""
    selectors = re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}", target.expr)
    if not selectors:
        assert excused("target-job-rule", metric="")
    for metric, matchers in selectors:
        assert 'job=~"$job"' in matchers, target
        if not excused("target-instance-rule", metric=metric) and (
            metric != "flopwatch_model_info"
        ):
            assert 'instance=~"$instance' in matchers, target


@pytest.mark.parametrize("name", BOARDS)
def test_data_source_is_a_variable(name: str) -> None:
    """template-datasource and panel-datasource: one variable `datasource`, and no panel names another."""
    board = BOARDS[name]
    (source,) = [v for v in board["templating"]["list"] if v["type"] == "datasource"]

    assert (source["name"], source["label"], source["query"]) == (
        "datasource",
        "Data source",
        "prometheus",
    )
    for panel in panels(board):
        assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("name", BOARDS)
def test_template_variables(name: str) -> None:
    """template-job, template-instance, template-on-time-change-reload: named, several values, refreshed."""
    board = BOARDS[name]
    for wanted, label in (("job", "Job"), ("instance", "Instance")):
        found = variable(board, wanted)
        assert found["label"] == label
        assert found["datasource"]["uid"] == "${datasource}"
        if not excused(f"template-{wanted}-rule", board=board["title"]):
            assert (found["multi"], found["allValue"]) == (True, ".+")
    for found in board["templating"]["list"]:
        if found["type"] == "query":
            assert found["refresh"] == 2


@pytest.mark.parametrize("name", BOARDS)
def test_panels_are_complete(name: str) -> None:
    """Every panel has a title, a query, a unit, and a description that says what to do about it."""
    for panel in panels(BOARDS[name]):
        assert panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_an_empty_panel_names_no_cause(name: str) -> None:
    """A panel without data says only that: Prometheus cannot know whether a GPU, an engine or a scrape is missing."""
    for panel in panels(BOARDS[name]):
        wanted = {"no data", "none reported"} | (
            {"-", "none firing"} if panel["type"] == "table" else set()
        )
        assert panel["fieldConfig"]["defaults"]["noValue"] in wanted, panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_hidden_columns_are_hidden_in_every_version(name: str) -> None:
    """A column only for its row's links is hidden by its names in Grafana 10 and in 12.2."""
    for panel in panels(BOARDS[name]):
        for column in panel["fieldConfig"].get("overrides", []):
            look = {each["id"]: each["value"] for each in column["properties"]}
            assert ("custom.hidden" in look) == ("custom.hideFrom" in look), panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_say_which_grafana_wrote_their_options(name: str) -> None:
    """Without a version Grafana migrates an XY chart's options from their form before 11.1, and it draws nothing."""
    for panel in panels(BOARDS[name]):
        assert panel["pluginVersion"] == LEAST_GRAFANA, panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_form_of_grafana_com(name: str, tmp_path: Path) -> None:
    """`--share` writes what grafana.com takes: an input for the data source, and all that the dashboard requires."""
    assert main(["--share", str(tmp_path)]) == 0
    board = json.loads((tmp_path / f"{name}.json").read_text())

    (asked,) = board["__inputs"]
    (source,) = [v for v in board["templating"]["list"] if v["type"] == "datasource"]
    required = {(each["type"], each["id"]): each["version"] for each in board["__requires"]}
    assert (asked["type"], asked["pluginId"]) == ("datasource", "prometheus")
    assert source["current"]["value"] == "${" + asked["name"] + "}"
    assert required.pop(("grafana", "grafana")) == LEAST_GRAFANA
    assert set(required) == {("datasource", "prometheus")} | {
        ("panel", panel["type"]) for panel in panels(board)
    }
    assert board["id"] is None
    plain = {"__elements", "__inputs", "__requires", "id", "templating"}
    assert {key: value for key, value in board.items() if key not in plain} == {
        key: value for key, value in BOARDS[name].items() if key != "templating"
    }


@pytest.mark.parametrize("target", targets(), ids=str)
def test_recorded_and_exported_series_are_matched_by_name(target: Target) -> None:
    """An exported series carries its target's labels (pod, node, rack), a recorded one does not: they meet by `on` alone."""
    operator = r"\s*(?:[-+*/<>]|==|<=|>=|and|or|unless)\s*(?:bool\s*)?\(*"
    recorded_series, exported_series = r"\w+:flopwatch_[\w:]+\{[^}]*\}", r"flopwatch_\w+\{"

    assert not re.search(recorded_series + operator + exported_series, target.expr)
    assert not re.search(
        r"\b" + exported_series + r"[^}]*\}" + operator + recorded_series, target.expr
    )


@pytest.mark.parametrize("name", BOARDS)
def test_dashboard_frame(name: str) -> None:
    """Read-only, with its own address, and links to its siblings that keep selection and time."""
    board = BOARDS[name]
    links = board["links"]

    assert board["editable"] is False
    assert board["uid"] == f"flopwatch-{name}"
    assert (links[0]["type"], links[0]["includeVars"], links[0]["keepTime"]) == (
        "dashboards",
        True,
        True,
    )
    assert links[1]["url"].endswith("docs/reading-flops.md")


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    """The grid is 24 columns wide, and no cell belongs to two panels."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", BOARDS)
def test_json_is_what_the_schema_reads(name: str) -> None:
    """Read by the model that is generated from Grafana's own schema and written again, nothing is lost or changed."""
    # Here, not above: the package `grafana` quiets the model's warning when it is imported.
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    read = Dashboard.from_json(BOARDS[name])

    assert comparable(json.loads(JSONEncoder(sort_keys=True).encode(read))) == comparable(
        BOARDS[name]
    )


def comparable(value: Any) -> Any:
    """Without the place of links, which the model always sets, and without annotations, whose data source it does not know."""
    if isinstance(value, dict):
        link = {"asDropdown", "placement"} <= value.keys()
        return {
            key: comparable(each)
            for key, each in value.items()
            if key != "annotations" and not (link and key == "placement")
        }
    return [comparable(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", BOARDS)
def test_clicks_keep_the_selection(name: str) -> None:
    """A click on a row, a line or a bar keeps data source, job and time, and names cluster and instance."""
    urls = re.findall(r'"url": "(/d/[^"]+)"', json.dumps(BOARDS[name]))

    for url in urls:
        for kept in ("${datasource:queryparam}", "${job:queryparam}", "${__url_time_range}"):
            assert kept in url
        assert "var-cluster=${__" in url
        assert "var-instance=${__" in url
        assert ("var-gpu=${__" in url) == url.startswith("/d/flopwatch-gpu?")


@pytest.mark.parametrize("name", BOARDS)
def test_links_of_a_table_read_its_columns(name: str) -> None:
    """A row's link takes cluster, instance and GPU from columns of the same table, hidden or not."""
    for panel in panels(BOARDS[name]):
        if panel["type"] != "table":
            continue
        renamed = {
            title
            for step in panel["transformations"]
            for title in step["options"].get("renameByName", {}).values()
        }
        links = [
            link["url"]
            for override in panel["fieldConfig"]["overrides"]
            for each in override["properties"]
            if each["id"] == "links"
            for link in each["value"]
        ]
        read = {field for url in links for field in re.findall(r"__data\.fields\.(\w+)", url)}
        assert read <= renamed, panel["title"]


def test_an_alert_leads_to_its_gpu_in_two_clicks() -> None:
    """From the table of firing alerts, or from a notification, one click opens the GPU or the host, and from the host one more.

    The notification's link is the annotation `dashboard`.
    """
    for name, target in (("fleet", "/d/flopwatch-gpu?"), ("host", "/d/flopwatch-gpu?")):
        found = [p for p in panels(BOARDS[name]) if p["title"] == "What is wrong now"]
        (panel,) = found
        assert target in str(panel["fieldConfig"]["overrides"])
    (side_by_side,) = [p for p in panels(BOARDS["host"]) if p["title"] == "GPUs side by side"]
    assert "/d/flopwatch-gpu?" in str(side_by_side["fieldConfig"]["overrides"])
    rules = [
        rule
        for path in sorted((ROOT / "deploy/prometheus/alerts").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    variables = {
        board["uid"]: {each["name"] for each in board["templating"]["list"]}
        for board in BOARDS.values()
    }
    assert len(rules) > 50
    for rule in rules:
        link = rule["annotations"]["dashboard"]
        (uid,) = re.findall(r"/d/(flopwatch-\w+)", link)
        chosen = set(re.findall(r"var-(\w+)=", link))
        # The GPU that the alert is about is chosen on the dashboard that opens.
        about_a_gpu = "$labels.gpu" in rule["annotations"]["summary"]
        assert chosen <= variables[uid], rule["alert"]
        assert not about_a_gpu or "gpu" not in variables[uid] or "gpu" in chosen, rule["alert"]


@pytest.mark.parametrize("name", BOARDS)
def test_worst_of_all_gpus_are_asked_for_at_few_moments(name: str) -> None:
    """Choosing lines among all GPUs reads each of them at every step: the steps are bounded."""
    for panel in panels(BOARDS[name]):
        for target in panel["targets"]:
            if target.get("range") and "instance, gpu) bottomk(" in target["expr"]:
                assert panel["maxDataPoints"] <= 200, panel["title"]


def test_scatter_series_name_their_frame() -> None:
    """Grafana's XY chart leaves out a series mapped by hand that lacks a frame, an x or a y; it says nothing then."""
    series = [
        one
        for panel in panels(BOARDS["roofline"])
        if panel["type"] == "xychart"
        for one in panel["options"]["series"]
    ]

    assert len(series) == 4
    for one in series:
        assert one["frame"]["matcher"] == {"id": "byIndex", "options": 0}
        assert one["x"]["matcher"]["options"] != one["y"]["matcher"]["options"]


def test_a_gpu_that_is_held_down_is_not_green() -> None:
    """On the roofline a GPU is in one of two series: green, or, with clocks held down by power or heat, orange."""
    (panel,) = [p for p in panels(BOARDS["roofline"]) if p["type"] == "xychart"]
    by_ref = {target["refId"]: target["expr"] for target in panel["targets"]}
    colors = {
        override["matcher"]["options"]: each["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "color"
    }
    held = r"gpu:flopwatch_clock_loss:ratio_rate5m\{[^}]*\} > 0\.05 or "

    assert re.search(r"unless on \(cluster, job, instance, gpu\) \(" + held, by_ref["D"])
    assert re.search(r"and on \(cluster, job, instance, gpu\) \(" + held, by_ref["G"])
    assert (colors["Delivered"], colors["Delivered, held down"]) == ("green", "orange")


def test_columns_of_the_roofline_are_of_the_same_gpus() -> None:
    """The few GPUs drawn of many are chosen once: both coordinates of a point and all columns of a row have the same choice."""
    choices = {
        tuple(re.findall(r"bottomk\(\d+, .*? and on .*?\}\)", target.expr))
        for target in targets()
        if target.board == "flopwatch / Roofline"
        and "by (cluster, instance, gpu, name)" in target.expr
    }

    assert len(choices) == 1
    assert all(len(choice) == 1 for choice in choices)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lead_to_sections_that_exist(name: str) -> None:
    """Every link of a panel into the page on reading FLOPS names one of its headings, and every dashboard has some."""
    page = (FOLDER.parents[1] / "docs" / "reading-flops.md").read_text()
    headings = {slug(line) for line in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}
    linked = {
        link["url"].split("#")[1]
        for panel in panels(BOARDS[name])
        for link in panel.get("links", [])
        if "reading-flops.md" in link["url"]
    }

    assert linked
    assert linked <= headings


def test_pages_name_only_series_that_are_recorded() -> None:
    """Every recorded series that a page of the documentation names is written by a rule."""
    known = recorded()
    for path in sorted((FOLDER.parents[1] / "docs").rglob("*.md")):
        named = re.findall(r"\b[a-z_]+:flopwatch_[a-z0-9_]+:[a-z0-9_]+", path.read_text())
        assert set(named) <= known, path


def test_runbooks_name_panels_that_exist() -> None:
    """Every panel that a runbook names exists on its dashboard."""
    titles = {panel["title"] for board in BOARDS.values() for panel in board["panels"]} | {
        panel["title"] for board in BOARDS.values() for panel in panels(board)
    }
    for path in sorted((FOLDER.parents[1] / "docs" / "runbooks").glob("*.md")):
        lines = [line for line in path.read_text().splitlines() if "dashboard, " in line]
        for named in re.findall(r"`([A-Z][^`{]+)`", "\n".join(lines)):
            assert named in titles, path


@pytest.mark.parametrize("name", BOARDS)
def test_links_stay_visible(name: str) -> None:
    """No link is put into a menu of the controls, where newer Grafana hides it."""
    for link in BOARDS[name]["links"]:
        assert "placement" not in link


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_ids_of_their_own(name: str) -> None:
    """A panel's id comes from its title: links still work after a panel is inserted before it."""
    everything = {id(panel): panel for panel in [*BOARDS[name]["panels"], *panels(BOARDS[name])]}
    ids = [panel["id"] for panel in everything.values()]

    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", BOARDS)
def test_rates_have_data_at_any_usual_scrape_interval(name: str) -> None:
    """With a step of 30 s $__rate_interval is two minutes: two samples of a target that is scraped every 60 s."""
    for panel in panels(BOARDS[name]):
        for target in panel["targets"]:
            if "$__rate_interval" in target["expr"]:
                assert target["interval"] == "30s"


@pytest.mark.parametrize("target", targets(), ids=str)
def test_every_variable_filters_every_panel(target: Target) -> None:
    """Each query takes cluster and instance, so that one chosen host shows that host alone."""
    own = re.sub(r"\bname_(?:unit|kernel):[\w:]+\{[^}]*\}", "", target.expr)
    if "{" not in own:
        pytest.skip("a constant to compare with, or what a GPU's peers have in common")
    for name in ("cluster", "instance"):
        assert f"${name}" in own, target


def test_the_table_of_alerts_shows_every_alert() -> None:
    """The dashboards' pattern of alert names matches each alert that is shipped."""
    from grafana.firing import OURS

    pattern = OURS.split('"')[1]
    names = {
        rule["alert"]
        for path in (FOLDER.parents[1] / "deploy" / "prometheus" / "alerts").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }

    assert {name for name in names if not re.fullmatch(pattern, name)} == set()
