{{/*
Values that contradict each other, refused before anything is installed. The schema judges each value by itself; this
judges them together.
*/}}
{{- define "mcp-mqtt-operator.checks" -}}
{{- $broker := .Values.broker -}}
{{- $secured := or $broker.secret $broker.serviceAccountToken.audience -}}
{{- /* Here and not in the schema, whose messages quote the value. */ -}}
{{- if contains "@" $broker.url -}}
{{- fail "broker.url must not contain credentials: put them into a Secret and name that in broker.secret" -}}
{{- end -}}
{{- if and .Values.mosquitto.enabled $broker.url -}}
{{- fail (printf "mosquitto.enabled and broker.url (%s) both name the operator's default broker: unset one of them" $broker.url) -}}
{{- end -}}
{{- if and .Values.mosquitto.enabled $secured -}}
{{- fail "mosquitto.enabled installs a broker without credentials: unset broker.secret and broker.serviceAccountToken.audience, or set broker.url to a broker of your own" -}}
{{- end -}}
{{- if and $secured (not $broker.url) -}}
{{- fail "broker.secret and broker.serviceAccountToken.audience are credentials for broker.url: set that too" -}}
{{- end -}}
{{- if and $broker.serviceAccountToken.username (not $broker.serviceAccountToken.audience) -}}
{{- fail "broker.serviceAccountToken.username goes with a token: set broker.serviceAccountToken.audience too" -}}
{{- end -}}
{{- if and (gt (int .Values.replicaCount) 1) (not .Values.leaderElection.enabled) -}}
{{- fail (printf "replicaCount is %v with leaderElection.enabled=false: the operators would work against each other; leave leader election on, or run one" .Values.replicaCount) -}}
{{- end -}}
{{- if and .Values.autoscaling.sessionMetrics.enabled (eq (include "mcp-mqtt-operator.sessionMetrics" .) "taken") -}}
{{- fail "autoscaling.sessionMetrics.enabled: another adapter of this cluster serves custom.metrics.k8s.io, and a cluster has one. Leave this unset, and set autoscaling.metrics=keda if that cluster has KEDA; otherwise McpServices can be autoscaled by spec.autoscaling.resources. Or uninstall the other adapter" -}}
{{- end -}}
{{- with .Values.podDisruptionBudget -}}
{{- if and (not (kindIs "invalid" .minAvailable)) (not (kindIs "invalid" .maxUnavailable)) -}}
{{- fail "podDisruptionBudget.minAvailable and podDisruptionBudget.maxUnavailable exclude each other: set one" -}}
{{- end -}}
{{- end -}}
{{- if and (not .Values.rbac.create) .Values.serviceAccount.create (not .Values.serviceAccount.name) -}}
{{- fail "rbac.create is false: give serviceAccount.name, so that the roles you bind yourself have a subject that does not change with the release's name" -}}
{{- end -}}
{{- if hasKey .Values.podLabels "app.kubernetes.io/name" | or (hasKey .Values.podLabels "app.kubernetes.io/instance") | or (hasKey .Values.podLabels "app.kubernetes.io/component") -}}
{{- fail "podLabels must not set app.kubernetes.io/name, …/instance or …/component: the Deployment selects its pods by them" -}}
{{- end -}}
{{- end -}}
