# SPDX-License-Identifier: Apache-2.0
"""Sends what the database says is to be announced, in a thread of its own.

So a broker that takes no notifications delays no work, and what a conductor did not
come to announce, another one does.
"""

import dataclasses
import logging
import threading
from collections.abc import Iterator

from nova_precache import context, exception, model
from nova_precache.cells import inventory
from nova_precache.db import outbox, requests
from nova_precache.notifications import emitter, payloads

LOG = logging.getLogger(__name__)

STOP_SECONDS = 5.0
_NOVAS = frozenset({model.Phase.START, model.Phase.END})


class Announcer:
    """One conductor's notifications; it looks for them every so often, or when woken.

    :param poll_seconds: may change at any time
    :param sends_ours: beside Nova's three, which say nothing of a request without an aggregate
    """

    def __init__(
        self,
        due: outbox.Announcements,
        request_store: requests.Requests,
        aggregates: inventory.Inventory,
        notify: emitter.Emitter,
        poll_seconds: float,
        sends_ours: bool = True,
    ) -> None:
        self._due = due
        self._requests = request_store
        self._inventory = aggregates
        self._emitter = notify
        self.poll_seconds = poll_seconds
        self._sends_ours = sends_ours
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._loop = threading.Thread(target=self._run, name='announcer', daemon=True)

    def start(self) -> None:
        """Start to look for what is to be announced."""
        self._loop.start()

    def wake(self) -> None:
        """Have the loop look now; what is to be dropped can wait."""
        if not self._emitter.is_silent:
            self._wake.set()

    def stop(self) -> None:
        """Send no more; a notification that a broker does not take is not waited for."""
        self._stopping.set()
        self._wake.set()
        if self._loop.ident is not None:
            self._loop.join(STOP_SECONDS)

    def announce(self) -> None:
        """Send everything that is due: the requests take turns, each one's come in order."""
        if self._emitter.is_silent:
            self._due.drop()
            return
        last = ''
        while not self._stopping.is_set() and (due := self._due.take(last)) is not None:
            self._send(due)
            last = due.request_id

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.announce()
            except Exception:
                LOG.exception('Notifications could not be sent now, they are tried again')
            self._wake.wait(self.poll_seconds)

    def _send(self, due: outbox.DueAnnouncement) -> None:
        """Send one; a failure is of this request alone, or the next cannot be taken either."""
        waits = 'Request %s: its notification %d waits'
        try:
            request = self._requests.outline(due.request_id)
        except Exception:
            LOG.exception(waits, due.request_id, due.position)
            return
        with context.bind_request_id(request.request_id, request.global_request_id):
            LOG.debug('Request %s: its notification %d is sent', request.id, due.position)
            try:
                for notification in self._notifications(request, due):
                    self._emitter.emit(notification)
            except Exception:
                LOG.exception(waits, due.request_id, due.position)
                return
            self._due.remove(due)

    def _notifications(
        self, request: model.CacheRequest, due: outbox.DueAnnouncement
    ) -> Iterator[payloads.Notification]:
        asker = context.RequestContext(
            user_id=request.user_id,
            project_id=request.project_id,
            request_id=request.request_id,
            global_request_id=request.global_request_id,
            is_admin=due.is_admin,
            overwrite=False,
        )
        phase = model.Phase(due.phase)
        if due.host is not None:
            yield from self._of_host(request, due, due.host, asker)
            return
        if phase in _NOVAS and request.aggregate_id is not None:
            yield payloads.whole_request(phase, self._aggregate(request), asker)
        if self._sends_ours:
            yield payloads.request_state(phase, self._requests.get(request.id), asker)

    def _of_host(
        self,
        request: model.CacheRequest,
        due: outbox.DueAnnouncement,
        host: str,
        asker: context.RequestContext,
    ) -> Iterator[payloads.Notification]:
        tasks = self._requests.tasks(request.id, limit=len(request.images), host=host)
        if request.aggregate_id is not None:
            # One that an older release wrote has its index as its position.
            index = due.position if due.host_index is None else due.host_index
            outcomes = {task.image_id: task.status for task in tasks}
            yield payloads.host_progress(request, host, index, outcomes, asker)
        if self._sends_ours:
            for task in tasks:
                if task.status not in model.TASK_IN_FLIGHT:  # they may have been queued anew
                    yield payloads.task_outcome(task, asker)

    def _aggregate(self, request: model.CacheRequest) -> model.Aggregate:
        """Give the aggregate as it is, or what is known of it when it was deleted."""
        known = _named(request)
        try:
            return self._inventory.get_aggregate(known.id, known.uuid)
        except exception.AggregateNotFound:
            hosts = tuple(self._requests.planned_hosts(request.id))
            return dataclasses.replace(known, hosts=hosts)


def _named(request: model.CacheRequest) -> model.Aggregate:
    """Give what a request keeps of its aggregate."""
    return model.Aggregate(
        request.aggregate_id or 0, request.aggregate_uuid or '', request.aggregate_name or ''
    )
