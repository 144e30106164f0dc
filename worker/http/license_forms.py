"""What callers send about license keys, checked as Polar checks it: whatever is malformed is answered by 422."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

_WHOLE = 2**53
"""Beyond it no JSON reader in JavaScript tells numbers apart."""
_COLUMN = 2**31 - 1

Text = Annotated[str, Meta(max_length=500, pattern=r"^[^\x00]*$")]
"""No database keeps NUL."""
Name = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[^\x00]*$")]
Value = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
Number = Annotated[int, Meta(ge=-_WHOLE, le=_WHOLE)]
Fields = Annotated[dict[Name, Value | Number | float | bool], Meta(max_length=50)]
"""Conditions and meta: 50 fields at most, each a text, a number, or true or false."""
Count = Annotated[int, Meta(ge=0, le=_COLUMN)]
Most = Annotated[int, Meta(ge=1, le=_COLUMN)]


class _WithKey(Struct):
    """A form with a license key in it."""

    def __repr__(self) -> str:
        """Say what it is, but not the key: it would stand in every traceback."""
        return f"{type(self).__name__}(...)"


class Validate(_WithKey, kw_only=True):
    """Is this key valid, for this device, benefit and customer? And count uses on it, if asked to."""

    key: Text
    organization_id: UUID
    activation_id: UUID | None = None
    benefit_id: UUID | None = None
    customer_id: UUID | None = None
    increment_usage: Count | None = None
    conditions: Fields = {}


class Activate(_WithKey, kw_only=True):
    """Let a device use this key. Later validations must repeat the conditions exactly."""

    key: Text
    organization_id: UUID
    label: Text
    conditions: Fields = {}
    meta: Fields = {}


class Deactivate(_WithKey, kw_only=True):
    """Let a device use this key no more."""

    key: Text
    organization_id: UUID
    activation_id: UUID


class Update(Struct, kw_only=True):
    """What to change of a key; what is left out stays, null takes a limit or the end away."""

    status: Annotated[str, Meta(pattern="^(granted|revoked|disabled)$")] | UnsetType | None = UNSET
    usage: Count | UnsetType = UNSET
    limit_activations: Most | UnsetType | None = UNSET
    limit_usage: Most | UnsetType | None = UNSET
    expires_at: datetime | UnsetType | None = UNSET
