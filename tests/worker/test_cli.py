"""The command line: what is printed where, with which exit code, and what to type next.

Commands run in this process where they can, by the same entry as the console command. They call `asyncio.run`, so
these tests are no coroutines.
"""

import asyncio
import io
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from config.catalogue import Catalogue
from config.settings import PREFIX, load_settings
from tests.conftest import BENEFITS, Clock, Running, copy_of_template, run_service
from worker.app import Service, load_catalogue, open_service
from worker.cli import app, main, output, run
from worker.cli import demo as demonstrating
from worker.cli import simulate as simulating
from worker.pipeline import PROCESS_BATCH
from worker.replay import replay
from worker.simulate import SimulatedEvent, play
from worker.store import catalogues, inbox
from worker.store.inbox import Filter
from worker.verify import NotVerified, fingerprint, keys_of, verify

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "up", "receive", "work", "demo", "check", "accept-benefits", "migrate", "simulate", "deliveries", "replay",
    "grants", "licenses", "signing-keys", "audit",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of whoever runs the tests, wide tables, and logging afterwards as it was."""
    for name in [one for one in os.environ if one.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "250")  # for processes that are started
    for console in (output.console, output.console_err):
        monkeypatch.setattr(console, "width", 250)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for module in (simulating, demonstrating):
        monkeypatch.setattr(module, "run", _in_a_thread)
    root = logging.getLogger()
    handlers, level, configured = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configured)


def _in_a_thread(work: Coroutine[Any, Any, Any]) -> Any:
    """Run httpx's coroutines elsewhere: under Python 3.11 its async generators confuse coverage, which then loses the
    rest of every function that is waiting in the same thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@dataclass
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Almoner = Callable[..., Said]


@pytest.fixture
def almoner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Almoner:
    """Call the console command as a shell would, in this process."""

    def call(*arguments: str, typed: str = "") -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["almoner", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        assert "Traceback" not in captured.err
        return Said(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return call


@dataclass
class Sold:
    """A merchant's folder, in which something has happened."""

    folder: Path
    bought: str
    canceled: str
    stuck: str
    dead: str = "evt_dead"
    twice: str = ""
    deliveries: int = 0

    def sql(self, statement: str, *values: object) -> list[Any]:
        with sqlite3.connect(self.folder / ".almoner" / "almoner.db") as connection:
            rows = connection.execute(statement, values).fetchall()
        connection.close()
        return rows


@pytest.fixture(scope="session")
def sold(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Sold:
    """Made once: a purchase 3 h ago, a subscription that ended 1 h ago, one benefit that waits for the merchant, one
    delivery that cannot be read, and one that came three times, once with another body."""
    folder = tmp_path_factory.mktemp("sold")
    (folder / "files" / "sub").mkdir(parents=True)
    (folder / "files" / "manual.txt").write_text("the manual")
    (folder / "files" / "sub" / "app.bin").write_bytes(b"app")
    (folder / "benefits.toml").write_text(BENEFITS.replace("FOLDER", "files"))
    (folder / ".almoner").mkdir(mode=0o700)
    url = copy_of_template(sqlite_template, folder / ".almoner")
    clock = Clock(datetime.now(UTC) - timedelta(hours=3))

    async def live() -> Sold:
        catalogue = load_catalogue(load_settings({"ALMONER_LINK_SECRET": "x"}, generate=False))
        async with run_service(url, folder, catalogue, clock) as running:
            bought = await running.live("purchase", seed=1)
            clock.move(hours=2)
            ending = running.story("cancel", seed=2)
            given = [event.type for event in ending].index("benefit_grant.created") + 1
            await running.receive(ending[:given])
            await running.receive(ending[given:])
            (folder / "files" / "manual.txt").rename(folder / "manual.txt")
            stuck = await running.live("purchase", seed=3)
            [twice, *_] = running.story("renewal", seed=4)
            for body in (twice.body, twice.body, twice.body + b" "):
                await running.post(replace(twice, body=body))
            await running.receive([_unreadable()])
            balance = await running.service.database.read(inbox.balance)
        return Sold(
            folder, bought, ending[0].external_id, stuck, twice=twice.webhook_id, deliveries=balance["received"]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [one for one in os.environ if one.upper().startswith(PREFIX)]:
            patch.delenv(name)
        return asyncio.run(live())


def _unreadable() -> SimulatedEvent:
    """An order whose data is none, with secrets in it and a lone surrogate, which JSON may hold and UTF-8 may not."""
    data = {
        "id": 3,
        "client_secret": "polar_cs_1",
        "nested": [{"guild_token": "gt_1", "key": {"a": 1}}],
        "name": "\ud800é",
    }
    body = json.dumps({"type": "order.paid", "timestamp": "2026-11-01T12:00:00Z", "data": data}).encode()
    return SimulatedEvent("evt_dead", "order.paid", datetime.now(UTC), "", "", body)


@pytest.fixture
def shop(sold: Sold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sold:
    """The merchant's folder, for one test; it is where commands run."""
    folder = tmp_path / "shop"
    shutil.copytree(sold.folder, folder)
    monkeypatch.chdir(folder)
    return replace(sold, folder=folder)


@pytest.fixture
def empty(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing has happened yet but that the database is made."""
    (tmp_path / ".almoner").mkdir()
    copy_of_template(sqlite_template, tmp_path / ".almoner")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_service(work: Callable[[Service], Coroutine[Any, Any, Any]]) -> Any:
    """Do something to the service of this folder, beside the commands."""

    async def do() -> Any:
        settings = load_settings()
        async with open_service(settings, load_catalogue(settings)) as service:
            return await work(service)

    return asyncio.run(do())


class TestCalling:
    def test_help_names_every_command(self) -> None:
        result = CliRunner().invoke(app, ["--help"])
        assert result.exit_code == 0
        first = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("│ ") and line[2] != " "}
        assert first == {"--help", *COMMANDS}
        assert {one.name for one in app.registered_commands} | {one.name for one in app.registered_groups} == {
            *COMMANDS
        }

    @pytest.mark.parametrize("arguments", [[name] for name in COMMANDS] + [
        ["deliveries", "list"], ["deliveries", "show"], ["grants", "list"], ["grants", "show"], ["grants", "retry"],
        ["grants", "give"], ["grants", "withdraw"],
    ])  # fmt: skip
    def test_every_command_says_what_it_does(self, arguments: list[str]) -> None:
        result = CliRunner().invoke(app, [*arguments, "--help"])
        assert result.exit_code == 0
        assert result.stdout.strip().splitlines()[2].strip()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "Usage: almoner"),
            (["deliveries"], "Usage: almoner deliveries"),
            (["nonsense"], "No such command 'nonsense'"),
            (["deliveries", "list", "--limit", "0"], "Invalid value for '--limit'"),
            (["grants", "give", "customer", "key"], "Missing option '--reason'"),
            (["simulate", "purchase", "--duplicate", "2"], "Invalid value for '--duplicate'"),
        ],
    )
    def test_a_wrong_call_ends_with_2(self, almoner: Almoner, arguments: list[str], words: str) -> None:
        said = almoner(*arguments)
        assert said.code == 2
        assert words in said.out + said.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["check"], ["accept-benefits"], ["migrate"], ["simulate", "purchase"], ["deliveries", "list"],
            ["deliveries", "show", "x"], ["replay", "x"], ["grants", "list"], ["grants", "show", "x"],
            ["grants", "retry", "x"], ["grants", "give", "x", "key", "--reason", "y"],
            ["grants", "withdraw", "x", "key"], ["up"], ["receive"], ["work"],
        ],
    )  # fmt: skip
    def test_wrong_settings_stop_every_command_and_all_problems_are_told(
        self, almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
    ) -> None:
        monkeypatch.setenv("ALMONER_PROT", "very-secret")
        monkeypatch.setenv("ALMONER_GRACE", "soon")
        said = almoner(*arguments)
        assert said.code == 1
        assert said.out == ""
        assert said.err.splitlines() == [
            "almoner: ALMONER_PROT is not a setting of Almoner; did you mean ALMONER_PORT?",
            "almoner: ALMONER_GRACE: 'soon' is not a duration; write a number and a unit, like 30s, 15m, 12h, 3d or 2w",
        ]

    @pytest.mark.parametrize(
        "arguments", [["check", "--json"], ["accept-benefits"], ["up"], ["work"], ["grants", "list", "--json"]]
    )
    def test_a_wrong_benefits_file_is_told_with_its_name_the_benefit_and_the_field(
        self, almoner: Almoner, empty: Path, arguments: list[str]
    ) -> None:
        (empty / "benefits.toml").write_text('[benefits.a]\nconnector = "license_key"\nper = "seat"\n[benefits.B]')
        said = almoner(*arguments)
        assert said.code == 1
        assert said.out == ""
        assert said.err.splitlines() == [
            "almoner: benefits.toml: benefits.a: per: Input should be 'customer' or 'purchase'",
            "almoner: benefits.toml: benefits.B: a key has small letters, digits, - and _, at most 63 of them",
        ]

    def test_what_a_benefit_lacks_in_the_settings_is_told(
        self, almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch, sold: Sold
    ) -> None:
        shutil.copy(sold.folder / "benefits.toml", empty)
        for name, value in PRODUCTION.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
        said = almoner("check")
        assert said.code == 1
        assert [line.split(": ")[2:4] for line in said.err.splitlines()] == [
            ["benefits.files", "ALMONER_PUBLIC_URL is missing"], ["benefits.link", "ALMONER_LINK_SECRET is missing"],
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("arguments", "url", "words"),
        [
            (["check"], "postgresql+asyncpg://u:very-secret@127.0.0.1:1/db", "//u:[hidden]@127.0.0.1:1/db cannot be"),
            (["migrate"], "sqlite:///a-folder", "sqlite:///a-folder cannot be used: unable to open database file"),
            (["grants", "list"], "sqlite:///a-file/almoner.db", "sqlite:///a-file/almoner.db cannot be used: "),
            (["deliveries", "list", "--json"], "sqlite:///a-file", "a-file cannot be used: file is not a database"),
            (["up"], "sqlite:///a-folder", "sqlite:///a-folder cannot be used: unable to open database file"),
            (["work"], "sqlite:///a-file", "sqlite:///a-file cannot be used: file is not a database"),
        ],
    )  # fmt: skip
    def test_a_database_that_cannot_be_used_is_told_without_its_password(
        self, almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch,
        arguments: list[str], url: str, words: str,
    ) -> None:  # fmt: skip
        (empty / "a-folder").mkdir()
        (empty / "a-file").write_text("no database at all, " * 100)
        monkeypatch.setenv("ALMONER_DATABASE_URL", url)
        monkeypatch.setenv("ALMONER_REDIS_URL", "redis://127.0.0.1:1")
        monkeypatch.setenv("ALMONER_PORT", "0")
        said = almoner(*arguments)
        assert said.code == 1
        assert said.out == ""
        assert words in said.err
        assert "very-secret" not in said.err
        assert "almoner: Is it running, and are ALMONER_DATABASE_URL and ALMONER_DATA_DIR right?" in said.err

    def test_a_mistake_in_our_own_statements_is_not_blamed_on_the_database(self, shop: Sold) -> None:
        async def wrong() -> None:
            async with output.service(load_settings()) as opened:
                await opened.database.write(
                    lambda connection: connection.exec_driver_sql("INSERT INTO links VALUES (NULL, NULL, NULL)")
                )

        with pytest.raises(Exception, match="NOT NULL") as caught:
            asyncio.run(wrong())
        assert not isinstance(caught.value, output.Failure)

    def test_a_queue_server_that_cannot_start_is_told(
        self, almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (empty / ".almoner" / "queue").mkdir()
        (empty / ".almoner" / "queue" / "appendonlydir").write_text("not a folder")
        said = almoner("work")
        assert said.code == 1
        assert "The embedded queue server did not start; " in said.err
        assert "server.log says why" in said.err


PRODUCTION = {
    "ALMONER_ENVIRONMENT": "production",
    "ALMONER_WEBHOOK_SECRETS": "whsec_c2VjcmV0LW51bWJlci1vbmU=",
    "ALMONER_API_TOKENS": "app:token-of-the-app",
    "ALMONER_OPS_TOKENS": "operator:token-of-operators",
    "ALMONER_SIGNING_KEYS": "key-that-signs-links",
}


class TestTheWrongFolder:
    @pytest.mark.parametrize("arguments", [["grants", "list"], ["licenses", "list"], ["deliveries", "list"]])
    def test_a_command_that_reads_makes_no_new_database_there(
        self, almoner: Almoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = almoner(*arguments)
        assert (said.code, said.out) == (1, "")
        assert "There is no database" in said.err
        assert "ALMONER_DATA_DIR" in said.err
        assert not (tmp_path / ".almoner" / "almoner.db").exists()


class TestCheckAndMigrate:
    def test_check_shows_settings_and_benefits_but_no_secret(
        self, almoner: Almoner, shop: Sold, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALMONER_REDIS_URL", "redis://:very-secret@127.0.0.1:6379/0")
        monkeypatch.setenv("ALMONER_S3_ENDPOINT_URL", "https://id:very-secret@s3.example.com")
        monkeypatch.setenv("ALMONER_KEY_READERS", "app,portal")
        said = almoner("check", "--json")
        assert said.code == 0
        settings = said.json["settings"]
        kept = json.loads((shop.folder / ".almoner" / "development.json").read_text())
        secrets = [part.split(":")[-1] for value in kept.values() for part in value.split(",")]
        assert not [one for one in (*secrets, "very-secret") if one in said.out]
        assert settings["ALMONER_API_TOKENS"] == "app:[hidden]"
        assert settings["ALMONER_LINK_SECRET"] == "[hidden]"
        assert len(settings["ALMONER_WEBHOOK_SECRETS"]) == len("[123456789abc]")  # a fingerprint
        assert settings["ALMONER_REDIS_URL"] == "redis://:[hidden]@127.0.0.1:6379/0"
        assert settings["ALMONER_S3_ENDPOINT_URL"] == "https://id:[hidden]@s3.example.com"
        assert settings["ALMONER_KEY_READERS"] == "app, portal"
        assert settings["ALMONER_RETRY_CAP"] == "1h"
        assert {one["benefit"]: one["grace"] for one in said.json["benefits"]}["key"] == "3d"
        assert said.json["would_revoke"] == 0
        assert said.json["held"] is None

    def test_check_shows_when_each_webhook_secret_was_used(
        self, almoner: Almoner, shop: Sold, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new = "whsec_HxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4="
        old = load_settings().webhook_secrets[0].get_secret_value()
        at = datetime(2026, 11, 1, tzinfo=UTC)
        use = (fingerprint(old), "standard", at)
        on_service(lambda service: service.database.write(lambda connection: inbox.note_secrets(connection, [use])))
        monkeypatch.setenv("ALMONER_WEBHOOK_SECRETS", f"{new},{old}")
        shown = almoner("check", "--json").json["webhook_secrets"]
        assert [one["secret"] for one in shown] == [fingerprint(new), fingerprint(old)]
        assert [one["last_used_at"] for one in shown] == [None, "2026-11-01T00:00:00Z"]
        assert "2026-11-01 00:00:00Z" in almoner("check").out

    def test_check_for_people_ends_with_the_verdict(self, almoner: Almoner, empty: Path) -> None:
        (empty / "benefits.toml").write_text('[benefits.gift]\nconnector = "license_key"\n')
        said = almoner("check")
        assert said.code == 0
        assert said.err == ""
        assert "by hand only" in said.out
        assert "ALMONER_PORT" in said.out
        assert said.out.splitlines()[-1] == "The settings and the benefits file are right."

    def test_production_says_exactly_what_is_missing(
        self, almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(empty / "temporary"))
        monkeypatch.setenv("ALMONER_ENVIRONMENT", "production")
        monkeypatch.setenv("ALMONER_API_TOKENS", "app:token-of-the-app")
        (empty / "benefits.toml").write_text("")
        said = almoner("up")
        assert said.code == 1
        assert [line.split(":")[1].split()[0] for line in said.err.splitlines()] == [
            "ALMONER_WEBHOOK_SECRETS", "ALMONER_OPS_TOKENS", "ALMONER_SIGNING_KEYS",
        ]  # fmt: skip

    def test_production_wants_a_migrated_database_and_says_how(
        self, almoner: Almoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        (tmp_path / "benefits.toml").write_text("")
        for name, value in PRODUCTION.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ALMONER_REDIS_URL", "redis://127.0.0.1:1")
        monkeypatch.setenv("ALMONER_PORT", "0")
        for command in ("check", "work", "receive", "up"):
            said = almoner(command)
            assert (said.code, said.out) == (1, "")
            assert said.err == "almoner: The database is not up to date. Run: almoner migrate\n"
        for _ in range(2):  # again changes nothing
            said = almoner("migrate")
            assert (said.code, said.out, said.err) == (0, "", "The database is up to date.\n")
        assert almoner("check").code == 0

    def test_a_port_that_is_taken_is_told(self, almoner: Almoner, empty: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            for command in ("up", "receive"):
                said = almoner(command, "--port", str(port))
                assert said.code == 1
                assert said.err.startswith(f"almoner: Cannot listen on 127.0.0.1:{port}: ")


class TestBenefitsFile:
    def change(self, shop: Sold, *, propose: bool = True) -> str:
        """Take two benefits out of the file; a running sidecar would propose it at its start."""
        text = (shop.folder / "benefits.toml").read_text()
        (shop.folder / "benefits.toml").write_text("[benefits.link]" + text.split("[benefits.link]")[1])
        held: str = on_service(lambda service: service.pipeline.propose(service.pipeline.catalogue)) if propose else ""
        return held

    def keys_in_force(self) -> set[str]:
        row = on_service(lambda service: service.database.read(catalogues.in_force))
        return {line[len("[benefits.") : -1] for line in row["text"].splitlines() if line.startswith("[benefits.")}

    def test_check_says_beforehand_what_a_changed_file_would_revoke(self, almoner: Almoner, shop: Sold) -> None:
        self.change(shop, propose=False)
        told = almoner("check", "--json").json
        assert (told["would_revoke"], told["live_grants"]) == (4, 6)
        assert "This file would revoke 4 of 6 live grants." in almoner("check").out
        assert self.keys_in_force() == {"key", "files", "link", "better"}

    def test_a_held_file_is_shown_with_the_command_that_accepts_it(self, almoner: Almoner, shop: Sold) -> None:
        because = self.change(shop)
        assert because
        assert almoner("check", "--json").json["held"] == because
        assert f"The file is held: {because}. If that is right: almoner accept-benefits" in almoner("check").out

    @pytest.mark.parametrize(("typed", "code"), [("\n", 1), ("", 1), ("y\n", 0)])
    def test_a_person_is_asked_before_it_is_put_in_force(
        self, almoner: Almoner, shop: Sold, typed: str, code: int
    ) -> None:
        self.change(shop)
        said = almoner("accept-benefits", typed=typed)
        assert said.code == code
        assert "It revokes 4 of 6 live grants. Put it in force?" in said.out
        if code:
            assert "almoner: Nothing was changed." in said.err or "Aborted" in said.err
        assert self.keys_in_force() == ({"key", "files", "link", "better"} if code else {"link", "better"})
        assert bool(almoner("check", "--json").json["held"]) is bool(code)

    def test_without_asking_it_is_put_in_force_and_takes_back(self, almoner: Almoner, shop: Sold) -> None:
        self.change(shop)
        said = almoner("accept-benefits", "--yes")
        assert said.code == 0
        assert "In force." in said.out
        assert "4 of 6 grants are revoked" in said.out
        on_service(lambda service: service.pipeline.drain())
        left = almoner("grants", "list", "--status", "granted", "--json").json["grants"]
        assert {one["benefit"] for one in left} == {"link"}


class TestDeliveries:
    def ids(self, almoner: Almoner, *options: str) -> list[str]:
        said = almoner("deliveries", "list", "--limit", "500", "--json", *options)
        assert said.code == 0
        assert said.err == ""
        return [one["webhook_id"] for one in said.json["deliveries"]]

    def test_the_list_is_newest_first_with_a_ledger_that_balances(self, almoner: Almoner, shop: Sold) -> None:
        told = almoner("deliveries", "list", "--limit", "500", "--json").json
        times = [one["received_at"] for one in told["deliveries"]]
        assert times == sorted(times, reverse=True)
        assert times[0].endswith("Z")
        assert len(times) == shop.deliveries
        assert Counter(one["status"] for one in told["deliveries"]) == Counter(
            {status: count for status, count in told["ledger"].items() if status != "received" and count}
        )
        assert told["ledger"]["received"] == shop.deliveries
        assert told["ledger"]["dead"] == 1
        assert "body" not in told["deliveries"][0]

    def test_the_table_shows_what_is_stuck_and_the_ledger(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("deliveries", "list", "--limit", "1")
        assert said.code == 0
        assert shop.dead in said.out
        assert "dead" in said.out
        assert said.out.splitlines()[-1].startswith(f"received {shop.deliveries} = pending ")
        assert len([line for line in said.out.splitlines() if line.startswith("│")]) == 1

    def test_filters_choose(self, almoner: Almoner, shop: Sold) -> None:
        everything = self.ids(almoner)
        assert self.ids(almoner, "--status", "dead") == [shop.dead]
        assert shop.dead in self.ids(almoner, "--type", "order.paid")
        of_customer = self.ids(almoner, "--customer", shop.bought)
        assert 0 < len(of_customer) < len(everything)
        [[customer_id]] = shop.sql("SELECT id FROM customers WHERE external_id = ?", shop.bought)
        assert self.ids(almoner, "--customer", customer_id) == of_customer
        assert self.ids(almoner, "--customer", shop.bought, "--status", "dead") == []

    def test_times_choose_as_they_are_written_or_as_how_long_ago(self, almoner: Almoner, shop: Sold) -> None:
        everything = self.ids(almoner)
        early = self.ids(almoner, "--until", "2h")
        late = self.ids(almoner, "--since", "2h")
        assert late + early == everything
        assert early
        assert late
        at = datetime.now(UTC) - timedelta(hours=2)
        for written in (at.isoformat(), at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%d %H:%M:%S")):
            assert self.ids(almoner, "--since", written) == late
        assert self.ids(almoner, "--since", "0s") == []

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (["--status", "deda"], 2, "There is no status 'deda'; there are: pending, done, ignored, dead"),
            (["--customer", "nobody"], 3, "There is no customer 'nobody' here, by id or by external id"),
            (["--since", "noon"], 2, "'noon' is not a time; write 2026-11-01T12:00:00Z, or how long ago: 2h"),
            (["--until", "2026-13-01"], 2, "'2026-13-01' is not a time; write"),
            (["--since", "9999999d"], 2, "'9999999d' is further away than time is kept"),
            (["--since", "999999999999d"], 2, "'999999999999d' is not a time; write"),
        ],
    )
    def test_what_cannot_be_chosen_is_told(
        self, almoner: Almoner, empty: Path, options: list[str], code: int, words: str
    ) -> None:
        for command in (["deliveries", "list", "--json"], ["replay"])[: 1 + (code == 3)]:
            said = almoner(*command, *options)
            assert (said.code, said.out) == (code, "")
            assert said.err.startswith(f"almoner: {words}")

    def test_one_is_shown_with_its_body_and_no_secret(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("deliveries", "show", shop.dead, "--json")
        assert said.code == 0
        assert said.json["status"] == "dead"
        assert said.json["reason"]
        assert said.json["body"]["data"] == {
            "id": 3, "client_secret": "[hidden]", "nested": [{"guild_token": "[hidden]", "key": {"a": 1}}],
            "name": "\ud800é",
        }  # fmt: skip
        said.out.encode()  # what no terminal takes is escaped
        assert "é" in said.out

    def test_for_people_it_is_a_table_and_the_body_as_json(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("deliveries", "show", shop.dead)
        assert said.code == 0
        assert f"Delivery {shop.dead}" in said.out
        body = json.loads(said.out[said.out.index("\n{") :])
        assert body["type"] == "order.paid"
        assert "polar_cs_1" not in said.out
        said.out.encode()

    def test_duplicates_and_other_bodies_under_the_same_id_are_shown(self, almoner: Almoner, shop: Sold) -> None:
        told = almoner("deliveries", "show", shop.twice, "--json").json
        assert (told["duplicates"], told["conflicts"]) == (2, 1)
        [digest] = told["conflicting_bodies"]
        assert digest != told["digest"]

    @pytest.mark.parametrize("body", [b"\xff not JSON", b'{"a":' * 2000 + b"1" + b"}" * 2000])
    def test_a_body_that_cannot_be_read_is_shown_as_it_is_but_not_all_of_it(
        self, almoner: Almoner, shop: Sold, body: bytes
    ) -> None:
        shop.sql("UPDATE deliveries SET body = ? WHERE webhook_id = ?", body, shop.dead)
        shown = body[:2000].decode("utf-8", "replace")
        assert almoner("deliveries", "show", shop.dead, "--json").json["body"] == shown
        assert almoner("deliveries", "show", shop.dead).out.endswith(json.dumps(shown, ensure_ascii=False) + "\n")

    def test_one_that_there_is_not_ends_with_3_and_the_command_that_lists_them(
        self, almoner: Almoner, empty: Path
    ) -> None:
        said = almoner("deliveries", "show", "evt[1]", "--json")
        assert (said.code, said.out) == (3, "")
        assert said.err == "almoner: There is no delivery evt[1]; `almoner deliveries list` shows them\n"

    def test_refused_requests_are_listed_with_the_reason(self, almoner: Almoner, shop: Sold) -> None:
        refusal = {
            "at": datetime(2026, 11, 1, tzinfo=UTC), "status_code": 403, "error": "WebhookVerificationError",
            "detail": "No signature matches", "webhook_id": "msg_bad", "size": 17,
        }  # fmt: skip
        on_service(
            lambda service: service.database.write(lambda connection: inbox.refuse(connection, [refusal], keep=9))
        )
        [shown] = almoner("deliveries", "refused", "--json").json["refused"]
        assert (shown["status_code"], shown["webhook_id"]) == (403, "msg_bad")
        said = almoner("deliveries", "refused").out
        assert "msg_bad" in said
        assert "2026-11-01" in said


class TestReplay:
    def test_named_deliveries_are_new_attempts_and_never_refused_as_duplicates(
        self, almoner: Almoner, shop: Sold
    ) -> None:
        for attempt in (1, 2):
            said = almoner("replay", shop.twice, shop.dead, "--json")
            assert said.code == 0
            assert said.json == {
                "deliveries": 2, "statuses": {"done": 1, "dead": 1}, "grants_given": 0, "grants_taken": 0,
            }  # fmt: skip
            for one in (shop.twice, shop.dead):
                assert almoner("deliveries", "show", one, "--json").json["replays"] == attempt

    def test_everything_again_changes_nothing_where_all_is_right(self, almoner: Almoner, shop: Sold) -> None:
        assert shop.deliveries > PROCESS_BATCH  # several batches
        before = shop.sql("SELECT id, status, wanted, generation FROM grants ORDER BY id")
        said = almoner("replay", "--all", "--json")
        assert said.code == 0
        assert said.json["deliveries"] == sum(said.json["statuses"].values()) == shop.deliveries
        assert (said.json["grants_given"], said.json["grants_taken"]) == (0, 0)
        assert shop.sql("SELECT id, status, wanted, generation FROM grants ORDER BY id") == before
        ledger = almoner("deliveries", "list", "--json").json["ledger"]
        assert ledger["received"] == shop.deliveries
        assert ledger["pending"] == 0

    def test_what_was_lost_is_given_again_and_the_count_says_so(self, almoner: Almoner, shop: Sold) -> None:
        shop.sql("DELETE FROM grants")
        shop.sql("DELETE FROM customers")
        said = almoner("replay", "--since", "4h", "--until", "2h")
        assert said.code == 0
        assert said.err.strip() == ""
        assert said.out.startswith("Replayed ")
        assert said.out.endswith("Grants to give: 3, to take back: 0.\n")
        on_service(lambda service: service.pipeline.drain())
        told = almoner("grants", "list", "--customer", shop.bought, "--json").json["grants"]
        assert {one["benefit"] for one in told} == {"key", "files", "link"}

    def test_deliveries_are_chosen_by_options(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("replay", "--status", "dead", "--json")
        assert said.json["statuses"] == {"dead": 1}
        assert almoner("replay", "--customer", shop.bought, "--type", "order.paid", "--json").json["deliveries"] == 1

    def test_nothing_named_ends_with_2(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("replay")
        assert (said.code, said.out) == (2, "")
        assert said.err == "almoner: Name deliveries, choose them by options, or say --all\n"
        assert shop.sql("SELECT sum(replays) FROM deliveries") == [(0,)]

    def test_an_id_that_there_is_not_is_named_and_nothing_is_replayed(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("replay", "typo-1", shop.dead, "typo-2", "--json")
        assert (said.code, said.out) == (3, "")
        assert said.err.startswith("almoner: There is no delivery typo-1, typo-2; nothing was replayed.")
        assert shop.sql("SELECT sum(replays) FROM deliveries") == [(0,)]

    @pytest.mark.parametrize("options", [["--all"], ["--status", "pending"]])
    def test_no_match_ends_with_3(self, almoner: Almoner, empty: Path, options: list[str]) -> None:
        said = almoner("replay", *options)
        assert (said.code, said.out) == (3, "")
        assert said.err == "almoner: No delivery matches; `almoner deliveries list` shows them\n"


async def test_a_replay_tells_its_progress_and_leaves_out_what_comes_meanwhile(on_sqlite: Running) -> None:
    await on_sqlite.receive([event for seed in range(4) for event in on_sqlite.story("purchase", seed)])
    total = (await on_sqlite.service.database.read(inbox.balance))["received"]
    assert total > PROCESS_BATCH
    newcomers = iter(on_sqlite.story("subscription", seed=9))
    finished: list[int] = []

    def progress(count: int) -> None:
        finished.append(count)
        arriving.append(asyncio.ensure_future(on_sqlite.post(next(newcomers))))

    arriving: list[asyncio.Future[httpx.Response]] = []
    done = await replay(on_sqlite.service.pipeline, Filter(), progress=progress)
    await asyncio.gather(*arriving)
    assert finished == [PROCESS_BATCH, total - PROCESS_BATCH]
    assert done.deliveries == total
    rows = await on_sqlite.service.database.read(lambda connection: inbox.listed(connection, Filter(), limit=500))
    assert Counter(row["replays"] for row in rows) == {1: total, 0: 2}
    await on_sqlite.service.pipeline.drain()


async def test_a_replay_without_anybody_who_watches(on_sqlite: Running) -> None:
    await on_sqlite.live("purchase")
    done = await replay(on_sqlite.service.pipeline, Filter(status="done"))
    assert set(done.statuses) == {"done"}


class TestGrants:
    def of(self, almoner: Almoner, customer: str) -> dict[str, dict[str, Any]]:
        rows = almoner("grants", "list", "--customer", customer, "--json").json["grants"]
        return {row["benefit"]: row for row in rows}

    def test_what_somebody_must_look_at_is_listed_first(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("grants", "list", "--json")
        assert said.code == 0
        first, *rest = said.json["grants"]
        assert (first["status"], first["benefit"], first["who"]) == ("action_required", "files", "merchant")
        assert "manual.txt" in first["reason"]
        assert Counter(one["status"] for one in rest) == {"granted": 5, "revoked": 3}

    def test_the_table_says_who_must_act_and_why(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("grants", "list", "--status", "action_required")
        assert said.code == 0
        assert "action_required" in said.out
        assert "merchant" in said.out
        assert "manual.txt" in said.out.replace("│\n", "")

    def test_filters_choose(self, almoner: Almoner, shop: Sold) -> None:
        assert set(self.of(almoner, shop.bought)) == {"key", "files", "link"}
        [[customer_id]] = shop.sql("SELECT id FROM customers WHERE external_id = ?", shop.bought)
        assert self.of(almoner, customer_id) == self.of(almoner, shop.bought)
        keys = almoner("grants", "list", "--benefit", "key", "--json").json["grants"]
        assert Counter(one["status"] for one in keys) == {"granted": 2, "revoked": 1}
        assert len(almoner("grants", "list", "--limit", "2", "--json").json["grants"]) == 2

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["list", "--status", "grantd"], 2, "There is no status 'grantd'; there are: granting, pending, granted, "),
            (["list", "--customer", "no[body]"], 3, "There is no customer 'no[body]' here, by id or by external id"),
            (["show", "g1"], 3, "There is no grant g1; `almoner grants list` shows them"),
            (["retry", "g1", "g2"], 3, "There is no such grant; `almoner grants list` shows them"),
            (["give", "nobody", "key", "--reason", "x"], 3, "There is no customer 'nobody' here"),
            (["give", "nobody", "kye", "--reason", "x"], 3, "There is no benefit 'kye'; there are: key, files, "),
            (["withdraw", "nobody", "key"], 3, "There is no customer 'nobody' here"),
        ],
    )  # fmt: skip
    def test_what_there_is_not_is_told_with_what_there_is(
        self, almoner: Almoner, shop: Sold, arguments: list[str], code: int, words: str
    ) -> None:
        said = almoner("grants", *arguments)
        assert (said.code, said.out) == (code, "")
        assert said.err.startswith(f"almoner: {words}")

    def test_one_is_shown_with_why_and_what_was_given(self, almoner: Almoner, shop: Sold) -> None:
        grant = self.of(almoner, shop.bought)["key"]
        told = almoner("grants", "show", grant["id"], "--json").json
        assert told == grant
        assert told["because"][0]["source"] == "order"
        said = almoner("grants", "show", grant["id"])
        assert said.code == 0
        assert f"Grant {grant['id']}" in said.out
        assert "****-" in said.out  # the key itself is nobody's here

    def test_retry_settles_what_was_stuck_now_that_its_reason_is_gone(self, almoner: Almoner, shop: Sold) -> None:
        stuck = self.of(almoner, shop.stuck)["files"]
        said = almoner("grants", "retry", stuck["id"])
        assert said.code == 0
        assert self.of(almoner, shop.stuck)["files"]["status"] == "action_required"
        (shop.folder / "manual.txt").rename(shop.folder / "files" / "manual.txt")
        said = almoner("grants", "retry", stuck["id"], "g-unknown")
        assert said.out == "1 settled again; `almoner grants show` tells what came of it.\n"
        told = self.of(almoner, shop.stuck)["files"]
        assert (told["status"], told["reason"], told["who"]) == ("granted", None, None)

    def test_what_is_given_by_hand_is_granted_at_once_and_shown_as_such(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("grants", "give", shop.canceled, "better", "--reason", "a [bold] favour", "--until", "30d")
        assert said.code == 0
        assert said.out == (
            f"better is given to {shop.canceled}. Take it back with: almoner grants withdraw {shop.canceled} better\n"
        )
        grant = self.of(almoner, shop.canceled)["better"]
        assert (grant["status"], grant["standing"]) == ("granted", "manual")
        ends = datetime.fromisoformat(grant["valid_until"])
        assert timedelta(days=29) < ends - datetime.now(UTC) <= timedelta(days=30)
        [because] = grant["because"]
        assert because["note"].startswith("a [bold] favour (by ")
        assert "a [bold] favour" in almoner("grants", "show", grant["id"]).out

    def test_an_end_may_be_a_date_or_none(self, almoner: Almoner, shop: Sold) -> None:
        for benefit, options in (("better", ["--until", "2999-01-31"]), ("key", [])):
            assert almoner("grants", "give", shop.canceled, benefit, "--reason", "x", *options).code == 0
        given = self.of(almoner, shop.canceled)
        assert given["better"]["valid_until"].startswith("2999-01-31T00:00:00")
        by_hand = almoner("grants", "list", "--customer", shop.canceled, "--benefit", "key", "--json").json["grants"]
        assert [one["valid_until"] for one in by_hand if one["standing"] == "manual"] == [None]

    @pytest.mark.parametrize(
        ("until", "words"),
        [
            ("2020-01-31", "2020-01-31 is past: nothing would be given"),
            ("0s", "0s is past: nothing would be given"),
            ("soon", "'soon' is not a time; write 2026-11-01T12:00:00Z, or how long from now: 2h"),
            ("9999999d", "'9999999d' is further away than time is kept"),
        ],
    )
    def test_an_end_that_cannot_be_is_refused_and_nothing_is_given(
        self, almoner: Almoner, shop: Sold, until: str, words: str
    ) -> None:
        said = almoner("grants", "give", shop.canceled, "better", "--reason", "x", "--until", until)
        assert (said.code, said.out, said.err) == (2, "", f"almoner: {words}\n")
        assert shop.sql("SELECT count(*) FROM manual_grants") == [(0,)]

    def test_withdrawing_takes_back_what_was_given_by_hand_and_leaves_what_was_bought(
        self, almoner: Almoner, shop: Sold
    ) -> None:
        almoner("grants", "give", shop.bought, "better", "--reason", "x")
        said = almoner("grants", "withdraw", shop.bought, "better")
        assert (said.code, said.out) == (0, f"Withdrawn. If {shop.bought} bought better, they keep it.\n")
        statuses = {benefit: grant["status"] for benefit, grant in self.of(almoner, shop.bought).items()}
        assert statuses == {"key": "granted", "files": "granted", "link": "granted", "better": "revoked"}
        for benefit in ("better", "key"):
            said = almoner("grants", "withdraw", shop.bought, benefit)
            assert (said.code, said.out) == (3, "")
            assert said.err == f"almoner: {benefit} was not given to {shop.bought} by hand\n"
        assert self.of(almoner, shop.bought)["key"]["status"] == "granted"

    def test_a_name_with_brackets_is_a_name(self, almoner: Almoner, shop: Sold) -> None:
        shop.sql("UPDATE customers SET external_id = 'a[/b][c]' WHERE external_id = ?", shop.bought)
        said = almoner("grants", "give", "a[/b][c]", "better", "--reason", "x")
        assert said.code == 0
        assert "is given to a[/b][c]." in said.out
        shop.sql("UPDATE customers SET external_id = 'a[/b][c]' WHERE external_id = ?", shop.bought)
        assert "If a[/b][c] bought better" in almoner("grants", "withdraw", "a[/b][c]", "better").out


@dataclass
class Receiver:
    """Stands where a sidecar would listen, verifies, and remembers what came."""

    url: str = ""
    secret: str = "whsec_c2VjcmV0LW51bWJlci1vbmU="
    answer: tuple[int, bytes] | None = None
    events: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def receiver(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one piece, or each waits 40 ms for the other side's acknowledgement

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                proven = verify(headers, body, keys_of([told.secret]), datetime.now(UTC), timedelta(seconds=60))
            except NotVerified as error:
                status, answer = 403, json.dumps({"error": "E", "detail": str(error)}).encode()
            else:
                known = proven.webhook_id in [one[0] for one in told.events]
                told.events.append((proven.webhook_id, proven.scheme, body))
                status, answer = 202, json.dumps({"status": "duplicate" if known else "accepted"}).encode()
            status, answer = told.answer or (status, answer)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("ALMONER_PORT", str(server.server_port))
    monkeypatch.setenv("ALMONER_WEBHOOK_SECRETS", told.secret)
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


class TestSimulate:
    def test_a_story_is_signed_as_polar_would_and_sent_in_order(self, almoner: Almoner, receiver: Receiver) -> None:
        said = almoner("simulate", "purchase", "--seed", "7")
        assert said.code == 0
        assert said.err.strip() == ""
        count = len(receiver.events)
        first, organization, second = said.out.splitlines()
        assert organization == f"The organization is {simulating.DEMO_ORGANIZATION}."
        assert first == f"Sent {count} events of 1 customer: {count} accepted."
        customer = second.removeprefix("See what became of it: almoner grants list --customer ")
        assert customer.startswith("usr_")
        assert {scheme for _, scheme, _ in receiver.events} == {"standard"}
        types = [json.loads(body)["type"] for _, _, body in receiver.events]
        assert types[0] == "customer.created"
        assert types.index("order.paid") < types.index("benefit_grant.created")

    def test_many_customers_shuffled_and_twice_are_the_same_events(self, almoner: Almoner, receiver: Receiver) -> None:
        settings = load_settings()
        world = simulating.world_of(load_catalogue(settings), settings)
        stories = [play("purchase", world, seed=seed, now=datetime.now(UTC)) for seed in range(7, 17)]
        ordered = [event.webhook_id for story in stories for event in story]
        options = ["--count", "10", "--seed", "7", "--json", "--shuffle", "--duplicate", "0.2"]
        told = almoner("simulate", "purchase", *options).json
        sent = [one[0] for one in receiver.events]
        assert told["sent"] == len(sent) == sum(told["answers"].values())
        assert told["answers"]["duplicate"] == len(sent) - len(ordered) > 0
        assert told["customers"] == [story[0].external_id for story in stories]
        assert sent[:20] != ordered[:20]
        assert set(sent) == set(ordered)
        assert len(ordered) > 100  # from there on several are sent at once

    def test_the_legacy_scheme_is_chosen_or_follows_from_the_secret(
        self, almoner: Almoner, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        almoner("simulate", "purchase", "--scheme", "legacy", "--url", receiver.url)
        assert {scheme for _, scheme, _ in receiver.events} == {"legacy"}
        receiver.secret, receiver.events = "of-an-old-endpoint", []
        monkeypatch.setenv("ALMONER_WEBHOOK_SECRETS", receiver.secret)
        assert almoner("simulate", "purchase").code == 0
        assert {scheme for _, scheme, _ in receiver.events} == {"legacy"}
        said = almoner("simulate", "purchase", "--scheme", "standard")
        assert said.code == 1
        assert "a standard signature needs a secret of the form whsec_<base64>; use the legacy scheme" in said.err

    def test_what_the_sidecar_refuses_ends_with_1_and_its_reason(
        self, almoner: Almoner, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALMONER_WEBHOOK_SECRETS", "another-secret")
        said = almoner("simulate", "purchase", "--json")
        assert said.code == 1
        assert said.json["answers"] == {"403": said.json["sent"]}
        assert said.err == (
            f"almoner: {receiver.url} answered 403: No signature matches; "
            "compare the secret in Polar with ALMONER_WEBHOOK_SECRETS\n"
        )

    @pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"error": 1}'])
    def test_something_else_that_listens_there_is_suspected(
        self, almoner: Almoner, receiver: Receiver, answer: bytes
    ) -> None:
        receiver.answer = (404, answer)
        said = almoner("simulate", "purchase")
        assert said.code == 1
        assert said.err.strip().endswith(
            "answered 404: not as Almoner answers; is it something else that listens there?"
        )

    def test_where_nothing_answers_the_command_that_starts_it_is_told(self, almoner: Almoner, empty: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}", "localhost"):
            said = almoner("simulate", "purchase", "--url", url)
            assert (said.code, said.out) == (1, "")
            assert f"almoner: Nothing answers at {url} (" in said.err
            assert "Start the sidecar first: almoner up; on another port name it: --url" in said.err

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["buy"], 2, "There is no scenario 'buy'. purchase: a one-time purchase; subscription: "),
            (["purchase", "--scheme", "new"], 2, "There is no scheme 'new'; there are standard and legacy"),
        ],
    )
    def test_what_there_is_not_is_told_with_what_there_is(
        self, almoner: Almoner, empty: Path, arguments: list[str], code: int, words: str
    ) -> None:
        said = almoner("simulate", *arguments)
        assert (said.code, said.out) == (code, "")
        assert said.err.startswith(f"almoner: {words}")

    def test_without_a_secret_it_is_told_which_setting_signs(
        self, almoner: Almoner, empty: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALMONER_WEBHOOK_SECRETS", ",")
        said = almoner("simulate", "purchase")
        assert (said.code, said.err) == (1, "almoner: ALMONER_WEBHOOK_SECRETS is missing: it signs what is sent\n")

    def test_a_merchant_without_products_can_simulate_all_the_same(self, almoner: Almoner, receiver: Receiver) -> None:
        Path("benefits.toml").write_text('[benefits.gift]\nconnector = "license_key"\n')
        assert almoner("simulate", "subscription").code == 0

    def test_the_merchants_own_organization_and_products_are_sold(
        self, almoner: Almoner, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue
    ) -> None:
        organization = "6513270e-269e-4d37-b2a7-4de452e6b438"
        monkeypatch.setenv("ALMONER_POLAR_ORGANIZATION_ID", organization)
        world = simulating.world_of(catalogue, load_settings())
        assert world.organization_id == organization
        [key, better] = (catalogue.benefits[name].by_products for name in ("key", "better"))
        assert set(world.products) == key | better
        assert set(world.benefits) == catalogue.benefits["link"].by_benefits


class TestAnnouncement:
    def said(self, capsys: pytest.CaptureFixture[str], address: str, made: Sequence[str] = (), **more: str) -> str:
        settings = load_settings(more)
        run._announcement(settings, made)(address)
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    def test_only_what_was_made_is_shown(self, capsys: pytest.CaptureFixture[str], empty: Path) -> None:
        own = {"ALMONER_WEBHOOK_SECRETS": "my-own-secret", "ALMONER_API_TOKENS": "app:my-own-token"}
        said = self.said(capsys, "http://127.0.0.1:1", ["ops_tokens"], **own)
        token = load_settings(own).ops_tokens[0]
        assert f"token, operator {token.value.get_secret_value()}" in said
        assert "my-own" not in said
        assert "Made for you, kept in .almoner/development.json, shown only now:" in said

    def test_what_was_made_is_shown_whole(self, capsys: pytest.CaptureFixture[str], empty: Path) -> None:
        said = self.said(capsys, "http://127.0.0.1:1", ["webhook_secrets", "api_tokens", "ops_tokens"])
        settings = load_settings()
        assert f"webhook secret  {settings.webhook_secrets[0].get_secret_value()}\n" in said
        assert f"token, app      {settings.api_tokens[0].value.get_secret_value()}\n" in said
        assert f"token, operator {settings.ops_tokens[0].value.get_secret_value()}\n" in said

    def test_later_it_is_said_where_it_is_kept(self, capsys: pytest.CaptureFixture[str], empty: Path) -> None:
        said = self.said(capsys, "http://127.0.0.1:1")
        assert "What was made for you is kept in .almoner/development.json." in said
        assert "whsec_" not in said

    def test_the_example_stands_in_for_a_missing_benefits_file(
        self, capsys: pytest.CaptureFixture[str], empty: Path
    ) -> None:
        words = "There is no benefits.toml: the example config/benefits.example.toml is in force."
        assert words in self.said(capsys, "http://127.0.0.1:1")
        (empty / "benefits.toml").write_text("")
        assert words not in self.said(capsys, "http://127.0.0.1:1")

    def test_production_says_the_address_and_no_more(
        self, capsys: pytest.CaptureFixture[str], empty: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(empty / "temporary"))
        (empty / "benefits.toml").write_text("")
        said = self.said(capsys, "http://127.0.0.1:1", ["ops_tokens"], **PRODUCTION)
        assert said == "Almoner listens on http://127.0.0.1:1 (production).\n"

    def test_a_worker_says_that_it_works(self, capsys: pytest.CaptureFixture[str], empty: Path) -> None:
        assert self.said(capsys, "", ["ops_tokens"]) == "Almoner works. Stop it with Ctrl-C.\n"

    def test_what_the_first_start_makes_is_what_is_not_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ALMONER_API_TOKENS", "app:my-own-token")
        assert run._about_to_be_made() == {"webhook_secrets", "ops_tokens"}
        load_settings()
        assert run._about_to_be_made() == set()


# Processes: slow, and therefore few.


class Process:
    """A command that runs beside the test."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from worker.cli import main; main()", *arguments],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        self.lines += iter(self._process.stdout.readline, "")

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, words: str) -> str:
        """Return the line with these words, as soon as it is there."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self.lines:
                if words in line:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"{words!r} was not said, but:\n{self.said}")

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(15)
        self._reader.join()
        assert "Traceback" not in self.said
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()


@contextmanager
def processes(folder: Path, *commands: Sequence[str]) -> Iterator[list[Process]]:
    started = [Process(folder, *command) for command in commands]
    try:
        yield started
    finally:
        for one in started:
            one.close()


@pytest.mark.slow
def test_up_shows_what_it_made_once_serves_and_ends_when_it_is_asked(
    almoner: Almoner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with processes(tmp_path, ["up", "--port", "0"]) as [first]:
        address = first.wait_for("listens on").split("listens on ")[1].split()[0]
        assert httpx.get(f"{address}/healthz").status_code == 200
        first.wait_for("Try it from another terminal")
        sent = almoner("simulate", "purchase", "--url", address, "--json").json
        assert sum(sent["answers"].values()) == sent["sent"]
        assert first.stop() == 0
        assert address.startswith("http://127.0.0.1:")
    settings = load_settings()
    secrets = [settings.webhook_secrets[0].get_secret_value()]
    secrets += [one.value.get_secret_value() for one in (*settings.api_tokens, *settings.ops_tokens)]
    assert [one for one in secrets if first.said.count(one) != 1] == []
    with processes(tmp_path, ["up", "--port", "0"]) as [second]:
        second.wait_for("listens on")
        second.wait_for("Try it from another terminal")
        assert second.stop() == 0
    assert [one for one in secrets if one in second.said] == []
    assert load_settings() == settings


@pytest.mark.slow
def test_receive_and_work_share_the_job_and_end_when_they_are_asked(
    almoner: Almoner, shop: Sold, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop.folder / "manual.txt").rename(shop.folder / "files" / "manual.txt")
    load_settings()  # made before both start
    with processes(shop.folder, ["receive", "--port", "0"], ["work"]) as [receiving, working]:
        address = receiving.wait_for("listens on").split("listens on ")[1].split()[0]
        working.wait_for("works")
        [customer] = almoner("simulate", "purchase", "--url", address, "--json").json["customers"]
        deadline = time.monotonic() + 15
        statuses: Counter[str] = Counter()
        while statuses != {"granted": 3} and time.monotonic() < deadline:
            said = almoner("grants", "list", "--customer", customer, "--json")
            statuses = Counter(one["status"] for one in said.json["grants"]) if said.code == 0 else Counter()
            time.sleep(0.05)  # the processor is theirs
        assert statuses == {"granted": 3}
        assert working.stop() == 0
        assert receiving.stop() == 0


@pytest.mark.slow
def test_the_demo_shows_a_purchase_granted_and_taken_back(almoner: Almoner, tmp_path: Path) -> None:
    said = almoner("demo")
    assert said.code == 0
    assert "license key ACME-" in said.out
    assert "granted and proven" in said.out
    assert "After " in said.out
    assert "They accept, the sweep sees it: GitHub says ['ada-demo']" in said.out
    assert "GitHub itself says: collaborators and invitations []; Discord: roles []" in said.out
    assert "Everything taken back and proven" in said.out
    assert "The download link from before: 403" in said.out
    ledger = said.out[said.out.index("The ledger balances: received ") :].split(";")[0]
    numbers = [int(word) for word in ledger.split() if word.isdigit()]
    assert numbers[0] == sum(numbers[1:])
    assert numbers[0] > 0
    assert "almoner simulate purchase" in said.out


def test_a_demo_that_does_not_start_says_why(almoner: Almoner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'almoner: no queue server' >&2\nexit 1\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    said = almoner("demo")
    assert said.code == 1
    assert said.err.splitlines()[:2] == ["almoner: The fake github did not start:", "almoner: almoner: no queue server"]
    monkeypatch.setattr(demonstrating, "_platforms", lambda _: None)  # an installed package has no tests
    assert almoner("demo").err.splitlines()[:2] == [
        "almoner: The sidecar did not start:", "almoner: almoner: no queue server",
    ]  # fmt: skip


def test_a_demo_in_which_nothing_comes_true_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(
        [
            httpx.Response(404),
            httpx.Response(200, json={"entitlements": []}),
            httpx.Response(
                200,
                json={
                    "entitlements": [
                        {"connector": "license_key", "status": "granting", "benefit": "key", "problem": "down"}
                    ]
                },
            ),
        ]
    )
    hours = iter(range(100))

    class Hurried:
        """A clock on which every look takes so long that the third is the last."""

        monotonic = staticmethod(lambda: next(hours) * 5.0)
        sleep = staticmethod(lambda _: None)

    monkeypatch.setattr(demonstrating, "time", Hurried)
    transport = httpx.MockTransport(lambda _: next(answers))
    with (
        httpx.Client(base_url="http://almoner", transport=transport) as client,
        pytest.raises(output.Failure, match=r"Not everything was granted within 20 s.*key is granting: down"),
    ):
        demonstrating._await(client, "customer", lambda _: True, "granted")


def test_json_has_times_in_utc_and_whatever_else_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 11, 1, 13, tzinfo=timezone(timedelta(hours=1)))
    output.print_json({"at": at, "body": b"\xc3\xa9\xff", "path": Path("a/b")})
    assert json.loads(capsys.readouterr().out) == {"at": "2026-11-01T12:00:00Z", "body": "é\ufffd", "path": "a/b"}


def test_addresses_are_shown_without_what_opens_them() -> None:
    shown = {
        "redis://h:1": "redis://h:1", "redis://:p@h:1": "redis://:[hidden]@h:1", "redis://u:p@q@h": "redis://u:[hidden]@h",
        "redis://u@h": "redis://u@h", "": "",
    }  # fmt: skip
    assert {url: output.without_password(url) for url in shown} == shown
