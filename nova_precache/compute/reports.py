# SPDX-License-Identifier: Apache-2.0
"""Sends the reports of a host: one message with all that is new, and one at a time.

Conductors of this release answer each report. One that none has read is sent again with the next,
and conductors that are away get one message of a host at a time. Older conductors get a message for
each kind of news, and answer none.
"""

import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import Callable
from concurrent import futures

from nova_precache import exception, model, outages
from nova_precache.compute import name as compute_name, reporter, transfers

LOG = logging.getLogger(__name__)

# Lost reports after which older conductors are looked for: this release may have been rolled back.
MOST_LOST = 2
# Between two looks for conductors of this release.
LOOK_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Interval:
    """Bounds of the interval that a conductor asks for, in seconds.

    :ivar longest: also the longest pause after a lost report
    """

    shortest: float
    longest: float

    def clamp(self, seconds: float) -> float:
        return min(max(self.shortest, seconds), self.longest)


@dataclasses.dataclass(frozen=True)
class _News:
    """A cache report that waits for a conductor's answer."""

    news: reporter.CacheNews
    read: 'futures.Future[None]' = dataclasses.field(default_factory=futures.Future)


@dataclasses.dataclass(frozen=True)
class _Known:
    """The database's time in the last answer, and when that arrived by our own clock."""

    now: datetime.datetime
    at_seconds: float


class Reports:
    """The reports of one host; one thread sends them, others add to them.

    :param clock: seconds, with any origin
    """

    def __init__(
        self,
        name: compute_name.Name,
        conductor: reporter.Reporter,
        running: transfers.Transfers,
        interval: Interval,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._conductor = conductor
        self._transfers = running
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._state: model.Json | None = None
        self._news: _News | None = None
        self._is_closed = False
        self._lost = 0
        self._outage = outages.Outage(f'A conductor for host {name.host}', clock)
        self._next_at = self._look_at = clock()

    def registered(self, answer: model.ReportAnswer | None) -> None:
        """Report as the conductors serve it that have registered this agent.

        :param answer: None if they serve no reports on a topic of their own
        """
        self._transfers.report_again()  # progress from before a registration counts as lost
        if answer is None:
            self._report_as_before()
        else:
            self._lost = 0
            self._note(answer, self._clock())
            self._next_at = self._clock()

    def add_state(self, state: model.Json) -> None:
        """Send the state of the host with the next report, which is due by that."""
        with self._lock:
            self._state = state

    def report_images(self, host: str, agent_id: str, news: reporter.CacheNews) -> None:
        """Send news of the cache with a report, and wait until a conductor has read them.

        :raises nova_precache.exception.PrecacheError: none has
        """
        waiting = _News(news)
        with self._lock:
            if self._is_closed:
                raise exception.ShuttingDown('the compute is shutting down')
            is_together = self._known is not None
            if is_together:
                self._news = waiting
        if is_together:
            waiting.read.result()
        else:
            self._conductor.report_images(host, agent_id, news)

    def send(self) -> None:
        """Send what is due; to be called about once a second."""
        known, now = self._known, self._clock()
        if known is None:
            self._send_one_by_one()
            if now >= self._look_at:
                self._look_for_upgrade()
        elif now >= self._next_at or (self._state is not None and not self._lost):
            self._send_together(known, now)

    def close(self) -> None:
        """End :meth:`report_images`: the process stops."""
        with self._lock:
            self._is_closed = True
        self._drop_news(exception.ShuttingDown('the compute is shutting down'))

    def _send_together(self, known: _Known, now: float) -> None:
        with self._lock:
            state, self._state = self._state, None
            news, self._news = self._news, None
        is_read = False
        try:
            is_read = self._is_read(known, now, state, news)
        except exception.PrecacheError as exc:
            self._note_loss(exc, now)
        finally:
            if not is_read:
                self._put_back(state, news)
        if is_read and news is not None:
            news.read.set_result(None)

    def _is_read(
        self, known: _Known, now: float, state: model.Json | None, news: _News | None
    ) -> bool:
        """Send a report, unless there is nothing new; return whether nothing is left to send."""
        progress = self._transfers.to_report()
        if state is None and news is None and not progress:
            return True
        answer = self._conductor.report(
            reporter.HostReport(
                host=self._name.host,
                agent_id=self._name.agent_id,
                now=known.now,
                seconds=now - known.at_seconds,
                state=state,
                progress=progress,
                images=None if news is None else news.news,
            )
        )
        self._note(answer, now)
        return answer.is_taken

    def _note(self, answer: model.ReportAnswer, sent_at: float) -> None:
        self._outage.over()
        self._lost = 0
        self._known = _Known(answer.now, self._clock())
        self._next_at = sent_at + self._interval.clamp(answer.next_seconds) - self._slack

    def _note_loss(self, error: exception.PrecacheError, sent_at: float) -> None:
        """Pause for longer and longer, and look whether only older conductors are left."""
        self._lost += 1
        self._next_at = sent_at + self._interval.clamp(2.0 ** min(self._lost, 10)) - self._slack
        if isinstance(error, exception.VersionUnsupported):
            self._report_as_before()
        elif self._lost >= MOST_LOST:
            self._look_for_downgrade()
        if self._lost >= MOST_LOST:
            self._log_outage(error)

    def _log_outage(self, error: exception.PrecacheError) -> None:
        if not outages.is_logged(error):  # as one of the broker
            self._outage.began(error)

    @property
    def _slack(self) -> float:
        """The interval may be shorter by this: it is checked only as often as the shortest ends."""
        return self._interval.shortest / 2

    def _put_back(self, state: model.Json | None, news: _News | None) -> None:
        """Send the same again with the next report, unless newer is to be sent then."""
        with self._lock:
            self._state = self._state or state
            self._news = self._news or news
            is_dropped = self._is_closed or self._known is None
        if is_dropped:
            self._drop_news(exception.CellUnreachable('no conductor has read the report'))
        self._transfers.report_again()

    def _drop_news(self, error: exception.PrecacheError) -> None:
        with self._lock:
            news, self._news = self._news, None
        if news is not None:
            news.read.set_exception(error)

    def _report_as_before(self) -> None:
        """Report to conductors of an earlier release from now on."""
        if self._known is not None:
            LOG.info('Host %s reports to conductors of an earlier release', self._name.host)
        with self._lock:
            self._known = None
        self._lost = 0
        self._look_at = self._clock() + LOOK_SECONDS
        self._drop_news(exception.CellUnreachable('no conductor has read the report'))

    def _look_for_downgrade(self) -> None:
        if self._serves_reports() is False:
            self._report_as_before()

    def _look_for_upgrade(self) -> None:
        self._look_at = self._clock() + LOOK_SECONDS
        if self._serves_reports():
            self._name.doubt()  # the answer to a registration begins the reports

    def _serves_reports(self) -> bool | None:
        """Ask a conductor; None without an answer."""
        try:
            return self._conductor.serves_reports()
        except exception.PrecacheError as exc:
            LOG.debug('No conductor answers host %s: %s', self._name.host, exc)
            return None

    def _send_one_by_one(self) -> None:
        with self._lock:
            state, self._state = self._state, None
        is_sent = False
        try:
            if state is not None:
                self._conductor.report_state(state)
            following = self._transfers.to_report()
            for each in following:
                self._conductor.report_progress(
                    each.job_id, each.epoch, each.sequence, each.progress
                )
            is_sent = True
            if state is not None or following:
                self._outage.over()
        except exception.PrecacheError as exc:
            self._log_outage(exc)
        finally:
            if not is_sent:
                self._put_back(state, None)
