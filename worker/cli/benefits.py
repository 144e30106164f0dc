"""`almoner check` and `almoner accept-benefits`: what is set, what is wrong with it, and what it would change."""

from typing import Annotated, Any

import typer
from pydantic import SecretStr

from config.catalogue import Catalogue
from config.durations import format_duration
from config.settings import PREFIX, Settings
from worker.cli.output import (
    Failure,
    catalogue_or_fail,
    console,
    print_json,
    print_table,
    run,
    service,
    settings_or_fail,
    without_password,
)
from worker.verify import fingerprint

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


Online = Annotated[bool, typer.Option("--online", help="Also ask GitHub and Discord whether benefits can be given.")]


def check(as_json: AsJson = False, online: Online = False) -> None:
    """Read the settings and the benefits file, say what is wrong and what it would change; secrets are hidden."""
    settings = settings_or_fail()
    catalogue = catalogue_or_fail(settings)
    shown = _shown(settings)
    benefits = [
        {
            "benefit": one.key,
            "connector": one.connector,
            "given_for": ", ".join([*sorted(one.by_products), *sorted(one.by_benefits)]) or "by hand only",
            "per": one.per,
            "grace": format_duration(one.grace),
        }
        for one in catalogue.benefits.values()
    ]

    async def preview() -> tuple[int, int, str | None, list[dict[str, Any]], list[str]]:
        async with service(settings, may_be_new=True) as opened:
            from worker.store import catalogues, inbox

            taken, live = await opened.pipeline.preview(catalogue)
            held = await opened.database.read(catalogues.held)
            uses = await opened.database.read(inbox.secrets_in_use)
            problems = await _examined(opened, catalogue) if online else []
            return taken, live, held["held_because"] if held else None, uses, problems

    taken, live, held, uses, problems = run(preview())
    secrets = _secrets(settings, uses)
    if as_json:
        print_json({"settings": shown, "benefits": benefits, "would_revoke": taken, "live_grants": live, "held": held,
                    "webhook_secrets": secrets, "problems": problems})  # fmt: skip
        raise SystemExit(1 if problems else 0)
    print_table("Settings", ("name", "value"), [{"name": name, "value": value} for name, value in shown.items()], {})
    place = settings.benefits if settings.benefits.exists() else "config/benefits.example.toml, the example"
    print_table(f"Benefits in {place}", ("benefit", "connector", "given_for", "per", "grace"), benefits, {})
    columns = ("secret", "scheme", "first_used_at", "last_used_at")
    print_table("Webhook secrets, and when each was used", columns, secrets, {})
    if taken:
        console.print(f"This file would revoke [bold]{taken}[/] of {live} live grants.")
    if held:
        console.print(f"[bold yellow]The file is held:[/] {held}. If that is right: [bold]almoner accept-benefits[/]")
    if problems:
        raise Failure(*problems)
    if online:
        console.print("[green]Every benefit can be given where it is to be given.[/]")
    console.print("[green]The settings and the benefits file are right.[/]")


async def _examined(opened: Any, catalogue: Catalogue) -> list[str]:  # noqa: ANN401 - Service
    """Return, in sentences, why benefits cannot be given at their platforms."""
    from connectors.base import ConnectorError

    problems = []
    for benefit in catalogue.benefits.values():
        connector = opened.pipeline.connectors[benefit.connector]
        for part in benefit.parts.values():
            try:
                found = await connector.examine(part.config)
            except ConnectorError as error:
                found = [str(error)]
            problems += [f"benefits.{benefit.key}: {one}" for one in found]
    return problems


def _secrets(settings: Settings, uses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return when each secret of the settings was used, by its fingerprint: one that is never used any more can go."""
    names = [fingerprint(one.get_secret_value()) for one in settings.webhook_secrets]
    unused = {"scheme": None, "first_used_at": None, "last_used_at": None}
    return [
        row for name in names for row in [use for use in uses if use["secret"] == name] or [{"secret": name} | unused]
    ]


def _shown(settings: Settings) -> dict[str, str]:
    shown = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name in {"webhook_secrets", "signing_keys", "encryption_keys"}:
            text = ", ".join(f"[{fingerprint(one.get_secret_value())}]" for one in value)
        elif name in {"api_tokens", "ops_tokens"}:
            text = ", ".join(f"{one.name}:[hidden]" for one in value)
        elif isinstance(value, SecretStr):
            text = "[hidden]" if value.get_secret_value() else ""
        elif name.endswith("_url"):
            text = without_password(value)
        elif isinstance(value, tuple):
            text = ", ".join(value)
        else:
            text = format_duration(value) if hasattr(value, "total_seconds") else str(value)
        shown[PREFIX + name.upper()] = text
    return shown


def accept_benefits(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Put the benefits file in force, also where it revokes more than ALMONER_MAX_REVOKE_SHARE allows."""
    settings = settings_or_fail()
    catalogue = catalogue_or_fail(settings)

    async def accept() -> tuple[int, int]:
        async with service(settings, may_be_new=True) as opened:
            taken, live = await opened.pipeline.preview(catalogue)
            if not yes and not typer.confirm(f"It revokes {taken} of {live} live grants. Put it in force?"):
                raise Failure("Nothing was changed.")
            await opened.pipeline.propose(catalogue, accept=True)
            return taken, live

    taken, live = run(accept())
    console.print(f"In force. Workers take it up within seconds; {taken} of {live} grants are revoked.")
