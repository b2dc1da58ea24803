"""A browser as far as HTTP goes: keeps cookies, says where its requests come from, follows nothing by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any

import aiohttp

COOKIE = "__Host-heliograph"
DEVICE = "__Host-heliograph-device"


@dataclass
class Answer:
    status: int
    headers: Any
    text: str

    @property
    def to(self) -> str:
        """Where it redirects to."""
        return self.headers.get("location", "")


@dataclass
class Visitor:
    http: aiohttp.ClientSession
    base_url: str
    cookies: dict[str, str] = field(default_factory=dict)
    set_cookies: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(
        default_factory=lambda: {"sec-fetch-site": "same-origin", "user-agent": "Browser/1"}
    )

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.request("GET", path, headers=headers)

    async def post(self, path: str, *, headers: dict[str, str | None] | None = None, **form: Any) -> Answer:
        return await self.request("POST", path, headers=headers or {}, data=form)

    async def request(self, method: str, path: str, *, headers: dict[str, str | None], data: Any = None) -> Answer:
        sent = {name: value for name, value in (self.headers | headers).items() if value is not None}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        async with self.http.request(
            method, self.base_url + path, headers=sent, data=data, allow_redirects=False
        ) as answer:
            for line in answer.headers.getall("set-cookie", []):
                for name, morsel in SimpleCookie(line).items():
                    self.set_cookies[name] = morsel
                    if morsel["max-age"] == "0" or not morsel.value:
                        self.cookies.pop(name, None)
                    else:
                        self.cookies[name] = morsel.value
            return Answer(answer.status, answer.headers, await answer.text())

    async def log_in(self, name: str, password: str, **form: str) -> Answer:
        return await self.post("/console/login", name=name, password=password, **form)


def secret_of(page: Answer) -> str:
    """The secret that a page of an enrolment shows."""
    found = re.search(r'id="secret">([A-Z2-7 ]+)<', page.text)
    assert found, page.text
    return found[1].replace(" ", "")
