"""`almoner simulate`: play Polar's part against a running sidecar."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import httpx
import typer
from rich.progress import Progress

from config.catalogue import Catalogue
from config.settings import Settings
from worker.cli.output import Failure, catalogue_or_fail, console, console_err, print_json, run, settings_or_fail
from worker.simulate import SCENARIOS, SimulatedEvent, arrange, default_scheme, headers, play
from worker.simulated import World

DEMO_ORGANIZATION = "5a4e9d3c-2b1f-4c6d-8e7a-9f0b1c2d3e4f"
_AT_ONCE = 16


def world_of(catalogue: Catalogue, settings: Settings) -> World:
    """Return what a merchant with this catalogue sells at Polar."""
    benefits = catalogue.benefits.values()
    return World(
        settings.polar_organization_id or DEMO_ORGANIZATION,
        tuple(dict.fromkeys(one for benefit in benefits for one in sorted(benefit.by_products))),
        tuple(dict.fromkeys(one for benefit in benefits for one in sorted(benefit.by_benefits))),
    )


def simulate(
    scenario: Annotated[str, typer.Argument(help="One of: " + ", ".join(SCENARIOS))],
    count: Annotated[int, typer.Option(min=1, help="How many customers live through it.")] = 1,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Send the events in any order.")] = False,
    duplicate: Annotated[float, typer.Option(min=0, max=1, help="The share of events that is sent twice.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same customers.")] = None,
    scheme: Annotated[str | None, typer.Option(help="standard or legacy; without it, as Polar would.")] = None,
    url: Annotated[str | None, typer.Option(help="The sidecar's address; without it, from the settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Sign and send what Polar would send, to a running sidecar on this machine."""
    if scenario not in SCENARIOS:
        known = "; ".join(f"{name}: {one.about}" for name, one in SCENARIOS.items())
        raise Failure(f"There is no scenario {scenario!r}. {known}", code=2)
    if scheme not in {None, "standard", "legacy"}:
        raise Failure(f"There is no scheme {scheme!r}; there are standard and legacy", code=2)
    settings = settings_or_fail()
    if not settings.webhook_secrets:
        raise Failure("ALMONER_WEBHOOK_SECRETS is missing: it signs what is sent")
    world = world_of(catalogue_or_fail(settings), settings)
    begin = int(time.time() * 1000) if seed is None else seed
    now = datetime.now(UTC)
    events = [event for number in range(count) for event in play(scenario, world, seed=begin + number, now=now)]
    sent = arrange(events, shuffle=shuffle, duplicate=duplicate, seed=begin)
    secret = settings.webhook_secrets[0].get_secret_value()
    chosen = scheme or default_scheme(secret)
    address = url or settings.local_url
    try:
        answers, refusals = run(send_all(sent, address, secret, chosen, quiet=as_json))  # type: ignore[arg-type]
    except ValueError as error:
        raise Failure(str(error)) from None
    customers = list(dict.fromkeys(event.external_id for event in events if event.external_id))
    if as_json:
        print_json({"sent": len(sent), "answers": dict(answers), "customers": customers})
    else:
        outcome = ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items()))
        console.print(f"Sent {len(sent)} events of {len(customers)} customer{'s' * (len(customers) != 1)}: {outcome}.")
        console.print(f"The organization is {world.organization_id}.")
        console.print(f"See what became of it: [bold]almoner grants list --customer {customers[0]}[/]", soft_wrap=True)
    if refusals:
        raise Failure(*(f"{address} answered {code}: {detail}" for code, detail in sorted(refusals.items())))


async def send_all(
    events: Sequence[SimulatedEvent], address: str, secret: str, scheme: Literal["standard", "legacy"], *, quiet: bool
) -> tuple[Counter[str], dict[str, str]]:
    """Send events, a few at once; returns how often each answer came, and why those were refused that were.

    An answer is a status, or an HTTP code.
    """
    answers: Counter[str] = Counter()
    refusals: dict[str, str] = {}
    slots = asyncio.Semaphore(_AT_ONCE if len(events) > 100 else 1)

    async def send(event: SimulatedEvent, client: httpx.AsyncClient) -> None:
        async with slots:
            signed = headers(event, secret, scheme=scheme, at=datetime.now(UTC))
            answer = await client.post("/webhooks/polar", content=event.body, headers=signed)
            outcome = answer.json()["status"] if answer.status_code == 202 else str(answer.status_code)
            answers[outcome] += 1
            if answer.status_code != 202:
                refusals[outcome] = _detail(answer)
            progress.advance(task)

    with Progress(console=console_err, transient=True, disable=quiet) as progress:
        task = progress.add_task("Sending", total=len(events))
        try:
            async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                await asyncio.gather(*(send(event, client) for event in events))
        except httpx.TransportError as error:
            raise Failure(
                f"Nothing answers at {address} ({error}). Start the sidecar first: almoner up; "
                "on another port name it: --url, or ALMONER_PORT"
            ) from None
    return answers, refusals


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return "not as Almoner answers; is it something else that listens there?"
