# SPDX-License-Identifier: Apache-2.0
"""The commands: each reads its options, builds its parts and runs them."""

import sys

from nova_precache import backend, exception


def choose_threads() -> None:
    """Choose the threads that the environment names; exit with the reason if that fails."""
    try:
        backend.choose_by_environment()
    except exception.ConfigError as exc:
        sys.exit(str(exc))
