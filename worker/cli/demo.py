"""`almoner demo`: run the sidecar on its embedded default, and play a customer's story against it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from rich.panel import Panel

from worker.cli.output import Failure, console, run
from worker.cli.simulate import DEMO_ORGANIZATION, send_all
from worker.simulate import SimulatedEvent, arrange, play
from worker.simulated import World

_ROOT = Path(__file__).parents[2]
_EXAMPLE = _ROOT / "config" / "benefits.example.toml"
_TOKENS = {
    "ALMONER_API_TOKENS": "app:demo-app-token",
    "ALMONER_OPS_TOKENS": "operator:demo-operator-token",
    "ALMONER_WEBHOOK_SECRETS": "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
}
_PATIENCE_SECONDS = 20

_LOGIN, _GITHUB_ID = "ada-demo", 583231
_DISCORD_ID, _GUILD, _ROLE = "80351110224678912", "197038439483310086", "1100000000000000001"
_PLATFORM_BENEFITS = f"""
[benefits.pro-repository]
connector = "github_repository"
description = "Acme Pro's source"
for = {{{{ products = ["{{product}}"] }}}}
repository = "acme/pro"

[benefits.pro-role]
connector = "discord_role"
description = "Your role in our Discord server"
for = {{{{ products = ["{{product}}"] }}}}
guild = "{_GUILD}"
role = "{_ROLE}"
"""


@dataclass(frozen=True)
class Platforms:
    """A GitHub and a Discord of our own, on loopback; they are among the tests, in a clone of the project."""

    github: httpx.Client
    discord: httpx.Client

    def settings(self) -> dict[str, str]:
        """Return the sidecar's settings for these platforms."""
        app = self._tell(self.github, "app")
        return {
            "ALMONER_GITHUB_API_URL": f"{str(self.github.base_url).rstrip('/')}/api/v3",
            "ALMONER_GITHUB_APP_ID": str(app["app_id"]),
            "ALMONER_GITHUB_PRIVATE_KEY": app["private_key"],
            "ALMONER_DISCORD_API_URL": f"{str(self.discord.base_url).rstrip('/')}/api/v10",
            "ALMONER_DISCORD_BOT_TOKEN": "bot-token-of-the-fake-1",
        }

    def furnish(self) -> None:
        """Make the repository, the role, and the customer's accounts."""
        self._tell(self.github, "repository", repository="acme/pro")
        self._tell(self.github, "user", login=_LOGIN, id=_GITHUB_ID)
        self._tell(self.discord, "add_role", role=_ROLE)
        self._tell(self.discord, "add_user", user=_DISCORD_ID, name=_LOGIN)
        self._tell(self.discord, "join", user=_DISCORD_ID)

    def accept(self) -> None:
        """The customer accepts GitHub's invitation."""
        self._tell(self.github, "accept", repository="acme/pro", login=_LOGIN)

    def held(self) -> tuple[list[str], list[str]]:
        """Return who is in the repository, and which roles the customer has."""
        repository = self._tell(self.github, "state")["repositories"]["acme/pro"]
        members = self.discord.get("/_fake/state").json()["members"][_GUILD]
        return [*repository["collaborators"], *repository["invitations"]], members[_DISCORD_ID]

    @staticmethod
    def _tell(platform: httpx.Client, what: str, **given: object) -> Any:  # noqa: ANN401 - JSON
        answer = platform.post(f"/_fake/{what}", json=given)
        answer.raise_for_status()
        return answer.json()


def demo() -> None:
    """Run the sidecar on its embedded default, play a signed subscription against it, and show what happens."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="almoner-demo-")))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALMONER_")}
        environment |= _TOKENS | {
            "ALMONER_DATA_DIR": str(folder / "data"),
            "ALMONER_BENEFITS": str(folder / "benefits.toml"),
            "ALMONER_PORT": "0",
            "ALMONER_KEY_READERS": "app",
            "ALMONER_LOG_LEVEL": "error",
            "ALMONER_RECHECK_EVERY": "1s",
            "NO_COLOR": "1",
        }
        platforms = _platforms(stack)
        (folder / "benefits.toml").write_text(_benefits(with_platforms=platforms is not None), encoding="utf-8")
        if platforms:
            platforms.furnish()
            environment |= platforms.settings()
        address = stack.enter_context(_running(environment))
        client = stack.enter_context(httpx.Client(base_url=address, timeout=10))
        client.headers["authorization"] = "Bearer demo-app-token"
        _tell(client, address, platforms)


def _platforms(stack: ExitStack) -> Platforms | None:
    """Start both, where the tests are: in a clone, not in an installed package."""
    if not (_ROOT / "tests" / "fakes" / "github.py").exists():
        return None
    started = []
    for name in ("github", "discord"):
        command = [sys.executable, "-m", f"tests.fakes.{name}", "--port", "0"]
        address = stack.enter_context(_process(command, dict(os.environ), f"The fake {name} did not start:"))
        started.append(stack.enter_context(httpx.Client(base_url=address, timeout=10)))
    return Platforms(*started)


def _products() -> tuple[str, str]:
    """Return the product and the Polar benefit that the example sells."""
    from config.catalogue import read_catalogue
    from config.durations import parse_duration
    from connectors import TERMS

    benefits = read_catalogue(_EXAMPLE, TERMS, parse_duration("0s")).benefits
    return min(benefits["pro-key"].by_products), min(benefits["pro-lounge"].by_benefits)


def _benefits(*, with_platforms: bool) -> str:
    example = _EXAMPLE.read_text(encoding="utf-8")
    more = _PLATFORM_BENEFITS.format(product=_products()[0]) if with_platforms else ""
    return example.replace('folder = "config/', f"folder = {json.dumps(str(_ROOT / 'config') + '/')[:-1]}") + more


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


@contextmanager
def _process(command: list[str], environment: dict[str, str], failed: str) -> Iterator[str]:
    """Run a server until the end, and yield the address that it says it listens on. Raises Failure."""
    process = subprocess.Popen(command, env=environment, cwd=_ROOT, stderr=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
    try:
        said: list[str] = []
        for line in process.stderr or ():
            said.append(line)
            if "listens on" in line:
                yield line.split("listens on ")[1].split()[0]
                return
        raise Failure(failed, *said)
    finally:
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def _running(environment: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, "-c", "from worker.cli import main; main()", "up"]
    began = time.monotonic()
    _say("[bold]1.[/] [cyan]almoner up[/]: one process, SQLite, an embedded queue; nothing else to install.")
    with _process(command, environment, "The sidecar did not start:") as address:
        _say(f"   It listens on {address} after {time.monotonic() - began:.1f} s.")
        yield address


def _tell(client: httpx.Client, address: str, platforms: Platforms | None) -> None:
    product, benefit = _products()
    world = World(DEMO_ORGANIZATION, (product,), (benefit,))
    story = play("cancel", world, seed=int(time.time()), now=datetime.now(UTC))
    bought = next(number for number, event in enumerate(story) if event.type == "benefit_grant.created") + 2
    external_id = story[0].external_id

    _say(f"\n[bold]2.[/] Customer [cyan]{external_id}[/] subscribes at Polar, which sends {bought} signed webhooks.")
    began = time.monotonic()
    _post(story[:bought], address)
    answers = _await(client, external_id, _served_by_us, "granted")
    _say(f"   Everything that needs nobody else granted and proven {time.monotonic() - began:.2f} s after the first:")
    _show(client, answers)
    state = client.get(f"/v1/customers/external/{external_id}/state")
    active = state.json()["active_subscriptions"]
    _say(f"   GET /v1/customers/external/{external_id}/state: {state.status_code}, "
                  f"{len(active)} active subscription, as of {state.headers['almoner-as-of']}")  # fmt: skip

    if platforms:
        _tell_of_platforms(client, external_id, platforms)

    _say(
        f"\n[bold]{4 if platforms else 3}.[/] The customer cancels, the period ends: {len(story) - bought} more "
        "webhooks, shuffled, and half of them twice."
    )
    began = time.monotonic()
    _post(arrange(story[bought:], shuffle=True, duplicate=0.5, seed=7), address)
    taken = _await(client, external_id, lambda _: True, "revoked")
    _say(f"   Everything taken back and proven after {time.monotonic() - began:.2f} s:")
    for answer in taken:
        _say(f"   [bold]{answer['benefit']:<15}[/] entitled: {answer['entitled']}, status: {answer['status']}")
    files = next(one for one in answers if one["benefit"] == "pro-downloads")["gives"]["files"]
    click = client.get(files[0]["url"])
    _say(f"   The download link from before: {click.status_code}, {click.json()['detail']}")
    if platforms:
        people, roles = platforms.held()
        _say(f"   GitHub itself says: collaborators and invitations {people}; Discord: roles {roles}")
    _conclude(client, 5 if platforms else 4)


def _tell_of_platforms(client: httpx.Client, external_id: str, platforms: Platforms) -> None:
    """The customer's accounts become known, they accept, and get a page of their own."""
    _say(
        "\n[bold]3.[/] A repository and a role need to know who the customer is there "
        "(GitHub and Discord are played by the servers that the tests use):"
    )
    for answer in _await(client, external_id, _at_a_platform, "action_required"):
        _say(f"   [bold]{answer['benefit']:<15}[/] {answer['status']}: {answer['problem']['message']}")
    began = time.monotonic()
    for platform, account in (("github", {"login": _LOGIN}), ("discord", {"id": _DISCORD_ID})):
        path = f"/v1/customers/external/{external_id}/accounts/{platform}"
        client.put(path, json=account).raise_for_status()
        _say(f"   The app says so: PUT {path} {json.dumps(account)}")
    _await(client, external_id, lambda one: one["benefit"] == "pro-role", "granted")
    [invited] = _await(client, external_id, lambda one: one["benefit"] == "pro-repository", "pending")
    _say(f"   After {time.monotonic() - began:.2f} s Discord has given the role, and GitHub waits for the customer:")
    _say(f"   [bold]{invited['benefit']:<15}[/] {invited['status']}: {invited['problem']['message']}")
    platforms.accept()
    _await(client, external_id, _at_a_platform, "granted")
    people, roles = platforms.held()
    _say(f"   They accept, the sweep sees it: GitHub says {people}, Discord says {roles}.")
    page = client.post(f"/v1/customers/external/{external_id}/page-link").json()
    _say(f"   Their own page, for 15 minutes: {page['url'][:60]}...")


def _conclude(client: httpx.Client, number: int) -> None:
    metrics = client.get("/metrics").text
    ledger = {line.split('"')[1]: int(float(line.split()[-1])) for line in metrics.splitlines()
              if line.startswith("almoner_ledger{")}  # fmt: skip
    duplicates = next((int(float(line.split()[-1])) for line in metrics.splitlines()
                       if line.startswith('almoner_webhooks_total{answer="duplicate"}')), 0)  # fmt: skip
    _say(
        f"\n[bold]{number}.[/] The ledger balances: received {ledger['received']} = pending {ledger['pending']} + done "
        f"{ledger['done']} + ignored {ledger['ignored']} + dead {ledger['dead']}; {duplicates} duplicates."
    )
    console.print(
        Panel(
            "Next: [bold]make up[/], then [bold].venv/bin/almoner simulate purchase[/] in another terminal.",
            expand=False,
        )
    )


def _post(events: Sequence[SimulatedEvent], address: str) -> None:
    secret = _TOKENS["ALMONER_WEBHOOK_SECRETS"]
    answers, _ = run(send_all(events, address, secret, "standard", quiet=True))
    _say(f"   {', '.join(f'{count} {answer}' for answer, count in sorted(answers.items()))}")


Which = Callable[[dict[str, Any]], bool]


def _served_by_us(answer: dict[str, Any]) -> bool:
    return answer["connector"] in {"license_key", "file_download", "custom_link"}


def _at_a_platform(answer: dict[str, Any]) -> bool:
    return not _served_by_us(answer)


def _await(client: httpx.Client, external_id: str, which: Which, status: str) -> list[dict[str, Any]]:
    """Wait until the chosen benefits of the customer all have this status; returns the answers. Raises Failure."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    ours: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        answer = client.get(f"/v1/customers/external/{external_id}/entitlements", params={"reveal": "keys"})
        if answer.status_code == 200:
            ours = [
                one for one in answer.json()["entitlements"] if not one["connector"].startswith("polar:") and which(one)
            ]
            if ours and all(one["status"] == status for one in ours):
                return ours
        time.sleep(0.005)
    far = [f"{one['benefit']} is {one['status']}: {one['problem']}" for one in ours if one["status"] != status]
    raise Failure(f"Not everything was {status} within {_PATIENCE_SECONDS} s", *far)


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
        _say(f"   [bold]{answer['benefit']:<15}[/] {text}")
    reason = answers[0]["because"][0]
    _say(f"   because of {reason['source']} {reason['id'][:8]}…, told by delivery {str(reason['delivery'])[:8]}…")
