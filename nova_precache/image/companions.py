# SPDX-License-Identifier: Apache-2.0
"""The kernel and ramdisk of an image, which Nova fetches at each boot beside the image itself.

Nova takes them from the properties ``kernel_id`` and ``ramdisk_id``. It looks both up with the
user's token before it accepts a server, and stores them unchanged. The value ``nokernel`` of
``kernel_id`` means that the image boots without either. Properties of a kernel are not followed.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

from nova_precache import exception, model, wire
from nova_precache.image import service

_NO_KERNEL = 'nokernel'


def look_up(image: model.Image, show: Callable[[str], model.Image]) -> model.Image:
    """Return the image with its companions, each once.

    :param show: looks a companion up, and raises if it may not be used
    :raises nova_precache.exception.ImageNotUsable: the image names an unusable companion
    :raises nova_precache.exception.PrecacheError: as ``show`` raises; names the image, too
    """
    found: dict[str, model.Image] = {}
    for name, companion_id in _named(image).items():
        with _errors_of(image, name, companion_id):
            companion = show(companion_id)
            if companion.id == image.id:
                raise exception.ImageNotUsable(image.id, 'cannot be its own kernel or ramdisk')
        found[companion.id] = companion
    return dataclasses.replace(image, companions=tuple(found.values()))


def _named(image: model.Image) -> Mapping[str, str]:
    """Map the properties that are set to their ids."""
    if image.kernel_id == _NO_KERNEL:
        return {}
    properties = {'kernel_id': image.kernel_id, 'ramdisk_id': image.ramdisk_id}
    named = {name: value for name, value in properties.items() if value is not None}
    for name, value in named.items():
        if not isinstance(value, str) or not service.IMAGE_ID.fullmatch(value):
            raise exception.ImageNotUsable(
                image.id, f'has an invalid {name}: {wire.shown(value)} is not the id of an image'
            )
    return named


@contextlib.contextmanager
def _errors_of(image: model.Image, name: str, companion_id: str) -> Iterator[None]:
    needs = f'cannot be booted without its {name} {companion_id}'
    try:
        yield
    except exception.ImageNotUsable as exc:
        raise exception.ImageNotUsable(image.id, f'{needs}: {exc}') from exc
    except exception.CacheError as exc:
        raise type(exc)(f'Image {image.id} {needs}: {exc}') from exc
