"""Statements that are built once: building one anew costs several times as much as running it.

`INSERT .. ON CONFLICT` both databases have, and SQLAlchemy spells once for each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

Insert = Callable[[sa.Table], Any]
"""The dialect's own insert, with its `on_conflict_do_update` and `on_conflict_do_nothing`."""

_INSERTS: dict[str, Insert] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class PerDialect:
    """A statement that is built once for each dialect, when it is first run there."""

    def __init__(self, build: Callable[[Insert], Any]) -> None:
        self._build = build
        self._built: dict[str, Any] = {}

    def __call__(self, connection: sa.Connection) -> Any:  # noqa: ANN401 - one of two dialects' Insert
        """Return the statement for this connection's dialect."""
        name = connection.dialect.name
        if name not in self._built:
            self._built[name] = self._build(_INSERTS[name])
        return self._built[name]


Excluded = Any
"""The row that was to be inserted, as a conflict's columns."""


def upsert(
    table: sa.Table,
    columns: Sequence[str],
    keys: tuple[str, ...],
    *,
    change: Callable[[Excluded], dict[str, Any]] | None = None,
    where: Callable[[Excluded], Any] | None = None,
    returning: bool = False,
) -> PerDialect:
    """Return the insert of rows with these columns that changes the row which has the same keys.

    `change` says how, from the new row; without it all other columns are overwritten. `where` says when. With
    `returning` the row is returned as it is then.
    """

    def build(insert: Insert) -> Any:  # noqa: ANN401 - as above
        statement = insert(table).values({name: sa.bindparam(name) for name in columns})
        new = statement.excluded
        changed = change(new) if change else {name: new[name] for name in columns if name not in keys}
        if not changed:
            return statement.on_conflict_do_nothing(index_elements=list(keys))
        condition = where(new) if where else None
        statement = statement.on_conflict_do_update(index_elements=list(keys), set_=changed, where=condition)
        return statement.returning(table) if returning else statement

    return PerDialect(build)


def among(name: str) -> sa.BindParameter[Any]:
    """Return the parameter of an `IN`, which takes a list."""
    return sa.bindparam(name, expanding=True)
