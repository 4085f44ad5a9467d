# SPDX-License-Identifier: Apache-2.0
"""The table of images: the verdict on each claim about each of them."""

import itertools
import json
import pathlib
from collections.abc import Iterator

import pytest
from oslo_utils.imageutils import format_inspector

from nova_precache import exception
from nova_precache.inspection import content, convert, formats, qemu_img, watch
from tests import disk_images, image_corpus

pytestmark = pytest.mark.usefixtures('qemu_img')

VMDK_TYPES = ('streamOptimized', 'monolithicSparse')
FEED_BYTES = 256 * 1024
NOVA_READ_BYTES = 4096


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp('corpus')


@pytest.fixture(scope='module', params=image_corpus.CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope='module')
def image(directory: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    path = directory / 'image'
    yield image_corpus.CASES[name].make(path)
    path.unlink()


@pytest.fixture
def inspector() -> formats.ImageInspector:
    return formats.ImageInspector(qemu_img.QemuImg(), VMDK_TYPES)


def refused_arriving(
    inspector: formats.ImageInspector, disk_format: str, data: bytes, feed_bytes: int = FEED_BYTES
) -> str | None:
    """Return the reason why an image is refused while it arrives, or None."""
    watching = inspector.watch(disk_format, lambda size_bytes: None)
    try:
        for start in range(0, len(data), feed_bytes):
            watching.feed(memoryview(data)[start : start + feed_bytes])
    except exception.UnsafeImage as exc:
        return str(exc)
    return None


def refused_whole(
    inspector: formats.ImageInspector, path: pathlib.Path, disk_format: str
) -> str | None:
    try:
        inspector.inspect(str(path), disk_format)
    except exception.UnsafeImage as exc:
        return str(exc)
    return None


def test_whole_image_gets_expected_verdict(
    inspector: formats.ImageInspector, image: pathlib.Path, name: str
) -> None:
    for disk_format in image_corpus.DISK_FORMATS:
        verdict = image_corpus.CASES[name].verdict(disk_format)
        reason = refused_whole(inspector, image, disk_format)
        if verdict.reason is None or verdict.converting:
            assert reason is None, disk_format
        else:
            assert verdict.reason in str(reason), disk_format


def test_arriving_image_refused_early(
    inspector: formats.ImageInspector, image: pathlib.Path, name: str
) -> None:
    """And never for a reason that does not hold for the whole image."""
    data = image.read_bytes()
    large = data.ljust(watch.MAX_BYTES, b'\0')
    for disk_format in image_corpus.DISK_FORMATS:
        verdict = image_corpus.CASES[name].verdict(disk_format)
        if verdict.early:
            reason = refused_arriving(inspector, disk_format, large)
            assert str(verdict.reason) in str(reason), disk_format
        else:
            assert refused_arriving(inspector, disk_format, data) is None, disk_format


def test_accepted_image_equals_qemu_img_result(
    inspector: formats.ImageInspector, image: pathlib.Path, name: str, directory: pathlib.Path
) -> None:
    """Or is refused when its content turns out to be an image again."""
    converter = convert.Converter(qemu_img.QemuImg(), inspector)
    target = directory / 'target'
    for disk_format, verdict in image_corpus.CASES[name].verdicts.items():
        if verdict.reason is not None and not verdict.converting:
            continue
        inspected = inspector.inspect(str(image), disk_format)
        if inspected.qemu_format == 'raw':
            continue
        if verdict.converting:
            with pytest.raises(exception.CacheError, match=verdict.reason):
                converter.to_raw(str(image), inspected, str(target))
        else:
            converter.to_raw(str(image), inspected, str(target))
            assert target.read_bytes() == disk_images.as_raw(image, inspected.qemu_format)
            assert target.stat().st_size == inspected.virtual_size_bytes
        target.unlink()


def test_assumed_raw_is_raw_to_qemu(image: pathlib.Path, name: str) -> None:
    """Otherwise a guest whose disk names no format would see another disk."""
    verdicts = [image_corpus.CASES[name].verdict(each) for each in image_corpus.RAW_FORMATS]
    if image_corpus.ACCEPTED in verdicts:
        guessed = json.loads(disk_images.qemu_img('info', '--output=json', str(image)))
        assert guessed['format'] == 'raw'


def test_inspectors_agree_with_library(image: pathlib.Path) -> None:
    try:
        found = content.recognise(str(image)).inspector
    except exception.UnsafeImage as exc:
        if any(name in str(exc) for name in content._QEMU_ONLY):
            return  # the library does not know it
        found = None
    assert str(found or 'raw') == (library_verdict(image) or 'raw')


def library_verdict(path: pathlib.Path) -> str | None:
    """Return the format that the library's own wrapper finds; None: several or a crash."""
    with path.open('rb') as file:
        wrapper = format_inspector.InspectWrapper(file)
        try:
            while wrapper.read(NOVA_READ_BYTES) and wrapper.formats is None:
                pass
            wrapper.close()
            found = {str(each) for each in wrapper.formats or ()}
        except AttributeError:
            return None
    if found == {'iso', 'gpt'}:
        return 'iso'
    return found.pop() if len(found) == 1 else None


# Why they differ is in the module docstring of the inspection.
REFUSED_ONLY_HERE = {
    'qcow2, encrypted': ('qcow2',),
    'qcow2 of no size': ('qcow2',),
    'vmdk with another size in its footer': ('vmdk',),
    'vdi and vmdk descriptor': ('vdi',),  # of two that fit, qemu takes the one it asks first
    'virtual size is 0': ('raw', 'ami'),
    # Their magic is there, but not all that qemu looks at.
    **dict.fromkeys(
        ('qcow2, magic only', 'parallels of the older kind', 'bochs', 'cloop'), ('raw', 'ami')
    ),
}
# It crashes, after a minute of CPU time.
NOT_SHOWN_TO_QEMU = {'vmdk that is its own extent'}
REFUSED_ONLY_BY_NOVA = dict.fromkeys(('vhd', 'vhd of a geometry'), ('vhd',))


def test_nova_accepts_same_images(image: pathlib.Path, name: str) -> None:
    if name in NOT_SHOWN_TO_QEMU:
        return
    only_here, only_by_nova = [], []
    for disk_format in image_corpus.DISK_FORMATS:
        verdict = image_corpus.CASES[name].verdict(disk_format)
        is_taken = verdict.reason is None or verdict.converting
        if nova_takes(image, disk_format) != is_taken:
            (only_by_nova if is_taken else only_here).append(disk_format)
    assert tuple(only_here) == REFUSED_ONLY_HERE.get(name, ())
    assert tuple(only_by_nova) == REFUSED_ONLY_BY_NOVA.get(name, ())


def nova_takes(path: pathlib.Path, disk_format: str) -> bool:
    """Decide as Nova's libvirt driver does before it converts an image."""
    found = library_verdict(path)
    expected = {'raw': {'raw', 'gpt'}, 'ami': set(format_inspector.ALL_FORMATS)}
    if found is None or found not in expected.get(disk_format, {disk_format}):
        return False
    if not passes_safety_check(path, found):
        return False
    try:
        told = json.loads(disk_images.qemu_img('info', '--output=json', str(path)))
    except disk_images.QemuImgError:
        return False
    details = told.get('format-specific', {}).get('data', {})
    return (
        told['format'] == ('raw' if disk_format in ('ami', 'iso') else disk_format)
        and 'backing-filename' not in told
        and 'data-file' not in details
        and (told['format'] != 'vmdk' or details['create-type'] in VMDK_TYPES)
    )


def passes_safety_check(path: pathlib.Path, found: str) -> bool:
    inspector = format_inspector.ALL_FORMATS[found]()
    with path.open('rb') as file:
        while piece := file.read(NOVA_READ_BYTES):
            try:
                inspector.eat_chunk(piece)
            except Exception:  # noqa: BLE001 - it takes no more, as in the library's wrapper
                break
            if inspector.complete:
                break
    inspector.finish()
    try:
        inspector.safety_check()
    except (format_inspector.SafetyCheckFailed, format_inspector.ImageFormatError):
        return False
    return True


@pytest.mark.parametrize('feed_bytes', [1, 511, 65537, 3 * disk_images.MIB])
def test_piece_sizes_do_not_matter(
    inspector: formats.ImageInspector, tmp_path: pathlib.Path, feed_bytes: int
) -> None:
    for number, row in enumerate(('qcow2 with backing file', 'vmdk with extent path', 'iso')):
        case = image_corpus.CASES[row]
        data = case.make(tmp_path / str(number)).read_bytes()[: 300 * 1024].ljust(300 * 1024)
        verdicts = [
            refused_arriving(inspector, case.content, data, size)
            for size in (feed_bytes, FEED_BYTES)
        ]
        assert verdicts[0] == verdicts[1]


def test_qemu_only_names_are_no_inspectors() -> None:
    """A name that no inspector has checked must not pass as checked."""
    assert not set(content._QEMU_ONLY) & set(format_inspector.ALL_FORMATS)


def test_corpus_covers_all_verdicts() -> None:
    every = [
        case.verdict(disk_format)
        for case, disk_format in itertools.product(
            image_corpus.CASES.values(), image_corpus.DISK_FORMATS
        )
    ]
    assert {(v.reason is None, v.early, v.converting) for v in every} == {
        (True, False, False),
        (False, True, False),
        (False, False, False),
        (False, False, True),
    }
