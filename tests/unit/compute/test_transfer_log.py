# SPDX-License-Identifier: Apache-2.0
"""A transfer has one line when it begins and one when it ends, whatever happens in between."""

import logging
from concurrent import futures

import pytest

from nova_precache import context, exception, model, transfer_control
from nova_precache.compute import manager, name, rpcapi, transfer_log, transfers
from nova_precache.image import fake as fake_images
from tests.service import wait_until
from tests.unit.compute.conftest import FakeReporter, ScriptedDriver
from tools.waiting import TIMEOUT_SECONDS

CALL = rpcapi.CacheImageCall('j1', 1, 'i1', None, asked_by='r1, r2')
CTXT = context.admin_context()
MOVED = model.Progress(model.TaskStatus.DOWNLOADING, 2000)


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def _run(outcome: model.ImageOutcome, *, is_last: bool = False) -> model.ImageOutcome:
    """Run a transfer that moves 2000 bytes in 4 seconds."""
    seconds = iter((10.0, 14.0))
    control = transfer_control.Control()
    control.is_last_attempt = is_last

    def work(
        progress: model.ProgressCallback, control: transfer_control.Control
    ) -> model.ImageOutcome:
        progress(MOVED)
        return outcome

    logged = transfer_log.logged(work, CTXT, CALL, 'h1', lambda: next(seconds))
    with context.bind_request_id(None):  # this thread keeps its own ids afterwards
        return logged(lambda now: None, control)


def _lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name.startswith('nova_precache')
    ]


def test_begin_and_end_have_one_line(caplog: pytest.LogCaptureFixture) -> None:
    outcome = _run(model.ImageOutcome('cached', bytes_done=2000, bytes_total=2000))

    assert outcome.seconds == 4
    assert _lines(caplog) == [
        ('INFO', 'Job j1 (image i1 on host h1) begins, for request r1, r2'),
        (
            'INFO',
            'Job j1 (image i1 on host h1) ended for request r1, r2: cached, 2000 bytes in 4.0 s '  # noqa: ISC004
            '(500 bytes/s)',
        ),
    ]


@pytest.mark.parametrize(
    ('status', 'retry', 'is_last', 'level'),
    [
        ('error', model.Retry.NEVER, False, 'WARNING'),
        ('unsupported', model.Retry.NEVER, False, 'WARNING'),
        ('expired', model.Retry.NEVER, False, 'WARNING'),
        ('error', model.Retry.ONCE, False, 'WARNING'),
        ('error', model.Retry.BACKOFF, True, 'WARNING'),
        ('error', model.Retry.BACKOFF, False, 'INFO'),
        ('error', model.Retry.LATER, True, 'INFO'),
        ('cancelled', model.Retry.NEVER, False, 'INFO'),
        ('existing', model.Retry.NEVER, False, 'INFO'),
    ],
)
def test_only_final_failure_is_warning(
    caplog: pytest.LogCaptureFixture, status: str, retry: str, is_last: bool, level: str
) -> None:
    _run(model.ImageOutcome(status, 'the reason', retry), is_last=is_last)

    _, (found, text) = _lines(caplog)
    assert (found, text.endswith(': the reason')) == (level, True)


@pytest.mark.parametrize(('gained_bytes', 'level'), [(0, 'WARNING'), (1, 'INFO')])
def test_slow_last_attempt_final_without_bytes(
    caplog: pytest.LogCaptureFixture, gained_bytes: int, level: str
) -> None:
    slow = model.ImageOutcome('error', 'slower', model.Retry.BACKOFF, gained_bytes=gained_bytes)
    _run(slow, is_last=True)

    _, (found, text) = _lines(caplog)
    assert found == level
    # Not the bytes of earlier attempts, which were read from the disk.
    assert text.endswith(f'error, {gained_bytes} bytes in 4.0 s (0 bytes/s): slower')


def test_failure_reports_moved_bytes() -> None:
    failed = _run(model.ImageOutcome('error', 'the line is dead', model.Retry.BACKOFF))

    assert (failed.bytes_done, failed.line) == (
        2000,
        'error, 2000 bytes in 4.0 s (500 bytes/s): the line is dead',
    )


def _manager(driver: ScriptedDriver, conductor: FakeReporter) -> manager.ComputeManager:
    return manager.ComputeManager(
        name.Name('h1', 'agent-1'),
        driver,
        conductor,
        lambda *access: fake_images.FakeImageService(),
        transfers.Transfers(),
    )


def test_repeated_call_adds_no_end(
    driver: ScriptedDriver, conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.current = {'j1': 1}
    compute = _manager(driver, conductor)
    driver.opened.clear()
    with futures.ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(compute.cache_image, CTXT, 'j1', 1, 'i1', asked_by='r1')]
        assert driver.begun.wait(TIMEOUT_SECONDS)
        conductor.current = {'j1': 2}
        calls.append(pool.submit(compute.cache_image, CTXT, 'j1', 2, 'i1', asked_by='r1'))
        wait_until(lambda: compute._transfers.epochs('i1') == {'j1': 2}, 'the call has joined')
        driver.opened.set()
        assert all(each.result(TIMEOUT_SECONDS) for each in calls)

    words = [text.partition(' on host h1) ')[2].partition(' ')[0] for _, text in _lines(caplog)]
    assert words == ['begins,', 'joins', 'ended']


def test_older_conductor_names_no_request(
    driver: ScriptedDriver, conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.current = {'j1': 1}

    _manager(driver, conductor).cache_image(CTXT, 'j1', 1, 'i1')

    assert [text.count('for request unknown') for _, text in _lines(caplog)] == [1, 1]


@pytest.mark.parametrize('asked_by', ['x' * 256, 7, 'a\nforged line'])
def test_malformed_requests_refused(
    driver: ScriptedDriver, conductor: FakeReporter, asked_by: object
) -> None:
    answer = _manager(driver, conductor).cache_image(CTXT, 'j1', 1, 'i1', asked_by=asked_by)

    assert answer is not None
    assert answer['status'] == 'error'
    assert answer['reason'].startswith('asked_by: ')
    assert driver.asked == []


def test_unexpected_error_has_traceback_once(
    driver: ScriptedDriver, conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.current = {'j1': 1}
    driver.error = ValueError('a fault')

    _manager(driver, conductor).cache_image(CTXT, 'j1', 1, 'i1')

    assert [record.levelname for record in caplog.records if record.exc_info] == ['ERROR']


@pytest.mark.parametrize(
    'error',
    [
        exception.ImageServiceUnavailable('Glance does not answer'),
        exception.NotEnoughSpace('needs 2 bytes, 1 free'),
        exception.ImageUnauthorized('Glance refuses the token'),
        exception.Cancelled('the request was cancelled'),
        exception.ImageGone('Image i1 was deleted'),
        exception.CellUnreachable('no conductor answered'),
    ],
)
def test_expected_error_has_no_traceback(
    driver: ScriptedDriver,
    conductor: FakeReporter,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    conductor.current = {'j1': 1}
    driver.error = error

    _manager(driver, conductor).cache_image(CTXT, 'j1', 1, 'i1')

    assert [record for record in caplog.records if record.exc_info] == []
    assert [str(error) in text for _, text in _lines(caplog)] == [False, True]
