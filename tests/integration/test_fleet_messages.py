# SPDX-License-Identifier: Apache-2.0
"""A small fleet can be measured over a real broker, with the protocol as it is."""

import pathlib
import warnings

import pytest

with warnings.catch_warnings():
    # Those of the openstack client's modules as they are imported.
    warnings.simplefilter('ignore')
    from benchmarks import observed
    from benchmarks.fleet import calls, conductor, messages
from benchmarks.fleet.cases import BROKER
from tools.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.slow
SOON = conductor.Intervals(report_seconds=0.5, down_seconds=3, write_seconds=0.5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, 'IDLE_SECONDS', 0.5)
    monkeypatch.setattr(messages, 'FIRST_SECONDS', 0.5)
    monkeypatch.setattr(calls, 'IDLE_SECONDS', 0.5)
    monkeypatch.setattr(calls, 'SETTLE_SECONDS', 0.5)


def test_small_fleet_reports_over_broker(rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    found = messages.measure(
        'sqlite',
        hosts=4,
        transfers=[2, 4],
        seconds=1.0,
        silence_seconds=2.0,
        database_url=f'sqlite:///{tmp_path}/fleet.sqlite',
        broker_url=rabbitmq.make_vhost(),
        servers={BROKER: observed.pid_of_child('beam.smp')},
        processes=2,
        intervals=SOON,
    )

    assert found.heartbeats.messages >= 4
    assert found.registrations.cpu.conductor > 0
    assert [each.transfers for each in found.progress] == [2, 4]
    assert all(each.flow.messages > 0 < each.written_ms for each in found.progress)
    assert found.backlog.messages > 0
    assert found.backlog.lost_hosts == 2
    assert 0 < found.backlog.lost_up_seconds < messages.WATCHED_SECONDS
    assert found.backlog.questions > 0


def test_small_fleet_is_called_over_broker(rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    found = calls.measure(
        'sqlite',
        hosts=4,
        images=[1, 2],
        parallel=2,
        database_url=f'sqlite:///{tmp_path}/fleet.sqlite',
        broker_url=rabbitmq.make_vhost(),
        servers={BROKER: observed.pid_of_child('beam.smp')},
        processes=1,
    )

    assert [each.images for each in found.ours] == [1, 2]
    assert all(each.wall_seconds > 0 for each in found.ours)
    assert found.waiting_bytes > 0
