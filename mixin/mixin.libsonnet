// The flopwatch mixin: recording rules, alerts and dashboards. Set what differs in `_config`, e.g.
//   (import 'flopwatch/mixin/mixin.libsonnet') { _config+:: { selector: 'job="gpu-exporter"', heatLossWarning: 0.1 } }
(import 'config.libsonnet') +
(import 'rules.libsonnet') +
(import 'alerts.libsonnet') +
(import 'dashboards.libsonnet')
