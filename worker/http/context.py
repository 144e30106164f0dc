"""What the HTTP handlers share: made once in worker/app.py, found as `app.state.context`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from config.settings import Settings
from connectors.base import Connector, Limits
from worker.accounts import Accounts
from worker.http.present import DownloadTokens
from worker.license_calls import LicenseCalls
from worker.license_keys import StoredLicenseKeys
from worker.pipeline import Pipeline
from worker.polar_keys import PolarKeys
from worker.quotas import Quotas
from worker.store.database import Database
from worker.store.ready import ReadyAnswers


class QueueHealth(Protocol):
    """Whether the queue answers."""

    async def is_up(self) -> bool:
        """Whether the queue answers."""


@dataclass(frozen=True)
class Context:
    """The running service, as far as requests need it."""

    settings: Settings
    database: Database
    pipeline: Pipeline
    queue: QueueHealth
    connectors: Mapping[str, Connector[Any]]
    ready: ReadyAnswers
    tokens: DownloadTokens
    accounts: Accounts
    limits: Limits
    license_keys: StoredLicenseKeys
    license_calls: LicenseCalls
    quotas: Quotas
    polar_keys: PolarKeys
    now: Callable[[], datetime]
