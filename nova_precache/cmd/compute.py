# SPDX-License-Identifier: Apache-2.0
"""nova-precache-compute: caches images on this host."""

import sys

from nova_precache import backend


def main() -> None:
    backend.hide_eventlet()
    from nova_precache.cmd import running  # only now: it imports modules that would import eventlet

    running.exit_with(_main)


def _main() -> int:
    from nova_precache.cmd import running
    from nova_precache.compute import metrics
    from nova_precache.wiring import compute as wiring_compute, process

    conf = running.read_configuration(sys.argv[1:])
    backend.refuse_eventlet(conf, 'nova-precache-compute')
    exposed = process.exposition(conf)
    agent = wiring_compute.new_agent(conf, metrics.ComputeMetrics(exposed.registry), exposed.health)
    running.run([exposed, agent], conf)
    return 0
