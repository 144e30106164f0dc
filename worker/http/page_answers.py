"""What the customers' page knows of a visitor: all answers, and of their own license keys what only they may have."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from connectors.license_key import Terms
from worker import offline
from worker.http.context import Context
from worker.http.offline import known_of
from worker.http.page_visitor import Visitor
from worker.http.present import At, complete, split

NO_KEYS: Mapping[str, str] = MappingProxyType({})


async def answers_of(context: Context, visitor: Visitor, once: Mapping[str, str] = NO_KEYS) -> list[dict[str, Any]]:
    """Return all answers as of now, with the person's own license keys whole, or what can be done with them.

    `once` are whole keys, by id, that are shown this once.
    """
    ready = await context.ready.entitlements("id", visitor.session.customer_id)
    document = ready.document if ready and ready.document else b"{}"
    at = At(context.now(), context.settings, context.tokens)
    answers = [complete(raw, at, context.connectors) for raw in split(document)[0].values()]
    for answer in answers:
        for gives in (one["gives"] or {} for one in answer["grants"] if visitor.is_theirs(one)):
            if gives.get("license_key_id"):
                await _with_key(context, answer["benefit"], gives)
                if gives["license_key_id"] in once:
                    gives |= {"key": once[gives["license_key_id"]], "once": True}
    return answers


async def owns(context: Context, visitor: Visitor, key_id: str) -> bool:
    """Whether a license key is the visitor's own, now."""
    return any(
        grant["entitled"] and visitor.is_theirs(grant) and (grant["gives"] or {}).get("license_key_id") == key_id
        for answer in await answers_of(context, visitor)
        for grant in answer["grants"]
    )


async def _with_key(context: Context, benefit: str, gives: dict[str, Any]) -> None:
    """Add `key`, where it may be read; `unshown`, where it can be shown once; `offline`, where it has licences."""
    key_id = gives["license_key_id"]
    key = await context.license_keys.whole(key_id)
    if key:
        gives["key"] = key
    else:
        gives["unshown"] = await context.license_keys.is_unshown(key_id)
    known_benefit = context.pipeline.catalogue.benefits.get(benefit)
    if known_benefit and isinstance(known_benefit.config, Terms) and known_benefit.config.offline:
        known = await known_of(context, key_id)
        gives["offline"] = offline.offer(known, context.now()) if known else None
