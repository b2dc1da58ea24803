"""Certificates and keys, replaced without an outage: at each moment whoever has the old one and whoever has the new one believe each other. Pure."""

from __future__ import annotations

from infra.changes.phase import Config, Fresh, Phase, Ups, key, moved
from infra.config import ConfigError

__all__ = ["KINDS", "phases"]

_CERTIFICATES = "certificates"
KINDS = (_CERTIFICATES, "authority", "api", "ledger", "ssh")
_REGION = key("region")
_WHY_NOT = (
    "secretKey stays as it is. The database holds what only it can find or open: API keys as digests under it (nobody has the keys to digest them anew), "
    "opt-outs and preferences as keyed hashes of numbers that are kept nowhere else, ids of idempotent requests, sealed passwords of carriers, second factors; "
    "and all regions share it. To leave it behind, stand up a region beside this one with another secretKey, give it new API keys, enter carriers and, from your "
    "own lists, opt-outs there, and move the clients"
)


def _raise(config: Config, what: str) -> None:
    known = config[_REGION][_CERTIFICATES]
    known[what] = known.get(what, 0) + 1


# -- certificates ---------------------------------------------------------------------------------------------------------


def _renew(config: Config, fresh: Fresh) -> None:
    config[_REGION][_CERTIFICATES]["not_before"] = fresh.today.isoformat()
    _raise(config, "serial")


def _trust(config: Config, fresh: Fresh) -> None:
    config[key("nextAuthorityCertificate")] = config[key("trustedAuthorities")] = fresh.certificate
    _raise(config, "trust")


def _sign(config: Config, fresh: Fresh) -> None:
    config[key("trustedAuthorities")] = config[key("authorityCertificate")]
    moved(config, "nextAuthorityCertificate", "authorityCertificate")
    moved(config, "nextAuthorityKey", "authorityKey")
    _renew(config, fresh)


def _only(config: Config, _fresh: Fresh) -> None:
    config.pop(key("trustedAuthorities"))
    _raise(config, "trust")


# -- keys -----------------------------------------------------------------------------------------------------------------


def _both(config: Config, _fresh: Fresh) -> None:
    moved(config, "adminKey", "formerAdminKey")
    moved(config, "nextAdminKey", "adminKey")


def _revoke(config: Config, _fresh: Fresh) -> None:
    moved(config, "formerAdminKey", "revokedAdminKey")


def _log_keys(config: Config, *without: str) -> list[str]:
    return [one for one in str(config.get(key("logKeys"), "")).split() if one not in without]


def _announce_log(config: Config, fresh: Fresh) -> None:
    config[key("logKeys")] = " ".join([fresh.public, *_log_keys(config)])
    config[key("nextLogKey")] = fresh.public


def _turn_log(config: Config, fresh: Fresh) -> None:
    new = config.pop(key("nextLogKey"), fresh.public)
    config[key("logKeys")] = " ".join([fresh.former, *_log_keys(config, new, fresh.former)])
    moved(config, "nextLedgerKey", "ledgerKey")


def _announce_ssh(config: Config, fresh: Fresh) -> None:
    config[key("nextSshPublic")] = fresh.public


def _turn_ssh(config: Config, fresh: Fresh) -> None:
    config.pop(key("nextSshPublic"))
    config[key("formerSshPublic")] = fresh.former
    moved(config, "nextSshKey", "sshKey")


def phases(kind: str, config: Config) -> list[Phase]:
    """Of a rotation: `certificates`, `authority`, `api`, `ledger` or `ssh`. ConfigError for what cannot be rotated."""
    peers = bool((config[_REGION].get("ledger") or {}).get("peers"))
    match kind:
        case "certificates":
            return [Phase("renew", "new keys and certificates on every host, from the same authority", _renew)]
        case "authority":
            tell = Phase(
                "tell", "clients and peers trust the old and the new authority", ups=Ups.PEERS, more={"clients": True}
            )
            dropped = [Phase("tell-only", "the peers trust the new authority alone", ups=Ups.PEERS)] * peers
            return [
                Phase("trust", "a new authority, trusted beside the old one; the old one signs", _trust, makes="nextAuthorityKey"),
                tell,
                Phase("sign", "new keys and certificates, signed by the new authority", _sign),
                Phase("only", "the new authority alone is trusted", _only),
                *dropped,
            ]  # fmt: skip
        case "api":
            return [
                Phase("both", "a new first API key; the old one is accepted too", _both, makes="nextAdminKey"),
                Phase("revoke", "the old first API key is revoked", _revoke),
            ]
        case "ledger":
            turn = Phase(
                "turn",
                "the ledgers sign with a new key: the log ends, and a new one follows",
                _turn_log,
                makes="" if peers else "nextLedgerKey",
            )
            if not peers:
                return [turn]
            return [
                Phase("announce", "the next key of the log is made, and told", _announce_log, ups=Ups.PEERS, makes="nextLedgerKey"),
                turn,
                Phase("tell", "the peers know the new keys", ups=Ups.PEERS),
            ]  # fmt: skip
        case "ssh":
            return [
                Phase("authorize", "a new SSH key may come in on every host, and is tried", _announce_ssh, ups=Ups.NONE, makes="nextSshKey"),
                Phase("turn", "the new SSH key is used", _turn_ssh),
                Phase("expel", "the old SSH key is taken off every host", ups=Ups.NONE),
            ]  # fmt: skip
        case "secret":
            raise ConfigError(_WHY_NOT)
        case _:
            raise ConfigError(f"there is no rotation {kind!r}; there are {', '.join(KINDS)}")
