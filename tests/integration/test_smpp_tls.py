"""SMPP over TLS: the carrier's certificate is verified unless the connector says otherwise."""

from __future__ import annotations

import asyncio
import subprocess

import pytest


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    home = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=carrier.test"]
    command += [
        "-addext",
        "subjectAltName=DNS:carrier.test",
        "-keyout",
        str(home / "key.pem"),
        "-out",
        str(home / "cert.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return home


class TestTls:
    """Nobody between us and the carrier."""

    async def test_verified(self, node, carriers, certificate):
        carrier = await carriers(tls_certificate=certificate / "cert.pem", tls_key=certificate / "key.pem")
        authority = (certificate / "cert.pem").read_text()
        await node.connect(carrier, tls=True, tls_ca=authority, tls_server_name="carrier.test")
        await node.reaches((await node.send())["id"], "delivered")

    @pytest.mark.parametrize("name", ["carrier.test", "other.test"])
    async def test_a_stranger_is_refused(self, node, carriers, certificate, name):
        carrier = await carriers(tls_certificate=certificate / "cert.pem", tls_key=certificate / "key.pem")
        authority = "" if name == "carrier.test" else (certificate / "cert.pem").read_text()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await node.connect(carrier, tls=True, tls_ca=authority, tls_server_name=name)
        (state,) = node.node.connector_states()
        assert "certificate verify failed" in state.binds[0].last_error
