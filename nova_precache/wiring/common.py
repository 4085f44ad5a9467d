# SPDX-License-Identifier: Apache-2.0
"""Builds the objects that more than one process with a database needs."""

from oslo_config import cfg

from nova_precache import model, service_reporter
from nova_precache.cells import names
from nova_precache.conf import image_cache
from nova_precache.db import agents, caches, explanations, requests, services
from nova_precache.db.engine import session as db_session
from nova_precache.wiring import process

# A compute reports progress each second, however short report_interval is.
_LATE_PROGRESS_SECONDS = 1.5


def is_stock(conf: cfg.ConfigOpts) -> bool:
    """Return whether the stock nova-compute of each host caches the images."""
    return bool(conf.image_cache.compute_backend == image_cache.NOVA)


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
        process.version(),
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
    late_seconds = max(
        conf.report_interval / 2,
        conf.conductor.heartbeat_write_interval_seconds,
        conf.conductor.progress_write_interval_seconds,
    )
    return float(max(conf.report_interval + late_seconds, _LATE_PROGRESS_SECONDS))


def reported_caches(conf: cfg.ConfigOpts, database: db_session.Database) -> caches.Caches:
    """Open the store of the hosts' cache inventories; stock nova-computes report none."""
    return caches.UnreportedCaches(database) if is_stock(conf) else caches.Caches(database)
