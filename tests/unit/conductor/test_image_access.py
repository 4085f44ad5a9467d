# SPDX-License-Identifier: Apache-2.0
"""Who may use which image, decided without the caller's token."""

from typing import Any

import pytest

from nova_precache import exception
from nova_precache.conductor import image_access
from nova_precache.image import fake


@pytest.fixture
def images() -> fake.FakeImageService:
    return fake.FakeImageService()


def _is_usable(images: fake.FakeImageService, project: str | None, **fields: Any) -> bool:
    image = images.add(b'data', **fields)
    try:
        return image_access.check(images, image.id, project, is_admin=False) == image
    except exception.ImageNotUsable:
        return False


@pytest.mark.parametrize('project', ['p1', None])
@pytest.mark.parametrize('visible_to', ['public', 'community'])
def test_public_image_accessible_to_all(
    images: fake.FakeImageService, visible_to: str, project: str | None
) -> None:
    assert _is_usable(images, project, visibility=visible_to)


@pytest.mark.parametrize('visible_to', ['private', 'shared'])
def test_owner_can_access_own_image(images: fake.FakeImageService, visible_to: str) -> None:
    assert _is_usable(images, 'p1', visibility=visible_to, owner='p1')


@pytest.mark.parametrize('visible_to', ['private', 'shared'])
def test_other_project_cannot_access_image(images: fake.FakeImageService, visible_to: str) -> None:
    assert not _is_usable(images, 'p2', visibility=visible_to, owner='p1')


@pytest.mark.parametrize('visible_to', ['private', 'shared'])
def test_owned_image_needs_a_project(images: fake.FakeImageService, visible_to: str) -> None:
    assert not _is_usable(images, None, visibility=visible_to, owner='p1')


@pytest.mark.parametrize('project', ['p1', None])
def test_ownerless_shared_image_is_accessible(
    images: fake.FakeImageService, project: str | None
) -> None:
    assert _is_usable(images, project, visibility='shared', owner=None)


def test_ownerless_private_image_is_inaccessible(
    images: fake.FakeImageService,
) -> None:
    assert not _is_usable(images, 'p1', visibility='private', owner=None)
    assert _is_usable(images, None, visibility='private', owner=None)


def test_member_access_ends_with_membership(
    images: fake.FakeImageService,
) -> None:
    image = images.add(b'data', visibility='shared', owner='p1')
    images.share(image.id, 'p2')
    assert image_access.check(images, image.id, 'p2', is_admin=False) == image

    images.unshare(image.id, 'p2')
    with pytest.raises(exception.ImageNotUsable, match='not visible to project p2'):
        image_access.check(images, image.id, 'p2', is_admin=False)


@pytest.mark.parametrize('container_format', ['compressed', 'docker'])
def test_unbootable_image_is_inaccessible(
    images: fake.FakeImageService, container_format: str
) -> None:
    image = images.add(b'data', container_format=container_format)

    with pytest.raises(exception.ImageNotUsable, match=f'{image.id} has .* {container_format}'):
        image_access.check(images, image.id, 'p1', is_admin=True)


def test_member_cannot_access_private_image(
    images: fake.FakeImageService,
) -> None:
    image = images.add(b'data', visibility='private', owner='p1')
    images.share(image.id, 'p2')

    with pytest.raises(exception.ImageNotUsable, match='not visible to project p2'):
        image_access.check(images, image.id, 'p2', is_admin=False)


def test_admin_can_access_active_images(images: fake.FakeImageService) -> None:
    image = images.add(b'data', visibility='private', owner='p1')

    assert image_access.check(images, image.id, 'p2', is_admin=True) == image


@pytest.mark.parametrize('status', ['queued', 'deactivated', 'deleted', 'importing'])
def test_inactive_image_is_inaccessible(images: fake.FakeImageService, status: str) -> None:
    image = images.add(b'data', status=status)

    with pytest.raises(exception.ImageNotUsable, match=f'is {status}, not active'):
        image_access.check(images, image.id, 'p1', is_admin=True)


def test_unknown_image_is_inaccessible(images: fake.FakeImageService) -> None:
    with pytest.raises(exception.ImageNotUsable, match='could not be found'):
        image_access.check(images, 'none', 'p1', is_admin=True)


def test_without_answer_access_undecided(images: fake.FakeImageService) -> None:
    image = images.add(b'data')
    images.faults.unavailable = 1

    with pytest.raises(exception.ImageServiceUnavailable):
        image_access.check(images, image.id, 'p1', is_admin=False)
