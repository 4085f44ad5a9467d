# SPDX-License-Identifier: Apache-2.0
"""The messages of conductors to computes on the wire, of this release and older ones."""

import dataclasses
import math
import uuid
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import pytest

from nova_precache import conf as options, context, exception, model, rpc
from nova_precache.compute import manager, name, rpcapi, transfers
from nova_precache.image import fake as fake_images
from tests.unit import odd
from tests.unit.compute.conftest import FakeReporter, ScriptedDriver
from tools.waiting import TIMEOUT_SECONDS

CTXT = context.admin_context()
CALL = rpcapi.CacheImageCall('j1', 1, 'i1', 'http://glance', 'token-1')


class OldCompute(rpc.Endpoint):
    """A compute of the first release, which knows neither ``stop_image`` nor options."""

    def __init__(self) -> None:
        self.ignored: dict[str, Any] = {}

    def cache_image(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        image_id: str,
        image_endpoint: str | None = None,
        token: str | None = None,
        **unknown: Any,
    ) -> model.Json:
        self.ignored = unknown
        return {'status': 'cached'}


@pytest.fixture
def transport() -> rpc.Transport:
    return rpc.connect(options.new(config_files=[]), f'fake:///{uuid.uuid4().hex}')


@pytest.fixture
def old(transport: rpc.Transport) -> Iterator[OldCompute]:
    """A compute of the first release, which serves host ``old``."""
    compute = OldCompute()
    server = rpc.Server(transport, rpcapi.TOPIC, 'old', [compute])
    server.start()
    yield compute
    server.stop()


@pytest.fixture
def served(
    transport: rpc.Transport, driver: ScriptedDriver, conductor: FakeReporter
) -> Iterator[ScriptedDriver]:
    """The driver of a compute of this release, which serves host ``h1``."""
    compute = manager.ComputeManager(
        name.Name('h1', 'agent-1'),
        driver,
        conductor,
        lambda *access: fake_images.FakeImageService(),
        transfers.Transfers(),
    )
    conductor.current = {'j1': 1}
    server = rpc.Server(transport, rpcapi.TOPIC, 'h1', [compute])
    server.start()
    yield driver
    driver.opened.set()
    server.stop()


def _api(transport: rpc.Transport, cap: str | None = None) -> rpcapi.ComputeAPI:
    return rpcapi.ComputeAPI(
        transport,
        cap,
        connect_retries=0,
        timeout_seconds=TIMEOUT_SECONDS,
        monitor_seconds=TIMEOUT_SECONDS,
    )


def test_call_options_reach_transfer(transport: rpc.Transport, served: ScriptedDriver) -> None:
    wanted = model.TransferOptions(max_rate_bytes=7, is_last_attempt=True)
    call = rpcapi.CacheImageCall('j1', 1, 'i1', None, options=wanted)

    outcome = _api(transport).cache_image(CTXT, 'h1', call)

    assert outcome is not None
    assert outcome.status == 'cached'
    [control] = served.controls
    assert (control.max_rate_bytes, control.is_last_attempt) == (7, True)


@pytest.mark.parametrize('cap', [None, '1.0', '1.1'])
def test_first_release_compute_ignores_options(
    transport: rpc.Transport, old: OldCompute, cap: str | None
) -> None:
    outcome = _api(transport, cap).cache_image(CTXT, 'old', CALL)

    assert outcome == model.ImageOutcome('cached')
    assert set(old.ignored) == {'options'}


def test_stop_ends_waiting_call(transport: rpc.Transport, served: ScriptedDriver) -> None:
    served.opened.clear()
    api = _api(transport)
    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(api.cache_image, CTXT, 'h1', CALL)
        assert served.begun.wait(TIMEOUT_SECONDS)

        assert api.stop_image(CTXT, 'h1', 'j1', 1, model.StopWhy.DEADLINE)

        outcome = made.result(TIMEOUT_SECONDS)
    assert outcome == model.ImageOutcome('expired', 'the deadline of the request passed')


def test_stop_of_unknown_job_reported(transport: rpc.Transport, served: ScriptedDriver) -> None:
    assert not _api(transport).stop_image(CTXT, 'h1', 'j9', 1, model.StopWhy.CANCELLED)


def test_first_release_compute_cannot_stop(transport: rpc.Transport, old: OldCompute) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'stop_image 1\.1 is not supported'):
        _api(transport).stop_image(CTXT, 'old', 'j1', 1, model.StopWhy.CANCELLED)


def test_pin_prevents_stop(transport: rpc.Transport) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'above the pinned version 1\.0'):
        _api(transport, '1.0').stop_image(CTXT, 'h1', 'j1', 1, model.StopWhy.PAUSED)


def test_rate_of_waiting_call_changed(transport: rpc.Transport, served: ScriptedDriver) -> None:
    served.opened.clear()
    api = _api(transport)
    with futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(api.cache_image, CTXT, 'h1', CALL)
        assert served.begun.wait(TIMEOUT_SECONDS)

        changed = api.change_image(CTXT, 'h1', 'j1', 1, model.OptionChange(1, 700, 3600.0))
        stale = api.change_image(CTXT, 'h1', 'j1', 0, model.OptionChange(2, 900))

        served.opened.set()
        made.result(TIMEOUT_SECONDS)
    assert (changed, stale) == (True, False)
    assert served.controls[0].max_rate_bytes == 700


def test_older_compute_cannot_change(transport: rpc.Transport, old: OldCompute) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'change_image 1\.5 is not supported'):
        _api(transport).change_image(CTXT, 'old', 'j1', 1, model.OptionChange(1))


def test_pin_prevents_change(transport: rpc.Transport) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'above the pinned version 1\.4'):
        _api(transport, '1.4').change_image(CTXT, 'h1', 'j1', 1, model.OptionChange(1))


@pytest.mark.parametrize('is_forgotten', [True, False])
def test_compute_discards_partial_of_image(
    transport: rpc.Transport, served: ScriptedDriver, is_forgotten: bool
) -> None:
    served.forgets = is_forgotten

    assert _api(transport).forget_image(CTXT, 'h1', 'i1') is is_forgotten
    assert served.forgotten == ['i1']


def test_discard_failure_reason_returned(transport: rpc.Transport, served: ScriptedDriver) -> None:
    served.error = exception.StorageError('Read-only file system')

    with pytest.raises(exception.StorageError, match='Read-only'):
        _api(transport).forget_image(CTXT, 'h1', 'i1')


def test_older_compute_cannot_discard(transport: rpc.Transport, old: OldCompute) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'forget_image 1\.2 is not supported'):
        _api(transport).forget_image(CTXT, 'old', 'i1')


def test_pin_prevents_discard(transport: rpc.Transport) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'above the pinned version 1\.1'):
        _api(transport, '1.1').forget_image(CTXT, 'h1', 'i1')


# Invalid answers and messages


def _is_json(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class OddCompute(rpc.Endpoint, version='1.9'):
    """A compute that answers whatever a test scripts."""

    def __init__(self) -> None:
        self.answer: Any = None

    def cache_image(self, ctxt: context.RequestContext, **unknown: Any) -> Any:
        return self.answer

    stop_image = forget_image = cache_image


@pytest.fixture
def odd_compute(transport: rpc.Transport) -> Iterator[OddCompute]:
    """A compute that serves host ``odd``."""
    compute = OddCompute()
    server = rpc.Server(transport, rpcapi.TOPIC, 'odd', [compute])
    server.start()
    yield compute
    server.stop()


def test_odd_outcome_error_names_field(transport: rpc.Transport, odd_compute: OddCompute) -> None:
    good = model.ImageOutcome('cached').to_wire()
    answers = [
        (field, {**good, field: value})
        for field, values in odd.OUTCOME.items()
        for value in values
        if not isinstance(value, bytes) and _is_json(value)
    ]

    for field, answer in [*answers, *(('outcome', each) for each in (5, 'cached', ['cached']))]:
        odd_compute.answer = answer
        with pytest.raises(exception.InvalidInput, match=field):
            _api(transport).cache_image(CTXT, 'odd', CALL)


@pytest.mark.parametrize('answer', [None, 1, 'false', {}, [True]])
def test_odd_order_answer_not_success(
    transport: rpc.Transport, odd_compute: OddCompute, answer: Any
) -> None:
    odd_compute.answer = answer

    with pytest.raises(exception.InvalidInput, match='the answer'):
        _api(transport).stop_image(CTXT, 'odd', 'j1', 1, model.StopWhy.PAUSED)
    with pytest.raises(exception.InvalidInput, match='the answer'):
        _api(transport).forget_image(CTXT, 'odd', 'i1')


def test_unregistered_agent_asked_to_register_again(
    transport: rpc.Transport, driver: ScriptedDriver, conductor: FakeReporter
) -> None:
    held = name.Name('h2', 'agent-1')
    compute = manager.ComputeManager(
        held,
        driver,
        conductor,
        lambda *access: fake_images.FakeImageService(),
        transfers.Transfers(),
    )
    server = rpc.Server(transport, rpcapi.TOPIC, 'h2', [compute])
    server.start()

    _api(transport).register_again(CTXT, 'h2', 'agent-1')

    assert held.wait_doubtful()
    server.stop()


def test_pin_prevents_reregistration_order(transport: rpc.Transport) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'above the pinned version 1\.2'):
        _api(transport, '1.2').register_again(CTXT, 'h1', 'agent-1')


KERNEL_CALL = dataclasses.replace(CALL, needed=(model.Companion('k1', 7),))


def test_companions_reach_driver(transport: rpc.Transport, served: ScriptedDriver) -> None:
    outcome = _api(transport).cache_image(CTXT, 'h1', KERNEL_CALL)

    assert outcome is not None
    assert outcome.status == 'cached'
    assert served.needed == [(model.Companion('k1', 7),)]


def test_older_compute_gets_no_companions(transport: rpc.Transport, old: OldCompute) -> None:
    """It would omit the kernel, and report the image as cached."""
    with pytest.raises(exception.VersionUnsupported, match=r'cache_image 1\.4'):
        _api(transport).cache_image(CTXT, 'old', KERNEL_CALL)

    needs_nothing = dataclasses.replace(CALL, needed=())
    assert _api(transport).cache_image(CTXT, 'old', needs_nothing) == model.ImageOutcome('cached')


@pytest.mark.parametrize('cap', ['1.0', '1.3'])
def test_low_pin_allows_images_without_companions(
    transport: rpc.Transport, served: ScriptedDriver, cap: str
) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'1\.4'):
        _api(transport, cap).cache_image(CTXT, 'h1', KERNEL_CALL)

    assert served.asked == []
    assert _api(transport, cap).cache_image(CTXT, 'h1', CALL) is not None


def test_removal_reaches_driver(transport: rpc.Transport, served: ScriptedDriver) -> None:
    removal = _api(transport).remove_image(CTXT, 'h1', 'i1', {'i3', 'i2'})

    assert removal == model.ImageRemoval('removed', freed_bytes=7, names=('file',))
    assert served.removed == [('i1', ['i2', 'i3'])]


def test_failed_removal_keeps_its_reason(transport: rpc.Transport, served: ScriptedDriver) -> None:
    served.error = exception.StorageError('the disk refuses')

    with pytest.raises(exception.StorageError, match='the disk refuses'):
        _api(transport).remove_image(CTXT, 'h1', 'i1')


def test_pin_too_low_for_removal(transport: rpc.Transport, served: ScriptedDriver) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'\[upgrade_levels\] compute = 1.4'):
        _api(transport, '1.4').remove_image(CTXT, 'h1', 'i1')
    assert served.removed == []


def test_first_release_compute_removes_nothing(transport: rpc.Transport, old: OldCompute) -> None:
    with pytest.raises(exception.VersionUnsupported, match=r'remove_image 1\.6 is not supported'):
        _api(transport).remove_image(CTXT, 'old', 'i1')
