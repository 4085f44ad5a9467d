# SPDX-License-Identifier: Apache-2.0
"""Run the API and the conductor, after their threads were chosen.

Each imports its own parts alone: those of the API take some 20 MB, which a conductor does not use.
"""

import sys
from collections.abc import Callable, Sequence

from oslo_config import cfg

from nova_precache import backend, model
from nova_precache.cmd import running
from nova_precache.db.engine import schema, session, timeouts
from nova_precache.wiring import common, process

Build = Callable[[cfg.ConfigOpts, session.Database], Sequence[running.Running]]


def run_api() -> None:
    running.exit_with(lambda: _run(_api, timeouts.API))


def run_conductor() -> None:
    running.exit_with(lambda: _run(_conductor, timeouts.SERVICE))


def _api(conf: cfg.ConfigOpts, database: session.Database) -> Sequence[running.Running]:
    from nova_precache.wiring import api as wiring_api

    reporter = common.new_reporter(conf, database, model.Binary.API)
    return [wiring_api.new_server(conf, database), reporter]


def _conductor(conf: cfg.ConfigOpts, database: session.Database) -> Sequence[running.Running]:
    from nova_precache.wiring import conductor as wiring_conductor

    exposed = process.exposition(conf)
    conductor = wiring_conductor.new_conductor(conf, database, exposed)
    # The last to start is the first to stop: while a conductor stops, it counts as stopped.
    return [exposed, conductor, common.new_reporter(conf, database, model.Binary.CONDUCTOR)]


def _run(build: Build, limits: timeouts.TimeLimits) -> int:
    conf = running.read_configuration(sys.argv[1:])
    backend.restart_if_chosen(conf)
    with schema.open_current(conf, limits) as database:
        running.run(build(conf, database), conf)
    return 0
