{{- define "sandglass.labels" -}}
app.kubernetes.io/name: sandglass
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sandglass.chartLabels" -}}
{{ include "sandglass.labels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
