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
def test_an_image_that_is_open_to_all_may_be_had_by_anybody(
    images: fake.FakeImageService, visible_to: str, project: str | None
) -> None:
    assert _is_usable(images, project, visibility=visible_to)


@pytest.mark.parametrize('visible_to', ['private', 'shared'])
def test_an_owner_may_have_the_own_image(images: fake.FakeImageService, visible_to: str) -> None:
    assert _is_usable(images, 'p1', visibility=visible_to, owner='p1')


@pytest.mark.parametrize('visible_to', ['private', 'shared'])
def test_another_project_may_not_have_it(images: fake.FakeImageService, visible_to: str) -> None:
    assert not _is_usable(images, 'p2', visibility=visible_to, owner='p1')


@pytest.mark.parametrize('visible_to', ['private', 'shared'])
def test_an_owned_image_may_not_be_had_without_a_project(
    images: fake.FakeImageService, visible_to: str
) -> None:
    assert not _is_usable(images, None, visibility=visible_to, owner='p1')


@pytest.mark.parametrize('project', ['p1', None])
def test_a_shared_image_without_owner_may_be_had_by_every_project(
    images: fake.FakeImageService, project: str | None
) -> None:
    assert _is_usable(images, project, visibility='shared', owner=None)


def test_a_private_image_without_owner_may_be_had_by_no_project(
    images: fake.FakeImageService,
) -> None:
    assert not _is_usable(images, 'p1', visibility='private', owner=None)
    assert _is_usable(images, None, visibility='private', owner=None)


def test_a_member_may_have_a_shared_image_until_it_is_none_any_more(
    images: fake.FakeImageService,
) -> None:
    image = images.add(b'data', visibility='shared', owner='p1')
    images.share(image.id, 'p2')
    assert image_access.check(images, image.id, 'p2', is_admin=False) == image

    images.unshare(image.id, 'p2')
    with pytest.raises(exception.ImageNotUsable, match='not visible to project p2'):
        image_access.check(images, image.id, 'p2', is_admin=False)


@pytest.mark.parametrize('container_format', ['compressed', 'docker'])
def test_an_image_that_no_driver_boots_may_be_had_by_nobody(
    images: fake.FakeImageService, container_format: str
) -> None:
    image = images.add(b'data', container_format=container_format)

    with pytest.raises(exception.ImageNotUsable, match=f'{image.id} has .* {container_format}'):
        image_access.check(images, image.id, 'p1', is_admin=True)


def test_a_member_of_an_image_that_became_private_may_not_have_it(
    images: fake.FakeImageService,
) -> None:
    image = images.add(b'data', visibility='private', owner='p1')
    images.share(image.id, 'p2')

    with pytest.raises(exception.ImageNotUsable, match='not visible to project p2'):
        image_access.check(images, image.id, 'p2', is_admin=False)


def test_an_admin_may_have_every_active_image(images: fake.FakeImageService) -> None:
    image = images.add(b'data', visibility='private', owner='p1')

    assert image_access.check(images, image.id, 'p2', is_admin=True) == image


@pytest.mark.parametrize('status', ['queued', 'deactivated', 'deleted', 'importing'])
def test_an_image_that_is_not_active_may_be_had_by_nobody(
    images: fake.FakeImageService, status: str
) -> None:
    image = images.add(b'data', status=status)

    with pytest.raises(exception.ImageNotUsable, match=f'is {status}, not active'):
        image_access.check(images, image.id, 'p1', is_admin=True)


def test_an_unknown_image_may_be_had_by_nobody(images: fake.FakeImageService) -> None:
    with pytest.raises(exception.ImageNotUsable, match='could not be found'):
        image_access.check(images, 'none', 'p1', is_admin=True)


def test_without_an_answer_nothing_is_decided(images: fake.FakeImageService) -> None:
    image = images.add(b'data')
    images.faults.unavailable = 1

    with pytest.raises(exception.ImageServiceUnavailable):
        image_access.check(images, image.id, 'p1', is_admin=False)
