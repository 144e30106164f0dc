"""The benefits file: every kind of mistake is told with the benefit and the field, all of them at once."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import model_validator

from config.catalogue import BenefitConfig, Catalogue, CatalogueError, ConnectorTerms, parse_catalogue, read_catalogue
from connectors import CONNECTORS, TERMS
from tests.conftest import POLAR_BENEFIT, PRODUCT

EXAMPLE = Path(__file__).parents[2] / "config" / "benefits.example.toml"


class Strict(BenefitConfig):
    """A connector's config that refuses as a whole, where no field is to blame."""

    mood: str = "good"

    @model_validator(mode="after")
    def _refuse(self) -> "Strict":
        if self.mood == "bad":
            raise ValueError("not in this mood")
        return self


CONNECTED = TERMS | {"strict": ConnectorTerms(Strict, "purchase")}


def parse(text: str, grace: timedelta = timedelta()) -> Catalogue:
    return parse_catalogue(text, CONNECTED, grace, source="file.toml")


def problems_of(text: str) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        parse(text)
    return caught.value.problems


def test_the_example_is_valid_and_shows_every_connector() -> None:
    catalogue = read_catalogue(EXAMPLE, TERMS, timedelta())
    text, _, shown = EXAMPLE.read_text(encoding="utf-8").partition("# Repositories and roles")
    hidden = "\n".join(line.removeprefix("#").strip() for line in shown.splitlines()[1:])
    everything = parse_catalogue(text + hidden, TERMS, timedelta())
    assert {one.connector for one in everything.benefits.values()} == set(CONNECTORS)
    assert catalogue.benefits["pro-key"].grace == timedelta(days=3)
    assert catalogue.benefits["pro-key"].description == "License key for Acme Pro"
    assert catalogue.text == EXAMPLE.read_text()


def test_the_files_of_the_example_are_there() -> None:
    for benefit in read_catalogue(EXAMPLE, TERMS, timedelta()).benefits.values():
        config = benefit.config.model_dump()
        for name in config.get("files", ()):
            assert (EXAMPLE.parent.parent / config["folder"] / name).is_file()


def test_a_benefit_without_terms_takes_the_defaults() -> None:
    [benefit] = parse('[benefits.key]\nconnector = "license_key"', timedelta(days=2)).benefits.values()
    assert benefit.key == benefit.description == "key"
    assert benefit.by_products == benefit.by_benefits == frozenset()
    assert benefit.grace == timedelta(days=2)
    assert benefit.trials is True
    assert benefit.per == "purchase"  # the connector's
    assert benefit.config.benefit == "key"


def test_what_the_file_says_wins_over_the_defaults() -> None:
    [benefit] = parse(
        f"""
        [benefits.key]
        connector = "license_key"
        description = "A key"
        for = {{ products = ["{PRODUCT.upper()}"], benefits = ["{POLAR_BENEFIT.replace("-", "")}"] }}
        grace = "0s"
        trials = false
        per = "customer"
        """,
        timedelta(days=2),
    ).benefits.values()
    assert benefit.description == "A key"
    assert benefit.by_products == {PRODUCT}  # as Polar writes ids, however they are written here
    assert benefit.by_benefits == {POLAR_BENEFIT}
    assert benefit.grace == timedelta()
    assert benefit.trials is False
    assert benefit.per == "customer"


def test_an_empty_for_gives_by_hand_only() -> None:
    [benefit] = parse('[benefits.key]\nconnector = "license_key"\nfor = {}').benefits.values()
    assert benefit.by_products == benefit.by_benefits == frozenset()


@pytest.mark.parametrize("text", ["", "# nothing yet", "[benefits]"])
def test_a_file_without_benefits_is_an_empty_catalogue(text: str) -> None:
    assert parse(text).benefits == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("this is [not", "is not TOML: "),
        ('[benefits.a]\nconnector = "license_key"\n[benefits.a]\nconnector = "license_key"', "is not TOML: "),
        ('[benefits.a]\nconnector = "license_key"\nconnector = "license_key"', "is not TOML: "),
        ("benefits = 3", "benefits: write one table a benefit, like [benefits.pro-key]"),
        ('[benefit.a]\nconnector = "x"', "benefit: unknown at the top; benefits stand under [benefits.<key>]"),
        ("benefits.a = 3", "benefits.a: must be a table"),
        ("[[benefits.a]]", "benefits.a: must be a table"),
        ("[benefits.a]", "benefits.a: connector: Field required"),
        ("[benefits.a]\nconnector = 3", "benefits.a: connector: Input should be a valid string"),
        (
            '[benefits.a]\nconnector = "licence_key"',
            "benefits.a: there is no connector 'licence_key'; there are: github_repository, discord_role, ",
        ),
        (
            '[benefits.Pro]\nconnector = "license_key"',
            "benefits.Pro: a key has small letters, digits, - and _, at most 63 of them",
        ),
        ('[benefits.-a]\nconnector = "license_key"', "benefits.-a: a key has small letters"),
        ('[benefits."a b"]\nconnector = "license_key"', "benefits.a b: a key has small letters"),
        (f'[benefits.{"a" * 64}]\nconnector = "license_key"', f"benefits.{'a' * 64}: a key has small letters"),
        (
            '[benefits.a]\nconnector = "license_key"\nprefxi = "A"',
            "benefits.a: prefxi: Extra inputs are not permitted",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\nprefix = "Ä!"',
            "benefits.a: prefix: a prefix has the letters A to Z, digits and - only",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\nlimit_usage = 0',
            "benefits.a: limit_usage: Input should be greater than or equal to 1",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\nfor = { product = ["x"] }',
            "benefits.a: for.product: Extra inputs are not permitted",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\nfor = { products = ["pro"] }',
            "benefits.a: for.products: 'pro' is not an id; Polar's ids look like 5a4e9d3c-...",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\nfor = { benefits = [""] }',
            "benefits.a: for.benefits: '' is not an id",
        ),
        (
            f'[benefits.a]\nconnector = "license_key"\nfor = {{ products = "{PRODUCT}" }}',
            "benefits.a: for.products: Input should be a valid tuple",
        ),
        (
            f'[benefits.a]\nconnector = "license_key"\nfor = "{PRODUCT}"',
            "benefits.a: for: Input should be a valid dictionary",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\ngrace = "three days"',
            "benefits.a: grace: 'three days' is not a duration; write a number and a unit",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\ngrace = "999999999999d"',
            "benefits.a: grace: '999999999999d' is too long for a duration",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\nper = "seat"',
            "benefits.a: per: Input should be 'customer' or 'purchase'",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\ntrials = "sometimes"',
            "benefits.a: trials: Input should be a valid boolean",
        ),
        (
            '[benefits.a]\nconnector = "license_key"\nbenefit = "b"',
            "benefits.a: benefit: its key is the table's name; take this line out",
        ),
        ('[benefits.a]\nconnector = "strict"\nmood = "bad"', "benefits.a: the table: not in this mood"),
        ('[benefits.a]\nconnector = "file_download"\nfolder = "x"', "benefits.a: files: Field required"),
        (
            '[benefits.a]\nconnector = "file_download"\nfolder = "x"\nfiles = ["../x"]',
            "benefits.a: files: '../x' is not an exact name below the folder",
        ),
        (
            '[benefits.a]\nconnector = "custom_link"\nurl = "https://x.example/{customer.mail}"',
            "benefits.a: url: {customer.mail} is not known; there are: {customer.id}",
        ),
        (
            '[benefits.a]\nconnector = "custom_link"',
            "benefits.a: the table: give exactly one of url and note",
        ),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_its_benefit_and_field(text: str, problem: str) -> None:
    problems = problems_of(text)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_all_mistakes_are_told_at_once_each_with_the_file() -> None:
    text = """
    top = 1
    [benefits.a]
    connector = "license_key"
    per = "seat"
    grace = "long"
    [benefits.b]
    connector = "nothing"
    [benefits.c]
    connector = "license_key"
    """
    with pytest.raises(CatalogueError) as caught:
        parse(text)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["top", *["benefits.a"] * 2, "benefits.b"]
    assert all(line.startswith("file.toml: ") for line in str(caught.value).splitlines())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"cannot be read: .*No such file") as caught:
        read_catalogue(tmp_path / "benefits.toml", TERMS, timedelta())
    assert str(tmp_path / "benefits.toml") in str(caught.value)
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogueError, match=r"cannot be read: .*utf-8"):
        read_catalogue(broken, TERMS, timedelta())


def test_the_digest_follows_the_text_and_the_grace_and_a_benefits_only_what_is_given() -> None:
    text = '[benefits.key]\nconnector = "license_key"\nprefix = "A"\n'
    catalogue = parse(text)
    assert catalogue.digest == parse(text).digest
    assert catalogue.digest not in {parse(text + "# reviewed").digest, parse(text, timedelta(days=1)).digest}
    key = catalogue.benefits["key"]
    assert parse(text + 'description = "other words"').benefits["key"].parts == key.parts
    assert parse(text.replace('"A"', '"B"')).benefits["key"].parts != key.parts


def test_catalogues_and_benefits_can_be_members_of_sets() -> None:
    text = '[benefits.a]\nconnector = "license_key"\n[benefits.b]\nconnector = "license_key"\n'
    catalogue = parse(text)
    assert len({*catalogue.benefits.values(), *parse(text).benefits.values()}) == 2
    assert {catalogue, parse(text)} == {catalogue}
