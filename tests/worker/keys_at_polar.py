"""A merchant whose license keys Polar issues: the service, a Polar of our own beside it, and what Polar sends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from config.catalogue import Catalogue
from connectors.base import LicenseKey
from tests.conftest import Clock, Running, run_service
from tests.fakes.polar import ORGANIZATION, FakePolar, customer
from worker.polar_keys import PolarKeys
from worker.simulate import SimulatedEvent
from worker.simulated import iso
from worker.store import licenses
from worker.store.polar_keys import unknown_keys

Object = dict[str, Any]
CUSTOMER = "11111111-1111-4111-8111-111111111111"
MEMBER = "22222222-2222-4222-8222-222222222222"
BENEFIT = "33333333-3333-4333-8333-333333333333"
ORDER = "44444444-4444-4444-8444-444444444444"


@dataclass
class Desk:
    """The service, the fake, and what both know of one customer."""

    running: Running
    fake: FakePolar
    token: str

    @property
    def keys(self) -> PolarKeys:
        return self.running.service.polar_keys

    def another_worker(self) -> PolarKeys:
        service = self.running.service
        return PolarKeys(service.database, service.polar, service.settings, self.running.clock)

    def issue(self, **more: Any) -> Object:
        """A key at Polar; nobody was told of it yet."""
        return self.fake.key(**({"customer_id": CUSTOMER, "benefit_id": BENEFIT, "member_id": MEMBER} | more))

    def event(self, key: Object, verb: str = "created", *, granted: bool = True, revoked: bool = False,
              customer_id: str = CUSTOMER) -> SimulatedEvent:  # fmt: skip
        """What Polar says of the key's grant, now."""
        at = iso(self.running.clock.at)
        benefit: Object = {
            "id": BENEFIT, "created_at": at, "modified_at": None, "type": "license_keys", "description": "A key",
            "selectable": True, "deletable": True, "is_deleted": False, "organization_id": ORGANIZATION, "metadata": {},
            "visibility": "public", "properties": {}, "visibility_configurable": True,
        }  # fmt: skip
        data = {
            "id": _grant_id(key), "created_at": key["created_at"], "modified_at": at,
            "granted_at": at if granted else None, "is_granted": granted, "revoked_at": at if revoked else None,
            "is_revoked": revoked, "subscription_id": None, "order_id": ORDER, "customer_id": customer_id,
            "member_id": MEMBER, "benefit_id": BENEFIT, "error": None, "previous_properties": None, "benefit": benefit,
            "properties": {"license_key_id": key["id"], "display_key": key["display_key"]},
            "customer": customer(customer_id, key["created_at"], ORGANIZATION), "member": None,
        }  # fmt: skip
        return self.signed(f"benefit_grant.{verb}", data, customer_id)

    def state(self, *granted: Object) -> SimulatedEvent:
        """The customer's whole state, now."""
        at = iso(self.running.clock.at)
        listed = [
            {"id": _grant_id(key), "created_at": key["created_at"], "modified_at": None, "granted_at": at,
             "benefit_id": BENEFIT, "benefit_type": "license_keys", "benefit_metadata": {},
             "properties": {"license_key_id": key["id"], "display_key": key["display_key"]}}
            for key in granted
        ]  # fmt: skip
        data = customer(CUSTOMER, at, ORGANIZATION) | {
            "active_subscriptions": [], "granted_benefits": listed, "active_meters": [],
        }  # fmt: skip
        return self.signed("customer.state_changed", data, CUSTOMER)

    def signed(self, type_: str, data: Object, customer_id: str) -> SimulatedEvent:
        at = self.running.clock.at
        payload = {"type": type_, "timestamp": iso(at), "api_version": "2026-10", "data": data}
        return SimulatedEvent(str(uuid4()), type_, at, customer_id, "", json.dumps(payload).encode())

    async def tell(self, *events: SimulatedEvent) -> None:
        await self.running.receive(events)

    async def told(self, **more: Any) -> Object:
        """A key at Polar of which we were told just now."""
        key = self.issue(**more)
        await self.tell(self.event(key))
        return key

    async def had(self, **more: Any) -> Object:
        """A key that was told and read."""
        key = await self.told(**more)
        assert await self.keys.read_due() == 1
        assert (await self.row(key))["problem"] is None
        return key

    async def row(self, key: Object) -> Object:
        row = await self.row_or_none(key)
        assert row is not None
        return row

    async def row_or_none(self, key: Object) -> Object | None:
        table = licenses.license_keys
        found = await self.running.service.database.read(
            lambda connection: connection.execute(table.select().where(table.c.id == key["id"])).one_or_none()
        )
        return dict(found._mapping) if found else None

    async def change_row(self, key: Object, **columns: Any) -> None:
        table = licenses.license_keys
        change = table.update().where(table.c.id == key["id"]).values(**columns)
        await self.running.service.database.write(lambda connection: connection.execute(change))

    async def devices(self, key: Object) -> list[str]:
        """The ids of the key's live activations here."""
        found = await self.running.service.database.read(lambda connection: licenses.live(connection, key["id"]))
        return [one.id for one in found]

    async def validate(self, key: str, status: int = 200, organization: str = ORGANIZATION, **more: Any) -> Object:
        """Validate as a device does."""
        body = {"key": key, "organization_id": organization} | more
        answer = await self.running.client.post("/v1/customer-portal/license-keys/validate", json=body)
        assert answer.status_code == status, answer.text
        document: Object = answer.json()
        return document | {"headers": dict(answer.headers)}

    async def unknown(self) -> int:
        """How many keys are remembered as unknown at Polar."""
        return len(
            await self.running.service.database.read(lambda connection: connection.execute(unknown_keys.select()).all())
        )

    async def own(self, string: str) -> None:
        """Issue a key of our own with this string."""
        key = LicenseKey(
            id=str(uuid4()), resource=f"license_key:key:c:{string}", benefit="key", customer_id="c", key=string,
            display_key="****",
        )  # fmt: skip
        await self.running.service.license_keys.issue(key)

    async def asked(self) -> None:
        """Wait until Polar was asked something."""
        async with asyncio.timeout(10):
            while not self.fake.log:  # noqa: ASYNC110 - the other side is in another thread
                await asyncio.sleep(0.01)

    def reads(self) -> int:
        """How many keys were read at Polar."""
        return sum(one.method == "GET" for one in self.fake.log)


def _grant_id(key: Object) -> str:
    return str(uuid5(NAMESPACE_URL, key["id"]))


@asynccontextmanager
async def open_desk(
    served: tuple[FakePolar, str], url: str, folder: Path, catalogue: Catalogue, clock: Clock, **more: Any
) -> AsyncIterator[Desk]:
    """The service on this database, with a token of a Polar that knows nothing yet. Polar's document was kept to."""
    fake, address = served
    fake.reset(clock)
    token = fake.token()
    values = {
        "polar_access_token": token, "polar_base_url": address, "polar_organization_id": ORGANIZATION,
        "call_timeout": timedelta(seconds=2),
    }  # fmt: skip
    async with run_service(url, folder, catalogue, clock, **(values | more)) as running:
        yield Desk(running, fake, token)
    assert fake.specification
    assert fake.specification.violations == []
