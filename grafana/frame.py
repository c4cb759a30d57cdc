"""What every dashboard shares: variables, links, selectors."""

from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import dashboard as d
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as md

from grafana.panels import DATASOURCE


TAG = "flopwatch"
DOCS = "https://github.com/flopwatch/flopwatch/blob/main/docs/reading-flops.md"

# Selectors, from wide to narrow. `cluster` may be a label that is not set, so its All matches the
# empty one.
CLUSTER = 'job=~"$job", cluster=~"$cluster"'
NODE = f'{CLUSTER}, instance=~"$instance"'
GPU = f'{NODE}, gpu=~"$gpu"'
WHOLE_GPU = f'{GPU}, mig=""'

# Sections of the documentation page on reading the panels.
WORDS = "peak-executed-useful"
NORMAL = "what-is-normal"
STATES = "where-the-peak-goes"
CHOICES = "from-pattern-to-choice"
FLEET = "fleet-which-gpu-and-why"
PROBES = "probes-is-it-still-the-gpu-it-was"
MODELS = "models-what-became-tokens"
TENANTS = "cost-and-tenants-who-pays-for-what"
TRUST = "exporter-can-you-trust-the-picture"

KEEP = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
# From a table's row, and from a line or bar.
GPU_LINK = (
    f"/d/flopwatch-gpu?{KEEP}"
    "&var-cluster=${__data.fields.Cluster}&var-instance=${__data.fields.Instance}&var-gpu=${__data.fields.GPU}"
)
GPU_OF_LINE = (
    f"/d/flopwatch-gpu?{KEEP}"
    "&var-cluster=${__field.labels.cluster}&var-instance=${__field.labels.instance}&var-gpu=${__field.labels.gpu}"
)
HOST_LINK = (
    f"/d/flopwatch-host?{KEEP}"
    "&var-cluster=${__data.fields.Cluster}&var-instance=${__data.fields.Instance}"
)
NODE_OF_BAR = (
    f"/d/flopwatch-host?{KEEP}"
    "&var-cluster=${__field.labels.cluster}&var-instance=${__field.labels.instance}"
)


def variable(
    name: str, label: str, query: str, *, all_value: str = ".+", single: bool = False
) -> d.QueryVariable:
    """A variable with several values and All (or with exactly one), refreshed with the time range."""
    made = (
        d.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .definition(query)
        .refresh(md.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(md.VariableSort.NATURAL_ASC)
    )
    if single:
        return made.multi(False).include_all(False)
    everything = md.VariableOption(selected=True, text=["All"], value=["$__all"])
    return made.multi(True).include_all(True).all_value(all_value).current(everything)


class _Linkable(Protocol):
    def links(self, links: list[Builder[md.DashboardLink]]) -> Self: ...


P = TypeVar("P", bound=_Linkable)


def explained(panel: P, section: str) -> P:
    """The panel with a link to the section that says how to read it and what to choose."""
    link = (
        d.DashboardLink("What this means, and what to do")
        .type(md.DashboardLinkType.LINK)
        .url(f"{DOCS}#{section}")
        .target_blank(True)
    )
    return panel.links([link])


def board(
    uid: str,
    title: str,
    description: str,
    *,
    narrow: tuple[str, ...] = (),
    one_gpu: bool = False,
    one_host: bool = False,
) -> d.Dashboard:
    """An empty dashboard with the project's variables; `narrow` names those beyond job, cluster, instance.

    `one_gpu`: instance and GPU take exactly one value, for All would draw thousands of lines; `one_host`:
    the instance does.
    """
    narrower = {
        "gpu": variable(
            "gpu", "GPU", f"label_values(flopwatch_gpu_up{{{NODE}}}, gpu)", single=one_gpu
        ),
        "name": variable("name", "GPU model", f"label_values(flopwatch_gpu_info{{{NODE}}}, name)"),
        "namespace": variable(
            "namespace",
            "Namespace",
            f"label_values(flopwatch_holder_gpu_seconds_total{{{CLUSTER}}}, namespace)",
            all_value=".*",
        ),
        "model": variable(
            "model", "Served model", f"label_values(flopwatch_model_info{{{NODE}}}, model)"
        ),
    }
    dashboard = (
        d.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(md.DashboardCursorSync.CROSSHAIR)
        .link(
            d.DashboardLink("flopwatch")
            .type(md.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .link(
            d.DashboardLink("How to read this")
            .type(md.DashboardLinkType.LINK)
            .url(DOCS)
            .icon("doc")
            .target_blank(True)
        )
        .with_variable(d.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("job", "Job", "label_values(flopwatch_build_info, job)"))
        .with_variable(
            variable(
                "cluster",
                "Cluster",
                'label_values(flopwatch_build_info{job=~"$job"}, cluster)',
                all_value=".*",
            )
        )
        .with_variable(
            variable(
                "instance",
                "Instance",
                f"label_values(flopwatch_build_info{{{CLUSTER}}}, instance)",
                single=one_gpu or one_host,
            )
        )
    )
    for name in narrow:
        dashboard = dashboard.with_variable(narrower[name])
    return dashboard
