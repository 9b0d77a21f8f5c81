{{- define "romancy.name" -}}
{{- if contains "romancy" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-romancy" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "romancy.selector" -}}
app.kubernetes.io/name: romancy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "romancy.labels" -}}
{{ include "romancy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "romancy.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "romancy.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "romancy.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- define "romancy.databaseSecret" -}}
{{- .Values.database.existingSecret | default (printf "%s-database" (include "romancy.name" .)) }}
{{- end }}

{{- /* The namespaces whose runs are executed, joined; empty for the whole cluster. */ -}}
{{- define "romancy.watched" -}}
{{- if not .Values.scope.clusterWide }}{{ .Values.scope.namespaces | default (list .Release.Namespace) | join "," }}{{ end }}
{{- end }}

{{- define "romancy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "romancy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
