"""Run a command under the system call filters that a systemd unit asks for: `unit_filter.py UNIT COMMAND...`.

As systemd 252 does it (src/shared/seccomp-util.c): with libseccomp, and the groups that `systemd-analyze` names. A
script of the standard library alone, for any user may have to run it.
"""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
NE, EQ, MASKED_EQ = 1, 4, 7  # of libseccomp's enum scmp_compare
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}


class Compared(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def library():
    loaded = ctypes.CDLL("libseccomp.so.2")
    loaded.seccomp_init.restype = ctypes.c_void_p
    loaded.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compared)),
    )
    loaded.seccomp_load.argtypes = (ctypes.c_void_p,)
    return loaded


def fails(code: int) -> int:
    return 0x00050000 | code


def settings(unit: Path, name: str) -> list[str]:
    lines = unit.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def calls_of(name: str, sets: dict[str, set[str]]) -> set[str]:
    if not name.startswith("@"):
        return {name}
    return {call for each in sets[name] for call in calls_of(each, sets)}


def all_sets() -> dict[str, set[str]]:
    said = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True
    )
    sets: dict[str, set[str]] = {}
    current: set[str] = set()
    for line in said.stdout.splitlines():
        if line.startswith("@"):
            current = sets.setdefault(line.strip(), set())
        elif line.strip() and line.startswith(" ") and not line.strip().startswith("#"):
            current.add(line.strip())
    return sets


def allowed(unit: Path) -> set[str]:
    """Return the calls that the lines of SystemCallFilter leave, each line changing what those before it say."""
    sets, found = all_sets(), set(calls_of("@default", all_sets()))
    for line in settings(unit, "SystemCallFilter"):
        named = {call for each in line.lstrip("~").split() for call in calls_of(each, sets)}
        found = found - named if line.startswith("~") else found | named
    return found


def refuse(seccomp, default: int, rules: list[tuple[str, int, tuple[Compared, ...]]]) -> None:
    context = seccomp.seccomp_init(ctypes.c_uint32(default))
    for call, action, compared in rules:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            array = (Compared * len(compared))(*compared)
            assert seccomp.seccomp_rule_add_array(context, action, number, len(compared), array) == 0, call
    assert seccomp.seccomp_load(context) == 0


def confine(unit: Path) -> None:
    seccomp = library()
    families = " ".join(settings(unit, "RestrictAddressFamilies")).split()
    ours = {FAMILIES[name] for name in families}
    others = [("socket", fails(errno.EAFNOSUPPORT), (Compared(0, EQ, n, 0),)) for n in range(46) if n not in ours]
    both = PROT_WRITE | PROT_EXEC
    executable = [
        ("mmap", fails(errno.EPERM), (Compared(2, MASKED_EQ, both, both),)),
        ("mprotect", fails(errno.EPERM), (Compared(2, MASKED_EQ, PROT_EXEC, PROT_EXEC),)),
        ("shmat", fails(errno.EPERM), (Compared(2, MASKED_EQ, SHM_EXEC, SHM_EXEC),)),
    ]
    error = settings(unit, "SystemCallErrorNumber")
    default = fails(getattr(errno, error[0])) if error else KILL_PROCESS
    calls = [(name, ALLOW, ()) for name in sorted(allowed(unit))]
    calls += [(name, ALLOW, ()) for name in ("seccomp", "prctl")]
    if ours:
        refuse(seccomp, ALLOW, others)
    if settings(unit, "MemoryDenyWriteExecute") == ["yes"]:
        refuse(seccomp, ALLOW, executable)
    refuse(seccomp, default, calls)


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
