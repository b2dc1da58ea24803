"""Authorities and requests to sign with. Elliptic curves, because their keys are made at once."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

__all__ = ["authority_pair", "pem", "request"]


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def authority_of(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, ca: bool | None = True, years: int = 10
) -> str:
    """A self-signed certificate, as a user's own authority may have it: without a subject key identifier. `ca=None`: no basic constraints."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Users' own authority")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2025, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2025 + years, 1, 1, tzinfo=UTC))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@cache
def authority_pair() -> tuple[str, str]:
    """(certificate, key), PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return authority_of(key), pem(key)


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, common_name: str = "whoever I say") -> str:
    """A certificate request, PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()
