"""Recording rules and alerts, declared once and written as YAML, as Jsonnet and for the Helm chart."""
