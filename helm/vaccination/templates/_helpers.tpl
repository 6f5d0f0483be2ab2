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
attempts: 1
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
