"""What the customers' page shows, derived from ready answers. Pure: no I/O, no HTML, no clock."""

import html
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from config.catalogue import Catalogue
from handlers.state import KnownAccount
from worker.http.oauth import TITLES

Standing = Literal["waiting", "looking", "preparing", "ready"]
WORDS: dict[Standing, str] = {
    "waiting": "Waiting for you",
    "looking": "We are looking into it",
    "preparing": "Being set up",
    "ready": "Ready",
}
"""In the order of urgency."""
_URGENCY = tuple(WORDS)

_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|~])")
_SOURCES = {
    "linked": "Linked by you", "set": "Set by the shop", "polar": "From your account at Polar",
    "field": "As you told us when you bought",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One thing that a benefit gives, or waits to give."""

    label: str | None
    standing: Standing
    gives: Mapping[str, Any]
    message: str | None
    ends: datetime | None
    in_grace: bool

    @property
    def kind(self) -> str:
        """What it is; empty while there is nothing yet."""
        return str(self.gives.get("kind", ""))

    @property
    def words(self) -> str:
        """Its status, in words."""
        return WORDS[self.standing]


@dataclass(frozen=True)
class Card:
    """One benefit."""

    title: str
    kind: str
    items: Sequence[Item]
    platform: str | None
    """Where an account must be linked first."""

    @property
    def standing(self) -> Standing:
        """The most urgent of its items."""
        return min((item.standing for item in self.items), key=_URGENCY.index)

    @property
    def words(self) -> str:
        """That, in words."""
        return WORDS[self.standing]


@dataclass(frozen=True)
class AccountLine:
    """The person's account at one platform, or that there is none yet."""

    platform: str
    title: str
    name: str | None
    told: str | None
    can_link: bool
    can_unlink: bool


@dataclass(frozen=True)
class Ended:
    """A benefit that the person had."""

    title: str
    at: datetime | None


@dataclass(frozen=True)
class TeamLine:
    """What another person under the same customer has; not the thing itself."""

    title: str
    who: str
    standing: Standing
    words: str


@dataclass(frozen=True)
class Shown:
    """Everything on the page."""

    cards: Sequence[Card]
    ended: Sequence[Ended]
    accounts: Sequence[AccountLine]
    team: Sequence[TeamLine]
    also: Sequence[str]
    """What Polar itself gives, by name."""


@dataclass(frozen=True)
class Person:
    """Whose page it is, and what decides what they may see and do."""

    is_theirs: Callable[[Mapping[str, Any]], bool]
    accounts: Sequence[KnownAccount]
    linkable: frozenset[str]
    """Platforms at which customers can link an account by themselves."""
    members: Mapping[str, str] | None
    """What members are called, by id; None for a member, who sees nothing of the others."""


def is_retried(grant: Mapping[str, Any]) -> bool:
    """Whether looking again can help: it waits for the customer, or may have been accepted by now."""
    is_theirs_to_do = grant["status"] in {"action_required", "failed"} and _who(grant) == _YOU
    return bool(grant["entitled"] and (grant["status"] == "pending" or is_theirs_to_do))


_YOU = "customer"


def _who(grant: Mapping[str, Any]) -> str | None:
    return grant["problem"]["who"] if grant["problem"] else None


def shown(
    answers: Iterable[Mapping[str, Any]], catalogue: Catalogue, platforms: Mapping[str, str | None], person: Person
) -> Shown:
    """Return the page. `platforms` says which platform each connector needs an account at."""
    order = {key: number for number, key in enumerate(catalogue.benefits)}
    cards: list[Card] = []
    ended: list[Ended] = []
    team: list[TeamLine] = []
    needed: set[str] = set()
    also: list[str] = []
    sources = {one for benefit in catalogue.benefits.values() for one in benefit.by_benefits}
    for answer in sorted(answers, key=lambda one: (order.get(one["benefit"], len(order)), one["benefit"])):
        title = _title(answer)
        mine = [grant for grant in answer["grants"] if person.is_theirs(grant)]
        live = [grant for grant in mine if grant["entitled"]]
        if answer["connector"].startswith("polar:"):
            # What entitles to a benefit of ours is shown as that; the id alone tells nobody anything.
            if live and answer["benefit"] not in sources and title != answer["benefit"]:
                also.append(title)
            continue
        platform = platforms.get(answer["connector"])
        others = [grant for grant in answer["grants"] if grant["entitled"] and not person.is_theirs(grant)]
        if person.members is not None:
            team += [_of_other(title, grant, person.members) for grant in others]
        if live:
            needed |= {platform} if platform else set()
            cards.append(_card(title, answer["connector"], live, platform, person))
        elif mine:
            ended.append(_ended(title, mine))
    cards.sort(key=lambda card: card.standing != "waiting")  # the rest stays in the merchant's own order
    return Shown(cards, ended, _accounts(needed, person), team, also)


def _title(answer: Mapping[str, Any]) -> str:
    title: str = answer["description"] or answer["benefit"]
    return title


def _card(title: str, kind: str, live: Sequence[Mapping[str, Any]], platform: str | None, person: Person) -> Card:
    items = [_item(grant) for grant in sorted(live, key=lambda one: (one.get("part") or "", one["id"]))]
    if len({item.label for item in items}) == 1:  # nothing that tells them apart
        items = [replace(item, label=None) for item in items]
    sources = {one.source for one in person.accounts if one.platform == platform}
    if platform and not sources:  # whatever the connector says, it comes to this
        items = [replace(item, message=None) for item in items]
    return Card(title, kind, items, platform if any(_can_linking_help(grant, sources) for grant in live) else None)


def _can_linking_help(grant: Mapping[str, Any], sources: Collection[str]) -> bool:
    """Whether an account that is linked (anew) may be what a grant waits for; an invitation waits to be accepted."""
    if not is_retried(grant):
        return False
    is_invited = bool((grant["gives"] or {}).get("invitation_url"))
    return grant["status"] != "pending" or ("linked" not in sources and not is_invited)


def _item(grant: Mapping[str, Any]) -> Item:
    standing = _standing(grant)
    gives = dict(grant["gives"] or {})
    if "note" in gives:
        gives["note"] = _as_text(gives["note"])
    return Item(
        label=grant.get("part") or None,
        standing=standing,
        gives=gives,
        # What merchants and operators have to do is not for customers to read.
        message=_sentence(grant["problem"]["message"]) if standing == "waiting" and _who(grant) == _YOU else None,
        ends=_time(grant["valid_until"]),
        in_grace=grant["standing"] == "grace",
    )


def _standing(grant: Mapping[str, Any]) -> Standing:
    """Return how far a grant is that ought to be there."""
    status = grant["status"]
    if status == "granted":
        return "ready"
    if is_retried(grant):
        return "waiting"
    return "looking" if status in {"action_required", "failed"} else "preparing"


def _ended(title: str, mine: Iterable[Mapping[str, Any]]) -> Ended:
    times = [time for grant in mine if (time := _time(grant["revoked_at"]))]
    return Ended(title, max(times, default=None))


def _of_other(title: str, grant: Mapping[str, Any], members: Mapping[str, str]) -> TeamLine:
    standing = _standing(grant)
    words = "Waiting for them" if standing == "waiting" else WORDS[standing]
    return TeamLine(title, members.get(grant["member_id"] or "", "A member"), standing, words)


def _accounts(needed: Iterable[str], person: Person) -> list[AccountLine]:
    best: dict[str, KnownAccount] = {}
    for one in person.accounts:
        best.setdefault(one.platform, one)
    return [
        AccountLine(
            platform=platform,
            title=title,
            name=(known.name or known.account_id) if known else None,
            told=_SOURCES[known.source] if known else None,
            can_link=platform in person.linkable,
            can_unlink=known is not None and known.source == "linked",
        )
        for platform, title in TITLES.items()
        for known in [best.get(platform)]
        if known or platform in needed
    ]


def _sentence(text: str | None) -> str | None:
    """Return what a connector says as a sentence of its own."""
    return f"{text[0].upper()}{text[1:]}{'' if text[-1] in '.!?' else '.'}" if text else None


def _as_text(note: str) -> str:
    """Return a note without the escapes that keep a customer's own data from being Markdown or HTML in it."""
    return html.unescape(_ESCAPED.sub(r"\1", note))


def _time(written: str | None) -> datetime | None:
    return datetime.fromisoformat(written) if written else None
