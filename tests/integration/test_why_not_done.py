# SPDX-License-Identifier: Apache-2.0
"""Whatever keeps a host from being done, its user is shown why, within seconds.

What is shown, by which command, and by when is the table in doc/source/troubleshooting.rst,
which these tests read.
"""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from tests import glance_policy
from tests.conftest import running
from tests.integration import link, small_site
from tests.integration.small_site import ACCOUNT, API, CONDUCTOR, Site, User
from tests.leaks import SECRETS
from tools.servers import databases, keystone as keystone_server
from tools.servers.glance import GlanceUnderKeystone
from tools.servers.rabbitmq import RabbitMQ
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test starts servers


@pytest.fixture(scope='module')
def whole_site(
    keystone: keystone_server.KeystoneServer,
    rabbitmq: RabbitMQ,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp('small')
    database = databases.MariaDB(directory / 'mariadb', accounts=[ACCOUNT])
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(database))
        glance = stack.enter_context(
            GlanceUnderKeystone(directory / 'glance', keystone, glance_policy.SHIPPED)
        )
        gateway = stack.enter_context(small_site.Gateway(glance.url))
        links = {
            name: stack.enter_context(link.Link(free_port(), rabbitmq.port))
            for name in (API, 'cell1')
        }
        api_broker, cell_broker = (
            rabbitmq.make_vhost().replace(f':{rabbitmq.port}/', f':{each.port}/')
            for each in links.values()
        )
        site = Site(
            directory,
            keystone,
            glance,
            gateway,
            api_broker,
            cell_broker,
            free_port(),
            rabbitmq=rabbitmq,
            database=database,
            links=links,
        )
        try:
            site.set_up()
            yield site
        finally:
            gateway.release()
            site.tear_down()


@pytest.fixture
def user(
    whole_site: Site, capsys: pytest.CaptureFixture[str], record_property: Callable[..., None]
) -> Iterator[User]:
    """A user of a site in which everything runs; no log may hold a traceback afterwards."""
    whole_site.mend()
    user = User(whole_site, capsys)
    yield user
    for answer, seconds in user.measured:
        measured = f'{seconds:.1f} of {answer.seconds:g} s'
        record_property(f'{answer.case}: {answer.shown}', measured)
        with capsys.disabled():
            sys.stdout.write(f'\n{answer.case}: "{answer.shown}" after {measured}')
    for name in whole_site.names:
        assert 'Traceback' not in whole_site.log(name), name


@pytest.fixture
def site(user: User) -> Site:
    return user.site


def _start_download(user: User, *arguments: str) -> str:
    """Request an image whose download is held after a MiB; return the id of the image."""
    image_id = user.upload(4 * MIB)
    user.site.gateway.hold(at_byte=MIB)
    user.create(image_id, *arguments)
    user.site.gateway.wait_for(1)
    return image_id


def test_every_case_is_tested() -> None:
    tested = pathlib.Path(__file__).read_text()
    assert [case for case in small_site.answers() if case not in tested] == []
    assert len(small_site.answers()) > 20


def test_killed_host_is_named(user: User, site: Site) -> None:
    _start_download(user)
    with user.waiting():
        site.kill('host1')
        user.assert_shown('A compute is killed at work', time.monotonic())


def test_stopped_host_is_named(user: User, site: Site) -> None:
    site.stop('host2')
    user.assert_shown('A compute is stopped', time.monotonic(), 'host2')
    user.create(user.upload(), host='host2')
    user.assert_shown('A request names a host that is down', time.monotonic(), 'host2')


def test_deleted_image_is_named(user: User, site: Site) -> None:
    site.gateway.cuts.append(2 * MIB)
    image_id = _start_download(user)
    headers = {'X-Auth-Token': site.token(site.admin)}
    requests.delete(
        f'{site.glance.url}/v2/images/{image_id}', headers=headers, timeout=TIMEOUT_SECONDS
    )
    site.gateway.release()
    user.assert_shown('The image is deleted during the download', time.monotonic())


def test_full_disk_is_named(user: User, site: Site) -> None:
    site.restart('host1', {'image_cache': {'reserved_disk_bytes': 2**60}})
    site.wait_until_serves('host1')
    user.create(user.upload())
    user.assert_shown('The disk of the host is full', time.monotonic())


def test_revoked_token_is_replaced(user: User, site: Site) -> None:
    site.gateway.cuts.append(2 * MIB)
    image_id = _start_download(user)
    (token,) = site.gateway.download_tokens(image_id)
    site.keystone.revoke(token)
    site.gateway.release()
    user.assert_shown("The service's token is revoked", time.monotonic())


def test_hanging_glance_is_named(user: User, site: Site) -> None:
    image_id = user.upload()
    with site.frozen(CONDUCTOR):
        user.create(image_id)
        site.gateway.hang()
    since = time.monotonic()
    with user.waiting():
        user.assert_shown('Glance hangs before the download', since)


def test_hanging_download_is_named(user: User, site: Site) -> None:
    _start_download(user)
    site.gateway.hang()
    since = time.monotonic()
    with user.waiting():
        user.assert_shown('Glance hangs during the download', since)


def test_wrong_glance_password_is_named(user: User, site: Site) -> None:
    wrong = {'glance': {'password': SECRETS.make('wrong password of Glance')}}
    site.kill(CONDUCTOR)
    user.create(user.upload())
    with user.waiting():
        site.restart(CONDUCTOR, wrong)
        site.wait_until_serves(CONDUCTOR)
        user.assert_shown('The password in [glance] is wrong', time.monotonic())


def _with_wrong_password(url: str) -> str:
    head, _, rest = url.rpartition('@')
    return f'{head.rpartition(":")[0]}:{SECRETS.make("wrong password")}@{rest}'


def test_conductors_wrong_broker_password_named(user: User, site: Site) -> None:
    url = _with_wrong_password(site.api_broker)
    user.create(user.upload(), '--not-before', '+1h')
    with user.waiting():
        since = site.restart(CONDUCTOR, {'DEFAULT': {'transport_url': url}})
        user.assert_shown('The conductor has a wrong password of the broker', since)


def test_cells_wrong_broker_password_named(user: User, site: Site) -> None:
    statement = 'UPDATE precache.cell_mappings SET transport_url = {!r}'.format
    site.kill(CONDUCTOR)
    site.database.execute(statement(_with_wrong_password(site.cell_broker)))
    try:
        user.create(user.upload())
        site.restart(CONDUCTOR, {})
        site.wait_until_serves(CONDUCTOR)
        case = 'The mapping of a cell has a wrong password of the broker'
        user.assert_shown(case, time.monotonic())
    finally:
        site.database.execute(statement(site.cell_broker))
        site.restart(CONDUCTOR, {})


def test_computes_wrong_broker_password_named(user: User, site: Site) -> None:
    url = _with_wrong_password(site.cell_broker)
    since = site.restart('host1', {'DEFAULT': {'transport_url': url}})
    user.assert_shown('The compute has a wrong password of the broker', since)


def test_conductors_wrong_database_password_named(user: User, site: Site) -> None:
    url = _with_wrong_password(site.database_url())
    user.create(user.upload(), '--not-before', '+1h')
    with user.waiting():
        since = site.restart(CONDUCTOR, {'database': {'connection': url}})
        user.assert_shown('The conductor has a wrong password of the database', since)


def test_apis_wrong_database_password_named(user: User, site: Site) -> None:
    url = _with_wrong_password(site.database_url())
    since = site.restart(API, {'database': {'connection': url}})
    user.assert_shown('The API has a wrong password of the database', since)


def test_changed_database_password_is_named(user: User, site: Site) -> None:
    _start_download(user)
    change = f"ALTER USER '{ACCOUNT.name}'@'127.0.0.1' IDENTIFIED BY '{{}}'".format
    with user.waiting():
        site.database.execute(change(SECRETS.make('new password of the database')))
        site.database.execute(f'KILL USER {ACCOUNT.name}')
        try:
            user.assert_shown('The password of the database is changed', time.monotonic())
        finally:
            site.database.execute(change(ACCOUNT.password))


def test_lost_database_is_named(user: User, site: Site) -> None:
    _start_download(user)
    with user.waiting():
        site.database.kill()
        try:
            user.assert_shown('The database is away', time.monotonic())
        finally:
            site.database.restart()


def test_lost_api_is_named(user: User, site: Site) -> None:
    _start_download(user)
    with user.waiting():
        site.kill(API)
        user.assert_shown('The API is away', time.monotonic())


def test_lost_conductor_is_named(user: User, site: Site) -> None:
    user.create(user.upload(), '--not-before', '+1h')
    with user.waiting():
        site.kill(CONDUCTOR)
        user.assert_shown('No conductor runs', time.monotonic())


def test_version_pin_is_named(user: User, site: Site) -> None:
    site.kill(CONDUCTOR)
    user.create(user.upload())
    site.restart(CONDUCTOR, {'upgrade_levels': {'compute': '0.9'}})
    site.wait_until_serves(CONDUCTOR)
    user.assert_shown('The pin of [upgrade_levels] is too low', time.monotonic())


def test_closed_window_is_named(user: User) -> None:
    user.create(user.upload(), '--not-before', '+1h')
    with user.waiting():
        user.assert_shown('The window has not begun', time.monotonic())


def test_pause_is_named(user: User) -> None:
    _start_download(user)
    user.run('precache', 'pause', user.request_id)
    user.assert_shown('The request is paused', time.monotonic())


def test_slow_link_shows_rate(user: User, site: Site) -> None:
    site.gateway.chunk_seconds = 0.2
    user.create(user.upload(16 * MIB))
    with user.waiting():
        user.assert_shown('The link is slow', time.monotonic())
