# SPDX-License-Identifier: Apache-2.0
"""nova-precache-compute: caches images on this host."""

import sys

from nova_precache import backend
from nova_precache.cmd import running
from nova_precache.compute import metrics
from nova_precache.wiring import common, compute as wiring_compute


def main() -> None:
    running.exit_with(_main)


def _main() -> int:
    conf = running.read_configuration(sys.argv[1:])
    backend.refuse_eventlet(conf, 'nova-precache-compute')
    exposed = common.exposition(conf)
    agent = wiring_compute.new_agent(conf, metrics.ComputeMetrics(exposed.registry), exposed.health)
    running.run([exposed, agent], conf)
    return 0
