{{- /* What Istio's own objects cannot say of the gateway: the three protocols, errors in one form, limits at the door. */ -}}
{{- define "before" }}
    - applyTo: HTTP_FILTER
      match:
        context: GATEWAY
        listener:
          filterChain:
            filter:
              name: envoy.filters.network.http_connection_manager
              subFilter:
                name: {{ . }}
      patch:
        operation: INSERT_BEFORE
        value:
{{- end }}
{{- /* One bucket for each value of the descriptor; who has none is free. */ -}}
{{- define "ratelimit" -}}
name: local_ratelimit.{{ .name }}
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
  stat_prefix: {{ .name }}
  filter_enabled:
    default_value: {numerator: 100, denominator: HUNDRED}
  filter_enforced:
    default_value: {numerator: 100, denominator: HUNDRED}
  token_bucket: {max_tokens: 4294967295, tokens_per_fill: 4294967295, fill_interval: 1s}
  always_consume_default_token_bucket: false
  rate_limited_as_resource_exhausted: true
  max_dynamic_descriptors: {{ .callers }}
  descriptors:
    - entries:
        - key: {{ .key }}
      token_bucket:
        max_tokens: {{ .limit }}
        tokens_per_fill: {{ .limit }}
        fill_interval: 1s
{{- end }}
{{- define "istio.filters" }}
{{- $gateway := .Values.gateway }}
{{- $limits := $gateway.limits }}
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "labels" . | nindent 4 }}
spec:
  workloadSelector:
    labels:
      app.kubernetes.io/name: {{ $gateway.name }}
  configPatches:
    - applyTo: NETWORK_FILTER
      match:
        context: GATEWAY
        listener:
          filterChain:
            filter:
              name: envoy.filters.network.http_connection_manager
      patch:
        operation: MERGE
        value:
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
            # What the routes judge is what the service sees.
            merge_slashes: true
            max_request_headers_kb: {{ $limits.headersKiB }}
            request_headers_timeout: {{ $limits.headersTimeout }}
            request_timeout: {{ $limits.requestTimeout }}
            stream_idle_timeout: {{ $limits.streamIdle }}
            drain_timeout: {{ $limits.drain }}
            http1_safe_max_connection_duration: true
            common_http_protocol_options:
              max_headers_count: {{ $limits.headers }}
              idle_timeout: {{ $limits.connectionIdle }}
              max_connection_duration: {{ $limits.connectionAge }}
            http2_protocol_options:
              max_concurrent_streams: {{ $limits.streams }}
              # What a client may have sent that nobody has read yet.
              initial_stream_window_size: 65536
              initial_connection_window_size: 1048576
              connection_keepalive:
                interval: 30s
                timeout: 10s
            # Whoever calls from outside does not say who he is, nor by which way he came: the filters below do.
            early_header_mutation_extensions:
              - name: envoy.http.early_header_mutation.header_mutation
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
                  mutations:
                    - remove: x-jwt-payload
                    - remove: x-envoy-original-path
                    - remove: x-forwarded-client-cert
            local_reply_config: {{ .Files.Get "files/local-replies.json" }}
    {{- range $name, $component := .Values.components }}
    {{- range $service, $rpcs := $component.public }}
    {{- range $rpc := $component.endless }}
    {{- if hasKey $rpcs $rpc }}
    - applyTo: HTTP_ROUTE
      match:
        context: GATEWAY
        routeConfiguration:
          vhost:
            route:
              name: {{ $name }}.{{ $rpc }}
      patch:
        operation: MERGE
        value:
          route:
            idle_timeout: 0s
    {{- end }}
    {{- end }}
    {{- end }}
    {{- end }}
    {{- range $name, $component := .Values.components }}
    {{- range $rpc, $crowd := $component.crowded }}
    {{- if $crowd.perSecond }}
    - applyTo: HTTP_ROUTE
      match:
        context: GATEWAY
        routeConfiguration:
          vhost:
            route:
              name: {{ $name }}.{{ $rpc }}
      patch:
        operation: MERGE
        value:
          typed_per_filter_config:
            local_ratelimit.crowd:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: crowd
              filter_enabled:
                default_value: {numerator: 100, denominator: HUNDRED}
              filter_enforced:
                default_value: {numerator: 100, denominator: HUNDRED}
              # A twentieth every twentieth of a second, which is the shortest that Envoy has: a flood would use up a whole
              # second's at its beginning, all but a few of them in vain, and nobody would be let in for the rest of it.
              {{- $few := div (add $crowd.perSecond 19) 20 }}
              token_bucket: {max_tokens: {{ max $few $crowd.inFlight }}, tokens_per_fill: {{ $few }}, fill_interval: 0.05s}
              # By which the gateway's replies know it, see files/local-replies.json.
              status:
                code: 507
              rate_limited_as_resource_exhausted: true
    {{- end }}
    {{- end }}
    {{- end }}
    # The filter that makes gRPC of REST knows the contracts' paths, and refuses others.
    - applyTo: HTTP_ROUTE
      match:
        context: GATEWAY
        routeConfiguration:
          vhost:
            route:
              name: description
      patch:
        operation: MERGE
        value:
          typed_per_filter_config:
            envoy.filters.http.grpc_json_transcoder:
              "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
              disabled: true
    {{- /* In this order. They come before the token is looked at: a preflight has none, and the policies know gRPC's paths. */}}
    {{- include "before" "envoy.filters.http.jwt_authn" }}
          name: envoy.filters.http.cors
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors
    {{- include "before" "envoy.filters.http.jwt_authn" }}
          name: envoy.filters.http.grpc_web
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb
    {{- if $limits.perAddress }}
    {{- include "before" "envoy.filters.http.jwt_authn" }}
          {{- include "ratelimit" (dict "name" "address" "key" "masked_remote_address" "limit" $limits.perAddress "callers" $limits.callersCounted) | nindent 10 }}
            rate_limits:
              - actions:
                  - masked_remote_address:
                      v4_prefix_mask_len: 32
                      v6_prefix_mask_len: 64
    {{- end }}
    {{- include "before" "envoy.filters.http.jwt_authn" }}
          name: envoy.filters.http.grpc_json_transcoder
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder
            proto_descriptor_bin: {{ .Files.Get "files/contracts.binpb" | b64enc }}
            services:
              - {{ trimAll "/" (include "operations" .) }}
              {{- range .Values.components }}
              {{- range $service, $_ := .public }}
              - {{ $service }}
              {{- end }}
              {{- end }}
            convert_grpc_status: true
            # Else as much as happens to be buffered, which is less the busier the gateway is.
            max_request_body_size: {{ $limits.bodyBytes | int }}
            max_response_body_size: {{ $limits.bodyBytes | int }}
            print_options:
              always_print_primitive_fields: true
              stream_newline_delimited: true
            request_validation_options:
              reject_unknown_method: true
              reject_unknown_query_parameters: true
              reject_binding_body_field_collisions: true
    {{- /* Off, but on routes that say otherwise; and behind the policies: who may not book must not use up the places in the line. */}}
    {{- include "before" "envoy.filters.http.router" }}
          name: local_ratelimit.crowd
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: crowd
    {{- if $limits.perCustomer }}
    {{- /* By what jwt_authn has read in the token, which no header can forge. */}}
    {{- include "before" "envoy.filters.http.router" }}
          {{- include "ratelimit" (dict "name" "customer" "key" "sub" "limit" $limits.perCustomer "callers" $limits.callersCounted) | nindent 10 }}
            rate_limits:
              - actions:
                  - metadata:
                      descriptor_key: sub
                      source: DYNAMIC
                      metadata_key:
                        key: envoy.filters.http.jwt_authn
                        path:
                          - key: payload
                          - key: sub
    {{- end }}
{{- end }}
