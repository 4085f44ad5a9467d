# SPDX-License-Identifier: Apache-2.0
"""Builds the compute of a host."""

import pathlib
import uuid

from oslo_config import cfg

from nova_precache import exception, health, model, rpc, wire
from nova_precache.compute import (
    agent,
    cache_reporter,
    health as compute_health,
    manager,
    metrics,
    name as compute_name,
    reports as host_reports,
    rpcapi,
    transfers,
)
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.download import source
from nova_precache.virt import driver as virt_driver
from nova_precache.wiring import images, process


def new_agent(
    conf: cfg.ConfigOpts,
    computes: metrics.ComputeMetrics | None = None,
    healthy: health.Health | None = None,
) -> agent.ComputeAgent:
    """Build the compute of ``[DEFAULT] host``.

    :param computes: the metrics of the computes of this process
    :param healthy: the health of this process, if it is served
    :raises nova_precache.exception.ConfigError: an option cannot be used on this host
    """
    identity = _identity(conf)
    name = compute_name.Name(identity['host'], identity['agent_id'])
    transport = rpc.connect_own(conf, shares_connections=True)
    reporter = conductor_rpcapi.ConductorReporter(
        transport, process.conductor_cap(conf), conf.rpc_response_timeout, name.agent_id
    )
    driver = virt_driver.load_driver(conf.compute_driver, conf, source.OriginOnly())
    conf.register_mutate_hook(lambda changed, fresh: driver.options_changed(changed))
    running = transfers.Transfers()
    measured = (computes or metrics.ComputeMetrics(process.exposition(conf).registry)).host(
        conf.host, driver.cache_report
    )
    reports = host_reports.Reports(
        name,
        reporter,
        running,
        _report_interval(conf),
    )
    inventory = cache_reporter.CacheReporter(
        host=conf.host,
        agent_id=identity['agent_id'],
        driver=driver,
        conductor=reports,
        changes_seconds=conf.report_interval,
        full_seconds=conf.image_cache.inventory_interval_seconds,
    )
    endpoint = manager.ComputeManager(
        name,
        driver,
        reporter,
        images.of_calls(conf),
        running,
        measured.measured,
        inventory.require_check,
    )
    compute = agent.ComputeAgent(
        identity=identity,
        name=name,
        driver=driver,
        conductor=reporter,
        new_server=lambda: rpc.Server(transport, rpcapi.TOPIC, conf.host, [endpoint]),
        running=running,
        images=inventory,
        reports=reports,
        report_seconds=conf.report_interval,
        cache_seconds=agent.cache_seconds(conf.image_cache.manager_interval),
    )
    if healthy is not None:
        checks = compute_health.ComputeHealth(
            lambda: compute.is_registered,
            transport,
            reporter,
            driver,
            process.silent_seconds(conf.report_interval),
        )
        healthy.add(f'compute {conf.host}', checks.check)
    return compute


def _report_interval(conf: cfg.ConfigOpts) -> host_reports.Interval:
    """Keep the host up, and its transfers moving, if a report is lost now and then."""
    longest = min(conf.report_interval, conf.service_down_time / 4, model.LONGEST_REPORT_SECONDS)
    return host_reports.Interval(min(agent.REPORT_SECONDS, longest), float(longest))


def _identity(conf: cfg.ConfigOpts) -> model.Json:
    try:
        host = wire.host(conf.host, '[DEFAULT] host')
    except exception.InvalidInput as exc:
        raise exception.ConfigError(str(exc)) from None
    return {
        'host': host,
        'agent_id': agent.agent_id(pathlib.Path(conf.state_path)),
        'boot_id': str(uuid.uuid4()),
        'version': process.version(),
    }
