"""Search and export over HTTP: the query's language, whose messages, pages that fit together, and files that a spreadsheet may open."""

from __future__ import annotations

import asyncio
import csv
import io
from urllib.parse import quote, urlencode

import pytest


@pytest.fixture
async def ready(node, carriers):
    await node.connect(await carriers(), prefixes=("49",))
    await node.connect(await carriers(outcomes={"UNDELIV": 1.0}), "poor", prefixes=("44",))
    return node


async def find(node, q: str, **more) -> list[str]:
    """Bodies or ids of what is found, by following every page."""
    found, cursor = [], None
    while True:
        key = more.get("key")
        params = {
            name: value for name, value in {"q": q, "limit": 3, "cursor": cursor, **more}.items() if name != "key"
        }
        query = urlencode({name: value for name, value in params.items() if value is not None})
        status, page = await node.call("GET", f"/v1/messages?{query}", key=key)
        assert status == 200, page
        found += [item["id"] for item in page["data"]]
        cursor = page["next"]
        if cursor is None:
            return found


async def export(node, q: str) -> list[dict[str, str]]:
    headers = {"authorization": f"Bearer {node.key}"}
    async with node.http.get(f"{node.base_url}/v1/messages.csv?q={quote(q)}", headers=headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/csv"
        assert "attachment" in answer.headers["content-disposition"]
        return list(csv.DictReader(io.StringIO(await answer.text(), newline="")))


class TestSearch:
    """What was accepted is found at once, by whatever is known of it."""

    async def test_by_everything_at_once(self, ready):
        mid = (await ready.send(body="Your Größe code 4711", reference="order-17", **{"class": "otp", "from": "ACME"}))[
            "id"
        ]
        await ready.send("+4915112349999", "another text", reference="order-18")
        for q in (
            "to:+4915112340001",
            "to:0001",
            "to:+491511234000*",
            "grosse CODE",
            "ref:order-17",
            "class:otp from:acme ref:order-* to:340001 4711",
            '"Your code"',
        ):
            assert await find(ready, q) == [mid], q
        assert await find(ready, "your nothing") == []
        assert len(await find(ready, "ref:order-1*")) == 2

    async def test_by_what_became_of_it(self, ready):
        sent = [(await ready.send(body=f"n {n}"))["id"] for n in range(7)]
        lost = (await ready.send("+447700900002"))["id"]
        for mid in sent:
            await ready.reaches(mid, "delivered")
        await ready.reaches(lost, "undelivered")
        assert await find(ready, "status:delivered") == sorted(sent, reverse=True)
        assert await find(ready, "status:undelivered,failed") == [lost]
        assert await find(ready, "route:poor") == [lost]
        assert await find(ready, "connector:sim") == sorted(sent, reverse=True)

    async def test_parameters_beside_it(self, ready):
        mid = (await ready.send(body="hello", reference="r-1"))["id"]
        await ready.send(body="hello")
        assert await find(ready, "hello", reference="r-1") == [mid]
        assert await find(ready, "hello", to="+4915112340001", reference="r-1") == [mid]
        status, problem = await ready.call("GET", "/v1/messages?q=ref:r-1&reference=r-1")
        assert (status, problem["errors"][0]["pointer"]) == (422, "q")

    async def test_errors_point_at_the_place(self, ready):
        status, problem = await ready.call("GET", "/v1/messages?q=" + quote("hello colour:red"))
        assert status == 422
        assert problem["errors"][0]["detail"].startswith("at character 7: has no filter 'colour'")
        status, problem = await ready.call("GET", "/v1/messages?q=" + "x" * 501)
        assert status == 422

    async def test_a_cursor_belongs_to_its_query(self, ready):
        for n in range(3):
            await ready.send(body=f"hello {n}")
        _, page = await ready.call("GET", "/v1/messages?q=hello&limit=1")
        assert page["next"]
        assert (await ready.call("GET", f"/v1/messages?q=hello&cursor={page['next']}"))[0] == 200
        assert (await ready.call("GET", f"/v1/messages?q=other&cursor={page['next']}"))[0] == 422

    async def test_whose_messages(self, ready):
        mine = (await ready.send(body="shared word"))["id"]
        _, answer = await ready.call(
            "POST", "/v1/messages", key=ready.other_key, json={"to": "+4915112340001", "body": "shared word"}
        )
        theirs = answer["id"]
        assert await find(ready, "shared word") == [mine]
        assert await find(ready, "shared tenant:sample") == [mine]
        for q in ("shared tenant:other", "shared tenant:*"):
            assert (await ready.call("GET", f"/v1/messages?q={quote(q)}"))[0] == 403
        admin = {"key": ready.admin_key}
        assert await find(ready, "shared tenant:other", **admin) == [theirs]
        assert sorted(await find(ready, "shared tenant:*", **admin)) == sorted((mine, theirs))
        assert sorted(await find(ready, "shared", tenant="*", **admin)) == sorted((mine, theirs))
        assert (await ready.call("GET", "/v1/messages?q=tenant:nobody", key=ready.admin_key))[0] == 422

    async def test_what_is_erased_is_not_found_by_what_it_said(self, ready):
        mid = (await ready.send(body="secret thing"))["id"]
        await ready.reaches(mid, "delivered")
        assert await find(ready, "secret") == [mid]
        assert (await ready.call("DELETE", f"/v1/messages/{mid}/content"))[0] == 200
        assert await find(ready, "secret") == await find(ready, "to:+4915112340001") == []
        assert await find(ready, "status:delivered") == [mid]


class TestExport:
    """The same list as a file, however long it is."""

    async def test_all_of_a_query(self, ready, monkeypatch):
        from controlplane.api import listing

        monkeypatch.setattr(listing, "_PAGE", 4)
        sent = [(await ready.send(body=f"exported {n}"))["id"] for n in range(10)]
        await ready.send(body="other")
        lines = await export(ready, "exported")
        assert [line["id"] for line in lines] == sorted(sent, reverse=True)
        assert lines[0]["body"] == "exported 9"
        assert lines[0]["status"] in ("accepted", "queued", "submitted", "delivered")

    async def test_no_cell_is_a_formula(self, ready):
        await ready.send(body='=HYPERLINK("http://x","y"),\r\n"z"', reference="@cmd")
        await ready.send(body="-1+1")
        newest, oldest = await export(ready, "")
        assert oldest["body"] == "'" + '=HYPERLINK("http://x","y"),\r\n"z"'
        assert (oldest["reference"], newest["body"], newest["to"]) == ("'@cmd", "'-1+1", "'+4915112340001")

    async def test_refusals_are_problems(self, ready):
        for path, expected in (("?q=colour:red", 422), ("?tenant=*", 403)):
            status, problem = await ready.call("GET", f"/v1/messages.csv{path}")
            assert (status, problem["status"]) == (expected, expected)

    async def test_a_reader_that_goes_away_ends_it(self, ready, monkeypatch):
        from controlplane.api import listing

        whole, pages, count = listing._Asked.page, 0, 30

        async def slowly(asked, *values):
            nonlocal pages
            pages += 1
            await asyncio.sleep(0.05)
            return await whole(asked, *values)

        monkeypatch.setattr(listing, "_PAGE", 1)
        monkeypatch.setattr(listing._Asked, "page", slowly)
        for n in range(count):
            await ready.send(body=f"n {n}")
        headers = {"authorization": f"Bearer {ready.key}"}
        async with ready.http.get(f"{ready.base_url}/v1/messages.csv", headers=headers) as answer:
            assert await answer.content.readline()
        await asyncio.sleep(0.3)
        left = pages
        await asyncio.sleep(0.5)
        assert pages == left < count
