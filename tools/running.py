# SPDX-License-Identifier: Apache-2.0
"""Starts a deployment for a command, and stops all its processes at the end."""

import argparse
import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import requests

from nova_precache import exception
from tools.foundation import Foundation
from tools.showing import StepFailed, step

PREFIX = 'deployment-'  # of the directories to remove
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Deployed = TypeVar('Deployed', bound=Foundation)


def parser(command: str, description: str | None, servers: str) -> argparse.ArgumentParser:
    """Return the parser of the options that such commands share.

    :param command: a script in ``tools``
    :param servers: that ``--build`` prepares
    """
    made = argparse.ArgumentParser(prog=f'tools/{command}', description=description)
    made.add_argument(
        '--keep',
        action='store_true',
        help='keep the deployment running until Ctrl-C, and print how to use it',
    )
    made.add_argument('--build', action='store_true', help=f'prepare {servers} and exit')
    return made


def run(
    base: pathlib.Path,
    new: Callable[[pathlib.Path], Deployed],
    tour: Callable[[Deployed], None],
) -> int:
    """Create a deployment in a directory of its own, run a tour of it, and always stop it.

    :param tour: starts the deployment first
    :returns: an exit status
    """
    logging.basicConfig(level=logging.ERROR)
    os.umask(0o077)  # the files contain passwords
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as held:
        try:
            directory = held.enter_context(own_directory(base))
        except OSError as exc:
            print(f'{base} cannot be used: {exc}', file=sys.stderr)
            return 1
        whole = new(directory)
        try:
            return _run(whole, tour)
        finally:
            # A signal during the stop would leave processes running.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            whole.stop()
            step('All processes are stopped')


def _run(whole: Deployed, tour: Callable[[Deployed], None]) -> int:
    try:
        tour(whole)
    except (StepFailed, exception.PrecacheError, requests.RequestException) as exc:
        print(
            f'The deployment failed: {exc}\nThe logs are below {whole.directory}', file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        return 130
    return 0


def wait_for_ctrl_c() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


@contextlib.contextmanager
def own_directory(base: pathlib.Path) -> Iterator[pathlib.Path]:
    """Create an empty directory below another; remove those of runs that have ended.

    So the logs of the last run can be read, and old ones do not accumulate.

    :raises PermissionError: the other directory belongs to another user
    """
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.lstat().st_uid != os.geteuid():
        raise PermissionError(f'{base} belongs to another user')
    with contextlib.ExitStack() as held:
        with _locked(base, wait=True):
            for old in base.glob(f'{PREFIX}*'):
                with contextlib.suppress(BlockingIOError), _locked(old):
                    shutil.rmtree(old, ignore_errors=True)
            directory = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            held.enter_context(_locked(directory))
        yield directory


@contextlib.contextmanager
def _locked(directory: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a directory, at most until this process ends.

    :raises BlockingIOError: another process has locked it
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
