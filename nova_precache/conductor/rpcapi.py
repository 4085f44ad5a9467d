# SPDX-License-Identifier: Apache-2.0
"""Client side of the conductor RPC API, for the API and the computes.

History:

* 1.0 - ``work_available``, ``register``, ``report_state``, ``report_progress``,
  ``begin_job``, ``get_token``
* 1.1 - ``report_images``; a progress has ``rate_bytes``; ``ping`` returns the version instead
  of nothing
* 1.2 - ``begin_job`` and ``report_progress`` take ``agent_id``; ``begin_job`` refuses an agent
  that is not registered for the host; ``get_token`` takes ``job_id`` and ``epoch``. An older
  conductor ignores these arguments; ``confirm_job``
* 1.3 - ``goodbye`` of a compute that stops
* 1.4 - ``remove_image``, which the API calls
* 1.5 - ``report`` on a topic of its own, if the answer to ``register`` has ``reports``; it
  replaces ``report_state``, ``report_progress`` and ``report_images``; ``ping`` on that topic
  takes ``sent``

A new minor version adds methods or arguments; a conductor ignores unknown arguments, and
unknown keys of a state or a progress. Nothing works without 1.0, so no pin may be lower.
"""

import datetime
import threading
import time
from collections.abc import Callable
from typing import Any

from nova_precache import context, exception, model, rpc, wire
from nova_precache.compute import reporter

TOPIC = 'precache_conductor'
# A separate topic: on one broker, all servers of a topic share its queue, whatever they serve.
API_TOPIC = 'precache_conductor_api'
# A separate topic, too, so that questions of computes do not wait behind their reports.
REPORTS_TOPIC = 'precache_reports'
CELL_TOPICS = (TOPIC, REPORTS_TOPIC)
VERSION = '1.5'
OLDEST_VERSION = '1.0'
WAKE_SECONDS = 2.0
# A report that no conductor has taken within this time is dropped by the broker.
REPORT_SECONDS = 5.0
# A compute that has the whole image waits no longer before it publishes it.
CONFIRM_SECONDS = 10.0
# A compute that stops waits no longer to be recorded as stopped.
GOODBYE_SECONDS = 3.0
# A caller of the API waits for the answer, which comes after that of the compute.
REMOVE_SECONDS = 7.5
REMOVE_SEND_SECONDS = 2.0


class ConductorAPI:
    """The client of the API: wakes the conductors, and requests removals from caches."""

    def __init__(self, transport: rpc.Transport, version_cap: str | None = None) -> None:
        self._client = rpc.Client(transport, API_TOPIC, version_cap, retries=0)
        self._version_cap = version_cap
        self._lock = threading.Lock()
        self._last: _Cast | None = None

    def work_available(self, ctxt: context.RequestContext) -> None:
        """Cast ``work_available``, at most one at a time; conductors also poll for work.

        A cast gives up on a silent broker only after half a minute; this call does not wait for
        that. While a cast is pending, further calls share it: it announces all work.

        :raises nova_precache.exception.CellUnreachable: the broker has accepted no message so far
        """
        with self._lock:
            if self._last is None or not self._last.thread.is_alive():
                self._last = _Cast(self._client, ctxt)
                self._last.thread.start()
            cast = self._last
        cast.thread.join(WAKE_SECONDS)
        if cast.thread.is_alive():
            raise exception.CellUnreachable(f'no answer from the broker in {WAKE_SECONDS:g} s')
        if cast.error is not None:
            raise cast.error

    def remove_image(
        self, ctxt: context.RequestContext, host: str, image_id: str
    ) -> model.ImageRemoval:
        """Request a conductor to have an image removed from the cache of a host.

        :raises nova_precache.exception.NotFound: there is no such host
        :raises nova_precache.exception.Conflict: the host or its compute cannot do it
        :raises nova_precache.exception.Unavailable: no conductor or compute answers now
        """
        if not self._client.can_send('1.4'):
            raise exception.VersionUnsupported(
                f'[upgrade_levels] conductor = {self._version_cap} is too low for remove_image'
            )
        try:
            answer = self._client.call(
                ctxt,
                'remove_image',
                '1.4',
                timeout_seconds=REMOVE_SECONDS,
                send_seconds=REMOVE_SEND_SECONDS,
                host=host,
                image_id=image_id,
            )
        except TimeoutError as exc:
            raise exception.NoAnswer(
                f'No conductor has answered within {REMOVE_SECONDS:g} s; image {image_id} may '
                f'still be removed from host {host}.'
            ) from exc
        except exception.CellUnreachable as exc:
            raise exception.NoAnswer(
                f'The message broker of the conductors does not answer: {exc}'
            ) from exc
        return wire.image_removal(answer)


class _Cast:
    """A cast in progress, and the error that it ended with.

    It does not subclass ``Thread``, whose private names differ between versions of Python.
    """

    def __init__(self, client: rpc.Client, ctxt: context.RequestContext) -> None:
        self._client = client
        self._context = ctxt
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name='wake', daemon=True)

    def _run(self) -> None:
        try:
            self._client.cast(self._context, 'work_available', '1.0')
        except Exception as exc:  # noqa: BLE001 - raised again where the caller waits
            self.error = exc


class ConductorReporter:
    """Client of a compute for its conductors: the ``compute.reporter.Reporter`` over RPC."""

    def __init__(
        self,
        transport: rpc.Transport,
        version_cap: str | None,
        timeout_seconds: float,
        agent_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent_id = agent_id
        self._clock = clock
        self._answered_at: float | None = None
        self._client = rpc.Client(transport, TOPIC, version_cap, retries=1)
        self._reports = rpc.Client(transport, REPORTS_TOPIC, version_cap, retries=0)
        self._timeout_seconds = timeout_seconds
        self._is_inventory_kept: bool | None = None

    def register(self, state: model.Json) -> model.ReportAnswer | None:
        answer = self._call('register', state=state)
        if answer is None or not self._reports.can_send('1.5'):
            return None
        reports = wire.mapping(answer, 'the answer').get('reports')
        return None if reports is None else wire.report_answer(reports)

    def serves_reports(self) -> bool:
        return self._reports.can_send('1.5') and rpc.knows(
            self._call('ping', timeout_seconds=REPORT_SECONDS), '1.5'
        )

    def report(self, report: reporter.HostReport) -> model.ReportAnswer:
        answer = self._call(
            'report',
            '1.5',
            client=self._reports,
            timeout_seconds=REPORT_SECONDS,
            host=report.host,
            agent_id=report.agent_id,
            sent=sending_time(report.now, report.seconds),
            state=report.state,
            progress=[
                {
                    'job_id': each.job_id,
                    'epoch': each.epoch,
                    'sequence': each.sequence,
                    'progress': _progress(each.progress),
                }
                for each in report.progress
            ],
            images=None if report.images is None else _news(report.images),
        )
        return wire.report_answer(answer)

    def report_state(self, state: model.Json) -> None:
        self._client.cast(context.admin_context(), 'report_state', '1.0', state=state)

    def report_progress(
        self, job_id: str, epoch: int, sequence: int, progress: model.Progress
    ) -> None:
        self._client.cast(
            context.admin_context(),
            'report_progress',
            '1.0',
            job_id=job_id,
            epoch=epoch,
            sequence=sequence,
            agent_id=self._agent_id,
            progress=_progress(progress),
        )

    def report_images(self, host: str, agent_id: str, news: reporter.CacheNews) -> None:
        is_first = news.full and news.after is None
        if self._is_inventory_kept is None or is_first:
            # An older conductor would log an error for each inventory message.
            self._is_inventory_kept = self._client.can_send('1.1') and isinstance(
                self._call('ping'), str
            )
        if not self._is_inventory_kept:
            return
        self._client.cast(
            context.admin_context(),
            'report_images',
            '1.1',
            host=host,
            agent_id=agent_id,
            **_news(news),
        )

    def begin_job(self, job_id: str, epoch: int, starts: bool) -> bool:
        begun = self._call(
            'begin_job', job_id=job_id, epoch=epoch, starts=starts, agent_id=self._agent_id
        )
        return wire.flag(begun, 'the answer')

    def ask(self, seconds: float) -> None:
        """Ask whether a conductor answers.

        :raises nova_precache.exception.CellUnreachable: none does in time
        """
        self._call('ping', timeout_seconds=seconds)

    def answered_seconds_ago(self) -> float | None:
        """Return the age of the last answer of a conductor, None without one."""
        return None if self._answered_at is None else self._clock() - self._answered_at

    def goodbye(self, host: str, agent_id: str, boot_id: str) -> None:
        self._call(
            'goodbye',
            '1.3',
            timeout_seconds=GOODBYE_SECONDS,
            host=host,
            agent_id=agent_id,
            boot_id=boot_id,
        )

    def get_token(self, job_id: str, epoch: int) -> str | None:
        token = self._call('get_token', job_id=job_id, epoch=epoch)
        return wire.maybe(wire.secret, token, 'the answer')

    def confirm_job(self, job_id: str, epoch: int) -> None:
        self._call(
            'confirm_job', '1.2', timeout_seconds=CONFIRM_SECONDS, job_id=job_id, epoch=epoch
        )

    def _call(
        self,
        method: str,
        version: str = '1.0',
        *,
        client: rpc.Client | None = None,
        timeout_seconds: float | None = None,
        **arguments: Any,
    ) -> Any:
        try:
            answer = (client or self._client).call(
                context.admin_context(),
                method,
                version,
                timeout_seconds=timeout_seconds or self._timeout_seconds,
                **arguments,
            )
        except TimeoutError as exc:
            raise exception.CellUnreachable(f'no conductor answered {method}: {exc}') from exc
        self._answered_at = self._clock()
        return answer


def sending_time(now: datetime.datetime, seconds: float = 0) -> model.Json:
    """Build the time at which a message is sent: ``seconds`` after a time of the database."""
    return {'now': _time(now), 'seconds': seconds}


def _progress(progress: model.Progress) -> model.Json:
    return {
        'status': progress.status,
        'bytes_done': progress.bytes_done,
        'bytes_total': progress.bytes_total,
        'rate_bytes': progress.rate_bytes,
    }


def _news(news: reporter.CacheNews) -> model.Json:
    return {
        'images': [_image(image) for image in news.images],
        'removed': list(news.removed),
        'full': news.full,
        'after': news.after,
        'until': news.until,
    }


def _image(image: model.CachedImage) -> model.Json:
    return {
        'name': image.name,
        'size_bytes': image.size_bytes,
        'disk_bytes': image.disk_bytes,
        'touched_at': _time(image.touched_at),
        'used_by': image.used_by,
    }


def _time(time: datetime.datetime) -> str:
    return f'{time.isoformat()}Z'
