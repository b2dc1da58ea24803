"""The region's certificates: the same bytes each time, for whom the plan says, accepted by strict verifiers, and only by them."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import subprocess
import threading
from datetime import UTC, date, datetime
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.certificates import Authority, Subject, new_authority
from infra.config import ConfigError
from tests.unit.infra.pki import authority_of, authority_pair, pem, request

DAY = date(2026, 1, 1)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
MEMBER = Subject("fra-1", "heliograph-member", "heliograph-fra", ("fra-1", "127.0.0.1"))
CLIENT = Subject("node", "heliograph-client", "heliograph-fra")


@cache
def own_authority() -> tuple[str, str]:
    """As `python -m infra.new` makes it: RSA."""
    return new_authority("fra", date(2025, 6, 1))


PAIRS = {"RSA": own_authority, "elliptic curve": authority_pair}


@cache
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]):
    return certificate.extensions.get_extension_for_class(kind).value


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request):
    return request.param()


@pytest.fixture
def authority(pair):
    return Authority(*pair)


class TestDeterministic:
    """A second `up` computes the same bytes: a certificate changes only when its key, its subject or its dates do."""

    def test_same_bytes(self, pair):
        csr = request(key())
        assert Authority(*pair).sign(csr, MEMBER, DAY, 397) == Authority(*pair).sign(csr, MEMBER, DAY, 397)

    def test_other_request_of_the_same_key(self, authority):
        """hostctl writes the request anew each time; only the key counts."""
        first, second = request(key(), "one"), request(key(), "two")
        assert first != second
        assert authority.sign(first, MEMBER, DAY, 397) == authority.sign(second, MEMBER, DAY, 397)

    def test_serial_numbers_differ(self, authority):
        csr = request(key())
        other_key = request(ec.generate_private_key(ec.SECP256R1()))
        signed = [
            authority.sign(csr, MEMBER, DAY, 397),
            authority.sign(csr, CLIENT, DAY, 397),
            authority.sign(csr, MEMBER, DAY, 396),
            authority.sign(csr, MEMBER, date(2026, 1, 2), 397),
            authority.sign(other_key, MEMBER, DAY, 397),
        ]
        numbers = {x509.load_pem_x509_certificate(one.encode()).serial_number for one in signed}
        assert len(numbers) == len(signed)
        assert all(0 < number < 2**159 for number in numbers)


class TestContent:
    """Who a certificate is for is decided by the plan; O and OU of `member` are what mongod trusts."""

    def test_member(self, authority):
        found = x509.load_pem_x509_certificate(authority.sign(request(key()), MEMBER, DAY, 397).encode())
        assert found.subject.rfc4514_string() == "CN=fra-1,OU=heliograph-member,O=heliograph-fra"
        names = extension(found, x509.SubjectAlternativeName)
        assert names.get_values_for_type(x509.DNSName) == ["fra-1"]
        assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
        assert set(extension(found, x509.ExtendedKeyUsage)) == {
            ExtendedKeyUsageOID.CLIENT_AUTH,
            ExtendedKeyUsageOID.SERVER_AUTH,
        }
        assert extension(found, x509.BasicConstraints).ca is False
        assert found.not_valid_before_utc == datetime(2026, 1, 1, tzinfo=UTC)
        assert (found.not_valid_after_utc - found.not_valid_before_utc).days == 397
        assert found.public_key() == key().public_key()

    def test_client_cannot_serve(self, authority):
        found = x509.load_pem_x509_certificate(authority.sign(request(key()), CLIENT, DAY, 397).encode())
        assert list(extension(found, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        with pytest.raises(x509.ExtensionNotFound):
            extension(found, x509.SubjectAlternativeName)

    def test_request_decides_nothing(self, authority):
        csr = request(key(), "fra-9")
        found = x509.load_pem_x509_certificate(authority.sign(csr, CLIENT, DAY, 397).encode())
        assert found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "node"

    def test_new_authority(self):
        found = x509.load_pem_x509_certificate(own_authority()[0].encode())
        assert extension(found, x509.BasicConstraints) == x509.BasicConstraints(ca=True, path_length=0)
        assert extension(found, x509.KeyUsage).key_cert_sign
        assert (found.not_valid_after_utc - found.not_valid_before_utc).days == 3650


class TestVerifies:
    """Foreign verifiers accept the chain, as strictly as they can."""

    def test_cryptography(self):
        authority = Authority(*own_authority())
        store = verification.Store([x509.load_pem_x509_certificate(authority.certificate.encode())])
        builder = verification.PolicyBuilder().store(store).time(NOW)
        leaf = x509.load_pem_x509_certificate(authority.sign(request(key()), MEMBER, DAY, 397).encode())
        for name in (x509.DNSName("fra-1"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))):
            assert len(builder.build_server_verifier(name).verify(leaf, [])) == 2
        with pytest.raises(verification.VerificationError):
            builder.build_server_verifier(x509.DNSName("fra-2")).verify(leaf, [])
        assert len(builder.build_client_verifier().verify(leaf, []).chain) == 2

    def test_openssl(self, tmp_path, pair, authority):
        strict = ["-x509_strict"] if pair == own_authority() else []  # the user's own may be as it is
        (tmp_path / "ca.pem").write_text(authority.certificate)
        (tmp_path / "leaf.pem").write_text(authority.sign(request(key()), MEMBER, DAY, 397))
        argv = ["openssl", "verify", *strict, "-attime", str(int(NOW.timestamp())), "-purpose", "sslserver"]
        argv += ["-verify_ip", "127.0.0.1", "-CAfile", "ca.pem", "leaf.pem"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str
) -> tuple[dict[str, object], ssl.SSLError | None]:
    """Connect over a real socket: (the client's certificate as the server saw it, why the client refused)."""
    ours, theirs = socket.socketpair()
    seen: dict[str, object] = {}

    def serve() -> None:
        with theirs:
            try:
                with server.wrap_socket(theirs, server_side=True) as tls:
                    seen.update(tls.getpeercert() or {})
                    tls.sendall(b"hello")
            except OSError as error:
                seen["error"] = error

    thread = threading.Thread(target=serve)
    thread.start()
    failure = None
    try:
        with ours, client.wrap_socket(ours, server_hostname=name) as tls:
            assert tls.recv(5) == b"hello"
    except ssl.SSLError as error:
        failure = error
    thread.join()
    return seen, failure


class TestHandshake:
    """A member and a client of the region talk over TLS, each proving who it is; nobody else gets in."""

    @pytest.fixture
    def contexts(self, tmp_path, pair):
        today = datetime.now(UTC).date()
        certificate, private = pair
        authority = Authority(certificate, private)
        (tmp_path / "ca.pem").write_text(authority.certificate)
        for role, subject in (("member", MEMBER), ("node", CLIENT)):
            signed = authority.sign(request(key()), subject, today, 397)
            (tmp_path / f"{role}.pem").write_text(pem(key()) + signed)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
        server.load_cert_chain(tmp_path / "member.pem")
        server.verify_mode = ssl.CERT_REQUIRED
        client = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        client.load_cert_chain(tmp_path / "node.pem")
        if pair == own_authority():
            for context in (server, client):
                context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default since 3.13
        return server, client

    @pytest.mark.parametrize("name", ["127.0.0.1", "fra-1"])
    def test_both_prove_themselves(self, contexts, name):
        seen, failure = handshake(*contexts, name)
        assert failure is None
        subject = {pair[0][0]: pair[0][1] for pair in seen["subject"]}
        assert subject["organizationalUnitName"] == "heliograph-client"

    def test_other_name_refused(self, contexts):
        _, failure = handshake(*contexts, "fra-2")
        assert "fra-2" in str(failure)

    def test_other_authority_refused(self, contexts):
        server, _ = contexts
        other = authority_of(key())
        client = ssl.create_default_context(cadata=other)
        _, failure = handshake(server, client, "fra-1")
        assert "CERTIFICATE_VERIFY_FAILED" in str(failure)

    def test_client_certificate_does_not_serve(self, contexts, tmp_path):
        _, client = contexts
        impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        impostor.load_cert_chain(tmp_path / "node.pem")
        _, failure = handshake(impostor, client, "fra-1")
        assert "CERTIFICATE_VERIFY_FAILED" in str(failure)


def forged() -> str:
    """A request that carries a public key whose private half its sender does not have."""
    victim, thief = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    body = x509.load_pem_x509_csr(request(thief).encode()).public_bytes(serialization.Encoding.DER)
    points = [
        one.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        for one in (thief, victim)
    ]
    assert body.count(points[0]) == 1
    changed = x509.load_der_x509_csr(body.replace(*points))
    return changed.public_bytes(serialization.Encoding.PEM).decode()


class TestRefusals:
    """An authority that cannot be used, or a request that should not be signed, is refused in a sentence without a key in it."""

    def test_not_a_pair(self, pair):
        with pytest.raises(ConfigError, match=r"authorityKey is not the key of .*set both from the same pair"):
            Authority(pair[0], pem(ec.generate_private_key(ec.SECP256R1())))

    @pytest.mark.parametrize("garbage", ["", "not PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
    def test_not_pem(self, garbage):
        certificate, private = authority_pair()
        for broken in ((garbage, private), (certificate, garbage)):
            with pytest.raises(ConfigError, match=r"is not PEM .*python -m infra\.new"):
                Authority(*broken)

    def test_key_with_passphrase(self):
        certificate, _ = authority_pair()
        locked = key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
        with pytest.raises(ConfigError, match="authorityKey is encrypted; set it without a passphrase"):
            Authority(certificate, locked.decode())

    def test_other_algorithm(self):
        certificate, _ = authority_pair()
        strange = ed25519.Ed25519PrivateKey.generate()
        with pytest.raises(ConfigError, match="must be an RSA or elliptic-curve key"):
            Authority(certificate, pem(strange))

    @pytest.mark.parametrize("ca", [False, None])
    def test_not_an_authority(self, ca):
        with pytest.raises(ConfigError, match="is not a certificate authority's"):
            Authority(authority_of(key(), ca=ca), pem(key()))

    def test_outliving(self):
        authority = Authority(authority_of(key(), years=2), pem(key()))
        assert authority.sign(request(key()), MEMBER, DAY, 365)
        with pytest.raises(
            ConfigError, match=r"end on 2027-01-02 would outlive .*2027-01-01.*lower certificates\.days"
        ):
            authority.sign(request(key()), MEMBER, DAY, 366)

    def test_forged(self, authority):
        with pytest.raises(ConfigError, match="request for fra-1 is not signed by its own key"):
            authority.sign(forged(), MEMBER, DAY, 397)

    def test_no_request(self, authority):
        with pytest.raises(ConfigError, match="the host sent no certificate request for fra-1"):
            authority.sign("bash: openssl: command not found", MEMBER, DAY, 397)

    def test_no_key_in_a_message(self):
        _, private = authority_pair()
        broken = private.replace("\n", "\n!", 2)
        with pytest.raises(ConfigError) as error:
            Authority(authority_pair()[0], broken)
        body = [line for line in private.splitlines() if not line.startswith("-")]
        assert not any(line in str(error.value) for line in body)


def test_weak_keys_are_not_made():
    loaded = serialization.load_pem_private_key(own_authority()[1].encode(), password=None)
    assert isinstance(loaded, rsa.RSAPrivateKey)
    assert loaded.key_size >= 3072
