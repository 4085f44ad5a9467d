# SPDX-License-Identifier: Apache-2.0
"""The requests, good and bad, sent to a stock nova-api and to ours, in groups.

Every group starts with the aggregates of ``STAGE``, whose ids are 1, 2 and 3. Its
requests run in order, each on the state that the earlier ones left. After each group the
aggregates are compared, too.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HOSTS = ('host1', 'host2', 'host3')

PROJECT = 'b3a1c0de00000000000000000000cafe'
OTHER_PROJECT = 'b3a1c0de00000000000000000000beef'

ACTIVE = '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a01'
ALSO_ACTIVE = '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a02'
DEACTIVATED = '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a03'
QUEUED = '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a04'
UNKNOWN = '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a05'

VERSION = 'OpenStack-API-Version'
LEGACY_VERSION = 'X-OpenStack-Nova-API-Version'
NOVAS_MAXIMUM, OUR_MAXIMUM = '2.104', '2.81'

AGGREGATES = '/v2.1/os-aggregates'


@dataclasses.dataclass(frozen=True)
class Difference:
    """An answer of ours that differs from Nova's, and why."""

    why: str
    status: int
    message: str | None = None


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request; ``body`` holds the bytes to send."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    differs: Difference | None = None

    def __str__(self) -> str:
        body = '' if self.body is None else f' {_shorten(self.body)}'
        headers = {k: _shorten(v.encode()) for k, v in self.headers.items() if k != 'Content-Type'}
        return f'{self.method} {_shorten(self.path.encode())}{body} {headers}'


def _shorten(text: bytes) -> str:
    whole = text.decode(errors='backslashreplace')
    return whole if len(whole) < 120 else f'{whole[:60]}… ({len(whole)} characters)'


# Every difference in single requests. Differences in many requests are in the test.
NOT_UTF8 = Difference('Nova fails where the body is not UTF-8', 400, 'Malformed request body')
UNREAD = Difference('Nova reads, and fails on, a body that nobody asked for', 200)
UNREAD_TOO = Difference(UNREAD.why, 400)
UNSTORABLE = Difference('the database of Nova keeps it or fails', 400)
OVERRIDDEN = Difference("Nova's framework takes the method from the query", 200)
TOO_DEEP = Difference('Nova fails where the body is nested too deep', 400, 'Malformed request body')
UNDONE = Difference('Nova renames an aggregate whose update it then refuses', 200)
AS_A_NUMBER = Difference(
    'an aggregate that has hosts is named by its id, not by how the path spells it',
    400,
    'Cannot remove host from aggregate 1. Reason: Host aggregate is not empty.',
)
ATOM = Difference('Nova calls its JSON Atom for whoever wants that', 200)
UNWEIGHED = Difference('Nova takes a type of weight 0 for one that is wanted', 200)
TYPED_VERSION = Difference("Nova's root reads a version in Accept, too, and serves that", 200)
IDLE = 'Nova accepts an image that is not active, and each host fails'
DEACTIVE_IMAGE = Difference(IDLE, 400, f'Image {DEACTIVATED} is deactivated, not active.')
QUEUED_IMAGE = Difference(IDLE, 400, f'Image {QUEUED} is queued, not active.')
OVER_THE_LIMIT = Difference(
    'a request is limited to [image_cache] max_images_per_request',
    400,
    'Too many images: 33 asked, max_images_per_request is 32',
)


JSON_TYPE = {'Content-Type': 'application/json'}
NEWEST = {VERSION: f'compute {OUR_MAXIMUM}'}


def get(path: str, **headers: str) -> Ask:
    return Ask('GET', path, headers={**NEWEST, **headers})


def delete(path: str) -> Ask:
    return Ask('DELETE', path, headers=NEWEST)


def post(path: str, body: Any) -> Ask:
    return _with_json('POST', path, body)


def put(path: str, body: Any) -> Ask:
    return _with_json('PUT', path, body)


def raw(method: str, path: str, body: bytes | None, **headers: str) -> Ask:
    return Ask(method, path, body, {**NEWEST, **JSON_TYPE, **headers})


def at(version: str | None, asks: Sequence[Ask]) -> list[Ask]:
    """Return the requests with another microversion, or with none."""
    named = {} if version is None else {VERSION: f'compute {version}'}
    return [
        dataclasses.replace(
            ask, headers={**{k: v for k, v in ask.headers.items() if k != VERSION}, **named}
        )
        for ask in asks
    ]


def differing(ask: Ask, difference: Difference) -> Ask:
    return dataclasses.replace(ask, differs=difference)


def _with_json(method: str, path: str, body: Any) -> Ask:
    return Ask(method, path, json.dumps(body).encode(), {**NEWEST, **JSON_TYPE})


def create(**aggregate: Any) -> Ask:
    return post(AGGREGATES, {'aggregate': aggregate})


def update(aggregate_id: object, **aggregate: Any) -> Ask:
    return put(f'{AGGREGATES}/{aggregate_id}', {'aggregate': aggregate})


def act(aggregate_id: object, body: Any) -> Ask:
    return post(f'{AGGREGATES}/{aggregate_id}/action', body)


def add_host(aggregate_id: object, host: Any) -> Ask:
    return act(aggregate_id, {'add_host': {'host': host}})


def remove_host(aggregate_id: object, host: Any) -> Ask:
    return act(aggregate_id, {'remove_host': {'host': host}})


def set_metadata(aggregate_id: object, metadata: Any) -> Ask:
    return act(aggregate_id, {'set_metadata': {'metadata': metadata}})


def cache(aggregate_id: object, *images: Any) -> Ask:
    return post(f'{AGGREGATES}/{aggregate_id}/images', {'cache': [{'id': i} for i in images]})


STAGE = (
    create(name='edge', availability_zone='az1'),
    add_host(1, 'host1'),
    create(name='core'),
    add_host(2, 'host1'),
    add_host(2, 'host2'),
    set_metadata(2, {'ssd': 'true'}),
    create(name='spare'),
)

# Values that are no JSON object of a known shape, for every path that takes a body.
BODIES: Mapping[str, bytes | None] = {
    'none': None,
    'empty': b'',
    'a space': b' ',
    'a newline': b'\n',
    'no JSON': b'aggregate',
    'cut off': b'{"aggregate": {"name": "x"}',
    'two documents': b'{} {}',
    'a trailing comma': b'{"aggregate": {"name": "x"},}',
    'single quotes': b"{'aggregate': {}}",
    'a list': b'[]',
    'a list of one': b'[1]',
    'a list of two': b'[1, 2]',
    'a list of an object': b'[{"aggregate": {}}]',
    'a string': b'"aggregate"',
    'an empty string': b'""',
    'a string of one': b'"a"',
    'an integer': b'1',
    'zero': b'0',
    'a float': b'1.5',
    'true': b'true',
    'false': b'false',
    'null': b'null',
    'NaN': b'NaN',
    'an infinity': b'{"aggregate": Infinity}',
    'an empty object': b'{}',
    'an unknown key': b'{"x": {}}',
    'an empty key': b'{"": {}}',
    'two unknown keys': b'{"x": 1, "y": 2}',
    'a byte order mark': b'\xef\xbb\xbf{"aggregate": {"name": "bom"}}',
    'a long number': b'{"aggregate": {"name": ' + b'1' * 5000 + b'}}',
    'a NUL': b'{"aggregate": {"name": "a\x00b"}}',
    'a control character': b'{"aggregate": {"name": "a\nb"}}',
}
NOT_UTF8_BODIES = (
    b'{"aggregate": {"name": "\xff\xfe"}}',
    '{"aggregate": {"name": "Süd"}}'.encode('latin-1'),
    '{"aggregate": {"name": "utf16"}}'.encode('utf-16'),
)
DEEP_BODIES = (b'[' * 3000 + b']' * 3000, b'[' * 100_000)
# Values in place of an object of a known shape.
VALUES: Sequence[Any] = (None, 0, 1, -1.5, True, '', 'x', [], ['x'], {}, {'x': 1}, [{}])
IDS = (
    '1', '01', '+1', '-1', '0', '%201', '1%20', '1_0', '1.0', '1e0', '0x1', '4711', '2147483647',
    '2147483648', '9223372036854775807', '9223372036854775808', '9' * 26, '1' * 5000, 'edge',
    'null', 'true', '%00', '%0A', '%0A1', '1%0A', '%31', '%D9%A1', '%EF%BC%91', '%FF',
    '%F0%9F%98%80', '1;2', '1?x=y', '1?x=%FF', '1.json', '1.xml', '1.', '.json', '*', '..',
    '1,2', '{1}', '17ed05ff-24fc-44d4-8cd6-c5b4b0ebbff3', 'action', "1'", '~', 'a' * 300,
)  # fmt: skip
FEW_IDS = (
    '01', '+1', '-1', '0', '%201', '1_0', '1.5', '4711', '9223372036854775808', 'edge', '%0A1',
    '%FF', '1?x=%FF', '1.json', '',
)  # fmt: skip
NAMES: Sequence[Any] = (
    'x', 'X', 'a b', 'ä', 'Rand Süd 東 1', 'ﷺ', 'e\u0301', '\u00e9', '0', '1', 'true', 'a:b', 'a/b',
    "a'b", 'a"b', 'a\\b', 'a%b', 'a_b', '--', '<b>', '\U0001f600', 'a\U0001f600b', 'a\U0001f600',
    '\U00010000', '\uffff', '\ufffe', '\ufffd', '\ud800', '\udfff', 'a\ud83d', '\ufeff', '\ufdd0',
    'x' * 255, 'x' * 256, 'ä' * 255, '\U0001f600' * 255, 'x' * 70_000, ' ', '  ', ' x', 'x ', ' x ',
    '\u00a0', '\u00a0x', 'x\u00a0', 'a\u00a0b', '\u2003x', 'a\u2003b', '\u3000', '\u2028',
    'a\u2028b', '\u2029x', 'a\u200bb', '\u200b', '\u00ad', 'a\u00adb', '\t', '\tx', 'x\t',
    'a\tb', '\n', 'x\n',
    '\nx', 'a\nb', 'x\n\n', 'x\r', 'x\r\n', '\r\n', '\x00', 'a\x00b', '\x1f', 'a\x1fb', '\x7f',
    'a\x7fb', '\x80', '\x85', 'a\x85b', '\x9f', '\ue000', '\u0378', 'ab', 'ab\n', 'a ', 'a\u0020',
    None, 0, 1, 1.5, True, False, [], ['x'], {}, {'x': 'y'},
)  # fmt: skip
FEW_NAMES: Sequence[Any] = (
    'x', ' x ', ' ', '\t', ' \tx', 'a\u2003b', '\u2003x', 'x\n', '\n', 'a\nb', '\u3000', 'a b',
    'a\u200bb', '\U0001f600', '\ud800', 'x' * 256, ' ' * 256, '', None, 1, [], {},
)  # fmt: skip
ZONES: Sequence[Any] = (
    *FEW_NAMES, 'a:b ', 'x' * 255, 'Süd', True, 'nova', 'internal', 'az1', 'AZ1', ':', 'a:', ':a',
    'az1:host1',
)  # fmt: skip
HOST_NAMES: Sequence[Any] = (
    'host1', 'HOST1', 'Host3', 'host3', 'host4', 'host.example', 'a_b', 'a-b', '-', '.', '_',
    '', ' ', ' host3', 'host3 ', 'host3\n', 'host3\n\n', 'ho st', 'hö', '東', '\U0001f600', 'a:b',
    'a/b', 'a,b', 'a%', "a'b", 'host3\x00', '\x00', '\ud800', 'x' * 255, 'x' * 256, 'x' * 70_000,
    None, 0, 1, 1.5, True, [], ['host3'], {}, {'host': 'host3'},
)  # fmt: skip
METADATA: Sequence[Any] = (
    *VALUES,
    {'a': 'b'}, {'a': 'b', 'c': 'd'}, {'a': None}, {'ssd': None}, {'unset': None},
    {'a': ''}, {'a': ' '}, {'a': 'x' * 255}, {'a': 'x' * 256}, {'a': '東'}, {'a': '\U0001f600'},
    {'a': 'a\nb'}, {'a': 1}, {'a': 0}, {'a': 1.5}, {'a': True}, {'a': []}, {'a': {}},
    {'a': {'b': 'c'}}, {'a': ['b']},
    {'': 'x'}, {' ': 'x'}, {' a ': 'x'}, {'k' * 255: 'x'}, {'k' * 256: 'x'}, {'ä': 'x'},
    {'a/b': 'x'}, {'a:b': 'x'}, {'a.b': 'x'}, {'a-b': 'x'}, {'a_b': 'x'}, {'a,b': 'x'},
    {'a\n': 'x'},
    {'a\n\n': 'x'}, {'a\x00': 'x'}, {'a': 'x', 'ä': 'y'}, {'a': 1, 'b': 2}, {'a': None, 'b': None},
    {'A': 'x', 'a': 'y'}, {'availability_zone': 'az1'},
    {'availability_zone': ''}, {'availability_zone': None}, {'availability_zone': 'a:b'},
    {'availability_zone': ' az1 '}, {'availability_zone': ' '}, {'availability_zone': 'az2'},
    {'availability_zone': 1}, {'availability_zone': 'nova'}, {'availability_zone': 'az1', 'a': 'b'},
    {'availability_zone': None, 'a': 'b'}, {f'k{n}': 'v' for n in range(300)},
)  # fmt: skip
PATHS = (
    '', '/', '/v2.1', '/v2.1/', '/v2.1//', '/v2.1/os-aggregates', '/v2.1/os-aggregates/',
    '/v2.1/os-aggregates/1', '/v2.1/os-aggregates/1/', '/v2.1/os-aggregates/1/action',
    '/v2.1/os-aggregates/1/action/', '/v2.1/os-aggregates/1/images',
    '/v2.1/os-aggregates/1/images/',
    '/v2.1/os-aggregates/1/metadata', '/v2.1/os-aggregates/1/images/x',
    '/v2.1/os-aggregates//action',
    '/v2.1//os-aggregates', '/v2.1/os-aggregates.json',
    '/v2.1/os-aggregates/1/action.json', '/v2.1/OS-AGGREGATES',
    '/v2.1/os%2Daggregates', '/v2%2E1/os-aggregates', '/v2.1/os-aggregates/1/../2', '/v2.1/nothing',
    '/v2.1/nothing/1', '/v2.1/%FF', '/v2.1/%00', '/v2.1x', '/V2.1', '/nothing', '/v3', '/v2.2/',
    '/v2.10', '/favicon.ico', '/v2.1/versions', '/os-aggregates', '/.', '/v2.1/.',
    '/healthchecks', '/%0A', '/v2.1%0A', '/v2.1/%0A', '/v2.1/os-aggregates%0A',
    '/v2.1/os-aggregates/1%0A',
)  # fmt: skip
METHODS = (
    'GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE', 'PROPFIND',
)  # fmt: skip
VERSIONS: Sequence[Mapping[str, str]] = (
    {},
    *(
        {VERSION: f'compute {version}'}
        for version in (
            '2.1', '2.2', '2.40', '2.41', '2.80', '2.81', 'latest', '2.0', '2.00', '2.01', '02.1',
            '1.0', '0.0', '1.1', '3.0', '3.1', '2.105', '2.999999999', '2', '2.', '.1', '2.1.0',
            '2.-1', '-2.1', '+2.1', '2,1', '2.1 ', ' 2.1', '2.1 2.2', '2.x', 'x', 'LATEST',
            'Latest', 'compute', 'compute 2.1', 'v2.1', '"2.1"', '\u0662.\u0661', '2.\u0661',
            '1' * 400,
            '2.' + '1' * 400, '2.1\t', '1.81', '2.1;', 'null', 'None', '2.8 1',
        )
    ),
    *({VERSION: text} for text in (
        '', ' ', 'compute', 'compute ', '2.41', 'latest', 'compute,2.41', 'Compute 2.41',
        'COMPUTE 2.41', 'compute\t2.41', 'compute   2.41', ' compute 2.41 ', 'nova 2.41',
        'identity 2.41', 'computes 2.41', 'image 2.41, compute 2.40', 'compute 2.40, image 2.41',
        'compute 2.40, compute 2.41', 'compute 2.41, compute x', 'compute x, compute 2.41',
        'compute 2.41,', ',compute 2.41', ',', ',,', 'compute 2.41, nonsense', 'compute=2.41',
        'compute:2.41', 'image-precache 1.0', 'compute 2.41;image 1', 'compute 9.9, compute 2.1',
    )),
    *({LEGACY_VERSION: text} for text in (
        '2.1', '2.40', '2.41', '2.81', 'latest', '', ' ', 'x', '2.0', '1.0', '3.0', '2.105',
        'compute 2.41', '2.40, 2.41', '2.41,', ',2.41', '2.41, x', 'LATEST', '2.1.1', ' 2.41 ',
    )),
    {VERSION: 'compute 2.41', LEGACY_VERSION: '2.1'},
    {VERSION: 'compute 2.1', LEGACY_VERSION: '2.81'},
    {VERSION: 'compute 2.41', LEGACY_VERSION: 'x'},
    {VERSION: 'compute x', LEGACY_VERSION: '2.41'},
    {VERSION: 'image 2', LEGACY_VERSION: '2.41'},
    {VERSION: '2.41', LEGACY_VERSION: '2.40'},
    {VERSION: 'compute 9.9', LEGACY_VERSION: '2.41'},
    {VERSION: '', LEGACY_VERSION: '2.41'},
    {VERSION: 'compute latest', LEGACY_VERSION: '2.1'},
    {'X-OpenStack-Compute-API-Version': '2.41'},
    {'OpenStack-Compute-API-Version': '2.41'},
)  # fmt: skip
CONTENT_TYPES = (
    'application/json', 'APPLICATION/JSON', 'application/json; charset=utf-8',
    'application/json;charset=UTF-8', 'application/json; charset=latin-1',
    'application/json; charset=nonsense', 'application/json;version=2.1',
    'application/json; version=2.1', 'application/json; version=1.0',
    'application/vnd.openstack.compute+json', 'application/vnd.openstack.compute+json;version=2.1',
    'application/xml', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x',
    'text/plain', 'text/plain; charset=utf-8', 'text/json', 'text/html', 'application/octet-stream',
    'application/*', '*/*', 'json', '', ' ', ';', 'nonsense', 'application/json, text/plain',
    'application/', '/json',
)  # fmt: skip
ACCEPTS = (
    '*/*', 'application/json', 'application/*', 'text/html', 'text/plain', '', 'nonsense',
    'application/vnd.openstack.compute+json', 'application/vnd.openstack.compute+json;version=2.1',
    'application/json;q=0', 'application/json;q=0.5, application/vnd.openstack.compute+json',
    'application/vnd.openstack.compute+json, application/json', 'application/xml',
    'application/atom+xml', 'application/json;version=2.1', 'application/json;q=x', ',', 'a/b/c',
    'application/json;q=0.1, text/html',
)  # fmt: skip
QUERIES = (
    '?', '?x', '?x=y', '?x=y&x=z', '?limit=1', '?limit=x', '?marker=1', '?name=edge', '?%FF=x',
    '?x=%FF', '?x=%00', '?=', '?&', '?x=' + 'y' * 3000, '?%', '?x=%zz', '?;',
)  # fmt: skip
PROJECTS = (
    PROJECT, PROJECT.upper(), OTHER_PROJECT, f'{PROJECT[:8]}-{PROJECT[8:]}', 'abc', '1', '-', 'x',
    'admin', '%20', f'{PROJECT}%20', f'%20{PROJECT}', f'{PROJECT}.json', 'g' * 32, '0', 'a' * 300,
    f'%62{PROJECT[1:]}', 'os-aggregates',
)  # fmt: skip


def groups() -> Iterator[tuple[str, list[Ask]]]:
    """Return the groups, each with the name of its test."""
    yield from _good()
    yield from _versions()
    yield from _paths()
    yield from _bodies()
    yield from _fields()
    yield from _images()


def _good() -> Iterator[tuple[str, list[Ask]]]:
    life = [
        get(AGGREGATES),
        get(f'{AGGREGATES}/2'),
        create(name='new', availability_zone='az2'),
        create(name='zoneless', availability_zone=None),
        add_host(4, 'host3'),
        get(f'{AGGREGATES}/4'),
        set_metadata(4, {'a': 'b', 'c': 'd'}),
        set_metadata(4, {'a': None, 'c': 'e'}),
        update(4, name='renamed'),
        update(4, availability_zone='az3'),
        update(4, name='again', availability_zone='az4'),
        get(AGGREGATES),
        remove_host(4, 'host3'),
        delete(f'{AGGREGATES}/4'),
        get(f'{AGGREGATES}/4'),
        cache(1, ACTIVE, ALSO_ACTIVE),
        cache(3, ACTIVE),
        get(AGGREGATES),
    ]
    for version in (None, '2.1', '2.40', '2.41', '2.80', '2.81', 'latest'):
        yield f'a life at {version or "no version"}', at(version, life)
    yield (
        'conflicts',
        [
            create(name='edge'),
            create(name=' edge'),
            create(name='EDGE'),
            update(2, name='edge'),
            update(2, name='edge', availability_zone='az9'),
            update(2, name='  edge '),
            update(1, name='edge'),
            update(1, name=' edge ', availability_zone='az1'),
            add_host(1, 'host1'),
            remove_host(1, 'host2'),
            remove_host(3, 'host1'),
            delete(f'{AGGREGATES}/1'),
            delete(f'{AGGREGATES}/3'),
            delete(f'{AGGREGATES}/3'),
        ],
    )
    yield (
        'zones of hosts',
        [
            update(2, availability_zone='az2'),
            update(2, availability_zone='az1'),
            update(2, availability_zone='az1'),
            update(1, availability_zone='az5'),
            update(1, availability_zone=None),
            update(1, availability_zone=''),
            update(1, name='moved', availability_zone='az6'),
            differing(get(f'{AGGREGATES}/1'), UNDONE),
            update(1, name='again'),
            set_metadata(1, {'availability_zone': 'az7', 'a': 'b'}),
            set_metadata(1, {'availability_zone': None}),
            set_metadata(3, {'availability_zone': 'az8'}),
            set_metadata(3, {'availability_zone': None}),
            add_host(3, 'host1'),
            add_host(3, 'host2'),
            add_host(3, 'host3'),
            update(3, name='away', availability_zone='az9'),
            set_metadata(3, {'availability_zone': 'az10'}),
            create(name='fourth', availability_zone='az11'),
            add_host(4, 'host3'),
            add_host(4, 'host1'),
            add_host(4, 'nobody'),
            remove_host(3, 'host3'),
            add_host(4, 'host3'),
            remove_host(4, 'host3'),
            update(4, name='fourth'),
            update(3, availability_zone='az11'),
        ],
    )


def _versions() -> Iterator[tuple[str, list[Ask]]]:
    for path, every in ((f'{AGGREGATES}/2', 1), ('/v2.1/', 3), ('/v2.1', 9), ('/', 9), ('/x', 9)):
        asks = [Ask('GET', path, headers=asked) for asked in VERSIONS[::every]]
        yield f'versions of {path}', asks
    yield (
        'versions where something else is wrong',
        [
            Ask(method, path, body, {**JSON_TYPE, **asked})
            for asked in (
                {VERSION: 'compute x'},
                {VERSION: 'compute 9.9'},
                {VERSION: 'compute 2.80'},
            )
            for method, path, body in (
                ('GET', '/v2.1/nothing', None),
                ('PATCH', AGGREGATES, None),
                ('POST', AGGREGATES, b'no JSON'),
                ('POST', f'{AGGREGATES}/1/action', b'no JSON'),
                ('POST', f'{AGGREGATES}/1/images', b'no JSON'),
                ('POST', f'{AGGREGATES}/1/images', b'{}'),
                ('POST', f'{AGGREGATES}/4711/images', b'{"cache": []}'),
                ('GET', f'{AGGREGATES}/1/images', None),
                ('GET', f'/v2.1/{OTHER_PROJECT}/os-aggregates', None),
            )
        ],
    )


def _paths() -> Iterator[tuple[str, list[Ask]]]:
    yield 'paths', [get(path) for path in PATHS]
    yield 'paths posted to', [post(path, {}) for path in PATHS]
    for path in (
        '/', '/v2.1', '/v2.1/', AGGREGATES, f'{AGGREGATES}/3', f'{AGGREGATES}/3/action',
        f'{AGGREGATES}/3/images', '/v2.1/nothing', '/nothing',
    ):  # fmt: skip
        yield f'methods of {path}', [Ask(method, path, headers=NEWEST) for method in METHODS]
    yield 'ids shown', [get(f'{AGGREGATES}/{i}') for i in IDS]
    yield 'ids updated', [update(i, name='edge') for i in FEW_IDS]
    yield 'ids added to', [add_host(i, 'host1') for i in FEW_IDS]
    yield 'ids given metadata', [set_metadata(i, {'a': 'b'}) for i in FEW_IDS]
    yield 'ids removed from', [remove_host(i, 'host3') for i in FEW_IDS]
    yield 'ids cached on', [cache(i, ACTIVE) for i in FEW_IDS]
    spelled = {'01', '+1', '%201', '%0A1'}
    deleted = [(i, delete(f'{AGGREGATES}/{i}')) for i in FEW_IDS]
    yield 'ids deleted', [differing(a, AS_A_NUMBER) if i in spelled else a for i, a in deleted]
    yield (
        'queries',
        [
            *(get(AGGREGATES + query) for query in QUERIES),
            *(get(path + '?x=%FF') for path in ('/', '/x', '/v2.1', '/v2.1/', f'{AGGREGATES}/2')),
        ],
    )
    yield (
        'queries of changes',
        [
            *(
                raw('POST', f'{AGGREGATES}?{q}', b'{"aggregate": {"name": "edge"}}')
                for q in ('x', 'x=%FF')
            ),
            *(
                raw('PUT', f'{AGGREGATES}/1?{q}', b'{"aggregate": {"name": "core"}}')
                for q in ('x', 'x=%FF')
            ),
            *(raw('POST', f'{AGGREGATES}/1/images?{q}', b'{"cache": []}') for q in ('x', 'x=%FF')),
            *(delete(f'{AGGREGATES}/1?{q}') for q in ('x', 'x=%FF')),
            *(
                Ask(method, f'{path}?x=%FF', headers=NEWEST)
                for method in ('POST', 'DELETE', 'PATCH')
                for path in ('/', '/x', '/v2.1', '/v2.1/', '/v2.1/x')
            ),
        ],
    )
    yield (
        'projects',
        [
            get(f'/v2.1/{project}{rest}')
            for project in PROJECTS
            for rest in ('', '/', '/os-aggregates/2')
        ],
    )
    yield 'methods in queries', [differing(get(f'{AGGREGATES}?_method=PUT'), OVERRIDDEN)]
    yield (
        'changes in projects',
        [
            raw(method, f'/v2.1/{project}/os-aggregates{rest}', body)
            for project in (PROJECT, OTHER_PROJECT, 'x')
            for method, rest, body in (
                ('POST', '', b'{"aggregate": {"name": "edge"}}'),
                ('POST', '', b'{}'),
                ('POST', '', b'no JSON'),
                ('PUT', '/3', b'{"aggregate": {"name": "other"}}'),
                ('POST', '/3/action', b'{"add_host": {"host": "host3"}}'),
                ('POST', '/3/action', b'{"nothing": {}}'),
                ('POST', '/3/images', b'{"cache": []}'),
                ('DELETE', '/3', None),
                ('DELETE', '/x', None),
                ('PATCH', '/x', None),
            )
        ],
    )
    yield (
        'accepted types',
        [
            *(get(AGGREGATES, Accept=accept) for accept in ACCEPTS),
            *(get(path, Accept='text/html') for path in ('/', '/x', '/v2.1/', '/v2.1/x')),
            *(get(f'{AGGREGATES}/x', Accept=accept) for accept in ('text/html', 'text/plain', '')),
            differing(get('/v2.1/', Accept='application/atom+xml'), ATOM),
            differing(get('/', Accept='application/json;version=2.1'), TYPED_VERSION),
            differing(
                get('/v2.1/', Accept='application/vnd.openstack.compute+json;q=0'), UNWEIGHED
            ),
        ],
    )
    yield (
        'languages',
        [
            get(f'{AGGREGATES}/x', **{'Accept-Language': language})
            for language in ('de', 'ja,en', '*', '')
        ],
    )


def _bodies() -> Iterator[tuple[str, list[Ask]]]:
    for name, method, path in (
        ('created', 'POST', AGGREGATES),
        ('updated', 'PUT', f'{AGGREGATES}/3'),
        ('acted on', 'POST', f'{AGGREGATES}/3/action'),
        ('cached', 'POST', f'{AGGREGATES}/3/images'),
    ):
        bodies = [raw(method, path, body) for body in BODIES.values()]
        odd = [differing(raw(method, path, body), NOT_UTF8) for body in NOT_UTF8_BODIES]
        deep = [differing(raw(method, path, body), TOO_DEEP) for body in DEEP_BODIES]
        if path.endswith('/action'):
            odd = [dataclasses.replace(ask, differs=None) for ask in odd]
        yield f'bodies {name}', [*bodies, *odd, *deep]
    nobodys = (('GET', '/'), ('GET', '/v2.1/'), ('GET', AGGREGATES), ('DELETE', f'{AGGREGATES}/x'))
    yield (
        'bodies where none belongs',
        [
            *(raw(how, path, body) for how, path in nobodys for body in (b'', b'{}', b'no JSON')),
            differing(raw('GET', AGGREGATES, b'\xff'), UNREAD),
            differing(raw('DELETE', f'{AGGREGATES}/x', b'\xff'), UNREAD_TOO),
        ],
    )
    good = b'{"aggregate": {"name": "edge"}}'
    yield (
        'content types',
        [
            Ask(method, path, body, {**NEWEST, 'Content-Type': content_type})
            for content_type in CONTENT_TYPES
            for method, path, body in (
                ('POST', AGGREGATES, good),
                ('GET', '/v2.1/', None),
            )
        ],
    )
    yield (
        'no content type',
        [
            Ask('POST', AGGREGATES, good, NEWEST),
            Ask('PUT', f'{AGGREGATES}/1', b'{"aggregate": {"name": "core"}}', NEWEST),
            Ask('POST', f'{AGGREGATES}/1/action', b'{"add_host": {"host": "host1"}}', NEWEST),
        ],
    )
    yield (
        'keys said twice',
        [
            raw('POST', AGGREGATES, b'{"aggregate": {"name": "a"}, "aggregate": {"name": "b"}}'),
            raw('POST', AGGREGATES, b'{"aggregate": {"name": "c", "name": "d"}}'),
            raw('PUT', f'{AGGREGATES}/3', b'{"aggregate": {"name": "e", "name": "f"}}'),
            raw(
                'POST', f'{AGGREGATES}/3/action', b'{"add_host": {}, "add_host": {"host": "host3"}}'
            ),
            raw(
                'POST',
                f'{AGGREGATES}/3/action',
                b'{"set_metadata": {"metadata": {"a": "b", "a": null, "a": "c"}}}',
            ),
        ],
    )
    yield 'too long', [raw('POST', AGGREGATES, b'{"aggregate": {"name": "' + b'x' * size + b'"}}')
                       for size in (114_000, 115_000)]  # fmt: skip


def _fields() -> Iterator[tuple[str, list[Ask]]]:
    yield 'names created', [create(name=name) for name in NAMES]
    yield 'names updated', [update(3, name=name) for name in FEW_NAMES]
    yield (
        'zones created',
        [create(name=f'zone{n}', availability_zone=zone) for n, zone in enumerate(ZONES)],
    )
    yield 'zones updated', [update(3, availability_zone=zone) for zone in ZONES]
    yield (
        'zones and names wrong together',
        [
            *(
                create(name=bad, availability_zone=worse)
                for bad in (None, ' ', '')
                for worse in (1, '', ':')
            ),
            *(
                update(3, name=bad, availability_zone=worse)
                for bad in (None, ' ')
                for worse in (1, '', ':')
            ),
            create(availability_zone='az1'),
            create(name='x', availability_zone='az1', hosts=[]),
            create(name='x', id=1),
            create(name=' x', id=1),
            create(name='x', metadata={'a': 'b'}),
            create(name='x', Name='y'),
            create(name='x', a=1, b=2, c=3),
            update(3),
            update(3, hosts=['host1']),
            update(3, name='x', hosts=['host1']),
            update(3, metadata={}),
            update('x', name=' '),
            update(4711, name=' '),
            update(4711, name='x'),
        ],
    )
    yield (
        'aggregates of other types',
        [
            ask
            for value in VALUES
            for ask in (
                post(AGGREGATES, {'aggregate': value}),
                put(f'{AGGREGATES}/3', {'aggregate': value}),
                post(AGGREGATES, {'aggregate': {'name': 'x'}, 'more': value}),
                put(f'{AGGREGATES}/3', {'aggregate': {'name': 'x'}, 'more': value}),
            )
        ],
    )
    yield (
        'actions of other types',
        [
            act(3, {action: value})
            for action in ('add_host', 'remove_host', 'set_metadata', 'Add_Host')
            for value in VALUES
        ],
    )
    yield (
        'actions',
        [
            act(3, body)
            for body in (
                {'add_host': {'host': 'host3'}, 'remove_host': {'host': 'host3'}},
                {'add_host': {'host': 'host3'}, 'x': 1},
                {'add_host': {'host': 'host3', 'x': 1}},
                {'add_host': {'hosts': ['host3']}},
                {'add_host': {'host': 'host3', 'hosts': []}},
                {'set_metadata': {'metadata': {}, 'x': 1}},
                {'set_metadata': {'meta': {}}},
                {'set_metadata': {'a': 'b'}},
                {'_add_host': {'host': 'host3'}},
                {'create': {}},
                {'delete': {}},
                {'show': {}},
                {'__class__': {}},
                {'ä': {}},
                {'\U0001f600': {}},
                {'x' * 3000: {}},
                {'a\nb': {}},
                {'%s': {}},
                {'<b>': {}},
                {'add_host ': {'host': 'host3'}},
                {'null': None},
            )
        ],
    )
    yield 'hosts added', [add_host(3, host) for host in HOST_NAMES]
    yield 'hosts removed', [remove_host(2, host) for host in HOST_NAMES[::2]]
    yield 'metadata', [set_metadata(3, metadata) for metadata in METADATA]
    yield (
        'metadata that not every database keeps',
        [
            *(
                differing(set_metadata(n, {key: value}), UNSTORABLE)
                for n, key in ((3, 'a'), (4711, 'a'), (4711, 'availability_zone'))
                for value in ('\x00', 'a\x00b', '\ud800')
            ),
            set_metadata(3, {'a': None}),
        ],
    )


def _images() -> Iterator[tuple[str, list[Ask]]]:
    images = f'{AGGREGATES}/1/images'
    yield (
        'images',
        [
            cache(1, ACTIVE),
            cache(1, UNKNOWN),
            cache(1, ACTIVE, UNKNOWN),
            cache(1, UNKNOWN, ACTIVE),
            differing(cache(1, DEACTIVATED), DEACTIVE_IMAGE),
            differing(cache(1, QUEUED), QUEUED_IMAGE),
            cache(1, ACTIVE, ACTIVE),
            cache(1, ACTIVE, ALSO_ACTIVE, ACTIVE),
            cache(1, ACTIVE, ACTIVE.upper()),
            cache(1, ACTIVE.upper()),
            cache(1, ACTIVE.replace('-', '')),
            cache(1, f'{{{ACTIVE}}}'),
            cache(1, f'urn:uuid:{ACTIVE}'),
            cache(1, f' {ACTIVE}'),
            cache(1, f'{ACTIVE}\n'),
            cache(1, ACTIVE[:-1]),
            cache(1, 'cirros'),
            cache(1, ''),
            cache(1, '00000000-0000-0000-0000-000000000000'),
            *(cache(1, value) for value in (None, 1, 1.5, True, [], {}, [ACTIVE])),
            cache(1),
            differing(cache(1, *(UNKNOWN[:-2] + f'{n:02}' for n in range(60, 93))), OVER_THE_LIMIT),
            cache(1, *([ACTIVE] * 33)),
            cache(4711, ACTIVE),
            cache(4711, UNKNOWN),
            cache(4711, ACTIVE, ACTIVE),
            cache('x', ACTIVE, ACTIVE),
            cache('x'),
            *(post(images, {'cache': value}) for value in VALUES),
            *(post(images, {'cache': [value]}) for value in VALUES),
            post(images, {'cache': [{'id': ACTIVE, 'name': 'x'}]}),
            post(images, {'cache': [{'name': 'x'}]}),
            post(images, {'cache': [{'id': ACTIVE}, {}]}),
            post(images, {'cache': [{'id': ACTIVE}], 'priority': 1}),
            post(images, {'images': [{'id': ACTIVE}]}),
            post(images, {'Cache': [{'id': ACTIVE}]}),
            raw('POST', images, f'{{"cache": [], "cache": [{{"id": "{ACTIVE}"}}]}}'.encode()),
        ],
    )
    yield 'images at 2.80', at('2.80', [cache(1, ACTIVE), cache('x', 1), cache(4711, ACTIVE)])
    yield 'images at latest', at('latest', [cache(1, ACTIVE), cache('x', 1), cache(4711, ACTIVE)])
