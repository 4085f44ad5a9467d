# SPDX-License-Identifier: Apache-2.0
"""Answers are kept for a second for clients that poll, and for those with the same rights."""

import itertools

import pytest
import webob

from nova_precache import exception
from nova_precache.api import recent
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def answers(clock: Clock) -> recent.RecentAnswers:
    return recent.RecentAnswers(clock)


class Handler:
    """Answers with the number of the call."""

    def __init__(self) -> None:
        self._calls = itertools.count(1)

    def __call__(self) -> webob.Response:
        return webob.Response(str(next(self._calls)))


def test_answer_kept_for_one_second(answers: recent.RecentAnswers, clock: Clock) -> None:
    handler = Handler()
    found = []
    for clock.now in (0, 0.5, 0.9, 1.1, 1.5, 2.2):
        found.append(answers.get('a', handler).text)

    assert found == ['1', '1', '1', '2', '2', '3']


def test_other_questions_not_shared(answers: recent.RecentAnswers) -> None:
    handler = Handler()

    assert [answers.get(each, handler).text for each in 'abab'] == ['1', '2', '1', '2']


def test_changed_copy_changes_no_other(answers: recent.RecentAnswers) -> None:
    handler = Handler()
    for _ in range(2):
        answers.get('a', handler).headers['x-openstack-request-id'] = 'req-1'

    assert 'x-openstack-request-id' not in answers.get('a', handler).headers


def test_write_forgets_all_answers(answers: recent.RecentAnswers) -> None:
    handler = Handler()
    answers.get('a', handler)
    answers.forget()

    assert answers.get('a', handler).text == '2'


def test_answer_beside_write_not_kept(answers: recent.RecentAnswers) -> None:
    handler = Handler()

    def beside_write() -> webob.Response:
        answers.forget()
        return handler()

    assert answers.get('a', beside_write).text == '1'
    assert answers.get('a', handler).text == '2'


def test_errors_and_large_answers_not_kept(answers: recent.RecentAnswers) -> None:
    def refuse() -> webob.Response:
        raise exception.RequestNotFound('1')

    for _ in range(2):
        with pytest.raises(exception.RequestNotFound):
            answers.get('a', refuse)
    large = webob.Response(b'x' * (recent.MOST_BYTES + 1))
    assert answers.get('a', lambda: large) is large
    assert answers.get('a', Handler()).text == '1'
