"""Files from a local folder or from S3-compatible storage. What a link gives is decided at every click."""

import asyncio
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote

from pydantic import Field, field_validator, model_validator

from config.catalogue import BenefitConfig, Per
from config.settings import Settings
from connectors.base import (
    ActionRequired,
    ConnectorError,
    Holding,
    Presentation,
    Receipt,
    Recipient,
    Rejected,
    Tools,
    Unavailable,
)
from connectors.http import error_for_status, retry_after

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_LONGEST_LINK_SECONDS = 60


class Terms(BenefitConfig):
    """Files in a folder, or in a bucket."""

    folder: str | None = Field(default=None, description="a local folder")
    bucket: str | None = Field(default=None, description="a bucket of S3-compatible storage")
    key_prefix: str = Field(default="", description="stands before each file's name in the bucket, like `releases/`")
    files: tuple[str, ...] = Field(min_length=1, description="names below the folder or the prefix")

    @field_validator("files")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not is_safe(name):
                raise ValueError(f"{name!r} is not a plain name below the folder: no leading /, no .., no backslash")
        if len(set(names)) != len(names):
            raise ValueError("a file is named twice")
        return names

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.folder is None) == (self.bucket is None):
            raise ValueError("give exactly one of folder and bucket")
        return self


def is_safe(name: str) -> bool:
    """Whether a name can only mean a file below its folder."""
    if not name or "\\" in name or not name.isprintable():
        return False
    parts = name.split("/")
    return all(part not in {"", ".", ".."} for part in parts) and not PurePosixPath(name).is_absolute()


class FileDownload:
    """Gives files by links that are checked against the live grant at every click."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = True

    def __init__(self, tools: Tools) -> None:
        self._passes = tools.passes
        self._settings = tools.settings
        self._executor = tools.executor
        self._now = tools.now
        self._s3: S3Client | None = None

    @staticmethod
    def missing(_config: Terms, _settings: Settings) -> list[str]:
        """Return what the settings lack for this benefit: credentials are read as every AWS tool reads them."""
        return []

    def resource(self, to: Recipient, config: Terms) -> str:
        """Return the name of this customer's way to the files."""
        return ":".join(["file_download", config.benefit, to.customer_id, to.member_id or "", to.purchase or ""])

    async def grant(self, to: Recipient, config: Terms, held: Receipt | None) -> Receipt:  # noqa: ARG002 - made anew each time
        """Look that every file is there, list them, and open the pass. Raises ActionRequired for a missing file."""
        data: dict[str, Any] = {"folder": config.folder} if config.folder else _bucket(config)
        size_of = self._size_in_folder if config.folder else self._size_in_bucket
        data["files"] = [{"name": name, "size": await size_of(config, name)} for name in config.files]
        resource = self.resource(to, config)
        await self._passes.open(resource)
        return Receipt(resource, data)

    async def revoke(self, held: Receipt) -> None:
        """Close the pass: no click gets anything from now on."""
        await self._passes.close(held.resource)

    async def holds(self, held: Receipt) -> Holding:
        """Read the pass back."""
        return Holding.HELD if await self._passes.is_open(held.resource) else Holding.GONE

    def offer(self, held: Receipt) -> dict[str, Any]:
        """Return the files' names and sizes; links come when they are asked for."""
        return {"kind": "files", "files": held.data["files"]}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:
        """Add a link to each file."""
        files = [one | {"url": at.download_url(grant_id, one["name"])} for one in offer["files"]]
        return offer | {"files": files}

    async def presigned_url(self, held: Receipt, name: str, seconds: int) -> str:
        """Return an address of the file in storage, good for `seconds`, at most 60. Raises ConnectorError."""
        _listed(held.data, name)
        client = await self._client()
        file_name = PurePosixPath(name).name
        return client.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": held.data["bucket"],
                "Key": held.data["key_prefix"] + name,
                "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(file_name, safe='')}",
            },
            ExpiresIn=min(seconds, _LONGEST_LINK_SECONDS),
        )

    async def _size_in_folder(self, config: Terms, name: str) -> int:
        path = local_path({"folder": config.folder, "files": [{"name": name}]}, name)
        try:
            return (await asyncio.to_thread(path.stat)).st_size
        except OSError:
            raise _missing_file(config, name, f"the folder {config.folder}") from None

    async def _size_in_bucket(self, config: Terms, name: str) -> int:
        from botocore.exceptions import BotoCoreError, ClientError

        client = await self._client()
        call = partial(client.head_object, Bucket=config.bucket or "", Key=config.key_prefix + name)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except ClientError as error:
            raise self._storage_error(error.response, config, name) from None
        except BotoCoreError as error:
            raise Unavailable(f"the storage cannot be reached: {type(error).__name__}") from None
        return found["ContentLength"]

    def _storage_error(self, response: Any, config: Terms, name: str) -> ConnectorError:  # noqa: ANN401 - botocore's
        answer = response.get("ResponseMetadata", {})
        status = int(answer.get("HTTPStatusCode", 500))
        if status == 404:
            return _missing_file(config, name, f"the bucket {config.bucket}")
        wait = retry_after(answer.get("HTTPHeaders", {}).get("retry-after"), self._now())
        code = response.get("Error", {}).get("Code", status)
        return error_for_status(status, f"the storage answered {status} ({code}) for {name}", retry_after=wait)

    async def _client(self) -> "S3Client":
        """Return the client, made once: it costs 0.15 s, and importing boto3 0.6 s."""
        if self._s3 is None:
            loop = asyncio.get_running_loop()
            try:
                self._s3 = await loop.run_in_executor(self._executor, _make_client, self._settings)
            except Exception as error:
                raise ActionRequired(f"the storage's settings are wrong: {error}", who="merchant") from error
        return self._s3


def _make_client(settings: Settings) -> "S3Client":
    import boto3
    from botocore.config import Config as BotoConfig

    seconds = max(settings.call_timeout.total_seconds() / 2, 0.5)
    session = boto3.session.Session()
    return session.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        region_name=session.region_name or "us-east-1",
        config=BotoConfig(
            # boto3 presigns with version 2 unless told otherwise, which newer storage refuses.
            signature_version="s3v4",
            s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=seconds,
            read_timeout=seconds,
        ),
    )


def _bucket(config: Terms) -> dict[str, Any]:
    return {"bucket": config.bucket, "key_prefix": config.key_prefix}


def _missing_file(config: Terms, name: str, where: str) -> ActionRequired:
    return ActionRequired(
        f"the file {name} of benefit {config.benefit} is not in {where}; put it there", who="merchant"
    )


def _listed(data: dict[str, Any], name: str) -> None:
    if name not in {one["name"] for one in data["files"]}:
        raise Rejected(f"{name} is not one of the files that were given")


def local_path(data: dict[str, Any], name: str) -> Path:
    """Return where a given file of a local folder is. Raises Rejected for any other, wherever links may lead."""
    _listed(data, name)
    folder = Path(data["folder"]).resolve()
    path = (folder / name).resolve()
    if not is_safe(name) or not path.is_relative_to(folder):
        raise Rejected(f"{name} is not below the folder")
    if path.exists() and not path.is_file():
        raise Rejected(f"{name} is not a file")
    return path
