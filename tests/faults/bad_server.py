"""A web server on this machine that serves files well or in one of the ways in which servers fail."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<html>Please log in to the network</html>"


class Server(ThreadingHTTPServer):
    """Answers /MODE/NAME; `mode` is `good` or a method of `Handler`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ended = threading.Event()

    def url(self, mode: str) -> str:
        """What a mirror's address would be, up to the file's name."""
        return f"http://127.0.0.1:{self.server_port}/{mode}/"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        _, mode, name = self.path.split("/")
        self.server.requests.append(self.path)
        with contextlib.suppress(ConnectionError):
            getattr(self, mode)(self.server.files.get(name, b""))

    def begin(self, length: int | None, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def good(self, content: bytes) -> None:
        self.begin(len(content))
        self.wfile.write(content)

    def without_length(self, content: bytes) -> None:
        self.begin(None)
        self.wfile.write(content)

    def calls_it_encoded(self, content: bytes) -> None:
        self.begin(len(content), **{"Content-Encoding": "x-gzip"})
        self.wfile.write(content)

    def keeps_open(self, content: bytes) -> None:
        self.good(content)
        self.wfile.flush()
        self.server.ended.wait()

    def silent(self, content: bytes) -> None:
        self.server.ended.wait()

    def stalls(self, content: bytes) -> None:
        self.begin(len(content))
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.server.ended.wait()

    def drops(self, content: bytes) -> None:
        self.begin(len(content))
        self.wfile.write(content[: len(content) // 2])

    def flips(self, content: bytes) -> None:
        self.good(content[:100] + bytes([content[100] ^ 1]) + content[101:])

    def endless(self, content: bytes) -> None:
        self.begin(None)
        while not self.server.ended.is_set():
            self.wfile.write(bytes(65536))

    def page(self, content: bytes) -> None:
        self.begin(len(PAGE))
        self.wfile.write(PAGE)

    def redirects_in_a_ring(self, content: bytes) -> None:
        self.begin(0, 302, Location=self.path)

    def redirects_to_a_file(self, content: bytes) -> None:
        self.begin(0, 302, Location="file:///etc/passwd")

    def forbidden(self, content: bytes) -> None:
        self.begin(0, 403)

    def garbage(self, content: bytes) -> None:
        self.wfile.write(b"\0\xff\r\n\r\n" * 100)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server in a thread."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
