"""For operators: replay a delivery, see whether the service is well, and its metrics."""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
from litestar import Controller, Request, Response, get, post
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath
from msgspec import Struct
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from worker import metrics
from worker.http.auth import app_guard, operator_guard
from worker.http.context import Context
from worker.http.customers import name_of
from worker.http.errors import ApiError
from worker.http.polar_api import fails
from worker.pipeline import SWEEP_PULSE
from worker.replay import replay
from worker.store import grants, inbox, limits
from worker.store.inbox import Filter

_STALE_SWEEP = timedelta(seconds=30)


class OpsController(Controller):
    """What an operator may do over HTTP."""

    path = "/ops"
    guards = [operator_guard]
    tags = ["ops"]

    @post("/deliveries/{webhook_id:str}/replay", status_code=200, summary="Process a stored delivery again",
          responses=fails(404, s403="Not an operator's token"))  # fmt: skip
    async def replay(self, request: Request[Any, Any, State], webhook_id: FromPath[str]) -> dict[str, Any]:
        """Process the delivery again, now, as a new attempt. It is never refused as a duplicate."""
        context: Context = request.app.state.context
        webhook_id = name_of(webhook_id)
        await context.pipeline.follow()
        done = await replay(context.pipeline, Filter(webhook_ids=(webhook_id,)))
        if not done.deliveries:
            raise ApiError(404, f"There is no delivery {webhook_id}; `almoner deliveries list` shows them")
        row = await context.database.read(lambda connection: inbox.found(connection, webhook_id))
        return {
            "id": webhook_id,
            "status": row["status"] if row else None,
            "reason": row["reason"] if row else None,
            "grants_given": done.given,
            "grants_taken": done.taken,
        }


class Readiness(Struct):
    """`ready`, `degraded` or `unready`, and what is wrong, by part."""

    status: str
    problems: dict[str, str]


@get("/healthz", security=[{}], tags=["health"], summary="Whether the process is alive")
async def healthz() -> dict[str, str]:
    """Answer while the process can answer."""
    return {"status": "alive"}


@get("/readyz", security=[{}], tags=["health"], summary="Whether the service can do its work",
     responses={503: ResponseSpec(Readiness, generate_examples=False, description="It cannot; why")})  # fmt: skip
async def readyz(request: Request[Any, Any, State]) -> Response[Readiness]:
    """Answer 200, or 503 where webhooks cannot be stored or nobody works on them, and name what is wrong.

    A queue that is down is named, and is no reason to send webhooks away: they are stored, and the sweep works.
    """
    context: Context = request.app.state.context
    problems = {}
    fatal = False
    try:
        beaten = await context.database.read(lambda connection: grants.last_beat(connection, SWEEP_PULSE))
    except Exception as error:  # noqa: BLE001 - whatever it is, the database cannot be used
        problems["database"] = f"cannot be read: {type(error).__name__}"
        fatal = True
    else:
        stale = _sweep_problem(beaten, context.now())
        if stale:
            problems["sweep"] = stale
            fatal = True
    if not await context.queue.is_up():
        problems["queue"] = "does not answer; work goes on by the sweep, some seconds later"
    status = "unready" if fatal else "degraded" if problems else "ready"
    return Response(Readiness(status, problems), status_code=503 if fatal else 200)


def _sweep_problem(beaten: datetime | None, now: datetime) -> str | None:
    if beaten is None:
        return "has never run; is a worker running (`almoner up` or `almoner work`)?"
    if now - beaten > _STALE_SWEEP:
        return f"last ran {(now - beaten).total_seconds():.0f} s ago; is a worker running?"
    return None


@get("/metrics", guards=[app_guard], tags=["health"], summary="Prometheus metrics", media_type="text/plain")
async def prometheus(request: Request[Any, Any, State]) -> Response[bytes]:
    """Return the metrics of this process, and of the database that all processes share."""
    context: Context = request.app.state.context
    now = context.now()
    shared = await context.database.read(partial(_shared, now=now))
    document = generate_latest(metrics.REGISTRY) + generate_latest(_gauges(shared, now))
    return Response(document, media_type="text/plain; version=0.0.4; charset=utf-8")


def _shared(connection: sa.Connection, now: datetime) -> dict[str, Any]:
    return {
        "ledger": inbox.balance(connection),
        "oldest": inbox.oldest_pending(connection),
        "grants": grants.by_status(connection),
        "beaten": grants.last_beat(connection, SWEEP_PULSE),
        "revoking": grants.oldest_revoking(connection),
        "parked": limits.parked(connection, now),
    }


def _gauges(shared: dict[str, Any], now: datetime) -> CollectorRegistry:
    registry = CollectorRegistry()
    ledger = Gauge("almoner_ledger", "Deliveries; received = pending + done + ignored + dead", ["account"],
                   registry=registry)  # fmt: skip
    for account, amount in shared["ledger"].items():
        ledger.labels(account).set(amount)
    others = sum(amount for account, amount in shared["ledger"].items() if account != inbox.RECEIVED)
    balanced = Gauge("almoner_ledger_balanced", "1 while the ledger balances", registry=registry)
    balanced.set(shared["ledger"][inbox.RECEIVED] == others)
    age = Gauge("almoner_backlog_age_seconds", "Age of the oldest delivery that is still pending", registry=registry)
    age.set((now - shared["oldest"]).total_seconds() if shared["oldest"] else 0)
    held = Gauge("almoner_grants", "Grants, by connector and status", ["connector", "status"], registry=registry)
    for (connector, status), count in shared["grants"].items():
        held.labels(connector, status).set(count)
    revoking = Gauge("almoner_revoking_age_seconds", "Age of the oldest revocation that is not proven: access that "
                     "somebody may still have", registry=registry)  # fmt: skip
    revoking.set((now - shared["revoking"]).total_seconds() if shared["revoking"] else 0)
    parked = Gauge("almoner_parked_seconds", "How long a platform has asked us to wait", ["limit"], registry=registry)
    for name, (until, _) in shared["parked"].items():
        parked.labels(name).set((until - now).total_seconds())
    sweep = Gauge("almoner_sweep_age_seconds", "Since the sweep last said that it runs", registry=registry)
    sweep.set((now - shared["beaten"]).total_seconds() if shared["beaten"] else float("inf"))
    return registry
