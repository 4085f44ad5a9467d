# SPDX-License-Identifier: Apache-2.0
"""Wrong input for every command: the error names the option, in one or two short lines."""

from collections.abc import Iterator

import pytest

from nova_precache.standalone import glance as glance_server
from tests.conftest import UploadImage
from tests.functional.conftest import Started, starting
from tests.openstack import Site

LONG = 'x' * 5000
UNKNOWN = 'b1f1c0de-0000-4000-8000-000000000000'
IMAGE = 'IMAGE'
TWINS = 'TWINS'
HOST = 'cell1-compute1'
EDGE = ('--aggregate', 'edge')
MOST_CHARACTERS = 400
# Nothing is cached here: no need to look for work ten times a second.
CALM: dict[str, dict[str, object]] = {
    'DEFAULT': {'report_interval': 10},
    'conductor': {
        'poll_interval_seconds': 5,
        'progress_write_interval_seconds': 5,
        'heartbeat_write_interval_seconds': 5,
    },
}


@pytest.fixture(scope='module')
def started(
    glance: glance_server.GlanceServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    with starting(tmp_path_factory.mktemp('wrong'), glance.url) as begin:
        begun = begin(**CALM)
        begun.service.aggregate('edge')
        yield begun


@pytest.fixture(scope='module')
def images(glance: glance_server.GlanceServer) -> dict[str, str]:
    """The names of one image, and of two, unique to this run."""
    return {IMAGE: f'one-{id(glance)}', TWINS: f'twins-{id(glance)}'}


# Arguments; how the error begins, or contains after ``…``; its status.
REFUSED: list[tuple[tuple[str, ...], str]] = [
    (('create', *EDGE), 'the following arguments are required: <image>'),
    (('create', IMAGE), 'one of the arguments --aggregate --host is required'),
    (('create', *EDGE, '--host', HOST, IMAGE), 'argument --host: not allowed with'),
    (('create', *EDGE, '--nosuch', IMAGE), 'unrecognized arguments: --nosuch'),
    (('create', '--aggregate', 'nowhere', IMAGE), '--aggregate: Aggregate nowhere could not'),
    (('create', '--aggregate', '', IMAGE), '--aggregate: It must not be empty.'),
    (('create', '--aggregate', '9' * 21, IMAGE), f'--aggregate: Aggregate {"9" * 21} could'),
    (('create', '--aggregate', LONG, IMAGE), '--aggregate: It has 5000 characters; 255 are'),
    (('create', *EDGE, 'nosuch'), "<image>: no image has the name or ID 'nosuch'"),
    (('create', *EDGE, ''), "<image>: no image has the name or ID ''"),
    (('create', *EDGE, LONG), "<image>: no image has the name or ID 'xxx"),
    (('create', *EDGE, TWINS), '<image>: several images are named'),
    (('create', *EDGE, UNKNOWN), f'<image>: Image {UNKNOWN} could not be found.'),
    (('create', *EDGE, IMAGE, IMAGE), '<image>: '),
    (('create', '--host', 'nobody', IMAGE), '--host: '),
    (('create', '--host', HOST, '--host', 'nobody', IMAGE), '--host: '),
    (('create', '--host', HOST, '--host', HOST, IMAGE), f'--host: {HOST} is listed twice.'),
    (('create', '--host', '', IMAGE), '--host: It must not be empty.'),
    (('create', '--host', LONG, IMAGE), '--host: It has 5000 characters; 255 are allowed.'),
    (('create', '--host', 'a b', IMAGE), '--host: It contains characters that are not allowed.'),
    (('create', *EDGE, '--priority', 'abc', IMAGE), "argument --priority: 'abc' is not an integer"),
    (('create', *EDGE, '--priority', '1.5', IMAGE), "argument --priority: '1.5' is not an integer"),
    (('create', *EDGE, '--priority', LONG, IMAGE), "argument --priority: 'xxx"),
    (('create', *EDGE, '--priority', '5000', IMAGE), '--priority: It must be at most 1000.'),
    (('create', *EDGE, '--max-parallel-hosts', '0', IMAGE), '--max-parallel-hosts: It must be at'),
    (('create', *EDGE, '--max-parallel-hosts', '9' * 11, IMAGE), '--max-parallel-hosts: It must'),
    (('create', *EDGE, '--max-rate', 'fast', IMAGE), "argument --max-rate: 'fast' is not a size"),
    (('create', *EDGE, '--max-rate', '0', IMAGE), "argument --max-rate: '0' must be greater than"),
    (('create', *EDGE, '--max-rate', '9E', IMAGE), "argument --max-rate: '9E' must be less than 8"),
    (('create', *EDGE, '--max-rate', '-1M', IMAGE), 'argument --max-rate: '),
    (
        ('create', *EDGE, '--not-before', 'noon', IMAGE),
        "argument --not-before: 'noon' is not a time",
    ),
    (('create', *EDGE, '--not-before', LONG, IMAGE), "argument --not-before: 'xxx"),
    (
        ('create', *EDGE, '--deadline', '2020-01-01', IMAGE),
        '--deadline: It must be later than now.',
    ),
    (('create', *EDGE, '--deadline', '-1h', IMAGE), 'argument --deadline: '),
    (
        ('create', *EDGE, '--not-before', '+2h', '--deadline', '+1h', IMAGE),
        '--deadline: It must be later than the start, 2',
    ),
    (('create', *EDGE, '--wait-for-down-hosts', IMAGE), '--wait-for-down-hosts: It requires a'),
    (('create', *EDGE, '--canary', '0', IMAGE), '--canary: It must be at least 1.'),
    (('create', *EDGE, '--canary', 'x', IMAGE), "argument --canary: 'x' is not an integer"),
    (('create', *EDGE, '--max-failures', '-1', IMAGE), '--max-failures: It must be at least 0.'),
    (('create', *EDGE, '--description', LONG, IMAGE), '--description: It has 5000 characters; '),
    (('create', *EDGE, '--client-request-id', '', IMAGE), '--client-request-id: It must not be'),
    (('estimate', '--aggregate', 'nowhere', IMAGE), '--aggregate: Aggregate nowhere could not'),
    (('estimate', '--host', 'nobody', IMAGE), '--host: '),
    (('estimate', *EDGE, 'nosuch'), "<image>: no image has the name or ID 'nosuch'"),
    (('estimate', *EDGE, '--max-rate', '1X', IMAGE), "argument --max-rate: '1X' is not a size"),
    (('show',), 'the following arguments are required: <request>'),
    (('show', UNKNOWN), f'<request>: Cache request {UNKNOWN} could not be found.'),
    (('show', 'xyz'), '<request>: Cache request xyz could not be found.'),
    (('show', ''), 'An ID or a name in the command is empty'),
    (('show', LONG), '<request>: Cache request xxx'),
    (('cancel', UNKNOWN), f'<request>: Cache request {UNKNOWN} could not be found.'),
    (('pause', 'xyz'), '<request>: Cache request xyz could not be found.'),
    (('resume', UNKNOWN), f'<request>: Cache request {UNKNOWN} could not be found.'),
    (('retry', UNKNOWN), f'<request>: Cache request {UNKNOWN} could not be found.'),
    (('retry', '--deadline', 'noon', UNKNOWN), "argument --deadline: 'noon' is not a time"),
    (('retry', '--deadline', '2020-01-01', UNKNOWN), f'{UNKNOWN}: --deadline: It must be'),
    (('list', '--status', 'bogus'), '…--status: '),
    (('list', '--status', LONG), '…--status: '),
    (('list', '--aggregate', 'nowhere'), '--aggregate: Aggregate nowhere could not be found.'),
    (('list', '--aggregate', ''), '--aggregate: It must not be empty.'),
    (('list', '--image', 'nosuch'), "--image: no image has the name or ID 'nosuch'"),
    (('list', '--image', TWINS), '--image: several images are named'),
    (('list', '--since', 'someday'), "argument --since: 'someday' is not a time"),
    (('list', '--since', '9' * 30 + 'y'), 'argument --since: '),
    (('list', '--pin', 'xyz'), '--pin: It must be a UUID.'),
    (('list', '--limit', '0'), "argument --limit: '0' must be greater than zero"),
    (('list', '--limit', 'abc'), "argument --limit: 'abc' is not an integer"),
    (('list', '--limit', '9' * 20), f"argument --limit: '{'9' * 20}' has more than 18 digits"),
    (('list', '--limit', LONG), "argument --limit: 'xxx"),
    (('list', '--marker', 'xyz'), '--marker: It must be a UUID.'),
    (('list', '--marker', UNKNOWN), '--marker: It is not in the list.'),
    (('list', *[f'extra-{number}' for number in range(1000)]), 'unrecognized arguments: extra-0'),
    (('host', 'list', '--status', 'sideways'), '…--status: '),
    (('host', 'list', '--limit', '-1'), "argument --limit: '-1' must be greater than zero"),
    (('image', 'list', '--host', 'nobody'), '--host: Compute host nobody could not be found.'),
    (('image', 'show', 'nosuch'), "<image>: no image has the name or ID 'nosuch'"),
    (('pin', 'create', *EDGE), 'the following arguments are required: <image>'),
    (('pin', 'create', IMAGE), 'the following arguments are required: --aggregate'),
    (('pin', 'create', '--aggregate', 'nowhere', IMAGE), '--aggregate: Aggregate nowhere could'),
    (('pin', 'create', *EDGE, 'nosuch'), "<image>: no image has the name or ID 'nosuch'"),
    (('pin', 'create', *EDGE, '--until', 'noon', IMAGE), "argument --until: 'noon' is not a time"),
    (('pin', 'create', *EDGE, '--until', '2020-01-01', IMAGE), '--until: It must be later than'),
    (('pin', 'create', *EDGE, '--description', LONG, IMAGE), '--description: It has 5000'),
    (('pin', 'list', '--status', 'bogus'), '…--status: '),
    (('pin', 'list', '--aggregate', 'nowhere'), '--aggregate: Aggregate nowhere could not be'),
    (('pin', 'list', '--marker', 'xyz'), '--marker: It must be a UUID.'),
    (('pin', 'show', UNKNOWN), f'<pin>: Pin {UNKNOWN} could not be found.'),
    (('pin', 'delete', 'xyz'), '<pin>: Pin xyz could not be found.'),
    (('pause', UNKNOWN, 'xyz'), f'<request>: Cache request {UNKNOWN} could not be found.'),
    (('retry', '--host', '', UNKNOWN), f'{UNKNOWN}: --host: It must not be empty.'),
    (('create', *EDGE, '--canary', '99', IMAGE), '--canary: The request is for 4 hosts.'),
    (('create', *EDGE, '--timeout', 'soon', IMAGE), "argument --timeout: 'soon' is not a duration"),
    (('create', *EDGE, '--timeout', '0', IMAGE), "argument --timeout: '0' must be greater than"),
    (('create', *EDGE, '--timeout', '1h', IMAGE), '--timeout: needs --wait'),
    (
        ('list', '--sort', 'size'),
        "argument --sort: 'size' is not a key to sort by: expected one of",
    ),
    (('list', '--sort', 'status:up'), "argument --sort: 'up' is not a direction of status"),
    (('list', '--sort', LONG), "argument --sort: 'xxx"),
    (('request', 'set', UNKNOWN, '--priority', '1.5'), "argument --priority: '1.5' is not an int"),
    (('request', 'set', UNKNOWN, '--priority', '5000'), '--priority: It must be at most 1000.'),
    (
        ('request', 'set', UNKNOWN, '--max-rate', 'fast'),
        "argument --max-rate: 'fast' is not a size",
    ),
    (('task', 'list', '--request', 'xyz'), '…Cache request xyz could not be found.'),
    (('task', 'list', '--status', 'bogus'), '…--status: '),
    (('task', 'list', '--image', 'nosuch'), "--image: no image has the name or ID 'nosuch'"),
    (('task', 'list', '--marker', 'xyz'), '--marker: It must be'),
    (('host', 'list', '--cell', 'nowhere'), "--cell: no cell has the name or UUID 'nowhere'"),
    (('host', 'show', 'nobody'), '<host>: '),
    (('image', 'host', 'list', 'nosuch'), "<image>: no image has the name or ID 'nosuch'"),
    (('service', 'list', '--status', 'sideways'), '…--status: '),
    (('service', 'list', '--limit', 'x'), "argument --limit: 'x' is not an integer"),
    (('cache', 'remove', IMAGE), 'one of the arguments --host --aggregate is required'),
    (
        ('cache', 'remove', '--host', HOST, 'nosuch'),
        "<image>: no image has the name or ID 'nosuch'",
    ),
    (('cache', 'remove', '--aggregate', 'nowhere', IMAGE), '…nowhere could not be found.'),
]


def test_wrong_input_names_option(
    started: Started,
    images: dict[str, str],
    upload_image: UploadImage,
    capsys: pytest.CaptureFixture[str],
    subtests: pytest.Subtests,
) -> None:
    for name in (images[IMAGE], images[TWINS], images[TWINS]):
        upload_image(b'image', name=name)
    site = Site(started.service, started.conf, capsys)

    for arguments, why in REFUSED:
        with subtests.test(arguments=[each[:20] for each in arguments[:8]]):
            said = site.run('precache', *(images.get(each, each) for each in arguments))

            assert (said.status in {1, 2}, said.out) == (True, ''), said
            assert why.removeprefix('…') in said.err
            assert why.startswith('…') or said.err.startswith(why)
            assert len(said.err) < MOST_CHARACTERS
            assert said.err.count('\n') <= 2  # argparse adds where its help is
            assert 'Traceback' not in said.err
            assert 'field/attribute' not in said.err

    assert started.service.get('/requests')['requests'] == []
