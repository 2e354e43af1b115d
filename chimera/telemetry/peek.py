"""Short looks at a server over HTTP, with the standard library: four times cheaper than a full client a look."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chimera.domain.server import KEY_VARIABLE

if TYPE_CHECKING:
    from http.client import HTTPConnection


_MOST = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """It is an answer to the question."""
        return self.status == 200

    def json(self) -> object:
        """The body as JSON; None where it is none."""
        try:
            value: object = json.loads(self.body)
        except ValueError:
            return None
        return value

    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", errors="replace")


class NoAnswer(Exception):
    """Nobody answered; `timeout` where somebody listens but did not answer in time."""

    def __init__(self, words: str, *, timeout: bool = False) -> None:
        super().__init__(words)
        self.timeout = timeout


class Peek:
    """One connection to one server, kept open; only ever sends GET."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._secure else 80)
        self._base = parts.path.rstrip("/")
        self._connection: HTTPConnection | None = None
        self._used = False

    def get(self, path: str, timeout_s: float) -> Answer:
        """Ask once. A kept connection that the server has closed meanwhile is opened again.

        Raises:
            NoAnswer: Nobody listens, not in time, or no HTTP.
        """
        if self._used:
            try:
                return self._ask(path, timeout_s)
            except NoAnswer as error:
                if error.timeout:
                    raise
        return self._ask(path, timeout_s)

    def _ask(self, path: str, timeout_s: float) -> Answer:
        import http.client

        if self._connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            self._connection = kind(self._host, self._port)
        connection = self._connection
        connection.timeout = timeout_s
        headers = {"Accept-Encoding": "identity"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        try:
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            connection.request("GET", self._base + path, headers=headers)
            response = connection.getresponse()
            body = response.read(_MOST)
            if response.will_close or not response.isclosed():
                self.close()
            self._used = self._connection is not None
            return Answer(response.status, body)
        except TimeoutError:
            self.close()
            raise NoAnswer("no answer in time", timeout=True) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise NoAnswer(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error

    def close(self) -> None:
        """Let go of the connection; the next question opens one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._used = False
