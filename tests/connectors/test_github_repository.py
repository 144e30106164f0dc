"""GitHub repositories: who is invited, who is left alone, and what is taken back; against a GitHub of our own."""

import asyncio
import base64
import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from pydantic import ValidationError

from config.settings import Settings
from connectors.base import (
    Account,
    ActionRequired,
    ConnectorError,
    Holding,
    Rate,
    Receipt,
    Recipient,
    Rejected,
    Unavailable,
)
from connectors.github.terms import Terms
from connectors.github_repository import GitHubRepository
from tests.conftest import Clock, settings_for
from tests.connectors.ports import MemoryLimits, World, stored
from tests.fakes.github import GitHub, Repository, User, new_key
from tests.fakes.serving import serving

ADA, GRACE = 583231, 1024025
RESOURCE = f"github_repository:acme/pro:{ADA}"
PRO = "/repos/acme/pro"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[GitHub, str]]:
    github = GitHub(is_checked=True)
    with serving(github) as url:
        yield github, url


@dataclass
class Here:
    """A merchant `acme` with the repository `acme/pro`, and the customers Ada and Grace."""

    github: GitHub
    url: str
    world: World
    clock: Clock
    acme: User = field(init=False)
    pro: Repository = field(init=False)
    ada: User = field(init=False)
    grace: User = field(init=False)

    def __post_init__(self) -> None:
        self.acme = self.github.organization("acme")
        self.pro = self.github.repository(self.acme, "pro")
        self.ada = self.github.user("ada", ADA)
        self.grace = self.github.user("grace", GRACE)
        self.set(github_app_id=self.github.app_id, github_private_key=self.github.pem)

    def set(self, **values: Any) -> None:
        known = self.world.settings.model_dump() | {"github_api_url": f"{self.url}/api/v3"} | values
        self.world.settings = Settings(**known)

    def use_token(self, of: User | None = None) -> str:
        owner = of or self.github.user("owner")
        self.acme.owners.add(owner.id)
        token = self.github.token(owner)
        self.set(github_app_id="", github_private_key="", github_token=token)
        return token

    @property
    def connector(self) -> GitHubRepository:
        """One that remembers nothing of earlier ones, like after a restart."""
        return GitHubRepository(self.world.tools)

    async def give(
        self,
        config: Terms | None = None,
        held: Receipt | None = None,
        *,
        by: GitHubRepository | None = None,
        **more: Any,
    ) -> Receipt:
        """Grant to Ada as the worker does; what is to be noted is stored."""
        connector, config = by or self.connector, config or terms()
        receipt = await connector.grant(to(**more), config, held)
        while receipt.intended:
            receipt = await connector.grant(to(**more), config, stored(receipt))
        return stored(receipt)

    def lines(self, verbs: str = "PUT PATCH DELETE GET") -> list[str]:
        return [line for line in self.github.lines() if line.split(" ")[0] in verbs.split(" ")]

    @property
    def writes(self) -> list[str]:
        return self.lines("PUT PATCH DELETE")

    def forget(self) -> None:
        self.github.log.clear()


@pytest.fixture
def here(served: tuple[GitHub, str], tmp_path: Path, clock: Clock) -> Iterator[Here]:
    github, url = served
    github.reset(clock)
    with ThreadPoolExecutor(4) as executor:
        yield Here(github, url, World(settings_for("", tmp_path), executor, clock), clock)
    assert github.specification
    assert github.specification.violations == []


def to(account: int = ADA) -> Recipient:
    return Recipient(customer_id="c-1", accounts={"github": str(account)})


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - the other side is in another thread
            await asyncio.sleep(0.005)


def terms(**more: Any) -> Terms:
    return Terms.model_validate({"benefit": "pro", "repository": "acme/pro"} | more)


# What it is given.


@pytest.mark.parametrize(
    "name",
    [
        "acme",
        "acme/",
        "/pro",
        "acme/pro/x",
        "https://github.com/acme/pro",
        "acme/pro.git",
        "acme/..",
        "a b/pro",
        "",
        "-a/b",
    ],
)
def test_what_is_not_a_repositorys_name_is_refused_with_the_form_that_is(name: str) -> None:
    with pytest.raises(ValidationError, match="owner/name"):
        terms(repository=name)


@pytest.mark.parametrize("name", ["acme/pro", "Acme-Inc/pro.js", "corp_emu/x", "a/.github"])
def test_what_is_a_repositorys_name_is_taken(name: str) -> None:
    assert terms(repository=name).repository == name


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"repositories": ["acme/docs"]}, "exactly one of"),
        ({"repository": None}, "exactly one of"),
        ({"repository": None, "repositories": []}, "at least one"),
        ({"repository": None, "repositories": ["acme/pro", "ACME/pro"]}, "named twice"),
        ({"permission": "read"}, "'pull'"),
        ({"permission": "write"}, "'push'"),
        ({"permission": " "}, "name of a role"),
        ({"invitations": 0}, "greater than or equal to 1"),
        ({"invitations": "3"}, "integer"),
        ({"remove_members": "no"}, "boolean"),
    ],
)
def test_a_wrong_config_is_refused_in_words(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        terms(**more)


def test_several_repositories_are_parts_that_are_given_apart() -> None:
    several = terms(repository=None, repositories=["acme/Pro", "acme/docs"], permission="triage")
    parts = several.parts()
    assert list(parts) == ["acme/pro", "acme/docs"]
    assert parts["acme/pro"] == terms(repository="acme/Pro", permission="triage")
    alone = terms()
    assert alone.parts() == {"": alone}


async def test_what_has_parts_is_nothing_by_itself(here: Here) -> None:
    with pytest.raises(Rejected):
        here.connector.resource(to(), terms(repository=None, repositories=["acme/pro"]))


def test_a_resource_is_the_repository_in_small_letters_and_the_accounts_number(here: Here) -> None:
    assert here.connector.resource(to(), terms(repository="Acme/Pro")) == RESOURCE
    assert here.connector.scope(RESOURCE) == RESOURCE


@pytest.mark.parametrize("accounts", [{}, {"github": "ada"}, {"github": ""}, {"discord": "1"}])
def test_without_an_account_the_customer_is_asked_to_link_one(here: Here, accounts: dict[str, str]) -> None:
    with pytest.raises(ActionRequired, match="link your GitHub account") as asked:
        here.connector.resource(Recipient(customer_id="c-1", accounts=accounts), terms())
    assert asked.value.who == "customer"


def _missing(**values: Any) -> str:
    return " ".join(GitHubRepository.missing(terms(), Settings(**values)))


def test_missing_settings_are_named(tmp_path: Path) -> None:
    pem, _ = new_key()
    assert "ALMONER_GITHUB_APP_ID and ALMONER_GITHUB_PRIVATE_KEY, or ALMONER_GITHUB_TOKEN" in _missing()
    assert "ALMONER_GITHUB_PRIVATE_KEY is missing" in _missing(github_app_id="1")
    assert "ALMONER_GITHUB_APP_ID is missing" in _missing(github_private_key=pem)
    assert "neither PEM text nor a file" in _missing(github_app_id="1", github_private_key="absent.pem")
    assert "not a private key" in _missing(github_app_id="1", github_private_key="-----BEGIN CERTIFICATE-----")
    assert not _missing(github_token="ghp_1")
    assert not _missing(github_app_id="1", github_private_key=pem)
    assert not _missing(github_app_id="1", github_private_key=pem.replace("\n", "\\n"))
    (tmp_path / "app.pem").write_text(pem)
    assert not _missing(github_app_id="1", github_private_key=str(tmp_path / "app.pem"))
    (tmp_path / "other.pem").write_bytes(b"\xff\xfe")
    assert "neither PEM text nor a file" in _missing(github_app_id="1", github_private_key=str(tmp_path / "other.pem"))


# Giving.


async def test_first_it_only_looks_and_says_what_to_note(here: Here) -> None:
    seen = await here.connector.grant(to(), terms(), None)
    assert seen.intended
    assert seen.resource == RESOURCE
    assert (seen.data["repository_id"], seen.data["before"]) == (here.pro.id, None)
    assert here.writes == []


async def test_who_has_nothing_is_invited_and_told_what_to_do(here: Here) -> None:
    receipt = await here.give()
    [invitation] = here.pro.invitations.values()
    assert (invitation.invitee, invitation.role) == (ADA, "read")
    assert receipt.data["invitation_id"] == invitation.id
    assert receipt.data["invitation_expires_at"] == "2026-11-08T12:00:00+00:00"
    assert receipt.waiting
    assert f"{here.url}/acme/pro/invitations" in receipt.waiting
    assert "before 8 November 2026" in receipt.waiting
    assert receipt.offers == 1
    assert await here.connector.holds(receipt) == Holding.PENDING


async def test_an_accepted_invitation_is_held_and_waits_no_more(here: Here) -> None:
    waiting = await here.give()
    here.github.accept(here.pro, here.ada)
    assert await here.connector.holds(waiting) == Holding.HELD
    held = await here.give(held=waiting)
    assert (held.waiting, held.offers, held.data["invitation_url"]) == (None, 0, None)
    assert await here.connector.holds(held) == Holding.HELD
    assert len([line for line in here.writes if line.startswith("PUT")]) == 1


async def test_a_waiting_invitation_is_left_as_it_is(here: Here) -> None:
    connector = here.connector
    waiting = await here.give(by=connector)
    here.forget()
    for _ in range(3):
        assert await here.give(held=waiting, by=connector) == waiting
    assert here.writes == []


async def test_dying_after_the_act_never_turns_what_we_gave_into_what_was_there_before(here: Here) -> None:
    noted = stored(await here.connector.grant(to(), terms(), None))
    await here.connector.grant(to(), terms(), noted)
    here.github.accept(here.pro, here.ada)
    again = await here.give(held=noted)
    assert again.data["before"] is None
    await here.connector.revoke(again)
    assert here.pro.collaborators == {}


async def test_an_answer_that_was_lost_leads_to_one_invitation_not_two(here: Here) -> None:
    noted = stored(await here.connector.grant(to(), terms(), None))
    here.github.fail("PUT", ".*", acts=True, drops=True)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await here.connector.grant(to(), terms(), noted)
    receipt = await here.give(held=noted)
    assert list(here.pro.invitations) == [receipt.data["invitation_id"]]


async def test_an_answer_without_a_body_can_mean_that_the_invitation_was_there(here: Here) -> None:
    noted = stored(await here.connector.grant(to(), terms(), None))
    here.github._invite(here.pro, ADA, "read")
    here.github.fail("PUT", ".*", 204)
    receipt = await here.give(held=noted)
    assert [receipt.data["invitation_id"]] == list(here.pro.invitations)
    assert receipt.offers == 1


async def test_what_was_given_and_is_not_there_is_not_called_given(here: Here) -> None:
    here.github.fail("PUT", ".*", 204)
    with pytest.raises(Unavailable, match="not there yet"):
        await here.give()


async def test_a_member_whom_the_organization_gives_nothing_gets_it_at_once(here: Here) -> None:
    here.acme.members.add(ADA)
    receipt = await here.give()
    assert here.pro.collaborators == {ADA: "read"}
    assert (receipt.waiting, receipt.offers) == (None, 0)
    assert await here.connector.holds(receipt) == Holding.HELD
    await here.connector.revoke(receipt)
    assert here.pro.collaborators == {}
    assert not await here.connector.left(receipt)


def _by_base(here: Here) -> None:
    here.acme.members.add(ADA)
    here.acme.base = "read"


def _as_owner(here: Here) -> None:
    here.acme.owners.add(ADA)


def _by_team(here: Here) -> None:
    here.acme.members.add(ADA)
    here.pro.teams.append(({ADA}, "triage"))


def _as_collaborator(here: Here) -> None:
    here.pro.collaborators[ADA] = "maintain"


def _by_custom_role(here: Here) -> None:
    here.acme.roles["Auditor"] = "read"
    here.pro.collaborators[ADA] = "Auditor"


MEMBERS = [_by_base, _as_owner, _by_team, _as_collaborator, _by_custom_role]


@pytest.mark.parametrize("had", MEMBERS)
async def test_who_had_enough_before_us_is_left_alone_also_when_it_is_revoked(
    here: Here, had: Callable[[Here], None]
) -> None:
    had(here)
    before = here.github.role(here.pro, ADA)
    connector = here.connector
    receipt = await here.give(by=connector)
    assert connector.offer(receipt)["given_by_us"] is False
    assert await connector.holds(receipt) == Holding.HELD
    await connector.revoke(receipt)
    assert not await connector.left(receipt)
    assert here.github.role(here.pro, ADA) == before
    assert here.writes == []
    again = await here.give(by=connector)
    assert await connector.holds(again) == Holding.HELD


@pytest.mark.parametrize("had", [_as_collaborator, _by_custom_role])
async def test_members_are_removed_where_the_benefit_says_so(here: Here, had: Callable[[Here], None]) -> None:
    had(here)
    connector = here.connector
    receipt = await here.give(terms(remove_members=True), by=connector)
    await connector.revoke(receipt)
    assert here.pro.collaborators == {}
    assert not await connector.left(receipt)


async def test_who_has_too_little_of_their_own_is_raised_and_put_back(here: Here) -> None:
    here.pro.collaborators[ADA] = "triage"
    connector = here.connector
    receipt = await here.give(terms(permission="maintain"), by=connector)
    assert here.pro.collaborators == {ADA: "maintain"}
    assert await connector.holds(receipt) == Holding.HELD
    await connector.revoke(receipt)
    assert here.pro.collaborators == {ADA: "triage"}
    assert not await connector.left(receipt)
    assert not await here.connector.left(receipt)


async def test_who_has_too_little_through_the_organization_keeps_just_that(here: Here) -> None:
    _by_base(here)
    connector = here.connector
    receipt = await here.give(terms(permission="push"), by=connector)
    assert here.pro.collaborators == {ADA: "write"}
    here.pro.teams.append(({ADA}, "admin"))  # meanwhile
    await connector.revoke(receipt)
    assert here.pro.collaborators == {}
    assert not await connector.left(receipt)


async def test_dying_after_raising_does_not_forget_what_was_there_before(here: Here) -> None:
    here.pro.collaborators[ADA] = "read"
    config = terms(permission="push")
    noted = stored(await here.connector.grant(to(), config, None))
    await here.connector.grant(to(), config, noted)
    again = await here.give(config, held=noted)
    await here.connector.revoke(again)
    assert here.pro.collaborators == {ADA: "read"}


async def test_an_invitation_from_before_us_is_left_and_can_be_raised_and_put_back(here: Here) -> None:
    here.github._invite(here.pro, ADA, "read")
    [invitation] = here.pro.invitations.values()
    connector = here.connector
    receipt = await here.give(by=connector)
    assert connector.offer(receipt)["given_by_us"] is False
    assert receipt.data["before"]["direct"] == "read"
    assert await connector.holds(receipt) == Holding.PENDING
    raised = await here.give(terms(permission="push"), held=receipt, by=connector)
    assert invitation.role == "write"
    await connector.revoke(raised)
    assert invitation.role == "read"
    assert not await connector.left(raised)
    assert list(here.pro.invitations) == [invitation.id]


async def test_an_accepted_invitation_from_before_us_is_put_back_too(here: Here) -> None:
    noted = stored(await here.connector.grant(to(), terms(permission="push"), None))
    before = {"role": {"name": "read", "base": "read"}, "direct": "read"}
    noted = msgspec.structs.replace(noted, data=noted.data | {"before": before, "remove": False})
    here.pro.collaborators[ADA] = "read"
    receipt = await here.give(terms(permission="push"), held=noted)
    assert here.pro.collaborators == {ADA: "write"}
    await here.connector.revoke(receipt)
    assert here.pro.collaborators == {ADA: "read"}


async def test_who_left_meanwhile_is_not_invited_to_be_put_back(here: Here) -> None:
    here.pro.collaborators[ADA] = "read"
    receipt = await here.give(terms(permission="push"))
    here.pro.collaborators.clear()
    await here.connector.revoke(receipt)
    assert here.pro.invitations == {}


async def test_what_another_grant_of_ours_gave_is_ours(here: Here) -> None:
    """Polar hole 3.6 a: two benefits that give the same repository; the second has the first's receipt."""
    first = await here.give(terms(benefit="pro"))
    here.github.accept(here.pro, here.ada)
    second = await here.give(terms(benefit="team"), held=first)
    assert second.data["before"] is None
    await here.connector.revoke(second)
    assert here.pro.collaborators == {}


async def test_who_left_by_themselves_is_invited_again_when_asked(here: Here) -> None:
    waiting = await here.give()
    here.github.accept(here.pro, here.ada)
    held = await here.give(held=waiting)
    here.pro.collaborators.clear()
    assert await here.connector.holds(held) == Holding.GONE
    again = await here.give(held=held)
    assert (again.offers, len(here.pro.invitations)) == (1, 1)


async def test_who_leaves_while_their_role_is_changed_is_invited(here: Here) -> None:
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    here.github.fail("PUT", ".*", then=here.pro.collaborators.clear)
    changed = await here.give(terms(permission="push"), held=receipt)
    assert list(here.pro.invitations) == [changed.data["invitation_id"]]


# Permissions.


async def test_a_changed_permission_changes_the_invitation_that_waits(here: Here) -> None:
    receipt = await here.give()
    changed = await here.give(terms(permission="maintain"), held=receipt)
    [invitation] = here.pro.invitations.values()
    assert (invitation.role, changed.data["invitation_id"]) == ("maintain", receipt.data["invitation_id"])
    assert changed.offers == receipt.offers


async def test_an_invitation_accepted_while_it_is_changed_is_changed_in_place_next_time(here: Here) -> None:
    receipt = await here.give()
    here.github.fail("PATCH", ".*", then=lambda: here.github.accept(here.pro, here.ada))
    with pytest.raises(Unavailable, match="answered just now"):
        await here.give(terms(permission="push"), held=receipt)
    await here.give(terms(permission="push"), held=receipt)
    assert here.pro.collaborators == {ADA: "write"}


@pytest.mark.parametrize(("first", "second", "role"), [("pull", "push", "write"), ("admin", "triage", "triage")])
async def test_a_changed_permission_changes_a_collaborator_in_place(
    here: Here, first: str, second: str, role: str
) -> None:
    receipt = await here.give(terms(permission=first))
    here.github.accept(here.pro, here.ada)
    changed = await here.give(terms(permission=second), held=receipt)
    assert here.pro.collaborators == {ADA: role}
    assert await here.connector.holds(changed) == Holding.HELD


async def test_a_lowered_permission_gives_a_member_back_what_was_there_before(here: Here) -> None:
    here.pro.collaborators[ADA] = "triage"
    raised = await here.give(terms(permission="admin"))
    lowered = await here.give(terms(permission="pull"), held=raised)
    assert here.pro.collaborators == {ADA: "triage"}
    assert await here.connector.holds(lowered) == Holding.HELD


async def test_a_role_that_was_lowered_by_hand_is_not_held(here: Here) -> None:
    config = terms(permission="push")
    receipt = await here.give(config)
    here.github.accept(here.pro, here.ada)
    here.pro.collaborators[ADA] = "read"
    assert await here.connector.holds(receipt) == Holding.GONE
    await here.give(config, held=receipt)
    assert here.pro.collaborators == {ADA: "write"}


async def test_a_role_of_the_organization_is_given_and_kept_apart_from_others(here: Here) -> None:
    here.acme.roles |= {"Reader": "read", "Builder": "write"}
    receipt = await here.give(terms(permission="Reader"))
    here.github.accept(here.pro, here.ada)
    held = await here.give(terms(permission="Reader"), held=receipt)
    assert here.pro.collaborators == {ADA: "Reader"}
    assert await here.connector.holds(held) == Holding.HELD
    other = await here.give(terms(permission="Builder"), held=held)
    assert here.pro.collaborators == {ADA: "Builder"}
    assert await here.connector.holds(held) == Holding.GONE
    assert await here.connector.holds(other) == Holding.HELD


async def test_a_waiting_invitation_is_replaced_where_a_role_of_the_organization_is_wanted_instead(here: Here) -> None:
    here.acme.roles["Reader"] = "read"
    receipt = await here.give(terms(invitations=1))
    changed = await here.give(terms(permission="Reader", invitations=1), held=receipt)
    [invitation] = here.pro.invitations.values()
    assert invitation.role == "Reader"
    assert await here.give(terms(permission="Reader"), held=changed) == changed


async def test_ontology_227_on_a_personal_repository_no_permission_is_named(here: Here) -> None:
    linus = here.github.user("linus")
    here.github.install(linus)
    own = here.github.repository(linus, "tool")
    config = terms(repository="linus/tool")
    receipt = await here.give(config)
    here.github.accept(own, here.ada)
    held = await here.give(config, held=receipt)
    assert own.collaborators == {linus.id: "admin", ADA: "write"}
    assert await here.connector.holds(held) == Holding.HELD
    assert held == await here.give(config, held=held)
    await here.connector.revoke(held)
    assert own.collaborators == {linus.id: "admin"}


async def test_aws_ia_14_reading_what_is_public_is_not_access(here: Here) -> None:
    """https://github.com/aws-ia/cloudformation-github-resource-providers/pull/14."""
    here.pro.is_private = False
    connector = here.connector
    receipt = await here.give(by=connector)
    assert receipt.data["before"] is None
    assert len(here.pro.invitations) == 1
    here.github.accept(here.pro, here.ada)
    assert await connector.holds(receipt) == Holding.HELD
    await connector.revoke(receipt)
    assert not await connector.left(receipt)


# Whose account it is.


async def test_a_renamed_customer_keeps_access_and_loses_it_under_the_new_name(here: Here) -> None:
    """Polar hole 3.6 e: the name of the day of linking goes nowhere."""
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    here.ada.login = "countess"
    held = await here.give(held=receipt)
    assert await here.connector.holds(held) == Holding.HELD
    await here.connector.revoke(held)
    assert here.pro.collaborators == {}


async def test_dwf_request_25_whoever_takes_a_name_over_neither_gets_nor_loses_anything(here: Here) -> None:
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    here.ada.login = "countess"
    stranger = here.github.user("ada")
    here.pro.collaborators[stranger.id] = "read"
    await here.give(held=receipt)
    await here.connector.revoke(receipt)
    assert here.pro.collaborators == {stranger.id: "read"}
    assert not await here.connector.left(receipt)


def _take_name(here: Here) -> User:
    here.ada.login = "countess"
    return here.github.user("ada")


async def test_a_name_that_changes_hands_while_it_is_invited_is_undone(here: Here) -> None:
    here.github.fail("PUT", ".*", then=lambda: _take_name(here))
    with pytest.raises(Unavailable, match="changed hands"):
        await here.give()
    assert here.pro.invitations == {}
    await here.give()
    assert [one.invitee for one in here.pro.invitations.values()] == [ADA]


async def test_a_name_that_changes_hands_while_a_member_is_added_is_undone(here: Here) -> None:
    here.github.fail("PUT", ".*", then=lambda: here.acme.members.add(_take_name(here).id))
    with pytest.raises(Unavailable, match="changed hands"):
        await here.give()
    assert here.pro.collaborators == {}


async def test_a_name_that_changes_hands_while_we_look_is_looked_up_again_later(here: Here) -> None:
    here.github.fail("GET", ".*/permission", then=lambda: _take_name(here))
    with pytest.raises(Unavailable, match="changed hands"):
        await here.give()
    assert here.writes == []


async def test_a_deleted_account_is_gone_and_cannot_be_given(here: Here) -> None:
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    here.ada.is_deleted = True
    assert await here.connector.holds(receipt) == Holding.GONE
    await here.connector.revoke(receipt)
    for held in (None, receipt):
        with pytest.raises(ActionRequired, match="link another") as asked:
            await here.give(held=held)
        assert asked.value.who == "customer"


# Invitations.


async def test_mesh_iit_outside_collaborators_68_an_invitation_that_ended_is_sent_again_so_often_and_no_more(
    here: Here,
) -> None:
    receipt = await here.give(terms(invitations=2))
    here.clock.move(days=7)
    assert await here.connector.holds(receipt) == Holding.GONE, "though GitHub still lists it"
    second = await here.give(terms(invitations=2), held=receipt)
    assert (second.offers, len(here.pro.invitations)) == (2, 1)
    assert second.data["invitation_id"] != receipt.data["invitation_id"]
    here.clock.move(days=8)
    with pytest.raises(ActionRequired, match=r"was not accepted within 7 days, after 2 in all") as asked:
        await here.give(terms(invitations=2), held=second)
    assert asked.value.who == "customer"
    asked_again = msgspec.structs.replace(second, offers=0)
    assert (await here.give(terms(invitations=2), held=asked_again)).offers == 1


async def test_a_declined_invitation_is_told_from_one_that_ended(here: Here) -> None:
    receipt = await here.give(terms(invitations=1))
    here.github.decline(here.pro, here.ada)
    assert await here.connector.holds(receipt) == Holding.GONE
    with pytest.raises(ActionRequired, match="was declined"):
        await here.give(terms(invitations=1), held=receipt)
    assert len(here.pro.invitations) == 0


async def test_a_waiting_invitation_is_cancelled_whichever_it_is(here: Here) -> None:
    receipt = await here.give()
    [invitation] = here.pro.invitations.values()
    here.pro.invitations.clear()
    invitation.id += 1
    here.pro.invitations[invitation.id] = invitation
    await here.connector.revoke(receipt)
    assert here.pro.invitations == {}
    assert not await here.connector.left(receipt)


async def test_an_invitation_accepted_while_it_is_cancelled_is_seen_and_taken_back_next_time(here: Here) -> None:
    receipt = await here.give()
    here.github.fail("DELETE", ".*/invitations/.*", then=lambda: here.github.accept(here.pro, here.ada))
    connector = here.connector
    await connector.revoke(receipt)
    assert await connector.left(receipt)
    await connector.revoke(receipt)
    assert not await connector.left(receipt)
    assert here.pro.collaborators == {}


async def test_an_invitation_is_found_on_whatever_page_it_is(here: Here) -> None:
    receipt = await here.give()
    for number in range(230):
        other = here.github.user(f"user-{number}")
        here.github._invite(here.pro, other.id, "read")
        here.pro.invited.clear()
    here.pro.invitations[receipt.data["invitation_id"]] = here.pro.invitations.pop(receipt.data["invitation_id"])
    here.forget()
    assert await here.connector.holds(receipt) == Holding.PENDING
    assert here.lines().count(f"GET {PRO}/invitations") == 3


async def test_github_docs_18506_invitations_are_counted_for_each_repository_and_not_for_members(here: Here) -> None:
    await here.give()
    limits = here.world.limits
    invited = [rate for rate in limits.taken if rate.name.startswith("github:invitations:")]
    assert invited == [Rate(f"github:invitations:{here.pro.id}", 50, 86_400)]
    limits.taken.clear()
    here.pro.collaborators[GRACE] = "read"
    await here.give(terms(permission="push"), account=GRACE)
    assert here.pro.collaborators == {GRACE: "write"}
    assert not [rate for rate in limits.taken if "invitations" in rate.name]


async def test_github_docs_18506_the_51st_invitation_of_a_day_waits_without_using_an_attempt_up(here: Here) -> None:
    for number in range(50):
        here.github._invite(here.pro, here.github.user(f"user-{number}").id, "read")
    with pytest.raises(Unavailable, match="no more invitations to this repository today") as refused:
        await here.give()
    assert refused.value.retry_after
    assert f"github:invitations:{here.pro.id}" in here.world.limits.parked
    here.acme.members.add(GRACE)
    here.acme.base = "read"
    await here.give(terms(permission="push"), account=GRACE)


async def test_many_who_ask_at_once_share_the_readings_of_a_list(here: Here) -> None:
    people = [here.github.user(f"user-{number}") for number in range(30)]
    connector = here.connector
    receipts = [await here.give(by=connector, account=person.id) for person in people]
    here.forget()
    seen = await asyncio.gather(*(connector.holds(receipt) for receipt in receipts))
    assert set(seen) == {Holding.PENDING}
    assert here.lines().count(f"GET {PRO}/invitations") <= 3


async def test_a_reading_that_began_before_the_question_does_not_answer_it(here: Here) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.fail("GET", ".*/invitations", wait=0.2)
    early = asyncio.create_task(connector.holds(receipt))
    await until(lambda: f"GET {PRO}/invitations" in here.lines()[-1:])
    late = asyncio.create_task(connector.holds(receipt))
    await asyncio.sleep(0.02)
    here.github.decline(here.pro, here.ada)
    await early
    assert await late == Holding.GONE


# Taking back.


async def test_polar_hole_d_what_was_given_is_taken_back_from_where_it_was_given(here: Here) -> None:
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    docs = here.github.repository(here.acme, "docs")
    docs.collaborators[ADA] = "read"
    await here.connector.revoke(receipt)
    assert (here.pro.collaborators, docs.collaborators) == ({}, {ADA: "read"})


async def test_a_receipt_without_data_is_taken_back_by_its_name_alone(here: Here) -> None:
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    bare = Receipt(receipt.resource, intended=True)
    assert await here.connector.holds(bare) == Holding.HELD
    connector = here.connector
    await connector.revoke(bare)
    assert not await connector.left(bare)
    assert here.pro.collaborators == {}


@pytest.mark.parametrize("had", [_by_base, _as_owner, _by_team])
async def test_what_comes_through_the_organization_is_not_taken_for_what_we_gave(
    here: Here, had: Callable[[Here], None]
) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.accept(here.pro, here.ada)
    had(here)
    await connector.revoke(receipt)
    assert not await connector.left(receipt)
    assert not await connector.left(Receipt(RESOURCE, intended=True))


async def test_access_that_stays_though_it_was_taken_back_is_seen(here: Here) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.accept(here.pro, here.ada)
    here.github.fail("DELETE", ".*/collaborators/.*", 204)
    await connector.revoke(receipt)
    assert await connector.left(receipt)


async def test_who_had_more_before_us_and_lost_it_gets_what_they_bought_and_no_more(here: Here) -> None:
    here.pro.teams.append(({ADA}, "admin"))
    here.acme.members.add(ADA)
    receipt = await here.give()
    assert here.writes == []
    here.pro.teams.clear()
    assert await here.connector.holds(receipt) == Holding.GONE
    receipt = await here.give(held=receipt)
    here.github.accept(here.pro, here.ada)
    assert here.github.role(here.pro, ADA) == "read"
    receipt = await here.give(held=receipt)
    await here.connector.revoke(receipt)
    assert not await here.connector.left(receipt)
    assert here.pro.collaborators == {}


async def test_who_was_brought_down_to_what_they_bought_is_left_alone(here: Here) -> None:
    here.pro.teams.append(({ADA}, "admin"))
    receipt = await here.give()
    here.pro.teams.clear()
    here.pro.collaborators[ADA] = "read"
    assert await here.connector.holds(receipt) == Holding.HELD
    await here.give(held=receipt)
    assert here.pro.collaborators == {ADA: "read"}
    assert here.writes == []


async def test_a_higher_role_ends_with_the_benefit_that_gave_it(here: Here) -> None:
    reader = await here.give(terms(benefit="reader"))
    here.github.accept(here.pro, here.ada)
    reader = await here.give(terms(benefit="reader"), held=reader)
    boss = await here.give(terms(benefit="boss", permission="admin"), held=reader)
    assert here.pro.collaborators == {ADA: "admin"}
    reader = await here.give(terms(benefit="reader"), held=reader)
    assert here.pro.collaborators == {ADA: "admin"}, "a lower benefit takes nothing from a higher one"
    await here.connector.let_go(reader, [boss])
    assert here.pro.collaborators == {ADA: "admin"}
    await here.connector.let_go(boss, [reader])
    assert here.pro.collaborators == {ADA: "read"}


async def test_a_waiting_invitation_is_brought_down_too(here: Here) -> None:
    boss = await here.give(terms(benefit="boss", permission="admin"))
    reader = await here.give(terms(benefit="reader"), held=boss)
    await here.connector.let_go(boss, [reader])
    assert [one.role for one in here.pro.invitations.values()] == ["read"]


async def test_a_role_that_somebody_else_gave_since_is_not_brought_down(here: Here) -> None:
    reader = await here.give(terms(benefit="reader"))
    here.github.accept(here.pro, here.ada)
    writer = await here.give(terms(benefit="writer", permission="push"), held=reader)
    here.pro.collaborators[ADA] = "maintain"  # the merchant's own doing
    await here.connector.let_go(writer, [reader])
    assert here.pro.collaborators == {ADA: "maintain"}


# Repositories that move.


async def test_a_renamed_repository_is_found_by_its_number_and_its_old_name_may_be_anothers(here: Here) -> None:
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    here.github.rename(here.pro, "pro-2")
    assert await here.connector.holds(receipt) == Holding.HELD
    other = here.github.repository(here.acme, "pro")
    other.collaborators[ADA] = "read"
    assert await here.connector.holds(receipt) == Holding.HELD
    connector = here.connector
    await connector.revoke(receipt)
    assert not await connector.left(receipt)
    assert (here.pro.collaborators, other.collaborators) == ({}, {ADA: "read"})


async def test_a_renamed_repository_is_still_given(here: Here) -> None:
    receipt = await here.give()
    here.github.rename(here.pro, "pro-2")
    assert (await here.give(held=receipt)).data["invitation_id"] == receipt.data["invitation_id"]
    here.github.decline(here.pro, here.ada)
    assert (await here.give(held=receipt)).offers == 2
    assert len(here.pro.invitations) == 1


async def test_a_transferred_repository_is_followed_where_the_app_is_there_too(here: Here) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.accept(here.pro, here.ada)
    here.github.transfer(here.pro, here.github.organization("emca"))
    assert await here.connector.holds(receipt) == Holding.HELD
    await connector.revoke(receipt)
    assert not await connector.left(receipt)
    assert here.pro.collaborators == {}


async def test_a_repository_that_is_not_seen_any_more_is_no_proof_that_nobody_has_access(here: Here) -> None:
    """It may have moved to an organization without our App, with everybody who is in it."""
    receipt = await here.give()
    here.pro.is_deleted = True
    for act in (here.connector.revoke, here.connector.left):
        with pytest.raises(ActionRequired, match="almoner grants abandon") as asked:
            await act(receipt)
        assert asked.value.who == "merchant"
    with pytest.raises(ActionRequired, match="cannot be seen any more"):
        await here.give(held=receipt)
    with pytest.raises(ActionRequired, match="does not exist"):
        await here.give()


async def test_a_repository_that_we_may_only_not_see_is_not_gone(here: Here) -> None:
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    [installation] = here.github.installations.values()
    installation.selection = "selected"
    for act in (here.connector.revoke, here.connector.holds):
        with pytest.raises(ActionRequired, match="cannot be seen any more") as asked:
            await act(receipt)
        assert asked.value.who == "merchant"
    assert here.pro.collaborators == {ADA: "read"}


async def test_with_a_token_a_repository_that_is_not_found_may_be_one_that_we_may_not_see(here: Here) -> None:
    here.use_token()
    receipt = await here.give()
    here.pro.is_deleted = True
    with pytest.raises(ActionRequired, match="cannot be seen any more"):
        await here.connector.revoke(receipt)
    with pytest.raises(ActionRequired, match="we may not see it"):
        await here.give()


async def test_a_repository_renamed_while_it_is_given_is_not_mixed_up_with_its_namesake(here: Here) -> None:
    connector = here.connector
    noted = stored(await connector.grant(to(), terms(), None))
    here.github.rename(here.pro, "pro-2")
    other = here.github.repository(here.acme, "pro")
    with pytest.raises(Unavailable, match="renamed"):
        await connector.grant(to(), terms(), noted)
    assert other.invitations == {}


# Signing in.


async def test_it_signs_in_once_and_again_before_the_token_ends(here: Here) -> None:
    connector = here.connector

    def signed_in() -> int:
        return sum(one.path.endswith("/access_tokens") for one in here.github.log)

    receipt = await here.give(by=connector)
    await asyncio.gather(*(connector.holds(receipt) for _ in range(20)))
    assert signed_in() == 1
    assert sum(one.path.endswith("/installation") for one in here.github.log) == 1
    here.clock.move(minutes=57)
    await connector.holds(receipt)
    assert signed_in() == 1
    here.clock.move(minutes=1.5)
    await connector.holds(receipt)
    assert signed_in() == 2


async def test_a_token_that_ended_early_is_renewed(here: Here) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.tokens.clear()
    assert await connector.holds(receipt) == Holding.PENDING


async def test_an_app_that_was_installed_again_is_found(here: Here) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    [installation] = here.github.installations.values()
    here.github.uninstall(installation)
    here.github.install(here.acme)
    with pytest.raises(ActionRequired, match="uninstalled"):
        await connector.revoke(receipt)
    await connector.revoke(receipt)
    assert not await connector.left(receipt)


@pytest.mark.parametrize("is_fresh", [True, False])
async def test_an_uninstalled_app_is_told_and_never_taken_for_success(here: Here, *, is_fresh: bool) -> None:
    """Polar 3.5: its revocation is recorded as done when the app is gone; ours is not."""
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.accept(here.pro, here.ada)
    [installation] = here.github.installations.values()
    here.github.uninstall(installation)
    connector = here.connector if is_fresh else connector
    for act in (lambda: here.give(by=connector), lambda: connector.revoke(receipt), lambda: connector.holds(receipt)):
        with pytest.raises(ActionRequired, match="install") as asked:
            await act()
        assert asked.value.who == "merchant"
    assert here.pro.collaborators == {ADA: "read"}


@pytest.mark.parametrize("is_fresh", [True, False])
async def test_a_suspended_app_is_told_and_never_taken_for_success(here: Here, *, is_fresh: bool) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    [installation] = here.github.installations.values()
    installation.suspended_at = here.clock.at
    connector = here.connector if is_fresh else connector
    for act in (lambda: here.give(by=connector), lambda: connector.revoke(receipt)):
        with pytest.raises(ActionRequired, match="suspended") as asked:
            await act()
        assert asked.value.who == "merchant"


async def test_an_app_that_is_not_there_is_told(here: Here) -> None:
    here.github.organization("emca", installed=False)
    with pytest.raises(ActionRequired, match="the GitHub App is not installed there") as asked:
        await here.give(terms(repository="emca/pro"))
    assert asked.value.who == "merchant"


async def test_a_wrong_key_is_told(here: Here) -> None:
    here.github.public_key = new_key.__wrapped__()[1]
    with pytest.raises(ActionRequired, match="ALMONER_GITHUB_PRIVATE_KEY") as asked:
        await here.give()
    assert asked.value.who == "merchant"


async def test_a_key_that_is_none_is_told(here: Here) -> None:
    here.set(github_private_key="-----BEGIN RSA PRIVATE KEY-----\nbm9uZQ==\n-----END RSA PRIVATE KEY-----")
    with pytest.raises(ActionRequired, match="without a password"):
        await here.give()


async def test_no_credentials_at_all_are_told(here: Here) -> None:
    here.set(github_app_id="", github_private_key="", github_token="")
    with pytest.raises(ActionRequired, match="ALMONER_GITHUB_TOKEN"):
        await here.give()
    here.set(github_app_id="4711", github_private_key="absent.pem")
    with pytest.raises(ActionRequired, match="ALMONER_GITHUB_PRIVATE_KEY"):
        await here.give()


async def test_a_token_will_do(here: Here) -> None:
    token = here.use_token()
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.accept(here.pro, here.ada)
    assert await connector.holds(receipt) == Holding.HELD
    await connector.revoke(receipt)
    assert not await connector.left(receipt)
    assert await connector.examine(terms()) == []
    names = {rate.name for rate in here.world.limits.taken}
    assert not [name for name in names if token in name or token[4:20] in name]
    here.github.tokens.clear()
    with pytest.raises(ActionRequired, match="ALMONER_GITHUB_TOKEN"):
        await connector.holds(receipt)


async def test_two_threads_never_send_each_others_requests(here: Here) -> None:
    """PyGithub keeps the address of the next request in the connection that all threads share."""
    people = [here.github.user(f"user-{number}") for number in range(40)]
    for number in range(0, 40, 2):
        here.acme.members.add(people[number].id)
    connector = here.connector
    receipts = await asyncio.gather(*(here.give(by=connector, account=person.id) for person in people))
    assert {one.invitee for one in here.pro.invitations.values()} == {one.id for one in people[1::2]}
    assert set(here.pro.collaborators) == {one.id for one in people[::2]}
    await asyncio.gather(*(connector.revoke(receipt) for receipt in receipts))
    assert (here.pro.invitations, here.pro.collaborators) == ({}, {})


# Refusals.


@pytest.mark.parametrize(
    ("status", "message", "error", "said"),
    [
        (403, "Repository was archived so is read-only.", ActionRequired, "archived; unarchive it"),
        (422, "You must purchase at least one more seat to add this user as a collaborator.", ActionRequired, "seats"),
        (403, "Outside collaborators are restricted by organization policy.", ActionRequired, "policy"),
        (422, "User is blocked", ActionRequired, "lift the block"),
        (422, "Cannot assign ada permission of read", ActionRequired, "raise it in the benefit"),
        (422, "nix is not a valid role", ActionRequired, "correct the benefit's `permission`"),
        (403, "Resource not accessible by integration", ActionRequired, "Administration: Read and write"),
        (403, "Must have admin rights to Repository.", ActionRequired, "administrator"),
        (403, "Something else", ActionRequired, "403: Something else"),
        (401, "Bad credentials", ActionRequired, "credentials"),
        (404, "Not Found", ActionRequired, "may not see it"),
        (422, "Validation Failed", Rejected, "422: Validation Failed"),
        (500, "Server Error", Unavailable, "500"),
        (502, "<html>", Unavailable, "502"),
    ],
)
async def test_a_refusal_says_where_for_whom_and_who_must_do_what(
    here: Here, status: int, message: str, error: type[ConnectorError], said: str
) -> None:
    body = "<html>Bad gateway</html>" if message == "<html>" else {"message": message, "documentation_url": "https://x"}
    here.github.fail("PUT", ".*", status, times=9, body=body)
    with pytest.raises(error, match=said) as refused:
        await here.give()
    assert "acme/pro" in str(refused.value)
    assert str(ADA) in str(refused.value)
    if isinstance(refused.value, ActionRequired):
        assert refused.value.who == "merchant"
    assert here.world.limits.parked == {}


def _archived(here: Here) -> None:
    here.pro.is_archived = True


def _full(here: Here) -> None:
    here.acme.seats = 0


def _closed(here: Here) -> None:
    here.acme.allows_outside = False


def _blocking(here: Here) -> None:
    here.acme.blocked.add(ADA)


def _powerless(here: Here) -> None:
    for one in here.github.installations.values():
        one.permissions = {"administration": "read"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_archived, "archived"),
        (_full, "seats"),
        (_closed, "policy"),
        (_blocking, "block"),
        (_powerless, "Administration"),
    ],
)
async def test_what_stands_in_the_way_is_for_the_merchant_to_remove(
    here: Here, make: Callable[[Here], None], said: str
) -> None:
    make(here)
    with pytest.raises(ActionRequired, match=said) as refused:
        await here.give()
    assert refused.value.who == "merchant"


async def test_an_unknown_role_is_told(here: Here) -> None:
    with pytest.raises(ActionRequired, match="no such role"):
        await here.give(terms(permission="Nobody"))


async def test_a_refused_revocation_is_never_success(here: Here) -> None:
    """Polar 3.5: it swallows them."""
    receipt = await here.give()
    here.github.accept(here.pro, here.ada)
    here.pro.is_archived = True
    with pytest.raises(ActionRequired, match="archived"):
        await here.connector.revoke(receipt)
    assert await here.connector.holds(receipt) == Holding.HELD


@pytest.mark.parametrize(
    ("status", "message", "headers", "seconds"),
    [
        (403, "You have exceeded a secondary rate limit.", {"retry-after": "17"}, 17),
        (429, "Too many", {"retry-after": "5"}, 5),
        (403, "You have exceeded a secondary rate limit. Please wait a few minutes.", {}, 60),
        (429, "", {}, 60),
        (403, "API rate limit exceeded", {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1793534700"}, 300),
        (403, "You have triggered an abuse detection mechanism", {}, 60),
    ],
)
async def test_a_limit_of_github_parks_everybody_for_as_long_as_it_says(
    here: Here, status: int, message: str, headers: dict[str, str], seconds: float
) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.fail("GET", ".*/invitations", status, body={"message": message}, headers=headers)
    with pytest.raises(Unavailable, match="limit") as refused:
        await connector.holds(receipt)
    assert refused.value.retry_after == pytest.approx(seconds)
    [installation] = here.github.installations
    assert list(here.world.limits.parked) == [f"github:{installation}"]
    assert here.world.limits.parked[f"github:{installation}"][0] == pytest.approx(seconds)
    here.forget()
    with pytest.raises(Unavailable):
        await connector.holds(receipt)
    assert here.github.log == []


@pytest.mark.parametrize("verb", ["GET", "PUT"])
async def test_a_dropped_connection_is_tried_again_later(here: Here, verb: str) -> None:
    here.github.fail(verb, ".*ada.*", drops=True)
    with pytest.raises(Unavailable, match="cannot be reached") as refused:
        await here.give()
    assert refused.value.retry_after is None
    await here.give()


async def test_nobody_waits_long_for_an_answer(here: Here) -> None:
    here.set(call_timeout="2s")
    here.github.fail("GET", ".*/permission", wait=1.3)
    with pytest.raises(Unavailable, match="Timeout"):
        await here.give()


async def test_an_address_that_leads_elsewhere_is_told(here: Here) -> None:
    here.github.fail("GET", PRO, 301, body={"message": "Moved"}, headers={"location": "https://elsewhere.example/x"})
    with pytest.raises(ActionRequired, match="ALMONER_GITHUB_API_URL"):
        await here.give()


async def test_what_is_no_json_is_told(here: Here) -> None:
    here.github.fail("GET", PRO, 200, body="<html>")
    assert here.github.specification
    with pytest.raises(Unavailable, match="not JSON"):
        await here.give()
    here.github.specification.violations.clear()


async def test_a_cancelled_grant_begins_no_further_request(here: Here) -> None:
    here.github.fail("GET", ".*/permission", wait=0.2)
    task = asyncio.create_task(here.give())
    await until(lambda: any("/permission" in line for line in here.lines()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = len(here.github.log)
    await asyncio.sleep(0.3)
    assert len(here.github.log) == before
    assert here.writes == []


async def test_a_cancelled_reading_goes_on_for_the_others(here: Here) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    here.github.fail("GET", ".*/invitations", wait=0.2)
    tasks = [asyncio.create_task(connector.holds(receipt)) for _ in range(2)]
    await asyncio.sleep(0.1)
    tasks[0].cancel()
    assert await tasks[1] == Holding.PENDING
    here.github.fail("GET", ".*/invitations", wait=0.2)
    alone = asyncio.create_task(connector.holds(receipt))
    await asyncio.sleep(0.1)
    alone.cancel()
    assert await connector.holds(receipt) == Holding.PENDING


# Limits.


class Full(MemoryLimits):
    """Limits of which one is used up."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    async def take(self, *rates: Rate) -> None:
        if any(rate.name.endswith(self.name) for rate in rates):
            raise Unavailable("used up", retry_after=7)
        await super().take(*rates)


async def test_every_request_and_every_write_has_its_places(here: Here) -> None:
    connector = here.connector
    receipt = await here.give(by=connector)
    await connector.revoke(receipt)
    [installation] = here.github.installations
    taken = here.world.limits.taken
    ours = [rate for rate in taken if rate.name == f"github:{installation}"]
    assert len(ours) == len(here.lines())
    assert set(ours) == {Rate(f"github:{installation}", 5_000, 3_600)}
    assert taken.count(Rate(f"github:{installation}:writes", 80, 60)) == len(here.writes) == 2
    assert taken.count(Rate(f"github:{installation}:writes-hour", 500, 3_600)) == 2
    assert taken.count(Rate(f"github:app-{here.github.app_id}", 5_000, 3_600)) == 2


@pytest.mark.parametrize("name", [":writes", ":writes-hour", "invitations:*"])
async def test_a_refused_place_for_a_write_costs_no_request(here: Here, name: str) -> None:
    connector = here.connector
    noted = stored(await connector.grant(to(), terms(), None))
    here.world.limits = Full(name.replace("*", str(here.pro.id)))
    connector._github._tools = here.world.tools
    here.forget()
    with pytest.raises(Unavailable) as refused:
        await connector.grant(to(), terms(), noted)
    assert refused.value.retry_after == 7
    assert here.github.log == []


async def test_the_limit_that_github_tells_of_is_learned(here: Here) -> None:
    here.github.primary_limit = 12_500
    await here.give()
    [installation] = here.github.installations
    assert here.world.limits.learned[f"github:{installation}"] == Rate(f"github:{installation}", 12_500, 3_600)


async def test_a_benchmark_may_run_the_limits_faster(here: Here) -> None:
    await here.give(by=GitHubRepository(here.world.tools, pace=0.01))
    assert {rate.seconds for rate in here.world.limits.taken} == {36.0, 0.6, 864.0}


async def test_a_grant_a_recheck_and_a_revocation_cost_so_many_requests(here: Here) -> None:
    connector = here.connector
    noted = stored(await connector.grant(to(), terms(), None))
    user, list_, role = f"GET /user/{ADA}", f"GET {PRO}/invitations", f"GET {PRO}/collaborators/ada/permission"
    assert here.lines() == [f"GET {PRO}", user, role, list_]
    here.forget()
    receipt = stored(await connector.grant(to(), terms(), noted))
    assert here.lines() == [user, f"PUT {PRO}/collaborators/ada"]
    here.forget()
    await connector.holds(receipt)
    assert here.lines() == [list_]
    here.forget()
    await connector.grant(to(), terms(), receipt)
    assert here.lines() == [list_]
    here.github.accept(here.pro, here.ada)
    receipt = stored(await connector.grant(to(), terms(), receipt))
    here.forget()
    await connector.grant(to(), terms(), receipt)
    await connector.holds(receipt)
    assert here.lines() == [user, role, user, role]
    here.forget()
    await connector.revoke(receipt)
    assert here.lines() == [f"GET {PRO}", list_, user, f"DELETE {PRO}/collaborators/ada"]
    here.forget()
    assert not await connector.left(receipt)
    assert here.lines() == [list_, user, role]


# Accounts, examining, surveying, offering.


async def test_an_account_is_found_by_its_name(here: Here) -> None:
    assert await here.connector.identify(" @ADA ", terms()) == Account(str(ADA), "ada")
    several = terms(repository=None, repositories=["acme/pro", "acme/docs"])
    assert await here.connector.identify("ada", several) == Account(str(ADA), "ada")


@pytest.mark.parametrize("name", ["nobody", "acme", "ada lovelace", "../user", "", "ada/../grace"])
async def test_a_name_that_is_nobodys_is_the_customers_to_correct(here: Here, name: str) -> None:
    with pytest.raises(ActionRequired, match="there is no GitHub user") as asked:
        await here.connector.identify(name, terms())
    assert asked.value.who == "customer"


async def test_a_benefit_that_can_be_given_has_nothing_wrong(here: Here) -> None:
    assert await here.connector.examine(terms()) == []


async def test_what_is_wrong_with_a_benefit_is_said_before_anybody_buys_it(here: Here) -> None:
    linus = here.github.user("linus")
    here.github.install(linus)
    here.github.repository(linus, "tool")
    connector = here.connector

    async def said(**more: Any) -> str:
        return " | ".join(await connector.examine(terms(**more)))

    assert "does not exist" in await said(repository="acme/absent")
    assert "belongs to a person" in await said(repository="linus/tool")
    assert not await said(repository="linus/tool", permission="push")
    assert not await said(permission="Auditor"), "whether there is such a role is seen when it is first given"
    assert "absent" in await said(repository=None, repositories=["acme/pro", "acme/absent"])
    here.pro.is_archived, here.pro.is_private = True, False
    _powerless(here)
    everything = await said()
    for words in ("archived", "public", "Administration"):
        assert words in everything
    for one in here.github.installations.values():
        one.suspended_at = here.clock.at
    assert "suspended" in await said()
    here.use_token(linus)
    here.acme.owners.clear()
    connector = here.connector
    assert "does not administer" in await said()


async def test_examining_while_github_is_down_tells_nothing(here: Here) -> None:
    here.github.fail("GET", ".*", 503, times=9)
    with pytest.raises(Unavailable):
        await here.connector.examine(terms())


async def test_a_survey_lists_everybody_who_has_anything_of_their_own(here: Here) -> None:
    others = [here.github.user(f"user-{number}") for number in range(120)]
    for other in others:
        here.pro.collaborators[other.id] = "read"
    here.acme.owners.add(here.grace.id)
    await here.give(terms(repository="Acme/Pro"))
    found = await here.connector.survey(terms(repository="Acme/Pro"))
    expected = {f"github_repository:acme/pro:{one.id}": Holding.HELD for one in others}
    assert found == expected | {RESOURCE: Holding.PENDING}
    here.clock.move(days=8)
    assert await here.connector.survey(terms()) == expected


async def test_a_survey_of_a_personal_repository_leaves_its_owner_out(here: Here) -> None:
    linus = here.github.user("linus")
    here.github.install(linus)
    here.github.repository(linus, "tool").collaborators[ADA] = "write"
    found = await here.connector.survey(terms(repository="linus/tool"))
    assert found == {f"github_repository:linus/tool:{ADA}": Holding.HELD}


async def test_an_offer_says_where_to_go_and_changes_when_it_was_accepted(here: Here) -> None:
    connector = here.connector
    waiting = await here.give(by=connector)
    assert connector.offer(waiting) == {
        "kind": "github_repository",
        "repository": "acme/pro",
        "permission": "pull",
        "login": "ada",
        "url": f"{here.url}/acme/pro",
        "invitation_url": f"{here.url}/acme/pro/invitations",
        "invitation_expires_at": "2026-11-08T12:00:00+00:00",
        "given_by_us": True,
    }
    here.github.accept(here.pro, here.ada)
    held = connector.offer(await here.give(held=waiting, by=connector))
    assert (held["invitation_url"], held["invitation_expires_at"]) == (None, None)


async def test_pygithub_logs_no_token(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    receipt = await here.give()
    await here.connector.revoke(receipt)
    assert here.github.tokens
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert not [token for token in here.github.tokens if token in logged]


# The fake keeps GitHub's promises.


def _signed_in(here: Here, token: str) -> httpx.Client:
    return httpx.Client(base_url=f"{here.url}/api/v3", headers={"authorization": f"token {token}"})


def test_the_fake_counts_requests_and_writes_as_github_does(here: Here) -> None:
    here.github.enforces_limits, here.github.pace = True, 0.01
    with _signed_in(here, here.use_token()) as client:
        for _ in range(80):
            assert client.delete(f"{PRO}/collaborators/ada").status_code == 204
        refused = client.delete(f"{PRO}/collaborators/ada")
        assert refused.status_code == 403
        assert 0 < float(refused.headers["retry-after"]) <= 0.6
        here.github.primary_limit = 82
        assert client.get("/user").headers["x-ratelimit-remaining"] == "0"
        limited = client.get("/user")
        assert (limited.status_code, limited.json()["message"][:23]) == (403, "API rate limit exceeded")
    assert here.github.specification


def test_the_fake_lets_people_sign_in_by_the_web(here: Here) -> None:
    github = here.github
    verifier = "a" * 50
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {
        "client_id": github.client_id,
        "redirect_uri": "https://sidecar.example.com/back",
        "state": "s 1",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    with httpx.Client(base_url=f"{here.url}/login/oauth") as client:
        assert "ada" in client.get("/authorize", params=asked).text
        github.approves_as = ADA
        assert client.get("/authorize", params=asked | {"client_id": "x"}).status_code == 404

        def code() -> str:
            back = urlsplit(client.get("/authorize", params=asked).headers["location"])
            assert (back.hostname, parse_qs(back.query)["state"]) == ("sidecar.example.com", ["s 1"])
            return parse_qs(back.query)["code"][0]

        def exchange(**more: str) -> dict[str, Any]:
            form = {"client_id": github.client_id, "client_secret": github.client_secret, "code_verifier": verifier}
            answer: dict[str, Any] = client.post("/access_token", data=form | more).json()
            return answer

        assert exchange(code=code(), client_secret="x")["error"] == "incorrect_client_credentials"
        assert exchange(code=code(), code_verifier="x")["error"] == "bad_verification_code"
        assert exchange(code=code(), redirect_uri="https://other.example")["error"] == "redirect_uri_mismatch"
        once = code()
        token = exchange(code=once)["access_token"]
        assert exchange(code=once)["error"] == "bad_verification_code"
    with _signed_in(here, token) as client:
        assert client.get("/user").json()["id"] == ADA


def test_the_fake_runs_alone_and_is_controlled_over_http() -> None:
    command = [sys.executable, "-m", "tests.fakes.github", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr
            url = running.stderr.readline().removeprefix("listens on ").strip()
            with httpx.Client(base_url=f"{url}/_fake") as client:

                def act(name: str, **given: Any) -> dict[str, Any]:
                    answer = client.post(f"/{name}", json=given)
                    assert answer.status_code == 200, answer.text
                    document: dict[str, Any] = answer.json()
                    return document

                assert "BEGIN" in act("app")["private_key"]
                assert act("repository", repository="acme/pro")["repository"] == "acme/pro"
                assert act("user", login="ada", id=ADA) == {"id": ADA, "login": "ada"}
                assert act("users", count=3)["count"] == 3
                assert act("set", limits=True, pace=0.5, approves_as="ada", ahead=8)["pace"] == 0.5
                assert act("accept", repository="acme/pro")["repositories"]["acme/pro"]["collaborators"] == {}
                assert act("state")["requests"] == 0
                assert act("reset") == {}
        finally:
            running.terminate()
