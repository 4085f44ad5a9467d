# SPDX-License-Identifier: Apache-2.0
"""The health of a process on its metrics port: live, ready, and what is missing."""

import threading
from collections.abc import Callable, Iterator

import pytest
import requests

from nova_precache import health, metrics
from tools.waiting import TIMEOUT_SECONDS, wait_until

ADDRESS = '127.0.0.1'


@pytest.fixture
def served(free_port: Callable[[], int]) -> Iterator[tuple[health.Health, str]]:
    port = free_port()
    exposed = metrics.Exposition(ADDRESS, port)
    exposed.start()
    yield exposed.health, f'http://{ADDRESS}:{port}'
    exposed.stop()


def _missing(*what: str, is_needed: bool = True) -> Callable[[], health.Finding]:
    missing = [health.Missing(each, f'no {each}', is_needed) for each in what]
    return lambda: health.Finding(missing, {'broker': 1.25})


def test_ready_process_answers_200(served: tuple[health.Health, str]) -> None:
    checks, url = served
    checks.add('conductor', _missing())

    answer = requests.get(f'{url}/health', timeout=TIMEOUT_SECONDS)

    assert (answer.status_code, answer.headers['content-type']) == (200, 'application/json')
    assert answer.json() == {
        'live': True,
        'ready': True,
        'reason': None,
        'parts': [
            {
                'part': 'conductor',
                'ready': True,
                'missing': [],
                'answered_seconds_ago': {'broker': 1.2},
            }
        ],
    }


def test_missing_part_answers_503(served: tuple[health.Health, str]) -> None:
    checks, url = served
    checks.add('conductor', _missing())
    checks.add('compute h1', _missing('broker', 'disk'))

    answer = requests.get(f'{url}/health', timeout=TIMEOUT_SECONDS)

    assert (answer.status_code, answer.json()['ready']) == (503, False)
    assert [part['ready'] for part in answer.json()['parts']] == [True, False]
    assert answer.json()['parts'][1]['missing'] == [
        {'what': 'broker', 'reason': 'no broker'},
        {'what': 'disk', 'reason': 'no disk'},
    ]


def test_unneeded_part_keeps_process_ready(served: tuple[health.Health, str]) -> None:
    checks, url = served
    checks.add('conductor', _missing('broker of cell edge', is_needed=False))

    answer = requests.get(f'{url}/health', timeout=TIMEOUT_SECONDS)

    assert answer.status_code == 200
    assert answer.json()['parts'][0]['missing'][0]['what'] == 'broker of cell edge'


def test_starting_process_is_not_ready(served: tuple[health.Health, str]) -> None:
    answer = requests.get(f'{served[1]}/health', timeout=TIMEOUT_SECONDS)

    assert (answer.status_code, answer.json()['reason']) == (503, 'this process is starting')


def test_failed_check_is_missing(
    served: tuple[health.Health, str], caplog: pytest.LogCaptureFixture
) -> None:
    checks, url = served

    def fail() -> health.Finding:
        raise ZeroDivisionError('with a secret')

    checks.add('conductor', fail)

    answer = requests.get(f'{url}/health', timeout=TIMEOUT_SECONDS)

    assert answer.json()['parts'][0]['missing'] == [
        {'what': 'check', 'reason': 'it failed: ZeroDivisionError'}
    ]
    assert 'The health check of conductor failed' in caplog.text


def test_hanging_check_blocks_nothing(
    served: tuple[health.Health, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, url = served
    monkeypatch.setattr(health, 'CHECK_SECONDS', 0.05)
    ended, begun = threading.Event(), []

    def hang() -> health.Finding:
        begun.append(1)
        ended.wait(TIMEOUT_SECONDS)
        return health.Finding()

    checks.add('compute h1', hang)
    answers = [requests.get(f'{url}/health', timeout=TIMEOUT_SECONDS) for _ in range(5)]
    live = requests.get(f'{url}/health/live', timeout=TIMEOUT_SECONDS)
    wait_until(lambda: begun, 'the check has begun')
    ended.set()

    assert {answer.status_code for answer in answers} == {503}
    assert [each['what'] for each in answers[0].json()['parts'][0]['missing']] == ['check']
    assert begun == [1]
    assert (live.status_code, live.json()) == (200, {'live': True})


def test_health_accepts_only_reads(served: tuple[health.Health, str]) -> None:
    answer = requests.post(f'{served[1]}/health', timeout=TIMEOUT_SECONDS)

    assert (answer.status_code, answer.headers['allow']) == (405, 'GET, HEAD')
    assert requests.head(f'{served[1]}/health/live', timeout=TIMEOUT_SECONDS).status_code == 200
    assert 'python_info' not in requests.get(f'{served[1]}/metrics', timeout=TIMEOUT_SECONDS).text
