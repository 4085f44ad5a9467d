# SPDX-License-Identifier: Apache-2.0
"""Clean reasons before they are recorded: one short line for any log and database.

A reason quotes foreign text: an error page of a proxy, a file name, the output of a program. It
may contain control codes, surrogates or a password, and may be of any length.
"""

import re

MAX_LENGTH = 1000
# Recorded if the database refuses even the cleaned reason.
UNRECORDED = 'the reason could not be recorded'
# Only this much is cleaned, so that a page of megabytes costs little.
_READ_LENGTH = 4 * MAX_LENGTH
_ELLIPSIS = ' ...'
_ESCAPES = re.compile('\x1b(?:\\[[0-?]*[ -/]*[@-~]?|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|.)?')
# Surrogates, and characters of four bytes in UTF-8: MariaDB's utf8 has at most three.
_UNSTORABLE = re.compile('[\ud800-\udfff\U00010000-\U0010ffff]')
_USER_OF_URL = re.compile(r'(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#\s]*@')


def clean(reason: str) -> str:
    """Return a reason as one short line, without control codes and users of URLs."""
    text = _UNSTORABLE.sub('?', _ESCAPES.sub('', reason[:_READ_LENGTH]))
    text = ''.join(each if each.isprintable() else ' ' for each in text)
    text = _USER_OF_URL.sub(r'\1***@', ' '.join(text.split()))
    if len(text) > MAX_LENGTH:
        return text[: MAX_LENGTH - len(_ELLIPSIS)].rstrip() + _ELLIPSIS
    return text


def to_ascii(reason: str) -> str:
    """Replace characters that a database with another encoding may lack."""
    return reason.encode('ascii', 'replace').decode('ascii')
