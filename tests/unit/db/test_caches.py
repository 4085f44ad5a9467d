# SPDX-License-Identifier: Apache-2.0
"""The recorded inventory of hosts: replaced, changed, found by host and by image."""

import dataclasses
import datetime
import hashlib
import itertools
from collections.abc import Iterable, Sequence

import pytest
import sqlalchemy as sa

from nova_precache import model
from nova_precache.db import caches, pages
from nova_precache.db.engine import models, session
from tests import statements
from tests.unit.conftest import LONG_AGO, World

TOUCHED = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)  # noqa: DTZ001 - as the database keeps it


def name_of(image_id: str) -> str:
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


def file(image_id: str, size_bytes: int = 2**40, used_by: int | None = 1) -> model.CachedImage:
    """A file as a compute reports it."""
    name = name_of(image_id)
    return model.CachedImage('', name, None, size_bytes, 5, TOUCHED, used_by)


@pytest.fixture
def store(database: session.Database) -> caches.Caches:
    return caches.Caches(database)


def sizes(store: caches.Caches, host: str) -> dict[str, int]:
    return {each.name: each.size_bytes for each in store.of_host(host)}


def named(image_ids: Iterable[str], size_bytes: int = 2**40) -> dict[str, int]:
    return {name_of(image_id): size_bytes for image_id in image_ids}


def test_cached_file_stored_completely(store: caches.Caches) -> None:
    store.record([caches.Report('h1', [file('i1'), file('i2', used_by=None)], full=True)])

    found = {each.name: each for each in store.of_host('h1')}

    assert found.keys() == {name_of('i1'), name_of('i2')}
    first = found[name_of('i1')]
    assert first.reported_at is not None
    assert dataclasses.replace(first, reported_at=None) == dataclasses.replace(
        file('i1'), host='h1'
    )
    assert found[name_of('i2')].used_by is None


def test_full_report_replaces_only_its_host(store: caches.Caches) -> None:
    for host in ('h1', 'h2'):
        store.record([caches.Report(host, [file('i1'), file('i2')], full=True)])

    store.record([caches.Report('h1', [file('i2', 7), file('i3')], full=True)])

    assert sizes(store, 'h1') == {name_of('i2'): 7, **named(['i3'])}
    assert sizes(store, 'h2') == named(['i1', 'i2'])


def test_change_leaves_other_files(store: caches.Caches) -> None:
    store.record([caches.Report('h1', [file('i1'), file('i2'), file('i3')], full=True)])

    store.record(
        [caches.Report('h1', [file('i2', 7), file('i4')], removed=[name_of('i1'), name_of('i9')])]
    )

    assert sizes(store, 'h1') == {name_of('i2'): 7, **named(['i3', 'i4'])}


def test_empty_cache_is_known(store: caches.Caches) -> None:
    store.record([caches.Report('empty', [], full=True)])
    store.record([caches.Report('changing', [file('i1')])])

    assert store.known_hosts() == {'empty'}
    assert store.of_host('empty') == []


def test_report_parts_replace_their_span(
    store: caches.Caches,
) -> None:
    names = sorted(named(['i1', 'i2', 'i3', 'i4']))
    of_name = {each.name: each for each in map(file, ('i1', 'i2', 'i3', 'i4'))}
    store.record([caches.Report('h1', list(of_name.values()), full=True)])
    first = caches.Report('h1', [of_name[names[1]]], full=True, until=names[1])
    second = caches.Report('h1', [of_name[names[3]]], full=True, after=names[1])

    for parts in ([second], [first]):
        store.record(parts)

    assert list(sizes(store, 'h1')) == [names[1], names[3]]
    assert store.known_hosts() == {'h1'}


def test_last_part_makes_cache_known(store: caches.Caches) -> None:
    store.record([caches.Report('h1', [file('i1')], full=True, until='9')])
    assert store.known_hosts() == frozenset()

    store.record([caches.Report('h1', [], full=True, after='9')])
    assert store.known_hosts() == {'h1'}


def test_later_report_of_batch_wins(store: caches.Caches) -> None:
    store.record(
        [
            caches.Report('h2', [file('i1', 1)], full=True),
            caches.Report('h1', [file('i1', 1), file('i2')], full=True),
            caches.Report('h1', [file('i1', 2)], [name_of('i2')]),
            caches.Report('h2', [], full=True),
        ]
    )

    assert sizes(store, 'h1') == {name_of('i1'): 2}
    assert sizes(store, 'h2') == {}


def sent(
    seconds: int, images: Sequence[model.CachedImage], *removed: str, full: bool = False
) -> caches.Report:
    """A report of h1 that was sent some seconds after a fixed time."""
    at = TOUCHED + datetime.timedelta(seconds=seconds)
    return caches.Report('h1', images, [name_of(each) for each in removed], full, sent_at=at)


FIRST = sent(0, [file('i1', 1), file('i2', 1), file('i3', 1)], full=True)
CHANGES = [
    sent(1, [file('i1', 2)], 'i3'),
    sent(2, [file('i2', 2), file('i3', 3)]),
    sent(3, [file('i1', 4)], 'i2'),
]
LAST = sent(4, [file('i1', 4), file('i3', 3)], full=True)
AT_LAST = {name_of('i1'): 4, name_of('i3'): 3}


@pytest.mark.parametrize('order', list(itertools.permutations(CHANGES)))
def test_older_change_overwrites_no_later_one(
    store: caches.Caches, order: Sequence[caches.Report]
) -> None:
    for report in (FIRST, *order):
        store.record([report])

    found = sizes(store, 'h1')
    assert found.items() <= AT_LAST.items(), 'a file that a later report changed or removed is back'
    assert found[name_of('i1')] == 4
    store.record([LAST])
    assert sizes(store, 'h1') == AT_LAST


@pytest.mark.parametrize('order', list(itertools.permutations([*CHANGES, LAST])))
def test_full_report_decides_in_any_order(
    store: caches.Caches, order: Sequence[caches.Report]
) -> None:
    store.record([FIRST])

    store.record(order)

    assert sizes(store, 'h1') == AT_LAST


def test_parts_of_full_report_count_in_any_order(store: caches.Caches) -> None:
    store.record([FIRST])
    files = sorted((file(each, 2) for each in ('i1', 'i2', 'i3', 'i4', 'i5')), key=lambda f: f.name)
    first, last = sent(1, files[:3], full=True), sent(2, files[3:], full=True)
    middle = files[2].name

    store.record([dataclasses.replace(last, after=middle)])
    store.record([dataclasses.replace(first, until=middle)])

    assert sizes(store, 'h1') == {each.name: 2 for each in files}


def test_older_report_counts_for_other_files(store: caches.Caches) -> None:
    store.record([FIRST])
    store.record([sent(2, [file('i1', 2)])])

    store.record([sent(1, [file('i1', 9), file('i4', 1)], 'i3')])

    assert sizes(store, 'h1') == {name_of('i1'): 2, name_of('i2'): 1, name_of('i4'): 1}


@pytest.mark.parametrize(('age', 'is_added'), [(9, True), (11, False)])
def test_removal_hides_no_file_that_is_reported_at_once(
    world: World, store: caches.Caches, age: int, *, is_added: bool
) -> None:
    """A report looks older than a removal of the same second; a kept one may really be so."""
    store.record([FIRST])
    store.record([caches.Report('h1', [], [name_of('i2')])])
    with world.database.reader() as reading:
        sent_at = session.now(reading) - datetime.timedelta(seconds=age)

    store.record([caches.Report('h1', [file('i4')], sent_at=sent_at)])

    assert (name_of('i4') in sizes(store, 'h1')) == is_added


def test_clock_put_back_hides_no_report(world: World, store: caches.Caches) -> None:
    store.record([FIRST])
    later = datetime.datetime(9000, 1, 1)  # noqa: DTZ001 - as the database keeps it
    world.change(
        models.CachedImage, models.CachedImage.host == 'h1', reported_at=later, touched_at=later
    )

    store.record([sent(1, [file('i1', 2), file('i4', 4)], 'i2')])

    assert sizes(store, 'h1') == {name_of('i1'): 2, name_of('i3'): 1, name_of('i4'): 4}


def test_reports_are_split_into_bounded_transactions(
    store: caches.Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, '_ROWS_AT_ONCE', 2)
    reports = [caches.Report(f'h{n}', [file('i1'), file('i2')], full=True) for n in range(5)]

    store.record(reports)

    assert store.known_hosts() == {f'h{n}' for n in range(5)}
    assert all(sizes(store, f'h{n}') == named(['i1', 'i2']) for n in range(5))


def test_repeated_report_refreshes_unchanged_file(world: World, store: caches.Caches) -> None:
    store.record([caches.Report('h1', [file('i1')], full=True)])
    world.change(models.CachedImage, models.CachedImage.host == 'h1', reported_at=LONG_AGO)
    [before] = store.of_host('h1')
    assert before.reported_at == LONG_AGO

    with statements.recorded(world.database, 'INSERT', 'UPDATE', 'DELETE') as written:
        store.record([caches.Report('h1', [file('i1')], full=True)])

    [after] = store.of_host('h1')
    assert after.reported_at is not None
    assert after.reported_at > LONG_AGO
    assert [each.sql.partition(' SET ')[0] for each in written] == ['UPDATE cached_images']


def test_files_have_requested_image_ids(world: World, store: caches.Caches) -> None:
    _remember(world, ['i1'])
    resized = dataclasses.replace(file('i1'), name=f'{name_of("i1")}_20')

    store.record([caches.Report('h1', [file('i1'), file('i2'), resized], full=True)])

    ids = {each.name: each.image_id for each in store.of_host('h1')}
    assert ids == {name_of('i1'): 'i1', name_of('i2'): None, resized.name: 'i1'}


def _remember(world: World, image_ids: Sequence[str]) -> None:
    rows = [{'name': name_of(image_id), 'image_id': image_id} for image_id in image_ids]
    world.database.write(lambda s: s.execute(sa.insert(models.ImageName), rows))


def test_files_of_host_come_in_pages(store: caches.Caches) -> None:
    names = sorted(named(['i1', 'i2', 'i3', 'i4', 'i5']))
    store.record([caches.Report('h1', [file(f'i{n}') for n in range(1, 6)], full=True)])
    store.record([caches.Report('h2', [file('i6')], full=True)])

    found, marker = [], None
    while page := [each.name for each in store.of_host('h1', pages.Page((), 2, marker))]:
        found.append(page)
        marker = page[-1]

    assert found == [names[:2], names[2:4], names[4:]]


def test_hosts_of_image_come_in_pages(store: caches.Caches) -> None:
    for number in range(5):
        store.record([caches.Report(f'h{number}', [file('i1', number), file('i2')], full=True)])
    store.record([caches.Report('without', [file('i2')], full=True)])

    first = store.hosts_of('i1', pages.Page((), 3))
    second = store.hosts_of('i1', pages.Page((), 3, first[-1].host))

    assert [(each.host, each.size_bytes) for each in (*first, *second)] == [
        (f'h{number}', number) for number in range(5)
    ]
    assert {each.image_id for each in first} == {'i1'}
    assert store.hosts_of('i3') == []


def test_hosts_with_images_found(store: caches.Caches) -> None:
    store.record([caches.Report('h1', [file('i1', 1), file('i2', 2)], full=True)])
    store.record([caches.Report('h2', [file('i2', 3), file('i3', 4)], full=True)])
    store.record([caches.Report('h3', [file('i1', 5)], full=True)])

    found = store.present(['h1', 'h2', 'h9'], ['i1', 'i2', 'i9'])

    assert {key: each.size_bytes for key, each in found.items()} == {
        ('h1', 'i1'): 1,
        ('h1', 'i2'): 2,
        ('h2', 'i2'): 3,
    }
    assert {(each.host, each.image_id) for each in found.values()} == set(found)
    assert store.present([], ['i1']) == store.present(['h1'], []) == {}


def test_fleet_query_takes_few_statements(world: World, store: caches.Caches) -> None:
    store.record([caches.Report('h7', [file('i1')], full=True)])

    with statements.recorded(world.database, 'SELECT') as asked:
        found = store.present([f'h{n}' for n in range(10_000)], [f'i{n}' for n in range(32)])

    assert set(found) == {('h7', 'i1')}
    assert len(asked) <= 10


def test_concurrently_added_file_stored_once(
    world: World, store: caches.Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, calls = caches._known, []

    def look_too_early(reader: object, hosts: Sequence[str]) -> dict[str, object]:
        calls.append(hosts)
        seen = known(reader, hosts)  # type: ignore[arg-type]
        return {host: {} for host in hosts} if len(calls) == 1 else dict(seen)

    store.record([caches.Report('h1', [file('i1', 1)])])
    monkeypatch.setattr(caches, '_known', look_too_early)

    store.record([caches.Report('h1', [file('i1', 2)])])

    assert sizes(store, 'h1') == {name_of('i1'): 2}
    assert len(calls) == 2
