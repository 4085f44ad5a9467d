# SPDX-License-Identifier: Apache-2.0
"""Plans a request: one task for each of its hosts and images.

Pure: ``planning`` gathers the facts and writes the tasks.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from nova_precache import model
from nova_precache.db.request import plan as request_plan

LEFT = 'host left the aggregate'


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts that decide the plan of a request.

    :ivar hosts: of the request, in its order
    :ivar cells: host to the uuid of its cell; unmapped hosts are absent
    :ivar cells_off: uuid of a cell that is disabled or has no usable transport URL to the reason
    :ivar down: host to the reason why it is down
    :ivar images: the images that may be cached, by id
    :ivar refused: image id to the reason why it may not be cached
    :ivar unsupported: why no compute may be called at all, such as a pinned RPC version
    :ivar left: hosts of an earlier plan that have left the aggregate
    """

    hosts: Sequence[str]
    cells: Mapping[str, str]
    down: Mapping[str, str]
    images: Mapping[str, model.Image]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cells_off: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unsupported: str | None = None
    left: Collection[str] = frozenset()


def plan(request: model.CacheRequest, facts: Facts) -> Iterator[request_plan.PlannedTask]:
    """Yield the tasks of a request, host by host; the same facts yield the same tasks."""
    for host in facts.hosts:
        for image_id in request.images:
            yield _task(request, host, image_id, facts)


def replan(
    request: model.CacheRequest, tasks: Iterable[model.Task], facts: Facts
) -> Iterator[request_plan.PlannedTask]:
    """Yield new versions of those tasks of an earlier plan that are retried."""
    for task in tasks:
        yield _task(request, task.host, task.image_id, facts)


def _task(
    request: model.CacheRequest, host: str, image_id: str, facts: Facts
) -> request_plan.PlannedTask:
    status, reason = _known_outcome(request, host, image_id, facts)
    image = facts.images.get(image_id)
    return request_plan.PlannedTask(
        host=host,
        cell_uuid=facts.cells.get(host),
        image_id=image_id,
        status=status,
        reason=reason,
        bytes_total=image.total_bytes if image is not None else None,
    )


def _known_outcome(
    request: model.CacheRequest, host: str, image_id: str, facts: Facts
) -> tuple[str, str | None]:
    cell = facts.cells.get(host)
    if image_id in facts.refused:
        return model.TaskStatus.ERROR, facts.refused[image_id]
    if host in facts.left:
        return model.TaskStatus.SKIPPED, LEFT
    if cell is None:
        return model.TaskStatus.SKIPPED, 'host is not mapped to a cell'
    if cell in facts.cells_off:
        return model.TaskStatus.SKIPPED, facts.cells_off[cell]
    if facts.unsupported is not None:
        return model.TaskStatus.UNSUPPORTED, facts.unsupported
    if host in facts.down:
        waits = request.options.wait_for_down_hosts
        return model.TaskStatus.QUEUED if waits else model.TaskStatus.SKIPPED, facts.down[host]
    return model.TaskStatus.QUEUED, None
