"""A server that answers at once, in both dialects, with nothing behind it.

Usage: null_server.py PORT [FAULT]. It shows what the load generator itself can carry; with a fault
(`error-event`, `short`, `cut`, `blind`, `empty`, `status`, `hang-up`) it shows what the generator
notices.
"""

import asyncio
import json
import sys

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model"}]}'
_READY = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS)
_FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull"


def answer(head: bytes, body: bytes, fault: str) -> bytes:
    """Write the whole reply to one request."""
    if fault == "status":
        return _FULL
    fields = json.loads(body)
    is_openai = b"/v1/chat/completions " in head.partition(b"\r\n")[0]
    num_tokens = fields["max_tokens" if is_openai else "max_new_tokens"]
    has_pictures = b";base64," in body
    num_answered = num_tokens - (fault == "short")
    num_asked = 10_000 if has_pictures and fault != "blind" else 10
    events = (_openai if is_openai else _native)(num_tokens, num_answered, num_asked)
    if fault == "empty":
        del events[:num_tokens]
    if fault == "error-event":
        events[3:] = [json.dumps({"error": "broken", "done": True})]
    if fault == "cut":
        del events[num_tokens:]
    chunks = [f"data: {event}\n\n".encode() for event in events]
    return _OK + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


def _native(num_tokens: int, num_answered: int, num_asked: int) -> list[str]:
    usage = {"output_tokens": num_answered, "input_tokens": num_asked}
    pieces: list[dict[str, object]] = [{"chunk": "a ", "done": False}] * num_tokens
    last = {"chunk": "", "done": True, "usage": usage}
    return [json.dumps(event) for event in (*pieces, last)]


def _openai(num_tokens: int, num_answered: int, num_asked: int) -> list[str]:
    usage = {"completion_tokens": num_answered, "prompt_tokens": num_asked}
    pieces: list[dict[str, object]] = [{"choices": [{"delta": {"content": "a "}}]}] * num_tokens
    return [*(json.dumps(event) for event in (*pieces, {"choices": [], "usage": usage})), "[DONE]"]


async def serve(port: int, fault: str) -> None:
    """Answer until the process is ended."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    writer.write(_READY)
                    continue
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                reply = answer(head, await reader.readexactly(length), fault)
                if fault == "hang-up":
                    writer.write(reply[: len(reply) // 2])
                    writer.close()
                    return
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
