# SPDX-License-Identifier: Apache-2.0
"""The commands: each reads its options, builds its parts and runs them.

A module for each command: ``api`` and ``conductor`` (both by ``control``), ``compute``,
``standalone``, ``manage`` (with ``manage_commands``) and ``status``. ``running`` starts and stops
the parts of all of them.
"""

import importlib.util
import pathlib
import sys

from nova_precache import exception

# Modules of the extra that no other service may have installed for us.
_OF_SERVER = ('h11', 'inotify_simple', 'microversion_parse', 'oslo_messaging', 'routes')


def choose_threads() -> None:
    """Choose the threads that the environment names; exit with the reason if that fails."""
    from nova_precache import backend

    try:
        backend.choose_by_environment()
    except exception.ConfigError as exc:
        sys.exit(str(exc))


def _require_server() -> None:
    """Exit with the remedy where only what the openstack client needs is installed.

    The scripts are installed there, too: a wheel cannot leave out some of them.
    """
    if any(importlib.util.find_spec(each) is None for each in _OF_SERVER):
        program = pathlib.Path(sys.argv[0]).name
        sys.exit(f'{program} needs the extra "server": install nova-precache[server]')


# Before the modules of the commands import what is missing then.
_require_server()
