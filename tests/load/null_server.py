"""A server that answers at once, in the native dialect, with nothing behind it.

Usage: null_server.py PORT [FAULT]. It shows what the load generator itself can carry; with a fault
(`error-event`, `short`, `cut`, `blind`, `empty`, `status`, `hang-up`) it shows what the generator
notices.
"""

import asyncio
import json
import sys

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull"


def answer(body: bytes, fault: str) -> bytes:
    """Write the whole reply to one request."""
    if fault == "status":
        return _FULL
    num_tokens = json.loads(body)["max_new_tokens"]
    events: list[dict[str, object]] = [{"chunk": "a ", "done": False}] * num_tokens
    usage = {
        "output_tokens": num_tokens - (fault == "short"),
        "input_tokens": 1 if fault == "blind" else 10_000,
    }
    if fault == "empty":
        events = []
    if fault == "error-event":
        events[3:] = [{"error": "broken", "done": True}]
    elif fault != "cut":
        events.append({"chunk": "", "done": True, "usage": usage})
    chunks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return _OK + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


async def serve(port: int, fault: str) -> None:
    """Answer until the process is ended."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    writer.write(_READY)
                    continue
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                reply = answer(await reader.readexactly(length), fault)
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
