# SPDX-License-Identifier: Apache-2.0
"""The nouns of the service: what crosses a boundary between its parts.

Everything here is immutable and knows no database, HTTP or RPC. States are
strings, so that a value that a newer release wrote passes through an older one.
"""

import dataclasses
import datetime
import enum
from collections.abc import Callable, Mapping
from typing import Any

from nova_precache import reasons

Json = dict[str, Any]


class RequestStatus(enum.StrEnum):
    """Where a request stands; the second group is final."""

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
    """Where a (request, host, image) or a job stands; the second group is final.

    The words cached, existing, unsupported, error and skipped mean what they
    mean in Nova.
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
    """Where a pin stands."""

    ACTIVE = 'active'
    ENDED = 'ended'


class Phase(enum.StrEnum):
    """What is announced of a request; the first three are Nova's words, in Nova's order."""

    START = 'start'
    PROGRESS = 'progress'
    END = 'end'

    CANCEL = 'cancel'
    PAUSE = 'pause'
    RESUME = 'resume'
    RETRY = 'retry'


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
# Begins the reason of a task whose file is there, and whose compute may not use it.
NOT_OURS = 'present, but cannot be'


class Retry(enum.StrEnum):
    """Whether an outcome that is not a success may be tried again."""

    NEVER = 'never'
    ONCE = 'once'
    BACKOFF = 'backoff'
    LATER = 'later'  # nothing was tried: it does not count as an attempt


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the work on one image has come; sizes in bytes, the rate in bytes a second."""

    status: str
    bytes_done: int
    bytes_total: int | None = None
    rate_bytes: int | None = None


ProgressCallback = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class TransferOptions:
    """How the work on one image is to be done, as whoever asks a compute for it says.

    :ivar max_rate_bytes: a second; beside what the host allows all transfers together
    :ivar deadline_seconds: from now on; what has come by then is kept
    :ivar is_last_attempt: no other will follow by itself, so nothing unfinished is kept
    """

    max_rate_bytes: int | None = None
    deadline_seconds: float | None = None
    is_last_attempt: bool = False


@dataclasses.dataclass(frozen=True)
class CacheResult:
    """What a driver did for one image: a file was there, or bytes were moved."""

    existing: bool
    bytes_done: int = 0
    bytes_total: int | None = None


@dataclasses.dataclass(frozen=True)
class ImageOutcome:
    """How one attempt at (host, image) ended, as a compute reports it.

    :ivar at_once: of one that is made again later: as soon as it may be
    """

    status: str
    reason: str | None = None
    retry: str = Retry.NEVER
    bytes_done: int = 0
    bytes_total: int | None = None
    at_once: bool = False

    def __post_init__(self) -> None:
        """Clean the reason, before it reaches a log, a message or a database."""
        if self.reason is not None:
            object.__setattr__(self, 'reason', reasons.clean(self.reason))

    def to_wire(self) -> Json:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, payload: Mapping[str, Any]) -> 'ImageOutcome':
        """Make one of a payload whose fields were read; unknown keys are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in payload.items() if key in known})


@dataclasses.dataclass(frozen=True)
class Companion:
    """A kernel or ramdisk without which an image does not boot, stored as it is.

    :ivar size_bytes: that its base file has; None where Glance names no size
    """

    id: str
    size_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Image:
    """An image as Glance describes it; ``size`` and ``virtual_size`` in bytes.

    ``id`` is in the spelling that Glance returns, from which Nova derives the
    name of the base file.

    :ivar kernel_id: the property as it is set; likewise ``ramdisk_id``
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
        """What a boot needs: the companions, then the image itself."""
        return *self.companions, self

    @property
    def total_bytes(self) -> int | None:
        """The size of all parts, None where that of one is unknown."""
        sizes = [part.size for part in self.parts]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def needed(self) -> tuple[Companion, ...]:
        """By what a compute recognises the companions in its cache."""
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

    :ivar transport_problem: why there is no transport URL, where it is a template without
        what fills it in; the same for the database
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
        """Why none of its computes is called, None where they are."""
        if self.disabled:
            return f'cell {self.name} is disabled'
        if not self.transport_url:
            why = self.transport_problem or 'it has no transport URL'
            return f'cell {self.name} cannot be reached: {why}'
        return None


@dataclasses.dataclass(frozen=True)
class Agent:
    """A compute host's agent as it last reported itself; sizes in bytes."""

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


class HostStatus(enum.StrEnum):
    """Whether a compute host can be called, as far as that is known."""

    UP = 'up'
    DOWN = 'down'
    UNKNOWN = 'unknown'


@dataclasses.dataclass(frozen=True)
class Host:
    """A compute host, as it last reported itself and as it is now.

    :ivar reason: why it is not up
    """

    agent: Agent
    status: HostStatus = HostStatus.UP
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class CachedImage:
    """A file in the cache of a host, as its compute last reported it; sizes in bytes.

    :ivar name: of the file: the SHA-1 of the image's id, ``<sha1>_<size>`` of a resized one
    :ivar image_id: None where nobody here ever heard of an image of that name
    :ivar disk_bytes: what it takes on the disk
    :ivar touched_at: when it was last used or asked for, by the clock of the host
    :ivar used_by: number of disks that are based on it, None where that is not known
    """

    host: str
    name: str
    image_id: str | None
    size_bytes: int
    disk_bytes: int
    touched_at: datetime.datetime
    used_by: int | None = None
    reported_at: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True)
class RequestOptions:
    """How a request is to be worked on; None sets no limit.

    :ivar max_parallel_hosts: that work on it at a time, never above the configured limit
    :ivar max_rate_bytes: a second, on each host
    :ivar not_before: no task starts earlier; UTC
    :ivar deadline: what is not done by then ends expired, and keeps its bytes; UTC
    :ivar wait_for_down_hosts: their tasks wait for them until the deadline
    :ivar canary: so many hosts must succeed before the others start
    :ivar max_failures: when more tasks failed, those that have not begun are cancelled
    """

    max_parallel_hosts: int | None = None
    max_rate_bytes: int | None = None
    not_before: datetime.datetime | None = None
    deadline: datetime.datetime | None = None
    wait_for_down_hosts: bool = False
    canary: int | None = None
    max_failures: int | None = None


@dataclasses.dataclass(frozen=True)
class CacheRequest:
    """What somebody asked for, and where it stands.

    ``counts`` maps a task status to a number of tasks; they add up to the
    number of tasks. ``images`` are Glance ids. Either it is for the hosts of an
    aggregate, or ``hosts`` names them.

    :ivar rate_bytes: a second, of all transfers that run for it
    :ivar bytes_to_come: of its tasks in flight
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

    @property
    def eta_seconds(self) -> float | None:
        """Until all its bytes are there, at the rate of now; None while nothing moves."""
        return _eta(self.bytes_to_come, self.rate_bytes)


@dataclasses.dataclass(frozen=True)
class Task:
    """One (request, host, image) and its outcome; sizes in bytes."""

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

    @property
    def eta_seconds(self) -> float | None:
        """Until its bytes are there, at the rate of now; None while none move."""
        if self.status not in TASK_WORKING or self.bytes_total is None:
            return None
        return _eta(self.bytes_total - self.bytes_done, self.rate_bytes)


@dataclasses.dataclass(frozen=True)
class Pin:
    """Images that are kept cached on every host of an aggregate, those too that join later.

    :ivar until: when it ends; None: when somebody ends it
    :ivar reason: why it ended, or what is wrong with it now
    :ivar images_gone: those of ``images`` that can no longer be had, with the reason
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
