# SPDX-License-Identifier: Apache-2.0
"""One line when something goes away, others after growing pauses, one when it is back."""

import contextlib
import logging
import pathlib
import threading
from collections.abc import Iterator

import oslo_messaging
import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exception
from oslo_messaging._drivers import amqpdriver, common, impl_rabbit
from oslo_messaging.notify import messaging as notify

from nova_precache import concurrency, exception, outages
from nova_precache.db.engine import session
from tests.clock import Clock
from tools.waiting import TIMEOUT_SECONDS

HOUR = 3600


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def outage(clock: Clock) -> outages.Outage:
    return outages.Outage('Database of [database] connection', clock)


def test_outage_logs_start_reminders_and_end(
    outage: outages.Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for clock.now in range(4 * HOUR):
        outage.began(OSError('refused\nwith a second line'))
    outage.over()
    outage.over()

    assert caplog.messages == [
        'Database of [database] connection is unavailable: refused',
        *(
            f'Database of [database] connection is unavailable for {seconds} s: refused'
            for seconds in (60, 180, 420, 900, 1860, 3780, 7380, 10980)
        ),
        'Database of [database] connection is available again, after 14399 s',
    ]


def test_late_answer_ends_no_outage(
    outage: outages.Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    asked_at = clock.now
    clock.now += 1
    outage.began(OSError('killed'))

    outage.over(asked_at)
    assert len(caplog.messages) == 1

    outage.over(clock.now)
    assert len(caplog.messages) == 2


def test_first_line_ends_at_any_break() -> None:
    assert outages.first_line(OSError('first\rsecond')) == 'first'
    assert outages.first_line(OSError('first\u2028second')) == 'first'
    assert outages.first_line(OSError()) == 'OSError'


def test_other_failure_logged_at_once(
    outage: outages.Outage, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (OSError('away'), PermissionError('refused'), OSError('away')):
        outage.began(error)

    assert [message.rpartition(': ')[2] for message in caplog.messages] == ['away', 'refused']


def test_flapping_outage_logs_few_lines(
    outage: outages.Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for clock.now in range(100):
        outage.began(OSError('away'))
        outage.over()

    assert len(caplog.messages) == 2 * 100 / outages.CALM_SECONDS


def test_uninterrupted_service_logs_no_return(
    outage: outages.Outage, caplog: pytest.LogCaptureFixture
) -> None:
    outage.over()

    assert caplog.messages == []


@pytest.fixture
def short(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """A log that is kept short."""
    caplog.set_level(logging.INFO)  # else these lines are kept for debugging
    outages.keep_short([caplog.handler])
    yield caplog
    caplog.handler.filters.clear()


def test_logged_outage_error_not_repeated(
    outage: outages.Outage, short: pytest.LogCaptureFixture
) -> None:
    logged, other = OSError('away'), ValueError('a fault')
    outage.began(logged)
    outer = RuntimeError('could not')
    outer.__cause__ = logged

    for error in (logged, outer, other):
        logging.getLogger('edge').error('Step %s failed', 'one', exc_info=error)

    assert [record.message for record in short.records if record.name == 'edge'] == [
        'Step one failed'
    ]
    assert 'ValueError: a fault' in short.text
    assert 'RuntimeError' not in short.text


@pytest.mark.parametrize(
    'error',
    [
        exception.CellUnreachable('its broker\nis away'),
        exception.BrokerRefused('its broker'),
        exception.DatabaseUnavailable('its broker'),
        exception.ImageServiceUnavailable('its broker'),
        exception.NotEnoughSpace('its broker'),
        TimeoutError('its broker'),
    ],
)
def test_expected_error_logged_without_traceback(
    short: pytest.LogCaptureFixture, error: Exception
) -> None:
    try:
        raise error
    except Exception:
        logging.getLogger('edge').exception('Step %s failed', 'one')

    [record] = short.records
    assert (record.levelname, record.exc_info) == ('ERROR', None)
    assert record.getMessage() == (
        f'Step one failed: {type(error).__name__}: {outages.first_line(error)}'
    )
    assert 'Traceback' not in short.text


def test_lost_notification_has_no_traceback(short: pytest.LogCaptureFixture) -> None:
    try:
        raise oslo_messaging.MessageDeliveryFailure('its broker is away')
    except oslo_messaging.MessageDeliveryFailure:
        notify.LOG.exception('Could not send notification to %(topic)s.', {'topic': 't.info'})

    assert short.messages == [
        'Could not send notification to t.info.: MessageDeliveryFailure: its broker is away'
    ]
    assert 'Traceback' not in short.text


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Iterator[session.Database]:
    made = session.Database(sa.create_engine(f'sqlite:///{tmp_path}/db'), name='[x] connection')
    yield made
    made.dispose()


def test_database_outage_logs_one_line(
    database: session.Database, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        with pytest.raises(exception.DatabaseUnavailable), database.reader():
            raise db_exception.DBConnectionError(OSError('refused'))
    with database.reader():
        pass

    lost, back = caplog.messages
    assert lost.startswith('Database of [x] connection is unavailable: refused')
    assert back.startswith('Database of [x] connection is available again, after ')


def test_error_within_transaction_is_no_outage(
    database: session.Database, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.suppress(ValueError), database.reader():
        raise ValueError('of whoever reads')

    assert caplog.messages == []


@pytest.mark.parametrize(('level', 'lines'), [(logging.INFO, 1), (logging.DEBUG, 3)])
def test_library_retries_logged_at_debug(
    short: pytest.LogCaptureFixture, level: int, lines: int
) -> None:
    library = impl_rabbit.LOG
    short.set_level(level, library.logger.name)

    library.error('Connection failed: %s (retrying in %s seconds)', 'refused', 1)
    library.info('A recoverable connection/channel error occurred, trying to reconnect: %s', 'x')
    library.error('The broker has blocked the connection: %s', 'memory')

    assert len(short.records) == lines
    assert short.records[-1].message == 'The broker has blocked the connection: memory'


@pytest.mark.parametrize(('level', 'lines'), [(logging.INFO, 0), (logging.DEBUG, 2)])
def test_requests_delivered_again_logged_at_debug(
    short: pytest.LogCaptureFixture, level: int, lines: int
) -> None:
    library = amqpdriver.LOG
    short.set_level(level, library.name)

    library.warning('Discarding RPC request due to failed acknowledge: %s', 'lost')
    try:
        raise common.DuplicateMessageError(msg_id='m1')
    except common.DuplicateMessageError:
        library.exception('ignoring duplicate message %s', 'm1')

    assert len(short.records) == lines
    assert all(record.exc_info is None for record in short.records)


def test_periodic_outage_logged_once(
    outage: outages.Outage, short: pytest.LogCaptureFixture
) -> None:
    done = threading.Semaphore(0)

    def fail() -> None:
        done.release()
        error = OSError('away')
        outage.began(error)
        raise error

    periodic = concurrency.Periodic('test', [(0.01, fail)])
    periodic.start()
    for _ in range(3):
        assert done.acquire(timeout=TIMEOUT_SECONDS)
    periodic.stop()

    assert short.messages == ['Database of [database] connection is unavailable: away']
