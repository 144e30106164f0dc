"""`almoner signing-keys`: what is printed, with which exit code, and what it does to the keys."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.worker.test_cli import Almoner, Said, _alone, almoner, empty, on_service
from tests.worker.test_signing_keys import licence
from worker.app import Service
from worker.cli import app
from worker.signing_keys import SigningKeys

__all__ = ["_alone", "almoner", "empty"]  # fixtures


def keys(said: Said) -> dict[str, str]:
    """What each key does, by kid."""
    return {one["kid"]: one["standing"] for one in said.json["signing_keys"]}


def sign(until: datetime) -> str:
    """Sign a licence in this folder; returns the key's kid."""

    async def work(service: Service) -> str:
        of = SigningKeys(service.database, service.settings, service.pipeline.now)
        return (await of.sign(licence(until))).licence.kid

    kid: str = on_service(work)
    return kid


def at(said: Said, kid: str, name: str) -> datetime:
    (row,) = [one for one in said.json["signing_keys"] if one["kid"] == kid]
    return datetime.fromisoformat(row[name])


@pytest.mark.parametrize("command", ["list", "create", "rotate", "retire"])
def test_every_command_says_what_it_does(command: str) -> None:
    result = CliRunner().invoke(app, ["signing-keys", command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.strip().splitlines()[2].strip()


def test_before_there_is_any_it_is_said_how_the_first_comes(almoner: Almoner, empty: Path) -> None:
    said = almoner("signing-keys", "list")
    assert said.code == 0
    assert "The first offline licence makes the first key" in said.out
    assert keys(almoner("signing-keys", "list", "--json")) == {}


def test_create_makes_the_first_and_no_other(almoner: Almoner, empty: Path) -> None:
    first = almoner("signing-keys", "create")
    kid = first.out.split()[0]
    assert (first.code, first.out) == (0, f"{kid} signs from now on.\n")
    again = almoner("signing-keys", "create")
    assert (again.code, again.out) == (0, f"{kid} signs already. To replace it: almoner signing-keys rotate\n")
    assert keys(almoner("signing-keys", "list", "--json")) == {kid: "signs"}
    table = almoner("signing-keys", "list").out
    assert kid in table
    assert "signs from" in table


def test_a_private_half_is_never_printed(almoner: Almoner, empty: Path) -> None:
    almoner("signing-keys", "create")

    async def sealed(service: Service) -> bytes:
        (only,) = await SigningKeys(service.database, service.settings, service.pipeline.now).all()
        return only.sealed or b""

    secret = on_service(sealed).decode()
    listed = almoner("signing-keys", "list", "--json")
    assert secret not in listed.out
    assert set(listed.json["signing_keys"][0]) == {
        "kid", "standing", "created_at", "signs_from", "retired_at", "until",
    }  # fmt: skip


def test_rotate_lists_a_key_that_signs_a_day_later(almoner: Almoner, empty: Path) -> None:
    old = almoner("signing-keys", "create").out.split()[0]
    said = almoner("signing-keys", "rotate")
    new = said.out.split()[0]
    assert said.code == 0
    assert "is listed, and signs from 20" in said.out
    listed = almoner("signing-keys", "list", "--json")
    assert keys(listed) == {old: "signs", new: "waits"}
    ahead = at(listed, new, "signs_from") - at(listed, new, "created_at")
    assert ahead == timedelta(days=1)
    assert at(listed, old, "retired_at") == at(listed, new, "signs_from")
    waiting = almoner("signing-keys", "rotate", "--in", "0s")
    assert waiting.code == 1
    assert f"{new} waits already" in waiting.err
    assert f"almoner signing-keys retire {new}" in waiting.err


def test_rotate_at_once_replaces_it_at_once(almoner: Almoner, empty: Path) -> None:
    old = sign(datetime.fromisoformat("2099-01-01T00:00:00Z"))
    new = almoner("signing-keys", "rotate", "--in", "0s").out.split()[0]
    assert keys(almoner("signing-keys", "list", "--json")) == {old: "replaced", new: "signs"}
    assert sign(datetime.fromisoformat("2099-01-01T00:00:00Z")) == new


@pytest.mark.parametrize(("text", "words"), [("soon", "'soon' is not a duration"), ("2000d", "longer than a year")])
def test_a_wrong_overlap_is_a_wrong_call(almoner: Almoner, empty: Path, text: str, words: str) -> None:
    said = almoner("signing-keys", "rotate", "--in", text)
    assert said.code == 2
    assert words in said.err
    assert keys(almoner("signing-keys", "list", "--json")) == {}


def test_retire_refuses_what_is_needed_and_says_until_when(almoner: Almoner, empty: Path) -> None:
    old = sign(datetime.fromisoformat("2099-01-01T00:00:00Z"))
    signing = almoner("signing-keys", "retire", old)
    assert signing.code == 1
    assert "signs now" in signing.err
    assert "almoner signing-keys rotate" in signing.err
    almoner("signing-keys", "rotate", "--in", "0s")
    needed = almoner("signing-keys", "retire", old)
    assert needed.code == 1
    assert "may be good until 2099-01-01 00:00Z. To retire it all the same: --force" in needed.err
    forced = almoner("signing-keys", "retire", old, "--force")
    assert (forced.code, forced.out) == (
        0, f"{old} is retired: apps that fetch the list refuse what it has signed.\n",
    )  # fmt: skip
    assert keys(almoner("signing-keys", "list", "--json"))[old] == "retired"


def test_an_unknown_key_is_not_found(almoner: Almoner, empty: Path) -> None:
    said = almoner("signing-keys", "retire", "[red]x")
    assert said.code == 3
    assert "There is no key [red]x; `almoner signing-keys list` shows them" in said.err


@pytest.mark.parametrize("arguments", [["list"], ["create"], ["rotate"], ["retire", "x"]])
def test_wrong_settings_stop_every_command(
    almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("ALMONER_PROT", "very-secret")
    said = almoner("signing-keys", *arguments)
    assert (said.code, said.out) == (1, "")
    assert "did you mean ALMONER_PORT?" in said.err


def test_without_encryption_keys_none_is_made(
    almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    production: dict[str, Any] = {
        "ENVIRONMENT": "production", "WEBHOOK_SECRETS": "whsec_" + "a" * 32, "API_TOKENS": "a" * 32,
        "OPS_TOKENS": "b" * 32, "SIGNING_KEYS": "c" * 32, "BENEFITS": str(tmp_path / "benefits.toml"),
        "DATABASE_URL": f"sqlite:///{tmp_path / '.almoner' / 'almoner.db'}",
    }  # fmt: skip
    (tmp_path / "benefits.toml").write_text("")
    for name, value in production.items():
        monkeypatch.setenv(f"ALMONER_{name}", value)
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    said = almoner("signing-keys", "create")
    assert said.code == 1
    assert "ALMONER_ENCRYPTION_KEYS is missing: signing keys cannot be kept without it" in said.err


def test_a_key_that_another_process_makes_is_seen(almoner: Almoner, empty: Path) -> None:
    async def make(service: Service) -> list[str]:
        several = [SigningKeys(service.database, service.settings, service.pipeline.now) for _ in range(3)]
        made = await asyncio.gather(*(one.create() for one in several))
        return [key.kid for key, _ in made]

    made = on_service(make)
    assert keys(almoner("signing-keys", "list", "--json")) == {made[0]: "signs"}
    assert set(made) == {made[0]}
