# SPDX-License-Identifier: Apache-2.0
"""openstack precache cell list: the cells, and whether they can be reached."""

from nova_precache.osc import client, columns, listing


class Hosts(columns.Nothing):
    """How many hosts of a cell are up, of how many."""

    def human_readable(self) -> str:
        return f'{self._value["up"]} of {self._value["total"]}'


def _hosts(cell: client.Json) -> client.Json:
    return {'up': cell.get('hosts_up'), 'total': cell.get('hosts')}


class List(listing.Lister):
    """List the cells with their status and the number of hosts that are up."""

    collection = 'cells'
    is_paged = False
    first_columns = (
        columns.Column('Name', 'name'),
        columns.Column('Status', 'status'),
        columns.Column('Hosts Up', _hosts, Hosts),
        columns.Column('Heard Since', 'heard_since', columns.Time),
        columns.Column('Reason', 'reason', elastic=True),
    )
    more_columns = (columns.Column('ID', 'id'),)
