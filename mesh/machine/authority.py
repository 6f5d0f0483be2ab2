"""The certificate authority of one machine: identities of components (SPIFFE), and the gateway's certificate.

It is made anew at every start of Envoy.
"""

from datetime import UTC, datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

# istiod's certificates live for a day and are renewed while Envoy runs. Here only a start of Envoy renews them.
LIFETIME = timedelta(days=365)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*form).decode()


class Authority:
    """Signs certificates; its key is never written down."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mesh")])

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        # Python 3.13 and later trust no certificate that does not name its issuer's key.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + LIFETIME)
            .add_extension(issuer, critical=False)
        )

    @cached_property
    def root(self) -> str:
        """The certificate that everybody trusts, as PEM."""
        own = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        none = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "key_agreement"), False)
        none |= dict.fromkeys(("data_encipherment", "encipher_only", "decipher_only"), False)
        builder = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**none, key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(own, critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def identity(self, spiffe_id: str) -> tuple[str, str]:
        """A certificate with the identity as its only name, and its key, as PEM."""
        return self._certificate([x509.UniformResourceIdentifier(spiffe_id)])

    def certificate(self, hosts: list[str]) -> tuple[str, str]:
        """A certificate for these hosts, of which one may be a wildcard, and its key, as PEM."""
        return self._certificate([x509.DNSName(host) for host in hosts])

    def _certificate(self, names: list[x509.GeneralName]) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([]), key).add_extension(x509.SubjectAlternativeName(names), critical=True)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), _pem(key)
