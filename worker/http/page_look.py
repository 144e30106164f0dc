"""How the customers' page looks: templates, the merchant's name, colour and logo, and the headers of every answer."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Request, Response
from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Send

from config.settings import Settings
from worker.http.errors import ApiError
from worker.http.oauth import TITLES, platforms_of
from worker.http.page_session import PageTokens

log = structlog.get_logger()

PREFIX = "/me"
_FOLDER = Path(__file__).parent / "pages"
_TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".svg": "image/svg+xml",
}  # fmt: skip
_LIGHT, _DARK = "#ffffff", "#191b21"
"""The colours of the cards, on which the merchant's colour must be readable."""
_READABLE = 4.5
_NOT_OURS = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""For an image that could hold scripts, opened by itself."""

_SAYS = {
    403: ("This page is closed", "Your visit has ended. Open the page again from where you came."),
    404: ("Nothing is here", "The address is not one of ours."),
    405: ("That did not work", "Go back to your page, and try it from there."),
    413: ("That did not work", "What was sent is too large."),
    503: ("One moment, please", "We cannot look it up right now. Try again in a few seconds."),
}
_ELSE = ("That did not work", "It is our fault, and we have been told. Try again a little later.")


class PageProblem(ApiError):
    """What went wrong, for the person who looks at the page: a title, and what to do."""

    def __init__(self, status_code: int, title: str, text: str) -> None:
        super().__init__(status_code, text)
        self.title = title


@dataclass(frozen=True)
class Logo:
    """The merchant's logo."""

    data: bytes
    media_type: str


class Look:
    """Renders pages in the merchant's colours."""

    def __init__(self, settings: Settings) -> None:
        self._root = PageTokens(settings).root
        self.logo = _read_logo(settings.page_logo)
        self.style = _colours(settings.page_color) + (_FOLDER / "style.css").read_text(encoding="utf-8")
        self.script = (_FOLDER / "page.js").read_text(encoding="utf-8")
        self.icon = _icon(settings.page_color)
        self.headers = _headers(settings)
        self._templates = Environment(
            loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters |= {"day": _day, "size": _size, "title_of": lambda name: TITLES.get(name, name)}
        self._templates.globals |= {"root": self._root, "shop": settings.page_name, "has_logo": self.logo is not None}

    def page(self, template: str, *, status_code: int = 200, **values: Any) -> Response[str]:  # noqa: ANN401 - shown
        """Return a whole page."""
        text = self._templates.get_template(template).render(values)
        return Response(text, status_code=status_code, media_type="text/html")

    def problem(self, status_code: int, title: str, text: str) -> Response[str]:
        """Return a page that says what went wrong."""
        return self.page("problem.html", status_code=status_code, title=title, text=text)

    def for_people(self, answer: Callable[[Any, Any], Response[Any]]) -> Callable[[Any, Any], Response[Any]]:
        """Have errors of the page answered by a page; all others as `answer` does."""

        def on_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
            answered = answer(request, error)
            if not is_page(request.scope["path"]):
                return answered
            title, text = _SAYS.get(answered.status_code or 500, _ELSE)
            if isinstance(error, PageProblem):
                title, text = error.title, str(error.detail)
            return self.problem(answered.status_code or 500, title, text)

        return on_error

    def guarded(self, send: Send) -> Send:
        """Add the headers that every answer of the page has, errors too."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                headers = MutableScopeHeaders(cast("Any", message))
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        return send_guarded

    def logo_answer(self) -> Response[bytes]:
        """Return the logo. Raises PageProblem (404)."""
        if self.logo is None:
            raise PageProblem(404, *_SAYS[404])
        headers = {"content-security-policy": _NOT_OURS}
        return Response(self.logo.data, media_type=self.logo.media_type, headers=headers)

    def icon_answer(self) -> Response[str]:
        """Return the icon of the browser's tab, where there is no logo."""
        return Response(self.icon, media_type="image/svg+xml", headers={"content-security-policy": _NOT_OURS})


def is_page(path: str) -> bool:
    """Whether a path is one of the customers' page."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def _headers(settings: Settings) -> dict[str, str]:
    # Browsers hold form-action against where a form is redirected, too.
    places = " ".join(["'self'", *sorted({one.origin for one in platforms_of(settings).values()})])
    return {
        "content-security-policy": (
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
            f"form-action {places}; base-uri 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
        "cross-origin-opener-policy": "same-origin",
    }


def _read_logo(path: Path | None) -> Logo | None:
    if path is None:
        return None
    media_type = _TYPES.get(path.suffix.lower())
    if media_type is None:
        log.warning("the page has no logo: it must be a png, jpg, webp or svg file", file=path.name)
        return None
    try:
        return Logo(path.read_bytes(), media_type)
    except OSError as error:
        log.warning("the page has no logo: its file cannot be read", file=path.name, reason=error.strerror)
        return None


# Colours: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio


def _colours(colour: str) -> str:
    on = max(("#ffffff", "#000000"), key=lambda text: contrast(colour, text))
    light, dark = (readable(colour, surface) for surface in (_LIGHT, _DARK))
    return (
        f":root{{--accent:{colour};--on-accent:{on};--accent-text:{light}}}\n"
        f"@media (prefers-color-scheme: dark){{:root{{--accent-text:{dark}}}}}\n"
    )


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def readable(colour: str, surface: str) -> str:
    """Return the colour, as little nearer to black or white as makes it readable on the surface."""
    toward = "#000000" if _luminance(surface) > 0.5 else "#ffffff"
    for step in range(21):
        mixed = _mix(colour, toward, step / 20)
        if contrast(mixed, surface) >= _READABLE:
            return mixed
    return toward  # pragma: no cover - black and white are readable


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    red, green, blue = (
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in _parts(colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _mix(colour: str, toward: str, share: float) -> str:
    pairs = zip(_parts(colour), _parts(toward), strict=True)
    return "#" + "".join(f"{round(mine + (theirs - mine) * share):02x}" for mine, theirs in pairs)


def _icon(colour: str) -> str:
    tick = "M9.5 16.5l4.4 4.4 8.6-9.4"
    on = max(("#ffffff", "#000000"), key=lambda text: contrast(colour, text))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="9" '
        f'fill="{colour}"/><path d="{tick}" fill="none" stroke="{on}" stroke-width="3" stroke-linecap="round" '
        f'stroke-linejoin="round"/></svg>'
    )


def _day(at: datetime | str | None) -> str:
    if not at:
        return ""
    time = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{time.day} {time:%B %Y}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
