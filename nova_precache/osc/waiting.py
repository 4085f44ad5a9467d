# SPDX-License-Identifier: Apache-2.0
"""Follow requests until they end, across restarts of the service, and report the result."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import tenacity
from rich import console

from nova_precache import model
from nova_precache.osc import client as api, naming, showing
from nova_precache.osc.client import ApiClient, ApiError, ApiUnavailable, Json

POLL_SECONDS = 0.5
QUIET_POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300
SMALL_REQUEST = 100
LISTED_FAILURES = 50

EXIT_FAILED = 1
EXIT_TIMED_OUT = 124  # as of timeout(1)

# A large request is shown with its tasks in these states only.
_SHOWN = ('downloading', 'verifying', 'converting', 'retry_wait', 'queued')


@dataclasses.dataclass(frozen=True)
class Waited:
    """Requests after a wait, and the exit status: 0 if every image is on every host."""

    requests: Sequence[Json]
    exit_status: int


def wait_for_completion(
    app: Any, requests: Sequence[Json], timeout_seconds: float | None = None
) -> Waited:
    """Show the progress of requests on stderr, one after the other, until they have ended.

    Ctrl-C and the timeout end the wait, not the requests.

    :param timeout_seconds: for all requests together
    """
    service = api.of(app)
    screen = console.Console(stderr=True, highlight=False)
    ends_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    found = list(requests)
    is_failed = False
    for index, request in enumerate(requests):
        try:
            if len(requests) > 1:
                _print(screen, f'Request {request["id"]}:')
            with showing.view(screen) as view:
                watcher = RequestWatcher(service, view, ends_at=ends_at)
                found[index] = watcher.watch(str(request['id']))
            if found[index]['status'] in model.REQUEST_ACTIVE:
                _print(screen, f'Not ended within {timeout_seconds:g} s. {_hint(found[index:])}')
                return Waited(found, EXIT_FAILED if is_failed else EXIT_TIMED_OUT)
            is_failed |= found[index]['status'] != model.RequestStatus.COMPLETED
            _print_result(app, screen, found[index])
        except KeyboardInterrupt:
            _print(screen, f'Interrupted. {_hint(found[index:])}')
            raise
        except ApiUnavailable as error:
            raise ApiError(f'{error}\n{_hint(found[index:])}') from error
    return Waited(found, EXIT_FAILED if is_failed else 0)


class RequestWatcher:
    """Polls a request, less often while nothing changes or if it has many tasks.

    :param sleep: waits the given seconds
    :param patience_seconds: how long the service may be unavailable
    :param ends_at: when to stop, by the clock
    """

    def __init__(
        self,
        client: ApiClient,
        view: showing.ProgressView,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        patience_seconds: float = PATIENCE_SECONDS,
        ends_at: float | None = None,
    ) -> None:
        self._client = client
        self._view = view
        self._sleep = sleep
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._ends_at = ends_at

    def watch(self, request_id: str) -> Json:
        """Show a request until it ends, or time is over, and return it as last seen.

        :raises ApiUnavailable: the service was unavailable for ``patience_seconds``
        """
        pause, before = POLL_SECONDS, None
        while True:
            try:
                snapshot = self._patiently(self._snapshot, request_id)
            except ApiUnavailable:
                if before is not None and self._left() <= 0:
                    return before.request
                raise
            self._view.show(snapshot)
            if snapshot.request['status'] not in model.REQUEST_ACTIVE or self._left() <= 0:
                return snapshot.request
            moved = before is None or snapshot.progress != before.progress
            shortest = POLL_SECONDS if snapshot.whole else QUIET_POLL_SECONDS
            pause = shortest if moved else max(shortest, min(2 * pause, QUIET_POLL_SECONDS))
            before = snapshot
            self._sleep(min(pause, self._left()))

    def _left(self) -> float:
        """Return the seconds until the wait ends."""
        return float('inf') if self._ends_at is None else self._ends_at - self._clock()

    def _patiently(self, ask: Callable[[str], showing.Snapshot], of: str) -> showing.Snapshot:
        impatient = tenacity.stop_after_delay(self._patience_seconds)
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ApiUnavailable),
            stop=lambda state: impatient(state) or self._left() <= 0,
            wait=tenacity.wait_exponential(POLL_SECONDS, max=QUIET_POLL_SECONDS),
            before_sleep=lambda state: self._view.note(_trouble(state)),
            sleep=lambda seconds: self._sleep(max(0, min(seconds, self._left()))),
            reraise=True,
        )
        return attempts(ask, of)

    def _snapshot(self, request_id: str) -> showing.Snapshot:
        request = self._client.poll('requests', request_id)['request']
        counts = request['counts']
        if sum(counts.values()) <= SMALL_REQUEST:
            return showing.Snapshot(
                request, tuple(_tasks(self._client, request, None, SMALL_REQUEST)), True
            )
        some = itertools.chain.from_iterable(
            _tasks(self._client, request, status, showing.MAX_HOSTS)
            for status in _SHOWN
            if counts.get(status)
        )
        return showing.Snapshot(request, tuple(itertools.islice(some, showing.MAX_HOSTS)), False)


def _tasks(client: ApiClient, request: Json, status: str | None, limit: int) -> Sequence[Json]:
    path = ('requests', str(request['id']), 'tasks')
    query = {'status': status}
    return list(client.pages(*path, collection='tasks', query=query, limit=limit, polls=True))


def _trouble(state: tenacity.RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f'{str(error).rstrip(".")}; retrying'


def _print_result(app: Any, screen: console.Console, request: Json) -> None:
    """Print what is missing, or that there was nothing to do."""
    if request['status'] != model.RequestStatus.COMPLETED:
        _print_failures(app, screen, request)
    elif not request['counts'] and request['aggregate'] is not None:
        name = request['aggregate']['name']
        _print(screen, f'Aggregate {name} has no hosts: nothing was cached.')


def _print_failures(app: Any, screen: console.Console, request: Json) -> None:
    """List the tasks that did not succeed, at most ``LISTED_FAILURES``."""
    failed = {
        status: count
        for status, count in request['counts'].items()
        if count and status not in model.TASK_SUCCEEDED
    }
    why = f': {request["reason"]}' if request['reason'] else ''
    missing = sum(failed.values())
    _print(screen, f'Request {request["id"]} is {request["status"]}{why}')
    if missing:
        _print(screen, f'{missing_copies(request, missing)}:')
    found = itertools.chain.from_iterable(
        _tasks(api.of(app), request, status, LISTED_FAILURES) for status in failed
    )
    tasks = list(itertools.islice(found, LISTED_FAILURES))
    names = naming.image_names(app, {task['image_id'] for task in tasks})
    for task in tasks:
        reason = f': {task["reason"]}' if task['reason'] else ''
        image = names.get(task['image_id'], task['image_id'])
        _print(screen, f'  {task["host"]} {image} {task["status"]}{reason}')
    if missing > LISTED_FAILURES:
        _print(screen, f'  … List all: openstack precache task list {request["id"]}')


def missing_copies(request: Json, missing: int) -> str:
    """Say how many of the copies, one of each image on each host, are missing."""
    total = sum(request['counts'].values())
    images, hosts = len(request['images']), request['hosts_total']
    if images == 1:
        return f'The image is not cached on {missing} of {total} hosts'
    if hosts == 1:
        return f'{missing} of {total} images are not cached on the host'
    return f'{missing} of {total} copies are not cached ({images} images, {hosts} hosts)'


def _hint(requests: Sequence[Json]) -> str:
    commands = [f'openstack precache show --wait {request["id"]}' for request in requests]
    if len(commands) == 1:
        return f'The request continues to run. To follow it: {commands[0]}'
    return '\n  '.join(['The requests continue to run. To follow them:', *commands])


def _print(screen: console.Console, text: str) -> None:
    screen.print(text, markup=False, soft_wrap=True)
