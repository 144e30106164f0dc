"""`almoner grants`: what was given to whom, what is stuck and who must act; retry, give by hand, withdraw."""

import getpass
import json
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape

from worker.cli.output import (
    NOT_FOUND,
    Failure,
    colored,
    console,
    moment,
    print_json,
    print_table,
    run,
    service,
    settings_or_fail,
)

app = typer.Typer(help="Grants: what was given to whom, and what is stuck.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Customer = Annotated[str, typer.Argument(help="A customer's id or external id.")]


async def _customer(opened: Any, name: str) -> str:  # noqa: ANN401 - Service
    from worker.store import customers

    found: str | None = await opened.database.read(lambda connection: customers.find(connection, name))
    if found is None:
        raise Failure(f"There is no customer {name!r} here, by id or by external id", code=NOT_FOUND)
    return found


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a grant with its reasons and its receipt as JSON, not as text with JSON in it."""
    return row | {name: json.loads(row[name]) for name in ("because", "receipt") if row[name]}


@app.command("list")
def list_grants(
    status: Annotated[
        str | None, typer.Option(help="granted, granting, pending, action_required, revoking, ...")
    ] = None,
    benefit: Annotated[str | None, typer.Option(help="A benefit's key.")] = None,
    customer: Annotated[str | None, typer.Option(help="A customer's id or external id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List grants; those that somebody must look at first."""
    from worker.store.models import GrantStatus

    if status and status not in list(GrantStatus):
        raise Failure(f"There is no status {status!r}; there are: {', '.join(GrantStatus)}", code=2)
    settings = settings_or_fail()

    async def look() -> list[dict[str, Any]]:
        from worker.store import grants

        async with service(settings) as opened:
            owner = await _customer(opened, customer) if customer else None
            conditions = {"status": status, "benefit": benefit, "customer_id": owner}
            rows: list[dict[str, Any]] = await opened.database.read(
                lambda connection: grants.listed(connection, conditions, limit=limit)
            )
            return rows

    rows = run(look())
    if as_json:
        print_json({"grants": [_readable(row) for row in rows]})
        return
    columns = (
        "id",
        "benefit",
        "part",
        "status",
        "customer_id",
        "member_id",
        "standing",
        "valid_until",
        "who",
        "reason",
    )
    print_table("Grants", columns, rows, {"status": colored}, narrow=("id", "benefit", "status", "reason"))
    if len(rows) == limit:
        console.print(f"These are {limit}, the most urgent first; see more with --limit")


@app.command("show")
def show_grant(grant_id: Annotated[str, typer.Argument(help="The grant's id.")], as_json: AsJson = False) -> None:
    """Show one grant: why it is wanted, what was given, what went wrong."""
    settings = settings_or_fail()

    async def look() -> list[dict[str, Any]]:
        from worker.store import grants

        async with service(settings) as opened:
            rows: list[dict[str, Any]] = await opened.database.read(
                lambda connection: grants.by_ids(connection, [grant_id])
            )
            return rows

    rows = run(look())
    if not rows:
        raise Failure(f"There is no grant {grant_id}; `almoner grants list` shows them", code=NOT_FOUND)
    if as_json:
        print_json(_readable(rows[0]))
        return
    print_table(f"Grant {grant_id}", ("name", "value"),
                [{"name": name, "value": value} for name, value in rows[0].items()], {})  # fmt: skip


@app.command("retry")
def retry_grants(grant_ids: Annotated[list[str], typer.Argument(help="Grants' ids.")]) -> None:
    """Have grants settled again now, from the first attempt."""
    settings = settings_or_fail()

    async def again() -> int:
        from worker.store import grants

        async with service(settings) as opened:
            now = opened.pipeline.now()
            count: int = await opened.database.write(lambda connection: grants.retry(connection, grant_ids, now))
            await opened.pipeline.settle(grant_ids)
            return count

    count = run(again())
    if not count:
        raise Failure("There is no such grant; `almoner grants list` shows them", code=NOT_FOUND)
    console.print(f"{count} settled again; `almoner grants show` tells what came of it.")


@app.command("abandon")
def abandon_grants(
    grant_ids: Annotated[list[str], typer.Argument(help="Grants' ids.")],
    reason: Annotated[str, typer.Option(help="How you know that nobody has it any more; shown with the grant.")],
) -> None:
    """Count revocations as done on your word, where the platform can no longer tell: a repository is gone, say."""
    settings = settings_or_fail()

    async def give_up() -> int:
        from worker.store import grants

        async with service(settings) as opened:
            now, said = opened.pipeline.now(), f"{reason} (by {getpass.getuser()})"
            people: list[str] = await opened.database.write(
                lambda connection: grants.abandon(connection, grant_ids, said, now)
            )
            await opened.pipeline.refresh(people)
            return len(people)

    if not run(give_up()):
        raise Failure("None of these is being taken back; `almoner grants list --status revoking` shows what is",
                      code=NOT_FOUND)  # fmt: skip
    console.print("Counted as gone. An audit tells if it is seen again.")


@app.command("give")
def give(
    customer: Customer,
    benefit: Annotated[str, typer.Argument(help="A benefit's key.")],
    reason: Annotated[str, typer.Option(help="Why; shown wherever the grant is.")],
    until: Annotated[
        str | None,
        typer.Option(help="When it ends, like 2027-01-31, or in how long, like 30d; without it, when withdrawn."),
    ] = None,
    member: Annotated[str | None, typer.Option(help="A member's id, where it is for one of a team.")] = None,
) -> None:
    """Give a benefit by hand, with a reason and an end."""
    settings = settings_or_fail()

    async def by_hand() -> None:
        from worker.store import customers

        async with service(settings) as opened:
            if benefit not in opened.pipeline.catalogue.benefits:
                known = ", ".join(opened.pipeline.catalogue.benefits)
                raise Failure(f"There is no benefit {benefit!r}; there are: {known}", code=NOT_FOUND)
            owner = await _customer(opened, customer)
            ends_at = moment(until, ahead=True)
            now = opened.pipeline.now()
            if ends_at and ends_at <= now:
                raise Failure(f"{until} is past: nothing would be given", code=2)
            row = {
                "id": str(uuid4()), "customer_id": owner, "member_id": member, "benefit": benefit, "reason": reason,
                "given_by": getpass.getuser(), "created_at": now, "ends_at": ends_at, "withdrawn_at": None,
            }  # fmt: skip
            await opened.database.write(lambda connection: customers.give_by_hand(connection, row))
            await opened.pipeline.drain()

    run(by_hand())
    console.print(
        escape(f"{benefit} is given to {customer}. Take it back with: almoner grants withdraw {customer} {benefit}"),
        soft_wrap=True,
    )


@app.command("withdraw")
def withdraw(customer: Customer, benefit: Annotated[str, typer.Argument(help="A benefit's key.")]) -> None:
    """Withdraw what was given by hand; what was bought stays."""
    settings = settings_or_fail()

    async def back() -> int:
        from worker.store import customers

        async with service(settings) as opened:
            owner = await _customer(opened, customer)
            now = opened.pipeline.now()
            count: int = await opened.database.write(
                lambda connection: customers.withdraw(connection, owner, benefit, now)
            )
            await opened.pipeline.drain()
            return count

    if not run(back()):
        raise Failure(f"{benefit} was not given to {customer} by hand", code=NOT_FOUND)
    console.print(escape(f"Withdrawn. If {customer} bought {benefit}, they keep it."), soft_wrap=True)
