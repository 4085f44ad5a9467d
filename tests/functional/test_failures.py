# SPDX-License-Identifier: Apache-2.0
"""Bad input and outages: each ends in a correct outcome and leaves nothing behind."""

import logging
import os
import pathlib
import subprocess

import pytest
import requests

from nova_precache import conf as configuration
from nova_precache.db import agents
from nova_precache.db.engine import session
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2


def test_aggregate_without_hosts_completes_at_once(start: Start, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(1024))
    service = start().service

    request = service.wait(service.cache(service.aggregate('empty', ()), image_id))

    assert (request['status'], request['counts'], request['hosts_total']) == ('completed', {}, 0)


def test_glance_outage_returns_503_unsaved(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(1024))
    service = start(glance={'num_retries': 0, 'endpoint_override': 'http://127.0.0.1:1'}).service

    answer = service.ask(service.aggregate('rollout'), image_id)

    assert answer.status_code == 503
    assert int(answer.headers['Retry-After']) > 0
    assert service.get('/requests')['requests'] == []


def test_unknown_image_returns_400_unsaved(start: Start) -> None:
    unknown = '11111111-2222-4333-8444-555555555555'
    service = start().service

    answer = service.ask(service.aggregate('rollout'), unknown)

    assert answer.status_code == 400
    assert unknown in answer.json()['badRequest']['message']
    assert service.get('/requests')['requests'] == []


def test_down_host_skipped_and_others_continue(start: Start, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(1024))
    down_seconds = 8
    started = start(
        DEFAULT={'report_interval': 0.2, 'service_down_time': down_seconds},
        # A conductor that a busy machine delays for a moment must not count as deaf.
        conductor={'heartbeat_write_interval_seconds': 2},
    )
    gone = started.standalone.agents[0]
    gone.stop()
    database = session.connect(configuration.new(config_files=[started.conf]))
    known = agents.Agents(database, down_seconds)
    wait_until(lambda: known.down([gone.host]), 'the host counts as down')
    database.dispose()

    request_id = started.service.cache(started.service.aggregate('rollout'), image_id)
    request = started.service.wait(request_id)

    assert (request['status'], request['counts']) == ('partial', {'cached': 3, 'skipped': 1})
    skipped = [t for t in started.service.tasks(request_id) if t['status'] == 'skipped']
    assert skipped[0]['host'] == gone.host
    assert skipped[0]['reason'].startswith('host down: stopped at ')


def test_cut_download_resumes_at_its_byte(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = start().service
    gateway.cuts = [3 * MIB]

    request = service.wait(service.cache(service.aggregate('one', service.hosts[:1]), image_id))

    assert request['counts'] == {'cached': 1}
    first, second = gateway.served(image_id)
    assert (first.requested_range, first.bytes_sent) == (None, 3 * MIB)
    assert second.requested_range == f'bytes={3 * MIB}-'
    assert second.bytes_sent == MIB


def test_wrong_hash_retried_once(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = start().service
    gateway.spoil = 1

    request_id = service.cache(service.aggregate('one', service.hosts[:1]), image_id)

    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert service.tasks(request_id)[0]['attempts'] == 2
    assert service.hosts[0].base_files() == [service.hosts[0].base_path(image_id).name]


def test_persistent_wrong_hash_is_error(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = start().service
    gateway.spoil = 10

    request_id = service.cache(service.aggregate('one', service.hosts[:1]), image_id)

    assert service.wait(request_id)['status'] == 'failed'
    task = service.tasks(request_id)[0]
    assert (task['status'], task['attempts']) == ('error', 2)
    assert 'sha512' in task['reason']
    assert len(gateway.served(image_id)) == 2
    assert service.hosts[0].base_files() == []


def test_deleted_image_fails_with_reason(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = start().service
    gateway.hold(at_byte=MIB)
    gateway.cuts = [2 * MIB]
    request_id = service.cache(service.aggregate('one', service.hosts[:1]), image_id)
    gateway.wait_for(1)

    requests.delete(
        f'{gateway.url}/v2/images/{image_id}', timeout=TIMEOUT_SECONDS
    ).raise_for_status()
    gateway.release()

    assert service.wait(request_id)['status'] == 'failed'
    task = service.tasks(request_id)[0]
    assert task['status'] == 'error'
    assert image_id in task['reason']
    wait_until(lambda: service.hosts[0].base_files() == [], 'nothing is left')


def test_unsafe_image_unretried_error(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway, tmp_path: pathlib.Path
) -> None:
    image = tmp_path / 'liar.qcow2'
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', str(image), '1M'], check=True)
    image_id = upload_image(image, disk_format='raw')
    service = start().service

    request_id = service.cache(service.aggregate('one', service.hosts[:1]), image_id)

    assert service.wait(request_id)['status'] == 'failed'
    task = service.tasks(request_id)[0]
    assert (task['status'], task['attempts']) == ('error', 1)
    assert task['reason'].startswith('unsafe image: ')
    assert service.hosts[0].base_files() == []


def test_insufficient_space_error_precedes_download(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(1024))
    service = start(image_cache={'reserved_disk_bytes': 2**60}).service

    request_id = service.cache(service.aggregate('one', service.hosts[:1]), image_id)

    assert service.wait(request_id)['status'] == 'failed'
    assert 'needs' in service.tasks(request_id)[0]['reason']
    assert 'free' in service.tasks(request_id)[0]['reason']
    assert gateway.downloads == []


def test_driver_without_cache_is_unsupported(
    start: Start, upload_image: UploadImage, caplog: pytest.LogCaptureFixture
) -> None:
    image_id = upload_image(os.urandom(1024))
    service = start(DEFAULT={'compute_driver': 'fake.FakeDriver'}).service
    aggregate_id = service.aggregate('one', service.hosts[:1])

    with caplog.at_level(logging.WARNING):
        first = service.cache(aggregate_id, image_id)
        service.wait(first)
        # The request may end before the conductor has logged the end of its job.
        wait_until(lambda: len(_job_warnings(caplog)) > 1, 'both have logged the end')

    assert service.outcomes(first) == {('unsupported', 'driver FakeDriver cannot cache images')}
    assert sorted(_job_warnings(caplog)) == [
        'nova_precache.compute.transfer_log',
        'nova_precache.conductor.tracker',
    ]


def _job_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.name for r in caplog.records if r.getMessage().startswith('Job ')]


def test_low_rpc_pin_contacts_no_compute(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(1024))
    service = start(upgrade_levels={'compute': '0.9'}).service

    request_id = service.cache(service.aggregate('rollout'), image_id)

    assert service.wait(request_id)['counts'] == {'unsupported': 4}
    reason = '[upgrade_levels] compute = 0.9 is too low for cache_image'
    assert service.outcomes(request_id) == {('unsupported', reason)}
    assert gateway.downloads == []


def test_failing_glance_retried_then_error(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(1024))
    service = start(image_cache={'precache_max_attempts': 2}).service
    gateway.refuse = 503

    request_id = service.cache(service.aggregate('one', service.hosts[:1]), image_id)

    assert service.wait(request_id)['status'] == 'failed'
    task = service.tasks(request_id)[0]
    assert (task['status'], task['attempts']) == ('error', 2)
    assert '503' in task['reason']
    assert service.hosts[0].base_files() == []


def test_departed_host_has_waiting_tasks_skipped(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = start().service
    staying, leaving = service.hosts[:2]
    aggregate_id = service.aggregate('rollout', (staying, leaving))
    gateway.hold()
    request_id = service.cache(aggregate_id, image_id)
    gateway.wait_for(1)

    service.post(f'/os-aggregates/{aggregate_id}/action', {'remove_host': {'host': leaving.name}})
    wait_until(lambda: service.request(request_id)['hosts_done'] == 1, 'the host is skipped')
    gateway.release()

    assert service.wait(request_id)['counts'] == {'cached': 1, 'skipped': 1}
    assert ('skipped', 'host left the aggregate') in service.outcomes(request_id)
    assert len(gateway.served(image_id)) == 1


def test_request_continues_after_aggregate_deletion(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = start().service
    aggregate_id = service.aggregate('rollout', service.hosts[:2])
    gateway.hold()
    request_id = service.cache(aggregate_id, image_id)
    gateway.wait_for(1)

    for host in service.hosts[:2]:
        service.post(f'/os-aggregates/{aggregate_id}/action', {'remove_host': {'host': host.name}})
    assert service.delete(f'/os-aggregates/{aggregate_id}').status_code == 200
    gateway.release()

    request = service.wait(request_id)
    assert sum(request['counts'].values()) == 2
    assert request['counts']['cached'] >= 1


def test_restarted_service_continues_request(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    started = start()
    gateway.hold(at_byte=MIB, let_pass=1)
    request_id = started.service.cache(started.service.aggregate('rollout'), image_id)
    gateway.wait_for(1)
    started.stop()  # the held download is cut
    gateway.release()

    service = start().service
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1, 1, 1]
    # Once each, and again for the transfer that was cut.
    assert len(gateway.served(image_id)) <= 5
    for host in service.hosts:
        assert host.base_files() == [host.base_path(image_id).name]


def test_moving_call_timeout_counts_no_attempt(
    start: Start,
    upload_image: UploadImage,
    gateway: site_link.Gateway,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = start(DEFAULT={'long_rpc_timeout': 5}).service
    gateway.hold(at_byte=MIB)

    with caplog.at_level(logging.INFO):
        request_id = service.cache(service.aggregate('one', service.hosts[:1]), image_id)
        wait_until(
            lambda: sum('is repeated' in r.getMessage() for r in caplog.records) >= 2,
            'the call was repeated twice',
        )
    gateway.release()

    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert service.tasks(request_id)[0]['attempts'] == 1
    assert len(gateway.served(image_id)) == 1
