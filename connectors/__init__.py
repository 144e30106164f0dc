"""How benefits reach people: one file a connector, one line here. The key is the file's name and the catalogue's."""

from typing import Any

from config.catalogue import ConnectorTerms
from connectors.custom_link import CustomLink
from connectors.discord_role import DiscordRole
from connectors.file_download import FileDownload
from connectors.github_repository import GitHubRepository
from connectors.license_key import LicenseKeyConnector

CONNECTORS: dict[str, type[Any]] = {
    "github_repository": GitHubRepository,
    "discord_role": DiscordRole,
    "license_key": LicenseKeyConnector,
    "file_download": FileDownload,
    "custom_link": CustomLink,
}

TERMS: dict[str, ConnectorTerms] = {
    name: ConnectorTerms(connector.Config, connector.per, connector.platform) for name, connector in CONNECTORS.items()
}
"""What the catalogue needs to know of each."""
