"""A server whose answers a test decides, and which remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Body = object | Callable[[], object]


@dataclass
class Scripted:
    """Answers by path: an object is sent as JSON, text and bytes as they are; a callable is asked each time."""

    routes: dict[str, Body] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    delay_s: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status and body for a path."""
        time.sleep(self.delay_s.get(path, 0.0))
        body = self.routes.get(path)
        if body is None:
            return self.status.get(path, 404), b'{"error": {"code": 404, "message": "File Not Found"}}'
        value = body() if callable(body) else body
        if not isinstance(value, str | bytes):
            value = json.dumps(value)
        return self.status.get(path, 200), value.encode() if isinstance(value, str) else value


@contextmanager
def serve(script: Scripted) -> Iterator[Scripted]:
    """Let it listen on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.asked.append(f"GET {self.path}")
            script.headers.append(dict(self.headers))
            status, data = script.answer(self.path)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # it did not wait

        def do_POST(self) -> None:
            script.asked.append(f"POST {self.path}")
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> tuple[socket.socket, object]:
            connection, address = super().get_request()
            connections.append(connection)
            return connection, address

    connections: list[socket.socket] = []
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # one that is kept open would be served on
        thread.join()
