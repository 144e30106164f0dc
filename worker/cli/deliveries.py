"""`almoner deliveries` and `almoner replay`: what was received, what became of it, and doing it again."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.progress import Progress

from worker.cli.output import (
    NOT_FOUND,
    Failure,
    colored,
    console,
    console_err,
    json_text,
    moment,
    print_json,
    print_table,
    run,
    service,
    settings_or_fail,
)
from worker.redaction import redacted

app = typer.Typer(help="Deliveries: every webhook that was received, and what became of it.", no_args_is_help=True)

Status = Annotated[str | None, typer.Option(help="pending, done, ignored or dead.")]
Type = Annotated[str | None, typer.Option("--type", help="An event type, like order.paid.")]
Customer = Annotated[str | None, typer.Option(help="A customer's id or external id.")]
Since = Annotated[str | None, typer.Option(help="Received since: a time, or how long ago, like 2h.")]
Until = Annotated[str | None, typer.Option(help="Received before: a time, or how long ago.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]

_STATUSES = ("pending", "done", "ignored", "dead")


async def _filter(opened: Any, status: str | None, type_: str | None, customer: str | None, since: str | None,  # noqa: ANN401 - Service
                  until: str | None, ids: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - Filter  # fmt: skip
    from worker.store import customers
    from worker.store.inbox import Filter

    if status and status not in _STATUSES:
        raise Failure(f"There is no status {status!r}; there are: {', '.join(_STATUSES)}", code=2)
    if customer:
        found = await opened.database.read(lambda connection: customers.find(connection, customer))
        if found is None:
            raise Failure(f"There is no customer {customer!r} here, by id or by external id", code=NOT_FOUND)
        customer = found
    return Filter(ids, status, type_, customer, moment(since), moment(until))


@app.command("list")
def list_deliveries(
    status: Status = None, type_: Type = None,
    customer: Customer = None, since: Since = None, until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List deliveries, newest first."""
    settings = settings_or_fail()

    async def look() -> tuple[list[Any], dict[str, int]]:
        from worker.store import inbox

        async with service(settings) as opened:
            chosen = await _filter(opened, status, type_, customer, since, until)
            rows = await opened.database.read(lambda connection: inbox.listed(connection, chosen, limit=limit))
            balance: dict[str, int] = await opened.database.read(inbox.balance)
            return rows, balance

    rows, balance = run(look())
    if as_json:
        print_json({"deliveries": [dict(row) for row in rows], "ledger": balance})
        return
    columns = ("webhook_id", "type", "status", "received_at", "attempts", "duplicates", "customer_id", "reason")
    print_table("Deliveries", columns, rows, {"status": colored}, narrow=("webhook_id", "type", "status"))
    if len(rows) == limit:
        console.print(f"These are the newest {limit}; see more with --limit")
    console.print(
        f"received {balance['received']} = pending {balance['pending']} + done {balance['done']} "
        f"+ ignored {balance['ignored']} + dead {balance['dead']}"
    )


@app.command("show")
def show_delivery(webhook_id: Annotated[str, typer.Argument(help="The webhook-id.")], as_json: AsJson = False) -> None:
    """Show one delivery with its body, secrets hidden."""
    settings = settings_or_fail()

    async def look() -> Any:  # noqa: ANN401 - a row
        from worker.store import inbox

        async with service(settings) as opened:
            return await opened.database.read(
                lambda connection: (inbox.found(connection, webhook_id), inbox.conflicts_of(connection, webhook_id))
            )

    row, conflicts = run(look())
    if row is None:
        raise Failure(f"There is no delivery {webhook_id}; `almoner deliveries list` shows them", code=NOT_FOUND)
    shown = dict(row) | {"body": redacted(row["body"]), "conflicting_bodies": [one["digest"] for one in conflicts]}
    if as_json:
        print_json(shown)
        return
    body = shown.pop("body")
    print_table(f"Delivery {webhook_id}", ("name", "value"),
                [{"name": name, "value": value} for name, value in shown.items()], {})  # fmt: skip
    console.print(json_text(body), markup=False, soft_wrap=True)


@app.command("refused")
def list_refused(
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50, as_json: AsJson = False
) -> None:
    """List the newest requests that were refused: what came to the address and was no authentic event."""
    settings = settings_or_fail()

    async def look() -> list[dict[str, Any]]:
        from worker.store import inbox

        async with service(settings) as opened:
            rows: list[dict[str, Any]] = await opened.database.read(
                lambda connection: inbox.refused(connection, limit=limit)
            )
            return rows

    rows = run(look())
    if as_json:
        print_json({"refused": rows})
        return
    print_table("Refused requests", ("at", "status_code", "error", "detail", "webhook_id", "size"), rows, {})


async def _all_known(opened: Any, webhook_ids: Sequence[str]) -> None:  # noqa: ANN401 - Service
    from worker.store import inbox

    unknown = await opened.database.read(
        lambda connection: [one for one in webhook_ids if inbox.found(connection, one) is None]
    )
    if unknown:
        raise Failure(
            f"There is no delivery {', '.join(unknown)}; nothing was replayed. `almoner deliveries list` shows them",
            code=NOT_FOUND,
        )


def replay_deliveries(
    webhook_ids: Annotated[list[str] | None, typer.Argument(help="webhook-ids; or choose by options.")] = None,
    status: Status = None, type_: Type = None,
    customer: Customer = None, since: Since = None, until: Until = None,
    everything: Annotated[bool, typer.Option("--all", help="All deliveries.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Process deliveries again, as new attempts; they are never refused as duplicates."""
    settings = settings_or_fail()

    async def again() -> Any:  # noqa: ANN401 - Replayed
        from worker.replay import replay
        from worker.store import inbox

        async with service(settings) as opened:
            await _all_known(opened, webhook_ids or ())
            chosen = await _filter(opened, status, type_, customer, since, until, tuple(webhook_ids or ()))
            if chosen.is_empty and not everything:
                raise Failure("Name deliveries, choose them by options, or say --all", code=2)
            total = await opened.database.read(lambda connection: inbox.count(connection, chosen))
            if not total:
                raise Failure("No delivery matches; `almoner deliveries list` shows them", code=NOT_FOUND)
            with Progress(console=console_err, transient=True) as progress:
                task = progress.add_task("Replaying", total=total)
                return await replay(opened.pipeline, chosen, progress=lambda count: progress.advance(task, count))

    done = run(again())
    if as_json:
        print_json({"deliveries": done.deliveries, "statuses": dict(done.statuses), "grants_given": done.given,
                    "grants_taken": done.taken})  # fmt: skip
        return
    outcome = ", ".join(f"{count} {status}" for status, count in sorted(done.statuses.items()))
    console.print(f"Replayed {done.deliveries}: {outcome}. Grants to give: {done.given}, to take back: {done.taken}.")
