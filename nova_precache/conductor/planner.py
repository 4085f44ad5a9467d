# SPDX-License-Identifier: Apache-2.0
"""Decides which hosts get a task for an image, and why the others do not.

Pure: planning, pins and estimates gather the facts, and all use :func:`decide`.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping

from nova_precache import model
from nova_precache.db.request import plan as request_plan

LEFT = 'host left the aggregate'
UNMAPPED = 'host is not mapped to a cell'

_NO_AGENTS: Mapping[str, model.Agent] = {}


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """Facts about one host; each but the cell is a reason why no task may run there.

    :ivar cell_uuid: None if the host is not mapped to a cell
    :ivar cell_off: the cell is disabled or has no usable transport URL
    :ivar down: the host is down or disabled
    :ivar uncallable: no compute may be called at all, such as by a pinned RPC version
    :ivar incapable: the driver cannot cache images, as the host reported
    :ivar left: the host left the aggregate after an earlier plan
    """

    cell_uuid: str | None = None
    cell_off: str | None = None
    down: str | None = None
    uncallable: str | None = None
    incapable: str | None = None
    left: str | None = None


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """Facts about one image; by default, it may be cached.

    :ivar image: with its kernel and ramdisk; None if it was refused
    :ivar refused: the reason why it may not be cached
    """

    image: model.Image | None = None
    refused: str | None = None


@dataclasses.dataclass(frozen=True)
class PlanDecision:
    """The status with which a task begins, and the reason unless it is simply queued."""

    status: model.TaskStatus
    reason: str | None = None

    @property
    def is_queued(self) -> bool:
        """Return whether the host will be called, now or when it is back."""
        return self.status == model.TaskStatus.QUEUED


USABLE = ImageFacts()


def host_facts(
    hosts: Iterable[str],
    cell_of_hosts: Mapping[str, str],
    cells: Iterable[model.Cell],
    down: Mapping[str, str],
    *,
    uncallable: str | None = None,
    left: Collection[str] = (),
    agents: Mapping[str, model.Agent] = _NO_AGENTS,
) -> dict[str, HostFacts]:
    """Combine the facts about hosts, by host.

    :param cell_of_hosts: host to the uuid of its cell; unmapped hosts are absent
    :param cells: all cells
    :param down: host to the reason why it is down
    :param left: hosts of an earlier plan that have left the aggregate
    :param agents: host to its last report
    """
    off = {cell.uuid: cell.disabled_reason for cell in cells}
    return {
        host: HostFacts(
            cell_uuid=cell_of_hosts.get(host),
            cell_off=off.get(cell_of_hosts.get(host, '')),
            down=down.get(host),
            uncallable=uncallable,
            incapable=_incapable_reason(agents.get(host)),
            left=LEFT if host in left else None,
        )
        for host in hosts
    }


def _incapable_reason(agent: model.Agent | None) -> str | None:
    if agent is None or agent.capabilities.get('supports_cache_image', True):
        return None
    return f'driver {agent.driver} cannot cache images'


def decide(
    host: HostFacts, options: model.RequestOptions, image: ImageFacts = USABLE
) -> PlanDecision:
    """Decide whether a host gets a task for an image; the first reason against it counts.

    The image comes first: repairing the host would not help.
    """
    waits = options.wait_for_down_hosts
    for reason, status in (
        (image.refused, model.TaskStatus.ERROR),
        (host.left, model.TaskStatus.SKIPPED),
        (UNMAPPED if host.cell_uuid is None else None, model.TaskStatus.SKIPPED),
        (host.cell_off, model.TaskStatus.SKIPPED),
        (host.uncallable, model.TaskStatus.UNSUPPORTED),
        (host.down, model.TaskStatus.QUEUED if waits else model.TaskStatus.SKIPPED),
        (host.incapable, model.TaskStatus.UNSUPPORTED),
    ):
        if reason is not None:
            return PlanDecision(status, reason)
    return PlanDecision(model.TaskStatus.QUEUED)


def plan(
    files: Iterable[tuple[str, str]],
    hosts: Mapping[str, HostFacts],
    images: Mapping[str, ImageFacts],
    options: model.RequestOptions,
) -> Iterator[request_plan.PlannedTask]:
    """Yield a task for each (host, image id), in this order."""
    for host, image_id in files:
        decision = decide(hosts[host], options, images[image_id])
        image = images[image_id].image
        yield request_plan.PlannedTask(
            host=host,
            cell_uuid=hosts[host].cell_uuid,
            image_id=image_id,
            status=decision.status,
            reason=decision.reason,
            bytes_total=image.total_bytes if image is not None else None,
        )
