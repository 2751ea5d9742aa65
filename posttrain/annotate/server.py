"""The page and its requests. The page gets completions by their place, and never their index in the data."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from posttrain.annotate import results
from posttrain.annotate.candidates import as_text, messages
from posttrain.annotate.render import to_html
from posttrain.annotate.security import LocalOnly
from posttrain.annotate.session import Session, View

PAGE = Path(__file__).parent / "page"
NAME = re.compile(r"[\w.@-]{1,40}")
BODY = 64 << 10
REASON = 2000


class BadRequest(Exception):
    """An invalid request; the page shows the message."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def app(session: Session, host: str, port: int, token: str | None) -> Starlette:
    async def index(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def asset(request: Request) -> Response:
        return FileResponse(PAGE / request.url.path.rpartition("/")[2])

    async def state(request: Request) -> Response:
        return _state(session, _annotator(request.query_params.get("annotator")))

    async def answer(request: Request) -> Response:
        body = await _json(request)
        name = _annotator(body.get("annotator"))
        reason = str(body.get("reason") or "")[:REASON].encode("utf-8", "replace").decode()
        choice, ticket = body.get("choice"), str(body.get("ticket"))
        if isinstance(choice, bool) or not isinstance(choice, (int, str)):
            raise BadRequest("choice: expected a place, tie or skip")
        try:
            kept = session.answer(name, ticket, choice, reason, body.get("flag") is True)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return _state(session, name, kept=kept)

    async def undo(request: Request) -> Response:
        body = await _json(request)
        name = _annotator(body.get("annotator"))
        return _state(session, name, kept=session.undo(name, str(body.get("ticket"))))

    async def agreement(request: Request) -> Response:
        return HTMLResponse(results.page(session))

    async def refused(request: Request, error: Any) -> Response:
        return JSONResponse({"error": str(error)}, error.status)

    async def unkept(request: Request, error: Any) -> Response:
        return JSONResponse({"error": f"Not saved: {error.strerror or error}. Nothing was counted."}, 507)

    routes = [
        Route("/", index),
        *(Route(f"/{name}", asset) for name in ("app.js", "style.css", "icon.svg")),
        Route("/results", agreement),
        Route("/api/state", state),
        Route("/api/answer", answer, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(LocalOnly, host=host, port=port, token=token)],
        exception_handlers={BadRequest: refused, OSError: unkept},
    )


def _annotator(name: Any) -> str:
    """An annotator's id in its stored form; Ann and ann are the same person."""
    plain = unicodedata.normalize("NFKC", name).strip().lower() if isinstance(name, str) else ""
    if not NAME.fullmatch(plain):
        raise BadRequest("A name has 1 to 40 letters, digits, and . _ @ -")
    return plain


async def _json(request: Request) -> dict[str, Any]:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY:
            raise BadRequest("too long", 413)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise BadRequest("expected a JSON object")
    return body


def _state(session: Session, annotator: str, kept: bool = True) -> Response:
    try:
        view = session.view(annotator)
    except OSError as error:
        message = f"The next item cannot be stored: {error.strerror or error}. What was answered before it is kept."
        raise BadRequest(message, 507) from error
    shown = {"guidelines": to_html(session.guidelines), **_shown(view)}
    return JSONResponse({"annotator": annotator, "kept": kept, **shown})


def _shown(view: View) -> dict[str, Any]:
    state: dict[str, Any] = {"ticket": view.ticket, "last": view.last, "answered": view.answered, "left": view.left}
    if view.item is not None:
        state["prompt"] = [{"role": role, **_text(text)} for role, text in messages(view.item.prompt)]
        state["sides"] = [_text(as_text(view.item.completions[index])) for index in view.order]
    if view.before:
        state["reason"], state["flag"] = view.before["reason"], view.before["flag"]
    return state


def _text(text: str) -> dict[str, str]:
    return {"html": to_html(text), "text": text}
