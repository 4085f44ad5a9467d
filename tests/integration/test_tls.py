# SPDX-License-Identifier: Apache-2.0
"""TLS to the database and to Keystone: as the guide describes, and with trusted servers only."""

import contextlib
import dataclasses
import pathlib
import re
import ssl
import uuid
from collections.abc import Callable, Iterator

import pytest
import requests
import trustme
from oslo_config import cfg

from nova_precache import conf as options, exception
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session
from nova_precache.standalone import glance as glance_server
from nova_precache.wiring import api as wiring_api
from tests import gateway as site_link
from tests.conftest import running_databases
from tests.leaks import SECRETS
from tests.service import LATEST
from tools.servers import databases, keystone as keystone_server
from tools.waiting import TIMEOUT_SECONDS

GUIDE = pathlib.Path(__file__).parents[2] / 'doc' / 'source' / 'security.rst'
REGION = 'over-tls'


@dataclasses.dataclass(frozen=True)
class Authorities:
    """Files of the CA that signed the certificate of 127.0.0.1 and of another CA."""

    good: str
    bad: str
    server: trustme.LeafCert

    def write(self, directory: pathlib.Path) -> tuple[str, str]:
        """Write the server's certificate and key, and return their paths."""
        self.server.private_key_pem.write_to_path(directory / 'key.pem')
        for each in self.server.cert_chain_pems:
            each.write_to_path(directory / 'cert.pem', append=True)
        return str(directory / 'cert.pem'), str(directory / 'key.pem')


@pytest.fixture(scope='module')
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    directory = tmp_path_factory.mktemp('authorities')
    good, bad = trustme.CA(), trustme.CA()
    for name, authority in (('good', good), ('bad', bad)):
        authority.cert_pem.write_to_path(directory / f'{name}.pem')
    server = good.issue_cert('127.0.0.1')
    return Authorities(str(directory / 'good.pem'), str(directory / 'bad.pem'), server)


# The database

USERS = {
    databases.MARIADB: (
        "CREATE USER precache@'%' IDENTIFIED BY '{password}'; GRANT ALL ON {name}.* TO precache@'%'"
    ),
    databases.POSTGRESQL: (
        "CREATE USER precache PASSWORD '{password}'; ALTER DATABASE {name} OWNER TO precache"
    ),
}
# Appended to a URL for a connection without TLS.
PLAIN = {databases.MARIADB: '?ssl_disabled=true', databases.POSTGRESQL: '?sslmode=disable'}
SCHEMES = {databases.MARIADB: 'mysql+pymysql', databases.POSTGRESQL: 'postgresql+psycopg'}


@pytest.mark.parametrize('kind', SCHEMES)
def test_tls_database_needs_valid_certificate(
    kind: str,
    authorities: Authorities,
    free_port: Callable[[], int],
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    password = SECRETS.make('password of a database')
    scheme = SCHEMES[kind]
    tls = databases.Tls(*authorities.write(tmp_path))
    with running_databases(kind, tls) as server, server.empty('precache') as _:
        for statement in USERS[kind].format(name='precache', password=password).split('; '):
            server.execute(statement)

        def connect(query: str, host: str = '127.0.0.1') -> session.Database:
            return _connect(f'{scheme}://precache:{password}@{host}:{server.port}/precache{query}')

        query = _documented(scheme)
        good, bad = (query.format(path) for path in (authorities.good, authorities.bad))
        opened = connect(good)
        schema.sync(opened)
        opened.dispose()
        refused = [(PLAIN[kind], '127.0.0.1'), (bad, '127.0.0.1'), (good, 'localhost')]
        told = [_refusal(lambda given=given: connect(*given)) for given in refused]
    assert [_certificate(each) for each in told] == [False, True, True], told
    assert not any(password in each for each in [*told, caplog.text])


def _documented(scheme: str) -> str:
    """Return the guide's addition to a URL, with a placeholder for the file."""
    word = {'mysql+pymysql': 'ssl_ca', 'postgresql+psycopg': 'sslrootcert'}[scheme]
    (query,) = re.findall(rf'``(\?[^`]*{word}=[^`]*)``', GUIDE.read_text())
    return str(query).replace('/etc/ssl/ca.pem', '{}')


def _connect(url: str) -> session.Database:
    conf = options.new(config_files=[])
    conf.set_override('connection', url, 'database')
    conf.set_override('max_retries', 0, 'database')
    return session.connect(conf)


def _refusal(connect: Callable[[], session.Database]) -> str:
    with pytest.raises(exception.ConfigError) as caught:
        connect()
    return str(caught.value)


def _certificate(told: str) -> bool:
    return 'certificate' in told


# Keystone


@pytest.fixture(scope='module')
def secured(
    keystone: keystone_server.KeystoneServer,
    glance: glance_server.GlanceServer,
    authorities: Authorities,
) -> Iterator[site_link.Gateway]:
    """Keystone over TLS, listed so in the catalog in a region of its own, which has a Glance."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authorities.server.configure_cert(tls)
    with site_link.Gateway(keystone.url.removesuffix('/v3'), tls) as front:
        keystone.add_region(REGION, identity=f'{front.url}/v3', image=glance.url)
        yield front


@pytest.mark.parametrize(
    ('middleware_trusts', 'glance_trusts', 'status', 'said'),
    [
        ('good', 'good', 400, 'could not be found'),
        ('bad', 'good', 503, 'The Keystone service is temporarily unavailable'),
        ('good', 'bad', 503, 'Keystone'),
    ],
)
def test_tls_keystone_needs_configured_authority(
    keystone: keystone_server.KeystoneServer,
    secured: site_link.Gateway,
    authorities: Authorities,
    tmp_path: pathlib.Path,
    middleware_trusts: str,
    glance_trusts: str,
    status: int,
    said: str,
) -> None:
    trusted = [getattr(authorities, each) for each in (middleware_trusts, glance_trusts)]
    conf = _configure(tmp_path, keystone, secured.url, *trusted)
    body = {'cache': [{'id': str(uuid.uuid4())}]}
    token = keystone.token(keystone.admin)
    with _api(conf) as url:
        answer = requests.post(
            url, json=body, headers={**LATEST, 'X-Auth-Token': token}, timeout=TIMEOUT_SECONDS
        )
    assert (answer.status_code, said in answer.text) == (status, True), answer.text


def _configure(
    directory: pathlib.Path,
    keystone: keystone_server.KeystoneServer,
    front: str,
    middleware_trusts: str,
    glance_trusts: str,
) -> cfg.ConfigOpts:
    """Configure our API to use Keystone over TLS only."""
    sections = (
        f'[DEFAULT]\ntransport_url = fake:///{directory.name}\n'
        '[api]\nbind_port = 0\n'
        f'[database]\nconnection = sqlite:///{directory}/precache.sqlite\n'
        f'{keystone.authtoken(keystone.admin)}cafile = {middleware_trusts}\n'
        'http_request_max_retries = 0\n'
        f'[glance]\n{keystone.credentials(keystone.admin)}cafile = {glance_trusts}\n'
    )
    plain = keystone.url.removesuffix('/v3')
    sections = sections.replace(plain, front).replace(keystone_server.REGION, REGION)
    file = directory / 'nova-precache.conf'
    file.write_text(sections)
    return options.new(config_files=[str(file)])


@contextlib.contextmanager
def _api(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Run our API, and return the URL of the images of an aggregate."""
    database = session.connect(conf)
    try:
        schema.sync(database)
        aggregate = inventory.Inventory(database).create_aggregate('edge')
        api = wiring_api.new_server(conf, database)
        api.start()
        try:
            yield f'http://127.0.0.1:{api.port}/v2.1/os-aggregates/{aggregate.id}/images'
        finally:
            api.stop()
    finally:
        database.dispose()
