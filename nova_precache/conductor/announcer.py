# SPDX-License-Identifier: Apache-2.0
"""Sends what the database says is to be announced, in a thread of its own.

So a broker that takes no notifications delays no work, and what a conductor did not
come to announce, another one does.
"""

import logging
import threading

from nova_precache import context, exception, model
from nova_precache.cells import inventory
from nova_precache.db import announcements, requests
from nova_precache.notifications import emitter, payloads

LOG = logging.getLogger(__name__)

STOP_SECONDS = 5.0


class Announcer:
    """One conductor's notifications; it looks for them every so often, or when woken."""

    def __init__(
        self,
        due: announcements.Announcements,
        request_store: requests.Requests,
        aggregates: inventory.Inventory,
        notify: emitter.Emitter,
        poll_seconds: float,
    ) -> None:
        self._due = due
        self._requests = request_store
        self._inventory = aggregates
        self._emitter = notify
        self._poll_seconds = poll_seconds
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._loop = threading.Thread(target=self._run, name='announcer', daemon=True)

    def start(self) -> None:
        """Start to look for what is to be announced."""
        self._loop.start()

    def wake(self) -> None:
        """Have the loop look now."""
        self._wake.set()

    def stop(self) -> None:
        """Send no more; a notification that a broker does not take is not waited for."""
        self._stopping.set()
        self.wake()
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
            self._wake.wait(self._poll_seconds)

    def _send(self, due: announcements.Due) -> None:
        try:
            self._emitter.emit(self._notification(due))
        except Exception:  # of this request alone, or the next cannot be taken either
            LOG.exception('Request %s: its notification %d waits', due.request_id, due.position)
            return
        self._due.remove(due)

    def _notification(self, due: announcements.Due) -> payloads.Notification:
        request = self._requests.outline(due.request_id)
        LOG.debug('Request %s: its notification %d is sent', request.id, due.position)
        asker = context.RequestContext(
            user_id=request.user_id,
            project_id=request.project_id,
            request_id=request.request_id,
            is_admin=due.is_admin,
            overwrite=False,
        )
        if due.host is None:
            phase = model.Phase(due.phase)
            return payloads.whole_request(phase, self._aggregate(request), asker)
        outcomes = self._requests.host_outcomes(request.id, due.host)
        return payloads.host_progress(request, due.host, due.position, outcomes, asker)

    def _aggregate(self, request: model.CacheRequest) -> model.Aggregate:
        """Give the aggregate as it is, or what is known of it when it was deleted."""
        try:
            return self._inventory.get_aggregate(request.aggregate_id, request.aggregate_uuid)
        except exception.AggregateNotFound:
            return model.Aggregate(
                request.aggregate_id,
                request.aggregate_uuid,
                request.aggregate_name,
                tuple(self._requests.planned_hosts(request.id)),
            )
