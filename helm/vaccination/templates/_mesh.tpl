{{- /* Between components: what each takes from whom, by whom it may be called, and how calls to it fail. */ -}}
{{- define "istio.mesh" }}
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  labels:
    {{- include "labels" . | nindent 4 }}
spec:
  mtls:
    mode: STRICT
---
# Prometheus is not in the mesh.
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: metrics
  labels:
    {{- include "labels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/part-of: vaccination
  mtls:
    mode: STRICT
  portLevelMtls:
    "9090":
      mode: PERMISSIVE
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: metrics
  labels:
    {{- include "labels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/part-of: vaccination
  action: ALLOW
  rules:
    - to:
        - operation:
            ports: ["9090"]
---
# Nothing may be called by anybody, but for what the policies below allow.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: nobody
  labels:
    {{- include "labels" . | nindent 4 }}
spec: {}
{{- range $name, $component := .Values.components }}
{{- $host := include "host" (list $ $name) }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {{ $name }}
  labels:
    {{- include "labels" $ | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $name }}
  action: ALLOW
  rules:
    - from:
        - source:
            principals: [{{ include "principal" (list $ $.Values.gateway.name) | quote }}]
      to:
        - operation:
            paths:
              {{- range $service, $_ := $component.public }}
              - /{{ $service }}/*
              {{- end }}
              - {{ include "operations" $ }}*
              {{- if $component.reflection }}
              - /grpc.reflection.*
              {{- end }}
    # helm test
    - from:
        - source:
            principals: [{{ include "principal" (list $ "check") | quote }}]
      to:
        - operation:
            paths: [/grpc.health.v1.Health/Check]
    {{- range $caller, $calls := $component.callers }}
    - from:
        - source:
            principals: [{{ include "principal" (list $ $caller) | quote }}]
      to:
        - operation:
            paths:
              {{- range $calls }}
              - {{ .path }}
              {{- end }}
    {{- end }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {{ $name }}
  labels:
    {{- include "labels" $ | nindent 4 }}
spec:
  host: {{ $host }}
  trafficPolicy:
    loadBalancer:
      simple: LEAST_REQUEST
      # A replica that has just started imports, connects and compiles: it gets its share little by little.
      warmup:
        duration: 10s
    connectionPool:
      tcp:
        connectTimeout: 1s
      http:
        http2MaxRequests: {{ $component.connections.maxRequests }}
        http1MaxPendingRequests: {{ $component.connections.maxPending }}
    # One that cannot be reached, or answers UNAVAILABLE or not at all, again and again, is left alone for a while; longer
    # each time. Never more than half of them: when all fail it is not their fault.
    outlierDetection:
      consecutiveGatewayErrors: 5
      consecutive5xxErrors: 0
      interval: 1s
      baseEjectionTime: 5s
      maxEjectionPercent: 50
    retryBudget:
      percent: {{ $.Values.retries.budgetPercent }}
      minRetryConcurrency: {{ $.Values.retries.minConcurrency }}
{{- with $component.callers }}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {{ $name }}
  labels:
    {{- include "labels" $ | nindent 4 }}
spec:
  hosts: [{{ $host }}]
  http:
    {{- range $caller, $calls := . }}
    {{- range $calls }}
    - name: {{ .name }}
      match:
        - uri:
            exact: {{ .path }}
      timeout: {{ tpl .timeout $ }}
      retries:
        attempts: {{ .retries }}
        {{- if .retries }}
        perTryTimeout: {{ tpl .tryTimeout $ }}
        retryOn: {{ .retryOn | quote }}
        backoff: {{ $.Values.retries.pause }}
        {{- end }}
      route:
        - destination:
            host: {{ $host }}
            port:
              number: 8080
    {{- end }}
    {{- end }}
{{- end }}
{{- end }}
{{- if .Values.evaluation.enabled }}
{{- range $store, $_ := .Values.evaluation.stores }}
---
# Policies for what is not HTTP apply to new connections.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {{ $store }}
  labels:
    {{- include "labels" $ | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $store }}
  action: ALLOW
  rules:
    - from:
        - source:
            principals:
              - {{ include "principal" (list $ "migrate") }}
              {{- range $name, $component := $.Values.components }}
              {{- if or (eq $store "nats") (eq $store $component.store) }}
              - {{ include "principal" (list $ $name) }}
              {{- end }}
              {{- end }}
              {{- if eq $store "nats" }}
              - {{ include "principal" (list $ "nats") }}
              {{- end }}
{{- end }}
{{- end }}
{{- end }}
