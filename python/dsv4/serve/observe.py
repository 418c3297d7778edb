"""Routes that tell: models, health, readiness, version, metrics."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

from dsv4.serve.bodies import ModelCard, ModelList, Status, Version, encode

if TYPE_CHECKING:
    from dsv4.serve.door import Door
    from dsv4.serve.exchange import Exchange

TEXT_EXPOSITION = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


async def models(exchange: Exchange) -> None:
    """`GET /v1/models`."""
    await exchange.reply(200, encode(ModelList("list", [_card(exchange.door)])))


async def model(exchange: Exchange) -> None:
    """`GET /v1/models/{id}`."""
    exchange.door.check_model(exchange.scope["path_params"]["model_id"])
    await exchange.reply(200, encode(_card(exchange.door)))


def _card(door: Door) -> ModelCard:
    info = door.engine.info
    effort = door.settings.default_reasoning_effort
    if effort == "auto":
        effort = info.default_effort
    return ModelCard(
        id=info.served_name,
        object="model",
        created=door.started_at,
        owned_by="dsv4",
        max_model_len=info.max_model_len,
        root=info.served_name,
        reasoning_efforts=list(info.efforts),
        default_reasoning_effort=effort,
    )


async def health(exchange: Exchange) -> None:
    """`GET /health`: the engine makes progress."""
    state = exchange.door.engine.health()
    await _tell(exchange, ok=state.alive, reason=state.reason)


async def ready(exchange: Exchange) -> None:
    """`GET /ready`: new requests are taken."""
    state = exchange.door.engine.health()
    draining = exchange.door.draining
    await _tell(
        exchange, ok=state.alive and state.ready and not draining, reason="draining" if draining else state.reason
    )


async def _tell(exchange: Exchange, *, ok: bool, reason: str | None) -> None:
    body = b""
    if exchange.tenant is not None:
        body = encode(Status("ok") if ok else Status("unavailable", reason))
    headers = () if ok else ((b"retry-after", b"5"),)
    await exchange.reply(200 if ok else 503, body, headers=headers)


async def version(exchange: Exchange) -> None:
    """`GET /version`."""
    await exchange.reply(200, encode(Version(_installed("dsv4") or "unknown", _installed("torch"))))


def _installed(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None


async def metrics(exchange: Exchange) -> None:
    """`GET /metrics`."""
    text = exchange.door.engine.metrics_text() + exchange.door.metrics.text()
    await exchange.reply(200, text, content_type=TEXT_EXPOSITION)
