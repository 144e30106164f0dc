"""`almoner up`, `receive`, `work` and `migrate`: run the service, or its parts."""

from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from config.settings import Settings, development_file
from worker.cli.output import Failure, catalogue_or_fail, console_err, run, settings_or_fail

Port = Annotated[int | None, typer.Option(help="Listen on this port instead of ALMONER_PORT.")]


def up(port: Port = None) -> None:
    """Run everything in one process: the receiver, the worker, and, unless ALMONER_REDIS_URL is set, the queue."""
    _run(receive=True, work=True, port=port)


def receive(port: Port = None) -> None:
    """Run only the receiver and the API; any number of these on one PostgreSQL and Redis."""
    _run(receive=True, work=False, port=port)


def work() -> None:
    """Run only the worker; any number of these on one PostgreSQL and Redis."""
    _run(receive=False, work=True, port=None)


def migrate_database() -> None:
    """Bring the database's tables to the newest form."""
    from worker.store.migrate import migrate

    settings = settings_or_fail()
    run(migrate(settings.database))
    console_err.print("The database is up to date.")


def _run(*, receive: bool, work: bool, port: int | None) -> None:
    from worker.app import NotReady, run_for_ever
    from worker.embedded import NoServer

    overrides = {} if port is None else {"port": port}
    is_first = _is_first_start()
    settings = settings_or_fail(**overrides)
    catalogue_or_fail(settings)
    try:
        run_for_ever(settings, receive=receive, work=work, announce=_announcement(settings, is_first=is_first))
    except* (NotReady, NoServer) as group:
        raise Failure(*(str(error) for error in group.exceptions)) from None


def _is_first_start() -> bool:
    from config.settings import load_settings

    try:
        return not development_file(load_settings(generate=False)).exists()
    except Exception:  # noqa: BLE001 - said properly when the settings are read for good
        return False


def _announcement(settings: Settings, *, is_first: bool) -> Callable[[str], None]:
    def announce(address: str) -> None:
        say = console_err.print
        if not address:
            say("[bold]Almoner[/] works. Stop it with Ctrl-C.", highlight=False)
            return
        say(f"[bold]Almoner[/] listens on {address} ({settings.environment}).", highlight=False)
        if settings.environment != "development":
            return
        if not settings.benefits.exists():
            say(f"  There is no {settings.benefits}: the example config/benefits.example.toml is in force.")
        if is_first:
            say("  Made for you, kept in [bold]" + escape(str(development_file(settings))) + "[/], shown only now:")
            for secret in settings.webhook_secrets:
                say(f"    webhook secret  {escape(secret.get_secret_value())}", highlight=False, soft_wrap=True)
            for token in (*settings.api_tokens, *settings.ops_tokens):
                say(
                    f"    token, {token.name:<9}{escape(token.value.get_secret_value())}",
                    highlight=False,
                    soft_wrap=True,
                )
        say("  Try it from another terminal: [bold].venv/bin/almoner simulate purchase[/]", highlight=False)

    return announce
