# SPDX-License-Identifier: Apache-2.0
"""Keeps pinned images cached on every host of their aggregate, including hosts that join later.

Each round checks every active pin on all hosts. The hosts that lack an image, or whose file
would soon be old enough for removal, are the backlog of the pin. Between two rounds the pins are
topped up: as their work ends, the next hosts of the backlogs are checked again and requested with
a lower priority than users' requests, so that free slots stay in use and little work is queued.
Hosts of a cell that no conductor hears are not requested until it is heard again, and those that
were requested before do not count meanwhile: they delay no other.
:func:`choose` decides without I/O what a pin needs, and :func:`room` for how many hosts.
"""

import collections
import dataclasses
import datetime
import enum
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from nova_precache import context, exception, model, outages
from nova_precache.cells import inventory
from nova_precache.conductor import image_access, liveness, planner
from nova_precache.db import agents, caches, pins, requests
from nova_precache.image import service

LOG = logging.getLogger(__name__)

PRIORITY = -100
FAILURE_WAIT_SECONDS = 3600.0
REPAIR_WAIT_SECONDS = 600.0
HOSTS_AT_ONCE = 1000
# One uses the slot, and one waits for it: the slot stays in use until the next top-up.
HOSTS_PER_SLOT = 2
# A round takes long with many pins on a large fleet; meanwhile pins are topped up this often.
TOP_UP_SECONDS = 1.0

_MOST_DOUBLINGS = 20

File = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class PinRules:
    """The configured intervals and limits of pins.

    :ivar interval_seconds: between two rounds
    :ivar slots: hosts that all conductors together may call at once
    :ivar minimum_age_seconds: after which an unused image is removed; 0 or less: at once, so
        that touching it is useless
    """

    interval_seconds: float
    slots: int
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
    :ivar in_flight: the files of the pin's unfinished requests
    """

    now: datetime.datetime
    present: Mapping[File, model.CachedImage]
    tried: Mapping[File, pins.AttemptHistory] = dataclasses.field(default_factory=dict)
    reported: Collection[str] = ()
    in_flight: Collection[File] = ()

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
    """The files that a pin needs.

    :ivar wanted: host to images, to be requested in this order
    :ivar failing: files that failed lately and wait for another attempt
    :ivar not_ours: files that exist and belong to another user; they wait until the file
        changes, whereupon the compute touches it by itself, or until the compute restarts
    """

    wanted: Mapping[str, tuple[str, ...]]
    failing: Sequence[File]
    not_ours: Sequence[File] = ()

    def first_batch(self) -> Batch:
        """Return the first host of the wanted ones, with all that want the same images."""
        images = next(iter(self.wanted.values()))
        return Batch(tuple(host for host, its in self.wanted.items() if its == images), images)


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
    return PinChoice(
        {host: tuple(image_id for _, image_id in wanted[host]) for host in first},
        [file for file, need in needs.items() if need is _Need.LATER],
        [file for file, need in needs.items() if need is _Need.CHANGE],
    )


def room(pin_id: str, outstanding: Mapping[str, int], filling: Collection[str], slots: int) -> int:
    """Return for how many hosts a pin may request images now.

    All pins together have at most ``HOSTS_PER_SLOT`` outstanding hosts for each slot, in equal
    shares. A pin is topped up when at most half of its share is outstanding, so that a request
    has several hosts.

    :param outstanding: pin id to hosts that use a slot or wait for one
    :param filling: the pins with a backlog
    """
    most = HOSTS_PER_SLOT * slots
    share = max(1, most // len({pin_id, *outstanding, *filling}))
    its = outstanding.get(pin_id, 0)
    if its > share // 2:
        return 0
    return max(0, min(share - its, most - sum(outstanding.values())))


@dataclasses.dataclass(frozen=True)
class _Backlog:
    """Hosts that seemed to need images of a pin when this conductor last checked it.

    :ivar aggregate: without its hosts
    :ivar last_number: of the pin's newest request at that time
    :ivar unheard: cell uuid to further hosts, which wait until their cell is heard
    """

    pin: model.Pin
    aggregate: model.Aggregate
    hosts: collections.deque[str]
    last_number: int
    unheard: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def take(self, count: int) -> list[str]:
        return [self.hosts.popleft() for _ in range(min(count, len(self.hosts)))]

    def put_back(self, hosts: Sequence[str]) -> None:
        self.hosts.extendleft(reversed(hosts))

    def set_aside(self, cell_of_hosts: Mapping[str, str]) -> None:
        for host, cell_uuid in cell_of_hosts.items():
            self.unheard.setdefault(cell_uuid, []).append(host)

    def resume(self, unheard_cells: Collection[str]) -> None:
        """Append the hosts whose cells are heard again."""
        for cell_uuid in self.unheard.keys() - unheard_cells:
            self.hosts.extend(self.unheard.pop(cell_uuid))

    def clear(self) -> None:
        self.hosts.clear()
        self.unheard.clear()


class Reconciler:
    """Checks the pins and tops them up, for one conductor; used by one thread.

    Backlogs are in memory only. What they miss, because another conductor checked the pin or
    this one has just started, the next check finds.

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
        clock: Callable[[], float] = time.monotonic,
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
        self._clock = clock
        self._next_round: float | None = None
        self._topped_up_at = clock()
        self._checked: set[str] = set()  # since the last round began
        self._backlogs: dict[str, _Backlog] = {}

    def run(self, ended: Collection[str] = ()) -> None:
        """Check the pins that are due, and top up those that have a backlog.

        :param ended: pins whose work ended here; if this conductor has not checked one since its
            last round, it does so now and learns the backlog
        """
        if self._next_round is None or self._clock() >= self._next_round:
            self._check_all()
        for pin_id in ended:
            if pin_id not in self._checked:
                self._check_if_free(pin_id, 0)
        self._top_up()

    def seconds_to_wait(self, poll_seconds: float) -> float:
        """Return the seconds until the next run, if no work of a pin ends before."""
        if self._next_round is None:
            return self.rules.interval_seconds
        next_round = max(0.0, self._next_round - self._clock())
        return min(poll_seconds, next_round) if self._backlogs else next_round

    def _check_all(self) -> None:
        """Check each pin that no other conductor has just checked; when starting, all pins."""
        # Half the interval: the previous round ended later than it began.
        due_seconds = 0.0 if self._next_round is None else self.rules.interval_seconds / 2
        self._next_round = self._clock() + self.rules.interval_seconds
        self._backlogs = {
            pin_id: backlog for pin_id, backlog in self._backlogs.items() if pin_id in self._checked
        }
        self._checked.clear()
        for pin_id in self._pins.due(due_seconds):
            if self._clock() >= self._topped_up_at + TOP_UP_SECONDS:
                self._top_up()
            self._check_if_free(pin_id, due_seconds)

    def _check_if_free(self, pin_id: str, due_seconds: float) -> None:
        taken = self._pins.take(pin_id, self._conductor_id, due_seconds)
        if taken is None:
            return
        self._checked.add(pin_id)
        self._backlogs.pop(pin_id, None)
        with context.bind_request_id(taken.pin.request_id):
            self._try_to_check(taken)

    def _try_to_check(self, taken: pins.PinAt) -> None:
        try:
            self._check(taken)
        except exception.PrecacheError as exc:
            self._postpone(taken.pin, str(exc), is_logged=outages.is_logged(exc))
        except Exception as exc:
            LOG.exception('Checking pin %s failed', taken.pin.id)
            self._postpone(taken.pin, f'unexpected {type(exc).__name__}')

    def _check(self, taken: pins.PinAt) -> None:
        pin = taken.pin
        if _is_over(taken):
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
        if not self._pins.hold(pin.id, self._conductor_id):
            return  # the answers of the image service took too long, or a user has ended the pin
        unreached = self._unreached(aggregate.hosts)
        hosts = [host for host in aggregate.hosts if host not in unreached]
        choice = self._choose(taken, hosts, left)
        unheard = self._in_cells(list(choice.wanted), self._pins.unheard_cells())
        asked = self._pins.asked(pin.id)
        unreached |= dict.fromkeys(unheard, agents.UNHEARD)
        reason = _problems(asked.unfinished, unreached, choice)
        if self._pins.checked(pin.id, self._conductor_id, reason, gone) and choice.wanted:
            without_hosts = dataclasses.replace(aggregate, hosts=())
            hosts_left = collections.deque(each for each in choice.wanted if each not in unheard)
            backlog = _Backlog(pin, without_hosts, hosts_left, asked.last_number)
            backlog.set_aside(unheard)
            self._backlogs[pin.id] = backlog

    def _in_cells(self, hosts: Sequence[str], cell_uuids: Collection[str]) -> dict[str, str]:
        """Map those of the hosts that are in one of the cells to the cell, in the same order."""
        if not cell_uuids:
            return {}
        cells = self._inventory.cell_of_hosts(hosts)
        return {host: cells[host] for host in hosts if cells.get(host) in cell_uuids}

    def _unreached(self, hosts: Sequence[str]) -> dict[str, str]:
        """Map the hosts that would get no task now to the reason."""
        facts = planner.host_facts(
            hosts,
            self._inventory.cell_of_hosts(hosts),
            self._inventory.list_cells(),
            self._liveness.down(hosts),
        )
        decisions = {host: planner.decide(facts[host], model.RequestOptions()) for host in hosts}
        found = {host: each.reason for host, each in decisions.items() if each.reason is not None}
        # One of them would postpone the plan for all hosts of a request.
        settling = self._liveness.settling([host for host in hosts if host not in found])
        return found | dict.fromkeys(settling, 'it has not reported yet')

    def _choose(
        self, read: pins.PinAt, hosts: Sequence[str], images: Sequence[model.Image]
    ) -> PinChoice:
        image_ids = [image.id for image in images]
        part_ids = {part.id for image in images for part in image.parts}
        files: list[File] = []
        present: dict[File, model.CachedImage] = {}
        for start in range(0, len(hosts), HOSTS_AT_ONCE):
            some = hosts[start : start + HOSTS_AT_ONCE]
            parts = self._caches.present(some, part_ids)
            known = FileFacts(read.now, caches.bootable(parts, images))
            found = missing_or_old(some, image_ids, known, self.rules)
            files += found
            present.update((file, known.present[file]) for file in found if file in known.present)
        if not files:
            return PinChoice({}, [])  # the usual case; saves the queries for attempts
        needing = {host for host, _ in files}
        # Before the attempts: a task that ends in between is found in one of the two.
        in_flight = self._pins.in_flight(read.pin.id, needing)
        since_seconds = max(pins.FAILURES_COUNT_SECONDS, self.rules.touch_seconds or 0)
        tried = self._pins.tried(read.pin.id, since_seconds, needing)
        reported = self._caches.known_hosts(needing)
        known = FileFacts(read.now, present, tried, reported, in_flight)
        return choose(files, known, self.rules)

    def _top_up(self) -> None:
        """Request the next hosts of the backlogs; the pin that was topped up last comes last."""
        self._topped_up_at = self._clock()
        if not self._backlogs:
            return
        load = self._pins.load()
        for backlog in self._backlogs.values():
            backlog.resume(load.unheard_cells)
        outstanding = collections.Counter(load.hosts)
        filling = [
            pin_id
            for pin_id, backlog in self._backlogs.items()
            if backlog.hosts and pin_id not in load.paused
        ]
        for pin_id in filling:
            if room(pin_id, outstanding, filling, self.rules.slots):
                backlog = self._backlogs.pop(pin_id)
                with context.bind_request_id(backlog.pin.request_id):
                    self._try_to_fill(backlog, filling, outstanding)

    def _try_to_fill(
        self,
        backlog: _Backlog,
        filling: Collection[str],
        outstanding: collections.Counter[str],
    ) -> None:
        """Request hosts of a backlog, and count them; after a failure the next check goes on."""
        pin = backlog.pin
        try:
            for batch in self._fill(backlog, filling):
                outstanding[pin.id] += len(batch.hosts)
        except exception.PrecacheError as exc:
            reason = str(exc)
            _log_postponed(pin, reason, outages.is_logged(exc))
            self._pins.note(pin.id, reason)
        except Exception as exc:
            LOG.exception('Filling pin %s failed', pin.id)
            self._pins.note(pin.id, f'unexpected {type(exc).__name__}')
        else:
            if backlog.hosts or backlog.unheard:
                self._backlogs[pin.id] = backlog

    def _fill(self, backlog: _Backlog, filling: Collection[str]) -> Iterator[Batch]:
        """Request images for the next hosts that still need them; yield each request's batch."""
        pin = backlog.pin
        checked = image_access.check_all(self._images, pin.images, pin.project_id, pin.is_admin)
        images = [each.image for each in checked.values() if each.image is not None]
        while backlog.hosts:
            read = self._pins.read(pin.id)
            if read is None or _is_over(read) or not images:
                backlog.clear()  # the next round ends the pin
                return
            # Before all that the choice depends on: a request of this pin that another conductor
            # makes meanwhile has this key, and is returned instead of a further one.
            asked = self._pins.asked(pin.id, backlog.last_number)
            load = self._pins.load()
            most = room(pin.id, load.hosts, filling, self.rules.slots)
            batch = self._next_batch(read, backlog, images, most, load.unheard_cells)
            if batch is None:
                return
            if not self._request(backlog, batch, f'pin {pin.id} after {asked.last_number}'):
                backlog.put_back(batch.hosts)
                return
            yield batch

    def _next_batch(
        self,
        read: pins.PinAt,
        backlog: _Backlog,
        images: Sequence[model.Image],
        most: int,
        unheard_cells: Collection[str],
    ) -> Batch | None:
        """Take the next hosts that need the same images; None without room or need."""
        portion = most
        while some := backlog.take(portion):
            unheard = self._in_cells(some, unheard_cells)
            backlog.set_aside(unheard)
            heard = [host for host in some if host not in unheard]
            unreached = self._unreached(heard)
            hosts = [host for host in heard if host not in unreached]
            choice = self._choose(read, hosts, images)
            if choice.wanted:
                first = choice.first_batch()
                batch = dataclasses.replace(first, hosts=first.hosts[:most])
                backlog.put_back([host for host in choice.wanted if host not in batch.hosts])
                return batch
            portion *= 2  # they were filled meanwhile, and so may be many of the next
        return None

    def _request(self, backlog: _Backlog, batch: Batch, key: str) -> bool:
        """Request a batch; return False if another request was first with this key."""
        pin = backlog.pin
        request = self._requests.accept(
            requests.NewRequest(
                aggregate=dataclasses.replace(backlog.aggregate, hosts=batch.hosts),
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
        if (request.hosts, request.images) != (batch.hosts, batch.images):
            LOG.debug('Pin %s: request %s was first', pin.id, request.id)
            return False
        LOG.info('Pin %s: %d hosts in request %s', pin.id, len(batch.hosts), request.id)
        self._wake()
        return True

    def _end(self, pin: model.Pin, reason: str, gone: Mapping[str, str]) -> None:
        if self._pins.close(pin.id, self._conductor_id, reason, gone):
            LOG.info('Pin %s has ended: %s', pin.id, reason)

    def _postpone(self, pin: model.Pin, reason: str, *, is_logged: bool = False) -> None:
        _log_postponed(pin, reason, is_logged)
        self._pins.checked(pin.id, self._conductor_id, reason, pin.images_gone)


def _is_over(read: pins.PinAt) -> bool:
    return read.pin.until is not None and read.pin.until <= read.now


def _log_postponed(pin: model.Pin, reason: str, is_logged: bool) -> None:
    level = logging.DEBUG if is_logged else logging.WARNING
    LOG.log(level, 'Pin %s is checked again in the next round: %s', pin.id, reason)


def _need(file: File, known: FileFacts, rules: PinRules) -> _Need:
    if file in known.in_flight:
        return _Need.NOTHING
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
