# SPDX-License-Identifier: Apache-2.0
"""Behaviour of every image service: Glance and the in-memory one pass the same tests."""

import hashlib
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import requests

from nova_precache import exception
from nova_precache.image import fake, glance, service
from tools.waiting import TIMEOUT_SECONDS

DATA = hashlib.sha512(b'seed').digest() * 50_000


class Backend(Protocol):
    """An image service and what its operator can do to it."""

    @property
    def images(self) -> service.ImageService: ...

    def add(self, data: bytes, **fields: Any) -> str: ...

    def delete(self, image_id: str) -> None: ...

    def deactivate(self, image_id: str) -> None: ...

    def share(self, image_id: str, project_id: str, status: str) -> None: ...

    def unshare(self, image_id: str, project_id: str) -> None: ...


class FakeBackend:
    def __init__(self) -> None:
        self.images = fake.FakeImageService()

    def add(self, data: bytes, **fields: Any) -> str:
        return self.images.add(data, **fields).id

    def delete(self, image_id: str) -> None:
        self.images.delete(image_id)

    def deactivate(self, image_id: str) -> None:
        self.images.update(image_id, status='deactivated')

    def share(self, image_id: str, project_id: str, status: str) -> None:
        self.images.share(image_id, project_id)

    def unshare(self, image_id: str, project_id: str) -> None:
        self.images.unshare(image_id, project_id)


class GlanceBackend:
    def __init__(self, url: str, upload: Callable[..., str]) -> None:
        self._url = url
        self.add = upload
        self.images = glance.GlanceImageService.with_token(
            glance.GlanceSettings(num_retries=0), endpoint=url, token=None
        )

    def delete(self, image_id: str) -> None:
        self._call('DELETE', image_id)

    def deactivate(self, image_id: str) -> None:
        self._call('POST', f'{image_id}/actions/deactivate')

    def share(self, image_id: str, project_id: str, status: str) -> None:
        self._call('POST', f'{image_id}/members', {'member': project_id})
        self._call('PUT', f'{image_id}/members/{project_id}', {'status': status})

    def unshare(self, image_id: str, project_id: str) -> None:
        self._call('DELETE', f'{image_id}/members/{project_id}')

    def _call(self, method: str, path: str, document: object = None) -> None:
        url = f'{self._url}/v2/images/{path}'
        requests.request(method, url, json=document, timeout=TIMEOUT_SECONDS).raise_for_status()


@pytest.fixture(params=['fake', 'glance'])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == 'fake':
        return FakeBackend()
    server = request.getfixturevalue('glance')
    return GlanceBackend(server.url, request.getfixturevalue('upload_image'))


def read(images: service.ImageService, image_id: str, offset_bytes: int = 0) -> bytes:
    with images.open(image_id, offset_bytes) as connection:
        assert connection.start_bytes == offset_bytes
        return rest(connection)


def rest(connection: service.Connection, buffer_bytes: int = 1024**2) -> bytes:
    buffer = bytearray(buffer_bytes)
    read = bytearray()
    while count := connection.read_into(memoryview(buffer)):
        read += buffer[:count]
    return bytes(read)


def test_uploaded_image_is_described(backend: Backend) -> None:
    image_id = backend.add(DATA, disk_format='raw', name='n', visibility='private')
    image = backend.images.show(image_id)
    assert image.id == image_id
    assert (image.name, image.status, image.visibility) == ('n', 'active', 'private')
    assert (image.disk_format, image.container_format) == ('raw', 'bare')
    assert image.size == len(DATA)
    assert (image.hash_algo, image.hash_value) == ('sha512', hashlib.sha512(DATA).hexdigest())
    assert image.checksum == hashlib.md5(DATA, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    'kernel_id',
    [
        '6d1f3c1e-6a57-4d0c-a0b6-0c8f5f0d7a11',
        '6D1F3C1E-6A57-4D0C-A0B6-0C8F5F0D7A11',
        'nokernel',
        '',
    ],
)
def test_kernel_and_ramdisk_ids_returned(backend: Backend, kernel_id: str) -> None:
    ramdisk_id = str(uuid.uuid4())
    image = backend.images.show(
        backend.add(
            DATA,
            disk_format='ami',
            container_format='ami',
            kernel_id=kernel_id,
            ramdisk_id=ramdisk_id,
        )
    )
    assert (image.kernel_id, image.ramdisk_id) == (kernel_id, ramdisk_id)
    assert (image.disk_format, image.container_format) == ('ami', 'ami')
    without = backend.images.show(backend.add(DATA))
    assert (without.kernel_id, without.ramdisk_id) == (None, None)


@pytest.mark.parametrize('offset_bytes', [0, 1, 65_536, len(DATA) - 1])
def test_data_read_from_any_offset(backend: Backend, offset_bytes: int) -> None:
    image_id = backend.add(DATA)
    assert read(backend.images, image_id, offset_bytes) == DATA[offset_bytes:]


def test_reader_may_leave_and_read_again(backend: Backend) -> None:
    image_id = backend.add(DATA)
    buffer = bytearray(1000)
    with backend.images.open(image_id) as connection:
        count = connection.read_into(memoryview(buffer))
    assert DATA.startswith(buffer[:count])
    assert read(backend.images, image_id) == DATA


@pytest.mark.parametrize('buffer_bytes', [7777, 65_536, len(DATA) + 1])
def test_buffer_may_have_any_size(backend: Backend, buffer_bytes: int) -> None:
    image_id = backend.add(DATA)
    with backend.images.open(image_id) as connection:
        assert rest(connection, buffer_bytes) == DATA


def test_reading_past_end_stays_at_end(backend: Backend) -> None:
    image_id = backend.add(DATA)
    with backend.images.open(image_id) as connection:
        assert rest(connection) == DATA
        assert rest(connection) == b''


@pytest.mark.parametrize('read_bytes', [0, 1000])
def test_cut_connection_yields_no_more(backend: Backend, read_bytes: int) -> None:
    image_id = backend.add(DATA)
    buffer = memoryview(bytearray(1000))
    with backend.images.open(image_id) as connection:
        if read_bytes:
            assert connection.read_into(buffer[:read_bytes])
        connection.cut()
        with pytest.raises(exception.DownloadInterrupted, match='interrupted'):
            connection.read_into(buffer)
    assert read(backend.images, image_id) == DATA


def test_connection_may_be_cut_repeatedly(backend: Backend) -> None:
    image_id = backend.add(DATA)
    with backend.images.open(image_id) as connection:
        assert rest(connection) == DATA
        connection.cut()
    connection.cut()
    connection.cut()
    with backend.images.open(image_id) as connection:
        connection.cut()
        connection.cut()
    connection.cut()
    assert read(backend.images, image_id) == DATA


def test_range_of_other_size_rejected(backend: Backend) -> None:
    image_id = backend.add(DATA)
    with backend.images.open(image_id, 1000, len(DATA)) as connection:
        assert connection.start_bytes == 1000
    with backend.images.open(image_id, 1000, len(DATA) + 1) as connection:
        assert connection.start_bytes is None


@pytest.mark.parametrize('offset_bytes', [len(DATA), len(DATA) + 1])
def test_offset_past_end_returns_whole(backend: Backend, offset_bytes: int) -> None:
    image_id = backend.add(DATA)
    with backend.images.open(image_id, offset_bytes, len(DATA)) as connection:
        assert connection.start_bytes == 0
        assert rest(connection) == DATA


def test_unknown_image_is_unusable(backend: Backend) -> None:
    unknown = str(uuid.uuid4())
    with pytest.raises(exception.ImageNotUsable, match=unknown):
        backend.images.show(unknown)
    with pytest.raises(exception.ImageNotUsable, match=unknown):
        backend.images.is_member(unknown, 'p1')
    with pytest.raises(exception.ImageGone, match=unknown):
        read(backend.images, unknown)


def test_invalid_id_is_unusable(backend: Backend) -> None:
    with pytest.raises(exception.ImageNotUsable):
        backend.images.show('../tasks')
    with pytest.raises(exception.ImageGone):
        read(backend.images, '../tasks')


def test_deleted_image_is_gone(backend: Backend) -> None:
    image_id = backend.add(DATA)
    backend.delete(image_id)
    with pytest.raises(exception.ImageNotUsable):
        backend.images.show(image_id)
    with pytest.raises(exception.ImageGone):
        read(backend.images, image_id)


def test_deactivated_image_has_that_status(backend: Backend) -> None:
    image_id = backend.add(DATA)
    backend.deactivate(image_id)
    assert backend.images.show(image_id).status == 'deactivated'


def test_image_without_data_is_gone(backend: Backend) -> None:
    image_id = backend.add(b'')
    with pytest.raises(exception.ImageGone, match='has no data'):
        read(backend.images, image_id)


@pytest.mark.parametrize('status', ['pending', 'accepted', 'rejected'])
def test_member_counts_in_any_status(backend: Backend, status: str) -> None:
    image_id = backend.add(DATA, visibility='shared')
    backend.share(image_id, 'p1', status)
    assert backend.images.is_member(image_id, 'p1')
    assert not backend.images.is_member(image_id, 'p2')
    backend.unshare(image_id, 'p1')
    assert not backend.images.is_member(image_id, 'p1')


def test_unshared_image_has_no_members(backend: Backend) -> None:
    image_id = backend.add(DATA, visibility='public')
    assert not backend.images.is_member(image_id, 'p1')
