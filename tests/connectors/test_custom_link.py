"""Links and notes: what may be written in them, the customer's data in them, and signatures."""

import hashlib
import hmac
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from pydantic import ValidationError

from connectors.base import Receipt, Recipient
from connectors.custom_link import CustomLink, Terms, sign_link, verify_link
from tests.conftest import Clock, settings_for
from tests.connectors.ports import Moment, World, stored

BUYER = Recipient(
    customer_id="c-1",
    external_id="user 1",
    email="ada+shop@example.com",
    name="Ada & Söhne #1",
    member_id="m-1",
    purchase="order-1",
)
NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
SOON = NOW + timedelta(minutes=15)
SECRET = "link-secret-1"


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    with ThreadPoolExecutor(1) as executor:
        yield World(settings_for("", tmp_path), executor, clock)


@pytest.fixture
def connector(world: World) -> CustomLink:
    return CustomLink(world.tools)


def terms(**more: Any) -> Terms:
    return Terms(benefit="pro", **more)


def named(name: str | None) -> Recipient:
    return Recipient(customer_id="c-1", name=name)


async def url_for(connector: CustomLink, url: str, to: Recipient = BUYER) -> str:
    receipt = await connector.grant(to, terms(url=url), None)
    return str(receipt.data["url"])


async def note_for(connector: CustomLink, note: str, to: Recipient = BUYER) -> str:
    receipt = await connector.grant(to, terms(note=note), None)
    return str(receipt.data["note"])


# What may be written in the catalogue.


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://example.com", "https://example.com/"),
        ("http://localhost:3000/a?b=c#d", "http://localhost:3000/a?b=c#d"),
        ("HTTPS://Example.COM/Path", "https://example.com/Path"),
        ("https://example.com:443/", "https://example.com/"),
        ("http://example.com:80/", "http://example.com/"),
        ("https://example.com:80/", "https://example.com:80/"),
        ("https://example.com:/", "https://example.com/"),
        ("https://example.com?a={purchase}", "https://example.com/?a={purchase}"),
        ("https://example.com/a...b/..c/", "https://example.com/a...b/..c/"),
        ("https://[::1]:8080/", "https://[::1]:8080/"),
        ("https://example.com/%20%C3%A9", "https://example.com/%20%C3%A9"),
    ],
)
def test_an_address_is_kept_as_browsers_write_it(written: str, kept: str) -> None:
    assert terms(url=written).url == kept


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://example.com/a b", "percent-encoded"),
        ("https://example.com/é", "percent-encoded"),
        ("https://example.com/'", "percent-encoded"),
        ("https://example.com/\\", "percent-encoded"),
        ('https://example.com/"', "percent-encoded"),
        ("https://example.com/\n", "percent-encoded"),
        ("ftp://example.com/", "starts with https://"),
        ("javascript:alert(1)", "starts with https://"),
        ("//example.com/", "starts with https://"),
        ("https:///path", "starts with https://"),
        ("https://ada@example.com/", "starts with https://"),
        ("https://{customer.name}.example.com/", "starts with https://"),
        ("{customer.name}", "starts with https://"),
        ("https://example.com/../admin", "no . or .."),
        ("https://example.com/a/./b", "no . or .."),
        ("https://example.com/a/..", "no . or .."),
        ("https://example.com/%2e%2E/admin", "no . or .."),
        ("https://example.com/.%2e/admin", "no . or .."),
        ("https://example.com/?almoner_expires=1", "added by signing"),
        ("https://example.com/?almoner_signature=1", "added by signing"),
        ("https://example.com:port/", "[Pp]ort"),
        ("https://example.com:99999/", "[Pp]ort"),
        ("https://[::1/", "IPv6"),
        ("https://example.com/{customer.secret}", r"\{customer.secret\} is not known; there are: \{customer.id\}"),
        ("https://example.com/{}", r"\{\} is not known"),
        ("https://example.com/{customer.id", "a brace that opens must close"),
        ("https://example.com/customer.id}", "a brace that opens must close"),
        ("https://example.com/{{customer.id}}", "a brace that opens must close"),
    ],
)
def test_an_address_that_would_not_arrive_as_it_was_signed_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        terms(url=url)


@pytest.mark.parametrize("note", ["Hi {customer.nam}", "Hi {", "Hi }", "Hi {{customer.name}}", ""])
def test_a_note_has_known_placeholders_and_something_in_it(note: str) -> None:
    with pytest.raises(ValidationError, match="note"):
        terms(note=note)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "exactly one of url and note"),
        ({"url": "https://example.com/", "note": "Hi"}, "exactly one of url and note"),
        ({"note": "Hi", "sign": True}, "only a url can be signed"),
        ({"note": "Hi", "expires": "5m"}, "only a signed url expires"),
        ({"url": "https://example.com/", "expires": "5m"}, "only a signed url expires"),
        ({"url": "https://example.com/", "sign": True, "expires": "0s"}, "expires"),
        ({"url": "https://example.com/", "sign": True, "expires": "366d"}, "expires"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        terms(**fields)


def test_leaving_out_is_the_same_as_saying_none() -> None:
    assert terms(url=None, note="Hi") == terms(note="Hi")
    assert terms(url="https://example.com/", note=None) == terms(url="https://example.com/")


def test_signing_without_a_secret_is_refused_at_start_in_words(tmp_path: Path) -> None:
    without = settings_for("", tmp_path, link_secret="")
    signed = terms(url="https://example.com/", sign=True)
    (problem,) = CustomLink.missing(signed, without)
    assert problem.startswith("ALMONER_LINK_SECRET is missing")
    assert CustomLink.missing(signed, settings_for("", tmp_path)) == []
    assert CustomLink.missing(terms(url="https://example.com/"), without) == []


# The customer's own data.


async def test_every_placeholder_is_filled(connector: CustomLink) -> None:
    url = await url_for(
        connector,
        "https://example.com/{customer.id}/{member.id}/{purchase}"
        "?who={customer.external_id}&mail={customer.email}#{customer.name}",
    )
    assert url == (
        "https://example.com/c-1/m-1/order-1?who=user%201&mail=ada%2Bshop%40example.com#Ada%20%26%20S%C3%B6hne%20%231"
    )


async def test_what_is_not_known_of_the_customer_is_left_empty(connector: CustomLink) -> None:
    to = Recipient(customer_id="c-1")
    url = await url_for(connector, "https://example.com/{customer.name}?a={customer.email}&b={purchase}", to)
    assert url == "https://example.com/?a=&b="


@pytest.mark.parametrize(
    "value",
    [
        "a b", "a&b=c", "a#b", "a?b", "a/b/../c", "a%20b", "a+b", "a;b", "a=b", "é 山田 🦊", "it's \"quoted\"",
        "{purchase}", "{", "}", "a\nb\x00", "\\1 \\g<0>", "<b>", "a\ud800b",
    ],
)  # fmt: skip
async def test_a_value_stays_one_value_of_the_address(connector: CustomLink, value: str) -> None:
    url = await url_for(connector, "https://example.com/{customer.name}/x?who={customer.name}&z=1", named(value))
    parts = urlsplit(url)
    arrives = value.encode(errors="replace").decode()
    assert [unquote(part) for part in parts.path.split("/")] == ["", arrives, "x"]
    assert parse_qs(parts.query) == {"who": [arrives], "z": ["1"]}
    assert parts.fragment == ""
    assert httpx.URL(url).raw_path.decode() == f"{parts.path}?{parts.query}", "nothing is left for a browser to encode"


async def test_a_value_with_braces_is_not_filled_in_again(connector: CustomLink) -> None:
    assert await url_for(connector, "https://example.com/{customer.name}", named("{customer.id}")) == (
        "https://example.com/%7Bcustomer.id%7D"
    )
    assert await note_for(connector, "{customer.name}", named("{customer.id}")) == r"\{customer\.id\}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Ada", "Ada"),
        ("Ada & Co", "Ada &amp; Co"),
        ("<script>alert(1)</script>", r"&lt;script&gt;alert\(1\)&lt;/script&gt;"),
        ("[click](https://evil.example)", r"\[click\]\(https://evil\.example\)"),
        ("**bold** _it_ `code` ~no~", r"\*\*bold\*\* \_it\_ \`code\` \~no\~"),
        ("a\n\n# title\n- item", r"a \# title \- item"),
        ("a\\", r"a\\"),
        ("1. one | two!", r"1\. one \| two\!"),
        ("  山田  太郎 ", "山田 太郎"),
        (None, ""),
    ],
)
async def test_a_value_in_a_note_is_only_text(connector: CustomLink, value: str | None, text: str) -> None:
    assert await note_for(connector, "Hi **{customer.name}**", named(value)) == f"Hi **{text}**"


async def test_the_merchants_own_markup_in_a_note_stays(connector: CustomLink) -> None:
    note = "# Welcome\n\n[here](https://example.com/) <b>&</b>"
    assert await note_for(connector, note) == note


async def test_the_link_of_each_customer_member_and_purchase_is_its_own(connector: CustomLink) -> None:
    config = terms(note="Hi")
    assert connector.resource(BUYER, config) == "custom_link:pro:c-1:m-1:order-1"
    assert connector.resource(Recipient(customer_id="c-1"), config) == "custom_link:pro:c-1::"


# What is shown.


async def test_a_note_is_offered_as_a_note(connector: CustomLink, world: World) -> None:
    receipt = stored(await connector.grant(BUYER, terms(note="Hi {customer.id}"), None))
    offer = connector.offer(receipt)
    assert offer == {"kind": "note", "note": r"Hi c\-1"}
    assert connector.present(offer, "grant-1", Moment(NOW, world.settings)) == offer


async def test_a_link_that_is_not_signed_is_offered_as_it_is(connector: CustomLink, world: World) -> None:
    receipt = stored(await connector.grant(BUYER, terms(url="https://example.com/a"), None))
    shown = connector.present(connector.offer(receipt), "grant-1", Moment(NOW, world.settings))
    assert shown == {"kind": "link", "url": "https://example.com/a"}


async def test_a_signed_link_is_signed_anew_at_each_question(connector: CustomLink, world: World) -> None:
    config = terms(url="https://example.com/a?who={customer.name}#top", sign=True, expires="90s")
    receipt = stored(await connector.grant(BUYER, config, None))
    assert "almoner" not in repr(receipt)
    offer = connector.offer(receipt)
    asked = NOW.replace(microsecond=999_999)
    shown = connector.present(offer, "grant-1", Moment(asked, world.settings))
    assert shown == {
        "kind": "link",
        "url": sign_link(receipt.data["url"], SECRET, NOW + timedelta(seconds=90)),
        "expires_at": "2026-11-01T12:01:30+00:00",
    }
    assert verify_link(shown["url"], SECRET, NOW)
    later = connector.present(offer, "grant-1", Moment(asked + timedelta(hours=1), world.settings))
    assert verify_link(later["url"], SECRET, NOW + timedelta(hours=1))
    assert not verify_link(shown["url"], SECRET, NOW + timedelta(hours=1))


def test_a_link_is_good_for_a_quarter_of_an_hour_unless_told() -> None:
    assert terms(url="https://example.com/", sign=True).expires == timedelta(minutes=15)


def test_an_intended_receipt_offers_no_link(connector: CustomLink) -> None:
    assert connector.offer(Receipt("custom_link:pro:c-1::", intended=True)) == {"kind": "note"}


# Signatures.


def test_a_signature_is_what_the_documentation_says() -> None:
    signed = "https://example.com/a?b=c&almoner_expires=1793535300"
    signature = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()
    assert sign_link("https://example.com/a?b=c#d", SECRET, SOON) == f"{signed}&almoner_signature={signature}#d"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/",
        "https://example.com/?a=b",
        "https://example.com/?",
        "https://example.com/a#",
        "https://example.com/a?b=c#d?e=f&almoner_signature=0",
        "https://example.com/%C3%A9?%26=%3D",
    ],
)
def test_what_was_signed_verifies_until_it_ends(url: str) -> None:
    signed = sign_link(url, SECRET, SOON)
    assert verify_link(signed, SECRET, NOW)
    assert verify_link(signed, SECRET, SOON - timedelta(microseconds=1))
    assert not verify_link(signed, SECRET, SOON)
    assert not verify_link(signed, SECRET, SOON + timedelta(days=1))


def test_a_fragment_may_change_for_no_page_ever_sees_it() -> None:
    signed = sign_link("https://example.com/#one", SECRET, SOON)
    assert signed.endswith("#one")
    assert verify_link(signed.replace("#one", "#two"), SECRET, NOW)
    assert verify_link(signed.partition("#")[0], SECRET, NOW)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("who=1", "who=2"),
        ("example.com", "example.org"),
        ("https:", "http:"),
        ("/a?", "/b?"),
        ("almoner_expires=1", "almoner_expires=2"),
        ("&almoner_expires", "&x=1&almoner_expires"),
        ("&almoner_signature", "&x=1&almoner_signature"),
        ("&almoner_signature=", "&almoner_signature=0"),
        ("&almoner_signature=", "&signature="),
    ],
)
def test_a_changed_address_does_not_verify(old: str, new: str) -> None:
    signed = sign_link("https://example.com/a?who=1", SECRET, SOON)
    assert old in signed
    assert not verify_link(signed.replace(old, new), SECRET, NOW)


def test_no_character_of_a_signature_may_change() -> None:
    signed = sign_link("https://example.com/a", SECRET, SOON)
    start = signed.index("almoner_signature=") + len("almoner_signature=")
    for at in range(start, len(signed)):
        other = "0" if signed[at] != "0" else "1"
        assert not verify_link(signed[:at] + other + signed[at + 1 :], SECRET, NOW)
    assert not verify_link(signed[:-1], SECRET, NOW)
    assert not verify_link(signed + "&x=1", SECRET, NOW)


@pytest.mark.parametrize(
    "url",
    [
        "", "https://example.com/", "https://example.com/?almoner_expires=9999999999",
        "https://example.com/?almoner_expires=9999999999&almoner_signature=",
        "https://example.com/?a=1&almoner_signature=abc", "&almoner_signature=é", "\ud800&almoner_signature=\ud800",
    ],
)  # fmt: skip
def test_what_was_never_signed_does_not_verify(url: str) -> None:
    assert verify_link(url, SECRET, NOW) is False


def test_another_secret_does_not_verify() -> None:
    assert not verify_link(sign_link("https://example.com/", "another", SOON), SECRET, NOW)


def test_an_empty_secret_verifies_nothing() -> None:
    assert not verify_link(sign_link("https://example.com/", "", SOON), "", NOW)


async def test_a_value_cannot_bring_an_end_of_its_own(connector: CustomLink) -> None:
    value = "&almoner_expires=9999999999&almoner_signature=0"
    url = sign_link(await url_for(connector, "https://example.com/?who={customer.name}", named(value)), SECRET, SOON)
    assert parse_qs(urlsplit(url).query)["who"] == [value]
    assert verify_link(url, SECRET, NOW)
    assert not verify_link(url, SECRET, SOON)
