{{- define "labels" -}}
app.kubernetes.io/part-of: vaccination
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* A component's name in the cluster's DNS. */ -}}
{{- define "host" -}}
{{ index . 1 }}.{{ (index . 0).Release.Namespace }}.svc.cluster.local
{{- end }}

{{- /* Who a component is, to others in the mesh. */ -}}
{{- define "principal" -}}
{{ (index . 0).Values.istio.trustDomain }}/ns/{{ (index . 0).Release.Namespace }}/sa/{{ index . 1 }}
{{- end }}

{{- define "operations" -}}
/vaccination.operations.v1.OperationsService/
{{- end }}

{{- /* JSON: paths of the public RPCs by the roles that may call them, joined with commas. */ -}}
{{- define "publicPaths" -}}
{{- $byRoles := dict "operator" (list (printf "%s*" (include "operations" .))) }}
{{- range $component := .Values.components }}
{{- range $service, $rpcs := $component.public }}
{{- range $rpc, $roles := $rpcs }}
{{- $key := join "," $roles }}
{{- $_ := set $byRoles $key (append (get $byRoles $key | default list) (printf "/%s/%s" $service $rpc)) }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $byRoles }}
{{- end }}

{{- /* The gateway's retries: the two first conditions say that the service never saw the request. */ -}}
{{- define "gatewayRetries" -}}
attempts: 2
perTryTimeout: {{ .Values.budget.gatewayTry }}
retryOn: {{ .Values.gateway.retryOn | quote }}
backoff: {{ .Values.retries.pause }}
{{- end }}

{{- define "cors" -}}
{{- with .Values.gateway.cors.origins -}}
corsPolicy:
  allowOrigins:
    {{- range . }}
    - exact: {{ . }}
    {{- end }}
  allowMethods: [GET, POST, PUT]
  allowHeaders: [authorization, content-type, accept-language, x-grpc-web, x-user-agent, grpc-timeout, traceparent]
  exposeHeaders: [grpc-status, grpc-message, grpc-status-details-bin, retry-after]
  maxAge: 24h
{{- end }}
{{- end }}

{{- /* All of Istio's objects. Without Istio the gateway's own Envoy is made of them, see gateway.yaml. */ -}}
{{- define "istio.objects" }}
{{- include "istio.mesh" . }}
---
{{ include "istio.gateway" . }}
---
{{ include "istio.filters" . }}
{{- end }}

{{- define "image" -}}
"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "evaluationImage" -}}
"{{ .Values.evaluation.image.repository }}:{{ .Values.evaluation.image.tag | default .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- /* Labels that choose a component's pods; what selects a Deployment's pods can never change. */ -}}
{{- define "selector" -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- /* Labels of a pod; with Istio it is in the mesh, whatever its namespace says. No versions: a new chart would restart
what it leaves as it is, evaluation's stores too. */ -}}
{{- define "podLabels" -}}
{{ include "selector" . }}
app.kubernetes.io/part-of: vaccination
{{- if (index . 0).Values.istio.enabled }}
sidecar.istio.io/inject: "true"
{{- end }}
{{- end }}

{{- /* Of every pod: Pod Security "restricted". */ -}}
{{- define "pod" -}}
automountServiceAccountToken: false
# Services of this namespace would come as variables, some with names that are settings.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* Replicas apart from one another where there is room: one node or zone that is lost is not all of them. */ -}}
{{- define "spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "selector" $ | nindent 8 }}
    # Of one version: else the pods that are about to go would count.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}

{{- /* The Secret that a component reads. */ -}}
{{- define "secret" -}}
{{ (get (index . 0).Values.components (index . 1)).existingSecret | default (index . 1) }}
{{- end }}

{{- /* A component's settings, but for the secret ones. */ -}}
{{- define "settings" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
{{- range $callee, $other := $root.Values.components }}
{{- with get ($other.callers | default dict) $name }}
{{ upper $callee }}_TARGET: {{ include "host" (list $root $callee) }}:8080
{{ upper $callee }}_TIMEOUT: {{ trimSuffix "s" (get $root.Values.budget $name) | quote }}
{{- if not $root.Values.istio.enabled }}
{{ upper $callee }}_SERVICE_CONFIG: {{ include "serviceConfig" (list $root .) | fromYaml | toJson | quote }}
{{- end }}
{{- end }}
{{- end }}
NATS_URL: {{ $root.Values.nats.url | quote }}
NATS_USER: {{ $name }}
STREAM_REPLICAS: {{ $root.Values.nats.streamReplicas | quote }}
DRAIN_SECONDS: {{ $root.Values.lifecycle.drain | trimSuffix "s" | quote }}
SHUTDOWN_SECONDS: {{ $root.Values.lifecycle.shutdown | trimSuffix "s" | quote }}
{{- if and (not $root.Values.istio.enabled) (get $root.Values.components $name).callers }}
MAX_CONNECTION_AGE: {{ $root.Values.lifecycle.connectionAge | trimSuffix "s" | quote }}
{{- end }}
{{- with $root.Values.telemetry.otlpEndpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- with $root.Values.auth.claims }}
CLAIM_NAMES: {{ toJson . | quote }}
{{- end }}
{{- range $variable, $value := (get $root.Values.components $name).env }}
{{ $variable }}: {{ tpl (toString $value) $root | quote }}
{{- end }}
{{- end }}

{{- /* What the mesh does for calls between components, done by gRPC itself: balancing and retries. How long a call may take is
  the caller's own setting: gRPC 1.85 was seen to give up after one second when told 2s here. */ -}}
{{- define "serviceConfig" -}}
loadBalancingConfig:
  - round_robin: {}
# gRPC's own retry budget: a failure costs a token, an answer brings back a part of one, and below half nothing is retried.
retryThrottling:
  maxTokens: {{ (index . 0).Values.retries.minConcurrency }}
  tokenRatio: {{ divf (index . 0).Values.retries.budgetPercent 100 }}
methodConfig:
  {{- $root := index . 0 }}
  {{- range index . 1 }}
  {{- $parts := splitList "/" .path }}
  - name:
      - service: {{ index $parts 1 }}
        method: {{ index $parts 2 }}
    {{- if .retries }}
    retryPolicy:
      maxAttempts: {{ add1 .retries }}
      initialBackoff: {{ printf "%.3fs" (divf (trimSuffix "ms" $root.Values.retries.pause) 1000) }}
      maxBackoff: 1s
      backoffMultiplier: 2
      retryableStatusCodes: [UNAVAILABLE]
    {{- end }}
  {{- end }}
{{- end }}

{{- /* The volumes of a component, and where they are mounted. */ -}}
{{- define "volumes" -}}
volumes:
  - name: tmp
    emptyDir: {}
  - name: secrets
    secret:
      secretName: {{ include "secret" . }}
      # An unknown key in it is not our business.
      items:
        - {key: database_url, path: database_url}
        - {key: nats_password, path: nats_password}
  {{- with (index . 0).Values.trust.existingSecret }}
  - name: trust
    secret:
      secretName: {{ . }}
  {{- end }}
{{- end }}

{{- define "mounts" -}}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: secrets
    mountPath: /secrets
    readOnly: true
  {{- if .Values.trust.existingSecret }}
  - name: trust
    mountPath: /trust
    readOnly: true
  {{- end }}
{{- end }}

{{- define "whereSecretsAre" -}}
- name: SECRETS_DIR
  value: /secrets
{{- if .Values.trust.existingSecret }}
- name: SSL_CERT_FILE
  value: /trust/ca.crt
{{- end }}
{{- end }}

{{- /* More replicas under load. */ -}}
{{- define "scaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .name }}
  labels:
    app.kubernetes.io/name: {{ .name }}
    {{- include "labels" .root | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .name }}
  minReplicas: {{ .about.replicas }}
  maxReplicas: {{ .about.maxReplicas }}
  metrics:
    # The component's own: a proxy beside it, almost idle, would halve the figure.
    - type: ContainerResource
      containerResource:
        name: cpu
        container: {{ .container }}
        target:
          type: Utilization
          averageUtilization: {{ .root.Values.autoscaling.cpuPercent }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ .root.Values.autoscaling.calm | trimSuffix "s" }}
{{- end }}

{{- define "proxyStatistics" -}}
"proxyStatsMatcher": {"inclusionPrefixes": ["cluster.outbound|8080|", "crowd.", "customer.", "address."]}
{{- end }}
