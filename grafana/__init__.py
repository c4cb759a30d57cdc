"""Dashboards as code: `python -m grafana.build` writes the JSON under grafana/dashboards/."""

import warnings


# The classic dashboard model on purpose: every Grafana can load it; v2 needs the newest.
warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
