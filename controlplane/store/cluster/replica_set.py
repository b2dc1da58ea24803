"""Bring one replica set to its declared members. May be killed at any moment; the next run looks anew and goes on.

Sources, MongoDB manual: reference/command/replSetInitiate, replSetReconfig, replSetGetStatus, replSetStepDown; reference/replica-states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from pymongo.errors import OperationFailure, PyMongoError

from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.store.client import Document
from controlplane.store.cluster.identity import check_identity, documents, election_ms, members_of, moved, newest
from controlplane.store.cluster.members import Access, Connections, Probe, is_transient, step_down
from controlplane.store.cluster.plan import Members, Step, has_majority, next_step, plan, settle_ids
from controlplane.store.cluster.report import Deadline, Report
from controlplane.store.cluster.spec import SetSpec
from controlplane.store.cluster.view import View

__all__ = ["converge_set"]

_ALREADY_INITIALIZED = 23
_NEW_CONFIG_INCOMPATIBLE = 103
_COMMIT_MS = 10_000
_ATTEMPTS = 3


async def converge_set(spec: SetSpec, access: Access, report: Report, deadline: Deadline) -> None:
    """Initiate the set, or reconfigure it step by step; returns when it has a primary and a healthy majority.

    ConfigError: a member is not what was declared, or no safe step exists. StoreUnavailableError: not reached in time.
    """
    async with Connections(access) as connections:
        await _Run(spec, connections, report, deadline).run()


class _Run:
    def __init__(self, spec: SetSpec, connections: Connections, report: Report, deadline: Deadline) -> None:
        self._spec = spec
        self._desired: Members = spec.members
        self._connections = connections
        self._report = report
        self._deadline = deadline
        self._asked: Step | None = None
        self._failed: tuple[Members, str] | None = None

    async def run(self) -> None:
        view = await self._all_that_is_needed()
        fresh = view.config is None
        if fresh:
            await self._initiate()
            view = await self.observe()
        else:
            await self._check_plan(view)
        await self._settle(await self._tune(await self._reconfigure(view)), everyone=fresh)

    async def observe(self) -> View:
        """Ask the declared members, and those that the set has beside them. ConfigError when one is a stranger."""
        probes = await self._connections.probe_all(member.host for member in self._desired)
        check_identity(self._spec, list(probes.values()))
        known = newest(probes.values())
        if known is not None and known.config is not None:
            others = [member.host for member in members_of(known.config) if member.host not in probes]
            for host, probe in (await self._connections.probe_all(others)).items():
                stranger = probe.config is not None and probe.set_id != known.set_id
                probes[host] = Probe(host, why="belongs to another set") if stranger else probe
            known = newest(probes.values())
        return View(probes, known)

    async def _all_that_is_needed(self) -> View:
        """Wait for all members of a new set, for those that are to be added to an old one."""
        while True:
            view = await self.observe()
            self._desired = settle_ids(view.members, self._spec.members, apart=self._leaving_well(view))
            ids = {member.id: member.host for member in view.members}
            silent = [
                view.probes[member.host]
                for member in self._desired
                if view.probes[member.host].hello is None and ids.get(member.id) != member.host
            ]
            if not silent:
                return view
            if not await self._deadline.pause():
                self._give_up("Nothing was changed: each new member must answer first", silent)

    def _leaving_well(self, view: View) -> frozenset[int]:
        """Ids of healthy members that are not declared any more, and whose process does not answer at another, declared address."""
        declared = {member.host for member in self._spec.members}
        same = moved(view.probes, view.members, settle_ids(view.members, self._spec.members))
        return frozenset(
            member.id
            for member in view.members
            if member.host not in declared and member.id in view.healthy and member.id not in same
        )

    def _give_up(self, what: str, silent: Sequence[Probe]) -> NoReturn:
        who = "; ".join(f"{probe.host} ({probe.why})" for probe in silent) or "all members answer"
        raise StoreUnavailableError(
            f"The set {self._spec.set} is not as declared after {self._deadline.seconds:g} s. {what}. Not answering: {who}. "
            "See to these members (systemctl status, firewall, certificate) and run this again."
            if silent
            else f"The set {self._spec.set} is not as declared after {self._deadline.seconds:g} s. {what}. Run this again; it goes on from here."
        )

    async def _check_plan(self, view: View) -> None:
        """The whole way, before the first step: ConfigError when it is not safe. A member may be silent for a moment: asked thrice."""
        lacks = ""
        for _ in range(_ATTEMPTS):
            current = view.members
            moves = moved(view.probes, current, self._desired)
            steps = plan(current, self._desired, moved=moves, primary=view.primary_id)
            sure = set(view.sure)
            lacks = ""
            for step in steps if view.primary is not None else ():
                if step.change in ("added", "replaced"):
                    sure |= {member.id for member in step.members if member.host == step.host}
                lacks = lacks or self._lacks(step, sure, view)
            if not lacks or not await self._deadline.pause():
                break
            view = await self.observe()
        if lacks:
            raise ConfigError(f"{lacks}. Nothing was changed.")

    def _lacks(self, step: Step, sure: set[int] | frozenset[int], view: View) -> str:
        """Why the step would leave no healthy majority; "" when it leaves one."""
        if not step.lowers or has_majority(step.members, sure):
            return ""
        voters = [member for member in step.members if member.votes]
        sick = [member.host for member in voters if member.id not in sure]
        return (
            f"Without the vote of {step.host} the set {self._spec.set} would have {len(voters) - len(sick)} healthy voters of "
            f"{len(voters)}, no majority: bring {', '.join(f'{host} ({view.says(host)})' for host in sick)} back first"
        )

    async def _initiate(self) -> None:
        first = self._desired[0].host
        config: Document = {"_id": self._spec.set, "members": documents(self._desired)}
        if self._spec.role == "configsvr":
            config["configsvr"] = True
        if self._spec.election_ms is not None:
            config["settings"] = {"electionTimeoutMillis": self._spec.election_ms}
        while True:
            try:
                await self._connections[first].admin.command("replSetInitiate", config)
            except OperationFailure as error:
                if error.code == _ALREADY_INITIALIZED:
                    return
                words = (error.details or {}).get("errmsg", str(error))
                if not is_transient(error):
                    raise ConfigError(
                        f"{first} refuses to initiate the set {self._spec.set}: {words} "
                        "Correct that member's --replSet, role or data directory. Nothing was changed."
                    ) from error
                if not await self._deadline.pause():
                    self._give_up(f"{first} could not initiate it: {words}", ())
            except PyMongoError:
                view = await self.observe()
                if view.config is not None:
                    return
                if not await self._deadline.pause():
                    self._give_up(
                        f"{first} did not initiate it", [probe for probe in view.probes.values() if probe.why]
                    )
            else:
                detail = f"{len(self._desired)} members, through {first}"
                self._report.change("initiated", detail, set=self._spec.set)
                return

    async def _reconfigure(self, view: View) -> View:
        """Step by step, each decided on what the primary says then. Returns the view in which nothing differs."""
        while True:
            waiting = "no primary"
            if view.primary is not None:
                current = view.members
                self._settle_asked(current)
                moves = moved(view.probes, current, self._desired)
                step = next_step(current, self._desired, moved=moves, primary=view.primary_id)
                if step is None:
                    return view
                if step.ready is not None and step.ready not in view.healthy:
                    waiting = f"{step.host} is {view.states.get(step.ready, 'unknown')}, not yet SECONDARY"
                else:
                    waiting = self._lacks(step, view.sure, view) or await self._take(step, view)
            if waiting and not await self._deadline.pause():
                self._give_up(f"It waits: {waiting}", [probe for probe in view.probes.values() if probe.why])
            view = await self.observe()

    def _settle_asked(self, current: Members) -> None:
        """A step whose answer was lost has, as we see now, happened, or not."""
        if self._asked is not None and self._asked.members == current:
            self._report.change(self._asked.change, self._asked.detail, set=self._spec.set, member=self._asked.host)
        self._asked = None

    async def _tune(self, view: View) -> View:
        """The set's own settings, once its members are as declared."""
        wanted = self._spec.election_ms
        while wanted is not None and view.config is not None and election_ms(view.config) != wanted:
            primary = view.primary
            if primary is not None:
                config = {name: value for name, value in view.config.items() if name != "term"}
                settings = {**view.config.get("settings", {}), "electionTimeoutMillis": wanted}
                config |= {"version": view.config["version"] + 1, "settings": settings}
                try:
                    await self._connections[primary.host].admin.command("replSetReconfig", config, maxTimeMS=_COMMIT_MS)
                    self._report.change(
                        "settings", f"another is elected after {wanted} ms of silence", set=self._spec.set
                    )
                except PyMongoError as error:
                    self._judge(error, view)
            if not await self._deadline.pause():
                self._give_up(
                    "It waits to change its election timeout", [probe for probe in view.probes.values() if probe.why]
                )
            view = await self.observe()
        return view

    async def _take(self, step: Step, view: View) -> str:
        """One reconfiguration, through the primary. Returns what to wait for, "" when it is done."""
        assert view.primary is not None  # noqa: S101 - the caller saw it
        assert view.config is not None  # noqa: S101
        admin = self._connections[view.primary.host].admin
        after = {member.id: member for member in step.members}
        stays = after.get(view.primary_id) if view.primary_id is not None else None
        if view.primary_id is not None and (stays is None or not stays.priority):
            return await self._step_down(view.primary.host)
        config = {name: value for name, value in view.config.items() if name != "term"}
        config |= {"version": view.config["version"] + 1, "members": documents(step.members, view.config)}
        self._asked = step
        try:
            await admin.command("replSetReconfig", config, maxTimeMS=_COMMIT_MS)
        except PyMongoError as error:
            self._judge(error, view)
            return f"{view.primary.host} did not take it yet: {error}"
        self._settle_asked(step.members)
        return ""

    def _judge(self, error: PyMongoError, view: View) -> None:
        """ConfigError when the primary will say the same again."""
        if is_transient(error):
            return
        key = (view.members, str(error))
        code = error.code if isinstance(error, OperationFailure) else None
        if code == _NEW_CONFIG_INCOMPATIBLE and self._failed != key:
            self._failed = key  # most often its version had risen meanwhile
            return
        details = (error.details or {}) if isinstance(error, OperationFailure) else {}
        raise ConfigError(
            f"The primary refuses a change of the set {self._spec.set}: {details.get('errmsg', error)}. "
            "Correct the declared members, then run this again; what was changed before stays and does no harm."
        ) from error

    async def _step_down(self, host: str) -> str:
        """Returns what to wait for."""
        if waiting := await step_down(self._connections, self._spec.set, host):
            return waiting
        self._report.change("stepped_down", "another is elected", set=self._spec.set, member=host)
        return ""

    async def _settle(self, view: View, *, everyone: bool) -> None:
        """Until a primary and a healthy majority are there, and all that come up are up. Who does not is a finding, if `everyone` is not needed."""
        while True:
            silent = [probe for member in view.members if (probe := view.probe(member.host)).hello is None]
            hosts = {probe.host for probe in silent}
            lame = [member for member in view.members if member.id not in view.healthy or member.host in hosts]
            good = view.primary is not None and has_majority(view.members, view.healthy)
            if good and (not lame or (len(silent) == len(lame) and not everyone)):
                break
            if not await self._deadline.pause():
                if not good or everyone:
                    states = ", ".join(f"{member.host} {view.states.get(member.id, 'unknown')}" for member in lame)
                    self._give_up(f"Not PRIMARY or SECONDARY: {states}", silent)
                break
            view = await self.observe()
        for member in lame:
            probe = view.probe(member.host)
            state = view.states.get(member.id, "unknown")
            why = f": {probe.why}" if probe.why else ""
            self._report.finding(
                f"{member.host} is {state}{why}; a majority is healthy", set=self._spec.set, member=member.host
            )
