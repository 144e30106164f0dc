"""Complete a ready answer at the moment of the question: ends that have come, one member's part, links that expire."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from itsdangerous import BadSignature, URLSafeSerializer
from msgspec import Raw

from config.settings import Settings
from connectors.base import Connector
from worker.answers import EDGES, Edges

_document = msgspec.json.Decoder(dict[str, Raw])
_edges = msgspec.json.Decoder(Edges)
_SALT = "almoner.download"


@dataclass(frozen=True)
class DownloadTokens:
    """Makes and reads download tokens: grant, file name and end, signed. The first key signs, all verify."""

    settings: Settings

    def _serializer(self) -> URLSafeSerializer:
        keys = [key.get_secret_value() for key in self.settings.signing_keys]
        return URLSafeSerializer(list(reversed(keys)), salt=_SALT)  # itsdangerous signs with the last

    def make(self, grant_id: str, name: str, now: datetime) -> str:
        """Return a token for one file of a grant, good for `download_ttl`."""
        ends = int((now + self.settings.download_ttl).timestamp())
        return str(self._serializer().dumps([grant_id, name, ends]))

    def read(self, token: str) -> tuple[str, str, datetime] | None:
        """Return grant, file name and end of a token, or None where it is not ours."""
        try:
            grant_id, name, ends = self._serializer().loads(token)
        except (BadSignature, ValueError, TypeError):
            return None
        return str(grant_id), str(name), datetime.fromtimestamp(int(ends), UTC)


@dataclass(frozen=True)
class At:
    """The moment of a question, for connectors that complete their offers then."""

    now: datetime
    settings: Settings
    tokens: DownloadTokens

    def download_url(self, grant_id: str, name: str) -> str:
        """Return a signed, expiring address of one file of a grant."""
        return f"{self.settings.base_url}/downloads/{self.tokens.make(grant_id, name, self.now)}"


def split(document: bytes) -> tuple[dict[str, Raw], Edges]:
    """Return the answers of a ready document, still encoded, and what must be completed."""
    answers = _document.decode(document)
    edges = answers.pop(EDGES, None)
    return answers, _edges.decode(edges) if edges else Edges(None, [])


def needs_completing(benefit: str, edges: Edges, now: datetime) -> bool:
    """Whether an answer cannot be sent just as it was stored."""
    return benefit in edges.dynamic or (edges.until is not None and edges.until <= now)


def complete(
    raw: Raw,
    at: At,
    connectors: Mapping[str, Connector[Any]],
    *,
    of_member: Callable[[Mapping[str, Any]], bool] | None = None,
) -> dict[str, Any]:
    """Return an answer as of now. `of_member` picks grants."""
    answer: dict[str, Any] = msgspec.json.decode(raw)
    grants = [grant for grant in answer["grants"] if of_member is None or of_member(grant)]
    connector = connectors.get(answer["connector"])
    for grant in grants:
        _end(grant, at.now)
        if grant["gives"] and connector and connector.dynamic:
            grant["gives"] = connector.present(grant["gives"], grant["id"], at)
    return answer | _speaking(sorted(grants, key=lambda grant: not grant["entitled"]))


def _end(grant: dict[str, Any], now: datetime) -> None:
    """Let a grant end at its time, even if the sweep has not come by yet."""
    if grant["entitled"] and grant["valid_until"] and datetime.fromisoformat(grant["valid_until"]) <= now:
        grant |= {"entitled": False, "status": "expired", "standing": None, "gives": None, "because": []}


def _speaking(grants: list[dict[str, Any]]) -> dict[str, Any]:
    if not grants:
        return NOTHING | {"grants": []}
    best = grants[0]
    ends = [grant["valid_until"] for grant in grants if grant["entitled"]]
    spoken = {name: best[name] for name in ("entitled", "status", "standing", "because", "gives", "problem")}
    until = None if not ends or None in ends else max(ends, key=datetime.fromisoformat)
    return spoken | {"valid_until": until, "grants": grants}


NOTHING: dict[str, Any] = {
    "entitled": False, "status": "none", "standing": None, "valid_until": None, "because": [], "gives": None,
    "problem": None,
}  # fmt: skip


def key_offers(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the part of an answer that speaks of each license key."""
    return [grant["gives"] for grant in answer["grants"] if grant["gives"] and "license_key_id" in grant["gives"]]
