"""Files: names that stay below their folder, what a missing or unreadable file means, and S3 over real HTTP."""

import asyncio
import contextlib
import os
import resource
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from pydantic import ValidationError

from connectors.base import ActionRequired, ConnectorError, Holding, Receipt, Recipient, Rejected, Unavailable
from connectors.file_download import FileDownload, Terms, content_disposition, is_safe, local_path
from tests.conftest import Clock, settings_for
from tests.connectors.ports import SECRET_KEY, Moment, Storage, World, open_storage, set_credentials, stored

BUYER = Recipient(customer_id="c-1")
BUCKET = "acme-files"


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    with ThreadPoolExecutor(2) as executor:
        yield World(settings_for("", tmp_path), executor, clock)


@pytest.fixture
def connector(world: World) -> FileDownload:
    return FileDownload(world.tools)


def in_folder(folder: Path, *names: str) -> Terms:
    return Terms(benefit="pro", folder=str(folder), files=names)


def in_bucket(*names: str, bucket: str = BUCKET, key_prefix: str = "releases/") -> Terms:
    return Terms(benefit="pro", bucket=bucket, key_prefix=key_prefix, files=names)


# The terms.

UNSAFE = [
    "", "/", "/etc/passwd", "../x", "a/../x", "a/..", "..", ".", "./x", "a/./x", "a//x", "a/", "a\\b", "..\\x", "C:\\x",
    "a\x00b", "a\nb", "a\x7fb", "*.zip", "a?", "a\ud800",
]  # fmt: skip
SAFE = [
    "x",
    "a/x",
    "a b",
    "..x",
    "x..",
    "...",
    ".hidden",
    "a/b/c.tar.gz",
    "é 山田.txt",
    'a"b',
    "a%2Fb",
    "C:x",
    "~",
    "$x",
]


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_could_mean_anything_but_one_file_below_the_folder_is_refused(name: str) -> None:
    assert not is_safe(name)
    with pytest.raises(ValidationError, match="is not an exact name below the folder"):
        Terms(benefit="pro", folder="files", files=(name,))


@pytest.mark.parametrize("name", SAFE)
def test_a_plain_name_is_taken(name: str) -> None:
    assert is_safe(name)
    assert Terms(benefit="pro", bucket="b", files=(name,)).files == (name,)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"files": ["x"]}, "exactly one of folder and bucket"),
        ({"files": ["x"], "folder": "f", "bucket": "b"}, "exactly one of folder and bucket"),
        ({"files": ["x"], "folder": "f", "key_prefix": "p/"}, "key_prefix goes with bucket"),
        ({"files": ["x", "y", "x"], "folder": "f"}, "a file is named twice"),
        ({"files": [], "folder": "f"}, "at least 1 item"),
        ({"folder": "f"}, "Field required"),
        ({"files": ["x"], "folder": ""}, "at least 1 character"),
        ({"files": ["x"], "bucket": ""}, "at least 1 character"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Terms(benefit="pro", **fields)


def test_it_lacks_no_setting(world: World) -> None:
    assert FileDownload.missing(in_bucket("x"), world.settings) == []


# Files in a folder.


async def test_a_grant_lists_the_files_with_their_sizes(connector: FileDownload, files: Path) -> None:
    receipt = stored(await connector.grant(BUYER, in_folder(files, "sub/app.bin", "manual.txt"), None))
    assert receipt == Receipt(
        "file_download:pro:c-1::",
        {
            "benefit": "pro",
            "files": [{"name": "sub/app.bin", "size": 1024}, {"name": "manual.txt", "size": 10}],
            "folder": str(files),
        },
    )
    assert connector.offer(receipt) == {"kind": "files", "benefit": "pro", "files": receipt.data["files"]}


async def test_each_member_and_purchase_has_a_pass_of_its_own(connector: FileDownload, files: Path) -> None:
    to = Recipient(customer_id="c-1", member_id="m-1", purchase="order-1")
    assert connector.resource(to, in_folder(files, "x")) == "file_download:pro:c-1:m-1:order-1"


async def test_an_offer_gets_a_link_for_each_file(connector: FileDownload, files: Path, world: World) -> None:
    receipt = await connector.grant(BUYER, in_folder(files, "manual.txt", "sub/app.bin"), None)
    shown = connector.present(connector.offer(receipt), "grant-1", Moment(world.now(), world.settings))
    assert shown["files"] == [
        {"name": "manual.txt", "size": 10, "url": "https://sidecar.example.com/downloads/grant-1/manual.txt"},
        {"name": "sub/app.bin", "size": 1024, "url": "https://sidecar.example.com/downloads/grant-1/sub/app.bin"},
    ]


async def refused(connector: FileDownload, terms: Terms) -> ActionRequired:
    """Grant what only the merchant can put right; nothing is given by it."""
    with pytest.raises(ActionRequired) as failed:
        await connector.grant(BUYER, terms, None)
    assert failed.value.who == "merchant"
    assert await connector.holds(Receipt(connector.resource(BUYER, terms), intended=True)) == Holding.GONE
    return failed.value


@pytest.mark.parametrize("name", ["absent.txt", "absent/x", "manual.txt/x"])
async def test_a_file_that_is_missing_is_for_the_merchant_to_put_there(
    connector: FileDownload, files: Path, name: str
) -> None:
    error = await refused(connector, in_folder(files, "sub/app.bin", name))
    assert str(error) == (
        f"the file {name} of benefit pro in the folder {files} is missing; put it there, or take it out of the benefit"
    )


async def test_a_folder_that_is_missing_is_for_the_merchant_to_make(connector: FileDownload, tmp_path: Path) -> None:
    assert "is missing" in str(await refused(connector, in_folder(tmp_path / "absent", "x")))


async def test_a_folder_is_no_file(connector: FileDownload, files: Path) -> None:
    assert "'sub' is not a file" in str(await refused(connector, in_folder(files, "sub")))


async def test_a_pipe_is_no_file_and_is_never_waited_for(connector: FileDownload, files: Path) -> None:
    os.mkfifo(files / "pipe")
    assert "'pipe' is not a file" in str(await refused(connector, in_folder(files, "pipe")))


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.txt", "../files-of-others/x"])
async def test_a_link_that_leads_out_of_the_folder_is_refused(
    connector: FileDownload, files: Path, target: str
) -> None:
    (files.parent / "outside.txt").write_text("not for customers")
    # A folder whose name begins with the name of ours is not ours.
    (files.parent / "files-of-others").mkdir()
    (files.parent / "files-of-others" / "x").write_text("not for customers")
    (files / "way-out").symlink_to(target)
    assert "it is a link that leads out" in str(await refused(connector, in_folder(files, "way-out")))


async def test_a_linked_folder_that_leads_out_is_refused(connector: FileDownload, files: Path) -> None:
    (files / "up").symlink_to("..")
    (files.parent / "outside.txt").write_text("not for customers")
    assert "it is a link that leads out" in str(await refused(connector, in_folder(files, "up/outside.txt")))


async def test_a_link_within_the_folder_is_followed(connector: FileDownload, files: Path) -> None:
    (files / "latest.bin").symlink_to("sub/app.bin")
    receipt = await connector.grant(BUYER, in_folder(files, "latest.bin"), None)
    assert receipt.data["files"] == [{"name": "latest.bin", "size": 1024}]
    assert local_path(receipt.data, "latest.bin") == (files / "sub" / "app.bin").resolve()


async def test_a_folder_that_is_itself_a_link_is_followed(connector: FileDownload, files: Path) -> None:
    (files.parent / "current").symlink_to(files)
    receipt = await connector.grant(BUYER, in_folder(files.parent / "current", "manual.txt"), None)
    assert local_path(receipt.data, "manual.txt") == (files / "manual.txt").resolve()


async def test_links_in_a_circle_are_refused(connector: FileDownload, files: Path) -> None:
    (files / "one").symlink_to("two")
    (files / "two").symlink_to("one")
    assert "cannot be given" in str(await refused(connector, in_folder(files, "one")))


async def test_a_name_too_long_for_the_system_is_refused(connector: FileDownload, files: Path) -> None:
    assert "cannot be looked up" in str(await refused(connector, in_folder(files, "x" * 300)))


@contextmanager
def _as_nobody() -> Iterator[None]:
    """As root no file is unreadable; then be somebody else for a moment."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(me)


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that anybody may look into, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


async def test_a_file_that_may_not_be_read_is_for_the_merchant_to_allow(connector: FileDownload, for_all: Path) -> None:
    (for_all / "private.txt").touch(mode=0o000)
    with _as_nobody():
        error = await refused(connector, in_folder(for_all, "private.txt"))
    assert str(error) == (
        f"the file private.txt of benefit pro in the folder {for_all} may not be read by the sidecar's user; let it"
    )


@contextmanager
def _no_more_files() -> Iterator[None]:
    """Use up every file descriptor, and let those in use be: a limit below them would stop threads that poll."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        highest = max(int(one.name) for one in Path("/dev/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for one in taken:
            os.close(one)


async def test_a_disk_or_system_in_trouble_is_tried_later(connector: FileDownload, files: Path) -> None:
    terms = in_folder(files, "manual.txt")
    with _no_more_files(), pytest.raises(Unavailable) as failed:
        await connector.grant(BUYER, terms, None)
    assert failed.value.retry_after is None
    assert str(failed.value).endswith("cannot be read now: Too many open files")
    await connector.grant(BUYER, terms, None)


# Where a file of a receipt is, at the click.


def given(folder: Path, *names: str) -> dict[str, Any]:
    return {"folder": str(folder), "files": [{"name": name, "size": 0} for name in names]}


def test_a_file_that_was_given_is_found_even_where_it_was_deleted_since(files: Path) -> None:
    data = given(files, "manual.txt")
    assert local_path(data, "manual.txt") == (files / "manual.txt").resolve()
    (files / "manual.txt").unlink()
    assert local_path(data, "manual.txt") == (files / "manual.txt").resolve()


def test_a_file_beside_those_that_were_given_is_refused(files: Path) -> None:
    with pytest.raises(Rejected, match="not one of the files that were given"):
        local_path(given(files, "manual.txt"), "sub/app.bin")


def test_a_receipt_without_files_gives_none(files: Path) -> None:
    with pytest.raises(Rejected, match="not one of the files that were given"):
        local_path({"folder": str(files)}, "manual.txt")


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_leads_out_is_refused_even_where_a_receipt_has_it(files: Path, name: str) -> None:
    with pytest.raises(Rejected, match="is not below the folder"):
        local_path(given(files, name), name)


def test_a_receipt_for_a_bucket_has_no_local_file() -> None:
    with pytest.raises(Rejected, match="is not below the folder"):
        local_path({"bucket": "b", "files": [{"name": "x"}]}, "x")


def test_a_link_that_came_after_the_grant_does_not_lead_out(files: Path) -> None:
    data = given(files, "manual.txt")
    (files / "manual.txt").unlink()
    (files / "manual.txt").symlink_to("/etc/passwd")
    with pytest.raises(Rejected, match="a link that leads out"):
        local_path(data, "manual.txt")


# The name under which a browser saves a file.


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("app.zip", "attachment; filename=\"app.zip\"; filename*=UTF-8''app.zip"),
        ("my app.zip", "attachment; filename=\"my app.zip\"; filename*=UTF-8''my%20app.zip"),
        ("Bücher.pdf", "attachment; filename=\"B_cher.pdf\"; filename*=UTF-8''B%C3%BCcher.pdf"),
        ("山田.txt", "attachment; filename=\"__.txt\"; filename*=UTF-8''%E5%B1%B1%E7%94%B0.txt"),
        ('a"; x="b', "attachment; filename=\"a_; x=_b\"; filename*=UTF-8''a%22%3B%20x%3D%22b"),
        ("100%.txt", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
        ("it's.txt", "attachment; filename=\"it's.txt\"; filename*=UTF-8''it%27s.txt"),
    ],
)
def test_a_name_is_written_for_old_and_new_browsers(name: str, header: str) -> None:
    assert content_disposition(name) == header
    assert header.isascii()
    assert unquote(header.partition("''")[2]) == name


# S3.


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with open_storage() as opened:
        opened.put(
            BUCKET,
            {"releases/app.bin": b"0123456789", "releases/sub/Bücher 1.pdf": b"%PDF", "top": b"", "d ir/x": b"1"},
        )
        yield opened


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    """For what is slow to make: a client of storage takes a third of a second."""
    with ThreadPoolExecutor(2) as executor, pytest.MonkeyPatch.context() as monkeypatch:
        set_credentials(monkeypatch)
        yield World(settings_for("", Path("unused")), executor, Clock())


def at(world: World, url: str, **more: Any) -> FileDownload:
    """A connector for storage at this address."""
    settings = settings_for("", world.settings.data_dir, s3_endpoint_url=url, **({"call_timeout": "60s"} | more))
    return FileDownload(World(settings, world.executor, world.now, world.passes).tools)


@pytest.fixture(scope="module")
def _remote(shared: World, storage: Storage) -> FileDownload:
    return at(shared, storage.url)


@pytest.fixture
def remote(_remote: FileDownload, shared: World) -> FileDownload:
    """A connector to the storage, with nothing given yet."""
    shared.passes.opened.clear()
    return _remote


async def test_a_grant_from_a_bucket_lists_the_files_with_their_sizes(remote: FileDownload) -> None:
    receipt = stored(await remote.grant(BUYER, in_bucket("app.bin", "sub/Bücher 1.pdf"), None))
    assert receipt.data == {
        "benefit": "pro",
        "files": [{"name": "app.bin", "size": 10}, {"name": "sub/Bücher 1.pdf", "size": 4}],
        "bucket": BUCKET,
        "key_prefix": "releases/",
    }
    assert await remote.holds(receipt) == Holding.HELD


@pytest.mark.parametrize(("name", "size"), [("top", 0), ("d ir/x", 1)])
async def test_a_bucket_without_a_prefix_is_read_from_its_top(remote: FileDownload, name: str, size: int) -> None:
    receipt = await remote.grant(BUYER, in_bucket(name, key_prefix=""), None)
    assert receipt.data["files"] == [{"name": name, "size": size}]


@pytest.mark.parametrize("name", ["app.bin", "sub/Bücher 1.pdf"])
async def test_a_presigned_address_gives_the_file_under_its_name_for_a_minute(
    remote: FileDownload, storage: Storage, name: str
) -> None:
    receipt = stored(await remote.grant(BUYER, in_bucket("app.bin", "sub/Bücher 1.pdf"), None))
    address = await remote.presigned_url(receipt, name, 60)
    assert address.startswith(f"{storage.url}/{BUCKET}/releases/")
    query = parse_qs(urlsplit(address).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["60"]
    assert SECRET_KEY not in unquote(address)
    fetched = await asyncio.to_thread(httpx.get, address)
    assert fetched.status_code == 200
    assert fetched.content == {"app.bin": b"0123456789", "sub/Bücher 1.pdf": b"%PDF"}[name]
    assert fetched.headers["content-disposition"] == content_disposition(name.rpartition("/")[2])


@pytest.mark.parametrize(("asked", "given"), [(1, "1"), (0, "1"), (-5, "1"), (59, "59"), (61, "60"), (86_400, "60")])
async def test_a_presigned_address_lasts_a_minute_at_most(remote: FileDownload, asked: int, given: str) -> None:
    receipt = Receipt("r", {"benefit": "pro", "bucket": BUCKET, "key_prefix": "", "files": [{"name": "top"}]})
    address = await remote.presigned_url(receipt, "top", asked)
    assert parse_qs(urlsplit(address).query)["X-Amz-Expires"] == [given]


@pytest.mark.parametrize("name", ["other.bin", "../secret", "app.bin/../../top"])
async def test_no_address_is_made_for_what_was_not_given(remote: FileDownload, name: str) -> None:
    receipt = await remote.grant(BUYER, in_bucket("app.bin"), None)
    with pytest.raises(Rejected, match="not one of the files that were given"):
        await remote.presigned_url(receipt, name, 60)


@pytest.mark.parametrize(
    "terms", [in_bucket("app.bin", "absent.bin"), in_bucket("app.bin", bucket="acme-absent")], ids=["object", "bucket"]
)
async def test_a_missing_object_or_bucket_is_for_the_merchant_to_put_there(remote: FileDownload, terms: Terms) -> None:
    error = await refused(remote, terms)
    assert str(error).endswith(f"in the bucket {terms.bucket} is missing; put it there, or take it out of the benefit")


async def test_wrong_credentials_are_for_the_merchant_to_put_right(remote: FileDownload, storage: Storage) -> None:
    with storage.checking_credentials():
        error = await refused(remote, in_bucket("app.bin"))
    assert "the storage answered 403 for the file app.bin of benefit pro in the bucket acme-files" in str(error)
    assert "s3:GetObject" in str(error)
    assert not_told(error, SECRET_KEY)


async def test_no_credentials_at_all_are_for_the_merchant_to_set(
    world: World, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch, None)
    remote = at(world, storage.url)
    error = await refused(remote, in_bucket("app.bin"))
    assert "NoCredentialsError; look at ALMONER_S3_ENDPOINT_URL and the AWS_ settings" in str(error)
    receipt = Receipt("r", {"benefit": "pro", "bucket": BUCKET, "key_prefix": "", "files": [{"name": "top"}]})
    with pytest.raises(ActionRequired, match="NoCredentialsError"):
        await remote.presigned_url(receipt, "top", 60)


async def test_an_address_that_is_none_is_for_the_merchant_to_put_right_and_its_password_stays_hidden(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch)
    error = await refused(at(world, "http://ada:hunter2@not an address"), in_bucket("app.bin"))
    assert "look at ALMONER_S3_ENDPOINT_URL" in str(error)
    assert not_told(error, "hunter2")


async def test_a_bucket_name_that_is_none_is_for_the_merchant_to_put_right(remote: FileDownload) -> None:
    assert "the bucket's name" in str(await refused(remote, in_bucket("app.bin", bucket="No Bucket!")))


async def test_storage_that_cannot_be_reached_is_tried_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=r"cannot be reached for the file app.bin .*: EndpointConnectionError"):
        await at(world, f"http://127.0.0.1:{port}").grant(BUYER, in_bucket("app.bin"), None)


async def test_storage_that_does_not_answer_is_asked_once_and_tried_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        remote = at(world, f"http://127.0.0.1:{silent.getsockname()[1]}", call_timeout="200ms")
        with pytest.raises(Unavailable, match="ReadTimeoutError") as failed:
            await remote.grant(BUYER, in_bucket("app.bin"), None)
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert failed.value.retry_after is None


class Alike(ThreadingHTTPServer):
    """Storage that answers every request alike."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), AnswerAlike)
        self.status = 500
        self.headers: dict[str, str] = {}
        self.requests: list[str] = []


class AnswerAlike(BaseHTTPRequestHandler):
    server: Alike

    def do_HEAD(self) -> None:
        self.server.requests.append(self.requestline)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def alike(shared: World) -> Iterator[tuple[Alike, FileDownload]]:
    with Alike() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server, at(shared, f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "headers", "kind", "wait"),
    [
        (400, {}, Rejected, None),
        (401, {}, ActionRequired, None),
        (403, {"Retry-After": "9"}, ActionRequired, None),
        (404, {}, ActionRequired, None),
        (405, {}, Rejected, None),
        (429, {}, Unavailable, None),
        (429, {"Retry-After": "9"}, Unavailable, 9.0),
        (500, {"Retry-After": "9"}, Unavailable, None),
        (503, {}, Unavailable, None),
        (503, {"retry-after": "Sun, 01 Nov 2026 12:01:00 GMT"}, Unavailable, 60.0),
    ],
)
async def test_what_storage_answers_is_named_for_what_happens_next(
    alike: tuple[Alike, FileDownload],
    status: int,
    headers: dict[str, str],
    kind: type[ConnectorError],
    wait: float | None,
) -> None:
    server, remote = alike
    server.status, server.headers = status, headers
    server.requests.clear()
    with pytest.raises(kind) as failed:
        await remote.grant(BUYER, in_bucket("app.bin"), None)
    assert "the file app.bin of benefit pro in the bucket acme-files" in str(failed.value)
    assert getattr(failed.value, "retry_after", None) == wait
    asked = [request for request in server.requests if request.endswith("/app.bin HTTP/1.1")]
    assert asked == [f"HEAD /{BUCKET}/releases/app.bin HTTP/1.1"], "we retry ourselves: one request a try"
    assert not_told(failed.value, SECRET_KEY)


async def test_without_an_endpoint_of_our_own_the_address_is_amazons(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch)
    monkeypatch.delenv("AWS_REGION")
    receipt = Receipt("r", {"benefit": "pro", "bucket": BUCKET, "key_prefix": "", "files": [{"name": "top"}]})
    address = urlsplit(await at(world, "").presigned_url(receipt, "top", 60))
    assert address.scheme == "https"
    assert (address.hostname or "").startswith(f"{BUCKET}.s3.")
    assert (address.hostname or "").endswith("amazonaws.com")
    assert "/us-east-1/" in unquote(address.query)


async def test_many_threads_share_one_client(remote: FileDownload) -> None:
    receipts = await asyncio.gather(*(remote.grant(BUYER, in_bucket("app.bin"), None) for _ in range(4)))
    assert {receipt.data["files"][0]["size"] for receipt in receipts} == {10}


def not_told(error: ConnectorError, secret: str) -> bool:
    """Whether a log line with the error, and all that caused it, is free of the secret."""
    return secret not in "".join(traceback.format_exception(error)) + repr(error)
