# SPDX-License-Identifier: Apache-2.0
"""Whether a process can do its work, and what it lacks.

Each part of the process has a check. It runs in its own thread and may take only a few seconds,
so that a silent disk or server is found missing and holds up no answer.
"""

import concurrent.futures
import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nova_precache import outages

LOG = logging.getLogger(__name__)

PATH = '/health'
LIVE_PATH = '/health/live'
CHECK_SECONDS = 5.0
_STARTING = 'this process is starting'


@dataclasses.dataclass(frozen=True)
class Missing:
    """Something that a part needs and does not have.

    :ivar is_needed: without it, the part can do none of its work
    """

    what: str
    reason: str
    is_needed: bool = True


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a part's check.

    :ivar answered_seconds_ago: the age of the last answer, by the service that gave it
    """

    missing: Sequence[Missing] = ()
    answered_seconds_ago: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return not any(each.is_needed for each in self.missing)


class Health:
    """The checks of all parts of a process, and the HTTP answers with their results."""

    def __init__(self) -> None:
        self._checks: dict[str, _Check] = {}

    def add(self, part: str, check: Callable[[], Finding]) -> None:
        """Add the check of a part, by a name that is unique in the process."""
        self._checks[part] = _Check(part, check)

    def check(self) -> Mapping[str, Finding]:
        """Check all parts at once; one that takes too long is missing its check."""
        running = [(check.part, check.begin()) for check in list(self._checks.values())]
        concurrent.futures.wait([each for _, each in running], CHECK_SECONDS)
        return {part: each.result() if each.done() else _LATE for part, each in running}

    def serve(
        self, environ: Mapping[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer 200 while ready and 503 otherwise; for ``LIVE_PATH`` 200 as long as it answers."""
        if environ['REQUEST_METHOD'] not in {'GET', 'HEAD'}:
            start_response('405 Method Not Allowed', [('Allow', 'GET, HEAD')])
            return [b'']
        if environ['PATH_INFO'] == LIVE_PATH:
            return _answer(start_response, '200 OK', {'live': True})
        found = self.check()
        is_ready = bool(found) and all(each.is_ready for each in found.values())
        status = '200 OK' if is_ready else '503 Service Unavailable'
        return _answer(start_response, status, _report(found, is_ready))


class _Check:
    """A part's check, which runs at most once at a time."""

    def __init__(self, part: str, check: Callable[[], Finding]) -> None:
        self.part = part
        self._check = check
        self._lock = threading.Lock()
        self._running: concurrent.futures.Future[Finding] | None = None

    def begin(self) -> 'concurrent.futures.Future[Finding]':
        with self._lock:
            if self._running is None or self._running.done():
                result: concurrent.futures.Future[Finding] = concurrent.futures.Future()
                self._running = result
                threading.Thread(
                    target=self._run, args=(result,), name='health', daemon=True
                ).start()
            return self._running

    def _run(self, result: 'concurrent.futures.Future[Finding]') -> None:
        try:
            result.set_result(self._check())
        except Exception as exc:
            if not outages.is_logged(exc):
                LOG.exception('The health check of %s failed', self.part)
            result.set_result(Finding([Missing('check', f'it failed: {type(exc).__name__}')]))


_LATE = Finding([Missing('check', f'it takes longer than {CHECK_SECONDS:g} s')])


def _report(found: Mapping[str, Finding], is_ready: bool) -> Mapping[str, Any]:
    return {
        'live': True,
        'ready': is_ready,
        'reason': None if found else _STARTING,
        'parts': [
            {
                'part': part,
                'ready': each.is_ready,
                'missing': [{'what': one.what, 'reason': one.reason} for one in each.missing],
                'answered_seconds_ago': {
                    name: round(seconds, 1) for name, seconds in each.answered_seconds_ago.items()
                },
            }
            for part, each in found.items()
        ],
    }


def _answer(
    start_response: Callable[..., Any], status: str, content: Mapping[str, Any]
) -> Iterable[bytes]:
    body = json.dumps(content, indent=2).encode() + b'\n'
    start_response(
        status, [('Content-Type', 'application/json'), ('Content-Length', str(len(body)))]
    )
    return [body]
