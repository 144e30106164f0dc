"""Offline licences: who gets one, how long it is good, what it says, and how it is written. Pure.

The format, for those who write verifiers, is in docs/offline-licences.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from config.catalogue import Benefit, Catalogue
from connectors.license_key import Terms
from handlers import state as facts
from handlers.events import Subscription
from handlers.state import CustomerState
from worker.benefit_ids import id_in_keys
from worker.keyring import base64url
from worker.licensing import Activation, Key, Reason, Refused, check_standing, is_live, policy_of
from worker.reconcile import Because, Entitlement, entitled

_HEAD = "almoner1"


class NotOffered(Exception):
    """There is no licence for what was asked: the status and the sentence to answer with."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Licence(Struct, frozen=True, kw_only=True):
    """What a licence says. Times are UTC, in whole seconds."""

    version: Literal[1] = 1
    kid: str = ""
    """The key that signs it; known once it is signed."""
    id: str
    license_key_id: str
    display_key: str
    benefit: str
    benefit_id: str
    description: str
    customer_id: str
    external_customer_id: str | None
    organization_id: str | None
    activation_id: str | None
    fingerprint: str | None
    issued_at: datetime
    valid_until: datetime
    paid_through: datetime | None
    """None where it was bought once, or given by hand."""


@dataclass(frozen=True)
class Asked:
    """For which device a licence is wanted."""

    activation_id: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Known:
    """What there is to know of a license key."""

    key: Key
    activations: Sequence[Activation]
    """Those that were not ended."""
    state: CustomerState | None
    catalogue: Catalogue
    organization_id: str = ""
    """As set; else what Polar says of the customer counts."""

    @property
    def benefit(self) -> Benefit | None:
        """The key's benefit; None for a key that Polar issued, and where the catalogue has it no more."""
        return self.catalogue.benefits.get(self.key.benefit) if self.key.source == "own" else None


# How long.


@dataclass(frozen=True)
class Paid:
    """How far a purchase is paid, and until when it entitles if no further event comes. None: there is no end."""

    through: datetime | None
    until: datetime | None


def paid(why: Because, subscription: Subscription | None, grace: timedelta) -> Paid:
    """Return that of one reason to have the key. What is no subscription is paid once.

    It ends no later than what is answered online: grace is for a payment that may come late, not for a subscription
    that is to end; and once a payment has failed, its grace runs from then.
    """
    if subscription is None:
        return Paid(None, why.until)
    if why.standing == "grace":  # Polar begins the next period before it is paid (polar.md 1.6)
        return Paid(subscription.current_period_start, why.until)
    is_ending = subscription.cancel_at_period_end or subscription.pause_at_period_end
    through = _earliest(subscription.current_period_end, subscription.ends_at if is_ending else None)
    late = through + grace if through and not is_ending else through
    return Paid(through, _earliest(late, why.until))


def paid_best(reasons: Iterable[Because], subscriptions: Mapping[str, Subscription], grace: timedelta) -> Paid:
    """Return that of the reason which lasts longest."""
    found = [paid(why, subscriptions.get(why.subscription_id or ""), grace) for why in reasons]
    return max(found, key=lambda one: (one.until is None, one.until or datetime.min.replace(tzinfo=UTC)))


def valid_until(paid_until: datetime | None, cap: datetime, *ends: datetime | None) -> datetime:
    """Return when a licence ends: with what is paid, at the cap, or at any other end; in whole seconds."""
    return min(one for one in (paid_until, cap, *ends) if one).replace(microsecond=0)


def _earliest(*times: datetime | None) -> datetime | None:
    return min((one for one in times if one), default=None)


# For whom.


def draft(known: Known, asked: Asked, licence_id: str, now: datetime) -> Licence:
    """Return the licence of a key, not signed yet. Raises NotOffered, Refused."""
    key = known.key
    terms, benefit = offered(known)
    check_standing(key, now, status=403)
    activation = _activation(known, asked, now)
    why = _entitlement(known, now).because
    state = known.state or CustomerState(id=key.customer_id)
    subscriptions = {name: one.data for name, one in facts.subscriptions_now(state).items()}
    best = paid_best(why, subscriptions, benefit.grace)
    # An activation that is not validated for so long is somebody else's place then.
    released = activation.seen_at + terms.heartbeat if activation and terms.heartbeat else None
    ends = valid_until(best.until, now + (terms.offline or timedelta()), key.expires_at, released)
    if ends <= now:
        text = "What was paid for has ended, and Polar has not told of the next payment yet: ask again later"
        raise Refused(403, text, Reason.EXPIRED)
    customer = facts.customer_of(state)
    return Licence(
        id=licence_id,
        license_key_id=key.id,
        display_key=key.display_key,
        benefit=key.benefit,
        benefit_id=id_in_keys(benefit, key.benefit),
        description=benefit.description,
        customer_id=key.customer_id,
        external_customer_id=customer.external_id if customer else None,
        organization_id=known.organization_id or (customer.organization_id if customer else None) or None,
        activation_id=activation.id if activation else None,
        fingerprint=_fingerprint(activation, asked),
        issued_at=now.astimezone(UTC).replace(microsecond=0),
        valid_until=ends.astimezone(UTC),
        paid_through=best.through.astimezone(UTC).replace(microsecond=0) if best.through else None,
    )


def offered(known: Known) -> tuple[Terms, Benefit]:
    """Return the terms and the benefit of a key that has offline licences. Raises NotOffered."""
    benefit = known.benefit
    if known.key.source != "own":
        text = "Polar issued this key, and the benefits file does not say how long an offline licence of it may last"
        raise NotOffered(403, text)
    if benefit is None or not isinstance(benefit.config, Terms):
        raise NotOffered(403, f"The benefits file has no license key {known.key.benefit!r} any more")
    if benefit.config.offline is None:
        text = f'Offline licences of {benefit.key} are not offered; write offline = "30d" in [benefits.{benefit.key}]'
        raise NotOffered(403, text)
    return benefit.config, benefit


@dataclass(frozen=True)
class Offer:
    """What a customer can choose from: a licence for one of these devices, or where none has to be named, for any."""

    names_device: bool
    devices: Sequence[Activation]


def offer(known: Known, now: datetime) -> Offer | None:
    """Return what can be chosen; None where there is no licence of this key."""
    try:
        offered(known)
        check_standing(known.key, now, status=403)
    except (NotOffered, Refused):
        return None
    return Offer(known.key.limit_activations is not None, _devices(known, now))


def _devices(known: Known, now: datetime) -> list[Activation]:
    policy = policy_of(known.benefit)
    return [one for one in known.activations if is_live(one, policy, now)]


def _activation(known: Known, asked: Asked, now: datetime) -> Activation | None:
    """Return the device that is meant. Raises NotOffered where it must be said, or is none."""
    if asked.activation_id is None:
        if known.key.limit_activations is None:
            return None
        raise NotOffered(422, "This key has an activation limit: send the `activation_id` of the device it is for")
    for one in _devices(known, now):
        if one.id == asked.activation_id:
            return one
    raise NotOffered(404, "This key has no such activation, or not any more")


def _fingerprint(activation: Activation | None, asked: Asked) -> str | None:
    """Return which device it is bound to: as it was activated, else as asked. Raises Refused where they differ."""
    known = activation.conditions.get("fingerprint") if activation else None
    if known is None:
        return asked.fingerprint
    if asked.fingerprint not in {None, str(known)}:
        raise Refused(403, "This activation is of a device with another fingerprint", Reason.FINGERPRINT_MISMATCH)
    return str(known)


def _entitlement(known: Known, now: datetime) -> Entitlement:
    """Return why the customer has this key now. Raises Refused where they should not: it is about to be taken."""
    key = known.key
    due = entitled(known.state, known.catalogue, now) if known.state else ()
    for one in due:
        if (one.benefit, one.member_id, one.purchase) == (key.benefit, key.member_id, key.purchase):
            return one
    raise Refused(403, "License key is no longer active", Reason.REVOKED)


# As text.


@dataclass(frozen=True)
class Signed:
    """A licence, and the one line of text that it is for whoever verifies it."""

    licence: Licence
    text: str


def signed(drafted: Licence, kid: str, private_key: Ed25519PrivateKey) -> Signed:
    """Return the licence, signed by this key."""
    licence = msgspec.structs.replace(drafted, kid=kid)
    head = f"{_HEAD}.{base64url(msgspec.json.encode(licence))}"
    return Signed(licence, f"{head}.{base64url(private_key.sign(head.encode()))}")
