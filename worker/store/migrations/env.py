"""Alembic's environment: it runs on the connection that worker/store/migrate.py hands over."""

from alembic import context
from sqlmodel import SQLModel

from worker.store import models  # noqa: F401 - fills SQLModel's metadata

connection = context.config.attributes.get("connection")
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True,
                  transaction_per_migration=False)  # fmt: skip
context.run_migrations()
