# SPDX-License-Identifier: Apache-2.0
"""Contents of the hosts' caches, as their computes report them.

A row without a name stands for the cache itself: it exists once the host has sent a full
report. So an empty cache differs from an unknown one. Its ``reported_at`` is when the last full
report was sent, its ``touched_at`` when the last report that removed files or listed all was sent.

Reports may be written out of order, since each conductor keeps its own while the database is
away. A report changes a file only if no report that was sent later has changed it. A removed file
leaves no row: a report that was kept, and is older than ``touched_at``, adds no files; the next
full one does.
"""

import dataclasses
import datetime
import functools
import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from oslo_db import exception as db_exception
from sqlalchemy import orm

from nova_precache import exception, model, wire
from nova_precache.db import pages
from nova_precache.db.engine import models, session as db_session

LOG = logging.getLogger(__name__)

NAME_MAX = 64
# Per host: far above any real cache, so that made-up names do not fill the database.
MOST_FILES = 10_000
# Few statements for a whole fleet, each far below the limits of a database.
_HOSTS_AT_ONCE = 2000
_ROWS_AT_ONCE = 2000
_WHOLE = ''
# A report that is written later than this was kept while the database was away.
_KEPT_AFTER = datetime.timedelta(seconds=10)


_SORTED = ('size_bytes', 'disk_bytes', 'touched_at', 'used_by')
FILES_OF_HOST, FILES_OF_IMAGE = (
    pages.Listing(
        {name: getattr(models.CachedImage, name) for name in (unique, *_SORTED)},
        unique=getattr(models.CachedImage, unique),
        marker=getattr(models.CachedImage, unique),
    )
    for unique in ('name', 'host')
)
_ALL = pages.Page()

Present = Mapping[tuple[str, str], model.CachedImage]


@dataclasses.dataclass(frozen=True)
class Report:
    """A host's report of its cache: new and changed files, and removed ones.

    :ivar full: of the names after ``after`` up to ``until``, those not in ``images`` are gone
    :ivar after: None from the first name
    :ivar until: None to the last name
    :ivar cell_uuid: the cell that reported it
    :ivar sent_at: by the database's clock; None counts as sent when it is written
    """

    host: str
    images: Sequence[model.CachedImage]
    removed: Sequence[str] = ()
    full: bool = False
    after: str | None = None
    until: str | None = None
    cell_uuid: str | None = None
    sent_at: datetime.datetime | None = None

    def covers(self, name: str) -> bool:
        """Return whether the report decides on the existence of a file of this name."""
        follows = self.after is None or name > self.after
        return self.full and follows and (self.until is None or name <= self.until)


class Caches:
    """The caches in the database; every method is one short transaction, or a few."""

    def __init__(self, database: db_session.Database) -> None:
        self._database = database
        self._senders = wire.Senders(LOG)

    def record(self, reports: Iterable[Report]) -> None:
        """Record reports in bulk; those of a host that were sent later win.

        A report that the database refuses is skipped, and its host is named in the log.
        """
        full: set[str] = set()
        for some in _portions(reports):
            full.update(*db_session.in_bulk(some, self._write, self._refuse))
        for host in full:
            self._senders.refused(
                'some images', f'host {host}', f'at most {MOST_FILES} are recorded per host'
            )

    def _refuse(self, report: Report, error: Exception) -> None:
        self._senders.refused('an inventory', f'host {report.host}', wire.line(str(error)))

    def _write(self, reports: Sequence[Report]) -> set[str]:
        try:
            return self._database.write(functools.partial(_record, reports=reports))
        except db_exception.DBDuplicateEntry:  # another conductor added the same first
            return self._database.write(functools.partial(_record, reports=reports))

    def of_host(self, host: str, page: pages.Page = _ALL) -> Sequence[model.CachedImage]:
        """List the files in a host's cache, by default by name; a marker is a name.

        :raises nova_precache.exception.InvalidMarker: to sort after it, the file is needed
        """
        its = _ROW.host == host
        with self._database.reader() as session:
            query = pages.select(session, _FILES.where(its), FILES_OF_HOST, page, its)
            rows = session.execute(query).all()
            ids = _image_ids(session, [row.name for row in rows])
            return list(_cached_images(session, rows, ids))

    def hosts_of(
        self, image_id: str, page: pages.Page = _ALL, hosts: Collection[str] | None = None
    ) -> Sequence[model.CachedImage]:
        """List the files of an image, by default by host; a marker is a host.

        :param hosts: only on these
        :raises nova_precache.exception.InvalidMarker: to sort after it, the file is needed
        """
        name = _base_name(image_id)
        its = _ROW.name == name
        query = _FILES.where(its)
        if hosts is not None:
            query = query.where(_ROW.host.in_(list(hosts)))
        with self._database.reader() as session:
            query = pages.select(session, query, FILES_OF_IMAGE, page, its)
            rows = session.execute(query).all()
            return list(_cached_images(session, rows, {name: image_id}))

    def present(self, hosts: Collection[str], image_ids: Collection[str]) -> Present:
        """Map (host, image) to the file, where the host has one."""
        ids = {_base_name(image_id): image_id for image_id in image_ids}
        found: dict[tuple[str, str], model.CachedImage] = {}
        with self._database.reader() as session:
            for names in db_session.chunks(sorted(ids)):
                for some in db_session.chunks(sorted(hosts), _HOSTS_AT_ONCE):
                    query = _FILES.where(_ROW.host.in_(some), _ROW.name.in_(names))
                    rows = session.execute(query).all()
                    for file in _cached_images(session, rows, ids):
                        found[file.host, ids[file.name]] = file
        return found

    def known_hosts(self, among: Collection[str] | None = None) -> frozenset[str]:
        """Return the hosts that have sent a full report of their caches.

        :param among: only these
        """
        query = sa.select(_ROW.host).where(_ROW.name == _WHOLE)
        with self._database.reader() as session:
            if among is not None:
                return frozenset(_told(session, among))
            return frozenset(session.scalars(query))


_UNREPORTED = (
    'The contents of the caches are unknown: with compute_backend = nova, hosts report no '
    'inventory.'
)


class UnreportedCaches(Caches):
    """Caches of hosts that report none, such as those of stock nova-computes.

    What computes of this service reported earlier is ignored: the files may be gone.
    """

    def of_host(self, host: str, page: pages.Page = _ALL) -> Sequence[model.CachedImage]:
        raise exception.NotByNova(_UNREPORTED)

    def hosts_of(
        self, image_id: str, page: pages.Page = _ALL, hosts: Collection[str] | None = None
    ) -> Sequence[model.CachedImage]:
        raise exception.NotByNova(_UNREPORTED)

    def present(self, hosts: Collection[str], image_ids: Collection[str]) -> Present:
        return {}

    def known_hosts(self, among: Collection[str] | None = None) -> frozenset[str]:
        return frozenset()


def usable_parts(present: Present, images: Collection[model.Image]) -> Present:
    """Leave out partial kernels and ramdisks, which a killed Nova leaves behind.

    :param present: the parts of the images, by (host, image)
    """
    sizes = {each.id: each.size for image in images for each in image.companions}
    return {
        key: file for key, file in present.items() if sizes.get(key[1]) in {None, file.size_bytes}
    }


def bootable(present: Present, images: Collection[model.Image]) -> Present:
    """Map (host, image) to the file, as old as its oldest part, where a host has all parts.

    :param present: the parts of the images, by (host, image)
    """
    usable = usable_parts(present, images)
    hosts = {host for host, _ in usable}
    found: dict[tuple[str, str], model.CachedImage] = {}
    for image in images:
        for host in hosts:
            files = [usable.get((host, part.id)) for part in image.parts]
            there = [file for file in files if file is not None]
            if len(there) == len(files):
                oldest = min(file.touched_at for file in there)
                found[host, image.id] = dataclasses.replace(there[-1], touched_at=oldest)
    return found


_ROW = models.CachedImage
# Columns, not objects: there may be a hundred thousand rows.
_FILES = sa.select(
    _ROW.host,
    _ROW.name,
    _ROW.size_bytes,
    _ROW.disk_bytes,
    _ROW.touched_at,
    _ROW.used_by,
    _ROW.reported_at,
).where(_ROW.name != _WHOLE)
_Found = sa.Row[str, str, int, int, datetime.datetime, int | None, datetime.datetime]


def _base_name(image_id: str) -> str:
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


def _cached_images(
    session: orm.Session, rows: Sequence[_Found], ids: Mapping[str, str]
) -> Iterator[model.CachedImage]:
    told = _told(session, {row.host for row in rows})
    for host, name, size_bytes, disk_bytes, touched_at, used_by, reported_at in rows:
        yield model.CachedImage(
            host=host,
            name=name,
            image_id=ids.get(name),
            size_bytes=size_bytes,
            disk_bytes=disk_bytes,
            touched_at=touched_at,
            used_by=used_by,
            # A later full report does not rewrite unchanged files.
            reported_at=max(reported_at, told.get(host, reported_at)),
        )


def _told(session: orm.Session, hosts: Collection[str]) -> Mapping[str, datetime.datetime]:
    """Map hosts to the times of their last full reports."""
    told: dict[str, datetime.datetime] = {}
    for some in db_session.chunks(sorted(hosts), _HOSTS_AT_ONCE):
        query = sa.select(_ROW.host, _ROW.reported_at).where(
            _ROW.name == _WHOLE, _ROW.host.in_(some)
        )
        told.update((host, reported_at) for host, reported_at in session.execute(query))
    return told


def _image_ids(session: orm.Session, names: Iterable[str]) -> Mapping[str, str]:
    """Map names of files, also of resized ones, to images that requests have named."""
    base_names = {name: name.partition('_')[0] for name in names}
    ids: dict[str, str] = {}
    for some in db_session.chunks(sorted(set(base_names.values()))):
        query = sa.select(models.ImageName).where(models.ImageName.name.in_(some))
        ids.update((row.name, row.image_id) for row in session.scalars(query))
    return {name: ids[base] for name, base in base_names.items() if base in ids}


def _portions(reports: Iterable[Report]) -> Iterator[list[Report]]:
    """Split reports so that no transaction takes long; in one order for all conductors."""
    some: list[Report] = []
    rows = 0
    for report in sorted(reports, key=lambda each: each.host):
        if some and rows >= _ROWS_AT_ONCE:
            yield some
            some, rows = [], 0
        some.append(report)
        rows += len(report.images)
    if some:
        yield some


class _File(NamedTuple):
    """The columns of a row beside its key."""

    size_bytes: int
    disk_bytes: int
    touched_at: datetime.datetime
    used_by: int | None
    reported_at: datetime.datetime


_Files = dict[str, _File]
_Row = dict[str, object]
_NEVER = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - in UTC, as times are kept
_UNREPORTED_CACHE = _File(0, 0, _NEVER, None, _NEVER)


def _record(session: orm.Session, reports: Sequence[Report]) -> set[str]:
    """Write the changes of reports; return the hosts that reported too many files."""
    hosts = sorted({report.host for report in reports})
    # Conductors that write files of the same hosts take turns: otherwise they would deadlock
    # over these files, and insert some twice.
    for some in db_session.chunks(hosts, _HOSTS_AT_ONCE):
        query = sa.select(models.Agent.host).where(models.Agent.host.in_(some))
        session.execute(query.order_by(models.Agent.host).with_for_update()).all()
    now = db_session.now(session)
    before = _known(session, hosts)
    after = {host: dict(files) for host, files in before.items()}
    for report in reports:
        _apply(report, after[report.host], now)
    full = {host for host, files in after.items() if _leave_out(files, before[host])}
    for host, files in before.items():
        _delete(session, host, sorted(files.keys() - after[host].keys()))
    new: list[_Row] = []
    changed: list[_Row] = []
    for host, files in after.items():
        for name, file in sorted(files.items()):
            if before[host].get(name) != file:
                rows = changed if name in before[host] else new
                rows.append({'host': host, 'name': name, **file._asdict()})
    if new:
        session.execute(sa.insert(_ROW), new)
    _update(session, changed)
    return full


def _known(session: orm.Session, hosts: Sequence[str]) -> dict[str, _Files]:
    """Read the recorded files of hosts."""
    known: dict[str, _Files] = {host: {} for host in hosts}
    columns = [getattr(_ROW, name) for name in _File._fields]
    for some in db_session.chunks(hosts, _HOSTS_AT_ONCE):
        query = sa.select(_ROW.host, _ROW.name, *columns).where(_ROW.host.in_(some))
        for host, name, *values in session.execute(query):
            known[host][name] = _File(*values)
    return known


def _apply(report: Report, files: _Files, now: datetime.datetime) -> None:
    """Change the files of a host as reported, except those that a later report has decided."""
    sent_at = min(report.sent_at or now, now)
    cache = files.get(_WHOLE, _UNREPORTED_CACHE)

    def is_later(decided_at: datetime.datetime) -> bool:
        return sent_at < decided_at <= now  # the database's clock may be put back

    def is_decided(name: str) -> bool:
        if name in files:
            return is_later(files[name].reported_at)
        return now - sent_at > _KEPT_AFTER and is_later(cache.touched_at)

    images = {image.name: image for image in report.images if not is_decided(image.name)}
    covered = {name for name in files if name != _WHOLE and report.covers(name)}
    listed = {image.name for image in report.images}
    gone = {name for name in {*covered, *report.removed} - listed if not is_decided(name)}
    for name in gone:
        files.pop(name, None)
    for name, image in images.items():
        files[name] = _reported(image, sent_at, files.get(name) if report.full else None)
    if (gone or _is_whole(report)) and not is_later(cache.touched_at):
        cache = cache._replace(touched_at=sent_at)
    if _tells_all(report) and not is_later(cache.reported_at):
        cache = cache._replace(reported_at=sent_at)
    if cache.reported_at != _NEVER:
        files[_WHOLE] = cache


def _reported(image: model.CachedImage, sent_at: datetime.datetime, known: _File | None) -> _File:
    """Return a reported file; the known one if nothing but its time has changed."""
    file = _File(image.size_bytes, image.disk_bytes, image.touched_at, image.used_by, sent_at)
    return file if known is None or known[:-1] != file[:-1] else known


def _leave_out(files: _Files, before: _Files) -> bool:
    """Drop new files beyond the maximum, and return whether there were any; known ones stay."""
    too_many = len(files) - (_WHOLE in files) - MOST_FILES
    if too_many <= 0:
        return False
    for name in sorted(files.keys() - before.keys() - {_WHOLE})[-too_many:]:
        del files[name]
    return True


def _is_whole(report: Report) -> bool:
    """Return whether a report lists all files."""
    return report.full and report.after is None and report.until is None


def _tells_all(report: Report) -> bool:
    """Return whether a report is the last part of a full one."""
    return report.full and report.until is None


def _delete(session: orm.Session, host: str, names: Sequence[str]) -> None:
    for some in db_session.chunks(names):
        session.execute(
            sa.delete(_ROW)
            .where(_ROW.host == host, _ROW.name.in_(some))
            .execution_options(synchronize_session=False)
        )


def _update(session: orm.Session, rows: Sequence[_Row]) -> None:
    """Update rows by their keys; skip a row that another conductor removed."""
    if not rows:
        return
    statement = (
        sa.update(_ROW)
        .where(_ROW.host == sa.bindparam('its_host'), _ROW.name == sa.bindparam('its_name'))
        .values({name: sa.bindparam(name) for name in rows[0] if name not in ('host', 'name')})
    )
    session.connection().execute(
        statement, [{**row, 'its_host': row['host'], 'its_name': row['name']} for row in rows]
    )
