"""The commands that ask platforms: `almoner audit` and `almoner check --online`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.github import GitHub
from tests.fakes.serving import serving
from tests.worker.test_cli import Almoner, Said, Sold, _alone, almoner, shop, sold

__all__ = ["_alone", "almoner", "shop", "sold"]  # fixtures


def open_door(shop: Sold, resource: str) -> None:
    shop.sql("INSERT INTO passes (resource, is_open) VALUES (?, 1)", resource)


def kinds(said: Said) -> list[str]:
    return [one["kind"] for one in said.json["findings"]]


class TestAudit:
    def test_all_is_well_and_the_report_is_kept(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("audit")
        assert said.code == 0
        assert "grants compared: 0 missing, 0 left, 0 foreign, 0 unknown" in said.out
        assert almoner("audit", "--last").code == 0

    def test_what_is_wrong_is_shown_and_named_with_the_next_command(self, almoner: Almoner, shop: Sold) -> None:
        open_door(shop, "custom_link:link:somebody::")
        said = almoner("audit")
        assert said.code == 1
        assert "has it and should not: given by us" in said.out
        assert "almoner audit --fix" in said.err
        said = almoner("audit", "--json")
        assert (said.code, kinds(said)) == (1, ["left"])
        assert kinds(almoner("audit", "--last", "--json")) == ["left"]

    def test_mending_shows_the_plan_and_asks_first(
        self, almoner: Almoner, shop: Sold, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_door(shop, "custom_link:link:somebody::")
        shop.sql("UPDATE passes SET is_open = 0 WHERE resource LIKE 'custom_link:link:%' AND resource NOT LIKE '%body%'"
                 " AND resource IN (SELECT held FROM grants WHERE wanted AND status = 'granted' LIMIT 1)")  # fmt: skip
        asked: list[str] = []

        def answer(text: str) -> bool:
            asked.append(text)
            return len(asked) > 1

        monkeypatch.setattr("typer.confirm", answer)
        assert almoner("audit", "--fix").code == 1
        said = almoner("audit", "--fix")
        assert said.code == 0, said.err
        assert len(asked) == 2
        assert "take back what 1 should not" in asked[0]
        assert almoner("audit").code == 0

    def test_without_asking(self, almoner: Almoner, shop: Sold) -> None:
        open_door(shop, "file_download:files:somebody::")
        said = almoner("audit", "--fix", "--yes")
        assert said.code == 0
        assert "settled again" in said.err
        assert shop.sql("SELECT is_open FROM passes WHERE resource LIKE '%somebody%'") == [(0,)]

    def test_one_benefit_alone_is_not_kept_as_a_report(self, almoner: Almoner, shop: Sold) -> None:
        assert almoner("audit", "--benefit", "link").code == 0
        said = almoner("audit", "--last")
        assert said.code == 3
        assert "There was no audit yet" in said.err
        said = almoner("audit", "--benefit", "lnk")
        assert said.code == 3
        assert "there are: key, files, link, better" in said.err


class TestAbandon:
    def test_a_revocation_counts_as_done_on_an_operators_word(self, almoner: Almoner, shop: Sold) -> None:
        [(grant,)] = shop.sql("SELECT id FROM grants WHERE status = 'revoked' AND benefit = 'key' LIMIT 1")
        said = almoner("grants", "abandon", grant, "--reason", "no")
        assert said.code == 3, "it is not being taken back"
        assert "almoner grants list --status revoking" in said.err
        receipt = '{"resource": "license_key:key:x::", "connector": "license_key"}'
        shop.sql(
            "UPDATE grants SET status = 'revoking', who = 'merchant', held = 'license_key:key:x::', receipt = ? "
            "WHERE id = ?", receipt, grant,
        )  # fmt: skip
        said = almoner("grants", "abandon", grant, "--reason", "the repository was deleted")
        assert said.code == 0
        shown = almoner("grants", "show", grant, "--json").json
        assert (shown["status"], shown["held"], shown["receipt"]) == ("revoked", None, None)
        assert shown["reason"].startswith("the repository was deleted (by ")
        assert shop.sql("SELECT taken FROM grants WHERE id = ?", grant) == [(receipt,)]


@pytest.fixture(scope="module")
def github() -> Any:
    fake = GitHub()
    with serving(fake) as address:
        yield fake, address


class TestCheckOnline:
    @pytest.fixture
    def merchant(self, github: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitHub:
        fake, address = github
        fake.reset()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "benefits.toml").write_text(
            '[benefits.source]\nconnector = "github_repository"\nrepositories = ["acme/pro", "acme/docs"]\n'
        )
        monkeypatch.setenv("ALMONER_GITHUB_API_URL", f"{address}/api/v3")
        monkeypatch.setenv("ALMONER_GITHUB_APP_ID", str(fake.app_id))
        monkeypatch.setenv("ALMONER_GITHUB_PRIVATE_KEY", fake.pem)
        owner = fake.organization("acme")
        fake.install(owner)
        fake.repository(owner, "pro")
        return fake  # type: ignore[no-any-return]

    def test_each_part_is_asked_for_and_what_is_wrong_is_said(self, almoner: Almoner, merchant: GitHub) -> None:
        said = almoner("check", "--online")
        assert said.code == 1
        assert "benefits.source: the repository acme/docs does not exist" in said.err
        assert "acme/pro" not in said.err
        said = almoner("check", "--online", "--json")
        assert said.code == 1
        assert len(said.json["problems"]) == 1
        assert almoner("check").code == 0, "without --online nobody is asked"

    def test_when_all_is_right_it_says_so(self, almoner: Almoner, merchant: GitHub) -> None:
        [owner] = [one for one in merchant.users.values() if one.login == "acme"]
        merchant.repository(owner, "docs")
        said = almoner("check", "--online")
        assert said.code == 0, said.err
        assert "Every benefit can be given" in said.out
        assert merchant.pem.splitlines()[1] not in json.dumps([said.out, said.err]), "the key is nowhere to be seen"
