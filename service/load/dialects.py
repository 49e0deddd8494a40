"""How a question is put to a server and how its answer is read: one dialect per kind of API."""

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from service.load.scenarios import Ask


class Piece(NamedTuple):
    """What one event, or one whole reply, told.

    fault: the server said that it failed. is_last: the answer is complete.
    """

    text: str = ""
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    fault: str = ""
    is_last: bool = False


class Dialect(NamedTuple):
    """One API.

    write: the request's JSON, from a question and the model's name. read: the JSON of an event
    without `data: `, or of the whole reply where nothing streams.
    """

    path: str
    streams: bool
    write: Callable[[Ask, str], dict[str, Any]]
    read: Callable[[bytes], Piece]


def _data_urls(ask: Ask) -> list[str]:
    return [f"data:{mime};base64,{base64.b64encode(data).decode()}" for mime, data in ask.images]


def _presence_penalty(ask: Ask) -> float:
    """Tell what keeps a long answer from repeating itself, as one of random weights would.

    Loupe ends an answer that has repeated itself for 256 tokens. Larger, and the words would give
    out before 512.
    """
    return 1.0 if ask.max_tokens > 256 else 0.0


def _write_native(ask: Ask, model: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": ask.text,
        "max_new_tokens": ask.max_tokens,
        # Its lowest temperature is 0.1; one candidate is greedy at any.
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    if penalty := _presence_penalty(ask):
        fields["presence_penalty"] = penalty
    match _data_urls(ask):
        case []:
            return fields | {"input_type": "text_only"}
        case [url]:
            return fields | {"image_base64": url}
        case urls:
            return fields | {"images": urls}


def _read_native_event(data: bytes) -> Piece:
    event = msgspec.json.decode(data)
    if "error" in event:
        return Piece(fault=f"error event: {event['error']}", is_last=True)
    if not event["done"]:
        return Piece(text=event["chunk"])
    usage = event.get("usage", {})
    return Piece(
        num_tokens=usage.get("output_tokens"),
        num_prompt_tokens=usage.get("input_tokens"),
        is_last=True,
    )


def _read_native_reply(data: bytes) -> Piece:
    reply = msgspec.json.decode(data)
    return Piece(
        text=reply["result"] or "",
        num_tokens=reply["usage"]["output_tokens"],
        num_prompt_tokens=reply["usage"]["input_tokens"],
        fault="" if reply["success"] else "success is false",
        is_last=True,
    )


def _write_plain_openai(ask: Ask, model: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in _data_urls(ask)]
    return {
        "model": model,
        "messages": [
            {"role": "user", "content": [*pictures, {"type": "text", "text": ask.text}]},
        ],
        "max_tokens": ask.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _write_openai(ask: Ask, model: str) -> dict[str, Any]:
    fields = _write_plain_openai(ask, model)
    return fields if ask.any_length else fields | {"ignore_eos": True}


def _write_loupe(ask: Ask, model: str) -> dict[str, Any]:
    """Switch off the guard that ends what repeats itself: so does what goes on behind its end."""
    fields = _write_plain_openai(ask, model)
    return (
        fields if ask.any_length else fields | {"ignore_eos": True, "repetition_detection": False}
    )


def _read_openai_event(data: bytes) -> Piece:
    return Piece(is_last=True) if data == b"[DONE]" else _read_openai_chunk(data)


def _read_plain_openai_event(data: bytes) -> Piece:
    """Take the reason why an answer ended for its end: not every server says `[DONE]`."""
    if data == b"[DONE]":
        return Piece(is_last=True)
    choices: Any = msgspec.json.decode(data).get("choices") or [{}]
    return _read_openai_chunk(data)._replace(is_last=bool(choices[0].get("finish_reason")))


def _read_openai_chunk(data: bytes) -> Piece:
    event = msgspec.json.decode(data)
    if "error" in event:
        return Piece(fault=f"error event: {event['error']}", is_last=True)
    choices: Any = event.get("choices") or [{}]
    usage: Any = event.get("usage") or {}
    delta: Any = choices[0].get("delta") or {}
    return Piece(
        text=delta.get("content") or "",
        num_tokens=usage.get("completion_tokens"),
        num_prompt_tokens=usage.get("prompt_tokens"),
    )


DIALECTS = {
    "native": Dialect("/v1/chat/stream", True, _write_native, _read_native_event),
    "native-whole": Dialect("/v1/chat", False, _write_native, _read_native_reply),
    "openai": Dialect("/v1/chat/completions", True, _write_openai, _read_openai_event),
    "loupe": Dialect("/v1/chat/completions", True, _write_loupe, _read_openai_event),
    # Without the fields that not every server of this API takes.
    "openai-plain": Dialect(
        "/v1/chat/completions", True, _write_plain_openai, _read_plain_openai_event
    ),
}
