# SPDX-License-Identifier: Apache-2.0
"""The base of all virt drivers, and how one is loaded by its configured name."""

import dataclasses
from collections.abc import Sequence

from oslo_config import cfg
from oslo_utils import importutils

from nova_precache import exception, model
from nova_precache.image import service
from nova_precache.transfer_control import Control

_NAMESPACE = 'nova_precache.virt'


@dataclasses.dataclass(frozen=True)
class CacheReport:
    """What a driver tells about its cache; sizes in bytes.

    ``store_id`` is the same on hosts that share their cache directory.
    """

    store_id: str | None = None
    cache_bytes: int | None = None
    free_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class RootDisk:
    """A root disk as it was made; ``backing_file`` is the base file of an overlay."""

    path: str
    format: str
    size_bytes: int
    backing_file: str | None
    image_existing: bool


class ComputeDriver:
    """A hypervisor's side of image caching; by default it has none."""

    capabilities: dict[str, bool] = {'supports_cache_image': False}  # noqa: RUF012

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """Read the configuration; the host is not touched before ``init_host``."""

    def options_changed(self, conf: cfg.ConfigOpts) -> None:
        """Take over the options that may change at run time; by default there are none."""

    def init_host(self) -> None:
        """Prepare the host, and clear away what an earlier process left unfinished.

        :raises nova_precache.exception.ConfigError: the host cannot be used as configured
        """

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        """Have the image cached, so that a boot does not touch the image service.

        So are the kernel and ramdisk that it names. What is cached already has its age reset.

        :param images: the image service, as whoever asked may see it
        :param progress: called from the thread that does the work, often
        :param control: stops and hastens the work, from whatever thread
        :param needed: the kernel and ramdisk of the image as it is now; None: not known
        :raises nova_precache.exception.CacheError: with the reason why it is not cached
        :raises NotImplementedError: this driver cannot
        """
        raise NotImplementedError

    def create_root_disk(
        self,
        images: service.ImageService,
        image_id: str,
        instance: str,
        size_bytes: int | None = None,
        progress: model.ProgressCallback = lambda progress: None,
        control: Control | None = None,
    ) -> RootDisk:
        """Make the root disk of an instance from the cache, filling it in on a miss.

        :param instance: name of the instance's directory, in Nova its uuid
        :param size_bytes: None or 0 makes it as large as the image is
        :param control: that of a boot; None for one that nobody stops
        :raises nova_precache.exception.InvalidInput: no name of an instance
        :raises nova_precache.exception.RootDiskExists: the instance has a root disk
        :raises nova_precache.exception.RootDiskTooSmall: the image holds more
        :raises nova_precache.exception.CacheError: with the reason why there is no disk
        """
        raise exception.BackendUnsupported(f'{type(self).__name__} makes no root disks')

    def manage_image_cache(self) -> None:
        """Remove what no disk uses and nobody asked for in a while; by default nothing.

        :raises nova_precache.exception.CacheError: nothing was removed, for this reason
        """

    def remove_leftovers(self) -> None:
        """Remove what broken-off work left and nobody went on with; by default nothing.

        It is a part of ``manage_image_cache``, for hosts on which that is never done.

        :raises nova_precache.exception.CacheError: something may be left, for this reason
        """

    def forget_image(self, image_id: str) -> bool:
        """Remove what an unfinished download of the image left; by default none leaves any.

        :returns: whether nothing is left; False: somebody works on the image, or it cannot
            be removed
        :raises nova_precache.exception.CacheError: something may be left, for this reason
        """
        return True

    def cached_images(self, *, recount: bool = True) -> Sequence[model.CachedImage]:
        """List the images in the cache, but for the host and their ids; by default none.

        :param recount: look at the disks, to tell how many are based on each image; else
            that is as it was when they were looked at last
        :raises nova_precache.exception.CacheError: the cache cannot be looked at
        """
        return ()

    def cache_report(self) -> CacheReport:
        """Describe the cache; called with every report of the compute."""
        return CacheReport()


def load_driver(name: str, conf: cfg.ConfigOpts) -> ComputeDriver:
    """Make the driver of a configured name, such as ``libvirt.LibvirtDriver``.

    :raises nova_precache.exception.ConfigError: there is no such driver
    """
    try:
        found = importutils.import_class(f'{_NAMESPACE}.{name}')
    except (ImportError, ValueError) as exc:
        raise exception.ConfigError(f'compute_driver {name!r} cannot be loaded: {exc}') from exc
    if not (isinstance(found, type) and issubclass(found, ComputeDriver)):
        raise exception.ConfigError(f'compute_driver {name!r} is not a virt driver')
    return found(conf)
