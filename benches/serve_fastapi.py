"""What dsv4's door is compared with: the same stream from a minimal FastAPI, pydantic and uvicorn server."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from serve_steps import WORD, Steps


class Message(BaseModel):
    role: str
    content: str


class ChatRequest(BaseModel):
    messages: list[Message]
    model: str | None = None
    max_tokens: int = 16
    temperature: float = 1.0
    stream: bool = False


class ChunkDelta(BaseModel):
    role: str | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: ChunkDelta
    logprobs: None = None
    finish_reason: str | None = None


class Chunk(BaseModel):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]


app = FastAPI()
steps = Steps()


@app.post("/v1/chat/completions")
async def chat(request: ChatRequest) -> StreamingResponse:
    return StreamingResponse(frames(request), media_type="text/event-stream")


async def frames(request: ChatRequest) -> AsyncIterator[str]:
    reply_id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def frame(delta: ChunkDelta, finish_reason: str | None = None) -> str:
        chunk = Chunk(
            id=reply_id,
            object="chat.completion.chunk",
            created=created,
            model="null",
            system_fingerprint="fp_null",
            choices=[ChunkChoice(index=0, delta=delta, finish_reason=finish_reason)],
        )
        return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"

    yield frame(ChunkDelta(role="assistant", content=""))
    words = steps.open(request.max_tokens)
    try:
        while await words.take():
            yield frame(ChunkDelta(content=WORD), "length" if words.over else None)
        yield "data: [DONE]\n\n"
    finally:
        steps.close(words)


if __name__ == "__main__":
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print(f"serving null at http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
