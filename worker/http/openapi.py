"""The OpenAPI document: Litestar's own, with what every route has in common said once, and said rightly."""

from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, OpenAPIResponse, Operation, PathItem, SecurityScheme

_LITESTARS = "Bad request syntax or unsupported method"
"""What Litestar says of a status that it does not answer here: malformed requests are 422, as at Polar."""
_PROBLEM = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "detail": {}},
    "required": ["error", "detail"],
}
_COMMON = {
    "401": "No token, or an unknown one",
    "404": "There is no such thing, or no such API version",
    "413": "The body is larger than it may be",
    "422": "The request is malformed: a list of problems",
    "503": "The database cannot be used now",
}

_WITHOUT_BODY = frozenset(("204", "302", "304"))


class OpenAPIDocument(JsonRenderPlugin):
    """`/schema/openapi.json`."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002
        """Return the document."""
        return msgspec.json.encode(completed(openapi_schema))


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the statuses that any route may answer, in the one shape that errors have."""
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    schemas = document.get("components", {}).get("schemas", {}) | {"Problem": _PROBLEM}
    paths = {
        path: {name: _operation(path, part, problem) if name != "parameters" else part for name, part in item.items()}
        for path, item in document["paths"].items()
    }
    return document | {"paths": paths, "components": document.get("components", {}) | {"schemas": schemas}}


def _operation(path: str, operation: dict[str, Any], problem: dict[str, Any]) -> dict[str, Any]:
    responses = {
        status: _described(status, answer)
        for status, answer in operation["responses"].items()
        if not (status == "400" and answer["description"] == _LITESTARS)
    }
    common = {
        status: {"description": _COMMON[status], "content": problem}
        for status in _possible(path, operation)
        if status not in responses
    }
    return operation | {"responses": dict(sorted((responses | common).items()))}


def _possible(path: str, operation: dict[str, Any]) -> list[str]:
    """Return which of the common statuses a route may answer."""
    possible = ["503"] if path != "/healthz" else []
    if operation.get("security") != [{}]:
        possible.append("401")
    if path.startswith("/v1/"):
        possible.append("404")
    if operation.get("parameters") or "requestBody" in operation:
        possible.append("422")
    if "requestBody" in operation:
        possible.append("413")
    return possible


def _described(status: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Say of JSON that is written as bytes that it is an object, and of what has no body that it has none."""
    content = answer.get("content", {})
    if status in _WITHOUT_BODY:
        return {name: value for name, value in answer.items() if name != "content"}
    if content.get("application/json", {}).get("schema") == {"type": "string"}:
        return answer | {"content": {"application/json": {"schema": {"type": "object"}}}}
    return answer


def openapi_config() -> OpenAPIConfig:
    """Return how the document is made."""

    def answer(text: str) -> OpenAPIResponse:
        return OpenAPIResponse(description=text)

    webhook = Operation(
        operation_id="polarWebhook",
        summary="POST /webhooks/polar",
        description="Polar's signed webhook. Every answer is JSON.",
        responses={
            "202": answer("Stored durably: accepted, duplicate or ignored"),
            "400": answer("Not an event: the wrong format, or not JSON"),
            "403": answer("The signature or the timestamp does not verify"),
            "405": answer("Not a POST"),
            "408": answer("The body did not arrive in time"),
            "413": answer("Larger than ALMONER_MAX_BODY_BYTES"),
            "415": answer("Not application/json, or compressed"),
            "503": answer("Cannot be stored now; Polar sends it again"),
        },
    )
    return OpenAPIConfig(
        title="Almoner",
        version=version("almoner"),
        description="Fulfils what customers bought at Polar, and answers what they may use.",
        path="/schema",
        webhooks={"polar": PathItem(post=webhook)},
        components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"token": []}],
        render_plugins=[OpenAPIDocument(path="/openapi.json")],
    )
