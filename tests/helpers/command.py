"""Commands of this interpreter without its start: processes forked from one that has imported the libraries.

`Popen` and `run` stand in for those of `subprocess`: `[sys.executable, "-m", MODULE, ...]`, `[..., "-c", CODE, ...]` or
`[..., FILE, ...]` gets its own process, arguments, folder, environment, streams, signals and exit status, some eight
seconds sooner. The process it is forked from, the server, is started by the first test that needs it, is shared by
all workers of pytest-xdist, and ends with pytest. It has imported what a run imports, registered
the recipes, and run nothing. Commands that know the local hub (`tests.helpers.hub`) have a server of their own, for
libraries read some variables while they are imported (`AT_IMPORT`).

What `subprocess` starts all the same: other programs, commands in whose environment other such variables differ, and
everything if POSTTRAIN_TESTS_REAL_COMMANDS is set. A test of what is imported, or of the time that takes, calls
`subprocess` itself.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

from tests.helpers import hub
from tests.helpers.runs import ENVIRONMENT

AT_IMPORT = ("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_", "BNB_", "ATEN_", "MKL_", "OMP_")
# Of these, what `posttrain` itself sets when it starts.
OWN = {"HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"}
# What the jobs import late.
PRELOADED = (
    *("accelerate", "bitsandbytes", "datasets.packaged_modules.json.json", "matplotlib.pyplot", "peft", "wandb"),
    *(
        f"posttrain.jobs.{job}"
        for job in ("command", "doctor", "evaluate", "pipeline", "preflight", "sample", "selection")
    ),
    *("posttrain.annotate.serve", "posttrain.annotate.server", "posttrain.jobs.train", "posttrain.ppo"),
    *("posttrain.models.generate", "posttrain.models.merge", "posttrain.probe.callback", "posttrain.runs.curves"),
    *("posttrain.training.build", "posttrain.training.online", "posttrain.training.tracking"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto"),
    *(f"trl.trainer.{kind}_trainer" for kind in ("dpo", "grpo", "kto", "reward", "rloo", "sft")),
)
_environment = {**os.environ, **ENVIRONMENT}  # as the worker was started: a test may set variables in its own
_forks_itself = False  # in a command that was forked: what it starts, it forks


class Popen(subprocess.Popen):
    """`subprocess.Popen`, but a Python command is forked from a process that has imported everything."""

    _status: socket.socket | None = None  # from the server, the exit status as `os.waitpid` gives it

    def _execute_child(  # type: ignore[override]
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        *rest: Any,
    ) -> None:
        # startupinfo, creationflags, shell, then the six ends of pipes, restore_signals, gid, gids, uid, umask
        pipes, new_session = rest[3:9], rest[14]
        env = dict(os.environ if env is None else env)
        if preexec_fn or pass_fds or rest[2] or not _forkable(args, env):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        words = [str(arg) for arg in args[1:]]
        if words[0] == "-u":
            words, env["PYTHONUNBUFFERED"] = words[1:], "1"
        command = {
            "args": words,
            "cwd": str(cwd or os.getcwd()),
            "env": env,
            "new_session": new_session,
        }
        # -1 is what this process has itself.
        ends = (pipes[0], pipes[3], pipes[5])
        streams = [mine if end == -1 else end for mine, end in enumerate(ends)]
        if _forks_itself:
            self.pid = os.fork()
            if not self.pid:
                _become(command, streams)
        else:
            self._status = _server(_at_import(env))
            socket.send_fds(self._status, [json.dumps(command).encode()], streams)
            self.pid = int(self._status.recv(20))
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status is None:
            return super()._try_wait(wait_flags)
        try:
            status = self._status.recv(20, socket.MSG_DONTWAIT if wait_flags & os.WNOHANG else 0)
        except BlockingIOError:
            return 0, 0
        self._status.close()
        if not status:
            raise RuntimeError("the server that forks the tests' commands has died")
        return self.pid, int(status)

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(*args, **options)
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)
        return self.returncode


def run(
    args: Sequence[Any], *, timeout: float | None = None, capture_output: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, by `Popen`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(args, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


def _forkable(args: Any, env: Mapping[str, str]) -> bool:
    if isinstance(args, str) or str(args[0]) != sys.executable or os.environ.get("POSTTRAIN_TESTS_REAL_COMMANDS"):
        return False
    word = str(args[1 + (str(args[1]) == "-u")])
    served = [_environment] if _forks_itself else [_environment, hub.alone(_environment)]
    return _at_import(env) in map(_at_import, served) and (word in ("-m", "-c") or word.endswith(".py"))


def _at_import(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_IMPORT) and name not in OWN}


# The server ----------------------------------------------------------------------------------------------------------


def _server(settings: dict[str, str]) -> socket.socket:
    """A connection to the server whose libraries were imported with these variables, started if it does not run."""
    # The process that the user started: pytest-xdist's workers are its children.
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    kind = "-hub" if settings != _at_import(_environment) else ""
    folder = Path(tempfile.gettempdir(), f"posttrain-tests-{os.getuid()}-{owner}{kind}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with FileLock(folder / "lock"):
        with contextlib.suppress(OSError):
            return _connect(folder)
        code = f"from tests.helpers import command; command.serve({str(folder)!r}, {owner})"
        root = Path(__file__).resolve().parents[2]
        # Not in this process's session: Ctrl-C is for pytest, which ends it.
        server = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=root,
            env={name: value for name, value in _environment.items() if not name.startswith(AT_IMPORT)} | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        if server.stdout.read(5) != b"ready":
            raise RuntimeError("the server that forks the tests' commands did not start")
        server.stdout.close()
        server.returncode = 0  # nobody waits for it
        return _connect(folder)


def _connect(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(str(folder / "socket"))
    except OSError:
        connection.close()
        raise
    return connection


def serve(folder: str, owner: int) -> None:
    """Fork a process for each connection, and tell it the exit status, until the process `owner` ends."""
    import shutil

    from posttrain.config import recipes

    _environment.update(os.environ)
    gc.disable()  # what is imported stays
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        for name in PRELOADED:
            importlib.import_module(name)
        recipes.register()
    # Collections in the commands neither look at nor copy what is imported.
    gc.freeze()
    gc.enable()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{folder}/socket")
    listener.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
    os.write(1, b"ready")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    while True:
        for key, _ in waiting.select():
            if key.data == "owner":
                for other in waiting.get_map().values():
                    if isinstance(other.data, tuple):
                        os.kill(other.data[0], signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)
                return
            if key.data is None:
                connection, _ = listener.accept()
                message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
                pid = os.fork()
                if not pid:
                    _become(json.loads(message), streams)
                for stream in streams:
                    os.close(stream)
                connection.send(str(pid).encode())
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            else:
                pid, connection = key.data
                status = os.waitpid(pid, 0)[1]
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    connection.send(str(status).encode())
                connection.close()
                waiting.unregister(key.fd)
                os.close(key.fd)


# In the forked process -----------------------------------------------------------------------------------------------


def _become(command: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Turn this forked process into the command, run it, and end as the interpreter ends."""
    status = 1
    try:
        _prepare(command, streams)
        status = _execute(command["args"])
        # As Py_Finalize does it.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def _prepare(command: dict[str, Any], streams: Sequence[int]) -> None:
    global _forks_itself
    if command["new_session"]:
        os.setsid()
    # High first: a stream may have the number of another's place.
    high = [os.dup(stream) for stream in streams]
    for number, stream in enumerate(high):
        os.dup2(stream, number)
    # As `subprocess` does it; the objects they belong to live in frames that this process never returns to.
    os.closerange(3, 1 + max(map(int, os.listdir("/proc/self/fd"))))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=unbuffered)  # type: ignore[union-attr]
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    import random

    from hydra.core.global_hydra import GlobalHydra

    from posttrain.console import console, main_process

    console.quiet = not main_process()  # it was made with the environment of the server
    from hydra.core.hydra_config import HydraConfig

    # Those of a pipeline that forks its stages.
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    random.seed()
    sys.modules["numpy"].random.seed()
    _forks_itself = True
    starts = subprocess.Popen
    for module in list(sys.modules.values()):  # among them those that import the class by name: torchrun's
        if vars(module).get("Popen") is starts:
            module.Popen = Popen  # type: ignore[attr-defined]


def _execute(args: list[str]) -> int:
    """Run a module, code or file as `python ARGS` does; returns the exit status."""
    kind = args[0] if args[0] in ("-m", "-c") else "file"
    sys.path[0] = {"-m": os.getcwd(), "-c": "", "file": os.path.dirname(os.path.abspath(args[0]))}[kind]
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[1:] = [*own, *(path for path in sys.path[1:] if path not in own)]
    importlib.invalidate_caches()
    try:
        if kind == "-m":
            sys.argv = args[1:]
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *args[2:]]
            main = type(sys)("__main__")
            main.__dict__["__builtins__"] = __builtins__
            sys.modules["__main__"] = main
            exec(compile(args[1], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = args
            runpy.run_path(args[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
