# SPDX-License-Identifier: Apache-2.0
"""Buffers the reports of computes, so that they are written in bulk and not one by one."""

import collections
import contextlib
import dataclasses
import datetime
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from nova_precache import exception, model
from nova_precache.conductor import rpcapi
from nova_precache.db import agents, caches, jobs

LOG = logging.getLogger(__name__)

# The report that reaches this number of buffered images writes all of them at once, unless some
# are being written: others wait for no write, since heartbeats arrive with them.
MAX_IMAGES = 20_000
# Per cell, between two writes: above the number of hosts that may register in a cell.
MAX_STATES = 50_000
MAX_PROGRESS = 50_000
# Between two log lines about the late reports of a cell.
LATE_SECONDS = 3600.0


class ReportBuffer:
    """The reports since the last write; only the newest heartbeat per agent and progress per call.

    A cell is heard at a write if messages of all its topics have arrived lately, one of them since
    the last write: with any of its topics silent, its hosts would be so, too, without being down.
    For the same reason, a cell is not heard while all its reports are late, unless the pings of
    conductors are in time: then the cause is on the hosts.

    Their senders do not repeat what was buffered, so progress and inventories that the database
    could not take are written again. Heartbeats are not: the next ones follow soon.

    :param note_heard: records the cells that are heard
    :param note_transfers: called with the number of transfers of which each host has reported
    :param heard_seconds: how long a message shows that its topic is heard
    :param refuse: called with agents that reported but are not registered for their hosts
    :param database_now: returns the database's time
    :ivar dropped: number of reports that were dropped, because too many were buffered
    :ivar late: number of reports that were dropped, because they had waited for too long
    """

    def __init__(
        self,
        agent_store: agents.Agents,
        job_store: jobs.Jobs,
        cache_store: caches.Caches,
        note_heard: Callable[[Collection[str]], None] = lambda cell_uuids: None,
        refuse: Callable[[Collection[model.Agent]], None] = lambda agents: None,
        note_transfers: Callable[[Mapping[jobs.Sender, int]], None] = lambda transfers: None,
        heard_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        database_now: Callable[[], datetime.datetime | None] = lambda: None,
    ) -> None:
        self._agents = agent_store
        self._jobs = job_store
        self._caches = cache_store
        self._note_heard = note_heard
        self._refuse = refuse
        self._note_transfers = note_transfers
        self._heard_seconds = heard_seconds
        self._clock = clock
        self._database_now = database_now
        self._lock = threading.Lock()
        self.dropped = self.late = 0
        self._cells: dict[str | None, _Cell] = collections.defaultdict(_Cell)
        self._images: list[tuple[str, caches.Report]] = []
        self._images_count = 0
        self._writing_images = threading.Lock()

    def hear(self, cell_uuid: str, topic: str) -> None:
        """Record that a message of a cell has arrived."""
        with self._lock:
            self._cells[cell_uuid].hear(topic, self._clock())

    def take(self, cell_uuid: str, topic: str) -> None:
        """Record that a report of a cell, or a ping in its place, has arrived in time."""
        now = self._clock()
        with self._lock:
            cell = self._cells[cell_uuid]
            cell.hear(topic, now)
            cell.taken_at = now

    def drop(self, cell_uuid: str) -> None:
        """Record that a report of a cell was dropped, as it has waited for too long."""
        now = self._clock()
        with self._lock:
            cell = self._cells[cell_uuid]
            cell.dropped_at = now
            self.late += 1
            is_due = now >= cell.next_line_at
            if is_due:
                cell.next_line_at = now + LATE_SECONDS
        if is_due:
            LOG.warning(
                'Reports of cell %s wait longer than %g s, after which they are dropped: '
                'add conductors, or CPUs for them',
                cell_uuid,
                rpcapi.REPORT_SECONDS,
            )

    def add_state(self, agent: model.Agent) -> None:
        """Buffer a heartbeat, unless a later one of the agent is buffered.

        Drop one of a further agent if its cell has sent too many.
        """
        key = agent.host, agent.agent_id
        with self._lock:
            states = self._cells[agent.cell_uuid].states
            known = states.get(key)
            if known is not None and _sent_at(known) > _sent_at(agent):
                return
            if known is not None or len(states) < MAX_STATES:
                states[key] = agent
            else:
                self.dropped += 1

    def add_progress(self, report: jobs.ProgressReport) -> None:
        """Buffer a progress report, unless a newer one of the same call is buffered.

        Drop one of a further call if its cell has sent too many.
        """
        call = report.job_id, report.epoch, report.agent_id
        with self._lock:
            progress = self._cells[report.cell_uuid].progress
            known = progress.get(call)
            if known is None and len(progress) >= MAX_PROGRESS:
                self.dropped += 1
            elif known is None or report.sequence > known.sequence:
                progress[call] = report

    def add_images(self, agent_id: str, report: caches.Report) -> None:
        """Buffer the cache inventory that an agent reports.

        One without a time counts as sent now, or as sent when it is written if the database's
        time is unknown.
        If the buffer is full, write all of it, unless another thread is writing.
        """
        if report.sent_at is None:
            with contextlib.suppress(exception.DatabaseUnavailable):
                report = dataclasses.replace(report, sent_at=self._database_now())
        with self._lock:
            self._images.append((agent_id, report))
            self._images_count += _size(report)
            is_full = self._images_count >= MAX_IMAGES
        if is_full and self._writing_images.acquire(blocking=False):
            try:
                self._write_buffered_images()
            finally:
                self._writing_images.release()

    def sizes(self) -> Mapping[str, int]:
        """Return the number of buffered reports by kind; of images, the number of files."""
        with self._lock:
            return {
                'state': sum(len(cell.states) for cell in self._cells.values()),
                'progress': sum(len(cell.progress) for cell in self._cells.values()),
                'images': self._images_count,
            }

    def write_states(self) -> None:
        """Write the buffered heartbeats, and which cells were heard."""
        since = self._clock() - self._heard_seconds
        reports: list[model.Agent] = []
        heard: list[str] = []
        with self._lock:
            for uuid, cell in self._cells.items():
                reports += cell.states.values()
                cell.states.clear()
                if uuid is not None and cell.is_newly_heard and cell.is_heard(since):
                    heard.append(uuid)
                cell.is_newly_heard = False
        if reports and (unregistered := self._agents.report(reports)):
            self._refuse(unregistered)
        if heard:  # only now: a conductor that cannot record heartbeats has not heard the cell
            self._note_heard(heard)

    def write_progress(self) -> None:
        """Write the buffered progress."""
        reports: list[jobs.ProgressReport] = []
        with self._lock:
            for cell in self._cells.values():
                reports += cell.progress.values()
                cell.progress.clear()
        if not reports:
            self._note_transfers({})
            return
        try:
            self._jobs.record_progress(reports, self._note_transfers)
        except exception.DatabaseUnavailable:
            for report in reports:
                self.add_progress(report)
            raise

    def write_images(self) -> None:
        """Write the buffered inventories, only those that a host's registered agent reported."""
        with self._writing_images:  # or a later report might be written first
            self._write_buffered_images()

    def _write_buffered_images(self) -> None:
        with self._lock:
            told, self._images, self._images_count = self._images, [], 0
        if not told:
            return
        try:
            registered = self._agents.get({report.host for _, report in told})
            self._caches.record(
                report
                for agent_id, report in told
                if _is_of(registered.get(report.host), agent_id, report.cell_uuid)
            )
        except exception.DatabaseUnavailable:
            self._keep(told)
            raise

    def _keep(self, told: Sequence[tuple[str, caches.Report]]) -> None:
        """Put inventories back before later ones, the newest of them if there is not room."""
        with self._lock:
            kept = len(told)
            while kept and self._images_count + _size(told[kept - 1][1]) <= MAX_IMAGES:
                kept -= 1
                self._images_count += _size(told[kept][1])
            self._images[:0] = told[kept:]
            self.dropped += kept


@dataclasses.dataclass
class _Cell:
    """What the computes of a cell have reported since the last write, and when it was heard.

    :ivar heard_at: when the last message of each topic arrived
    :ivar is_newly_heard: a message of any topic has arrived since the last write
    :ivar taken_at: when the last report, or ping in its place, arrived in time
    :ivar dropped_at: when the last report arrived too late
    :ivar next_line_at: when late reports may be logged again
    """

    states: dict[tuple[str, str], model.Agent] = dataclasses.field(default_factory=dict)
    progress: 'dict[_Call, jobs.ProgressReport]' = dataclasses.field(default_factory=dict)
    heard_at: dict[str, float] = dataclasses.field(default_factory=dict)
    is_newly_heard: bool = False
    taken_at: float = -math.inf
    dropped_at: float = -math.inf
    next_line_at: float = -math.inf

    def hear(self, topic: str, now: float) -> None:
        self.heard_at[topic] = now
        self.is_newly_heard = True

    def is_heard(self, since: float) -> bool:
        arrive = all(self.heard_at.get(topic, since) > since for topic in rpcapi.CELL_TOPICS)
        return arrive and (self.taken_at > since or self.dropped_at <= since)


_Call = tuple[str, int, str | None]


def _size(report: caches.Report) -> int:
    return len(report.images) + len(report.removed) + 1


def _sent_at(agent: model.Agent) -> datetime.datetime:
    """Return when a heartbeat was sent; one of an older agent counts as sent when it is written."""
    return agent.seen_at or datetime.datetime.max  # noqa: DTZ901 - in UTC, as times are kept


def _is_of(agent: model.Agent | None, agent_id: str, cell_uuid: str | None) -> bool:
    """Return whether a report came from the registered agent of its host, in its cell."""
    if agent is None or agent.agent_id != agent_id:
        return False
    return cell_uuid in (None, agent.cell_uuid)
