"""The bounds of a process that opens strangers' files: nothing written, no network, no further
process, bounded memory. Linux: Landlock and a seccomp filter; elsewhere limits of resources alone.

A decoder with a flaw may come to run what a file says. What it asks for is refused, not punished,
so that an honest decoder that asks for it too fails in words.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_NO_NEW_PRIVS, _SECCOMP_FILTER, _ALL_THREADS = 38, 1, 1

# Landlock: numbers of its calls (the same everywhere but on Alpha) and rights, by the version of
# its interface that brought them.
_CREATE_RULESET, _RESTRICT_SELF, _VERSION = 444, 446, 1
_EXECUTE, _READ = 1 << 0, 0b1100  # of files and folders: what is read stays allowed
_FILES = {1: (1 << 13) - 1 & ~_READ, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_TCP, _TCP_SINCE = 0b11, 4  # bind, connect
_SCOPES, _SCOPES_SINCE = 0b11, 6  # abstract sockets and signals of processes outside


def close_files() -> list[str]:
    """No file is written, made, removed or run from here on; call it before other threads are
    started. What there is to enforce that, by name."""
    found = []
    with suppress(ImportError, OSError, ValueError):
        import resource

        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))
        found.append("resource limits")
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            _drop_capabilities()
        with suppress(OSError, AttributeError):
            _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
            found.append(f"Landlock {_restrict_files()}")
    return found


def close_system(memory: int | None = None) -> list[str]:
    """No network and no further process from here on, in any thread, and as a second bar no file
    that is written. memory: bytes that may be taken beyond those that are. What there is to
    enforce that, by name.

    Call it when the libraries that decode are imported: some look for their parts by a program.
    """
    found = []
    with suppress(ImportError, OSError, ValueError):
        _limit_resources(memory)
        found.append("resource limits")
    if sys.platform == "linux":
        with suppress(OSError, AttributeError, KeyError):
            _filter_calls()
            found.append("seccomp")
    return found


# What a worker is kept from, and which bounds can keep it from that by themselves.
KEPT_FROM = {
    "network": ("seccomp",),
    "writes": ("Landlock", "seccomp"),
    "processes": ("seccomp", "resource limits" if sys.platform == "darwin" else "seccomp"),
    "memory": ("resource limits",),
}


def try_bounds(folder: str, memory: int | None) -> tuple[str, ...]:
    """What this process can do of what it is to be kept from, found by doing it. folder: one to
    write to, that holds a file of the name `file`."""
    import socket

    trials: dict[str, tuple[Callable[[], object], ...]] = {
        "network": (_open_port, _send_datagram, socket.socketpair),
        "writes": (
            lambda: os.mkdir(os.path.join(folder, "made")),  # noqa: PTH102, PTH118
            lambda: os.close(os.open(os.path.join(folder, "new"), os.O_CREAT | os.O_WRONLY)),  # noqa: PTH118
            lambda: os.close(os.open(os.path.join(folder, "file"), os.O_WRONLY)),  # noqa: PTH118
            lambda: os.unlink(os.path.join(folder, "file")),  # noqa: PTH108, PTH118
        ),
        "processes": (
            _fork,
            lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}),
            lambda: os.kill(os.getppid(), 0),
        ),
        "memory": (lambda: bytearray((memory or 0) + (1 << 28)),),
    }
    return tuple(name for name, ways in trials.items() if any(map(_succeeds, ways)))


def _succeeds(way: Callable[[], object]) -> bool:
    try:
        way()
    except (OSError, MemoryError, AttributeError):
        return False
    return True


def _open_port() -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 0))
        one.listen()


def _send_datagram() -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"", ("127.0.0.1", 9))


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    """A function of the C library; -1 is an OSError. Integers are passed as long."""
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(getattr(_libc(), name)(*passed))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _drop_capabilities() -> None:
    """Of what root may do, only the reading of others' files is left."""
    reading = 1 << 2  # CAP_DAC_READ_SEARCH
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    held = ctypes.create_string_buffer(24)
    _call("capget", header, held)
    kept = [one & reading if at < 3 else 0 for at, one in enumerate(struct.unpack("=6I", held.raw))]
    kept[2] = 0  # none for a program that would be run
    _call("capset", header, ctypes.create_string_buffer(struct.pack("=6I", *kept)))


def _restrict_files() -> int:
    """The version of Landlock's interface that is in force."""
    version = _call("syscall", _CREATE_RULESET, None, 0, _VERSION)
    files = sum(rights for since, rights in _FILES.items() if since <= version)
    network = _TCP if version >= _TCP_SINCE else 0
    scopes = _SCOPES if version >= _SCOPES_SINCE else 0
    size = 24 if scopes else 16 if network else 8
    rules = ctypes.create_string_buffer(struct.pack("=3Q", files, network, scopes)[:size], size)
    ruleset = _call("syscall", _CREATE_RULESET, rules, size, 0)
    try:
        _call("syscall", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


_LIBRARIES = 1 << 30  # bytes of addresses for what is mapped later: libraries, stacks, arenas


def _limit_resources(memory: int | None) -> None:
    import resource

    if sys.platform == "darwin":  # there it counts processes; elsewhere threads too
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if memory is None:
        return
    pages = [0] * 7
    with suppress(OSError):
        pages = [int(one) for one in Path("/proc/self/statm").read_text().split()]
    size = resource.getpagesize()
    for limit, taken, more in (
        (resource.RLIMIT_DATA, pages[5], 0),
        (resource.RLIMIT_AS, pages[0], _LIBRARIES),
    ):
        bound = taken * size + memory + more
        _, most = resource.getrlimit(limit)
        if most == resource.RLIM_INFINITY or bound < most:
            resource.setrlimit(limit, (bound, bound))


# What follows is one table: a system call, its numbers on x86-64 and on ARM64 (- where there is
# none), in the order of what it would be good for.
_REFUSED = """
socket 41 198, connect 42 203, accept 43 202, sendto 44 206, recvfrom 45 207, sendmsg 46 211,
recvmsg 47 212, bind 49 200, listen 50 201, socketpair 53 199, setsockopt 54 208,
accept4 288 242, sendmmsg 307 269, recvmmsg 299 243,

fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, ptrace 101 117,
process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272, tkill 200 130,
rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_send_signal 424 424,
pidfd_open 434 434, pidfd_getfd 438 438, process_madvise 440 440, process_mrelease 448 448,
setpgid 109 154, setsid 112 157, setpriority 141 140, ioprio_set 251 30,
sched_setparam 142 118, sched_setscheduler 144 119, sched_setattr 314 274,
migrate_pages 256 238, move_pages 279 239, unshare 272 97, setns 308 268,

creat 85 -, truncate 76 45, ftruncate 77 46, fallocate 285 47, rename 82 -, renameat 264 38,
renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, link 86 -, linkat 265 37,
unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36, mknod 133 -, mknodat 259 33,
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55,
lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88,
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, setxattrat 463 463, removexattr 197 14,
lremovexattr 198 15, fremovexattr 199 16, removexattrat 466 466, file_setattr 469 469,
flock 73 32, mq_open 240 180, mq_unlink 241 181, msgget 68 186, semget 64 190, shmget 29 194,
shmat 30 196, memfd_create 319 279, memfd_secret 447 447, sync 162 81, syncfs 306 267,

mount 165 40, umount2 166 39, pivot_root 155 41, move_mount 429 429, open_tree 428 428,
open_tree_attr 467 467, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433,
mount_setattr 442 442, chroot 161 51, acct 163 89, swapon 167 224, swapoff 168 225,
quotactl 179 60, quotactl_fd 443 443, nfsservctl 180 42, lookup_dcookie 212 18,
open_by_handle_at 304 265, fanotify_init 300 262, fanotify_mark 301 263,
reboot 169 142, sethostname 170 161, setdomainname 171 162, init_module 175 105,
delete_module 176 106, finit_module 313 273, kexec_load 246 104, kexec_file_load 320 294,
syslog 103 116, iopl 172 -, ioperm 173 -, modify_ldt 154 -, settimeofday 164 170,
clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266, personality 135 92,
vhangup 153 58, uselib 134 -, userfaultfd 323 282, perf_event_open 298 241, bpf 321 280,
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, keyctl 250 219,
add_key 248 217, request_key 249 218, setuid 105 146, setgid 106 144, setreuid 113 145,
setregid 114 143, setgroups 116 159, setresuid 117 147, setresgid 119 149, setfsuid 122 151,
setfsgid 123 152, capset 126 91, lsm_set_self_attr 460 460
"""
_ABSENT = "clone3 435 435, openat2 437 437"  # as on an older kernel: others are used in their place
_SEEN = """
open 2 -, openat 257 56, clone 56 220, kill 62 129, tgkill 234 131, prlimit64 302 261,
sched_setaffinity 203 122, ioctl 16 29, fcntl 72 25
"""
_LAST = 469  # newer calls are absent, and so are those of other interfaces
# By machine: its column, the kernel's number of it, and that of the call that sets a filter.
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}

_WRITING = 0b11 | 0o100 | 0o1000 | 0o20000000  # write, create, truncate, nameless file
_CLONE_THREAD = 0x10000
# Of a terminal or pipe: what it is, how large, how much waits; of a descriptor: who inherits it.
_IOCTLS = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_SIGNALLING = (8, 10, 15, 1024, 1026)  # of fcntl: who is sent a signal; leases, notices

_LOAD, _EQUAL, _ABOVE, _BITS, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_CALL, _MACHINE = 0, 4  # where they lie in what a filter sees; arguments follow behind 16 bytes

Step = tuple[int, int, int, int]  # operation, jump if so, jump if not, value


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = [row.split() for row in table.replace("\n", " ").split(",") if row.strip()]
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def _refusal(number: int = errno.EPERM) -> Step:
    return (_RETURN, 0, 0, _ERROR | number)


def _argument(position: int) -> Step:
    return (_LOAD, 0, 0, 16 + 8 * position)


def _only(position: int, values: tuple[int, ...], number: int = errno.EPERM) -> list[Step]:
    """Allowed where an argument is one of the values."""
    count = len(values)
    tests = [(_EQUAL, count - at, 0, value) for at, value in enumerate(values)]
    return [_argument(position), *tests, _refusal(number), (_RETURN, 0, 0, _ALLOW)]


def _never(position: int, values: tuple[int, ...]) -> list[Step]:
    """Refused where an argument is one of the values."""
    count = len(values)
    tests = [(_EQUAL, count - at, 0, value) for at, value in enumerate(values)]
    return [_argument(position), *tests, (_RETURN, 0, 0, _ALLOW), _refusal()]


def _bits(position: int, mask: int, wanted: bool) -> list[Step]:
    """Allowed where any of these bits is set, or where none is."""
    ends = [_refusal(), (_RETURN, 0, 0, _ALLOW)]
    return [_argument(position), (_BITS, int(wanted), int(not wanted), mask), *ends]


def _program(column: int, machine: int) -> list[Step]:
    own = os.getpid()
    seen = {
        "open": _bits(1, _WRITING, wanted=False),
        "openat": _bits(2, _WRITING, wanted=False),
        "clone": _bits(0, _CLONE_THREAD, wanted=True),
        "kill": _only(0, (own,)),
        "tgkill": _only(0, (own,)),
        "prlimit64": _only(0, (0, own)),
        "sched_setaffinity": _only(0, (0, own)),
        "ioctl": _only(1, _IOCTLS, errno.ENOTTY),
        "fcntl": _never(1, _SIGNALLING),
    }
    steps: list[Step] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, machine),
        _refusal(),
        (_LOAD, 0, 0, _CALL),
        (_ABOVE, 0, 1, _LAST),
        _refusal(errno.ENOSYS),
    ]
    blocks = [(number, seen[name]) for name, number in _numbers(_SEEN, column).items()]
    blocks += [(number, [_refusal(errno.ENOSYS)]) for number in _numbers(_ABSENT, column).values()]
    blocks += [(number, [_refusal()]) for number in _numbers(_REFUSED, column).values()]
    for number, block in blocks:
        steps += [(_EQUAL, 0, len(block), number), *block]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def _filter_calls() -> None:
    """Every thread of this process, and those to come, is filtered."""
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, "no filter for this machine")
    column, machine, call = _MACHINES[platform.machine()]
    steps = _program(column, machine)
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(steps), ctypes.addressof(kept))
    call = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    result = _call(
        "syscall", call, _SECCOMP_FILTER, _ALL_THREADS, ctypes.create_string_buffer(program)
    )
    if result:
        raise OSError(errno.EBUSY, "a thread cannot be filtered")
