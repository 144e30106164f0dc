"""Secrets in webhook bodies, hidden from whoever looks at them. Pure."""

import json
from typing import Any

_SECRET_FIELDS = {"client_secret", "guild_token", "customer_ip_address", "token", "secret", "key", "user_provided_key"}
_SHOWN_OF_OTHERS = 2000


def redacted(body: bytes) -> Any:  # noqa: ANN401 - whatever the body is
    """Return a body as JSON value without its secrets; the beginning of one that is no JSON."""
    try:
        return _hide(json.loads(body))
    except (ValueError, RecursionError):
        return body[:_SHOWN_OF_OTHERS].decode("utf-8", "replace")


def _hide(value: Any) -> Any:  # noqa: ANN401 - a JSON value
    if isinstance(value, dict):
        return {
            name: "[hidden]" if name in _SECRET_FIELDS and isinstance(part, str) else _hide(part)
            for name, part in value.items()
        }
    return [_hide(part) for part in value] if isinstance(value, list) else value
