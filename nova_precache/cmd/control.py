# SPDX-License-Identifier: Apache-2.0
"""What the commands of the API and the conductor do with the threads of their environment."""

import sys
from collections.abc import Callable, Sequence

from oslo_config import cfg

from nova_precache import backend, wiring
from nova_precache.cmd import running
from nova_precache.db import schema, session

Build = Callable[[cfg.ConfigOpts, session.Database], Sequence[running.Running]]


def run_api() -> None:
    running.exit_with(lambda: _run(_api))


def run_conductor() -> None:
    running.exit_with(lambda: _run(_conductor))


def _api(conf: cfg.ConfigOpts, database: session.Database) -> Sequence[running.Running]:
    return [wiring.api_server(conf, database)]


def _conductor(conf: cfg.ConfigOpts, database: session.Database) -> Sequence[running.Running]:
    exposed = wiring.exposition(conf)
    return [exposed, wiring.conductor(conf, database, exposed)]


def _run(build: Build) -> int:
    conf = running.read_configuration(sys.argv[1:])
    backend.restart_if_chosen(conf)
    database = schema.open_current(conf)
    running.run(build(conf, database), conf)
    database.dispose()
    return 0
