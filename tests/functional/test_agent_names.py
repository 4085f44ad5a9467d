# SPDX-License-Identifier: Apache-2.0
"""Two machines share a host name; the database was unreachable, or an older one was restored."""

import contextlib
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nova_precache import conf as configuration, exception, model
from nova_precache.compute import agent, reporter as compute_reporter
from nova_precache.db import agents
from nova_precache.db.engine import session
from nova_precache.wiring import compute as wiring_compute
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started
from tests.gateway import Gateway
from tests.service import Host, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
# No host whose reports a busy machine delays for a moment must count as down.
DOWN_SECONDS = 8
TIMES = {'report_interval': 0.2, 'service_down_time': DOWN_SECONDS, 'rpc_response_timeout': 10}


@pytest.fixture
def started(start: Start) -> Started:
    return start(DEFAULT=TIMES)


@pytest.fixture
def known(started: Started) -> Iterator[agents.Agents]:
    """The agents in the database, as seen by a process with these options."""
    database = session.connect(configuration.new(config_files=[started.conf]))
    yield agents.Agents(database, DOWN_SECONDS)
    database.dispose()


Twin = Callable[[Host], agent.ComputeAgent]


@pytest.fixture
def twin(started: Started, tmp_path: pathlib.Path) -> Iterator[Twin]:
    """Return a function that starts another machine's agent under the name of a host."""
    made: list[agent.ComputeAgent] = []

    def begin(host: Host) -> agent.ComputeAgent:
        conf = configuration.new(config_files=[started.conf, str(tmp_path / 'options.conf')])
        conf.set_override('host', host.name)
        conf.set_override('transport_url', _transport_url(started, host.cell))
        conf.set_override('state_path', str(_twin_path(tmp_path, host) / 'state'))
        conf.set_override('instances_path', str(_twin_path(tmp_path, host)))
        made.append(wiring_compute.new_agent(conf))
        made[-1].start()
        return made[-1]

    yield begin
    for each in made:
        each.stop()


def _twin_path(directory: pathlib.Path, host: Host) -> pathlib.Path:
    return directory / 'twins' / host.name


def _transport_url(started: Started, cell: str) -> str:
    query = 'SELECT transport_url FROM cell_mappings WHERE name = ?'
    with contextlib.closing(_connect(started)) as database:
        [(url,)] = database.execute(query, [cell])
    return str(url)


def _connect(started: Started) -> sqlite3.Connection:
    conf = configuration.new(config_files=[started.conf])
    path = conf.database.connection.removeprefix('sqlite:///')
    return sqlite3.connect(path, isolation_level=None, timeout=TIMEOUT_SECONDS)


def _agents_ids(known: agents.Agents) -> dict[str, str]:
    return {each.host: each.agent_id for each in known.list()}


def _own(started: Started, host: Host) -> agent.ComputeAgent:
    [own] = [each for each in started.standalone.agents if each.host == host.name]
    return own


def _cache_on(started: Started, host: Host, image_id: str, name: str) -> model.Json:
    aggregate_id = started.service.aggregate(name, (host,))
    return started.service.wait(started.service.cache(aggregate_id, image_id))


def test_database_outage_costs_no_host_name(
    started: Started, known: agents.Agents, twin: Twin, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(1024))
    hosts = started.service.hosts
    before = _agents_ids(known)

    def have_been_silent() -> bool:
        [(count,)] = database.execute(
            "SELECT count(*) FROM agents WHERE seen_at < datetime('now', ?)",
            [f'-{DOWN_SECONDS + 1} seconds'],
        ).fetchall()
        return bool(count == len(hosts))

    with contextlib.closing(_connect(started)) as database:
        database.execute('BEGIN IMMEDIATE')
        wait_until(have_been_silent, 'no host could report for long')
        twins = [twin(host) for host in hosts]
        down = dict(known.down([host.name for host in hosts]))
        database.execute('ROLLBACK')
    request = started.service.wait(
        started.service.cache(started.service.aggregate('after'), image_id)
    )
    wait_until(lambda: not any(map(_is_silent, known.look(list(before)).values())), 'all report')

    assert down == {}
    assert _agents_ids(known) == before
    assert not any(each.wait_registered(0) for each in twins)
    assert request['counts'] == {'cached': len(hosts)}
    assert all(host.base_path(image_id).exists() for host in hosts)


def _is_silent(host: model.Host) -> bool:
    return host.status != model.HostStatus.UP


def test_superseded_agent_returns_without_restart(
    started: Started,
    known: agents.Agents,
    twin: Twin,
    upload_image: UploadImage,
    gateway: Gateway,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = (upload_image(os.urandom(4 * MIB)) for _ in range(3))
    host, *_ = started.service.hosts
    own = _own(started, host)
    own_id = _agents_ids(known)[host.name]
    gateway.hold(at_byte=MIB)
    aggregate_id = started.service.aggregate('first', (host,))
    request_id = started.service.cache(aggregate_id, first)
    gateway.wait_for(1)

    # Its reports are lost while its transfer runs.
    with monkeypatch.context() as cut:
        cut.setattr(type(own._conductor), 'report', _only_others(own))
        other = twin(host)
        assert other.wait_registered(TIMEOUT_SECONDS)
    wait_until(lambda: not own.wait_registered(0), 'it knows that it lost its name')
    gateway.release()
    taken_over = started.service.wait(request_id)
    on_other = _cache_on(started, host, second, 'second')

    assert _agents_ids(known)[host.name] != own_id
    [task] = started.service.tasks(request_id)
    assert (taken_over['counts'], task['attempts']) == ({'cached': 1}, 1)
    assert on_other['counts'] == {'cached': 1}
    theirs = Host(host.name, host.cell, str(_twin_path(tmp_path, host)))
    for image_id in (first, second):
        assert theirs.base_path(image_id).exists()
        assert not host.base_path(image_id).exists()

    other.stop()
    assert own.wait_registered(TIMEOUT_SECONDS)
    again = _cache_on(started, host, third, 'third')

    assert _agents_ids(known)[host.name] == own_id
    assert again['counts'] == {'cached': 1}
    assert host.base_path(third).exists()


def _only_others(own: agent.ComputeAgent) -> Callable[..., model.ReportAnswer]:
    """Wrap the call of a report so that it loses the reports of one agent."""
    reporter, send = own._conductor, type(own._conductor).report

    def report(self: Any, news: compute_reporter.HostReport) -> model.ReportAnswer:
        if self is reporter:
            raise exception.CellUnreachable('the link is cut')
        return send(self, news)

    return report


def test_cell_without_reporting_hosts_stays_heard(started: Started, known: agents.Agents) -> None:
    gone = [host for host in started.service.hosts if host.cell == 'cell1']
    for host in gone:
        _own(started, host).stop()

    down = wait_until(lambda: known.down([host.name for host in started.service.hosts]), 'one is')
    wait_until(lambda: len(known.down([host.name for host in gone])) == len(gone), 'all are down')

    assert down.keys() <= {host.name for host in gone}


def test_agents_unknown_to_restored_database_reregister(
    started: Started, known: agents.Agents, upload_image: UploadImage, gateway: Gateway
) -> None:
    image_id = upload_image(os.urandom(4 * MIB))
    before = _agents_ids(known)
    gateway.hold(at_byte=MIB)
    request_id = started.service.cache(started.service.aggregate('running'), image_id)
    gateway.wait_for(1)

    with contextlib.closing(_connect(started)) as database:
        database.execute('DELETE FROM agents')
    wait_until(lambda: _agents_ids(known) == before, 'all have registered again')
    gateway.release()
    request = started.service.wait(request_id)

    assert request['counts'] == {'cached': len(before)}
    assert {task['attempts'] for task in started.service.tasks(request_id)} == {1}
    assert len(gateway.served(image_id)) == len(before)
