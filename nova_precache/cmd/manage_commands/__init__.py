# SPDX-License-Identifier: Apache-2.0
"""The commands of nova-precache-manage, one module per noun; each takes the configuration."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import prettytable
from oslo_config import cfg

from nova_precache import wire
from nova_precache.cells import inventory, novadb
from nova_precache.db import agents, host_removal
from nova_precache.db.engine import schema, session
from nova_precache.wiring import common, computes


class Site:
    """The stores that the commands read and change."""

    def __init__(self, conf: cfg.ConfigOpts, database: session.Database) -> None:
        self.inventory: inventory.Inventory = novadb.open_inventory(conf, database)
        self.agents: agents.Agents = common.agent_store(conf, database)
        self.hosts = computes.host_store(conf, database, self.inventory)
        self.departures = host_removal.Departures(database, conf.service_down_time)


@contextlib.contextmanager
def site(conf: cfg.ConfigOpts) -> Iterator[Site]:
    """Open the configured databases for one command.

    :raises nova_precache.exception.ConfigError: one cannot be opened, or was not synced
    """
    with schema.open_current(conf) as database:
        yield Site(conf, database)


def show(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; escape control characters in names that an earlier release accepted."""
    table = prettytable.PrettyTable(columns, align='l')
    table.add_rows([[wire.printable(v) if isinstance(v, str) else v for v in row] for row in rows])
    print(table)
