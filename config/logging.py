"""How log lines are written: one line an outcome, for people or as JSON, and never a secret."""

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

import structlog
from pydantic import SecretStr

from config.settings import Settings, Token

_SECRET_NAMES = re.compile(r"secret|token|password|authorization|signature|\bkey\b|license_key$|api_key", re.IGNORECASE)
_HIDDEN = "[hidden]"


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Return every secret value of the settings, so that none can be written by accident."""
    values = [getattr(settings, name) for name in type(settings).model_fields]
    listed = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
    found = [one.get_secret_value() for one in listed if isinstance(one, SecretStr)]
    found += [one.value.get_secret_value() for one in listed if isinstance(one, Token)]
    for url in (settings.database_url, settings.redis_url):
        match = re.search(r"://[^/:]*:(.+)@", url)
        if match:  # a driver's own words have it decoded
            found += [match[1], unquote(match[1])]
    return tuple(one for one in found if len(one) >= 6)


class _Hide:
    """Replaces secrets, wherever in a line they stand."""

    def __init__(self, secrets: Iterable[str]) -> None:
        parts = sorted({re.escape(one) for one in secrets}, key=len, reverse=True)
        self._values = re.compile("|".join(parts)) if parts else None

    def __call__(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in event.items():
            event[name] = _HIDDEN if name != "event" and _SECRET_NAMES.search(name) else self._inside(value)
        return event

    def _inside(self, value: Any) -> Any:  # noqa: ANN401 - whatever was logged
        if isinstance(value, str):
            return self._values.sub(_HIDDEN, value) if self._values else value
        if isinstance(value, dict):
            return {
                name: _HIDDEN if _SECRET_NAMES.search(str(name)) else self._inside(part) for name, part in value.items()
            }
        return [self._inside(part) for part in value] if isinstance(value, list | tuple) else value

    def rendered(self, _logger: object, _name: str, line: Any) -> str:  # noqa: ANN401 - the renderer's string
        """Hide in the finished line what stood inside other objects."""
        return str(self._inside(line))


def set_up_logging(settings: Settings) -> None:
    """Write logs to standard error as the settings say; our own and those of libraries alike."""
    hide = _Hide(secrets_of(settings))
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide,
    ]
    is_json = settings.log_format == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if is_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer, hide.rendered],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # What libraries say at these levels can hold what they were given.
    for noisy in ("botocore", "boto3", "urllib3", "httpx", "httpcore", "asyncio", "aiosqlite", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
