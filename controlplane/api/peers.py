"""The other nodes of this datacenter, over HTTP: what only a message's owner may do is handed to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
import structlog
from fastapi import Request, Response

from controlplane.errors import Problem

__all__ = ["Peers"]

_log = structlog.get_logger()
_SECONDS = 15.0
_FORWARDED = "x-heliograph-forwarded"
"""Names the node that a request was forwarded by: it is never forwarded again."""


class Peers:
    """One per node. Forwarding is rare: each request has its own connection."""

    def __init__(self, own: str, url_of: Callable[[str, int], Awaitable[str]]) -> None:
        self._own = own
        self._url_of = url_of
        """(node, epoch) → base URL, or "" for a term that is over or told none."""

    async def forward(self, request: Request, owner: tuple[str, int], authorization: str) -> Response:
        """The owner's answer to this request (which has no body), asked with `authorization` (auth.relay).

        Raises Problem 503 when there is none: the message is about to be adopted, or the network between the nodes is broken.
        """
        url = await self._url_of(*owner)
        if not url or _FORWARDED in request.headers:
            raise _unreachable(owner[0])
        headers = {"authorization": authorization, _FORWARDED: self._own}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
                session.request(
                    request.method, url + request.url.path, headers=headers, allow_redirects=False
                ) as answer,
            ):
                return Response(await answer.read(), answer.status, media_type=answer.content_type)
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("owner_unreachable", owner=owner[0], url=url, reason=repr(error)[:200])
            raise _unreachable(owner[0]) from None


def _unreachable(node: str) -> Problem:
    return Problem(
        "owner-unreachable",
        "The owner of the message cannot be reached",
        503,
        f"Node {node} has this message in hand, and it is gone or does not answer.",
        "Nothing was changed. Send the same request again in 15 s: another node takes the messages of a lost one over.",
        headers={"Retry-After": "15"},
    )
