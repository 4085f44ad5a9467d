# SPDX-License-Identifier: Apache-2.0
"""Failures are summed up by their kinds, in one short line."""

import uuid

import pytest

from nova_precache import exception, failures, reasons
from nova_precache.conductor import nova_backend, planner
from nova_precache.db.job import demand

ID = str(uuid.uuid4())
K = failures.Kind


@pytest.mark.parametrize(
    ('reason', 'kind'),
    [
        ('needs 1.0 GiB, 0.4 GiB free in /var/lib/nova/instances/_base', K.DISK_FULL),
        ('needs 9 B, 0 B free in /x (2.0 GiB must stay free)', K.DISK_FULL),
        ('Writing /var/lib/x: No space left on device', K.DISK_FULL),
        ('Writing /var/lib/x: Disk quota exceeded', K.DISK_FULL),
        ('host down: last report at 2026-11-29T02:00:00Z', K.HOST_DOWN),
        ('host down: it has never reported', K.HOST_DOWN),
        ('host disabled: maintenance', K.HOST_DISABLED),
        (planner.LEFT, K.HOST_LEFT),
        (planner.UNMAPPED, K.HOST_UNMAPPED),
        ('cell cell1 is disabled', K.CELL_OFF),
        (f'cell {ID} is unreachable: [Errno 111] ECONNREFUSED', K.CELL_UNREACHABLE),
        ('no answer from the compute', K.NO_ANSWER),
        ('the compute could not confirm the call', K.NO_ANSWER),
        ('driver FakeDriver cannot cache images', K.UNSUPPORTED),
        ('[libvirt] images_type rbd does not cache images in files', K.UNSUPPORTED),
        ('[upgrade_levels] compute = 0.9 is too low for cache_image', K.UNSUPPORTED),
        ('cache_image 1.0 is not supported by the called service', K.UNSUPPORTED),
        (str(exception.UnsafeImage('it has the backing file /etc/passwd')), K.UNSAFE),
        (f'Image {ID} has container_format ova: libvirt does not extract it', K.UNBOOTABLE),
        (f'Glance has no hash of image {ID}', K.UNVERIFIED),
        (f'Image {ID}: sha512 of the 5 received bytes is ab…, Glance has cd…', K.MISMATCH),
        (f'Image {ID} has more than 100 bytes', K.MISMATCH),
        (f'Image {ID} was deleted, deactivated or hidden (HTTP 404)', K.IMAGE_GONE),
        (f'Image {ID} is deactivated', K.IMAGE_GONE),
        (str(exception.ImageNotUsable(ID, 'could not be found.')), K.IMAGE_GONE),
        (str(exception.ImageNotUsable(ID, 'is queued, not active')), K.IMAGE_GONE),
        (f'Glance refuses the token for image {ID}', K.UNAUTHORIZED),
        (f'No fresh token for image {ID}: no job needs the image', K.UNAUTHORIZED),
        (f'Glance answered about image {ID}: HTTP 503', K.GLANCE_UNAVAILABLE),
        ('Glance does not answer: timed out', K.GLANCE_UNAVAILABLE),
        (f'Image {ID} cannot be read: HTTP 503', K.INTERRUPTED),
        (f'The download of image {ID} was interrupted: timed out', K.INTERRUPTED),
        (f'Image {ID} ended after 5 of 10 bytes', K.INTERRUPTED),
        (
            'slower than 32.0 KiB/s for 60 s (1.2 KiB/s); 3.4 MiB of 2.0 GiB are kept',
            K.SLOW,
        ),
        ('another image on this host is slower than 512 B/s for 5 s (0 B/s)', K.SLOW),
        (str(exception.NotOurs('read', 'owned by root')), K.NOT_OURS),
        ('qemu-img convert took more than 600 s', K.CONVERSION),
        ('Locking 0123: Permission denied', K.STORAGE),
        (reasons.UNRECORDED, K.UNRECORDED),
        ('unexpected KeyError: 7', K.UNEXPECTED),
        (demand.EXPIRED.reason, K.DEADLINE),
        ('the deadline passed before the image was cached', K.DEADLINE),
        (demand.CANCELLED.reason, K.CANCELLED),
        ('3 tasks failed, max_failures is 2', K.TOO_MANY_FAILURES),
        ('canary host h1: needs 5 bytes, 1 free', K.CANARY),
        (nova_backend.ERROR, K.OTHER),
        ('something that no release says', K.OTHER),
        (None, K.OTHER),
    ],
)
def test_reason_has_its_kind(reason: str | None, kind: failures.Kind) -> None:
    assert failures.kind(reason) == kind


def test_failures_grouped_without_numbers() -> None:
    counts = {'cached': 30, 'existing': 7, 'error': 2, 'skipped': 1}
    found = [
        ('error', 'needs 10 bytes (including 0 reserved), 7 free', 1),
        ('error', 'needs 12 bytes (including 0 reserved), 3 free', 1),
        ('skipped', 'host down: last report at 2026-11-29T02:00:00Z', 1),
    ]

    assert failures.summary(counts, found) == (
        '3 of 40 copies failed: 2 × not enough disk space, 1 × host down'  # noqa: RUF001
    )


def test_unknown_reasons_lose_ids_and_numbers() -> None:
    found = [('error', f'job {uuid.uuid4()} met {n} bears', 1) for n in range(20, 60)]

    assert failures.summary({'error': 40}, found) == (
        '40 of 40 copies failed: 40 × job ID met N bears'  # noqa: RUF001
    )


def test_summary_short_for_many_kinds() -> None:
    words = [chr(ord('a') + n) * 300 for n in range(20)]
    found = [('error', word, 20 - n) for n, word in enumerate(words)]

    text = failures.summary({'error': 210}, found)

    assert text.startswith('210 of 210 copies failed: 20 × aaa')  # noqa: RUF001
    assert text.endswith(', 120 × other reasons')  # noqa: RUF001
    assert len(text) < reasons.MAX_LENGTH


def test_uncounted_tasks_have_other_reasons() -> None:
    assert failures.summary({'error': 9, 'cached': 1}, [('error', 'unsafe image: x', 4)]) == (
        '9 of 10 copies failed: 5 × other reasons, 4 × unsafe image'  # noqa: RUF001
    )


@pytest.mark.parametrize(
    ('counts', 'found', 'text'),
    [
        (
            {'cached': 3, 'cancelled': 2},
            [('cancelled', demand.CANCELLED.reason, 2)],
            '2 of 5 copies cancelled',
        ),
        (
            {'cached': 3, 'expired': 2, 'error': 1},
            [('expired', demand.EXPIRED.reason, 2), ('error', None, 1)],
            '1 of 6 copies failed: 1 × error; 2 of 6 copies expired',  # noqa: RUF001
        ),
        (
            {'error': 3, 'cancelled': 7},
            [
                ('cancelled', '3 tasks failed, max_failures is 2', 7),
                ('error', 'unsafe image: x', 3),
            ],
            '3 of 10 copies failed: 3 × unsafe image; 7 of 10 copies cancelled: '  # noqa: ISC004, RUF001
            '7 × too many failures',  # noqa: RUF001
        ),
    ],
)
def test_cancelled_and_expired_kept_apart(
    counts: dict[str, int], found: list[tuple[str, str | None, int]], text: str
) -> None:
    assert failures.summary(counts, found) == text
