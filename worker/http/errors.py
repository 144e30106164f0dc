"""Errors of the API in one shape, Polar's: `{"error": "ClassName", "detail": ...}`."""

import sqlite3
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, NotFoundException, ValidationException
from litestar.status_codes import (
    HTTP_400_BAD_REQUEST,
    HTTP_422_UNPROCESSABLE_ENTITY,
    HTTP_500_INTERNAL_SERVER_ERROR,
    HTTP_503_SERVICE_UNAVAILABLE,
)
from sqlalchemy.exc import SQLAlchemyError

log = structlog.get_logger()

_NAMES = {
    400: "BadRequest", 401: "Unauthorized", 403: "NotPermitted", 404: "ResourceNotFound", 405: "MethodNotAllowed",
    410: "Gone", 413: "PayloadTooLarge", 415: "UnsupportedMediaType", 416: "RangeNotSatisfiable",
    422: "RequestValidationError", 429: "RateLimitExceeded", 503: "Unavailable",
}  # fmt: skip


DATABASE_ERRORS = (SQLAlchemyError, sqlite3.Error, OSError)
"""OSError is asyncpg's, when nothing answers."""


class ApiError(HTTPException):
    """An error with its name in the API, its status, and a sentence for whoever called."""

    def __init__(self, status_code: int, detail: str, *, name: str | None = None, **headers: str) -> None:
        super().__init__(detail=detail, status_code=status_code, headers=headers or None)
        self.name = name or _NAMES[status_code]


Told = tuple[int, dict[str, Any], dict[str, str]]
"""Status, document and headers of an answer."""


def told(error: Exception, path: str) -> Told:
    """Return the answer to an error. What is nobody's doing but ours, or the database's, goes to the log only."""
    if isinstance(error, NotFoundException) and path.startswith("/v1/"):  # no record is missing, but the route
        text = f"Almoner does not serve {path[:200]}; /schema/openapi.json says what it does. Ask Polar itself"
        return error.status_code, {"error": _NAMES[404], "detail": text}, {}
    if isinstance(error, HTTPException):
        name = error.name if isinstance(error, ApiError) else _NAMES.get(error.status_code, "Error")
        return error.status_code, {"error": name, "detail": error.detail}, error.headers or {}
    if isinstance(error, DATABASE_ERRORS):
        log.error("the database failed", error=type(error).__name__)
        document = {"error": "Unavailable", "detail": "the database cannot be used now"}
        return HTTP_503_SERVICE_UNAVAILABLE, document, {"retry-after": "5"}
    for place in ("/downloads/", "/me/enter/"):  # what follows is a token
        if path.startswith(place):
            path = f"{place}..."
    log.error("a request failed", path=path, exc_info=error)
    detail = "a fault of Almoner's; its log says more"
    return HTTP_500_INTERNAL_SERVER_ERROR, {"error": "InternalServerError", "detail": detail}, {}


def on_error(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """Answer an error."""
    status_code, document, headers = told(error, request.url.path)
    return Response(document, status_code=status_code, headers=headers)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    """Answer an error that was raised on purpose. A body that is not JSON is as malformed as one with wrong fields."""
    if error.status_code == HTTP_400_BAD_REQUEST and not isinstance(error, ApiError):
        problem = {"type": "json_invalid", "loc": ["body"], "msg": error.detail}
        return _malformed([problem])
    return on_error(request, error)


def on_validation_error(_request: Request[Any, Any, Any], error: ValidationException) -> Response[dict[str, Any]]:
    """Answer a malformed request as Polar does: 422 and a list of problems."""
    problems = [
        {"type": "value_error", "loc": [found.get("source", "body"), found.get("key", "")], "msg": found["message"]}
        for found in (error.extra or [])
        if isinstance(found, dict)
    ]
    return _malformed(problems or error.detail)


def _malformed(detail: object) -> Response[dict[str, Any]]:
    document = {"error": "RequestValidationError", "detail": detail}
    return Response(document, status_code=HTTP_422_UNPROCESSABLE_ENTITY)
