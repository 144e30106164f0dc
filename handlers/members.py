"""What `member.*` events change: the people under a customer."""

import msgspec

from handlers.events import Event, Member, read
from handlers.state import CustomerState, fact, with_fact


def described(state: CustomerState, event: Event) -> CustomerState:
    """`member.created`, `.updated`: the member as they are now."""
    return with_member(state, event, read(event, Member))


def deleted(state: CustomerState, event: Event) -> CustomerState:
    """`member.deleted`: final, for Polar never reuses a member's id."""
    return with_member(state, event, msgspec.structs.replace(read(event, Member), deleted=True))


def with_member(state: CustomerState, event: Event, member: Member | None) -> CustomerState:
    """Merge a member, sent for itself or embedded in a grant or seat."""
    if member is None:
        return state
    return with_fact(state, event, "members", fact(event, member, final=member.deleted))
