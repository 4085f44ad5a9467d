# SPDX-License-Identifier: Apache-2.0
"""Cell mappings that are templates, filled in as Nova does; integration tests compare with Nova."""

import pytest

from nova_precache import exception, model
from nova_precache.cells import templates

RABBIT = 'rabbit://nova:pa%2Fss@rabbit1:5672/nova?ssl=1'
RABBITS = 'rabbit://one:p1@[::1]:5671,two:p2@rabbit2:5672,rabbit3/nova'
MYSQL = 'mysql+pymysql://nova:secret@Controller:3306/nova_cell0?charset=utf8#here'


@pytest.mark.parametrize(
    ('template', 'url', 'filled'),
    [
        (
            '{scheme}://{username}:{password}@{hostname}:{port}/{path}?{query}#{fragment}',
            MYSQL,
            'mysql+pymysql://nova:secret@controller:3306/nova_cell0?charset=utf8#here',
        ),
        (
            '{scheme}://{username}:{password}@{hostname}/nova_cell1?{query}',
            'mysql://u:p@db/nova',
            'mysql://u:p@db/nova_cell1?',
        ),
        (
            '{scheme}://{username}:{password}@{hostname}:{port}/cell1?{query}',
            RABBIT,
            'rabbit://nova:pa%2Fss@rabbit1:5672/cell1?ssl=1',
        ),
        (
            '{scheme}://{username1}:{password1}@[{hostname1}]:{port1},{hostname2}:{port2}/{path}',
            RABBITS,
            'rabbit://one:p1@[::1]:5671,rabbit2:5672/nova',
        ),
        ('rabbit://x{username3}@{hostname3}/', RABBITS, 'rabbit://x@rabbit3/'),
        ('rabbit://{{{username}}}@h/', RABBIT, 'rabbit://{nova}@h/'),
    ],
)
def test_template_takes_parts_of_url(template: str, url: str, filled: str) -> None:
    assert templates.fill(template, url) == filled


@pytest.mark.parametrize(
    'url',
    [
        'rabbit://nova:secret@host/cell1',
        'rabbit://nova:se{cret@host/cell1',
        'rabbit://nova:se}cret@host/cell1',
        'rabbit://nova:se{c}ret@host/cell1',
        'rabbit://nova:se{}ret@host/cell1',
        'rabbit://nova:{username!r}@host/cell1',
        'rabbit://nova:{hostname.__class__}@host/cell1',
        '',
    ],
)
def test_url_without_template_stays_unchanged(url: str) -> None:
    assert templates.fill(url, RABBIT) == url


@pytest.mark.parametrize(
    ('template', 'url', 'missing'),
    [
        ('{scheme}://{username}:{password}@{hostname}:{port}/', 'rabbit://h/', 'password.*port'),
        ('rabbit://{hostname4}/', RABBITS, 'hostname4'),
        ('rabbit://{username2}:{password2}@{hostname}/', RABBIT, 'password2.*username2'),
        ('rabbit://{username3}:{password3}@{hostname3}/', RABBITS, '{password3}$'),
        ('{scheme}://h/', None, 'scheme'),
        ('{scheme}://h/', 'rabbit://[broken/', 'scheme'),
        ('rabbit://{hostname2}/', 'rabbit://one:5672,two:port/', 'hostname2'),
    ],
)
def test_missing_part_is_named(template: str, url: str | None, missing: str) -> None:
    with pytest.raises(exception.InvalidInput, match=missing) as raised:
        templates.fill(template, url)
    assert 'secret' not in str(raised.value)


def test_unfillable_url_leaves_other_usable() -> None:
    filling = templates.Filling(transport_url='rabbit://', database_connection=MYSQL)
    cell = model.Cell(
        'uuid', 'cell1', 'rabbit://{username}@h/', '{scheme}://{username}@{hostname}/nova'
    )
    filled = filling.fill_cell(cell)
    assert (filled.transport_url, filled.database_connection) == (
        '',
        'mysql+pymysql://nova@controller/nova',
    )
    assert filled.database_problem is None
    assert filled.disabled_reason == (
        'cell cell1 cannot be reached: its transport_url is a template, and the URL that fills '
        'it in has no {username}; see [api_database] template_transport_url'
    )
    assert 'secret' not in repr(filling)
