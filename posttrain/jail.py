"""The inside of `posttrain.sandbox`: shuts itself in, then runs the code it reads from standard input.

Started as a script of its own by a fresh interpreter (`python -I -S`), so it knows the standard library alone. What
the kernel offers is used, each part where it is permitted, and its result names those in force (`isolation`):

- namespaces: no network but a dead loopback, no other processes in sight, a file system of its own in the working
  folder, limited in size; when its first process ends, the kernel ends all others in it
- landlock: no file is opened but Python's own (to read) and those of the working folder
- user: root becomes nobody first
- limits: CPU time, memory, size of a file, open files, no further processes or threads
- hook: an audit hook of the interpreter denies network, processes and files outside with a message. It can not be
  removed, yet Python that sets out to can get around it: where the kernel's parts are refused it is no wall.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any

NOBODY = 65534
# linux/sched.h: new namespaces for mounts, IPC, users, processes and the network.
NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
# linux/landlock.h. These system calls have one number on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, READ_FILE, READ_DIR = 1, 4, 8
FILE_RIGHTS = {1: 13, 2: 14, 3: 15}  # how many access rights each version of the interface knows
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom")

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    channel = os.fdopen(order["channel"], "w", encoding="utf-8")
    os.set_inheritable(order["channel"], False)
    isolation: list[str] = []
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        isolation += become_nobody()
        isolation += namespaces(order)
        isolation += own_folder(order) if "namespaces" in isolation else []
    limits(order)
    roots = [*order["readable"], *SYSTEM]
    if sys.platform == "linux":
        isolation += landlock(roots)
    isolation += ["limits", "hook"]
    walls = {"namespaces", "landlock"} <= set(isolation)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.addaudithook(hook(os.getcwd(), tuple(os.path.realpath(root) for root in roots), walls and order["packages"]))
    for name in ("libc", "ctypes"):  # what was needed to shut it
        del globals()[name]
    for module in ("ctypes", "_ctypes"):
        del sys.modules[module]
    sys.path += order["path"]
    answer = call(order["source"], order["function"], order["arguments"])
    json.dump({**answer, "isolation": isolation}, channel)
    channel.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # neither atexit nor threads of the code


def call(source: str, function: str, arguments: list[Any]) -> dict[str, Any]:
    """`function(*arguments)` of `source`: its value, or what went wrong in one line."""
    names: dict[str, Any] = {"__name__": "sandbox", "__builtins__": __builtins__}
    try:
        exec(compile(source, "<code>", "exec"), names)
        if function not in names:
            return {"error": f"the code defines no function {function}"}
        value = names[function](*arguments)
        json.dumps(value)  # type and circularity, while an error can still be told
    except MemoryError:
        return {"error": "memory: more than the limit"}
    except SystemExit as stop:
        return {"error": f"SystemExit: {stop.code}"}
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC):
            return {"error": f"disk: more than the limit ({error.strerror})"}
        line = error.__traceback__
        while line and line.tb_next:
            line = line.tb_next
        where = f" (line {line.tb_lineno})" if line and line.tb_frame.f_code.co_filename == "<code>" else ""
        text = str(error).splitlines()
        return {"error": f"{type(error).__name__}{': ' + text[0][:500] if text else ''}{where}"}
    return {"value": value}


def become_nobody() -> list[str]:
    """Root could undo the rest, and limits on processes do not hold for it."""
    if os.geteuid() != 0:
        return []
    os.chown(".", NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    readable = os.access(json.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    os.setegid(0)
    if not readable:  # a Python in root's own home
        os.chown(".", 0, 0)
        return []
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self/uid_map stays root's
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # cleared by the change of user
    return ["user"]


def namespaces(order: dict[str, Any]) -> list[str]:
    """New namespaces; the process that enters them is a child, which this one waits for and ends at the deadline."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(NAMESPACES) != 0:
        return []
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        # Where AppArmor refuses it, the user has no name in the namespace, and no more rights than before.
        with suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return ["namespaces"]
    deadline = time.monotonic() + order["seconds"]
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)  # the first of its namespace: the kernel ends the others
        time.sleep(0.002)
    os._exit(0)


def own_folder(order: dict[str, Any]) -> list[str]:
    """A file system in memory over the working folder: limited as a whole, and gone with the process."""
    folder = os.getcwd().encode()
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return []
    size = f"size={order['disk']},nr_inodes=1000,mode=0700".encode()
    if libc.mount(b"tmpfs", folder, b"tmpfs", MS_NOSUID | MS_NODEV, size) != 0:
        return []
    try:
        os.chdir(folder)
    except PermissionError:  # nobody may not enter root's folder for temporary files
        return []
    return ["folder"]


def limits(order: dict[str, Any]) -> None:
    seconds = int(order["seconds"]) + 1
    for name, value in (
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_AS", order["memory"]),
        ("RLIMIT_FSIZE", order["disk"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_CORE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write too many is then an error


def landlock(roots: list[str]) -> list[str]:
    """Source: kernel.org, "Landlock: unprivileged access control"."""
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1 or platform.machine() not in ("x86_64", "aarch64"):
        return []
    every = (1 << FILE_RIGHTS.get(version, 15)) - 1
    handled = struct.pack("QQ", every, 3) if version >= 4 else struct.pack("Q", every)  # 3: TCP bind and connect
    rules = libc.syscall(CREATE_RULESET, handled, len(handled), 0)
    allowed = [(root, EXECUTE | READ_FILE | READ_DIR) for root in roots if os.path.exists(root)] + [(".", every)]
    for path, rights in allowed:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = rights if os.path.isdir(path) else rights & (EXECUTE | READ_FILE)
        libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = libc.syscall(RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return ["landlock"] if done else []


def hook(folder: str, roots: tuple[str, ...], native: bool) -> Any:
    """What the audit hook calls: raises for events of network, processes, and files outside.

    Args:
        folder: where files may be written.
        roots: where files may be read beside it.
        native: whether libraries may be loaded by hand, as some packages do.
    """
    denied: tuple[str, ...] = (
        "socket.",
        "subprocess.",
        "pty.",
        "os.fork",
        "os.exec",
        "os.posix_spawn",
        "os.system",
        "os.spawn",
    )
    denied += ("gc.get_", "os.kill", "syslog.", "sys.addaudithook") + (() if native else ("ctypes.",))
    writes: tuple[str, ...] = (
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "os.symlink",
        "os.link",
        "os.chmod",
        "os.chown",
    )
    writes += ("os.truncate", "os.utime", "os.setxattr")
    modules = ("_posixsubprocess",) if native else ("_posixsubprocess", "_ctypes")
    real, join = os.path.realpath, os.path.join
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def within(path: Any, places: tuple[str, ...]) -> bool:
        if isinstance(path, int) or path is None:
            return True
        where = real(os.fsdecode(path))
        return any(where == place or where.startswith(join(place, "")) for place in places)

    def check(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(denied):
            raise PermissionError(f"{event}: not permitted in the sandbox")
        if event == "import" and args[0] in modules:
            raise ImportError(f"{args[0]}: not permitted in the sandbox")
        if event == "open":
            places = (folder,) if (args[2] or 0) & flags and args[0] != os.devnull else (folder, *roots)
            if not within(args[0], places):
                raise PermissionError(f"open {args[0]!r}: outside the sandbox's folder")
        elif event in ("os.listdir", "os.scandir", "os.chdir"):
            if not within(args[0], (folder, *roots)):
                raise PermissionError(f"{event} {args[0]!r}: outside the sandbox's folder")
        elif event in writes and not all(within(a, (folder,)) for a in args if isinstance(a, (str, bytes))):
            raise PermissionError(f"{event} {args[0]!r}: outside the sandbox's folder")

    return check


if __name__ == "__main__":
    main()
