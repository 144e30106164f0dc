"""What a benefit of GitHub repositories says in the catalogue."""

import re
from collections.abc import Mapping
from typing import Self

from pydantic import Field, field_validator, model_validator

from config.catalogue import BenefitConfig
from connectors.github.given import AS_PERMISSION

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,60})/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")


class Terms(BenefitConfig):
    """One repository, or several, which are parts of their own."""

    repository: str | None = Field(default=None, description="a repository, as `owner/name`")
    repositories: tuple[str, ...] | None = Field(default=None, description="several, each given apart from the others")
    permission: str = Field(
        default="pull", description="`pull`, `triage`, `push`, `maintain`, `admin`, or a role of your organization"
    )
    invitations: int = Field(
        default=3, ge=1, le=20, strict=True, description="how often a customer is invited before they must ask again"
    )
    remove_members: bool = Field(
        default=False, strict=True, description="take access also from those who had it before they bought"
    )

    @field_validator("repository")
    @classmethod
    def _one(cls, name: str | None) -> str | None:
        return name if name is None else _checked(name)

    @field_validator("repositories")
    @classmethod
    def _all(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and not names:
            raise ValueError("name at least one repository")
        if names and len({name.lower() for name in names}) != len(names):
            raise ValueError("a repository is named twice; GitHub does not tell capitals from small letters")
        return names and tuple(_checked(name) for name in names)

    @field_validator("permission")
    @classmethod
    def _role(cls, role: str) -> str:
        if role in AS_PERMISSION:
            raise ValueError(f"write {AS_PERMISSION[role]!r}, GitHub's word for it here, instead of {role!r}")
        if not role or role != role.strip() or len(role) > 100:
            raise ValueError("write pull, triage, push, maintain, admin, or the name of a role of your organization")
        return role

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.repository is None) == (self.repositories is None):
            raise ValueError("give exactly one of repository and repositories")
        return self

    def parts(self) -> Mapping[str, BenefitConfig]:
        """Return a part for each of several repositories, by its name in small letters."""
        if self.repositories is None:
            return {"": self}
        alone = {"repository": None, "repositories": None}
        return {name.lower(): self.model_copy(update=alone | {"repository": name}) for name in self.repositories}

    @property
    def names(self) -> tuple[str, ...]:
        """Every repository that is named."""
        return self.repositories or ((self.repository,) if self.repository else ())


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name.lower().endswith(".git"):
        raise ValueError(f"{name!r} is not a repository's name; write it as owner/name, without an address or .git")
    return name
