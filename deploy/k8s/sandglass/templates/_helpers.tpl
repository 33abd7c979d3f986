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

{{- /* The names by which the Service is asked, and those that somebody adds. */}}
{{- define "sandglass.hosts" -}}
{{- $name := .Release.Name }}
{{- $long := printf "%s.%s" $name .Release.Namespace }}
{{- $hosts := list $name $long (printf "%s.svc" $long) (printf "%s.svc.%s" $long .Values.clusterDomain) }}
{{- join "," (concat $hosts .Values.allowedHosts) }}
{{- end }}
