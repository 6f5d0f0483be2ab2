"""PeerAuthentications, RequestAuthentications and AuthorizationPolicies: who is who, and who may call what."""

import re
from collections.abc import Sequence

from mesh.istio.reading import Node, Specs, Untranslatable
from mesh.istio.writing import Json, http_filter, text_match

JWT_FILTER = "envoy.filters.http.jwt_authn"


def strict(policies: Specs) -> bool:
    """Whether a workload takes nothing but mutual TLS on its ports for calls."""
    modes = []
    for _, _, spec in policies:
        with spec:
            with spec.node("mtls") as mtls:
                modes.append(mtls.only("mode", "STRICT", "PERMISSIVE"))
            spec.take("portLevelMtls")  # of ports before which there is no proxy here
    return "STRICT" in modes


def jwt_authn(authentications: Specs, keys_every: str) -> Json | None:
    """The filter that checks tokens; None: the workload does not look at them."""
    providers: Json = {}
    for _, _, spec in authentications:
        with spec:
            for rule in spec.nodes("jwtRules"):
                providers[f"origins-{len(providers)}"] = _jwt_provider(rule, keys_every)
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


def rbac(found: Specs) -> Json | None:
    """The filter that says who may call what; None: everybody may."""
    policies: Json = {}
    any_policy = False
    for name, namespace, spec in found:
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
        return {"url_path": {"path": text_match(value)}}
    if kind == "header":
        return {"header": {"name": ":method", "string_match": text_match(value)}}
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
    return {"and_ids": {"ids": [_claim([name], {"string_match": text_match(value)}) for name, value in parts]}}


def _condition(when: Node) -> Json:
    with when:
        key, values, others = when.must("key"), when.take("values"), when.take("notValues")
        claim = re.fullmatch(r"request\.auth\.claims((?:\[[^\]]+\])+)", key)
        if not claim:
            raise Untranslatable(f"{when.where}.key: {key} is not translated")
        path = re.findall(r"\[([^\]]+)\]", claim[1])

        def alternatives(texts: Sequence[str]) -> Json:
            matchers = [{"list_match": {"one_of": {"string_match": text_match(text)}}} for text in texts]
            return _any(
                [
                    _claim(path, {"or_match": {"value_matchers": [m, {"string_match": text_match(text)}]}})
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
