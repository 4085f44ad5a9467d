# SPDX-License-Identifier: Apache-2.0
"""Builds the objects that more than one service needs."""

from importlib import metadata

from oslo_config import cfg

from nova_precache import metrics, model, rpc, service_reporter
from nova_precache.cells import names
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.conf import image_cache
from nova_precache.db import agents, caches, explanations, requests, services
from nova_precache.db.engine import session as db_session

# A compute reports progress every second.
_LATE_PROGRESS_SECONDS = 1.5


def version() -> str:
    """Return the version of this installation."""
    return metadata.version('nova-precache')


def is_stock(conf: cfg.ConfigOpts) -> bool:
    """Return whether the stock nova-compute of each host caches the images."""
    return bool(conf.image_cache.compute_backend == image_cache.NOVA)


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


def request_store(conf: cfg.ConfigOpts, database: db_session.Database) -> requests.Requests:
    group = conf.image_cache
    limits = requests.RequestLimits(
        max_images_per_request=group.max_images_per_request,
        max_tasks_per_request=group.max_tasks_per_request,
        max_active_requests_per_project=group.max_active_requests_per_project,
    )
    return requests.Requests(database, limits)


def agent_store(conf: cfg.ConfigOpts, database: db_session.Database) -> agents.Agents:
    return agents.Agents(database, conf.service_down_time)


def service_store(conf: cfg.ConfigOpts, database: db_session.Database) -> services.Services:
    return services.Services(database, conf.service_down_time, conf.report_interval)


def new_reporter(
    conf: cfg.ConfigOpts,
    database: db_session.Database,
    binary: model.Binary,
    first_seconds: float = 0,
) -> service_reporter.ServiceReporter:
    """Build the reporter that this process of a conductor or an API runs."""
    return service_reporter.ServiceReporter(
        service_store(conf, database),
        binary,
        conf.host,
        version(),
        conf.report_interval,
        first_seconds,
    )


def hearing_gap_seconds(conf: cfg.ConfigOpts) -> float:
    """Allow for some late notes, but only for a small part of ``service_down_time``."""
    notes_seconds = conf.conductor.heartbeat_write_interval_seconds
    return float(max(3 * notes_seconds, min(2, conf.service_down_time / 2)))


def explanation_store(
    conf: cfg.ConfigOpts, database: db_session.Database, cells: names.CellNames
) -> explanations.Explanations:
    rules = explanations.Rules(
        hearing_gap_seconds=hearing_gap_seconds(conf),
        claim_lease_seconds=conf.conductor.claim_lease_seconds,
        compute_silent_seconds=_compute_silent_seconds(conf),
        precache_concurrency=lambda: conf.image_cache.precache_concurrency,
        is_stock=is_stock(conf),
    )
    return explanations.Explanations(
        database, rules, cells.cells, agent_store(conf, database).why_down
    )


def _compute_silent_seconds(conf: cfg.ConfigOpts) -> float:
    """Allow for the write of a report, so that a rate is 0 after two intervals without reports."""
    late_seconds = max(conf.report_interval / 2, conf.conductor.heartbeat_write_interval_seconds)
    return float(max(conf.report_interval + late_seconds, _LATE_PROGRESS_SECONDS))


def reported_caches(conf: cfg.ConfigOpts, database: db_session.Database) -> caches.Caches:
    """Open the store of the hosts' cache inventories; stock nova-computes report none."""
    return caches.UnreportedCaches(database) if is_stock(conf) else caches.Caches(database)
