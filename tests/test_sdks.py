"""Polar's own clients, four of them, play every call that the sidecar serves, over real HTTP: all get the same.

What a client got is compared with what was on the wire: whatever it has of an answer is as it was sent. The customer
has an order and no subscription, for polar-sdk 1.0.2 can read no state with an active one (tests/test_polar_sdk.py).
"""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.catalogue import Catalogue, parse_catalogue
from connectors import TERMS
from tests.beside import UntilDone, beside
from tests.conftest import ORGANIZATION, POLAR_BENEFIT, PRODUCT, Clock, copy_of_template, run_service, skip
from tests.sdk.expected import ACTS, ERRORS, READS, differing
from tests.test_polar_sdk import listening
from worker.benefit_ids import own_id

ROOT = Path(__file__).parent.parent
NODE = ROOT / "tests" / "node"
OLD_PYTHON = ROOT / ".sdk" / "py032" / "bin" / "python"
APP = "portal-token-1"
OPERATOR = "ops-token-1"
NOBODY = "00000000-0000-4000-8000-000000000000"
BUSY = 60
"""So many calls a minute are let through with one license key here."""


@dataclass(frozen=True)
class Client:
    """One of Polar's clients: how it is run, in which API version, and what is its own."""

    command: tuple[str, ...]
    version: str = "2026-10"
    is_new: bool = True
    """1.x: it rotates keys, and has classes for all errors."""


_NEW_PYTHON = (sys.executable, "-m", "tests.sdk.play_1")
CLIENTS = {
    "polar-sdk 1, 2026-04": Client(_NEW_PYTHON, "2026-04"),
    "polar-sdk 1, 2026-10": Client(_NEW_PYTHON),
    "polar-sdk 1, 2027-01": Client(_NEW_PYTHON, "2027-01"),
    "polar-sdk 0.32": Client((str(OLD_PYTHON), "-m", "tests.sdk.play_0"), is_new=False),
    "@polar-sh/sdk 1": Client(("node", str(NODE / "play_1.mjs"))),
    "@polar-sh/sdk 0.49": Client(("node", str(NODE / "play_0.mjs")), is_new=False),
}

BENEFITS = f"""
[benefits.key]
connector = "license_key"
for = {{ products = ["{PRODUCT}"] }}
prefix = "ACME"
limit_activations = 1
limit_usage = 10
expires = "365d"

[benefits.files]
connector = "file_download"
for = {{ products = ["{PRODUCT}"] }}
folder = "FOLDER"
files = ["manual.txt", "sub/app.bin"]

[benefits.link]
connector = "custom_link"
for = {{ benefits = ["{POLAR_BENEFIT}"] }}
url = "https://example.com/join?who={{customer.external_id}}"
sign = true

[benefits.repository]
connector = "github_repository"
for = {{ products = ["{PRODUCT}"] }}
repository = "acme/pro"

[benefits.role]
connector = "discord_role"
for = {{ products = ["{PRODUCT}"] }}
guild = "197038439483310086"
role = "1100000000000000001"
"""


@dataclass
class Served:
    """A sidecar with customers, and what the clients are told of it."""

    known: dict[str, Any] = field(default_factory=dict)

    def get(self, path: str, token: str, version: str = "2026-10") -> Any:
        """What is on the wire."""
        headers = {"authorization": f"Bearer {token}", "polar-version": version}
        answer = httpx.get(self.known["address"] + path.format(**self.known), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def catalogue_of_all(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("files")
    (folder / "sub").mkdir()
    (folder / "manual.txt").write_text("the manual")
    (folder / "sub" / "app.bin").write_bytes(bytes(1024))
    return parse_catalogue(BENEFITS.replace("FOLDER", str(folder)), TERMS, timedelta())


@pytest.fixture(scope="module")
def served(
    sqlite_template: Path, catalogue_of_all: Catalogue, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The sidecar, on a loop of its own in a thread, once for all clients."""
    folder = tmp_path_factory.mktemp("sdks")
    url = copy_of_template(sqlite_template, folder)
    found = Served()

    async def serve(until_done: UntilDone) -> None:
        limits = {"license_calls_per_address": 0, "license_calls_per_key": BUSY}
        async with run_service(url, folder, catalogue_of_all, Clock(), **limits) as running:
            purchases = [running.story("purchase", seed) for seed in (1, 2, 3)]
            for events in (*purchases, running.story("subscription", 4), running.story("seats", 5)):
                await running.receive(events)
            async with listening(running) as found.known["address"]:
                mine = purchases[0][0]
                found.known |= {"customer_id": mine.customer_id, "external_id": mine.external_id}
                found.known["webhook_id"] = mine.webhook_id
                others = [events[0].customer_id for events in purchases[1:]]
                await asyncio.to_thread(_know, found, others)
                await until_done()

    with beside(serve):
        yield found


def _know(served: Served, others: list[str]) -> None:
    """Find keys: the customer's own, one of somebody else, and one with which too much was called."""
    served.known |= {
        "app": APP, "operator": OPERATOR, "organization_id": ORGANIZATION, "benefit_id": own_id("key"),
        "polar_benefit_id": POLAR_BENEFIT, "nobody": NOBODY, "return_url": "https://app.example.com/account",
    }  # fmt: skip
    keys = {one["customer_id"]: one for one in served.get("/v1/license-keys/?limit=100", APP)["items"]}
    served.known["key_id"] = keys[served.known["customer_id"]]["id"]
    served.known["small_key"], served.known["busy_key"] = (keys[one]["key"] for one in others)
    body = {"key": served.known["busy_key"], "organization_id": ORGANIZATION}
    with httpx.Client(base_url=served.known["address"]) as client:
        for _ in range(BUSY):
            assert client.post("/v1/customer-portal/license-keys/validate", json=body).status_code == 200


def play(client: Client, known: dict[str, Any]) -> dict[str, Any]:
    """Have a client play everything; returns what it got."""
    told = json.dumps(known | {"version": client.version})
    run = subprocess.run([*client.command, told], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    played: dict[str, Any] = json.loads(run.stdout)
    return played


def _must_be_there(client: Client) -> None:
    runs, *_ = client.command
    if runs == str(OLD_PYTHON) and not OLD_PYTHON.exists():
        skip("polar-sdk 0.32 has an environment of its own, which is not there: `make sdks` makes it")
    if runs == "node" and not (shutil.which(runs) and (NODE / "node_modules" / "polar-0").exists()):
        skip("Polar's clients for Node are not there: `make sdks` installs them")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_of_polars_gets_from_the_sidecar_what_it_sent(served: Served, name: str) -> None:
    client = CLIENTS[name]
    _must_be_there(client)
    played = play(client, served.known)
    assert played["failures"] == {}
    answers = played["answers"]
    assert set(answers) == {*READS, *ACTS, *({"license_keys.rotate"} if client.is_new else ())}
    tokens = {"app": APP, "operator": OPERATOR, "session": answers["customer_sessions.create"]["token"]}
    for call, (path, who) in READS.items():
        sent = served.get(path, tokens[who], client.version)
        assert not list(differing(answers[call], sent, call))
    _looked_at(answers, served)
    _acted(answers, served, rotates=client.is_new)
    _refused(played["errors"], is_new=client.is_new)


def _looked_at(answers: dict[str, Any], served: Served) -> None:
    """What was listed is what there is."""
    lists = {name: answers[name]["items"] for name in READS if name.endswith(("list", "grants", "deliveries"))}
    assert {name: len(items) for name, items in lists.items()} == {
        "customers.list": 5, "subscriptions.list": 2, "orders.list": 1, "benefits.list": 6, "benefits.grants": 6,
        "benefit_grants.list": 6, "license_keys.list": 6, "customer_portal.license_keys.list": 1,
        "customer_portal.downloadables.list": 2, "customer_portal.benefit_grants.list": 6,
        "webhooks.list_webhook_deliveries": 5,
    }  # fmt: skip
    state = answers["customers.get_state_external"]
    assert (state["id"], state["active_subscriptions"]) == (served.known["customer_id"], [])
    assert [one["benefit_id"] for one in state["granted_benefits"]] == [POLAR_BENEFIT]
    kinds = {"custom", "license_keys", "downloadables", "github_repository", "discord"}
    for name in ("benefits.list", "benefit_grants.list", "customer_portal.benefit_grants.list"):
        assert kinds <= {item.get("type") or item["benefit"]["type"] for item in lists[name]}


def _acted(answers: dict[str, Any], served: Served, *, rotates: bool) -> None:
    """What was done was done to the right thing."""
    session, known = answers["customer_sessions.create"], served.known
    assert session["token"].startswith("almoner_cst_")
    assert (session["customer_id"], session["customer"]["id"]) == (known["customer_id"], known["customer_id"])
    assert (session["return_url"], session["modified_at"]) == (known["return_url"], None)
    key = answers["license_keys.get"]["key"]
    assert key.startswith("ACME-")
    for prefix, label in (("", "laptop"), ("customer_portal.", "phone")):
        validated, activated = (answers[f"{prefix}license_keys.{act}"] for act in ("validate", "activate"))
        assert (validated["id"], validated["key"], validated["status"]) == (known["key_id"], key, "granted")
        assert validated["customer"]["email"]
        assert (activated["label"], activated["license_key"]["key"]) == (label, key)
        assert not answers[f"{prefix}license_keys.deactivate"]
    assert answers["license_keys.validate"]["usage"] == 1
    assert answers["license_keys.get_activation"]["meta"] == {"os": "linux"}
    assert answers["license_keys.update"]["usage"] == 0
    if rotates:
        rotated = answers["license_keys.rotate"]
        assert (rotated["id"], rotated["status"], rotated["key"] == key) == (known["key_id"], "granted", False)


def _refused(errors: dict[str, Any], *, is_new: bool) -> None:
    """What was refused arrived as the client's own errors."""
    expected = {name: (status, new if is_new else old) for name, (status, new, old) in ERRORS.items()}
    assert {name: (error["status"], error["class"]) for name, error in errors.items()} == expected
    [problem] = errors["422"]["detail"]["detail"]
    assert problem["loc"] == ["body", "customer_id"]
    if is_new:
        assert 0 < errors["429"]["retry_after"] <= 60
