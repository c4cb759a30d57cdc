{{- /* What the container is given: environment, health checks, files. */}}

{{- define "flopwatch.ownEnv" -}}
- name: FLOPWATCH_WEB_LISTEN_ADDRESS
  value: {{ printf ":%v" .Values.web.port | quote }}
- name: FLOPWATCH_WEB_TELEMETRY_PATH
  value: {{ .Values.web.telemetryPath | quote }}
- name: FLOPWATCH_WEB_ENABLE_LIFECYCLE
  value: {{ .Values.web.enableLifecycle | quote }}
- name: FLOPWATCH_LOG_LEVEL
  value: {{ .Values.log.level | quote }}
- name: FLOPWATCH_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
- name: FLOPWATCH_PROBES_ENABLED
  value: {{ .Values.probes.enabled | quote }}
{{- if .Values.probes.enabled }}
- name: FLOPWATCH_PROBES_PAUSE_FILE
  value: /var/lib/flopwatch/pause
{{- end }}
- name: FLOPWATCH_KUBERNETES_POD_RESOURCES
  value: {{ ternary "auto" "off" .Values.podResources.enabled | quote }}
{{- if .Values.podResources.enabled }}
- name: FLOPWATCH_KUBERNETES_SOCKET
  value: /var/lib/kubelet/pod-resources/kubelet.sock
{{- end }}
- name: FLOPWATCH_STATE_FILE
  value: /var/lib/flopwatch/state.json
{{- if include "flopwatch.config" . }}
- name: FLOPWATCH_CONFIG_FILE
  value: /etc/flopwatch/config/config.yml
{{- end }}
{{- if include "flopwatch.webSecret" . }}
- name: FLOPWATCH_WEB_CONFIG_FILE
  value: /etc/flopwatch/web/web.yml
{{- end }}
{{- if eq .Values.gpu.access "runtime" }}
- name: NVIDIA_VISIBLE_DEVICES
  value: all
{{- else if eq .Values.gpu.access "mounts" }}
- name: NVIDIA_VISIBLE_DEVICES
  value: /var/run/nvidia-container-devices
{{- else }}
- name: NVIDIA_VISIBLE_DEVICES
  value: void
- name: LD_LIBRARY_PATH
  value: /usr/local/nvidia/lib64
{{- end }}
{{- if .Values.gpu.mig }}
- name: NVIDIA_MIG_MONITOR_DEVICES
  value: all
{{- end }}
{{- end }}

{{- /* The chart's variables, without those that the user sets. */}}
{{- define "flopwatch.env" -}}
{{- $given := list }}
{{- range .Values.env }}
{{- $given = append $given .name }}
{{- end }}
{{- $env := list }}
{{- range include "flopwatch.ownEnv" . | fromYamlArray }}
{{- if not (has .name $given) }}
{{- $env = append $env . }}
{{- end }}
{{- end }}
{{- toYaml (concat $env .Values.env) }}
{{- end }}

{{- /* With client certificates the kubelet, which has none, can only see whether it connects. */}}
{{- define "flopwatch.check" -}}
{{- $root := index . 0 }}
{{- if $root.Values.web.clientCertificates -}}
tcpSocket:
  port: metrics
{{- else -}}
httpGet:
  path: {{ index . 1 }}
  port: metrics
  scheme: {{ ternary "HTTPS" "HTTP" $root.Values.web.tls }}
{{- end }}
{{- end }}

{{- define "flopwatch.volumeMounts" -}}
- name: state
  mountPath: /var/lib/flopwatch
- name: tmp
  mountPath: /tmp
{{- if .Values.podResources.enabled }}
- name: pod-resources
  mountPath: /var/lib/kubelet/pod-resources
  readOnly: true
{{- end }}
{{- if .Values.jobMapping.hostPath }}
- name: job-mapping
  mountPath: /var/run/flopwatch/jobs
  readOnly: true
{{- end }}
{{- if include "flopwatch.config" . }}
- name: config
  mountPath: /etc/flopwatch/config
  readOnly: true
{{- end }}
{{- if include "flopwatch.webSecret" . }}
- name: web
  mountPath: /etc/flopwatch/web
  readOnly: true
{{- end }}
{{- if .Values.web.tlsSecret }}
- name: tls
  mountPath: /etc/flopwatch/tls
  readOnly: true
{{- end }}
{{- if eq .Values.gpu.access "mounts" }}
- name: all-gpus
  mountPath: /var/run/nvidia-container-devices/all
{{- else if eq .Values.gpu.access "host" }}
- name: driver
  mountPath: /usr/local/nvidia
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "flopwatch.volumes" -}}
- name: state
  {{- if or (eq .Values.state.type "hostPath") (and (eq .Values.state.type "auto") (include "flopwatch.runsAsRoot" .)) }}
  hostPath:
    path: {{ .Values.state.hostPath }}
    type: DirectoryOrCreate
  {{- else }}
  emptyDir:
    sizeLimit: 64Mi
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: {{ ternary "1Gi" "64Mi" .Values.probes.enabled }}
{{- if .Values.podResources.enabled }}
- name: pod-resources
  hostPath:
    path: {{ .Values.podResources.hostPath }}
    # The folder, not the socket: a kubelet that restarts makes a new one.
    type: DirectoryOrCreate
{{- end }}
{{- with .Values.jobMapping.hostPath }}
- name: job-mapping
  hostPath:
    path: {{ . }}
    type: DirectoryOrCreate
{{- end }}
{{- if include "flopwatch.config" . }}
- name: config
  configMap:
    name: {{ include "flopwatch.fullname" . }}
{{- end }}
{{- with include "flopwatch.webSecret" . }}
- name: web
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.web.tlsSecret }}
- name: tls
  secret:
    secretName: {{ . }}
{{- end }}
{{- if eq .Values.gpu.access "mounts" }}
- name: all-gpus
  hostPath:
    path: /dev/null
{{- else if eq .Values.gpu.access "host" }}
- name: driver
  hostPath:
    path: {{ .Values.gpu.hostDriverPath }}
    type: Directory
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
