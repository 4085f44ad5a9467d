# SPDX-License-Identifier: Apache-2.0
"""Estimates a request: bytes, space and time, host by host.

Pure: the handler gathers the facts. Space is counted as a compute counts it before the
first byte (``cache.populator``), time by measured rates, with the hosts in the order in which
conductors claim them.
"""

import collections
import dataclasses
import enum
import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence

from nova_precache import model, pace
from nova_precache.conductor import planner
from nova_precache.inspection import formats


class HostReach(enum.StrEnum):
    """Whether a host can be called."""

    UP = 'up'
    DOWN = 'down'
    UNMAPPED = 'unmapped'


class ImageState(enum.StrEnum):
    """Whether an image is on a host; unknown if the host never reported its inventory."""

    CACHED = 'cached'
    MISSING = 'missing'
    UNKNOWN = 'unknown'


@dataclasses.dataclass(frozen=True)
class FleetFacts:
    """Facts about the hosts.

    :ivar hosts: in the order in which they would be planned, with the facts for the plan
    :ivar agents: host to its last report
    :ivar present: the (host, image id) pairs that are cached, including kernels and ramdisks
    :ivar known_hosts: the hosts that reported their inventory
    :ivar rates: host to bytes per second, for any hosts with a measured rate
    """

    hosts: Mapping[str, planner.HostFacts]
    agents: Mapping[str, model.Agent] = dataclasses.field(default_factory=dict)
    present: Collection[tuple[str, str]] = frozenset()
    known_hosts: Collection[str] = frozenset()
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EstimateRules:
    """The options that affect an estimate.

    :ivar force_raw_images: computes that report no such option convert images that are not raw
    :ivar reserved_disk_bytes: bytes that computes which report no such option leave free
    :ivar precache_concurrency: number of hosts that download at a time
    """

    force_raw_images: bool
    reserved_disk_bytes: int
    precache_concurrency: int


@dataclasses.dataclass(frozen=True)
class ImageEstimate:
    """The bytes and space that one image needs on one host."""

    image_id: str
    state: ImageState
    bytes_to_move: int
    space_needed_bytes: int


@dataclasses.dataclass(frozen=True)
class HostEstimate:
    """The bytes, space and time that one host needs.

    :ivar space_needed_bytes: the peak: the images are downloaded one after the other
    :ivar fits: None if the free space is unknown
    :ivar seconds: None if no rate is known
    """

    host: str
    cell_uuid: str | None
    status: HostReach
    reason: str | None
    is_worked_on: bool
    images: tuple[ImageEstimate, ...]
    bytes_to_move: int
    space_needed_bytes: int
    free_bytes: int | None
    fits: bool | None
    rate_bytes: float | None

    @property
    def seconds(self) -> float | None:
        if not self.bytes_to_move:
            return 0
        return None if self.rate_bytes is None else self.bytes_to_move / self.rate_bytes


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The bytes, space and time that all hosts need together.

    :ivar parallel_hosts: number of hosts that download at a time
    :ivar seconds: None if the rate of no host is known
    :ivar rate_bytes: peak load of Glance, in bytes per second
    """

    hosts: tuple[HostEstimate, ...]
    parallel_hosts: int
    seconds: float | None
    rate_bytes: float | None

    @property
    def bytes_to_move(self) -> int:
        return sum(host.bytes_to_move for host in self.hosts)

    @property
    def space_needed_bytes(self) -> int:
        return sum(host.space_needed_bytes for host in self.hosts)

    def count(self, state: ImageState) -> int:
        """Return the number of (host, image) pairs in a state."""
        return sum(image.state == state for host in self.hosts for image in host.images)


def estimate(
    images: Sequence[model.Image],
    options: model.RequestOptions,
    facts: FleetFacts,
    rules: EstimateRules,
) -> Estimate:
    """Estimate a request for the images on the hosts of the facts."""
    hosts = _FleetEstimator(images, options, facts, rules).estimates()
    downloading = [host for host in hosts if host.bytes_to_move]
    limit = min(rules.precache_concurrency, options.max_parallel_hosts or len(hosts))
    parallel_hosts = min(limit, len(downloading))
    return Estimate(
        hosts=hosts,
        parallel_hosts=parallel_hosts,
        seconds=_seconds(hosts, options.canary or 0, limit),
        rate_bytes=_peak_rate(downloading, parallel_hosts),
    )


class _FleetEstimator:
    """The estimates of the hosts, which may share their stores."""

    def __init__(
        self,
        images: Sequence[model.Image],
        options: model.RequestOptions,
        facts: FleetFacts,
        rules: EstimateRules,
    ) -> None:
        self._costs_by_option: Mapping[bool, _Costs] = {
            option: {image.id: _costs(image, option) for image in images}
            for option in (False, True)
        }
        self._options = options
        self._facts = facts
        self._rules = rules
        self._typical_rate = pace.typical(facts.rates.values())
        self._stored: dict[str, set[str]] = collections.defaultdict(set)
        for host, part_id in facts.present:
            self._stored[self._store(host)].add(part_id)
        # Store to part id to the one host that downloads the part into that store.
        self._coming: dict[str, dict[str, str]] = collections.defaultdict(dict)

    def estimates(self) -> tuple[HostEstimate, ...]:
        return tuple(map(self._estimate, self._facts.hosts))

    def _store(self, host: str) -> str:
        agent = self._facts.agents.get(host)
        return (agent.store_id if agent is not None else None) or host

    def _estimate(self, host: str) -> HostEstimate:
        facts = self._facts.hosts[host]
        decision = planner.decide(facts, self._options)
        costs = self._costs(host)
        downloads = self._choose_downloads(host, costs) if decision.is_queued else {}
        agent = self._facts.agents.get(host)
        free_bytes = agent.free_bytes if agent is not None else None
        space_needed_bytes = _most_space(downloads.values())
        return HostEstimate(
            host=host,
            cell_uuid=facts.cell_uuid,
            status=_reach(facts),
            reason=decision.reason or self._shares_with(host),
            is_worked_on=decision.is_queued,
            images=self._images(host, costs, downloads),
            bytes_to_move=sum(map(_download_bytes, downloads.values())),
            space_needed_bytes=space_needed_bytes,
            free_bytes=free_bytes,
            fits=self._fits(host, space_needed_bytes, free_bytes),
            rate_bytes=pace.expected(
                self._facts.rates.get(host), self._typical_rate, self._options.max_rate_bytes
            ),
        )

    def _costs(self, host: str) -> '_Costs':
        """Return the costs of each image, by the host's own option or else by that of the API."""
        agent = self._facts.agents.get(host)
        own = None if agent is None else agent.force_raw_images
        return self._costs_by_option[self._rules.force_raw_images if own is None else own]

    def _choose_downloads(self, host: str, costs_on: '_Costs') -> dict[str, Sequence['_Cost']]:
        """Choose the parts that are neither in the host's store nor chosen already for it.

        :returns: image id to the parts that the host downloads; images may share a kernel
        """
        store = self._store(host)
        stored, coming = self._stored[store], self._coming[store]
        chosen: dict[str, Sequence[_Cost]] = {}
        for image_id, costs in costs_on.items():
            lacking = [cost for cost in costs if cost.part_id not in stored | coming.keys()]
            coming.update({cost.part_id: host for cost in lacking})
            chosen[image_id] = lacking
        return chosen

    def _shares_with(self, host: str) -> str | None:
        others = sorted(set(self._coming[self._store(host)].values()) - {host})
        return f'shares its cache with {", ".join(others)}' if others else None

    def _images(
        self, host: str, costs_on: '_Costs', downloads: '_Costs'
    ) -> tuple[ImageEstimate, ...]:
        stored = self._stored[self._store(host)]
        absent = ImageState.MISSING if host in self._facts.known_hosts else ImageState.UNKNOWN
        return tuple(
            ImageEstimate(
                image_id=image_id,
                state=(
                    ImageState.CACHED
                    if stored.issuperset(cost.part_id for cost in costs)
                    else absent
                ),
                bytes_to_move=_download_bytes(downloads.get(image_id, ())),
                space_needed_bytes=_space_bytes(downloads.get(image_id, ())),
            )
            for image_id, costs in costs_on.items()
        )

    def _fits(self, host: str, space_needed_bytes: int, free_bytes: int | None) -> bool | None:
        if not space_needed_bytes:
            return True
        if free_bytes is None:
            return None
        own = self._facts.agents[host].reserved_disk_bytes
        reserved_bytes = self._rules.reserved_disk_bytes if own is None else own
        return space_needed_bytes + reserved_bytes <= free_bytes


def _reach(host: planner.HostFacts) -> HostReach:
    if host.cell_uuid is None:
        return HostReach.UNMAPPED
    return HostReach.UP if host.cell_off is None and host.down is None else HostReach.DOWN


@dataclasses.dataclass(frozen=True)
class _Cost:
    """The bytes that an image, kernel or ramdisk needs on any host that downloads it."""

    part_id: str
    download_bytes: int
    converted_bytes: int

    @property
    def space_bytes(self) -> int:
        return self.download_bytes + self.converted_bytes


_Costs = Mapping[str, Sequence[_Cost]]
"""Image id to the costs of its parts."""


def _costs(image: model.Image, force_raw_images: bool) -> Sequence[_Cost]:
    """Return the costs of all parts; a kernel or ramdisk is never converted."""
    is_converted = force_raw_images and image.disk_format not in formats.RAW_DISK_FORMATS
    converted_bytes = (image.virtual_size or 0) if is_converted else 0
    return [
        *(_Cost(each.id, each.size or 0, 0) for each in image.companions),
        _Cost(image.id, image.size or 0, converted_bytes),
    ]


def _download_bytes(costs: Iterable[_Cost]) -> int:
    return sum(cost.download_bytes for cost in costs)


def _space_bytes(costs: Iterable[_Cost]) -> int:
    return sum(cost.space_bytes for cost in costs)


def _most_space(downloads: Iterable[Sequence[_Cost]]) -> int:
    """Return the peak space: a download is removed once the image is converted."""
    kept = most = 0
    for costs in downloads:
        most = max(most, kept + _space_bytes(costs))
        kept += sum(cost.converted_bytes or cost.download_bytes for cost in costs)
    return most


def _seconds(hosts: Sequence[HostEstimate], canary: int, parallel_hosts: int) -> float | None:
    """Return the time for all hosts; canaries finish before the others start."""
    durations = [host.seconds for host in hosts if host.is_worked_on]
    known = [seconds for seconds in durations if seconds is not None]
    if len(known) < len(durations):
        return None
    return _schedule(known[:canary], parallel_hosts) + _schedule(known[canary:], parallel_hosts)


def _schedule(durations: Iterable[float], parallel_hosts: int) -> float:
    """Assign each host, in order, the slot that is free first; return when all are done."""
    free_at = [0.0] * parallel_hosts
    for seconds in durations:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at, default=0)


def _peak_rate(downloading: Sequence[HostEstimate], parallel_hosts: int) -> float | None:
    rates = [host.rate_bytes for host in downloading]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        return None
    return sum(heapq.nlargest(parallel_hosts, known))
