"""The subprocess of `posttrain.rewards.sandbox`: isolates itself, then runs the code that it reads from stdin.

Started as a script by a fresh interpreter (`python -I -S`), so it knows the standard library alone. What
the kernel offers is used, each part where it is permitted, and its result names those in force (`isolation`):

- namespaces: no network but a dead loopback, no other processes in sight, a file system of its own in the working
  folder, limited in size; when its first process ends, the kernel ends all others in it
- landlock: no file is opened but Python's own (to read) and those of the working folder
- seccomp: no system calls that reach the network, start or touch processes, leave the session or the death of the
  parent, change the mode, owner or times of a file, or leave something behind without one
- user: root becomes nobody first
- capabilities: none is left, and none can come back
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
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
SECCOMP_MODE_FILTER = 2
# linux/landlock.h. These system calls have one number on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, READ_FILE, READ_DIR = 1, 4, 8
FILE_RIGHTS = {1: 13, 2: 14, 3: 15}  # how many access rights each version of the interface knows
TCP, SCOPES = 3, 3  # bind and connect, from version 4; abstract unix sockets and signals, from version 6
# System calls that fail: by name, with their numbers on x86_64 and aarch64. Source: Linux, unistd.h of either.
CALLS = """
socket 41 198, socketpair 53 199, sendto 44 206, sendmsg 46 211, sendmmsg 307 269, io_uring_setup 425 425,
setsid 112 157, setpgid 109 154,
fork 57 -, vfork 58 -, clone 56 220, clone3 435 435, execve 59 221, execveat 322 281,
kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_open 434 434,
pidfd_send_signal 424 424, pidfd_getfd 438 438, ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271,
process_madvise 440 440, kcmp 312 272, setpriority 141 140, ioprio_set 251 30, sched_setaffinity 203 122,
sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274,
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54,
utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, truncate 76 45,
memfd_create 319 279, memfd_secret 447 447, shmget 29 194, semget 64 190, msgget 68 186, mq_open 240 180,
unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, fsopen 430 430,
fsconfig 431 431, fsmount 432 432, open_tree 428 428, move_mount 429 429, mount_setattr 442 442,
open_by_handle_at 304 265, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, add_key 248 217,
request_key 249 218, keyctl 250 219, quotactl 179 60, inotify_add_watch 254 27"""
UNKNOWN = 463  # numbers from here on are of later kernels, or of another interface (x32)
# System calls that fail for some values of one argument: name, numbers, which argument, values. F_SETOWN and its kin
# let the kernel send any signal to any process of the same user. PR_SET_PDEATHSIG has this process die with its parent.
ARGUMENTS = (
    ("fcntl", (72, 25), 1, (8, 10, 15, 1024, 1026)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
    (
        "ioctl",
        (16, 29),
        1,
        (0x8901, 0x8902, 0x5452, 0x5412, 0x541C),
    ),  # FIOSETOWN, SIOCSPGRP, FIOASYNC, TIOCSTI, TIOCLINUX
    ("prctl", (157, 167), 0, (PR_SET_PDEATHSIG,)),
)
MACHINES = {"x86_64": (0, 0xC000003E, 302), "aarch64": (1, 0xC00000B7, 261)}  # column, AUDIT_ARCH_*, prlimit64
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
        isolation += no_capabilities()
        isolation += landlock(roots)
        isolation += seccomp()
    isolation += ["limits", "hook"]
    walls = {"landlock", "seccomp"} <= set(isolation)
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
    """Change from root to nobody: root could undo the other parts, and limits on processes do not hold for it."""
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
    # On the parent's SIGTERM this process kills the child before it ends: a child in another session would survive it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return ["namespaces"]
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    deadline = time.monotonic() + order["seconds"]
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)  # the first of its namespace: the kernel ends the others
        time.sleep(0.002)
    os._exit(0)


def no_capabilities() -> list[str]:
    """Empty all sets of capabilities, the bounding one too: root would have its own, or those of its namespace."""
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(64):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    header, kept = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), ctypes.create_string_buffer(24)
    libc.capget(header, kept)
    _, *low, _, high, inheritable = struct.unpack("=6I", kept.raw)
    libc.capset(header, struct.pack("=6I", 0, *low, 0, high, inheritable))
    try:
        with open(json.__file__):
            pass
    except PermissionError:  # a Python of another user, which only root's rights can read
        libc.capset(header, kept.raw)
        return []
    return ["capabilities"] if libc.capset(header, bytes(24)) == 0 else []


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
    handled = struct.pack("QQQ", every, TCP if version >= 4 else 0, SCOPES if version >= 6 else 0)
    handled = handled[: 24 if version >= 6 else 16 if version >= 4 else 8]
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


def seccomp() -> list[str]:
    """A filter of system calls. Source: kernel.org, "Seccomp BPF"; linux/filter.h, linux/seccomp.h."""
    if platform.machine() not in MACHINES or struct.calcsize("P") != 8:
        return []
    column, architecture, prlimit = MACHINES[platform.machine()]
    numbers = [int(n) for call in CALLS.split(",") if (n := call.split()[1 + column]) != "-"]
    load, equal, least, end = 0x20, 0x15, 0x35, 0x06  # codes of BPF
    allow, refuse, unknown = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS

    def by_argument(number: int, argument: int, values: tuple[int, ...], found: int, other: int) -> list[Any]:
        """For one system call: `found` where the lower half of the argument, an int, is among the values."""
        tests = [step for value in values for step in ((equal, 0, 1, value), (end, 0, 0, found))]
        return [(equal, 0, len(tests) + 2, number), (load, 0, 0, 16 + 8 * argument), *tests, (end, 0, 0, other)]

    # (code, steps to skip where true, where false, operand); at 4 is the architecture, at 0 the number, from 16 on are
    # the arguments. prlimit64 may change this process's own limits alone.
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, unknown), (load, 0, 0, 0)]
    program += [(least, 0, 1, UNKNOWN), (end, 0, 0, unknown)]
    program += by_argument(prlimit, 0, (0,), allow, refuse)
    for _, calls, argument, values in ARGUMENTS:
        program += by_argument(calls[column], argument, values, refuse, allow)
    program += [(equal, len(numbers) - n, 0, number) for n, number in enumerate(numbers)]
    program += [(end, 0, 0, allow), (end, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return ["seccomp"] if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters, 0, 0) == 0 else []


def hook(folder: str, roots: tuple[str, ...], native: bool) -> Any:
    """The function of the audit hook: raises for events of network, processes, and files outside.

    Args:
        folder: where files may be written.
        roots: where files may be read next to it.
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
    denied += ("os.kill", "resource.prlimit", "gc.get_", "syslog.", "sys.addaudithook")
    denied += () if native else ("ctypes.",)
    writes = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown"}
    writes |= {"os.truncate", "os.utime", "os.setxattr", "os.removexattr", "sqlite3.connect"}
    modules = ("_posixsubprocess",) if native else ("_posixsubprocess", "_ctypes")
    real, join = os.path.realpath, os.path.join
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def within(path: Any, places: tuple[str, ...]) -> bool:
        if isinstance(path, int) or path is None:
            return True
        path = os.fsdecode(path)
        if ".." in path.split(os.sep) and not path.startswith(os.sep):
            return False  # may be meant from a directory other than the current one, which the event does not name
        where = real(path)
        return any(where == place or where.startswith(join(place, "")) for place in places)

    def check(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(denied):
            raise PermissionError(f"{event}: not permitted in the sandbox")
        if event == "import" and (args[0].rpartition(".")[2] in modules or (args[1] and within(args[1], (folder,)))):
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
