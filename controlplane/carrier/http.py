"""The simulator's own HTTP interface: statistics, behaviour, injected messages. Loopback only, no authentication: it is a test tool."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.carrier.server import Exchange
from controlplane.domain.text import analyse, split
from controlplane.smpp import pdu as p

__all__ = ["create_app"]


class InjectedMessage(BaseModel):
    """A mobile-originated message."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    from_: Annotated[str, Field(alias="from", max_length=20)]
    to: Annotated[str, Field(max_length=20)]
    body: Annotated[str, Field(min_length=1, max_length=5_000)]
    reverse: bool = False
    """Send the parts of a long message last first."""
    copies: Annotated[int, Field(ge=1, le=10)] = 1


def create_app(exchange: Exchange) -> FastAPI:  # noqa: C901 - seven small endpoints over one object
    """The application over one carrier."""
    app = FastAPI(title=f"Carrier simulator {exchange.config.name}")

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        return {
            "name": exchange.config.name,
            "bound": sum(session.bound for session in exchange.sessions),
            "counts": dict(exchange.counts),
            "by_status": dict(exchange.by_status),
            "receipts_pending": exchange.receipts.pending,
            "behaviour": exchange.behaviour.model_dump(),
        }

    @app.patch("/behaviour")
    async def behaviour(change: dict[str, Any]) -> dict[str, Any]:
        try:
            return exchange.change(**change).model_dump()
        except ValidationError as error:
            detail = [{"field": ".".join(map(str, item["loc"])), "error": item["msg"]} for item in error.errors()]
            raise HTTPException(422, detail) from None

    @app.get("/messages")
    async def messages(dest: str) -> list[dict[str, Any]]:
        wanted = dest.removeprefix("+")
        return [
            {
                "id": taken.id,
                "source": taken.source,
                "dest": taken.dest,
                "state": taken.state,
                "acked": taken.acked,
                "at": taken.at,
            }
            for taken in exchange.taken.values()
            if taken.dest == wanted
        ]

    @app.post("/mo", status_code=202)
    async def mo(message: InjectedMessage) -> dict[str, int]:
        session = next((session for session in exchange.sessions if session.bound and session.receives), None)
        if session is None:
            raise HTTPException(409, "Nobody is bound to receive it.")
        segments = split(message.body, analyse(message.body).encoding, reference=exchange.rng.randrange(1, 256))
        for segment in reversed(segments) if message.reverse else segments:
            for _ in range(message.copies):
                pdu = p.DeliverSm(
                    source_ton=1,
                    source_npi=1,
                    source_addr=message.from_.removeprefix("+"),
                    dest_addr=message.to.removeprefix("+"),
                    esm_class=segment.esm_class,
                    data_coding=segment.data_coding,
                    short_message=segment.data,
                )
                session.deliver(pdu, lambda status: exchange.counts.update([f"mo_answered_{status}"]))
        return {"parts": len(segments)}

    @app.post("/unbind", status_code=202)
    async def unbind() -> dict[str, int]:
        for session in exchange.sessions:
            session.unbind()
        return {"sessions": len(exchange.sessions)}

    @app.post("/drop", status_code=202)
    async def drop() -> dict[str, int]:
        sessions = list(exchange.sessions)
        for session in sessions:
            session.cut()
        return {"sessions": len(sessions)}

    return app
