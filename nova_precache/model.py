# SPDX-License-Identifier: Apache-2.0
"""The nouns of the service: data that crosses a boundary between its parts.

Everything here is immutable and knows no database, HTTP or RPC. States are
strings, so that a value of a newer release passes through an older one.
"""

import dataclasses
import datetime
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from nova_precache import reasons

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SortKey:
    """A field by which a list is sorted."""

    name: str
    is_descending: bool = False


class RequestStatus(enum.StrEnum):
    """The status of a request; the second group is final."""

    ACCEPTED = 'accepted'
    PLANNED = 'planned'
    RUNNING = 'running'
    PAUSED = 'paused'
    CANCELLING = 'cancelling'

    COMPLETED = 'completed'
    PARTIAL = 'partial'
    FAILED = 'failed'
    CANCELLED = 'cancelled'
    EXPIRED = 'expired'


class TaskStatus(enum.StrEnum):
    """The status of a (request, host, image) or a job; the second group is final.

    The words cached, existing, unsupported, error and skipped have their meaning in Nova.
    """

    QUEUED = 'queued'
    RETRY_WAIT = 'retry_wait'
    DOWNLOADING = 'downloading'
    VERIFYING = 'verifying'
    CONVERTING = 'converting'

    CACHED = 'cached'
    EXISTING = 'existing'
    UNSUPPORTED = 'unsupported'
    ERROR = 'error'
    SKIPPED = 'skipped'
    CANCELLED = 'cancelled'
    EXPIRED = 'expired'


class PinStatus(enum.StrEnum):
    """The status of a pin."""

    ACTIVE = 'active'
    ENDED = 'ended'


class Phase(enum.StrEnum):
    """The phase in a request's notification; the first three are Nova's, in Nova's order."""

    START = 'start'
    PROGRESS = 'progress'
    END = 'end'

    CANCEL = 'cancel'
    PAUSE = 'pause'
    RESUME = 'resume'
    RETRY = 'retry'
    CHANGE = 'change'


REQUEST_ACTIVE = frozenset(
    {
        RequestStatus.ACCEPTED,
        RequestStatus.PLANNED,
        RequestStatus.RUNNING,
        RequestStatus.PAUSED,
        RequestStatus.CANCELLING,
    }
)
TASK_WAITING = frozenset({TaskStatus.QUEUED, TaskStatus.RETRY_WAIT})
TASK_WORKING = frozenset({TaskStatus.DOWNLOADING, TaskStatus.VERIFYING, TaskStatus.CONVERTING})
TASK_IN_FLIGHT = TASK_WAITING | TASK_WORKING
TASK_SUCCEEDED = frozenset({TaskStatus.CACHED, TaskStatus.EXISTING})
# Begins the reason of a task whose file exists but may not be used by the compute.
NOT_OURS = 'present, but cannot be'
# Without bytes for so long, a download stands still.
STILL_SECONDS = 10.0
# A compute reports the progress of a transfer that moves at least so often, and more often with a
# shorter ``report_interval``.
LONGEST_REPORT_SECONDS = 20.0


class Retry(enum.StrEnum):
    """Whether to try again after an outcome that is not a success."""

    NEVER = 'never'
    ONCE = 'once'
    BACKOFF = 'backoff'
    LATER = 'later'  # nothing was tried: it does not count as an attempt


class StopWhy(enum.StrEnum):
    """Why a job is stopped, which decides its outcome and whether its partial file is kept."""

    CANCELLED = 'cancelled'
    PAUSED = 'paused'
    DEADLINE = 'deadline'


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of one image's transfer; sizes in bytes, the rate in bytes per second."""

    status: str
    bytes_done: int
    bytes_total: int | None = None
    rate_bytes: int | None = None


ProgressCallback = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class TransferOptions:
    """Options of one image's transfer, set by the caller of a compute.

    :ivar max_rate_bytes: per second; in addition to the host's limit for all transfers
    :ivar deadline_seconds: from now; bytes received by then are kept
    :ivar is_last_attempt: no automatic retry follows, so no partial file is kept
    """

    max_rate_bytes: int | None = None
    deadline_seconds: float | None = None
    is_last_attempt: bool = False


@dataclasses.dataclass(frozen=True)
class OptionChange:
    """A change of the rate and the deadline of a running transfer.

    :ivar number: a later change of the same call has a higher one
    :ivar max_rate_bytes: as in ``TransferOptions``; likewise ``deadline_seconds``
    """

    number: int
    max_rate_bytes: int | None = None
    deadline_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class CacheResult:
    """A driver's result for one image: it existed already, or bytes were moved."""

    existing: bool
    bytes_done: int = 0
    bytes_total: int | None = None


@dataclasses.dataclass(frozen=True)
class ImageOutcome:
    """The result of one attempt at (host, image), as a compute reports it.

    :ivar bytes_done: moved in this attempt
    :ivar at_once: if the attempt is repeated later, no delay is needed
    :ivar seconds: what the transfer took on the compute, None if none ran or it is not known
    :ivar gained_bytes: if the transfer was too slow, the received bytes that are kept in addition
        to those of earlier attempts; None for any other outcome. An older conductor ignores it:
        to it, this is an error like others that are retried.
    """

    status: str
    reason: str | None = None
    retry: str = Retry.NEVER
    bytes_done: int = 0
    bytes_total: int | None = None
    at_once: bool = False
    seconds: float | None = dataclasses.field(default=None, compare=False)
    gained_bytes: int | None = None

    def __post_init__(self) -> None:
        """Clean the reason, before it reaches a log, a message or a database."""
        if self.reason is not None:
            object.__setattr__(self, 'reason', reasons.clean(self.reason))

    @property
    def is_slow(self) -> bool:
        """Whether the host was too slow, and gives its slot back."""
        return self.retry == Retry.BACKOFF and self.gained_bytes is not None

    @property
    def is_attempt(self) -> bool:
        """Whether it counts as an attempt: not if nothing was tried, or a slow host moves on."""
        return self.retry != Retry.LATER and not (self.is_slow and self.gained_bytes)

    @property
    def is_failure(self) -> bool:
        """Whether the image was wanted and is not cached: a cancelled one is not wanted."""
        return self.status not in TASK_SUCCEEDED and self.status != TaskStatus.CANCELLED

    @property
    def line(self) -> str:
        """The outcome for a log: the status, bytes, seconds and rate, and the reason."""
        moved_bytes = self.bytes_done if self.gained_bytes is None else self.gained_bytes
        text = f'{self.status}, {moved_bytes} bytes'
        if self.seconds is not None:
            rate_bytes = int(moved_bytes / max(self.seconds, 0.001))
            text += f' in {self.seconds:.1f} s ({rate_bytes} bytes/s)'
        return f'{text}: {self.reason}' if self.reason else text

    def to_wire(self) -> Json:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, payload: Mapping[str, Any]) -> 'ImageOutcome':
        """Build an outcome from a payload with checked fields; ignore unknown keys."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in payload.items() if key in known})


def first_of(ids: Sequence[str], most: int = 3) -> str:
    """Name the first few of many objects, for a log."""
    named = ', '.join(ids[:most])
    return f'{named} and {len(ids) - most} more' if len(ids) > most else named


@dataclasses.dataclass(frozen=True)
class Companion:
    """A kernel or ramdisk without which an image does not boot, stored unchanged.

    :ivar size_bytes: size of its base file; None if Glance does not know it
    """

    id: str
    size_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """An image as Glance describes it; ``size`` and ``virtual_size`` in bytes.

    ``id`` is in the spelling that Glance returns, from which Nova derives the
    name of the base file.

    :ivar kernel_id: the unchecked property; likewise ``ramdisk_id``
    :ivar companions: the kernel and ramdisk that these name, once they were looked up
    """

    id: str
    name: str | None = None
    status: str = 'active'
    size: int | None = None
    virtual_size: int | None = None
    disk_format: str | None = None
    container_format: str | None = None
    visibility: str = 'private'
    owner: str | None = None
    checksum: str | None = None
    hash_algo: str | None = None
    hash_value: str | None = None
    kernel_id: str | None = None
    ramdisk_id: str | None = None
    companions: 'tuple[Image, ...]' = ()

    @property
    def parts(self) -> 'tuple[Image, ...]':
        """The images that a boot needs: the companions, then the image itself."""
        return *self.companions, self

    @property
    def total_bytes(self) -> int | None:
        """The size of all parts; None if one is unknown."""
        sizes = [part.size for part in self.parts]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def needed(self) -> tuple[Companion, ...]:
        """The ids and sizes by which a compute recognises the companions in its cache."""
        return tuple(Companion(each.id, each.size) for each in self.companions)


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """A host aggregate; hosts are in the order in which they were added."""

    id: int
    uuid: str
    name: str
    hosts: tuple[str, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created_at: datetime.datetime | None = None
    updated_at: datetime.datetime | None = None

    @property
    def availability_zone(self) -> str | None:
        return self.metadata.get('availability_zone')


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell mapping. The URLs hold passwords and stay out of every repr.

    :ivar transport_problem: why there is no transport URL, if it is a template that cannot be
        filled in; the same for the database
    """

    uuid: str
    name: str
    transport_url: str = dataclasses.field(repr=False)
    database_connection: str = dataclasses.field(default='', repr=False)
    disabled: bool = False
    transport_problem: str | None = None
    database_problem: str | None = None

    @property
    def disabled_reason(self) -> str | None:
        """Why its computes are not called; None if they are."""
        if self.disabled:
            return f'cell {self.name} is disabled'
        if not self.transport_url:
            why = self.transport_problem or 'it has no transport URL'
            return f'cell {self.name} cannot be reached: {why}'
        return None


@dataclasses.dataclass(frozen=True)
class ReportAnswer:
    """A conductor's answer to the report of a compute.

    :ivar now: the database's time
    :ivar next_seconds: time until the next report of a host whose transfers move
    :ivar is_taken: whether the report was read; one that arrives too late is not
    """

    now: datetime.datetime
    next_seconds: float
    is_taken: bool = True

    def to_wire(self) -> Json:
        return {
            'now': f'{self.now.isoformat()}Z',
            'next_seconds': self.next_seconds,
            'is_taken': self.is_taken,
        }


@dataclasses.dataclass(frozen=True)
class Agent:
    """A compute host's agent as it last reported itself; sizes in bytes.

    :ivar stopped_at: when it has stopped cleanly; None if it has started since
    """

    host: str
    agent_id: str
    cell_uuid: str
    boot_id: str | None = None
    version: str | None = None
    driver: str | None = None
    store_id: str | None = None
    cache_bytes: int | None = None
    free_bytes: int | None = None
    capabilities: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    started_at: datetime.datetime | None = None
    seen_at: datetime.datetime | None = None
    stopped_at: datetime.datetime | None = None

    @property
    def reserved_disk_bytes(self) -> int | None:
        """Its option of this name; None from a compute of an earlier release."""
        value = self.capabilities.get('reserved_disk_bytes')
        return value if type(value) is int and value >= 0 else None

    @property
    def force_raw_images(self) -> bool | None:
        """Its option of this name; None from a compute of an earlier release."""
        value = self.capabilities.get('force_raw_images')
        return value if type(value) is bool else None


class HostStatus(enum.StrEnum):
    """Whether a compute host can be called, or another service runs, if known."""

    UP = 'up'
    DOWN = 'down'
    UNKNOWN = 'unknown'


@dataclasses.dataclass(frozen=True)
class Host:
    """A compute host's last report, and its current status.

    :ivar reason: why it is not up
    """

    agent: Agent
    status: HostStatus = HostStatus.UP
    reason: str | None = None


class CellStatus(enum.StrEnum):
    """Whether the broker of a cell can be reached, if known."""

    UP = 'up'
    DOWN = 'down'
    UNKNOWN = 'unknown'
    DISABLED = 'disabled'


class Binary(enum.StrEnum):
    """The commands that run as services."""

    API = 'nova-precache-api'
    CONDUCTOR = 'nova-precache-conductor'
    COMPUTE = 'nova-precache-compute'


@dataclasses.dataclass(frozen=True)
class ServiceProcess:
    """A running conductor or API.

    :ivar id: new for each process
    """

    id: str
    binary: Binary
    host: str
    version: str


@dataclasses.dataclass(frozen=True)
class Service:
    """A conductor, an API or a compute's agent: its last report, and its current status.

    :ivar reason: why it is not up
    :ivar cell_uuid: of a compute
    """

    id: str
    binary: str
    host: str
    status: HostStatus
    version: str | None
    started_at: datetime.datetime
    seen_at: datetime.datetime
    reason: str | None = None
    cell_uuid: str | None = None


@dataclasses.dataclass(frozen=True)
class CachedImage:
    """A file in the cache of a host, as its compute last reported it; sizes in bytes.

    :ivar name: of the file: the SHA-1 of the image's id, ``<sha1>_<size>`` for a resized one
    :ivar image_id: None if this service knows no image with that name
    :ivar disk_bytes: the space it takes on the disk
    :ivar touched_at: when it was last used or requested, by the clock of the host
    :ivar used_by: number of disks that are based on it; None if unknown
    """

    host: str
    name: str
    image_id: str | None
    size_bytes: int
    disk_bytes: int
    touched_at: datetime.datetime
    used_by: int | None = None
    reported_at: datetime.datetime | None = None


class RemovalStatus(enum.StrEnum):
    """Whether an image was removed from a cache on request, or why it was not."""

    REMOVED = 'removed'
    ABSENT = 'absent'
    USED = 'used'
    PINNED = 'pinned'


@dataclasses.dataclass(frozen=True)
class ImageRemoval:
    """The result of a request to remove an image from the cache of a host.

    :ivar reason: why it was not removed
    :ivar freed_bytes: space that the removed files took on the disk
    :ivar names: of the removed files, except partial ones
    """

    status: str
    reason: str | None = None
    freed_bytes: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Clean the reason, before it reaches a log or a message."""
        if self.reason is not None:
            object.__setattr__(self, 'reason', reasons.clean(self.reason))

    def to_wire(self) -> Json:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class RequestOptions:
    """Options of a request; None sets no limit.

    :ivar max_parallel_hosts: hosts at work at a time, never above the configured limit
    :ivar max_rate_bytes: per second, on each host
    :ivar not_before: no task starts earlier; UTC
    :ivar deadline: tasks not done by then expire, and keep their bytes; UTC
    :ivar wait_for_down_hosts: tasks of down hosts wait for them until the deadline
    :ivar canary: number of hosts that must succeed before the others start
    :ivar max_failures: if more tasks fail, those not started are cancelled
    """

    max_parallel_hosts: int | None = None
    max_rate_bytes: int | None = None
    not_before: datetime.datetime | None = None
    deadline: datetime.datetime | None = None
    wait_for_down_hosts: bool = False
    canary: int | None = None
    max_failures: int | None = None


class RequestChange(TypedDict, total=False):
    """New values for a request that has not ended; None removes a limit."""

    priority: int
    max_rate_bytes: int | None
    max_parallel_hosts: int | None
    deadline: datetime.datetime | None


@dataclasses.dataclass(frozen=True)
class CacheRequest:
    """A request to cache images, and its status.

    ``counts`` maps a task status to a number of tasks; the numbers add up to the
    number of tasks. ``images`` are Glance ids. Either the request is for the hosts of an
    aggregate, or ``hosts`` names them.

    :ivar rate_bytes: per second, of all its running transfers
    :ivar bytes_to_come: remaining bytes of its tasks in flight
    :ivar expected_seconds: until they are received, while none of its transfers runs
    :ivar is_planned: its plan is complete
    :ivar canary_passed: its canary hosts have succeeded, or it has none
    """

    id: str
    status: str
    aggregate_id: int | None
    aggregate_uuid: str | None
    aggregate_name: str | None
    images: tuple[str, ...]
    project_id: str | None
    user_id: str | None
    request_id: str | None
    priority: int = 0
    reason: str | None = None
    created_at: datetime.datetime | None = None
    planned_at: datetime.datetime | None = None
    started_at: datetime.datetime | None = None
    finished_at: datetime.datetime | None = None
    hosts_total: int = 0
    hosts_done: int = 0
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bytes: int = 0
    bytes_to_come: int = 0
    hosts: tuple[str, ...] | None = None
    options: RequestOptions = dataclasses.field(default_factory=RequestOptions)
    description: str | None = None
    client_request_id: str | None = None
    pin_id: str | None = None
    global_request_id: str | None = None
    expected_seconds: float | None = None
    is_planned: bool = True
    canary_passed: bool = True

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until all its bytes are received; None if not known."""
        eta = _eta(self.bytes_to_come, self.rate_bytes)
        return self.expected_seconds if eta is None else eta


@dataclasses.dataclass(frozen=True)
class Task:
    """One (request, host, image) and its result; sizes in bytes.

    :ivar expected_seconds: until the bytes of a waiting task are received
    """

    id: int
    request_id: str
    host: str
    cell_uuid: str | None
    image_id: str
    status: str
    reason: str | None = None
    attempts: int = 0
    bytes_done: int = 0
    bytes_total: int | None = None
    next_attempt_at: datetime.datetime | None = None
    created_at: datetime.datetime | None = None
    started_at: datetime.datetime | None = None
    finished_at: datetime.datetime | None = None
    rate_bytes: int | None = None
    expected_seconds: float | None = None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until its bytes are received; None if not known."""
        if self.status not in TASK_WORKING:
            return self.expected_seconds
        if self.bytes_total is None:
            return None
        return _eta(self.bytes_total - self.bytes_done, self.rate_bytes)


@dataclasses.dataclass(frozen=True)
class Pin:
    """Images kept cached on every host of an aggregate, including hosts added later.

    :ivar until: when it ends; None: when it is deleted
    :ivar reason: why it ended, or its current problem
    :ivar images_gone: those of ``images`` that are no longer available, with the reason
    """

    id: str
    status: str
    aggregate_id: int
    aggregate_uuid: str
    aggregate_name: str
    images: tuple[str, ...]
    project_id: str | None = None
    user_id: str | None = None
    is_admin: bool = False
    request_id: str | None = None
    until: datetime.datetime | None = None
    description: str | None = None
    reason: str | None = None
    images_gone: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created_at: datetime.datetime | None = None
    checked_at: datetime.datetime | None = None
    ended_at: datetime.datetime | None = None


def _eta(bytes_to_come: int, rate_bytes: int | None) -> float | None:
    return max(0, bytes_to_come) / rate_bytes if rate_bytes else None
