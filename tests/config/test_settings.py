"""Settings: what is read, what is refused and in which words, and what development makes for itself."""

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import (
    PREFIX,
    Settings,
    SettingsError,
    Token,
    development_file,
    load_settings,
    missing_in_production,
)

EVERYTHING = {
    "ALMONER_ENVIRONMENT": "production",
    "ALMONER_WEBHOOK_SECRETS": "whsec_c2VjcmV0LW51bWJlci1vbmU=",
    "ALMONER_API_TOKENS": "app:token-of-the-app",
    "ALMONER_OPS_TOKENS": "operator:token-of-operators",
    "ALMONER_SIGNING_KEYS": "key-that-signs-links",
}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have set something; and the folder is empty."""
    for name in [one for one in os.environ if one.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a benefits file that is not in the temporary place, though pytest's own folders are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder = tmp_path / "srv"
    folder.mkdir()
    (folder / "benefits.toml").write_text("")
    monkeypatch.chdir(folder)
    return folder


def load(environ: Mapping[str, str] | None = None, **more: str) -> Settings:
    return load_settings({**(environ or {}), **more}, generate=False)


def problems_of(environ: Mapping[str, str] | None = None, **more: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(environ, **more)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def values(secrets: object) -> list[str]:
    assert isinstance(secrets, tuple)
    return [one.get_secret_value() for one in secrets]


class TestReading:
    def test_without_any_setting_it_is_development_on_loopback_with_data_below_the_folder(self) -> None:
        settings = load()
        assert settings.environment == "development"
        assert (settings.host, settings.port) == ("127.0.0.1", 8787)
        assert settings.data_dir == Path(".almoner")
        assert settings.database == "sqlite:///.almoner/almoner.db"
        assert settings.is_sqlite
        assert settings.redis_url == ""
        assert settings.benefits == Path("benefits.toml")
        assert settings.max_body_bytes == 10 * 1024 * 1024
        assert settings.tolerance == timedelta(seconds=300)
        assert settings.webhook_secrets == settings.api_tokens == settings.ops_tokens == ()

    def test_a_variable_sets_its_field_whatever_the_case_of_its_name(self) -> None:
        settings = load(ALMONER_PORT="9000", almoner_retry_cap="2h", ALMONER_LOG_FORMAT="json", OTHER="x")
        assert settings.port == 9000
        assert settings.retry_cap == timedelta(hours=2)
        assert settings.log_format == "json"

    def test_the_environment_of_the_process_is_read_where_no_other_is_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALMONER_PORT", "9001")
        assert load_settings(generate=False).port == 9001
        assert load_settings(generate=False, port=9002).port == 9002  # what a command says wins

    def test_a_file_called_env_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("ALMONER_PORT=9000")
        assert load().port == 8787

    def test_a_variable_that_is_empty_is_not_set(self) -> None:
        assert load(ALMONER_PORT="", ALMONER_WEBHOOK_SECRETS="").port == 8787

    def test_secrets_are_separated_by_commas_and_keep_their_order(self) -> None:
        settings = load(ALMONER_WEBHOOK_SECRETS=" whsec_b25l , legacy:secret,, ")
        assert values(settings.webhook_secrets) == ["whsec_b25l", "legacy:secret"]

    def test_tokens_have_a_name_or_get_one(self) -> None:
        settings = load(ALMONER_API_TOKENS="first, app:second,a:b:third")
        assert [one.name for one in settings.api_tokens] == ["token-1", "app", "a:b"]
        assert values(tuple(one.value for one in settings.api_tokens)) == ["first", "second", "third"]

    def test_names_are_separated_by_commas(self) -> None:
        assert load(ALMONER_KEY_READERS="app, portal").key_readers == ("app", "portal")

    def test_tokens_may_be_given_as_they_are(self) -> None:
        token = Token(name="app", value="value-1")
        assert Settings(api_tokens=(token,)).api_tokens == (token,)

    @pytest.mark.parametrize(
        ("host", "public_url", "local", "base"),
        [
            ("127.0.0.1", "", "http://127.0.0.1:8787", "http://127.0.0.1:8787"),
            ("::1", "", "http://[::1]:8787", "http://[::1]:8787"),
            ("0.0.0.0", "https://shop.example/a/", "http://0.0.0.0:8787", "https://shop.example/a"),
        ],
    )
    def test_addresses_are_as_one_types_them(self, host: str, public_url: str, local: str, base: str) -> None:
        settings = load(ALMONER_HOST=host, ALMONER_PUBLIC_URL=public_url)
        assert (settings.local_url, settings.base_url) == (local, base)

    @pytest.mark.parametrize(
        ("url", "is_sqlite"),
        [
            ("sqlite:///almoner.db", True),
            ("sqlite:////srv/almoner.db", True),
            ("postgresql+asyncpg://u:p@host/almoner", False),
            ("postgresql+asyncpg:///almoner?host=/run/postgresql", False),
        ],
    )
    def test_the_database_is_the_one_that_is_named(self, url: str, *, is_sqlite: bool) -> None:
        settings = load(ALMONER_DATABASE_URL=url)
        assert settings.database == url
        assert settings.is_sqlite is is_sqlite

    @pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://u:p@h", "unix:///run/redis.sock"])
    def test_the_queue_is_the_one_that_is_named(self, url: str) -> None:
        assert load(ALMONER_REDIS_URL=url).redis_url == url

    def test_settings_are_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            load().port = 1  # type: ignore[misc]

    def test_every_field_is_described(self) -> None:
        assert [name for name, field in Settings.model_fields.items() if not field.description] == []


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("PORT", "80x", "ALMONER_PORT: Input should be a valid integer"),
            ("PORT", "65536", "ALMONER_PORT: Input should be less than or equal to 65535"),
            ("ENVIRONMENT", "prod", "ALMONER_ENVIRONMENT: Input should be 'development' or 'production'"),
            ("GRACE", "3 days", "ALMONER_GRACE: '3 days' is not a duration; write a number and a unit"),
            ("GRACE", "999999999999d", "ALMONER_GRACE: '999999999999d' is too long for a duration"),
            ("LOG_FORMAT", "xml", "ALMONER_LOG_FORMAT: Input should be 'console' or 'json'"),
            ("MAX_REVOKE_SHARE", "20", "ALMONER_MAX_REVOKE_SHARE: Input should be less than or equal to 1"),
            ("MAX_BODY_BYTES", "10", "ALMONER_MAX_BODY_BYTES: Input should be greater than or equal to 1024"),
            ("MAX_ATTEMPTS", "0", "ALMONER_MAX_ATTEMPTS: Input should be greater than or equal to 1"),
            ("DATABASE_URL", "postgres://h/d", "ALMONER_DATABASE_URL: write sqlite:///path or postgresql+asyncpg://"),
            ("DATABASE_URL", "mysql://h/d", "ALMONER_DATABASE_URL: write sqlite:///path or postgresql+asyncpg://"),
            ("DATABASE_URL", "sqlite:/foo", "ALMONER_DATABASE_URL: write sqlite:///path or postgresql+asyncpg://"),
            ("DATABASE_URL", "sqlite:///", "ALMONER_DATABASE_URL: write sqlite:///path or postgresql+asyncpg://"),
            ("DATABASE_URL", "sqlite:///:memory:", "ALMONER_DATABASE_URL: write sqlite:///path or"),
            ("REDIS_URL", "localhost:6379", "ALMONER_REDIS_URL: write redis://host:6379/0, rediss://... or unix:///path"),
        ],
    )  # fmt: skip
    def test_a_value_that_cannot_be_is_told_with_its_variable(self, name: str, value: str, problem: str) -> None:
        [told] = problems_of({PREFIX + name: value})
        assert told.startswith(problem)

    @pytest.mark.parametrize("value", ["app:", "first,app:"])
    def test_a_token_that_is_empty_is_refused_since_everybody_knows_it(self, value: str) -> None:
        number = len(value.split(","))
        assert problems_of(ALMONER_OPS_TOKENS=value) == [
            f"ALMONER_OPS_TOKENS: entry {number} has a name, but no token after it"
        ]

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("ALMONER_PROT", "; did you mean ALMONER_PORT?"),
            ("ALMONER_WEBHOOK_SECRET", "; did you mean ALMONER_WEBHOOK_SECRETS?"),
            ("almoner_databse_url", "; did you mean ALMONER_DATABASE_URL?"),
            ("ALMONER_XYZZYXYZZYXYZZY", ""),
        ],
    )
    def test_a_variable_that_is_no_setting_is_a_typo_and_the_right_name_is_suggested(
        self, name: str, hint: str
    ) -> None:
        assert problems_of({name: "secret-value"}) == [f"{name} is not a setting of Almoner{hint}"]

    def test_all_mistakes_are_told_at_once(self) -> None:
        told = problems_of(ALMONER_PROT="1", ALMONER_PORT="x", ALMONER_GRACE="y")
        assert [one.split(":")[0].split(" ")[0] for one in told] == ["ALMONER_PROT", "ALMONER_PORT", "ALMONER_GRACE"]

    def test_an_override_that_is_no_setting_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="ALMONER_PROT: Extra inputs are not permitted"):
            load_settings({}, generate=False, prot=1)


class TestSecrecy:
    def test_no_secret_is_in_what_settings_say_of_themselves(self) -> None:
        settings = load(EVERYTHING | {"ALMONER_ENVIRONMENT": "development", "ALMONER_LINK_SECRET": "link-with-this"})
        told = repr(settings) + str(settings) + settings.model_dump_json() + repr(settings.model_dump())
        for secret in ("c2VjcmV0", "token-of-the-app", "token-of-operators", "key-that-signs", "link-with-this"):
            assert secret not in told
        assert "name='app'" in told

    @pytest.mark.parametrize(
        "environ",
        [
            {"ALMONER_OPS_TOKENS": "very-secret:"},
            {"ALMONER_DATABASE_URL": "postgres://u:very-secret@h/d"},
            {"ALMONER_REDIS_URL": "http://:very-secret@h"},
            {"ALMONER_WEBHOOK_SECRET": "very-secret"},
            {"ALMONER_WEBHOOK_SECRETS": "very-secret", "ALMONER_PORT": "x"},
        ],
    )
    def test_no_secret_is_in_an_error(self, environ: Mapping[str, str]) -> None:
        assert "very-secret" not in "\n".join(problems_of(environ))

    def test_no_secret_is_in_the_error_of_the_class_itself(self) -> None:
        with pytest.raises(ValidationError) as caught:
            Settings(database_url="postgres://u:very-secret@h/d")
        assert "very-secret" not in str(caught.value)


class TestIdsAndNetworks:
    def test_the_organization_is_an_id_however_it_is_written(self) -> None:
        written = "6513270E-269E-4D37-B2A7-4DE452E6B438"
        assert Settings(polar_organization_id=written).polar_organization_id == written.lower()
        assert Settings(polar_organization_id="").polar_organization_id == ""

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("POLAR_ORGANIZATION_ID", "acme", "your organization's id"),
            ("TRUSTED_PROXIES", "*", "no address and no network"),
            ("TRUSTED_PROXIES", "10.0.0.1/8", "no address and no network"),
            ("TRUSTED_PROXIES", "127.0.0.1,proxy.local", "'proxy.local'"),
        ],
    )
    def test_what_would_silently_mean_nothing_is_refused(self, name: str, value: str, problem: str) -> None:
        with pytest.raises(SettingsError, match=problem):
            load_settings({f"ALMONER_{name}": value}, generate=False)


class TestProduction:
    def test_all_that_it_needs_is_enough(self, lasting: Path) -> None:
        settings = load_settings(EVERYTHING)
        assert settings.environment == "production"
        assert missing_in_production(settings) == []
        assert list(lasting.iterdir()) == [lasting / "benefits.toml"]  # nothing is generated

    @pytest.mark.parametrize("absent", sorted(set(EVERYTHING) - {"ALMONER_ENVIRONMENT"}))
    def test_exactly_what_is_missing_is_named(self, lasting: Path, absent: str) -> None:
        told = problems_of({name: value for name, value in EVERYTHING.items() if name != absent})
        assert len(told) == 1
        assert told[0].startswith(f"{absent} is missing: ")

    def test_everything_that_is_missing_is_named_at_once(self, lasting: Path) -> None:
        (lasting / "benefits.toml").unlink()
        told = problems_of(ALMONER_ENVIRONMENT="production", ALMONER_WEBHOOK_SECRETS=" , ")
        assert [one.split(" ")[0] for one in told] == [
            "ALMONER_WEBHOOK_SECRETS",
            "ALMONER_API_TOKENS",
            "ALMONER_OPS_TOKENS",
            "ALMONER_SIGNING_KEYS",
            "ALMONER_BENEFITS:",
        ]
        assert told[-1] == "ALMONER_BENEFITS: there is no file benefits.toml"

    def test_a_typo_and_what_is_missing_for_it_are_told_together(self, lasting: Path) -> None:
        environ = EVERYTHING | {"ALMONER_OPS_TOKEN": EVERYTHING["ALMONER_OPS_TOKENS"]}
        del environ["ALMONER_OPS_TOKENS"]
        told = problems_of(environ)
        assert told[0] == "ALMONER_OPS_TOKEN is not a setting of Almoner; did you mean ALMONER_OPS_TOKENS?"
        assert told[1].startswith("ALMONER_OPS_TOKENS is missing")

    @pytest.mark.parametrize(
        ("setting", "value", "says"),
        [
            ("API_TOKENS", "app:short", "the token app is shorter than 16 characters"),
            ("OPS_TOKENS", "op:short", "the token op is shorter than 16 characters"),
            ("WEBHOOK_SECRETS", "hello", "one is shorter than 16 characters"),
            ("SIGNING_KEYS", "key-that-signs-links,hello", "one is shorter than 16 characters"),
            ("KEY_READERS", "app,zed", "ALMONER_API_TOKENS has no token named zed"),
        ],
    )
    def test_what_can_be_guessed_or_names_nobody_is_refused(
        self, lasting: Path, setting: str, value: str, says: str
    ) -> None:
        [told] = problems_of(EVERYTHING | {"ALMONER_KEY_READERS": ""} | {f"ALMONER_{setting}": value})
        assert told.startswith(f"ALMONER_{setting}: {says}")
        assert "short," not in told

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"GITHUB_CLIENT_ID": "Iv1"}, ["PUBLIC_URL is missing", "GITHUB_CLIENT_SECRET is missing"]),
            (
                {"DISCORD_CLIENT_ID": "1", "DISCORD_CLIENT_SECRET": "s", "PUBLIC_URL": "https://a"},
                ["ENCRYPTION_KEYS is missing"],
            ),
            ({"ENCRYPTION_KEYS": "hello"}, ["ENCRYPTION_KEYS: one is shorter than 16 characters"]),
            ({"PAGE_LOGO": "absent.png"}, ["PAGE_LOGO: there is no file absent.png"]),
            ({"GITHUB_API_URL": "github.example.com"}, ["GITHUB_API_URL: write an address"]),
            ({"PAGE_COLOR": "blue"}, ["PAGE_COLOR: "]),
            ({"GITHUB_APP_ID": "my-app"}, ["GITHUB_APP_ID: "]),
        ],
    )
    def test_what_platforms_and_the_page_need_is_named(
        self, lasting: Path, given: Mapping[str, str], says: list[str]
    ) -> None:
        told = problems_of(EVERYTHING | {f"ALMONER_{name}": value for name, value in given.items()})
        assert len(told) == len(says)
        for one, start in zip(told, says, strict=True):
            assert one.startswith(f"ALMONER_{start}")

    @pytest.mark.parametrize(
        "where",
        [
            {"ALMONER_DATA_DIR": "TEMPORARY/data"},
            {"ALMONER_DATABASE_URL": "sqlite:///TEMPORARY/a.db"},
            {"ALMONER_DATABASE_URL": "sqlite:///TEMPORARY/../temporary/a.db"},
            {"ALMONER_DATA_DIR": "../temporary"},
            {"ALMONER_DATA_DIR": "a-link-to-it"},
        ],
    )
    def test_a_database_in_a_temporary_place_is_refused(self, lasting: Path, where: Mapping[str, str]) -> None:
        temporary = lasting.parent / "temporary"
        (lasting / "a-link-to-it").symlink_to(temporary)
        [told] = problems_of(EVERYTHING | {n: v.replace("TEMPORARY", str(temporary)) for n, v in where.items()})
        assert told.startswith("ALMONER_DATABASE_URL or ALMONER_DATA_DIR: ")
        assert told.endswith(" is in a temporary place; name a lasting one")

    def test_the_default_database_is_refused_where_the_folder_is_temporary(
        self, lasting: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        temporary = lasting.parent / "temporary"
        temporary.mkdir()
        monkeypatch.chdir(temporary)
        [told] = problems_of(EVERYTHING | {"ALMONER_BENEFITS": str(lasting / "benefits.toml")})
        assert f"{temporary / '.almoner' / 'almoner.db'} is in a temporary place" in told

    def test_a_database_that_only_looks_temporary_is_accepted(self, lasting: Path) -> None:
        settings = load(EVERYTHING | {"ALMONER_DATA_DIR": "../temporary/../srv/data"})
        assert settings.environment == "production"

    def test_a_database_server_is_accepted(self, lasting: Path) -> None:
        assert not load(EVERYTHING | {"ALMONER_DATABASE_URL": "postgresql+asyncpg://h/tmp"}).is_sqlite


class TestDevelopment:
    def test_what_is_missing_is_made_once_and_kept_for_its_owner_only(self, tmp_path: Path) -> None:
        first = load_settings({})
        path = development_file(first)
        assert path.resolve() == tmp_path / ".almoner" / "development.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert list(path.parent.iterdir()) == [path]
        [secret] = values(first.webhook_secrets)
        assert secret.startswith("whsec_")
        assert [one.name for one in (*first.api_tokens, *first.ops_tokens)] == ["app", "operator"]
        assert first.link_secret.get_secret_value()
        before = path.read_bytes()
        assert load_settings({}) == first
        assert path.read_bytes() == before

    def test_each_folder_has_its_own(self) -> None:
        one, other = load_settings({"ALMONER_DATA_DIR": "one"}), load_settings({"ALMONER_DATA_DIR": "other"})
        for name in ("webhook_secrets", "api_tokens", "ops_tokens", "signing_keys", "link_secret"):
            assert getattr(one, name) != getattr(other, name)

    def test_what_is_set_stays_and_only_the_rest_is_made(self) -> None:
        settings = load_settings({"ALMONER_WEBHOOK_SECRETS": "my-own-secret", "ALMONER_PORT": "9000"})
        assert values(settings.webhook_secrets) == ["my-own-secret"]
        assert settings.port == 9000
        assert settings.ops_tokens
        assert "my-own-secret" not in development_file(settings).read_text()

    def test_nothing_is_written_where_nothing_shall_be_made(self, tmp_path: Path) -> None:
        assert load_settings({}, generate=False).webhook_secrets == ()
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_written_where_something_is_wrong(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError):
            load_settings({"ALMONER_PROT": "1"})
        assert list(tmp_path.iterdir()) == []

    def test_processes_that_start_together_agree(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: load_settings({}), range(8)))
        assert made == [made[0]] * 8
        assert [one.name for one in Path(".almoner").iterdir()] == ["development.json"]

    @pytest.mark.parametrize("text", ["", "{", "[]x", "3", '["a"]', '{"unknown": 1}', '{"ops_tokens": "operator:"}'])
    def test_a_kept_file_that_was_damaged_is_named_with_the_way_out(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / ".almoner" / "development.json"
        path.parent.mkdir()
        path.write_text(text)
        with pytest.raises(SettingsError) as caught:
            load_settings({})
        assert caught.value.problems == [
            ".almoner/development.json is not as Almoner wrote it; remove it, and new secrets are made"
        ]
        assert path.read_text() == text

    def test_a_data_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(
            SettingsError, match=r"ALMONER_DATA_DIR: file/data/development\.json cannot be .*: Not a dir"
        ):
            load_settings({"ALMONER_DATA_DIR": "file/data"})

    def test_what_was_made_can_be_read_by_the_names_of_the_settings(self) -> None:
        settings = load_settings({})
        kept = json.loads(development_file(settings).read_text())
        names = {"webhook_secrets", "api_tokens", "ops_tokens", "signing_keys", "link_secret", "encryption_keys"}
        assert set(kept) == names

    def test_what_an_older_version_did_not_make_is_made_now_and_kept(self) -> None:
        settings = load_settings({})
        path = development_file(settings)
        kept = json.loads(path.read_text())
        del kept["encryption_keys"]
        path.write_text(json.dumps(kept))
        newer = load_settings({})
        assert newer.encryption_keys
        assert newer.webhook_secrets == settings.webhook_secrets
        assert load_settings({}) == newer
