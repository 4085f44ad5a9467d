# SPDX-License-Identifier: Apache-2.0
"""A call on a compute: fenced before the first byte, and never without an outcome."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import oslo_messaging
import pytest

from nova_precache import conf, context, exception, model
from nova_precache.compute import manager, name, transfers
from nova_precache.image import fake as fake_images, service
from nova_precache.virt import driver as virt_driver, fake as fake_driver
from tests.service import wait_until
from tests.unit import odd
from tests.unit.compute.conftest import FakeReporter, ScriptedDriver
from tools.waiting import TIMEOUT_SECONDS

CTXT = context.admin_context()


class Access:
    """Returns an image service, and records its arguments."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.endpoint: str | None = None
        self.token: str | None = None
        self.fresh_token: Callable[[], str | None] | None = None

    def __call__(
        self, endpoint: str | None, token: str | None, fresh_token: Callable[[], str | None]
    ) -> service.ImageService:
        self.endpoint, self.token, self.fresh_token = endpoint, token, fresh_token
        if self.error is not None:
            raise self.error
        return fake_images.FakeImageService()


@pytest.fixture
def access() -> Access:
    return Access()


def _manager(
    driver: virt_driver.ComputeDriver, conductor: FakeReporter, access: Access | None = None
) -> manager.ComputeManager:
    running = transfers.Transfers()
    held = name.Name('h1', 'agent-1')
    return manager.ComputeManager(held, driver, conductor, access or Access(), running)


def _call(
    compute: manager.ComputeManager, job_id: str = 'j1', epoch: int = 1, image_id: str = 'i1'
) -> model.ImageOutcome | None:
    answer = compute.cache_image(CTXT, job_id, epoch, image_id)
    return None if answer is None else model.ImageOutcome.from_wire(answer)


def test_confirmed_call_returns_driver_outcome(
    driver: ScriptedDriver, conductor: FakeReporter
) -> None:
    conductor.current = {'j1': 1}

    outcome = _call(_manager(driver, conductor))

    assert outcome == model.ImageOutcome('cached', bytes_done=7, bytes_total=7)


def test_stale_call_does_not_reach_driver(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    conductor.current = {'j1': 2}

    assert _call(_manager(driver, conductor), epoch=1) is None
    assert driver.asked == []


@pytest.mark.parametrize(
    'error',
    [exception.CellUnreachable('no conductor answered'), RuntimeError('its database is away')],
)
def test_unconfirmed_call_does_not_reach_driver(
    driver: ScriptedDriver, conductor: FakeReporter, error: Exception
) -> None:
    conductor.current = {'j1': 1}
    conductor.begin_errors = [error]

    assert _call(_manager(driver, conductor)) is None
    assert driver.asked == []


def test_unknown_arguments_of_newer_release_accepted(
    driver: ScriptedDriver, conductor: FakeReporter, access: Access
) -> None:
    conductor.current = {'j1': 1}
    compute = _manager(driver, conductor, access)

    answer = compute.cache_image(CTXT, 'j1', 1, 'i1', 'http://glance', 'token-1', rate_limit=5)

    assert answer is not None
    assert (access.endpoint, access.token) == ('http://glance', 'token-1')


@pytest.mark.parametrize(
    'error',
    [
        exception.InvalidInput('image_endpoint http://evil is not in [glance] allowed_endpoints'),
        exception.ConfigError('[glance] endpoint_override is not set'),
    ],
)
def test_forbidden_endpoint_fails_before_start(
    driver: ScriptedDriver, conductor: FakeReporter, error: Exception
) -> None:
    conductor.current = {'j1': 1}

    outcome = _call(_manager(driver, conductor, Access(error)))

    assert outcome == model.ImageOutcome('error', str(error))
    assert (driver.asked, conductor.started) == ([], [])


def test_token_requested_under_newest_epoch(
    driver: ScriptedDriver, conductor: FakeReporter, access: Access
) -> None:
    compute = _manager(driver, conductor, access)
    driver.opened.clear()
    with futures.ThreadPoolExecutor(2) as pool:
        conductor.current = {'j1': 1}
        calls = [pool.submit(_call, compute, epoch=1)]
        assert driver.begun.wait(TIMEOUT_SECONDS)
        assert access.fresh_token is not None
        fresh_token = access.fresh_token  # of the call that began the transfer
        assert fresh_token() == 'fresh-token'

        conductor.current = {'j1': 2}
        calls.append(pool.submit(_call, compute, epoch=2))
        wait_until(lambda: compute._transfers.epochs('i1') == {'j1': 2}, 'the call has joined')
        assert fresh_token() == 'fresh-token'

        driver.opened.set()
        assert [each.result(TIMEOUT_SECONDS) is not None for each in calls] == [True, True]

    assert conductor.token_calls == [('j1', 1), ('j1', 2)]


def test_wait_for_token_is_excused(
    driver: ScriptedDriver, conductor: FakeReporter, access: Access
) -> None:
    """The conductor may take long to answer, which does not make the image service slow."""
    compute = _manager(driver, conductor, access)
    driver.opened.clear()
    entered: list[str] = []

    @contextlib.contextmanager
    def aside() -> Iterator[None]:
        entered.append('aside')
        yield
        entered.append('back')

    conductor.on_token = lambda: entered.append('token')
    with futures.ThreadPoolExecutor(1) as pool:
        conductor.current = {'j1': 1}
        call = pool.submit(_call, compute, epoch=1)
        assert driver.begun.wait(TIMEOUT_SECONDS)
        wait_until(lambda: compute._transfers.is_running('i1'), 'others may join it')
        compute._transfers._running['i1'].control.aside = aside
        assert access.fresh_token is not None
        assert access.fresh_token() == 'fresh-token'
        driver.opened.set()
        assert call.result(TIMEOUT_SECONDS) is not None

    assert entered == ['aside', 'token', 'back']


def test_refused_token_requested_by_other_job(
    driver: ScriptedDriver, conductor: FakeReporter, access: Access
) -> None:
    compute = _manager(driver, conductor, access)
    driver.opened.clear()
    with futures.ThreadPoolExecutor(2) as pool:
        conductor.current = {'j1': 1, 'j2': 1}
        calls = [pool.submit(_call, compute, job_id) for job_id in ('j1', 'j2')]
        wait_until(lambda: len(compute._transfers.epochs('i1')) == 2, 'both follow')
        assert access.fresh_token is not None

        conductor.current = {'j2': 1}
        assert access.fresh_token() == 'fresh-token'
        conductor.current = {}
        with pytest.raises(exception.ImageUnauthorized, match='is not in flight under epoch 1'):
            access.fresh_token()
        conductor.token_errors = [exception.CellUnreachable('no conductor answered')]
        with pytest.raises(exception.DownloadInterrupted, match='no conductor answered'):
            access.fresh_token()
        conductor.token_errors = [exception.Unavailable('the database cannot be reached')]
        with pytest.raises(exception.DownloadInterrupted, match='database cannot be reached'):
            access.fresh_token()

        driver.opened.set()
        for each in calls:
            each.result(TIMEOUT_SECONDS)


def _confirming(
    driver: ScriptedDriver, conductor: FakeReporter, jobs: Sequence[str]
) -> list[model.ImageOutcome | None]:
    """Call for one image from several jobs; the transfer then asks whether each is confirmed."""
    compute = _manager(driver, conductor)
    driver.opened.clear()
    driver.confirms = True
    conductor.current = dict.fromkeys(jobs, 1)
    with futures.ThreadPoolExecutor(len(jobs)) as pool:
        calls = [pool.submit(_call, compute, job_id) for job_id in jobs]
        wait_until(lambda: len(compute._transfers.epochs('i1')) == len(jobs), 'all follow')
        driver.opened.set()
        return [each.result(TIMEOUT_SECONDS) for each in calls]


def test_conductor_confirms_each_job_before_publish(
    driver: ScriptedDriver, conductor: FakeReporter
) -> None:
    outcomes = _confirming(driver, conductor, ['j1', 'j2'])

    assert [each and each.status for each in outcomes] == ['cached', 'cached']
    assert sorted(conductor.confirmed) == [('j1', 1), ('j2', 1)]


def test_image_confirmed_for_one_job_published(
    driver: ScriptedDriver, conductor: FakeReporter
) -> None:
    conductor.confirm_errors = [exception.ImageGone('is not visible to project p1')]

    outcomes = _confirming(driver, conductor, ['j1', 'j2'])

    assert [each and each.status for each in outcomes] == ['cached', 'cached']
    assert len(conductor.confirmed) == 2


def test_image_refused_for_all_jobs_fails(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    gone = 'Image i1 is not visible to project p1'
    conductor.confirm_errors = [exception.ImageGone(gone), exception.ImageGone('for j2')]

    outcomes = _confirming(driver, conductor, ['j1', 'j2'])

    assert outcomes == [model.ImageOutcome('error', gone)] * 2


@pytest.mark.parametrize(
    'error',
    [
        exception.CellUnreachable('no conductor answered'),
        exception.Unavailable('the database cannot be reached'),
        exception.ImageServiceUnavailable('Glance does not answer'),
        exception.VersionUnsupported('confirm_job is not supported by the called service'),
    ],
)
def test_image_published_without_answer(
    driver: ScriptedDriver, conductor: FakeReporter, error: Exception
) -> None:
    conductor.confirm_errors = [error]

    [outcome] = _confirming(driver, conductor, ['j1'])

    assert outcome is not None
    assert outcome.status == 'cached'


def test_ended_transfer_requests_no_token(
    driver: ScriptedDriver, conductor: FakeReporter, access: Access
) -> None:
    conductor.current = {'j1': 1}
    assert _call(_manager(driver, conductor, access)) is not None
    assert access.fresh_token is not None

    with pytest.raises(exception.ImageUnauthorized, match='no job needs the image'):
        access.fresh_token()

    assert conductor.token_calls == []


def test_repeated_call_joins_transfer(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    compute = _manager(driver, conductor)
    driver.opened.clear()
    with futures.ThreadPoolExecutor(2) as pool:
        conductor.current = {'j1': 1}
        first = pool.submit(_call, compute, epoch=1)
        assert driver.begun.wait(TIMEOUT_SECONDS)
        conductor.current = {'j1': 2}
        second = pool.submit(_call, compute, epoch=2)
        conductor.wait_begun(2)
        driver.opened.set()

        outcomes = [each.result(TIMEOUT_SECONDS) for each in (first, second)]

    assert [outcome and outcome.status for outcome in outcomes] == ['cached', 'cached']
    assert driver.asked == ['i1']
    assert conductor.started == [True, False]


def test_call_after_end_gets_same_outcome(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    compute = _manager(driver, conductor)
    conductor.current = {'j1': 1}
    first = _call(compute, epoch=1)
    conductor.current = {'j1': 2}

    assert _call(compute, epoch=2) == first
    assert driver.asked == ['i1']


def test_outcome_during_confirmation_repeated(
    driver: ScriptedDriver, conductor: FakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = _manager(driver, conductor)
    driver.opened.clear()
    conductor.current = {'j1': 1}
    with futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(_call, compute, epoch=1)
        assert driver.begun.wait(TIMEOUT_SECONDS)

        def answer_late(job_id: str, epoch: int, starts: bool) -> bool:
            driver.opened.set()
            first.result(TIMEOUT_SECONDS)
            return True

        monkeypatch.setattr(conductor, 'begin_job', answer_late)

        assert _call(compute, epoch=2) == first.result()
    assert driver.asked == ['i1']


def test_driver_without_cache_is_unsupported(
    conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.current = {'j1': 1, 'j2': 1}
    compute = _manager(fake_driver.FakeDriver(conf.new(config_files=[])), conductor)

    with caplog.at_level(logging.WARNING):
        outcomes = [_call(compute, job_id, image_id=job_id) for job_id in ('j1', 'j2')]

    expected = model.ImageOutcome('unsupported', 'driver FakeDriver cannot cache images')
    assert outcomes == [expected, expected]
    texts = [record.getMessage() for record in caplog.records]
    assert [text.endswith(': driver FakeDriver cannot cache images') for text in texts] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ('error', 'retry'),
    [
        (exception.DownloadInterrupted('the line is dead'), model.Retry.BACKOFF),
        (exception.ImageMismatch('the line is dead'), model.Retry.ONCE),
        (exception.ImageGone('the line is dead'), model.Retry.NEVER),
        (exception.ImageServiceUnavailable('the line is dead'), model.Retry.BACKOFF),
    ],
)
def test_expected_error_unlogged_outcome(
    driver: ScriptedDriver,
    conductor: FakeReporter,
    error: Exception,
    retry: model.Retry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    conductor.current = {'j1': 1}
    driver.error = error

    outcome = _call(_manager(driver, conductor))

    assert outcome == model.ImageOutcome('error', 'the line is dead', retry)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_unexpected_error_logged_outcome(
    driver: ScriptedDriver, conductor: FakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    conductor.current = {'j1': 1}
    driver.error = ValueError('a bug')

    outcome = _call(_manager(driver, conductor))

    assert outcome == model.ImageOutcome('error', 'unexpected ValueError: a bug')
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.message == 'Caching image i1 on host h1 failed'


def test_failed_attempt_can_be_repeated(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    compute = _manager(driver, conductor)
    conductor.current = {'j1': 1}
    driver.error = exception.DownloadInterrupted('cut')
    assert _call(compute, epoch=1) is not None
    conductor.current, driver.error = {'j1': 2}, None

    outcome = _call(compute, epoch=2)

    assert outcome is not None
    assert outcome.status == 'existing'
    assert driver.asked == ['i1', 'i1']


# Stopping, and options


def test_stopped_job_answers_its_call_cancelled(
    driver: ScriptedDriver, conductor: FakeReporter
) -> None:
    compute = _manager(driver, conductor)
    driver.opened.clear()
    conductor.current = {'j1': 4}
    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(_call, compute, epoch=4)
        assert driver.begun.wait(TIMEOUT_SECONDS)

        assert not compute.stop_image(CTXT, 'j1', 3, 'cancelled')
        assert compute.stop_image(CTXT, 'j1', 4, 'cancelled', added_later=1)

        assert made.result(TIMEOUT_SECONDS) == model.ImageOutcome(
            'cancelled', 'the request was cancelled'
        )
    assert not compute.stop_image(CTXT, 'j1', 4, 'cancelled')


@pytest.mark.parametrize(
    ('why', 'keep_partial', 'status', 'retry', 'keeps'),
    [
        ('cancelled', False, 'cancelled', 'never', False),
        ('cancelled', True, 'cancelled', 'never', True),
        ('paused', False, 'error', 'later', True),
        ('deadline', False, 'expired', 'never', True),
    ],
)
def test_stop_reason_decides_status_and_partial(
    driver: ScriptedDriver,
    conductor: FakeReporter,
    why: str,
    keep_partial: bool,
    status: str,
    retry: str,
    keeps: bool,
) -> None:
    compute = _manager(driver, conductor)
    driver.opened.clear()
    conductor.current = {'j1': 1}
    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(_call, compute)
        assert driver.begun.wait(TIMEOUT_SECONDS)
        assert compute.stop_image(CTXT, 'j1', 1, why, keep_partial)
        outcome = made.result(TIMEOUT_SECONDS)

    assert outcome is not None
    assert (outcome.status, outcome.retry) == (status, retry)
    with pytest.raises(exception.TransferStopped) as stopped:
        driver.controls[0].check()
    assert stopped.value.keeps_partial == keeps


def test_unknown_stop_reason_refused(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    with pytest.raises(exception.InvalidInput, match="why: 'whim'"):
        _manager(driver, conductor).stop_image(CTXT, 'j1', 1, 'whim')


def test_call_options_control_transfer(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    conductor.current = {'j1': 1}
    wanted = {'max_rate_bytes': 1024, 'is_last_attempt': True, 'deadline_seconds': None, 'new': 1}

    answer = _manager(driver, conductor).cache_image(CTXT, 'j1', 1, 'i1', options=wanted)

    assert answer is not None
    assert answer['status'] == 'cached'
    [control] = driver.controls
    assert (control.max_rate_bytes, control.is_last_attempt, control.is_boot) == (1024, True, False)


def test_call_past_deadline_expires(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    conductor.current = {'j1': 1}
    driver.opened.clear()

    answer = _manager(driver, conductor).cache_image(
        CTXT, 'j1', 1, 'i1', options={'deadline_seconds': 0}
    )

    assert answer is not None
    assert answer['status'] == 'expired'


@pytest.mark.parametrize('seconds', [10**400, 1e308, 2**63], ids=['whole', 'float', 'int64'])
def test_distant_deadline_is_accepted(
    driver: ScriptedDriver, conductor: FakeReporter, seconds: float
) -> None:
    conductor.current = {'j1': 1}

    answer = _manager(driver, conductor).cache_image(
        CTXT, 'j1', 1, 'i1', options={'deadline_seconds': seconds}
    )

    assert answer is not None
    assert answer['status'] == 'cached'


@pytest.mark.parametrize(
    ('wrong', 'field'),
    [
        (['max_rate_bytes'], 'options'),
        ({'max_rate_bytes': 0}, 'options.max_rate_bytes'),
        ({'max_rate_bytes': '5'}, 'options.max_rate_bytes'),
        ({'max_rate_bytes': True}, 'options.max_rate_bytes'),
        ({'max_rate_bytes': 1.5}, 'options.max_rate_bytes'),
        ({'max_rate_bytes': -1}, 'options.max_rate_bytes'),
        ({'max_rate_bytes': 2**63}, 'options.max_rate_bytes'),
        ({'deadline_seconds': '5'}, 'options.deadline_seconds'),
        ({'deadline_seconds': True}, 'options.deadline_seconds'),
        ({'deadline_seconds': float('nan')}, 'options.deadline_seconds'),
        ({'deadline_seconds': float('inf')}, 'options.deadline_seconds'),
        ({'is_last_attempt': 1}, 'options.is_last_attempt'),
    ],
)
def test_invalid_options_named_and_nothing_done(
    driver: ScriptedDriver, conductor: FakeReporter, wrong: object, field: str
) -> None:
    conductor.current = {'j1': 1}

    answer = _manager(driver, conductor).cache_image(CTXT, 'j1', 1, 'i1', options=wrong)

    assert answer is not None
    assert answer['status'] == 'error'
    assert answer['reason'].startswith(f'{field}: ')
    assert driver.asked == []
    assert conductor.started == []


def test_unused_partial_of_image_discarded(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    conductor.current = {'j1': 1}
    compute = _manager(driver, conductor)
    driver.opened.clear()
    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(_call, compute)
        assert driver.begun.wait(TIMEOUT_SECONDS)

        assert not compute.forget_image(CTXT, 'i1')
        assert driver.forgotten == []
        assert compute.forget_image(CTXT, 'i2', added_later=1)

        driver.opened.set()
        made.result(TIMEOUT_SECONDS)
    assert compute.forget_image(CTXT, 'i1')
    assert driver.forgotten == ['i2', 'i1']


def test_transfer_logs_ids_of_first_call(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    conductor.current = {'j1': 1, 'j2': 1}
    driver.opened.clear()
    ids: list[str | None] = []
    cache_image = driver.cache_image

    def note(*arguments: Any) -> model.CacheResult:
        done = cache_image(*arguments)
        ids.append(context.current_id())
        return done

    driver.cache_image = note  # type: ignore[method-assign]
    compute = _manager(driver, conductor)

    def call(job_id: str) -> None:
        ctxt = context.RequestContext(global_request_id=f'req-{job_id}', overwrite=False)
        compute.cache_image(ctxt, job_id, 1, 'i1')

    with futures.ThreadPoolExecutor() as pool:
        first = pool.submit(call, 'j1')
        assert driver.begun.wait(TIMEOUT_SECONDS)
        second = pool.submit(call, 'j2')
        conductor.wait_begun(2)
        driver.opened.set()
        first.result(TIMEOUT_SECONDS)
        second.result(TIMEOUT_SECONDS)

    assert ids == ['req-j1']


# Invalid messages


@pytest.mark.parametrize(
    ('field', 'values'),
    [
        ('job_id', odd.JOB),
        ('epoch', odd.NUMBER),
        ('image_id', odd.JOB),
        ('image_endpoint', (5, ['a'], 'http://a\nb', '\ud800', 'x' * 5000)),
        ('token', (5, ['a'], 'a\nb', 'ä', 'x' * 100_000)),
        ('options', (5, 'text', ['a'])),
    ],
)
def test_odd_field_fails_call_before_start(
    driver: ScriptedDriver, conductor: FakeReporter, field: str, values: Any
) -> None:
    conductor.current = {'j1': 1}
    compute = _manager(driver, conductor)
    good: dict[str, Any] = {'job_id': 'j1', 'epoch': 1, 'image_id': 'i1'}

    for value in values:
        answer = compute.cache_image(CTXT, **{**good, field: value})
        assert answer is not None
        assert (answer['status'], answer['retry']) == ('error', 'never')
        assert answer['reason'].startswith(f'{field}: ')
        assert answer['reason'].isprintable()
    assert compute.cache_image(CTXT) is not None  # without any argument

    assert driver.asked == []


def test_orders_with_odd_fields_refused(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    compute = _manager(driver, conductor)

    for value in odd.JOB:
        with pytest.raises(exception.InvalidInput, match='image_id'):
            compute.forget_image(CTXT, value)
        with pytest.raises(exception.InvalidInput, match='job_id'):
            compute.stop_image(CTXT, value, 1, 'paused')
    for value in odd.NUMBER:
        with pytest.raises(exception.InvalidInput, match='epoch'):
            compute.stop_image(CTXT, 'j1', value, 'paused')
    for value in (None, 5, ['paused'], '\ud800', 'x' * 5000):
        with pytest.raises(exception.InvalidInput, match='why') as refused:
            compute.stop_image(CTXT, 'j1', 1, value)
        assert len(str(refused.value)) < 200
    for value in odd.FLAG:
        with pytest.raises(exception.InvalidInput, match='keep_partial'):
            compute.stop_image(CTXT, 'j1', 1, 'paused', value)
    for value in (None, 5, [], {}, {'number': 2**40}, {'number': True}):
        with pytest.raises(exception.InvalidInput, match='change'):
            compute.change_image(CTXT, 'j1', 1, value)
    for field, value in (('max_rate_bytes', 0), ('deadline_seconds', 'soon')):
        with pytest.raises(exception.InvalidInput, match=f'change.{field}'):
            compute.change_image(CTXT, 'j1', 1, {'number': 1, field: value})


# An agent that is not registered for its host


def test_refused_agents_call_counts_no_attempt(
    driver: ScriptedDriver, conductor: FakeReporter
) -> None:
    held = name.Name('h1', 'agent-1')
    compute = manager.ComputeManager(held, driver, conductor, Access(), transfers.Transfers())
    conductor.begin_errors = [exception.AgentConflict('h1 has another agent')]

    outcome = _call(compute)

    assert outcome is not None
    assert (outcome.status, outcome.reason) == ('error', 'h1 has another agent')
    assert outcome.retry == model.Retry.LATER
    assert driver.asked == []
    assert held.wait_doubtful()


def test_reregistration_of_other_agent_ignored(
    driver: ScriptedDriver, conductor: FakeReporter
) -> None:
    held = name.Name('h1', 'agent-1')
    compute = manager.ComputeManager(held, driver, conductor, Access(), transfers.Transfers())

    compute.register_again(CTXT, 'agent-2', mood='fine')
    held.close()
    assert not held.wait_doubtful()


def test_kept_outcome_needs_valid_call(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    """Another agent may have the name by now, or the call is stale."""
    compute = _manager(driver, conductor)
    conductor.current = {'j1': 1}
    first = _call(compute)
    conductor.current = {'j1': 2}

    again, stale = _call(compute, epoch=2), _call(compute, epoch=1)
    conductor.begin_errors = [exception.AgentConflict('h1 has another agent')]
    lost = _call(compute, epoch=2)

    assert first is not None
    assert (first.status, again, stale) == ('cached', first, None)
    assert conductor.started == [True, False, False, False]
    assert lost is not None
    assert (lost.status, lost.retry) == ('error', model.Retry.LATER)


def test_companions_of_call_reach_driver(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    conductor.current = {'j1': 1, 'j2': 1, 'j3': 1}
    compute = _manager(driver, conductor)
    wanted = [{'id': 'k1', 'size_bytes': 7, 'new': 1}, {'id': 'r1'}]

    compute.cache_image(CTXT, 'j1', 1, 'i1', needed=wanted)
    compute.cache_image(CTXT, 'j2', 1, 'i2', needed=[])
    compute.cache_image(CTXT, 'j3', 1, 'i3')  # of an older conductor

    assert driver.needed == [(model.Companion('k1', 7), model.Companion('r1')), (), None]


@pytest.mark.parametrize(
    ('wrong', 'field'),
    [
        ('k1', 'needed'),
        ({'id': 'k1'}, 'needed'),
        (['k1'], 'needed'),
        ([{'size_bytes': 1}], 'needed.id'),
        ([{'id': '../k1'}], 'needed.id'),
        ([{'id': 'k1', 'size_bytes': -1}], 'needed.size_bytes'),
        ([{'id': 'k1', 'size_bytes': '1'}], 'needed.size_bytes'),
        ([{'id': 'k1'}] * 3, 'needed'),
    ],
)
def test_invalid_companions_named_and_nothing_done(
    driver: ScriptedDriver, conductor: FakeReporter, wrong: object, field: str
) -> None:
    conductor.current = {'j1': 1}

    answer = _manager(driver, conductor).cache_image(CTXT, 'j1', 1, 'i1', needed=wrong)

    assert answer is not None
    assert answer['status'] == 'error'
    assert answer['reason'].startswith(f'{field}: ')
    assert driver.asked == []


def test_removal_reported_soon(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    changed: list[None] = []
    compute = manager.ComputeManager(
        name.Name('h1', 'agent-1'),
        driver,
        conductor,
        Access(),
        transfers.Transfers(),
        cache_changed=lambda: changed.append(None),
    )
    answer = compute.remove_image(CTXT, 'i1', ['i2'], why='of a newer conductor')
    assert answer == driver.removal.to_wire()
    assert (driver.removed, changed) == ([('i1', ['i2'])], [None])


def test_image_in_transfer_not_removed(driver: ScriptedDriver, conductor: FakeReporter) -> None:
    conductor.current = {'j1': 1}
    driver.opened.clear()
    compute = _manager(driver, conductor)
    with futures.ThreadPoolExecutor() as pool:
        call = pool.submit(_call, compute)
        assert driver.begun.wait(TIMEOUT_SECONDS)
        answer = compute.remove_image(CTXT, 'i1')
        driver.opened.set()
        assert call.result() is not None
    assert (answer['status'], answer['reason']) == ('used', 'a transfer of it is running')
    assert driver.removed == []


@pytest.mark.parametrize(
    ('image_id', 'kept_ids', 'field'),
    [(None, [], 'image_id'), ('../i1', [], 'image_id'), ('i1', 'i2', 'kept_ids')],
)
def test_odd_removal_changes_nothing(
    driver: ScriptedDriver, conductor: FakeReporter, image_id: object, kept_ids: object, field: str
) -> None:
    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        _manager(driver, conductor).remove_image(CTXT, image_id, kept_ids)
    assert str(answered.value.exc_info[1]).startswith(f'{field}: ')
    assert driver.removed == []


def test_driver_without_cache_removes_nothing(conductor: FakeReporter) -> None:
    driver = fake_driver.FakeDriver(conf.new(config_files=[]))
    with pytest.raises(oslo_messaging.ExpectedException) as answered:
        _manager(driver, conductor).remove_image(CTXT, 'i1')
    assert str(answered.value.exc_info[1]) == 'FakeDriver caches no images'
