"""What connectors are built with, kept in memory, and an S3 of our own: fakes at the edge of the process."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import boto3
import httpx
import msgspec
import pytest
from moto.server import ThreadedMotoServer

from config.settings import Settings
from connectors.base import AccountToken, LicenseKey, Rate, Receipt, Tools, Unavailable

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


class MemoryPasses:
    """Passes: the set of those that are open."""

    def __init__(self) -> None:
        self.opened: set[str] = set()

    async def open(self, resource: str) -> None:
        self.opened.add(resource)

    async def close(self, resource: str) -> None:
        self.opened.discard(resource)

    async def is_open(self, resource: str) -> bool:
        return resource in self.opened


class MemoryLicenseKeys:
    """License keys by resource. What the merchant has disabled stays disabled, as in the database."""

    def __init__(self) -> None:
        self.kept: dict[str, LicenseKey] = {}

    async def issue(self, key: LicenseKey) -> LicenseKey:
        had = self.kept.get(key.resource, key)
        self.kept[key.resource] = msgspec.structs.replace(
            had,
            given=True,
            limit_activations=key.limit_activations,
            limit_usage=key.limit_usage,
        )
        return self.kept[key.resource]

    async def revoke(self, resource: str) -> None:
        if resource in self.kept:
            self.kept[resource] = msgspec.structs.replace(self.kept[resource], given=False)

    async def find(self, resource: str) -> LicenseKey | None:
        return self.kept.get(resource)


class MemoryLimits:
    """Limits that are never used up; what was taken, parked and learned is remembered. Parked is refused."""

    def __init__(self) -> None:
        self.taken: list[Rate] = []
        self.parked: dict[str, tuple[float, str]] = {}
        self.learned: dict[str, Rate] = {}

    async def take(self, *rates: Rate) -> None:
        await self.check(*rates)
        self.taken += rates

    async def check(self, *rates: Rate) -> None:
        for rate in rates:
            if rate.name in self.parked:
                seconds, reason = self.parked[rate.name]
                raise Unavailable(reason, retry_after=seconds)

    async def park(self, name: str, seconds: float, reason: str) -> None:
        self.parked[name] = (seconds, reason)

    async def learn(self, rate: Rate) -> None:
        self.learned[rate.name] = rate


class MemoryTokens:
    """Tokens by platform and account."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], AccountToken] = {}

    async def find(self, platform: str, account_id: str) -> AccountToken | None:
        return self.kept.get((platform, account_id))

    async def keep(self, platform: str, account_id: str, token: AccountToken) -> None:
        self.kept[platform, account_id] = token

    async def forget(self, platform: str, account_id: str, refused: AccountToken) -> None:
        if self.kept.get((platform, account_id)) == refused:
            del self.kept[platform, account_id]


@dataclass
class World:
    """Everything outside of a connector. Connectors made of it one after another find what earlier ones did."""

    settings: Settings
    executor: Executor
    now: Callable[[], datetime]
    passes: MemoryPasses = field(default_factory=MemoryPasses)
    license_keys: MemoryLicenseKeys = field(default_factory=MemoryLicenseKeys)
    limits: MemoryLimits = field(default_factory=MemoryLimits)
    tokens: MemoryTokens = field(default_factory=MemoryTokens)

    @property
    def tools(self) -> Tools:
        return Tools(self.settings, self.passes, self.license_keys, self.executor, self.now, self.limits, self.tokens)


@dataclass(frozen=True)
class Moment:
    """The moment of a question, for offers that are completed then."""

    now: datetime
    settings: Settings

    def download_url(self, grant_id: str, name: str) -> str:
        return f"{self.settings.base_url}/downloads/{grant_id}/{name}"


def stored(receipt: Receipt) -> Receipt:
    """Return the receipt as it comes back from the database."""
    return msgspec.json.decode(msgspec.json.encode(receipt), type=Receipt)


@dataclass(frozen=True)
class Storage:
    """S3 on loopback, over real HTTP."""

    url: str

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Make a bucket of these objects."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(Bucket=bucket)
        for key, body in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=body)

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Refuse everybody, for nobody has an account there."""
        self._check_after("0")
        try:
            yield
        finally:
            self._check_after("inf")

    def _check_after(self, requests: str) -> None:
        httpx.post(f"{self.url}/moto-api/reset-auth", content=requests).raise_for_status()


@contextmanager
def open_storage() -> Iterator[Storage]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Storage(f"http://{host}:{port}")
    finally:
        server.stop()


def set_credentials(monkeypatch: pytest.MonkeyPatch, access_key: str | None = ACCESS_KEY) -> None:
    """Let boto3 find these credentials and nothing of the machine that the tests run on."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
    if access_key is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
