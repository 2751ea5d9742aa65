"""Code of others in a limited subprocess: each way to break out gives a clear failure and leaves nothing behind."""

import _ctypes
import ctypes
import errno
import os
import re
import resource
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import threading
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.rewards import sandbox, verify
from posttrain.rewards.sandbox import Limits, run, run_all

SHORT = Limits(seconds=2, memory=1 << 28, disk=1 << 20, output=10_000)
IN_FORCE = set(run("def f(): return 1", "f", []).isolation)


def needs(*parts: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not {*parts} <= IN_FORCE, reason=f"this system refuses one of {', '.join(parts)}")


@pytest.fixture(autouse=True, scope="module")
def own(tmp_path_factory):
    """A folder for the sandbox's program and its folders: what it leaves behind is told from what others do now."""
    tmp_path_factory.getbasetemp()  # of all tests, so not in the folder of these
    with tempfile.TemporaryDirectory(prefix="posttrain-tests-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        folder.chmod(0o755)
        program = Path(shutil.copy(sandbox.ISOLATION, folder))
        patch.setattr(sandbox, "ISOLATION", program)
        patch.setattr(tempfile, "tempdir", name)
        sandbox._python.cache_clear()
        yield folder
    sandbox._python.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_left(own):
    """No folder and no process stays."""
    before = set(_left(own))
    yield
    assert set(_left(own)) <= before


def _left(own):
    yield from own.glob("posttrain-sandbox-*")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(own) in command:
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
        (
            "import os, resource as r; r.prlimit(os.getppid(), r.RLIMIT_NOFILE, (0, 0))",
            r"resource\.prlimit: not permitted",
        ),
        ("import sqlite3; sqlite3.connect('/tmp/posttrain-escaped')", r"outside the sandbox's folder"),
        ("import os; return os.listdir('/home')", r"os\.listdir .*: outside the sandbox's folder"),
        ("import os; os.symlink('/etc', 'a'); return os.listdir('a')", r"os\.symlink '/etc': outside"),
        (
            "raise ValueError('\\udc80 \\x1b[31m')",
            "^ValueError: \N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}\\[31m",
        ),
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


@pytest.mark.parametrize("forged", ["not json", "[" * 100_000, "[]", '{"isolation": 1}'])
def test_a_result_that_is_forged_is_none(forged: str):
    source = f"""import os
def f():
    for number in range(3, 4096):
        try:
            os.write(number, {forged!r}.encode())
        except OSError:
            pass
    os._exit(0)
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


def test_code_runs_behind_fewer_walls_only_where_they_are_named(monkeypatch):
    monkeypatch.setattr(sandbox, "missing_walls", lambda: "code that breaks out of Python reaches files of yours here")
    said = "reward.r.args.walls=full: code that breaks out of Python reaches files of yours here; run it on Linux"
    (wrong,) = sandbox.check_walls({"execute": True}, "reward.r.args")
    assert wrong.startswith(said)
    assert wrong.endswith("set reward.r.args.walls=reduced")
    assert sandbox.check_walls({"execute": True, "walls": "reduced"}, "reward.r.args") == []
    assert sandbox.check_walls({}, "reward.r.args") == [], "it runs nothing"
    assert sandbox.check({"walls": "few"}, "a") == ["a.walls=few: choose from full, reduced"]
    with pytest.raises(PosttrainError, match="walls=full"):
        verify.unit_tests(["x = 1"], execute=True, tests=[["assert x == 1"]])
    assert verify.unit_tests(["x = 1"], execute=True, walls="reduced", tests=[["assert x == 1"]]) == [1.0]


def test_packages_only_when_asked():
    source = "def f():\n import rapidfuzz\n return rapidfuzz.__name__"
    assert run(source, "f", []).error.startswith("ModuleNotFoundError")
    assert run(source, "f", [], Limits(packages=True)).value == "rapidfuzz"


PARTS = {
    "hook": (r"\n    sys\.addaudithook\(.*?\n(?=    for name)", "\n"),
    "namespaces": (r"libc\.unshare\(NAMESPACES\) != 0", "True"),
    "landlock": (r"landlock\(roots\)\n", "[]\n"),
    "seccomp": (r"seccomp\(\)\n(?=    isolation)", "[]\n"),
    "user": (r"become_nobody\(\)\n(?=        isolation)", "[]\n"),
}


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Leave out parts of the jail, as systems do that refuse them."""

    def leave_out(*parts: str) -> None:
        text = sandbox.ISOLATION.read_text()
        for part in parts:
            pattern, instead = PARTS[part]
            text, found = re.subn(pattern, instead, text, flags=re.DOTALL)
            assert found == 1
        folder = Path(tempfile.mkdtemp())  # where nobody may read it
        (folder / "jail_without.py").write_text(text)
        monkeypatch.setattr(sandbox, "ISOLATION", folder / "jail_without.py")
        sandbox._python.cache_clear()

    yield leave_out
    sandbox._python.cache_clear()


@needs("landlock")
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return open('/etc/passwd').read()", "PermissionError"),
        ("import os; return open(f'/proc/{os.getppid()}/environ').read()", "PermissionError|FileNotFoundError"),
        ("import os; os.symlink('/etc', 'a'); return open('a/passwd').read()", "PermissionError"),
        ("open('/tmp/posttrain-escaped', 'w')", "PermissionError"),
        ("import os; os.mkdir('/tmp/posttrain-escaped')", "PermissionError"),
    ],
)
def test_the_kernel_holds_files_without_the_hook(without, body: str, error: str):
    without("hook", "namespaces")
    assert re.search(error, run(f"def f():\n {body}", "f", [], SHORT).error)
    assert not Path("/tmp/posttrain-escaped").exists()


@pytest.mark.parametrize("left_out", [(), ("namespaces",)])
def test_the_folder_is_limited_as_a_whole(without, left_out):
    without("hook", *left_out)
    source = "def f():\n for n in range(40): open(f'a{n}', 'w').write('x' * 10**5)\n import time; time.sleep(1)"
    assert run(source, "f", [], SHORT).error.startswith("disk: more than the limit")


@pytest.mark.parametrize(
    "left_out", [pytest.param("namespaces", marks=needs("seccomp")), pytest.param("seccomp", marks=needs("namespaces"))]
)
def test_the_kernel_holds_the_network_without_the_hook(without, left_out: str):
    without("hook", left_out)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = threading.Event()
        threading.Thread(target=lambda: (server.accept(), reached.set()), daemon=True).start()
        source = f"import socket\ndef f(): socket.create_connection(('127.0.0.1', {port}), 1)"
        assert "Error" in run(source, "f", [], SHORT).error
        assert not reached.is_set()
        with socket.create_connection(("127.0.0.1", port)):  # from here it can be reached
            assert reached.wait(5)


@needs("seccomp", "landlock")
def test_where_namespaces_are_refused(without, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in many containers: Landlock and seccomp still keep it off files, network, and other processes."""
    without("hook", "namespaces")
    kept = tmp_path / "kept"
    kept.write_text("mine")
    times, limits = kept.stat(), resource.getrlimit(resource.RLIMIT_NOFILE)
    source = """import ctypes, os, resource, signal, socket, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def called(number, *args):
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), "")
def f(kept):
    parent, tried = os.getppid(), {}
    assert parent > 0
    for name, attempt in {
        "tcp": lambda: socket.socket(),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "fork": os.fork,
        "interpreter": lambda: subprocess.Popen([sys.executable, "-c", ""]),
        "exec": lambda: os.execv(sys.executable, [sys.executable]),
        "signal": lambda: os.kill(parent, 0),
        "pidfd": lambda: os.pidfd_open(parent),
        "limit": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, (0, 0)),
        "nice": lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
        "affinity": lambda: os.sched_setaffinity(parent, {0}),
        "environment": lambda: open(f"/proc/{parent}/environ"),
        "memory": lambda: open(f"/proc/{parent}/mem"),
        "mode": lambda: os.chmod(kept, 0),
        "times": lambda: os.utime(kept, (0, 0)),
        "cut": lambda: os.truncate(kept, 0),
        "remove": lambda: os.remove(kept),
        "in memory": lambda: os.memfd_create("a"),
        "namespaces": lambda: called({"x86_64": 272, "aarch64": 97}[os.uname().machine], 0x10000000),
        "watch": lambda: called({"x86_64": 254, "aarch64": 27}[os.uname().machine], -1, kept, 2),
    }.items():
        try:
            tried[name] = repr(attempt())
        except OSError as error:
            tried[name] = error.errno
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        tried["thread"] = 1
    tried["own limit"] = resource.prlimit(0, resource.RLIMIT_NOFILE)[0]
    return tried
"""
    outcome = run(source, "f", [str(kept)], SHORT)
    assert outcome.error is None
    assert "namespaces" not in outcome.isolation
    tried = outcome.value
    assert tried.pop("own limit") == 64
    assert tried.pop("environment") == tried.pop("memory") == tried.pop("remove") == errno.EACCES
    assert set(tried.values()) == {errno.EPERM}
    assert len(tried) == 18
    assert (kept.read_text(), kept.stat().st_mode, kept.stat().st_mtime_ns) == (
        "mine",
        times.st_mode,
        times.st_mtime_ns,
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_where_the_kernel_refuses_all(without, monkeypatch: pytest.MonkeyPatch):
    """The hook alone: what it denies, what is said of it, and nothing left of what is hard to remove."""
    without("namespaces", "landlock", "seccomp")
    source = """import importlib.machinery, importlib.util, os
def f(library, packages):
    tried = []
    for name, file in (("x._ctypes", library), ("own", os.path.abspath("own.so"))):
        loader = importlib.machinery.ExtensionFileLoader(name, file)
        try:
            importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
        except ImportError as error:
            tried.append(str(error))
    os.mkdir("hidden", 0)
    for _ in range(1500):
        os.mkdir("a")
        os.chdir("a")
    try:  # from the folder of the standard library, though it looks as if from here
        os.open("../" * 20 + "etc/passwd", os.O_RDONLY, dir_fd=os.open(packages, os.O_RDONLY))
    except PermissionError as error:
        tried.append(str(error)[-28:])
    return tried
"""
    outcome = run(source, "f", [_ctypes.__file__, sysconfig.get_path("stdlib")], SHORT)
    assert outcome.error is None
    assert outcome.value == [
        "x._ctypes: not permitted in the sandbox",
        "own: not permitted in the sandbox",
        "outside the sandbox's folder",
    ]
    sandbox.missing_walls.cache_clear()
    assert sandbox.missing_walls() == (
        "code that breaks out of Python reaches files of yours (landlock), the network and other processes (namespaces "
        "and seccomp) here"
    )
    sandbox.missing_walls.cache_clear()


OWNERS = """import fcntl, os, signal, struct, sys
def f(pid):
    read, write = os.pipe()
    tried = {}
    for name, command, value in (
        ("owner", fcntl.F_SETOWN, pid), ("owner_ex", 15, struct.pack("ii", 1, pid)), ("signal", 10, signal.SIGKILL),
    ):
        try:
            fcntl.fcntl(read, command, value)
        except OSError as error:
            tried[name] = error.errno
    for name, request in (("FIOSETOWN", 0x8901), ("SIOCSPGRP", 0x8902), ("FIOASYNC", 0x5452), ("TIOCSTI", 0x5412)):
        try:
            fcntl.ioctl(read, request, struct.pack("i", pid))
        except OSError as error:
            tried[name] = error.errno
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
    os.write(write, b"x")
    return tried
"""


@needs("seccomp")
@pytest.mark.parametrize("left_out", [(), ("namespaces", "user"), ("namespaces", "landlock")])
def test_no_signal_is_sent_by_way_of_a_descriptors_owner(without, left_out):
    """The kernel would send it for the code, to any process of the same user, the trainer too."""
    without("hook", *left_out)
    with subprocess.Popen(["sleep", "60"]) as victim:
        outcome = run(OWNERS, "f", [victim.pid], SHORT)
        assert victim.poll() is None
        victim.kill()
    assert outcome.error is None
    assert len(outcome.value) == 7
    assert set(outcome.value.values()) == {errno.EPERM}


@needs("landlock")
def test_landlock_alone_holds_signals(without):
    """Its scope, from version 6 on (Linux 6.12): the owner can be set, and the signal does not arrive."""
    without("hook", "namespaces", "seccomp", "user")
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 6:
        pytest.skip("this kernel's Landlock has no scope for signals")
    source = "import os, signal\ndef f(pid):\n os.kill(pid, signal.SIGKILL)"
    with subprocess.Popen(["sleep", "60"]) as victim:
        assert run(source, "f", [victim.pid], SHORT).error.startswith("PermissionError")
        run(OWNERS.replace('("signal"', '("signal", 0, 0), ("signal"'), "f", [victim.pid], SHORT)
        assert victim.poll() is None
        victim.kill()


SURVIVOR = """import ctypes, os, signal, time
def f():
    libc = ctypes.CDLL(None)
    tried = [libc.prctl(1, 0, 0, 0, 0)]
    for leave in (os.setsid, lambda: os.setpgid(0, 0)):
        try:
            leave()
            tried.append(0)
        except OSError:
            tried.append(-1)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, f"{tried}{'x' * 20_000}".encode())
    time.sleep(1.5)
    os.write(1, b"still here" * 2000)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("left_out", "tried"),
    [
        pytest.param((), [-1, -1, -1], marks=needs("seccomp")),
        pytest.param(("namespaces",), [-1, -1, -1], marks=needs("seccomp")),
        pytest.param(("seccomp",), [0, 0, -1], marks=needs("namespaces")),  # the guard ends it all the same
        pytest.param(("seccomp", "landlock"), [0, 0, -1], marks=needs("namespaces")),
    ],
)
def test_nothing_survives_the_result(without, left_out, tried):
    """`_nothing_left` looks for the process that left its group, ignores signals and has no parent to die with."""
    without("hook", *left_out)
    outcome = run(SURVIVOR, "f", [], Limits(seconds=30, memory=1 << 28, disk=1 << 20, output=10_000))
    assert outcome.error == "output: more than 10000 bytes"
    assert outcome.output.startswith(str(tried))


@needs("seccomp")
@pytest.mark.parametrize("left_out", [(), ("namespaces",)])
def test_no_datagram_reaches_a_socket_of_the_host(without, left_out, tmp_path):
    without("hook", *left_out)
    place = tempfile.mkdtemp() + "/socket"  # a short path
    source = """import ctypes, socket
def f(path, abstract):
    tried = {}
    for name, attempt in {
        "pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    }.items():
        try:
            made = attempt()
            for target in (path, abstract):
                (made[0] if isinstance(made, tuple) else made).sendto(b"out", target)
            tried[name] = 0
        except OSError as error:
            tried[name] = error.errno
    libc = ctypes.CDLL(None, use_errno=True)
    calls = {"sendto": lambda: libc.sendto(1, b"x", 1, 0, None, 0), "sendmsg": lambda: libc.sendmsg(1, 0, 0)}
    for name, call in calls.items():
        tried[name] = ctypes.get_errno() if call() == -1 else 0
    return tried
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(place)
        os.chmod(place, 0o777)
        server.setblocking(False)
        outcome = run(source, "f", [place, "\0posttrain-test"], SHORT)
        assert outcome.value == dict.fromkeys(("pair", "socket", "sendto", "sendmsg"), errno.EPERM)
        with pytest.raises(BlockingIOError):
            server.recv(10)


@pytest.mark.parametrize("left_out", [(), ("namespaces",), ("namespaces", "user"), ("user", "seccomp")])
def test_no_capability_is_left(without, left_out):
    """Root keeps its name where its Python lies in its home, and none of its rights."""
    without("hook", "landlock", *left_out)
    outcome = run("def f(): return open('/proc/self/status').read()", "f", [], SHORT)
    sets = dict(re.findall(r"^(Cap\w+):\s+(\w+)$", outcome.value, re.MULTILINE))
    assert set(sets) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    bounding = sets.pop("CapBnd")
    assert {int(value, 16) for value in sets.values()} == {0}
    assert int(bounding, 16) == 0 or (os.geteuid() != 0 and "namespaces" not in outcome.isolation)
    assert "capabilities" in outcome.isolation


@needs("namespaces")
def test_the_kernel_ends_children_that_left_the_group(without):
    """As root the limit on processes does not hold; then the process namespace ends them."""
    without("hook", "seccomp")
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seconds": float("nan")}, "a.seconds=nan: expected at least 0.1"),
        ({"seconds": float("inf")}, "a.seconds=inf: expected at most 1125899906842624"),
        ({"memory": 10**20}, f"a.memory={10**20}: expected at most 1125899906842624"),
    ],
)
def test_limits_that_no_system_takes(given, message):
    assert sandbox.check(given, "a") == [message]
