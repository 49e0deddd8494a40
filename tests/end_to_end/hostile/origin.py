"""Where hostile URLs lead to: a host that may be asked, and one that may not."""

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Origin:
    """Two servers on one port: one that may be asked, and one that may not and counts who came.

    picture: what is there to be had. secret: what no client may be told.
    """

    def __init__(self, picture: bytes, secret: str) -> None:
        self.num_hits = 0
        self._picture = picture
        self._secret = secret
        origin = self

        class Forbidden(BaseHTTPRequestHandler):
            def handle(self) -> None:
                origin.num_hits += 1

        class Allowed(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                # A TLS greeting may hold no line end, and would be waited for.
                if self.connection.recv(1, socket.MSG_PEEK) != b"\x16":
                    super().handle()

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    origin.answer(self)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                """Say nothing."""

        self._forbidden = ThreadingHTTPServer(("127.0.0.1", 0), Forbidden)
        self.port = self._forbidden.server_port
        self._allowed = ThreadingHTTPServer(("127.0.0.2", self.port), Allowed)
        self._closing = threading.Event()
        for server in (self._forbidden, self._allowed):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.2") -> str:
        return f"http://{host}:{self.port}{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:  # noqa: C901 - a table
        def reply(status: int, body: bytes = b"", **headers: str) -> None:
            request.send_response(status)
            for name, value in ({"Content_Length": str(len(body))} | headers).items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()
            request.wfile.write(body)

        match request.path:
            case "/red.png":
                reply(200, self._picture)
            case "/to-private":
                reply(302, Location=self.url("/red.png", "127.0.0.1"))
            case "/to-metadata":
                reply(302, Location="http://169.254.169.254/latest/meta-data")
            case "/to-file":
                reply(302, Location="file:///etc/passwd")
            case "/loop":
                reply(302, Location="/loop")
            case "/404":
                reply(404, self._secret.encode())
            case "/500":
                reply(500, self._secret.encode())
            case "/html":
                reply(200, f"<html>{self._secret}".encode())
            case "/huge":
                reply(200, self._picture, Content_Length=str(10 * 2**30))
            case "/absurd":
                reply(200, self._picture, Content_Length="9" * 5000)
            case "/endless":
                request.send_response(200)
                request.send_header("Transfer-Encoding", "chunked")
                request.end_headers()
                while not self._closing.is_set():
                    request.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            case "/silent":
                self._closing.wait(10)
            case "/drips":
                request.send_response(200)
                request.end_headers()
                while not self._closing.wait(0.1):
                    request.wfile.write(b"\x89")

    def close(self) -> None:
        self._closing.set()
        for server in (self._forbidden, self._allowed):
            server.shutdown()
            server.server_close()
