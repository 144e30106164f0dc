"""`almoner up`, `receive`, `work` and `migrate`: run the service, or its parts."""

from collections.abc import Callable, Collection
from typing import Annotated

import typer
from rich.markup import escape

from config.settings import Settings, SettingsError, development_file
from worker.cli.output import Failure, catalogue_or_fail, console_err, database_in_words, run, settings_or_fail

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
    with database_in_words(settings):
        run(migrate(settings.database))
    console_err.print("The database is up to date.")


def _run(*, receive: bool, work: bool, port: int | None) -> None:
    from worker.app import NotReady, run_for_ever
    from worker.embedded import NoServer

    overrides = {} if port is None else {"port": port}
    made = _about_to_be_made()
    settings = settings_or_fail(**overrides)
    catalogue_or_fail(settings)
    with database_in_words(settings):
        try:
            run_for_ever(settings, receive=receive, work=work, announce=_announcement(settings, made))
        except* (NotReady, NoServer) as group:
            raise Failure(*(str(error) for error in group.exceptions)) from None


def _about_to_be_made() -> frozenset[str]:
    """Return the names of the settings that this start makes, and that are therefore shown this once."""
    from config.settings import load_settings

    try:
        settings = load_settings(generate=False)
    except SettingsError:  # said properly when the settings are read for good
        return frozenset()
    if development_file(settings).exists():
        return frozenset()
    return frozenset({"webhook_secrets", "api_tokens", "ops_tokens"} - settings.model_fields_set)


def _announcement(settings: Settings, made: Collection[str]) -> Callable[[str], None]:
    def announce(address: str) -> None:
        say = console_err.print
        if not address:
            say("[bold]Almoner[/] works. Stop it with Ctrl-C.", highlight=False)
            return
        say(f"[bold]Almoner[/] listens on {address} ({settings.environment}).", highlight=False)
        if settings.environment != "development":
            return
        if not settings.benefits.exists():
            there_is_none = f"  There is no {settings.benefits}: the example config/benefits.example.toml is in force."
            say(escape(there_is_none), soft_wrap=True)
        kept = f"[bold]{escape(str(development_file(settings)))}[/]"
        if made:
            say(f"  Made for you, kept in {kept}, shown only now:", soft_wrap=True)
        else:
            say(f"  What was made for you is kept in {kept}.", soft_wrap=True)
        for secret in settings.webhook_secrets if "webhook_secrets" in made else ():
            say(f"    webhook secret  {escape(secret.get_secret_value())}", highlight=False, soft_wrap=True)
        for token in (
            *(settings.api_tokens if "api_tokens" in made else ()),
            *(settings.ops_tokens if "ops_tokens" in made else ()),
        ):
            say(f"    token, {token.name:<9}{escape(token.value.get_secret_value())}", highlight=False, soft_wrap=True)
        other = "" if address == Settings.model_construct().local_url else f" --url {address}"
        say(f"  Try it from another terminal: [bold].venv/bin/almoner simulate purchase{other}[/]", highlight=False)

    return announce
