# SPDX-License-Identifier: Apache-2.0
"""Mixed releases during an upgrade: older computes, older conductors, newer values."""

import contextlib
import logging
import os
import sqlite3
import threading
from typing import Any

import pytest
import requests

from nova_precache import context, model, rpc
from nova_precache.compute import manager, reports, rpcapi as compute_rpcapi
from nova_precache.conductor import (
    manager as conductor_manager,
    report_endpoint,
    rpcapi as conductor_rpcapi,
)
from nova_precache.download.pipeline import BUFFER_BYTES
from nova_precache.wiring import compute as wiring_compute, conductor as wiring_conductor
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started
from tests.openstack import Site
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
BIG = 16 * MIB
COMPUTE, CONDUCTOR = manager.ComputeManager, conductor_manager.CellEndpoint
REPORTS = report_endpoint.ReportEndpoint


class ComputeOf10(rpc.Endpoint, version='1.0'):
    """A compute of the first release: today's code, with only the methods of that release."""

    def __init__(self, *parts: Any) -> None:
        self._works = COMPUTE(*parts)

    def cache_image(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        image_id: str,
        image_endpoint: str | None = None,
        token: str | None = None,
        **unknown: Any,
    ) -> model.Json | None:
        outcome = self._works.cache_image(ctxt, job_id, epoch, image_id, image_endpoint, token)
        return None if outcome is None else {k: v for k, v in outcome.items() if k != 'at_once'}


class ComputeOf11(ComputeOf10, version='1.1'):
    """A compute that knows the order to stop, but not the order to forget."""

    def stop_image(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        why: str,
        keep_partial: bool = False,
        **unknown: Any,
    ) -> bool:
        return self._works.stop_image(ctxt, job_id, epoch, why, keep_partial)


class ComputeOf2099(COMPUTE, version='1.99'):  # type: ignore[misc, valid-type]
    """A compute of a future release, which reports more, with statuses unknown today."""

    def cache_image(self, *call: Any, **more: Any) -> model.Json | None:
        outcome = super().cache_image(*call, **more)
        return outcome and {**outcome, 'status': 'dreamt', 'colour': 'green', 'sub': {'a': 1}}


class ConductorOf10(rpc.Endpoint, version='1.0'):
    """A conductor of the first release, which keeps no inventory and reports no version."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        self._works = CONDUCTOR(*parts, **more)

    def ping(self, ctxt: context.RequestContext) -> None:  # type: ignore[override]
        """Answer with nothing, as that release did."""

    def register(self, ctxt: context.RequestContext, state: model.Json, **unknown: Any) -> None:
        self._works.register(ctxt, state)

    def report_state(self, ctxt: context.RequestContext, state: model.Json, **unknown: Any) -> None:
        self._works.report_state(ctxt, state)

    def report_progress(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        sequence: int,
        progress: model.Json,
        **unknown: Any,
    ) -> None:
        known = {name: progress[name] for name in ('status', 'bytes_done', 'bytes_total')}
        self._works.report_progress(ctxt, job_id, epoch, sequence, known)

    def begin_job(
        self, ctxt: context.RequestContext, job_id: str, epoch: int, **unknown: Any
    ) -> bool:
        return self._works.begin_job(ctxt, job_id, epoch)

    def get_token(self, ctxt: context.RequestContext, **unknown: Any) -> str | None:
        return self._works.get_token(ctxt)


class ConductorOf14(CONDUCTOR, version='1.4'):  # type: ignore[misc, valid-type]
    """A conductor that takes each kind of news by itself, and answers no report."""

    def register(self, *call: Any, **more: Any) -> None:  # type: ignore[override]
        super().register(*call, **more)


class ConductorInTurns(CONDUCTOR, version=conductor_rpcapi.VERSION):  # type: ignore[misc, valid-type]
    """A conductor of this release while ``serves`` is set, else one of the release before."""

    serves = threading.Event()

    def register(self, *call: Any, **more: Any) -> model.Json | None:  # type: ignore[override]
        answer = super().register(*call, **more)
        return answer if self.serves.is_set() else None

    def ping(self, *call: Any, **more: Any) -> str:
        super().ping(*call, **more)
        return conductor_rpcapi.VERSION if self.serves.is_set() else '1.4'


class ReportsInTurns(REPORTS, version=conductor_rpcapi.VERSION):  # type: ignore[misc, valid-type]
    """The reports' topic of such a conductor, which answers only while it is served."""

    taken = 0

    def report(self, *call: Any, **more: Any) -> model.Json:
        ConductorInTurns.serves.wait(600)
        type(self).taken += 1
        return super().report(*call, **more)


@pytest.mark.parametrize('old', [ComputeOf10, ComputeOf11])
def test_older_compute_caches_and_cannot_stop(
    start: Start,
    gateway: site_link.Gateway,
    upload_image: UploadImage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    old: type[ComputeOf10],
) -> None:
    monkeypatch.setattr(wiring_compute.manager, 'ComputeManager', old)
    caplog.set_level(logging.INFO, 'nova_precache')
    started = start(image_cache={'precache_concurrency': 4})
    service, host = started.service, started.service.hosts[0]
    aggregate_id = service.aggregate('edge', (host,))
    small, big = os.urandom(MIB), os.urandom(BIG)
    first, second = upload_image(small), upload_image(big)

    done = service.wait(service.cache(aggregate_id, first))
    assert (done['status'], done['counts']) == ('completed', {'cached': 1})
    assert host.base_path(first).read_bytes() == small

    gateway.hold(at_byte=MIB)
    request_id = service.cache(aggregate_id, second)
    gateway.wait_for(1)
    _act(started, request_id, 'cancel')
    assert service.wait(request_id)['counts'] == {'cancelled': 1}
    assert _says(caplog, 'it cannot be stopped and runs to its end') == (old is ComputeOf10)
    gateway.release()
    again = service.wait(service.cache(aggregate_id, second))
    assert again['status'] == 'completed'
    assert host.base_path(second).read_bytes() == big
    assert _errors(caplog) == []


def test_newer_compute_status_ends_request(
    start: Start,
    upload_image: UploadImage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wiring_compute.manager, 'ComputeManager', ComputeOf2099)
    started = start()
    service, site = started.service, Site(started.service, started.conf, capsys)
    aggregate_id = service.aggregate('edge', service.hosts[:2])

    request_id = service.cache(aggregate_id, upload_image(b'data'))

    request = service.wait(request_id)
    assert (request['status'], request['counts']) == ('failed', {'dreamt': 2})
    assert {task['status'] for task in service.tasks(request_id)} == {'dreamt'}
    # An unknown status of the request itself, written by a newer conductor, does no harm either.
    _change(started, "UPDATE cache_requests SET status = 'dreaming'")
    assert service.request(request_id)['status'] == 'dreaming'
    assert site('precache', 'show', request_id)['status'] == 'dreaming'
    assert [row['Status'] for row in site('precache', 'list')] == ['dreaming']
    assert [row['Status'] for row in site('precache', 'task', 'list', request_id)] == ['dreamt'] * 2
    assert _errors(caplog) == []


def test_newer_compute_works_under_older_conductor(
    start: Start,
    upload_image: UploadImage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wiring_conductor.manager, 'CellEndpoint', ConductorOf10)
    service = start(image_cache={'precache_concurrency': 4}).service
    image_id = upload_image(os.urandom(MIB))

    request = service.wait(service.cache(service.aggregate('edge'), image_id))

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert service.get(f'/hosts/{service.hosts[0].name}/images')['images'] == []
    assert _errors(caplog) == []


def test_newer_compute_reports_to_last_release(
    start: Start,
    upload_image: UploadImage,
    gateway: site_link.Gateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wiring_conductor.manager, 'CellEndpoint', ConductorOf14)
    service = start(image_cache={'precache_concurrency': 4}).service
    host, image_id = service.hosts[0], upload_image(os.urandom(2 * BUFFER_BYTES))
    gateway.hold(at_byte=BUFFER_BYTES)  # what has not filled a buffer is not progress yet

    request_id = service.cache(service.aggregate('edge'), image_id)
    gateway.wait_for(1)
    wait_until(lambda: service.request(request_id)['bytes_done'] > 0, 'progress is shown')
    gateway.release()
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    wait_until(lambda: service.get(f'/hosts/{host.name}/images')['images'], 'its cache is shown')
    assert _errors(caplog) == []


def test_conductors_upgraded_and_rolled_back_meanwhile(
    start: Start,
    upload_image: UploadImage,
    gateway: site_link.Gateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wiring_conductor.manager, 'CellEndpoint', ConductorInTurns)
    monkeypatch.setattr(wiring_conductor.report_endpoint, 'ReportEndpoint', ReportsInTurns)
    monkeypatch.setattr(reports, 'LOOK_SECONDS', 0.1)
    monkeypatch.setattr(conductor_rpcapi, 'REPORT_SECONDS', 2)
    caplog.set_level(logging.INFO, 'nova_precache')
    ConductorInTurns.serves.clear()
    started = start(image_cache={'precache_concurrency': 4})
    service = started.service
    gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('edge'), upload_image(os.urandom(4 * MIB)))
    gateway.wait_for(4)

    def all_report(count: int) -> None:
        wait_until(lambda: ReportsInTurns.taken >= count, 'the hosts report together')
        wait_until(lambda: _statuses(started) == {'up'}, 'all are up')

    assert ReportsInTurns.taken == 0
    ConductorInTurns.serves.set()
    all_report(8)
    ConductorInTurns.serves.clear()
    wait_until(lambda: len(_fallen_back(caplog)) == 4, 'all fell back')
    taken = ReportsInTurns.taken
    gateway.release()
    request = service.wait(request_id)
    ConductorInTurns.serves.set()
    all_report(taken + 8)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert {task['attempts'] for task in service.tasks(request_id)} == {1}
    assert _errors(caplog) == []


def _fallen_back(caplog: pytest.LogCaptureFixture) -> set[str]:
    """Return a message for each host: under load, one may fall back twice."""
    said = (record.getMessage() for record in caplog.records)
    return {each for each in said if 'reports to conductors of an earlier' in each}


def _statuses(started: Started) -> set[str]:
    return {host['status'] for host in started.service.get('/hosts')['hosts']}


@pytest.mark.parametrize(
    ('pins', 'status', 'inventory'),
    [
        ({'conductor': '1.4'}, 'cached', 1),
        ({'compute': '1.0', 'conductor': '1.0'}, 'cached', 0),
        ({'compute': compute_rpcapi.VERSION}, 'cached', 1),
        ({'compute': '0.9'}, 'unsupported', 0),
    ],
)
def test_pins_hold_back_newer_messages(
    start: Start, upload_image: UploadImage, pins: dict[str, str], status: str, inventory: int
) -> None:
    service = start(upgrade_levels=pins).service
    host = service.hosts[0]
    image_id = upload_image(b'data')

    request_id = service.cache(service.aggregate('edge', (host,)), image_id)

    assert service.wait(request_id)['counts'] == {status: 1}

    def kept() -> int:
        return len(service.get(f'/hosts/{host.name}/images')['images'])

    wait_until(lambda: kept() == inventory, 'what may be told of the cache was told')


def _act(started: Started, request_id: str, action: str) -> None:
    url = f'{started.service.precache_url}/requests/{request_id}/action'
    requests.post(url, json={action: None}, timeout=TIMEOUT_SECONDS).raise_for_status()


def _says(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records)


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return our own errors: oslo.messaging logs one for each call unknown to an endpoint."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.levelno >= logging.ERROR and each.name.startswith('nova_precache')
    ]


def _change(started: Started, sql: str) -> None:
    with contextlib.closing(_open(started)) as database:
        database.execute(sql)
        database.commit()


def _open(started: Started) -> sqlite3.Connection:
    state_dir = started.standalone.ready_file.parent
    return sqlite3.connect(state_dir / 'nova-precache.sqlite', timeout=TIMEOUT_SECONDS)
