# SPDX-License-Identifier: Apache-2.0
"""The conductor's RPC endpoints: thin, one for the API and one for each cell."""

import dataclasses
import datetime
import logging
from collections.abc import Callable, Sequence
from typing import Any

from nova_precache import context, deadline, exception, model, rpc
from nova_precache.cells import inventory
from nova_precache.conductor import intake, rpcapi
from nova_precache.db import agents, caches, jobs

LOG = logging.getLogger(__name__)

BEGIN_SECONDS = 20.0


class ApiEndpoint(rpc.Endpoint):
    """What the API tells a conductor."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def work_available(self, ctxt: context.RequestContext, **unknown: Any) -> None:
        """Look for work now."""
        self._wake()


class CellEndpoint(rpc.Endpoint, version=rpcapi.VERSION):
    """What the computes of one cell tell and ask a conductor.

    Arguments that a newer compute sends and this release does not know are ignored.
    """

    def __init__(
        self,
        cell_uuid: str,
        aggregates: inventory.Inventory,
        agent_store: agents.Agents,
        job_store: jobs.Jobs,
        reports: intake.Intake,
        token: Callable[[], str | None],
    ) -> None:
        self._cell_uuid = cell_uuid
        self._inventory = aggregates
        self._agents = agent_store
        self._jobs = job_store
        self._intake = reports
        self._token = token
        self._unmapped: set[str] = set()

    @rpc.refuses(exception.AgentConflict, exception.HostNotMapped)
    def register(self, ctxt: context.RequestContext, state: model.Json, **unknown: Any) -> None:
        """Accept an agent and map its host to this cell.

        :raises nova_precache.exception.AgentConflict: the name is taken, here or in another cell
        :raises nova_precache.exception.HostNotMapped: it is for Nova to map it
        """
        agent = self._agent(state)
        # A host of another cell is refused before it takes the name from its agent there.
        self._map(agent.host)
        self._agents.register(agent)
        LOG.info('Agent %s reports for host %s', agent.agent_id, agent.host)

    def _map(self, host: str) -> None:
        try:
            self._inventory.map_host(host, self._cell_uuid)
        except exception.HostNotMapped as exc:
            if host not in self._unmapped:  # it will ask again and again
                LOG.warning('%s', exc)
            self._unmapped.add(host)
            raise
        self._unmapped.discard(host)

    def report_state(self, ctxt: context.RequestContext, state: model.Json, **unknown: Any) -> None:
        """Note that an agent is alive."""
        self._intake.add_state(self._agent(state))

    def report_progress(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        sequence: int,
        progress: model.Json,
        **unknown: Any,
    ) -> None:
        """Note how far a job has come."""
        known = model.Progress(
            progress['status'],
            progress['bytes_done'],
            progress.get('bytes_total'),
            progress.get('rate_bytes'),
        )
        self._intake.add_progress(jobs.ProgressReport(job_id, epoch, sequence, known))

    def report_images(
        self,
        ctxt: context.RequestContext,
        host: str,
        agent_id: str,
        images: Sequence[model.Json],
        removed: Sequence[str],
        full: bool,
        after: str | None = None,
        until: str | None = None,
        **unknown: Any,
    ) -> None:
        """Note what is in the cache of a host, if its agent is the one that may tell."""
        known = [_cached_image(host, image) for image in images if _is_name(image['name'])]
        self._intake.add_images(
            agent_id,
            caches.Report(host, known, removed, full=full, after=after, until=until),
        )

    @rpc.refuses(exception.DatabaseUnavailable)
    def begin_job(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        starts: bool = False,
        **unknown: Any,
    ) -> bool:
        """Say whether a call still counts, before the first byte.

        :raises nova_precache.exception.DatabaseUnavailable: it cannot be said now
        """
        with deadline.within(BEGIN_SECONDS):  # else the compute no longer waits for the answer
            return self._jobs.begin(job_id, epoch, starts)

    def get_token(self, ctxt: context.RequestContext, **unknown: Any) -> str | None:
        """Give a fresh token for the image service."""
        return self._token()

    def _agent(self, state: model.Json) -> model.Agent:
        known = {field.name for field in dataclasses.fields(model.Agent)}
        values = {name: value for name, value in state.items() if name in known}
        return model.Agent(**{**values, 'cell_uuid': self._cell_uuid})


def _is_name(name: str) -> bool:
    """Tell whether the database can keep a name, which on a disk may have any length."""
    return 0 < len(name) <= caches.NAME_MAX


def _cached_image(host: str, image: model.Json) -> model.CachedImage:
    touched_at = datetime.datetime.fromisoformat(image['touched_at'])
    return model.CachedImage(
        host=host,
        name=image['name'],
        image_id=None,
        size_bytes=image['size_bytes'],
        disk_bytes=image['disk_bytes'],
        touched_at=touched_at.astimezone(datetime.UTC).replace(tzinfo=None),
        used_by=image.get('used_by'),
    )
