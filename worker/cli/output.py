"""What the commands print, and how they fail."""

import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from config.catalogue import Catalogue, CatalogueError
from config.durations import parse_duration
from config.logging import set_up_logging
from config.settings import Settings, SettingsError, load_settings

T = TypeVar("T")

# What reads a pipe wants whole lines.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 240)
console_err = Console(stderr=True)

NOT_FOUND = 3


class Failure(Exception):
    """A command cannot do what was asked; `sentences` are printed and `code` is the exit code."""

    def __init__(self, *sentences: str, code: int = 1) -> None:
        super().__init__(*sentences)
        self.sentences = [escape(one) for one in sentences]
        self.code = code


def settings_or_fail(**overrides: Any) -> Settings:  # noqa: ANN401 - values of any field
    """Return the settings, with logs set up by them. Raises Failure with every problem."""
    try:
        settings = load_settings(**overrides)
    except SettingsError as error:
        raise Failure(*error.problems) from None
    set_up_logging(settings)
    return settings


def catalogue_or_fail(settings: Settings) -> Catalogue:
    """Return the benefits file, checked. Raises Failure with every problem."""
    from worker.app import load_catalogue

    try:
        return load_catalogue(settings)
    except CatalogueError as error:
        raise Failure(*(f"{settings.benefits}: {problem}" for problem in error.problems)) from None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine to its end."""
    import asyncio

    return asyncio.run(work)


@asynccontextmanager
async def service(settings: Settings, *, may_be_new: bool = False):  # type: ignore[no-untyped-def]  # noqa: ANN201 - an async context manager
    """Open the service for one command, in the middle of whatever else is running on the same database."""
    from worker.app import NotReady, open_service

    catalogue = catalogue_or_fail(settings)
    if not may_be_new and settings.environment == "development":  # in production nothing is made unasked
        _must_be_there(settings)
    with database_in_words(settings):
        try:
            async with open_service(settings, catalogue) as opened:
                await opened.pipeline.follow()
                yield opened
        except NotReady as error:
            raise Failure(str(error)) from None


def _must_be_there(settings: Settings) -> None:
    """Raise Failure where a command would make a new, empty database: it is run in the wrong folder."""
    file = Path(settings.database.split(":///", 1)[1])
    is_possible = file.parent.is_dir() or not file.parent.exists()
    if settings.is_sqlite and is_possible and not file.exists():
        raise Failure(
            f"There is no database {settings.database}. Run this where the sidecar runs, or set ALMONER_DATA_DIR; "
            "a new installation begins with: almoner up"
        )


@contextmanager
def database_in_words(settings: Settings) -> Iterator[None]:
    """Say in words that the database cannot be used. What is wrong with our own statements stays a traceback."""
    from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

    try:
        yield
    except (DataError, IntegrityError, ProgrammingError, BrokenPipeError):  # the last: `head` has read enough
        raise
    except (DBAPIError, OSError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise Failure(
            f"The database {without_password(settings.database)} cannot be used: {reason}",
            "Is it running, and are ALMONER_DATABASE_URL and ALMONER_DATA_DIR right?",
        ) from None


def without_password(url: str) -> str:
    """Return an address that may be shown."""
    head, separator, tail = url.partition("://")
    if "@" not in tail:
        return url
    user, _, place = tail.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{head}{separator}{name}{':[hidden]' if colon else ''}@{place}"


def print_json(document: Any) -> None:  # noqa: ANN401 - anything that JSON can say
    """Print JSON for a script."""
    sys.stdout.write(json_text(document) + "\n")


def json_text(document: Any) -> str:  # noqa: ANN401 - as above
    """Write JSON as people read it; a lone surrogate, which no terminal can show, stays escaped."""
    text = json.dumps(document, default=_plain, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:  # noqa: ANN401 - as above
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


_WIDE = 140
_WHOLE = frozenset(("id", "webhook_id", "secret"))
"""What people copy; it is never broken."""


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    show: Mapping[str, Callable[[Any], str]],
    *,
    narrow: Sequence[str] | None = None,
) -> None:
    """Print a table with these columns of each row, or with the `narrow` ones on a terminal that is not wide.

    `show` says how a column's values are written.
    """
    if narrow and console.width < _WIDE:
        columns = narrow
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name in _WHOLE)
    for row in rows:
        table.add_row(*(show.get(name, _text)(row[name]) for name in columns))
    console.print(table)


def _text(value: Any) -> str:  # noqa: ANN401 - a value of a row
    if value is None:
        return ""
    return when(value) if isinstance(value, datetime) else escape(str(value))


def when(at: datetime | None) -> str:
    """Write a time for people, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else ""


def colored(status: str) -> str:
    """Write a status in its color."""
    colors = {
        "done": "green", "granted": "green", "pending": "yellow", "granting": "yellow", "revoking": "bold yellow",
        "action_required": "magenta", "dead": "bold red", "failed": "bold red", "ignored": "dim", "revoked": "dim",
    }  # fmt: skip
    color = colors.get(str(status))
    return f"[{color}]{status}[/]" if color else escape(str(status))


def moment(text: str | None, *, ahead: bool = False) -> datetime | None:
    """Read a time: ISO 8601, or how long ago (`ahead`: how long from now), like `2h`. Raises Failure."""
    if text is None:
        return None
    try:
        away: timedelta = parse_duration(text)
        return datetime.now(UTC) + (away if ahead else -away)
    except OverflowError:
        raise Failure(f"{text!r} is further away than time is kept", code=2) from None
    except ValueError:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            far = "how long from now" if ahead else "how long ago"
            raise Failure(f"{text!r} is not a time; write 2026-11-01T12:00:00Z, or {far}: 2h", code=2) from None
        return at if at.tzinfo else at.replace(tzinfo=UTC)
