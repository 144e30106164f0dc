"""What `order.*` events change.

The subscription embedded in an order is not looked at: Polar may send it stale (polarsource/polar#6134).
"""

from msgspec import Struct

from handlers.events import Customer, Event, Order, read
from handlers.state import CustomerState, fact, with_customer, with_fact


class _Embedded(Struct):
    customer: Customer | None = None


def changed(state: CustomerState, event: Event) -> CustomerState:
    """Any `order.*`: the order as it is now."""
    state = with_fact(state, event, "orders", fact(event, read(event, Order)))
    return with_customer(state, event, read(event, _Embedded).customer, full=False)
