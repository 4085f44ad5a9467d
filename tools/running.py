# SPDX-License-Identifier: Apache-2.0
"""How a command brings a deployment up, goes through it, and leaves nothing running."""

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
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import requests

from nova_precache import exception
from nova_precache.standalone import environment
from tools.foundation import Foundation
from tools.showing import StepFailed, step

PREFIX = 'deployment-'  # of directories, which are removed by this name
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Deployed = TypeVar('Deployed', bound=Foundation)


def build(environments: Iterable[environment.PythonEnvironment]) -> int:
    """Build the environments of the other servers, which takes minutes the first time."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        for each in environments:
            each.ensure()
    except environment.EnvironmentFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def run(
    base: pathlib.Path,
    new: Callable[[pathlib.Path], Deployed],
    tour: Callable[[Deployed], None],
) -> int:
    """Start a deployment in a directory of its own, go through it, and stop it, come what may.

    :param tour: starts it, first of all
    :returns: what the command ends with
    """
    logging.basicConfig(level=logging.ERROR)
    os.umask(0o077)  # there are passwords in the files
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
            # A signal in between would leave some of it running.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            whole.stop()
            step('Everything is stopped')


def _run(whole: Deployed, tour: Callable[[Deployed], None]) -> int:
    try:
        tour(whole)
    except (StepFailed, exception.PrecacheError, requests.RequestException) as exc:
        print(
            f'The deployment failed: {exc}\nIts logs are below {whole.directory}', file=sys.stderr
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
    """Give an empty directory below another; those of runs that are over are removed.

    So the logs of the last run can be read, and nothing piles up.

    :raises PermissionError: the other directory is another user's
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
    """Hold a directory as long as this process lives, at most.

    :raises BlockingIOError: another holds it
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
