"""The people who use the console: their roles, and what names and passwords may be."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.domain.catalog import Scope

__all__ = [
    "MAX_PASSWORD",
    "MIN_PASSWORD",
    "NAME",
    "THEMES",
    "Invitation",
    "Look",
    "Person",
    "Role",
    "Session",
    "Stage",
    "password_fault",
    "plain_name",
    "standing_fault",
]

NAME = r"^[a-z0-9][a-z0-9_.+@-]{0,63}$"
"""Of a login name; an address of mail is one."""
THEMES = ("system", "light", "dark")
MIN_PASSWORD = 12
MAX_PASSWORD = 256
_NAME = re.compile(NAME)


class Role(StrEnum):
    """What a person may do, in order: each may do what those before it may. Compared by that order, not as texts."""

    VIEWER = "viewer"
    """Reads messages, routes and the ledger."""
    SENDER = "sender"
    """Sends, cancels, erases; keeps suppressions and preferences."""
    OPERATOR = "operator"
    """Runs the deployment: connectors, routes, callbacks, repairs, operations."""
    ADMIN = "admin"
    """Lets people in and out, makes tenants and keys, reads the audit."""

    @property
    def rank(self) -> int:
        """0 for the least."""
        return _RANKS[self]

    @property
    def scopes(self) -> frozenset[str]:
        """What it may ask of the API."""
        return _SCOPES[self]

    def __lt__(self, other: str) -> bool:
        return self.rank < Role(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Role(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Role(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Role(other).rank


_RANKS = {role: rank for rank, role in enumerate(Role)}
_READS: frozenset[str] = frozenset({Scope.MESSAGES_READ, Scope.ROUTES_READ, Scope.LEDGER_READ})
_SCOPES: dict[Role, frozenset[str]] = {
    Role.VIEWER: _READS,
    Role.SENDER: _READS | {Scope.MESSAGES_WRITE},
    Role.OPERATOR: frozenset({Scope.ADMIN}),
    Role.ADMIN: frozenset({Scope.ADMIN}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a person wants the console to be."""

    theme: str = "system"
    time_zone: str = "UTC"
    """An IANA name."""
    shortcuts: bool = True
    """Keys such as `/` and `j` act (WCAG 2.1.4 wants a switch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who may log in, or is invited to. Secrets are not here: they stay in the store."""

    name: str
    role: Role
    tenant: str = ""
    """"" = the whole deployment."""
    enabled: bool = True
    ready: bool = False
    """A password is set: the invitation was followed."""
    totp: bool = False
    """A second factor is set."""
    recovery_codes: int = 0
    """Unused ones."""
    created_at: int = 0
    """ms since the epoch, like all times here."""
    last_login_at: int | None = None
    look: Look = field(default_factory=Look)

    @property
    def state(self) -> str:
        """active, invited or disabled."""
        if not self.enabled:
            return "disabled"
        return "active" if self.ready else "invited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What an unused set-up link stands for."""

    name: str
    """"" = whoever follows it chooses one."""
    role: Role
    tenant: str
    until: int


class Stage(StrEnum):
    """How far a login is."""

    CODE = "code"
    """The password was right; the second factor is missing."""
    ENROL = "enrol"
    """The password was right; a second factor has to be set up."""
    OPEN = "open"
    """Logged in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A browser that is logged in, or about to."""

    handle: str
    """Names it to its owner; it opens nothing."""
    person: str
    stage: Stage
    at: int
    seen: int
    until: int
    address: str
    agent: str
    """The browser's User-Agent."""
    secret: str = ""
    """base32: of an authenticator that is being set up in it."""


def plain_name(typed: str) -> str | None:
    """The login name that was typed, in its one spelling; None when it cannot be one."""
    name = typed.strip().lower()
    return name if _NAME.fullmatch(name) else None


def standing_fault(role: Role, tenant: str) -> str | None:
    """What is wrong with this role for a person of this tenant, or None."""
    if tenant and role > Role.SENDER:
        return f"somebody bound to a tenant is viewer or sender; {role.value} is for the whole deployment"
    return None


def password_fault(password: str, name: str) -> str | None:
    """Why this cannot be the password of `name`, or None. Any characters may be in it (NIST SP 800-63B-4, section 3.1.1.2)."""
    if len(password) < MIN_PASSWORD:
        return f"must have at least {MIN_PASSWORD} characters; three or four words that do not belong together are good"
    if len(password) > MAX_PASSWORD:
        return f"must have at most {MAX_PASSWORD} characters"
    folded = unicodedata.normalize("NFKC", password).casefold()
    letters = re.sub(r"[\W\d_]+", "", folded)
    part = name.partition("@")[0]
    if name in folded or (len(part) >= 4 and part in folded):
        return "must not contain the login name"
    if len(set(folded)) < 5:
        return "repeats the same few characters"
    if folded in _COMMON or letters in _COMMON or any(_runs(folded, row) for row in _ROWS):
        return "is one of those that are tried first"
    return None


_ROWS = ("01234567890123456789", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm", "1qaz2wsx3edc4rfv5tgb6yhn")


def _runs(text: str, row: str) -> bool:
    """Whether the text is a stretch of the row, forwards or backwards."""
    return text in row or text[::-1] in row


_WORDS = """
    password passwordpassword passwort passwortpasswort motdepasse contrasena changeme changemenow changemeplease letmein letmeinplease
    letmeinnow welcome welcomewelcome welcomeback administrator adminadmin adminadminadmin rootroot rootrootroot superuser
    iloveyou iloveyouforever iloveyousomuch trustno trustnoone qwerty qwertyqwerty qwertyuiop qwertyuiopasdf asdfghjkl
    asdfasdfasdf zxcvbnm zxcvbnmzxcvbnm abcabcabcabc monkeymonkey dragondragon football baseball basketball princess sunshine
    superman batman pokemon liverpool manchester chelsea arsenal barcelona juventus whatever whateverwhatever secret secretsecret
    topsecret mypassword mypasswordis thisisapassword thisismypassword yourpassword nopassword nopasswords testtest testtesttest
    testpassword defaultpassword default guestguest useruseruser computer internet starwars spiderman mustang master masterkey
    michelle jennifer jessica michael michaeljordan charlie ashley nicole daniel andrew joshua matthew anthony
    correcthorsebatterystaple correcthorse heliograph heliographadmin heliographheliograph letmeinheliograph
    1234567890ab 123123123123 123412341234 123456123456 123456789abc 123456789012 121212121212 112233445566 111222333444
    1q2w3e4r5t6y 1q2w3e4r5t6y7u 1qaz2wsx3edc 1qazxsw23edc q1w2e3r4t5y6 qazwsxedcrfv zaq12wsxcde3 a1b2c3d4e5f6 aa12345678aa
    abcd12345678 abc123abc123 abcdef123456 asd123asd123 qwe123qwe123 qwerty123456 qwerty1234567 qwertyuiop12 qwertyuiop123 147258369147
    159753159753 987654321000 098765432100
"""
_COMMON = frozenset(_WORDS.split())
"""By characters, or by letters only: `Password1234!` is `password`."""
