"""The README says what is true."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from config.durations import format_duration
from config.settings import PREFIX, Settings
from connectors import CONNECTORS, TERMS
from worker.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _written(default: Any) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, timedelta):
        return f"`{format_duration(default)}`"
    return "" if default in {"", (), None} else f"`{default}`"


def rows() -> list[str]:
    return [
        f"| `{PREFIX}{name.upper()}` | {_written(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def test_the_table_of_settings_is_that_of_the_class() -> None:
    table = [line for line in README.splitlines() if line.startswith(f"| `{PREFIX}")]
    assert table == rows()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_every_command_that_is_shown_exists() -> None:
    commands = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    shown = set(re.findall(r"almoner ([a-z][a-z-]+)", README))
    assert {"up", "receive", "work", "check", "simulate", "deliveries", "replay", "grants", "migrate"} <= shown
    assert shown - commands == set()


def test_every_connector_is_described_with_its_fields() -> None:
    for name in CONNECTORS:
        [row] = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
        for field in TERMS[name].config.model_fields:
            assert field == "benefit" or f"`{field}`" in row


def test_no_make_target_that_is_shown_is_missing() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
