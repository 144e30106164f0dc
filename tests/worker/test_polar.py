"""The client of Polar's API: what each answer means, the limit that all share, and a token that nobody sees."""

import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from config.settings import Settings, SettingsError, load_settings
from connectors.base import ActionRequired, ConnectorError, Rate, Rejected, Unavailable
from tests.conftest import Clock, settings_for
from tests.connectors.ports import MemoryLimits
from tests.fakes.polar import ORGANIZATION, FakePolar
from tests.fakes.serving import serving
from worker.limits import StoredLimits
from worker.polar import NotFound, Polar
from worker.store.database import Database
from worker.told_keys import ReadKey

READ, WRITE = "license_keys:read", "license_keys:write"
Object = dict[str, Any]
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakePolar, str]]:
    fake = FakePolar()
    with serving(fake) as url:
        yield fake, url


@pytest.fixture
def fake(served: tuple[FakePolar, str], clock: Clock) -> Iterator[FakePolar]:
    served[0].reset(clock)
    yield served[0]
    assert served[0].specification
    assert served[0].specification.violations == []


@pytest.fixture
def token(fake: FakePolar) -> str:
    return fake.token()


@pytest.fixture
def limits() -> MemoryLimits:
    return MemoryLimits()


@pytest.fixture
async def polar(served: tuple[FakePolar, str], token: str, limits: MemoryLimits, clock: Clock) -> AsyncIterator[Polar]:
    made = Polar(SecretStr(token), served[1], limits, clock, timeout=1.0)
    yield made
    await made.close()


async def failing(call: Awaitable[object]) -> ConnectorError:
    with pytest.raises(ConnectorError) as caught:
        await call
    return caught.value


async def test_a_license_key_is_read_whole_with_its_activations(fake: FakePolar, polar: Polar) -> None:
    key = fake.key(member_id=NOBODY, limit_usage=5, expires_at="2027-01-01T00:00:00Z")
    device = fake.activate(key, "desktop", meta={"os": "linux"}, conditions={"major": 1})
    read = await polar.get(f"/v1/license-keys/{key['id']}", scope=READ, form=ReadKey)
    assert (read.key, read.display_key, read.limit_usage) == (key["key"], key["display_key"], 5)
    assert (read.customer_id, read.member_id, read.benefit_id) == (key["customer_id"], NOBODY, key["benefit_id"])
    assert [(one.id, one.label, one.meta) for one in read.activations] == [(device["id"], "desktop", {"os": "linux"})]


async def test_every_call_says_who_asks_for_which_version(fake: FakePolar, polar: Polar, token: str) -> None:
    await polar.get("/v1/license-keys/", scope=READ, form=Object)
    await polar.post(
        "/v1/license-keys/validate",
        {"key": fake.key()["key"], "organization_id": ORGANIZATION},
        scope=WRITE,
        form=Object,
    )
    for request in fake.log:
        assert request.headers["authorization"] == f"Bearer {token}"
        assert request.headers["polar-version"] == "2026-10"
        assert request.headers["user-agent"] == f"almoner/{version('almoner')}"
    assert fake.log[1].headers["content-type"] == "application/json"


async def test_a_list_is_gone_through_page_by_page(fake: FakePolar, polar: Polar) -> None:
    made = [fake.key() for _ in range(7)]
    fake.key(status="disabled")
    asked = {"status": "granted"}
    pages = [page async for page in polar.pages("/v1/license-keys/", asked, scope=READ, form=ReadKey, size=3)]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert {one.id for page in pages for one in page} == {one["id"] for one in made}
    assert [
        page async for page in polar.pages("/v1/license-keys/", {"status": "revoked"}, scope=READ, form=Object)
    ] == [[]]


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Rejected), (301, Rejected), (500, Unavailable), (502, Unavailable), (503, Unavailable)]
)
async def test_each_status_is_named_for_what_happens_next(
    fake: FakePolar, polar: Polar, status: int, kind: type[ConnectorError]
) -> None:
    fake.fail(status=status, body=b'{"error":"SomeName","detail":"x"}', headers={"location": "http://127.0.0.1:9/"})
    error = await failing(polar.get("/v1/license-keys/", scope=READ, form=Object))
    assert type(error) is kind
    assert str(error) == f"Polar answers {status} SomeName"
    assert len(fake.log) == 1, "a redirect is not followed with the token"


async def test_what_is_not_there_is_told_from_a_version_that_is_served_no_more(fake: FakePolar, polar: Polar) -> None:
    assert type(await failing(polar.get(f"/v1/license-keys/{NOBODY}", scope=READ, form=Object))) is NotFound
    fake.fail(status=404, body=b'{"detail":"Not Found"}')
    assert type(await failing(polar.get(f"/v1/license-keys/{NOBODY}", scope=READ, form=Object))) is Rejected


async def test_a_wrong_token_is_the_merchants_to_change(fake: FakePolar, polar: Polar, token: str) -> None:
    fake.tokens[token] = ("products:read",)
    error = await failing(polar.get("/v1/license-keys/", scope=READ, form=Object))
    assert isinstance(error, ActionRequired)
    assert error.who == "merchant"
    assert str(error).endswith("ALMONER_POLAR_ACCESS_TOKEN needs the scope license_keys:read")
    del fake.tokens[token]
    error = await failing(polar.get("/v1/license-keys/", scope=READ, form=Object))
    assert isinstance(error, ActionRequired)
    assert "401" in str(error)
    assert "ALMONER_POLAR_ACCESS_TOKEN is not valid" in str(error)


async def test_too_many_calls_have_everybody_wait_as_long_as_polar_says(
    fake: FakePolar, polar: Polar, limits: MemoryLimits
) -> None:
    fake.limit = 2
    for _ in range(2):
        await polar.get("/v1/license-keys/", scope=READ, form=Object)
    error = await failing(polar.get("/v1/license-keys/", scope=READ, form=Object))
    assert isinstance(error, Unavailable)
    assert error.retry_after == 61
    assert limits.parked["polar"][0] == 61
    await failing(polar.get("/v1/license-keys/", scope=READ, form=Object))
    assert len(fake.log) == 3, "nobody asks while all wait"


async def test_a_429_that_names_no_time_is_waited_out_for_a_minute(
    fake: FakePolar, polar: Polar, limits: MemoryLimits
) -> None:
    fake.fail(status=429)
    error = await failing(polar.get("/v1/license-keys/", scope=READ, form=Object))
    assert isinstance(error, Unavailable)
    assert (error.retry_after, limits.parked["polar"][0]) == (60, 60)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"drops": True}, "cannot be reached: RemoteProtocolError"),
        ({"wait": 5.0}, "did not answer within 1 s"),
        ({"status": 200, "body": b"<html>who are you?</html>"}, "answer cannot be read"),
        ({"status": 200, "body": b'{"id": 1}'}, "answer cannot be read"),
    ],
)
async def test_what_is_no_answer_passes_by_itself(
    fake: FakePolar, polar: Polar, fault: dict[str, Any], said: str
) -> None:
    key = fake.key()
    fake.fail(**fault)
    error = await failing(polar.get(f"/v1/license-keys/{key['id']}", scope=READ, form=ReadKey))
    assert type(error) is Unavailable
    assert said in str(error)
    await polar.get(f"/v1/license-keys/{key['id']}", scope=READ, form=ReadKey)


async def test_a_server_that_is_not_there_is_unavailable(token: str, limits: MemoryLimits, clock: Clock) -> None:
    polar = Polar(SecretStr(token), "http://127.0.0.1:9", limits, clock)
    assert "cannot be reached: ConnectError" in str(
        await failing(polar.get("/v1/license-keys/", scope=READ, form=Object))
    )
    await polar.close()


async def test_a_huge_answer_is_not_taken_into_memory(fake: FakePolar, polar: Polar) -> None:
    fake.fail(status=200, body=b" " * (16 * 1024 * 1024 + 1))
    assert "more than 16 MiB" in str(await failing(polar.get("/v1/license-keys/", scope=READ, form=Object)))


async def test_an_empty_answer_is_nothing(fake: FakePolar, polar: Polar) -> None:
    fake.fail(status=202)
    body = {"key": "x", "organization_id": ORGANIZATION}
    await polar.post("/v1/license-keys/validate", body, scope=WRITE, form=NoneType)


@pytest.mark.parametrize(("address", "most"), [("https://api.polar.sh", 400), ("https://sandbox-api.polar.sh", 80)])
async def test_less_than_polar_allows_is_asked_of_production_and_sandbox(address: str, most: int, clock: Clock) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={})

    limits = MemoryLimits()
    polar = Polar(SecretStr("polar_oat_x"), address, limits, clock, transport=httpx.MockTransport(answer))
    assert await polar.get("/v1/license-keys/", scope=READ, form=Object, rates=[Rate("mine", 1, 1.0)]) == {}
    await polar.close()
    assert str(asked[0].url) == f"{address}/v1/license-keys/"
    assert limits.taken == [Rate("mine", 1, 1.0), Rate("polar", most, 60.0)]


@pytest.mark.slow
async def test_several_processes_together_stay_under_polars_limit(
    served: tuple[FakePolar, str], fake: FakePolar, token: str, clock: Clock, database_url: str
) -> None:
    database = Database(database_url)
    fake.limit = 500
    workers = [
        Polar(SecretStr(token), served[1], StoredLimits(database, clock, patience=0), clock, timeout=5)
        for _ in range(3)
    ]
    for number in range(400):
        await workers[number % 3].get("/v1/license-keys/", {"limit": 1}, scope=READ, form=Object)
    for one in workers:
        error = await failing(one.get("/v1/license-keys/", scope=READ, form=Object))
        assert isinstance(error, Unavailable)
        assert error.retry_after is not None
        assert "are all that polar allows" in str(error)
    assert fake.counts() == {200: 400}, "Polar had to refuse none"
    for one in workers:
        await one.close()
    await database.close()


async def test_the_token_is_in_no_log_repr_or_error(
    fake: FakePolar, polar: Polar, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = [repr(polar), str(vars(polar))]
    fake.fail(drops=True)
    fake.fail(status=401)
    fake.fail(status=422, body=json.dumps({"error": token, "detail": [{"input": token}]}).encode())
    for _ in range(4):
        try:
            said.append(repr(await polar.get("/v1/license-keys/", scope=READ, form=Object)))
        except ConnectorError as error:
            said += [repr(error), "".join(traceback.format_exception(error))]
    assert token not in caplog.text + "".join(said)
    assert "127.0.0.1" in repr(polar)


def test_a_key_that_was_read_is_in_no_repr() -> None:
    read = ReadKey(
        id="k", created_at=Clock().at, customer_id="c", benefit_id="b", key="ACME-SECRET", display_key="****-SECRET",
        status="granted",
    )  # fmt: skip
    assert "SECRET" not in repr(read)


# The settings.


@pytest.mark.parametrize("address", ["api.polar.sh", "ftp://api.polar.sh", "https://api.polar.sh/?x=1"])
def test_an_address_of_polar_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="write an address like"):
        settings_for("", tmp_path, polar_base_url=address)


def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="copy it again") as refused:
        settings_for("", tmp_path, polar_access_token="polar_oat_\u2019x")
    assert "polar_oat" not in str(refused.value)
    copied = settings_for("", tmp_path, polar_access_token=" polar_oat_x\n")
    assert copied.polar_access_token.get_secret_value() == "polar_oat_x"


def test_the_defaults_ask_nobody_and_the_address_is_polars() -> None:
    settings = Settings()
    assert not settings.polar_access_token.get_secret_value()
    assert not settings.polar_lookup
    assert settings.polar_base_url == "https://api.polar.sh"
    assert settings.call_timeout == timedelta(seconds=10)


def test_production_does_not_start_to_look_up_without_a_token() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"ALMONER_ENVIRONMENT": "production", "ALMONER_POLAR_LOOKUP": "true"})
    assert any(one.startswith("ALMONER_POLAR_ACCESS_TOKEN is missing") for one in refused.value.problems)
