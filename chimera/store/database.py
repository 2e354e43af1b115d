"""Opens the journal's database: makes it, migrates it, or says in a sentence why it cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from chimera.errors import JournalError

from . import schema
from .codec import dumps
from .files import whole
from .home import home, private_folder

FILE = "chimera.db"
MIGRATIONS = Path(__file__).with_name("migrations")

_BUSY_S = 15.0
"""How long a statement waits for another process's write."""
_LEAST_FREE = 128 << 10
"""Bytes: a piece of the shared memory and of the write-ahead log."""
_NETWORK_DISKS = frozenset({"nfs", "nfs4", "cifs", "smbfs", "smb3", "afs", "afpfs", "fuse.sshfs", "lustre"})


def default_url() -> URL:
    """`$CHIMERA_DB`, or the file in `home()`.

    Raises:
        JournalError: `$CHIMERA_DB` is no database address.
    """
    chosen = os.environ.get("CHIMERA_DB")
    return parse_url(chosen) if chosen else URL.create("sqlite", database=str(home() / FILE))


def parse_url(text: str) -> URL:
    """A database address.

    Raises:
        JournalError: it is none.
    """
    try:
        return make_url(text)
    except ArgumentError:
        # The text is not repeated: it may hold a password.
        raise JournalError(
            "The journal's address (CHIMERA_DB) is not a database URL. "
            "Give one like sqlite:////home/me/chimera.db or postgresql+psycopg://host/chimera, or unset it."
        ) from None


def file_of(url: URL) -> Path | None:
    """The file of an SQLite address, None for a database server.

    Raises:
        JournalError: SQLite without a file.
    """
    if url.get_backend_name() != "sqlite":
        return None
    name = url.database or ""
    if name in ("", ":memory:"):
        raise JournalError("The journal needs a file: a database in memory cannot be followed from another process.")
    return Path(unquote(urlsplit(name).path) if name.startswith("file:") else name).absolute()


@contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """Turn a database's exceptions into a `JournalError` that says what to do; integrity errors pass."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise JournalError(_sentence(path, str(error.orig))) from error
    except sqlite3.Error as error:
        raise JournalError(_sentence(path, str(error))) from error


def _sentence(path: Path | None, message: str) -> str:
    where = f"The journal {path}" if path else "The journal's database"
    low = message.lower()
    if "not a database" in low or "malformed" in low:
        return (
            f"{where} is damaged or is not a journal ({message}). Move the file away to start a new one, "
            "or put back a copy (chimera.db.bak-*)."
        )
    if "readonly" in low:
        return f"{where} cannot be written ({message}). Give yourself write access to the file and its folder."
    # SQLite has another word for it where its shared memory cannot grow.
    if "disk is full" in low or ("disk i/o" in low and _is_full(path)):
        return f"{where} cannot grow: its disk is full. Free some space and try again."
    if "unable to open" in low:
        return f"{where} cannot be opened ({message}). Check that its folder exists and that you may write there."
    if "locking protocol" in low or "disk i/o" in low:
        return (
            f"{where} cannot be shared between processes here ({message}). It needs a local disk: "
            "set CHIMERA_HOME to a folder on one."
        )
    if "locked" in low or "busy" in low:
        return f"{where} has been locked by another program for over {_BUSY_S:.0f} s. End that program and try again."
    return f"{where} failed: {message}. If this stays so, move it away or set CHIMERA_HOME to another folder."


def _is_full(path: Path | None) -> bool:
    """The journal's disk has no room for what SQLite takes at once."""
    try:
        return path is not None and shutil.disk_usage(path.parent).free < _LEAST_FREE
    except OSError:
        return False


def make_engine(url: URL, *, migrating: bool = False) -> Engine:
    """An engine for this address, set up for a journal; it has not connected yet.

    Raises:
        JournalError: no driver for that database is installed.
    """
    sqlite = url.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"json_serializer": dumps, "hide_parameters": True}
    if migrating:
        options["poolclass"] = NullPool
    if sqlite:
        options["connect_args"] = {"timeout": _BUSY_S, "check_same_thread": False}
    try:
        engine = create_engine(url, **options)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise JournalError(f"No driver for {url.drivername} is installed: {error}.") from None
    if sqlite:
        _set_up_sqlite(engine, foreign_keys=not migrating)
    return engine


def _set_up_sqlite(engine: Engine, *, foreign_keys: bool) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        # The driver begins transactions late and only for some statements; we begin them ourselves.
        connection.isolation_level = None
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A writer takes its turn at the start: one that has read first cannot wait for another, it fails at once.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def open_engine(url: URL) -> Engine:
    """An engine on a journal of this version's form; one that is missing is made, an older one migrated.

    Raises:
        JournalError: it cannot be used, or a newer Chimera wrote it; the sentence says what to do.
    """
    path = file_of(url)
    if path is not None:
        _make_place(path)
    engine = make_engine(url)
    try:
        with explained(path):
            if _revision(engine, path) != schema.HEAD or not _is_wal(engine):
                _bring_up_to_date(engine, url, path)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _make_place(path: Path) -> None:
    try:
        private_folder(path.parent)
        if not path.exists():
            refusal = network_disk(path)
            if refusal:
                raise JournalError(
                    f"The journal needs a local disk, and {path.parent} is on {refusal}. "
                    "Set CHIMERA_HOME to a folder on a local disk."
                )
            # SQLite gives its side files the mode of the file itself.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        elif path.is_dir():
            raise JournalError(f"The journal's place {path} is a folder. Remove it, or set CHIMERA_HOME elsewhere.")
        else:
            mode = path.stat()
            if stat.S_IMODE(mode.st_mode) & 0o077 and hasattr(os, "getuid") and mode.st_uid == os.getuid():
                path.chmod(0o600)
    except OSError as error:
        raise JournalError(
            f"The journal {path} cannot be made or read ({error.strerror or error}). "
            "Give yourself access, or set CHIMERA_HOME to a folder of yours."
        ) from error


def network_disk(path: Path) -> str | None:
    """The kind of the network disk that holds this path, or None where it is not on one."""
    import psutil

    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return None
    resolved = path.resolve()
    over = [mount for mount in mounts if resolved.is_relative_to(mount.mountpoint)]
    # The last of the longest is the one on top.
    nearest = max(reversed(over), key=lambda mount: len(mount.mountpoint), default=None)
    return nearest.fstype if nearest is not None and nearest.fstype in _NETWORK_DISKS else None


def _revision(engine: Engine, path: Path | None) -> str | None:
    """The revision that the database is at, None for an empty one."""
    with engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        if not tables:
            return None
        where = f"The journal {path}" if path else "The journal's database"
        if "alembic_version" not in tables or "measurement" not in tables:
            raise JournalError(
                f"{where} is a database, but not one of Chimera's. Move it away, or set CHIMERA_HOME elsewhere."
            )
        row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    if row is None:
        raise JournalError(f"{where} does not say which version wrote it. Move it away, or put back a copy.")
    revision = str(row[0])
    if revision > schema.HEAD:
        raise JournalError(
            f"{where} is of a newer Chimera: its form is {revision}, and this one knows {schema.HEAD}. "
            "Upgrade Chimera, or set CHIMERA_HOME to another folder."
        )
    return revision


def _is_wal(engine: Engine) -> bool:
    if engine.dialect.name != "sqlite":
        return True
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal")


def _bring_up_to_date(engine: Engine, url: URL, path: Path | None) -> None:
    if path is None:
        if _revision(engine, path) != schema.HEAD:
            _migrate(url)
        return
    from filelock import FileLock, Timeout

    # No run has this name: ids are without `o` and `l`.
    lock = private_folder(path.parent / "locks") / f"{path.stem}-journal.lock"
    try:
        with FileLock(lock, mode=0o600, thread_local=False).acquire(timeout=60):
            # Another process may have done it while we waited.
            revision = _revision(engine, path)
            if not _is_wal(engine):
                _ask_for_wal(engine, path)
            if revision is not None and revision != schema.HEAD:
                _copy(path, path.with_name(f"{path.name}.bak-{revision}"))
            if revision != schema.HEAD:
                _migrate(url)
    except Timeout as error:
        raise JournalError(
            f"The journal {path} is being made or migrated by another process for over a minute. Try again later."
        ) from error


def _ask_for_wal(engine: Engine, path: Path) -> None:
    fairy = engine.raw_connection()
    try:
        cursor = cast("sqlite3.Connection", fairy.dbapi_connection).cursor()
        give_up = time.monotonic() + _BUSY_S
        while True:
            try:
                cursor.execute("PRAGMA journal_mode=WAL")
                mode = cursor.fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                # This one statement does not wait for readers by itself.
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
    finally:
        fairy.close()
    if mode != "wal":
        raise JournalError(
            f"The journal {path} cannot be shared between processes here (SQLite refused its write-ahead log). "
            "It needs a local disk: set CHIMERA_HOME to a folder on one."
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a database whole, with what is still in its log, and show it under its name only when complete."""
    with (
        whole(target, 0o600) as partial,
        closing(sqlite3.connect(source, timeout=_BUSY_S)) as old,
        closing(sqlite3.connect(partial)) as new,
    ):
        old.backup(new)


def _migrate(url: URL) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = make_engine(url, migrating=True)
    try:
        with engine.execution_options(writes=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
