# SPDX-License-Identifier: Apache-2.0
"""The form in which ``routes`` describes the API: an operation is one method of one path.

Requests are dispatched by it, and the OpenAPI document and the API reference are built from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import microversion_parse

from nova_precache import model
from nova_precache.api.request import Handler

ANY_METHOD = '*'


@dataclasses.dataclass(frozen=True)
class Action:
    """What an operation does if the single key of its body names this action.

    :ivar errors: why it may be refused, by error status, in addition to the operation's
    """

    summary: str
    handler: Handler
    body: model.Json
    errors: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One method of one path; either a handler serves it, or one for each action.

    :ivar name: its name in generated clients
    :ivar errors: why it may be refused, by error status, in addition to the common errors
    :ivar path: the schemas of the variables of its path
    :ivar query: the schema of its query, each parameter of which is a list of its values
    :ivar answer: the schema of its answer; None: no body
    :ivar links: operations that accept the id in the answer, and the pointer to the id
    :ivar since: the microversion from which on it exists
    :ivar is_public: it needs no token
    """

    name: str
    summary: str
    tag: str
    handler: Handler | None = None
    actions: Mapping[str, Action] = dataclasses.field(default_factory=dict)
    status: int = 200
    answer: model.Json | None = None
    errors: Mapping[int, str] = dataclasses.field(default_factory=dict)
    path: Mapping[str, model.Json] = dataclasses.field(default_factory=dict)
    query: model.Json | None = None
    body: model.Json | None = None
    example: model.Json | None = None
    headers: Sequence[str] = ()
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    since: microversion_parse.Version | None = None
    is_public: bool = False


Methods = Mapping[str, Operation]
Table = Mapping[str, Methods]
