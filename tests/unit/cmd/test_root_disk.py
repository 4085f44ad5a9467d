# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage root-disk with the configuration that the guide gives a compute."""

import contextlib
import hashlib
import http.server
import pathlib
import subprocess
import threading
import uuid
from collections.abc import Iterator

import pytest

from tests import disk_images
from tools import documentation

IMAGE_ID = str(uuid.uuid4())
DATA = disk_images.content(disk_images.MIB)

pytestmark = [pytest.mark.usefixtures('qemu_img'), pytest.mark.timeout(120)]


@pytest.fixture
def configuration(tmp_path: pathlib.Path) -> pathlib.Path:
    """The guide's file for a compute, with directories of the test."""
    (block,) = [
        each
        for each in documentation.run_by('guide', 'doc/source/admin.rst')
        if each.language == 'ini' and each.arguments[0] == 'compute'
    ]
    text = block.text
    text = text.replace('/var/lib/nova/instances', str(tmp_path / 'instances'))
    text = text.replace('/var/lib/nova-precache', str(tmp_path / 'state'))
    path = tmp_path / 'compute.conf'
    path.write_text(text)
    return path


def set_glance(configuration: pathlib.Path, options: str) -> None:
    text = configuration.read_text()
    configuration.write_text(f'{text}\n[glance]\n{options}\n')


def put_base_file(configuration: pathlib.Path) -> pathlib.Path:
    name = hashlib.sha1(IMAGE_ID.encode(), usedforsecurity=False).hexdigest()
    path = configuration.parent / 'instances' / '_base' / name
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    return path


def create(configuration: pathlib.Path) -> 'subprocess.CompletedProcess[str]':
    options = ['--image', IMAGE_ID, '--instance', 'vm-1']
    return subprocess.run(
        ['nova-precache-manage', '--config-file', configuration, 'root-disk', 'create', *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize(
    'glance', ['', 'endpoint_override = http://127.0.0.1:1', 'allowed_endpoints =']
)
def test_cached_image_needs_no_image_service(configuration: pathlib.Path, glance: str) -> None:
    set_glance(configuration, glance)
    base = put_base_file(configuration)
    done = create(configuration)
    disk = configuration.parent / 'instances' / 'vm-1' / 'disk'
    assert (done.returncode, done.stdout) == (0, f'{disk}\n'), done.stderr
    assert disk_images.as_raw(disk, 'qcow2') == base.read_bytes() == DATA


def test_uncached_image_names_missing_options(
    configuration: pathlib.Path,
) -> None:
    done = create(configuration)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.splitlines()[-1] == (
        f'Image {IMAGE_ID} is not in the cache, and cannot be downloaded: set [glance] '
        'endpoint_override, or [glance] auth_type with its credentials'
    )
    assert 'Traceback' not in done.stderr
    assert not (configuration.parent / 'instances' / 'vm-1').exists()


class _Guarded(http.server.BaseHTTPRequestHandler):
    """An image service that refuses every caller."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keep the output of the tests clean."""


@contextlib.contextmanager
def guarded_service() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Guarded) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        serving.join()


def test_required_token_names_its_option(
    configuration: pathlib.Path,
) -> None:
    with guarded_service() as url:
        set_glance(configuration, f'endpoint_override = {url}')
        done = create(configuration)
    assert (done.returncode, done.stdout) == (1, '')
    assert '[glance] auth_type is not set' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ('auth_type = password\nusername = u', '[glance] auth_type password: .*auth_url'),
        ('auth_type = nonsense', '[glance] auth_type nonsense: .*could not be found'),
    ],
)
def test_unusable_credentials_name_their_option(
    configuration: pathlib.Path, options: str, named: str
) -> None:
    set_glance(configuration, options)
    done = create(configuration)
    option, _, why = named.partition(': .*')
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f'{option}: ')
    assert why in last
    assert 'Traceback' not in done.stderr
