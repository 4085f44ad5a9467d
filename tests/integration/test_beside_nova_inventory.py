# SPDX-License-Identifier: Apache-2.0
"""The inventory of a real Nova, read as Nova reads it, and never written.

nova-manage made its database; API, conductor and agents are ours, in this process.
"""

import contextlib
import dataclasses
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from oslo_config import cfg

from nova_precache import conf as options, exception
from nova_precache.cells import models, novadb, templates
from nova_precache.db.engine import schema, session
from nova_precache.standalone import glance as glance_server
from nova_precache.wiring import (
    api as wiring_api,
    compute as wiring_compute,
    conductor as wiring_conductor,
)
from tests import service
from tests.conftest import UploadImage, require_environment, running_databases
from tools.servers import databases, nova
from tools.servers.nova import inventory as nova_inventory
from tools.waiting import TIMEOUT_SECONDS

GUIDE = pathlib.Path(__file__).parents[2] / 'doc' / 'source' / 'beside-nova.rst'
MARIADB_STATEMENTS = re.compile(
    r"^ +((?:CREATE USER|GRANT SELECT ON nova_api\.).* ?'precache_ro'@'%'.*);$", re.MULTILINE
)
CELL_DATABASE = 'mysql+pymysql://nova:cell-secret@controller:3306/nova_cell0?charset=utf8'
DATABASE_TEMPLATE = '{scheme}://{username}:{password}@{hostname}:{port}/nova_cell1?{query}'
AGGREGATES: Mapping[str, tuple[dict[str, str], list[str]]] = {
    'edge': ({'availability_zone': 'az1', 'ssd': 'true'}, ['here', 'unmapped', 'lost', 'off']),
    'empty': ({}, []),
}


@dataclasses.dataclass
class Site:
    """Our service on an inventory of Nova.

    :ivar connection: URL of Nova's API database, with all privileges
    :ivar reader: URL that our service is given
    """

    directory: pathlib.Path
    server: databases.Databases
    connection: str
    nova: nova_inventory.NovaInventory
    glance_url: str
    stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    reader: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.reader = self.connection

    def let_in(self) -> None:
        """On a database with users, create the guide's user with the guide's statements."""
        if not isinstance(self.server, databases.DatabaseServer):
            return
        for statement in MARIADB_STATEMENTS.findall(GUIDE.read_text()):
            self.server.execute(statement)
        url = sa.make_url(self.connection).set(username='precache_ro', password='password')
        self.reader = url.render_as_string(hide_password=False)

    @property
    def api_transport(self) -> str:
        return f'fake:///{self.directory.name}'

    def conf(self, **overrides: object) -> cfg.ConfigOpts:
        file = self.directory / 'nova-precache.conf'
        file.write_text(
            f"""\
[DEFAULT]
transport_url = {self.api_transport}
report_interval = 0.5
service_down_time = 10
state_path = {self.directory}/$host
instances_path = {self.directory}/$host/instances
[api]
auth_strategy = noauth2
bind_port = 0
[api_database]
connection = {self.reader}
template_database_connection = {CELL_DATABASE}
[conductor]
poll_interval_seconds = 0.2
heartbeat_write_interval_seconds = 2
[database]
connection = sqlite:///{self.directory}/precache.sqlite
[glance]
endpoint_override = {self.glance_url}
[image_cache]
reserved_disk_bytes = 0
"""
        )
        made = options.new(config_files=[str(file)])
        for name, value in overrides.items():
            made.set_override(name, value)
        return made

    def start(self) -> service.Service:
        """Start the API and a conductor."""
        conf = self.conf()
        database = session.connect(conf)
        self.stack.callback(database.dispose)
        schema.sync(database)
        conductor, api = (
            wiring_conductor.new_conductor(conf, database),
            wiring_api.new_server(conf, database),
        )
        for part in (conductor, api):
            part.start()
            self.stack.callback(part.stop)
        base = f'http://127.0.0.1:{api.port}'
        return service.Service(f'{base}/v2.1', f'{base}/v1', ())

    def start_agent(self, host: str, cell: str) -> service.Host:
        conf = self.conf(host=host, transport_url=f'fake:///{cell}-{self.directory.name}')
        agent = wiring_compute.new_agent(conf)
        agent.start()
        self.stack.callback(agent.stop)
        return service.Host(host, cell, conf.instances_path)

    def dump(self) -> Mapping[str, Any]:
        """Return all rows of Nova's database, and its table definitions."""
        engine = sa.create_engine(self.connection)
        with engine.connect() as connection:
            metadata = sa.MetaData()
            metadata.reflect(connection)
            dumped = {
                str(sa.schema.CreateTable(table).compile(engine)): [
                    tuple(row) for row in connection.execute(sa.select(table))
                ]
                for table in metadata.tables.values()
            }
        engine.dispose()
        return dumped


@pytest.fixture(scope='module', params=[databases.SQLITE, databases.MARIADB])
def novas(
    request: pytest.FixtureRequest,
    glance: glance_server.GlanceServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """A Nova that has cells with hosts: a normal one, one without a broker, one disabled."""
    require_environment(nova.ENVIRONMENT)
    directory = tmp_path_factory.mktemp(f'nova-{request.param}')
    with running_databases(request.param) as server, server.empty('nova_api') as url:
        theirs = directory / 'nova'
        theirs.mkdir()
        transport_url = f'fake:///{directory.name}'
        made = nova_inventory.NovaInventory(theirs, url, transport_url, CELL_DATABASE)
        yield Site(directory, server, url, made, glance.url)


def _cell(transport_url: str, *hosts: str, **fields: object) -> dict[str, object]:
    return {
        'transport_url': transport_url,
        'database_connection': 'mysql://u:literal-secret@there/nova',
        'hosts': hosts,
        'by_command': True,
        **fields,
    }


CELLS = {
    'cell1': _cell('{scheme}:///cell1-{path}', 'here', database_connection=DATABASE_TEMPLATE),
    'unfilled': _cell(
        '{scheme}://{username}:{password}@{hostname}/',
        'lost',
        by_command=False,
        uuid='11111111-2222-4333-8444-555555555555',
    ),
    'disabled': _cell('fake:///disabled', 'off', disabled=True, database_connection='mysql://x/'),
}
UNFILLED = (
    'cell unfilled cannot be reached: its transport_url is a template, and the URL that '
    'fills it in has no {hostname}, {password}, {username}; '
    'see [api_database] template_transport_url'
)
# Cell templates, and the URL that fills them in.
TEMPLATES = [
    (DATABASE_TEMPLATE, CELL_DATABASE),
    ('{scheme}:///{path}?{query}#{fragment}', 'sqlite:////var/lib/nova.sqlite'),
    ('{scheme}://{username}@[{hostname}]:{port}/cell1', 'rabbit://me:p%2Fw@[FE80::1]:5672/x'),
    (
        '{scheme}://{username1}:{password1}@{hostname1}:{port1},{hostname2}:{port2}/{path}',
        'rabbit://a:b@One:5671,c:d@[::1]:5672/',
    ),
    ('{username1}{hostname1}{hostname3}', 'rabbit://a:b@one,c:d@two,three:5672/'),
    ('{username}|{hostname}|{port}', 'rabbit://a:b@one:5671,c:d@two:5672/'),
]


def test_nova_inventory_is_only_read(
    novas: Site, upload_image: UploadImage, caplog: pytest.LogCaptureFixture
) -> None:
    shown, filled = novas.nova.ask(
        ('prepare', {'cells': CELLS, 'aggregates': AGGREGATES}),
        ('show', {}),
        ('fill', {'pairs': TEMPLATES}),
    )[1:]
    assert [templates.fill(*pair) for pair in TEMPLATES] == filled
    novas.let_in()
    before = novas.dump()
    with novas.stack:
        doors = novas.start()
        _see_the_same(novas, doors, shown)
        _change_nothing(novas, doors, shown)
        _cache(novas, doors, upload_image(b'some bytes' * 1000), caplog)
    assert novas.dump() == before


def _see_the_same(novas: Site, doors: service.Service, shown: dict[str, Any]) -> None:
    listed = requests.get(
        f'{doors.compute_url}/os-aggregates', headers=service.LATEST, timeout=TIMEOUT_SECONDS
    ).json()['aggregates']
    assert [(each['id'], each['uuid'], each['name']) for each in listed] == [
        (each['id'], each['uuid'], each['name']) for each in shown['aggregates']
    ]
    for ours, theirs in zip(listed, shown['aggregates'], strict=True):
        assert (ours['hosts'], ours['metadata']) == (theirs['hosts'], theirs['metadata'])
        assert ours['created_at'][:19] == theirs['created_at'][:19]
    stock = novadb.open_inventory(novas.conf(), session.connect(novas.conf()))
    assert {host: cell.uuid for host, cell in stock.list_host_mappings()} == shown['hosts']
    for cell, theirs in zip(stock.list_cells(), shown['cells'], strict=True):
        if cell.name != 'unfilled':
            del theirs['uuid']
            assert theirs == {name: getattr(cell, name) for name in theirs}
    unfilled = stock.get_cell('unfilled')
    assert (unfilled.transport_url, unfilled.disabled_reason) == ('', UNFILLED)


def _change_nothing(novas: Site, doors: service.Service, shown: dict[str, Any]) -> None:
    path = f'/os-aggregates/{shown["aggregates"][0]["id"]}'
    answers = [
        doors.post('/os-aggregates', {'aggregate': {'name': 'ours'}}),
        doors.post(f'{path}/action', {'remove_host': {'host': 'here'}}),
        doors.delete(path),
    ]
    assert [answer.status_code for answer in answers] == [403] * 3
    assert 'kept in the database of Nova' in answers[0].json()['forbidden']['message']
    _refused(novas.conf(), sa.delete(models.HostMapping), r'(?i)read.?only|denied')
    almighty = novas.conf()
    almighty.set_override('connection', novas.connection, 'api_database')
    _refused(almighty, sa.delete(models.HostMapping), r'(?i)read.?only')
    if novas.reader != novas.connection:
        _refused(novas.conf(), sa.text('SELECT * FROM request_specs'), 'denied')


def _refused(conf: cfg.ConfigOpts, statement: sa.Executable, why: str) -> None:
    database = novadb.connect(conf)
    with pytest.raises((sa.exc.DBAPIError, exception.DatabaseUnavailable)) as refused:
        database.write(lambda writer: writer.execute(statement))
    assert re.search(why, getattr(refused.value, 'reason', str(refused.value)))
    database.dispose()


def _cache(
    novas: Site, doors: service.Service, image_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cache an image on an aggregate of Nova: on the one host where that is possible."""
    with caplog.at_level(logging.WARNING):
        here = novas.start_agent('here', 'cell1')
        novas.start_agent('unmapped', 'cell1')
        service.wait_until(
            lambda: 'is not registered yet: Host unmapped is not mapped' in caplog.text,
            'one is told to wait',
        )
        service.wait_until(lambda: _up(doors) == ['here'], 'the other one is up')
        request_id = doors.cache(1, image_id)
        doors.wait(request_id)
    assert {task['host']: (task['status'], task['reason']) for task in doors.tasks(request_id)} == {
        'here': ('cached', None),
        'unmapped': ('skipped', 'host is not mapped to a cell'),
        'lost': ('skipped', UNFILLED),
        'off': ('skipped', 'cell disabled is disabled'),
    }
    assert here.base_path(image_id).read_bytes() == b'some bytes' * 1000
    warned = [each for each in caplog.records if 'is not mapped to cell cell1' in each.message]
    assert sorted(each.name for each in warned) == [
        'nova_precache.compute.agent',
        'nova_precache.conductor.manager',
    ]
    assert 'cell-secret' not in caplog.text


def _up(doors: service.Service) -> list[str]:
    return [host['host'] for host in doors.get('/hosts?status=up')['hosts']]
