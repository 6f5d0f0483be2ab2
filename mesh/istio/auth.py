"""PeerAuthentications, RequestAuthentications and AuthorizationPolicies: who is who, and who may call what."""

import re
from collections.abc import Mapping, Sequence

from mesh.istio.kinds import (
    CLAIM,
    AuthorizationPolicy,
    JwtRule,
    Object,
    Operation,
    PeerAuthentication,
    RequestAuthentication,
    Rule,
    Source,
    Untranslatable,
    When,
)
from mesh.istio.writing import Json, http_filter, text_match

JWT_FILTER = "envoy.filters.http.jwt_authn"
ANY = {"any": True}


def strict(policies: Sequence[Object[PeerAuthentication]], port: int) -> bool:
    # What is said of a workload's port stands above what is said of the workload, and that above the namespace's.
    modes: list[str] = []
    for of_workload in (True, False):
        found = [policy for policy in policies if bool(policy.spec.selector.match_labels) == of_workload]
        if len(found) > 1:
            # Istio takes the oldest one, and what is rendered has no age.
            raise Untranslatable(f"{found[1]}: spec.selector: {found[0]} is about the same workload")
        for policy in found:
            if of_port := policy.spec.port_level_mtls.get(str(port)):
                modes.append(of_port.mode)
            modes.append(policy.spec.mtls.mode)
    return next((mode for mode in modes if mode != "UNSET"), "PERMISSIVE") == "STRICT"


def jwt_authn(authentications: Sequence[Object[RequestAuthentication]], keys_every: str) -> Json | None:
    rules = [rule for item in authentications for rule in item.spec.jwt_rules]
    providers = {f"origins-{i}": _jwt_provider(rule, keys_every) for i, rule in enumerate(rules)}
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


def rbac(found: Sequence[Object[AuthorizationPolicy]], listens: Mapping[int, int]) -> Json | None:
    if not found:
        return None
    policies = {
        f"ns[{item.namespace}]-policy[{item.name}]-rule[{i}]": _policy(rule, listens)
        for item in found
        for i, rule in enumerate(item.spec.rules)
    }
    return http_filter(
        "rbac", "rbac.v3.RBAC", rules={"policies": policies}, shadow_rules_stat_prefix="istio_dry_run_allow_"
    )


def _jwt_provider(rule: JwtRule, keys_every: str) -> Json:
    provider: Json = {"issuer": rule.issuer}
    if rule.audiences:
        provider["audiences"] = rule.audiences
    if rule.jwks_uri:
        # istiod fetches the keys itself, every 20 minutes, and puts them into the configuration; here Envoy fetches
        # them. In the background, since a provider that is away would otherwise make every token invalid.
        provider["remote_jwks"] = {
            "http_uri": {"uri": rule.jwks_uri, "cluster": jwks_cluster(rule.jwks_uri), "timeout": "5s"},
            "cache_duration": keys_every,
            "async_fetch": {},
        }
    else:
        provider["local_jwks"] = {"inline_string": rule.jwks}
    provider["payload_in_metadata"] = "payload"
    if rule.forward_original_token:
        provider["forward"] = True
    if rule.from_headers:
        provider["from_headers"] = [{"name": h.name, "value_prefix": h.prefix} for h in rule.from_headers]
    if rule.output_payload_to_header:
        provider["forward_payload_header"] = rule.output_payload_to_header
    if rule.output_claim_to_headers:
        provider["claim_to_headers"] = [
            {"header_name": claim.header, "claim_name": claim.claim} for claim in rule.output_claim_to_headers
        ]
    provider["normalize_payload_in_metadata"] = {"space_delimited_claims": ["permission", "scope"]}
    return provider


def jwks_cluster(uri: str) -> str:
    """The name of the cluster by which keys are fetched."""
    scheme, _, rest = uri.partition("://")
    host, _, port = rest.partition("/")[0].partition(":")
    return f"outbound|{port or (443 if scheme == 'https' else 80)}||{host}"


def _policy(rule: Rule, listens: Mapping[int, int]) -> Json:
    conditions = [_condition(when) for when in rule.when]
    sources = [[*_source(item.source), *conditions] for item in rule.from_] or [conditions or [ANY]]
    return {
        "permissions": [_permission(item.operation, listens) for item in rule.to] or [{"and_rules": {"rules": [ANY]}}],
        "principals": [{"and_ids": {"ids": ids}} for ids in sources],
    }


def _permission(operation: Operation, listens: Mapping[int, int]) -> Json:
    def port(value: str) -> Json:
        return {"destination_port": listens.get(int(value), int(value))}

    def alternatives(rules: list[Json]) -> Json:
        return {"or_rules": {"rules": rules}}

    rules = []
    for wanted, unwanted, one in (
        (operation.paths, operation.not_paths, _path),
        (operation.ports, operation.not_ports, port),
        (operation.methods, operation.not_methods, _method),
    ):
        if wanted:
            rules.append(alternatives([one(value) for value in wanted]))
        if unwanted:
            rules.append({"not_rule": alternatives([one(value) for value in unwanted])})
    return {"and_rules": {"rules": rules or [ANY]}}


def _path(value: str) -> Json:
    return {"url_path": {"path": text_match(value)}}


def _method(value: str) -> Json:
    return {"header": {"name": ":method", "string_match": text_match(value)}}


def _source(source: Source) -> list[Json]:
    ids = []
    if source.principals:
        ids.append(_any([{"authenticated": {"principal_name": _spiffe(p)}} for p in source.principals]))
    if source.request_principals:
        ids.append(_any([_request_principal(p) for p in source.request_principals]))
    return ids


def _spiffe(principal: str) -> Json:
    return {"safe_regex": {"regex": ".+"}} if principal == "*" else {"exact": f"spiffe://{principal}"}


def _request_principal(principal: str) -> Json:
    issuer, slash, subject = principal.rpartition("/")
    parts = [("iss", issuer if slash else "*"), ("sub", subject)]
    return {"and_ids": {"ids": [_claim([name], {"string_match": text_match(value)}) for name, value in parts]}}


def _condition(when: When) -> Json:
    claim = CLAIM.fullmatch(when.key)
    assert claim
    path = re.findall(r"\[([^\]]+)\]", claim[1])

    def alternatives(texts: Sequence[str]) -> Json:
        """The claim is one of the texts, or a list with one of them in it."""
        matchers = [{"string_match": text_match(text)} for text in texts]
        return _any(
            [_claim(path, {"or_match": {"value_matchers": [{"list_match": {"one_of": m}}, m]}}) for m in matchers]
        )

    ids = [alternatives(when.values)] if when.values else []
    ids += [{"not_id": alternatives(when.not_values)}] if when.not_values else []
    return ids[0] if len(ids) == 1 else {"and_ids": {"ids": ids}}


def _claim(path: Sequence[str], value: Json) -> Json:
    keys = [{"key": key} for key in ("payload", *path)]
    return {"metadata": {"filter": JWT_FILTER, "path": keys, "value": value}}


def _any(ids: list[Json]) -> Json:
    return ids[0] if len(ids) == 1 else {"or_ids": {"ids": ids}}
