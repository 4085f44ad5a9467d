# SPDX-License-Identifier: Apache-2.0
"""Each thread logs under the ids of what it works for, and under none in between."""

import pytest
from oslo_context import context as oslo_context

from nova_precache import context


@pytest.fixture(autouse=True)
def _nothing_before() -> None:
    oslo_context._request_store.context = None


def _current() -> str | None:
    current = oslo_context.get_current()
    return None if current is None else current.request_id


def test_sending_for_request_restores_thread_context() -> None:
    context.RequestContext(request_id='req-1', overwrite=False)
    context.RequestContext.from_wire({'request_id': 'req-2'})
    context.admin_context()

    assert _current() is None


def test_request_work_logs_its_ids() -> None:
    with context.bind_request_id('req-1', 'req-g'):
        assert (_current(), context.admin_context().global_request_id) == ('req-1', 'req-g')
        with context.bind_request_id('req-2'):
            assert _current() == 'req-2'
            assert context.admin_context().request_id == 'req-2'
        assert _current() == 'req-1'
    assert _current() is None


def test_failed_work_leaves_no_ids() -> None:
    with pytest.raises(ValueError, match='a fault'), context.bind_request_id('req-1'):
        raise ValueError('a fault')

    assert _current() is None


def test_work_without_request_has_own_ids() -> None:
    with context.bind_request_id(None):
        first = _current()
        assert first is not None
        assert context.admin_context().request_id == first
    with context.bind_request_id(None):
        assert _current() not in (None, first)
