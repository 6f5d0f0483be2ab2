"""Istio's objects as Envoy's configuration, piece by piece as istiod 1.31 makes it.

    objects = Objects(mesh.chart.render(...))
    objects.routes("mesh"), objects.cluster("approval.vaccination.svc.cluster.local", 8080), objects.rbac(labels), ...

`mesh.envoy` puts the pieces together for one machine. A field that nobody here translates is an error that names it:
an object must not say one thing in a cluster and another on a laptop.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy.extensions"
JWT_FILTER = "envoy.filters.http.jwt_authn"
HCM = "envoy.filters.network.http_connection_manager"
NO_LIMIT = 2**32 - 1
WITHOUT = {"invert_match": True, "treat_missing_header_as_empty": True}


class Untranslatable(Exception):
    """An object says what this translation does not know; its text names object and field."""


class Node:
    """A part of an object. Every field has to be taken; one that is left is an error when the `with` block ends."""

    def __init__(self, where: str, content: Mapping[str, Any] | None) -> None:
        self.where, self._left = where, dict(content or {})

    def take(self, name: str, default: Any = None) -> Any:
        """A field's value."""
        return self._left.pop(name, default)

    def must(self, name: str) -> Any:
        """A field's value, which has to be there."""
        if name not in self._left:
            raise Untranslatable(f"{self.where}: {name} is missing")
        return self._left.pop(name)

    def only(self, name: str, *known: Any) -> Any:
        """A field's value, if it is one of those known here."""
        value = self.take(name)
        if value not in known:
            raise Untranslatable(f"{self.where}.{name}: {value!r} is not translated")
        return value

    def node(self, name: str) -> "Node":
        """A field that has fields of its own; empty if it is not there."""
        return Node(f"{self.where}.{name}", self.take(name))

    def nodes(self, name: str) -> "list[Node]":
        """The items of a list."""
        return [Node(f"{self.where}.{name}[{i}]", item) for i, item in enumerate(self.take(name) or ())]

    def __bool__(self) -> bool:
        return bool(self._left)

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._left:
            raise Untranslatable(f"{self.where}.{next(iter(self._left))} is not translated")


def typed(kind: str, **fields: Any) -> Json:
    """An extension's configuration."""
    return {"@type": f"{TYPES}.{kind}", **fields}


def named(name: str, kind: str, **fields: Any) -> Json:
    """An extension."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def http_filter(name: str, kind: str, **fields: Any) -> Json:
    """An HTTP filter."""
    return named(f"envoy.filters.http.{name}", f"filters.http.{kind}", **fields)


def duration(text: str) -> str:
    """Go's way to write a duration (1m30s, 250ms) as protobuf's JSON does (90s, 0.250s)."""
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise Untranslatable(f"{text!r} is no duration")
    seconds = round(sum(float(n) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit] for n, unit in parts), 3)
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds:.3f}s"


def merged(base: Any, patch: Any) -> Any:
    """As protobuf merges messages: fields into fields, lists behind lists."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {k: merged(base[k], v) if k in base else deepcopy(v) for k, v in patch.items()}
    return base + patch if isinstance(base, list) and isinstance(patch, list) else deepcopy(patch)


def _text(value: str) -> Json:
    """A text with a star before it, behind it, or alone."""
    if value == "*":
        return {"safe_regex": {"regex": ".+"}}
    if value.startswith("*"):
        return {"suffix": value[1:]}
    return {"prefix": value[:-1]} if value.endswith("*") else {"exact": value}


def _match(node: Node) -> Json:
    """A StringMatch of Istio's."""
    with node:
        kind = next((kind for kind in ("exact", "prefix", "regex") if kind in node._left), "exact")
        value = node.must(kind)
        return {"safe_regex": {"regex": value}} if kind == "regex" else {kind: value}


class Objects:
    """The objects of one namespace."""

    def __init__(self, objects: Iterable[Mapping[str, Any]], keys_every: str = "300s") -> None:
        self._objects = list(objects)
        self._keys_every = keys_every  # how soon a provider's new key is known, when Envoy reads its keys

    def of(self, kind: str) -> Iterator[tuple[str, str, Node]]:
        """Name, namespace and spec of each object of a kind."""
        for item in self._objects:
            if item["kind"] == kind:
                meta = item["metadata"]
                yield (
                    meta["name"],
                    meta.get("namespace", "default"),
                    Node(f"{kind} {meta['name']}: spec", item.get("spec")),
                )

    def _selecting(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[str, str, Node]]:
        """Those that are about a workload: without a selector, all."""
        for name, namespace, spec in self.of(kind):
            with spec.node("selector") as selector:
                wanted = selector.take("matchLabels") or {}
            if wanted.items() <= labels.items():
                yield name, namespace, spec

    # Routes

    def routes(self, gateway: str, host: str | None = None) -> list[Json]:
        """The routes of a gateway; of `mesh` (calls between components), those of one host."""
        found = []
        for name, namespace, spec in self.of("VirtualService"):
            with spec:
                hosts, gateways = spec.take("hosts"), spec.take("gateways") or ["mesh"]
                routes = spec.nodes("http")
                if gateway in gateways and (host is None or host in hosts):
                    where = f"/apis/networking.istio.io/v1/namespaces/{namespace}/virtual-service/{name}"
                    found += [route for http in routes for route in _http_route(http, where)]
        return found

    # Clusters

    def cluster(self, host: str, port: int, subset: str = "") -> Json:
        """The way to a service, without its endpoints."""
        cluster: Json = {
            "name": f"outbound|{port}|{subset}|{host}",
            "connect_timeout": "10s",
            "lb_policy": "LEAST_REQUEST",
            "circuit_breakers": {
                "thresholds": [
                    dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), NO_LIMIT)
                ]
            },
            "common_lb_config": {},
            "alt_stat_name": f"outbound|{port}|{subset}|{host};",
        }
        http2: Json = {}
        common: Json = {}
        for name, namespace, spec in self.of("DestinationRule"):
            with spec:
                about, policy = spec.must("host"), spec.node("trafficPolicy")
                subsets = [_subset(found) for found in spec.nodes("subsets")]
                if about != host:
                    continue
                rule = f"/apis/networking.istio.io/v1/namespaces/{namespace}/destination-rule/{name}"
                cluster["metadata"] = {"filter_metadata": {"istio": {"config": rule}}}
                own = dict(subsets)[subset] if subset else Node(spec.where, None)
                with policy, own:
                    # A subset's own settings stand for the rule's, part by part.
                    pools = own.node("connectionPool"), policy.node("connectionPool")
                    _connections(next(filter(None, pools), pools[1]), cluster, common, http2)
                    _balance(policy.node("loadBalancer"), cluster)
                    _outliers(policy.node("outlierDetection"), cluster)
                    _retry_budget(policy.node("retryBudget"), cluster)
        options = typed(
            "upstreams.http.v3.HttpProtocolOptions",
            common_http_protocol_options=common,
            explicit_http_config={"http2_protocol_options": http2},
        )
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
        return cluster

    # Who may

    def strict(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload takes nothing but mutual TLS on its ports for calls."""
        modes = []
        for _, _, spec in self._selecting("PeerAuthentication", labels):
            with spec:
                with spec.node("mtls") as mtls:
                    modes.append(mtls.only("mode", "STRICT", "PERMISSIVE"))
                spec.take("portLevelMtls")  # of ports before which there is no proxy here
        return "STRICT" in modes

    def jwt_authn(self, labels: Mapping[str, str]) -> Json | None:
        """The filter that checks tokens; None: the workload does not look at them."""
        providers: Json = {}
        for _, _, spec in self._selecting("RequestAuthentication", labels):
            with spec:
                for rule in spec.nodes("jwtRules"):
                    providers[f"origins-{len(providers)}"] = _jwt_provider(rule, self._keys_every)
        if not providers:
            return None
        requirements = [{"provider_name": name} for name in providers]
        requires = {"requires_any": {"requirements": [*requirements, {"allow_missing": {}}]}}
        return http_filter(
            "jwt_authn",
            "jwt_authn.v3.JwtAuthentication",
            providers=providers,
            rules=[{"match": {"prefix": "/"}, "requires": requires}],
            bypass_cors_preflight=True,
        )

    def rbac(self, labels: Mapping[str, str]) -> Json | None:
        """The filter that says who may call what; None: everybody may."""
        policies: Json = {}
        any_policy = False
        for name, namespace, spec in self._selecting("AuthorizationPolicy", labels):
            with spec:
                any_policy = True
                spec.only("action", "ALLOW", None)
                for i, rule in enumerate(spec.nodes("rules")):
                    policies[f"ns[{namespace}]-policy[{name}]-rule[{i}]"] = _policy(rule)
        if not any_policy:
            return None
        return http_filter(
            "rbac", "rbac.v3.RBAC", rules={"policies": policies}, shadow_rules_stat_prefix="istio_dry_run_allow_"
        )

    # Gateways, logs, and patches

    def gateway_port(self, labels: Mapping[str, str]) -> tuple[str, int]:
        """Name of the gateway of a workload, and its port; one server, in plain text."""
        found = []
        for name, _, spec in self.of("Gateway"):
            with spec:
                selector = spec.take("selector") or {}
                for server in spec.nodes("servers"):
                    with server, server.node("port") as port:
                        server.only("hosts", ["*"])
                        port.only("protocol", "HTTP2")
                        port.take("name")
                        if selector.items() <= labels.items():
                            found.append((name, int(port.must("number"))))
        if len(found) != 1:
            raise Untranslatable(f"{len(found)} Gateways with a server for {dict(labels)}, not one")
        return found[0]

    def logs_access(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload writes a line for every request."""
        wanted = False
        for _, _, spec in self._selecting("Telemetry", labels):
            with spec:
                for logging in spec.nodes("accessLogging"):
                    with logging:
                        for provider in logging.nodes("providers"):
                            with provider:
                                provider.only("name", "envoy")
                                wanted = True
        return wanted

    def patch(self, context: str, labels: Mapping[str, str], manager: Json) -> None:
        """What EnvoyFilters change of a connection manager, its filters and its routes."""
        for _, _, spec in self.of("EnvoyFilter"):
            with spec:
                with spec.node("workloadSelector") as selector:
                    wanted = selector.take("labels") or {}
                for change in spec.nodes("configPatches"):
                    with change:
                        if wanted.items() <= labels.items():
                            _patch(change, context, manager)
                        else:
                            for field in ("applyTo", "match", "patch"):
                                change.take(field)


# VirtualServices


def _http_route(http: Node, where: str) -> Iterator[Json]:
    with http:
        name = http.must("name")
        matches: list[Node | None] = [*http.nodes("match")] or [None]
        action: Json = {}
        operation = ""
        if answer := http.node("directResponse"):
            with answer, answer.node("body") as body:
                status, text = answer.must("status"), body.must("string")
            kind, action = "direct_response", {"status": status, "body": {"inline_string": text}}
        else:
            kind, action = "route", {}
            [destination] = http.nodes("route")
            with destination, destination.node("destination") as to, to.node("port") as port:
                host, number = to.must("host"), port.take("number") or _only_port(where)
                subset = to.take("subset") or ""
            action["cluster"] = f"outbound|{number}|{subset}|{host}"
            operation = f"{host}:{number}"
            action["timeout"] = duration(http.take("timeout", "0s"))
            retries = http.take("retries")
            if retries is None:
                raise Untranslatable(f"{http.where}.retries is missing: Istio would retry twice, writes included")
            if policy := _retry_policy(Node(f"{http.where}.retries", retries)):
                action["retry_policy"] = policy
            action["max_grpc_timeout"] = action["timeout"]
        common: Json = {"metadata": {"filter_metadata": {"istio": {"config": where}}}}
        if cors := http.node("corsPolicy"):
            common["typed_per_filter_config"] = {"envoy.filters.http.cors": _cors(cors)}
        if headers := http.node("headers"):
            with headers, headers.node("response") as response:
                common["response_headers_to_add"] = [
                    {"header": {"key": k, "value": v}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
                    for k, v in (response.take("set") or {}).items()
                ]
        for match in matches:
            made = _route_match(match)
            path = made.get("path") or f"{made['prefix'] if match else '/'}*"
            decorator = {"decorator": {"operation": f"{operation}{path}"}} if operation else {}
            yield {"match": made, kind: deepcopy(action), **deepcopy(common), **decorator, "name": name}


def _only_port(where: str) -> int:
    raise Untranslatable(f"{where}: a destination without a port")


def _route_match(match: Node | None) -> Json:
    if match is None:
        return {"prefix": "/"}
    with match:
        made: Json = {"prefix": "/"}
        if uri := match.node("uri"):
            [(kind, value)] = _match(uri).items()
            made = {"path" if kind == "exact" else kind: value}
        made["case_sensitive"] = True
        for field, inverted in (("headers", {}), ("withoutHeaders", WITHOUT)):
            for name, value in (match.take(field) or {}).items():
                text = _match(Node(f"{match.where}.{field}.{name}", value))
                made.setdefault("headers", []).append({"name": name, "string_match": text, **inverted})
        return made


def _retry_policy(node: Node) -> Json | None:
    with node:
        attempts = node.must("attempts")
        if attempts == 0:
            return None
        predicate = named(
            "envoy.retry_host_predicates.previous_hosts", "retry.host.previous_hosts.v3.PreviousHostsPredicate"
        )
        policy: Json = {"retry_on": node.must("retryOn"), "num_retries": attempts}
        if each := node.take("perTryTimeout"):
            policy["per_try_timeout"] = duration(each)
        policy |= {"retry_host_predicate": [predicate], "host_selection_retry_max_attempts": "5"}
        if pause := node.take("backoff"):
            policy["retry_back_off"] = {"base_interval": duration(pause)}
        return policy


def _cors(node: Node) -> Json:
    with node:
        return typed(
            "filters.http.cors.v3.CorsPolicy",
            allow_origin_string_match=[_match(origin) for origin in node.nodes("allowOrigins")],
            allow_methods=",".join(node.take("allowMethods", ())),
            allow_headers=",".join(node.take("allowHeaders", ())),
            expose_headers=",".join(node.take("exposeHeaders", ())),
            max_age=duration(node.must("maxAge"))[:-1],
            filter_enabled={"default_value": {"numerator": 100, "denominator": "HUNDRED"}},
        )


# DestinationRules


def _subset(node: Node) -> tuple[str, Node]:
    """Of all replicas: the name is for a policy of its own."""
    with node:
        node.only("labels", None, {})
        return node.must("name"), node.node("trafficPolicy")


def _connections(pool: Node, cluster: Json, common: Json, http2: Json) -> None:
    limits = cluster["circuit_breakers"]["thresholds"][0]

    def limit(node: Node, name: str, envoys: str) -> None:
        if (value := node.take(name)) is not None:
            limits[envoys] = value

    with pool, pool.node("tcp") as tcp, pool.node("http") as http:
        limit(tcp, "maxConnections", "max_connections")
        cluster["connect_timeout"] = duration(tcp.take("connectTimeout", "10s"))
        limit(http, "http1MaxPendingRequests", "max_pending_requests")
        limit(http, "http2MaxRequests", "max_requests")
        limit(http, "maxRetries", "max_retries")
        if most := http.take("maxRequestsPerConnection"):
            common["max_requests_per_connection"] = most
        if idle := http.take("idleTimeout"):
            common["idle_timeout"] = duration(idle)
        if streams := http.take("maxConcurrentStreams"):
            http2["max_concurrent_streams"] = streams


def _balance(node: Node, cluster: Json) -> None:
    with node:
        cluster["lb_policy"] = node.only("simple", None, "LEAST_REQUEST", "ROUND_ROBIN") or "LEAST_REQUEST"
        if warmup := node.node("warmup"):
            with warmup:
                cluster["least_request_lb_config"] = {
                    "slow_start_config": {
                        "slow_start_window": duration(warmup.must("duration")),
                        "aggression": {"default_value": 1, "runtime_key": "none"},
                        "min_weight_percent": {"value": 10},
                    }
                }


def _outliers(node: Node, cluster: Json) -> None:
    if not node:
        return
    with node:
        found: Json = {"enforcing_success_rate": 0}
        for istios, envoys in (
            ("consecutive5xxErrors", "consecutive_5xx"),
            ("consecutiveGatewayErrors", "consecutive_gateway_failure"),
        ):
            if (count := node.take(istios)) is not None:
                found |= {envoys: count, f"enforcing_{envoys}": 100 if count else 0}
        for istios, envoys in (("interval", "interval"), ("baseEjectionTime", "base_ejection_time")):
            if value := node.take(istios):
                found[envoys] = duration(value)
        if (percent := node.take("maxEjectionPercent")) is not None:
            found["max_ejection_percent"] = percent
        cluster["outlier_detection"] = found
        # Half of the replicas are better than a panic that sends calls to the ejected ones too.
        cluster["common_lb_config"]["healthy_panic_threshold"] = {}


def _retry_budget(node: Node, cluster: Json) -> None:
    if not node:
        return
    with node:
        budget: Json = {"budget_percent": {"value": node.must("percent")}}
        if (least := node.take("minRetryConcurrency")) is not None:
            budget["min_retry_concurrency"] = least
        cluster["circuit_breakers"]["thresholds"][0]["retry_budget"] = budget


# RequestAuthentications and AuthorizationPolicies


def _jwt_provider(rule: Node, keys_every: str) -> Json:
    with rule:
        provider: Json = {"issuer": rule.must("issuer")}
        if audiences := rule.take("audiences"):
            provider["audiences"] = audiences
        if uri := rule.take("jwksUri"):
            # istiod fetches the keys itself, every 20 minutes, and puts them in place; here Envoy does. In the
            # background: else a provider that is away would make every token invalid.
            provider["remote_jwks"] = {
                "http_uri": {"uri": uri, "cluster": jwks_cluster(uri), "timeout": "5s"},
                "cache_duration": keys_every,
                "async_fetch": {},
            }
        else:
            provider["local_jwks"] = {"inline_string": rule.must("jwks")}
        provider["payload_in_metadata"] = "payload"
        if rule.take("forwardOriginalToken"):
            provider["forward"] = True
        if headers := rule.nodes("fromHeaders"):
            provider["from_headers"] = []
            for header in headers:
                with header:
                    provider["from_headers"].append(
                        {"name": header.must("name"), "value_prefix": header.must("prefix")}
                    )
        if payload := rule.take("outputPayloadToHeader"):
            provider["forward_payload_header"] = payload
        if claims := rule.nodes("outputClaimToHeaders"):
            provider["claim_to_headers"] = []
            for claim in claims:
                with claim:
                    made = {"header_name": claim.must("header"), "claim_name": claim.must("claim")}
                    provider["claim_to_headers"].append(made)
        provider["normalize_payload_in_metadata"] = {"space_delimited_claims": ["permission", "scope"]}
        return provider


def jwks_cluster(uri: str) -> str:
    """The name of the cluster by which keys are fetched."""
    scheme, _, rest = uri.partition("://")
    host, _, port = rest.partition("/")[0].partition(":")
    return f"outbound|{port or (443 if scheme == 'https' else 80)}||{host}"


def _policy(rule: Node) -> Json:
    with rule:
        permissions = [_permission(to) for to in rule.nodes("to")] or [{"and_rules": {"rules": [{"any": True}]}}]
        conditions = [_condition(when) for when in rule.nodes("when")]
        sources = rule.nodes("from")
        principals = [{"and_ids": {"ids": [*_source(source), *conditions]}} for source in sources]
        if not sources:
            principals = [{"and_ids": {"ids": conditions or [{"any": True}]}}]
        return {"permissions": permissions, "principals": principals}


def _permission(to: Node) -> Json:
    rules = []
    with to, to.node("operation") as operation:
        for field, kind in (("paths", "url_path"), ("ports", "destination_port"), ("methods", "header")):
            for name, wraps in ((field, False), (f"not{field.title()}", True)):
                if values := operation.take(name):
                    alternatives = {"or_rules": {"rules": [_operation(kind, value) for value in values]}}
                    rules.append({"not_rule": alternatives} if wraps else alternatives)
    return {"and_rules": {"rules": rules or [{"any": True}]}}


def _operation(kind: str, value: str) -> Json:
    if kind == "url_path":
        return {"url_path": {"path": _text(value)}}
    if kind == "header":
        return {"header": {"name": ":method", "string_match": _text(value)}}
    return {"destination_port": int(value)}


def _source(node: Node) -> list[Json]:
    ids = []
    with node, node.node("source") as source:
        if principals := source.take("principals"):
            ids.append(_any([{"authenticated": {"principal_name": _spiffe(p)}} for p in principals]))
        if principals := source.take("requestPrincipals"):
            ids.append(_any([_request_principal(p) for p in principals]))
    return ids


def _spiffe(principal: str) -> Json:
    return {"safe_regex": {"regex": ".+"}} if principal == "*" else {"exact": f"spiffe://{principal}"}


def _request_principal(principal: str) -> Json:
    issuer, slash, subject = principal.rpartition("/")
    parts = [("iss", issuer if slash else "*"), ("sub", subject)]
    return {"and_ids": {"ids": [_claim([name], {"string_match": _text(value)}) for name, value in parts]}}


def _condition(when: Node) -> Json:
    with when:
        key, values, others = when.must("key"), when.take("values"), when.take("notValues")
        claim = re.fullmatch(r"request\.auth\.claims((?:\[[^\]]+\])+)", key)
        if not claim:
            raise Untranslatable(f"{when.where}.key: {key} is not translated")
        path = re.findall(r"\[([^\]]+)\]", claim[1])

        def alternatives(texts: Sequence[str]) -> Json:
            matchers = [{"list_match": {"one_of": {"string_match": _text(text)}}} for text in texts]
            return _any(
                [
                    _claim(path, {"or_match": {"value_matchers": [m, {"string_match": _text(text)}]}})
                    for m, text in zip(matchers, texts, strict=True)
                ]
            )

        ids = [alternatives(values)] if values else []
        ids += [{"not_id": alternatives(others)}] if others else []
        return ids[0] if len(ids) == 1 else {"and_ids": {"ids": ids}}


def _claim(path: Sequence[str], value: Json) -> Json:
    keys = [{"key": key} for key in ("payload", *path)]
    return {"metadata": {"filter": JWT_FILTER, "path": keys, "value": value}}


def _any(ids: list[Json]) -> Json:
    return ids[0] if len(ids) == 1 else {"or_ids": {"ids": ids}}


# EnvoyFilters


@contextmanager
def _taken(node: Node, path: str) -> Iterator[Node]:
    """A node some fields down, each of which has no other field."""
    first, _, rest = path.partition(".")
    with node.node(first) as inner:
        if rest:
            with _taken(inner, rest) as found:
                yield found
        else:
            yield inner


def _patch(change: Node, context: str, manager: Json) -> None:
    kind = change.must("applyTo")
    with change.node("match") as match, change.node("patch") as patch:
        if match.must("context") != context:
            match.take("listener"), match.take("routeConfiguration"), patch.take("operation"), patch.take("value")
            return
        operation, value = patch.must("operation"), patch.must("value")
        if kind == "HTTP_ROUTE" and operation == "MERGE":
            with _taken(match, "routeConfiguration.vhost.route") as route:
                name = route.must("name")
            found = [
                r for host in manager["route_config"]["virtual_hosts"] for r in host["routes"] if r["name"] == name
            ]
            if not found:
                raise Untranslatable(f"{change.where}: there is no route {name}")
            for one in found:
                one.update(merged(one, value))
            return
        with _taken(match, "listener.filterChain.filter") as chain:
            chain.only("name", HCM)
            if kind == "NETWORK_FILTER" and operation == "MERGE":
                manager.update(merged(manager, value["typed_config"]))
                return
            with chain.node("subFilter") as sub:
                beside = sub.must("name")
        filters: list[Json] = manager["http_filters"]
        at = next((i for i, f in enumerate(filters) if f["name"] == beside), None)
        if at is None:
            raise Untranslatable(f"{change.where}: there is no filter {beside}")
        match (kind, operation):
            case ("HTTP_FILTER", "INSERT_BEFORE"):
                filters.insert(at, value)
            case ("HTTP_FILTER", "INSERT_AFTER"):
                filters.insert(at + 1, value)
            case ("HTTP_FILTER", "MERGE"):
                filters[at] = merged(filters[at], value)
            case _:
                raise Untranslatable(f"{change.where}: {operation} of {kind} is not translated")
