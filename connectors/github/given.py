"""What a receipt of a repository says: whose the access is, what was there before us, and what is to be there."""

from typing import Any

import msgspec

from connectors.base import Receipt

RANKS = {"pull": 1, "triage": 2, "push": 3, "maintain": 4, "admin": 5}
# Roles are called `read` and `write` where GitHub tells of them, `pull` and `push` where it is told:
# https://docs.github.com/en/rest/collaborators/collaborators#get-repository-permissions-for-a-user
AS_PERMISSION = {"read": "pull", "write": "push"}
AS_ROLE = {permission: role for role, permission in AS_PERMISSION.items()}


class Role(msgspec.Struct, frozen=True):
    """What an account may do: the role's name, and the base that a role of the organization stands on."""

    name: str
    base: str

    @property
    def permission(self) -> str:
        """The word with which this role is given."""
        return AS_PERMISSION.get(self.name, self.name)

    def suffices(self, wanted: str) -> bool:
        """Whether it allows all that the wanted permission does; that of a role with another own name is unknown."""
        rank = RANKS.get(self.permission) or RANKS.get(AS_PERMISSION.get(self.base, self.base), 0)
        return self.permission in {wanted, "admin"} or rank >= RANKS.get(wanted, 99)


class Before(msgspec.Struct, frozen=True):
    """What an account had before us."""

    role: Role
    """The highest, from all sources."""
    direct: str | None
    """The name of the one that was its own, by an invitation or directly; None where it came through a team."""


class Given:
    """What a receipt says, or, without data, what its resource alone does."""

    def __init__(self, receipt: Receipt) -> None:
        _, name, self.account = receipt.resource.split(":")
        self.receipt = receipt
        self.name: str = receipt.data.get("repository", name)
        self.login: str = receipt.data.get("login", self.account)
        self.before = msgspec.convert(receipt.data.get("before"), Before | None)
        self.takes_all: bool = receipt.data.get("takes_all", True)
        """Whether all goes when it is revoked: it came from us, or the benefit says so."""
        self.invitation_id: int | None = receipt.data.get("invitation_id")

    @property
    def about(self) -> str:
        """What it is about, to begin a sentence with."""
        return f"access to {self.name} for the GitHub account {self.account} ({self.login})"

    @property
    def is_raised(self) -> bool:
        """Whether what was there before us does not suffice."""
        return self.before is not None and not self.before.role.suffices(self.receipt.data["honoured"])

    @property
    def is_untouched(self) -> bool:
        """Whether there is nothing for us to take back."""
        return not self.takes_all and not self.is_raised

    @property
    def target(self) -> str:
        """The permission that the account is to have while we give: at least."""
        return str(self.receipt.data.get("honoured", "pull"))

    def was(self, role: str) -> bool:
        """Whether this very role was the account's own before us, and stays."""
        return not self.takes_all and self.before is not None and self.before.direct == role

    def held(self) -> Receipt:
        """Return the receipt of access that waits for nobody."""
        data = self.receipt.data | dict.fromkeys(("invitation_id", "invitation_url", "invitation_expires_at"))
        return msgspec.structs.replace(self.receipt, data=data, intended=False, waiting=None, offers=0)


def resource(name: str, account: str) -> str:
    """Name an account's access to a repository: by its number, which never changes."""
    return f"github_repository:{name.lower()}:{account}"


def wanting(data: dict[str, Any], permission: str, *, removes_members: bool, is_personal: bool) -> dict[str, Any]:
    """Add what the benefit wants now. Personal repositories have one permission: to write."""
    return data | {
        "permission": permission,
        "honoured": "push" if is_personal else permission,
        "takes_all": data["before"] is None or removes_members,
    }
