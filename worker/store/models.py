"""The tables. Times are UTC; JSON is kept as text, exactly as it was made."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Double, Index, Integer, LargeBinary, Text, text, true
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

# SQLite numbers rows by itself only for a column of type INTEGER, not BIGINT.
_Number = BigInteger().with_variant(Integer(), "sqlite")


# In the order of bytes on every server, as Python sorts: whoever takes several leases takes them in one order, and all
# resources of one scope stand together.
_Resource = Text().with_variant(Text(collation="C"), "postgresql")


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC on both databases; SQLite has no time zones and keeps it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone; SQLite gets it without the zone, in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        in_utc = value.astimezone(UTC)
        return in_utc.replace(tzinfo=None) if dialect.name == "sqlite" else in_utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give every time its zone back."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def _time(*, null: bool = True, index: bool = False) -> Any:  # noqa: ANN401 - SQLModel's Field
    return Field(default=None, sa_column=Column(UtcTime(), nullable=null, index=index))


class DeliveryStatus(StrEnum):
    """Where a delivery stands. `received = pending + done + ignored + dead`, always."""

    PENDING = "pending"
    DONE = "done"
    IGNORED = "ignored"
    DEAD = "dead"


class GrantStatus(StrEnum):
    """Where a grant stands."""

    GRANTING = "granting"
    PENDING = "pending"
    GRANTED = "granted"
    ACTION_REQUIRED = "action_required"
    REVOKING = "revoking"
    REVOKED = "revoked"
    FAILED = "failed"


class Delivery(SQLModel, table=True):
    """One verified webhook message as received."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("deliveries_pending", "next_attempt_at", "id", sqlite_where=text("status = 'pending'"),
              postgresql_where=text("status = 'pending'")),
        Index("deliveries_status", "status", "id", sqlite_where=text("status IN ('dead', 'ignored')"),
              postgresql_where=text("status IN ('dead', 'ignored')")),
        Index("deliveries_customer", "customer_id", "id", sqlite_where=text("customer_id IS NOT NULL"),
              postgresql_where=text("customer_id IS NOT NULL")),
        Index("deliveries_waiting", "waits_for", sqlite_where=text("waits_for IS NOT NULL"),
              postgresql_where=text("waits_for IS NOT NULL")),
    )  # fmt: skip

    id: int | None = Field(default=None, sa_column=Column(_Number, primary_key=True, autoincrement=True))
    webhook_id: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    type: str = Field(sa_column=Column(Text, nullable=False))
    status: DeliveryStatus = Field(sa_column=Column(Text, nullable=False))
    event_at: datetime | None = _time()
    sent_at: datetime = _time(null=False)
    received_at: datetime = _time(null=False)
    api_version: str | None = Field(default=None, sa_column=Column(Text))
    secret: str = Field(sa_column=Column(Text, nullable=False))
    digest: str = Field(sa_column=Column(Text, nullable=False))
    customer_id: str | None = Field(default=None, sa_column=Column(Text))
    waits_for: str | None = Field(default=None, sa_column=Column(Text))
    attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    replays: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    next_attempt_at: datetime = _time(null=False)
    processed_at: datetime | None = _time()
    reason: str | None = Field(default=None, sa_column=Column(Text))
    duplicates: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    last_duplicate_at: datetime | None = _time()
    conflicts: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Conflict(SQLModel, table=True):
    """Another body under an id that we already have: kept for a person, never processed."""

    __tablename__ = "conflicts"

    id: int | None = Field(default=None, sa_column=Column(_Number, primary_key=True, autoincrement=True))
    webhook_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    digest: str = Field(sa_column=Column(Text, nullable=False))
    received_at: datetime = _time(null=False)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Refusal(SQLModel, table=True):
    """A request that was not accepted, and why; the newest few are kept."""

    __tablename__ = "refusals"

    id: int | None = Field(default=None, sa_column=Column(_Number, primary_key=True, autoincrement=True))
    at: datetime = _time(null=False)
    status_code: int = Field(sa_column=Column(Integer, nullable=False))
    error: str = Field(sa_column=Column(Text, nullable=False))
    detail: str = Field(sa_column=Column(Text, nullable=False))
    webhook_id: str | None = Field(default=None, sa_column=Column(Text))
    size: int = Field(default=0, sa_column=Column(Integer, nullable=False))


class LedgerEntry(SQLModel, table=True):
    """How many deliveries entered or left an account, written in the transaction that moved them."""

    __tablename__ = "ledger"

    id: int | None = Field(default=None, sa_column=Column(_Number, primary_key=True, autoincrement=True))
    account: str = Field(sa_column=Column(Text, nullable=False))
    amount: int = Field(sa_column=Column(BigInteger, nullable=False))


class SecretUse(SQLModel, table=True):
    """When a webhook secret last matched, under its fingerprint, and by which of Polar's two schemes."""

    __tablename__ = "secret_uses"

    secret: str = Field(sa_column=Column(Text, primary_key=True))
    scheme: str = Field(sa_column=Column(Text, primary_key=True))
    first_used_at: datetime = _time(null=False)
    last_used_at: datetime = _time(null=False)


class CustomerRow(SQLModel, table=True):
    """One customer: the ready answers first, since they are read most, then the facts they are made of."""

    __tablename__ = "customers"
    __table_args__ = (
        Index("customers_due", "due_at", sqlite_where=text("due_at IS NOT NULL"),
              postgresql_where=text("due_at IS NOT NULL")),
    )  # fmt: skip

    id: str = Field(sa_column=Column(Text, primary_key=True))
    external_id: str | None = Field(default=None, sa_column=Column(Text, index=True))
    deleted: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    version: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    as_of: datetime | None = _time()
    due_at: datetime | None = _time()
    catalogue: str | None = Field(default=None, sa_column=Column(Text, index=True))
    polar_state: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    entitlements: bytes = Field(default=b"{}", sa_column=Column(LargeBinary, nullable=False))
    state: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))


class Link(SQLModel, table=True):
    """Which customer an object of Polar's belongs to: a purchase, a seat, a benefit that they hold."""

    __tablename__ = "links"

    kind: str = Field(sa_column=Column(Text, primary_key=True))
    object_id: str = Field(sa_column=Column(Text, primary_key=True))
    customer_id: str = Field(sa_column=Column(Text, primary_key=True))


class OfferingRow(SQLModel, table=True):
    """A product or a benefit as Polar last described it."""

    __tablename__ = "offerings"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    modified_at: datetime = _time(null=False)
    sent_at: datetime = _time(null=False)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    spread_after: str | None = Field(default=None, sa_column=Column(Text))
    """Up to which holder the change has been made known; None when all know it, or it changes nobody's answers."""


def _where(condition: str) -> dict[str, Any]:
    """Return the condition of an index, in the words that queries have for it."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition.replace("false", "0"))}


class ObjectRow(SQLModel, table=True):
    """One of Polar's objects as it was last sent, without secrets, and beside it what lists filter and sort by."""

    __tablename__ = "objects"
    __table_args__ = (
        Index("objects_created", "kind", "created_at", "id", **_where("deleted IS false")),
        Index("objects_started", "kind", "started_at", "id", **_where("deleted IS false AND started_at IS NOT NULL")),
        Index("objects_granted", "kind", "is_granted", "created_at", "id",
              **_where("deleted IS false AND is_granted IS NOT NULL")),
        Index("objects_benefit", "benefit_id", "kind", "created_at", "id",
              **_where("deleted IS false AND benefit_id IS NOT NULL")),
        Index("objects_customer", "customer_id", "kind", **_where("customer_id IS NOT NULL")),
        Index("objects_email", "email", "kind", **_where("email IS NOT NULL")),
    )  # fmt: skip

    kind: str = Field(sa_column=Column(Text, primary_key=True))
    """`customer`, `subscription`, `order`, `benefit_grant` or `benefit`."""
    id: str = Field(sa_column=Column(Text, primary_key=True))
    deleted: bool = Field(sa_column=Column(Boolean, nullable=False))
    """Polar has deleted it: it is in no list."""
    customer_id: str | None = Field(default=None, sa_column=Column(Text))
    organization_id: str | None = Field(default=None, sa_column=Column(Text))
    product_id: str | None = Field(default=None, sa_column=Column(Text))
    subscription_id: str | None = Field(default=None, sa_column=Column(Text))
    benefit_id: str | None = Field(default=None, sa_column=Column(Text))
    member_id: str | None = Field(default=None, sa_column=Column(Text))
    external_id: str | None = Field(default=None, sa_column=Column(Text))
    email: str | None = Field(default=None, sa_column=Column(_Resource))
    """In small letters."""
    name: str | None = Field(default=None, sa_column=Column(_Resource))
    """A customer's name, the name of a purchase's product, or a benefit's description."""
    type: str | None = Field(default=None, sa_column=Column(_Resource))
    status: str | None = Field(default=None, sa_column=Column(_Resource))
    amount: int | None = Field(default=None, sa_column=Column(BigInteger))
    """Cents: the net amount of an order, the amount of a subscription a month."""
    is_granted: bool | None = Field(default=None, sa_column=Column(Boolean))
    created_at: datetime = _time(null=False)
    modified_at: datetime | None = _time()
    started_at: datetime | None = _time()
    canceled_at: datetime | None = _time()
    current_period_end: datetime | None = _time()
    ends_at: datetime | None = _time()
    ended_at: datetime | None = _time()
    granted_at: datetime | None = _time()
    revoked_at: datetime | None = _time()
    body: str = Field(sa_column=Column(_Resource, nullable=False))
    """JSON."""


class GrantRow(SQLModel, table=True):
    """Our record of giving one benefit to one customer or member."""

    __tablename__ = "grants"
    __table_args__ = (
        Index("grants_unsettled", "next_attempt_at", sqlite_where=text("next_attempt_at IS NOT NULL"),
              postgresql_where=text("next_attempt_at IS NOT NULL")),
        Index("grants_customer", "customer_id"),
        Index("grants_resource", "resource"),
        Index("grants_held", "held"),
        Index("grants_status", "status", "id"),
        Index("grants_created", "created_at", "id"),
        Index("grants_benefit", "benefit", "created_at", "id"),
    )  # fmt: skip

    id: str = Field(sa_column=Column(Text, primary_key=True))
    customer_id: str = Field(sa_column=Column(Text, nullable=False))
    benefit: str = Field(sa_column=Column(Text, nullable=False))
    connector: str = Field(sa_column=Column(Text, nullable=False))
    member_id: str | None = Field(default=None, sa_column=Column(Text))
    purchase: str | None = Field(default=None, sa_column=Column(Text))
    part: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    wanted: bool = Field(sa_column=Column(Boolean, nullable=False))
    status: GrantStatus = Field(sa_column=Column(Text, nullable=False))
    standing: str | None = Field(default=None, sa_column=Column(Text))
    valid_until: datetime | None = _time()
    because: str = Field(default="[]", sa_column=Column(Text, nullable=False))
    target: str = Field(sa_column=Column(Text, nullable=False))
    generation: int = Field(default=1, sa_column=Column(Integer, nullable=False))
    settled_generation: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    resource: str | None = Field(default=None, sa_column=Column(_Resource))
    held: str | None = Field(default=None, sa_column=Column(_Resource))
    touched: str | None = Field(default=None, sa_column=Column(_Resource, index=True))
    """What was last given, or may have been: it stays when it is taken back, so that an audit knows our hand."""
    taken: str | None = Field(default=None, sa_column=Column(Text))
    """The receipt by which it was taken back."""
    receipt: str | None = Field(default=None, sa_column=Column(Text))
    attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    next_attempt_at: datetime | None = _time()
    who: str | None = Field(default=None, sa_column=Column(Text))
    reason: str | None = Field(default=None, sa_column=Column(Text))
    asked_at: datetime = _time(null=False)
    created_at: datetime = _time(null=False)
    granted_at: datetime | None = _time()
    revoked_at: datetime | None = _time()


class Lease(SQLModel, table=True):
    """Who may act on an external resource now. The token fences: only its owner may save."""

    __tablename__ = "leases"

    resource: str = Field(sa_column=Column(_Resource, primary_key=True))
    token: str = Field(sa_column=Column(Text, nullable=False))
    until: datetime = _time(null=False)


class Limit(SQLModel, table=True):
    """A limit of a platform: the calls of the last while, and until when nothing is called at all."""

    __tablename__ = "limits"

    name: str = Field(sa_column=Column(_Resource, primary_key=True))
    most: int | None = Field(default=None, sa_column=Column(Integer))
    """What the platform said that its limit is; None while it has not."""
    seconds: float | None = Field(default=None, sa_column=Column(Double))
    calls: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    """Unix times, as doubles: the places that were taken, in order."""
    promised: bytes = Field(default=b"", sa_column=Column(LargeBinary, nullable=False))
    """When those were told to come again who found no place."""
    parked_until: datetime | None = _time()
    reason: str | None = Field(default=None, sa_column=Column(Text))


class AccountRow(SQLModel, table=True):
    """An account of a customer or member at a platform, and who told us of it."""

    __tablename__ = "accounts"
    __table_args__ = (Index("accounts_account", "platform", "account_id"),)

    customer_id: str = Field(sa_column=Column(Text, primary_key=True))
    member_id: str = Field(sa_column=Column(Text, primary_key=True))
    """Empty: the customer in person."""
    platform: str = Field(sa_column=Column(Text, primary_key=True))
    source: str = Field(sa_column=Column(Text, primary_key=True))
    account_id: str | None = Field(default=None, sa_column=Column(Text))
    name: str | None = Field(default=None, sa_column=Column(Text))
    token: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """What the customer allowed us, encrypted."""
    sealed_with: str | None = Field(default=None, sa_column=Column(Text, index=True))
    """The fingerprint of the key that encrypted it."""
    created_at: datetime = _time(null=False)
    modified_at: datetime = _time(null=False)


class AuditRow(SQLModel, table=True):
    """What an audit found; the newest few are kept."""

    __tablename__ = "audits"

    id: int | None = Field(default=None, sa_column=Column(_Number, primary_key=True, autoincrement=True))
    at: datetime = _time(null=False)
    findings: int = Field(sa_column=Column(Integer, nullable=False))
    report: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class PassRow(SQLModel, table=True):
    """Our own door for what we serve ourselves."""

    __tablename__ = "passes"

    resource: str = Field(sa_column=Column(Text, primary_key=True))
    is_open: bool = Field(sa_column=Column(Boolean, nullable=False))


class LicenseKeyRow(SQLModel, table=True):
    """A license key: one for each resource, for ever."""

    __tablename__ = "license_keys"
    __table_args__ = (
        Index("license_keys_unread", "read_at", sqlite_where=text("read_at IS NOT NULL"),
              postgresql_where=text("read_at IS NOT NULL")),
        Index("license_keys_created", "created_at", "id"),
    )  # fmt: skip

    id: str = Field(sa_column=Column(Text, primary_key=True))
    resource: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    benefit: str = Field(sa_column=Column(Text, nullable=False, index=True))
    """A key of the catalogue, or for a key that Polar issued the id of the benefit there."""
    source: str = Field(default="own", sa_column=Column(Text, nullable=False, server_default="own"))
    """`own`, or `polar` for a key that Polar issued."""
    customer_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    member_id: str | None = Field(default=None, sa_column=Column(Text))
    purchase: str | None = Field(default=None, sa_column=Column(Text))
    """The subscription or order that it was bought with."""
    digest: str | None = Field(default=None, sa_column=Column(Text, unique=True))
    """The key's SHA-256, in hex, by which it is found. None while a key of Polar's was not read yet."""
    display_key: str = Field(sa_column=Column(Text, nullable=False))
    key: str | None = Field(default=None, sa_column=Column(Text))
    """The whole key; None where only its digest is kept."""
    sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """The whole key, encrypted, until it has been shown once."""
    sealed_with: str | None = Field(default=None, sa_column=Column(Text, index=True))
    """The fingerprint of the key that encrypted it."""
    given: bool = Field(default=True, sa_column=Column(Boolean, nullable=False, server_default=true()))
    """Whether the benefit gives it now. One that is not given is shown as revoked, whatever the status says."""
    status: str = Field(sa_column=Column(Text, nullable=False))
    """The merchant's own word on it, which stays when the benefit comes and goes."""
    limit_activations: int | None = Field(default=None, sa_column=Column(Integer))
    limit_usage: int | None = Field(default=None, sa_column=Column(Integer))
    usage: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    validations: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    last_validated_at: datetime | None = _time()
    expires_at: datetime | None = _time()
    created_at: datetime = _time(null=False)
    modified_at: datetime | None = _time()
    read_at: datetime | None = _time()
    """When to read it at Polar; None when there is nothing to read."""
    read_attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    problem: str | None = Field(default=None, sa_column=Column(Text))
    """Why it could not be read there."""


class ActivationRow(SQLModel, table=True):
    """A device that uses a license key."""

    __tablename__ = "activations"
    __table_args__ = (
        Index("activations_fingerprint", "license_key_id", "fingerprint", unique=True,
              sqlite_where=text("fingerprint IS NOT NULL AND deleted_at IS NULL"),
              postgresql_where=text("fingerprint IS NOT NULL AND deleted_at IS NULL")),
    )  # fmt: skip

    id: str = Field(sa_column=Column(Text, primary_key=True))
    license_key_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    label: str = Field(sa_column=Column(Text, nullable=False))
    conditions: str = Field(default="{}", sa_column=Column(Text, nullable=False))
    """JSON; never shown."""
    meta: str = Field(default="{}", sa_column=Column(Text, nullable=False))
    """JSON."""
    fingerprint: str | None = Field(default=None, sa_column=Column(Text))
    """Where each device may have one activation only: which device it is."""
    created_at: datetime = _time(null=False)
    modified_at: datetime | None = _time()
    seen_at: datetime = _time(null=False)
    """When it was last validated, to some seconds."""
    deleted_at: datetime | None = _time()


class SigningKeyRow(SQLModel, table=True):
    """A key that signs offline licences."""

    __tablename__ = "signing_keys"

    kid: str = Field(sa_column=Column(Text, primary_key=True))
    public_key: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    """The private half, encrypted; None once the key is retired."""
    sealed_with: str | None = Field(default=None, sa_column=Column(Text))
    """The fingerprint of the key that encrypted it."""
    created_at: datetime = _time(null=False)
    signs_from: datetime = _time(null=False)
    retired_at: datetime | None = _time()
    """From when on it signs nothing."""
    until: datetime | None = _time()
    """Until when what it has signed may be good."""


class QuotaRow(SQLModel, table=True):
    """How many calls somebody made in a span of time; all processes count here."""

    __tablename__ = "quotas"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    span: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    """When the span began, in Unix seconds."""
    count: int = Field(sa_column=Column(Integer, nullable=False))


class UnknownKeyRow(SQLModel, table=True):
    """A license key that Polar does not know either, so that it is not asked again for a while."""

    __tablename__ = "unknown_keys"

    digest: str = Field(sa_column=Column(Text, primary_key=True))
    until: datetime = _time(null=False)


class ManualGrantRow(SQLModel, table=True):
    """An operator's grant by hand."""

    __tablename__ = "manual_grants"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    customer_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    member_id: str | None = Field(default=None, sa_column=Column(Text))
    benefit: str = Field(sa_column=Column(Text, nullable=False))
    reason: str = Field(sa_column=Column(Text, nullable=False))
    by: str = Field(sa_column=Column("given_by", Text, nullable=False))
    created_at: datetime = _time(null=False)
    ends_at: datetime | None = _time()
    withdrawn_at: datetime | None = _time()


class CatalogueRow(SQLModel, table=True):
    """A benefits file that was put before the service, and whether it is in force."""

    __tablename__ = "catalogues"

    digest: str = Field(sa_column=Column(Text, primary_key=True))
    text: str = Field(sa_column=Column(Text, nullable=False))
    grace_seconds: float = Field(sa_column=Column(Double, nullable=False))
    in_force: bool = Field(sa_column=Column(Boolean, nullable=False))
    proposed_at: datetime = _time(null=False)
    in_force_at: datetime | None = _time()
    held_because: str | None = Field(default=None, sa_column=Column(Text))


class Download(SQLModel, table=True):
    """How often a file of a grant was fetched."""

    __tablename__ = "downloads"

    grant_id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, primary_key=True))
    count: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    last_at: datetime = _time(null=False)


class Pulse(SQLModel, table=True):
    """When something that must keep happening last happened, like the sweep."""

    __tablename__ = "pulses"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    at: datetime = _time(null=False)
