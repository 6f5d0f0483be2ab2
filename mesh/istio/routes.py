"""VirtualServices as routes."""

from collections.abc import Iterator
from copy import deepcopy

from mesh.istio.reading import Node, Specs, Untranslatable
from mesh.istio.writing import Json, duration, named, string_match, typed

WITHOUT = {"invert_match": True, "treat_missing_header_as_empty": True}


def routes(services: Specs, gateway: str, host: str | None) -> list[Json]:
    """The routes of a gateway; of `mesh` (calls between components), those of one host."""
    found = []
    for name, namespace, spec in services:
        with spec:
            hosts, gateways = spec.take("hosts"), spec.take("gateways") or ["mesh"]
            routes = spec.nodes("http")
            if gateway in gateways and (host is None or host in hosts):
                where = f"/apis/networking.istio.io/v1/namespaces/{namespace}/virtual-service/{name}"
                found += [route for http in routes for route in _http_route(http, where)]
    return found


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
            [(kind, value)] = string_match(uri).items()
            made = {"path" if kind == "exact" else kind: value}
        made["case_sensitive"] = True
        for field, inverted in (("headers", {}), ("withoutHeaders", WITHOUT)):
            for name, value in (match.take(field) or {}).items():
                text = string_match(Node(f"{match.where}.{field}.{name}", value))
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
            allow_origin_string_match=[string_match(origin) for origin in node.nodes("allowOrigins")],
            allow_methods=",".join(node.take("allowMethods", ())),
            allow_headers=",".join(node.take("allowHeaders", ())),
            expose_headers=",".join(node.take("exposeHeaders", ())),
            max_age=duration(node.must("maxAge"))[:-1],
            filter_enabled={"default_value": {"numerator": 100, "denominator": "HUNDRED"}},
        )
