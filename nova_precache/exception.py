# SPDX-License-Identifier: Apache-2.0
"""The errors of the service.

::

    PrecacheError
    ├── InvalidInput
    │   ├── DataRefused
    │   ├── ImageNotUsable
    │   ├── InvalidAggregateAction
    │   ├── InvalidField
    │   │   └── InvalidMarker
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
    │   ├── NothingToRetry
    │   ├── StatusConflict
    │   ├── RemovalRefused
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
    │   ├── NoAnswer
    │   └── OutOfTime
    ├── ConfigError
    ├── CellUnreachable
    │   └── BrokerRefused
    ├── HostOccupied
    └── CacheError
        ├── ImageGone
        ├── ImageUnauthorized
        │   └── CredentialsRefused
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
from collections.abc import Collection
from typing import ClassVar

from nova_precache import model, shown


class PrecacheError(Exception):
    """The base of all errors that this service raises on purpose.

    :ivar field: the field of a body or a query that caused it, if it was one, by its innermost
        name: ``images`` for the first of the images
    :ivar detail: what is wrong with the field, without its name and value; None: the message
    """

    field: str | None = None
    detail: str | None = None


class InvalidInput(PrecacheError):
    """A request is invalid; the message names the field."""


class DataRefused(InvalidInput):
    """The database cannot store a value: its encoding lacks a character, or it is too long."""

    def __init__(self) -> None:
        super().__init__('The database cannot store a given value')


class ImageNotUsable(InvalidInput):
    """An image is unknown, not visible to the caller, not active, or cannot be booted."""

    field = 'images'

    def __init__(self, image_id: str, why: str) -> None:
        super().__init__(f'Image {image_id} {why}')
        self.image_id = image_id


class InvalidField(InvalidInput):
    """A field of a body or a query has an invalid value, which no schema can express."""

    def __init__(self, field: str, value: object, why: str, kind: str = 'field/attribute') -> None:
        super().__init__(f'Invalid input for {kind} {field}. Value: {shown.value(value)}. {why}')
        self.field, self.detail = field, why


class InvalidMarker(InvalidField):
    """No item of the list has this marker."""

    def __init__(self, marker: str | int) -> None:
        super().__init__('marker', marker, 'It is not in the list.', 'query parameters')


class InvalidAggregateAction(InvalidInput):
    """This change or deletion of an aggregate is not allowed."""


class RootDiskTooSmall(InvalidInput):
    """The requested root disk is smaller than the disk of its image."""

    def __init__(self, image_id: str, size_bytes: int, virtual_size_bytes: int) -> None:
        least, asked = shown.excess(virtual_size_bytes, size_bytes)
        super().__init__(f'Image {image_id} needs a root disk of at least {least}, not {asked}')


class TooMany(InvalidInput):
    """A configured limit would be exceeded; the message names it."""

    def __init__(self, what: str, asked: int, limit_name: str, limit: int) -> None:
        super().__init__(f'Too many {what}: {asked} asked, {limit_name} is {limit}')


class NotFound(PrecacheError):
    """A named object does not exist."""


class AggregateNotFound(NotFound):
    """No aggregate has this id."""

    field = 'aggregate'

    def __init__(self, aggregate_id: object) -> None:
        super().__init__(f'Aggregate {aggregate_id} could not be found.')


class AggregateHostNotFound(NotFound):
    """The aggregate does not hold this host."""

    def __init__(self, aggregate_id: int, host: str) -> None:
        super().__init__(f'Aggregate {aggregate_id} has no host {host}.')


class ComputeHostNotFound(NotFound):
    """No compute host of this name is mapped to a cell."""

    field = 'host'

    def __init__(self, host: str) -> None:
        super().__init__(f'Compute host {host} could not be found.')


class CellNotFound(NotFound):
    """No cell mapping has this uuid or name."""

    field = 'cell'

    def __init__(self, cell: str) -> None:
        super().__init__(f'Cell {cell} has no mapping.')


class RequestNotFound(NotFound):
    """No cache request has this id, or it is another project's."""

    field = 'request'

    def __init__(self, request_id: str) -> None:
        super().__init__(f'Cache request {shown.value(request_id)} could not be found.')


class PinNotFound(NotFound):
    """No pin has this id, or it is another project's."""

    field = 'pin'

    def __init__(self, pin_id: str) -> None:
        super().__init__(f'Pin {shown.value(pin_id)} could not be found.')


class Conflict(PrecacheError):
    """The request conflicts with the current state."""


class AggregateNameExists(Conflict):
    """Another aggregate has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'Aggregate {name} already exists.')


class AggregateHostExists(Conflict):
    """The aggregate holds this host already."""

    def __init__(self, aggregate_id: int, host: str) -> None:
        super().__init__(f'Aggregate {aggregate_id} already has host {host}.')


class InvalidHost(Conflict):
    """A host may not be added to this aggregate."""

    def __init__(self, aggregate_id: int, why: str) -> None:
        super().__init__(f'Cannot add host to aggregate {aggregate_id}. Reason: {why}.')


class AgentConflict(Conflict):
    """Another living agent reports under the same host name, or in another cell."""


class HostNotMapped(Conflict):
    """A Nova that keeps the inventory has not mapped the host of an agent to its cell."""


class CellExists(Conflict):
    """Another cell has this name or these URLs."""


class InUse(Conflict):
    """An object to delete is still in use; the message says for what."""


class RootDiskExists(Conflict):
    """The instance has a root disk, which is never overwritten."""

    def __init__(self, path: str) -> None:
        super().__init__(f'Root disk {path} exists already.')


class StatusConflict(Conflict):
    """The status of an object does not allow the action."""

    def __init__(self, what: str, name: str, status: str, action: str) -> None:
        super().__init__(f'{what} {name} is {status}: it cannot be {action}.')


class NothingToRetry(Conflict):
    """All tasks of the named hosts succeeded."""

    def __init__(self, request_id: str, hosts: Collection[str]) -> None:
        super().__init__(f'Cache request {request_id} has no task to retry on {shown.some(hosts)}.')


class RemovalRefused(Conflict):
    """An image cannot be removed from the cache of a host now; the message says why."""


class NotByNova(Conflict):
    """A stock nova-compute cannot do this, or does not report it."""


class VersionUnsupported(Conflict):
    """A call may not be sent at its version, or the called service does not know the version."""


class Forbidden(PrecacheError):
    """The caller may not do this."""


class PolicyNotAuthorized(Forbidden):
    """A policy rule forbids it."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"Policy doesn't allow {rule} to be performed.")
        self.rule = rule


class ReadOnlyInventory(Forbidden):
    """Aggregates belong to Nova's database, which this service never writes."""


class TokenRefused(Forbidden):
    """A compute that works on no image gets no token to read one."""


class Unavailable(PrecacheError):
    """A service that this one depends on is temporarily unavailable."""

    retry_after_seconds: ClassVar[int] = 10


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, or cannot serve now.

    :ivar reason: its error, for the log only: it names the server
    :ivar is_reached: it answered, such as that a lock is not available
    """

    def __init__(self, reason: str, *, is_reached: bool = False) -> None:
        what = 'serve requests now' if is_reached else 'be reached'
        super().__init__(f'The database cannot {what}. Please try again later.')
        self.reason = reason
        self.is_reached = is_reached


class IdentityServiceUnavailable(Unavailable):
    """Keystone could not be reached or cannot validate a token now."""


class ImageServiceUnavailable(Unavailable):
    """Glance could not be reached or answered with a server error."""


class NoAnswer(Unavailable):
    """No conductor or compute answered; what was requested may have been done anyway."""


class OutOfTime(Unavailable):
    """An answer did not arrive before the deadline."""

    def __init__(self) -> None:
        super().__init__('No answer arrived in time. Please try again later.')


class ConfigError(PrecacheError):
    """The configuration is inconsistent or does not fit the machine; names the option."""


class CellUnreachable(PrecacheError):
    """A cell's broker takes no message, or its database does not answer."""


class BrokerRefused(CellUnreachable):
    """A broker refuses the user, the password, the virtual host, or access to a queue.

    Since it answers, this does not resolve itself: an operator must change an option or a
    permission.
    """


class HostOccupied(PrecacheError):
    """A host may not be called now: an earlier call may still run there, or it is restarting.

    :ivar seconds: until it may be called or counts as gone
    :ivar is_lost: the call without an answer is the current one, which counts as an attempt
    """

    def __init__(self, why: str, seconds: float, *, is_lost: bool = False) -> None:
        super().__init__(why)
        self.seconds = seconds
        self.is_lost = is_lost


class CacheError(PrecacheError):
    """Caching one image on one host failed; ``retry`` says whether to try again.

    ``keeps_partial`` says whether another attempt can use the received bytes; ``is_attempt``,
    whether it counts against the limit of attempts.
    """

    retry: ClassVar[model.Retry] = model.Retry.NEVER
    keeps_partial: bool = False
    is_attempt: bool = True


class ImageGone(CacheError):
    """The image was deleted, deactivated or hidden while it was needed."""


class ImageUnauthorized(CacheError):
    """Glance refused the token, also a fresh one."""

    retry = model.Retry.BACKOFF
    keeps_partial = True


class CredentialsRefused(ImageUnauthorized):
    """Keystone refuses this service's own credentials, which an operator must correct."""


class UnbootableImage(CacheError):
    """The image is not a disk that an instance can boot from, such as an archive."""


class UnsafeImage(CacheError):
    """The image could access files of the host, or does not have its declared format."""

    def __init__(self, why: str) -> None:
        super().__init__(f'unsafe image: {why}')


class UnverifiedImage(CacheError):
    """Glance knows no hash of the image, so its bytes cannot be verified."""


class ImageMismatch(CacheError):
    """The received bytes are not those that Glance hashed."""

    retry = model.Retry.ONCE


class DownloadInterrupted(CacheError):
    """The connection to the source of the bytes broke or stalled."""

    retry = model.Retry.BACKOFF
    keeps_partial = True


class SlowDownload(CacheError):
    """The source of the bytes sends too slowly; the host gives its slot back.

    :ivar gained_bytes: received in this transfer, in addition to those kept before
    """

    retry = model.Retry.BACKOFF
    keeps_partial = True

    def __init__(self, why: str, gained_bytes: int) -> None:
        super().__init__(why)
        self.gained_bytes = gained_bytes
        self.is_attempt = gained_bytes == 0


class NotEnoughSpace(CacheError):
    """The file system lacks space for the image and the reserve, or allows no file so large."""


class PlaceTaken(CacheError):
    """A file that is no image and cannot be replaced has the name of a base file."""


class NotOurs(CacheError):
    """The base file exists, but this process may not read it, or not touch it.

    This does not resolve itself: the file or the rights of this process must change.
    """

    def __init__(self, cannot_be: str, why: str) -> None:
        super().__init__(f'{model.NOT_OURS} {cannot_be}: {why}')


class StorageError(CacheError):
    """The file system refused a write, a rename or a lock."""

    retry = model.Retry.BACKOFF


def storage_failure(doing: str, error: OSError) -> NotEnoughSpace | StorageError:
    """Build the error for an OSError that occurred while ``doing``."""
    reason = f'{doing}: {error.strerror or error}'
    if error.filename is not None and str(error.filename) not in doing:
        reason = f'{reason}: {error.filename}'
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NotEnoughSpace(reason)
    return StorageError(reason)


class ConversionFailed(CacheError):
    """qemu-img could not read or convert the image within its limits."""


class ConversionTimedOut(ConversionFailed):
    """qemu-img took too long, as it may on a busy host; the download can be used again."""

    retry = model.Retry.BACKOFF
    keeps_partial = True


class BackendUnsupported(CacheError):
    """The driver or its image backend keeps no image cache."""


class TransferStopped(CacheError):
    """The transfer was stopped before it was complete."""

    keeps_partial = True


class Cancelled(TransferStopped):
    """The image is no longer needed."""

    def __init__(self, why: str, *, keep_partial: bool = False) -> None:
        super().__init__(why)
        self.keeps_partial = keep_partial


class DeadlinePassed(TransferStopped):
    """The deadline for the image has passed; a later request can resume the download."""


class Paused(TransferStopped):
    """The transfer is paused, and will be resumed later."""

    retry = model.Retry.LATER


class ShuttingDown(TransferStopped):
    """The compute is stopping; a later attempt can get the image."""

    retry = model.Retry.LATER


class NameLost(TransferStopped):
    """The conductors know another agent under this host's name, which they call, or none."""

    retry = model.Retry.LATER
