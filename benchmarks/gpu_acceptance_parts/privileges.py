"""Giving up privileges inside a process, to see what the driver answers without them."""

import ctypes
import os
from typing import Literal


User = Literal["current", "no-capabilities", "nobody"]
USERS: tuple[User, ...] = ("current", "no-capabilities", "nobody")

NOBODY = 65534
# linux/capability.h and linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def become(user: User) -> None:
    """Continue as `user`, permanently. Raises OSError where that is refused."""
    if user == "nobody":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if user != "current":
        drop_capabilities()


def drop_capabilities() -> None:
    """Empty all capability sets of this process, and let no program it starts gain any."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(_CAPABILITY_VERSION_3, 0)
    empty = (_Sets * 2)()  # version 3 has two words a set
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _check(libc.capset(ctypes.byref(header), ctypes.byref(empty)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
