"""A real web server on this machine that misbehaves on request."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What the server has, and how it behaves; tests change it while it runs.

    Attributes:
        cuts: Bytes after which each of the next answers is cut.
        statuses: Sent instead of the next answers.
        chunk_seconds: Wait before each further 64 KiB.
        location: Redirect target; "" = none.
        requests: The Range header of each request, "" without one.
    """

    content: bytes = b""
    etag: bool = True
    ranges: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    chunk_seconds: float = 0.0
    location: str = ""
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def file_server(served: Served) -> Iterator[Served]:
    """Serve it; `served.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            served.requests.append(wanted)
            if served.location:
                self.send_response(302)
                self.send_header("Location", served.location)
                self.end_headers()
                return
            if served.statuses:
                self.send_error(served.statuses.pop(0))
                return
            content, tag = served.content, f'"{hashlib.sha256(served.content).hexdigest()[:16]}"'
            start = 0
            if wanted and served.ranges and self.headers.get("If-Range") in (tag, None):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if served.etag:
                self.send_header("ETag", tag)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            if served.length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self._send(content[start:])

        def _send(self, body: bytes) -> None:
            if served.cuts:
                body = body[: served.cuts.pop(0)]
            try:
                for at in range(0, len(body), 1 << 16):
                    self.wfile.write(body[at : at + (1 << 16)])
                    self.wfile.flush()
                    time.sleep(served.chunk_seconds)
            except (BrokenPipeError, ConnectionResetError):
                pass
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/weights.pth"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
