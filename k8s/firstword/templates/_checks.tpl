{{/* What the values' schema cannot say: values that contradict each other. Included once, by the Deployment. */}}
{{- define "firstword.checks" -}}
{{- $config := include "firstword.config" . | fromJson -}}
{{- $engine := default dict $config.engine -}}
{{- $server := $config.server -}}
{{- $cuda := hasPrefix "cuda" (default "cpu" $engine.device) -}}
{{- $metrics := include "firstword.metricsPort" . -}}
{{- if eq .Values.image.tag "latest" -}}
{{- fail "image.tag is latest: two pods of one release could run two services; name a version or a digest" -}}
{{- end -}}
{{- $loopback := "^(127\\.|localhost$|\\[?::1\\]?$)" -}}
{{- if regexMatch $loopback $server.host -}}
{{- fail (printf "config.server.host is %s: neither clients nor probes can reach it in a pod" $server.host) -}}
{{- end -}}
{{- if and (include "firstword.hasTls" .) (not (include "firstword.healthPort" .)) -}}
{{- fail "config.tls is set and config.server.health_port is not: the kubelet's probes speak no TLS" -}}
{{- end -}}
{{- if eq (include "firstword.healthPort" .) (include "firstword.port" .) -}}
{{- fail "config.server.health_port is config.server.port: health has a port of its own, or none" -}}
{{- end -}}
{{- $tls := default dict $config.tls -}}
{{- $auth := default dict $config.auth -}}
{{- $jwt := default dict $config.jwt -}}
{{- range $key, $path := dict "tls.certificate" $tls.certificate "tls.key" $tls.key "tls.client_ca" $tls.client_ca "auth.api_keys_file" $auth.api_keys_file "jwt.jwks_file" $jwt.jwks_file -}}
{{- $secret := regexFind "^/etc/firstword/secrets/[^/]+" (default "" $path) | trimPrefix "/etc/firstword/secrets/" -}}
{{- if and $secret (not (hasKey $.Values.secretFiles $secret)) -}}
{{- fail (printf "config.%s is %s and nothing is mounted there: name a Secret in secretFiles.%s" $key $path $secret) -}}
{{- end -}}
{{- end -}}
{{- if and $metrics (regexMatch $loopback $config.telemetry.prometheus_host) -}}
{{- fail (printf "config.telemetry.prometheus_host is %s: Prometheus cannot reach it in a pod" $config.telemetry.prometheus_host) -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled .Values.models.downloads (not .Values.networkPolicy.egress) -}}
{{- fail "networkPolicy.egress is empty, so models.downloads could not reach the hub: add a rule for it" -}}
{{- end -}}
{{- if and $cuda (lt (int .Values.gpu.count) 1) -}}
{{- fail (printf "config.engine.device is %s and gpu.count is 0: set the device to cpu, or ask for a GPU" $engine.device) -}}
{{- end -}}
{{- $ranks := int (default 1 $engine.ranks) -}}
{{- if and $cuda (lt (int .Values.gpu.count) $ranks) -}}
{{- fail (printf "config.engine.ranks is %d and gpu.count is %d: each rank has a GPU of its own" $ranks (int .Values.gpu.count)) -}}
{{- end -}}
{{- if and (not $cuda) (gt (int .Values.gpu.count) 0) -}}
{{- fail "gpu.count asks for a GPU and config.engine.device does not use one: set it to cuda, or gpu.count to 0" -}}
{{- end -}}
{{- if and (hasPrefix "/models/" (default "" $engine.model)) (not (or .Values.models.existingClaim .Values.models.downloads)) -}}
{{- fail (printf "config.engine.model is %s and nothing is mounted at /models: set models.existingClaim or models.downloads" $engine.model) -}}
{{- end -}}
{{- $directory := regexFind "[^/]+" (trimPrefix "/models/" (default "" $engine.model)) -}}
{{- if and (hasPrefix "/models/" (default "" $engine.model)) .Values.models.downloads (not .Values.models.existingClaim) -}}
{{- $brought := list -}}
{{- range .Values.models.downloads }}{{ $brought = append $brought .directory }}{{ end -}}
{{- if not (has $directory $brought) -}}
{{- fail (printf "config.engine.model is %s and models.downloads brings only %s" $engine.model (join ", " $brought)) -}}
{{- end -}}
{{- end -}}
{{- $store := default dict $config.store -}}
{{- if regexMatch "//[^/]*@" (default "" $store.url) -}}
{{- fail "config.store.url holds a password, and firstword.toml is no secret: name a Secret in secretEnv.FIRSTWORD_STORE__URL" -}}
{{- end -}}
{{- if and (include "firstword.hasStore" .) (not (hasKey .Values.secretEnv "FIRSTWORD_RESUME__KEYS")) -}}
{{- fail "pods that share a store sign with the same keys: name a Secret in secretEnv.FIRSTWORD_RESUME__KEYS" -}}
{{- end -}}
{{- if and (include "firstword.hasStore" .) (not (hasKey .Values.secretEnv "FIRSTWORD_STORE__NAME_KEY")) -}}
{{- fail "without a key for names in the store calls are lost when the resume keys rotate: name a Secret in secretEnv.FIRSTWORD_STORE__NAME_KEY (of a release that ran without one: the last of its resume keys)" -}}
{{- end -}}
{{- $none := list "0" "0%" -}}
{{- if and (has (toString .Values.rollout.maxSurge) $none) (has (toString .Values.rollout.maxUnavailable) $none) -}}
{{- fail "rollout.maxSurge and rollout.maxUnavailable are both 0: no pod could ever be replaced" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.by "none") (not $metrics) -}}
{{- fail "autoscaling counts calls by their metric: set config.telemetry.metrics to prometheus" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.by "keda") (not .Values.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress is empty: name the Prometheus that counts the calls" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not $metrics) -}}
{{- fail "serviceMonitor.enabled: there is nothing to scrape; set config.telemetry.metrics to prometheus" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.by "keda") (not .Values.serviceMonitor.enabled) (not .Values.autoscaling.keda.query) -}}
{{- fail "autoscaling.keda.query is empty, and the chart's own counts what a ServiceMonitor has labelled: set serviceMonitor.enabled, or a query" -}}
{{- end -}}
{{- if and .Values.prometheusRule.enabled (not .Values.serviceMonitor.enabled) -}}
{{- fail "prometheusRule.enabled: its rules are about what a ServiceMonitor has labelled; set serviceMonitor.enabled" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.enabled: gateway.parentRefs is empty, so no Gateway would take the route" -}}
{{- end -}}
{{- end -}}
