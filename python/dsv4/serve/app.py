"""The Starlette application: the routes, the gate in front of them, and what runs beside them.

    socket ─▶ GuardedHttp ─▶ Gate: id, key, errors ─▶ router ─▶ one function per route, given an Exchange

Every path passes the gate before the router looks at it, known or not; a route cannot forget to ask for a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from dsv4.serve import chat, completions, observe, tokens
from dsv4.serve.door import Door
from dsv4.serve.exchange import CLIENT_GONE_STATUS, ClientGone, Exchange
from dsv4.serve.frames import error_frames
from dsv4.serve.replies import Refusal, as_refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from dsv4.serve.engine import Engine
    from dsv4.serve.settings import ServeSettings

    Answer = Callable[[Exchange], Awaitable[None]]

LAG_INTERVAL_S = 0.5

ROUTES: tuple[tuple[str, str, Answer], ...] = (
    ("POST", "/v1/chat/completions", chat.answer),
    ("POST", "/v1/completions", completions.answer),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/v1/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("POST", "/v1/detokenize", tokens.detokenize),
    ("GET", "/v1/models", observe.models),
    ("GET", "/v1/models/{model_id:path}", observe.model),
    ("GET", "/health", observe.health),
    ("GET", "/ping", observe.health),
    ("GET", "/ready", observe.ready),
    ("GET", "/version", observe.version),
    ("GET", "/metrics", observe.metrics),
)

log = logging.getLogger("dsv4.serve")


class Gate:
    """Outermost of ours: makes the Exchange, asks for a key, and turns every error into an answer."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, from its head to its terminal event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(self._door, scope, receive, send)
        scope.setdefault("state", {})["exchange"] = exchange
        try:
            exchange.take_request_id()
            self._door.admit(exchange)
            await self._app(scope, receive, send)
        except ClientGone:
            self._door.metrics.count_request(exchange.route, CLIENT_GONE_STATUS)
            if exchange.stalled():
                self._door.metrics.slow_consumer_aborts.inc()
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in an extension is no Exception
            await self._answer_error(exchange, error)

    async def _answer_error(self, exchange: Exchange, error: BaseException) -> None:
        refusal = as_refusal(error)
        if refusal.code == "internal_error":
            log.error("request %s on %s failed", exchange.request_id, exchange.route, exc_info=error)
        if refusal.code == "slow_consumer":
            self._door.metrics.slow_consumer_aborts.inc()
        if exchange.started:
            await exchange.end_stream(error_frames(refusal))
        else:
            await exchange.refuse(refusal)


class Endpoint:
    """A route's function as an ASGI application."""

    def __init__(self, path: str, answer: Answer) -> None:
        self._path = path
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Hands the Exchange that the gate made to the function."""
        exchange: Exchange = scope["state"]["exchange"]
        exchange.route = self._path
        await self._answer(exchange)


def create_app(engine: Engine, settings: ServeSettings) -> Starlette:
    """The application over a running engine, or over anything with the same methods. `app.state.door` is its Door."""
    door = Door(engine, settings)
    routes = [Route(path, Endpoint(path, answer), methods=[method]) for method, path, answer in ROUTES]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, door=door)],
        exception_handlers={HTTPException: _answer_router},
        lifespan=_beside,
    )
    app.router.redirect_slashes = False
    app.state.door = door
    return app


@contextlib.asynccontextmanager
async def _beside(app: Starlette) -> AsyncIterator[None]:
    """What runs as long as the server does."""
    measuring = asyncio.create_task(_measure_lag(app.state.door))
    try:
        yield
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)


async def _measure_lag(door: Door) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        door.metrics.loop_lag.observe(max(0.0, loop.time() - due))


async def _answer_router(request: Request, error: Exception) -> Response:
    """The router's own refusals (404, 405) in our shape."""
    if not isinstance(error, HTTPException):
        raise error
    exchange: Exchange = request.scope["state"]["exchange"]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{exchange.method} is not allowed on this route; use {allowed}."
        refusal = Refusal(405, "method_not_allowed", message, headers=((b"allow", allowed.encode()),))
    else:
        refusal = Refusal(404, "route_not_found", f"There is no route {exchange.path[:128]!r}.")
    raise refusal
