"""Durations: what people write is what they get, and what cannot be meant is refused in words."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from config.durations import Duration, format_duration, parse_duration

ADAPTER: TypeAdapter[timedelta] = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("15m", 900),
        ("12h", 43_200),
        ("3d", 259_200),
        ("2w", 1_209_600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1 h 30 m", 5400),
        ("0s", 0),
        ("0", 0),
        (0, 0),
    ],
)
def test_a_number_and_a_unit_are_a_duration(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "30", 30, "s", "3 days", "-3d", "3D", "1h!30m", "h1", "1..5s", "1e3s", "P3D", None, [], "3d,"]
)
def test_anything_else_is_refused_and_the_accepted_form_is_shown(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; write a number and a unit, like 30s, 15m, 12h, 3d or 2w"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["999999999999d", "9" * 400 + "s", "999999999d999999999d"])
def test_what_no_clock_can_hold_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="is too long for a duration"):
        parse_duration(text)


def test_a_timedelta_passes_unchanged() -> None:
    duration = timedelta(days=1, microseconds=1)
    assert parse_duration(duration) is duration


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(), "0s"),
        (timedelta(days=3), "3d"),
        (timedelta(hours=36), "36h"),
        (timedelta(seconds=90), "90s"),
        (timedelta(minutes=90), "90m"),
        (timedelta(milliseconds=1500), "1500ms"),
    ],
)
def test_the_largest_unit_that_divides_it_is_written(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(st.integers(min_value=0, max_value=10**12))
def test_what_is_written_is_read_back_as_the_same(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


def test_a_field_reads_a_duration_and_writes_it_for_people() -> None:
    assert ADAPTER.validate_python("2h") == timedelta(hours=2)
    assert ADAPTER.dump_python(timedelta(hours=2)) == "2h"
    with pytest.raises(ValidationError, match="is not a duration"):
        ADAPTER.validate_python("soon")
