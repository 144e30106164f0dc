"""`almoner signing-keys`: the keys that sign offline licences."""

from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape

from config.durations import format_duration, parse_duration
from worker.cli.output import (
    NOT_FOUND,
    Failure,
    console,
    print_json,
    print_table,
    run,
    service,
    settings_or_fail,
    when,
)

app = typer.Typer(help="The keys that sign offline licences.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


def _keys(opened: Any) -> Any:  # noqa: ANN401 - Service, SigningKeys
    from worker.signing_keys import SigningKeys

    return SigningKeys(opened.database, opened.settings, opened.pipeline.now)


def _shown(key: Any, standing: str) -> dict[str, Any]:  # noqa: ANN401 - SigningKey
    """Return what may be shown of a key; the private half is never."""
    names = ("created_at", "signs_from", "retired_at", "until")
    return {"kid": key.kid, "standing": standing, **{name: getattr(key, name) for name in names}}


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys: which one signs, which waits, and until when each must be known."""
    settings = settings_or_fail()

    async def look() -> list[dict[str, Any]]:
        from worker import keyring

        async with service(settings) as opened:
            now = opened.pipeline.now()
            return [_shown(key, keyring.standing(key, now)) for key in await _keys(opened).all()]

    rows = run(look())
    if as_json:
        print_json({"signing_keys": rows})
        return
    print_table("Signing keys", ("kid", "standing", "created_at", "signs_from", "retired_at", "until"), rows, {})
    if not rows:
        console.print("The first offline licence makes the first key, or: [bold]almoner signing-keys create[/]")


@app.command("create")
def create_key() -> None:
    """Make the first key, if there is none that signs."""
    key, is_new = _change(lambda keys: keys.create())
    console.print(f"{key.kid} signs from now on." if is_new else f"{key.kid} signs already. To replace it: "
                  "[bold]almoner signing-keys rotate[/]")  # fmt: skip


@app.command("rotate")
def rotate_keys(
    after: Annotated[
        str, typer.Option("--in", help="How long the new key is listed before it signs, so that apps know it then.")
    ] = "1d",
) -> None:
    """Make a key that takes the place of the one that signs; that one stays listed while its licences are good."""
    wait = _duration(after)
    key, is_new = _change(lambda keys: keys.rotate(wait))
    if not is_new:
        raise Failure(f"{key.kid} waits already, and signs from {when(key.signs_from)}; "
                      f"to have another instead: almoner signing-keys retire {key.kid}")  # fmt: skip
    console.print(f"{key.kid} is listed, and signs from {when(key.signs_from)}.", highlight=False)


@app.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="The key's kid.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also where licences that it has signed are good: they end with it.")
    ] = False,
) -> None:
    """Take a key off the list, and forget its private half. For one that others may have: `--force`."""
    from worker.signing_keys import NotRetired

    try:
        key = _change(lambda keys: keys.retire(kid, force=force))
    except NotRetired as needed:
        raise Failure(f"{needed}. To retire it all the same: --force") from None
    if key is None:
        raise Failure(f"There is no key {kid}; `almoner signing-keys list` shows them", code=NOT_FOUND)
    console.print(escape(f"{kid} is retired: apps that fetch the list refuse what it has signed."))


def _change(act: Any) -> Any:  # noqa: ANN401 - a method of SigningKeys, and what it returns
    """Do something to the keys. Raises Failure where they cannot be encrypted."""
    settings = settings_or_fail()

    async def change() -> Any:  # noqa: ANN401 - as above
        from worker.sealing import NotSealed

        async with service(settings) as opened:
            try:
                return await act(_keys(opened))
            except NotSealed as error:
                raise Failure(str(error)) from None

    return run(change())


def _duration(text: str) -> timedelta:
    try:
        wait = parse_duration(text)
    except (ValueError, OverflowError) as error:
        raise Failure(f"--in: {error}", code=2) from None
    if wait > timedelta(days=366):
        raise Failure(f"--in: {format_duration(wait)} is longer than a year", code=2)
    return wait
