# SPDX-License-Identifier: Apache-2.0
"""Idle processes are compared with targets, and fleets of agents are in proportion."""

from benchmarks import idle

MIB = 1024**2


def test_fleets_are_in_proportion() -> None:
    before = idle.Broker(memory_bytes=100 * MIB, sockets=10, channels=10, queues=20)
    after = idle.Broker(memory_bytes=120 * MIB, sockets=210, channels=210, queues=220)

    table = idle.broker_of_fleets(before, after, agents=100)

    assert table.rows == (
        ('1', '0.20', '2', '2', '2'),
        ('100', '20.00', '200', '200', '200'),
        ('1,000', '200.00', '2,000', '2,000', '2,000'),
        ('10,000', '2000.00', '20,000', '20,000', '20,000'),
    )


def test_agent_above_target_is_missed() -> None:
    small = idle.Idle(60 * MIB, 40 * MIB, threads=9, connections=2)
    large = idle.Idle(61 * MIB, 40 * MIB, threads=9, connections=3)

    assert [each.is_met for each in idle.findings(small)] == [True, True]
    assert [each.is_met for each in idle.findings(large)] == [False, False]
