"""The catalogue: one reviewed TOML file that says what each benefit is and what entitles to it."""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from config.durations import Duration

_KEY = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")

Per = Literal["customer", "purchase"]


class CatalogueError(Exception):
    """The benefits file is wrong; `problems` has one sentence each, ready to print."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.problems = problems


class BenefitConfig(BaseModel):
    """What a connector needs to know of one benefit; each connector extends it with its own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benefit: str = Field(description="the benefit's key; set by the catalogue, not in the file")

    def parts(self) -> "Mapping[str, BenefitConfig]":
        """Return what the benefit is made of, by a name that stays the same: each part has a grant of its own.

        Most are one thing, without a name; two repositories are two things that can be given apart from each other.
        """
        return {"": self}


class Sources(BaseModel):
    """What entitles to a benefit: Polar benefits, Polar products, or both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benefits: tuple[str, ...] = ()
    products: tuple[str, ...] = ()

    @field_validator("benefits", "products")
    @classmethod
    def _ids(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        for one in ids:
            try:
                UUID(one)
            except ValueError:
                raise ValueError(f"{one!r} is not an id; Polar's ids look like 5a4e9d3c-...") from None
        return tuple(str(UUID(one)) for one in ids)


class _Terms(BaseModel):
    """The part of a benefit's table that is the same for every connector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connector: str
    sources: Sources = Field(default=Sources(), alias="for")
    description: str = ""
    grace: Duration | None = None
    trials: bool = True
    per: Per | None = None


@dataclass(frozen=True)
class Part:
    """What one grant of a benefit is made from. When the digest changes, it is settled again."""

    config: BenefitConfig
    digest: str


@dataclass(frozen=True)
class Benefit:
    """A thing that the merchant promises."""

    key: str
    connector: str
    description: str
    by_benefits: frozenset[str]
    by_products: frozenset[str]
    grace: timedelta
    trials: bool
    per: Per
    config: BenefitConfig
    platform: str | None
    """Where a customer needs an account for it; what they have elsewhere is nothing to it."""
    parts: Mapping[str, Part]
    """What is given, each by a grant of its own: one without a name, or several with names."""

    def __hash__(self) -> int:
        """Hash by the key, which is unique in a catalogue."""
        return hash(self.key)


@dataclass(frozen=True)
class ConnectorTerms:
    """What the catalogue needs to know of a connector: the form of its config, and its default `per`."""

    config: type[BenefitConfig]
    per: Per
    platform: str | None = None
    """Where a customer needs an account for it."""


@dataclass(frozen=True)
class Catalogue:
    """All benefits by key, the text they were read from, and its digest."""

    benefits: Mapping[str, Benefit]
    text: str
    digest: str
    grace: timedelta = timedelta()
    """That of benefits which name none: whoever reads the text again must read it with this."""

    def __hash__(self) -> int:
        """Hash by the digest."""
        return hash(self.digest)


def read_catalogue(path: Path, connectors: Mapping[str, ConnectorTerms], grace: timedelta) -> Catalogue:
    """Read the benefits file. `grace` is for benefits that name none. Raises CatalogueError with every problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(str(path), [f"cannot be read: {error}"]) from None
    return parse_catalogue(text, connectors, grace, source=str(path))


def parse_catalogue(
    text: str, connectors: Mapping[str, ConnectorTerms], grace: timedelta, *, source: str = "benefits"
) -> Catalogue:
    """Make a catalogue of TOML text, checked as a whole. Raises CatalogueError with every problem."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(source, [f"is not TOML: {error}"]) from None
    problems = [
        f"{name}: unknown at the top; benefits stand under [benefits.<key>]" for name in document if name != "benefits"
    ]
    benefits: dict[str, Benefit] = {}
    tables = document.get("benefits", {})
    if not isinstance(tables, dict):
        raise CatalogueError(source, ["benefits: write one table a benefit, like [benefits.pro-key]"])
    for key, table in tables.items():
        try:
            benefits[key] = _benefit(key, table, connectors, grace)
        except CatalogueError as error:
            problems += error.problems
    if problems:
        raise CatalogueError(source, problems)
    return Catalogue(benefits, text, hashlib.sha256(text.encode() + repr(grace).encode()).hexdigest(), grace)


def _benefit(key: str, table: Any, connectors: Mapping[str, ConnectorTerms], grace: timedelta) -> Benefit:  # noqa: ANN401 - whatever TOML holds
    where = f"benefits.{key}"
    if not _KEY.fullmatch(key):
        raise CatalogueError(where, [f"{where}: a key has small letters, digits, - and _, at most 63 of them"])
    if not isinstance(table, dict):
        raise CatalogueError(where, [f"{where}: must be a table"])
    common = {name: value for name, value in table.items() if name in {"for", *_Terms.model_fields} - {"sources"}}
    own = {name: value for name, value in table.items() if name not in common}
    if "benefit" in own:
        raise CatalogueError(where, [f"{where}: benefit: its key is the table's name; take this line out"])
    try:
        terms = _Terms.model_validate(common)
    except ValidationError as error:
        raise CatalogueError(where, _sentences(where, error)) from None
    if terms.connector not in connectors:
        known = ", ".join(connectors)
        raise CatalogueError(where, [f"{where}: there is no connector {terms.connector!r}; there are: {known}"])
    connector = connectors[terms.connector]
    try:
        config = connector.config.model_validate(own | {"benefit": key})
    except ValidationError as error:
        raise CatalogueError(where, _sentences(where, error)) from None
    return Benefit(
        key=key,
        connector=terms.connector,
        description=terms.description or key,
        by_benefits=frozenset(terms.sources.benefits),
        by_products=frozenset(terms.sources.products),
        grace=grace if terms.grace is None else terms.grace,
        trials=terms.trials,
        per=terms.per or connector.per,
        config=config,
        platform=connector.platform,
        parts={name: _part(terms.connector, part) for name, part in config.parts().items()},
    )


def _part(connector: str, config: BenefitConfig) -> Part:
    identity = json.dumps([connector, config.model_dump(mode="json")], sort_keys=True)
    return Part(config, hashlib.sha256(identity.encode()).hexdigest()[:16])


def _sentences(where: str, error: ValidationError) -> list[str]:
    return [
        f"{where}: {'.'.join(map(str, found['loc'])) or 'the table'}: {found['msg'].removeprefix('Value error, ')}"
        for found in error.errors()
    ]
