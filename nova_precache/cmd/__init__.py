# SPDX-License-Identifier: Apache-2.0
"""The commands: each reads its options, builds its parts and runs them.

A module for each command: ``api`` and ``conductor`` (both by ``control``), ``compute``,
``standalone``, ``manage`` (with ``manage_commands``) and ``status``. ``running`` starts and stops
the parts of all of them.
"""

import sys

from nova_precache import backend, exception


def choose_threads() -> None:
    """Choose the threads that the environment names; exit with the reason if that fails."""
    try:
        backend.choose_by_environment()
    except exception.ConfigError as exc:
        sys.exit(str(exc))
