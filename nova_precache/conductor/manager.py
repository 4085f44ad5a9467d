# SPDX-License-Identifier: Apache-2.0
"""The conductor's RPC endpoints: thin, one for the API and one for each cell."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from nova_precache import context, deadline, exception, model, rpc, wire
from nova_precache.cells import inventory
from nova_precache.conductor import report_buffer, report_parts, rpcapi
from nova_precache.db import agents, jobs

LOG = logging.getLogger(__name__)

SHOWN_HOSTS = 10
# A compute waits no longer for an answer that needs the database.
ANSWER_SECONDS = 20.0
# Before the compute gives up and publishes.
CONFIRM_SECONDS = rpcapi.CONFIRM_SECONDS / 2
# Before the compute ends.
GOODBYE_SECONDS = rpcapi.GOODBYE_SECONDS


Remove = Callable[[context.RequestContext, str, str], model.ImageRemoval]
"""Removes an image, by host and image id; see ``conductor.removals.Removals.remove``."""


class ApiEndpoint(rpc.Endpoint, version=rpcapi.VERSION):
    """RPC methods that the API calls on a conductor."""

    def __init__(self, wake: Callable[[], None], remove: Remove) -> None:
        self._wake = wake
        self._remove = remove

    def work_available(self, ctxt: context.RequestContext, **unknown: Any) -> None:
        """Look for work now."""
        self._wake()

    @rpc.refuses(
        exception.InvalidInput, exception.NotFound, exception.Conflict, exception.Unavailable
    )
    def remove_image(
        self,
        ctxt: context.RequestContext,
        host: object = None,
        image_id: object = None,
        **unknown: Any,
    ) -> model.Json:
        """Remove an image from the cache of a host, unless it is pinned or used there.

        :raises nova_precache.exception.InvalidInput: a field is out of range
        :raises nova_precache.exception.NotFound: there is no such host
        :raises nova_precache.exception.Conflict: the host or its compute cannot do it
        :raises nova_precache.exception.Unavailable: the database, broker or compute cannot answer
        """
        name, image = wire.host(host), wire.identifier(image_id, 'image_id')
        return self._remove(ctxt, name, image).to_wire()


class CellEndpoint(rpc.Endpoint, version=rpcapi.VERSION):
    """RPC methods that the computes of one cell call on a conductor.

    Unknown arguments, which a newer compute may send, are ignored; known ones are validated
    before any action, and every action is confined to this cell.

    :param check_access: checks, by job id and image id, that some request that wants the job
        may use the image, as ``conductor.job_access.JobAccess.check``
    :param max_hosts: maximum number of hosts of this cell whose agents may register
    :param first_answer: returns what an agent needs for its first report; None: reports have no
        topic of their own
    """

    def __init__(
        self,
        cell_uuid: str,
        aggregates: inventory.Inventory,
        agent_store: agents.Agents,
        job_store: jobs.Jobs,
        reports: report_buffer.ReportBuffer,
        token: Callable[[], str | None],
        check_access: Callable[[str, str], None] = lambda job_id, image_id: None,
        max_hosts: int = 20_000,
        first_answer: Callable[[], model.ReportAnswer] | None = None,
    ) -> None:
        self._cell_uuid = cell_uuid
        self._inventory = aggregates
        self._agents = agent_store
        self._jobs = job_store
        self._reports = reports
        self._token = token
        self._check_access = check_access
        self._max_hosts = max_hosts
        self._first_answer = first_answer
        self._senders = wire.Senders(LOG)
        self._nameless: set[str] = set()

    @rpc.refuses(exception.InvalidInput, exception.AgentConflict, exception.HostNotMapped)
    def register(
        self, ctxt: context.RequestContext, state: object = None, **unknown: Any
    ) -> model.Json:
        """Accept an agent and map its host to this cell; return how it is to report.

        The answer has ``reports``, as of a report on the reports' topic, which older conductors
        do not serve.

        :raises nova_precache.exception.AgentConflict: the name is taken, here or in another cell
        :raises nova_precache.exception.HostNotMapped: Nova maps hosts, and has not mapped this one
        :raises nova_precache.exception.InvalidInput: a field is out of range, or the cell is full
        """
        with self._refusing('a registration', _host_of(state)):
            agent = wire.agent(state, self._cell_uuid)
            self._refuse_too_many(agent.host)
        # Refuse a host of another cell before it takes the name from its agent there.
        self._map(agent.host)
        self._agents.register(agent)
        LOG.info('Agent %s reports for host %s', agent.agent_id, agent.host)
        return {'reports': self._first_answer and self._first_answer().to_wire()}

    def _map(self, host: str) -> None:
        try:
            self._inventory.map_host(host, self._cell_uuid)
        except exception.HostNotMapped as exc:
            if self._senders.is_first('not mapped', host):  # it retries for ever
                LOG.warning('%s', exc)
            raise

    def _refuse_too_many(self, host: str) -> None:
        if self._agents.get([host]):
            return
        known = self._agents.count(self._cell_uuid)
        if known >= self._max_hosts:
            raise exception.TooMany(
                f'hosts in cell {self._cell_uuid}',
                known + 1,
                '[conductor] max_hosts_per_cell',
                self._max_hosts,
            )

    def ping(self, ctxt: context.RequestContext, **unknown: Any) -> str:
        """Record that the cell was heard, and return the version that is served."""
        self._reports.hear(self._cell_uuid, rpcapi.TOPIC)
        return super().ping(ctxt)

    @rpc.refuses(exception.InvalidInput)
    def report_state(
        self, ctxt: context.RequestContext, state: object = None, **unknown: Any
    ) -> None:
        """Record that an agent is alive.

        :raises nova_precache.exception.InvalidInput: a field is out of range
        """
        with self._refusing('a report', _host_of(state)):
            agent = wire.agent(state, self._cell_uuid)
        self._reports.hear(self._cell_uuid, rpcapi.TOPIC)
        self._reports.add_state(agent)

    @rpc.refuses(exception.InvalidInput, exception.AgentConflict, exception.DatabaseUnavailable)
    def goodbye(
        self,
        ctxt: context.RequestContext,
        host: object = None,
        agent_id: object = None,
        boot_id: object = None,
        **unknown: Any,
    ) -> None:
        """Record that an agent stops: its host is down until it registers again.

        :param boot_id: the start of the agent that stops; a newer one may serve already
        :raises nova_precache.exception.AgentConflict: it is not registered for the host
        :raises nova_precache.exception.DatabaseUnavailable: the database gives no answer now
        :raises nova_precache.exception.InvalidInput: a field is out of range
        """
        with self._refusing('a goodbye', host):
            name = wire.host(host)
            agent = wire.text(agent_id, 'agent_id', wire.ID_MAX, 1)
            boot = wire.maybe(wire.text, boot_id, 'boot_id', wire.BOOT_ID_MAX)
        with deadline.within(GOODBYE_SECONDS):
            self._agents.stop(name, agent, self._cell_uuid, boot)
        LOG.info('Agent %s of host %s has stopped', agent, name)

    @rpc.refuses(exception.InvalidInput)
    def report_progress(
        self,
        ctxt: context.RequestContext,
        job_id: object = None,
        epoch: object = None,
        sequence: object = None,
        progress: object = None,
        agent_id: object = None,
        **unknown: Any,
    ) -> None:
        """Record the progress of a job.

        :param agent_id: of the agent that reports; None from an agent of RPC version 1.1

        :raises nova_precache.exception.InvalidInput: a field is out of range
        """
        with self._refusing_of_job('progress', job_id):
            report = report_parts.read_progress(
                self._cell_uuid, job_id, epoch, sequence, progress, agent_id
            )
        self._reports.add_progress(report)

    @rpc.refuses(exception.InvalidInput)
    def report_images(
        self,
        ctxt: context.RequestContext,
        host: object = None,
        agent_id: object = None,
        images: object = None,
        removed: object = None,
        full: object = None,
        after: object = None,
        until: object = None,
        **unknown: Any,
    ) -> None:
        """Record the cache inventory of a host, if its registered agent reports it.

        A file without the name of a base image is skipped: a directory may hold any file.

        :raises nova_precache.exception.InvalidInput: a field is out of range
        """
        with self._refusing('an inventory', host):
            name = wire.host(host)
            reporter = wire.text(agent_id, 'agent_id', wire.ID_MAX, 1)
            news = {
                'images': images,
                'removed': removed,
                'full': full,
                'after': after,
                'until': until,
            }
            report = report_parts.read_images(self._cell_uuid, name, news, self._senders)
        self._reports.add_images(reporter, report)

    @rpc.refuses(exception.InvalidInput, exception.AgentConflict, exception.DatabaseUnavailable)
    def begin_job(
        self,
        ctxt: context.RequestContext,
        job_id: object = None,
        epoch: object = None,
        starts: object = False,
        agent_id: object = None,
        **unknown: Any,
    ) -> bool:
        """Return whether a call is still current, before the first byte.

        :param agent_id: of the agent that asks; None from an agent of RPC version 1.1
        :raises nova_precache.exception.AgentConflict: it is not the registered agent of the host
        :raises nova_precache.exception.DatabaseUnavailable: the database gives no answer now
        :raises nova_precache.exception.InvalidInput: a field is out of range
        """
        with self._refusing_of_job('the start of a job', job_id):
            job = wire.identifier(job_id, 'job_id')
            call = wire.whole(epoch, 'epoch')
            is_start = wire.flag(starts, 'starts')
            agent = wire.maybe(wire.text, agent_id, 'agent_id', wire.ID_MAX, 1)
        with deadline.within(ANSWER_SECONDS):
            return self._jobs.begin(job, call, is_start, self._cell_uuid, agent)

    @rpc.refuses(exception.InvalidInput, exception.ImageGone, exception.Unavailable)
    def confirm_job(
        self,
        ctxt: context.RequestContext,
        job_id: object = None,
        epoch: object = None,
        **unknown: Any,
    ) -> None:
        """Confirm that an image may be published for a job; a stale call is not refused.

        :raises nova_precache.exception.ImageGone: no remaining request may use the image
        :raises nova_precache.exception.InvalidInput: a field is out of range
        :raises nova_precache.exception.Unavailable: access cannot be checked now
        """
        with self._refusing_of_job('a confirmation request', job_id):
            job, call = wire.identifier(job_id, 'job_id'), wire.whole(epoch, 'epoch')
        with deadline.within(CONFIRM_SECONDS):
            image_id = self._jobs.image_at_work(self._cell_uuid, job, call)
            if image_id is None:
                return
            try:
                self._check_access(job, image_id)
            except exception.ImageNotUsable as exc:
                raise exception.ImageGone(str(exc)) from exc
            except exception.ImageUnauthorized as exc:  # of this service, not the compute
                raise exception.ImageServiceUnavailable(str(exc)) from exc

    @rpc.refuses(
        exception.InvalidInput,
        exception.TokenRefused,
        exception.ImageUnauthorized,
        exception.Unavailable,
    )
    def get_token(
        self,
        ctxt: context.RequestContext,
        job_id: object = None,
        epoch: object = None,
        **unknown: Any,
    ) -> str | None:
        """Return a fresh token for the image service to a compute with a job in flight.

        :param job_id: None from a compute of an older release
        :raises nova_precache.exception.InvalidInput: a field is out of range
        :raises nova_precache.exception.TokenRefused: the job is not in flight
        :raises nova_precache.exception.ImageUnauthorized: Keystone refuses this service
        :raises nova_precache.exception.Unavailable: the database or Keystone cannot answer now
        """
        if job_id is None:
            with deadline.within(ANSWER_SECONDS):
                self._check_any_works()
            return self._token()
        with self._refusing_of_job('a token request', job_id):
            job, call = wire.identifier(job_id, 'job_id'), wire.whole(epoch, 'epoch')
        with deadline.within(ANSWER_SECONDS):
            works = self._jobs.image_at_work(self._cell_uuid, job, call) is not None
        if not works:
            raise exception.TokenRefused(
                f'job {job} is not in flight in this cell under epoch {call}'
            )
        return self._token()

    def _check_any_works(self) -> None:
        """Refuse an older compute unless its cell has a job in flight.

        Its call names no host, so the log lists all hosts that it may run on.
        """
        hosts = self._jobs.hosts_at_work(self._cell_uuid)
        if not hosts:
            raise exception.TokenRefused('no job is in flight in this cell')
        new = [host for host in hosts if host not in self._nameless]
        if new:
            LOG.warning(
                'A compute of cell %s requested a token without a job id: upgrade it. Hosts '
                'with jobs in flight: %s%s',
                self._cell_uuid,
                ', '.join(new[:SHOWN_HOSTS]),
                f' and {len(new) - SHOWN_HOSTS} more' if len(new) > SHOWN_HOSTS else '',
            )
        self._nameless.update(new)

    @contextlib.contextmanager
    def _refusing(self, what: str, host: object) -> Iterator[None]:
        """Log a refused message with the host that sent it, once."""
        try:
            yield
        except exception.InvalidInput as exc:
            sender = f'host {wire.shown(host)} of cell {self._cell_uuid}'
            self._senders.refused(what, sender, exc)
            raise

    @contextlib.contextmanager
    def _refusing_of_job(self, what: str, job_id: object) -> Iterator[None]:
        """Log a refused message with the host of its job, once."""
        try:
            yield
        except exception.InvalidInput as exc:
            job = f'job {wire.shown(job_id)} of cell {self._cell_uuid}'
            if self._senders.is_first(f'{what} of', job):
                self._senders.refused(what, self._host_of_job(job_id) or job, exc)
            raise

    def _host_of_job(self, job_id: object) -> str | None:
        try:
            host = self._jobs.host_of(wire.identifier(job_id, 'job_id'), self._cell_uuid)
        except exception.InvalidInput:
            return None
        return host and f'host {host}'


def _host_of(state: object) -> object:
    return state.get('host') if isinstance(state, dict) else None
