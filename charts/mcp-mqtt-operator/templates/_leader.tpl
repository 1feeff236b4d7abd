{{/*
What the leader needs to make itself the endpoint of a Service without a selector: of several operators only the leader
knows the numbers. Takes (dict "root" $ "name" "the Service's" "labels" "as YAML").
*/}}
{{- define "mcp-mqtt-operator.leaderRole" -}}
{{- $name := .name }}
{{- $namespace := include "mcp-mqtt-operator.namespace" .root -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- .labels | nindent 4 }}
rules:
  # The Service that the leader stands behind: it becomes the owner of …
  - apiGroups: [""]
    resources: [services]
    resourceNames: [{{ $name }}]
    verbs: [get]
  # … the EndpointSlice in which the leader writes its address (a create cannot be bound by name) …
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [create]
  # … and which the next leader changes.
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    resourceNames: [{{ $name }}-ipv4, {{ $name }}-ipv6]
    verbs: [get, patch]
  # Where the API server guards endpoints of Services without a selector by this (OpenShift does).
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices/restricted]
    verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- .labels | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "mcp-mqtt-operator.serviceAccountName" .root }}
    namespace: {{ $namespace }}
{{- end -}}
