"""What a platform's HTTP status means, and how long it asks us to wait."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from connectors.base import ActionRequired, ConnectorError, Rejected, Unavailable
from connectors.http import error_for_status, retry_after

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
DAY = 86_400.0


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 599])
def test_what_passes_by_itself_is_tried_later(status: int) -> None:
    error = error_for_status(status, "why")
    assert type(error) is Unavailable
    assert error.retry_after is None


@pytest.mark.parametrize("status", [429, 503])
def test_being_asked_to_wait_is_remembered(status: int) -> None:
    error = error_for_status(status, "why", retry_after=7.5)
    assert type(error) is Unavailable
    assert error.retry_after == 7.5


@pytest.mark.parametrize("status", [429, 503])
def test_being_asked_to_come_back_at_once_is_still_being_asked(status: int) -> None:
    error = error_for_status(status, "why", retry_after=0.0)
    assert isinstance(error, Unavailable)
    assert error.retry_after == 0.0


@pytest.mark.parametrize("status", [408, 425, 500, 502, 504])
def test_a_fault_that_asks_us_to_wait_still_uses_up_attempts(status: int) -> None:
    error = error_for_status(status, "why", retry_after=7.5)
    assert isinstance(error, Unavailable)
    assert error.retry_after is None


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_for_the_merchant_to_put_right(status: int) -> None:
    error = error_for_status(status, "why", retry_after=7.5)
    assert isinstance(error, ActionRequired)
    assert error.who == "merchant"


@pytest.mark.parametrize("status", [300, 301, 400, 402, 404, 405, 409, 410, 422, 451, 499])
def test_what_would_be_the_same_next_time_is_rejected(status: int) -> None:
    assert type(error_for_status(status, "why", retry_after=7.5)) is Rejected


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_the_reason_is_what_people_read(status: int) -> None:
    error = error_for_status(status, "the platform answered so")
    assert str(error) == "the platform answered so"
    assert isinstance(error, ConnectorError)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("30", 30.0),
        ("  30 ", 30.0),
        ("1.5", 1.5),
        ("86400", DAY),
        ("86401", DAY),
        ("9" * 400, DAY),
        ("Sun, 01 Nov 2026 12:02:00 GMT", 120.0),
        ("Sun, 01 Nov 2026 14:02:00 +0200", 120.0),
        ("Sunday, 01-Nov-26 12:02:00 GMT", 120.0),
        ("Sun Nov  1 12:02:00 2026", 120.0),
        ("Sun, 01 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", DAY),
    ],
)
def test_a_wait_is_read_as_seconds_or_as_a_date_and_is_a_day_at_most(header: str, seconds: float) -> None:
    assert retry_after(header, NOW) == seconds


@pytest.fixture
def _far_from_greenwich() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TZ", "XST+7")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_from_greenwich")
def test_a_date_without_a_zone_is_utc_wherever_we_are() -> None:
    assert retry_after("Sun Nov  1 12:02:00 2026", NOW) == 120.0


@pytest.mark.parametrize(
    "header",
    [None, "", "  ", "soon", "-5", "1e3", "inf", "nan", "1.", ".5", "٣", "Sun, 32 Nov 2026 12:00:00 GMT",
     "Sun, 01 Nov 2026 12:00:00 +999999999999"],
)  # fmt: skip
def test_a_wait_that_cannot_be_read_is_none(header: str | None) -> None:
    assert retry_after(header, NOW) is None
