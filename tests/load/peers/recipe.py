"""The common recipe for a model behind HTTP: FastAPI, and `generate` behind a semaphore of 2.

Usage: recipe.py MODEL PORT. The native dialect's `/v1/chat` and `/v1/chat/stream`; every request
runs alone, in a thread, so that the event loop stays free. One worker, one copy of the model.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeAlias

import uvicorn
from fastapi import Body, FastAPI  # pyright: ignore[reportMissingImports]
from fastapi.responses import StreamingResponse  # pyright: ignore[reportMissingImports]
from transformers import AsyncTextIteratorStreamer
from transformers_model import Answer, Model

MAX_CONCURRENT = 2

Fields: TypeAlias = Annotated[dict[str, Any], Body()]


def create_app(folder: str) -> FastAPI:
    """Load the model, then make the application."""
    model = Model(folder)
    app = FastAPI()
    turns = asyncio.Semaphore(MAX_CONCURRENT)

    @app.get("/v1/health")
    async def health() -> dict[str, Any]:
        return {"status": "healthy", "model_loaded": True}

    @app.post("/v1/chat")
    async def chat(fields: Fields) -> dict[str, Any]:
        async with turns:
            answer = await asyncio.to_thread(lambda: model.answer([model.read(fields)])[0])
        return {"success": True, "message": "ok", "result": answer.text, "usage": _usage(answer)}

    @app.post("/v1/chat/stream")
    async def stream(fields: Fields) -> StreamingResponse:
        return StreamingResponse(_events(model, turns, fields), media_type="text/event-stream")

    return app


async def _events(
    model: Model, turns: asyncio.Semaphore, fields: dict[str, Any]
) -> AsyncIterator[str]:
    async with turns:
        question = await asyncio.to_thread(model.read, fields)
        texts = AsyncTextIteratorStreamer(
            model.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        answering = asyncio.create_task(asyncio.to_thread(model.answer, [question], texts))
        async for text in texts:
            if text:
                yield _event({"chunk": text, "done": False})
        (answer,) = await answering
    yield _event({"chunk": "", "done": True, "usage": _usage(answer)})


def _event(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def _usage(answer: Answer) -> dict[str, int]:
    return {"input_tokens": answer.num_prompt_tokens, "output_tokens": answer.num_output_tokens}


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
