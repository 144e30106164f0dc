"""Keys that sign offline licences."""

import sqlalchemy as sa
from alembic import op

from worker.store.models import UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this form."""
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("sealed_with", sa.Text(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("signs_from", UtcTime(), nullable=False),
        sa.Column("retired_at", UtcTime(), nullable=True),
        sa.Column("until", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("kid"),
    )


def downgrade() -> None:
    """Bring the tables back to the form before."""
    op.drop_table("signing_keys")
