{{/*
What the operator may do where McpServices live: as a ClusterRole, or as a Role in each of watchNamespaces. Each rule
says why; a test holds that.
*/}}
{{- define "mcp-mqtt-operator.rules" -}}
# The objects it serves: read, and watched for changes. Never written, but for the status.
- apiGroups: [mcp-mqtt.io]
  resources: [mcpservices]
  verbs: [get, list, watch]
# Conditions, replica and session counts: what `kubectl get mcps` shows.
- apiGroups: [mcp-mqtt.io]
  resources: [mcpservices/status]
  verbs: [patch]
# A service that sleeps when nobody uses it (spec.autoscaling.minReplicas 0): to none, and to one when it wakes.
- apiGroups: [mcp-mqtt.io]
  resources: [mcpservices/scale]
  verbs: [patch]
# Owner references with blockOwnerDeletion on what it creates; clusters with OwnerReferencesPermissionEnforcement ask
# for this. It sets no finalizer.
- apiGroups: [mcp-mqtt.io]
  resources: [mcpservices/finalizers]
  verbs: [update]
# The Deployment of each McpService: server-side apply is create and patch; watched, so that a change by hand or a lost
# Deployment is mended. Deletion is left to the garbage collector.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
# Which instances exist and which are ready, and their addresses: the operator asks each gateway for its sessions.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# What the end of each instance would cost (an annotation with its sessions), written just before there are to be fewer
# of them: Kubernetes then ends the emptiest.
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]
# A ServiceAccount of its own, without API token, for the pods of each McpService.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch]
# A PodDisruptionBudget where an McpService has several replicas; deleted when it goes back to one.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# A HorizontalPodAutoscaler where an McpService has spec.autoscaling; deleted when it has none any more.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
{{- if eq .Values.autoscaling.metrics "keda" }}
# A ScaledObject where an McpService has spec.autoscaling; deleted when it has none any more.
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
# A NetworkPolicy for each McpService with networkPolicy.enabled; deleted when that is turned off.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Secrets that McpServices refer to: watched by their metadata, read when they change, because a new content must reach
# the pods by a rolling update. Written: only `<name>-broker`, the copy of the default broker's credentials, deleted
# when the McpService no longer uses that broker. RBAC cannot bound this by a name pattern.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
# ConfigMaps that McpServices refer to (the broker's CA, the server's env and volumes): the same, and never written.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch]
# Events that tell of changes, beside the McpService they are about.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
