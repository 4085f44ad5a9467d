# SPDX-License-Identifier: Apache-2.0
"""What arrives in the file, what is refused, and how often a cut is resumed."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterator

import pytest

from nova_precache import exception, model
from nova_precache.download import engine, retry, source
from nova_precache.image import fake

DATA = bytes(range(256)) * 2048


@pytest.fixture
def images() -> fake.FakeImageService:
    return fake.FakeImageService()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> Iterator[io.FileIO]:
    with (tmp_path / 'file').open('w+b', buffering=0) as opened:
        yield opened


@dataclasses.dataclass
class Attempt:
    """One download with what it told on the way."""

    images: fake.FakeImageService
    delays: list[float] = dataclasses.field(default_factory=list)
    progress: list[model.Progress] = dataclasses.field(default_factory=list)

    def run(self, image: model.Image, file: io.FileIO, *, allow_unverified: bool = False) -> int:
        downloader = engine.Downloader(
            allow_unverified=allow_unverified,
            resume=retry.ResumePolicy(max_opens=3, sleep=self.delays.append),
        )
        origin = source.ImageServiceSource(self.images, image)
        return downloader.download(origin, file, self.progress.append)


@pytest.fixture
def attempt(images: fake.FakeImageService) -> Attempt:
    return Attempt(images)


def written(file: io.FileIO) -> bytes:
    return pathlib.Path(str(file.name)).read_bytes()


def test_the_file_holds_the_image(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA)
    assert attempt.run(image, file) == len(DATA)
    assert written(file) == DATA


def test_progress_counts_up_to_the_size_and_ends_with_verifying(
    attempt: Attempt, file: io.FileIO
) -> None:
    attempt.run(attempt.images.add(DATA), file)
    *downloading, last = attempt.progress
    counts = [step.bytes_done for step in downloading]
    assert counts == sorted(set(counts))
    assert downloading[-1] == model.Progress(model.TaskStatus.DOWNLOADING, len(DATA), len(DATA))
    assert last == model.Progress(model.TaskStatus.VERIFYING, len(DATA), len(DATA))


def test_a_cut_download_goes_on_where_it_was_cut(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA)
    attempt.images.faults.cuts = [1000, 70_000]
    attempt.run(image, file)
    assert written(file) == DATA
    assert [offset for _, offset in attempt.images.opens] == [0, 1000, 71_000]
    assert attempt.images.served_bytes == len(DATA)


def test_a_cut_behind_the_last_byte_costs_no_second_open(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA)
    attempt.images.faults.cuts = [len(DATA)]
    attempt.run(image, file)
    assert written(file) == DATA
    assert len(attempt.images.opens) == 1


def test_a_download_that_is_cut_again_and_again_ends(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA)
    attempt.images.faults.cuts = [10] * 9
    with pytest.raises(exception.DownloadInterrupted, match='cut'):
        attempt.run(image, file)
    assert len(attempt.images.opens) == 3
    assert attempt.delays == [0.5, 1.0]


def test_an_image_that_is_gone_is_not_tried_again(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA)
    attempt.images.delete(image.id)
    with pytest.raises(exception.ImageGone):
        attempt.run(image, file)
    assert attempt.delays == []


def test_wrong_bytes_are_a_mismatch(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA)
    attempt.images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch, match='sha512'):
        attempt.run(image, file)


def test_a_source_that_gives_too_much_is_stopped_at_once(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA, size=100_000)
    with pytest.raises(exception.ImageMismatch, match='more than 100000 bytes'):
        attempt.run(image, file)
    assert len(written(file)) <= 100_000
    assert attempt.images.served_bytes < len(DATA)


def test_a_source_that_ends_early_is_an_interruption(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA, size=len(DATA) + 1)
    with pytest.raises(exception.DownloadInterrupted):
        attempt.run(image, file)


def test_an_image_without_size_is_verified_by_its_hash(attempt: Attempt, file: io.FileIO) -> None:
    image = attempt.images.add(DATA, size=None)
    assert attempt.run(image, file) == len(DATA)
    attempt.images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch):
        attempt.run(image, file)


@pytest.mark.parametrize('algorithm', ['sha256', 'sha512', 'sha3_512', 'blake2b'])
def test_glance_may_choose_the_algorithm(attempt: Attempt, file: io.FileIO, algorithm: str) -> None:
    value = hashlib.new(algorithm, DATA).hexdigest()
    image = attempt.images.add(DATA, hash_algo=algorithm, hash_value=value, checksum='0' * 32)
    assert attempt.run(image, file) == len(DATA)
    attempt.images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch, match=algorithm):
        attempt.run(image, file)


def test_the_md5_checksum_decides_where_there_is_no_multihash(
    attempt: Attempt, file: io.FileIO
) -> None:
    image = attempt.images.add(DATA, hash_algo=None, hash_value=None)
    assert attempt.run(image, file) == len(DATA)
    with pytest.raises(exception.ImageMismatch, match='md5'):
        attempt.run(dataclasses.replace(image, checksum='0' * 32), file)


@pytest.mark.parametrize(
    'known',
    [
        {'hash_algo': None, 'hash_value': None, 'checksum': None},
        {'hash_algo': 'whirlpool-9', 'hash_value': 'abc'},
        {'hash_algo': 'shake_128', 'hash_value': 'abc'},
    ],
)
def test_an_image_that_cannot_be_verified_is_refused_before_the_first_byte(
    attempt: Attempt, file: io.FileIO, known: dict[str, str | None]
) -> None:
    image = attempt.images.add(DATA, **known)
    with pytest.raises(exception.UnverifiedImage, match=image.id):
        attempt.run(image, file)
    assert attempt.images.opens == []


def test_an_image_that_cannot_be_verified_is_taken_where_that_is_allowed(
    attempt: Attempt, file: io.FileIO
) -> None:
    image = attempt.images.add(DATA, hash_algo=None, hash_value=None, checksum=None)
    assert attempt.run(image, file, allow_unverified=True) == len(DATA)


def test_a_wrong_hash_is_refused_also_where_unverified_images_are_allowed(
    attempt: Attempt, file: io.FileIO
) -> None:
    image = attempt.images.add(DATA)
    attempt.images.faults.corrupt = 1
    with pytest.raises(exception.ImageMismatch):
        attempt.run(image, file, allow_unverified=True)


def test_a_full_disk_is_told(attempt: Attempt) -> None:
    image = attempt.images.add(DATA)
    with (
        open('/dev/full', 'wb', buffering=0) as full,
        pytest.raises(exception.NotEnoughSpace, match='No space left on device'),
    ):
        attempt.run(image, full)


@pytest.mark.parametrize(
    ('status', 'reason'), [('deactivated', 'is deactivated'), ('queued', 'is queued')]
)
def test_an_image_that_is_not_active_is_not_looked_for(
    images: fake.FakeImageService, status: str, reason: str
) -> None:
    image = images.add(DATA, status=status)
    with pytest.raises(exception.ImageGone, match=reason):
        source.ImageServiceSource.find(images, image.id)


def test_an_unknown_image_is_gone_and_a_silent_service_an_interruption(
    images: fake.FakeImageService,
) -> None:
    with pytest.raises(exception.ImageGone, match='could not be found'):
        source.ImageServiceSource.find(images, 'unknown')
    images.faults.unavailable = 1
    with pytest.raises(exception.DownloadInterrupted, match='does not answer'):
        source.ImageServiceSource.find(images, 'unknown')


def test_an_empty_image_is_gone(images: fake.FakeImageService) -> None:
    with pytest.raises(exception.ImageGone, match='has no data'):
        source.ImageServiceSource.find(images, images.add(b'').id)
