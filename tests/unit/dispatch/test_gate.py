"""The gate before routing: what it makes of a verdict, and of a recipient that has to be read first."""

from controlplane.dispatch.gate import GO, Gate
from controlplane.domain.catalog import Snapshot, Tenant
from controlplane.domain.message import Message
from controlplane.domain.preferences import COVERED, NOBODY, Preference, Reason, Standing, Suppression
from controlplane.domain.quiet import QuietHours, Window
from controlplane.errors import StoreUnavailableError

NOW = 1_768_082_400_000  # 2026-01-10T22:00Z


class Known:
    """Stands for Recipients: the memory of a node."""

    def __init__(self, standing):
        self.answer = standing
        self.asked = []

    def standing(self, _tenant, _to):
        return self.answer

    def read_soon(self, asked, known):
        self.asked.append((asked, known))


def ask(standing, *, quiet=None, cls="marketing"):
    looked = []
    known = Known(standing)
    snapshot = Snapshot(tenants={"t": Tenant(id="t", name="T", quiet_hours=quiet or {})})
    gate = Gate(known, lambda: snapshot, looked.append)
    message = Message("m", "t", to="+4915112345678", cls=cls, expires_at=NOW + 86_400_000)
    return gate(message, NOW), gate, known, looked, message


def suppression(reason):
    return Standing((Suppression(id="s", recipient="", reason=reason, classes=COVERED[reason]),))


def test_nothing_recorded_goes():
    assert ask(NOBODY)[0] is GO


def test_an_opt_out_fails_by_its_name_and_others_as_suppressed():
    assert ask(suppression(Reason.OPT_OUT))[0].failed == "opted_out"
    assert ask(suppression(Reason.INVALID))[0].failed == "suppressed"
    assert ask(suppression(Reason.OPT_OUT), cls="otp")[0].go
    blocked = Standing((), Preference(id="p", recipient="", blocked=frozenset({"marketing"})))
    assert ask(blocked)[0].failed == "class_blocked"


def test_quiet_hours_hold_also_where_they_reject():
    for action in ("hold", "reject"):
        ruling = ask(NOBODY, quiet={"marketing": QuietHours((Window(22 * 60, 7 * 60),), action)})[0]
        assert (ruling.go, ruling.failed, ruling.rule) == (False, "", "quiet_hours")
        assert ruling.until == NOW + 8 * 3_600_000  # seven in Berlin


def test_without_an_end_it_waits_for_its_validity():
    ruling = ask(NOBODY, quiet={"marketing": QuietHours((Window(0, 1_440),))})[0]
    assert (ruling.until, ruling.rule) == (NOW + 86_400_000, "quiet_hours_never_end")


def test_a_recipient_is_read_once_and_its_message_looked_at_again():
    ruling, gate, known, looked, message = ask(None)
    assert (ruling.go, ruling.failed, ruling.rule) == (False, "", "")
    assert ruling.until > NOW
    gate(message, NOW)
    ((asked, tell),) = known.asked
    assert asked == [("t", "+4915112345678")]
    tell([NOBODY])
    assert looked == ["m"]
    gate(message, NOW)
    known.asked[1][1](StoreUnavailableError("away"))  # the owner's own clock looks again
    assert looked == ["m"]
