"""The page in a real browser: two people at keyboards, reloads, a server that is killed, hostile text, a phone."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from posttrain.annotate.items import Item
from posttrain.annotate.session import Session
from tests.annotate.test_page import HOSTILE
from tests.helpers.command import Popen
from tests.helpers.runs import ENVIRONMENT, rows

pytestmark = pytest.mark.browser


def window(browser, **options):
    context = browser.new_context(**options)
    context.set_default_timeout(90_000)  # a busy machine is no failure
    return context.new_page()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(port, tmp_path, *options):
    """The real command; returns when it answers."""
    process = Popen(
        [sys.executable, "-m", "posttrain.annotate", "d.jsonl", "--out", "p.jsonl", "--port", str(port), *options],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while True:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read()
            return process
        except OSError:
            time.sleep(0.1)


@pytest.fixture
def serving(tmp_path):
    """Serve items from a thread of this process; returns the address, and the session."""
    import uvicorn

    from posttrain.annotate import serve
    from posttrain.annotate.server import app

    servers = []

    def run(*items):
        session = Session(tmp_path / "prefs.jsonl", items)
        listening = servers[0].enter_context(serve.bind("127.0.0.1", free_port()))
        port = listening.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(app(session, "127.0.0.1", port, None), log_level="error", lifespan="off")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{port}/", session

    with contextlib.ExitStack() as stack:
        servers.append(stack)
        yield run
        for server, thread in servers[1:]:
            server.should_exit = True
            thread.join()


def counted(page, count):
    page.wait_for_function("n => document.querySelector('#count').textContent.startsWith(n + ' of')", arg=str(count))


def press(page, keys, count):
    """Press keys, and wait until so many answers are counted."""
    for key in keys:
        page.keyboard.press(key)
    counted(page, count)


def test_two_people_a_reload_and_a_server_that_is_killed(browser, tmp_path):
    """Keyboard only. In the end every answer is there once, whatever happened on the way."""
    with (tmp_path / "d.jsonl").open("w") as file:
        for i in range(5):
            prompt = [{"role": "user", "content": f"question {i}"}]
            chosen, rejected = ([{"role": "assistant", "content": f"{side} {i}"}] for side in ("good", "bad"))
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    port = free_port()
    address, options = f"http://127.0.0.1:{port}/", ("--overlap", "3", "--export", "weighted")
    server = start(port, tmp_path, *options)
    try:
        ann, bob = (window(browser) for _ in range(2))
        for page, name in ((ann, "Ann"), (bob, "bob")):
            page.goto(address)
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            counted(page, 0)
        press(ann, "1", 1)
        ann.keyboard.press("r")
        ann.keyboard.type("1 is clearer, but 2 is not unsafe")
        ann.keyboard.press("Enter")
        press(ann, "f2", 2)
        assert not ann.is_checked("#flag"), "the flag was that item's"
        press(bob, "t", 1)

        before = ann.inner_text("main")
        ann.reload()
        counted(ann, 2)
        assert ann.inner_text("main") == before

        server.send_signal(signal.SIGKILL)
        server.wait()
        ann.keyboard.press("1")
        ann.wait_for_selector("text=The server does not answer")
        assert ann.inner_text("main") == before
        server = start(port, tmp_path, *options)
        press(ann, "1", 3)

        press(ann, "u", 2)
        assert ann.inner_text("main") == before
        second = ann.context.new_page()
        second.goto(f"{address}?annotator=ann")
        counted(second, 2)
        assert second.inner_text("main") == before
        press(ann, "2", 3)
        second.keyboard.press("1")
        second.wait_for_selector("text=It counts once")
        counted(second, 3)

        press(bob, "s", 2)
        for page in (ann, bob):
            while page.is_hidden("#done"):
                done = int(page.inner_text("#count").split()[0])
                press(page, "1", done + 1)
        ann.goto(f"{address}results")
        assert "Krippendorff's alpha" in ann.inner_text("main")
        assert ann.locator("table").first.locator("tbody tr").count() == 1
    finally:
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)[0]
    assert server.returncode == 0, said
    for part in (
        "people: p.answers.jsonl",
        "train    posttrain trainer=dpo peft=lora model.path=MODEL data.path=p.jsonl",
        "resume   posttrain annotate",
    ):
        assert part in said

    lines = rows(tmp_path / "p.answers.jsonl")
    undone = [(line["annotator"], line["ticket"]) for line in lines if line["kind"] == "undo"]
    given = [line for line in lines if line["kind"] == "answer"]
    standing = [
        (line["annotator"], line["item"]) for line in given if (line["annotator"], line["ticket"]) not in undone
    ]
    assert len(undone) == 1
    assert len(standing) == len(set(standing)) == len(given) - 1
    by_item = {item: {who for who, one in standing if one == item} for _, item in standing}
    assert len(by_item) == 5
    assert sum(who == {"ann", "bob"} for who in by_item.values()) >= 3, "those of everybody"
    reasons = [(line["reason"], line["flag"]) for line in given if line["reason"]]
    assert reasons == [("1 is clearer, but 2 is not unsafe", True)]
    pairs = rows(tmp_path / "p.jsonl")
    assert pairs
    for row in pairs:
        assert {row[side][0]["content"].split()[0] for side in ("chosen", "rejected")} == {"good", "bad"}
        assert row["prompt"][0]["role"] == "user"


def test_hostile_text_stays_text(browser, serving):
    address, session = serving(*(Item(f"{i:x}", text, (f"a {text}", f"b {text}")) for i, text in enumerate(HOSTILE)))
    page = window(browser)
    asked, opened = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
    page.goto(f"{address}?annotator=ann")
    for i, text in enumerate(HOSTILE):
        counted(page, i)
        assert page.locator(".text").count() == 3
        assert page.locator(".text :is(script, img, svg, iframe, style, form, button, math, object)").count() == 0
        links = page.eval_on_selector_all(".text a", "found => found.map(a => a.protocol)")
        assert set(links) <= {"http:", "https:", "mailto:"}
        page.keyboard.press("m")
        assert page.locator("#prompt .text").text_content() == text, "as it was written"
        page.keyboard.press("m")
        page.locator("#prompt .text").hover()
        press(page, "1", i + 1)
    page.goto(f"{address}?annotator=<img src=x onerror='window.pwned=1'>")
    page.wait_for_selector("text=A name has 1 to 40 letters")
    # The third lock: what got into the page nevertheless would not run.
    page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.pwned = 20';
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', '<img src="https://example.com/x" onerror="pwned=21">');
        }"""
    )
    page.wait_for_timeout(50)
    assert page.evaluate("window.pwned") is None
    assert opened == []
    assert all(url.startswith(address) for url in asked if "example.com/x" not in url)
    assert len(session.answers.standing) == len(HOSTILE)


def test_readable_on_a_phone(browser, serving):
    wide = "x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\n| " + " | ".join(f"column {i}" for i in range(20)) + " |\n"
    wide += "|---" * 20 + "|\n"
    address, session = serving(Item("a1", wide, (wide, "short " * 300, "third")), Item("b2", "next", ("x", "y")))
    page = window(browser, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.goto(f"{address}?annotator=ann")
    counted(page, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing to scroll sideways"
    boxes = [box.bounding_box() for box in page.locator(".answer").all()]
    assert len(boxes) == 3
    assert all(upper["y"] + upper["height"] <= lower["y"] for upper, lower in itertools.pairwise(boxes))
    for button in page.locator("footer button").all():
        box = button.bounding_box()
        assert box["height"] >= 44, "as large as a finger"
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= 844, "in reach without scrolling"
    assert not page.locator("#keys").is_visible(), "a phone has no keys"
    page.locator("#choices button").nth(1).tap()
    counted(page, 1)
    assert next(iter(session.answers.standing.values()))["place"] == 1
