"""GET /downloads/{token}: who gets a file at the click, in which pieces, and what is counted."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa
import structlog

from config.catalogue import Catalogue, parse_catalogue
from connectors import TERMS
from connectors.file_download import content_disposition
from tests.conftest import PRODUCT, Clock, Recorded, Running, assert_sound, copy_of_template, open_running, settings_for
from tests.connectors.ports import SECRET_KEY, Storage, open_storage, set_credentials
from worker.app import StoredPasses
from worker.http.api import make_api
from worker.http.present import DownloadTokens
from worker.store.models import GrantRow

# One service for many requests: making one takes longer than all that is asked of it here.
pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = bytes(range(256)) * 4
SIZE = len(BODY)
LARGE = bytes(range(251)) * 4000  # about four pieces
NAMES = ("app.bin", "empty", "large.bin", "sub/Bücher & 山田 'x\".pdf")

TEXT = f"""
[benefits.files]
connector = "file_download"
for = {{ products = ["{PRODUCT}"] }}
PLACE
files = ['app.bin', 'empty', 'large.bin', '''sub/Bücher & 山田 'x".pdf''']

[benefits.note]
connector = "custom_link"
for = {{ products = ["{PRODUCT}"] }}
note = "Welcome"
"""


@dataclass
class Shop:
    """The service with one customer who has bought files. `reset` makes it as it was, for the next test."""

    running: Running
    folder: Path
    grant: str
    row: dict[str, Any]

    @classmethod
    async def sell(cls, running: Running, folder: Path) -> "Shop":
        customer = await running.live("purchase")
        (grant,) = (await running.answer(customer, "files"))["grants"]
        shop = cls(running, folder, grant["id"], {})
        shop.row = await shop.read("SELECT * FROM grants WHERE id = :id")
        return shop

    async def reset(self) -> None:
        self.running.clock.at = Clock.at
        await self.set(", ".join(f"{column} = :{column}" for column in self.row if column != "id"), **self.row)
        await self.running.service.database.write(
            lambda connection: connection.execute(sa.text("DELETE FROM downloads"))
        )
        await self.passes.open(self.row["held"])

    @property
    def passes(self) -> StoredPasses:
        return StoredPasses(self.running.service.database)

    def path(self, name: str = "app.bin", grant: str = "") -> str:
        token = self.running.context.tokens.make(grant or self.grant, name, self.running.clock.at)
        return f"/downloads/{token}"

    async def get(self, name: str = "app.bin", *, method: str = "GET", **headers: str) -> httpx.Response:
        named = {header.replace("_", "-"): value for header, value in headers.items()}
        return await self.running.client.request(method, self.path(name), headers=named)

    async def counts(self) -> dict[str, int]:
        return await counts(self.running)

    async def read(self, statement: str) -> dict[str, Any]:
        return await self.running.service.database.read(
            lambda connection: connection.execute(sa.text(statement), {"id": self.grant}).one()._asdict()
        )

    async def set(self, changes: str, **values: Any) -> None:
        """Change the grant behind the service's back."""
        await self.running.service.database.write(
            lambda connection: connection.execute(
                sa.text(f"UPDATE grants SET {changes} WHERE id = :id"), {**values, "id": self.grant}
            )
        )


async def counts(running: Running) -> dict[str, int]:
    rows = await running.service.database.read(
        lambda connection: connection.execute(sa.text("SELECT name, count FROM downloads")).all()
    )
    return {row[0]: row[1] for row in rows}


async def links(running: Running, customer: str) -> dict[str, str]:
    """The paths of the download links that a customer is shown, by file."""
    answer = await running.answer(customer, "files")
    return {one["name"]: urlsplit(one["url"]).path for one in answer["gives"]["files"]}


@asynccontextmanager
async def opened(url: str, folder: Path, catalogue: Catalogue, **more: Any) -> AsyncIterator[Running]:
    trigger, clock = Recorded(), Clock()
    async with AsyncExitStack() as stack:
        settings = settings_for(url, folder, call_timeout="60s", **more)
        service, context, client = await open_running(stack, settings, catalogue, clock, trigger)
        running = Running(service, context, trigger, clock, client)
        yield running
        await assert_sound(service)


def sells(place: str) -> Catalogue:
    return parse_catalogue(TEXT.replace("PLACE", place), TERMS, timedelta())


def in_bucket() -> Catalogue:
    return sells('bucket = "acme-files"\nkey_prefix = "r/"')


def put_files(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, body in zip(NAMES, (BODY, b"", LARGE, b"%PDF"), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _local(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> AsyncIterator[Shop]:
    folder = tmp_path_factory.mktemp("local")
    put_files(folder / "for-sale")
    url = copy_of_template(sqlite_template, folder)
    async with opened(url, folder, sells(f"folder = '{folder / 'for-sale'}'")) as running:
        yield await Shop.sell(running, folder / "for-sale")


@pytest_asyncio.fixture(loop_scope="module")
async def shop(_local: Shop) -> Shop:
    put_files(_local.folder)
    await _local.reset()
    return _local


# On both databases.


@pytest.mark.asyncio(loop_scope="function")
async def test_a_bought_file_is_fetched_by_the_link_that_is_shown_and_no_more_once_it_is_refunded(
    running: Running,
) -> None:
    events = running.story("refund")
    refund = next(at for at, event in enumerate(events) if event.type == "refund.created")
    await running.receive(events[:refund])
    shown = await links(running, events[0].external_id)
    assert list(shown) == ["manual.txt", "sub/app.bin"]
    for path, body in zip(shown.values(), (b"the manual", bytes(range(256)) * 4), strict=True):
        fetched = await running.client.get(path)
        assert (fetched.status_code, fetched.content) == (200, body)
    await running.client.get(shown["manual.txt"])
    assert await counts(running) == {"manual.txt": 2, "sub/app.bin": 1}

    await running.receive(events[refund:])
    for path in shown.values():
        refused = await running.client.get(path)
        assert refused.status_code == 403
        assert refused.json() == {
            "error": "NotPermitted",
            "detail": "You do not have this file any more: what gave it has ended",
        }
    assert await counts(running) == {"manual.txt": 2, "sub/app.bin": 1}


# Whole files.


async def test_a_file_comes_whole_under_its_name_and_is_kept_by_nobody_else(shop: Shop) -> None:
    fetched = await shop.get()
    assert (fetched.status_code, fetched.content) == (200, BODY)
    assert fetched.headers["content-length"] == str(SIZE)
    assert fetched.headers["content-type"] == "application/octet-stream"
    assert fetched.headers["content-disposition"] == "attachment; filename*=UTF-8''app.bin"
    assert fetched.headers["accept-ranges"] == "bytes"
    assert fetched.headers["cache-control"] == "private, no-store"
    assert fetched.headers["referrer-policy"] == "no-referrer"
    assert fetched.headers["x-content-type-options"] == "nosniff"
    assert "content-range" not in fetched.headers


async def test_no_bearer_token_is_needed_for_the_link_is_the_permission(shop: Shop) -> None:
    assert "authorization" not in shop.running.client.headers
    assert (await shop.get()).status_code == 200


async def test_a_large_file_comes_in_pieces_and_whole(shop: Shop) -> None:
    fetched = await shop.get("large.bin")
    assert fetched.content == LARGE
    ranged = await shop.get("large.bin", range=f"bytes=5-{len(LARGE) - 3}")
    assert ranged.content == LARGE[5:-2]


async def test_an_empty_file_is_a_file(shop: Shop) -> None:
    fetched = await shop.get("empty")
    assert (fetched.status_code, fetched.content, fetched.headers["content-length"]) == (200, b"", "0")


async def test_a_name_beyond_ascii_is_saved_as_it_is(shop: Shop) -> None:
    fetched = await shop.get(NAMES[-1])
    assert fetched.content == b"%PDF"
    kind, _, name = fetched.headers["content-disposition"].partition("; filename*=UTF-8''")
    assert kind == "attachment"
    assert unquote(name) == "Bücher & 山田 'x\".pdf"
    assert "'" not in name


async def test_head_says_what_get_would_without_the_file_and_counts_nothing(shop: Shop) -> None:
    asked = await shop.get(method="HEAD")
    fetched = await shop.get()
    assert (asked.status_code, asked.content) == (200, b"")
    assert {name: asked.headers[name] for name in asked.headers} == dict(fetched.headers)
    assert await shop.counts() == {"app.bin": 1}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_file_is_only_read(shop: Shop, method: str) -> None:
    assert (await shop.get(method=method)).status_code == 405
    assert await shop.counts() == {}


# Parts of files.


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=100-199", 100, 199),
        ("bytes=100-100000", 100, SIZE - 1),
        ("bytes=100-" + "9" * 40, 100, SIZE - 1),
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=1000-", 1000, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        ("bytes=-24", SIZE - 24, SIZE - 1),
        ("bytes=-100000", 0, SIZE - 1),
        (" bytes=5-6 ", 5, 6),
        ("Bytes=5-6", 5, 6),
    ],
)
async def test_a_range_gives_that_part(shop: Shop, asked: str, first: int, last: int) -> None:
    fetched = await shop.get(range=asked)
    assert (fetched.status_code, fetched.content) == (206, BODY[first : last + 1])
    assert fetched.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert fetched.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize(
    "asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=99999-", "bytes=-0", "bytes=9-5"]
)
async def test_a_range_that_is_not_in_the_file_is_refused_with_its_size(shop: Shop, asked: str) -> None:
    refused = await shop.get(range=asked)
    assert refused.status_code == 416
    assert refused.headers["content-range"] == f"bytes */{SIZE}"
    assert refused.json() == {"error": "RangeNotSatisfiable", "detail": f"There is no such range in {SIZE} bytes"}
    assert await shop.counts() == {}


async def test_an_empty_file_has_no_ranges(shop: Shop) -> None:
    refused = await shop.get("empty", range="bytes=0-")
    assert (refused.status_code, refused.headers["content-range"]) == (416, "bytes */0")


# https://www.rfc-editor.org/rfc/rfc9110#section-14.2: an unknown unit must be ignored, and anything else may be.
@pytest.mark.parametrize(
    "asked",
    ["items=0-5", "bytes=0-1,5-6", "bytes=0-1, -1", "bytes=-", "bytes=", "bytes=a-b", "0-5", "bytes=1-" + "9" * 5000],
)
async def test_a_range_that_we_do_not_speak_is_ignored(shop: Shop, asked: str) -> None:
    fetched = await shop.get(range=asked)
    assert (fetched.status_code, fetched.content) == (200, BODY)
    assert "content-range" not in fetched.headers
    assert await shop.counts() == {"app.bin": 1}


# https://www.rfc-editor.org/rfc/rfc9110#section-14.2: a range is for GET only.
async def test_head_ignores_a_range(shop: Shop) -> None:
    asked = await shop.get(method="HEAD", range="bytes=0-9")
    assert (asked.status_code, asked.headers["content-length"]) == (200, str(SIZE))


async def test_a_download_is_resumed_while_the_file_is_the_same(shop: Shop) -> None:
    tag = (await shop.get(range="bytes=0-9")).headers["etag"]
    rest = await shop.get(range="bytes=10-", if_range=tag)
    assert (rest.status_code, rest.content) == (206, BODY[10:])
    assert rest.headers["etag"] == tag


async def test_a_download_begins_anew_where_the_file_has_changed(shop: Shop) -> None:
    tag = (await shop.get(range="bytes=0-9")).headers["etag"]
    (shop.folder / "app.bin").write_bytes(b"a new version")
    fetched = await shop.get(range="bytes=10-", if_range=tag)
    assert (fetched.status_code, fetched.content) == (200, b"a new version")
    assert fetched.headers["etag"] != tag
    assert await shop.counts() == {"app.bin": 2}


async def test_a_date_to_resume_by_is_never_the_same_for_we_give_none(shop: Shop) -> None:
    fetched = await shop.get(range="bytes=10-", if_range="Sun, 01 Nov 2026 12:00:00 GMT")
    assert (fetched.status_code, fetched.content) == (200, BODY)


# What is counted.


async def test_each_download_is_counted_and_its_later_pieces_are_not(shop: Shop) -> None:
    await shop.get()
    await shop.get(range="Bytes=0-9")
    await shop.get(range="bytes=10-99")
    await shop.get(range="bytes=-5")
    await shop.get("empty")
    assert await shop.counts() == {"app.bin": 2, "empty": 1}


# Who gets it.


async def test_a_link_outlives_a_change_of_the_signing_key_as_long_as_the_old_one_is_listed(
    shop: Shop, tmp_path: Path
) -> None:
    _, _, token = shop.path().rpartition("/")
    now = shop.running.clock.at
    changed = DownloadTokens(settings_for("", tmp_path, signing_keys="new-key,signing-key-1"))
    assert changed.read(token) == (shop.grant, "app.bin", now + timedelta(hours=1))
    assert changed.read(changed.make(shop.grant, "app.bin", now)) is not None
    assert shop.running.context.tokens.read(changed.make(shop.grant, "app.bin", now)) is None, "the first one signs"


@pytest.mark.parametrize("token", ["x", "W10.signature", "..", "%2E%2E%2Fetc", "%00", "%C3%A9", "a" * 4000])
async def test_a_token_that_is_not_ours_gives_nothing(shop: Shop, token: str) -> None:
    refused = await shop.running.client.get(f"/downloads/{token}")
    assert refused.status_code == 404


async def test_a_token_of_which_any_character_was_changed_gives_nothing(shop: Shop) -> None:
    path = shop.path()
    token = path.removeprefix("/downloads/")
    for at in range(0, len(token) - 1, 7):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        refused = await shop.running.client.get(f"/downloads/{changed}")
        assert refused.status_code == 404
        assert refused.json()["detail"].startswith("This download link is not one of ours")
    assert await shop.counts() == {}


async def test_a_token_signed_by_somebody_else_gives_nothing(shop: Shop, tmp_path: Path) -> None:
    theirs = DownloadTokens(settings_for("", tmp_path, signing_keys="another-key"))
    refused = await shop.running.client.get(f"/downloads/{theirs.make(shop.grant, 'app.bin', shop.running.clock.at)}")
    assert refused.status_code == 404


async def test_a_link_lasts_as_long_as_set_and_not_a_second_longer(shop: Shop) -> None:
    path = shop.path()
    shop.running.clock.move(minutes=59, seconds=59)
    assert (await shop.running.client.get(path)).status_code == 200
    shop.running.clock.move(seconds=1)
    refused = await shop.running.client.get(path)
    assert refused.status_code == 410
    assert refused.json() == {
        "error": "Gone",
        "detail": "This download link has expired; ask for a new one where you found it",
    }
    assert await shop.counts() == {"app.bin": 1}


@pytest.mark.parametrize(
    "changes",
    ["wanted = false", "status = 'revoking'", "status = 'granting'", "status = 'failed'", "receipt = NULL"],
)
async def test_only_a_grant_that_is_live_gives_files(shop: Shop, changes: str) -> None:
    await shop.set(changes)
    assert (await shop.get()).status_code == 403


async def test_a_grant_ends_at_its_time_even_before_the_sweep_comes_by(shop: Shop) -> None:
    clock = shop.running.clock
    ends = clock.at + timedelta(minutes=5)
    await shop.running.service.database.write(
        lambda connection: connection.execute(
            sa.update(GrantRow).where(sa.column("id") == shop.grant).values(valid_until=ends)
        )
    )
    assert (await shop.get()).status_code == 200
    clock.move(minutes=5)
    assert (await shop.get()).status_code == 403


async def test_a_closed_pass_gives_nothing_whatever_the_grant_says(shop: Shop) -> None:
    await shop.passes.close(shop.row["held"])
    assert (await shop.get()).status_code == 403


async def test_a_grant_that_there_is_not_gives_nothing(shop: Shop) -> None:
    assert (await shop.running.client.get(shop.path(grant="0" * 32))).status_code == 403


async def test_a_grant_of_another_kind_gives_no_files(shop: Shop) -> None:
    note = await shop.read("SELECT id, held FROM grants WHERE benefit = 'note'")
    assert await shop.passes.is_open(note["held"])
    assert (await shop.running.client.get(shop.path(grant=note["id"]))).status_code == 403


# Files that cannot be had.


@pytest.mark.parametrize("name", ["other.bin", "../almoner.db", "/etc/passwd", "sub", "", "a\x00b"])
async def test_only_files_that_were_given_are_to_be_had(shop: Shop, name: str) -> None:
    refused = await shop.get(name)
    assert refused.status_code == 404
    assert await shop.counts() == {}


async def test_a_file_that_has_vanished_is_named(shop: Shop) -> None:
    (shop.folder / "app.bin").unlink()
    refused = await shop.get()
    assert refused.status_code == 404
    assert refused.json() == {
        "error": "ResourceNotFound",
        "detail": "The file app.bin is missing on the server; its merchant must put it back",
    }
    assert await shop.counts() == {}


async def test_a_file_that_became_a_link_out_of_the_folder_is_not_given_and_no_path_is_told(shop: Shop) -> None:
    (shop.folder / "app.bin").unlink()
    (shop.folder / "app.bin").symlink_to("/etc/passwd")
    refused = await shop.get()
    assert refused.status_code == 404
    assert "app.bin" in refused.json()["detail"]
    assert "/" not in refused.json()["detail"]


async def test_links_in_a_circle_give_nothing_and_no_path_is_told(shop: Shop) -> None:
    (shop.folder / "app.bin").unlink()
    (shop.folder / "app.bin").symlink_to("app.bin")
    refused = await shop.get()
    assert refused.status_code == 404
    assert str(shop.folder) not in refused.text


async def test_a_file_that_shrinks_while_it_is_sent_ends_there(shop: Shop) -> None:
    app = make_api(shop.running.context, shop.running.clock)
    path = shop.path("large.bin")
    scope: Any = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    bodies: list[bytes] = []
    ended = asyncio.Event()

    async def receive() -> Any:
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            bodies.append(message["body"])
            (shop.folder / "large.bin").write_bytes(LARGE[: len(bodies[0])])
        if message["type"] == "http.response.body" and not message.get("more_body"):
            ended.set()

    await app(scope, receive, send)
    assert len(bodies) == 1
    assert b"".join(bodies) == LARGE[: len(bodies[0])]


# S3.


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with open_storage() as opened_storage:
        opened_storage.put("acme-files", {f"r/{name}": BODY for name in NAMES})
        yield opened_storage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _remote(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, storage: Storage
) -> AsyncIterator[Shop]:
    folder = tmp_path_factory.mktemp("remote")
    url = copy_of_template(sqlite_template, folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_credentials(monkeypatch)
        async with opened(url, folder, in_bucket(), s3_endpoint_url=storage.url) as running:
            yield await Shop.sell(running, folder)


@pytest_asyncio.fixture(loop_scope="module")
async def remote(_remote: Shop) -> Shop:
    await _remote.reset()
    return _remote


async def test_a_file_in_a_bucket_is_fetched_there_by_an_address_that_lasts_a_minute(
    remote: Shop, storage: Storage
) -> None:
    for name in NAMES:
        sent_on = await remote.get(name)
        assert (sent_on.status_code, sent_on.content) == (302, b"")
        assert sent_on.headers["cache-control"] == "private, no-store"
        assert sent_on.headers["referrer-policy"] == "no-referrer"
        address = sent_on.headers["location"]
        assert address.startswith(f"{storage.url}/acme-files/r/")
        query = parse_qs(urlsplit(address).query)
        assert query["X-Amz-Expires"] == ["60"]
        assert query["response-content-disposition"] == [content_disposition(name.rpartition("/")[2])]
        assert SECRET_KEY not in unquote(address)
        async with httpx.AsyncClient() as browser:
            fetched = await browser.get(address, headers={"range": "bytes=10-19"})
        assert (fetched.status_code, fetched.content) == (206, BODY[10:20])
    assert await remote.counts() == dict.fromkeys(NAMES, 1)


async def test_no_address_is_made_where_there_is_nothing_to_give(remote: Shop) -> None:
    assert (await remote.get("other.bin")).status_code == 404
    await remote.passes.close(remote.row["held"])
    refused = await remote.get()
    assert refused.status_code == 403
    assert "location" not in refused.headers
    assert await remote.counts() == {}


async def test_a_resumed_download_from_a_bucket_is_counted_once(remote: Shop) -> None:
    assert (await remote.get()).status_code == 302
    assert (await remote.get(range="bytes=10-")).status_code == 302
    assert await remote.counts() == {"app.bin": 1}


@pytest.mark.parametrize(
    ("config", "status"),
    [("credential_process = false", 503), ("", 404)],
    ids=["credentials that come later", "no credentials"],
)
async def test_what_is_wrong_with_the_storage_is_for_the_merchant_and_not_told_to_customers(
    remote: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, status: int
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{config}\n")
    set_credentials(monkeypatch, None)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    settings = remote.running.service.settings
    with structlog.testing.capture_logs() as logged:
        async with opened(settings.database_url, tmp_path, in_bucket(), s3_endpoint_url=settings.s3_endpoint_url) as it:
            refused = await replace(remote, running=it).get()
    assert refused.status_code == status
    assert refused.json()["detail"] == "The file app.bin cannot be had now; its merchant must look why"
    (line,) = [one for one in logged if one["log_level"] == "warning"]
    assert (line["grant"], line["file"]) == (remote.grant, "app.bin")
    assert "in the bucket acme-files" in line["reason"]
    assert await remote.counts() == {}
