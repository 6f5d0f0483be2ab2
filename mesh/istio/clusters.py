"""DestinationRules as what Envoy's clusters allow, balance, eject and retry."""

from collections.abc import Sequence

from mesh.istio.kinds import ConnectionPool, DestinationRule, LoadBalancer, Object, OutlierDetection, Untranslatable
from mesh.istio.writing import NO_LIMIT, Json, typed


def cluster(rules: Sequence[Object[DestinationRule]], host: str, port: int, subset: str) -> Json:
    limits: Json = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), NO_LIMIT)
    made: Json = {
        "name": f"outbound|{port}|{subset}|{host}",
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [limits]},
        "common_lb_config": {},
        "alt_stat_name": f"outbound|{port}|{subset}|{host};",
    }
    http2: Json = {}
    common: Json = {}
    if rule := _rule_of(host, subset, rules):
        config = f"/apis/networking.istio.io/v1/namespaces/{rule.namespace}/destination-rule/{rule.name}"
        made["metadata"] = {"filter_metadata": {"istio": {"config": config}}}
        policy = rule.spec.traffic_policy
        # A subset's own settings stand for the rule's, part by part.
        own = {found.name: found.traffic_policy.connection_pool for found in rule.spec.subsets}.get(subset)
        _connections(own or policy.connection_pool, made, limits, common, http2)
        _balance(policy.load_balancer, made)
        if policy.outlier_detection:
            _outliers(policy.outlier_detection, made)
        if budget := policy.retry_budget:
            limits["retry_budget"] = {"budget_percent": {"value": budget.percent}}
            if budget.min_retry_concurrency is not None:
                limits["retry_budget"]["min_retry_concurrency"] = budget.min_retry_concurrency
    options = typed(
        "upstreams.http.v3.HttpProtocolOptions",
        common_http_protocol_options=common,
        explicit_http_config={"http2_protocol_options": http2},
    )
    made["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
    return made


def _rule_of(host: str, subset: str, rules: Sequence[Object[DestinationRule]]) -> Object[DestinationRule] | None:
    found = [rule for rule in rules if rule.spec.host == host]
    if len(found) > 1:
        raise Untranslatable(f"{found[1]}: spec.host: {found[0]} is about {host} too")
    if subset and not (found and subset in [known.name for known in found[0].spec.subsets]):
        raise Untranslatable(f"no DestinationRule has a subset {subset} of {host}, to which a VirtualService leads")
    return found[0] if found else None


def _connections(pool: ConnectionPool, cluster: Json, limits: Json, common: Json, http2: Json) -> None:
    tcp, http = pool.tcp, pool.http
    cluster["connect_timeout"] = tcp.connect_timeout
    asked = {
        "max_connections": tcp.max_connections,
        "max_pending_requests": http.http1_max_pending_requests,
        "max_requests": http.http2_max_requests,
        "max_retries": http.max_retries,
    }
    limits.update({name: value for name, value in asked.items() if value is not None})
    if http.max_requests_per_connection:
        common["max_requests_per_connection"] = http.max_requests_per_connection
    if http.idle_timeout:
        common["idle_timeout"] = http.idle_timeout
    if http.max_concurrent_streams:
        http2["max_concurrent_streams"] = http.max_concurrent_streams


def _balance(balancer: LoadBalancer, cluster: Json) -> None:
    cluster["lb_policy"] = balancer.simple
    if balancer.warmup:
        cluster["least_request_lb_config"] = {
            "slow_start_config": {
                "slow_start_window": balancer.warmup.duration,
                "aggression": {"default_value": 1, "runtime_key": "none"},
                "min_weight_percent": {"value": 10},
            }
        }


def _outliers(detection: OutlierDetection, cluster: Json) -> None:
    found: Json = {"enforcing_success_rate": 0}
    for name, count in (
        ("consecutive_5xx", detection.consecutive_5xx_errors),
        ("consecutive_gateway_failure", detection.consecutive_gateway_errors),
    ):
        if count is not None:
            found |= {name: count, f"enforcing_{name}": 100 if count else 0}
    others = {
        "interval": detection.interval,
        "base_ejection_time": detection.base_ejection_time,
        "max_ejection_percent": detection.max_ejection_percent,
    }
    cluster["outlier_detection"] = found | {name: value for name, value in others.items() if value is not None}
    # By default Envoy calls ejected replicas too once fewer than half of all are left.
    cluster["common_lb_config"]["healthy_panic_threshold"] = {}
