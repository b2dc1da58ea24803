"""Operations on the region: asked for here, run by `heliograph ops agent` where the region's stack is, and followed here.

A node holds no key to any host: it keeps what is asked for, gives it to the agent that asks for work, and keeps what that one reports.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.audit import note
from controlplane.api.auth import Caller, requires
from controlplane.api.cursor import open_cursor, seal_cursor
from controlplane.api.problems import invalid
from controlplane.api.reading import services_of
from controlplane.api.services import Services
from controlplane.api.times import iso
from controlplane.domain.audit import Entry
from controlplane.domain.catalog import Scope
from controlplane.domain.operations import refusals, without_secrets
from controlplane.errors import FieldError, Problem
from controlplane.store.operations import SILENT_MS, Claim, Operation, OperationState, Report

__all__ = ["router"]

router = APIRouter(prefix="/v1/operations", tags=["operations"])

Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]
Id = Annotated[str, Path(max_length=100)]
NewId = Annotated[str, Path(pattern=r"^[0-9a-v]{26}$")]
Token = Annotated[str, Field(pattern=r"^[a-z0-9_]{8,40}$")]
Host = Annotated[str, Field(max_length=100, description="The machine, for people.")]
Name = Annotated[str, Field(max_length=200)]
Names = Annotated[list[Name], Field(max_length=2_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Variables = Annotated[
    dict[Annotated[str, Field(max_length=60)], Annotated[str, Field(max_length=200)]],
    Field(max_length=20, description="What the kind is told. Never a secret: it is stored and shown."),
]
_ENDED = (OperationState.FAILED, OperationState.CANCELED)
_NOT_HELD = "not-held"


class OperationBody(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")
    kind: Annotated[
        str, Field(max_length=60, description="As on the command line: upgrade, drain, verify …; a 422 names them all.")
    ]
    variables: Variables = Field(default_factory=dict)


class ClaimBody(BaseModel):
    """An agent asks for work, and is heard of."""

    model_config = ConfigDict(extra="forbid")
    agent: Token
    host: Host
    region: Annotated[str, Field(max_length=100, description="Of the agent's stack; it must be this one.")]
    nonce: Annotated[Token, Field(description="A new one for each claim; a claim that is repeated has the same.")]
    restarted: Annotated[bool, Field(description="What the agent held before runs no more.")] = False
    busy: Annotated[bool, Field(description="It is there, and can take nothing at the moment.")] = False


class EnterBody(OperationBody):
    """An operation that was begun on the command line."""

    agent: Token
    host: Host
    region: Annotated[str, Field(max_length=100)]
    begun_at: Annotated[int, Field(ge=0, le=1 << 48, description="ms since the epoch.")]
    unfinished: Annotated[bool, Field(description="It runs, may be gone on with, or owes something.")]
    over: Annotated[bool, Field(description="It has ended; only that is to be told.")] = False


class EventBody(BaseModel):
    """One task of the playbook, on one host."""

    model_config = ConfigDict(extra="forbid")
    at: Annotated[int, Field(ge=0, le=1 << 48, description="ms since the epoch.")]
    kind: Literal["ok", "changed", "failed"]
    host: Name
    task: Annotated[str, Field(max_length=500)]
    message: Annotated[str, Field(max_length=2_000)] = ""
    diff: Annotated[list[Annotated[str, Field(max_length=300)]], Field(max_length=50)] = Field(default_factory=list)


class JournalBody(BaseModel):
    """What the operation wrote down where it runs."""

    model_config = ConfigDict(extra="forbid")
    done: Names = Field(default_factory=list)
    open: Names = Field(default_factory=list)
    owed: Names = Field(default_factory=list)
    total: Count | None = None
    passed: Count | None = None


class CanariesBody(BaseModel):
    """The messages that were sent through it."""

    model_config = ConfigDict(extra="forbid")
    accepted: Count = 0
    retried: Count = 0
    final: Count = 0
    proven: Count = 0
    missing: Count = 0


class ReportBody(BaseModel):
    """Where an operation stands, and what happened since."""

    model_config = ConfigDict(extra="forbid")
    agent: Token
    fence: Annotated[int, Field(ge=1, description="Of the claim that it is held under.")]
    revision: Annotated[int, Field(ge=1, description="Grows with each report under a fence.")]
    spool: Annotated[Token, Field(description="The folder that the events are written down in.")]
    first: Annotated[int, Field(ge=1, description="The first event's number in it.")]
    events: Annotated[list[EventBody], Field(max_length=100)] = Field(default_factory=list)
    state: Literal["running", "done", "failed", "canceled", "aborted"]
    unfinished: Annotated[bool, Field(description="It may be gone on with, or owes something.")]
    changed: Count = 0
    resumed: Count = 0
    problem: Annotated[str, Field(max_length=4_000)] = ""
    task: Annotated[str, Field(max_length=500, description="What is done at the moment.")] = ""
    journal: JournalBody
    canaries: CanariesBody


def view(operation: Operation, now: int) -> dict[str, Any]:
    """As answers show it. `can` are the verbs that are possible now."""
    cut = operation.cut(now)
    return {
        "id": operation.id,
        "kind": operation.kind,
        "variables": operation.variables,
        "state": "cut" if cut else operation.state.value,
        "unfinished": bool(operation.slot),
        "can": _can(operation, cut),
        "verb": operation.verb,
        "cancelling": operation.cancel is not None,
        "asked_by": operation.by,
        "by_hand": operation.by_hand,
        "asked_at": iso(operation.at),
        "begun_at": iso(operation.begun) if operation.begun else None,
        "ended_at": iso(operation.ended) if operation.ended and operation.state is not OperationState.RUNNING else None,
        "run_by": {"host": operation.host, "heard_at": iso(operation.beat)} if operation.holder else None,
        "resumed": operation.resumed,
        "changed": operation.changed,
        "problem": operation.problem or None,
        "task": operation.task or None,
        "steps": {"done": [], "open": [], "owed": [], "total": None, "passed": None} | operation.journal,
        "canaries": operation.canaries or None,
        "events": operation.events,
    }


def _can(operation: Operation, cut: bool) -> list[str]:
    runs = operation.state in (OperationState.REQUESTED, OperationState.RUNNING)
    if operation.slot and (cut or operation.state in _ENDED):
        return ["resume", "abort", *(["cancel"] if cut else [])]
    return ["cancel"] if runs and operation.cancel is None else []


def _who(caller: Caller) -> str:
    return caller.person or caller.key.id


def _words(operation: Operation) -> str:
    return " ".join([operation.kind, *(f"{name}={value}" for name, value in operation.variables.items())])


def _check(body: OperationBody, *, here: bool = False) -> None:
    """`here`: it was begun where the stack is. Raises Problem 422."""
    wrong = refusals(body.kind, body.variables, here=here)
    if wrong:
        raise invalid([FieldError(f"/{where}", what) for where, what in wrong])


def _check_region(services: Services, region: str) -> None:
    here = services.settings.datacenter
    if region != here:
        raise invalid([FieldError("/region", f"is {region!r}; these nodes are those of {here!r}")])


async def _found(services: Services, identity: str) -> Operation:
    found = await services.operations.get(identity)
    if found is None:
        raise Problem(
            "not-found",
            "No such operation",
            404,
            f"There is no operation {identity[:60]!r}.",
            "GET /v1/operations lists them; the newest 200 are kept.",
        )
    return found


async def _unfinished(services: Services, kind: str) -> Problem:
    """409, with what is in the way; it may just have ended."""
    found = await services.operations.unfinished(kind)
    if found is None:
        words, todo, extra = "Another one was unfinished a moment ago.", "Ask again.", {}
    else:
        state = view(found, services.clock.now_ms())["state"]
        words = f"`{_words(found)}` ({found.id}) is {state}, and not finished."
        todo = f"Wait for it, or POST /v1/operations/{found.id}/cancel; when it has ended: …/resume goes on, …/abort takes back what it owes."
        extra = {"operation": found.id}
    return Problem("operation-unfinished", "Another operation is not finished", 409, words, todo, extra=extra)


# -- asking ------------------------------------------------------------------------------------------------------------------


@router.post("", status_code=202, operation_id="requestOperation", summary="Ask for an operation")
async def request_operation(request: Request, body: OperationBody, caller: Admin) -> dict[str, Any]:
    """It begins when an agent claims it: within seconds where `heliograph ops agent` runs, never where none does (GET /v1/operations says so).

    Of those that change the region one at a time is unfinished; of verify, plan and undrain one of each.
    """
    services = services_of(request)
    _check(body)
    made = await services.operations.request(body.kind, body.variables, _who(caller))
    if made is None:
        raise await _unfinished(services, body.kind)
    note(request, _words(made))
    return view(made, services.clock.now_ms())


@router.get("", operation_id="listOperations", summary="Operations on this region, newest first")
async def list_operations(
    request: Request,
    _caller: Admin,
    unfinished: Annotated[
        bool, Query(description="Only those that are asked for, run, or may be gone on with.")
    ] = False,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """The newest 200 are kept. `agent` is who runs what is asked for, and whether they were heard of in the last minute; null: nobody ever was."""
    services = services_of(request)
    secret, now, here = services.settings.secret, services.clock.now_ms(), services.settings.datacenter
    context = f"operations|{unfinished}"
    before = open_cursor(secret, context, cursor) if cursor else None
    found = await services.operations.page(before, limit, unfinished=unfinished)
    agent = await services.operations.agent()
    alive = agent is not None and now - agent.beat < SILENT_MS
    todo = f"Nobody runs operations for this region: start `heliograph ops agent {here}` where its stack is."
    return {
        "region": here,
        "agent": {"host": agent.host, "heard_at": iso(agent.beat), "alive": alive} if agent else None,
        "next_step": None if alive else todo,
        "data": [view(each, now) for each in found],
        "next": seal_cursor(secret, context, found[-1].id) if len(found) == limit else None,
    }


@router.get("/{operation_id}", operation_id="getOperation", summary="One operation: its steps, what it owes")
async def get_operation(request: Request, operation_id: Id, _caller: Admin) -> dict[str, Any]:
    """`state` is requested, running, cut (its agent is silent for a minute), done, failed, canceled or aborted; `can` are the verbs that are possible now."""
    services = services_of(request)
    return view(await _found(services, operation_id), services.clock.now_ms())


@router.get("/{operation_id}/events", operation_id="listOperationEvents", summary="What happened, task by task")
async def list_operation_events(
    request: Request,
    operation_id: Id,
    _caller: Admin,
    after: Annotated[int, Query(ge=0, le=1_000_000, description="Only those with a greater `n`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> dict[str, Any]:
    """In order: what changed something, failed, or said something, with the host and what was changed. Ask again with the last `n` as `after`."""
    services = services_of(request)
    operation = await _found(services, operation_id)
    events = await services.operations.events_of(operation, after, limit)
    data = [event | {"at": iso(event["at"])} for event in events]
    return {"data": data, "next": data[-1]["n"] if len(data) == limit else None}


@router.post("/{operation_id}/cancel", status_code=202, operation_id="cancelOperation", summary="End an operation")
async def cancel_operation(request: Request, operation_id: Id, caller: Admin) -> dict[str, Any]:
    """At once where nobody runs it; else its agent hears of it within seconds and ends, in the middle of a task too. What was changed stays; what it owes stays owed until `abort`. A repetition changes nothing."""
    services = services_of(request)
    changed = await services.operations.cancel(operation_id, _who(caller))
    found = changed or await _found(services, operation_id)
    if changed is None and found.cancel is None:
        raise _not_now(found, "canceled", services)
    note(request, _words(found))
    return view(found, services.clock.now_ms())


@router.post("/{operation_id}/resume", status_code=202, operation_id="resumeOperation", summary="Go on with it")
async def resume_operation(request: Request, operation_id: Id, caller: Admin) -> dict[str, Any]:
    """With one that failed, was canceled or was cut: what is done already is not done again."""
    return await _again(request, operation_id, "run", caller)


@router.post("/{operation_id}/abort", status_code=202, operation_id="abortOperation", summary="Take back what it owes")
async def abort_operation(request: Request, operation_id: Id, caller: Admin) -> dict[str, Any]:
    """Of one that failed, was canceled or was cut: drained nodes are started, the balancer runs. What was upgraded stays."""
    return await _again(request, operation_id, "abort", caller)


async def _again(request: Request, identity: str, verb: Literal["run", "abort"], caller: Caller) -> dict[str, Any]:
    services = services_of(request)
    changed = await services.operations.again(identity, verb, _who(caller))
    if changed is None:
        raise _not_now(await _found(services, identity), "resumed" if verb == "run" else "aborted", services)
    note(request, _words(changed))
    return view(changed, services.clock.now_ms())


def _not_now(operation: Operation, verb: str, services: Services) -> Problem:
    shown = view(operation, services.clock.now_ms())
    todo = f"Possible is: {', '.join(shown['can'])}." if shown["can"] else "Nothing: it is finished."
    return Problem(
        "operation-not-so", f"Cannot be {verb} now", 409, f"The operation {operation.id} is {shown['state']}.", todo
    )


# -- running -----------------------------------------------------------------------------------------------------------------


@router.post("/claim", operation_id="claimOperation", summary="For agents: ask for work")
async def claim_operation(request: Request, body: ClaimBody, caller: Admin) -> dict[str, Any]:
    """Every few seconds: the agent counts as there for a minute. `operation` is what it holds from now on, under `fence`; null where there is nothing to do.

    An operation whose agent is silent for a minute is given to the next one, which goes on with it. Written to the audit log where something is claimed.
    """
    services = services_of(request)
    _check_region(services, body.region)
    found = await services.operations.claim(
        Claim(
            agent=body.agent,
            host=without_secrets(body.host),
            nonce=body.nonce,
            restarted=body.restarted,
            busy=body.busy,
        )
    )
    if found is not None:
        await _write_down(request, caller, "claimOperation", found, f"{_words(found)} on {found.host}")
    return _held(found, services)


@router.put("/{operation_id}", operation_id="enterOperation", summary="For the command line: one that was begun there")
async def enter_operation(request: Request, operation_id: NewId, body: EnterBody, caller: Admin) -> dict[str, Any]:
    """It is held from now on, under `fence`. 409 while another one is unfinished, or somebody else runs this one."""
    services = services_of(request)
    _check_region(services, body.region)
    _check(body, here=True)
    made = Operation(
        id=operation_id,
        dc=body.region,
        kind=body.kind,
        variables=body.variables,
        state=OperationState.RUNNING,
        slot=services.operations.slot(body.kind) if body.unfinished else "",
        by=_who(caller),
        at=body.begun_at,
        begun=body.begun_at,
        holder=body.agent,
        host=without_secrets(body.host),
    )
    found = await services.operations.enter(made, over=body.over)
    if found is None:
        there, other = await services.operations.get(operation_id), await services.operations.unfinished(body.kind)
        taken = there is None or (made.slot and other is not None and other.id != operation_id)
        raise await _unfinished(services, body.kind) if there is None or taken else _held_elsewhere(there)
    note(request, f"{_words(found)} on {found.host}")
    return _held(found, services)


@router.post("/{operation_id}/report", operation_id="reportOperation", summary="For agents: tell where it stands")
async def report_operation(request: Request, operation_id: Id, body: ReportBody, caller: Admin) -> dict[str, Any]:
    """Every two seconds while it runs. `cancel`: end it. `known`: so many events of this spool are here. A report that is repeated changes nothing.

    409 for whoever does not hold the operation (any more). Written to the audit log where it ends.
    """
    services = services_of(request)
    told = Report(
        agent=body.agent,
        fence=body.fence,
        revision=body.revision,
        spool=body.spool,
        first=body.first,
        events=[_without_secrets(event) for event in body.events],
        state=OperationState(body.state),
        unfinished=body.unfinished,
        fields={
            "changed": body.changed,
            "resumed": body.resumed,
            "problem": without_secrets(body.problem),
            "task": without_secrets(body.task),
            "journal": {
                name: [without_secrets(each) for each in value] if isinstance(value, list) else value
                for name, value in body.journal.model_dump().items()
            },
            "canaries": body.canaries.model_dump(),
        },
    )
    outcome = await services.operations.report(operation_id, told)
    if outcome is None:
        raise _held_elsewhere(await _found(services, operation_id))
    found, ended = outcome
    if ended:
        await _write_down(request, caller, "endOperation", found, f"{_words(found)}: {found.state.value}")
    return {"cancel": found.cancel is not None, "known": found.spools.get(body.spool, 0), "state": found.state.value}


def _without_secrets(event: EventBody) -> dict[str, Any]:
    words = {name: without_secrets(getattr(event, name)) for name in ("host", "task", "message")}
    return event.model_dump() | words | {"diff": [without_secrets(line) for line in event.diff]}


def _held(operation: Operation | None, services: Services) -> dict[str, Any]:
    if operation is None:
        return {"operation": None, "fence": None}
    return {"operation": view(operation, services.clock.now_ms()), "fence": operation.fence}


def _held_elsewhere(operation: Operation) -> Problem:
    return Problem(
        _NOT_HELD,
        "Somebody else holds the operation",
        409,
        f"The operation {operation.id} is held on {operation.host or 'no machine'} (fence {operation.fence}), or not running.",
        "Leave it to them; claim it again when they are silent.",
    )


async def _write_down(request: Request, caller: Caller, action: str, operation: Operation, detail: str) -> None:
    """In the audit log, of a call that is not written there each time it is made."""
    services = services_of(request)
    entry = Entry(
        actor=caller.key.id,
        action=action,
        object=f"operations/{operation.id}",
        address=request.client.host if request.client else "",
        rid=str(getattr(request.state, "request_id", "")),
        detail=detail[:500],
    )
    await services.audit.append(entry)
