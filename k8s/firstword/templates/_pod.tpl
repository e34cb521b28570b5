{{/* The environment that the chart sets, beside what names the pod. `env` of the values wins. */}}
{{- define "firstword.environment" -}}
{{- $config := include "firstword.config" . | fromJson -}}
{{- $engine := default dict $config.engine -}}
{{- $resource := list
  (printf "service.version=%s" (default .Chart.AppVersion .Values.image.tag))
  "service.instance.id=$(POD_NAME)"
  "k8s.pod.name=$(POD_NAME)"
  (printf "k8s.namespace.name=%s" .Release.Namespace)
  "k8s.node.name=$(NODE_NAME)"
-}}
# The file system is read-only but for /tmp: caches of kernels and of CUDA go there.
HOME: /tmp
# An image may say where to listen, and the environment wins over the file.
FIRSTWORD_SERVER__HOST: {{ $config.server.host | quote }}
{{- if include "firstword.hasStore" . }}
# Where clients of a call find the pod that is warm for it. One behind a gateway tries it for a second, while a pod drains.
# An IPv6 address is put in brackets by the service: of which kind a pod's is, only the cluster knows.
FIRSTWORD_SERVER__ADVERTISE: "$(POD_IP):{{ include "firstword.port" . }}"
{{- end }}
# Nothing is fetched when the service runs: what it needs is mounted.
HF_HUB_OFFLINE: "1"
OMP_NUM_THREADS: {{ default 1 $engine.threads | int | quote }}
OTEL_RESOURCE_ATTRIBUTES: {{ join "," $resource | quote }}
{{- end -}}

{{/*
Requests and limits, with the GPU (an extended resource is not overcommitted: its request is its limit) and with the disk
for weights that are downloaded to it, or a node without that much would take the pod and evict it.
*/}}
{{- define "firstword.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if and .Values.models.downloads (not .Values.models.existingClaim) -}}
{{- $resources = merge $resources (dict "requests" (dict "ephemeral-storage" .Values.models.sizeLimit)) -}}
{{- end -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $gpu := dict .Values.gpu.resource (int .Values.gpu.count) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $gpu) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Where the pod may run. */}}
{{- define "firstword.placement" -}}
{{- $gpu := gt (int .Values.gpu.count) 0 -}}
{{- with merge (dict) .Values.nodeSelector (ternary .Values.gpu.nodeSelector (dict) $gpu) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat .Values.tolerations (ternary .Values.gpu.tolerations (list) $gpu) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := list -}}
{{- range $key, $name := dict "topology.kubernetes.io/zone" "zone" "kubernetes.io/hostname" "node" }}
{{- $when := get $.Values.topologySpread $name }}
{{- if ne $when "none" }}{{ $spread = append $spread (dict "key" $key "when" $when) }}{{ end }}
{{- end }}
{{- with $spread }}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ .key }}
    maxSkew: 1
    whenUnsatisfiable: {{ .when }}
    labelSelector:
      matchLabels:
        {{- include "firstword.selectorLabels" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash] # a rollout's new pods are spread by themselves
  {{- end }}
{{- end }}
{{- end -}}
