# SPDX-License-Identifier: Apache-2.0
"""Kernel and ramdisk of an image: planned with it, sent with each call, kept by pins."""

import threading

import pytest

from nova_precache import exception, model
from nova_precache.conductor import companions, image_access
from nova_precache.conductor.nova_backend import ERROR
from nova_precache.db import requests
from nova_precache.image import fake
from tests.unit.conductor.conftest import Parts
from tests.unit.conductor.test_nova_backend import FakeNova, nova
from tools.waiting import TIMEOUT_SECONDS

__all__ = ['nova']

KERNEL = b'some kernel'
RAMDISK = b'the ramdisk'
DATA = b'some data'


@pytest.fixture
def images() -> fake.FakeImageService:
    return fake.FakeImageService()


def add(images: fake.FakeImageService, **fields: str) -> model.Image:
    """Add an image that names a kernel and a ramdisk."""
    kernel = images.add(KERNEL, container_format='aki', **fields)
    ramdisk = images.add(RAMDISK, container_format='ari')
    return images.add(DATA, kernel_id=kernel.id, ramdisk_id=ramdisk.id)


def needed(image: model.Image) -> tuple[model.Companion, ...]:
    assert image.kernel_id
    assert image.ramdisk_id
    return (
        model.Companion(image.kernel_id, len(KERNEL)),
        model.Companion(image.ramdisk_id, len(RAMDISK)),
    )


def ask(parts: Parts, *images: model.Image) -> model.CacheRequest:
    """Ask for images on one living host, and plan the request."""
    parts.world.living('h1')
    aggregate = parts.world.aggregate(['h1'])
    new = requests.NewRequest(images=tuple(image.id for image in images), aggregate=aggregate)
    request = parts.world.requests.accept(new)
    assert parts.planning().plan_next()
    return parts.world.requests.get(request.id)


# Visibility of all of them


def test_accessible_kernel_and_ramdisk_allowed(
    images: fake.FakeImageService,
) -> None:
    found = image_access.check_bootable(images, add(images).id, 'p1', is_admin=False)
    assert found.needed == needed(found)
    assert found.total_bytes == len(DATA) + len(KERNEL) + len(RAMDISK)


@pytest.mark.parametrize('is_admin', [True, False])
def test_hidden_kernel_refuses_image(images: fake.FakeImageService, is_admin: bool) -> None:
    image = add(images, visibility='private', owner='p2')
    if is_admin:
        assert image_access.check_bootable(images, image.id, 'p1', is_admin).companions
        return
    with pytest.raises(exception.ImageNotUsable) as caught:
        image_access.check_bootable(images, image.id, 'p1', is_admin)
    assert str(caught.value) == (
        f'Image {image.id} cannot be booted without its kernel_id {image.kernel_id}: '
        f'Image {image.kernel_id} is not visible to project p1'
    )
    assert caught.value.image_id == image.id


# Planning


def test_task_size_sums_all_parts(parts: Parts) -> None:
    request = ask(parts, add(parts.images))
    assert request.counts == {'queued': 1}
    assert request.bytes_total == len(DATA) + len(KERNEL) + len(RAMDISK)


def test_missing_kernel_ends_task_with_reason(parts: Parts) -> None:
    image = add(parts.images)
    assert image.kernel_id
    parts.images.update(image.kernel_id, status='deactivated')
    request = ask(parts, image)
    [task] = parts.world.requests.tasks(request.id)
    assert task.status == 'error'
    assert task.reason == (
        f'Image {image.id} cannot be booted without its kernel_id {image.kernel_id}: '
        f'Image {image.kernel_id} is deactivated, not active'
    )
    assert parts.compute.calls == []


# Calls


def test_call_names_current_companions(parts: Parts) -> None:
    image, plain = add(parts.images), parts.images.add(DATA)
    ask(parts, image, plain)
    parts.serve()
    assert [call.needed for _, call in parts.compute.calls] == [needed(image), ()]


def test_retry_without_ramdisk_not_made(parts: Parts) -> None:
    image = add(parts.images)
    assert image.ramdisk_id
    request = ask(parts, image)
    failed = model.ImageOutcome('error', 'cut', model.Retry.BACKOFF)
    parts.compute.script('h1', image.id, parts.compute.answers(failed))
    parts.serve()
    parts.images.delete(image.ramdisk_id)
    parts.world.make_due()
    parts.serve()
    [task] = parts.world.requests.tasks(request.id)
    assert task.status == 'error'
    assert f'its ramdisk_id {image.ramdisk_id}: ' in str(task.reason)
    assert len(parts.compute.calls) == 1


class Counting(fake.FakeImageService):
    """Counts its queries, and can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def show(self, image_id: str) -> model.Image:
        self.shown.append(image_id)
        assert self.may_answer.wait(TIMEOUT_SECONDS)
        return super().show(image_id)


def test_companions_cached_through_outage() -> None:
    images, now = Counting(), [100.0]
    image = add(images)
    needs = companions.CompanionLookup(images, lambda: now[0])
    assert [needs.get(image.id) for _ in range(5)] == [needed(image)] * 5
    assert len(images.shown) == 3

    now[0] += companions.KEPT_SECONDS
    images.faults.unavailable = 1
    assert needs.get(image.id) == needed(image)
    assert len(images.shown) == 4

    now[0] += companions.KEPT_SECONDS
    images.update(image.id, kernel_id=None)
    assert needs.get(image.id) == needed(image)[1:]


def test_companions_are_unknown_without_answer() -> None:
    images, now = Counting(), [100.0]
    image = add(images)
    needs = companions.CompanionLookup(images, lambda: now[0])
    assert needs.get('00000000-0000-0000-0000-000000000000') is None
    images.may_answer.clear()
    needs.get(image.id)  # waits for a moment
    now[0] += companions.ANSWER_SECONDS
    assert needs.get(image.id) is None
    assert images.shown.count(image.id) == 1
    images.may_answer.set()


def test_companion_cache_is_bounded(
    images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, 'MOST_IMAGES', 2)
    needs = companions.CompanionLookup(images)
    made = [add(images) for _ in range(5)]
    assert [needs.get(each.id) for each in made] == [needed(each) for each in made]


# Stock nova-computes


@pytest.mark.parametrize(
    ('words', 'status', 'reason'),
    [
        (['cached', 'cached', 'cached'], 'cached', None),
        (['existing', 'existing', 'existing'], 'existing', None),
        (['existing', 'cached', 'existing'], 'cached', None),
        (['cached', 'error', 'cached'], 'retry_wait', 'kernel or ramdisk {}: ' + ERROR),
        (['cached', None, 'cached'], 'retry_wait', 'kernel or ramdisk {}: ' + ERROR),
        (['cached', 'cached', 'error'], 'retry_wait', ERROR),
    ],
)
def test_nova_call_includes_kernel_and_ramdisk(
    parts: Parts, nova: FakeNova, words: list[str | None], status: str, reason: str | None
) -> None:
    image = add(parts.images)
    request = ask(parts, image)
    for word in words:
        nova.says('h1', word)
    parts.serve()
    [task] = parts.world.requests.tasks(request.id)
    wanted = None if reason is None else reason.format(image.ramdisk_id)
    assert (task.status, task.reason) == (status, wanted)
    assert nova.images() == [image.kernel_id, image.ramdisk_id, image.id]
