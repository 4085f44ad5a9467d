# SPDX-License-Identifier: Apache-2.0
"""Builds the object graphs of the API, the conductor and the compute.

The only place that reads options and hands objects to each other.
"""

import functools
import pathlib
import time
import uuid
from collections.abc import Callable
from importlib import metadata
from typing import Protocol

from keystoneauth1 import loading
from oslo_config import cfg

from nova_precache import context, exception, metrics, model, policy, rpc
from nova_precache.api import app, auth, call
from nova_precache.cells import inventory, transports
from nova_precache.compute import agent, manager, transfers
from nova_precache.compute import inventory as compute_inventory
from nova_precache.compute import metrics as compute_metrics
from nova_precache.compute import rpcapi as compute_rpcapi
from nova_precache.conductor import (
    announcer,
    breaker,
    caller,
    dispatcher,
    intake,
    orders,
    planning,
    retry,
    service,
    tracker,
)
from nova_precache.conductor import manager as conductor_manager
from nova_precache.conductor import metrics as conductor_metrics
from nova_precache.conductor import pins as conductor_pins
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.conductor import steering as conductor_steering
from nova_precache.db import (
    agents,
    announcements,
    caches,
    census,
    jobs,
    pins,
    requests,
    returning,
    steering,
)
from nova_precache.db import session as db_session
from nova_precache.image import glance
from nova_precache.image import service as image_service
from nova_precache.notifications import emitter
from nova_precache.virt import driver as virt_driver
from nova_precache.wsgi import server


def version() -> str:
    """Give the version of this installation."""
    return metadata.version('nova-precache')


def request_store(conf: cfg.ConfigOpts, database: db_session.Database) -> requests.Requests:
    group = conf.image_cache
    limits = requests.Limits(
        max_images_per_request=group.max_images_per_request,
        max_tasks_per_request=group.max_tasks_per_request,
        max_active_requests_per_project=group.max_active_requests_per_project,
    )
    return requests.Requests(database, limits)


def _conductor_cap(conf: cfg.ConfigOpts) -> str | None:
    newest, oldest = conductor_rpcapi.VERSION, conductor_rpcapi.OLDEST_VERSION
    return rpc.version_cap('conductor', conf.upgrade_levels.conductor, newest, oldest)


def _compute_cap(conf: cfg.ConfigOpts) -> str | None:
    return rpc.version_cap('compute', conf.upgrade_levels.compute, compute_rpcapi.VERSION)


def _compute_api(
    conf: cfg.ConfigOpts,
    transport: rpc.Transport,
    cap: str | None,
    answer_seconds: float | None = None,
) -> compute_rpcapi.ComputeAPI:
    return compute_rpcapi.ComputeAPI(
        transport,
        version_cap=cap,
        connect_retries=conf.conductor.rpc_connect_retries,
        timeout_seconds=conf.long_rpc_timeout,
        monitor_seconds=answer_seconds or conf.rpc_response_timeout,
    )


def exposition(conf: cfg.ConfigOpts) -> metrics.Exposition:
    """Build what serves the metrics of this process, if a port is set."""
    return metrics.Exposition(conf.metrics.bind_host, conf.metrics.port)


def agent_store(conf: cfg.ConfigOpts, database: db_session.Database) -> agents.Agents:
    return agents.Agents(database, conf.service_down_time)


# The API


def api_application(conf: cfg.ConfigOpts, database: db_session.Database) -> server.Application:
    """Build the WSGI application."""
    transport = rpc.connect(conf)
    conductor = conductor_rpcapi.ConductorAPI(transport, _conductor_cap(conf))
    services = call.Services(
        inventory=inventory.Inventory(database),
        requests=request_store(conf, database),
        steering=steering.Steering(database),
        agents=agent_store(conf, database),
        caches=caches.Caches(database),
        rates=jobs.Jobs(database, conf.conductor.claim_lease_seconds),
        pins=pins.Pins(database),
        images_for=_callers_images(conf),
        wake=lambda: conductor.work_available(context.admin_context()),
        why_unsupported=_compute_api(conf, transport, _compute_cap(conf)).why_unsupported,
        enforcer=policy.Enforcer(conf),
    )
    return app.build(conf, services)


def api_server(conf: cfg.ConfigOpts, database: db_session.Database) -> server.HttpServer:
    """Build the API in this process.

    :raises nova_precache.exception.ConfigError: noauth2 would listen beyond the loopback
    """
    group = conf.api
    auth.refuse_exposure(group.auth_strategy, group.bind_host)
    application = api_application(conf, database)
    return server.HttpServer(application, group.bind_host, group.bind_port, group.threads)


def _callers_images(
    conf: cfg.ConfigOpts,
) -> Callable[[context.RequestContext], image_service.ImageService]:
    settings = glance.GlanceSettings.from_conf(conf)
    session = glance.new_session(settings)
    own = service_images(conf)  # finds the endpoint in the catalog

    def images_for(ctxt: context.RequestContext) -> image_service.ImageService:
        try:
            endpoint = own.endpoint()
        except exception.ImageUnauthorized as exc:  # of this service, and not of the caller
            raise exception.ImageServiceUnavailable(
                'The image service cannot be found: the credentials of [glance] are refused'
            ) from exc
        return glance.GlanceImageService.with_token(
            settings, endpoint=endpoint, token=ctxt.auth_token, session=session
        )

    return images_for


def service_images(conf: cfg.ConfigOpts) -> glance.GlanceImageService:
    """Make the image service as this service's own credentials in ``[glance]`` see it.

    :raises nova_precache.exception.ConfigError: neither credentials nor an endpoint are set
    """
    settings = glance.GlanceSettings.from_conf(conf)
    credentials = loading.load_auth_from_conf_options(conf, 'glance')
    if credentials is None:
        return glance.GlanceImageService.with_token(settings, endpoint=None, token=None)
    return glance.GlanceImageService(settings, credentials)


# The conductor


def conductor(
    conf: cfg.ConfigOpts,
    database: db_session.Database,
    exposed: metrics.Exposition | None = None,
) -> service.Conductor:
    """Build a conductor with an identity of its own.

    :param exposed: the metrics of this process, which whoever runs it serves
    """
    return ConductorParts(conf, database, exposed or exposition(conf)).conductor()


class OwnImages(image_service.ImageService, Protocol):
    """The image service as a conductor sees it, and as it lets computes see it."""

    def endpoint(self) -> str | None:
        """Give where it is."""

    def token(self, *, fresh: bool = False) -> str | None:
        """Give a token for it."""


class ConductorParts:
    """What the parts of one conductor share.

    :ivar images: the image service as the conductor sees it
    :ivar computes: gives the client of a cell's computes by its uuid
    """

    def __init__(
        self, conf: cfg.ConfigOpts, database: db_session.Database, exposed: metrics.Exposition
    ) -> None:
        self.conf = conf
        self.database = database
        self.compute_cap = _compute_cap(conf)
        self.id = str(uuid.uuid4())
        self.started = time.monotonic()
        self.inventory = inventory.Inventory(database)
        self.requests = request_store(conf, database)
        self.agents = agent_store(conf, database)
        self.jobs = jobs.Jobs(database, conf.conductor.claim_lease_seconds)
        self.intake = intake.Intake(self.agents, self.jobs, caches.Caches(database))
        self.images: OwnImages = service_images(conf)
        self.policy = retry.RetryPolicy(
            conf.image_cache.precache_max_attempts,
            conf.image_cache.retry_delay_seconds,
            conf.image_cache.retry_max_delay_seconds,
        )
        self.breakers = breaker.CellBreakers(self.policy.delay_seconds, time.monotonic)
        self.api_transport = rpc.connect(conf)
        self.transports = transports.CellTransports(
            self.inventory, functools.partial(rpc.connect, conf)
        )
        self.announcer = announcer.Announcer(
            announcements.Announcements(database),
            self.requests,
            self.inventory,
            emitter.MessagingEmitter(conf),
            conf.conductor.poll_interval_seconds,
            sends_ours=conf.notifications.precache_notifications,
        )
        self.steering = steering.Steering(database)
        self.computes: Callable[[str], caller.ComputeClient] = self._measured_compute
        self.counters = conductor_metrics.Counters(exposed.registry)
        counted = census.Census(database, conf.service_down_time)
        exposed.registry.register(conductor_metrics.StateCollector(counted.take, time.monotonic))
        self.tracker = tracker.Tracker(
            self.jobs,
            self.requests,
            self.steering,
            self.announcer.wake,
            self.policy,
            count=self.counters.ended,
        )

    def conductor(self) -> service.Conductor:
        options = self.conf.conductor
        dispatch = self._dispatcher()
        return service.Conductor(
            conductor_id=self.id,
            dispatch=dispatch,
            helm=self._helm(dispatch.wake),
            announce=self.announcer,
            reports=self.intake,
            job_store=self.jobs,
            api_transport=self.api_transport,
            cell_transports=self.transports,
            cell_endpoint=self._cell_endpoint,
            periods=service.Periods(
                lease_seconds=options.claim_lease_seconds,
                progress_seconds=options.progress_write_interval_seconds,
                heartbeat_seconds=options.heartbeat_write_interval_seconds,
                cells_seconds=options.cell_refresh_seconds,
                purge=self._purge,
                pin_seconds=options.pin_interval_seconds,
                keep_pins=self._reconciler(dispatch.wake).run,
            ),
        )

    def _dispatcher(self) -> dispatcher.Dispatcher:
        return dispatcher.Dispatcher(
            conductor_id=self.id,
            job_store=self.jobs,
            request_store=self.requests,
            aggregates=self.inventory,
            plans=self._planning(),
            hosts=self._caller(),
            track=self.tracker,
            breakers=self.breakers,
            limit=self.conf.image_cache.precache_concurrency,
            poll_seconds=self.conf.conductor.poll_interval_seconds,
            stop_seconds=self.conf.conductor.stop_timeout_seconds,
            count_takeover=self.counters.taken_over,
        )

    def _helm(self, freed: Callable[[], None]) -> conductor_steering.Helm:
        return conductor_steering.Helm(
            store=self.steering,
            hosts=returning.Returning(self.database, self.conf.service_down_time),
            track=self.tracker,
            tell=orders.Orders(
                store=self.steering,
                job_store=self.jobs,
                agent_store=self.agents,
                track=self.tracker,
                computes=self._steered_compute,
                breakers=self.breakers,
                clock=time.monotonic,
                freed=freed,
            ),
            poll_seconds=self.conf.conductor.poll_interval_seconds,
            freed=freed,
        )

    def _reconciler(self, wake: Callable[[], None]) -> conductor_pins.Reconciler:
        return conductor_pins.Reconciler(
            conductor_id=self.id,
            request_store=self.requests,
            pin_store=pins.Pins(self.database),
            cache_store=caches.Caches(self.database),
            aggregates=self.inventory,
            agent_store=self.agents,
            images=self.images,
            rules=conductor_pins.Rules(
                interval_seconds=self.conf.conductor.pin_interval_seconds,
                hosts_per_round=self.conf.image_cache.pin_hosts_per_round,
                minimum_age_seconds=(
                    self.conf.image_cache.remove_unused_original_minimum_age_seconds
                ),
            ),
            wake=wake,
        )

    def _planning(self) -> planning.Planning:
        return planning.Planning(
            conductor_id=self.id,
            request_store=self.requests,
            aggregates=self.inventory,
            agent_store=self.agents,
            images=self.images,
            track=self.tracker,
            chunk_tasks=self.conf.conductor.plan_chunk_tasks,
            is_settled=self._is_settled,
            unsupported=self._why_no_call,
        )

    def _caller(self) -> caller.HostCaller:
        return caller.HostCaller(
            conductor_id=self.id,
            job_store=self.jobs,
            agent_store=self.agents,
            track=self.tracker,
            computes=self.computes,
            images=self.images,
            access=lambda: (self.images.endpoint(), self.images.token()),
            breakers=self.breakers,
        )

    def _measured_compute(self, cell_uuid: str) -> caller.ComputeClient:
        computes = self._compute_api(self.transports.get(cell_uuid))
        return conductor_metrics.MeasuredCompute(computes, cell_uuid, self.counters, time.monotonic)

    def _steered_compute(self, cell_uuid: str) -> compute_rpcapi.ComputeAPI:
        """Give a client whose short calls are answered soon, or count as unanswered."""
        return self._compute_api(self.transports.get(cell_uuid), orders.ANSWER_SECONDS)

    @functools.cache  # noqa: B019 - one client a transport, for the life of the process
    def _compute_api(
        self, transport: rpc.Transport, answer_seconds: float | None = None
    ) -> compute_rpcapi.ComputeAPI:
        return _compute_api(self.conf, transport, self.compute_cap, answer_seconds)

    def _cell_endpoint(self, cell_uuid: str) -> conductor_manager.CellEndpoint:
        return conductor_manager.CellEndpoint(
            cell_uuid,
            self.inventory,
            self.agents,
            self.jobs,
            self.intake,
            token=lambda: self.images.token(fresh=True),
        )

    def _is_settled(self) -> bool:
        """Every living compute has reported since this conductor started to listen."""
        listened_seconds = time.monotonic() - self.started
        return bool(listened_seconds > 2 * self.conf.report_interval)

    def _why_no_call(self) -> str | None:
        return self._compute_api(self.api_transport).why_unsupported()

    def _purge(self) -> None:
        self.requests.purge(self.conf.image_cache.request_retention_days)


# The compute


def compute_agent(
    conf: cfg.ConfigOpts, computes: compute_metrics.Computes | None = None
) -> agent.Agent:
    """Build the compute of ``[DEFAULT] host``.

    :param computes: measures those of this process
    :raises nova_precache.exception.ConfigError: an option cannot be used on this host
    """
    transport = rpc.connect(conf)
    reporter = conductor_rpcapi.ConductorReporter(
        transport, _conductor_cap(conf), conf.rpc_response_timeout
    )
    driver = virt_driver.load_driver(conf.compute_driver, conf)
    running = transfers.Transfers()
    measured = (computes or compute_metrics.Computes(exposition(conf).registry)).host(
        conf.host, driver.cache_report
    )
    endpoint = manager.ComputeManager(
        conf.host, driver, reporter, _calls_images(conf), running, measured.measured
    )
    identity = _identity(conf)
    return agent.Agent(
        identity=identity,
        driver=driver,
        conductor=reporter,
        server=transport.server(compute_rpcapi.TOPIC, conf.host, [endpoint]),
        running=running,
        images=compute_inventory.Inventory(
            host=conf.host,
            agent_id=identity['agent_id'],
            driver=driver,
            conductor=reporter,
            changes_seconds=conf.report_interval,
            full_seconds=conf.image_cache.inventory_interval_seconds,
        ),
        report_seconds=conf.report_interval,
        cache_seconds=agent.cache_seconds(conf.image_cache.manager_interval),
    )


def _identity(conf: cfg.ConfigOpts) -> model.Json:
    return {
        'host': conf.host,
        'agent_id': agent.agent_id(pathlib.Path(conf.state_path)),
        'boot_id': str(uuid.uuid4()),
        'version': version(),
    }


def _calls_images(conf: cfg.ConfigOpts) -> manager.ImagesFor:
    settings = glance.GlanceSettings.from_conf(conf)
    session = glance.new_session(settings)

    def images_for(
        endpoint: str | None, token: str | None, fresh_token: Callable[[], str | None]
    ) -> image_service.ImageService:
        return glance.GlanceImageService.with_token(
            settings, endpoint=endpoint, token=token, fresh_token=fresh_token, session=session
        )

    return images_for
