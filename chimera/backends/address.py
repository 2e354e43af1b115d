"""Addresses of servers: as they are typed, whether two name the same server, and whether it is on this host."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from chimera.domain.server import KEY_VARIABLE
from chimera.domain.text import plain
from chimera.errors import ConfigError


def is_local(url: str) -> bool:
    """The address is one of this host's own loopback addresses."""
    host = (urlsplit(url).hostname or "").lower()
    return host in {"localhost", "::1"} or host.startswith("127.")


def same_server(one: str | None, other: str | None) -> bool:
    """Two addresses name the same server, however they are spelled; None is an engine of ours, which has none.

    What cannot be read as an address, as in a document from elsewhere, is the same as itself only.
    """
    if one == other or one is None or other is None:
        return one == other
    try:
        return _place(one) == _place(other)
    except ConfigError:
        return False


def _place(url: str) -> tuple[str, int, str]:
    parts = urlsplit(normalise_url(url))
    host = parts.hostname or ""
    return (
        "127.0.0.1" if host in {"localhost", "::1"} else host,
        parts.port or {"https": 443}.get(parts.scheme, 80),
        parts.path,
    )


def normalise_url(text: str) -> str:
    """The base address of a server from what a person types: `host`, `:8080`, `http://host:8000/v1/`.

    Raises `ConfigError` in words. An address without a scheme is http, one for "all interfaces" is this host's, and
    the `/v1` of an API address is left off.
    """
    given = text.strip().strip("\"'").strip()
    parts = _split(given)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{_host(parts)}{_port(parts, given)}{path}"


def ollama_host(value: str) -> str | None:
    """The address that `OLLAMA_HOST` means, read as Ollama does; None where it is empty.

    Host, `host:port`, `:port` or a URL with or without a path; the port is 11434 unless there is a scheme, which
    brings its own. Raises `ConfigError`.
    """
    given = value.strip().strip("\"'").strip()
    if not given:
        return None
    parts = _split(given)
    port = _port(parts, given)
    if not port and "://" not in given:
        port = ":11434"
    return f"{parts.scheme}://{_host(parts)}{port}{parts.path.rstrip('/')}"


def _split(given: str) -> SplitResult:
    if not given:
        raise ConfigError("The server's address is empty: give one like http://127.0.0.1:11434.")
    shown = plain(given)
    text = given
    if "://" not in text:
        if text.isdecimal():
            text = f"127.0.0.1:{text}"  # a port alone
        elif text.startswith(":") and text[1:].isdecimal():
            text = f"127.0.0.1{text}"
        elif text.count(":") > 1 and not text.startswith("["):
            text = f"[{text}]"  # a bare IPv6 address
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError as error:
        raise ConfigError(f"{shown} is no address: {plain(str(error))}.") from error
    if parts.scheme not in {"http", "https"}:
        raise ConfigError(f"{shown}: the scheme {plain(parts.scheme)}:// is not known here; use http:// or https://.")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"The address of {plain(host or 'the server')} has a user or a password in it, which would end up in logs. "
            f"Leave it out and set {KEY_VARIABLE} in the environment."
        )
    if not host:
        raise ConfigError(f"{shown} names no host: give an address like http://127.0.0.1:11434.")
    if not re.fullmatch(r"[0-9A-Za-z._:%\-]+", host):
        raise ConfigError(f"{shown}: {plain(host)} is no host name.")
    if parts.query or parts.fragment:
        raise ConfigError(f"{shown}: leave out what follows the path (? or #).")
    return parts


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:  # "all interfaces" is an address to listen on, not one to ask
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{host}]" if address.version == 6 else host


def _port(parts: SplitResult, given: str) -> str:
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{plain(given)}: the port must be a number from 1 to 65535.") from error
    if port == 0:
        raise ConfigError(f"{plain(given)}: the port must be a number from 1 to 65535.")
    return "" if port is None else f":{port}"
