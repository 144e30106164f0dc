"""What `customer_seat.*` events change.

`customer_seat.revoked` is sent after Polar cleared the row: customer, member and email may be null. The seat's id and
its purchase are what remains, and the row may belong to somebody else later (polar.md 1.6).
"""

from msgspec import Struct

from handlers.events import Event, Member, Seat, read
from handlers.members import with_member
from handlers.state import CustomerState, fact, with_fact


class _Embedded(Struct):
    member: Member | None = None


def changed(state: CustomerState, event: Event) -> CustomerState:
    """Any `customer_seat.*`: the seat as it is now, and the person in it."""
    state = with_fact(state, event, "seats", fact(event, read(event, Seat)))
    return with_member(state, event, read(event, _Embedded).member)
