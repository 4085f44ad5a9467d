# SPDX-License-Identifier: Apache-2.0
"""The request ids of a conductor's work: those of the call that first asked for a job."""

from oslo_context import context as oslo_context

from nova_precache import context, model
from nova_precache.compute import rpcapi
from nova_precache.db import requests
from nova_precache.db.engine import models
from tests.unit.conductor.conftest import Lines, Parts
from tests.unit.conftest import BROKEN

Ids = tuple[str | None, str | None]


class Compute:
    """Records the request ids of its calls, and passes them to the scripted compute."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.ids: list[Ids] = []

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        self.ids.append((ctxt.request_id, ctxt.global_request_id))
        assert _of_thread() == self.ids[-1], 'its log goes on under others'
        return self._parts.compute.cache_image(ctxt, host, call)


def _of_thread() -> Ids:
    current = oslo_context.get_current()
    assert current is not None
    return current.request_id, current.global_request_id


def test_call_carries_ids_of_first_requester(parts: Parts) -> None:
    parts.world.living('h1')
    compute = Compute(parts)
    parts.compute_of = lambda cell_uuid: compute
    for ids in (('req-1', 'req-global-1'), ('req-2', None)):
        parts.world.planned(['h1'], ['i1'], request_id=ids[0], global_request_id=ids[1])
    parts.world.planned(['h1'], ['i2'], request_id='req-3')

    parts.serve()

    assert compute.ids == [('req-1', 'req-global-1'), ('req-3', None)]
    assert oslo_context.get_current() is None, 'the thread goes on under the last ones'


def test_call_names_first_requests(parts: Parts) -> None:
    parts.world.living('h1')
    ids = [parts.world.planned(['h1'], ['i1']).id for _ in range(5)]
    alone = parts.world.planned(['h1'], ['i2']).id

    parts.serve()

    shared = f'{", ".join(ids[:3])} and 2 more'
    assert [call.asked_by for _, call in parts.compute.calls] == [shared, alone]


def test_withdrawn_first_requester_not_named(parts: Parts) -> None:
    image = parts.images.add(b'data')
    parts.world.living('h1')
    compute = Compute(parts)
    parts.compute_of = lambda cell_uuid: compute
    first = parts.world.planned(['h1'], [image.id], request_id='req-1')
    parts.world.planned(['h1'], [image.id], request_id='req-2')
    parts.compute.script('h1', image.id, parts.compute.answers(BROKEN))
    parts.serve()

    parts.steering.cancel(first.id)
    parts.world.make_due()
    parts.serve()

    assert compute.ids == [('req-1', None), ('req-2', None)]


def test_plan_logged_under_its_request_ids(parts: Parts) -> None:
    image = parts.images.add(b'data')
    parts.world.living('h1')
    asked: list[Ids] = []
    show = parts.images.show

    def note(image_id: str) -> model.Image:
        asked.append(_of_thread())
        return show(image_id)

    parts.images.show = note  # type: ignore[method-assign]
    ids = {'request_id': 'req-1', 'global_request_id': 'req-g'}
    new = requests.NewRequest(images=(image.id,), hosts=('h1',), is_admin=True, **ids)
    parts.world.requests.accept(new)

    assert parts.planning().plan_next()

    assert asked == [('req-1', 'req-g')]
    assert oslo_context.get_current() is None


def test_announcement_logged_under_its_request_ids(parts: Parts, lines: Lines) -> None:
    requests_of = {
        parts.world.planned([host], ['i1'], request_id=f'req-{host}').id: f'req-{host}'
        for host in ('h1', 'h2', 'h3')
    }
    *_, stuck = requests_of
    is_stuck = models.Announcement.request_id == stuck
    parts.world.change(models.Announcement, is_stuck, phase='new word')

    parts.announcer.announce()

    told = lines.about(requests_of)
    assert {(requests_of[request], current) for request, current, _ in told} == {
        (own, own) for own in requests_of.values()
    }
    assert any(' is not sent yet' in message for _, _, message in told)
    assert oslo_context.get_current() is None


def test_requests_ending_together_log_own_ids(parts: Parts, lines: Lines) -> None:
    parts.world.living('h1')
    requests_of = {
        parts.world.planned(['h1'], ['i1'], request_id=own).id: own for own in ('req-1', 'req-2')
    }

    parts.serve()

    ended = [each for each in lines.about(requests_of) if 'completed' in each[2]]
    assert sorted((requests_of[request], current) for request, current, _ in ended) == [
        ('req-1', 'req-1'),
        ('req-2', 'req-2'),
    ]
