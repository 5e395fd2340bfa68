"""The routes of the log API, and their description as OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from http import HTTPStatus
from importlib import resources
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, model_validator

from s5jtd import __version__, protocol, shapes
from s5jtd.api import metrics
from s5jtd.api.desk import Desk
from s5jtd.api.refusal import Refusal, broken, not_allowed, not_found
from s5jtd.api.schema import describe

#: What a browser gets before anybody has typed a token; it holds no data.
PAGE = {
    "/ui": ("ui.html", "text/html"),
    "/ui.js": ("ui.js", "text/javascript"),
    "/ui.css": ("ui.css", "text/css"),
}
#: Paths that need no token.
PUBLIC = frozenset({"/healthz", *PAGE})

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
_TITLE = "s5jtd log API"
_ABOUT = (
    "What s5jtd moved, and how it is.  It only reads.  Every request shows the bearer token.  Lists come in"
    " pages: `next` is the path of the one that follows, or null.  Times are RFC 3339 in UTC, units stand"
    " last in a name, unknown is null; answers may gain members."
)

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "hint"],
            "properties": {name: {"type": "string"} for name in ("code", "message", "hint")},
        }
    },
}

#: Seconds since 1970; the largest integer that every JSON reader holds exactly.
Epoch = Annotated[int, Field(ge=0, le=2**53 - 1)]
Limit = Annotated[int, Field(ge=1, le=1000, description="At most so many in one page.")]
Job = Annotated[str | None, Field(min_length=1, max_length=255, description="Of this job only.")]


class _Asked(BaseModel):
    """Parameters after the `?`; one that nobody knows is a mistake and not a wish to be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Nothing(_Asked):
    pass


class _Logs(_Asked):
    start: Epoch = 0
    end: Annotated[Epoch | None, Field(description="This second is still in; absent: until now.")] = None
    job: Job = None
    limit: Limit = 100

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end is not None and self.end < self.start:
            raise ValueError("end lies before start")
        return self


class _Log(_Asked):
    objects: Annotated[bool, Field(description="With what was moved, one page of it.")] = False
    limit: Limit = 1000
    after: Annotated[str | None, Field(max_length=8192, description="Comes with `next`.")] = None


class _Latest(_Asked):
    objects: Annotated[bool, Field(description="With what was moved, one page of it.")] = False
    limit: Limit = 1000
    job: Job = None


class _Api(FastAPI):
    """With the daemon's own types in its description."""

    schemas: dict[str, Any]

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document.setdefault("components", {}).setdefault("schemas", {}).update(self.schemas)
        return document


class _Handlers:
    """What answers; plain functions, each call on a thread of its own."""

    def __init__(self, desk: Desk, certificate_ends: datetime) -> None:
        self._desk = desk
        self._certificate_ends = certificate_ends

    def logs(self, asked: Annotated[_Logs, Query()]) -> Response:
        found = self._desk.reports(**asked.model_dump())
        more = None
        if len(found) == asked.limit and (end := found[-1]["id"] - 1) >= asked.start:
            query = asked.model_copy(update={"end": end}).model_dump(exclude_none=True)
            more = f"/logs?{urlencode(query)}"
        return _json({"reports": found, "next": more})

    def log(self, epoch: Annotated[Epoch, Path()], asked: Annotated[_Log, Query()]) -> Response:
        if not asked.objects:
            return _json({"id": epoch, **self._desk.report(epoch)})
        found = self._desk.report(epoch, objects=True, limit=asked.limit, after=asked.after)
        more = None
        if cursor := found.get("next"):
            more = f"/log/{epoch}?{urlencode({'objects': 'true', 'limit': asked.limit, 'after': cursor})}"
        return _json({"id": epoch, **found, "next": more})

    def latest(self, asked: Annotated[_Latest, Query()]) -> Response:
        newest = self._desk.reports(job=asked.job, limit=1)
        if not newest:
            raise Refusal(404, "not_found", "There is no report yet", "one is written when a pass ends")
        # By its epoch, so that a page that follows is one of the same report.
        return self.log(newest[0]["id"], _Log(objects=asked.objects, limit=asked.limit))

    def status(self, _: Annotated[_Nothing, Query()]) -> Response:
        return _json(self._desk.status())

    def metrics(self, _: Annotated[_Nothing, Query()]) -> Response:
        try:
            status = self._desk.status()
        except Refusal:
            status = None  # which is a measurement too
        return Response(metrics.render(status, self._certificate_ends), media_type=metrics.CONTENT_TYPE)

    def health(self) -> Response:
        if refusal := self._desk.health():
            raise refusal
        return _json({"status": "ok"})


_MAY_MISS = (404, 422, 503)


class _Route(NamedTuple):
    path: str
    answer: Callable[..., Response]
    does: str
    kind: Any  #: what it answers with: a type of `protocol`, or None for what has none
    refuses: tuple[int, ...] = (422, 503)


def build(desk: Desk, certificate_ends: datetime) -> FastAPI:
    """Everything behind the guard."""
    app = _Api(
        title=_TITLE,
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.schemas = {"Error": _ERROR}
    for what in (Refusal, RequestValidationError, 404, 405, Exception):
        app.add_exception_handler(what, _refused)
    handlers = _Handlers(desk, certificate_ends)
    one, several = shapes.Report, shapes.ReportList
    moved = "objects=true: with what it moved."
    routes = [
        _Route("/logs", handlers.logs, "The reports between two epochs, newest first.", several, _MAY_MISS),
        _Route("/log/latest", handlers.latest, f"The newest report; {moved}", one, _MAY_MISS),
        _Route("/log/{epoch}", handlers.log, f"One report; {moved}", one, _MAY_MISS),
        _Route("/status", handlers.status, "Jobs, volumes, endpoints and problems now.", shapes.Status),
        _Route("/metrics", handlers.metrics, "The same for Prometheus.", None, (422,)),
        _Route("/healthz", handlers.health, "Whether the API and the daemon answer.", None, (503,)),
    ]  # fmt: skip
    routes.insert(0, _Route("/", _index(routes), "What there is.", None, ()))
    for route in routes:
        _add(app, route)
    for path, (name, media) in PAGE.items():
        app.add_api_route(path, _page(name, media), include_in_schema=False)
    return app


def _add(app: _Api, route: _Route) -> None:
    needs_token = route.path not in PUBLIC
    media = "text/plain" if route.path == "/metrics" else "application/json"
    schema: dict[str, Any] = {"type": "string"} if route.path == "/metrics" else {"type": "object"}
    if route.kind is not None:
        schema = describe(route.kind, app.schemas)
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "Here.", "content": {media: {"schema": schema}}}
    }
    for status in (400, *((401,) if needs_token else ()), 413, 429, *route.refuses):
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        answers[status] = {"description": HTTPStatus(status).phrase, "content": content}
    app.add_api_route(
        route.path,
        route.answer,
        summary=route.does,
        responses=answers,
        response_class=Response,
        response_model=None,
        # For the description only; what keeps people out is the guard.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if needs_token else [],
    )


def _index(routes: list[_Route]) -> Callable[[], Response]:
    def index() -> Response:
        known = [(route.path, route.does) for route in routes]
        known += [
            ("/ui", "The status as a page for browsers."),
            ("/openapi.json", "All of this for programs."),
        ]
        rows = [{"path": path, "does": does, "token": path not in PUBLIC} for path, does in known]
        return _json({"name": _TITLE, "version": __version__, "routes": rows})

    return index


def _page(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = resources.files(__package__).joinpath(name).read_bytes()

    async def page() -> Response:  # not on a thread: those may all be waiting for the daemon
        return Response(content, media_type=kind, headers={"content-security-policy": _PAGE_POLICY})

    return page


def _json(answer: dict[str, Any]) -> Response:
    # ASCII, as on the socket: a key stays harmless wherever it is printed.
    return Response(protocol.encode(answer), media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", None)  # of what the router says
    if isinstance(error, Refusal):
        refusal = error
    elif isinstance(error, RequestValidationError):
        refusal = _unusable(error)
    else:
        refusal = not_found() if status == 404 else not_allowed() if status == 405 else broken()
    return Response(refusal.body(), refusal.status, refusal.headers, "application/json")


def _unusable(error: RequestValidationError) -> Refusal:
    """What is wrong with the parameters, without repeating any value."""
    said = []
    for item in error.errors()[:3]:
        name = ascii(str(item["loc"][-1])[:60]) if len(item["loc"]) > 1 else ""
        unknown = item["type"] == "extra_forbidden"
        words = "there is no such parameter" if unknown else item["msg"].removeprefix("Value error, ")
        said.append(f"{name}: {words}" if name else words)
    return Refusal(422, "invalid_parameters", "; ".join(said), "GET /openapi.json describes the parameters")
