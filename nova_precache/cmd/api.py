# SPDX-License-Identifier: Apache-2.0
"""nova-precache-api: the HTTP API in its own process."""

from nova_precache import cmd


def main() -> None:
    cmd.choose_threads()
    from nova_precache.cmd import control  # only now: it imports modules that use threads

    control.run_api()
