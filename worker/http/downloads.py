"""GET /downloads/{token}: checked against the live grant at every click, not when the link was made.

Polar checks nothing at the click, so that a link outlives a revocation by up to two hours (polar.md 3.6 k).
"""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import sqlalchemy as sa
import structlog
from litestar import Request, Response, route
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK, HTTP_206_PARTIAL_CONTENT, HTTP_302_FOUND

from connectors.base import ConnectorError, Holding, Receipt, Unavailable
from connectors.file_download import FileDownload, local_path
from worker.http.context import Context
from worker.http.errors import ApiError
from worker.http.polar_api import fails, without_body
from worker.store import grants
from worker.store.models import GrantStatus

log = structlog.get_logger()

_CHUNK = 256 * 1024
_PRESIGNED_SECONDS = 60
_RANGE = re.compile(r"bytes=(?=-?[0-9])([0-9]{0,99})-([0-9]{0,99})", re.IGNORECASE)
_receipt = msgspec.json.Decoder(Receipt).decode
_ANSWERS = {
    **without_body(s206="A part of the file, as asked for by `Range`", s302="Where the file is, for a minute"),
    **fails(404, s404="Not a link of ours, or not given any more", s410="The link has ended", s416="No such range"),
}
_NOT_CACHED = {"cache-control": "private, no-store", "referrer-policy": "no-referrer"}


@route("/downloads/{token:str}", http_method=["GET", "HEAD"], tags=["downloads"], status_code=200, security=[{}],
       summary="Fetch a file that a live grant gives", media_type="application/octet-stream",
       responses=_ANSWERS)  # fmt: skip
async def download(request: Request[Any, Any, State], token: FromPath[str]) -> Response[Any]:
    """Return the file with range requests, or a redirect to storage that ends within a minute."""
    context: Context = request.app.state.context
    known = context.tokens.read(token)
    if known is None:
        raise ApiError(404, "This download link is not one of ours; ask for a new one where you found it")
    grant_id, name, ends = known
    now = context.now()
    if ends <= now:
        raise ApiError(410, "This download link has expired; ask for a new one where you found it")
    receipt = await _live_receipt(context, grant_id)
    connector = context.connectors["file_download"]
    if not isinstance(connector, FileDownload):  # pragma: no cover - the registry says so
        raise TypeError("file_download is served by another connector")
    try:
        if "bucket" in receipt.data:
            answer: Response[Any] = await _redirect(connector, receipt, name)
        else:
            answer = _serve(request, local_path(receipt.data, name), name)
    except ConnectorError as error:
        # The reason is the merchant's: it can name paths of the server.
        log.warning("a file that was given cannot be had", grant=grant_id, file=name, reason=str(error))
        status = 503 if isinstance(error, Unavailable) else 404
        raise ApiError(status, f"The file {name} cannot be had now; its merchant must look why") from None
    if request.method == "GET" and _is_first(request.headers.get("range"), answer):
        await context.database.write(lambda connection: grants.count_download(connection, grant_id, name, now))
    return answer


def _is_first(asked: str | None, answer: Response[Any]) -> bool:
    """Whether this is a download, and not the next piece of one."""
    return not asked or answer.status_code == HTTP_200_OK or asked.strip().lower().startswith("bytes=0-")


async def _live_receipt(context: Context, grant_id: str) -> Receipt:
    """Return the grant's receipt while the grant is live. Raises ApiError (403)."""

    def find(connection: sa.Connection) -> dict[str, Any] | None:
        rows = grants.by_ids(connection, [grant_id])
        return rows[0] if rows else None

    row = await context.database.read(find)
    gone = ApiError(403, "You do not have this file any more: what gave it has ended")
    if row is None or not row["wanted"] or row["status"] != GrantStatus.GRANTED or not row["receipt"]:
        raise gone
    if row["connector"] != "file_download" or (row["valid_until"] and row["valid_until"] <= context.now()):
        raise gone
    receipt = _receipt(row["receipt"])
    if await context.connectors["file_download"].holds(receipt) != Holding.HELD:
        raise gone
    return receipt


async def _redirect(connector: FileDownload, receipt: Receipt, name: str) -> Response[Any]:
    address = await connector.presigned_url(receipt, name, _PRESIGNED_SECONDS)
    return Response(b"", status_code=HTTP_302_FOUND, headers=_NOT_CACHED | {"location": address})


def _serve(request: Request[Any, Any, State], path: Path, name: str) -> Response[Any]:
    try:
        stat = path.stat()
    except OSError:
        raise ApiError(404, f"The file {name} is missing on the server; its merchant must put it back") from None
    size = stat.st_size
    tag = f'"{stat.st_mtime_ns:x}-{size:x}"'
    asked = None
    if request.method == "GET" and request.headers.get("if-range", tag) == tag:
        asked = _RANGE.fullmatch(request.headers.get("range", "").strip())
    start, end = _span(asked, size) if asked else (0, size)
    headers = _NOT_CACHED | {
        "accept-ranges": "bytes",
        "etag": tag,
        "content-length": str(end - start),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(Path(name).name, safe='')}",
        "x-content-type-options": "nosniff",
    }
    status = HTTP_200_OK
    if asked:
        status = HTTP_206_PARTIAL_CONTENT
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    if request.method == "HEAD":
        return Response(b"", status_code=status, headers=headers, media_type="application/octet-stream")
    return Stream(_read(path, start, end), status_code=status, headers=headers, media_type="application/octet-stream")


def _span(asked: re.Match[str], size: int) -> tuple[int, int]:
    """Return the first byte and the one after the last. Raises ApiError (416).

    What is no single range of bytes is not asked here, but ignored: https://www.rfc-editor.org/rfc/rfc9110#section-14.2
    """
    first, last = asked.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(size - int(last), 0), size
    if start >= end:
        raise ApiError(416, f"There is no such range in {size} bytes", **{"content-range": f"bytes */{size}"})
    return start, end


async def _read(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        file.seek(start)
        left = end - start
        while left > 0:
            piece = await asyncio.to_thread(file.read, min(_CHUNK, left))
            if not piece:
                return
            left -= len(piece)
            yield piece
