# SPDX-License-Identifier: Apache-2.0
"""nova-precache-conductor: plans requests and makes computes cache images."""

from nova_precache import cmd


def main() -> None:
    cmd.choose_threads()
    from nova_precache.cmd import control  # only now: it imports modules that use threads

    control.run_conductor()
