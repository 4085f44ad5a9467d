# SPDX-License-Identifier: Apache-2.0
"""The names on disk, which Nova must find, or must not take for its own."""

import os

from nova_precache.cache import layout

IMAGE_ID = '155d900f-4e14-4e4c-a73d-069cbf4541e6'
PATHS = layout.CacheLayout('/var/lib/nova/instances')


def test_base_file_named_by_id_sha1() -> None:
    """The sha1sum of the id, as Nova names it."""
    assert layout.base_name(IMAGE_ID) == 'f2d1a8250ed3d4b744a8250dab8f6840179d502a'


def test_base_files_and_locks_match_nova() -> None:
    name = layout.base_name(IMAGE_ID)
    assert PATHS.base_path(IMAGE_ID) == f'/var/lib/nova/instances/_base/{name}'
    assert PATHS.lock_directory == '/var/lib/nova/instances/locks'
    assert layout.LOCK_PREFIX == 'nova-'


def test_directory_follows_option() -> None:
    paths = layout.CacheLayout('/i', 'cache')
    assert os.path.dirname(paths.base_path(IMAGE_ID)) == '/i/cache'


def test_partial_names_are_unique_and_reversible() -> None:
    paths = {PATHS.new_partial_path(IMAGE_ID, 'part') for _ in range(10)}
    assert len(paths) == 10
    for path in paths:
        name = os.path.basename(path)
        assert layout.base_name_of_partial(name) == layout.base_name(IMAGE_ID)


def test_nova_files_not_our_partials() -> None:
    name = layout.base_name(IMAGE_ID)
    for other in (name, f'{name}.part', f'{name}.converted', f'{name}_20', f'{name}_resized.part'):
        assert layout.base_name_of_partial(other) is None


def test_set_aside_name_yields_base_file() -> None:
    for name in (layout.base_name(IMAGE_ID), f'{layout.base_name(IMAGE_ID)}_20'):
        path = PATHS.new_path_beside(name, 'expired')
        assert layout.base_name_of_partial(os.path.basename(path)) == name


def test_images_distinguished_from_other_nova_files() -> None:
    name = layout.base_name(IMAGE_ID)
    assert layout.is_base_name(name)
    assert not layout.is_resized_name(name)
    assert layout.is_base_name(f'{name}_20')
    assert layout.is_resized_name(f'{name}_20')
    for other in ('swap_512', 'ephemeral_20_40d1d2c', f'{name}_sm', f'{name}.part', name.upper()):
        assert not layout.is_base_name(other)


def test_journal_named_after_partial_file() -> None:
    path = PATHS.new_partial_path(IMAGE_ID, 'part')
    journal = layout.sibling(path, layout.JOURNAL_SUFFIX)
    assert journal == path.removesuffix('part') + 'journal'
    assert layout.base_name_of_journal(os.path.basename(journal)) == layout.base_name(IMAGE_ID)
    assert layout.base_name_of_journal(os.path.basename(path)) is None


def test_foreign_journal_not_ours() -> None:
    assert layout.base_name_of_journal('system.journal') is None
    assert layout.base_name_of_journal(f'{layout.base_name(IMAGE_ID)}.journal') is None
