# SPDX-License-Identifier: Apache-2.0
"""Values from other processes are read by type, range and length; a refusal is named once."""

import datetime
import logging
import math
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st

from nova_precache import context, exception, model, wire
from nova_precache.cells import models as cell_models
from nova_precache.db import caches
from nova_precache.db.engine import models
from tests.unit import odd

STATE: model.Json = {
    'host': 'h1',
    'agent_id': 'agent-1',
    'boot_id': 'boot-1',
    'version': '1.2',
    'driver': 'libvirt.LibvirtDriver',
    'store_id': 'store-1',
    'cache_bytes': 0,
    'free_bytes': 2**63 - 1,
    'capabilities': {
        'supports_cache_image': True,
        'reserved_disk_bytes': 5,
        'formats': ['raw', 1, None, 0.5, {'a': 'ä'}],
    },
}
PROGRESS: model.Json = {'status': 'converting', 'bytes_done': 1, 'bytes_total': 2, 'rate_bytes': 3}
IMAGE: model.Json = {
    'name': 'a',
    'size_bytes': 1,
    'disk_bytes': 2**63 - 1,
    'touched_at': '2026-01-02T03:04:05.678901Z',
    'used_by': 2**31 - 1,
}
OUTCOME = model.ImageOutcome('error', 'cut\n\ud800', model.Retry.BACKOFF, 5, 9, at_once=True)
REMOVAL = model.ImageRemoval('used', 'cut\n\ud800', 5, ('name',))
ODD_FIELDS = [
    *odd.fields(wire.agent, STATE, odd.STATE, 'cell-1'),
    *odd.fields(wire.progress, PROGRESS, odd.PROGRESS),
    *odd.fields(lambda value: wire.cached_image('h1', value), IMAGE, odd.IMAGE),
    *odd.fields(wire.image_outcome, OUTCOME.to_wire(), odd.OUTCOME),
    *odd.fields(wire.image_removal, REMOVAL.to_wire(), odd.REMOVAL),
    *odd.fields(wire.transfer_options, {}, odd.OPTIONS),
]


@pytest.mark.parametrize(
    ('read', 'message', 'field'),
    ODD_FIELDS,
    ids=[f'{n}-{field}' for n, (_, _, field) in enumerate(ODD_FIELDS)],
)
def test_invalid_field_refused_by_name(
    read: Callable[[Any], object], message: Any, field: str
) -> None:
    with pytest.raises(exception.InvalidInput) as refused:
        read(message)

    assert field in str(refused.value)
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


def test_valid_message_read_completely() -> None:
    assert wire.agent({**STATE, 'mood': 'fine'}, 'cell-1') == model.Agent(
        **STATE, cell_uuid='cell-1'
    )
    assert wire.progress({**PROGRESS, 'mood': 'fine'}) == model.Progress('converting', 1, 2, 3)
    assert wire.cached_image('h1', {**IMAGE, 'mood': 'fine'}) == model.CachedImage(
        'h1',
        'a',
        None,
        1,
        2**63 - 1,
        datetime.datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001
        2**31 - 1,
    )
    assert wire.image_outcome({**OUTCOME.to_wire(), 'mood': 'fine'}) == OUTCOME
    assert wire.image_removal({**REMOVAL.to_wire(), 'mood': 'fine'}) == REMOVAL


def test_optional_field_has_default() -> None:
    bare = {'host': 'h1', 'agent_id': 'agent-1'}
    assert wire.agent(bare, 'cell-1') == model.Agent('h1', 'agent-1', 'cell-1')
    assert wire.progress({'status': 'downloading', 'bytes_done': 0}).bytes_total is None
    assert wire.image_outcome({'status': 'cached'}) == model.ImageOutcome('cached')
    assert wire.transfer_options(None) == wire.transfer_options({}) == model.TransferOptions()


@pytest.mark.parametrize('word', ['slow', 'x' * 32])
def test_newer_retry_is_ordinary_one(word: str) -> None:
    read = wire.image_outcome({**OUTCOME.to_wire(), 'retry': word})
    assert read == OUTCOME
    assert (read.retry, read.is_attempt) == (model.Retry.BACKOFF, True)


def test_slow_outcome_ordinary_to_older_release() -> None:
    """An older conductor ignores the unknown field, and a newer one misses it in older outcomes."""
    slow = model.ImageOutcome('error', 'slower', model.Retry.BACKOFF, gained_bytes=5)
    sent = slow.to_wire()
    assert sent['retry'] in ('never', 'once', 'backoff', 'later')
    assert wire.image_outcome(sent) == slow
    older = {name: value for name, value in sent.items() if name != 'gained_bytes'}
    read = wire.image_outcome(older)
    assert (read.is_slow, read.is_attempt, read.reason) == (False, True, 'slower')


@pytest.mark.parametrize('word', ['polishing', 'queued', 'x' * 32])
def test_newer_step_and_outcome_accepted(word: str) -> None:
    assert wire.progress({**PROGRESS, 'status': word}).status == word
    if word not in model.TASK_IN_FLIGHT:
        assert wire.image_outcome({'status': word}).status == word


@pytest.mark.parametrize('name', ['h', 'H-1.example_2', '-', '..', 'h' * 255])
def test_host_name_characters_match_nova(name: str) -> None:
    assert wire.host(name) == name


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62)
    | st.floats()
    | st.text(st.characters(categories=['L', 'N', 'C', 'Z', 'S', 'P']))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@hypothesis.given(
    st.dictionaries(
        st.sampled_from([*STATE, *PROGRESS, *IMAGE, *OUTCOME.to_wire(), 'max_rate_bytes']), ANYTHING
    )
    | ANYTHING
)
def test_messages_refused_or_fit_columns(message: Any) -> None:
    complete = {**STATE, **message} if isinstance(message, dict) else message
    for read, value in (
        (lambda sent: wire.agent(sent, 'cell-1'), complete),
        (wire.progress, message),
        (lambda sent: wire.cached_image('h1', sent), message),
        (wire.image_outcome, message),
        (wire.transfer_options, message),
        (context.RequestContext.from_wire, message if isinstance(message, dict) else {}),
    ):
        try:
            got = read(value)
        except exception.InvalidInput:
            continue
        if isinstance(got, model.Agent):
            assert _fits(got.host, 255)
            assert got.free_bytes is None or 0 <= got.free_bytes < 2**63


def _fits(value: str, most: int) -> bool:
    return len(value) <= most and value.isprintable() and bool(value.encode())


def test_limits_match_columns() -> None:
    agent, job, image = models.Agent, models.Job, models.CachedImage
    for limit, columns in {
        wire.HOST_MAX: (agent.host, job.host, image.host, cell_models.HostMapping.host),
        wire.ID_MAX: (agent.agent_id, job.uuid, job.image_id),
        wire.STATUS_MAX: (job.status, models.Task.status),
        wire.BOOT_ID_MAX: (agent.boot_id, agent.version, agent.store_id),
        wire.DRIVER_MAX: (agent.driver,),
        caches.NAME_MAX: (image.name,),
        wire.REQUEST_ID_MAX: (models.CacheRequest.request_id, models.CacheRequest.user_id),
    }.items():
        assert {column.type.length for column in columns} == {limit}  # type: ignore[attr-defined]
    big = (agent.cache_bytes, agent.free_bytes, job.bytes_done, image.size_bytes, job.epoch)
    assert all(isinstance(column.type, sa.BigInteger) for column in big)
    assert wire.NUMBER_MAX == wire.BYTES_MAX == 2**63 - 1
    assert isinstance(image.used_by.type, sa.Integer)
    assert wire.COUNT_MAX == 2**31 - 1
    assert wire.VERSION_MAX == wire.STORE_ID_MAX == wire.BOOT_ID_MAX
    # The sum over the most tasks of a request fits, too.
    assert wire.IMAGE_BYTES_MAX * 200_000 < 2**63


@pytest.mark.parametrize(
    'value', ['Bearer\nX: y', 'x' * 65_537, 'tökén', 5, {'a': 'secret-token'}, ['secret-token']]
)
def test_invalid_token_is_in_no_error(value: object) -> None:
    with pytest.raises(exception.InvalidInput) as refused:
        wire.secret(value, 'token')
    assert str(refused.value) == 'token: not a token'


def test_context_keeps_valid_fields() -> None:
    odd_context: model.Json = {
        'request_id': 'req-1\nroot: logged in',
        'global_request_id': ['req-2'],
        'user_id': 'u' * 256,
        'project_id': 'p1',
        'roles': ['reader', 5, '\ud800', *['x'] * 1000],
        'is_admin': 'false',
        'mood': 'fine',
    }

    read = context.RequestContext.from_wire(odd_context)

    assert (read.user_id, read.project_id, read.is_admin) == (None, 'p1', False)
    assert read.roles[0] == 'reader'
    assert set(read.roles) == {'reader', 'x'}
    assert len(read.roles) < 1000
    assert 'root' not in read.request_id  # one of its own, as if there was none
    assert read.global_request_id is None


def test_sender_named_once_per_kind(caplog: pytest.LogCaptureFixture) -> None:
    senders = wire.Senders(logging.getLogger('nova_precache.test'))

    for _ in range(3):
        senders.refused('a report', "host 'h1'", 'it is odd')
        senders.refused('an inventory', "host 'h1'", 'it is odd')

    assert caplog.messages == [
        "Refused a report from host 'h1': it is odd",
        "Refused an inventory from host 'h1': it is odd",
    ]


def test_remembered_senders_are_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    senders = wire.Senders(logging.getLogger('nova_precache.test'), most=3)

    for number in range(100):
        senders.refused('a report', f'host {number}', 'it is odd')

    assert len(caplog.messages) == 4
    assert caplog.messages[-2:].count('Further senders of refused messages are not logged') == 1


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        ('../../evil\n\x1b[31m', "'../../evil\\n\\x1b[31m'"),
        ('x' * 4000, f"'{'x' * 60}'..."),
        ('\ud800', "'\\ud800'"),
        (2**70, 'a number of 71 bits'),
        (10**5000, 'a number of 16610 bits'),
        (math.nan, 'nan'),
        (True, 'True'),
        (None, 'None'),
        ({'token': 'secret'}, '<dict>'),
    ],
    ids=range(9),
)
def test_received_text_shown_short_and_printable(value: object, shown: str) -> None:
    assert wire.shown(value) == shown


def test_multiline_text_becomes_one_line() -> None:
    assert wire.line('first \x1b[31m\nsecond') == 'first \\x1b[31m'
    assert wire.line('x' * 5000) == 'x' * 1000
    assert wire.line(['x']) == '<list>'
    assert wire.printable('a\nb') == 'a\\nb'
