"""The page's requests: who is let in, what the page is told, and text that must stay text."""

import asyncio
import json

import httpx
import pytest

from posttrain.annotate import render, serve
from posttrain.annotate.items import Item
from posttrain.annotate.server import app
from posttrain.annotate.session import Session

HERE = "http://127.0.0.1:8765"
TOKEN = "a-token-of-some-length"
# What each would do if it were more than text.
HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    "<img src=x onerror='window.pwned = 3'>",
    "<svg onload=window.pwned=4></svg>",
    "<a href='javascript:window.pwned=5'>click</a>",
    "[click](javascript:window.pwned=6)",
    '[click](JaVaScRiPt:window.pwned=7 "t" )',
    "<javascript:window.pwned=8>",
    "![image](https://example.com/track.png)",
    "<iframe srcdoc='<script>parent.pwned=9</script>'></iframe>",
    "<style>body { display: none }</style>",
    "```html\n</code></pre><script>window.pwned = 10</script>\n```",
    "`<b onmouseover=window.pwned=11>`",
    "[a]: data:text/html,<script>window.pwned=12</script>\n\n[a] [a](data:text/html,x)",
    '<form action="https://example.com"><button>send</button></form>',
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=13>",
]


@pytest.fixture
def session(tmp_path):
    return Session(
        tmp_path / "prefs.jsonl", [Item("a1", "p", ("good", "bad"), {"secret": 1}, 0), Item("b2", "q", ("x", "y"))]
    )


def ask(session, *requests, host="127.0.0.1", token=None, base=HERE, cookies=None):
    """Send `(method, path, options)` in turn with one client; the responses."""

    async def run():
        transport = httpx.ASGITransport(app(session, host, 8765, token), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base, cookies=cookies) as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(run())


def get(path, **headers):
    return "GET", path, {"headers": headers}


def post(path, body, origin=HERE, kind="application/json"):
    content = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return "POST", path, {"content": content, "headers": {"origin": origin, "content-type": kind}}


def test_the_page_is_not_told_which_is_which(session):
    (state,) = ask(session, get("/api/state?annotator=Ann"))
    told = state.json()
    assert set(told) == {"annotator", "guidelines", "kept", "ticket", "last", "answered", "left", "prompt", "sides"}
    assert told["annotator"] == "ann"
    assert sorted(side["text"] for side in told["sides"]) == ["bad", "good"]
    assert not {"secret", "preferred", "order", "chosen"} & set(state.text.replace('"', " ").split())


def test_an_answer_is_on_disk_before_the_next_item_shows(session, tmp_path):
    (state,) = ask(session, get("/api/state?annotator=ann"))
    body = {"annotator": "ann", "ticket": state.json()["ticket"], "choice": 0, "reason": "\ud800 short", "flag": True}
    first, again = ask(session, post("/api/answer", body), post("/api/answer", body))
    assert first.json()["prompt"][0]["text"] == "q"
    assert (first.json()["kept"], again.json()["kept"]) == (True, False)
    assert again.json()["ticket"] == first.json()["ticket"]
    answers = [line for line in (tmp_path / "prefs.answers.jsonl").read_text().splitlines() if '"answer"' in line]
    assert len(answers) == 1
    assert json.loads(answers[0])["reason"] == "? short"
    (back,) = ask(session, post("/api/undo", {"annotator": "ann", "ticket": first.json()["last"]}))
    assert (back.json()["prompt"][0]["text"], back.json()["reason"], back.json()["flag"]) == ("p", "? short", True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ("[]", 400),
        ("[" * 5000, 400),
        (b"\xff", 400),
        ("x" * 70_000, 413),
        ({"annotator": "ann", "ticket": "a1-0"}, 400),
        ({"annotator": "ann", "ticket": "a1-0", "choice": True}, 400),
        ({"annotator": "ann", "ticket": "a1-0", "choice": 2}, 400),
        ({"annotator": "ann", "ticket": "a1-0", "choice": -1}, 400),
        ({"annotator": "ann", "ticket": "a1-0", "choice": "best"}, 400),
        ({"annotator": "<b>", "ticket": "a1-0", "choice": 0}, 400),
        ({"annotator": ["ann"], "ticket": "a1-0", "choice": 0}, 400),
        ({"choice": 0}, 400),
    ],
)
def test_requests_that_make_no_sense(session, body, status):
    _, response = ask(session, get("/api/state?annotator=ann"), post("/api/answer", body))
    assert response.status_code == status, response.text
    assert response.json()["error"]
    assert session.answers.standing == {}


def test_a_full_disk_is_said_and_nothing_counted(session, monkeypatch):
    (state,) = ask(session, get("/api/state?annotator=ann"))

    def full(piece):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session.journal, "append", full)
    (response,) = ask(session, post("/api/answer", {"annotator": "ann", "ticket": state.json()["ticket"], "choice": 0}))
    assert (response.status_code, response.json()["error"]) == (
        507,
        "Not saved: No space left on device. Nothing was counted.",
    )
    assert session.answers.standing == {}


def test_every_response_forbids_what_the_page_does_not_need(session):
    for response in ask(session, get("/"), get("/app.js"), get("/results"), get("/none"), get("/api/state")):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8765", 200),
        ("127.0.0.1", "localhost:9999", 200),  # through ssh -L
        ("127.0.0.1", "[::1]:8765", 200),
        ("127.0.0.1", "evil.example:8765", 421),  # DNS rebinding
        ("127.0.0.1", "127.0.0.1.evil.example", 421),
        ("127.0.0.1", "192.168.1.5:8765", 421),
        ("127.0.0.1", "", 421),
        ("127.0.0.1", "[::1", 421),
        ("0.0.0.0", "192.168.1.5:8765", 200),
        ("0.0.0.0", "evil.example", 421),
    ],
)
def test_only_this_machines_names(session, bound, host, status):
    (response,) = ask(session, get("/", host=host), host=bound)
    assert response.status_code == status


@pytest.mark.parametrize(
    ("origin", "kind", "status"),
    [
        (HERE, "application/json; charset=utf-8", 200),
        ("http://evil.example", "application/json", 403),
        ("http://127.0.0.1:8000", "application/json", 403),
        ("null", "application/json", 403),
        ("", "application/json", 403),
        (HERE, "text/plain", 415),
    ],
)
def test_posts_of_other_sites(session, origin, kind, status):
    ask(session, get("/api/state?annotator=ann"))
    (response,) = ask(
        session, post("/api/answer", {"annotator": "ann", "ticket": "a1-0", "choice": 0}, origin=origin, kind=kind)
    )
    assert response.status_code == status
    assert len(session.answers.standing) == (status == 200)


@pytest.mark.parametrize(
    ("path", "site", "mode", "status"),
    [
        ("/api/state?annotator=ann", "same-origin", "cors", 200),
        ("/api/state?annotator=ann", "cross-site", "no-cors", 403),  # would give ann an item
        ("/api/state?annotator=ann", "cross-site", "navigate", 403),
        ("/?annotator=ann", "cross-site", "navigate", 200),  # a link in a message
        ("/?annotator=ann", "cross-site", "no-cors", 403),
    ],
)
def test_gets_of_other_sites(session, path, site, mode, status):
    (response,) = ask(session, get(path, **{"sec-fetch-site": site, "sec-fetch-mode": mode}))
    assert response.status_code == status


def test_opened_wider_it_asks_for_the_token(session):
    wide = {"host": "0.0.0.0", "token": TOKEN, "base": "http://192.168.1.5:8765"}
    without, wrong, right, after, script = ask(
        session,
        get("/api/state?annotator=ann"),
        get("/?token=another-token-of-length"),
        get(f"/?annotator=ann&token={TOKEN}"),
        get("/api/state?annotator=ann"),
        get("/app.js"),
        **wide,
    )
    assert (without.status_code, wrong.status_code, right.status_code) == (401, 401, 303)
    assert right.headers["location"] == "/?annotator=ann", "the token leaves the address"
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert (after.status_code, script.status_code) == (200, 200)
    (stolen,) = ask(session, get("/api/state?annotator=ann"), cookies={"posttrain_annotate_8765": "x"}, **wide)
    assert stolen.status_code == 401


def test_a_server_opened_wider_makes_a_token(session, monkeypatch, capsys):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    with serve.bind("0.0.0.0", None) as listening:
        serve.run(session, listening, "0.0.0.0", None)
        serve.run(session, listening, "0.0.0.0", TOKEN)
        serve.run(session, listening, "127.0.0.1", None)
    made, given, local = [line for line in capsys.readouterr().out.splitlines() if line.startswith("open")]
    assert len(made.partition("?token=")[2]) >= 32
    assert given.endswith(f"?token={TOKEN}")
    assert "token" not in local


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_text(text):
    from html.parser import HTMLParser

    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append((tag, dict(attributes)))

    Tags().feed(render.to_html(text))
    assert {tag for tag, _ in tags} <= render.TAGS
    for tag, attributes in tags:
        assert set(attributes) <= ({"href", "rel", "target"} if tag == "a" else {"start"})
        assert attributes.get("href", "https:").startswith(("http:", "https:", "mailto:"))


def test_markdown_and_code_are_rendered():
    made = render.to_html("**b**\n\n```python\nx = 1 < 2\n```\n\n| a |\n|---|\n| 1 |\n\n<https://x.org>")
    for part in ("<strong>b</strong>", "x = 1 &lt; 2", "<td>1</td>", 'rel="noopener noreferrer nofollow"'):
        assert part in made
    assert render.to_html("<b>" + "x" * render.LONGEST).startswith("<pre>&lt;b&gt;x")


@pytest.mark.parametrize("token", ["Zm9v+YmFy/cXV4Zm9vYg==", "a&b" + "c" * 20, "a#b" + "c" * 20, "a%41b" + "c" * 20])
def test_the_printed_address_opens_the_page_with_any_token(session, token):
    address = serve.address("192.168.1.5", 8765, token).removeprefix("http://192.168.1.5:8765")
    wide = {"host": "0.0.0.0", "token": token, "base": "http://192.168.1.5:8765"}
    opened, page = ask(session, get(str(httpx.URL("http://x" + address).raw_path, "ascii")), get("/"), **wide)
    assert (opened.status_code, page.status_code) == (303, 200)


def test_an_answer_that_is_kept_is_not_called_lost(session, monkeypatch):
    (state,) = ask(session, get("/api/state?annotator=ann"))
    append = session.journal.append

    def full(piece):
        if piece["kind"] == "item":
            raise OSError(28, "No space left on device")
        append(piece)

    monkeypatch.setattr(session.journal, "append", full)
    (response,) = ask(session, post("/api/answer", {"annotator": "ann", "ticket": state.json()["ticket"], "choice": 0}))
    assert (response.status_code, response.json()["error"]) == (
        507,
        "The next item cannot be stored: No space left on device. What was answered before it is kept.",
    )
    assert len(session.answers.standing) == 1
