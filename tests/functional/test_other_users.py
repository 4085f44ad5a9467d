# SPDX-License-Identifier: Apache-2.0
"""A service without root, and a base file that libvirt gave to the user of its guests."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
import requests

from nova_precache import model
from nova_precache.standalone import glance as glance_server
from tests import other_user
from tests.conftest import UploadImage
from tests.service import Host, Service, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
OLD = 1_000_000_000
DAY_SECONDS = 24 * 3600
_CONF = """
[DEFAULT]
report_interval = 0.2
[conductor]
pin_interval_seconds = 0.5
[image_cache]
reserved_disk_bytes = 0
"""


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    """A directory of the agent, which that user may search."""
    path = pathlib.Path(tempfile.mkdtemp(dir='/tmp'))
    (path / 'service.conf').write_text(_CONF)
    (path / 'service.conf').chmod(0o644)
    os.chown(path, other_user.AGENT, other_user.AGENT)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def running(directory: pathlib.Path, glance: str, capabilities: str = '') -> Iterator[Service]:
    """Run the service as a user other than root; its code may be readable by root only."""
    if os.geteuid() != 0:
        pytest.skip('only root becomes another user')
    capabilities = f'-all,+dac_read_search{capabilities}'
    ready = directory / 'standalone.json'
    ready.unlink(missing_ok=True)
    command = [
        *('setpriv', f'--reuid={other_user.AGENT}', f'--regid={other_user.AGENT}'),
        *('--clear-groups', f'--inh-caps={capabilities}', f'--ambient-caps={capabilities}'),
        *('nova-precache-standalone', f'--state-dir={directory}', f'--image-url={glance}'),
        *('--cells=1', '--hosts-per-cell=1', f'--config-file={directory}/service.conf'),
    ]
    environment = {**os.environ, 'HOME': str(directory)}
    with (
        open(directory / 'log', 'ab') as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None, 'it is ready')
            assert process.poll() is None, (directory / 'log').read_text()
            told = json.loads(ready.read_text())
            hosts = tuple(Host(**each) for each in told['hosts'])
            yield Service(told['compute_url'], told['precache_url'], hosts)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT_SECONDS)


def test_pin_waits_for_untouchable_foreign_file(
    directory: pathlib.Path, glance: glance_server.GlanceServer, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))

    def give_away() -> None:
        os.chown(base, other_user.NOBODY, other_user.NOBODY)
        os.utime(base, (OLD, OLD))

    def is_young() -> bool:
        return base.stat().st_mtime > OLD

    with running(directory, glance.url) as service:
        base = service.hosts[0].base_path(image_id)
        aggregate = service.aggregate('edge')
        assert service.wait(service.cache(aggregate, image_id))['counts'] == {'cached': 1}
        give_away()
        [task] = service.tasks(_ended(service, service.cache(aggregate, image_id)))
        why = f'owned by nobody, and this process lacks CAP_FOWNER ({base})'
        assert (task['status'], task['attempts']) == ('error', 1)
        assert task['reason'] == f'present, but cannot be kept: {why}'
        wait_until(lambda: service.age_seconds(image_id) > DAY_SECONDS, 'its age is reported')
        pin = _pin(service, aggregate, image_id)
        wait_until(lambda: 'cannot be kept: 1' in _reason(service, pin), 'the pin says so')
        _wait_rounds(service, pin, 5)
        assert len(_asked(service, pin)) == 1

        os.chown(base, other_user.AGENT, other_user.AGENT)
        wait_until(is_young, 'it is touched once it is the own one again')
        wait_until(lambda: _reason(service, pin) == '', 'nothing is wrong any more')
        assert len(_asked(service, pin)) == 1

    give_away()
    with running(directory, glance.url, capabilities=',+fowner') as service:
        wait_until(is_young, 'the pin asks again when the service has started')
        wait_until(lambda: _reason(service, pin) == '', 'nothing is wrong any more')
        [task] = service.tasks(_ended(service, _asked(service, pin)[-1]['id']))
        assert (task['status'], base.stat().st_uid) == ('existing', other_user.NOBODY)
    log = (directory / 'log').read_text()
    assert log.count('This process lacks CAP_FOWNER') == 1
    assert glance.served(image_id) == 1


def _ended(service: Service, request_id: str) -> str:
    service.wait(request_id)
    return request_id


def _pin(service: Service, aggregate: int, image_id: str) -> str:
    body = {'pin': {'aggregate': aggregate, 'images': [image_id]}}
    answer = requests.post(f'{service.precache_url}/pins', json=body, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
    return str(answer.json()['pin']['id'])


def _reason(service: Service, pin: str) -> str:
    return str(service.get(f'/pins/{pin}')['pin']['reason'] or '')


def _asked(service: Service, pin: str) -> list[model.Json]:
    return list(service.get(f'/requests?pin={pin}&sort_dir=asc')['requests'])


def _wait_rounds(service: Service, pin: str, rounds: int) -> None:
    for _ in range(rounds):
        checked = service.get(f'/pins/{pin}')['pin']['checked_at']
        wait_until(
            lambda checked=checked: service.get(f'/pins/{pin}')['pin']['checked_at'] != checked,
            'the pin is looked after',
        )
