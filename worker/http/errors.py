"""Errors of the API in one shape, Polar's: `{"error": "ClassName", "detail": ...}`."""

from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.status_codes import (
    HTTP_400_BAD_REQUEST,
    HTTP_422_UNPROCESSABLE_ENTITY,
    HTTP_500_INTERNAL_SERVER_ERROR,
    HTTP_503_SERVICE_UNAVAILABLE,
)

log = structlog.get_logger()

_NAMES = {
    400: "BadRequest", 401: "Unauthorized", 403: "NotPermitted", 404: "ResourceNotFound", 405: "MethodNotAllowed",
    410: "Gone", 413: "PayloadTooLarge", 415: "UnsupportedMediaType", 416: "RangeNotSatisfiable",
    422: "RequestValidationError", 429: "RateLimitExceeded", 503: "Unavailable",
}  # fmt: skip


class ApiError(HTTPException):
    """An error with its name in the API, its status, and a sentence for whoever called."""

    def __init__(self, status_code: int, detail: str, *, name: str | None = None, **headers: str) -> None:
        super().__init__(detail=detail, status_code=status_code, headers=headers or None)
        self.name = name or _NAMES[status_code]


def _answer(
    status_code: int,
    name: str,
    detail: object,
    headers: dict[str, str] | None = None,
) -> Response[dict[str, Any]]:
    return Response({"error": name, "detail": detail}, status_code=status_code, headers=headers)


def on_http_error(_request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    """Answer an error that was raised on purpose. A body that is not JSON is as malformed as one with wrong fields."""
    if error.status_code == HTTP_400_BAD_REQUEST and not isinstance(error, ApiError):
        problem = {"type": "json_invalid", "loc": ["body"], "msg": error.detail}
        return _answer(HTTP_422_UNPROCESSABLE_ENTITY, "RequestValidationError", [problem])
    name = error.name if isinstance(error, ApiError) else _NAMES.get(error.status_code, "Error")
    return _answer(error.status_code, name, error.detail, error.headers)


def on_validation_error(_request: Request[Any, Any, Any], error: ValidationException) -> Response[dict[str, Any]]:
    """Answer a malformed request as Polar does: 422 and a list of problems."""
    problems = [
        {"type": "value_error", "loc": [found.get("source", "body"), found.get("key", "")], "msg": found["message"]}
        for found in (error.extra or [])
        if isinstance(found, dict)
    ]
    return _answer(HTTP_422_UNPROCESSABLE_ENTITY, "RequestValidationError", problems or error.detail)


def on_database_error(_request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """Answer while the database cannot be used; what it said goes to the log only."""
    log.error("the database failed", error=type(error).__name__)
    return _answer(HTTP_503_SERVICE_UNAVAILABLE, "Unavailable", "the database cannot be used now", {"retry-after": "5"})


def on_any_error(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """Answer a fault of ours, without its details."""
    path = request.url.path
    for place in ("/downloads/", "/me/enter/"):  # what follows is a token
        if path.startswith(place):
            path = f"{place}..."
    log.error("a request failed", path=path, exc_info=error)
    return _answer(HTTP_500_INTERNAL_SERVER_ERROR, "InternalServerError", "a fault of Almoner's; its log says more")
