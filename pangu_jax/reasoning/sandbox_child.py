"""What runs inside a sandbox: a script that imports nothing of this package, nor beyond Python.

It shuts itself in, then is one of two. The candidate runs a model's code and answers calls of it.
The tester runs tests, in which some names stand for calls of the candidate, and says how many
passed. The candidate has neither the tests nor a way to the verdict, and what it
returns arrives as plain values: numbers, texts, and lists, tuples, sets and dictionaries of them.

Arguments: "candidate" or "tester", a JSON object (`sandbox.Limits`, and what to mount), and the
file descriptor to write calls or replies to. The candidate reads calls from stdin, the tester
replies; the tester's task comes from a descriptor of its own, its verdict goes to stdout: a line
once both are shut in, and then what came out.
"""

import ast
import builtins
import contextlib
import ctypes
import importlib
import json
import os
import platform
import resource
import struct
import sys
from decimal import Decimal
from fractions import Fraction

LONGEST = 2**24  # bytes of a call or a reply
READY = "ready"  # what each of the two says when it is shut in
LIBC = ctypes.CDLL(None, use_errno=True)

# Processes, other processes' memory, the network, the system's settings, and memory that no limit
# of a process counts. (number on x86_64, on aarch64; None where there is none)
REFUSED = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "socket": (41, 198),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "personality": (135, 92),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # By which a process would leave the group that is killed, or outlive its parent.
    "setsid": (112, 157), "setpgid": (109, 154), "prctl": (157, 167),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # column, audit, clone


def call(name, *arguments):
    """A function of the C library, which must not fail."""
    given = [ctypes.c_long(x) if isinstance(x, int) else x for x in arguments]
    if getattr(LIBC, name)(*given) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount_all(links, folders, space):
    """Makes a file system of some folders, read-only, and an empty /tmp; nothing else is left.

    For one who is root in a new user and mount namespace.
    """
    read_only = struct.pack("4Q", 1 | 2 | 4, 0, 0, 0)  # and neither devices nor set-user-id
    root = b"/proc"  # which is on every system and is not among what is mounted
    call("mount", None, b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE
    call("mount", b"tmpfs", root, b"tmpfs", 2 | 4, b"size=1m,mode=755")
    for folder in folders:
        source = os.fsencode(folder)
        target = root + source
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:  # a device
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT))
        call("mount", source, target, None, 0x1000 | 0x4000, None)  # MS_BIND | MS_REC
        if os.path.isdir(source):
            settings(target, 0x8000, read_only)  # AT_RECURSIVE
    for name, target in links:
        os.symlink(target, root + os.fsencode(name))
    os.makedirs(root + b"/tmp", exist_ok=True)
    options = f"size={space},nr_inodes=1024,mode=777".encode()
    call("mount", b"tmpfs", root + b"/tmp", b"tmpfs", 2 | 4, options)
    os.chdir(root)
    call("syscall", REFUSED["pivot_root"][MACHINES[platform.machine()][0]], b".", b".")
    call("umount2", b".", 2)  # MNT_DETACH: what was the root
    settings(b"/", 0, read_only)
    os.chdir("/tmp")


def settings(path, flags, attributes):
    """mount_setattr, for which not every C library has a name."""
    call("syscall", 442, -100, path, flags, attributes, len(attributes))


def program():
    """The filter of system calls, as the kernel reads it."""
    column, audit, clone = MACHINES[platform.machine()]
    load, equal, least, some, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse, missing = 0x7FFF0000, 0x80000000, 0x50001, 0x50026  # EPERM, ENOSYS
    steps = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the other ABI's numbers
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            steps += [(equal, 0, 1, numbers[column]), (give, 0, 0, refuse)]
    steps += [(equal, 0, 1, 435), (give, 0, 0, missing)]  # clone3, whose flags lie in memory
    # clone makes threads only, by CLONE_THREAD.
    steps += [(equal, 0, 3, clone), (load, 0, 0, 16), (some, 1, 0, 0x10000), (give, 0, 0, refuse)]
    steps += [(give, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def shut(limits):
    """Gives up every right that is not needed; there is no way back."""
    for name, value in limits["resources"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    header = struct.pack("Ii", 0x20080522, 0)
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("capset", header, bytes(24))
    steps = ctypes.create_string_buffer(program())
    filter_ = struct.pack("HxxxxxxP", (len(steps) - 1) // 8, ctypes.addressof(steps))
    call("prctl", 22, 2, filter_, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def encoded(value, keep):
    """A value as JSON; `keep` gives what is not plain a number, or refuses."""
    if value is None or isinstance(value, bool):
        return value
    for kind, tag, write in SCALARS:
        if isinstance(value, kind):
            return [tag, write(value)]
    for kind, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z")):
        if isinstance(value, kind):
            return [tag, [encoded(item, keep) for item in kind.__iter__(value)]]
    if isinstance(value, dict):
        items = dict.items(value)
        return ["d", [[encoded(key, keep), encoded(item, keep)] for key, item in items]]
    return ["o", keep(value)]


SCALARS = (
    (str, "u", lambda x: str.__str__(x)),
    (int, "i", lambda x: hex(int.__int__(x))),
    (float, "f", lambda x: float.hex(float.__float__(x))),
    (complex, "c", lambda x: [float.hex(x.real), float.hex(x.imag)]),
    ((bytes, bytearray), "b", lambda x: bytes(x).hex()),
    (Fraction, "q", str),
    (Decimal, "m", str),
)


def decoded(value, find):
    """The value of JSON that `encoded` made; `find` gives what a number stands for."""
    if value is None or isinstance(value, bool):
        return value
    tag, inner = value
    if tag in READ:
        return READ[tag](inner)
    if tag == "d":
        return {decoded(key, find): decoded(item, find) for key, item in inner}
    if tag == "o":
        return find(inner)
    kind = {"l": list, "t": tuple, "s": set, "z": frozenset}[tag]
    return kind([decoded(item, find) for item in inner])


READ = {
    "u": str,
    "i": lambda x: int(x, 16),
    "f": float.fromhex,
    "c": lambda x: complex(*map(float.fromhex, x)),
    "b": bytes.fromhex,
    "q": Fraction,
    "m": Decimal,
}


class Line:
    """Two pipes, for JSON a line."""

    def __init__(self, read, write):
        self.read, self.write = os.fdopen(read, "rb"), write

    def put(self, value):
        """Writes one, or says that it is too long."""
        data = json.dumps(value).encode() + b"\n"
        if len(data) > LONGEST:
            raise ValueError("the value is too long")
        while data:
            data = data[os.write(self.write, data) :]

    def get(self):
        """Reads one; EOFError where there is none any more."""
        line = self.read.readline(LONGEST + 1)
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)


def candidate(line):
    """Runs the code that comes first, then answers calls until there are no more."""
    names, kept = {"__name__": "candidate"}, []

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    def find(target):
        return kept[target] if isinstance(target, int) else names[target]

    def answer(what, target, *rest):
        if what == "load":
            exec(compile(target, "<candidate>", "exec"), names)
            return None
        found = find(target)
        if what == "call":
            positional, named = (decoded(part, find) for part in rest)
            return found(*positional, **named)
        if what == "get":
            return getattr(found, rest[0])
        if what == "list":
            return list(found)
        return found  # a name

    with contextlib.suppress(EOFError):
        while True:
            request = line.get()
            try:
                line.put(["ok", encoded(answer(*request), keep)])
            except Exception as error:
                line.put(["raise", type(error).__name__, str(error)[:300]])


class CandidateError(Exception):
    """What the code raised, where that is no exception of Python's own."""


class Ended(BaseException):
    """There is no candidate any more, or it does not keep to the form; no test may catch this."""


class Remote:
    """Something of the candidate's that is no plain value; equal to nothing."""

    def __init__(self, ask, target):
        self.__dict__.update(_ask=ask, _target=target)

    def __call__(self, *positional, **named):
        """What the candidate's own gives, when it is called so."""
        return self._ask("call", self._target, positional, named)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", self._target, name)

    def __iter__(self):
        return iter(self._ask("list", self._target))

    def __eq__(self, other):
        raise TypeError("a value that is not plain cannot be compared")

    def __bool__(self):
        raise TypeError("a value that is not plain is neither true nor false")


def sent(value):
    """What a value that is not plain is to the candidate: one of its own, or nothing."""
    if isinstance(value, Remote):
        return value._target
    raise TypeError(f"a {type(value).__name__} cannot be given to the code")


def tester(line, task):
    """Runs each of the tests and counts those that pass."""

    def ask(what, target, *rest):
        rest = [part if isinstance(part, str) else encoded(part, sent) for part in rest]
        line.put([what, target, *rest])
        try:
            kind, *found = line.get()
            if kind == "ok":
                return decoded(found[0], lambda number: Remote(ask, int(number)))
            name, text = map(str, found)
        except Exception as error:
            raise Ended from error
        raise raised(name, text)

    names = {"__name__": "tester"}
    try:
        used = mentioned(task["tests"])
        tests = [compile(test, "<tests>", "exec") for test in task["tests"]]
        exec(compile(task["setup"], "<setup>", "exec"), names)
    except Exception as error:
        return {"wrong": explained(error)}
    for name in used & sys.stdlib_module_names - set(names):
        names[name] = importlib.import_module(name)  # some tests leave that to the code
    try:
        ask("load", task["source"])
        for name in task["names"]:
            with contextlib.suppress(KeyError):  # the code lacks it, so a test that uses it fails
                value = ask("name", name)
                plain = not isinstance(value, Remote)
                names[name] = value if plain else Remote(ask, name)
    except (Exception, Ended) as error:
        return {"loaded": False, "passed": 0, "error": explained(error)}
    passed, first = 0, None
    for test in tests:
        try:
            exec(test, names)
            passed += 1
        except Exception as error:
            first = first or explained(error)
        except Ended as error:
            first = first or explained(error)
            break
    return {"loaded": True, "passed": passed, "error": first}


def raised(name, text):
    """An exception of Python's own, by its name; another is a `CandidateError`."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(Exception):  # UnicodeDecodeError and the like want more
            return kind(text[:300])
    return CandidateError(f"{name:.40}: {text:.300}")


def mentioned(tests):
    """The names that tests use."""
    nodes = (node for test in tests for node in ast.walk(ast.parse(test)))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def explained(error):
    """The kind of an error, and what it says; of a failed test nothing, as that would tell it."""
    if isinstance(error, Ended):
        return "the code has ended"
    said = "" if isinstance(error, AssertionError) else f": {str(error)[:200]}"
    return type(error).__name__ + said


def main():
    """Shuts itself in and does its part."""
    part, given, write = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    if given["mount"] is not None:
        mount_all(*given["mount"])
    task = None
    if part == "tester":
        with os.fdopen(int(sys.argv[4]), encoding="utf-8") as file:
            task = json.load(file)
    nothing = os.open("/dev/null", os.O_RDWR)
    line = Line(os.dup(0), write)
    os.dup2(nothing, 0)
    if part == "candidate":
        os.dup2(1, 2)
        sys.stdout.reconfigure(line_buffering=True)
        shut(given)
        line.put(READY)
        candidate(line)
        return
    verdict = os.dup(1)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    shut(given)
    line.get()  # the candidate's; it has no code yet that could do anything else
    os.write(verdict, f"{READY}\n".encode())
    os.write(verdict, json.dumps(tester(line, task)).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
