"""Holds what goes over the wire against a platform's own OpenAPI document, so that a fake cannot drift from it."""

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

_ROOT = "urn:specification"
_METHODS = {"get", "put", "post", "delete", "patch", "head", "options"}


class Specification:
    """An OpenAPI document, 3.0 or 3.1, gzipped. What violates it is a sentence in `violations`.

    `extra` names operations that the document lacks, like `GET /repositories/{id}`, each with the reason why they
    are real all the same. `anywhere` names statuses that every operation may answer, each with the reason.
    Needs `jsonschema`.
    """

    def __init__(
        self, path: Path, *, extra: Mapping[str, str] | None = None, anywhere: Mapping[int, str] | None = None
    ) -> None:
        from jsonschema import Draft202012Validator
        from referencing import Registry
        from referencing.jsonschema import DRAFT202012

        self.violations: list[str] = []
        self._document = _without_nullable(json.loads(gzip.decompress(path.read_bytes())))
        self._registry: Any = Registry().with_resource(_ROOT, DRAFT202012.create_resource(self._document))
        self._validator = Draft202012Validator
        self._validators: dict[tuple[str, ...], Any] = {}
        self._operations = [
            (method.upper(), _pattern(template), ("paths", template, method))
            for template, item in self._document["paths"].items()
            for method in item
            if method in _METHODS
        ]
        # `/users/@me` before `/users/{id}`: what names most comes first.
        self._operations.sort(key=lambda operation: operation[2][1].count("{"))
        self._extra = [(line.split(" ")[0], _pattern(line.split(" ")[1])) for line in extra or {}]
        self._anywhere = frozenset(anywhere or {})

    def check_request(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> None:
        """Check a request: `path` without the base address, percent-encoded or not; `body` as sent."""
        found = self._find(method, path)
        if found is None:
            return
        pointer, values, name = found
        for where, parameter in self._parameters(pointer):
            key, kind = parameter["name"], parameter["in"]
            given = values.get(key) if kind == "path" else query.get(key) if kind == "query" else None
            if given is None:
                if kind == "query" and parameter.get("required"):
                    self.violations.append(f"{name}: the parameter {key} is missing")
                continue
            schema = (*where, "schema")
            if not any(self._validator_of(schema).is_valid(value) for value in (given, _as_value(given))):
                self.violations.append(f"{name}: the parameter {key} is {given!r}")
        known = {parameter["name"] for _, parameter in self._parameters(pointer) if parameter["in"] == "query"}
        self.violations += [f"{name}: there is no parameter {key}" for key in query if key not in known]
        self._check_body(name, pointer, body)

    def check_answer(self, method: str, path: str, status: int, body: bytes) -> None:
        """Check an answer to a request of this method and path."""
        found = self._find(method, path)
        if found is None:
            return
        pointer, _, name = found
        responses = self._at(pointer)["responses"]
        key = next((key for key in (str(status), f"{status // 100}XX", "default") if key in responses), None)
        if key is None:
            if status not in self._anywhere:
                self.violations.append(f"{name}: the status {status} is not documented; {sorted(responses)} are")
            return
        where, response = self._resolved((*pointer, "responses", key))
        schema = self._schema(where, response)
        if schema is not None:
            self._check(f"{name}: the body of {status}", schema, body)
        elif body and status in {204, 304}:
            self.violations.append(f"{name}: the answer {status} has a body")

    def _find(self, method: str, path: str) -> tuple[tuple[str, ...], dict[str, str], str] | None:
        for allowed, pattern, pointer in self._operations:
            if allowed == method.upper() and (match := pattern.fullmatch(path)):
                values = {name.removeprefix("p_"): unquote(value) for name, value in match.groupdict().items()}
                return pointer, values, f"{method} {path}"
        if not any(allowed == method.upper() and pattern.fullmatch(path) for allowed, pattern in self._extra):
            self.violations.append(f"{method} {path}: there is no such operation")
        return None

    def _parameters(self, pointer: tuple[str, ...]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
        """Every parameter of an operation and of its path, and where each stands."""
        return [
            self._resolved((*at, "parameters", str(number)))
            for at in (pointer, pointer[:2])
            for number in range(len(self._at(at).get("parameters", ())))
        ]

    def _check_body(self, name: str, pointer: tuple[str, ...], body: bytes) -> None:
        if "requestBody" not in self._at(pointer):
            if body:
                self.violations.append(f"{name}: the request has a body, and none is documented")
            return
        where, request = self._resolved((*pointer, "requestBody"))
        if not body:
            if request.get("required"):
                self.violations.append(f"{name}: the request lacks its body")
            return
        schema = self._schema(where, request)
        if schema is not None:
            self._check(f"{name}: the request's body", schema, body)

    def _schema(self, where: tuple[str, ...], holder: Mapping[str, Any]) -> tuple[str, ...] | None:
        for kind in ("application/json", "application/scim+json", "application/x-www-form-urlencoded"):
            if "schema" in holder.get("content", {}).get(kind, {}):
                return None if kind.endswith("urlencoded") else (*where, "content", kind, "schema")
        return None

    def _check(self, what: str, pointer: tuple[str, ...], value: Any) -> None:
        if isinstance(value, bytes):
            try:
                value = json.loads(value)
            except ValueError:
                self.violations.append(f"{what} is not JSON")
                return
        for error in self._validator_of(pointer).iter_errors(value):
            self.violations.append(f"{what}: {'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message[:300]}")

    def _validator_of(self, pointer: tuple[str, ...]) -> Any:
        if pointer not in self._validators:
            fragment = "/".join(quote(part.replace("~", "~0").replace("/", "~1")) for part in pointer)
            self._validators[pointer] = self._validator({"$ref": f"{_ROOT}#/{fragment}"}, registry=self._registry)
        return self._validators[pointer]

    def _at(self, pointer: tuple[str, ...]) -> Any:
        at: Any = self._document
        for part in pointer:
            at = at[int(part)] if isinstance(at, list) else at[part]
        return at

    def _resolved(self, pointer: tuple[str, ...]) -> tuple[tuple[str, ...], Any]:
        at = self._at(pointer)
        while isinstance(at, dict) and "$ref" in at:
            pointer = tuple(unquote(part) for part in at["$ref"].removeprefix("#/").split("/"))
            at = self._at(pointer)
        return pointer, at


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"{([^}]+)}", template)
    return re.compile("".join(f"(?P<p_{part}>[^/]+)" if number % 2 else re.escape(part)
                              for number, part in enumerate(parts)))  # fmt: skip


def _as_value(text: str) -> Any:
    """What a parameter in an address means: it has no type there."""
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else {"true": True, "false": False}.get(text, text)


def _without_nullable(node: Any) -> Any:
    """OpenAPI 3.0's `nullable` as JSON Schema says it: https://spec.openapis.org/oas/v3.0.3#schema-object."""
    if isinstance(node, list):
        return [_without_nullable(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: _without_nullable(value) for key, value in node.items() if key not in {"example", "examples"}}
    if made.pop("nullable", None) is True:
        return {"anyOf": [made, {"type": "null"}]}
    return made
