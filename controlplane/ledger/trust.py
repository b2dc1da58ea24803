"""Whose keys count for which log: names of logs and cosigners, and the keys that the settings give them."""

from __future__ import annotations

import base64
import re
from typing import Literal

from controlplane.ledger.note import COSIGNATURE, ED25519, Signer, Verifier, derive
from controlplane.settings import Peer, Settings

__all__ = ["Trust", "cosigner", "cosigner_name"]

CosignerRole = Literal["witness", "mirror"]


def cosigner_name(domain: str, dc: str, role: CosignerRole) -> str:
    """`<domain>/ledger/<dc>/witness`, `…/mirror`."""
    return f"{domain}/ledger/{dc}/{role}"


def cosigner(settings: Settings, role: CosignerRole) -> Signer:
    """This datacenter's witness or mirror. Raises ConfigError without a key."""
    name = cosigner_name(settings.ledger_domain, settings.datacenter, role)
    return Signer.cosigner(name, derive(settings.ledger_seed, role))


class Trust:
    """What the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._origin = re.compile(
            rf"{re.escape(settings.ledger_domain)}/ledger/([a-z0-9][a-z0-9-]*)/[0-9]{{4}}q[1-4](?:-[1-9][0-9]*)?",
            re.ASCII,
        )
        self._peers = {peer.dc: peer for peer in settings.ledger_peers}

    def datacenter_of(self, origin: str) -> str:
        """Whose log has this origin; "" for what is no log of this deployment."""
        found = self._origin.fullmatch(origin)
        return found[1] if found else ""

    def log_keys(self, origin: str) -> tuple[Verifier, ...]:
        """The keys that may sign a peer's log; none for a log of nobody whom we know."""
        peer = self._peers.get(self.datacenter_of(origin))
        return tuple(Verifier.of(origin, ED25519, base64.b64decode(key)) for key in peer.log_keys) if peer else ()

    def own_key(self, origin: str) -> Verifier:
        """Our own key under the name of one of our logs."""
        return Signer.log(origin, derive(self._settings.ledger_seed, "log")).verifier

    def cosigner_of(self, peer: Peer, role: CosignerRole) -> Verifier:
        """A peer's witness or mirror."""
        key = peer.witness_key if role == "witness" else peer.mirror_key
        name = cosigner_name(self._settings.ledger_domain, peer.dc, role)
        return Verifier.of(name, COSIGNATURE, base64.b64decode(key))

    def mirrors(self) -> dict[str, Verifier]:
        """Name of a peer's mirror → its key."""
        found = (self.cosigner_of(peer, "mirror") for peer in self._peers.values())
        return {verifier.name: verifier for verifier in found}
