{{- /* Between components: how a component may be called, by whom, and how calls to it fail. */ -}}

{{- /* A route of a VirtualService to a component. Keys: root; name, of the route; to, the component; and where the
route has them match (a list), subset, timeout, retries, cors (true: browsers may call). Without `retries` nothing is
tried again; left to itself, Istio would try twice more. */ -}}
{{- define "vaccination.route" -}}
- name: {{ .name }}
  {{- with .match }}
  match:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .timeout }}
  timeout: {{ . }}
  {{- end }}
  retries:
    {{- toYaml (.retries | default (dict "attempts" 0)) | nindent 4 }}
  {{- if .cors }}
  {{- include "vaccination.cors" .root | nindent 2 }}
  {{- end }}
  route:
    - destination:
        host: {{ include "vaccination.host" (dict "root" .root "name" .to) }}
        {{- with .subset }}
        subset: {{ . }}
        {{- end }}
        port:
          number: 8080
{{- end }}

{{- /* A subset of all replicas: it only gives some of the calls a circuit breaker of their own. Keys: name,
maxRequests, maxPending. */ -}}
{{- define "vaccination.breaker" -}}
- name: {{ .name }}
  trafficPolicy:
    {{- include "vaccination.connectionPool" . | nindent 4 }}
{{- end }}

{{- /* Keys: maxRequests, maxPending. */ -}}
{{- define "vaccination.connectionPool" -}}
connectionPool:
  tcp:
    connectTimeout: 1s
  http:
    http2MaxRequests: {{ .maxRequests }}
    http1MaxPendingRequests: {{ .maxPending }}
{{- end }}

{{- /* The name of one call of one caller: of its route, and of its subset if it has one. Keys: caller, call. */ -}}
{{- define "vaccination.callName" -}}
{{ lower (printf "%s-%s" .caller .call.name) }}
{{- end }}

{{- define "vaccination.istio.mesh" }}
{{- $components := include "vaccination.components" . | fromJson }}
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
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
    {{- include "vaccination.labels" . | nindent 4 }}
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
    {{- include "vaccination.labels" . | nindent 4 }}
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
# Nobody may call anything except what the policies below allow.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: nobody
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
spec: {}
{{- range $name, $component := $components }}
{{- $host := include "vaccination.host" (dict "root" $ "name" $name) }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {{ $name }}
  labels:
    {{- include "vaccination.labels" $ | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $name }}
  action: ALLOW
  rules:
    - from:
        - source:
            principals: [{{ include "vaccination.principal" (dict "root" $ "name" $.Values.gateway.name) | quote }}]
      to:
        - operation:
            paths:
              {{- range concat ($component.pages | default list) ($component.assets | default list) }}
              - {{ . | quote }}
              {{- end }}
              {{- if $component.store }}
              {{- range $service, $_ := $component.public }}
              - /{{ $service }}/*
              {{- end }}
              - /{{ $.Values.operations.service }}/*
              {{- end }}
              {{- if $component.reflection }}
              - /grpc.reflection.*
              {{- end }}
    # The pod of `helm test` asks for readiness.
    - from:
        - source:
            principals: [{{ include "vaccination.principal" (dict "root" $ "name" "check") | quote }}]
      to:
        - operation:
            paths: [{{ ternary "/grpc.health.v1.Health/Check" "/readyz" (hasKey $component "store") }}]
    {{- range $caller, $calls := $component.callers }}
    - from:
        - source:
            principals: [{{ include "vaccination.principal" (dict "root" $ "name" $caller) | quote }}]
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
    {{- include "vaccination.labels" $ | nindent 4 }}
spec:
  host: {{ $host }}
  trafficPolicy:
    loadBalancer:
      simple: LEAST_REQUEST
      # A replica that has just started still imports, connects and compiles, so it gets its share of calls little by
      # little.
      warmup:
        duration: 10s
    {{- include "vaccination.connectionPool" $component.connections | nindent 4 }}
    # A replica that again and again cannot be reached, answers UNAVAILABLE or does not answer gets no calls for a
    # while, and each time for longer. At most half of the replicas are left out: when all of them fail, the cause is
    # not in them.
    outlierDetection:
      consecutiveGatewayErrors: 5
      consecutive5xxErrors: 0
      interval: 1s
      baseEjectionTime: 5s
      maxEjectionPercent: 50
    retryBudget:
      percent: {{ $.Values.retries.budgetPercent }}
      minRetryConcurrency: {{ $.Values.retries.minConcurrency }}
  {{- $breakers := list }}
  {{- range $rpc, $crowd := $component.crowded }}
  {{- $breakers = append $breakers (dict "name" (lower $rpc) "maxRequests" $crowd.inFlight "maxPending" $crowd.inFlight) }}
  {{- end }}
  {{- range $caller, $calls := $component.callers }}
  {{- range $call := $calls }}
  {{- with $call.connections }}
  {{- $callName := include "vaccination.callName" (dict "caller" $caller "call" $call) }}
  {{- $breakers = append $breakers (merge (dict "name" $callName) .) }}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- with $breakers }}
  subsets:
    {{- range . }}
    {{- include "vaccination.breaker" . | nindent 4 }}
    {{- end }}
  {{- end }}
{{- with $component.callers }}
{{- $callersOf := dict }}
{{- range $calls := . }}
{{- range $calls }}
{{- $_ := set $callersOf .path (append (get $callersOf .path | default list) .name) }}
{{- end }}
{{- end }}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {{ $name }}
  labels:
    {{- include "vaccination.labels" $ | nindent 4 }}
spec:
  hosts: [{{ $host }}]
  http:
    # Every route names the port: without it a call for metrics, on another port, would be led here.
    {{- range $caller, $calls := . }}
    {{- range $call := $calls }}
    {{- $match := dict "port" 8080 "uri" (dict "exact" $call.path) }}
    {{- if gt (len (get $callersOf $call.path)) 1 }}
    {{- /* Several components call this RPC, and the proxy of each has to find its own route. */}}
    {{- $_ := set $match "sourceLabels" (dict "app.kubernetes.io/name" $caller) }}
    {{- end }}
    {{- $route := dict "root" $ "to" $name "match" (list $match) "timeout" (tpl $call.timeout $)
          "name" (include "vaccination.callName" (dict "caller" $caller "call" $call)) }}
    {{- if $call.connections }}
    {{- $_ := set $route "subset" $route.name }}
    {{- end }}
    {{- if $call.retries }}
    {{- $_ := set $route "retries" (dict "attempts" $call.retries "perTryTimeout" (tpl $call.tryTimeout $)
          "retryOn" $call.retryOn "backoff" $.Values.retries.pause) }}
    {{- end }}
    {{- include "vaccination.route" $route | nindent 4 }}
    {{- end }}
    {{- end }}
    # The pod of `helm test` comes by here. The policies refuse everything else.
    {{- include "vaccination.route" (dict "root" $ "name" "other" "match" (list (dict "port" 8080)) "to" $name
          "timeout" $.Values.budget.other) | nindent 4 }}
{{- end }}
{{- end }}
{{- if .Values.evaluation.enabled }}
{{- range $store, $_ := .Values.evaluation.stores }}
{{- if not $.Values.evaluation.sidecars }}
---
# Whatever the mesh says of other hosts, here nobody understands its TLS.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: {{ $store }}
  labels:
    {{- include "vaccination.labels" $ | nindent 4 }}
spec:
  host: {{ include "vaccination.host" (dict "root" $ "name" $store) }}
  trafficPolicy:
    tls:
      mode: DISABLE
{{- else }}
---
# A policy for what is not HTTP applies to new connections only.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {{ $store }}
  labels:
    {{- include "vaccination.labels" $ | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $store }}
  action: ALLOW
  rules:
    - from:
        - source:
            principals:
              - {{ include "vaccination.principal" (dict "root" $ "name" "migrate") }}
              {{- range $name, $component := $components }}
              {{- if and $component.store (has $store (list $component.store "nats")) }}
              - {{ include "vaccination.principal" (dict "root" $ "name" $name) }}
              {{- end }}
              {{- end }}
              {{- if eq $store "nats" }}
              - {{ include "vaccination.principal" (dict "root" $ "name" "nats") }}
              {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
