"""Routes that tell: models, health, readiness, version, metrics; and the id that every answer carries."""

from __future__ import annotations

import re

import pytest
from tests.serve.harness import CHAT, Served, aborted, serving, undisturbed
from tests.serve.stand_in import StandIn

import dsv4
from dsv4.serve.settings import ServeSettings
from dsv4.types import Health

pytestmark = pytest.mark.anyio


async def test_models_lists_the_one_that_is_served(served: Served) -> None:
    reply = (await served.get("/v1/models")).json()
    (card,) = reply["data"]
    assert reply["object"] == "list"
    assert card["created"] > 1_700_000_000
    assert {name: card[name] for name in card if name != "created"} == {
        "id": "stand-in",
        "object": "model",
        "owned_by": "dsv4",
        "max_model_len": 4096,
        "root": "stand-in",
        "reasoning_efforts": ["high", "max"],
        "default_reasoning_effort": "none",
    }
    assert (await served.get("/v1/models/stand-in")).json() == card
    missing = await served.get("/v1/models/deepseek-ai/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_server_setting_for_the_effort_shows_in_the_card() -> None:
    async with serving(settings=ServeSettings(default_reasoning_effort="max")) as served:
        assert (await served.get("/v1/models/stand-in")).json()["default_reasoning_effort"] == "max"


async def test_version(served: Served) -> None:
    assert (await served.get("/version")).json()["version"] == dsv4.__version__


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_health_follows_the_engine_s_progress(served: Served, path: str) -> None:
    response = await served.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok", "reason": None})
    served.engine.state = Health(alive=True, ready=False, reason="draining")
    assert (await served.get(path)).status_code == 200, "alive is not ready"
    served.engine.state = Health(alive=False, ready=False, reason="stalled")
    response = await served.get(path)
    assert (response.status_code, response.json()["reason"]) == (503, "stalled")
    assert response.headers["retry-after"] == "5"


async def test_ready_needs_an_engine_that_is_ready_and_a_door_that_is_open(served: Served) -> None:
    assert (await served.get("/ready")).status_code == 200
    served.engine.state = Health(alive=True, ready=False, reason="loading")
    assert (await served.get("/ready")).json()["reason"] == "loading"
    served.engine.state = Health(alive=True, ready=True)
    served.door.draining = True
    response = await served.get("/ready")
    assert (response.status_code, response.json()["reason"]) == (503, "draining")
    assert (await served.get("/health")).status_code == 200


async def test_a_draining_door_refuses_new_work_and_finishes_the_old(served: Served) -> None:
    async with undisturbed(served):
        served.door.draining = True
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "x"})):
            response = await served.post(path, body)
            error = response.json()["error"]
            assert (response.status_code, error["type"], error["code"]) == (503, "server_error", "draining")
            assert (response.headers["retry-after"], response.headers["connection"]) == ("5", "close")
        assert (await served.get("/v1/models")).status_code == 200


async def test_metrics_of_engine_and_door_are_one_text(served: Served) -> None:
    await served.chat(max_tokens=3)
    await served.chat(n=99)
    async with served.events("/v1/chat/completions", {**CHAT, "max_tokens": 3}) as events:
        await events.rest()
    response = await served.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = response.text
    labels = 'engine="0",model_name="stand-in"'
    route = 'route="/v1/chat/completions"'
    assert "dsv4:num_requests_running{" in text
    assert f'dsv4:http_requests_total{{{labels},{route},status="200"}} 2.0' in text
    assert f'dsv4:http_requests_total{{{labels},{route},status="400"}} 1.0' in text
    assert f"dsv4:stream_frames_total{{{labels}}} 4.0" in text
    assert "dsv4:event_loop_lag_seconds_bucket{" in text


async def test_unknown_paths_are_counted_under_one_name(served: Served) -> None:
    for number in range(3):
        await served.get(f"/nothing/{number}")
    text = (await served.get("/metrics")).text
    assert re.search(r'http_requests_total\{[^}]*route="other",status="404"\} 3\.0', text)
    assert "nothing" not in text


async def test_a_request_id_is_drawn_or_adopted_and_echoed() -> None:
    engine = StandIn()
    async with serving(engine) as served:
        first, second = [(await served.get("/version")).headers["x-request-id"] for _ in range(2)]
        assert first != second
        headers = {"x-request-id": "mine-1"}
        async with served.client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True},
                                        headers=headers) as response:  # fmt: skip
            assert response.headers["x-request-id"] == "mine-1"
            stream = await engine.opened()
        assert stream.request_id == "mine-1"
        await aborted(stream)


async def test_the_request_id_of_the_body_wins(served: Served) -> None:
    response = await served.chat(max_tokens=1, request_id="from-body")
    assert (response.headers["x-request-id"], response.json()["id"]) == ("from-body", "chatcmpl-from-body")


async def test_prompts_of_one_request_have_ids_of_their_own() -> None:
    engine = StandIn()
    async with serving(engine) as served:
        body = {"prompt": ["a", "b"], "request_id": "two"}
        async with served.events("/v1/completions", body):
            streams = [await engine.opened() for _ in range(2)]
        assert [stream.request_id for stream in streams] == ["two-0", "two-1"]


@pytest.mark.parametrize("value", ["x" * 129, "caf\u00e9"])
async def test_a_bad_request_id_is_refused_and_not_echoed(served: Served, value: str) -> None:
    response = await served.client.get("/version", headers=[(b"x-request-id", value.encode("latin-1"))])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "X-Request-Id")
    assert response.headers["x-request-id"] != value


async def test_warnings_are_ascii_and_bounded(served: Served) -> None:
    response = await served.chat(max_tokens=1, **{f"f\u00e4ld_{i}" + "x" * 60: 1 for i in range(20)})
    warning = response.headers["x-dsv4-warning"]
    assert len(warning) == 512
    assert warning.isascii()
