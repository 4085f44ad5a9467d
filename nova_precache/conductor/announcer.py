# SPDX-License-Identifier: Apache-2.0
"""Sends the notifications that are due by the database, in a thread of its own.

A broker that accepts no notifications therefore delays no work, and another conductor sends
the notifications that this one did not get to.
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
    """The notification loop of one conductor: polls for due notifications, also when woken.

    :param poll_seconds: may change at any time
    :param sends_ours: send this service's own notifications in addition to Nova's three, which
        do not cover a request without an aggregate
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
        """Start polling for due notifications."""
        self._loop.start()

    def wake(self) -> None:
        """Wake the loop now; if notifications are off, dropping them can wait for the next poll."""
        if not self._emitter.is_silent:
            self._wake.set()

    def stop(self) -> None:
        """Stop sending; do not wait longer than ``STOP_SECONDS`` for a stalled broker."""
        self._stopping.set()
        self._wake.set()
        if self._loop.ident is not None:
            self._loop.join(STOP_SECONDS)

    def announce(self) -> None:
        """Send all due notifications: requests take turns, each request's are sent in order."""
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
                LOG.exception('Sending notifications failed; retrying')
            self._wake.wait(self.poll_seconds)

    def _send(self, due: outbox.DueAnnouncement) -> None:
        """Send one; log a failure, so that it holds up only the notifications of this request.

        A failure that affects all requests also fails the next ``take``.
        """
        waits = 'Request %s: notification %d is not sent yet'
        try:
            request = self._requests.outline(due.request_id)
        except Exception:
            LOG.exception(waits, due.request_id, due.position)
            return
        with context.bind_request_id(request.request_id, request.global_request_id):
            LOG.debug('Request %s: sending notification %d', request.id, due.position)
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
        requester = context.RequestContext(
            user_id=request.user_id,
            project_id=request.project_id,
            request_id=request.request_id,
            global_request_id=request.global_request_id,
            is_admin=due.is_admin,
            overwrite=False,
        )
        phase = model.Phase(due.phase)
        if due.host is not None:
            yield from self._of_host(request, due, due.host, requester)
            return
        if phase in _NOVAS and request.aggregate_id is not None:
            yield payloads.whole_request(phase, self._aggregate(request), requester)
        if self._sends_ours:
            yield payloads.request_state(phase, self._requests.get(request.id), requester)

    def _of_host(
        self,
        request: model.CacheRequest,
        due: outbox.DueAnnouncement,
        host: str,
        requester: context.RequestContext,
    ) -> Iterator[payloads.Notification]:
        tasks = self._requests.tasks(request.id, limit=len(request.images), host=host)
        if request.aggregate_id is not None:
            # An older release stored the host index in the position.
            index = due.position if due.host_index is None else due.host_index
            outcomes = {task.image_id: task.status for task in tasks}
            yield payloads.host_progress(request, host, index, outcomes, requester)
        if self._sends_ours:
            for task in tasks:
                if task.status not in model.TASK_IN_FLIGHT:  # a retry may have queued it again
                    yield payloads.task_outcome(task, requester)

    def _aggregate(self, request: model.CacheRequest) -> model.Aggregate:
        """Return the aggregate; if it was deleted, rebuild it from the request and its plan."""
        known = model.Aggregate(
            request.aggregate_id or 0, request.aggregate_uuid or '', request.aggregate_name or ''
        )
        try:
            return self._inventory.get_aggregate(known.id, known.uuid)
        except exception.AggregateNotFound:
            hosts = tuple(self._requests.planned_hosts(request.id))
            return dataclasses.replace(known, hosts=hosts)
