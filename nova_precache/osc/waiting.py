# SPDX-License-Identifier: Apache-2.0
"""Follow a request until it ends, across restarts of the service, and report the result."""

import itertools
import time
from collections.abc import Callable, Sequence

import tenacity
from rich import console

from nova_precache import model
from nova_precache.osc import showing
from nova_precache.osc.client import ApiClient, ApiError, ApiUnavailable, Json

POLL_SECONDS = 0.5
QUIET_POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300
SMALL_REQUEST = 100
LISTED_FAILURES = 50


def wait_for_completion(client: ApiClient, request: Json) -> tuple[Json, bool]:
    """Show progress on stderr; return the ended request, and whether all images are cached.

    Ctrl-C ends the wait, not the request.
    """
    screen = console.Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with showing.view(screen) as view:
            ended = RequestWatcher(client, view).watch(str(request['id']))
        succeeded = ended['status'] == model.RequestStatus.COMPLETED
        if not succeeded:
            _print_failures(client, screen, ended)
    except KeyboardInterrupt:
        _print(screen, f'Interrupted. {_follow_hint(request)}')
        raise
    except ApiUnavailable as error:
        raise ApiError(f'{error}\n{_follow_hint(request)}') from error
    return ended, succeeded


class RequestWatcher:
    """Polls a request, less often while nothing changes.

    :param sleep: waits the given seconds
    :param patience_seconds: how long the service may be unavailable
    """

    def __init__(
        self,
        client: ApiClient,
        view: showing.ProgressView,
        *,
        sleep: Callable[[float], None] = time.sleep,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._client = client
        self._view = view
        self._sleep = sleep
        self._patience_seconds = patience_seconds

    def watch(self, request_id: str) -> Json:
        """Show a request until it ends, and return it.

        :raises Unavailable: the service was unavailable for ``patience_seconds``
        """
        pause, before = POLL_SECONDS, None
        while True:
            snapshot = self._patiently(self._snapshot, request_id)
            self._view.show(snapshot)
            if snapshot.request['status'] not in model.REQUEST_ACTIVE:
                return snapshot.request
            pause = POLL_SECONDS if snapshot != before else min(2 * pause, QUIET_POLL_SECONDS)
            before = snapshot
            self._sleep(pause)

    def _patiently(self, ask: Callable[[str], showing.Snapshot], of: str) -> showing.Snapshot:
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ApiUnavailable),
            stop=tenacity.stop_after_delay(self._patience_seconds),
            wait=tenacity.wait_exponential(POLL_SECONDS, max=QUIET_POLL_SECONDS),
            before_sleep=lambda state: self._view.note(_trouble(state)),
            sleep=self._sleep,
            reraise=True,
        )
        return attempts(ask, of)

    def _snapshot(self, request_id: str) -> showing.Snapshot:
        request = self._client.get('requests', request_id)['request']
        whole = sum(request['counts'].values()) <= SMALL_REQUEST
        working = [status for status in request['counts'] if status in model.TASK_WORKING]
        tasks = itertools.chain.from_iterable(
            _tasks(self._client, request, status, SMALL_REQUEST if whole else showing.MAX_HOSTS)
            for status in ([None] if whole else working)
        )
        return showing.Snapshot(request, tuple(tasks), whole)


def _tasks(client: ApiClient, request: Json, status: str | None, limit: int) -> Sequence[Json]:
    path = ('requests', str(request['id']), 'tasks')
    return list(client.pages(*path, collection='tasks', query={'status': status}, limit=limit))


def _trouble(state: tenacity.RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f'{error}; retrying'


def _print_failures(client: ApiClient, screen: console.Console, request: Json) -> None:
    """List the tasks that did not succeed, at most ``LISTED_FAILURES``."""
    failed = {
        status: count
        for status, count in request['counts'].items()
        if count and status not in model.TASK_SUCCEEDED
    }
    why = f': {request["reason"]}' if request['reason'] else ''
    total, missing = sum(request['counts'].values()), sum(failed.values())
    _print(screen, f'Request {request["id"]} is {request["status"]}{why}')
    if missing:
        _print(screen, f'{missing} of {total} images are not cached:')
    tasks = itertools.chain.from_iterable(
        _tasks(client, request, status, LISTED_FAILURES) for status in failed
    )
    for task in itertools.islice(tasks, LISTED_FAILURES):
        reason = f': {task["reason"]}' if task['reason'] else ''
        _print(screen, f'  {task["host"]} {task["image_id"]} {task["status"]}{reason}')
    if missing > LISTED_FAILURES:
        _print(screen, f'  … List all: openstack precache task list {request["id"]}')


def _follow_hint(request: Json) -> str:
    return (
        'The request continues to run. '
        f'To follow it: openstack precache show --wait {request["id"]}'
    )


def _print(screen: console.Console, text: str) -> None:
    screen.print(text, markup=False)
