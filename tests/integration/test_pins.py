# SPDX-License-Identifier: Apache-2.0
"""RPC versions on the wire: pinned ones, and a compute that is older than its conductors."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator

import oslo_messaging as messaging
import pytest

from nova_precache import conf as options, context, rpc
from nova_precache.compute import rpcapi as compute_rpcapi
from nova_precache.conductor import rpcapi
from tests.conftest import UploadImage
from tests.integration.conftest import BIN, CONDUCTORS, Deployment
from tests.leaks import SECRETS
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
TOO_LOW = '[upgrade_levels] compute = 0.9 is too low for cache_image'
PINNED = {'upgrade_levels': {'compute': '0.9'}}


class OldCompute:
    """A server of a version that conductors no longer send."""

    target = messaging.Target(version='0.9')

    def __init__(self) -> None:
        self.calls = 0

    def cache_image(self, ctxt: context.RequestContext, **arguments: object) -> None:
        self.calls += 1


def test_low_pin_contacts_no_compute(deployment: Deployment, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    before = deployment.epochs()
    with deployment.configured(CONDUCTORS, PINNED):
        request_id = service.cache(service.aggregate('pinned'), image_id)
        request = service.wait(request_id)

    assert request['counts'] == {'unsupported': 4}
    assert service.outcomes(request_id) == {('unsupported', TOO_LOW)}
    assert deployment.epochs() == before, 'a host was claimed'
    assert deployment.gateway.served(image_id) == []
    deployment.assert_tidy()


def test_pin_lowered_after_planning_ends_rest(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    service, gateway = deployment.service, deployment.gateway
    gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('lowered'), image_id)
    gateway.wait_for(1)
    [begun] = deployment.claimed_hosts()
    with deployment.configured(CONDUCTORS, PINNED):
        request = service.wait(request_id)
        gateway.release()

    assert request['counts'] == {'unsupported': 4}
    assert service.outcomes(request_id) == {('unsupported', TOO_LOW)}
    assert len(gateway.served(image_id)) == 1
    for host in deployment.hosts:
        assert (image_id in deployment.log(host.name)) <= (host.name == begun)
    deployment.assert_tidy()


def test_sufficient_pins_change_nothing(deployment: Deployment, upload_image: UploadImage) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service
    host = deployment.hosts[0]
    pinned = {'upgrade_levels': {'compute': '1.7', 'conductor': 'auto'}}
    with deployment.configured((*CONDUCTORS, host.name), pinned):
        request = service.wait(service.cache(service.aggregate('high', (host,)), image_id))

    assert request['counts'] == {'cached': 1}
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


@pytest.mark.parametrize(
    ('name', 'option', 'pin'),
    [
        ('conductor1', 'compute', 'abc'),
        ('cell1-host1', 'conductor', '0.9'),
    ],
)
def test_invalid_pin_refused_at_start(
    deployment: Deployment, name: str, option: str, pin: str
) -> None:
    program = BIN / f'nova-precache-{deployment.kind(name)}'
    deployment.configure(name, {'upgrade_levels': {option: pin}})
    try:
        ended = subprocess.run(
            [program, '--config-file', deployment.directory / f'{name}.conf'],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    finally:
        deployment.configure(name)

    assert SECRETS.look_at(ended).returncode == 1
    assert f'[upgrade_levels] {option} = {pin} is ' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_too_old_compute_asked_once(deployment: Deployment, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    with _serve_old_compute(deployment) as (host, old):
        aggregate_id = service.aggregate('old', ())
        service.post(
            f'/os-aggregates/{aggregate_id}/action', {'add_host': {'host': host}}
        ).raise_for_status()
        request_id = service.cache(aggregate_id, image_id)
        request = service.wait(request_id)

    assert request['counts'] == {'unsupported': 1}
    [task] = service.tasks(request_id)
    assert task['reason'] == 'cache_image 1.0 is not supported by the called service'
    assert task['attempts'] == 1
    assert old.calls == 0
    deployment.assert_tidy()


@contextlib.contextmanager
def _serve_old_compute(deployment: Deployment) -> Iterator[tuple[str, OldCompute]]:
    """Serve a host of an older release in cell1, mapped and up."""
    conf = options.new(config_files=[])
    transport = rpc.connect(conf, deployment.urls['cell1'])
    host, old = f'old-{uuid.uuid4().hex[:8]}', OldCompute()
    server = rpc.Server(transport, compute_rpcapi.TOPIC, host, [old])
    server.start()
    try:
        reporter = rpcapi.ConductorReporter(transport, None, timeout_seconds=30)
        reporter.register({'host': host, 'agent_id': str(uuid.uuid4())})
        yield host, old
    finally:
        server.stop()
        transport.retire()
        deployment.query('DELETE FROM agents WHERE host = ?', host)
        deployment.query('DELETE FROM host_mappings WHERE host = ?', host)
