from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_mock_engine

from chimera.errors import JournalError
from chimera.store import database, schema
from chimera.store.home import home
from chimera.store.journal import Journal

from .samples import new_run, request, whole_session

SECOND = """
from alembic import op
import sqlalchemy as sa

revision = "0002"
down_revision = "0001"


def upgrade():
    op.add_column("run", sa.Column("mood", sa.Text))
    {then}
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def columns(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        return {row[1] for row in connection.execute("PRAGMA table_info(run)")}
    finally:
        connection.close()


def stamp(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


@pytest.fixture
def tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version of Chimera with one more migration; returns the file of that migration."""
    folder = tmp_path / "migrations of 100%"
    (folder / "versions").mkdir(parents=True)
    for name in ("env.py", "versions/r0001_journal.py"):
        (folder / name).write_text((database.MIGRATIONS / name).read_text())
    step = folder / "versions" / "r0002_mood.py"
    step.write_text(SECOND.format(then=""))
    monkeypatch.setattr(database, "MIGRATIONS", folder)
    monkeypatch.setattr(schema, "HEAD", "0002")
    return step


def test_the_head_constant_is_alembics_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_the_migrations_build_the_tables_that_the_code_uses(journal: Journal) -> None:
    with journal._reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_the_journal_and_its_folder_are_the_users_alone(place: Path) -> None:
    place.parent.mkdir()
    with Journal.open() as journal:
        assert journal.path == place / "chimera.db"
        run = new_run(journal)
        with journal.worker_lock(run.id):
            assert mode(place) == mode(place / "locks") == 0o700
            for file in ("chimera.db", "chimera.db-wal", "chimera.db-shm", f"locks/{run.id}.lock"):
                assert mode(place / file) == 0o600, file


def test_a_journal_that_others_may_read_is_closed_to_them(journal: Journal, place: Path) -> None:
    journal.close()
    (place / "chimera.db").chmod(0o644)
    Journal.open().close()
    assert mode(place / "chimera.db") == 0o600


def test_the_state_folder_is_the_platforms_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHIMERA_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere/state")
    if sys.platform == "linux":
        assert home() == Path("/somewhere/state/chimera")
    monkeypatch.setenv("CHIMERA_HOME", "~/mine")
    assert home() == Path("~/mine").expanduser()


def test_an_address_in_the_environment_is_taken(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIMERA_DB", f"sqlite:///{tmp_path}/else/where.db")
    with Journal.open() as journal:
        assert journal.path == tmp_path / "else" / "where.db"
        assert journal.worker_lock(new_run(journal).id).path.parent == tmp_path / "else" / "locks"
    assert not place.exists()


@pytest.mark.parametrize("address", ["no address", "sqlite://", "sqlite:///:memory:", "nosuchdb://host/name"])
def test_an_address_that_cannot_hold_a_journal_is_refused(place: Path, address: str) -> None:
    with pytest.raises(JournalError):
        Journal.open(address)


def test_a_password_in_an_address_is_never_repeated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("nosuchdb://me:secret@host/x", "post gres://me:secret@host", "postgresql+nosuch://me:secret@h/x"):
        monkeypatch.setenv("CHIMERA_DB", address)
        with pytest.raises(JournalError) as caught:
            Journal.open()
        assert "secret" not in str(caught.value)


def test_an_older_journal_is_migrated_after_a_copy(journal: Journal, place: Path, tomorrow: Path) -> None:
    run = new_run(journal)
    whole_session(journal, run, 1, "c0", [100.0])
    # The old version is still open, so that its newest writes are in the log beside the file and nowhere else.
    with Journal.open() as newer:
        assert "mood" in columns(place / "chimera.db")
        assert [row.measurement for row in newer.measurements(run.id)][1:] == [request(100.0)]
    copy = place / "chimera.db.bak-0001"
    assert mode(copy) == 0o600
    assert "mood" not in columns(copy)
    old = sqlite3.connect(copy)
    assert old.execute("SELECT count(*) FROM measurement").fetchone() == (2,)
    assert old.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
    old.close()
    Journal.open().close()
    assert sorted(item.name for item in place.iterdir() if "bak" in item.name) == ["chimera.db.bak-0001"]


def test_a_migration_that_fails_leaves_the_journal_as_it_was(journal: Journal, place: Path, tomorrow: Path) -> None:
    tomorrow.write_text(SECOND.format(then="raise RuntimeError('power cut')"))
    journal.close()
    with pytest.raises(RuntimeError, match="power cut"):
        Journal.open()
    assert "mood" not in columns(place / "chimera.db")
    tomorrow.write_text(SECOND.format(then=""))
    Journal.open().close()
    assert "mood" in columns(place / "chimera.db")


def test_a_journal_of_a_newer_chimera_is_refused_and_left_alone(journal: Journal, place: Path) -> None:
    journal.close()
    stamp(place / "chimera.db", "0999")
    with pytest.raises(JournalError, match=r"newer Chimera.*0999.*Upgrade"):
        Journal.open()
    assert not list(place.glob("*.bak-*"))
    assert sqlite3.connect(place / "chimera.db").execute("SELECT * FROM alembic_version").fetchall() == [("0999",)]


def test_a_file_that_is_no_database_is_refused_and_left_alone(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "chimera.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalError, match=r"damaged or is not a journal.*Move the file away"):
        Journal.open()
    assert (place / "chimera.db").read_bytes().startswith(b"not a database")


def test_a_damaged_journal_is_told_when_it_is_read(journal: Journal, place: Path) -> None:
    run = new_run(journal)
    whole_session(journal, run, 1, "c0", [100.0] * 500)
    journal.close()
    path = place / "chimera.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xa5" * (len(whole) - 8192))
    with pytest.raises(JournalError, match="damaged"), Journal.open() as broken:
        broken.measurements(broken.run("last").id)


def test_another_programs_database_is_refused(place: Path) -> None:
    place.mkdir(parents=True)
    other = sqlite3.connect(place / "chimera.db")
    other.execute("CREATE TABLE recipes (name)")
    other.close()
    with pytest.raises(JournalError, match="not one of Chimera's"):
        Journal.open()


def test_an_empty_file_becomes_a_journal(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "chimera.db").touch()
    with Journal.open() as journal:
        new_run(journal)


def test_a_folder_in_its_place_is_refused(place: Path) -> None:
    (place / "chimera.db").mkdir(parents=True)
    with pytest.raises(JournalError, match="is a folder"):
        Journal.open()


def test_a_place_that_cannot_be_made_is_refused(place: Path) -> None:
    place.parent.write_text("a file where the folder should be")
    with pytest.raises(JournalError, match="cannot be made or read"):
        Journal.open()


def test_a_journal_that_may_only_be_read_says_so_at_the_first_write(journal: Journal, place: Path) -> None:
    new_run(journal)
    with Journal.open(f"sqlite:///file:{place}/chimera.db?mode=ro&uri=true") as read_only:
        run = read_only.run("last")
        with pytest.raises(JournalError, match=r"cannot be written.*write access"):
            read_only.rename(run.id, "x")


@pytest.mark.skipif(sys.platform == "win32", reason="the system's dot-file locks are of Unix")
def test_a_disk_without_shared_memory_is_refused(place: Path) -> None:
    place.mkdir(parents=True)
    # SQLite's own driver for disks that cannot share memory between processes: it refuses the write-ahead log.
    with pytest.raises(JournalError, match=r"local disk: set CHIMERA_HOME"):
        Journal.open(f"sqlite:///file:{place}/chimera.db?vfs=unix-dotfile&uri=true")


def test_a_full_disk_is_not_called_a_remote_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        # SQLite's words where the index of its write-ahead log cannot grow.
        with database.explained(place / "chimera.db"):
            raise sqlite3.OperationalError("disk I/O error")

    place.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(JournalError, match="its disk is full"):
        refuse()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    with pytest.raises(JournalError, match="needs a local disk"):
        refuse()


def test_a_network_disk_is_refused_before_anything_is_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(place.parent), fstype="nfs4"),
    ]
    place.parent.mkdir()
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    with pytest.raises(JournalError, match=r"is on nfs4\. Set CHIMERA_HOME"):
        Journal.open()
    assert not (place / "chimera.db").exists()
    assert database.network_disk(Path("/elsewhere/chimera.db")) is None


def test_an_up_to_date_journal_opens_without_alembic_and_filelock(journal: Journal, place: Path) -> None:
    code = (
        "import sys; from chimera.store.journal import Journal; j = Journal.open(); j.runs(); j.is_held('x');"
        "heavy = ('alembic', 'filelock', 'psutil', 'pydantic', 'sqlalchemy.orm');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ}, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_home_and_lock_load_no_database_library() -> None:
    code = (
        "import sys, chimera.store, chimera.store.home, chimera.store.lock, chimera.store.records;"
        "print([name for name in ('sqlalchemy', 'alembic', 'filelock', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tables_can_be_made_on_a_database_server_too() -> None:
    made: list[str] = []

    def note(statement: Any, *_: object, **__: object) -> None:
        made.append(str(statement.compile(dialect=server.dialect)))

    server = create_mock_engine("postgresql://", note)
    schema.metadata.create_all(server, checkfirst=False)
    tables = [text for text in made if "CREATE TABLE" in text]
    assert len(tables) == len(schema.metadata.tables)
    measurement = next(text for text in tables if "CREATE TABLE measurement" in text)
    assert "id BIGSERIAL" in measurement
    assert "total_s DOUBLE PRECISION NOT NULL" in measurement
