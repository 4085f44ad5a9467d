# SPDX-License-Identifier: Apache-2.0
"""The base class of virt drivers, and loading one by its configured name."""

import dataclasses
from collections.abc import Collection, Sequence

from oslo_config import cfg
from oslo_utils import importutils

from nova_precache import exception, model
from nova_precache.download import source
from nova_precache.image import service
from nova_precache.transfer_control import Control

_NAMESPACE = 'nova_precache.virt'


@dataclasses.dataclass(frozen=True)
class CacheReport:
    """A driver's report on its cache; sizes in bytes.

    ``store_id`` is the same on hosts that share their cache directory.

    :ivar reserved_bytes: of the free space, what precaching leaves free
    """

    store_id: str | None = None
    cache_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class RootDisk:
    """A created root disk; ``backing_file`` is the base file of an overlay."""

    path: str
    format: str
    size_bytes: int
    backing_file: str | None
    image_existing: bool


class ComputeDriver:
    """A hypervisor's image caching; by default it has none.

    :cvar capabilities: of the driver as configured on this host, for its reports; also the options
        by which an estimate counts the space that it needs
    """

    capabilities: dict[str, bool | int] = {'supports_cache_image': False}  # noqa: RUF012

    def __init__(self, conf: cfg.ConfigOpts, chooser: source.SourceChooser | None = None) -> None:
        """Read the configuration; the host is not touched before ``init_host``.

        :param chooser: chooses where downloads read; None: from the image service
        """

    def options_changed(self, conf: cfg.ConfigOpts) -> None:
        """Apply the options that may change at run time; by default there are none."""

    def init_host(self) -> None:
        """Prepare the host, and remove the unfinished files of an earlier process.

        :raises nova_precache.exception.ConfigError: the host cannot be used as configured
        """

    def why_unusable(self) -> str | None:
        """Return why no image can be written on this host now, None if one can."""
        return None

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        """Cache the image, so that a boot does not use the image service.

        The kernel and ramdisk that it names are cached, too. Already cached files are touched,
        which resets their age.

        :param images: the image service, with the rights of the caller
        :param progress: called often, from the working thread
        :param control: stops the transfer or raises its priority, from any thread
        :param needed: the current kernel and ramdisk of the image; None: not known
        :raises nova_precache.exception.CacheError: the image is not cached, for this reason
        :raises NotImplementedError: this driver cannot cache images
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
        """Create the root disk of an instance from the cache; fetch the image on a miss.

        :param instance: name of the instance's directory, in Nova its uuid
        :param size_bytes: None or 0: the size of the image's disk
        :param control: that of a boot; None: a boot that is never stopped
        :raises nova_precache.exception.InvalidInput: ``instance`` is not a valid name
        :raises nova_precache.exception.RootDiskExists: the instance has a root disk
        :raises nova_precache.exception.RootDiskTooSmall: the image's disk is larger
        :raises nova_precache.exception.CacheError: no disk was created, for this reason
        """
        raise exception.BackendUnsupported(f'{type(self).__name__} cannot create root disks')

    def manage_image_cache(self) -> None:
        """Remove images that no disk uses and no request has touched recently; by default none.

        :raises nova_precache.exception.CacheError: nothing was removed, for this reason
        """

    def remove_leftovers(self) -> None:
        """Remove partial files too old to resume; by default none.

        It is a part of ``manage_image_cache``, for hosts on which that never runs.

        :raises nova_precache.exception.CacheError: some may be left, for this reason
        """

    def discard_partial(self, image_id: str) -> bool:
        """Remove the partial files of the image; by default there are none.

        :returns: whether none is left; False: the image is in use, or one cannot be removed
        :raises nova_precache.exception.CacheError: some may be left, for this reason
        """
        return True

    def remove_image(self, image_id: str, kept_ids: Collection[str] = ()) -> model.ImageRemoval:
        """Remove the image and its partial files from the cache, unless it is used.

        Its kernel and ramdisk are removed, too, unless something else needs them.

        :param kept_ids: images that stay even if they are the kernel or ramdisk of this one
        :raises nova_precache.exception.BackendUnsupported: there is no cache to remove it from
        :raises nova_precache.exception.CacheError: some files may be left, for this reason
        """
        raise exception.BackendUnsupported(f'{type(self).__name__} caches no images')

    def cached_images(self, *, recount: bool = True) -> Sequence[model.CachedImage]:
        """List the images in the cache, without host and image ids; by default none.

        :param recount: count again how many disks are based on each image; else use the
            previous count
        :raises nova_precache.exception.CacheError: the cache cannot be read
        """
        return ()

    def cache_report(self) -> CacheReport:
        """Describe the cache; called with every report of the compute."""
        return CacheReport()


def load_driver(
    name: str, conf: cfg.ConfigOpts, chooser: source.SourceChooser | None = None
) -> ComputeDriver:
    """Load the driver of a configured name, such as ``libvirt.LibvirtDriver``.

    :param chooser: as of :class:`ComputeDriver`
    :raises nova_precache.exception.ConfigError: there is no such driver
    """
    try:
        found = importutils.import_class(f'{_NAMESPACE}.{name}')
    except (ImportError, ValueError) as exc:
        raise exception.ConfigError(f'compute_driver {name!r} cannot be loaded: {exc}') from exc
    if not (isinstance(found, type) and issubclass(found, ComputeDriver)):
        raise exception.ConfigError(f'compute_driver {name!r} is not a virt driver')
    return found(conf, chooser)
