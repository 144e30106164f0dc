"""Customers' states as they are worked with: the facts, with what has tables of its own put in."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import sqlalchemy as sa

from config.settings import Settings
from handlers import state as facts
from handlers.state import CustomerState, KnownAccount
from worker.store import accounts, customers


def read_states(connection: sa.Connection, ids: Iterable[str], settings: Settings) -> dict[str, CustomerState]:
    """Return the states of these customers with their accounts; those that nothing is known of are left out."""
    encoded = customers.facts(connection, ids)
    kept = accounts.of_customers(connection, encoded)
    return {one: with_accounts(facts.decode(state), kept.get(one, ()), settings) for one, state in encoded.items()}


def with_grants_by_hand(states: Mapping[str, CustomerState], connection: sa.Connection) -> dict[str, CustomerState]:
    """Return the states with the grants that operators gave by hand."""
    manual = customers.manual_of(connection, states)
    return {one: msgspec.structs.replace(state, manual=manual.get(one, {})) for one, state in states.items()}


def with_accounts(state: CustomerState, kept: Sequence[KnownAccount], settings: Settings) -> CustomerState:
    """Return the state with its accounts: those that are kept, and those told in fields, by id where it was found."""
    if not kept and not settings.github_fields and not settings.discord_fields:
        return msgspec.structs.replace(state, accounts=()) if state.accounts else state
    found = [one for one in kept if one.source != "field"]
    identified = {_key(one): one for one in kept if one.source == "field"}
    for platform, fields in (("github", settings.github_fields), ("discord", settings.discord_fields)):
        told = facts.told_in_fields(state, platform, fields)
        found += [identified.get(_key(one), one) if one.name else one for one in told]
    return msgspec.structs.replace(state, accounts=tuple(found))


def _key(account: KnownAccount) -> tuple[str, str | None, str]:
    return account.platform, account.member_id, (account.name or "").lower()
