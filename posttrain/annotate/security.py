"""Access to the page: allowed host names and origins, and a token if other machines can reach the page.

It protects against other sites in the same browser. A Host header that does not name this server is refused (DNS
rebinding), and so are requests from other sites (cross-site requests), except for links to the page.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def loopback(host: str) -> bool:
    """Whether `host` can be reached only from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LocalOnly:
    """ASGI middleware. `host` is the address of the server; `token`, if there is one, is required of everybody."""

    def __init__(self, app: ASGIApp, host: str, port: int, token: str | None):
        self.app = app
        self.wide = not loopback(host)
        self.names = {"localhost", host.lower(), *((socket.gethostname().lower(),) if self.wide else ())}
        self.token = token
        # Cookies are not separated by port, so the name has the port: several servers can run on one machine.
        self.cookie = f"posttrain_annotate_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refuse(Request(scope))
        await (refused or self.app)(scope, receive, hardened)

    def _refuse(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self._own(host):
            return PlainTextResponse("This host name is not the server's own.\n", 421)
        site = request.headers.get("sec-fetch-site", "none")
        visit = request.headers.get("sec-fetch-mode") == "navigate" and not request.url.path.startswith("/api/")
        if site not in ("same-origin", "none") and not visit:
            return PlainTextResponse("This is for the page itself.\n", 403)
        if request.method not in ("GET", "HEAD"):
            origin = urlsplit(request.headers.get("origin", ""))
            if origin.netloc.lower() != host.lower() or not host:
                return PlainTextResponse("Answers are taken from the page itself only.\n", 403)
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return PlainTextResponse("Answers are JSON.\n", 415)
        if self.token is None or _same(request.cookies.get(self.cookie), self.token):
            return None
        if request.method == "GET" and _same(request.query_params.get("token"), self.token):
            # Redirect to the address without the token, so that it is not in the history or in copied links.
            rest = urlencode([(key, value) for key, value in request.query_params.multi_items() if key != "token"])
            response = RedirectResponse(f"/?{rest}" if rest else "/", 303)
            # Lax, not Strict, so that a link in a message opens the page. Posts from other sites get no cookie anyway.
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax", path="/")
            return response
        return PlainTextResponse("Open the address with the token that the terminal shows.\n", 401)

    def _own(self, host: str) -> bool:
        """Whether a Host header names this server; any IP address does if it is open to others: none can be rebound."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.wide or address.is_loopback


def _same(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())
