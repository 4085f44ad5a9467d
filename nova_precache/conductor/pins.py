# SPDX-License-Identifier: Apache-2.0
"""Keeps pinned images cached on every host of their aggregate, including hosts that join later.

Each round checks every active pin. Images that the caches lack, or that would soon be old
enough for removal, are requested on behalf of the pin, for a few hosts at a time and with a
lower priority than users' requests. :func:`choose` decides without I/O what a pin needs.
"""

import dataclasses
import datetime
import enum
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from nova_precache import context, exception, model, outages
from nova_precache.cells import inventory
from nova_precache.conductor import image_access, liveness, planner
from nova_precache.db import caches, pins, requests
from nova_precache.image import service

LOG = logging.getLogger(__name__)

PRIORITY = -100
FAILURE_WAIT_SECONDS = 3600.0
REPAIR_WAIT_SECONDS = 600.0
HOSTS_AT_ONCE = 1000

_MOST_DOUBLINGS = 20

File = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class PinRules:
    """The configured intervals and limits of pins.

    :ivar interval_seconds: between two rounds
    :ivar hosts_per_round: maximum number of hosts that a pin requests in a round
    :ivar minimum_age_seconds: after which an unused image is removed; 0 or less: at once, so
        that touching it is useless
    """

    interval_seconds: float
    hosts_per_round: int
    minimum_age_seconds: float

    @property
    def touch_seconds(self) -> float | None:
        """Seconds since its last use after which a file is touched; None: never."""
        return self.minimum_age_seconds / 2 if self.minimum_age_seconds > 0 else None

    def wait_seconds(self, tried: pins.AttemptHistory) -> float:
        """Return the seconds to wait before the same file is requested again.

        A success counts, too: it may not have been reported yet, or the file may vanish again
        and again.
        """
        doublings, most = max(0, tried.successes - 1), REPAIR_WAIT_SECONDS
        if tried.has_failed:
            doublings, most = tried.failures, FAILURE_WAIT_SECONDS
        return min(most, self.interval_seconds * 2.0 ** min(doublings, _MOST_DOUBLINGS))


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """Facts about the files of a pin at the time ``now``.

    :ivar present: the files that hosts reported, by (host, image)
    :ivar tried: the outcomes of the pin's earlier attempts, by (host, image)
    :ivar reported: the hosts that have reported their whole inventory
    """

    now: datetime.datetime
    present: Mapping[File, model.CachedImage]
    tried: Mapping[File, pins.AttemptHistory] = dataclasses.field(default_factory=dict)
    reported: Collection[str] = ()

    def touched_at(self, file: File) -> datetime.datetime | None:
        """Return when a file was last used or successfully requested; None if it is absent.

        A report may be older than the last success. For a host that reports no inventory, only
        the pin's own attempts are known.
        """
        present, tried = self.present.get(file), self.tried.get(file)
        succeeded_at = None if tried is None else tried.succeeded_at
        if present is not None:
            return max(present.touched_at, succeeded_at or present.touched_at)
        host, _ = file
        return None if host in self.reported else succeeded_at


@dataclasses.dataclass(frozen=True)
class Batch:
    """Hosts that need the same images."""

    hosts: tuple[str, ...]
    images: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PinChoice:
    """The requests to make now.

    :ivar failing: files that failed lately and wait for another attempt
    :ivar not_ours: files that exist and belong to another user; they wait until the file
        changes, whereupon the compute touches it by itself, or until the compute restarts
    """

    batches: Sequence[Batch]
    failing: Sequence[File]
    not_ours: Sequence[File] = ()


class _Need(enum.Enum):
    NOTHING = enum.auto()
    NOW = enum.auto()
    LATER = enum.auto()
    CHANGE = enum.auto()


def missing_or_old(
    hosts: Sequence[str], images: Sequence[str], known: FileFacts, rules: PinRules
) -> Sequence[File]:
    """Return the files that are missing or old, host by host."""
    files = ((host, image_id) for host in hosts for image_id in images)
    return [file for file in files if not _is_young(known.touched_at(file), known.now, rules)]


def choose(files: Sequence[File], known: FileFacts, rules: PinRules) -> PinChoice:
    """Choose which files to request, among those that seem missing or old.

    Hosts that were never requested come first, then the least recently requested ones.
    """
    needs = {file: _need(file, known, rules) for file in files}
    wanted: dict[str, list[File]] = {}
    for file in files:
        if needs[file] is _Need.NOW:
            wanted.setdefault(file[0], []).append(file)
    first = sorted(wanted, key=lambda host: _last_tried(wanted[host], known))
    chosen = set(first[: rules.hosts_per_round])
    batches: dict[tuple[str, ...], list[str]] = {}
    for host in (host for host in wanted if host in chosen):
        batches.setdefault(tuple(image_id for _, image_id in wanted[host]), []).append(host)
    return PinChoice(
        [Batch(tuple(alike), images) for images, alike in batches.items()],
        [file for file, need in needs.items() if need is _Need.LATER],
        [file for file, need in needs.items() if need is _Need.CHANGE],
    )


class Reconciler:
    """Runs the rounds of one conductor over the pins.

    :param wake: called when there is a new request to plan
    """

    def __init__(
        self,
        conductor_id: str,
        request_store: requests.Requests,
        pin_store: pins.Pins,
        cache_store: caches.Caches,
        aggregates: inventory.Inventory,
        alive: liveness.Liveness,
        images: service.ImageService,
        rules: PinRules,
        wake: Callable[[], None],
    ) -> None:
        self._conductor_id = conductor_id
        self._requests = request_store
        self._pins = pin_store
        self._caches = cache_store
        self._inventory = aggregates
        self._liveness = alive
        self._images = images
        self.rules = rules
        self._wake = wake

    def run(self) -> None:
        """Check once each pin that no other conductor has just checked."""
        # Half the interval: the previous round ended later than it began.
        due_seconds = self.rules.interval_seconds / 2
        for pin_id in self._pins.due(due_seconds):
            taken = self._pins.take(pin_id, self._conductor_id, due_seconds)
            if taken is not None:
                with context.bind_request_id(taken.pin.request_id):
                    self._try_to_check(taken)

    def _try_to_check(self, taken: pins.LeasedPin) -> None:
        try:
            self._check(taken)
        except exception.PrecacheError as exc:
            self._postpone(taken.pin, str(exc), is_logged=outages.is_logged(exc))
        except Exception as exc:
            LOG.exception('Checking pin %s failed', taken.pin.id)
            self._postpone(taken.pin, f'unexpected {type(exc).__name__}')

    def _check(self, taken: pins.LeasedPin) -> None:
        pin = taken.pin
        if pin.until is not None and pin.until <= taken.now:
            self._end(pin, 'its end time has passed', pin.images_gone)
            return
        try:
            aggregate = self._inventory.get_aggregate(pin.aggregate_id, pin.aggregate_uuid)
        except exception.AggregateNotFound:
            self._end(pin, 'the aggregate was deleted', pin.images_gone)
            return
        # An image that is refused may become usable again.
        checked = image_access.check_all(self._images, pin.images, pin.project_id, pin.is_admin)
        left = [each.image for each in checked.values() if each.image is not None]
        gone = {each: why for each, facts in checked.items() if (why := facts.refused) is not None}
        if not left:
            self._end(pin, f'no image is available: {"; ".join(gone.values())}', gone)
            return
        reason = self._keep_images(taken, aggregate, left)
        self._pins.checked(pin.id, self._conductor_id, reason, gone)

    def _keep_images(
        self, taken: pins.LeasedPin, aggregate: model.Aggregate, images: Sequence[model.Image]
    ) -> str | None:
        """Request the files that are needed; return why not all are kept, None if all are."""
        unreached = self._unreached(aggregate.hosts)
        hosts = [host for host in aggregate.hosts if host not in unreached]
        asked = self._pins.asked(taken.pin.id)
        choice = self._choose(taken, hosts, images)
        if not asked.unfinished:
            self._request_batches(taken.pin, aggregate, choice.batches, asked.last_number)
        return _problems(asked.unfinished, unreached, choice)

    def _unreached(self, hosts: Sequence[str]) -> dict[str, str]:
        """Map the hosts that would get no task now to the reason."""
        facts = planner.host_facts(
            hosts,
            self._inventory.cell_of_hosts(hosts),
            self._inventory.list_cells(),
            self._liveness.down(hosts),
        )
        decisions = {host: planner.decide(facts[host], model.RequestOptions()) for host in hosts}
        return {host: each.reason for host, each in decisions.items() if each.reason is not None}

    def _choose(
        self, taken: pins.LeasedPin, hosts: Sequence[str], images: Sequence[model.Image]
    ) -> PinChoice:
        image_ids = [image.id for image in images]
        part_ids = {part.id for image in images for part in image.parts}
        files: list[File] = []
        present: dict[File, model.CachedImage] = {}
        for start in range(0, len(hosts), HOSTS_AT_ONCE):
            some = hosts[start : start + HOSTS_AT_ONCE]
            parts = self._caches.present(some, part_ids)
            known = FileFacts(taken.now, caches.bootable(parts, images))
            found = missing_or_old(some, image_ids, known, self.rules)
            files += found
            present.update((file, known.present[file]) for file in found if file in known.present)
        if not files:
            return PinChoice([], [])  # the usual case; saves the query for attempts
        since_seconds = max(pins.FAILURES_COUNT_SECONDS, self.rules.touch_seconds or 0)
        tried = self._pins.tried(taken.pin.id, since_seconds)
        known = FileFacts(taken.now, present, tried, self._caches.known_hosts())
        return choose(files, known, self.rules)

    def _request_batches(
        self,
        pin: model.Pin,
        aggregate: model.Aggregate,
        batches: Sequence[Batch],
        last_number: int,
    ) -> None:
        if not batches or not self._pins.hold(pin.id, self._conductor_id):
            return
        for index, batch in enumerate(batches):
            # If the lease runs out here, the key returns the requests of the conductor that
            # took over, and no duplicates are made.
            key = f'pin {pin.id} after {last_number}, {index}'
            request = self._requests.accept(
                requests.NewRequest(
                    aggregate=dataclasses.replace(aggregate, hosts=batch.hosts),
                    hosts=batch.hosts,
                    images=batch.images,
                    description=f'pin {pin.id}',
                    client_request_id=key,
                    pin_id=pin.id,
                    project_id=pin.project_id,
                    user_id=pin.user_id,
                    is_admin=pin.is_admin,
                    request_id=pin.request_id,
                    priority=PRIORITY,
                )
            )
            LOG.info('Pin %s: %d hosts in request %s', pin.id, len(batch.hosts), request.id)
        self._wake()

    def _end(self, pin: model.Pin, reason: str, gone: Mapping[str, str]) -> None:
        if self._pins.close(pin.id, self._conductor_id, reason, gone):
            LOG.info('Pin %s has ended: %s', pin.id, reason)

    def _postpone(self, pin: model.Pin, reason: str, *, is_logged: bool = False) -> None:
        level = logging.DEBUG if is_logged else logging.WARNING
        LOG.log(level, 'Pin %s is checked again in the next round: %s', pin.id, reason)
        self._pins.checked(pin.id, self._conductor_id, reason, pin.images_gone)


def _need(file: File, known: FileFacts, rules: PinRules) -> _Need:
    if _is_young(known.touched_at(file), known.now, rules):
        return _Need.NOTHING
    tried, present = known.tried.get(file), known.present.get(file)
    if (
        tried is not None
        and tried.is_not_ours
        and present is not None
        and present.touched_at <= tried.ended_at
    ):
        # Its compute touches the file once it can; after that it may grow old again.
        return _Need.CHANGE
    if tried is None or _seconds(known.now - tried.ended_at) >= rules.wait_seconds(tried):
        return _Need.NOW
    return _Need.LATER if tried.has_failed else _Need.NOTHING


def _is_young(
    touched_at: datetime.datetime | None, now: datetime.datetime, rules: PinRules
) -> bool:
    """Return whether a file exists and need not be touched."""
    if touched_at is None:
        return False
    return rules.touch_seconds is None or _seconds(now - touched_at) <= rules.touch_seconds


def _last_tried(files: Sequence[File], known: FileFacts) -> tuple[bool, datetime.datetime]:
    tries = [known.tried[file].ended_at for file in files if file in known.tried]
    return bool(tries), max(tries, default=known.now)


def _seconds(time: datetime.timedelta) -> float:
    return time.total_seconds()


def _problems(
    unfinished: Mapping[str, str], unreached: Mapping[str, str], choice: PinChoice
) -> str | None:
    """Return why not all files are kept, with one example of each kind; None if all are."""
    wrong = [
        f'request {request_id} is paused'
        for request_id, status in unfinished.items()
        if status == model.RequestStatus.PAUSED
    ]
    for host, why in list(unreached.items())[:1]:
        wrong.append(f'hosts not reached: {len(unreached)}, such as {host}: {why}')
    for host, image_id in choice.failing[:1]:
        wrong.append(
            f'files that failed and will be retried: {len(choice.failing)}, such as image '
            f'{image_id} on {host}'
        )
    for host, image_id in choice.not_ours[:1]:
        wrong.append(
            f'cached files that cannot be kept: {len(choice.not_ours)}, such as image '
            f'{image_id} on {host} (see its task)'
        )
    return '; '.join(wrong) or None
