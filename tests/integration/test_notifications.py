# SPDX-License-Identifier: Apache-2.0
"""Notifications as a consumer takes them from RabbitMQ: ours, and stock Nova's."""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import kombu
import pytest
import requests

from tests import nova_cloud
from tests.conftest import UploadImage
from tests.integration.conftest import CONDUCTORS, Deployment
from tests.integration.link import Link
from tests.leaks import SECRETS
from tests.service import LATEST, TIMEOUT_SECONDS, Service
from tools.servers.rabbitmq import RabbitMQ

QUEUE = 'versioned_notifications.info'
# The caller of stock Nova, for noauth2.
ASKER = {
    **LATEST,
    'X-Auth-Token': f'{nova_cloud.CALLER["X-User-Id"]}:{nova_cloud.CALLER["X-Project-Id"]}:admin',
}
WHOLE = ['start', 'progress', 'progress', 'progress', 'progress', 'end']
KIB = 1024

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Heard:
    """A notification of image caching as received."""

    delivery: Json
    envelope: Json
    message: Json

    @property
    def phase(self) -> str:
        return str(self.message['event_type'].removeprefix('aggregate.cache_images.'))

    @property
    def data(self) -> Json:
        return dict(self.message['payload']['nova_object.data'])


class Consumer:
    """Consumes notifications as one consumes Nova's: from its exchange, by its topic."""

    def __init__(self, url: str) -> None:
        self._connection = kombu.Connection(url.replace('rabbit://', 'amqp://'))
        exchange = kombu.Exchange('nova', 'topic', durable=False)
        queue = kombu.Queue(QUEUE, exchange, routing_key=QUEUE, durable=False)
        self._consumer = self._connection.Consumer([queue], callbacks=[self._take])
        self._heard: list[Heard] = []

    def __enter__(self) -> Self:
        self._consumer.consume()
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def until_the_end(self, aggregate_id: int) -> list[Heard]:
        """Return the notifications of an aggregate's next request, up to its end."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while 'end' not in (each.phase for each in self._of(aggregate_id)):
            assert time.monotonic() < deadline, self._heard
            with contextlib.suppress(socket.timeout):
                self._connection.drain_events(timeout=1)
        heard = self._of(aggregate_id)
        self._heard = [each for each in self._heard if each not in heard]
        return heard

    def _of(self, aggregate_id: int) -> list[Heard]:
        return [each for each in self._heard if each.data['id'] == aggregate_id]

    def _take(self, body: Any, message: kombu.Message) -> None:
        envelope = body if isinstance(body, dict) else json.loads(body)
        heard = Heard(_delivery(message), envelope, json.loads(envelope['oslo.message']))
        SECRETS.look_into(envelope['oslo.message'], f'{heard.message["event_type"]} on the bus')
        if heard.message['event_type'].startswith('aggregate.cache_images.'):
            self._heard.append(heard)
        message.ack()


def _delivery(message: kombu.Message) -> Json:
    own = ('consumer_tag', 'delivery_tag')
    where = {name: value for name, value in message.delivery_info.items() if name not in own}
    return {**where, **message.properties, 'headers': message.headers}


@dataclasses.dataclass(frozen=True)
class Announcing:
    """A deployment that announces to a broker of its own, behind a link of its own."""

    deployment: Deployment
    link: Link
    consumer: Consumer

    @property
    def service(self) -> Service:
        return self.deployment.service


@pytest.fixture(scope='module')
def notified(
    whole_deployment: Deployment, rabbitmq: RabbitMQ, free_port: Callable[[], int]
) -> Iterator[Announcing]:
    """A consumer of the conductors' announcements, which are enabled meanwhile."""
    whole_deployment.mend()
    url = rabbitmq.make_vhost()
    port = rabbitmq.port
    with Link(free_port(), port) as link, Consumer(url) as consumer:
        options = {
            'driver': 'messagingv2',
            'transport_url': url.replace(f':{port}/', f':{link.port}/'),
        }
        with whole_deployment.configured(CONDUCTORS, {'oslo_messaging_notifications': options}):
            yield Announcing(whole_deployment, link, consumer)


@pytest.fixture
def announcing(notified: Announcing, deployment: Deployment) -> Iterator[Announcing]:
    notified.link.restore()
    yield notified
    notified.link.restore()


def _indices(heard: list[Heard]) -> list[tuple[int, int]]:
    return [(e.data['index'], e.data['total']) for e in heard if e.phase == 'progress']


def _once(heard: list[Heard]) -> list[Heard]:
    """Remove repeated notifications, which may occur after a conductor was killed."""
    pairs = zip([None, *heard], heard, strict=False)
    return [e for before, e in pairs if before is None or _tells(before) != _tells(e)]


def _tells(heard: Heard) -> tuple[str, Json]:
    return heard.phase, heard.data


def test_request_announced_from_start_to_end(
    announcing: Announcing, upload_image: UploadImage
) -> None:
    service = announcing.service
    image_id = upload_image(os.urandom(KIB))
    aggregate_id = service.aggregate('announced')

    service.wait(service.cache(aggregate_id, image_id))
    heard = announcing.consumer.until_the_end(aggregate_id)

    assert [each.phase for each in heard] == WHOLE
    assert _indices(heard) == [(index, 4) for index in (1, 2, 3, 4)]
    hosts = [host.name for host in service.hosts]
    progress = [each.data for each in heard if each.phase == 'progress']
    assert sorted(data['host'] for data in progress) == hosts
    assert {tuple(data['images_cached']) for data in progress} == {(image_id,)}
    assert {tuple(data['images_failed']) for data in progress} == {()}
    for whole in (heard[0], heard[-1]):
        assert (whole.data['name'], whole.data['hosts']) == ('announced', hosts)


def test_skipped_and_failed_hosts_announced(
    announcing: Announcing, upload_image: UploadImage
) -> None:
    service = announcing.service
    good, unsafe = upload_image(os.urandom(KIB)), upload_image(os.urandom(KIB), 'qcow2')
    aggregate_id = service.aggregate('failing', service.hosts[:1])
    announcing.deployment.query(
        'INSERT INTO aggregate_hosts (host, aggregate_id) VALUES (?, ?)', 'ghost', aggregate_id
    )

    request = service.wait(service.cache(aggregate_id, good, unsafe))
    heard = announcing.consumer.until_the_end(aggregate_id)

    assert request['status'] == 'partial'
    assert [each.phase for each in heard] == ['start', 'progress', 'progress', 'end']
    assert _indices(heard) == [(1, 2), (2, 2)]
    by_host = {each.data['host']: each.data for each in heard[1:-1]}
    real = by_host[service.hosts[0].name]
    assert (real['images_cached'], real['images_failed']) == ([good], [unsafe])
    ghost = by_host['ghost']
    assert (ghost['images_cached'], ghost['images_failed']) == ([], [good, unsafe])


def test_request_without_hosts_announced(announcing: Announcing, upload_image: UploadImage) -> None:
    service = announcing.service
    aggregate_id = service.aggregate('empty', ())

    service.cache(aggregate_id, upload_image(os.urandom(KIB)))

    heard = announcing.consumer.until_the_end(aggregate_id)
    assert [each.phase for each in heard] == ['start', 'end']


def test_notifications_of_dead_conductors_sent(
    announcing: Announcing, upload_image: UploadImage
) -> None:
    deployment, service = announcing.deployment, announcing.service
    image_id = upload_image(os.urandom(KIB))
    aggregate_id = service.aggregate('announced late')
    announcing.link.cut()
    request_id = service.cache(aggregate_id, image_id)
    service.wait(request_id)

    deployment.kill(CONDUCTORS[0])
    deployment.stop(CONDUCTORS[1])
    announcing.link.restore()
    owed = 'SELECT phase FROM announcements WHERE request_id = ? ORDER BY position'
    assert [phase for (phase,) in deployment.query(owed, request_id)] == WHOLE
    # A killed conductor keeps its announcements for a while.
    deployment.query('UPDATE announcements SET taken_until = NULL')
    deployment.start(CONDUCTORS[0])

    heard = announcing.consumer.until_the_end(aggregate_id)
    assert [each.phase for each in heard] == WHOLE
    assert _indices(heard) == [(index, 4) for index in (1, 2, 3, 4)]


@pytest.mark.parametrize('take_away', [Link.cut, Link.silence], ids=['refuses', 'is silent'])
def test_blocked_notification_broker_delays_no_work(
    announcing: Announcing, upload_image: UploadImage, take_away: Callable[[Link], None]
) -> None:
    service = announcing.service
    image_id = upload_image(os.urandom(KIB))
    aggregate_id = service.aggregate(f'away {image_id}')
    take_away(announcing.link)

    request = service.wait(service.cache(aggregate_id, image_id))
    announcing.link.restore()
    heard = announcing.consumer.until_the_end(aggregate_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert [each.phase for each in _once(heard)] == WHOLE
    assert _indices(_once(heard)) == [(index, 4) for index in (1, 2, 3, 4)]


# Beside stock Nova


def _announced_by_nova(stock: nova_cloud.NovaCloud, good: str, refused: str) -> list[Heard]:
    aggregate_id = stock.aggregate('compared')
    metadata = {'metadata': {'availability_zone': 'zone', 'ssd': 'true'}}
    stock.post(f'/os-aggregates/{aggregate_id}/action', {'set_metadata': metadata})
    with Consumer(stock.transport_url) as consumer:
        stock.cache(aggregate_id, good)
        consumer.until_the_end(aggregate_id)
        stock.cache(aggregate_id, good, refused)
        return consumer.until_the_end(aggregate_id)


def _announced_by_us(announcing: Announcing, good: str, refused: str) -> list[Heard]:
    service = announcing.service
    aggregate_id = service.aggregate('compared', service.hosts[:2])
    metadata = {'metadata': {'availability_zone': 'zone', 'ssd': 'true'}}
    service.post(f'/os-aggregates/{aggregate_id}/action', {'set_metadata': metadata})
    for image_ids in ([good], [good, refused]):
        body = {'cache': [{'id': image_id} for image_id in image_ids]}
        url = f'{service.compute_url}/os-aggregates/{aggregate_id}/images'
        answer = requests.post(url, json=body, headers=ASKER, timeout=TIMEOUT_SECONDS)
        assert answer.status_code == 202, answer.text
        heard = announcing.consumer.until_the_end(aggregate_id)
    asked = {each.message['_context_request_id'] for each in heard}
    assert asked == {answer.headers['X-OpenStack-Request-ID']}
    return heard


def _form(value: Any) -> Any:
    """Return what a consumer may rely on: the keys, and the types of the values."""
    if isinstance(value, dict):
        return {key: _form(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_form(each) for each in value]
    return type(value).__name__


def _comparable(heard: Heard) -> Json:
    """Return a notification without the parts that differ between any two."""
    host = heard.message['publisher_id'].partition(':')[2]
    assert host
    payload = heard.message['payload']
    own = {'payload', 'event_type', 'priority', 'publisher_id', '_context_roles'}
    return {
        'delivery': heard.delivery,
        'version': heard.envelope['oslo.version'],
        'envelope': set(heard.envelope),
        'event_type': heard.message['event_type'],
        'priority': heard.message['priority'],
        'publisher': heard.message['publisher_id'].removesuffix(f':{host}'),
        'object': {key: each for key, each in payload.items() if key != 'nova_object.data'},
        'data': _form(heard.data),
        'message': _form({key: v for key, v in heard.message.items() if key not in own}),
        'asker': [
            heard.message[f'_context_{key}'] for key in ('user_id', 'project_id', 'is_admin')
        ],
        'roles': type(heard.message['_context_roles']).__name__,
    }


def test_nova_consumer_sees_no_difference(
    announcing: Announcing, stock: nova_cloud.NovaCloud, upload_image: UploadImage
) -> None:
    good = upload_image(os.urandom(KIB))
    refused = upload_image(os.urandom(KIB), 'qcow2', name=nova_cloud.REFUSED)

    theirs = _announced_by_nova(stock, good, refused)
    ours = _announced_by_us(announcing, good, refused)

    assert [each.phase for each in theirs] == ['start', 'progress', 'progress', 'end']
    assert [_comparable(each) for each in ours] == [_comparable(each) for each in theirs]
    for heard in (theirs, ours):
        assert _indices(heard) == [(1, 2), (2, 2)]
        for each in heard[1:-1]:
            assert each.data['images_cached'] == [good]
            assert each.data['images_failed'] == [refused]
        for each in (heard[0], heard[-1]):
            assert each.data['name'] == 'compared'
            assert each.data['metadata'] == {'availability_zone': 'zone', 'ssd': 'true'}
            assert len(each.data['hosts']) == 2
        assert len({each.message['_context_request_id'] for each in heard}) == 1
        assert {each.message['_context_auth_token'] for each in heard} == {None}
