# SPDX-License-Identifier: Apache-2.0
"""Removes an image from the cache of a host, at the request of an admin.

Pins and requests are looked up in the database right before the call; the compute itself
checks boots, transfers and disks, under the locks of the files. Hosts with the same store id
share their cache: what is pinned or requested on one of them counts for all, and the files
are recorded as removed from each.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from nova_precache import context, deadline, exception, model
from nova_precache.cache import layout
from nova_precache.cells import breaker, inventory
from nova_precache.compute import rpcapi
from nova_precache.conductor import report_buffer
from nova_precache.db import agents, caches, jobs, pins

LOG = logging.getLogger(__name__)

# The rest of the time that the API waits is for the compute.
LOOKUP_SECONDS = 2.0


class RemovingCompute(Protocol):
    """Removes images from caches; implemented by ``compute.rpcapi.ComputeAPI``."""

    def remove_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        image_id: str,
        kept_ids: Collection[str] = (),
    ) -> model.ImageRemoval:
        """See ``compute.rpcapi.ComputeAPI.remove_image``."""


class Removals:
    """Removes images from the caches of hosts; thread-safe.

    :param computes: returns the client of a cell by its uuid
    """

    def __init__(
        self,
        agent_store: agents.Agents,
        aggregates: inventory.Inventory,
        pin_store: pins.Pins,
        job_store: jobs.Jobs,
        reports: report_buffer.ReportBuffer,
        computes: Callable[[str], RemovingCompute],
        breakers: breaker.CellBreakers,
    ) -> None:
        self._agents = agent_store
        self._inventory = aggregates
        self._pins = pin_store
        self._jobs = job_store
        self._reports = reports
        self._computes = computes
        self._breakers = breakers

    def remove(self, ctxt: context.RequestContext, host: str, image_id: str) -> model.ImageRemoval:
        """Remove an image, unless it is pinned, requested or used on the host.

        :raises nova_precache.exception.ComputeHostNotFound: there is no such host
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        :raises nova_precache.exception.RemovalRefused: the host cannot remove it
        :raises nova_precache.exception.NoAnswer: the host or its cell's broker does not answer
        :raises nova_precache.exception.DatabaseUnavailable: nothing was removed
        """
        with deadline.within(LOOKUP_SECONDS):
            agent = self._agents.get([host]).get(host)
            if agent is None:
                raise exception.ComputeHostNotFound(host)
            sharing = [agent] if agent.store_id is None else self._agents.sharing(agent.store_id)
            hosts = [each.host for each in sharing]
            kept_by = self._pins.active(self._inventory.aggregates_of_hosts(hosts))
            wanting = self._jobs.wanting(hosts, image_id)
        kept = {image: pin for pin in kept_by for image in set(pin.images) - set(pin.images_gone)}
        if image_id in kept:
            pin = kept[image_id]
            why = f'pin {pin.id} keeps it on aggregate {pin.aggregate_name}'
            return model.ImageRemoval(model.RemovalStatus.PINNED, why)
        if wanting is not None:
            why = f'request {wanting.request_id} wants it on host {wanting.host}: {wanting.status}'
            return model.ImageRemoval(model.RemovalStatus.USED, why)
        removal = self._call(ctxt, agent, image_id, kept)
        self._record(sharing, image_id, removal)
        return removal

    def _call(
        self,
        ctxt: context.RequestContext,
        agent: model.Agent,
        image_id: str,
        kept_ids: Collection[str],
    ) -> model.ImageRemoval:
        host, cell_uuid = agent.host, agent.cell_uuid
        away = f'The message broker of the cell of host {host} does not answer'
        if self._breakers.is_resting(cell_uuid):
            raise exception.NoAnswer(f'{away}.')
        try:
            removal = self._computes(cell_uuid).remove_image(ctxt, host, image_id, kept_ids)
        except TimeoutError as exc:
            self._breakers.succeeded(cell_uuid)  # its broker took the call
            raise exception.NoAnswer(
                f'Host {host} has not answered within {rpcapi.REMOVE_SECONDS:g} s; it may still '
                f'remove image {image_id}.'
            ) from exc
        except exception.CellUnreachable as exc:
            self._breakers.failed(cell_uuid)
            raise exception.NoAnswer(f'{away}: {exc}') from exc
        except exception.VersionUnsupported as exc:
            raise exception.VersionUnsupported(
                f'The compute of host {host} cannot remove images: {exc}'
            ) from exc
        except (exception.CacheError, exception.CellNotFound, exception.ConfigError) as exc:
            raise exception.RemovalRefused(
                f'Image {image_id} cannot be removed from host {host}: {exc}'
            ) from exc
        self._breakers.succeeded(cell_uuid)
        return removal

    def _record(
        self, sharing: Sequence[model.Agent], image_id: str, removal: model.ImageRemoval
    ) -> None:
        """Record the files as removed at once; the reports of the hosts follow."""
        is_gone = removal.status in {model.RemovalStatus.REMOVED, model.RemovalStatus.ABSENT}
        names = {*removal.names, *([layout.base_name(image_id)] if is_gone else [])}
        if not names:
            return
        for agent in sharing:
            report = caches.Report(agent.host, [], sorted(names), cell_uuid=agent.cell_uuid)
            self._reports.add_images(agent.agent_id, report)
        try:
            self._reports.write_images()
        except exception.DatabaseUnavailable as exc:
            LOG.info('Files removed from host %s are reported later: %s', sharing[0].host, exc)
