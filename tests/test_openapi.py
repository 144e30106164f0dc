"""What the OpenAPI document says is what the service does: Schemathesis calls every route with whatever it allows, and
with what it does not, on both databases. No answer is 5xx, and none is of a status or a shape that is not in it.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from config.catalogue import Catalogue
from tests.beside import UntilDone, beside
from tests.conftest import ORGANIZATION, Clock, run_service
from tests.test_polar_sdk import listening
from worker.pipeline import SWEEP_PULSE
from worker.store import grants

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
"""Of each route, in either mode. Seconds in the suite; hundreds of them find what is rare."""
OPERATOR = {"authorization": "Bearer ops-token-1"}


@dataclass
class Served:
    """A service with a customer, for a test that is no coroutine."""

    address: str = ""
    ids: dict[str, list[str]] = field(default_factory=dict)
    session: str = ""


@contextmanager
def served(database_url: str, folder: Path, catalogue: Catalogue) -> Iterator[Served]:
    """Run the service on a loop of its own, in a thread."""
    found = Served()

    async def serve(until_done: UntilDone) -> None:
        limits = {"license_calls_per_address": 0, "license_calls_per_key": 0}
        async with run_service(database_url, folder, catalogue, Clock(), **limits) as running:
            events = running.story("purchase") + running.story("subscription", 2) + running.story("seats", 3)
            await running.receive(events)
            async with listening(running) as found.address:
                await asyncio.to_thread(_know, found, events[0].customer_id, events[0].external_id)
                await running.service.database.write(lambda one: grants.beat(one, SWEEP_PULSE, running.clock()))
                found.ids["webhook_id"] = [events[0].webhook_id]
                await until_done()

    with beside(serve):
        yield found


def _know(found: Served, customer_id: str, external_id: str) -> None:
    """Find real ids, so that not every question ends at 404."""
    with httpx.Client(base_url=found.address, headers=OPERATOR) as client:
        [key, *_] = client.get("/v1/license-keys/").json()["items"]
        body = {"key": key["key"], "organization_id": ORGANIZATION, "label": "laptop"}
        activation = client.post("/v1/license-keys/activate", json=body).json()["id"]
        session = client.post("/v1/customer-sessions/", json={"customer_id": customer_id})
        found.session = session.json()["token"]
        found.ids = {
            "id": [key["id"], customer_id, key["benefit_id"]], "key_id": [key["id"]], "activation_id": [activation],
            "customer_id": [customer_id], "external_id": [external_id], "benefit": ["key", "files", "link"],
            "platform": ["github", "discord"], "key": [key["key"]], "organization_id": [ORGANIZATION],
        }  # fmt: skip


def _with_known(case: Any, ids: dict[str, list[str]], pick: int) -> None:
    for part in (case.path_parameters, case.body):
        if isinstance(part, dict):
            for name in part:
                if name in ids:
                    part[name] = ids[name][pick % len(ids[name])]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_route_answers_as_the_document_says(database_url: str, tmp_path: Path, catalogue: Catalogue) -> None:
    with served(database_url, tmp_path, catalogue) as service:
        schema = schemathesis.openapi.from_url(f"{service.address}/schema/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        assert len(operations) > 40
        wrong = [
            said for operation in operations for mode in GenerationMode if (said := _fuzz(operation, mode, service))
        ]
    assert not wrong, "\n\n".join(wrong)


def _fuzz(operation: Any, mode: GenerationMode, service: Served) -> str:
    """Call one route in many ways; returns what was wrong with an answer."""
    is_portal = operation.path.startswith("/v1/customer-portal/") and "/license-keys/v" not in operation.path
    headers = {"authorization": f"Bearer {service.session}"} if is_portal else OPERATOR

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode), pick=st.integers(0, 5))
    def call(case: Any, pick: int) -> None:
        if pick:
            _with_known(case, service.ids, pick)
        response = case.call(headers=headers, timeout=20)
        case.validate_response(response, checks=CHECKS)

    try:
        call()
    except (FailureGroup, Failure) as failure:
        return f"{operation.label}: {failure}"
    except Unsatisfiable:  # a route without parameters cannot be called wrongly
        assert mode == GenerationMode.NEGATIVE, operation.label
    return ""
