"""`almoner licenses`: what operators do with license keys."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from tests.worker.test_cli import Almoner, Sold, _alone, almoner, empty, shop, sold

__all__ = ["_alone", "almoner", "empty", "shop", "sold"]  # fixtures


def keys(almoner: Almoner, *arguments: str) -> list[dict[str, Any]]:
    said = almoner("licenses", "list", "--json", *arguments)
    assert said.code == 0, said.err
    found: list[dict[str, Any]] = said.json["license_keys"]
    return found


def whole(shop: Sold, key_id: str) -> str:
    [(key,)] = shop.sql("SELECT key FROM license_keys WHERE id = ?", key_id)
    return str(key)


class TestList:
    def test_keys_are_listed_masked_with_filters(self, almoner: Almoner, shop: Sold) -> None:
        everything = keys(almoner)
        assert {one["status"] for one in everything} == {"granted", "revoked"}
        assert all(one["key"] is None and one["display_key"].startswith("****-") for one in everything)
        assert [one["status"] for one in keys(almoner, "--customer", shop.canceled)] == ["revoked"]
        assert [one["status"] for one in keys(almoner, "--customer", shop.bought)] == ["granted"]
        assert len(keys(almoner, "--status", "granted")) < len(everything)
        assert keys(almoner, "--benefit", "none") == []
        said = almoner("licenses", "list", "--limit", "1")
        assert "1 of" in said.out
        assert whole(shop, everything[0]["id"]) not in said.out

    def test_a_wrong_question_is_told(self, almoner: Almoner, shop: Sold) -> None:
        assert almoner("licenses", "list", "--status", "odd").code == 2
        said = almoner("licenses", "list", "--customer", "nobody")
        assert (said.code, "no customer 'nobody'" in said.err) == (3, True)
        said = almoner("licenses", "show", "nothing")
        assert (said.code, "almoner licenses list" in said.err) == (3, True)


class TestOne:
    def test_a_key_is_shown_by_its_id_or_by_itself_and_never_whole(self, almoner: Almoner, shop: Sold) -> None:
        [one] = keys(almoner, "--customer", shop.bought)
        secret = whole(shop, one["id"])
        shop.sql(
            "INSERT INTO activations (id, license_key_id, label, conditions, meta, created_at, seen_at) "
            "VALUES ('a-1', ?, 'laptop', '{}', '{\"os\": \"linux\"}', '2026-11-01 12:00:00', '2026-11-01 12:00:00')",
            one["id"],
        )
        for named in (one["id"], secret):
            said = almoner("licenses", "show", named)
            assert said.code == 0
            assert "laptop" in said.out
            assert secret not in said.out
        document = almoner("licenses", "show", one["id"], "--json").json
        assert [each["label"] for each in document["activations"]] == ["laptop"]
        assert "conditions" not in document["activations"][0]

    def test_a_key_is_disabled_and_enabled(self, almoner: Almoner, shop: Sold) -> None:
        [one] = keys(almoner, "--customer", shop.bought)
        assert "is disabled now" in almoner("licenses", "disable", one["id"]).out
        assert keys(almoner, "--status", "disabled")[0]["id"] == one["id"]
        assert "is granted now" in almoner("licenses", "enable", one["id"]).out
        [ended] = keys(almoner, "--customer", shop.canceled)
        said = almoner("licenses", "enable", ended["id"])
        assert (said.code, "stays revoked" in said.err) == (1, True)
        assert f"almoner grants list --customer {ended['customer_id']}" in said.err

    def test_a_rotated_key_is_printed_once_and_alone(self, almoner: Almoner, shop: Sold) -> None:
        [one] = keys(almoner, "--customer", shop.bought)
        before = whole(shop, one["id"])
        said = almoner("licenses", "rotate", before)
        assert said.code == 0
        assert said.out.splitlines()[0] == whole(shop, one["id"]) != before
        assert almoner("licenses", "show", before).code == 3
        [ended] = keys(almoner, "--customer", shop.canceled)
        said = almoner("licenses", "rotate", ended["id"])
        assert (said.code, "granted or disabled" in said.err) == (1, True)


class TestExport:
    def test_all_keys_are_written_masked_or_whole(self, almoner: Almoner, shop: Sold) -> None:
        said = almoner("licenses", "export")
        rows = list(csv.DictReader(io.StringIO(said.out)))
        assert len(rows) == len(keys(almoner))
        assert {row["key"] for row in rows} == {""}
        (shop.folder / "keys.csv").touch(mode=0o644)
        said = almoner("licenses", "export", "--whole", "--output", "keys.csv")
        file = shop.folder / "keys.csv"
        assert said.code == 0
        assert f"{len(rows)} license keys" in said.out
        assert file.stat().st_mode & 0o777 == 0o600
        written = list(csv.DictReader(file.open()))
        assert all(row["key"] == whole(shop, row["id"]) for row in written)
        lines = almoner("licenses", "export", "--format", "json").out.splitlines()
        assert {json.loads(line)["id"] for line in lines} == {row["id"] for row in rows}

    def test_what_cannot_be_written_is_told(self, almoner: Almoner, shop: Sold) -> None:
        assert almoner("licenses", "export", "--format", "xml").code == 2
        said = almoner("licenses", "export", "--output", "no/such/folder/keys.csv")
        assert (said.code, "cannot be written" in said.err) == (1, True)

    def test_a_cell_is_no_formula(self, almoner: Almoner, shop: Sold) -> None:
        shop.sql("UPDATE license_keys SET purchase = '=1+1'")
        rows = list(csv.DictReader(io.StringIO(almoner("licenses", "export").out)))
        assert {row["purchase"] for row in rows} == {"'=1+1"}

    def test_no_keys_are_a_heading_alone(self, almoner: Almoner, empty: Path) -> None:
        (empty / "benefits.toml").write_text("")
        assert almoner("licenses", "export").out.count("\n") == 1
