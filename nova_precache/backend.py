# SPDX-License-Identifier: Apache-2.0
"""Choose native threads or eventlet, before the process imports anything that uses threads.

Eventlet patches the modules ``threading``, ``socket``, ``time`` and so on. Code that imported
names from them earlier, or created a lock or thread-local data, keeps the native ones, which
block all green threads or are shared by them. So

- the environment is read first, which needs no other module;
- a command that finds the choice in its configuration restarts itself with that environment:
  parsing its command line imports oslo.log, which keeps too many native objects;
- a foreign WSGI server cannot be restarted, but its application has no command line:
  oslo.config alone reads the files, and keeps no native object (a test checks this).

oslo.service, which oslo.messaging imports, uses eventlet by default; a hook reports the choice
of the process to it. It and futurist import eventlet wherever it is installed, which changes
nothing without that patch, but takes some 20 MB: a process with native threads hides it from them.
"""

import dataclasses
import enum
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg
from oslo_service import backend

from nova_precache import exception

VARIABLE = 'NOVA_PRECACHE_CONCURRENCY'
_EVENTLET = 'eventlet'
# With a WSGI server's own name, such as gunicorn, we would read the file of that name in /etc.
API = 'nova-precache-api'
# From this Python on, eventlet 0.41 raises its own Timeout from every Thread.join that times
# out, also in our libraries (a test checks whether it still does).
NO_EVENTLET_FROM = (3, 13)


class Backend(enum.StrEnum):
    """The kind of threads of a process."""

    THREADING = 'threading'
    EVENTLET = 'eventlet'


def _dotted(version: Sequence[int]) -> str:
    return '.'.join(map(str, version))


OPTION = cfg.StrOpt(
    'concurrency_backend',
    default=Backend.THREADING,
    choices=[
        (Backend.THREADING, 'Native threads; the only ones of a compute and of standalone.'),
        (Backend.EVENTLET, 'Green threads, for the API and the conductor; needs eventlet.'),
    ],
    help=f"""
Kind of threads in the API and the conductor. The environment variable
{VARIABLE} overrides it. Eventlet is refused on Python
{_dotted(NO_EVENTLET_FROM)} and newer, where it does not work.
""",
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A backend, and the option or variable that names it."""

    backend: Backend
    named_by: str

    def __str__(self) -> str:
        return f'{self.named_by} = {self.backend}'


def choose_by_environment() -> None:
    """Choose the threads that the environment of this process names, if it names any.

    :raises nova_precache.exception.ConfigError: the name is unknown, they are not installed or
        do not work on this Python, or the process has others already
    """
    chosen = _named_by_environment()
    if chosen is None:
        hide_eventlet()  # the configuration may name it, and then the command restarts itself
    else:
        _become(chosen)


def hide_eventlet() -> None:
    """Make eventlet appear as not installed to libraries that are imported later.

    They would import all of it, though they use only native threads.
    """
    sys.modules.setdefault(_EVENTLET, None)  # type: ignore[arg-type] # as the import system has it


def choose_by_files(config_files: Sequence[str] | None) -> None:
    """Choose the threads that the environment or the configuration of this process names.

    :param config_files: None: those in the usual places
    :raises nova_precache.exception.ConfigError: as for the environment
    """
    conf = cfg.ConfigOpts()
    conf.register_opt(OPTION)
    files = None if config_files is None else list(config_files)
    try:
        conf([], project='nova-precache', prog=API, default_config_files=files)
        chosen = _chosen(conf)
    except cfg.Error as exc:
        raise exception.ConfigError(str(exc)) from exc
    _become(chosen)


def restart_if_chosen(conf: cfg.ConfigOpts) -> None:
    """Restart this command if its configuration names eventlet and it does not run under it.

    :raises nova_precache.exception.ConfigError: eventlet is not installed, or does not work
        on this Python
    """
    chosen = _chosen(conf)
    if chosen.backend is Backend.EVENTLET and current() is not Backend.EVENTLET:
        _import_eventlet(chosen)
        os.environ[VARIABLE] = chosen.backend
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def why_no_eventlet() -> str | None:
    """Return why eventlet does not work on this Python; None if it does."""
    if sys.version_info < NO_EVENTLET_FROM:
        return None
    return (
        f'eventlet does not work on Python {_dotted(sys.version_info[:2])}; '
        f'use {Backend.THREADING}, or a Python older than {_dotted(NO_EVENTLET_FROM)}'
    )


def current() -> Backend:
    """Return the kind of threads of this process."""
    patcher = sys.modules.get('eventlet.patcher')
    is_green = patcher is not None and patcher.is_monkey_patched('thread')
    return Backend.EVENTLET if is_green else Backend.THREADING


def refuse_eventlet(conf: cfg.ConfigOpts, command: str) -> None:
    """Refuse eventlet for a command that supports only native threads.

    :raises nova_precache.exception.ConfigError: eventlet is chosen
    """
    chosen = _chosen(conf)
    if chosen.backend is Backend.EVENTLET:
        raise exception.ConfigError(f'{chosen}: {command} runs with native threads only')


def tell_oslo_service() -> None:
    """Register a hook by which oslo.service asks for the threads of this process when needed."""
    # An operator cannot change the imports of our libraries.
    warnings.filterwarnings('ignore', message=r'\s*Eventlet is deprecated')
    backend.register_backend_default_hook(lambda: backend.BackendType(current().value))


def _chosen(conf: cfg.ConfigOpts) -> Choice:
    return _named_by_environment() or Choice(
        Backend(conf.concurrency_backend), '[DEFAULT] concurrency_backend'
    )


def _named_by_environment() -> Choice | None:
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    if named not in set(Backend):
        raise exception.ConfigError(f'{VARIABLE} = {named}: it must be {" or ".join(Backend)}')
    return Choice(Backend(named), VARIABLE)


def _become(chosen: Choice) -> None:
    if chosen.backend is Backend.EVENTLET:
        _import_eventlet(chosen).monkey_patch()
    elif current() is Backend.EVENTLET:
        raise exception.ConfigError(f'{chosen}, and this process runs under eventlet already')
    else:
        hide_eventlet()


def _import_eventlet(chosen: Choice) -> Any:
    if why := why_no_eventlet():
        raise exception.ConfigError(f'{chosen}: {why}')
    # Its own resolver knows fewer host names than the system's.
    os.environ.setdefault('EVENTLET_NO_GREENDNS', 'yes')
    if sys.modules.get(_EVENTLET) is None:
        sys.modules.pop(_EVENTLET, None)  # it was hidden
    try:
        import eventlet
    except ImportError as exc:
        raise exception.ConfigError(
            f'{chosen}: eventlet is not installed: install nova-precache[eventlet]'
        ) from exc
    return eventlet
