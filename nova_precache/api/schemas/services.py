# SPDX-License-Identifier: Apache-2.0
"""Services and cells: queries and answers."""

from nova_precache import model
from nova_precache.api.schemas import common
from nova_precache.api.schemas.common import described, nullable

_BINARY: model.Json = {'type': 'string', 'enum': list(map(str, model.Binary))}
_STATUS: model.Json = {'type': 'string', 'enum': list(map(str, model.HostStatus))}
_CELL_STATUS: model.Json = {'type': 'string', 'enum': list(map(str, model.CellStatus))}

INDEX = common.strict(
    {
        'limit': common.LIMIT,
        'marker': common.marker(common.NAME, 'id'),
        'binary': common.once(described(_BINARY, 'Only services of this command.')),
        'host': common.once(described(common.HOST, 'Only services of this host.')),
        'status': common.once(described(_STATUS, 'Only services in this status.')),
    }
)
SERVICE = described(
    common.whole(
        {
            'id': described(
                common.STRING, 'The id of the process; of a compute, that of its agent.'
            ),
            'binary': described(_BINARY, 'The command that runs.'),
            'host': described(common.STRING, 'Its ``[DEFAULT] host``.'),
            'cell': described(
                nullable(common.UUID), 'The UUID of the cell of a compute; null for the others.'
            ),
            'status': described(
                _STATUS,
                '``unknown`` if it was silent while its reports could not have arrived: while no '
                'conductor was connected to the cell of a compute, or while the database was '
                'away.',
            ),
            'reason': described(nullable(common.STRING), 'Why it is not up; null while it is.'),
            'version': described(nullable(common.STRING), 'Its release; null if not reported.'),
            'started_at': described(common.TIME, 'When it has started, or registered.'),
            'seen_at': described(common.TIME, 'The time of its last report.'),
        }
    ),
    'The service.',
)
CELLS = common.strict({})
CELL = described(
    common.whole(
        {
            'id': described(common.UUID, 'The UUID of the cell.'),
            'name': described(nullable(common.STRING), 'Its name; null if it has none.'),
            'status': described(
                _CELL_STATUS,
                '``up`` while messages of its broker reach a conductor; ``down`` while none do, '
                'though a conductor is up; ``unknown`` if no conductor is up or has connected '
                'to it yet; ``disabled`` if its mapping is.',
            ),
            'reason': described(nullable(common.STRING), 'Why it is not up; null while it is.'),
            'hosts': described(common.COUNT, 'The number of its hosts.'),
            'hosts_up': described(common.COUNT, 'The number of those that are up.'),
            'heard_since': described(
                nullable(common.TIME),
                'Since when messages of its broker arrive without a gap; null while none do.',
            ),
        }
    ),
    'The cell.',
)
CELLS_ANSWER = common.whole({'cells': described(common.items(CELL), 'The cells.')})
