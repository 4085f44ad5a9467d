# SPDX-License-Identifier: Apache-2.0
"""Transfers are stopped, accelerated and resumed, whatever the link to Glance does."""

import contextlib
import dataclasses
import datetime
import logging
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from oslo_utils import timeutils

from nova_precache import conf as configuration, context, model, rpc
from nova_precache.cells import inventory
from nova_precache.compute import rpcapi
from nova_precache.db.engine import models, session
from nova_precache.virt import driver as virt_driver
from nova_precache.wiring import images as wiring_images
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started
from tests.service import Host, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
CTXT = context.admin_context()


@dataclasses.dataclass(frozen=True)
class Held:
    """A request for one image on one host, whose download is held after its first bytes."""

    started: Started
    gateway: site_link.Gateway
    host: Host
    image_id: str
    data: bytes
    request_id: str
    job_id: str
    epoch: int

    @contextlib.contextmanager
    def compute(self) -> Iterator[rpcapi.ComputeAPI]:
        """The computes of the host's cell, called as by a conductor."""
        with _database(self.started) as database:
            [cell] = [
                each
                for each in inventory.Inventory(database).list_cells()
                if each.name == self.host.cell
            ]
        transport = rpc.connect(_conf(self.started), cell.transport_url)
        try:
            yield rpcapi.ComputeAPI(transport, None, 0, TIMEOUT_SECONDS, TIMEOUT_SECONDS)
        finally:
            transport.retire()

    def cancel(self, **arguments: bool) -> None:
        """Cancel the request."""
        url = f'{self.started.service.precache_url}/requests/{self.request_id}/action'
        requests.post(
            url, json={'cancel': arguments or None}, timeout=TIMEOUT_SECONDS
        ).raise_for_status()

    def stop(self, why: model.StopWhy, keep_partial: bool = False) -> bool:
        with self.compute() as api:
            return api.stop_image(CTXT, self.host.name, self.job_id, self.epoch, why, keep_partial)

    def ranges(self) -> list[str | None]:
        """The ranges requested from Glance."""
        return [each.requested_range for each in self.gateway.served(self.image_id)]

    def has_no_partial(self) -> bool:
        return all('.' not in name for name in self.host.base_files())


def _conf(started: Started) -> configuration.cfg.ConfigOpts:
    return configuration.new(config_files=[started.conf])


@contextlib.contextmanager
def _database(started: Started) -> Iterator[session.Database]:
    database = session.connect(_conf(started))
    try:
        yield database
    finally:
        database.dispose()


def _boot_here(started: Started, host: Host, image_id: str) -> virt_driver.RootDisk:
    """Make a root disk in this process."""
    conf = _conf(started)
    conf.set_override('host', host.name)
    driver = virt_driver.load_driver(conf.compute_driver, conf)
    return driver.create_root_disk(wiring_images.of_service(conf), image_id, 'vm-here')


def _boot(started: Started, host: Host, image_id: str) -> 'subprocess.Popen[str]':
    """Make a root disk in a process of its own."""
    command = ['nova-precache-manage', '--config-file', started.conf, 'root-disk', 'create']
    return subprocess.Popen(
        [*command, '--host', host.name, '--image', image_id, '--instance', 'vm-1'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def held(start: Start, upload_image: UploadImage, gateway: site_link.Gateway) -> Held:
    """A download held after 2 of 4 MiB, all of which have arrived."""
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    started = start()
    service, host = started.service, started.service.hosts[0]
    gateway.hold(at_byte=2 * MIB)
    request_id = service.cache(service.aggregate('one', (host,)), image_id)
    gateway.wait_for(1)
    wait_until(
        lambda: service.tasks(request_id)[0]['bytes_done'] == 2 * MIB, 'what was sent has arrived'
    )
    with _database(started) as database, database.reader() as reader:
        job = reader.scalars(sa.select(models.Job).where(models.Job.image_id == image_id)).one()
        assert job.epoch is not None
        return Held(started, gateway, host, image_id, data, request_id, job.uuid, job.epoch)


# Stopping computes


def test_stop_on_silent_link_resumes_later(
    held: Held, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        held.started.stop()
    assert not [r for r in caplog.records if 'stops while' in r.getMessage()]
    [cut] = held.gateway.running()
    served_bytes = cut.bytes_sent
    assert not held.has_no_partial()

    held.gateway.release()
    again = start().service
    request = again.wait(held.request_id)

    assert request['counts'] == {'cached': 1}
    assert again.tasks(held.request_id)[0]['attempts'] == 1
    assert held.ranges() == [None, f'bytes={2 * MIB}-']
    assert served_bytes + held.gateway.served(held.image_id)[1].bytes_sent == 4 * MIB
    assert held.host.base_path(held.image_id).read_bytes() == held.data
    assert held.has_no_partial()


# Stopped jobs


def test_cancelled_job_leaves_nothing(held: Held) -> None:
    held.cancel()

    request = held.started.service.wait(held.request_id)
    assert request['counts'] == {'cancelled': 1}
    assert held.started.service.outcomes(held.request_id) == {
        ('cancelled', 'the request was cancelled')
    }
    assert held.gateway.running(), 'it was not the stop that ended it'
    assert held.host.base_files() == []

    held.gateway.release()
    assert not _boot_here(held.started, held.host, held.image_id).image_existing
    assert held.ranges() == [None, None]


def test_cancelled_job_may_keep_partial(held: Held) -> None:
    held.cancel(keep_partial=True)
    held.started.service.wait(held.request_id)
    assert not held.has_no_partial()

    held.gateway.release()
    assert not _boot_here(held.started, held.host, held.image_id).image_existing

    assert held.ranges() == [None, f'bytes={2 * MIB}-']
    assert held.host.base_path(held.image_id).read_bytes() == held.data
    assert held.has_no_partial()


@pytest.mark.parametrize('why', model.StopWhy)
def test_stopped_but_wanted_job_repeated(held: Held, why: model.StopWhy) -> None:
    """For example, if another request wanted it while the order was on its way."""
    assert held.stop(why, keep_partial=True)
    wait_until(lambda: len(held.gateway.downloads) == 2, 'it was called again')
    held.gateway.release()

    request = held.started.service.wait(held.request_id)

    assert request['counts'] == {'cached': 1}
    assert held.started.service.tasks(held.request_id)[0]['attempts'] == 1
    assert held.ranges() == [None, f'bytes={2 * MIB}-']


def test_stop_of_older_call_ignored(held: Held) -> None:
    for stale in (
        dataclasses.replace(held, epoch=held.epoch - 1),
        dataclasses.replace(held, job_id='unknown'),
    ):
        assert not stale.stop(model.StopWhy.CANCELLED)

    held.gateway.release()
    assert held.started.service.wait(held.request_id)['counts'] == {'cached': 1}
    assert held.ranges() == [None]


def test_deadline_ends_download_and_keeps_partial(held: Held) -> None:
    call = rpcapi.CacheImageCall(
        held.job_id,
        held.epoch,
        held.image_id,
        held.gateway.url,
        options=model.TransferOptions(deadline_seconds=0.1),
    )
    with held.compute() as api:
        outcome = api.cache_image(CTXT, held.host.name, call)

    assert outcome is not None
    assert outcome.status == 'expired'
    assert held.gateway.running(), 'it was not the deadline that ended it'
    assert not held.has_no_partial()
    # Its request has no deadline: the download is resumed.
    wait_until(lambda: len(held.gateway.downloads) == 2, 'it was called again')
    held.gateway.release()
    assert held.started.service.wait(held.request_id)['counts'] == {'cached': 1}
    assert held.ranges() == [None, f'bytes={2 * MIB}-']


# Changed options


def _paced(started: Started, image_id: str, **options: Any) -> str:
    """Request an image at a pace at which it would take hours; wait for its first bytes."""
    service = started.service
    host = service.hosts[0].name
    asked = {'hosts': [host], 'images': [image_id], 'max_rate_bytes': 1024, **options}
    url = f'{service.precache_url}/requests'
    answer = requests.post(url, json={'request': asked}, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
    request_id = str(answer.json()['request']['id'])
    wait_until(lambda: service.request(request_id)['bytes_done'] > 0, 'it has begun')
    return request_id


def _change(started: Started, request_id: str, **asked: Any) -> None:
    url = f'{started.service.precache_url}/requests/{request_id}'
    requests.patch(url, json={'request': asked}, timeout=TIMEOUT_SECONDS).raise_for_status()


def test_lifted_rate_applies_to_running_transfer(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    data = os.urandom(8 * MIB)
    image_id = upload_image(data)
    started = start()
    request_id = _paced(started, image_id)

    _change(started, request_id, max_rate_bytes=None)

    assert started.service.wait(request_id)['counts'] == {'cached': 1}
    assert started.service.tasks(request_id)[0]['attempts'] == 1
    [served] = gateway.served(image_id)
    assert (served.requested_range, served.bytes_sent) == (None, len(data))
    assert started.service.hosts[0].base_path(image_id).read_bytes() == data


def test_earlier_deadline_ends_running_transfer(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(8 * MIB))
    started = start()
    request_id = _paced(started, image_id, deadline='2096-01-01T00:00:00Z')
    soon = timeutils.utcnow() + datetime.timedelta(seconds=5)

    _change(started, request_id, deadline=f'{soon.isoformat()}Z')

    assert started.service.wait(request_id)['status'] == 'expired'
    assert len(gateway.served(image_id)) == 1


# Attempts


@pytest.mark.parametrize(('max_attempts', 'status'), [(1, 'error'), (2, 'retry_wait')])
def test_only_last_attempt_discards_partial(
    start: Start,
    upload_image: UploadImage,
    gateway: site_link.Gateway,
    max_attempts: int,
    status: str,
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service = start(
        image_cache={'precache_max_attempts': max_attempts, 'retry_delay_seconds': 3600}
    ).service
    host = service.hosts[0]
    gateway.cuts = [2 * MIB]
    gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('one', (host,)), image_id)
    gateway.wait_for(1)

    gateway.refuse = 401
    gateway.release()
    wait_until(lambda: service.tasks(request_id)[0]['status'] == status, 'the attempt has ended')

    assert len(gateway.served(image_id)) == 1
    assert (host.base_files() == []) == (status == 'error')


# Boots


def test_boot_boosts_precache_of_its_image(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    data = os.urandom(8 * MIB)
    image_id = upload_image(data)
    started = start(image_cache={'max_rate_bytes': 16 * 1024})  # the download would take 8 minutes
    service, host = started.service, started.service.hosts[0]
    request_id = service.cache(service.aggregate('one', (host,)), image_id)
    wait_until(lambda: service.request(request_id)['bytes_done'] > 0, 'it has begun')

    disk, errors = _boot(started, host, image_id).communicate(timeout=TIMEOUT_SECONDS)

    assert pathlib.Path(disk.strip()).exists(), errors
    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert len(gateway.served(image_id)) == 1
    assert host.base_path(image_id).read_bytes() == data


def test_interrupted_boot_ends_and_releases_lock(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    started = start()
    host = started.service.hosts[0]
    gateway.hold(at_byte=2 * MIB)
    boot = _boot(started, host, image_id)
    gateway.wait_for(1)

    boot.send_signal(signal.SIGINT)
    disk, errors = boot.communicate(timeout=TIMEOUT_SECONDS)

    assert (boot.returncode, disk) == (1, '')
    assert errors.endswith('interrupted: no root disk was created\n')
    assert 'Traceback' not in errors
    assert not (pathlib.Path(host.instances_path) / 'vm-1').exists()
    assert gateway.running(), 'it was not the signal that ended it'
    gateway.release()
    assert not _boot_here(started, host, image_id).image_existing
    assert host.base_path(image_id).read_bytes() == data


def test_interrupted_waiting_boot_leaves_precache_running(
    held: Held,
) -> None:
    boot = _boot(held.started, held.host, held.image_id)
    with futures.ThreadPoolExecutor(1) as pool:
        ended = pool.submit(boot.communicate, timeout=TIMEOUT_SECONDS)
        _wait_until_it_waits(held, boot)
        boot.send_signal(signal.SIGTERM)
        _, errors = ended.result(TIMEOUT_SECONDS)

    assert boot.returncode == 1
    assert errors.endswith('interrupted: no root disk was created\n')
    held.gateway.release()
    assert held.started.service.wait(held.request_id)['counts'] == {'cached': 1}
    assert held.ranges() == [None]


def _wait_until_it_waits(held: Held, boot: 'subprocess.Popen[str]') -> None:
    """Wait until the process has the image's lock file open, which it then tries to lock."""
    lock = (
        pathlib.Path(held.host.instances_path)
        / 'locks'
        / (f'nova-{held.host.base_path(held.image_id).name}')
    )

    def has_it_open() -> bool:
        for descriptor in pathlib.Path(f'/proc/{boot.pid}/fd').iterdir():
            with contextlib.suppress(OSError):
                if descriptor.resolve() == lock.resolve():
                    return True
        return False

    wait_until(has_it_open, 'the boot waits for the lock')
