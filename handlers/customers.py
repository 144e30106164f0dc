"""What `customer.*` events change: who the customer is, and the newest snapshot of all they have."""

import msgspec

from handlers.events import Customer, Event, read, read_snapshot
from handlers.state import CustomerState, with_customer, with_snapshot


def described(state: CustomerState, event: Event) -> CustomerState:
    """`customer.created`, `.updated`: the customer as they are now."""
    return with_customer(state, event, read(event, Customer), full=True)


def deleted(state: CustomerState, event: Event) -> CustomerState:
    """`customer.deleted`: final. Nothing is owed any more, even if no other event arrives."""
    customer: Customer = read(event, Customer)
    gone = msgspec.structs.replace(customer, deleted_at=customer.deleted_at or event.timestamp)
    return with_customer(state, event, gone, full=True)


def state_changed(state: CustomerState, event: Event) -> CustomerState:
    """`customer.state_changed`: a snapshot that covers all that is older than it."""
    return with_snapshot(state, event, read_snapshot(event))
