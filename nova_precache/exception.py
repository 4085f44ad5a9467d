# SPDX-License-Identifier: Apache-2.0
"""The errors of the service.

::

    PrecacheError
    ├── InvalidInput
    │   ├── DataRefused
    │   ├── ImageNotUsable
    │   ├── InvalidAggregateAction
    │   ├── RootDiskTooSmall
    │   └── TooMany
    ├── NotFound
    │   ├── AggregateNotFound
    │   ├── AggregateHostNotFound
    │   ├── ComputeHostNotFound
    │   ├── CellNotFound
    │   ├── RequestNotFound
    │   └── PinNotFound
    ├── Conflict
    │   ├── AggregateNameExists
    │   ├── AggregateHostExists
    │   ├── InvalidHost
    │   ├── AgentConflict
    │   ├── HostNotMapped
    │   ├── CellExists
    │   ├── InUse
    │   ├── RootDiskExists
    │   ├── StatusConflict
    │   ├── NotByNova
    │   └── VersionUnsupported
    ├── Forbidden
    │   ├── PolicyNotAuthorized
    │   ├── ReadOnlyInventory
    │   └── TokenRefused
    ├── Unavailable
    │   ├── DatabaseUnavailable
    │   ├── IdentityServiceUnavailable
    │   ├── ImageServiceUnavailable
    │   └── OutOfTime
    ├── ConfigError
    ├── CellUnreachable
    │   └── BrokerRefused
    ├── HostOccupied
    └── CacheError
        ├── ImageGone
        ├── ImageUnauthorized
        ├── UnbootableImage
        ├── UnsafeImage
        ├── UnverifiedImage
        ├── ImageMismatch
        ├── DownloadInterrupted
        ├── NotEnoughSpace
        ├── PlaceTaken
        ├── NotOurs
        ├── StorageError
        ├── ConversionFailed
        │   └── ConversionTimedOut
        ├── BackendUnsupported
        └── TransferStopped
            ├── Cancelled
            ├── DeadlinePassed
            ├── NameLost
            ├── Paused
            └── ShuttingDown

Domain errors know no HTTP: ``api/faults.py`` has the one table that maps them.
Errors of other libraries are translated where they are called.
"""

import errno
from typing import ClassVar

from nova_precache import model


class PrecacheError(Exception):
    """Anything that this service raises on purpose."""


class InvalidInput(PrecacheError):
    """What was asked for cannot be; the message names the field."""


class DataRefused(InvalidInput):
    """The database cannot hold a value: its encoding has not the characters, or it is too long."""

    def __init__(self) -> None:
        super().__init__('The database cannot hold what was given')


class ImageNotUsable(InvalidInput):
    """An image is unknown, not visible to whoever asked, or not active."""

    def __init__(self, image_id: str, why: str) -> None:
        super().__init__(f'Image {image_id} {why}')
        self.image_id = image_id


class InvalidAggregateAction(InvalidInput):
    """An aggregate may not be changed or deleted like this."""


class RootDiskTooSmall(InvalidInput):
    """A root disk was to be smaller than what its image holds."""

    def __init__(self, image_id: str, size_bytes: int, virtual_size_bytes: int) -> None:
        super().__init__(
            f'Image {image_id} needs a root disk of at least {virtual_size_bytes} bytes, '
            f'{size_bytes} asked'
        )


class TooMany(InvalidInput):
    """A configured limit would be exceeded; the message names it."""

    def __init__(self, what: str, asked: int, limit_name: str, limit: int) -> None:
        super().__init__(f'Too many {what}: {asked} asked, {limit_name} is {limit}')


class NotFound(PrecacheError):
    """Something that was named does not exist."""


class AggregateNotFound(NotFound):
    """No aggregate has this id."""

    def __init__(self, aggregate_id: object) -> None:
        super().__init__(f'Aggregate {aggregate_id} could not be found.')


class AggregateHostNotFound(NotFound):
    """The aggregate does not hold this host."""

    def __init__(self, aggregate_id: int, host: str) -> None:
        super().__init__(f'Aggregate {aggregate_id} has no host {host}.')


class ComputeHostNotFound(NotFound):
    """No compute host of this name is mapped to a cell."""

    def __init__(self, host: str) -> None:
        super().__init__(f'Compute host {host} could not be found.')


class CellNotFound(NotFound):
    """No cell mapping has this uuid or name."""

    def __init__(self, cell: str) -> None:
        super().__init__(f'Cell {cell} has no mapping.')


class RequestNotFound(NotFound):
    """No cache request has this id, or it is another project's."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f'Cache request {request_id} could not be found.')


class PinNotFound(NotFound):
    """No pin has this id, or it is another project's."""

    def __init__(self, pin_id: str) -> None:
        super().__init__(f'Pin {pin_id} could not be found.')


class Conflict(PrecacheError):
    """What exists already stands in the way."""


class AggregateNameExists(Conflict):
    """Another aggregate has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'Aggregate {name} already exists.')


class AggregateHostExists(Conflict):
    """The aggregate holds this host already."""

    def __init__(self, aggregate_id: int, host: str) -> None:
        super().__init__(f'Aggregate {aggregate_id} already has host {host}.')


class InvalidHost(Conflict):
    """A host may not be where it was to be put."""

    def __init__(self, aggregate_id: int, why: str) -> None:
        super().__init__(f'Cannot add host to aggregate {aggregate_id}. Reason: {why}.')


class AgentConflict(Conflict):
    """Another living agent reports under the same host name, or in another cell."""


class HostNotMapped(Conflict):
    """A Nova that keeps the inventory has not mapped the host of an agent to its cell."""


class CellExists(Conflict):
    """Another cell has this name or these URLs."""


class InUse(Conflict):
    """What is to be deleted is still needed; the message says what for."""


class RootDiskExists(Conflict):
    """The instance has a root disk, which is never overwritten."""

    def __init__(self, path: str) -> None:
        super().__init__(f'Root disk {path} exists already.')


class StatusConflict(Conflict):
    """Something is not in the state for what was asked of it."""

    def __init__(self, what: str, name: str, status: str, action: str) -> None:
        super().__init__(f'{what} {name} is {status}: it cannot be {action}.')


class NotByNova(Conflict):
    """A stock nova-compute cannot do this, or tell this."""


class VersionUnsupported(Conflict):
    """A call may not be sent at its version, or whoever was called does not know that."""


class Forbidden(PrecacheError):
    """Whoever asked may not do this."""


class PolicyNotAuthorized(Forbidden):
    """A policy rule forbids it."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"Policy doesn't allow {rule} to be performed.")
        self.rule = rule


class ReadOnlyInventory(Forbidden):
    """Aggregates belong to Nova's database, which this service never writes."""


class TokenRefused(Forbidden):
    """A compute that works on no image may not read any."""


class Unavailable(PrecacheError):
    """Something that this service needs cannot serve now, and may soon."""

    retry_after_seconds: ClassVar[int] = 10


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, or cannot serve now.

    :ivar reason: what it said, for the log alone: it names the server
    """

    def __init__(self, reason: str, *, is_reached: bool = False) -> None:
        what = 'serve this now' if is_reached else 'be reached'
        super().__init__(f'The database cannot {what}. Please try again later.')
        self.reason = reason


class IdentityServiceUnavailable(Unavailable):
    """Keystone could not be reached or cannot validate a token now."""


class ImageServiceUnavailable(Unavailable):
    """Glance could not be reached or answered with a server error."""


class OutOfTime(Unavailable):
    """An answer did not come before the deadline of those who wait for it."""

    def __init__(self) -> None:
        super().__init__('No answer came in time. Please try again later.')


class ConfigError(PrecacheError):
    """The configuration contradicts itself or the machine; names the option."""


class CellUnreachable(PrecacheError):
    """A cell's broker takes no message, or its database gives no answer."""


class BrokerRefused(CellUnreachable):
    """A broker accepts neither the user, the password nor the virtual host, or forbids it a queue.

    It answers, so this does not pass by itself: someone has to change an option or a permission.
    """


class HostOccupied(PrecacheError):
    """A host may not be called now: a call that it never answered may still be at work there.

    :ivar seconds: until that call is over for certain
    :ivar is_lost: it is the call that was to be made, and an attempt
    """

    def __init__(self, why: str, seconds: float, *, is_lost: bool = False) -> None:
        super().__init__(why)
        self.seconds = seconds
        self.is_lost = is_lost


class CacheError(PrecacheError):
    """Caching one image on one host failed; ``retry`` says whether it can pass.

    ``keeps_partial`` says whether the bytes that came are of use to another attempt.
    """

    retry: ClassVar[model.Retry] = model.Retry.NEVER
    keeps_partial: bool = False


class ImageGone(CacheError):
    """The image was deleted, deactivated or hidden while it was wanted."""


class ImageUnauthorized(CacheError):
    """Glance refused the token, a fresh one too."""

    retry = model.Retry.BACKOFF
    keeps_partial = True


class UnbootableImage(CacheError):
    """The image is no disk that an instance boots from as it is, such as an archive."""


class UnsafeImage(CacheError):
    """The image could reach files of the host, or is not what it says it is."""

    def __init__(self, why: str) -> None:
        super().__init__(f'unsafe image: {why}')


class UnverifiedImage(CacheError):
    """Glance knows no hash of the image, so its bytes cannot be verified."""


class ImageMismatch(CacheError):
    """The bytes that came are not those that Glance hashed."""

    retry = model.Retry.ONCE


class DownloadInterrupted(CacheError):
    """The connection to the source of the bytes broke or stalled."""

    retry = model.Retry.BACKOFF
    keeps_partial = True


class NotEnoughSpace(CacheError):
    """The file system has no room for the image and the reserve, or for so large a file."""


class PlaceTaken(CacheError):
    """Something that is no image has the name of a base file, and stays until it is removed."""


class NotOurs(CacheError):
    """The base file is there, but this process may not read it, or not make it young.

    That does not pass by itself: the file has to change, or the rights of this process.
    """

    def __init__(self, cannot_be: str, why: str) -> None:
        super().__init__(f'{model.NOT_OURS} {cannot_be}: {why}')


class StorageError(CacheError):
    """The file system refused a write, a rename or a lock."""

    retry = model.Retry.BACKOFF


def storage_failure(doing: str, error: OSError) -> NotEnoughSpace | StorageError:
    """Make the error for what the operating system refused while ``doing``."""
    reason = f'{doing}: {error.strerror or error}'
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NotEnoughSpace(reason)
    return StorageError(reason)


class ConversionFailed(CacheError):
    """qemu-img could not read or convert the image within its limits."""


class ConversionTimedOut(ConversionFailed):
    """qemu-img took too long, as it may on a host that is busy; what came can be used again."""

    retry = model.Retry.BACKOFF
    keeps_partial = True


class BackendUnsupported(CacheError):
    """The driver or its image backend keeps no image cache."""


class TransferStopped(CacheError):
    """Somebody had the work end before it was done."""

    keeps_partial = True


class Cancelled(TransferStopped):
    """The image is not wanted any more."""

    def __init__(self, why: str, *, keep_partial: bool = False) -> None:
        super().__init__(why)
        self.keeps_partial = keep_partial


class DeadlinePassed(TransferStopped):
    """The time in which the image was to come is over; another window goes on from here."""


class Paused(TransferStopped):
    """The work is to go on later from where it stopped."""

    retry = model.Retry.LATER


class ShuttingDown(TransferStopped):
    """The compute stops; whoever asks again later gets the image."""

    retry = model.Retry.LATER


class NameLost(TransferStopped):
    """Conductors know another agent under this host's name, or none; the other is called."""

    retry = model.Retry.LATER
