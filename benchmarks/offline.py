"""Offline licences: how many a second are verified, by Python and by Node, and how many are issued.

Each figure stands beside a baseline of the same run: the Ed25519 operation alone, a loop that does nothing, or a
Litestar POST that does nothing.
"""

import asyncio
import importlib.util
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from common import servers
from common.load import Result, http_request, run_load
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from worker import keyring
from worker.offline import Licence, signed
from worker.simulate import headers, play
from worker.simulated import World

SECONDS = 1.0
ROUNDS = 5
HEADERS = {"authorization": f"Bearer {servers.TOKEN}", "content-type": "application/json"}
WORLD = World("6513270e-269e-4d37-b2a7-4de452e6b438", ("9b1f6d2e-3c4a-4f5b-8d6e-7a8b9c0d1e2f",), ())
BENEFITS = f"""
[benefits.pro]
connector = "license_key"
for = {{ products = ["{WORLD.products[0]}"] }}
grace = "3d"
offline = "30d"
"""


def main() -> None:
    private = Ed25519PrivateKey.generate()
    verified_by_python(private)
    verified_by_node(private)
    signed_alone(private)
    issued()


def drafted(now: datetime) -> Licence:
    return Licence(
        id="0f6b7c1e-7c1e-4d61-9f6b-0f6b7c1e7c1e", license_key_id="7c1e7c1e-7c1e-4d61-9f6b-0f6b7c1e7c1e",
        display_key="****-7D54AB", benefit="pro", benefit_id="2c7e5a90-1b3d-4e6f-9a8c-5d4e3f2a1b0c",
        description="License key for Acme Pro", customer_id="c17e5a90-1b3d-4e6f-9a8c-5d4e3f2a1b0c",
        external_customer_id="usr_1", organization_id=WORLD.organization_id, activation_id=None, fingerprint=None,
        issued_at=now, valid_until=now + timedelta(days=30), paid_through=None,
    )  # fmt: skip


def licence(private: Ed25519PrivateKey, now: datetime) -> tuple[str, dict[str, Any]]:
    public = private.public_key().public_bytes_raw()
    kid = keyring.kid_of(public)
    return signed(drafted(now), kid, private).text, {"keys": [{"kid": kid, "public_key": keyring.base64url(public)}]}


def rate(act: Callable[[], Any]) -> float:
    """How often a second, within a bounded time."""
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        act()
        count += 1
    return count / (time.perf_counter() - began)


def verified_by_python(private: Ed25519PrivateKey) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    text, keys = licence(private, now)
    spec = importlib.util.spec_from_file_location("verify", servers.ROOT / "docs" / "verify" / "verify.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said, _, signature = text.rpartition(".")
    data, message, public = urlsafe_b64decode(signature + "=="), said.encode(), private.public_key()
    shares = []
    for _ in range(ROUNDS):
        alone, found = rate(lambda: public.verify(data, message)), rate(lambda: module.verify(text, keys, now))
        shares.append(found / alone)
        print(f"verified by Python : {found:7.0f}/s of {alone:7.0f}/s Ed25519 alone, {rate(int):9.0f}/s doing nothing")
    print(f"RATIO verified by Python, to Ed25519 alone: {statistics.median(shares):.2f}")


def verified_by_node(private: Ed25519PrivateKey) -> None:
    program = shutil.which("node")
    if program is None or not (servers.ROOT / "tests" / "node" / "node_modules").is_dir():
        print("verified by Node   : no Node, or no tests/node/node_modules (npm ci --prefix tests/node)")
        return
    now = datetime.now(UTC).replace(microsecond=0)
    text, keys = licence(private, now)
    case = {"text": text, "keys": keys, "now": now.isoformat(), "fingerprint": None, "last_seen": None}
    script = str(servers.ROOT / "tests" / "node" / "verify_cases.mjs")
    shares = []
    for _ in range(ROUNDS):
        done = subprocess.run(
            [program, script, str(servers.ROOT / "docs" / "verify" / "verify.ts")],
            input=json.dumps({"cases": [case], "seconds": SECONDS}), capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        shares.append(found["verified"] / found["alone"])
        print(f"verified by Node   : {found['verified']:7.0f}/s of {found['alone']:7.0f}/s Ed25519 alone")
    print(f"RATIO verified by Node, to Ed25519 alone: {statistics.median(shares):.2f}")


def signed_alone(private: Ed25519PrivateKey) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    made, message = drafted(now), bytes(700)
    shares = []
    for _ in range(ROUNDS):
        alone, found = rate(lambda: private.sign(message)), rate(lambda: signed(made, "kid", private))
        shares.append(found / alone)
        print(f"written and signed : {found:7.0f}/s of {alone:7.0f}/s Ed25519 alone")
    print(f"RATIO written and signed, to Ed25519 alone: {statistics.median(shares):.2f}")


def issued() -> None:
    with tempfile.TemporaryDirectory(prefix="almoner-bench-") as temporary:
        folder = Path(temporary)
        (folder / "benefits.toml").write_text(BENEFITS)
        settings = {"folder": folder, "benefits": str(folder / "benefits.toml")}
        with servers.baseline() as (base_port, _), servers.almoner("up", **settings) as (port, _, _):  # type: ignore[arg-type]
            asking = [http_request("POST", f"/v1/license-keys/{key_of_a_customer(port)}/offline", HEADERS)]
            nothing = [http_request("POST", "/", {})]
            shares = []
            for _ in range(ROUNDS):
                base, found = load(base_port, nothing), load(port, asking)
                assert set(found.statuses) == {200}, found.statuses
                shares.append(found.rate / base.rate)
                print(
                    f"issued over HTTP   : {found.rate:7.0f}/s of {base.rate:7.0f}/s   "
                    f"p50 {found.percentile(0.5):.1f}   p99 {found.percentile(0.99):.1f} ms"
                )
    print(f"RATIO issued over HTTP, to a POST that does nothing: {statistics.median(shares):.2f}")


def load(port: int, requests: list[bytes]) -> Result:
    return asyncio.run(run_load(port, cycle(requests), connections=16, seconds=2 * SECONDS))


def key_of_a_customer(port: int) -> str:
    """Sell a subscription, by real webhooks; returns the id of its license key."""
    now = datetime.now(UTC)
    story = play("subscription", WORLD, seed=1, now=now)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:
        for event in story:
            sent = headers(event, servers.SECRET, scheme="standard", at=now)
            client.post("/webhooks/polar", content=event.body, headers=sent).raise_for_status()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            answer = client.get(f"/v1/customers/{story[0].customer_id}/entitlements/pro").json()
            if answer.get("status") == "granted":
                key_id: str = answer["gives"]["license_key_id"]
                return key_id
            time.sleep(0.05)
    raise RuntimeError("the customer was not fulfilled")


if __name__ == "__main__":
    main()
