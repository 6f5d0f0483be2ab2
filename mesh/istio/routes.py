"""VirtualServices as routes."""

from collections.abc import Iterator, Sequence
from copy import deepcopy

from mesh.istio.kinds import CorsPolicy, HttpRoute, Object, RequestMatch, Retries, Untranslatable, VirtualService
from mesh.istio.writing import Json, named, string_match, typed

WITHOUT = {"invert_match": True, "treat_missing_header_as_empty": True}


def routes(services: Sequence[Object[VirtualService]], gateway: str, host: str | None) -> list[Json]:
    found = [s for s in services if gateway in s.spec.gateways and (host is None or host in s.spec.hosts)]
    if gateway == "mesh" and host and len(found) > 1:
        # Istio takes the oldest one, and what is rendered has no age.
        raise Untranslatable(f"{found[1]}: spec.hosts: {found[0]} has routes to {host} too")
    return [route for service in found for http in service.spec.http for route in _routes(http, service)]


def _routes(http: HttpRoute, service: Object[VirtualService]) -> Iterator[Json]:
    config = f"/apis/networking.istio.io/v1/namespaces/{service.namespace}/virtual-service/{service.name}"
    common: Json = {"metadata": {"filter_metadata": {"istio": {"config": config}}}}
    if http.cors_policy:
        common["typed_per_filter_config"] = {"envoy.filters.http.cors": _cors(http.cors_policy)}
    if headers := http.headers.response.set:
        common["response_headers_to_add"] = [
            {"header": {"key": k, "value": v}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for k, v in headers.items()
        ]
    operation = ""
    if answer := http.direct_response:
        common["direct_response"] = {"status": answer.status, "body": {"inline_string": answer.body.string}}
    elif http.route:
        to = http.route[0].destination
        operation = f"{to.host}:{to.port.number}"
        timeout = http.timeout or "0s"
        common["route"] = {
            "cluster": f"outbound|{to.port.number}|{to.subset}|{to.host}",
            "timeout": timeout,
            "max_grpc_timeout": timeout,
        }
        if http.retries and http.retries.attempts:
            common["route"]["retry_policy"] = _retry_policy(http.retries)
    for match in http.match or [RequestMatch()]:
        made: Json = _route_match(match) if http.match else {"prefix": "/"}
        path = made.get("path") or (f"{made['prefix']}*" if "prefix" in made else made["safe_regex"]["regex"])
        decorator = {"decorator": {"operation": f"{operation}{path}"}} if operation else {}
        yield {"match": made, **deepcopy(common), **decorator, "name": http.name}


def _route_match(match: RequestMatch) -> Json:
    made: Json = {"prefix": "/"}
    if match.uri:
        [(kind, value)] = string_match(match.uri).items()
        made = {"path" if kind == "exact" else kind: value}
    made["case_sensitive"] = True
    headers: list[Json] = [{"name": name, "string_match": string_match(text)} for name, text in match.headers.items()]
    headers += [
        {"name": name, "string_match": string_match(text), **WITHOUT} for name, text in match.without_headers.items()
    ]
    return made | ({"headers": headers} if headers else {})


def _retry_policy(retries: Retries) -> Json:
    predicate = named(
        "envoy.retry_host_predicates.previous_hosts", "retry.host.previous_hosts.v3.PreviousHostsPredicate"
    )
    conditions = (retries.retry_on or "").split(",")
    statuses = [int(condition) for condition in conditions if condition.isdigit()]
    policy: Json = {
        "retry_on": ",".join(condition for condition in conditions if not condition.isdigit()),
        "num_retries": retries.attempts,
    }
    if retries.per_try_timeout:
        policy["per_try_timeout"] = retries.per_try_timeout
    if statuses:
        policy["retriable_status_codes"] = statuses
    policy |= {"retry_host_predicate": [predicate], "host_selection_retry_max_attempts": "5"}
    if retries.backoff:
        policy["retry_back_off"] = {"base_interval": retries.backoff}
    return policy


def _cors(policy: CorsPolicy) -> Json:
    return typed(
        "filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[string_match(origin) for origin in policy.allow_origins],
        allow_methods=",".join(policy.allow_methods),
        allow_headers=",".join(policy.allow_headers),
        expose_headers=",".join(policy.expose_headers),
        max_age=policy.max_age[:-1],
        filter_enabled={"default_value": {"numerator": 100, "denominator": "HUNDRED"}},
    )
