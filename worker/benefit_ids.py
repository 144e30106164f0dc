"""Ids of the catalogue's benefits, for Polar's API: there everything has a UUID. Pure."""

from functools import lru_cache
from uuid import UUID, uuid5

from config.catalogue import Benefit, Catalogue

_NAMESPACE = UUID("5f0c2d1e-93a7-5b64-8c1d-2e7f4a6b9d30")


@lru_cache(maxsize=1000)
def own_id(key: str) -> str:
    """Return the id of one of our benefits: it follows from the key, and stays when the file changes."""
    return str(uuid5(_NAMESPACE, key))


def id_in_keys(benefit: Benefit | None, key: str) -> str:
    """Return the benefit id that a license key shows.

    It is that of the one Polar benefit which entitles to it, so that an app need not learn another; else our own.
    """
    return next(iter(benefit.by_benefits)) if benefit and len(benefit.by_benefits) == 1 else own_id(key)


def keys_meant(catalogue: Catalogue, benefit_id: str) -> list[str]:
    """Return the keys of the benefits that an id may mean: our own id, or a Polar benefit that entitles to them."""
    return [
        key
        for key, benefit in catalogue.benefits.items()
        if benefit_id in benefit.by_benefits or benefit_id in {own_id(key), key}
    ]
