"""Linking an account: send a customer to the platform, and read who they are there when they come back.

OAuth 2.0 by authorization code with PKCE (S256), which GitHub has taken since July 2025
(https://github.blog/changelog/2025-07-14-pkce-support-for-oauth-and-github-app-authentication) and Discord too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import httpx

from config.settings import Settings
from connectors.base import Account, AccountToken
from worker.http.page_session import Linking

TITLES = {"github": "GitHub", "discord": "Discord"}
"""The platforms at which customers may have accounts, and what people call them."""

_SECONDS = 5.0
_HEADERS = {"accept": "application/json", "user-agent": "Almoner"}


class NotLinked(Exception):
    """The platform did not say who the customer is. The message holds nothing of what was sent or answered."""


@dataclass(frozen=True)
class Platform:
    """Where a platform asks its user, and where it answers us."""

    name: str
    authorize_url: str
    token_url: str
    user_url: str
    client_id: str
    client_secret: str
    asks: Mapping[str, str]
    """What the address of the question has besides OAuth's own parameters."""
    account_name: str
    """The field of its user object that holds the name."""
    keeps_token: bool
    """Whether the token is needed later; else nothing of it is kept."""

    @property
    def origin(self) -> str:
        """Where the customer is sent, as a Content-Security-Policy names it."""
        parts = urlsplit(self.authorize_url)
        return f"{parts.scheme}://{parts.netloc}"

    def question(self, linking: Linking, redirect_uri: str) -> str:
        """Return the address at which the customer is asked."""
        query = {
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "response_type": "code",
            "state": linking.state,
            "code_challenge": linking.challenge,
            "code_challenge_method": "S256",
        }
        return f"{self.authorize_url}?{urlencode(query | dict(self.asks))}"


def platforms_of(settings: Settings) -> dict[str, Platform]:
    """Return the platforms at which customers can link an account by themselves: those that have a client id."""
    return {one.name: one for one in (_github(settings), _discord(settings)) if one.client_id}


def _github(settings: Settings) -> Platform:
    """No scope: it tells the public profile, and allows us nothing."""
    parts = urlsplit(settings.github_api_url)
    # https://api.github.com and https://api.SUBDOMAIN.ghe.com; on a server of one's own https://HOST/api/v3.
    web = urlunsplit((parts.scheme, parts.netloc.removeprefix("api."), parts.path.removesuffix("/api/v3"), "", ""))
    return Platform(
        name="github",
        authorize_url=f"{web}/login/oauth/authorize",
        token_url=f"{web}/login/oauth/access_token",
        user_url=f"{settings.github_api_url}/user",
        client_id=settings.github_client_id,
        client_secret=settings.github_client_secret.get_secret_value(),
        # Without it whoever has agreed before is sent back at once, and can never choose another account.
        asks={"prompt": "select_account"},
        account_name="login",
        keeps_token=False,
    )


def _discord(settings: Settings) -> Platform:
    """Its token lets the bot add the customer to the server (https://docs.discord.com/developers/topics/oauth2)."""
    parts = urlsplit(settings.discord_api_url)
    return Platform(
        name="discord",
        authorize_url=f"{parts.scheme}://{parts.netloc}/oauth2/authorize",
        token_url=f"{settings.discord_api_url}/oauth2/token",
        user_url=f"{settings.discord_api_url}/users/@me",
        client_id=settings.discord_client_id,
        client_secret=settings.discord_client_secret.get_secret_value(),
        asks={"scope": "identify guilds.join", "prompt": "consent"},
        account_name="username",
        keeps_token=True,
    )


async def linked_account(
    platform: Platform,
    code: str,
    linking: Linking,
    redirect_uri: str,
    now: datetime,
    transport: httpx.AsyncBaseTransport | None = None,
) -> tuple[Account, AccountToken | None]:
    """Exchange the code, and return whose it is, with the token where it is needed later. Raises NotLinked."""
    form = {
        "grant_type": "authorization_code",
        "client_id": platform.client_id,
        "client_secret": platform.client_secret,
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": linking.verifier,
    }
    try:
        async with httpx.AsyncClient(timeout=_SECONDS, transport=transport, headers=_HEADERS) as client:
            token = _document(await client.post(platform.token_url, data=form))
            bearer = {"authorization": f"Bearer {token['access_token']}"}
            user = _document(await client.get(platform.user_url, headers=bearer))
    except httpx.HTTPError as error:
        raise NotLinked(f"{platform.name} cannot be reached: {type(error).__name__}") from None
    except (KeyError, ValueError) as error:  # GitHub refuses a code with 200 and a document without a token
        raise NotLinked(f"{platform.name} gave no token or no account: {type(error).__name__}") from None
    account = _account(platform, user)
    return account, _token(token, now) if platform.keeps_token else None


def _document(answer: httpx.Response) -> dict[str, Any]:
    """Return the answer's object. Raises NotLinked, ValueError."""
    if not answer.is_success:
        raise NotLinked(f"{answer.url.host} answered {answer.status_code}")
    document = answer.json()
    if not isinstance(document, dict):
        raise NotLinked(f"{answer.url.host} answered no object")
    return document


def _account(platform: Platform, user: Mapping[str, Any]) -> Account:
    number, name = str(user.get("id", "")), user.get(platform.account_name)
    if not (number.isascii() and number.isdigit()):
        raise NotLinked(f"{platform.name} told no numeric account id")
    return Account(number, name if isinstance(name, str) else None)


def _token(token: Mapping[str, Any], now: datetime) -> AccountToken:
    refresh, lasts = token.get("refresh_token"), token.get("expires_in")
    return AccountToken(
        access_token=str(token["access_token"]),
        refresh_token=refresh if isinstance(refresh, str) else None,
        expires_at=now + timedelta(seconds=lasts) if isinstance(lasts, int | float) else None,
    )
