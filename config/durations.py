"""Durations as people write them: `30s`, `15m`, `12h`, `3d`, `2w`."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_FORM = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_duration(text: object) -> timedelta:
    """Read `3d` or `1h30m` as a `timedelta`; a `timedelta` passes unchanged.

    Raises ValueError, with the accepted form, for anything else.
    """
    if isinstance(text, timedelta):
        return text
    if text in (0, "0"):
        return timedelta()
    written = str(text).replace(" ", "")
    parts = _FORM.findall(written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        raise ValueError(f"{text!r} is not a duration; write a number and a unit, like 30s, 15m, 12h, 3d or 2w")
    try:
        return sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    except OverflowError:
        raise ValueError(f"{text!r} is too long for a duration") from None


def format_duration(duration: timedelta) -> str:
    """Write a `timedelta` with the largest unit that divides it: `3d`, `90s`, `1500ms`."""
    milliseconds = round(duration.total_seconds() * 1000)
    if milliseconds == 0:
        return "0s"
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
