"""What `refund.*` events change."""

from handlers.events import Event, Refund, read
from handlers.state import CustomerState, fact, with_fact


def changed(state: CustomerState, event: Event) -> CustomerState:
    """Any `refund.*`: the refund as it is now, and whether it takes the benefits back."""
    return with_fact(state, event, "refunds", fact(event, read(event, Refund)))
