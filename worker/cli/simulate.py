"""`almoner simulate` and `almoner demo`: play Polar's part against a running sidecar."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer
from rich.panel import Panel
from rich.progress import Progress

from config.catalogue import Catalogue
from config.settings import Settings
from worker.cli.output import Failure, catalogue_or_fail, console, console_err, print_json, run, settings_or_fail
from worker.simulate import SCENARIOS, SimulatedEvent, arrange, default_scheme, headers, play
from worker.simulated import World

_DEMO_ORGANIZATION = "5a4e9d3c-2b1f-4c6d-8e7a-9f0b1c2d3e4f"
_AT_ONCE = 16


def world_of(catalogue: Catalogue, settings: Settings) -> World:
    """Return what a merchant with this catalogue sells at Polar."""
    benefits = catalogue.benefits.values()
    return World(
        settings.polar_organization_id or _DEMO_ORGANIZATION,
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
        answers, refusals = run(_send_all(sent, address, secret, chosen, quiet=as_json))  # type: ignore[arg-type]
    except ValueError as error:
        raise Failure(str(error)) from None
    customers = list(dict.fromkeys(event.external_id for event in events if event.external_id))
    if as_json:
        print_json({"sent": len(sent), "answers": dict(answers), "customers": customers})
    else:
        outcome = ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items()))
        console.print(f"Sent {len(sent)} events of {len(customers)} customer{'s' * (len(customers) != 1)}: {outcome}.")
        console.print(f"See what became of it: [bold]almoner grants list --customer {customers[0]}[/]", soft_wrap=True)
    if refusals:
        raise Failure(*(f"{address} answered {code}: {detail}" for code, detail in sorted(refusals.items())))


async def _send_all(
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
            raise Failure(f"Nothing answers at {address} ({error}). Start the sidecar first: almoner up") from None
    return answers, refusals


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return "not as Almoner answers; is it something else that listens there?"


# The demo.

_DEMO_TOKENS = {
    "ALMONER_API_TOKENS": "app:demo-app-token",
    "ALMONER_OPS_TOKENS": "operator:demo-operator-token",
    "ALMONER_WEBHOOK_SECRETS": "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
}


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def demo() -> None:
    """Run the sidecar on its embedded default, play a signed subscription against it, and show what happens."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory(prefix="almoner-demo-") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALMONER_")}
        environment |= _DEMO_TOKENS | {
            "ALMONER_DATA_DIR": folder,
            "ALMONER_BENEFITS": str(root / "config" / "benefits.example.toml"),
            "ALMONER_PORT": "0",
            "ALMONER_KEY_READERS": "app",
            "ALMONER_LOG_LEVEL": "warning",
            "NO_COLOR": "1",
        }
        with _running(environment, root) as address, httpx.Client(base_url=address, timeout=10) as client:
            client.headers["authorization"] = "Bearer demo-app-token"
            _tell(client, address)


@contextmanager
def _running(environment: dict[str, str], root: Path) -> Iterator[str]:
    command = [sys.executable, "-c", "from worker.cli import main; main()", "up"]
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
    try:
        _say("[bold]1.[/] [cyan]almoner up[/]: one process, SQLite, an embedded queue; nothing else to install.")
        said: list[str] = []
        for line in process.stderr or ():
            said.append(line)
            if "listens on" in line:
                address = line.split("listens on ")[1].split()[0]
                _say(f"   It listens on {address} after {time.monotonic() - began:.1f} s.")
                yield address
                return
        raise Failure("The sidecar did not start:", *said)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _tell(client: httpx.Client, address: str) -> None:
    from config.durations import parse_duration
    from connectors import TERMS

    path = Path(__file__).parents[2] / "config" / "benefits.example.toml"
    from config.catalogue import read_catalogue

    catalogue = read_catalogue(path, TERMS, parse_duration("0s"))
    world = World(_DEMO_ORGANIZATION, *(tuple(sorted(ids)) for ids in (
        catalogue.benefits["pro-key"].by_products, catalogue.benefits["pro-lounge"].by_benefits)))  # fmt: skip
    story = play("cancel", world, seed=int(time.time()), now=datetime.now(UTC))
    bought = next(number for number, event in enumerate(story) if event.type == "benefit_grant.created") + 2
    external_id = story[0].external_id

    _say(f"\n[bold]2.[/] Customer [cyan]{external_id}[/] subscribes at Polar, which sends {bought} signed webhooks.")
    began = time.monotonic()
    _post(story[:bought], address)
    answers = _await(client, external_id, entitled=True)
    _say(f"   Everything granted and proven {time.monotonic() - began:.2f} s after the first webhook:")
    _show(client, answers)
    state = client.get(f"/v1/customers/external/{external_id}/state")
    active = state.json()["active_subscriptions"]
    _say(f"   GET /v1/customers/external/{external_id}/state: {state.status_code}, "
                  f"{len(active)} active subscription, as of {state.headers['almoner-as-of']}")  # fmt: skip

    _say(
        f"\n[bold]3.[/] The customer cancels, the period ends: {len(story) - bought} more webhooks, "
        "shuffled, and half of them twice."
    )
    began = time.monotonic()
    _post(arrange(story[bought:], shuffle=True, duplicate=0.5, seed=7), address)
    taken = _await(client, external_id, entitled=False)
    _say(f"   Everything taken back and proven after {time.monotonic() - began:.2f} s:")
    for answer in taken:
        _say(f"   [bold]{answer['benefit']:<14}[/] entitled: {answer['entitled']}, status: {answer['status']}")
    files = next(one for one in answers if one["benefit"] == "pro-downloads")["gives"]["files"]
    click = client.get(files[0]["url"])
    _say(f"   The download link from before: {click.status_code}, {click.json()['detail']}")

    metrics = client.get("/metrics").text
    ledger = {line.split('"')[1]: int(float(line.split()[-1])) for line in metrics.splitlines()
              if line.startswith("almoner_ledger{")}  # fmt: skip
    duplicates = next((int(float(line.split()[-1])) for line in metrics.splitlines()
                       if line.startswith('almoner_webhooks_total{answer="duplicate"}')), 0)  # fmt: skip
    _say(
        f"\n[bold]4.[/] The ledger balances: received {ledger['received']} = pending {ledger['pending']} + done "
        f"{ledger['done']} + ignored {ledger['ignored']} + dead {ledger['dead']}; {duplicates} duplicates."
    )
    console.print(
        Panel(
            "Next: [bold]make up[/], then [bold].venv/bin/almoner simulate purchase[/] in another terminal.",
            expand=False,
        )
    )


def _post(events: Sequence[SimulatedEvent], address: str) -> None:
    secret = _DEMO_TOKENS["ALMONER_WEBHOOK_SECRETS"]
    answers, _ = run(_send_all(events, address, secret, "standard", quiet=True))
    _say(f"   {', '.join(f'{count} {answer}' for answer, count in sorted(answers.items()))}")


def _await(client: httpx.Client, external_id: str, *, entitled: bool) -> list[dict[str, Any]]:
    """Wait until every benefit of the customer is settled; returns the answers."""
    wanted = "granted" if entitled else "revoked"
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        answer = client.get(f"/v1/customers/external/{external_id}/entitlements", params={"reveal": "keys"})
        if answer.status_code == 200:
            ours: list[dict[str, Any]] = [
                one for one in answer.json()["entitlements"] if not one["connector"].startswith("polar:")
            ]
            if len(ours) == 3 and all(one["status"] == wanted for one in ours):
                return ours
        time.sleep(0.005)
    raise Failure(f"Not everything was {wanted} within 15 s")


def _show(client: httpx.Client, answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        gives = answer["gives"]
        if gives["kind"] == "license_key":
            text = f"license key {gives['key']}"
        elif gives["kind"] == "files":
            first = gives["files"][0]
            content = client.get(first["url"]).text.strip()
            text = f"{len(gives['files'])} files; {first['name']}: “{content}”"
        else:
            text = f"link {gives['url'][:60]}..."
        _say(f"   [bold]{answer['benefit']:<14}[/] {text}")
    reason = answers[0]["because"][0]
    _say(f"   because of {reason['source']} {reason['id'][:8]}…, told by delivery {str(reason['delivery'])[:8]}…")
