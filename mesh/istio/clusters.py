"""DestinationRules as what Envoy's clusters allow, balance, eject and retry."""

from mesh.istio.reading import Node, Specs
from mesh.istio.writing import NO_LIMIT, Json, duration, typed


def cluster(rules: Specs, host: str, port: int, subset: str = "") -> Json:
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
    for name, namespace, spec in rules:
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
    cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
    return cluster


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
