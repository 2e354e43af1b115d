"""The journal."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    op.create_table(
        "run",
        sa.Column("seq", _ID, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("state_at", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("name", sa.Text),
        sa.Column("preset", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("target", _JSON, nullable=False),
        sa.Column("workload", _JSON, nullable=False),
        sa.Column("plan", _JSON, nullable=False),
        sa.Column("server", _JSON),
        sa.Column("model_info", _JSON),
        sa.Column("host", _JSON, nullable=False),
        sa.Column("gpus", _JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_run_model_seq", "run", ["model", "seq"])
    op.create_index("ix_run_state_seq", "run", ["state", "seq"])

    op.create_table(
        "trial",
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("candidate", sa.String(64), primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("requested", _JSON, nullable=False),
        sa.Column("merged", _JSON, nullable=False),
        sa.Column("notes", _JSON, nullable=False),
        sa.Column("effective", _JSON),
    )

    op.create_table(
        "session",
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("candidate", sa.String(64), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("void_reason", sa.String(32)),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("facts", _JSON, nullable=False),
    )

    op.create_table(
        "measurement",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("run", _ID, nullable=False),
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("total_s", sa.Double, nullable=False),
        sa.Column("ttft_s", sa.Double),
        sa.Column("queue_s", sa.Double),
        sa.Column("load_s", sa.Double),
        sa.Column("prefill_s", sa.Double),
        sa.Column("decode_s", sa.Double),
        sa.Column("other_s", sa.Double),
        sa.Column("timing_source", sa.String(16), nullable=False),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("cached_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("tokens_estimated", sa.Boolean, nullable=False),
        sa.Column("client_decode_tok_s", sa.Double),
        sa.Column("decode_tok_s", sa.Double),
        sa.Column("prefill_tok_s", sa.Double),
        sa.Column("effective_tok_s", sa.Double),
        sa.Column("itl_p50_s", sa.Double),
        sa.Column("itl_p95_s", sa.Double),
        sa.Column("itl_max_s", sa.Double),
        sa.Column("finish_reason", sa.Text),
        sa.Column("cold", sa.Boolean, nullable=False),
        sa.Column("void_reason", sa.String(32)),
        sa.Column("error", sa.Text),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("agent", sa.Integer, nullable=False),
        sa.Column("instance", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["run", "session"], ["session.run", "session.seq"], ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_measurement_run_id", "measurement", ["run", "id"])

    op.create_table(
        "progress",
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("data", _JSON, nullable=False),
    )

    op.create_table(
        "command",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), nullable=False),
        sa.Column("command", sa.String(16), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_command_run_id", "command", ["run", "id"])

    op.create_table(
        "event",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE")),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_event_run_id", "event", ["run", "id"])

    op.create_table(
        "sample",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE")),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("data", _JSON, nullable=False),
    )
    op.create_index("ix_sample_run_at", "sample", ["run", "at"])

    op.create_table(
        "verdict",
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("candidate", sa.String(64), nullable=False),
        sa.Column("against", sa.String(64), nullable=False),
        sa.Column("metric", sa.String(32), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("effect", sa.Double),
        sa.Column("ci_low", sa.Double),
        sa.Column("ci_high", sa.Double),
        sa.Column("level", sa.Double, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
    )

    op.create_table(
        "finding",
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("data", _JSON, nullable=False),
    )

    op.create_table(
        "remembered",
        sa.Column("run", _ID, sa.ForeignKey("run.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("server_url", sa.String(512), primary_key=True),
        sa.Column("data", _JSON, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("restored_at", sa.Double),
    )
