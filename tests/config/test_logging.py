"""Logs: one line an outcome, in both formats, from us and from libraries, and never a secret."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from config.logging import secrets_of, set_up_logging
from config.settings import Settings

SECRETS = {
    "webhook_secrets": "whsec_bG9uZy1zZWNyZXQ=,second-webhook-secret",
    "api_tokens": "app:token-of-the-app",
    "ops_tokens": "operator:token-of-operators",
    "signing_keys": "key-that-signs",
    "link_secret": "secret-of-links",
    "database_url": "postgresql+asyncpg://user:pass%2Fword@host/db",
    "redis_url": "redis://:pass@word/redis@host:6379/0",
}
VALUES = (
    "whsec_bG9uZy1zZWNyZXQ=", "second-webhook-secret", "token-of-the-app", "token-of-operators", "key-that-signs",
    "secret-of-links", "pass%2Fword", "pass/word", "pass@word/redis",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, configured = root.handlers[:], root.level, structlog.get_config()
    noisy = {name: logging.getLogger(name).level for name in ("botocore", "boto3", "urllib3", "httpx", "httpcore",
             "asyncio", "aiosqlite", "alembic")}  # fmt: skip
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configured)
    structlog.contextvars.clear_contextvars()
    for name, before in noisy.items():
        logging.getLogger(name).setLevel(before)


Lines = Callable[[], list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """What was written to standard error; nothing may stand on standard output."""

    def read() -> list[str]:
        output = capsys.readouterr()
        assert output.out == ""
        return output.err.splitlines()

    return read


def set_up(format_: str = "json", **more: Any) -> None:
    set_up_logging(Settings(**(SECRETS | {"log_format": format_} | more)))


class Opaque:
    """What a library may hand to a log call: an object whose secret shows only when it is written."""

    def __repr__(self) -> str:
        return "<Client token-of-the-app>"


def test_all_secrets_of_the_settings_are_known_and_short_ones_do_not_blot_out_lines() -> None:
    assert set(secrets_of(Settings(**SECRETS))) == set(VALUES)  # type: ignore[arg-type]
    assert secrets_of(Settings(api_tokens="app:abc", redis_url="redis://host:6379")) == ()


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize("value", VALUES)
def test_a_secret_is_hidden_wherever_it_stands(lines: Lines, format_: str, value: str) -> None:
    set_up(format_)
    log = structlog.get_logger("ours")
    told = f"sent {value} on"
    log.info(told, note=f"a{value}b", parts=[{"deep": (value, 1)}], count=3)
    logging.getLogger("library").warning("called with %s", value)
    said = "\n".join(lines())
    assert value not in said
    assert said.count("[hidden]") == 4
    assert "called with [hidden]" in said


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_secret_inside_another_object_is_hidden(lines: Lines, format_: str) -> None:
    set_up(format_)
    structlog.get_logger().info("using", client=Opaque())
    [line] = lines()
    assert "<Client [hidden]>" in line


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize(
    "name",
    ["token", "api_tokens", "client_secret", "password", "Authorization", "webhook-signature", "key", "license_key"],
)
def test_what_is_named_like_a_secret_is_hidden_whatever_it_is(lines: Lines, format_: str, name: str) -> None:
    set_up(format_)
    structlog.get_logger().info("got", **{name: "unknown-to-us"}, headers={name: "nor-this", "keyboard": "shown"})
    [line] = lines()
    assert "unknown-to-us" not in line
    assert "nor-this" not in line
    assert "shown" in line


@pytest.mark.parametrize("format_", ["json", "console"])
def test_an_exception_is_shown_with_its_traceback_but_without_secrets(lines: Lines, format_: str) -> None:
    set_up(format_)
    for log in (structlog.get_logger(), logging.getLogger("library")):
        try:
            int("second-webhook-secret")
        except ValueError:
            log.exception("it failed")
    said = "\n".join(lines())
    assert said.count("it failed") == 2
    assert said.count("ValueError: invalid literal for int() with base 10: '[hidden]'") == 2
    assert said.count("Traceback (most recent call last)") == 2
    assert "second-webhook-secret" not in said


def test_json_is_one_object_a_line_with_time_level_and_context(lines: Lines) -> None:
    set_up("json")
    with structlog.contextvars.bound_contextvars(delivery="d1"):
        structlog.get_logger().error("several\nlines", text="a\nb", exc_info=ValueError("c\nd"), at={"x": 1})
    logging.getLogger("library").warning("one\ntwo")
    ours, theirs = (json.loads(line) for line in lines())
    assert ours["event"] == "several\nlines"
    assert ours["level"] == "error"
    assert ours["delivery"] == "d1"
    assert ours["at"] == {"x": 1}
    assert "ValueError: c\nd" in ours["exception"]
    assert ours["timestamp"].endswith("Z")
    assert theirs["event"] == "one\ntwo"
    assert theirs["logger"] == "library"


def test_console_is_one_readable_line_without_colors_where_nobody_looks(lines: Lines) -> None:
    set_up("console")
    structlog.get_logger().info("a grant was settled", benefit="pro key")
    [line] = lines()
    assert "[info     ] a grant was settled" in line
    assert "benefit='pro key'" in line
    assert "\x1b" not in line


def test_console_is_colored_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    set_up("console")
    structlog.get_logger().info("seen")
    assert "\x1b[" in capsys.readouterr().err


def test_less_than_the_level_is_not_written(lines: Lines) -> None:
    set_up(log_level="warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in lines()] == ["loud"]


def test_libraries_that_say_what_they_were_given_say_it_never(lines: Lines) -> None:
    set_up(log_level="debug")
    for name in ("botocore", "boto3", "urllib3", "httpx", "httpcore", "asyncio", "aiosqlite", "alembic"):
        logging.getLogger(name).debug("request body: ...")
        logging.getLogger(name).info("GET https://example.com/?token=...")
    structlog.get_logger().debug("ours")
    assert [json.loads(line)["event"] for line in lines()] == ["ours"]


def test_setting_up_again_replaces_what_was(lines: Lines) -> None:
    set_up("json")
    set_up("console", api_tokens="app:another-token")
    structlog.get_logger().info("token-of-the-app another-token")
    [line] = lines()
    assert "token-of-the-app [hidden]" in line


def test_without_any_secret_nothing_is_hidden(lines: Lines) -> None:
    set_up_logging(Settings(log_format="json"))
    structlog.get_logger().info("plain", value="as it is")
    assert json.loads(lines()[0])["value"] == "as it is"
