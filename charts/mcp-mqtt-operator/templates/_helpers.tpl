{{/* Name of the chart, in labels. */}}
{{- define "mcp-mqtt-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/*
Full name, in resource names: release and chart, without saying the same thing twice. Release `mcp-mqtt` gives
`mcp-mqtt-operator`, release `tools` gives `tools-mcp-mqtt-operator`. 52 characters, so that suffixes fit into 63.
*/}}
{{- define "mcp-mqtt-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if .Values.fullnameOverride -}}
{{- $full = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- else if hasPrefix (printf "%s-" .Release.Name) $name -}}
{{- $full = $name -}}
{{- end -}}
{{- $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the broker for a first try. */}}
{{- define "mcp-mqtt-operator.mosquitto.fullname" -}}
{{- printf "%s-mosquitto" (include "mcp-mqtt-operator.fullname" . | trimSuffix "-operator") -}}
{{- end -}}

{{/* Namespace of everything namespaced. */}}
{{- define "mcp-mqtt-operator.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "mcp-mqtt-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "mcp-mqtt-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false: the operator must not share the namespace's default ServiceAccount" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Labels that select pods; they never change. Takes (dict "root" $ "component" "operator"). */}}
{{- define "mcp-mqtt-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mcp-mqtt-operator.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of every object: commonLabels, and over them the chart's own. Takes what selectorLabels takes. */}}
{{- define "mcp-mqtt-operator.labels" -}}
{{- $own := include "mcp-mqtt-operator.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "mcp-mqtt" -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- toYaml (merge $own .root.Values.commonLabels) -}}
{{- end -}}

{{/* An image reference. Takes (dict "root" $ "image" .Values.image). */}}
{{- define "mcp-mqtt-operator.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* URL of the default broker; empty: none. */}}
{{- define "mcp-mqtt-operator.brokerUrl" -}}
{{- if .Values.mosquitto.enabled -}}
{{- printf "mqtt://%s.%s.svc:%v" (include "mcp-mqtt-operator.mosquitto.fullname" .) (include "mcp-mqtt-operator.namespace" .) .Values.mosquitto.service.port -}}
{{- else -}}
{{- .Values.broker.url -}}
{{- end -}}
{{- end -}}

{{/*
Whether the operator serves custom.metrics.k8s.io: `served`, `off`, or `taken`, when another adapter of this cluster
serves it, in whatever version: Kubernetes' autoscaler asks for all metrics in the one that the cluster prefers. `lookup`
finds nothing in `helm template`, as Argo CD uses it: there the value has to say.
*/}}
{{- define "mcp-mqtt-operator.sessionMetrics" -}}
{{- $enabled := .Values.autoscaling.sessionMetrics.enabled -}}
{{- $default := not (or .Values.watchNamespaces (eq .Values.autoscaling.metrics "keda")) -}}
{{- $wanted := kindIs "invalid" $enabled | ternary $default $enabled -}}
{{- $taken := false -}}
{{- range (lookup "apiregistration.k8s.io/v1" "APIService" "" "").items -}}
{{- if eq (default "" .spec.group) "custom.metrics.k8s.io" -}}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" "" . -}}
{{- $home := dig "metadata" "annotations" "meta.helm.sh/release-namespace" "" . -}}
{{- $taken = or $taken (ne $owner $.Release.Name) (ne $home $.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- if or (not $wanted) (eq (int .Values.replicaCount) 0) -}}
off
{{- else if $taken -}}
taken
{{- else -}}
served
{{- end -}}
{{- end -}}

{{/*
What the operator is told, by environment variables (operator/src/cli.rs has them all): so that a flag in extraArgs
wins over a value.
*/}}
{{- define "mcp-mqtt-operator.env" -}}
- name: MCP_MQTT_CLUSTER_NAME
  value: {{ .Values.clusterName | quote }}
{{- with .Values.watchNamespaces }}
- name: MCP_MQTT_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: MCP_MQTT_SIDECAR_IMAGE
  value: {{ include "mcp-mqtt-operator.image" (dict "root" . "image" .Values.sidecar.image) | quote }}
- name: MCP_MQTT_SIDECAR_IMAGE_PULL_POLICY
  value: {{ .Values.sidecar.image.pullPolicy }}
{{- with .Values.sidecar.imagePullSecrets }}
- name: MCP_MQTT_IMAGE_PULL_SECRETS
  value: {{ join "," . | quote }}
{{- end }}
{{- with include "mcp-mqtt-operator.brokerUrl" . }}
- name: MCP_MQTT_DEFAULT_BROKER_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.broker.secret }}
- name: MCP_MQTT_DEFAULT_BROKER_SECRET
  value: {{ . | quote }}
{{- end }}
{{- with .Values.broker.serviceAccountToken }}
{{- if .audience }}
- name: MCP_MQTT_DEFAULT_BROKER_TOKEN_AUDIENCE
  value: {{ .audience | quote }}
- name: MCP_MQTT_DEFAULT_BROKER_TOKEN_EXPIRATION_SECONDS
  value: {{ .expirationSeconds | int64 | quote }}
{{- if .username }}
- name: MCP_MQTT_DEFAULT_BROKER_TOKEN_USERNAME
  value: {{ .username | quote }}
{{- end }}
{{- end }}
{{- end }}
- name: MCP_MQTT_LEADER_ELECTION
  value: {{ .Values.leaderElection.enabled | quote }}
- name: MCP_MQTT_LEASE_NAME
  value: {{ include "mcp-mqtt-operator.fullname" . }}
- name: MCP_MQTT_CONCURRENCY
  value: {{ .Values.concurrency | int | quote }}
- name: MCP_MQTT_STATUS_INTERVAL
  value: {{ .Values.statusInterval | quote }}
{{- if eq (include "mcp-mqtt-operator.sessionMetrics" .) "served" }}
- name: MCP_MQTT_SESSION_METRICS_SERVICE
  value: {{ include "mcp-mqtt-operator.fullname" . }}-metrics
{{- end }}
{{- if eq .Values.autoscaling.metrics "keda" }}
- name: MCP_MQTT_KEDA_SCALER_SERVICE
  value: {{ include "mcp-mqtt-operator.fullname" . }}-scaler
{{- end }}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" (include "mcp-mqtt-operator.namespace" .)) }}
{{- $pods := dict "matchLabels" (include "mcp-mqtt-operator.selectorLabels" (dict "root" . "component" "operator") | fromYaml) }}
{{- $operator := dict "namespaceSelector" $namespace "podSelector" $pods }}
- name: MCP_MQTT_NETWORK_POLICY_FROM
  value: {{ .Values.networkPolicy.enabled | ternary (prepend .Values.networkPolicy.metricsFrom $operator) nil | toJson | quote }}
- name: MCP_MQTT_LOG
  value: {{ .Values.log.level | quote }}
- name: MCP_MQTT_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- end -}}
