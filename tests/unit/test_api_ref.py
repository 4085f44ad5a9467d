# SPDX-License-Identifier: Apache-2.0
"""The reference of the REST API: each operation is in it, and each sample equals the real answer.

Each answer is checked by its schema in ``api/described.py``. Samples are compared field by
field; ids and times, which differ each time, only by their form.
"""

import datetime
import hashlib
import json
import pathlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from oslo_utils import timeutils

from nova_precache import model
from nova_precache.db import caches, jobs, services as db_services
from nova_precache.db.engine import models
from nova_precache.image import fake
from tests.unit.api import conftest as api_parts
from tests.unit.conftest import CACHED, DOWN_SECONDS, World
from tools import api_reference

API_REF = pathlib.Path(__file__).resolve().parents[2] / 'doc' / 'api-ref'
SAMPLES = API_REF / 'samples'
PAGES = {path.name: path.read_text() for path in (API_REF / 'source').glob('*.rst')}

PROJECT = '5b6b7f9e3c5d4a1f8f0e2d4c6b8a9f01'
TOKEN = f'operator:{PROJECT}:admin'
IMAGE = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
BROKEN = model.ImageOutcome(model.TaskStatus.ERROR, 'the disk is full')

_FORMS = {
    'a UUID': re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'),
    'a request id': re.compile(r'req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'),
    'a time of /v1': re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z'),
    'a time of Nova': re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}'),
}
# Values that are the same each time, though they have such a form.
_FIXED = {IMAGE}


class Player:
    """Plays the samples against the API: sends requests, and compares answers."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.played: set[str] = set()

    def play(
        self,
        method: str,
        path: str,
        answer: str | None = None,
        *,
        asks: str | None = None,
        status: int = 200,
        token: str = TOKEN,
    ) -> Any:
        """Send the request sample ``asks``, and compare the answer with the sample ``answer``."""
        body = None if asks is None else self._sample(asks)
        response = self._api.call(method, path, body, token=token)
        assert response.status_int == status, response.text
        if answer is not None:
            assert _by_form(response.json) == _by_form(self._sample(answer))
        return response

    def _sample(self, name: str) -> Any:
        self.played.add(name)
        return json.loads((SAMPLES / f'{name}.json').read_text())


def _by_form(value: Any) -> Any:
    """Replace each id and time in a document by its form."""
    if isinstance(value, Mapping):
        return {key: _by_form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_form(item) for item in value]
    if not isinstance(value, str) or value in _FIXED:
        return value
    for form, pattern in _FORMS.items():
        if pattern.fullmatch(value):
            return form
    return _FORMS['a UUID'].sub('a UUID', value)


@pytest.fixture
def player(world: World, tmp_path: pathlib.Path) -> Player:
    images = fake.FakeImageService()
    images.add(b'data', id=IMAGE, size=734003200, virtual_size=2361393152, disk_format='qcow2')
    images_for: Callable[[Any], fake.FakeImageService] = lambda context: images  # noqa: E731
    conf = api_parts.make_conf(tmp_path / 'precache.sqlite')
    api = api_parts.make_api(conf, world.database, world.inventory, images_for=images_for)
    return Player(api)


def test_samples_match_service(
    player: Player, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _versions(player)
    _aggregates(player, world)
    one = _requests(player, world)
    _actions(player, world, one)
    _hosts(player, world, monkeypatch)
    _services(player, world)
    _estimate(player, world)
    _pins(player)
    assert player.played == {
        str(path.relative_to(SAMPLES).with_suffix('')) for path in SAMPLES.rglob('*.json')
    }


def _versions(player: Player) -> None:
    player.play('GET', '/', 'versions/list-response')
    player.play('GET', '/v3/servers', 'versions/choices-response', status=300)
    player.play('GET', '/v2.1/', 'versions/compute-response')
    player.play('GET', '/v1/', 'versions/precache-response')


def _aggregates(player: Player, world: World) -> None:
    for host in ('compute-1', 'compute-2'):
        world.living(host)
    path = '/v2.1/os-aggregates'
    player.play('POST', path, 'aggregates/create-response', asks='aggregates/create-request')
    one, action = f'{path}/1', f'{path}/1/action'
    player.play('POST', action, 'aggregates/add-host-response', asks='aggregates/add-host-request')
    player.play(
        'POST', action, 'aggregates/set-metadata-response', asks='aggregates/set-metadata-request'
    )
    player.play('GET', one, 'aggregates/show-response')
    player.play('GET', path, 'aggregates/list-response')
    player.play('GET', path, 'faults/forbidden-response', status=403, token=f'u:{PROJECT}:member')
    player.play('PUT', one, 'aggregates/update-response', asks='aggregates/update-request')
    player.play(
        'POST', action, 'aggregates/remove-host-response', asks='aggregates/remove-host-request'
    )


def _requests(player: Player, world: World) -> str:
    """Play a request with one host done and the other at work; return its path."""
    cached = player.play(
        'POST', '/v2.1/os-aggregates/1/images', asks='aggregates/cache-request', status=202
    )
    assert cached.body == b''
    taken = world.requests.next_to_plan('planner')
    assert taken is not None
    hosts = ('compute-1', 'compute-2')
    assert world.plan(taken.request, hosts)
    assert world.requests.mark_planned(taken.request.id, 'planner')
    done, going_on = world.begun(), world.begun('c2')
    world.jobs.finish(done.job_id, done.epoch, CACHED)
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 40, 100, rate_bytes=20)
    report = jobs.ProgressReport(going_on.job_id, going_on.epoch, 1, progress)
    assert world.jobs.record_progress([report]) == 1
    one = '/v1/' + cached.headers['Location'].partition('/v1/')[2]
    player.play('GET', '/v1/requests?limit=1', 'requests/list-response')
    player.play('GET', one, 'requests/show-response')
    player.play('GET', f'{one}/tasks?limit=1', 'requests/tasks-response')
    player.play('GET', '/v1/tasks?sort=id:asc&limit=1', 'requests/all-tasks-response')
    player.play('PATCH', one, 'requests/change-response', asks='requests/change-request')
    return one


def _actions(player: Player, world: World, partial: str) -> None:
    made = player.play(
        'POST',
        '/v1/requests',
        'requests/create-response',
        asks='requests/create-request',
        status=202,
    )
    action = f'/v1/requests/{made.json["request"]["id"]}/action'
    for name in ('pause', 'resume', 'cancel'):
        player.play(
            'POST',
            action,
            f'requests/{name}-response',
            asks=f'requests/{name}-request',
            status=202,
        )
    for job in world.all_jobs():
        if job.status in model.TASK_IN_FLIGHT:
            world.jobs.finish(job.uuid, job.epoch or 0, BROKEN)
    assert world.requests.complete(partial.rpartition('/')[2])
    player.play(
        'POST',
        f'{partial}/action',
        'requests/retry-response',
        asks='requests/retry-request',
        status=202,
    )


def _hosts(player: Player, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: model.Json = {'version': '1.0.0', 'driver': 'libvirt.LibvirtDriver'}
    world.agents.report(
        [
            model.Agent(
                host,
                f'agent-{host}',
                world.cell.uuid,
                store_id=str(uuid.uuid5(uuid.NAMESPACE_DNS, host)),
                cache_bytes=1073741824,
                free_bytes=98784247808,
                **told,
            )
            for host in ('compute-1', 'compute-2')
        ]
    )
    name = hashlib.sha1(IMAGE.encode()).hexdigest()  # noqa: S324
    touched_at = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database keeps it
    file = model.CachedImage('compute-1', name, None, 2361393152, 1073741824, touched_at, 3)
    caches.Caches(world.database).record([caches.Report('compute-1', [file], full=True)])
    later = touched_at + datetime.timedelta(hours=1)
    monkeypatch.setattr(timeutils, 'utcnow', lambda: later)
    player.play('GET', '/v1/hosts?limit=1', 'hosts/list-response')
    player.play('GET', '/v1/hosts/compute-1', 'hosts/show-response')
    player.play('GET', '/v1/hosts/compute-1/images', 'hosts/images-response')
    player.play('GET', f'/v1/images/{IMAGE}/hosts', 'hosts/of-image-response')
    player.play('DELETE', f'/v1/hosts/compute-1/images/{IMAGE}', 'hosts/remove-image-response')


def _services(player: Player, world: World) -> None:
    known = db_services.Services(world.database, DOWN_SECONDS, 10)
    for number, binary in enumerate((model.Binary.API, model.Binary.CONDUCTOR), start=1):
        ids = uuid.uuid5(uuid.NAMESPACE_DNS, binary)
        process = model.ServiceProcess(str(ids), binary, f'controller-{number}', '1.0.0')
        known.report(process, replaces=True)
    world.hears()
    player.play('GET', '/v1/services?limit=3', 'services/list-response')
    player.play('GET', '/v1/cells', 'services/cells-response')


def _estimate(player: Player, world: World) -> None:
    done = next(job for job in world.all_jobs() if job.status == model.TaskStatus.CACHED)
    assert done.finished_at is not None
    world.change(
        models.Job,
        models.Job.uuid == done.uuid,
        started_at=done.finished_at - datetime.timedelta(seconds=10),
        bytes_done=500_000_000,
    )
    player.play('POST', '/v1/estimate', 'estimate/create-response', asks='estimate/create-request')


def _pins(player: Player) -> None:
    made = player.play(
        'POST', '/v1/pins', 'pins/create-response', asks='pins/create-request', status=201
    )
    one = f'/v1/pins/{made.json["pin"]["id"]}'
    player.play('GET', one, 'pins/show-response')
    player.play('DELETE', one, status=204)
    player.play('GET', '/v1/pins', 'pins/list-response')


def test_differing_sample_is_detected() -> None:
    assert _by_form({'id': IMAGE, 'n': 1}) != _by_form({'id': IMAGE, 'n': 2})
    other = IMAGE.replace('7', '8')
    assert _by_form([other]) == _by_form([IMAGE.replace('7', '9')])
    assert _by_form(['2026-01-01T00:00:00.000000']) != _by_form(['2026-01-01T00:00:00.000000Z'])
    assert _by_form([f'http://x/{other}']) == ['http://x/a UUID']


# The directive of an operation or an action, with the samples that it shows.
_OPERATION = re.compile(
    r'^\.\. operation:: (\w+)(?: (\w+))?\n(?:   :sample: (\S+)\n)?', re.MULTILINE
)
DIRECTIVES = [found for page in PAGES.values() for found in _OPERATION.findall(page)]


def test_reference_has_exactly_every_route() -> None:
    served = [
        (place.operation.name, action)
        for place in api_reference.places().values()
        for action in place.operation.actions or ['']
    ]
    assert sorted((name, action) for name, action, _ in DIRECTIVES) == sorted(served)


def test_every_sample_is_shown() -> None:
    shown = {
        line for directive in DIRECTIVES for line in _render(*directive) if '/samples/' in line
    }
    shown.update(line for page in PAGES.values() for line in page.splitlines())
    for path in SAMPLES.rglob('*.json'):
        assert f'.. literalinclude:: ../samples/{path.relative_to(SAMPLES)}' in shown


@pytest.mark.parametrize('directive', DIRECTIVES, ids=lambda each: ' '.join(each[:2]).strip())
def test_every_response_field_explained(directive: tuple[str, str, str]) -> None:
    lines = _render(*directive)
    for half in ('request', 'response'):
        sample = SAMPLES / f'{directive[2]}-{half}.json'
        if directive[2] and sample.exists():
            fields = set(_fields(json.loads(sample.read_text())))
            assert fields <= set(re.findall(r'^   \* - ([\w-]+)', '\n'.join(lines), re.MULTILINE))


def _render(name: str, action: str, sample: str) -> Sequence[str]:
    return list(api_reference.section(name, action or None, sample or None, []))


def test_section_shows_limits_and_types() -> None:
    lines = '\n'.join(_render('createRequest', '', ''))
    priority = (
        '   * - priority (Optional)\n     - body\n     - integer or null\n     - Requests '
        'with a higher priority are served first; 0 by default. From -1000 to 1000.\n'
    )
    assert priority in lines
    assert '   * - 413 - Request Entity Too Large\n' in lines


def test_section_shows_one_action() -> None:
    lines = _render('actOnRequest', 'retry', '')
    assert lines[0] == 'Retry a request (retry)'
    assert '     - The request has not ended, or all of the tasks to retry succeeded.' in lines
    assert not any('keep_partial' in line for line in lines)


_FREE = {'counts', 'images_gone', 'media-types', 'metadata'}


def _fields(value: Any) -> Iterator[str]:
    """Return the names of fields, except those of free form and those inside links."""
    if isinstance(value, list):
        for item in value:
            yield from _fields(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            if not key.endswith('links') and key not in _FREE:
                yield from _fields(item)
