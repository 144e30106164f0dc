"""Platforms: accounts of customers, limits, audits, and grants of a benefit's parts."""

import sqlalchemy as sa
from alembic import op

from worker.store.models import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_RESOURCE = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Bring the tables to this form."""
    op.create_table(
        "accounts",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("platform", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("token", sa.LargeBinary(), nullable=True),
        sa.Column("sealed_with", sa.Text(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("modified_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "member_id", "platform", "source"),
    )
    with op.batch_alter_table("accounts", schema=None) as batch_op:
        batch_op.create_index("accounts_account", ["platform", "account_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_accounts_sealed_with"), ["sealed_with"], unique=False)
    op.create_table(
        "audits",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("findings", sa.Integer(), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "limits",
        sa.Column("name", _RESOURCE, nullable=False),
        sa.Column("most", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("calls", sa.LargeBinary(), nullable=False),
        sa.Column("promised", sa.LargeBinary(), nullable=False),
        sa.Column("parked_until", UtcTime(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.add_column(sa.Column("part", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("touched", _RESOURCE, nullable=True))
        batch_op.add_column(sa.Column("taken", sa.Text(), nullable=True))
        batch_op.create_index(batch_op.f("ix_grants_touched"), ["touched"], unique=False)
        if op.get_bind().dialect.name == "postgresql":
            for name in ("resource", "held"):
                batch_op.alter_column(name, type_=sa.Text(collation="C"), existing_type=sa.Text())
    op.execute("UPDATE grants SET touched = held")


def downgrade() -> None:
    """Bring the tables back to the form before."""
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_grants_touched"))
        if op.get_bind().dialect.name == "postgresql":
            for name in ("resource", "held"):
                batch_op.alter_column(name, type_=sa.Text(), existing_type=sa.Text(collation="C"))
        batch_op.drop_column("taken")
        batch_op.drop_column("touched")
        batch_op.drop_column("part")
    op.drop_table("limits")
    op.drop_table("audits")
    op.drop_table("accounts")
