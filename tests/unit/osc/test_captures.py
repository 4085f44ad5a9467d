# SPDX-License-Identifier: Apache-2.0
"""The output of the client in the documentation: recorded, up to date, 80 columns wide."""

import re

from nova_precache.osc import hosts, images, listing, pins, requests, tasks
from tools import captures, documentation

LISTERS: dict[str, type[listing.Lister]] = {
    'list': requests.List,
    'task list': tasks.List,
    'host list': hosts.List,
    'image list --host': images.List,
    'pin list': pins.List,
}


def _recorded() -> dict[str, str]:
    text = captures.PAGE.read_text()
    commands = re.findall(r'^``openstack precache (.*)``:$', text, re.MULTILINE)
    blocks = documentation.blocks(str(captures.PAGE.relative_to(documentation.ROOT)))
    return dict(zip(commands, (block.text for block in blocks), strict=True))


def test_captures_fit_80_columns() -> None:
    for command, said in _recorded().items():
        assert max(map(len, said.splitlines())) <= captures.COLUMNS, command


def test_captures_have_current_columns() -> None:
    recorded = _recorded()
    assert set(LISTERS) == set(captures.LISTS)
    for name, lister in LISTERS.items():
        (said,) = (said for command, said in recorded.items() if command.startswith(name))
        titles = [title.strip() for title in said.splitlines()[1].strip('|').split('|')]
        assert titles == [column.title for column in lister.first_columns], name


def test_wait_is_captured_at_work() -> None:
    said = _recorded()[captures.WAITING]

    assert 'Total' in said
    assert re.search(r'downloading 0/2, \S+ MiB/s, \d+:\d\d:\d\d', said)


def test_captures_are_rendered_as_blocks() -> None:
    text = captures.render({'list': '+--+\n|  |\n'})

    (block,) = documentation.parse('page', text)
    assert (block.language, block.text) == ('text', '+--+\n|  |')
