"""`almoner licenses`: license keys, and what an operator does with them."""

import csv
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from worker.cli.output import (
    NOT_FOUND,
    Failure,
    colored,
    console,
    json_text,
    print_json,
    print_table,
    run,
    service,
    settings_or_fail,
)

app = typer.Typer(no_args_is_help=True, help="License keys: list, show, rotate, disable, enable, export.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Named = Annotated[str, typer.Argument(help="A license key's id, or the key itself.")]
_COLUMNS = ("id", "display_key", "benefit", "status", "customer_id", "member_id", "usage", "limit_usage",
            "limit_activations", "expires_at", "last_validated_at")  # fmt: skip
_EXPORTED = ("id", "key", "display_key", "benefit", "status", "customer_id", "member_id", "purchase", "usage",
             "limit_usage", "limit_activations", "validations", "last_validated_at", "expires_at",
             "created_at")  # fmt: skip
_CHUNK = 1000


def _row(key: Any, *, whole: bool = False) -> dict[str, Any]:  # noqa: ANN401 - worker.licensing.Key
    """Return a key as it is printed: masked, unless it is wanted `whole` and kept so."""
    return asdict(key) | {"status": key.standing, "key": key.key if whole else None}


async def _find(opened: Any, named: str) -> Any:  # noqa: ANN401 - Service, and Key
    from worker.store import licenses

    def look(connection: Any) -> Any:  # noqa: ANN401 - a connection
        found = licenses.find(connection, licenses.digest_of(named), None)
        return found.key if found else licenses.by_id(connection, named)

    key = await opened.database.read(look)
    if key is None:
        raise Failure("There is no such license key; `almoner licenses list` shows them", code=NOT_FOUND)
    return key


@app.command("list")
def list_keys(
    customer: Annotated[str | None, typer.Option(help="A customer's id or external id.")] = None,
    benefit: Annotated[str | None, typer.Option(help="A benefit's key, or its id at Polar.")] = None,
    status: Annotated[str | None, typer.Option(help="granted, revoked or disabled.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List license keys, masked, the newest first."""
    from worker.benefit_ids import keys_meant
    from worker.store.licenses import Chosen

    if status not in {None, "granted", "revoked", "disabled"}:
        raise Failure(f"There is no status {status!r}; there are: granted, revoked, disabled", code=2)
    settings = settings_or_fail()

    async def look() -> tuple[list[dict[str, Any]], int]:
        from worker.store import customers, licenses

        async with service(settings) as opened:
            owner = None
            if customer:
                owner = await opened.database.read(lambda connection: customers.find(connection, customer))
                if owner is None:
                    raise Failure(f"There is no customer {customer!r} here, by id or by external id", code=NOT_FOUND)
            chosen = Chosen(
                customer_ids=[owner] if owner else None,
                benefits=[benefit, *keys_meant(opened.pipeline.catalogue, benefit)] if benefit else None,
                statuses=[status] if status else None,
            )
            keys, total = await opened.database.read(
                lambda connection: licenses.listed(connection, chosen, offset=0, limit=limit)
            )
            return [_row(key) for key in keys], total

    rows, total = run(look())
    if as_json:
        print_json({"license_keys": rows, "total": total})
        return
    print_table("License keys", _COLUMNS, rows, {"status": colored}, narrow=("id", "display_key", "benefit", "status"))
    if total > len(rows):
        console.print(f"These are {len(rows)} of {total}, the newest first; see more with --limit")


@app.command("show")
def show_key(named: Named, as_json: AsJson = False) -> None:
    """Show one license key with the devices that use it; masked."""
    settings = settings_or_fail()

    async def look() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with service(settings) as opened:
            key = await _find(opened, named)
            live = await opened.license_calls.live(key)
            shown = [{name: value for name, value in asdict(one).items() if name != "conditions"} for one in live]
            return _row(key), shown

    row, activations = run(look())
    if as_json:
        print_json(row | {"activations": activations})
        return
    shown = [{"name": name, "value": value} for name, value in row.items() if name != "key"]
    print_table(f"License key {row['id']}", ("name", "value"), shown, {})
    if activations:
        print_table("Devices that use it", ("id", "label", "created_at", "seen_at", "meta"), activations, {})


@app.command("rotate")
def rotate_key(named: Named) -> None:
    """Put another key in its place, at once, and print it; the one before works no more."""
    settings = settings_or_fail()

    async def rotate() -> str:
        async with service(settings) as opened:
            key = await _find(opened, named)
            _, whole = await _or_fail(opened.license_calls.rotate(key.id))
            return str(whole)

    sys.stdout.write(run(rotate()) + "\n")
    console.print("The key before works no more. Tell the customer, or their app, of this one.", style="dim")


@app.command("disable")
def disable_key(named: Named) -> None:
    """Let a license key work no more until it is enabled again, whatever its benefit does."""
    _set_status(named, "disabled")


@app.command("enable")
def enable_key(named: Named) -> None:
    """Let a license key work again that was disabled or revoked by hand, as far as its benefit gives it."""
    _set_status(named, "granted")


def _set_status(named: str, status: Literal["granted", "disabled"]) -> None:
    settings = settings_or_fail()

    async def change() -> dict[str, Any]:
        async with service(settings) as opened:
            key = await _find(opened, named)
            return _row(await _or_fail(opened.license_calls.change(key.id, {"status": status})))

    row = run(change())
    if row["status"] == "revoked":
        raise Failure(
            f"{row['display_key']} of {row['benefit']} stays revoked: its benefit does not give it. "
            f"See: almoner grants list --customer {row['customer_id']}"
        )
    console.print(f"{row['display_key']} of {escape(row['benefit'])} is {colored(row['status'])} now.")


async def _or_fail(call: Any) -> Any:  # noqa: ANN401 - a coroutine, and what it returns
    from worker.licensing import Refused

    try:
        return await call
    except Refused as refused:
        raise Failure(refused.detail) from None


@app.command("export")
def export_keys(
    output: Annotated[Path | None, typer.Option(help="The file to write; without it, it is printed.")] = None,
    form: Annotated[str, typer.Option("--format", help="csv or json (one object a line).")] = "csv",
    whole: Annotated[bool, typer.Option("--whole", help="With whole keys, where they are kept.")] = False,
) -> None:
    """Export all license keys, for a spreadsheet or another system."""
    if form not in {"csv", "json"}:
        raise Failure(f"There is no format {form!r}; there are: csv, json", code=2)
    settings = settings_or_fail()

    async def pages(write: Any) -> int:  # noqa: ANN401 - a function
        from worker.store import licenses

        count, after = 0, ""
        async with service(settings) as opened:
            while True:
                chunk = await opened.database.read(
                    lambda connection, after=after: licenses.after(connection, after, limit=_CHUNK)
                )
                if not chunk:
                    return count
                for key in chunk:
                    write({name: value for name, value in _row(key, whole=whole).items() if name in _EXPORTED})
                count, after = count + len(chunk), chunk[-1].id

    if output is None:
        run(pages(_writer(sys.stdout, form)))
        return
    try:
        # For its owner only, from the first byte on.
        with open(output, "w", encoding="utf-8", newline="", opener=_private) as file:
            count = run(pages(_writer(file, form)))
    except OSError as error:
        raise Failure(f"{output} cannot be written: {error.strerror}") from None
    console.print(f"{count} license keys are in {escape(str(output))}")


def _private(path: str, flags: int) -> int:
    import os

    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # it may have been there already
    return descriptor


def _writer(file: Any, form: str) -> Any:  # noqa: ANN401 - a text file, and a function of a row
    if form == "json":
        return lambda row: file.write(json_text(row).replace("\n", " ") + "\n")
    made = csv.DictWriter(file, _EXPORTED, lineterminator="\n")
    made.writeheader()

    def write(row: Mapping[str, Any]) -> None:
        made.writerow({name: _cell(row[name]) for name in _EXPORTED})

    return write


def _cell(value: Any) -> str:  # noqa: ANN401 - a value of a row
    """Write a cell; spreadsheets run what begins like a formula."""
    text = "" if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
