"""Everything that can be set, read once from `ALMONER_` environment variables."""

import base64
import contextlib
import difflib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from config.durations import Duration

PREFIX = "ALMONER_"
_SHORTEST = 16


class SettingsError(Exception):
    """The settings are wrong or incomplete; `problems` has one sentence each, ready to print."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Token(BaseModel):
    """A bearer token and the name under which logs and the audit may speak of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: SecretStr


def _split(text: object) -> object:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _tokens(text: object) -> object:
    parts = _split(text)
    if not isinstance(parts, tuple) or not all(isinstance(part, str) for part in parts):
        return parts
    tokens = []
    for number, part in enumerate(parts, start=1):
        name, _, value = part.rpartition(":")
        if not value:  # `name:$UNSET` in a shell: everybody knows the empty token
            raise ValueError(f"entry {number} has a name, but no token after it")
        tokens.append({"name": name or f"token-{number}", "value": value})
    return tuple(tokens)


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
Tokens = Annotated[tuple[Token, ...], NoDecode, BeforeValidator(_tokens)]


class Settings(BaseSettings):
    """One field a variable: `port` is read from `ALMONER_PORT`. Durations are written `30s`, `3d`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    environment: Literal["development", "production"] = Field(
        "development", description="`production` refuses to start without secrets, tokens and a lasting database"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8787, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    data_dir: Path = Field(Path(".almoner"), description="folder of the database, the embedded queue and local files")
    database_url: str = Field(
        "", description="empty: SQLite in the data folder; or `sqlite:///path`, `postgresql+asyncpg://...`"
    )
    redis_url: str = Field("", description="empty: an embedded server in the data folder; or `redis://...`")
    webhook_secrets: Secrets = Field((), description="Polar's webhook secrets, comma-separated; all are accepted")
    api_tokens: Tokens = Field(
        (), description="bearer tokens of apps, which ask, set accounts and open pages; each `token` or `name:token`"
    )
    ops_tokens: Tokens = Field((), description="bearer tokens of operators, each `token` or `name:token`")
    key_readers: Names = Field(
        (), description="names of app tokens that may read whole license keys; every app may open a customer's page"
    )
    signing_keys: Secrets = Field(
        (), description="keys that sign download links and the customers' page; the first signs, all verify"
    )
    link_secret: SecretStr = Field(
        SecretStr(""), description="signs links of `custom_link` benefits with `sign = true`; share it with your page"
    )
    benefits: Path = Field(Path("benefits.toml"), description="the benefits file (the catalogue)")
    public_url: str = Field("", description="how customers reach the sidecar; used in download links")
    polar_organization_id: str = Field("", description="your organization's id at Polar")
    polar_access_token: SecretStr = Field(
        SecretStr(""),
        description="an organization access token of Polar, with `license_keys:read`: keys that Polar issued are read",
    )
    polar_base_url: str = Field(
        "https://api.polar.sh", description="where Polar's API is; its sandbox is `https://sandbox-api.polar.sh`"
    )
    polar_lookup: bool = Field(
        False,  # noqa: FBT003 - the default
        description="look up license keys that are unknown here at Polar, once; it then needs `license_keys:write`",
    )
    license_calls_per_address: int = Field(
        300, ge=0, description="calls a minute without a token about license keys, from one address; 0 is no limit"
    )
    license_calls_per_key: int = Field(
        120, ge=0, description="calls a minute with one license key, by whomever; 0 is no limit"
    )
    trusted_proxies: Names = Field(
        (), description="addresses or networks of your proxies, whose `X-Forwarded-For` says who calls"
    )
    s3_endpoint_url: str = Field(
        "", description="an S3-compatible endpoint; credentials and region as every AWS tool reads them"
    )
    github_app_id: str = Field("", pattern="^[0-9]*$", description="the GitHub App that gives repositories")
    github_private_key: SecretStr = Field(
        SecretStr(""), description="its private key: the PEM text itself, or the path of the file"
    )
    github_token: SecretStr = Field(SecretStr(""), description="instead of an App: a token that manages collaborators")
    github_api_url: str = Field("https://api.github.com", description="GitHub Enterprise: `https://host/api/v3`")
    github_client_id: str = Field("", description="of the App: lets customers link their GitHub account by themselves")
    github_client_secret: SecretStr = Field(SecretStr(""), description="goes with the client id")
    github_fields: Names = Field(
        (), description="customer metadata or checkout custom fields that hold a GitHub login, by name"
    )
    discord_bot_token: SecretStr = Field(SecretStr(""), description="the bot that gives roles")
    discord_api_url: str = Field("https://discord.com/api/v10", description="where Discord is")
    discord_client_id: str = Field("", description="of its application: lets customers link their Discord account")
    discord_client_secret: SecretStr = Field(SecretStr(""), description="goes with the client id")
    discord_fields: Names = Field(
        (), description="customer metadata or checkout custom fields that hold a Discord user id or name, by name"
    )
    encryption_keys: Secrets = Field(
        (),
        description="keys that encrypt customers' tokens, unshown license keys and signing keys at rest; "
        "the first encrypts, all decrypt",
    )
    page_name: str = Field("", max_length=60, description="your name on the customers' page")
    page_color: str = Field(
        "#4f46e5", pattern="^#[0-9a-fA-F]{6}$", description="the colour of its buttons, like `#4f46e5`"
    )
    page_logo: Path | None = Field(None, description="an image file: png, jpg, webp or svg")
    page_link_ttl: Duration = Field(
        timedelta(minutes=15), gt=timedelta(), description="how long a link to the page can be opened"
    )
    page_session_ttl: Duration = Field(
        timedelta(hours=1), gt=timedelta(), description="how long the page, or an end user's token, is good"
    )
    audit_every: Duration = Field(
        timedelta(days=1), description="how often a worker compares platforms with grants; `0s` never"
    )
    audit_repairs: Literal["nothing", "missing", "all"] = Field(
        "missing", description="what that run mends: what is missing is given again; `all` also takes back what is left"
    )
    log_format: Literal["console", "json"] = Field("console", description="how log lines are written")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    max_body_bytes: int = Field(10 * 1024 * 1024, ge=1024, description="largest webhook body that is accepted")
    tolerance: Duration = Field(
        timedelta(seconds=300), description="how far a webhook's timestamp may be from our clock, either way"
    )
    grace: Duration = Field(timedelta(), description="grace of benefits that name none")
    download_ttl: Duration = Field(timedelta(hours=1), description="how long a download link lasts")
    max_attempts: int = Field(12, ge=1, description="tries of a delivery or grant before it is dead")
    retry_base: Duration = Field(timedelta(seconds=2), description="wait after the first failed try; doubles each time")
    retry_cap: Duration = Field(timedelta(hours=1), description="longest wait between tries")
    recheck_every: Duration = Field(
        timedelta(minutes=10), description="how often to look again where a customer or the merchant must act"
    )
    call_timeout: Duration = Field(timedelta(seconds=10), description="longest call to a platform")
    sweep_every: Duration = Field(
        timedelta(seconds=1), gt=timedelta(), description="how often the sweep looks for what was left behind"
    )
    sweep_after: Duration = Field(timedelta(seconds=3), description="age at which waiting work counts as left behind")
    worker_slots: int = Field(50, ge=1, description="jobs that one worker runs at once")
    connector_calls: int = Field(32, ge=1, description="calls to one platform that one worker makes at once")
    max_revoke_share: float = Field(
        0.2, ge=0, le=1, description="a changed benefits file that revokes more than this share of grants is held"
    )
    retain_refusals: int = Field(500, ge=0, description="refused requests that are kept for the operator to read")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's own signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read no `.env` file and no secrets folder: the environment is the one place."""
        return init_settings, env_settings

    @field_validator("database_url")
    @classmethod
    def _database_address(cls, url: str) -> str:
        is_file = url.startswith("sqlite:///") and url.removeprefix("sqlite:///") not in {"", ":memory:"}
        if url and not is_file and not url.startswith("postgresql+asyncpg://"):
            raise ValueError("write sqlite:///path or postgresql+asyncpg://user:password@host/name")
        return url

    @field_validator("redis_url")
    @classmethod
    def _redis_address(cls, url: str) -> str:
        if url and urlsplit(url).scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("write redis://host:6379/0, rediss://... or unix:///path")
        return url

    @field_validator("polar_access_token")
    @classmethod
    def _header_value(cls, token: SecretStr) -> SecretStr:
        value = token.get_secret_value().strip()
        if not re.fullmatch("[!-~]*", value):
            raise ValueError("it has characters that no token has: copy it again")
        return SecretStr(value)

    @field_validator("polar_organization_id")
    @classmethod
    def _organization(cls, written: str) -> str:
        try:
            return str(UUID(written)) if written else ""
        except ValueError:
            raise ValueError("write your organization's id, like 5a4e9d3c-...; Polar's settings show it") from None

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, written: tuple[str, ...]) -> tuple[str, ...]:
        for one in written:
            try:
                ip_network(one)
            except ValueError:
                raise ValueError(f"{one!r} is no address and no network like 10.0.0.0/8") from None
        return written

    @field_validator("github_api_url", "discord_api_url", "polar_base_url")
    @classmethod
    def _platform_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("write an address like https://host/api")
        return url.rstrip("/")

    @property
    def database(self) -> str:
        """The database address in use: the setting, or SQLite in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir / 'almoner.db'}"

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite."""
        return self.database.startswith("sqlite")

    @property
    def base_url(self) -> str:
        """How customers reach the sidecar, without a slash at the end."""
        return (self.public_url or self.local_url).rstrip("/")

    @property
    def local_url(self) -> str:
        """How this machine reaches the sidecar."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def load_settings(environ: Mapping[str, str] | None = None, *, generate: bool = True, **overrides: Any) -> Settings:  # noqa: ANN401 - values of any field
    """Read the settings, and in development fill in what can be generated.

    `generate=False` writes nothing: what is missing stays missing. Raises SettingsError with every problem at once.
    """
    environ = os.environ if environ is None else environ
    problems = _unknown(environ)
    try:
        settings = Settings(**(_from_environment(environ) | overrides))
    except ValidationError as error:
        raise SettingsError(problems + [_sentence(found) for found in error.errors()]) from None
    if settings.environment == "production":
        problems += missing_in_production(settings)
    if problems:
        raise SettingsError(problems)
    return _with_generated(settings) if settings.environment == "development" and generate else settings


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {key.upper(): value for key, value in environ.items()}
    return {name: values[PREFIX + name.upper()] for name in Settings.model_fields if values.get(PREFIX + name.upper())}


def _unknown(environ: Mapping[str, str]) -> list[str]:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    problems = []
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{name} is not a setting of Almoner{hint}")
    return problems


def _sentence(found: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    """One problem in words; the value is left out, for it may be a secret."""
    name = PREFIX + str(found["loc"][0]).upper() if found["loc"] else "the settings"
    return f"{name}: {found['msg'].removeprefix('Value error, ')}"


def missing_in_production(settings: Settings) -> list[str]:
    """List, in words, what production needs and the settings lack; empty when nothing is missing."""
    needed = {
        "webhook_secrets": "the secret that Polar shows for your webhook endpoint",
        "api_tokens": "a token for your app, e.g. from `openssl rand -hex 32`",
        "ops_tokens": "a token for operators, e.g. from `openssl rand -hex 32`",
        "signing_keys": "a key that signs download links, e.g. from `openssl rand -hex 32`",
    }
    problems = [
        f"{PREFIX}{name.upper()} is missing: {what}" for name, what in needed.items() if not getattr(settings, name)
    ]
    for name in ("api_tokens", "ops_tokens"):
        problems += [
            f"{PREFIX}{name.upper()}: the token {token.name} is shorter than {_SHORTEST} characters: it can be guessed"
            for token in getattr(settings, name)
            if len(token.value.get_secret_value()) < _SHORTEST
        ]
    for name in ("webhook_secrets", "signing_keys", "encryption_keys"):
        if any(len(secret.get_secret_value()) < _SHORTEST for secret in getattr(settings, name)):
            problems.append(f"{PREFIX}{name.upper()}: one is shorter than {_SHORTEST} characters: it can be guessed")
    if settings.discord_client_id and not settings.encryption_keys:
        problems.append(
            f"{PREFIX}ENCRYPTION_KEYS is missing: it encrypts the tokens with which customers let the bot add them; "
            "e.g. from `openssl rand -hex 32`"
        )
    if (settings.github_client_id or settings.discord_client_id) and not settings.public_url:
        problems.append(f"{PREFIX}PUBLIC_URL is missing: platforms send customers back there who link their account")
    problems += [
        f"{PREFIX}{name}_CLIENT_SECRET is missing: it goes with {PREFIX}{name}_CLIENT_ID"
        for name in ("GITHUB", "DISCORD")
        if getattr(settings, f"{name.lower()}_client_id")
        and not getattr(settings, f"{name.lower()}_client_secret").get_secret_value()
    ]
    problems += _missing_for_lookup(settings)
    if settings.page_logo and not settings.page_logo.is_file():
        problems.append(f"{PREFIX}PAGE_LOGO: there is no file {settings.page_logo}")
    known = {token.name for token in settings.api_tokens}
    problems += [
        f"{PREFIX}KEY_READERS: {PREFIX}API_TOKENS has no token named {name}"
        for name in settings.key_readers
        if name not in known
    ]
    if settings.is_sqlite:
        path = Path(settings.database.split("///", 1)[-1]).resolve()
        if path.is_relative_to(Path(tempfile.gettempdir()).resolve()):
            problems.append(
                f"{PREFIX}DATABASE_URL or {PREFIX}DATA_DIR: {path} is in a temporary place; name a lasting one"
            )
    if not settings.benefits.is_file():
        problems.append(f"{PREFIX}BENEFITS: there is no file {settings.benefits}")
    return problems


def _missing_for_lookup(settings: Settings) -> list[str]:
    if settings.polar_lookup and not settings.polar_access_token.get_secret_value():
        return [f"{PREFIX}POLAR_ACCESS_TOKEN is missing: {PREFIX}POLAR_LOOKUP asks Polar with it"]
    return []


def development_file(settings: Settings) -> Path:
    """Where development keeps the secrets that it generated."""
    return settings.data_dir / "development.json"


def _with_generated(settings: Settings) -> Settings:
    """Fill what development leaves out with values made once and kept in the data folder for its owner only."""
    path = development_file(settings)
    try:
        if not path.exists():
            _generate(path)
        text = path.read_text()
    except OSError as error:
        raise SettingsError([f"{PREFIX}DATA_DIR: {path} cannot be written or read: {error.strerror}"]) from None
    try:
        kept = dict(json.loads(text))
        values = _fresh() | kept
        absent = {name: value for name, value in values.items() if name not in settings.model_fields_set}
        complete = Settings(**({name: getattr(settings, name) for name in settings.model_fields_set} | absent))
    except (ValueError, TypeError):
        raise SettingsError([f"{path} is not as Almoner wrote it; remove it, and new secrets are made"]) from None
    if values.keys() != kept.keys():  # an older version wrote it
        path.write_text(json.dumps(values, indent=1))
    return complete


def _fresh() -> dict[str, str]:
    return {
        "webhook_secrets": "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        "api_tokens": f"app:{secrets.token_urlsafe(24)}",
        "ops_tokens": f"operator:{secrets.token_urlsafe(24)}",
        "signing_keys": secrets.token_urlsafe(32),
        "link_secret": secrets.token_urlsafe(32),
        "encryption_keys": secrets.token_urlsafe(32),
    }


def _generate(path: Path) -> None:
    """Write the file whole, or not at all: of processes that start together one wins, and none reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, mine = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(_fresh(), file, indent=1)
        with contextlib.suppress(FileExistsError):
            os.link(mine, path)
    finally:
        Path(mine).unlink()
