"""What `subscription.*` events change. The name of the event is not asked: status and dates are facts, names are not."""

from msgspec import Struct

from handlers.events import Customer, Event, Subscription, read
from handlers.state import CustomerState, fact, with_customer, with_fact


class _Embedded(Struct):
    customer: Customer | None = None


def changed(state: CustomerState, event: Event) -> CustomerState:
    """Any `subscription.*`: the subscription as it is now."""
    state = with_fact(state, event, "subscriptions", fact(event, read(event, Subscription)))
    return with_customer(state, event, read(event, _Embedded).customer, full=False)
