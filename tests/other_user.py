# SPDX-License-Identifier: Apache-2.0
"""Runs something in a process of another user, as an agent without root runs.

The process is forked, so that it needs no right to read the code of the tests.
"""

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

import pytest

from tools.waiting import TIMEOUT_SECONDS

AGENT = 64901  # no user of the machine
NAMELESS = 64902
NOBODY = 65534

_FOWNER = 3
_CAP_VERSION_3 = 0x20080522
_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 4
_AMBIENT, _AMBIENT_RAISE = 47, 2
_SET_DUMPABLE = 4
_NEW_USER = 0x10000000


def run(work: Callable[[], Any], *, fowner: bool = False, own_namespace: bool = False) -> Any:
    """Do work as the user ``AGENT``; gives what it returns, or ``(class, text)`` of its error.

    :param fowner: with CAP_FOWNER as its only capability, which programs it starts inherit
    :param own_namespace: in a user namespace, where it has every capability, and none of
        them counts for a file of another user, as with an NFS server
    """
    if os.geteuid() != 0:
        pytest.skip('only root becomes another user')
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(
        target=_work, args=(work, sending, fowner, own_namespace)
    )
    process.start()
    sending.close()
    try:
        return receiving.recv()
    finally:
        process.join(TIMEOUT_SECONDS)


def _work(
    work: Callable[[], Any], sending: connection.Connection, fowner: bool, own_namespace: bool
) -> None:
    try:
        _become_agent(fowner)
        if own_namespace:
            _enter_namespace()
        sending.send(work())
    except BaseException as exc:  # noqa: BLE001 - the other process judges it
        sending.send((type(exc).__name__, str(exc)))
    sending.close()
    os._exit(0)


def _become_agent(fowner: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if fowner:
        _call(libc.prctl, _SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(AGENT, AGENT, AGENT)
    os.setresuid(AGENT, AGENT, AGENT)
    if fowner:
        only = 1 << _FOWNER
        header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
        _call(libc.capset, header, (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0))
        _call(libc.prctl, _AMBIENT, _AMBIENT_RAISE, _FOWNER, 0, 0)


def _enter_namespace() -> None:
    # What is not dumpable, as after a change of user, owns nothing in /proc.
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl, _SET_DUMPABLE, 1, 0, 0, 0)
    _call(libc.unshare, _NEW_USER)
    itself = f'{AGENT} {AGENT} 1'
    for name, text in (('setgroups', 'deny'), ('uid_map', itself), ('gid_map', itself)):
        with open(f'/proc/self/{name}', 'wb', buffering=0) as file:
            file.write(text.encode())


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
