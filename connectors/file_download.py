"""Files from a local folder or from S3-compatible storage. What a link gives is decided at every click."""

import asyncio
import os
import re
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar
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
    Serving,
    Tools,
    Unavailable,
)
from connectors.http import error_for_status, retry_after

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

T = TypeVar("T")

_LONGEST_LINK_SECONDS = 60
_NEVER_IN_A_NAME = re.compile(r"[\\*?\x00-\x1f\x7f\ud800-\udfff]")
_NOT_PLAIN = re.compile(r'[^ -~]|["%]')


class Terms(BenefitConfig):
    """Files in a folder, or in a bucket."""

    folder: str | None = Field(default=None, min_length=1, description="a local folder")
    bucket: str | None = Field(default=None, min_length=1, description="a bucket of S3-compatible storage")
    key_prefix: str = Field(default="", description="stands before each file's name in the bucket, like `releases/`")
    files: tuple[str, ...] = Field(min_length=1, description="names below the folder or the prefix")

    @field_validator("files")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not is_safe(name):
                raise ValueError(
                    f"{name!r} is not an exact name below the folder: no leading /, no .., no backslash, no * or ?"
                )
        if len(set(names)) != len(names):
            raise ValueError("a file is named twice")
        return names

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.folder is None) == (self.bucket is None):
            raise ValueError("give exactly one of folder and bucket")
        if self.folder is not None and self.key_prefix:
            raise ValueError("key_prefix goes with bucket; with folder, write it into the folder")
        return self


def is_safe(name: str) -> bool:
    """Whether a name can only mean one file below its folder."""
    return not _NEVER_IN_A_NAME.search(name) and not {"", ".", ".."} & set(name.split("/"))


class FileDownload(Serving):
    """Gives files by links that are checked against the live grant at every click."""

    Config: ClassVar[type[BenefitConfig]] = Terms
    per: ClassVar[Per] = "customer"
    dynamic: ClassVar[bool] = True

    def __init__(self, tools: Tools) -> None:
        self._passes = tools.passes
        self._executor = tools.executor
        self._storage = _Storage(tools.settings, tools.now)

    @staticmethod
    def missing(config: Terms, settings: Settings) -> list[str]:  # noqa: ARG004 - as for all
        """Return what the settings lack for this benefit; AWS credentials are found as every AWS tool does."""
        if settings.environment == "production" and not settings.public_url:
            return ["ALMONER_PUBLIC_URL is missing: download links begin with it"]
        return []

    def resource(self, to: Recipient, config: Terms) -> str:
        """Return the name of this customer's way to the files."""
        return ":".join(["file_download", config.benefit, to.customer_id, to.member_id or "", to.purchase or ""])

    async def grant(self, to: Recipient, config: Terms, held: Receipt | None) -> Receipt:  # noqa: ARG002 - made anew each time
        """Look that every file is there, list them with sizes in bytes, and open the pass.

        Raises ActionRequired for a file that is missing or cannot be read, Unavailable while the storage is down.
        """
        resource = self.resource(to, config)
        sizes = await asyncio.gather(*(self._in_thread(self._size, config, name) for name in config.files))
        data: dict[str, Any] = {
            "benefit": config.benefit,
            "files": [{"name": name, "size": size} for name, size in zip(config.files, sizes, strict=True)],
        }
        data |= (
            {"folder": config.folder} if config.folder else {"bucket": config.bucket, "key_prefix": config.key_prefix}
        )
        await self._passes.open(resource)
        return Receipt(resource, data)

    async def revoke(self, held: Receipt, *, last: bool = True) -> None:  # noqa: ARG002 - each stands alone
        """Close the pass: no click gets anything from now on."""
        await self._passes.close(held.resource)

    async def holds(self, held: Receipt) -> Holding:
        """Read the pass back."""
        return Holding.HELD if await self._passes.is_open(held.resource) else Holding.GONE

    def offer(self, held: Receipt) -> dict[str, Any]:
        """Return the files' names and sizes; links come when they are asked for."""
        return {"kind": "files", "benefit": held.data["benefit"], "files": held.data["files"]}

    @staticmethod
    def present(offer: dict[str, Any], grant_id: str, at: Presentation) -> dict[str, Any]:
        """Add a link to each file."""
        files = [one | {"url": at.download_url(grant_id, one["name"])} for one in offer["files"]]
        return offer | {"files": files}

    async def presigned_url(self, held: Receipt, name: str, ttl_seconds: int) -> str:
        """Return an address of the file in storage, good for `ttl_seconds`, at most 60. Raises ConnectorError.

        Rejected: not a file of this receipt. ActionRequired: there are no AWS credentials.
        """
        _listed(held.data, name)
        return await self._in_thread(self._storage.presigned_url, held.data, name, ttl_seconds)

    def _size(self, config: Terms, name: str) -> int:
        if config.folder is not None:
            return _size_in_folder(config.benefit, config.folder, name)
        return self._storage.size(
            {"benefit": config.benefit, "bucket": config.bucket, "key_prefix": config.key_prefix}, name
        )

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)


def local_path(data: dict[str, Any], name: str) -> Path:
    """Return where a file of a receipt for a local folder is; it may have been deleted since.

    Raises Rejected for a name that is not in the receipt, for what lies outside of the folder once every link is
    followed, and for anything but a regular file.
    """
    _listed(data, name)
    if not is_safe(name) or "folder" not in data:
        raise Rejected(f"{name!r} is not below the folder")
    try:
        folder = Path(data["folder"]).resolve()
        path = (folder / name).resolve()
        # What is still a link once all are followed leads in a circle: since Python 3.13 that raises nothing.
        is_other = path.is_symlink() or (path.exists() and not path.is_file())
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, before 3.13
        raise Rejected(f"{name!r} cannot be looked up: {error}") from None
    if not path.is_relative_to(folder):
        raise Rejected(f"{name!r} is not below the folder: it is a link that leads out")
    if is_other:
        raise Rejected(f"{name!r} is not a file")
    return path


def content_disposition(file_name: str) -> str:
    """Return the header that has a browser save a file under this name: RFC 6266, with RFC 8187 for all but ASCII."""
    plain = _NOT_PLAIN.sub("_", file_name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file_name, safe='')}"


def _listed(data: dict[str, Any], name: str) -> None:
    if name not in {one["name"] for one in data.get("files", ())}:
        raise Rejected(f"{name!r} is not one of the files that were given")


def _size_in_folder(benefit: str, folder: str, name: str) -> int:
    """Return the bytes of a file that is there and can be read. Blocks. Raises ConnectorError."""
    where = f"the file {name} of benefit {benefit} in the folder {Path(folder).absolute()}"
    try:
        path = local_path({"folder": folder, "files": [{"name": name}]}, name)
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except Rejected as error:
        raise ActionRequired(f"{where} cannot be given: {error}", who="merchant") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ActionRequired(
            f"{where} is missing; put it there, or take it out of the benefit", who="merchant"
        ) from None
    except PermissionError:
        raise ActionRequired(f"{where} may not be read by the sidecar's user; let it", who="merchant") from None
    except OSError as error:
        raise Unavailable(f"{where} cannot be read now: {error.strerror}") from None


class _Storage:
    """S3-compatible storage by boto3. Every method blocks."""

    def __init__(self, settings: Settings, now: Callable[[], datetime]) -> None:
        self._settings = settings
        self._now = now
        self._lock = threading.Lock()
        self._made: S3Client | None = None

    def size(self, place: dict[str, Any], name: str) -> int:
        """Return the bytes of a stored file. `place` has benefit, bucket and key_prefix. Raises ConnectorError."""
        return self._asked(
            place, name, lambda s3: s3.head_object(Bucket=place["bucket"], Key=_key(place, name))["ContentLength"]
        )

    def presigned_url(self, place: dict[str, Any], name: str, ttl_seconds: int) -> str:
        """Return an address that gives the stored file to anybody for so long. Raises ConnectorError."""
        saved_as = content_disposition(PurePosixPath(name).name)
        return self._asked(
            place,
            name,
            lambda s3: s3.generate_presigned_url(
                "get_object",
                Params={"Bucket": place["bucket"], "Key": _key(place, name), "ResponseContentDisposition": saved_as},
                ExpiresIn=max(1, min(ttl_seconds, _LONGEST_LINK_SECONDS)),
            ),
        )

    def _asked(self, place: dict[str, Any], name: str, call: "Callable[[S3Client], T]") -> T:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,  # noqa: A004 - botocore's name
            CredentialRetrievalError,
            HTTPClientError,
            MetadataRetrievalError,
        )

        what = f"the file {name} of benefit {place['benefit']} in the bucket {place['bucket']}"
        try:
            return call(self._client())
        except ClientError as error:
            raise self._refusal(error, what) from None
        except (ConnectionError, HTTPClientError, CredentialRetrievalError, MetadataRetrievalError) as error:
            raise Unavailable(f"the storage cannot be reached for {what}: {type(error).__name__}") from None
        except (BotoCoreError, ValueError) as error:
            # Not the error's own text: it can quote addresses with passwords in them.
            reason = f"{what} cannot be asked for: {type(error).__name__}; look at ALMONER_S3_ENDPOINT_URL and the AWS_"
            raise ActionRequired(
                f"{reason} settings of the sidecar, and at the bucket's name", who="merchant"
            ) from None

    def _refusal(self, error: Any, what: str) -> ConnectorError:  # noqa: ANN401 - botocore's ClientError
        answer = error.response.get("ResponseMetadata", {})
        status = int(answer.get("HTTPStatusCode", 500))
        if status == 404:
            return ActionRequired(f"{what} is missing; put it there, or take it out of the benefit", who="merchant")
        reason = f"the storage answered {status} for {what}"
        if status in {401, 403}:
            # https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html: a missing object answers 403 to
            # credentials without s3:ListBucket.
            reason += "; the credentials need s3:GetObject and s3:ListBucket, or the file is missing"
        wait = retry_after(answer.get("HTTPHeaders", {}).get("retry-after"), self._now())
        return error_for_status(status, reason, retry_after=wait)

    def _client(self) -> "S3Client":
        """Return the client, made once: that costs 0.15 s, and importing boto3 0.6 s. It serves all threads."""
        with self._lock:
            if self._made is None:
                self._made = _make_client(self._settings)
            return self._made


def _key(place: dict[str, Any], name: str) -> str:
    return str(place["key_prefix"] + name)


def _make_client(settings: Settings) -> "S3Client":
    import boto3
    from botocore.config import Config

    seconds = settings.call_timeout.total_seconds() / 2
    session = boto3.session.Session()
    return session.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        region_name=session.region_name or "us-east-1",
        config=Config(
            # boto3 presigns with version 2 unless told otherwise, which newer storage refuses.
            signature_version="s3v4",
            s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
            # One attempt in all, for we retry ourselves; `max_attempts` would not count the first:
            # https://botocore.amazonaws.com/v1/documentation/api/latest/reference/config.html
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=seconds,
            read_timeout=seconds,
            max_pool_connections=settings.connector_calls,
        ),
    )
