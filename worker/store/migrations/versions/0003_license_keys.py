"""License keys: found by their digest, with activations, and quotas for those who ask."""

import hashlib

import sqlalchemy as sa
from alembic import op

from worker.store.models import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.create_table(
        "activations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("license_key_id", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("conditions", sa.Text(), nullable=False),
        sa.Column("meta", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("modified_at", UtcTime(), nullable=True),
        sa.Column("seen_at", UtcTime(), nullable=False),
        sa.Column("deleted_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("activations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_activations_license_key_id"), ["license_key_id"], unique=False)
        live = sa.text("fingerprint IS NOT NULL AND deleted_at IS NULL")
        batch_op.create_index(
            "activations_fingerprint", ["license_key_id", "fingerprint"], unique=True,
            sqlite_where=live, postgresql_where=live,
        )  # fmt: skip
    op.create_table(
        "quotas",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("span", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", "span"),
    )
    op.create_table(
        "unknown_keys",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("until", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    with op.batch_alter_table("license_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("source", sa.Text(), server_default="own", nullable=False))
        batch_op.add_column(sa.Column("given", sa.Boolean(), server_default=sa.true(), nullable=False))
        batch_op.add_column(sa.Column("purchase", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("digest", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("display_key", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("sealed", sa.LargeBinary(), nullable=True))
        batch_op.add_column(sa.Column("sealed_with", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("read_at", UtcTime(), nullable=True))
        batch_op.add_column(sa.Column("read_attempts", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("problem", sa.Text(), nullable=True))
        batch_op.alter_column("key", existing_type=sa.Text(), nullable=True)
        batch_op.alter_column("usage", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False)
        batch_op.alter_column("validations", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False)
    _complete(op.get_bind())
    op.execute("UPDATE license_keys SET given = false, status = 'granted' WHERE status = 'revoked'")
    with op.batch_alter_table("license_keys", schema=None) as batch_op:
        batch_op.alter_column("display_key", existing_type=sa.Text(), nullable=False)
        batch_op.create_unique_constraint("license_keys_digest_key", ["digest"])
        batch_op.create_index(batch_op.f("ix_license_keys_benefit"), ["benefit"], unique=False)
        batch_op.create_index(batch_op.f("ix_license_keys_sealed_with"), ["sealed_with"], unique=False)
        batch_op.create_index("license_keys_created", ["created_at", "id"], unique=False)
        unread = sa.text("read_at IS NOT NULL")
        batch_op.create_index("license_keys_unread", ["read_at"], unique=False, sqlite_where=unread,
                              postgresql_where=unread)  # fmt: skip
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("license_keys_key_key", "license_keys")
    else:
        _drop_unnamed_unique()


def _complete(connection: sa.Connection) -> None:
    """Give the keys that there are their digests, and the purchase that their resource names."""
    table = sa.table("license_keys", *(sa.column(name) for name in ("id", "key", "resource", "digest", "display_key",
                                                                   "purchase")))  # fmt: skip
    for row in connection.execute(sa.select(table.c.id, table.c.key, table.c.resource)).all():
        connection.execute(
            table.update()
            .where(table.c.id == row.id)
            .values(
                digest=hashlib.sha256(row.key.encode()).hexdigest(),
                display_key=f"****-{row.key[-6:]}",
                purchase=row.resource.rpartition(":")[2] or None,
            )
        )


def _drop_unnamed_unique() -> None:
    """SQLite named no constraint: the table is made anew without the one on the key."""
    naming = {"uq": "%(table_name)s_%(column_0_name)s_key"}
    with op.batch_alter_table("license_keys", schema=None, naming_convention=naming) as batch_op:
        batch_op.drop_constraint("license_keys_key_key", type_="unique")


def downgrade() -> None:
    """Bring the tables back to the form before."""
    op.execute("DELETE FROM license_keys WHERE key IS NULL OR source <> 'own'")
    op.execute("UPDATE license_keys SET status = 'revoked' WHERE NOT given")
    with op.batch_alter_table("license_keys", schema=None) as batch_op:
        for name in ("license_keys_unread", "license_keys_created", batch_op.f("ix_license_keys_benefit"),
                     batch_op.f("ix_license_keys_sealed_with")):  # fmt: skip
            batch_op.drop_index(name)
        batch_op.drop_constraint("license_keys_digest_key", type_="unique")
        added = ("problem", "read_attempts", "read_at", "sealed_with", "sealed", "display_key", "digest", "purchase",
                 "given", "source")  # fmt: skip
        for name in added:
            batch_op.drop_column(name)
        batch_op.alter_column("validations", existing_type=sa.BigInteger(), type_=sa.Integer(), existing_nullable=False)
        batch_op.alter_column("usage", existing_type=sa.BigInteger(), type_=sa.Integer(), existing_nullable=False)
        batch_op.alter_column("key", existing_type=sa.Text(), nullable=False)
        batch_op.create_unique_constraint("license_keys_key_key", ["key"])
    for table in ("unknown_keys", "quotas", "activations"):
        op.drop_table(table)
