{{- /* The one way in: what can be called from outside, by whom, and how often the gateway tries. */ -}}

{{- /* JSON: paths of the public RPCs, by the roles that may call them, joined with commas. */ -}}
{{- define "vaccination.publicPaths" -}}
{{- $byRoles := dict "operator" (list (printf "/%s/*" .Values.operations.service)) }}
{{- range $component := include "vaccination.components" . | fromJson }}
{{- range $service, $rpcs := $component.public }}
{{- range $rpc, $roles := $rpcs }}
{{- $key := join "," $roles }}
{{- $_ := set $byRoles $key (append (get $byRoles $key | default list) (printf "/%s/%s" $service $rpc)) }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $byRoles }}
{{- end }}

{{- define "vaccination.cors" -}}
{{- with .Values.gateway.cors.origins -}}
corsPolicy:
  allowOrigins:
    {{- range . }}
    - exact: {{ . }}
    {{- end }}
  allowMethods: [GET, POST, PUT]
  # By `service` an operator's call names the component that it is for.
  allowHeaders: [authorization, content-type, accept-language, service, x-grpc-web, x-user-agent, grpc-timeout, traceparent]
  exposeHeaders: [grpc-status, grpc-message, grpc-status-details-bin, retry-after]
  maxAge: 24h
{{- end }}
{{- end }}

{{- /* Routes to the RPCs of one component. One that is more specific comes before one that would take its calls too.
Keys: root, name, component. */ -}}
{{- define "vaccination.publicRoutes" -}}
{{- $gateway := .root.Values.gateway }}
{{- $budget := .root.Values.budget }}
{{- $operations := .root.Values.operations }}
{{- $name := .name }}
{{- $component := .component }}
{{- $again := dict "retryOn" $gateway.retryOn "backoff" .root.Values.retries.pause }}
{{- $retries := merge (dict "attempts" 2 "perTryTimeout" $budget.gatewayTry) $again }}
{{- $common := dict "root" .root "to" $name "timeout" $budget.gateway "retries" $retries "cors" true }}
{{- range $service, $rpcs := $component.public }}
{{- range $rpc, $_ := $rpcs }}
{{- $path := dict "uri" (dict "exact" (printf "/%s/%s" $service $rpc)) }}
{{- $route := merge (dict "name" (printf "%s.%s" $name $rpc) "match" (list $path)) $common }}
{{- if has $rpc $component.endless }}
# A stream without end has no timeout, and none may be written here: Istio refuses 0s.
{{ include "vaccination.route" (set (unset $route "timeout") "retries" (merge (dict "attempts" 1) $again)) }}
{{- else if hasKey ($component.crowded | default dict) $rpc }}
{{ include "vaccination.route" (set $route "subset" (lower $rpc)) }}
{{- end }}
{{- end }}
{{- $paths := dict "uri" (dict "prefix" (printf "/%s/" $service)) }}
{{- $shortName := splitList "." $service | last }}
{{ include "vaccination.route" (merge (dict "name" (printf "%s.%s" $name $shortName) "match" (list $paths)) $common) }}
{{- end }}
# Every component answers operators for itself. A gRPC call names the component in a header, a REST call in its path.
{{- $uri := dict "prefix" (printf "/%s/" $operations.service) }}
{{- $grpc := dict "uri" $uri "headers" (dict "service" (dict "exact" $name)) }}
{{- $restPath := dict "prefix" (printf "%s%s/" $operations.path $name) }}
{{- $rest := dict "uri" $uri "headers" (dict "x-envoy-original-path" $restPath) }}
{{- range $rpc := $operations.endless }}
{{- $exactly := dict "exact" (printf "/%s/%s" $operations.service $rpc) }}
{{- $match := list (dict "uri" $exactly "headers" $grpc.headers) (dict "uri" $exactly "headers" $rest.headers) }}
{{- $once := dict "name" (printf "%s.%s" $name $rpc) "match" $match }}
{{ include "vaccination.route" (unset (merge (set $once "retries" (dict "attempts" 0)) $common) "timeout") }}
{{- end }}
{{- $shortName := splitList "." $operations.service | last }}
{{ include "vaccination.route" (merge (dict "name" (printf "%s.%s" $name $shortName) "match" (list $grpc $rest)) $common) }}
{{- if $component.reflection }}
{{- $reflection := dict "uri" (dict "prefix" "/grpc.reflection.") }}
{{ include "vaccination.route" (dict "root" .root "name" (printf "%s.reflection" $name) "to" $name
     "match" (list $reflection) "timeout" $budget.gateway) }}
{{- end }}
{{- end }}

{{- /* Routes to a component's pages. Keys: root, name, component. */ -}}
{{- define "vaccination.pages" -}}
{{- $retries := dict "attempts" 2 "perTryTimeout" .root.Values.budget.gatewayTry "backoff" .root.Values.retries.pause }}
{{- $retryOn := dict "pages" .root.Values.gateway.retryOn }}
{{- $_ := set $retryOn "assets" (printf "%s,retriable-status-codes,404" $retryOn.pages) }}
{{- range $kind := list "pages" "assets" }}
{{- with get $.component $kind }}
{{- $matches := list }}
{{- range . }}
{{- $uri := ternary (dict "prefix" (trimSuffix "*" .)) (dict "exact" .) (hasSuffix "*" .) }}
{{- $matches = append $matches (dict "uri" $uri) }}
{{- end }}
{{ include "vaccination.route" (dict "root" $.root "name" (printf "%s.%s" $.name $kind) "to" $.name "match" $matches
     "timeout" $.root.Values.budget.gateway "retries" (merge (dict "retryOn" (get $retryOn $kind)) $retries)) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Labels by which the Gateway finds its proxies. Istio looks for them in all namespaces, so the namespace is among
them; else a gateway of the same name elsewhere would take this one's routes, or lose its own. The pods of 0.3 do not have
that label. The upgrade that replaces them still has to find them, and one after they are gone asks for the label. */ -}}
{{- define "vaccination.gatewaySelector" -}}
{{ include "vaccination.selector" (dict "root" . "name" .Values.gateway.name) }}
{{- $deployment := lookup "apps/v1" "Deployment" .Release.Namespace .Values.gateway.name }}
{{- $gateway := dict }}
{{- if .Values.istio.enabled }}
{{- $gateway = lookup "networking.istio.io/v1" "Gateway" .Release.Namespace .Values.gateway.name }}
{{- end }}
{{- if include "vaccination.podsHaveNamespace" (dict "deployment" $deployment "gateway" $gateway) }}
namespace: {{ .Release.Namespace }}
{{- end }}
{{- end }}

{{- /* Whether every proxy that runs in the mesh has the label with its namespace; empty: no. The Deployment's template
tells of pods that are still to come, so its rollout has to be complete. A Gateway that asks for the label already goes on:
no later rollout makes pods without it. Keys: deployment, gateway; as they are in the cluster, empty where there is none. */ -}}
{{- define "vaccination.podsHaveNamespace" -}}
{{- $labels := dig "spec" "template" "metadata" "labels" dict .deployment }}
{{- $status := .deployment.status | default dict }}
{{- $replicas := int $status.replicas }}
{{- $seen := eq (int $status.observedGeneration) (int (dig "metadata" "generation" 0 .deployment)) }}
{{- $updated := eq $replicas (int $status.updatedReplicas) }}
{{- $replaced := and $replicas $updated (eq $replicas (int $status.availableReplicas)) }}
{{- if not (hasKey $labels "sidecar.istio.io/inject") }}yes
{{- else if not (hasKey $labels "namespace") }}
{{- else if or (and $seen $replaced) (hasKey (dig "spec" "selector" dict .gateway) "namespace") }}yes
{{- end }}
{{- end }}

{{- define "vaccination.istio.gateway" }}
{{- $gateway := .Values.gateway }}
{{- $paths := include "vaccination.publicPaths" . | fromJson }}
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "vaccination.gatewaySelector" . | nindent 4 }}
  servers:
    - port:
        number: 8080
        {{- if $gateway.tlsSecret }}
        name: https
        protocol: HTTPS
        {{- else }}
        name: http
        protocol: HTTP2
        {{- end }}
      hosts: {{ toJson $gateway.hosts }}
      {{- with $gateway.tlsSecret }}
      tls:
        mode: SIMPLE
        credentialName: {{ . }}
      {{- end }}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
spec:
  hosts: {{ toJson $gateway.hosts }}
  gateways: [{{ $gateway.name }}]
  # Gateways in other namespaces do not see these routes, not even where a Gateway finds their pods by mistake.
  exportTo: ["."]
  http:
    # Headers that are too long or too many: the listener has marked the call.
    - name: too-large
      match:
        - headers:
            x-too-large:
              exact: headers
      {{- include "vaccination.cors" $ | nindent 6 }}
      directResponse:
        status: 431
        body:
          string: Request Header Fields Too Large
    {{- $components := include "vaccination.components" . | fromJson }}
    {{- range $name, $component := $components }}
    {{- include (ternary "vaccination.publicRoutes" "vaccination.pages" (hasKey $component "store"))
          (dict "root" $ "name" $name "component" $component) | nindent 4 }}
    {{- end }}
    # A call in REST finds this route first. Then the filter that makes gRPC of it asks for the route again, or refuses
    # the call. So the route is there for the browsers' policy alone. It names a component because Envoy answers no
    # preflight on a route without one.
    {{- $rest := dict "uri" (dict "prefix" $gateway.restPath)
          "withoutHeaders" (dict "content-type" (dict "prefix" "application/grpc")) }}
    {{- include "vaccination.route" (dict "root" . "name" "rest" "to" (keys $components | sortAlpha | first)
          "match" (list $rest) "timeout" .Values.budget.gateway "cors" true) | nindent 4 }}
    - name: description
      match:
        - uri:
            exact: /openapi.json
      {{- include "vaccination.cors" $ | nindent 6 }}
      headers:
        response:
          set:
            content-type: application/json
      directResponse:
        status: 200
        body:
          string: {{ .Files.Get "files/openapi.json" | quote }}
    - name: nothing
      {{- include "vaccination.cors" $ | nindent 6 }}
      directResponse:
        status: 404
        body:
          string: no such method or path
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $gateway.name }}
  jwtRules:
    - issuer: {{ .Values.auth.issuer | quote }}
      audiences: {{ toJson .Values.auth.audiences }}
      {{- $_ := required "auth.jwksUri (or auth.jwks, in place) is needed: the keys that tokens are checked with" (coalesce .Values.auth.jwksUri .Values.auth.jwks) }}
      {{- if .Values.auth.jwksUri }}
      jwksUri: {{ .Values.auth.jwksUri | quote }}
      {{- else }}
      jwks: {{ .Values.auth.jwks | quote }}
      {{- end }}
      # By default Istio would take a token from a query parameter too, and query parameters end up in logs.
      fromHeaders:
        - name: Authorization
          prefix: "Bearer "
      # Services get the token's claims and never the token itself.
      outputPayloadToHeader: x-jwt-payload
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $gateway.name }}
  action: ALLOW
  rules:
    {{- $claim := printf "request.auth.claims[%s]" (.Values.auth.claims.roles | default "roles") }}
    {{- range $roles, $rpcs := $paths }}
    - to:
        - operation:
            paths: {{ toJson $rpcs }}
      when:
        - key: {{ $claim }}
          values: {{ toJson (splitList "," $roles) }}
    {{- end }}
    # A token whose roles are not a list of names comes through: the service explains what is wrong with it, and admits
    # nobody.
    - from:
        - source:
            requestPrincipals: ["*"]
      when:
        - key: {{ $claim }}
          notValues: ["*"]
    # What is no public RPC is for the routes: reflection, the API's description, and 404 for the rest.
    - to:
        - operation:
            notPaths:
              {{- range $paths }}
              {{- toYaml . | nindent 14 }}
              {{- end }}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $gateway.name }}
  accessLogging:
    - providers:
        - name: envoy
{{- end }}
