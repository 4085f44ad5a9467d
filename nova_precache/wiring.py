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
from nova_precache.cells import inventory, liveness, novadb, novahosts, transports
from nova_precache.compute import agent, manager, novarpc, transfers
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
from nova_precache.conductor import liveness as conductor_liveness
from nova_precache.conductor import manager as conductor_manager
from nova_precache.conductor import metrics as conductor_metrics
from nova_precache.conductor import pins as conductor_pins
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.conductor import steering as conductor_steering
from nova_precache.conductor import stock as conductor_stock
from nova_precache.conf import image_cache
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
    stockcalls,
    untold,
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
    newest = novarpc.VERSION if _is_stock(conf) else compute_rpcapi.VERSION
    return rpc.version_cap('compute', conf.upgrade_levels.compute, newest)


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


def _nova_compute_api(conf: cfg.ConfigOpts, transport: rpc.Transport) -> novarpc.NovaComputeAPI:
    return novarpc.NovaComputeAPI(
        transport,
        version_cap=_compute_cap(conf),
        connect_retries=conf.conductor.rpc_connect_retries,
        timeout_seconds=conf.long_rpc_timeout,
        monitor_seconds=conf.rpc_response_timeout,
    )


def _is_stock(conf: cfg.ConfigOpts) -> bool:
    """Tell whether images are cached by the nova-compute of each host."""
    return bool(conf.image_cache.compute_backend == image_cache.NOVA)


def _nova_liveness(conf: cfg.ConfigOpts, aggregates: inventory.Inventory) -> liveness.NovaLiveness:
    return liveness.NovaLiveness(aggregates, conf.service_down_time, time.monotonic)


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
    stock = novadb.open_inventory(conf, database)
    services = call.Services(
        inventory=stock,
        requests=request_store(conf, database),
        steering=steering.Steering(database),
        agents=_shown_hosts(conf, database, stock),
        caches=_told_caches(conf, database),
        rates=jobs.Jobs(database, conf.conductor.claim_lease_seconds),
        pins=pins.Pins(database),
        images_for=_callers_images(conf),
        wake=lambda: conductor.work_available(context.admin_context()),
        why_unsupported=_why_unsupported(conf, transport),
        enforcer=policy.Enforcer(conf),
    )
    return app.build(conf, services)


def _shown_hosts(
    conf: cfg.ConfigOpts, database: db_session.Database, stock: inventory.Inventory
) -> call.AgentStore:
    if _is_stock(conf):
        return novahosts.NovaHosts(stock, _nova_liveness(conf, stock))
    return agent_store(conf, database)


def _told_caches(conf: cfg.ConfigOpts, database: db_session.Database) -> caches.Caches:
    return untold.UntoldCaches(database) if _is_stock(conf) else caches.Caches(database)


def _why_unsupported(conf: cfg.ConfigOpts, transport: rpc.Transport) -> Callable[[], str | None]:
    if _is_stock(conf):
        return _nova_compute_api(conf, transport).why_unsupported
    return _compute_api(conf, transport, _compute_cap(conf)).why_unsupported


def api_server(conf: cfg.ConfigOpts, database: db_session.Database) -> server.HttpServer:
    """Build the API in this process.

    :raises nova_precache.exception.ConfigError: noauth2 would listen beyond the loopback
    """
    group = conf.api
    auth.refuse_exposure(group.auth_strategy, group.bind_host)
    application = api_application(conf, database)
    certificate = server.Certificate(group.cert_file, group.key_file) if group.cert_file else None
    return server.HttpServer(
        application, group.bind_host, group.bind_port, group.threads, certificate
    )


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
        self.inventory = novadb.open_inventory(conf, database)
        self.requests = request_store(conf, database)
        self.agents = agent_store(conf, database)
        self.jobs = jobs.Jobs(database, conf.conductor.claim_lease_seconds)
        self.intake = intake.Intake(self.agents, self.jobs, caches.Caches(database))
        self.images: OwnImages = service_images(conf)
        self.policy = _retry_policy(conf)
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
        self.stock = _StockComputes(conf, database, self.inventory) if _is_stock(conf) else None
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
        helm = self._helm(dispatch.wake)
        reconciler = self._reconciler(dispatch.wake)
        self._follow_options(dispatch, helm, reconciler)
        return service.Conductor(
            conductor_id=self.id,
            dispatch=dispatch,
            helm=helm,
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
                keep_pins=reconciler.run,
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
            hosts=self._returning(),
            track=self.tracker,
            tell=self._orders(freed),
            poll_seconds=self.conf.conductor.poll_interval_seconds,
            freed=freed,
        )

    def _returning(self) -> conductor_steering.Returning:
        if self.stock is not None:
            waiting = returning.Waiting(self.database)
            return conductor_stock.StockReturning(waiting, self.stock.liveness)
        return returning.Returning(self.database, self.conf.service_down_time)

    def _orders(self, freed: Callable[[], None]) -> conductor_steering.Orders:
        if self.stock is not None:
            return conductor_stock.StockOrders(self.steering, self.jobs, self.tracker, freed)
        return orders.Orders(
            store=self.steering,
            job_store=self.jobs,
            agent_store=self.agents,
            track=self.tracker,
            computes=self._steered_compute,
            breakers=self.breakers,
            clock=time.monotonic,
            freed=freed,
        )

    def _reconciler(self, wake: Callable[[], None]) -> conductor_pins.Reconciler:
        return conductor_pins.Reconciler(
            conductor_id=self.id,
            request_store=self.requests,
            pin_store=pins.Pins(self.database),
            cache_store=_told_caches(self.conf, self.database),
            aggregates=self.inventory,
            alive=self._alive(),
            images=self.images,
            rules=_pin_rules(self.conf),
            wake=wake,
        )

    def _follow_options(
        self,
        dispatch: dispatcher.Dispatcher,
        helm: conductor_steering.Helm,
        reconciler: conductor_pins.Reconciler,
    ) -> None:
        """Have the options that may change at run time take effect when they do."""

        def follow(conf: cfg.ConfigOpts, fresh: object) -> None:
            dispatch.limit = conf.image_cache.precache_concurrency
            dispatch.stop_seconds = conf.conductor.stop_timeout_seconds
            self.tracker.policy = _retry_policy(conf)
            self.breakers.rest_seconds = self.tracker.policy.delay_seconds
            reconciler.rules = _pin_rules(conf)
            for loop in (dispatch, helm, self.announcer):
                loop.poll_seconds = conf.conductor.poll_interval_seconds
                loop.wake()

        self.conf.register_mutate_hook(follow)

    def _planning(self) -> planning.Planning:
        return planning.Planning(
            conductor_id=self.id,
            request_store=self.requests,
            aggregates=self.inventory,
            alive=self._alive(),
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
            why_down=self._why_down,
            track=self.tracker,
            computes=self.computes,
            images=self.images,
            access=lambda: (self.images.endpoint(), self.images.token()),
            breakers=self.breakers,
        )

    def _measured_compute(self, cell_uuid: str) -> caller.ComputeClient:
        transport = self.transports.get(cell_uuid)
        computes = self._compute_api(transport) if self.stock is None else self.stock.of(transport)
        return conductor_metrics.MeasuredCompute(computes, cell_uuid, self.counters, time.monotonic)

    def _alive(self) -> conductor_liveness.Liveness:
        return self.agents if self.stock is None else self.stock.liveness

    def _why_down(self, assignment: jobs.Assignment) -> str | None:
        if self.stock is not None:
            return self.stock.liveness.why_down(assignment.host, assignment.cell_uuid)
        return self.agents.why_down(assignment.seen_at, assignment.assigned_at)

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
        return self.stock is not None or bool(listened_seconds > 2 * self.conf.report_interval)

    def _why_no_call(self) -> str | None:
        if self.stock is not None:
            return self.stock.api(self.api_transport).why_unsupported()
        return self._compute_api(self.api_transport).why_unsupported()

    def _purge(self) -> None:
        self.requests.purge(self.conf.image_cache.request_retention_days)


class _StockComputes:
    """What a conductor has instead of computes of our own.

    :ivar liveness: of the nova-computes
    """

    def __init__(
        self, conf: cfg.ConfigOpts, database: db_session.Database, aggregates: inventory.Inventory
    ) -> None:
        self._conf = conf
        self._calls = stockcalls.StockCalls(database)
        self.liveness = _nova_liveness(conf, aggregates)

    def of(self, transport: rpc.Transport) -> conductor_stock.StockCompute:
        """Give the client of the nova-computes that are reached that way."""
        over_seconds = self._conf.long_rpc_timeout + conductor_stock.SENDING_SECONDS
        return conductor_stock.StockCompute(self.api(transport), self._calls, over_seconds)

    @functools.cache  # noqa: B019 - one client a transport, for the life of the process
    def api(self, transport: rpc.Transport) -> novarpc.NovaComputeAPI:
        return _nova_compute_api(self._conf, transport)


def _retry_policy(conf: cfg.ConfigOpts) -> retry.RetryPolicy:
    group = conf.image_cache
    return retry.RetryPolicy(
        group.precache_max_attempts, group.retry_delay_seconds, group.retry_max_delay_seconds
    )


def _pin_rules(conf: cfg.ConfigOpts) -> conductor_pins.Rules:
    group = conf.image_cache
    return conductor_pins.Rules(
        interval_seconds=conf.conductor.pin_interval_seconds,
        hosts_per_round=group.pin_hosts_per_round,
        minimum_age_seconds=group.remove_unused_original_minimum_age_seconds,
    )


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
    conf.register_mutate_hook(lambda changed, fresh: driver.options_changed(changed))
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
            settings,
            endpoint=endpoint,
            token=token,
            fresh_token=fresh_token,
            session=session,
            request_id=context.current_id(),
        )

    return images_for
