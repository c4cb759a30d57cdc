// Written by `python -m mixin.build`. Do not edit.
{
  grafanaDashboards+:: {
    'exporter.json': import '../grafana/dashboards/exporter.json',
    'fleet.json': import '../grafana/dashboards/fleet.json',
    'gpu.json': import '../grafana/dashboards/gpu.json',
    'host.json': import '../grafana/dashboards/host.json',
    'models.json': import '../grafana/dashboards/models.json',
    'probes.json': import '../grafana/dashboards/probes.json',
    'roofline.json': import '../grafana/dashboards/roofline.json',
    'tenants.json': import '../grafana/dashboards/tenants.json',
  },
}
