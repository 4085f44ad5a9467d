# SPDX-License-Identifier: Apache-2.0
"""The version documents: answers."""

from nova_precache import model
from nova_precache.api.schemas import common
from nova_precache.api.schemas.common import described

BY_PATH = {'path': described(common.STRING, 'Any path.')}

_ID = described(common.STRING, 'The name of the API.')
_STATUS = described(common.STRING, 'Always ``CURRENT``.')
# The names inside of links and media types say what they are.
_LINKS = described(common.items({'type': 'object'}), 'URLs: ``rel``, ``href``.')
_MEDIA_TYPES = described(
    common.items({'type': 'object'}), 'The media types of bodies: ``base``, ``type``.'
)
_SUMMARY: model.Json = {
    'id': _ID,
    'status': _STATUS,
    'version': described(common.STRING, 'The newest microversion.'),
    'min_version': described(common.STRING, 'The oldest microversion.'),
    'updated': described(common.STRING, 'A date without meaning.'),
    'links': _LINKS,
}

LIST = common.only('versions', described(common.items(common.whole(_SUMMARY)), 'The APIs.'))
SHOW = common.only(
    'version', described(common.whole({**_SUMMARY, 'media-types': _MEDIA_TYPES}), 'The API.')
)
CHOICES = common.only(
    'choices',
    described(
        common.items(
            common.whole(
                {'id': _ID, 'status': _STATUS, 'links': _LINKS, 'media-types': _MEDIA_TYPES}
            )
        ),
        'The URLs of the path under each API.',
    ),
)
