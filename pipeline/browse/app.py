"""The routes of `uvd browse`: pages and pictures, GET alone; nothing is written and nothing comes from other hosts.

All text goes through Jinja's escaping. A key in an address is looked up in the dataset before anything else is done
with it, so it never names a file by itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jinja2
import pyarrow as pa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.schema import ManifestError
from uvd.pipeline.browse.catalog import KEY, Catalog, Cursor, Found
from uvd.pipeline.browse.filters import Filter, FilterError
from uvd.pipeline.browse.headers import SafeHeaders
from uvd.pipeline.browse.near import FIRST, MOST, NeighbourSearch, marks
from uvd.pipeline.browse.pictures import Decoded, Encoded, Pictures
from uvd.sequences.errors import UserError

HERE = Path(__file__).parent
STATIC = {"browse.css": "text/css", "browse.js": "text/javascript", "icon.svg": "image/svg+xml"}
EMBEDDED = "uvd-small"
SIZES = (12, 24, 48, 96)
SHOWN = 4
"""Pictures of a sequence on a page of many."""
RANDOM = 12
SEEDS = 1 << 32
_FILTERS = ("source", "layout", "role", "split", "origin")
_KEPT = {"cache-control": "private, max-age=300"}


class Browser:
    """The pages over one dataset."""

    def __init__(self, dataset: Dataset, tokenizer: str | None = None) -> None:
        """
        Args:
            tokenizer: whose tokens are decoded, a name or folder; the embedded one or the first of the dataset if None.
        """
        self.catalog = Catalog(dataset)
        self._dataset, self._pictures = dataset, Pictures(self.catalog)
        self._search = NeighbourSearch(self.catalog)
        self.tokenizer = tokenizer if tokenizer is not None else _tokenizer(dataset)
        self._decoded = None if self.tokenizer is None else Decoded(self.catalog, self._pictures, self.tokenizer)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"path": lambda text: quote(text, safe=""), "thousands": "{:,}".format}
        self._templates.tests["web"] = is_web_address

    def app(self, hosts: list[str]) -> ASGIApp:
        """The application.

        Args:
            hosts: names that it answers to; others are refused, so that no page of another site whose name was made to
                lead here can read it (DNS rebinding).
        """
        pages = {
            "/": self.page,
            "/find": self.find,
            "/random": self.random,
            "/sequence/{key}": self.sequence,
            "/near/{key}/{picture:int}": self.near,
            "/picture/{key}/{picture:int}": self.picture,
            "/decoded/{key}/{picture:int}": self.decoded,
            "/static/{name}": self.static,
        }
        application = Starlette(
            routes=[Route(path, page, methods=["GET"]) for path, page in pages.items()],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
            exception_handlers={
                UserError: self._refused,
                HTTPException: self._refused,
                ManifestError: self._damaged,
                pa.ArrowException: self._damaged,
                OSError: self._damaged,
                Exception: self._failed,
            },
        )
        # Around it, so that the page of a bug has them too.
        return SafeHeaders(application)

    def page(self, request: Request) -> Response:
        """Sequences in order, filtered."""
        wanted, size, at = _filter(request), _size(request), request.query_params.get("at", "")
        page = self.catalog.page(wanted, Cursor.parse(at) if at else None, size)
        counted = self.catalog.count(wanted)
        following = self._address("/", request, at=str(page.next)) if page.next is not None else None
        return self._render(
            "page.html",
            request,
            page=page,
            counted=counted,
            progress=None if page.next is None else self.catalog.progress(page.next),
            following=following,
            cards=self._cards(page.found),
        )

    def random(self, request: Request) -> Response:
        """Sequences drawn evenly; without a seed, the address of some."""
        if "seed" not in request.query_params:
            return RedirectResponse(self._address("/random", request, seed=str(secrets.randbelow(SEEDS))), 303)
        seed, wanted = _whole(request.query_params["seed"], SEEDS - 1, "seed"), _filter(request)
        drawn = self.catalog.draw(wanted, seed, RANDOM)
        return self._render(
            "random.html",
            request,
            drawn=drawn,
            seed=seed,
            another=self._address("/random", request, seed=""),
            cards=self._cards(drawn.found),
        )

    def find(self, request: Request) -> Response:
        """To the sequence of a key, or to those of an origin."""
        words = request.query_params.get("q", "").strip()
        if not words:
            return RedirectResponse("/", 303)
        if KEY.match(words):
            return RedirectResponse(f"/sequence/{quote(words, safe='')}", 303)
        return RedirectResponse(f"/?{urlencode({'origin': words})}", 303)

    def sequence(self, request: Request) -> Response:
        """One sequence with all that is known of it."""
        found = self.catalog.find(request.path_params["key"])
        self._pictures.remember(found)
        keys, row = self.catalog.keys(found.shard), found.place.row
        return self._render(
            "sequence.html",
            request,
            found=found,
            before=keys[row - 1] if row else None,
            after=keys[row + 1] if row + 1 < len(keys) else None,
            context=f"/?{urlencode({'source': found.place.source, 'at': str(found.place)})}",
            marks=marks(self.catalog, found.row["key"]),
        )

    def near(self, request: Request) -> Response:
        """The pictures nearest to one by perceptual hash."""
        most = _whole(request.query_params.get("most", str(FIRST)), MOST, "most")
        found, picture = self.catalog.find(request.path_params["key"]), request.path_params["picture"]
        near = self._search.near(found, picture, most)
        for neighbour in near.nearest:
            self._pictures.remember(neighbour.found)
        more = min(10 * most, MOST) if most < MOST and not near.complete else None
        return self._render("near.html", request, found=found, picture_number=picture, near=near, more=more)

    def picture(self, request: Request) -> Response:
        """A picture as it lies in its shard."""
        return _sent(request, self._pictures.stored)

    def decoded(self, request: Request) -> Response:
        """A picture as the tokens have it."""
        if self._decoded is None:
            raise FilterError("the dataset has no tokens; `uvd tokenize` makes them")
        return _sent(request, self._decoded.pictures)

    def static(self, request: Request) -> Response:
        """Style and keys of the pages."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404)
        return FileResponse(HERE / "static" / name, media_type=STATIC[name])

    def _cards(self, found: list[Found]) -> list[Found]:
        for one in found:
            self._pictures.remember(one)
        return found

    def _decodes(self, found: Found) -> bool:
        """Whether the shard of a sequence is tokenized."""
        if self.tokenizer is None:
            return False
        tokens = Shard(f"tokens/{Path(self.tokenizer).name}/{found.place.source}", found.shard.number)
        return self._dataset.storage.exists(tokens.manifest)

    def _address(self, path: str, request: Request, **more: str) -> str:
        """A path with the filters of this page, and these values in their place or besides."""
        kept = {name: request.query_params.get(name, "") for name in (*_FILTERS, "size", "decoded")}
        return f"{path}?{urlencode({name: value for name, value in (kept | more).items() if value})}"

    def _render(self, name: str, request: Request, code: int = 200, **content: Any) -> HTMLResponse:
        parameters = request.query_params
        html = self._templates.get_template(name).render(
            dataset=shown_address(self._dataset.uri),
            sources=self.catalog.sources,
            values=self.catalog.values(),
            wanted={name: parameters.get(name, "") for name in _FILTERS},
            size=parameters.get("size", ""),
            sizes=SIZES,
            shown=SHOWN,
            tokenizer=None if self.tokenizer is None else Path(self.tokenizer).name,
            with_decoded=self.tokenizer is not None and parameters.get("decoded") == "1",
            random=self._address("/random", request),
            decodes=self._decodes,
            **content,
        )
        return HTMLResponse(html, code)

    def _refused(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return self._error(request, error.status_code, error.detail)
        return self._error(request, 400 if isinstance(error, FilterError) else 404, str(error))

    def _damaged(self, request: Request, error: Exception) -> Response:
        said = f"the dataset cannot be read here: {error}. It may have changed meanwhile; `uvd verify` names damage."
        return self._error(request, 500, said)

    def _failed(self, request: Request, error: Exception) -> Response:
        # Starlette raises it again afterwards, so the terminal has its traceback, and the page none.
        return self._error(request, 500, "a bug of uvd; the terminal says more")

    def _error(self, request: Request, status: int, said: str) -> Response:
        if request.url.path.startswith(("/picture/", "/decoded/")):
            return Response(said, status, media_type="text/plain")
        return self._render("error.html", request, status, status=status, said=said)


def _tokenizer(dataset: Dataset) -> str | None:
    names = sorted({tokenizer for tokenizer, _ in dataset.token_folders()})
    return EMBEDDED if EMBEDDED in names else next(iter(names), None)


def _filter(request: Request) -> Filter:
    return Filter(**{name: request.query_params.get(name, "") for name in _FILTERS})


def _size(request: Request) -> int:
    size = _whole(request.query_params.get("size") or str(SIZES[1]), SIZES[-1], "size")
    return max(1, size)


def _whole(text: str, most: int, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= most):
        raise FilterError(f"{name} {text[:80]!r}: expected a whole number up to {most:,}")
    return int(text)


def _sent(request: Request, pictures: Callable[[str], tuple[Encoded, ...]]) -> Response:
    key, number = request.path_params["key"], request.path_params["picture"]
    made = pictures(key)
    if number >= len(made):
        raise FilterError(f"{key} has no picture {number}")
    data, media_type = made[number]
    return Response(data, media_type=media_type, headers=_KEPT)


def is_web_address(origin: str) -> bool:
    """Whether a page may link to an origin: nothing but http and https, so no script."""
    return origin.startswith(("http://", "https://"))


def shown_address(uri: str) -> str:
    """A dataset's path or URI without what may be secret: user, password, query."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
