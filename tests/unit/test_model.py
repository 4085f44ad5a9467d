# SPDX-License-Identifier: Apache-2.0
"""The nouns: what is final, what crosses the wire, and what no log shows."""

import dataclasses

import pytest

from nova_precache import model

OUTCOME = model.ImageOutcome('error', 'cut', model.Retry.BACKOFF, bytes_done=5, bytes_total=9)


def test_outcome_survives_the_wire() -> None:
    assert model.ImageOutcome.from_wire(OUTCOME.to_wire()) == OUTCOME


def test_unknown_outcome_fields_ignored() -> None:
    assert model.ImageOutcome.from_wire({**OUTCOME.to_wire(), 'seconds': 3}) == OUTCOME


def test_missing_outcome_fields_have_defaults() -> None:
    assert model.ImageOutcome.from_wire({'status': 'cached'}) == model.ImageOutcome('cached')


def test_task_statuses_are_classified() -> None:
    final = {'cached', 'existing', 'unsupported', 'error', 'skipped', 'cancelled', 'expired'}

    assert set(model.TaskStatus) - model.TASK_IN_FLIGHT == final
    assert not model.TASK_WAITING & model.TASK_WORKING
    assert model.TASK_WAITING | model.TASK_WORKING == model.TASK_IN_FLIGHT
    assert model.TASK_SUCCEEDED.issubset(final)


def test_request_statuses_are_active_or_final() -> None:
    final = {'completed', 'partial', 'failed', 'cancelled', 'expired'}

    assert set(model.RequestStatus) - model.REQUEST_ACTIVE == final


def test_cell_shows_no_passwords() -> None:
    cell = model.Cell('uuid-1', 'cell1', 'rabbit://u:secret@h/', 'mysql://u:secret@h/')

    assert 'secret' not in repr(cell)


def test_aggregate_zone_is_in_its_metadata() -> None:
    aggregate = model.Aggregate(1, 'uuid-1', 'edge')
    in_zone = dataclasses.replace(aggregate, metadata={'availability_zone': 'az1'})

    assert (aggregate.availability_zone, in_zone.availability_zone) == (None, 'az1')


def test_boundary_data_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OUTCOME.status = 'cached'  # type: ignore[misc]
