# SPDX-License-Identifier: Apache-2.0
"""Builds what every process of the service has, also a compute, which has no database.

It imports no database library: a compute would hold it in memory on each host.
"""

from importlib import metadata

from oslo_config import cfg

from nova_precache import metrics, rpc
from nova_precache.conductor import rpcapi as conductor_rpcapi


def version() -> str:
    """Return the version of this installation."""
    return metadata.version('nova-precache')


def conductor_cap(conf: cfg.ConfigOpts) -> str | None:
    """Return the highest RPC version to call conductors with, None if not pinned.

    :raises nova_precache.exception.ConfigError: it is pinned to an invalid version
    """
    newest, oldest = conductor_rpcapi.VERSION, conductor_rpcapi.OLDEST_VERSION
    return rpc.version_cap('conductor', conf.upgrade_levels.conductor, newest, oldest)


def exposition(conf: cfg.ConfigOpts) -> metrics.Exposition:
    """Build the metrics endpoint of this process, which serves if a port is set."""
    return metrics.Exposition(conf.metrics.bind_host, conf.metrics.port, version())


def silent_seconds(interval_seconds: float) -> float:
    """Return the time without an answer after which a broker counts as away.

    :param interval_seconds: of the messages to it, some of which may be late
    """
    return max(15.0, 3 * interval_seconds)
