{{- /* Every name here begins with the chart's: Helm has one space of names for a chart and all that it is installed
with, and of two defines with one name it silently takes the one it read last. A define that needs more than the root
takes a dict; its comment names the keys. */ -}}

{{- define "vaccination.labels" -}}
app.kubernetes.io/part-of: vaccination
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ include "vaccination.version" .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "vaccination.version" (printf "%s-%s" .Chart.Name .Chart.Version) }}
{{- end }}

{{- /* A version as labels and images' tags take it: their characters do not include the plus before build metadata, as
in 1.2.3+abc. The version is the argument. */ -}}
{{- define "vaccination.version" -}}
{{ . | replace "+" "_" | trunc 63 | trimSuffix "-" | trimSuffix "_" | trimSuffix "." }}
{{- end }}

{{- /* Name and labels of an object that belongs to a workload. Keys: root; name; app, the workload's name where the
object has another one. */ -}}
{{- define "vaccination.metadata" -}}
name: {{ .name }}
labels:
  app.kubernetes.io/name: {{ .app | default .name }}
  {{- include "vaccination.labels" .root | nindent 2 }}
{{- end }}

{{- /* Labels that choose a workload's pods. They can never change: Kubernetes forbids it. Keys: root, name. */ -}}
{{- define "vaccination.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- /* Labels of a pod. With Istio it is in the mesh, whatever its namespace says. The chart's version is not among them: a
new chart would then restart pods that it does not change, evaluation's stores too. Keys: root; name; outside, true for
a pod that is not in the mesh. */ -}}
{{- define "vaccination.podLabels" -}}
{{ include "vaccination.selector" . }}
app.kubernetes.io/part-of: vaccination
{{- if .root.Values.istio.enabled }}
sidecar.istio.io/inject: {{ not .outside | quote }}
{{- end }}
{{- end }}

{{- /* A workload's name in the cluster's DNS. Keys: root, name. */ -}}
{{- define "vaccination.host" -}}
{{ .name }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}
{{- end }}

{{- /* The identity by which others in the mesh know a workload. Keys: root, name. */ -}}
{{- define "vaccination.principal" -}}
{{ .root.Values.istio.trustDomain }}/ns/{{ .root.Release.Namespace }}/sa/{{ .name }}
{{- end }}

{{- /* JSON: a workload's own values above those of `default`. Maps are merged; anything else of its own replaces the
default, `false` and an empty list too, which sprig's merge would take for missing. Keys: root, own. */ -}}
{{- define "vaccination.workload" -}}
{{- $merged := deepCopy .root.Values.default }}
{{- range $key, $value := .own }}
{{- $default := get $merged $key }}
{{- if and (kindIs "map" $value) (kindIs "map" $default) }}
{{- $_ := set $merged $key (merge (deepCopy $value) $default) }}
{{- else }}
{{- $_ := set $merged $key $value }}
{{- end }}
{{- end }}
{{- toJson $merged }}
{{- end }}

{{- /* JSON: the enabled components by name, each above `default`. Among the callers of each are only enabled ones. */ -}}
{{- define "vaccination.components" -}}
{{- $enabled := dict }}
{{- range $name, $own := .Values.components }}
{{- $component := include "vaccination.workload" (dict "root" $ "own" $own) | fromJson }}
{{- if $component.enabled }}
{{- $_ := set $enabled $name $component }}
{{- end }}
{{- end }}
{{- range $callee, $component := .Values.components }}
{{- range $caller, $_ := $component.callers }}
{{- if not (hasKey $.Values.components $caller) }}
{{- fail (printf "components.%s.callers: there is no component %s" $callee $caller) }}
{{- else if and (hasKey $enabled $caller) (not (hasKey $enabled $callee)) }}
{{- fail (printf "components.%s is enabled and calls %s, which is not" $caller $callee) }}
{{- else if hasKey $enabled $callee }}
{{- if not (hasKey $enabled $caller) }}
{{- $_ := unset (get $enabled $callee).callers $caller }}
{{- else if not (dig "deadlines" $callee "" (get $enabled $caller)) }}
{{- fail (printf "components.%s.deadlines.%s is needed: how long it waits for a call to %s" $caller $callee $callee) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $enabled }}
{{- end }}

{{- /* JSON: those that a component calls, by name, each with the list of its calls. Keys: root, name. */ -}}
{{- define "vaccination.callees" -}}
{{- $found := dict }}
{{- range $callee, $component := include "vaccination.components" .root | fromJson }}
{{- with get ($component.callers | default dict) $.name }}
{{- $_ := set $found $callee . }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- /* A workload's account. Keys: root; name; workload, its values; hook, annotations that make it part of a hook. */ -}}
{{- define "vaccination.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "vaccination.metadata" . | nindent 2 }}
  {{- with merge (dict) (.hook | default dict) .workload.serviceAccountAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* What every pod has: its account, its user, and the node that it may run on. Keys: root; name; workload, its
values. */ -}}
{{- define "vaccination.pod" -}}
serviceAccountName: {{ .name }}
automountServiceAccountToken: false
# The namespace's Services would come as environment variables, and some would have the names of settings.
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .workload.podSecurityContext | nindent 2 }}
{{- with .workload.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .workload.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .workload.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .workload.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .workload.topologySpreadConstraints }}
{{- $own := dict "labelSelector" (dict "matchLabels" (include "vaccination.selector" $ | fromYaml)) }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml (merge (deepCopy .) $own) | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "vaccination.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* Of pods that end. With an ordinary sidecar the proxy would run on and the pod would never end; a native one is an
init container, which Kubernetes stops when the pod's own containers have ended. */ -}}
{{- define "vaccination.endingPodAnnotations" -}}
{{- if .Values.istio.enabled }}
sidecar.istio.io/nativeSidecar: "true"
{{- end }}
{{- end }}

{{- define "vaccination.image" -}}
"{{ .Values.image.repository }}:{{ .Values.image.tag | default (include "vaccination.version" .Chart.AppVersion) }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "vaccination.evaluationImage" -}}
"{{ .Values.evaluation.image.repository }}:{{ .Values.evaluation.image.tag | default .Values.image.tag | default (include "vaccination.version" .Chart.AppVersion) }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- /* Name of the Secret that a component reads. Keys: root, name. */ -}}
{{- define "vaccination.secret" -}}
{{ (get .root.Values.components .name).existingSecret | default .name }}
{{- end }}

{{- /* Whether a component's passwords are those in evaluation.existingSecret; empty: no. Keys: root, name. */ -}}
{{- define "vaccination.hasGivenPasswords" -}}
{{- $evaluation := .root.Values.evaluation }}
{{- if and $evaluation.enabled $evaluation.existingSecret (not (get .root.Values.components .name).existingSecret) }}yes{{ end }}
{{- end }}

{{- /* The URL of a component's own store, without the password; empty: it is a secret as a whole. Keys: root, name. */ -}}
{{- define "vaccination.databaseUrl" -}}
{{- $component := get .root.Values.components .name }}
{{- if $component.databaseUrl }}
{{- $component.databaseUrl }}
{{- else if include "vaccination.hasGivenPasswords" . }}
{{- include "vaccination.evaluationUrl" (dict "root" .root "name" .name "login" .name) }}
{{- end }}
{{- end }}

{{- /* The URL of a component's database in evaluation's stores. Keys: root; name; login, USER or USER:PASSWORD. */ -}}
{{- define "vaccination.evaluationUrl" -}}
{{- $store := (get .root.Values.components .name).store }}
{{- $at := printf "%s@%s" .login (include "vaccination.host" (dict "root" .root "name" $store)) }}
{{- if eq $store "mongo" -}}
mongodb://{{ $at }}:27017/{{ .name }}?replicaSet=rs0&authSource={{ .name }}
{{- else -}}
postgresql://{{ $at }}:5432/{{ .name }}?sslmode=disable
{{- end }}
{{- end }}

{{- /* Where the page signs people in. The argument is `auth`. */ -}}
{{- define "vaccination.signIn" -}}
ISSUER: {{ .issuer | quote }}
CLIENT_ID: {{ .signIn.clientId | quote }}
SCOPE: {{ .signIn.scope | quote }}
{{- with .signIn.audience }}
AUDIENCE: {{ . | quote }}
{{- end }}
{{- with .signIn.authorizationEndpoint }}
AUTHORIZATION_ENDPOINT: {{ . | quote }}
{{- end }}
{{- with .signIn.tokenEndpoint }}
TOKEN_ENDPOINT: {{ . | quote }}
{{- end }}
{{- with .signIn.endSessionEndpoint }}
END_SESSION_ENDPOINT: {{ . | quote }}
{{- end }}
{{- end }}

{{- /* A component's settings, without the secret ones. Keys: root; name; component, its values. */ -}}
{{- define "vaccination.settings" -}}
{{- $values := .root.Values }}
{{- if .component.pages }}
{{ include "vaccination.signIn" $values.auth }}
{{- end }}
{{- range $callee, $calls := include "vaccination.callees" . | fromJson }}
{{ upper $callee }}_TARGET: {{ include "vaccination.host" (dict "root" $.root "name" $callee) }}:8080
{{ upper $callee }}_TIMEOUT: {{ tpl (get $.component.deadlines $callee) $.root | trimSuffix "s" | quote }}
{{- if not $values.istio.enabled }}
{{ upper $callee }}_SERVICE_CONFIG: {{ include "vaccination.serviceConfig" (dict "root" $.root "calls" $calls) | fromYaml | toJson | quote }}
{{- end }}
{{- end }}
{{- if .component.store }}
{{- with include "vaccination.databaseUrl" . }}
DATABASE_URL: {{ . | quote }}
{{- end }}
NATS_URL: {{ $values.nats.url | quote }}
NATS_USER: {{ .name }}
STREAM_REPLICAS: {{ $values.nats.streamReplicas | quote }}
RETENTION_REFUSED_DAYS: {{ $values.retention.refusedDays | quote }}
RETENTION_PASSED_DAYS: {{ $values.retention.passedDays | quote }}
RETENTION_STREAM_DAYS: {{ $values.retention.streamDays | quote }}
RETENTION_ACCESSES_DAYS: {{ $values.retention.accessesDays | quote }}
MISSED_AFTER_HOURS: {{ $values.counter.missedAfterHours | quote }}
{{- end }}
DRAIN_SECONDS: {{ $values.lifecycle.drain | trimSuffix "s" | quote }}
SHUTDOWN_SECONDS: {{ $values.lifecycle.shutdown | trimSuffix "s" | quote }}
{{- if and (not $values.istio.enabled) .component.callers }}
MAX_CONNECTION_AGE: {{ $values.lifecycle.connectionAge | trimSuffix "s" | quote }}
{{- end }}
{{- with $values.telemetry.otlpEndpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- with $values.auth.claims }}
CLAIM_NAMES: {{ toJson . | quote }}
{{- end }}
{{- range $variable, $value := .component.env }}
{{ $variable }}: {{ tpl (toString $value) $.root | quote }}
{{- end }}
{{- end }}

{{- /* Without Istio gRPC itself does what the mesh does for calls between components: balancing and retries. How long a
call may take is not here but a setting of the caller: gRPC 1.85 was seen to give up after one second when it was told
2s here. Keys: root, calls. */ -}}
{{- define "vaccination.serviceConfig" -}}
{{- $retries := .root.Values.retries }}
loadBalancingConfig:
  - round_robin: {}
# gRPC's own retry budget. A failed call costs a token and an answered one brings back a part of a token; while less
# than half of the tokens are left, nothing is retried.
retryThrottling:
  maxTokens: {{ $retries.minConcurrency }}
  tokenRatio: {{ divf $retries.budgetPercent 100 }}
methodConfig:
  {{- range .calls }}
  {{- $parts := splitList "/" .path }}
  - name:
      - service: {{ index $parts 1 }}
        method: {{ index $parts 2 }}
    {{- if .retries }}
    retryPolicy:
      maxAttempts: {{ add1 .retries }}
      initialBackoff: {{ printf "%.3fs" (divf (trimSuffix "ms" $retries.pause) 1000) }}
      maxBackoff: 1s
      backoffMultiplier: 2
      retryableStatusCodes: [UNAVAILABLE]
    {{- end }}
  {{- end }}
{{- end }}

{{- /* Fails where a component's values name a secret that would not be read. Keys: root, name. */ -}}
{{- define "vaccination.refuseUnreadSecrets" -}}
{{- $secrets := (get .root.Values.components .name).secrets | default dict }}
{{- $url := include "vaccination.databaseUrl" . }}
{{- if and $secrets.database_url .root.Values.evaluation.enabled }}
{{- fail (printf "components.%s.secrets.database_url: with evaluation.enabled the component has a store of evaluation's" .name) }}
{{- else if and $secrets.database_url $url }}
{{- fail (printf "components.%s.secrets.database_url: there is databaseUrl, so only database_password is read" .name) }}
{{- else if and $secrets.database_password (not $url) }}
{{- fail (printf "components.%s.secrets.database_password: databaseUrl is needed, which has the rest of the URL" .name) }}
{{- end }}
{{- end }}

{{- /* Volumes of a component's pods, those of its migrations too. Keys: root, name. */ -}}
{{- define "vaccination.volumes" -}}
{{- $_ := include "vaccination.refuseUnreadSecrets" . -}}
volumes:
  - name: tmp
    emptyDir: {}
  - name: secrets
    projected:
      sources:
        # Other keys of the Secrets are not mounted.
        {{- $given := include "vaccination.hasGivenPasswords" . }}
        {{- $secret := ternary .root.Values.evaluation.existingSecret (include "vaccination.secret" .) (eq $given "yes") }}
        {{- $own := (get .root.Values.components .name).secrets | default dict }}
        {{- range list (ternary "database_password" "database_url" (ne (include "vaccination.databaseUrl" .) "")) "nats_password" }}
        {{- $where := get $own . | default dict }}
        - secret:
            name: {{ $where.secret | default $secret }}
            items:
              - {key: {{ $where.key | default (ternary $.name . (eq $given "yes")) }}, path: {{ . }}}
        {{- end }}
  {{- with .root.Values.trust.existingSecret }}
  - name: trust
    secret:
      secretName: {{ . }}
  {{- end }}
{{- end }}

{{- define "vaccination.volumeMounts" -}}
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

{{- /* Environment variables that tell where the mounted secrets are. */ -}}
{{- define "vaccination.secretsEnv" -}}
- name: SECRETS_DIR
  value: /secrets
{{- if .Values.trust.existingSecret }}
- name: SSL_CERT_FILE
  value: /trust/ca.crt
{{- end }}
{{- end }}

{{- /* Whether a workload has an autoscaler; empty: no. Its values are the argument. */ -}}
{{- define "vaccination.isScaled" -}}
{{- if gt (int .maxReplicas) (int .replicas) }}yes{{ end }}
{{- end }}

{{- /* A Deployment's autoscaler. Keys: root; name; container, the one whose CPU counts; workload, its values. */ -}}
{{- define "vaccination.autoscaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "vaccination.metadata" (dict "root" .root "name" .name) | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .name }}
  minReplicas: {{ .workload.replicas }}
  maxReplicas: {{ .workload.maxReplicas }}
  metrics:
    # Only this container's CPU counts. With that of the whole pod, a proxy beside it that is almost idle would halve
    # the figure.
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

{{- /* Lets a node be drained, one replica at a time. Keys: root, name. */ -}}
{{- define "vaccination.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "vaccination.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "vaccination.selector" . | nindent 6 }}
{{- end }}

{{- /* Part of the annotation proxy.istio.io/config: the statistics that alerts ask for and Istio's proxies do not keep
by themselves. */ -}}
{{- define "vaccination.proxyStatistics" -}}
"proxyStatsMatcher": {"inclusionPrefixes": ["cluster.outbound|8080|", "crowd.", "customer.", "address."]}
{{- end }}
