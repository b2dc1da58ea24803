"""The region's certificates. Private keys are made on the hosts and stay there; here a request's public key becomes a certificate.

Signing is deterministic (RSA PKCS #1 v1.5, or ECDSA after RFC 6979; serial number and dates derived), so that a second `pulumi up` computes the same
bytes and changes nothing. A request's own subject is ignored: who a certificate is for is decided by the plan.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.config import ConfigError, Secrets

__all__ = ["Authority", "Subject", "authorities", "new_authority"]


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate is for."""

    common_name: str
    unit: str
    organization: str
    names: tuple[str, ...] = ()
    """Host names and IP addresses under which it serves; none = a client only."""

    def name(self) -> x509.Name:
        """As MongoDB compares it: O and OU decide who is a member of the cluster."""
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.organization),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, self.unit),
                x509.NameAttribute(NameOID.COMMON_NAME, self.common_name),
            ]
        )


def _instant(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def new_authority(region: str, today: date, *, successor: bool = False) -> tuple[str, str]:
    """(certificate, private key), PEM, for ten years. RSA, because its signatures are deterministic and every mongod verifies them.

    A successor has a name of its own: two authorities of one name are told apart by some verifiers only after a failure.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    after = f" {today} {secrets.token_hex(4)}" if successor else ""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Heliograph {region} authority{after}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_instant(today))
        .not_valid_after(_instant(today) + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def authorities(known: Secrets) -> str:
    """All authorities that the region trusts, PEM, the one that signs first."""
    return known.authority_certificate.strip() + "\n" + known.trusted_authorities


class Authority:
    """A certificate authority: the region's own, or the user's."""

    @classmethod
    def of(cls, known: Secrets) -> Authority:
        """The one that signs for a region."""
        return cls(
            known.authority_certificate, known.authority_key.get_secret_value(), trusted=known.trusted_authorities
        )

    def __init__(self, certificate: str, key: str, *, trusted: str = "") -> None:
        """From PEM. Raises ConfigError when the two are unusable or do not belong together."""
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate.encode())
            loaded = serialization.load_pem_private_key(key.encode(), password=None)
        except TypeError:  # cryptography's, for a key with a passphrase
            raise ConfigError(
                "heliograph:authorityKey is encrypted; set it without a passphrase: openssl pkey -in KEY (the stack keeps it encrypted)"
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"heliograph:authorityCertificate or authorityKey is not PEM ({error}); `python -m infra.new` makes a pair"
            ) from None
        if not isinstance(loaded, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise ConfigError(
                "heliograph:authorityKey must be an RSA or elliptic-curve key: mongod verifies nothing else"
            )
        if loaded.public_key() != self._certificate.public_key():
            raise ConfigError(
                "heliograph:authorityKey is not the key of heliograph:authorityCertificate; set both from the same pair"
            )
        try:
            is_authority = self._certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_authority = False
        if not is_authority:
            raise ConfigError(
                "heliograph:authorityCertificate is not a certificate authority's (basicConstraints CA:TRUE is missing)"
            )
        self._key = loaded
        self.certificate = certificate.strip() + "\n"
        self.bundle = self.certificate + trusted
        """What the region trusts: itself, and others while one follows another."""

    def sign(self, request: str, subject: Subject, not_before: date, days: int) -> str:
        """The certificate, PEM, for the public key in a PKCS #10 request. Raises ConfigError when it would outlive the authority."""
        try:
            parsed = x509.load_pem_x509_csr(request.encode())
        except ValueError as error:
            raise ConfigError(
                f"the host sent no certificate request for {subject.common_name} ({error}); look at `openssl version` there"
            ) from None
        if not parsed.is_signature_valid:
            raise ConfigError(
                f"the certificate request for {subject.common_name} is not signed by its own key"
            ) from InvalidSignature()
        begin, end = _instant(not_before), _instant(not_before) + timedelta(days=days)
        if end > self._certificate.not_valid_after_utc:
            raise ConfigError(
                f"certificates that end on {end.date()} would outlive their authority ({self._certificate.not_valid_after_utc.date()}); lower certificates.days"
            )
        public = parsed.public_key()
        spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        seed = b"\0".join(
            [
                spki,
                subject.name().public_bytes(),
                ",".join(subject.names).encode(),
                begin.isoformat().encode(),
                str(days).encode(),
            ]
        )
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if subject.names else [])]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject.name())
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(int.from_bytes(hashlib.sha256(seed).digest()[:16]) >> 1 | 1)
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._identifier(), critical=False)
        )
        if subject.names:
            builder = builder.add_extension(x509.SubjectAlternativeName(_general(subject.names)), critical=False)
        if isinstance(self._key, rsa.RSAPrivateKey):
            signed = builder.sign(self._key, hashes.SHA256())
        else:
            signed = builder.sign(self._key, hashes.SHA256(), ecdsa_deterministic=True)
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        """Of this authority, as it names itself. Strict verifiers (RFC 5280; Python since 3.13) refuse a certificate without it."""
        try:
            own = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _general(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found
