"""What the framework alone carries: Litestar and uvicorn as a web worker runs them, and no more.

Usage: bare_app.py PORT. `/v1/health` writes small JSON, `/v1/chat` reads some as well;
`/v1/chat/stream` sends as many events as `max_new_tokens` says, in the native dialect.
"""

import sys
from collections.abc import AsyncIterator

import msgspec
import uvicorn
from litestar import Litestar, get, post
from litestar.response import ServerSentEvent


class Question(msgspec.Struct):
    """The fields that count."""

    text: str
    max_new_tokens: int


class Reply(msgspec.Struct):
    """A small answer."""

    result: str
    usage: dict[str, int]
    success: bool = True


def _usage(data: Question) -> dict[str, int]:
    return {"input_tokens": len(data.text), "output_tokens": data.max_new_tokens}


@get("/health/ready")
async def ready() -> str:
    return "ok"


@get("/v1/health")
async def health() -> dict[str, object]:
    return {"status": "healthy", "model_loaded": True, "uptime_seconds": 1.5}


@post("/v1/chat", status_code=200)
async def chat(data: Question) -> Reply:
    return Reply("a", _usage(data))


@post("/v1/chat/stream", status_code=200)
async def stream(data: Question) -> ServerSentEvent:
    async def events() -> AsyncIterator[str]:
        encode = msgspec.json.Encoder().encode
        for _ in range(data.max_new_tokens):
            yield encode({"chunk": "a", "done": False}).decode()
        yield encode({"chunk": "", "done": True, "usage": _usage(data)}).decode()

    return ServerSentEvent(events())


app = Litestar([ready, health, chat, stream], openapi_config=None, logging_config=None)

if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), http="httptools", loop="uvloop", access_log=False,
        log_level="warning",
    )  # fmt: skip
