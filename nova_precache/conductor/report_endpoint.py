# SPDX-License-Identifier: Apache-2.0
"""The RPC endpoint for the reports of one cell's computes, on a topic of its own.

A report is a call with a short timeout, after which the broker drops it. One that is late, since
it waited in the memory of this process, is not read: it is out of date, and its host may be dead.
"""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Iterator
from typing import Any

from nova_precache import context, exception, model, rpc, wire
from nova_precache.conductor import pace, report_buffer, report_parts, rpcapi
from nova_precache.db import clock

LOG = logging.getLogger(__name__)

# A report is read in less than a millisecond.
THREADS = 8
_MOST_AGE = datetime.timedelta(seconds=rpcapi.REPORT_SECONDS)
# A report looks older than it is by the time that the answer before it took.
_SURELY_IN_TIME = _MOST_AGE / 2


def first_answer(database_clock: clock.DatabaseClock, interval: pace.Pace) -> model.ReportAnswer:
    """Return what an agent has to know before its first report."""
    return model.ReportAnswer(database_clock.now(), interval.next_seconds())


def ping_arguments(database_clock: clock.DatabaseClock) -> model.Json:
    """Return the arguments of a ping by which its receiver can see whether it is late."""
    try:
        return {'sent': rpcapi.sending_time(database_clock.now())}
    except exception.DatabaseUnavailable:
        return {}  # the ping still shows whether the broker delivers


class ReportEndpoint(rpc.Endpoint, version=rpcapi.VERSION):
    """RPC methods of the reports' topic.

    As in ``manager.CellEndpoint``, unknown arguments are ignored, known ones are validated, and
    every report is confined to this cell. Each part of a report is validated for itself, so that
    a bad one does not make its host silent.
    """

    def __init__(
        self,
        cell_uuid: str,
        reports: report_buffer.ReportBuffer,
        database_clock: clock.DatabaseClock,
        interval: pace.Pace,
    ) -> None:
        self._cell_uuid = cell_uuid
        self._reports = reports
        self._clock = database_clock
        self._pace = interval
        self._senders = wire.Senders(LOG)

    @rpc.refuses(exception.InvalidInput, exception.DatabaseUnavailable)
    def ping(self, ctxt: context.RequestContext, sent: object = None, **unknown: Any) -> str:
        """Record that reports of the cell arrive in time; return the version that is served.

        A ping waits in the queue of the reports. So one that is surely in time counts as a report
        in time, and a report that looks too old does not make the cell unheard.

        :param sent: as of a report, by the conductor that sends the ping; None if it does not
            know the database's time
        :raises nova_precache.exception.DatabaseUnavailable: the time is not known yet
        :raises nova_precache.exception.InvalidInput: the time is out of range
        """
        sent_at = wire.maybe(wire.sending_time, sent, 'sent')
        age = None if sent_at is None else self._clock.now() - sent_at
        if age is not None and age <= _SURELY_IN_TIME:
            self._reports.take(self._cell_uuid, rpcapi.REPORTS_TOPIC)
        elif age is None or age <= _MOST_AGE:
            self._reports.hear(self._cell_uuid, rpcapi.REPORTS_TOPIC)
        return super().ping(ctxt)

    @rpc.refuses(exception.InvalidInput, exception.DatabaseUnavailable)
    def report(
        self,
        ctxt: context.RequestContext,
        host: object = None,
        agent_id: object = None,
        sent: object = None,
        state: object = None,
        progress: object = (),
        images: object = None,
        **unknown: Any,
    ) -> model.Json:
        """Record all that is new on a host; return the database's time and the next interval.

        :param sent: when it was sent: ``now`` of the last answer, and the ``seconds`` since then
        :param state: as in ``report_state``; None if it is not due
        :param progress: a list of arguments of ``report_progress``
        :param images: arguments of ``report_images``; None without news
        :raises nova_precache.exception.DatabaseUnavailable: the time is not known yet
        :raises nova_precache.exception.InvalidInput: host, agent or time is out of range
        """
        with self._logging_refusals('a report', host):
            name = wire.host(host)
            agent = wire.text(agent_id, 'agent_id', wire.ID_MAX, 1)
            sent_at = wire.sending_time(sent, 'sent')
        now = self._clock.now()
        is_late = now - sent_at > _MOST_AGE
        if is_late:
            self._reports.drop(self._cell_uuid)
        else:
            self._reports.take(self._cell_uuid, rpcapi.REPORTS_TOPIC)
            self._read(name, agent, min(sent_at, now), state, progress, images)
        return model.ReportAnswer(now, self._pace.next_seconds(), not is_late).to_wire()

    def _read(
        self,
        host: str,
        agent_id: str,
        sent_at: datetime.datetime,
        state: object,
        progress: object,
        images: object,
    ) -> None:
        if state is not None:
            with self._skipping('a report', host):
                agent = wire.agent(state, self._cell_uuid)
                if (agent.host, agent.agent_id) != (host, agent_id):
                    raise exception.InvalidInput(
                        f'state: {agent.host}, agent {agent.agent_id}, is not the sender'
                    )
                self._reports.add_state(dataclasses.replace(agent, seen_at=sent_at))
        with self._skipping('progress', host):
            transfers = wire.items(progress, 'progress', wire.TRANSFERS_MAX)
            for each in transfers:
                with self._skipping('progress', host):
                    get = wire.mapping(each, 'progress').get
                    report = report_parts.read_progress(
                        self._cell_uuid,
                        get('job_id'),
                        get('epoch'),
                        get('sequence'),
                        get('progress'),
                        agent_id,
                    )
                    self._reports.add_progress(report)
        if images is not None:
            with self._skipping('an inventory', host):
                news = wire.mapping(images, 'images')
                inventory = report_parts.read_images(self._cell_uuid, host, news, self._senders)
                self._reports.add_images(agent_id, dataclasses.replace(inventory, sent_at=sent_at))

    @contextlib.contextmanager
    def _skipping(self, what: str, host: str) -> Iterator[None]:
        """Skip a bad part of a report, and log it once for its host."""
        with contextlib.suppress(exception.InvalidInput), self._logging_refusals(what, host):
            yield

    @contextlib.contextmanager
    def _logging_refusals(self, what: str, host: object) -> Iterator[None]:
        try:
            yield
        except exception.InvalidInput as exc:
            sender = f'host {wire.shown(host)} of cell {self._cell_uuid}'
            self._senders.refused(what, sender, exc)
            raise
