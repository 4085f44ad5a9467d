# SPDX-License-Identifier: Apache-2.0
"""Turns accepted requests into tasks: gathers the facts, writes the plan in chunks."""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Self

from nova_precache import context, exception, model, outages
from nova_precache.cells import inventory
from nova_precache.conductor import image_access, liveness, planner, tracker
from nova_precache.db import requests
from nova_precache.db.request import plan as request_plan
from nova_precache.image import service

LOG = logging.getLogger(__name__)

POSTPONE_SECONDS = 2.0
# While Glance gives no answer; well below the limit for its answers.
NOTE_SECONDS = 5.0


class Planning:
    """Plans one request after the other.

    :param unsupported: returns why no compute may be called at all, None if they may
    """

    def __init__(
        self,
        conductor_id: str,
        request_store: requests.Requests,
        aggregates: inventory.Inventory,
        alive: liveness.Liveness,
        images: service.ImageService,
        track: tracker.Tracker,
        chunk_tasks: int,
        unsupported: Callable[[], str | None],
    ) -> None:
        self._conductor_id = conductor_id
        self._requests = request_store
        self._inventory = aggregates
        self._liveness = alive
        self._images = images
        self._tracker = track
        self._chunk_tasks = chunk_tasks
        self._unsupported = unsupported

    def plan_next(self, is_stopping: Callable[[], bool] = lambda: False) -> bool:
        """Plan the oldest request that waits for a plan; False if none does.

        :param is_stopping: once it returns True, the rest of the plan is left to another conductor
        """
        taken = self._requests.next_to_plan(self._conductor_id)
        if taken is None:
            return False
        with context.bind_request_id(taken.request.request_id, taken.request.global_request_id):
            self._try_to_plan(taken, is_stopping)
        return True

    def _try_to_plan(self, taken: requests.ToPlan, is_stopping: Callable[[], bool]) -> None:
        try:
            self._plan(taken, is_stopping)
        except exception.AggregateNotFound:
            reason = 'the aggregate was deleted before the request was planned'
            if self._requests.fail(taken.request.id, self._conductor_id, reason):
                self._tracker.failed(taken.request.id)
        except exception.PrecacheError as exc:
            self._postpone(taken.request.id, str(exc), is_logged=outages.is_logged(exc))
        except Exception as exc:
            LOG.exception('Planning request %s failed', taken.request.id)
            self._postpone(taken.request.id, f'unexpected {type(exc).__name__}')

    def _plan(self, taken: requests.ToPlan, is_stopping: Callable[[], bool]) -> None:
        request = taken.request
        queued = self._queued_again(request)
        hosts, left = self._hosts(request, queued)
        with _SilenceNotes(self._note_silence) as notes:
            images = image_access.check_all(
                self._images, notes.each(request.images), request.project_id, taken.is_admin
            )
        host_facts = planner.host_facts(
            hosts,
            self._inventory.cell_of_hosts(hosts),
            self._inventory.list_cells(),
            self._liveness.down(hosts),
            uncallable=self._unsupported(),
            left=left,
        )
        # Neither down nor up: the host would be skipped wrongly, or hold a slot until a timeout.
        mapped = [host for host, facts in host_facts.items() if facts.cell_uuid is not None]
        settling = self._liveness.settling(mapped)
        if settling and not request.options.wait_for_down_hosts:
            self._postpone(request.id, f'{len(settling)} hosts have not reported yet')
            return
        files = (
            itertools.product(hosts, request.images)
            if queued is None
            else ((task.host, task.image_id) for task in queued)
        )
        tasks = planner.plan(files, host_facts, images, request.options)
        self._write(request, tasks, is_stopping)

    def _note_silence(self, seconds: float) -> None:
        reason = f'no answer from Glance for {seconds:.0f} s'
        self._requests.note_unplanned(self._conductor_id, reason)

    def _write(
        self,
        request: model.CacheRequest,
        tasks: Iterable[request_plan.PlannedTask],
        is_stopping: Callable[[], bool],
    ) -> None:
        for chunk in _chunks(tasks, self._chunk_tasks):
            if is_stopping():
                self._postpone(request.id, 'the conductor that planned it was stopped', seconds=0)
                return
            if not self._requests.add_tasks(request.id, self._conductor_id, chunk):
                return
        if self._requests.mark_planned(request.id, self._conductor_id):
            self._tracker.planned(request.id)

    def _hosts(
        self, request: model.CacheRequest, queued: Sequence[model.Task] | None
    ) -> tuple[Sequence[str], Collection[str]]:
        """Return the hosts to plan, and those of an earlier plan that have left the aggregate."""
        if queued is None:
            return self._aggregate_hosts(request) if request.hosts is None else request.hosts, ()
        hosts = list(dict.fromkeys(task.host for task in queued))
        left: set[str] = set()
        if request.aggregate_id is not None:
            with contextlib.suppress(exception.AggregateNotFound):  # keep the request as planned
                left = set(hosts) - set(self._aggregate_hosts(request))
        return hosts, left

    def _aggregate_hosts(self, request: model.CacheRequest) -> Sequence[str]:
        if request.aggregate_id is None:
            raise exception.PrecacheError('the request names neither an aggregate nor hosts')
        return self._inventory.get_aggregate(request.aggregate_id, request.aggregate_uuid).hosts

    def _queued_again(self, request: model.CacheRequest) -> Sequence[model.Task] | None:
        """Return the tasks that a retry has queued; None for a request that has no plan yet."""
        if request.planned_at is None:
            return None
        queued: list[model.Task] = []
        while page := self._requests.tasks(
            request.id,
            limit=self._chunk_tasks,
            marker=queued[-1].id if queued else None,
            status=model.TaskStatus.QUEUED,
        ):
            queued += page
        return queued

    def _postpone(
        self,
        request_id: str,
        reason: str,
        seconds: float = POSTPONE_SECONDS,
        *,
        is_logged: bool = False,
    ) -> None:
        level = logging.DEBUG if is_logged else logging.WARNING
        LOG.log(level, 'Planning of request %s is postponed: %s', request_id, reason)
        self._requests.postpone_plan(request_id, self._conductor_id, seconds, reason)


class _SilenceNotes:
    """Notes every ``NOTE_SECONDS``, in its own thread, that a check has no result yet.

    :param note: called with the seconds for which the current check has waited
    """

    def __init__(self, note: Callable[[float], None]) -> None:
        self._note = note
        self._began = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name='silence-notes', daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def each(self, image_ids: Iterable[str]) -> Iterator[str]:
        """Yield ids of images; the check of an image begins when its id is yielded."""
        for image_id in image_ids:
            self._began = time.monotonic()
            yield image_id

    def _run(self) -> None:
        while not self._is_over.wait(NOTE_SECONDS):
            try:
                self._note(time.monotonic() - self._began)
            except Exception:
                LOG.exception('Noting that a check has no result yet failed')


def _chunks(
    tasks: Iterable[request_plan.PlannedTask], size: int
) -> Iterator[list[request_plan.PlannedTask]]:
    iterator = iter(tasks)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
