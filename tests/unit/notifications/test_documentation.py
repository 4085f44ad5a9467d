# SPDX-License-Identifier: Apache-2.0
"""Each notification is documented, with a sample that is what is sent."""

import json
import pathlib
from typing import Any

import pytest

from nova_precache import context, model
from nova_precache.conf import notifications as options
from nova_precache.notifications import emitter, payloads
from tests.unit.notifications.conftest import Configure, Listener

ROOT = pathlib.Path(__file__).resolve().parents[3]
SAMPLES = ROOT / 'doc' / 'notification_samples'
GUIDE = (ROOT / 'doc' / 'source' / 'notifications.rst').read_text()
AGGREGATE = model.Aggregate(
    4,
    '788608ec-ebdc-45c5-bc7f-e5f24ab92c80',
    'edge',
    ('compute-1', 'compute-2'),
    {'availability_zone': 'nova'},
)
CACHED, FAILED = '155d900f-4e14-4e4c-a73d-069cbf4541e6', '2fbbd7f0-1a3c-4d1e-9d0f-4c9c3b7d2e55'
REQUEST = model.CacheRequest(
    id='r1',
    status='running',
    aggregate_id=AGGREGATE.id,
    aggregate_uuid=AGGREGATE.uuid,
    aggregate_name=AGGREGATE.name,
    images=(CACHED, FAILED),
    project_id=None,
    user_id=None,
    request_id=None,
    hosts_total=2,
)


def _notification(phase: model.Phase) -> payloads.Notification:
    asker = context.RequestContext(overwrite=False)
    if phase == model.Phase.PROGRESS:
        outcomes = {CACHED: 'cached', FAILED: 'error'}
        return payloads.host_progress(REQUEST, 'compute-1', 1, outcomes, asker)
    return payloads.whole_request(phase, AGGREGATE, asker)


@pytest.mark.parametrize('phase', list(model.Phase))
def test_a_notification_is_what_its_sample_shows(phase: model.Phase, configure: Configure) -> None:
    conf = configure()
    emitter.MessagingEmitter(conf).emit(_notification(phase))
    with Listener(conf, 'versioned_notifications') as listener:
        heard = listener.next()

    sample: dict[str, Any] = json.loads(
        (SAMPLES / f'aggregate-cache_images-{phase}.json').read_text()
    )
    assert sample == {
        'event_type': heard.event_type,
        'payload': heard.payload,
        'priority': heard.priority,
        'publisher_id': heard.publisher_id,
    }


@pytest.mark.parametrize('phase', list(model.Phase))
def test_the_guide_explains_a_notification_and_shows_its_sample(phase: model.Phase) -> None:
    assert f'\n``aggregate.cache_images.{phase}``\n' in GUIDE
    assert f'/notification_samples/aggregate-cache_images-{phase}.json' in GUIDE


def test_there_is_no_sample_of_what_is_not_sent() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == {
        f'aggregate-cache_images-{phase}.json' for phase in model.Phase
    }


@pytest.mark.parametrize('option', [each.name for each in options.OPTIONS])
def test_the_guide_names_every_option(option: str) -> None:
    assert f'``[notifications] {option}``' in GUIDE
