{{- define "coppice.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "coppice.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "coppice.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "coppice.selector" . }}
{{- end }}

{{- define "coppice.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "coppice.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "coppice.scheme" -}}
{{- if .Values.tlsSecret }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{- define "coppice.hosts" -}}
{{- $service := printf "%s.%s" (include "coppice.name" .) .Release.Namespace -}}
{{ $service }},{{ $service }}.svc,{{ $service }}.svc.cluster.local{{ if .Values.ingress.enabled }},{{ .Values.ingress.host }}{{ end }}
{{- end }}
