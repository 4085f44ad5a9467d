# SPDX-License-Identifier: Apache-2.0
"""``openstack precache`` on the whole service: its commands take effect there."""

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from nova_precache.standalone import glance as glance_server
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started, starting
from tests.openstack import Site
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 2**20


@pytest.fixture(scope='module')
def link(glance: glance_server.GlanceServer) -> Iterator[site_link.Gateway]:
    """The link to Glance of the service that these tests share."""
    with site_link.Gateway(glance.url) as opened:
        yield opened


@pytest.fixture(scope='module')
def started(link: site_link.Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with starting(tmp_path_factory.mktemp('osc'), link.url) as begin:
        yield begin(conductor={'pin_interval_seconds': 1})


@pytest.fixture
def site(
    started: Started, link: site_link.Gateway, capsys: pytest.CaptureFixture[str]
) -> Iterator[Site]:
    yield Site(started.service, started.conf, capsys)
    link.refuse = None
    link.release()


@pytest.fixture
def edge(site: Site) -> str:
    """The name of an aggregate of all hosts."""
    name = f'edge-{uuid.uuid4().hex}'
    site.service.aggregate(name)
    return name


def test_named_image_cached_and_found(site: Site, edge: str, upload_image: UploadImage) -> None:
    name = f'golden-{os.getpid()}'
    image_id = upload_image(os.urandom(MIB), name=name)
    hosts = [host.name for host in site.service.hosts]

    request = site('precache', 'create', '--aggregate', edge, '--wait', name)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert site('precache', 'show', request['id'])['images'] == [image_id]
    (listed,) = site('precache', 'list', '--aggregate', edge, '--image', name, '--since', '1h')
    assert (listed['ID'], listed['For']) == (request['id'], edge)
    tasks = site('precache', 'task', 'list', request['id'], '--status', 'cached')
    assert sorted(task['Host'] for task in tasks) == hosts
    up = site('precache', 'host', 'list', '--status', 'up')
    assert sorted(host['Host'] for host in up) == hosts
    _wait_for_inventory(site, image_id, hosts)
    (held,) = site('precache', 'image', 'list', '--host', hosts[0])
    assert (held['Image'], held['Size'], held['Pinned']) == (image_id, MIB, False)


def test_estimate_matches_outcome(site: Site, edge: str, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    host = site.service.hosts[0].name
    site('precache', 'create', '--host', host, '--wait', image_id)
    _wait_for_inventory(site, image_id, [host])

    estimate = site('precache', 'estimate', '--aggregate', edge, image_id)
    request = site('precache', 'create', '--aggregate', edge, '--wait', image_id)

    assert (estimate['tasks'], estimate['tasks_cached']) == (4, 1)
    assert estimate['bytes_to_move'] == estimate['glance_bytes'] == 3 * MIB
    assert len(estimate['by_host']) == 4
    assert request['counts'] == {'existing': 1, 'cached': 3}


def test_request_paused_resumed_cancelled_retried(
    site: Site, upload_image: UploadImage, link: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    host = site.service.hosts[0].name
    link.hold(MIB)
    request_id = site('precache', 'create', '--host', host, image_id)['id']
    link.wait_for(1)

    def statuses() -> list[str]:
        return [task['status'] for task in site.service.tasks(request_id)]

    assert site('precache', 'pause', request_id)['status'] == 'paused'
    wait_until(lambda: 'downloading' not in statuses(), 'the download stopped')
    site('precache', 'resume', request_id)
    wait_until(lambda: len(link.served(image_id)) == 2, 'the download went on')
    site('precache', 'cancel', request_id)
    assert site.service.wait(request_id)['status'] == 'cancelled'
    link.release()
    request = site('precache', 'retry', '--wait', '--deadline', '+1h', request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 1})


def test_pin_created_shown_and_ended(site: Site, edge: str, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))

    made = site(
        *('precache', 'pin', 'create', '--aggregate', edge),
        *('--until', '+7d', '--description', 'always', image_id),
    )

    (listed,) = site('precache', 'pin', 'list', '--status', 'active')
    assert (listed['ID'], listed['Aggregate']) == (made['id'], edge)
    assert site('precache', 'pin', 'show', made['id'])['coverage']['wanted'] == 4
    ended = site.beside('precache', 'pin', 'delete', made['id'])
    assert ended.communicate() == ('', '')
    assert site('precache', 'pin', 'show', made['id'])['status'] == 'ended'


def test_ctrl_c_leaves_request_running(
    site: Site, edge: str, upload_image: UploadImage, link: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    link.hold(MIB)

    with site.in_terminal(
        'precache', 'create', '--aggregate', edge, '--wait', image_id
    ) as terminal:
        link.wait_for(1)
        terminal.wait_for('downloading')
        status = terminal.interrupt()

    assert status == 130, terminal.text
    assert 'Total' in terminal.text
    assert site.service.hosts[0].name in terminal.text
    assert 'The request continues to run.' in terminal.text
    (request,) = site.service.get(f'/requests?image={image_id}')['requests']
    assert f'openstack precache show --wait {request["id"]}' in terminal.text
    link.release()
    assert site.service.wait(request['id'])['counts'] == {'cached': 4}


def test_terminal_shows_final_status(site: Site, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    host = site.service.hosts[0].name

    with site.in_terminal('precache', 'create', '--host', host, '--wait', image_id) as terminal:
        assert terminal.end() == 0, terminal.text

    assert 'completed' in terminal.text
    assert '1.0 MiB of 1.0 MiB' in terminal.text


def test_failure_shows_reason_and_exit_status(
    site: Site, upload_image: UploadImage, link: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    host = site.service.hosts[0].name
    link.refuse = 404

    waiter = site.beside('precache', 'create', '--host', host, '--wait', image_id)
    _, said = waiter.communicate()

    assert waiter.returncode == 1
    (request,) = site('precache', 'list', '--image', image_id)
    (task,) = site('precache', 'task', 'list', request['ID'])
    assert task['Status'] == 'error'
    assert 'The image is not cached on 1 of 1 hosts:\n' in said
    assert f'  {host} test-{image_id} error: {task["Reason"]}\n' in said


def test_empty_aggregate_is_reported(site: Site, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(1024))
    name = f'empty-{uuid.uuid4().hex}'
    site.service.aggregate(name, ())

    said = site.run('precache', 'create', '--aggregate', name, '--wait', image_id, '-f', 'json')

    assert said.json['status'] == 'completed'
    assert said.err == f'Aggregate {name} has no hosts: nothing was cached.\n'


def test_timeout_leaves_request_running(
    site: Site, upload_image: UploadImage, link: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    host = site.service.hosts[0].name
    link.hold(MIB)

    said = site.run(
        *('precache', 'create', '--host', host, '--wait', '--timeout', '2', image_id),
        *('-f', 'value', '-c', 'id'),
    )

    assert said.status == 124
    assert 'Not ended within 2 s. The request continues to run.' in said.err
    link.release()
    assert site.service.wait(said.out.strip())['status'] == 'completed'


def test_window_is_shown_while_waiting(site: Site, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    host = site.service.hosts[0].name

    ask = ('precache', 'create', '--host', host, '--not-before', '2098-01-01T02:00', image_id)
    request_id = site(*ask)['id']
    wait_until(lambda: site.service.tasks(request_id), 'it is planned')
    said = site.run('precache', 'show', '--wait', '--timeout', '1', request_id)

    assert said.status == 124
    assert f'{host}: queued: waits for its window' in said.err
    assert '2098-01-01T02:00:00Z' in said.err
    site('precache', 'cancel', request_id)


def test_several_requests_cancelled(site: Site, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    host = site.service.hosts[0].name
    ids = [
        site('precache', 'create', '--host', host, '--not-before', '+1h', image_id)['id']
        for _ in range(2)
    ]

    said = site.run('precache', 'cancel', ids[0], 'no-such-request', ids[1], '-f', 'json')

    assert said.status == 1
    assert 'no-such-request' in said.err
    assert [site.service.wait(each)['status'] for each in ids] == ['cancelled'] * 2


def test_waiting_request_is_changed(site: Site, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    hosts = [host.name for host in site.service.hosts[:2]]
    ask = ('precache', 'create', '--host', hosts[0], '--host', hosts[1], '--max-rate', '1M')
    request_id = site(*ask, '--not-before', '+1h', '--deadline', '+2h', image_id)['id']

    changed = site(
        *('precache', 'request', 'set', request_id, '--priority', '7', '--no-max-rate'),
        *('--max-parallel-hosts', '1', '--no-deadline'),
    )
    site('precache', 'cancel', request_id)
    assert site.service.wait(request_id)['status'] == 'cancelled'
    late = site.run('precache', 'request', 'set', request_id, '--priority', '8')

    options = changed['options']
    assert (changed['priority'], options['max_parallel_hosts']) == (7, 1)
    assert (options['max_rate_bytes'], options['deadline']) == (None, None)
    assert (late.status, late.out, late.err.count('\n')) == (1, '', 1)
    assert request_id in late.err


def test_tasks_listed_over_requests(site: Site, edge: str, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    host = site.service.hosts[0].name
    ids = [
        site('precache', 'create', '--aggregate', edge, '--wait', image_id)['id'] for _ in range(2)
    ]

    rows = site(
        *('precache', 'task', 'list', '--image', image_id, '--host', host),
        *('--sort', 'request_id:desc', '--long'),
    )

    assert [row['Request'] for row in rows] == sorted(ids, reverse=True)
    assert {row['Host'] for row in rows} == {host}


def test_retry_is_limited_to_host(
    site: Site, upload_image: UploadImage, link: site_link.Gateway
) -> None:
    image_id = upload_image(os.urandom(MIB))
    first, second = (host.name for host in site.service.hosts[:2])
    link.refuse = 404
    ask = ('precache', 'create', '--host', first, '--host', second, '--wait', image_id)
    request_id = site.run(*ask, '-f', 'value', '-c', 'id').out.strip()
    link.refuse = None

    site.run('precache', 'retry', '--host', second, '--wait', request_id)

    tasks = {row['Host']: row['Status'] for row in site('precache', 'task', 'list', request_id)}
    assert tasks == {first: 'error', second: 'cached'}


def test_host_and_image_are_shown(site: Site, edge: str, upload_image: UploadImage) -> None:
    name = f'shown-{uuid.uuid4().hex}'
    image_id = upload_image(os.urandom(MIB), name=name)
    hosts = [host.name for host in site.service.hosts]
    pin = site('precache', 'pin', 'create', '--aggregate', edge, name)
    _wait_for_inventory(site, image_id, hosts)

    image = site('precache', 'image', 'show', name)
    host = site('precache', 'host', 'show', hosts[0])

    assert (image['id'], image['name'], image['size_bytes']) == (image_id, name, MIB)
    assert (image['hosts_cached'], image['hosts_total']) == (4, 4)
    assert image['pinned_by'] == [pin['id']]
    assert (host['host'], host['status']) == (hosts[0], 'up')
    site.run('precache', 'pin', 'delete', pin['id'])


def test_default_lists_fit_80_columns(
    site: Site, upload_image: UploadImage, link: site_link.Gateway
) -> None:
    """Each list, with long names of aggregates and images, and a failure with a long reason."""
    aggregate = f'{uuid.uuid4().hex} {"edge-racks-" * 15}'
    site.service.aggregate(aggregate)
    name = f'{uuid.uuid4().hex}-{"debian-12-genericcloud-amd64-" * 5}'
    cached, failed = upload_image(os.urandom(MIB), name=name), upload_image(os.urandom(MIB))
    hosts = [host.name for host in site.service.hosts]
    site('precache', 'pin', 'create', '--aggregate', aggregate, name)
    _wait_for_inventory(site, cached, hosts)
    link.refuse = 404
    ended = site.run(
        *('precache', 'create', '--aggregate', aggregate, '--wait', failed),
        *('-f', 'value', '-c', 'id'),
    )
    assert ended.status == 1

    for command in (
        'list',
        'task list',
        f'task list {ended.out.strip()}',
        'host list',
        f'image list --host {hosts[0]}',
        f'image host list {cached}',
        'pin list',
        'service list',
        'cell list',
    ):
        said = site.run('precache', *command.split())
        assert said.status == 0, (command, said.err)
        assert said.out.startswith('+--'), command
        assert max(map(len, said.out.splitlines())) <= 80, said.out


def test_wait_survives_service_restart(
    start: Start,
    upload_image: UploadImage,
    gateway: site_link.Gateway,
    free_port: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    started = start(api={'bind_port': port})
    site = Site(started.service, started.conf, capsys)
    image_id = upload_image(os.urandom(4 * MIB))
    gateway.hold(MIB)
    host = site.service.hosts[0].name
    waiter = site.beside('precache', 'create', '--host', host, '--wait', image_id)
    gateway.wait_for(1)

    started.stop()
    gateway.release()
    assert waiter.stderr is not None
    assert any('retrying' in line for line in waiter.stderr)
    start(api={'bind_port': port})
    out, said = waiter.communicate(timeout=TIMEOUT_SECONDS)

    assert waiter.returncode == 0, said
    assert 'completed' in out


def test_unknown_names_are_reported(site: Site, edge: str, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(1024))

    for arguments, name in (
        (('create', '--aggregate', 'nowhere', image_id), 'nowhere'),
        (('create', '--aggregate', edge, 'no-such-image'), 'no-such-image'),
        (('show', 'b1f1c0de-0000-4000-8000-000000000000'), 'b1f1c0de'),
        (('image', 'list', '--host', 'nobody'), 'nobody'),
    ):
        said = site.run('precache', *arguments)
        assert (said.status, said.out) == (1, '')
        assert name in said.err
        assert said.err.count('\n') == 1


def _wait_for_inventory(site: Site, image_id: str, hosts: list[str]) -> None:
    """Wait until hosts have reported that they have an image."""

    def reported() -> bool:
        having = site('precache', 'image', 'host', 'list', image_id)
        return sorted(row['Host'] for row in having) == sorted(hosts)

    wait_until(reported, f'{hosts} reported {image_id}')
