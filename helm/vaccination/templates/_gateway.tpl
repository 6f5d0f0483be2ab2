{{- /* The one way in: what is reached from outside, by whom, and within which limits. */ -}}
{{- define "istio.gateway" }}
{{- $gateway := .Values.gateway }}
{{- $paths := include "publicPaths" . | fromJson }}
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "labels" . | nindent 4 }}
spec:
  selector:
    app.kubernetes.io/name: {{ $gateway.name }}
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
    {{- include "labels" . | nindent 4 }}
spec:
  hosts: {{ toJson $gateway.hosts }}
  gateways: [{{ $gateway.name }}]
  http:
    {{- range $name, $component := .Values.components }}
    {{- $route := list (dict "destination" (dict "host" (include "host" (list $ $name)) "port" (dict "number" 8080))) }}
    {{- range $service, $rpcs := $component.public }}
    {{- range $rpc := $component.endless }}
    {{- if hasKey $rpcs $rpc }}
    - name: {{ $name }}.{{ $rpc }}
      match:
        - uri:
            exact: /{{ $service }}/{{ $rpc }}
      # No timeout: none at all. Istio refuses to be told 0s.
      retries:
        attempts: 1
        retryOn: {{ $gateway.retryOn | quote }}
        backoff: {{ $.Values.retries.pause }}
      {{- include "cors" $ | nindent 6 }}
      route: {{ toJson $route }}
    {{- end }}
    {{- end }}
    - name: {{ $name }}.{{ splitList "." $service | last }}
      match:
        - uri:
            prefix: /{{ $service }}/
      timeout: {{ $.Values.budget.gateway }}
      retries:
        {{- include "gatewayRetries" $ | nindent 8 }}
      {{- include "cors" $ | nindent 6 }}
      route: {{ toJson $route }}
    {{- end }}
    # Every service answers for itself: a call says which in a header, a REST path in itself.
    - name: {{ $name }}.OperationsService
      match:
        - uri:
            prefix: {{ include "operations" $ }}
          headers:
            service:
              exact: {{ $name }}
        - uri:
            prefix: {{ include "operations" $ }}
          headers:
            x-envoy-original-path:
              prefix: /v1/operations/{{ $name }}/
      timeout: {{ $.Values.budget.gateway }}
      retries:
        {{- include "gatewayRetries" $ | nindent 8 }}
      {{- include "cors" $ | nindent 6 }}
      route: {{ toJson $route }}
    {{- if $component.reflection }}
    - name: {{ $name }}.reflection
      match:
        - uri:
            prefix: /grpc.reflection.
      timeout: {{ $.Values.budget.gateway }}
      retries:
        attempts: 0
      route: {{ toJson $route }}
    {{- end }}
    {{- end }}
    # REST comes by here once more: the filter that makes gRPC of it then asks for the route again. What this route is
    # for is the browsers' policy.
    - name: rest
      match:
        - uri:
            prefix: /v1/
          withoutHeaders:
            content-type:
              prefix: application/grpc
      timeout: {{ $.Values.budget.gateway }}
      retries:
        attempts: 0
      {{- include "cors" $ | nindent 6 }}
      route:
        - destination:
            host: {{ include "host" (list $ "mypage") }}
            port:
              number: 8080
    - name: description
      match:
        - uri:
            exact: /openapi.json
      {{- include "cors" $ | nindent 6 }}
      headers:
        response:
          set:
            content-type: application/json
      directResponse:
        status: 200
        body:
          string: {{ .Files.Get "files/openapi.json" | quote }}
    - name: nothing
      {{- include "cors" $ | nindent 6 }}
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
    {{- include "labels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $gateway.name }}
  jwtRules:
    - issuer: {{ .Values.auth.issuer | quote }}
      audiences: {{ toJson .Values.auth.audiences }}
      {{- $_ := required "auth.jwksUri (or auth.jwks, in place) is needed: the keys of those who sign tokens" (coalesce .Values.auth.jwksUri .Values.auth.jwks) }}
      {{- if .Values.auth.jwksUri }}
      jwksUri: {{ .Values.auth.jwksUri | quote }}
      {{- else }}
      jwks: {{ .Values.auth.jwks | quote }}
      {{- end }}
      # Only here: by default a query parameter would do too, and end up in logs.
      fromHeaders:
        - name: Authorization
          prefix: "Bearer "
      # What services know of the caller; the token itself stays outside.
      outputPayloadToHeader: x-jwt-payload
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "labels" . | nindent 4 }}
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
    # Roles that are no list of names are a token's fault, which the service explains; they admit nobody.
    - from:
        - source:
            requestPrincipals: ["*"]
      when:
        - key: {{ $claim }}
          notValues: ["*"]
    # The routes know what else there is: reflection and the API's description, else 404.
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
    {{- include "labels" . | nindent 4 }}
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ $gateway.name }}
  accessLogging:
    - providers:
        - name: envoy
{{- end }}
