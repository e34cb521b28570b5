{{/* Names and labels. */}}
{{- define "firstword.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "firstword.fullname" -}}
{{- $name := include "firstword.name" . -}}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $release .Values.fullnameOverride | trunc 54 | trimSuffix "-" -}}
{{- end -}}

{{- define "firstword.headless" -}}
{{- include "firstword.fullname" . }}-headless
{{- end -}}

{{- define "firstword.selectorLabels" -}}
app.kubernetes.io/name: {{ include "firstword.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: service
{{- end -}}

{{- define "firstword.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "firstword.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "firstword.serviceAccountName" -}}
{{- default (ternary (include "firstword.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* A PriorityClass belongs to no namespace: its own name says which release, and where. */}}
{{- define "firstword.priorityClassName" -}}
{{- $own := printf "%s-%s" (include "firstword.fullname" .) .Release.Namespace | trunc 63 | trimSuffix "-" -}}
{{- default (ternary $own "" .Values.priorityClass.create) .Values.priorityClass.name -}}
{{- end -}}

{{- define "firstword.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* The configuration as JSON: `config` with `extraConfig` laid over it. */}}
{{- define "firstword.config" -}}
{{- $extra := fromToml .Values.extraConfig -}}
{{- with $extra.Error }}{{ fail (printf "extraConfig is not TOML: %s" .) }}{{ end -}}
{{- mergeOverwrite (deepCopy .Values.config) $extra | toJson -}}
{{- end -}}

{{/* firstword.toml: a section for each table. Helm's own toToml writes every number of a values file as a float. */}}
{{- define "firstword.toml" -}}
{{- $sections := list -}}
{{- range $section, $table := include "firstword.config" . | fromJson -}}
{{- $lines := list (printf "[%s]" $section) -}}
{{- range $key, $value := $table -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $lines = append $lines (printf "%s = %s" $key (include "firstword.tomlValue" $value)) -}}
{{- end -}}
{{- end -}}
{{- $sections = append $sections (join "\n" $lines) -}}
{{- end -}}
{{- join "\n\n" $sections -}}
{{- end -}}

{{/* A value in TOML, which writes all but tables as JSON does. */}}
{{- define "firstword.tomlValue" -}}
{{- if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s = %s" $key (include "firstword.tomlValue" $value)) }}{{ end -}}
{ {{- join ", " $pairs -}} }
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . }}{{ $items = append $items (include "firstword.tomlValue" .) }}{{ end -}}
[{{ join ", " $items }}]
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{- define "firstword.port" -}}
{{- (include "firstword.config" . | fromJson).server.port | int -}}
{{- end -}}

{{/* The port that answers for health alone, in plain text; empty where there is none. */}}
{{- define "firstword.healthPort" -}}
{{- with (include "firstword.config" . | fromJson).server.health_port }}{{ int . }}{{ end -}}
{{- end -}}

{{/* The port that probes ask. */}}
{{- define "firstword.probePort" -}}
{{- default (include "firstword.port" .) (include "firstword.healthPort" .) -}}
{{- end -}}

{{/* Not empty where the service's port speaks TLS. */}}
{{- define "firstword.hasTls" -}}
{{- with (include "firstword.config" . | fromJson).tls }}{{ if .certificate }}yes{{ end }}{{ end -}}
{{- end -}}

{{/* The port that `helm test` asks through the Services: who has no certificate asks for health alone. */}}
{{- define "firstword.testPort" -}}
{{- if include "firstword.hasTls" . }}{{ include "firstword.probePort" . }}{{ else }}{{ include "firstword.port" . }}{{ end -}}
{{- end -}}

{{/* The Services' ports for calls, and for health where that is another matter. */}}
{{- define "firstword.servicePorts" -}}
{{- if include "firstword.hasTls" . -}}
- {name: grpc, port: {{ include "firstword.port" . }}, targetPort: grpc, protocol: TCP}
- {name: health, port: {{ include "firstword.healthPort" . }}, targetPort: health, protocol: TCP, appProtocol: kubernetes.io/h2c}
{{- else -}}
- {name: grpc, port: {{ include "firstword.port" . }}, targetPort: grpc, protocol: TCP, appProtocol: kubernetes.io/h2c}
{{- end -}}
{{- end -}}

{{/* The port of Prometheus' metrics; empty where another exporter, or none, is configured. */}}
{{- define "firstword.metricsPort" -}}
{{- with (include "firstword.config" . | fromJson).telemetry -}}
{{- $exporters := ternary .metrics (splitList "," (toString .metrics)) (kindIs "slice" .metrics) -}}
{{- if has "prometheus" $exporters }}{{ int .prometheus_port }}{{ end -}}
{{- end -}}
{{- end -}}

{{/*
Seconds from the pod's deletion to SIGKILL: the wait before SIGTERM, the service's own grace, and 20 for the ends of
streams, the engine's end and the last spans.
*/}}
{{- define "firstword.terminationGraceSeconds" -}}
{{- $config := include "firstword.config" . | fromJson -}}
{{- add (int .Values.preStopSeconds) (ceil $config.server.stop_grace_s | int) 20 -}}
{{- end -}}

{{/* Not empty where pods share a store, by its URL in `config` or in a Secret. */}}
{{- define "firstword.hasStore" -}}
{{- $store := default dict (include "firstword.config" . | fromJson).store -}}
{{- if or $store.url (hasKey .Values.secretEnv "FIRSTWORD_STORE__URL") }}yes{{ end -}}
{{- end -}}

{{/* Calls that a pod takes at most. */}}
{{- define "firstword.maxCalls" -}}
{{- (include "firstword.config" . | fromJson).admission.max_calls | int -}}
{{- end -}}

{{/* Calls that a pod should have on average, so that the headroom is free. */}}
{{- define "firstword.callsPerPod" -}}
{{- $calls := include "firstword.maxCalls" . | int -}}
{{- max 1 (div (mul $calls (sub 100 (int .Values.autoscaling.headroomPercent))) 100) -}}
{{- end -}}

{{/* The most pods there can be, but for a rollout's. */}}
{{- define "firstword.mostPods" -}}
{{- ternary .Values.replicas .Values.autoscaling.maxReplicas (eq .Values.autoscaling.by "none") | int -}}
{{- end -}}

{{/* What Prometheus calls this release's pods, by the labels that a ServiceMonitor gives them. */}}
{{- define "firstword.metricSelector" -}}
namespace="{{ .Release.Namespace }}",service="{{ include "firstword.headless" . }}"
{{- end -}}
