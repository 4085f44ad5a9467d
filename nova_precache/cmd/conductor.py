# SPDX-License-Identifier: Apache-2.0
"""nova-precache-conductor: plans requests and has computes cache images."""

from nova_precache import cmd


def main() -> None:
    cmd.choose_threads()
    from nova_precache.cmd import control  # only now: it imports what has threads

    control.run_conductor()
