"""What `benefit_grant.*` events change.

All four are upserts: `.created` does not mean granted, it comes again for the same grant, and `.revoked` may be the
first that we hear of a grant (polar.md 1.5). `is_granted` and `is_revoked` say what holds.
"""

from msgspec import Struct

from handlers.events import Customer, Event, Member, PolarGrant, read
from handlers.members import with_member
from handlers.state import CustomerState, fact, with_customer, with_fact


class _Embedded(Struct):
    customer: Customer | None = None
    member: Member | None = None


def changed(state: CustomerState, event: Event) -> CustomerState:
    """Any `benefit_grant.*`: the grant as it is now, with the customer and the person it is for."""
    state = with_fact(state, event, "grants", fact(event, read(event, PolarGrant)))
    embedded = read(event, _Embedded)
    return with_member(with_customer(state, event, embedded.customer, full=True), event, embedded.member)
