# SPDX-License-Identifier: Apache-2.0
"""The interval of reports grows with the hosts and transfers that a conductor hears."""

import pytest

from nova_precache import model
from nova_precache.conductor import pace, rpcapi
from nova_precache.db import jobs


class Heard:
    """A pace on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pace = pace.Pace(lambda: self.now)

    def report(self, hosts: int, transfers: int = 1) -> None:
        self.pace.note({jobs.Sender('cell', f'h{number}'): transfers for number in range(hosts)})


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.mark.parametrize(
    ('hosts', 'transfers', 'seconds'),
    [
        (0, 0, 1),
        (10_000, 0, 1),  # idle hosts do not slow down the others
        (100, 10, 1),
        (2000, 1, 4.4),
        (1000, 10, 4),
        (1000, 50, 10),
        (10_000, 1, 10),
        (20_000, 30, 10),
    ],
)
def test_interval_grows_with_load(heard: Heard, hosts: int, transfers: int, seconds: float) -> None:
    heard.report(hosts, transfers)

    assert heard.pace.next_seconds() == pytest.approx(seconds)


def test_repeated_reports_count_once(heard: Heard) -> None:
    for _ in range(5):
        heard.report(2000)

    assert heard.pace.next_seconds() == pytest.approx(4.4)


def test_report_written_in_parts_counts_once(heard: Heard) -> None:
    heard.report(1000, 10)
    heard.report(1000, 3)

    assert heard.pace.next_seconds() == pytest.approx(4)


def test_hosts_of_two_cells_add_up(heard: Heard) -> None:
    heard.report(2000)
    heard.pace.note({jobs.Sender('other', f'h{number}'): 1 for number in range(2000)})

    assert heard.pace.next_seconds() == pytest.approx(8.8)


def test_interval_kept_between_windows(heard: Heard) -> None:
    heard.report(2000)
    heard.now = pace.WINDOW_SECONDS
    assert heard.pace.next_seconds() == pytest.approx(4.4), 'none has reported since'
    heard.report(1000)
    assert heard.pace.next_seconds() == pytest.approx(4.4)


def test_outage_of_database_keeps_interval(heard: Heard) -> None:
    heard.report(2000)

    heard.now = 10 * pace.WINDOW_SECONDS
    assert heard.pace.next_seconds() == pytest.approx(4.4), 'no report was written since'
    heard.report(100)

    assert heard.pace.next_seconds() == pytest.approx(4.4)


def test_ended_transfers_free_their_share(heard: Heard) -> None:
    heard.report(10_000)
    for heard.now in (pace.WINDOW_SECONDS, 2 * pace.WINDOW_SECONDS):
        heard.report(0)

    assert heard.pace.next_seconds() == pace.SHORTEST_SECONDS


@pytest.mark.parametrize(
    ('longest', 'hosts', 'seconds'),
    [(0.5, 1, 0.5), (20, 4000, 8.8), (20, 9000, 19.8), (20, 10_000, 20)],
)
def test_longest_interval_is_set(longest: float, hosts: int, seconds: float) -> None:
    made = pace.Pace(lambda: 0, longest)
    made.note({jobs.Sender('cell', f'h{number}'): 1 for number in range(hosts)})

    assert made.next_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize('write_seconds', [0.05, 1, 60])
def test_one_lost_report_keeps_transfer_moving(write_seconds: float) -> None:
    # The compute sends it again after two seconds.
    lost_and_next = model.LONGEST_REPORT_SECONDS + rpcapi.REPORT_SECONDS + 2

    assert lost_and_next + write_seconds < pace.moving_seconds(write_seconds)
