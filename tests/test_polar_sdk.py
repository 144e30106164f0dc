"""Polar's own SDK, pointed at the sidecar over real HTTP, reads the state from it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from polar import v2026_04, v2026_10
from polar.base import PolarError, deserialize

from tests.conftest import POLAR_BENEFIT, PRODUCT, Running
from worker.http.api import make_api


@asynccontextmanager
async def listening(running: Running) -> AsyncIterator[str]:
    """The address of the service, on a free port of this machine."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        config = uvicorn.Config(make_api(running.context, running.clock), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[place]))
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@pytest.mark.parametrize("version", [v2026_04, v2026_10])
async def test_the_state_is_read_by_polars_sdk(on_sqlite: Running, version: Any) -> None:
    events = on_sqlite.story("purchase")
    await on_sqlite.receive(events)
    async with listening(on_sqlite) as address, version.PolarAsync("app-token-1", base_url=address) as polar:
        by_id = await polar.customers.get_state(events[0].customer_id)
        by_name = await polar.customers.get_state_external(events[0].external_id)
        with pytest.raises(PolarError) as unknown:
            await polar.customers.get_state_external("nobody")
    for state in (by_id, by_name):
        assert state.id == events[0].customer_id
        assert state.external_id == events[0].external_id
        assert [one.benefit_id for one in state.granted_benefits] == [POLAR_BENEFIT]
    assert type(unknown.value).__name__ == "ResourceNotFound"


@pytest.mark.parametrize("version", [v2026_04, v2026_10])
@pytest.mark.parametrize("scenario", ["subscription", "trial", "seats"])
async def test_active_subscriptions_have_every_field_that_the_sdk_reads(
    on_sqlite: Running, scenario: str, version: Any
) -> None:
    """SDK 1.0.2 takes the statuses of license keys for those of a state's subscriptions (mended in 1.0.3a5): it reads
    no active subscription, Polar's own neither. So everything but the status is read by it here.
    """
    events = on_sqlite.story(scenario)
    await on_sqlite.receive(events)
    document = (await on_sqlite.get(f"/v1/customers/{events[0].customer_id}/state")).json()
    [subscription] = document["active_subscriptions"]
    assert subscription["status"] in {"active", "trialing"}
    subscription["status"] = "granted"
    state = deserialize(document, version.outputs.CustomerState)
    assert [one.product_id for one in state.active_subscriptions] == [PRODUCT]
