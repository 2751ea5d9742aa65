"""Code of others in a limited subprocess: each way to break out gives a clear failure and leaves nothing behind."""

import os
import re
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from posttrain import sandbox
from posttrain.sandbox import Limits, run, run_all

SHORT = Limits(seconds=2, memory=1 << 28, disk=1 << 20, output=10_000)
JAILS = (str(sandbox.JAIL), "jail_without_hook.py")
needs_walls = pytest.mark.skipif(sandbox.walls() is not None, reason=str(sandbox.walls()))


@pytest.fixture(autouse=True)
def _nothing_left():
    """No folder and no process stays."""
    before = set(_left())
    yield
    assert set(_left()) <= before


def _left():
    yield from Path(tempfile.gettempdir()).glob("posttrain-sandbox-*")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(jail in command for jail in JAILS):
            yield folder


def test_a_function_with_arguments():
    source = "import json\ndef grade(sample, item):\n    print('seen')\n    return len(sample['text']) / item['most']"
    outcome = run(source, "grade", [{"text": "abc"}, {"most": 4}])
    assert (outcome.value, outcome.error, outcome.output) == (0.75, None, "seen\n")
    assert {"limits", "hook"} <= set(outcome.isolation)


def test_several_at_once_keep_their_order():
    assert [o.value for o in run_all([("def f(x): return x", "f", [n]) for n in range(4)])] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("while True: pass", r"^time: more than 2 s$"),
        ("import time; time.sleep(60)", r"^time: more than 2 s$"),
        ("import os\n while True: os.fork()", r"os\.fork: not permitted in the sandbox"),
        ("import subprocess; subprocess.run(['ls'])", r"not permitted in the sandbox"),
        ("import os; os.system('ls')", r"os\.system: not permitted in the sandbox"),
        ("kept = []\n while True: kept.append(bytearray(10**7))", r"^memory: more than the limit$"),
        ("file = open('a', 'w')\n while True: file.write('x' * 10**5)", r"^disk: more than the limit"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", r"socket\.\w+: not permitted in the sandbox"),
        ("import urllib.request as u; u.urlopen('http://127.0.0.1:9')", r"not permitted|urlopen error"),
        ("import ctypes", r"not permitted in the sandbox"),
        ("import os; return open(f'/proc/{os.getppid()}/environ').read()", r"outside the sandbox's folder"),
        ("open('/tmp/posttrain-escaped', 'w')", r"open '/tmp/posttrain-escaped': outside the sandbox's folder"),
        ("import os; os.remove('/tmp/posttrain-kept')", r"os\.remove .*: outside the sandbox's folder"),
        ("return open('/etc/passwd').read()", r"open '/etc/passwd': outside the sandbox's folder"),
        ("print('x' * 10**6)", r"^output: more than 10000 bytes$"),
        ("import os; os._exit(0)", r"^the process ended without a result \(status 0\)$"),
        ("import sys; sys.exit(3)", r"^SystemExit: 3$"),
        ("raise ValueError('no')", r"^ValueError: no \(line 2\)$"),
        ("return object()", r"^TypeError: Object of type object is not JSON"),
        ("return input()", r"^EOFError"),
    ],
)
def test_what_goes_wrong_is_said(body: str, error: str):
    kept = Path("/tmp/posttrain-kept")
    kept.touch()
    outcome = run(f"def f():\n {body}", "f", [], SHORT)
    assert outcome.value is None
    assert re.search(error, outcome.error)
    assert kept.exists()
    kept.unlink()
    assert not Path("/tmp/posttrain-escaped").exists()


def test_code_that_cannot_begin():
    assert run("def f(", "f", []).error.startswith("SyntaxError")
    assert run("def g(): pass", "f", []).error == "the code defines no function f"


def test_nothing_of_the_parents_environment(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_SECRET", "hidden")
    seen = run("import os\ndef f(): return dict(os.environ)", "f", []).value
    assert "hidden" not in str(seen)
    assert "HOME" not in seen


def test_the_folder_is_its_own_and_empty():
    assert run("import os\ndef f():\n open('a', 'w').write('b')\n return os.listdir('.')", "f", []).value == ["a"]


def test_a_result_that_is_forged_is_none():
    source = """import os
def f():
    for number in range(3, 20):
        try:
            os.write(number, b"not json")
        except OSError:
            pass
"""
    assert run(source, "f", []).error == "the code tampered with its result"


def test_limits_that_are_none():
    args = {"seconds": "1", "memory": 1000, "disk": 1.5, "packages": 1, "output": 5}
    assert sandbox.check(args, "a") == [
        "a.seconds=1: expected a number",
        "a.memory=1000: expected at least 67108864",
        "a.disk=1.5: expected a number of bytes",
        "a.packages=1: expected true or false",
    ]
    assert sandbox.check({"seconds": 1, "memory": 64 << 20}, "a") == []


def test_what_the_system_refuses_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "walls", lambda: "this system refuses namespaces")
    sandbox.tell_walls.cache_clear()
    sandbox.tell_walls()
    sandbox.tell_walls()
    assert capsys.readouterr().out.count("limited subprocess: this system refuses namespaces") == 1
    sandbox.tell_walls.cache_clear()


def test_packages_only_when_asked():
    source = "def f():\n import rapidfuzz\n return rapidfuzz.__name__"
    assert run(source, "f", []).error.startswith("ModuleNotFoundError")
    assert run(source, "f", [], Limits(packages=True)).value == "rapidfuzz"


@pytest.fixture
def no_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's walls alone: what the interpreter's hook would say first is left out."""
    text = sandbox.JAIL.read_text()
    without = re.sub(r"\n    sys\.addaudithook\(.*?\n(?=    for name)", "\n", text, flags=re.DOTALL)
    assert without != text
    folder = Path(tempfile.mkdtemp())
    (folder / "jail_without_hook.py").write_text(without)
    monkeypatch.setattr(sandbox, "JAIL", folder / "jail_without_hook.py")


@needs_walls
@pytest.mark.usefixtures("no_hook")
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return open('/etc/passwd').read()", "PermissionError"),
        ("import os; return open(f'/proc/{os.getppid()}/environ').read()", "PermissionError|FileNotFoundError"),
        ("open('/tmp/posttrain-escaped', 'w')", "PermissionError"),
        ("import os; os.mkdir('/tmp/posttrain-escaped')", "PermissionError"),
        ("for n in range(100): open(f'a{n}', 'w').write('x' * 10**5)", "^disk: more than the limit"),
    ],
)
def test_the_kernel_holds_files_without_the_hook(body: str, error: str):
    assert re.search(error, run(f"def f():\n {body}", "f", [], SHORT).error)
    assert not Path("/tmp/posttrain-escaped").exists()


@needs_walls
@pytest.mark.usefixtures("no_hook")
def test_the_kernel_holds_the_network_without_the_hook():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = threading.Event()
        threading.Thread(target=lambda: (server.accept(), reached.set()), daemon=True).start()
        source = f"import socket\ndef f(): socket.create_connection(('127.0.0.1', {port}), 1)"
        assert "Error" in run(source, "f", [], SHORT).error
        assert not reached.is_set()
        with socket.create_connection(("127.0.0.1", port)):  # from here it can be reached
            assert reached.wait(5)


@needs_walls
@pytest.mark.usefixtures("no_hook")
def test_the_kernel_ends_children_that_left_the_group():
    """As root the limit on processes does not hold; then the process namespace ends them."""
    source = """import os, time
def f():
    started = 0
    for _ in range(5):
        try:
            if os.fork() == 0:
                os.setsid()
                time.sleep(60)
        except BlockingIOError:
            return started
        started += 1
    return started
"""
    # Root stays root where its Python lies in its own home.
    assert run(source, "f", [], SHORT).value in ((0, 5) if os.geteuid() == 0 else (0,))
