# SPDX-License-Identifier: Apache-2.0
"""Which images are downloaded, and which downloads are resumed."""

from typing import Any

import pytest

from nova_precache import exception
from nova_precache.download import source
from nova_precache.image import fake

DATA = bytes(range(256))


@pytest.mark.parametrize(
    ('status', 'reason'), [('deactivated', 'is deactivated'), ('queued', 'is queued')]
)
def test_inactive_image_not_opened(images: fake.FakeImageService, status: str, reason: str) -> None:
    image = images.add(DATA, status=status)
    with pytest.raises(exception.ImageGone, match=reason):
        source.ImageServiceSource.find(images, image.id)


def test_unknown_image_gone_and_outage_interruption(
    images: fake.FakeImageService,
) -> None:
    with pytest.raises(exception.ImageGone, match='could not be found'):
        source.ImageServiceSource.find(images, 'unknown')
    images.faults.unavailable = 1
    with pytest.raises(exception.DownloadInterrupted, match='does not answer'):
        source.ImageServiceSource.find(images, 'unknown')


def test_empty_image_is_gone(images: fake.FakeImageService) -> None:
    with pytest.raises(exception.ImageGone, match='has no data'):
        source.ImageServiceSource.find(images, images.add(b'').id)


def test_unchanged_image_is_resumed(
    images: fake.FakeImageService,
) -> None:
    origin = source.ImageServiceSource.find(images, images.add(DATA).id)
    buffer = bytearray(300)
    with origin.open(200) as connection:
        assert connection.start_bytes == 200
        assert connection.read_into(memoryview(buffer)) == 56
    assert buffer[:56] == DATA[200:]


@pytest.mark.parametrize(
    'change',
    [
        {'size': 257},
        {'hash_value': '0' * 128},
        {'hash_algo': 'sha256'},
        {'checksum': '0' * 32},
    ],
)
def test_changed_image_not_resumed(images: fake.FakeImageService, change: dict[str, Any]) -> None:
    image_id = images.add(DATA).id
    origin = source.ImageServiceSource.find(images, image_id)
    images.update(image_id, **change)
    with pytest.raises(exception.ImageMismatch, match=image_id), origin.open(1):
        pass
    assert images.opens == []


def test_deleted_image_not_resumed(images: fake.FakeImageService) -> None:
    image_id = images.add(DATA).id
    origin = source.ImageServiceSource.find(images, image_id)
    images.update(image_id, status='deactivated')
    with pytest.raises(exception.ImageGone, match='is deactivated'), origin.open(1):
        pass
    images.delete(image_id)
    with pytest.raises(exception.ImageGone, match='could not be found'), origin.open(1):
        pass
    images.faults.unavailable = 1
    with pytest.raises(exception.DownloadInterrupted, match='does not answer'), origin.open(1):
        pass


def test_download_end_checks_image_again(images: fake.FakeImageService) -> None:
    origin = source.ImageServiceSource.find(images, images.add(DATA).id)
    origin.check_unchanged()
    images.update(origin.image.id, status='deactivated')
    with pytest.raises(exception.ImageGone, match='is deactivated'):
        origin.check_unchanged()


def test_download_start_reuses_image_lookup(
    images: fake.FakeImageService,
) -> None:
    origin = source.ImageServiceSource.find(images, images.add(DATA).id)
    images.update(origin.image.id, hash_value='0' * 128)
    with origin.open() as connection:
        assert connection.start_bytes == 0
