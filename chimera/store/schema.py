"""The tables of the journal. The migrations build them; a test holds the two equal."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

HEAD = "0001"
"""The newest revision. Revisions are four digits, so that a greater one is a newer one."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column that is exactly INTEGER, which is 64 bits there.
_ID = BigInteger().with_variant(Integer(), "sqlite")
_JSON = JSON(none_as_null=True)


run = Table(
    "run",
    metadata,
    Column("seq", _ID, primary_key=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("name", Text),
    Column("preset", Text),
    Column("model", Text),
    Column("seed", BigInteger, nullable=False),
    Column("error", Text),
    Column("target", _JSON, nullable=False),
    Column("workload", _JSON, nullable=False),
    Column("plan", _JSON, nullable=False),
    Column("server", _JSON),
    Column("model_info", _JSON),
    Column("host", _JSON, nullable=False),
    Column("gpus", _JSON, nullable=False),
    Index(None, "model", "seq"),
    Index(None, "state", "seq"),
    sqlite_autoincrement=True,  # a number is never used again, not even after a deletion
)

trial = Table(
    "trial",
    metadata,
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
    Column("candidate", String(64), primary_key=True),
    Column("place", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("requested", _JSON, nullable=False),
    Column("merged", _JSON, nullable=False),
    Column("notes", _JSON, nullable=False),
    Column("effective", _JSON),
)

session = Table(
    "session",
    metadata,
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("candidate", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("void_reason", String(32)),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("facts", _JSON, nullable=False),
)

measurement = Table(
    "measurement",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("run", _ID, nullable=False),
    Column("session", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("total_s", Double, nullable=False),
    Column("ttft_s", Double),
    Column("queue_s", Double),
    Column("load_s", Double),
    Column("prefill_s", Double),
    Column("decode_s", Double),
    Column("other_s", Double),
    Column("timing_source", String(16), nullable=False),
    Column("prompt_tokens", Integer),
    Column("cached_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("tokens_estimated", Boolean, nullable=False),
    Column("client_decode_tok_s", Double),
    Column("decode_tok_s", Double),
    Column("prefill_tok_s", Double),
    Column("effective_tok_s", Double),
    Column("itl_p50_s", Double),
    Column("itl_p95_s", Double),
    Column("itl_max_s", Double),
    Column("finish_reason", Text),
    Column("cold", Boolean, nullable=False),
    Column("void_reason", String(32)),
    Column("error", Text),
    Column("retries", Integer, nullable=False),
    Column("agent", Integer, nullable=False),
    Column("instance", Integer, nullable=False),
    ForeignKeyConstraint(["run", "session"], ["session.run", "session.seq"], ondelete="CASCADE"),
    Index(None, "run", "id"),
    sqlite_autoincrement=True,
)

progress = Table(
    "progress",
    metadata,
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
    Column("data", _JSON, nullable=False),
)

command = Table(
    "command",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE"), nullable=False),
    Column("command", String(16), nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "run", "id"),
    sqlite_autoincrement=True,
)

event = Table(
    "event",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE")),
    Column("at", Double, nullable=False),
    Column("level", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Index(None, "run", "id"),
    sqlite_autoincrement=True,
)

sample = Table(
    "sample",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE")),
    Column("at", Double, nullable=False),
    Column("data", _JSON, nullable=False),
    Index(None, "run", "at"),
)

verdict = Table(
    "verdict",
    metadata,
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("candidate", String(64), nullable=False),
    Column("against", String(64), nullable=False),
    Column("metric", String(32), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("effect", Double),
    Column("ci_low", Double),
    Column("ci_high", Double),
    Column("level", Double, nullable=False),
    Column("n", Integer, nullable=False),
    Column("reason", Text),
)

finding = Table(
    "finding",
    metadata,
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("code", String(64), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("data", _JSON, nullable=False),
)

remembered = Table(
    "remembered",
    metadata,
    Column("run", _ID, ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
    Column("server_url", String(512), primary_key=True),
    Column("data", _JSON, nullable=False),
    Column("at", Double, nullable=False),
    Column("restored_at", Double),
)
