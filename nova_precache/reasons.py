# SPDX-License-Identifier: Apache-2.0
"""Reasons, as they are recorded: one short line that every log and every database can hold.

A reason quotes what others wrote: an error page of a proxy, a file name, the output of a
program. It may hold control codes, half characters or a password, and may be of any length.
"""

import re

MAX_LENGTH = 1000
# For what the database refuses even so.
UNRECORDED = 'the reason could not be recorded'
# Of this much a clean line is made, so that a page of megabytes costs nothing.
_READ_LENGTH = 4 * MAX_LENGTH
_ELLIPSIS = ' ...'
_ESCAPES = re.compile('\x1b(?:\\[[0-?]*[ -/]*[@-~]?|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|.)?')
# Half characters, and those that take four bytes in UTF-8: MariaDB's utf8 has three.
_UNSTORABLE = re.compile('[\ud800-\udfff\U00010000-\U0010ffff]')
_USER_OF_URL = re.compile(r'(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#\s]*@')


def clean(reason: str) -> str:
    """Make one short line of a reason, without control codes and without passwords of URLs."""
    text = _UNSTORABLE.sub('?', _ESCAPES.sub('', reason[:_READ_LENGTH]))
    text = ''.join(each if each.isprintable() else ' ' for each in text)
    text = _USER_OF_URL.sub(r'\1***@', ' '.join(text.split()))
    if len(text) > MAX_LENGTH:
        return text[: MAX_LENGTH - len(_ELLIPSIS)].rstrip() + _ELLIPSIS
    return text


def to_ascii(reason: str) -> str:
    """Replace what a database with another encoding may not know."""
    return reason.encode('ascii', 'replace').decode('ascii')
