{{- /* What Istio's own objects cannot say of the gateway: that it speaks three protocols, that its errors have one
form, and how much it takes from a caller. */ -}}

{{- /* A patch that puts a filter before the one that is the argument; the new filter follows, 10 spaces in. */ -}}
{{- define "vaccination.before" }}
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

{{- /* The head of a patch that adds to a route of the gateway; what it adds follows. The argument is the route's name. */ -}}
{{- define "vaccination.onRoute" }}
    - applyTo: HTTP_ROUTE
      match:
        context: GATEWAY
        routeConfiguration:
          vhost:
            route:
              name: {{ . }}
      patch:
        operation: MERGE
        value:
{{- end }}

{{- /* A rate limit with a token bucket for each value of a descriptor; a request without the descriptor is not limited.
Keys: name, key (the descriptor's), limit (a second), callers (how many values are counted at once). */ -}}
{{- define "vaccination.ratelimit" -}}
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

{{- /* The same for each customer: the one whom jwt_authn has read in the token, which no header can forge. */ -}}
{{- define "vaccination.ratelimit.customer" -}}
{{ include "vaccination.ratelimit" (set . "key" "sub") }}
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

{{- /* A patch of what a proxy takes from a component that has endless streams, before the reader of a stream has it. A
slow reader would else have megabytes of old news in each proxy. When its share is full the component has to wait, and
then tells the newest state. A connection has a place for every stream's share: a few slow readers must not keep those
waiting who share it. A patch replaces all that Istio has written of the protocol for this cluster.
Keys: context, host, window. */ -}}
{{- define "vaccination.taken" }}
    - applyTo: CLUSTER
      match:
        context: {{ .context }}
        cluster:
          service: {{ .host }}
          portNumber: 8080
      patch:
        operation: MERGE
        value:
          typed_extension_protocol_options:
            envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
              "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
              explicit_http_config:
                http2_protocol_options:
                  initial_stream_window_size: {{ .window }}
                  initial_connection_window_size: 1073741824
{{- end }}

{{- define "vaccination.istio.filters" }}
{{- $gateway := .Values.gateway }}
{{- $components := include "vaccination.components" . | fromJson }}
{{- $limits := $gateway.limits }}
{{- $window := 65536 }}
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: {{ $gateway.name }}
  labels:
    {{- include "vaccination.labels" . | nindent 4 }}
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
            # Routes and policies then judge the same path that the service sees.
            merge_slashes: true
            # What Envoy itself refuses in HTTP/2 is told no reason. So it takes as much as it can, and a route refuses
            # what is above the limits.
            max_request_headers_kb: 96
            request_headers_timeout: {{ $limits.headersTimeout }}
            request_timeout: {{ $limits.requestTimeout }}
            stream_idle_timeout: {{ $limits.streamIdle }}
            drain_timeout: {{ $limits.drain }}
            http1_safe_max_connection_duration: true
            common_http_protocol_options:
              max_headers_count: 1000
              idle_timeout: {{ $limits.connectionIdle }}
              max_connection_duration: {{ $limits.connectionAge }}
            http2_protocol_options:
              max_concurrent_streams: {{ $limits.streams }}
              # How much a client may have sent that nobody has read yet.
              initial_stream_window_size: {{ $window }}
              initial_connection_window_size: 1048576
              connection_keepalive:
                interval: 30s
                timeout: 10s
            # These headers are set by the filters below. A caller who sets them could pretend to be somebody else, or
            # to have called another path.
            early_header_mutation_extensions:
              - name: envoy.http.early_header_mutation.header_mutation
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
                  mutations:
                    - remove: x-jwt-payload
                    - remove: x-envoy-original-path
                    - remove: x-forwarded-client-cert
                    # The route `too-large` refuses what has this one.
                    - append:
                        header: {key: x-too-large, value: '%CEL(request.total_size > {{ mul $limits.headersKiB 1024 }} || size(request.headers) > {{ $limits.headers }} ? "headers" : "")%'}
                        append_action: OVERWRITE_IF_EXISTS_OR_ADD
            local_reply_config: {{ .Files.Get "files/local-replies.json" }}
    {{- range $name, $component := $components }}
    {{- range $rpc := ternary (concat ($component.endless | default list) ($.Values.operations.endless | default list)) list (hasKey $component "store") }}
    {{- include "vaccination.onRoute" (printf "%s.%s" $name $rpc) }}
          route:
            idle_timeout: 0s
    {{- end }}
    {{- end }}
    {{- range $name, $component := $components }}
    {{- if $component.endless }}
    {{- $host := include "vaccination.host" (dict "root" $ "name" $name) }}
    {{- include "vaccination.taken" (dict "context" "GATEWAY" "host" $host "window" $window) }}
    {{- end }}
    {{- end }}
    {{- range $name, $component := $components }}
    {{- range $rpc, $crowd := $component.crowded }}
    {{- if $crowd.perCustomer }}
    {{- include "vaccination.onRoute" (printf "%s.%s" $name $rpc) }}
          typed_per_filter_config:
            local_ratelimit.share:
              {{- include "vaccination.ratelimit.customer" (dict "name" "share"
                    "limit" $crowd.perCustomer "callers" $limits.callersCounted) | nindent 14 }}
    {{- end }}
    {{- if $crowd.perSecond }}
    {{- include "vaccination.onRoute" (printf "%s.%s" $name $rpc) }}
          typed_per_filter_config:
            local_ratelimit.crowd:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: crowd
              filter_enabled:
                default_value: {numerator: 100, denominator: HUNDRED}
              filter_enforced:
                default_value: {numerator: 100, denominator: HUNDRED}
              # A twentieth of the limit every twentieth of a second, the shortest interval that Envoy has. With a whole
              # second's tokens at once, a flood would use them up at the beginning of the second, most of them on calls
              # that the breaker refuses, and nobody would be let in for the rest of it.
              {{- $few := div (add $crowd.perSecond 19) 20 }}
              token_bucket: {max_tokens: {{ max $few $crowd.inFlight }}, tokens_per_fill: {{ $few }}, fill_interval: 0.05s}
              # files/local-replies.json knows this refusal by its status, which nothing else here has.
              status:
                code: 507
              rate_limited_as_resource_exhausted: true
    {{- end }}
    {{- end }}
    {{- end }}
    # The filter that makes gRPC of REST refuses every path that is not in the contracts, so it is off for these.
    {{- $others := list "description" }}
    {{- range $name, $component := $components }}
    {{- range $kind := list "pages" "assets" }}
    {{- if hasKey $component $kind }}
    {{- $others = append $others (printf "%s.%s" $name $kind) }}
    {{- end }}
    {{- end }}
    {{- end }}
    {{- range $others }}
    {{- include "vaccination.onRoute" . }}
          typed_per_filter_config:
            envoy.filters.http.grpc_json_transcoder:
              "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
              disabled: true
    {{- end }}
    {{- $asked := list "rest" }}
    {{- range $name, $component := $components }}
    {{- if hasKey $component "pages" }}
    {{- $asked = append $asked (printf "%s.pages" $name) }}
    {{- end }}
    {{- end }}
    {{- range $asked }}
    {{- include "vaccination.onRoute" . }}
          typed_per_filter_config:
            header_mutation.without_query:
              "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute
              mutations:
                request_mutations:
                  - append:
                      header: {key: x-envoy-original-path, value: "%PATH(NQ)%"}
                      append_action: OVERWRITE_IF_EXISTS_OR_ADD
    {{- end }}
    {{- range $name, $component := $components }}
    {{- if $component.reflection }}
    # A conversation: what is asked next depends on the answer, so nobody may wait for all that will be asked.
    {{- include "vaccination.onRoute" (printf "%s.reflection" $name) }}
          typed_per_filter_config:
            envoy.filters.http.buffer:
              "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute
              disabled: true
    {{- end }}
    {{- end }}
    {{- /* These filters stand in this order. A browser's preflight has no token, so the first are before the filter that
    checks it. The policies know the paths of gRPC only, so the others are before the policies. */}}
    {{- include "vaccination.before" "envoy.filters.http.jwt_authn" }}
          name: envoy.filters.http.cors
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors
    {{- include "vaccination.before" "envoy.filters.http.jwt_authn" }}
          name: envoy.filters.http.grpc_web
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb
    {{- /* Of a REST request the query may tell where somebody is, and of a page it may have the code of a sign-in. Istio's
    own format of the access log has all of the path that was asked for, but this header before it. Routes that have
    such queries set it. */}}
    {{- include "vaccination.before" "envoy.filters.http.jwt_authn" }}
          name: header_mutation.without_query
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
            mutations: {}
    {{- if $limits.perAddress }}
    {{- include "vaccination.before" "envoy.filters.http.jwt_authn" }}
          name: local_ratelimit.address
          typed_config:
            {{- include "vaccination.ratelimit" (dict "name" "address" "key" "masked_remote_address"
                  "limit" $limits.perAddress "callers" $limits.callersCounted) | nindent 12 }}
            rate_limits:
              - actions:
                  - masked_remote_address:
                      v4_prefix_mask_len: 32
                      v6_prefix_mask_len: 64
    {{- end }}
    {{- if $limits.perCustomer }}
    {{- /* Calls count when they begin, so that it bounds how many may be waiting for their bodies. */}}
    {{- include "vaccination.before" "envoy.filters.http.rbac" }}
          name: local_ratelimit.customer
          typed_config:
            {{- include "vaccination.ratelimit.customer" (dict "name" "customer"
                  "limit" $limits.perCustomer "callers" $limits.callersCounted) | nindent 12 }}
    {{- end }}
    {{- /* A call goes on when its body is complete: one whose body never comes holds no breaker's place, and one that is
    too large is refused before anybody parses it. What has no verified token goes by and is refused by the policies
    without waiting for a body; no other call with a token is anything but one message. */}}
    {{- include "vaccination.before" "envoy.filters.http.rbac" }}
          name: envoy.filters.http.buffer
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher
            extension_config:
              name: envoy.filters.http.buffer
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
                max_request_bytes: {{ $limits.bodyBytes | int }}
            xds_matcher:
              matcher_list:
                matchers:
                  - predicate:
                      not_matcher:
                        single_predicate:
                          input:
                            name: verified
                            typed_config:
                              "@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput
                              header_name: x-jwt-payload
                          value_match:
                            safe_regex: {google_re2: {}, regex: ".+"}
                    on_match:
                      action:
                        name: skip
                        typed_config:
                          "@type": type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter
    {{- include "vaccination.before" "envoy.filters.http.rbac" }}
          name: envoy.filters.http.lua
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
            default_source_code:
              inline_string: |
                {{- .Files.Get "files/fields.lua" | trim | nindent 16 }}
                {{- .Files.Get "files/bodies.lua" | trim | nindent 16 }}
    {{- include "vaccination.before" "envoy.filters.http.rbac" }}
          name: envoy.filters.http.grpc_json_transcoder
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder
            proto_descriptor_bin: {{ .Files.Get "files/contracts.binpb" | b64enc }}
            services:
              - {{ .Values.operations.service }}
              {{- range $components }}
              {{- range $service, $_ := .public }}
              - {{ $service }}
              {{- end }}
              {{- end }}
            convert_grpc_status: true
            # Without a bound of its own the filter takes as much as happens to fit into buffers: less, the busier the
            # gateway is. It does not count what its JSON parser holds of a string whose end has not come, so that the
            # bound of a request is the one above.
            max_request_body_size: {{ $limits.bodyBytes | int }}
            max_response_body_size: {{ $limits.bodyBytes | int }}
            print_options:
              always_print_primitive_fields: true
              stream_newline_delimited: true
            # As forms and most clients write a space in a query.
            query_param_unescape_plus: true
            request_validation_options:
              reject_unknown_method: true
              reject_unknown_query_parameters: true
              reject_binding_body_field_collisions: true
    {{- /* The transcoder keeps the path that was asked for. Routes have it only as a prefix. */}}
    {{- include "vaccination.before" "envoy.filters.http.rbac" }}
          name: header_mutation.transcoded
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
            mutations:
              request_mutations:
                - append:
                    header: {key: x-envoy-original-path, value: "%PATH(NQ:ORIG)%"}
                    append_action: OVERWRITE_IF_EXISTS
    {{- /* These limits are off except on routes that set them. They stand behind the policies, so that callers who may
    not book do not use up the places of those who may; and one customer's before everybody's. */}}
    {{- include "vaccination.before" "envoy.filters.http.router" }}
          name: local_ratelimit.share
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: share
    {{- include "vaccination.before" "envoy.filters.http.router" }}
          name: local_ratelimit.crowd
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: crowd
{{- range $name, $component := $components }}
{{- if $component.endless }}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: {{ $name }}
  labels:
    {{- include "vaccination.labels" $ | nindent 4 }}
spec:
  workloadSelector:
    labels:
      app.kubernetes.io/name: {{ $name }}
  configPatches:
    {{- $host := include "vaccination.host" (dict "root" $ "name" $name) }}
    {{- include "vaccination.taken" (dict "context" "SIDECAR_INBOUND" "host" $host "window" $window) }}
    - applyTo: NETWORK_FILTER
      match:
        context: SIDECAR_INBOUND
        listener:
          filterChain:
            filter:
              name: envoy.filters.network.http_connection_manager
      patch:
        operation: MERGE
        value:
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
            # It bounds what waits for the gateway to take it, too.
            http2_protocol_options:
              initial_stream_window_size: {{ $window }}
              initial_connection_window_size: 1048576
{{- end }}
{{- end }}
{{- end }}
