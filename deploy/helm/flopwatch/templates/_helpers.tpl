{{- define "flopwatch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "flopwatch.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "flopwatch.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "flopwatch.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "flopwatch.selectorLabels" -}}
app.kubernetes.io/name: {{ include "flopwatch.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* A map with another's keys on top of it; a key that is given replaces the chart's as a whole. */}}
{{- define "flopwatch.over" -}}
{{- $below := deepCopy (index . 0) }}
{{- range $key, $value := index . 1 }}
{{- $_ := set $below $key $value }}
{{- end }}
{{- if $below }}{{ toYaml $below }}{{ end }}
{{- end }}

{{- /* The chart's labels, and those that are given, without the ones that selectors go by. */}}
{{- define "flopwatch.labelsWith" -}}
{{- $root := index . 0 }}
{{- $given := include "flopwatch.over" (list $root.Values.commonLabels (index . 1)) | fromYaml }}
{{- $own := dict
  "app.kubernetes.io/version" ($root.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") }}
{{- $labels := include "flopwatch.over" (list $own $given) | fromYaml }}
{{- include "flopwatch.over" (list $labels (include "flopwatch.selectorLabels" $root | fromYaml)) }}
{{- end }}

{{- define "flopwatch.labels" -}}
{{- include "flopwatch.labelsWith" (list . dict) }}
{{- end }}

{{- define "flopwatch.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{- define "flopwatch.image" -}}
{{- $image := .Values.image.repository }}
{{- with .Values.image.registry }}{{ $image = printf "%s/%s" . $image }}{{ end }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $image .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $image (.Values.image.tag | default (ternary (printf "%s-full" .Chart.AppVersion) .Chart.AppVersion .Values.probes.enabled)) }}
{{- end }}
{{- end }}

{{- define "flopwatch.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "flopwatch.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Whether an option that may be `auto` is on; `auto` asks for an API, that of the Prometheus operator by default. */}}
{{- define "flopwatch.wanted" -}}
{{- $enabled := index . 1 }}
{{- if eq (toString $enabled) "auto" }}
{{- $api := ternary (last .) "monitoring.coreos.com/v1" (eq (len .) 3) }}
{{- if (index . 0).Capabilities.APIVersions.Has $api }}true{{ end }}
{{- else if $enabled }}true{{ end }}
{{- end }}

{{- define "flopwatch.runtimeClassName" -}}
{{- if eq .Values.gpu.runtimeClassName "auto" }}
{{- if lookup "node.k8s.io/v1" "RuntimeClass" "" "nvidia" }}nvidia{{ end }}
{{- else }}
{{- .Values.gpu.runtimeClassName }}
{{- end }}
{{- end }}

{{- /* The pod-resources folder is root's; devices of the host need a privileged container. */}}
{{- define "flopwatch.runsAsRoot" -}}
{{- if or .Values.podResources.enabled .Values.gpu.mig (eq .Values.gpu.access "host") (eq .Values.state.type "hostPath") }}true{{ end }}
{{- end }}

{{- define "flopwatch.ownSecurityContext" -}}
{{- if eq .Values.gpu.access "host" -}}
privileged: true
{{- else -}}
privileged: false
# Kubernetes does not let these two go together: SYS_ADMIN can escalate.
allowPrivilegeEscalation: {{ .Values.gpu.mig }}
capabilities:
  drop: [ALL]
  {{- if .Values.gpu.mig }}
  add: [SYS_ADMIN]
  {{- end }}
{{- end }}
readOnlyRootFilesystem: true
{{- if include "flopwatch.runsAsRoot" . }}
runAsUser: 0
runAsGroup: 0
{{- else }}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "flopwatch.securityContext" -}}
{{- include "flopwatch.over" (list (include "flopwatch.ownSecurityContext" . | fromYaml) .Values.securityContext) }}
{{- end }}

{{- define "flopwatch.webSecret" -}}
{{- if .Values.web.existingSecret }}{{ .Values.web.existingSecret }}
{{- else if .Values.web.config }}{{ include "flopwatch.fullname" . }}-web
{{- end }}
{{- end }}

{{- define "flopwatch.priorityClassName" -}}
{{- if .Values.priorityClass.create }}
{{- default (include "flopwatch.fullname" .) .Values.priorityClass.name }}
{{- else }}
{{- .Values.priorityClass.name }}
{{- end }}
{{- end }}

{{- /* One endpoint, as ServiceMonitor and PodMonitor both have it. */}}
{{- define "flopwatch.endpoint" -}}
port: metrics
path: {{ .Values.web.telemetryPath }}
scheme: {{ ternary "https" "http" .Values.web.tls }}
interval: {{ .Values.monitor.interval }}
scrapeTimeout: {{ .Values.monitor.scrapeTimeout }}
# namespace, pod, container and job of the info series are those of the GPU's holder.
honorLabels: {{ .Values.monitor.honorLabels }}
{{- with .Values.monitor.tlsConfig }}
tlsConfig: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.monitor.basicAuth }}
basicAuth: {{- toYaml . | nindent 2 }}
{{- end }}
relabelings:
  # The node outlives its pods: a series must not end with each of them.
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: instance
  {{- with .Values.monitor.cluster }}
  - targetLabel: cluster
    replacement: {{ . | quote }}
  {{- end }}
  - action: labeldrop
    regex: namespace|pod|container|service|endpoint
  {{- with .Values.monitor.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.monitor.metricRelabelings }}
metricRelabelings: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The daemon's configuration. A threshold of the rules that the daemon has too reaches both, unless `config` says otherwise. */}}
{{- define "flopwatch.config" -}}
{{- $shared := list "power_loss_warning" "heat_loss_warning" "baseline_warning" "baseline_critical" "peers_warning" "peers_critical" "peers_minimum" "memory_hot_celsius" "idle_hot_celsius" "idle_busy_ratio" "corrected_errors" "power_limit_ratio" "memory_held_ratio" "prefix_cache_ratio" }}
{{- $findings := dict }}
{{- range $name, $value := .Values.prometheusRule.settings }}
{{- if has (snakecase $name) $shared }}{{ $_ := set $findings (snakecase $name) $value }}{{ end }}
{{- end }}
{{- $config := deepCopy .Values.config }}
{{- if $findings }}{{ $config = merge $config (dict "findings" $findings) }}{{ end }}
{{- if $config }}{{ toYaml $config }}{{ end }}
{{- end }}
