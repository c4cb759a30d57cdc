{{- /* A file of rules with its settings filled in: the values' own, else the defaults of files/settings.yaml. */}}
{{- define "flopwatch.rules" }}
{{- $root := index . 0 }}
{{- $text := $root.Files.Get (index . 1) }}
{{- range $name, $default := ($root.Files.Get "files/settings.yaml") | fromYaml }}
{{- $value := $default }}
{{- if hasKey $root.Values.prometheusRule.settings $name }}
{{- $value = get $root.Values.prometheusRule.settings $name }}
{{- end }}
{{- $text = replace (printf "%%{%s}" $name) (toString $value) $text }}
{{- end }}
{{- $text }}
{{- end }}
