"""Keys guard every route, by a walk over the route table; the probes alone answer without one, and tell nothing."""

from __future__ import annotations

import pytest
from tests.serve.harness import Served, serving, undisturbed
from tests.serve.stand_in import StandIn, StandInStream, say_letters

from dsv4.serve.app import ROUTES
from dsv4.serve.door import OPEN_PATHS
from dsv4.serve.settings import ServeSettings
from dsv4.types import Delta

pytestmark = pytest.mark.anyio

KEYS = ("sk-first", "sk-second")
PATHS = sorted({path.replace("{model_id:path}", "stand-in") for _, path, _ in ROUTES})
UNKNOWN = ("/", "/docs", "/openapi.json", "/v1/embeddings", "/v1/chat/completions/", "/health/", "//health", "/HEALTH")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
GOOD = ({"authorization": "Bearer sk-first"}, {"authorization": "bearer  sk-second"}, {"x-api-key": "sk-second"})
BAD: tuple[dict[str, str], ...] = (
    {},
    {"authorization": ""},
    {"authorization": "sk-first"},
    {"authorization": "Bearer"},
    {"authorization": "Bearer sk-third"},
    {"authorization": "Bearer sk-firs"},
    {"authorization": "Bearer sk-first x"},
    {"authorization": "Basic sk-first"},
    {"authorization": "Basic x", "x-api-key": "sk-first"},
    {"x-api-key": ""},
    {"x-api-key": "SK-FIRST"},
    {"cookie": "x-api-key=sk-first"},
)


def guarded() -> ServeSettings:
    return ServeSettings(api_keys=KEYS)


def test_the_walk_sees_every_route() -> None:
    assert len(ROUTES) >= 13
    assert set(PATHS) > OPEN_PATHS


@pytest.mark.parametrize("headers", BAD, ids=str)
async def test_no_path_and_no_method_passes_without_a_key(headers: dict[str, str]) -> None:
    async with serving(settings=guarded()) as served:
        for path in (*(set(PATHS) - OPEN_PATHS), *UNKNOWN):
            for method in METHODS:
                response = await served.client.request(method, path, headers=headers)
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    error = response.json()["error"]
                    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert served.engine.rendered == []


@pytest.mark.parametrize("headers", GOOD, ids=str)
async def test_every_key_opens_every_route(headers: dict[str, str]) -> None:
    async with serving(settings=guarded()) as served:
        for method, path, _ in ROUTES:
            shown = path.replace("{model_id:path}", "stand-in")
            response = await served.client.request(
                method, shown, headers=headers, content=b"{}" if method == "POST" else None
            )
            assert response.status_code == (200 if method == "GET" else 400), path


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_probes_answer_without_a_key_and_without_details(path: str) -> None:
    async with serving(settings=guarded()) as served:
        response = await served.get(path)
        assert (response.status_code, response.content) == (200, b"")
        response = await served.get(path, headers=GOOD[0])
        assert response.json()["status"] == "ok"


async def test_a_request_without_a_key_disturbs_nobody() -> None:
    engine = StandIn(script=say_letters)
    async with serving(engine, guarded(), headers={"x-api-key": KEYS[0]}) as served, undisturbed(served):
        response = await served.client.post(
            "/v1/chat/completions", content=b"x" * 1_000_000, headers={"x-api-key": "no"}
        )
        assert response.status_code == 401


async def test_without_keys_everybody_is_let_in(served: Served) -> None:
    assert (await served.get("/v1/models", headers={"authorization": "Bearer whatever"})).status_code == 200


async def salts(settings: ServeSettings, *asked: tuple[str, str | None]) -> list[str | None]:
    """What reaches the engine of requests with a key and a salt of their own."""
    found: list[str | None] = []

    def note(stream: StandInStream) -> list[list[Delta]]:
        found.append(stream.cache_salt)
        return say_letters(stream)

    async with serving(StandIn(script=note), settings) as served:
        for key, salt in asked:
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "cache_salt": salt}
            response = await served.client.post("/v1/chat/completions", json=body, headers={"x-api-key": key})
            assert response.status_code == 200
    return found


async def test_a_key_shares_prefixes_with_itself_alone_whatever_salt_is_sent() -> None:
    first, second = KEYS
    mine, again, narrowed, theirs, forged = await salts(
        guarded(), (first, None), (first, None), (first, "a"), (second, None), (second, "a")
    )
    assert mine == again
    assert len({mine, narrowed, theirs, forged}) == 4
    assert first not in f"{mine}{narrowed}"


async def test_keys_share_prefixes_when_the_operator_says_so_and_where_there_are_no_keys() -> None:
    shared = ServeSettings(api_keys=KEYS, share_prefix_cache=True)
    assert await salts(shared, (KEYS[0], None), (KEYS[1], None), (KEYS[1], "a")) == [None, None, "a"]
    assert await salts(ServeSettings(), ("", None), ("", "a")) == [None, "a"]
