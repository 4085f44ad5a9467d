# SPDX-License-Identifier: Apache-2.0
"""Builds the conductor."""

import functools
import time
import uuid
from collections.abc import Callable

from oslo_config import cfg

from nova_precache import metrics, model, rpc
from nova_precache.cells import breaker, novadb, transports
from nova_precache.conductor import (
    announcer,
    database_wait,
    dispatcher,
    health,
    host_worker,
    job_access,
    lifecycle,
    manager,
    metrics as conductor_metrics,
    pace,
    pin_loop,
    pins as conductor_pins,
    planning,
    report_buffer,
    report_endpoint,
    retry,
    service,
    tracker,
)
from nova_precache.db import (
    caches,
    clock,
    hearing,
    jobs,
    outbox,
    pins,
    request_actions,
    statistics,
    task_counts,
)
from nova_precache.db.engine import session as db_session
from nova_precache.notifications import emitter
from nova_precache.wiring import common, computes, images, process


def new_conductor(
    conf: cfg.ConfigOpts,
    database: db_session.Database,
    exposed: metrics.Exposition | None = None,
) -> service.Conductor:
    """Build a conductor with a new id.

    :param exposed: the metrics of this process, which the caller serves
    """
    return ConductorParts(conf, database, exposed or process.exposition(conf)).conductor()


class ConductorParts:
    """Builds the parts of one conductor, and holds the objects that they share.

    :ivar images: the image service, with the credentials of this service
    :ivar computes: returns the client of a cell's computes by its uuid
    """

    def __init__(
        self, conf: cfg.ConfigOpts, database: db_session.Database, exposed: metrics.Exposition
    ) -> None:
        self.conf = conf
        self.database = database
        self.id = str(uuid.uuid4())
        self.inventory = novadb.open_inventory(conf, database)
        self.requests = common.request_store(conf, database)
        self.agents = common.agent_store(conf, database)
        self.jobs = jobs.Jobs(database, conf.conductor.claim_lease_seconds)
        self.hearings = hearing.Hearings(database, common.hearing_gap_seconds(conf))
        self.images: images.OwnImages = images.of_service(conf)
        self.policy = _retry_policy(conf)
        self.breakers = breaker.CellBreakers(self.policy.delay_seconds, time.monotonic)
        self.api_transport = rpc.connect_own(conf)
        self.transports = transports.CellTransports(
            self.inventory, functools.partial(rpc.connect, conf)
        )
        waiting = database_wait.DatabaseWait()
        self.backend = computes.choose(
            conf, database, self.transports, self.inventory, self.breakers, waiting
        )
        self.pace = pace.Pace(
            longest_seconds=min(conf.report_interval, model.LONGEST_REPORT_SECONDS)
        )
        self.clock = clock.DatabaseClock(database)
        self.reports = report_buffer.ReportBuffer(
            self.agents,
            self.jobs,
            caches.Caches(database),
            note_heard=self.hearings.note,
            refuse=self.backend.refuse,
            note_transfers=self.pace.note,
            heard_seconds=common.hearing_gap_seconds(conf),
            database_now=self.clock.now,
        )
        exposed.registry.register(conductor_metrics.ReportCollector(self.reports))
        self.actions = request_actions.RequestActions(database)
        self.computes: Callable[[str], host_worker.ComputeClient] = self._measured_compute
        self.health = exposed.health
        self.counters = self._counters(exposed)
        self.announcer = self._announcer()
        self.ended_pins = pin_loop.EndedPins()
        self.tracker = tracker.Tracker(
            self.jobs,
            self.requests,
            self.actions,
            self.announcer.wake,
            self.policy,
            count=self.counters.ended,
            waiting=waiting,
            avoid=self.breakers.avoid,
            ended_of_pin=self.ended_pins.add,
        )

    def _counters(self, exposed: metrics.Exposition) -> conductor_metrics.Counters:
        counters = conductor_metrics.Counters(exposed.registry)
        counted = statistics.Statistics(self.database, self.conf.service_down_time)
        exposed.registry.register(
            conductor_metrics.StateCollector(
                counted.take, time.monotonic, count_hosts=self.backend.hosts_counter()
            )
        )
        return counters

    def _announcer(self) -> announcer.Announcer:
        return announcer.Announcer(
            outbox.Announcements(self.database),
            self.requests,
            self.inventory,
            emitter.MessagingEmitter(self.conf),
            self.conf.conductor.poll_interval_seconds,
            sends_ours=self.conf.notifications.precache_notifications,
        )

    def conductor(self) -> service.Conductor:
        options = self.conf.conductor
        dispatch = self._dispatcher()
        loop = self._lifecycle_loop(dispatch.wake)
        reconciler = self._reconciler(dispatch.wake)
        keep_pins = pin_loop.PinLoop(reconciler, self.ended_pins, options.poll_interval_seconds)
        self._follow_options(dispatch, loop, reconciler, keep_pins)
        conductor = service.Conductor(
            conductor_id=self.id,
            dispatch=dispatch,
            lifecycle_loop=loop,
            keep_pins=keep_pins,
            announce=self.announcer,
            reports=self.reports,
            job_store=self.jobs,
            api_transport=self.api_transport,
            cell_transports=self.transports,
            cell_endpoint=self._cell_endpoint,
            report_endpoint=self._report_endpoint,
            correct_clock=self.clock.correct,
            periods=service.Periods(
                lease_seconds=options.claim_lease_seconds,
                progress_seconds=options.progress_write_interval_seconds,
                heartbeat_seconds=options.heartbeat_write_interval_seconds,
                cells_seconds=options.cell_refresh_seconds,
                purge=self._purge,
                check_counts=functools.partial(
                    task_counts.TaskCounts(self.database).check, service.COUNTS_SECONDS
                ),
            ),
            remove=self.backend.remover(self.inventory, self.jobs, self.reports),
            ping_arguments=functools.partial(report_endpoint.ping_arguments, self.clock),
        )
        checks = health.ConductorHealth(
            self.database.ping,
            conductor.brokers,
            process.silent_seconds(options.heartbeat_write_interval_seconds),
        )
        self.health.add('conductor', checks.check)
        return conductor

    def _purge(self) -> None:
        self.requests.purge(self.conf.image_cache.request_retention_days)
        services = common.service_store(self.conf, self.database)
        services.purge(self.conf.conductor.service_retention_days)

    def _dispatcher(self) -> dispatcher.Dispatcher:
        return dispatcher.Dispatcher(
            conductor_id=self.id,
            job_store=self.jobs,
            request_store=self.requests,
            aggregates=self.inventory,
            plans=self._planning(),
            hosts=self._host_worker(),
            track=self.tracker,
            breakers=self.breakers,
            limit=self.conf.image_cache.precache_concurrency,
            poll_seconds=self.conf.conductor.poll_interval_seconds,
            stop_seconds=self.conf.conductor.stop_timeout_seconds,
            count_takeover=self.counters.taken_over,
        )

    def _lifecycle_loop(self, freed: Callable[[], None]) -> lifecycle.LifecycleLoop:
        return lifecycle.LifecycleLoop(
            store=self.actions,
            hosts=self.backend.host_recovery(),
            track=self.tracker,
            orders=self.backend.orders(self.actions, self.jobs, self.tracker, freed),
            poll_seconds=self.conf.conductor.poll_interval_seconds,
            freed=freed,
        )

    def _reconciler(self, wake: Callable[[], None]) -> conductor_pins.Reconciler:
        return conductor_pins.Reconciler(
            conductor_id=self.id,
            request_store=self.requests,
            pin_store=pins.Pins(self.database),
            cache_store=common.reported_caches(self.conf, self.database),
            aggregates=self.inventory,
            alive=self.backend.liveness,
            images=self.images,
            rules=_pin_rules(self.conf),
            wake=wake,
        )

    def _follow_options(
        self,
        dispatch: dispatcher.Dispatcher,
        lifecycle_loop: lifecycle.LifecycleLoop,
        reconciler: conductor_pins.Reconciler,
        keep_pins: pin_loop.PinLoop,
    ) -> None:
        """Apply mutable options when the configuration is reloaded."""

        def follow(conf: cfg.ConfigOpts, fresh: object) -> None:
            dispatch.limit = conf.image_cache.precache_concurrency
            dispatch.stop_seconds = conf.conductor.stop_timeout_seconds
            self.tracker.policy = _retry_policy(conf)
            self.breakers.rest_seconds = self.tracker.policy.delay_seconds
            reconciler.rules = _pin_rules(conf)
            for loop in (dispatch, lifecycle_loop, keep_pins, self.announcer):
                loop.poll_seconds = conf.conductor.poll_interval_seconds
                loop.wake()

        self.conf.register_mutate_hook(follow)

    def _planning(self) -> planning.Planning:
        return planning.Planning(
            conductor_id=self.id,
            request_store=self.requests,
            aggregates=self.inventory,
            alive=self.backend.liveness,
            images=self.images,
            track=self.tracker,
            chunk_tasks=self.conf.conductor.plan_chunk_tasks,
            unsupported=lambda: self.backend.why_no_call(self.api_transport),
        )

    def _host_worker(self) -> host_worker.HostWorker:
        return host_worker.HostWorker(
            conductor_id=self.id,
            job_store=self.jobs,
            why_down=self.backend.why_down,
            track=self.tracker,
            computes=self.computes,
            images=self.images,
            access=lambda: (self.images.endpoint(), self.images.token()),
            breakers=self.breakers,
            moving_seconds=pace.moving_seconds(self.conf.conductor.progress_write_interval_seconds),
        )

    def _measured_compute(self, cell_uuid: str) -> host_worker.ComputeClient:
        return conductor_metrics.MeasuredCompute(
            self.backend.client(cell_uuid), cell_uuid, self.counters, time.monotonic
        )

    def _cell_endpoint(self, cell_uuid: str) -> manager.CellEndpoint:
        self.hearings.begin([cell_uuid])  # before the first agent can register
        return manager.CellEndpoint(
            cell_uuid,
            self.inventory,
            self.agents,
            self.jobs,
            self.reports,
            token=lambda: self.images.token(fresh=True),
            check_access=job_access.JobAccess(self.jobs, self.images, self.tracker).check,
            max_hosts=self.conf.conductor.max_hosts_per_cell,
            first_answer=functools.partial(report_endpoint.first_answer, self.clock, self.pace),
        )

    def _report_endpoint(self, cell_uuid: str) -> report_endpoint.ReportEndpoint:
        return report_endpoint.ReportEndpoint(cell_uuid, self.reports, self.clock, self.pace)


def _retry_policy(conf: cfg.ConfigOpts) -> retry.RetryPolicy:
    group = conf.image_cache
    return retry.RetryPolicy(
        group.precache_max_attempts, group.retry_delay_seconds, group.retry_max_delay_seconds
    )


def _pin_rules(conf: cfg.ConfigOpts) -> conductor_pins.PinRules:
    group = conf.image_cache
    return conductor_pins.PinRules(
        interval_seconds=conf.conductor.pin_interval_seconds,
        slots=group.precache_concurrency,
        minimum_age_seconds=group.remove_unused_original_minimum_age_seconds,
    )
