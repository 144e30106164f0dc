"""What `subscription.*` events change. Status and dates are facts; the name of the event is not asked."""

from msgspec import Struct

from handlers.events import Customer, Event, Subscription, read
from handlers.state import CustomerState, fact, with_customer, with_fact


class _Embedded(Struct):
    customer: Customer | None = None


def changed(state: CustomerState, event: Event) -> CustomerState:
    """Any `subscription.*`: the subscription as it is now."""
    state = with_fact(state, event, "subscriptions", fact(event, read(event, Subscription)))
    return with_customer(state, event, read(event, _Embedded).customer, full=False)
