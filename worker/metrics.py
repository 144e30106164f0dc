"""What is measured while running; the ledger and backlog are read from the database when they are asked for."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)

ARRIVED = Counter("almoner_webhooks", "Webhook requests by what they were answered", ["answer"], registry=REGISTRY)
PROCESSED = Counter("almoner_processed", "Deliveries processed, by outcome", ["status"], registry=REGISTRY)
SETTLED = Counter("almoner_settled", "Grants settled, by outcome", ["connector", "outcome"], registry=REGISTRY)
REFUSED = Counter(
    "almoner_connector_failures", "Failures by what happens next", ["connector", "error"], registry=REGISTRY
)
AUDITED = Gauge("almoner_audit_findings", "What the last audit of this process found", ["kind"], registry=REGISTRY)
TIME_TO_GRANT = Histogram(
    "almoner_time_to_grant_seconds", "From planning a grant until it is proven", ["connector"], buckets=_SECONDS,
    registry=REGISTRY,
)  # fmt: skip
TIME_TO_REVOKE = Histogram(
    "almoner_time_to_revoke_seconds", "From planning a revocation until it is proven", ["connector"],
    buckets=_SECONDS, registry=REGISTRY,
)  # fmt: skip


def settled(connector: str, outcome: str, seconds: float) -> None:
    """Count a grant that was settled, and how long it took since it was asked for."""
    SETTLED.labels(connector, outcome).inc()
    if outcome == "granted":
        TIME_TO_GRANT.labels(connector).observe(seconds)
    elif outcome == "revoked":
        TIME_TO_REVOKE.labels(connector).observe(seconds)
