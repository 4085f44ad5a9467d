# SPDX-License-Identifier: Apache-2.0
"""How answers of a Glance, or of a proxy before it, are handled.

The server here is a real one that answers as each test scripts; the contract tests use a
real Glance.
"""

import dataclasses
import gzip
import json
import logging
import pathlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
import trustme
from keystoneauth1 import noauth
from keystoneauth1.identity import v3

from nova_precache import conf as precache_conf, context, exception
from nova_precache.image import glance, service
from nova_precache.wiring import images as wiring_images
from tests.scripted_server import Answer, Server, serving
from tools.waiting import TIMEOUT_SECONDS

IMAGE_ID = 'b6a9a5cc-3b7e-4b8e-9d3e-0c5bb8f4d5a1'
DATA = bytes(range(256)) * 16384
CHUNKED = {'Transfer-Encoding': 'chunked'}
SETTINGS = glance.GlanceSettings(
    connect_timeout_seconds=TIMEOUT_SECONDS, read_timeout_seconds=TIMEOUT_SECONDS, num_retries=0
)

PATIENT = dataclasses.replace(SETTINGS, read_timeout_seconds=3 * TIMEOUT_SECONDS)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as script:
        yield script


@pytest.fixture(scope='module')
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[Server]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('127.0.0.1').configure_cert(tls)
    with serving(tls) as script:
        yield script


@pytest.fixture
def images(server: Server) -> glance.GlanceImageService:
    return with_token(server)


def with_token(
    server: Server,
    token: str | None = 'secret-token',
    fresh_token: Callable[[], str | None] | None = None,
    settings: glance.GlanceSettings = SETTINGS,
) -> glance.GlanceImageService:
    return glance.GlanceImageService.with_token(
        settings, endpoint=server.url, token=token, fresh_token=fresh_token
    )


def chunked(data: bytes, chunk_bytes: int) -> bytes:
    """Encode data in chunks, as in an answer without a length."""
    chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return b''.join(b'%x\r\n%s\r\n' % (len(chunk), chunk) for chunk in [*chunks, b''])


def document(**fields: object) -> Answer:
    body = json.dumps({'id': IMAGE_ID, 'status': 'active', **fields}).encode()
    return Answer(body=body, content_type='application/json')


def read(images: glance.GlanceImageService, offset_bytes: int = 0) -> bytes:
    with images.open(IMAGE_ID, offset_bytes) as connection:
        assert connection.start_bytes == offset_bytes
        return read_on(connection)


def read_on(connection: service.Connection, most_bytes: int | None = None) -> bytes:
    """Read to the end, or at least this many bytes."""
    buffer = memoryview(bytearray(1024**2))
    data = bytearray()
    while most_bytes is None or len(data) < most_bytes:
        count = connection.read_into(buffer)
        if not count:
            break
        data += buffer[:count]
    return bytes(data)


def test_metadata_requests_carry_token(server: Server, images: glance.GlanceImageService) -> None:
    server.answers = [document(size=7, os_hash_algo='sha512', os_hash_value='abc', owner='p1')]
    image = images.show(IMAGE_ID)
    assert (image.id, image.size, image.hash_algo, image.hash_value, image.owner) == (
        IMAGE_ID,
        7,
        'sha512',
        'abc',
        'p1',
    )
    assert server.requests[0][0] == f'/v2/images/{IMAGE_ID}'
    assert server.tokens() == ['secret-token']


def test_missing_token_not_sent(server: Server) -> None:
    server.answers = [document()]
    with_token(server, token=None).show(IMAGE_ID)
    assert server.tokens() == [None]


def test_version_suffix_of_endpoint_dropped(server: Server) -> None:
    server.answers = [document()]
    glance.GlanceImageService.with_token(SETTINGS, endpoint=f'{server.url}/v2/', token=None).show(
        IMAGE_ID
    )
    assert server.requests[0][0] == f'/v2/images/{IMAGE_ID}'


def test_configured_endpoint_overrides_call(server: Server) -> None:
    server.answers = [document()]
    settings = dataclasses.replace(SETTINGS, endpoint_override=server.url)
    glance.GlanceImageService.with_token(settings, endpoint='http://127.0.0.1:1', token=None).show(
        IMAGE_ID
    )
    assert len(server.requests) == 1


def test_missing_endpoint_names_option() -> None:
    with pytest.raises(exception.ConfigError, match='endpoint_override'):
        glance.GlanceImageService.with_token(SETTINGS, endpoint=None, token='t')


def test_keystoneauth_credentials_are_accepted(server: Server) -> None:
    server.answers = [document()]
    images = glance.GlanceImageService(SETTINGS, noauth.NoAuth(f'{server.url}/v2'))
    assert images.show(IMAGE_ID).id == IMAGE_ID
    assert images.endpoint() == server.url
    assert images.token() == 'notused'


@pytest.mark.parametrize(
    'odd',
    [
        '',
        '..',
        '../../v2/tasks',
        f'{IMAGE_ID}/file',
        f'{IMAGE_ID}?limit=1',
        f'{IMAGE_ID}\n',
        f'{IMAGE_ID}%2f',
        'b6a9a5cc3b7e4b8e9d3e0c5bb8f4d5a1',
        '\uff426a9a5cc-3b7e-4b8e-9d3e-0c5bb8f4d5a1',
    ],
)
def test_invalid_image_id_never_reaches_url(
    server: Server, images: glance.GlanceImageService, odd: str
) -> None:
    with pytest.raises(exception.ImageNotUsable, match='could not be found'):
        images.show(odd)
    with (
        pytest.raises(exception.ImageGone, match='is not the id of an image'),
        images.open(odd),
    ):
        pass
    assert server.requests == []


@pytest.mark.parametrize('project', ['', '.', '..'])
def test_invalid_project_is_no_member(
    server: Server, images: glance.GlanceImageService, project: str
) -> None:
    server.answers = [document(visibility='shared')]
    assert images.is_member(IMAGE_ID, project) is False


@pytest.mark.parametrize(
    ('answer', 'is_member'),
    [
        (b'{"status": "accepted"}', True),
        (b'{"member_id": "a/b?c", "status": "pending"}', True),
        (b'{"member_id": "another", "status": "accepted"}', False),
    ],
)
def test_project_id_is_quoted(
    server: Server, images: glance.GlanceImageService, answer: bytes, is_member: bool
) -> None:
    server.answers = [
        document(visibility='shared'),
        Answer(body=answer, content_type='application/json'),
    ]
    assert images.is_member(IMAGE_ID, 'a/b?c') is is_member
    assert server.requests[1][0] == f'/v2/images/{IMAGE_ID}/members/a%2Fb%3Fc'


@pytest.mark.parametrize(
    ('answer', 'error'),
    [
        (Answer(404), exception.ImageNotUsable),
        (Answer(403), exception.ImageNotUsable),
        (Answer(401), exception.ImageUnauthorized),
        (Answer(500), exception.ImageServiceUnavailable),
        (Answer(503), exception.ImageServiceUnavailable),
        (Answer(502, b'\xff\xfe', content_type=None), exception.ImageServiceUnavailable),
        (Answer(502, b'[1]', content_type='application/json'), exception.ImageServiceUnavailable),
        (Answer(200, b'<p>', content_type='text/html'), exception.ImageServiceUnavailable),
        (Answer(200, b'{}', content_type='application/json'), exception.ImageServiceUnavailable),
        (
            Answer(200, b'{"id"', content_type='application/json', length=99),
            exception.ImageServiceUnavailable,
        ),
    ],
)
def test_answer_without_metadata_has_own_error(
    server: Server, images: glance.GlanceImageService, answer: Answer, error: type[Exception]
) -> None:
    server.answers = [answer]
    with pytest.raises(error):
        images.show(IMAGE_ID)


def test_short_request_retried_on_server_error(server: Server) -> None:
    server.answers = [
        Answer(503, headers={'Retry-After': '0'}),
        Answer(502, headers={'Retry-After': '0'}),
        document(),
    ]
    settings = dataclasses.replace(SETTINGS, num_retries=2)
    assert with_token(server, settings=settings).show(IMAGE_ID).id == IMAGE_ID


def test_unanswered_request_names_url_once() -> None:
    with socket.create_server(('127.0.0.1', 0)) as silent:  # it answers nothing
        url = f'http://127.0.0.1:{silent.getsockname()[1]}'
        settings = glance.GlanceSettings(read_timeout_seconds=0.1, num_retries=0)
        images = glance.GlanceImageService.with_token(settings, endpoint=url, token=None)
        with pytest.raises(exception.ImageServiceUnavailable) as raised:
            images.show(IMAGE_ID)

    assert str(raised.value) == (
        f'Glance does not answer: Request to {url}/v2/images/{IMAGE_ID} timed out'
    )


def test_unreachable_service_is_unavailable(free_port: Callable[[], int]) -> None:
    images = glance.GlanceImageService.with_token(
        SETTINGS, endpoint=f'http://127.0.0.1:{free_port()}', token='t'
    )
    with pytest.raises(exception.ImageServiceUnavailable):
        images.show(IMAGE_ID)
    with pytest.raises(exception.DownloadInterrupted):
        read(images)


def test_data_read_whole_and_from_offset(server: Server, images: glance.GlanceImageService) -> None:
    total = len(DATA)
    server.answers = [
        Answer(body=DATA),
        Answer(206, DATA[100:], {'Content-Range': f'bytes 100-{total - 1}/{total}'}),
    ]
    assert read(images) == DATA
    assert read(images, 100) == DATA[100:]
    assert [headers.get('range') for _, headers in server.requests] == [None, 'bytes=100-']


def test_full_answer_to_range_starts_over(
    server: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [Answer(body=DATA)]
    with images.open(IMAGE_ID, 3_000_001) as connection:
        assert connection.start_bytes == 0
        assert read_on(connection) == DATA


@pytest.mark.parametrize(
    'headers',
    [
        {},
        {'Content-Range': 'bytes 99-4194303/4194304'},
        {'Content-Range': 'bytes 100-4194303/4194305'},
        {'Content-Range': 'bytes */100'},
        {'Content-Range': 'bytes ' + '1' * 5000 + '-4194303/4194304'},
        {'Content-Range': 'items 100-4194303/4194304'},
        {'Content-Type': 'multipart/byteranges; boundary=b'},
    ],
)
def test_other_range_in_answer_rejected(
    server: Server, images: glance.GlanceImageService, headers: dict[str, str]
) -> None:
    server.answers = [Answer(206, DATA[100:], headers, content_type=None)]
    with images.open(IMAGE_ID, 100, len(DATA)) as connection:
        assert connection.start_bytes is None


@pytest.mark.parametrize('refusal', [400, 405, 406, 412, 413, 416, 417, 422, 431, 499, 501])
def test_refused_range_requests_whole_image(
    server: Server, images: glance.GlanceImageService, refusal: int
) -> None:
    server.answers = [Answer(refusal), Answer(body=DATA)]
    with images.open(IMAGE_ID, 100, len(DATA)) as connection:
        assert connection.start_bytes == 0
        assert read_on(connection, len(DATA)) == DATA
    first, second = (headers for _, headers in server.requests)
    assert first['range'] == 'bytes=100-'
    assert 'range' not in second


@pytest.mark.parametrize('refusal', [400, 416, 501])
def test_refused_whole_image_is_interruption(
    server: Server, images: glance.GlanceImageService, refusal: int
) -> None:
    server.answers = [Answer(refusal), Answer(refusal)]
    with (
        pytest.raises(exception.DownloadInterrupted, match=f'HTTP {refusal}'),
        images.open(IMAGE_ID, 100, len(DATA)),
    ):
        pass
    assert len(server.requests) == 2


@pytest.mark.parametrize('offset_bytes', [len(DATA), len(DATA) + 1])
def test_offset_past_end_requests_whole_once(
    server: Server, images: glance.GlanceImageService, offset_bytes: int
) -> None:
    refused = Answer(416, headers={'Content-Range': f'bytes */{len(DATA)}'})
    server.answers = [refused, Answer(body=DATA)]
    with images.open(IMAGE_ID, offset_bytes, len(DATA)) as connection:
        assert connection.start_bytes == 0
        assert read_on(connection) == DATA
    assert len(server.requests) == 2


@pytest.mark.parametrize('refusal', [400, 416, 501])
def test_range_refusal_response_closed(
    server: Server, images: glance.GlanceImageService, refusal: int
) -> None:
    server.answers = [Answer(refusal, b'no', length=1000, hang=True), Answer(body=DATA)]
    with images.open(IMAGE_ID, 100, len(DATA)) as connection:
        assert read_on(connection) == DATA
    assert server.connection_closed.wait(TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    ('code', 'error'),
    [
        (401, exception.ImageUnauthorized),
        (403, exception.ImageGone),
        (404, exception.ImageGone),
        (410, exception.ImageGone),
        *((code, exception.DownloadInterrupted) for code in (407, 408, 425, 429, 451, 500, 503)),
    ],
)
def test_answer_without_range_headers_trusted(
    server: Server,
    images: glance.GlanceImageService,
    code: int,
    error: type[exception.CacheError],
) -> None:
    server.answers = [Answer(code)]
    with pytest.raises(error), images.open(IMAGE_ID, 100, len(DATA)):
        pass
    assert len(server.requests) == 1


@pytest.mark.parametrize('size_bytes', [None, len(DATA)])
@pytest.mark.parametrize('total', ['*', str(len(DATA))])
def test_answer_may_omit_size(
    server: Server, images: glance.GlanceImageService, total: str, size_bytes: int | None
) -> None:
    headers = {'Content-Range': f'bytes 100-4194303/{total}'}
    server.answers = [Answer(206, DATA[100:], headers)]
    with images.open(IMAGE_ID, 100, size_bytes) as connection:
        assert connection.start_bytes == 100


def test_compressed_data_is_refused(server: Server, images: glance.GlanceImageService) -> None:
    server.answers = [Answer(body=gzip.compress(DATA), headers={'Content-Encoding': 'gzip'})]
    with pytest.raises(exception.DownloadInterrupted, match="Content-Encoding 'gzip'"):
        read(images)
    assert server.requests[0][1]['accept-encoding'] == 'identity'


@pytest.mark.parametrize(
    ('status', 'error'),
    [
        (204, exception.ImageGone),
        (404, exception.ImageGone),
        (403, exception.ImageGone),
        (410, exception.ImageGone),
        (401, exception.ImageUnauthorized),
        (416, exception.DownloadInterrupted),
        (500, exception.DownloadInterrupted),
        (503, exception.DownloadInterrupted),
    ],
)
def test_answer_without_data_has_own_error(
    server: Server, images: glance.GlanceImageService, status: int, error: type[Exception]
) -> None:
    server.answers = [Answer(status)]
    with pytest.raises(error, match=IMAGE_ID):
        read(images)


def test_cut_answer_is_interruption(server: Server, images: glance.GlanceImageService) -> None:
    server.answers = [Answer(body=DATA[:1000], length=len(DATA))]
    with pytest.raises(exception.DownloadInterrupted, match='was interrupted'):
        read(images)


def test_stalled_answer_is_interruption(server: Server) -> None:
    server.answers = [Answer(body=DATA[:1000], length=len(DATA), hang=True)]
    impatient = dataclasses.replace(SETTINGS, read_timeout_seconds=0.2)
    with pytest.raises(exception.DownloadInterrupted, match='timed out'):
        read(with_token(server, settings=impatient))


def test_leaving_closes_connection_at_once(
    server: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [Answer(body=DATA, length=2 * len(DATA), hang=True)]
    with images.open(IMAGE_ID) as connection:
        assert read_on(connection, 1)
        assert not server.connection_closed.is_set()
    assert server.connection_closed.wait(TIMEOUT_SECONDS)


def test_available_bytes_returned_before_buffer_full(
    server: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [Answer(body=DATA[:1000], length=len(DATA), hang=True)]
    with images.open(IMAGE_ID) as connection:
        assert read_on(connection, 1000) == DATA[:1000]


@pytest.mark.parametrize('chunk_bytes', [1, 1000, 100_000])
def test_data_without_length_read_to_end(
    server: Server, images: glance.GlanceImageService, chunk_bytes: int
) -> None:
    data = DATA[:300_000] if chunk_bytes > 1 else DATA[:1000]
    server.answers = [Answer(body=chunked(data, chunk_bytes), headers=CHUNKED)]
    assert read(images) == data


def test_cut_data_without_length_is_interruption(
    server: Server, images: glance.GlanceImageService
) -> None:
    body = chunked(DATA[:3000], 1000)
    for length in (len(body) - 5, len(body) - 500):
        server.answers = [Answer(body=body[:length], headers=CHUNKED)]
        with pytest.raises(exception.DownloadInterrupted, match='was interrupted'):
            read(images)


def test_cut_wakes_blocked_reader(
    server: Server,
) -> None:
    check_cut_while_reading(server, with_token(server, settings=PATIENT))


def test_cut_wakes_blocked_tls_reader(
    tls_server: Server, authority: trustme.CA, tmp_path: pathlib.Path
) -> None:
    check_cut_while_reading(tls_server, trusting(tls_server, authority, tmp_path))


def test_cut_tls_reader_gets_no_ciphertext(
    tls_server: Server, authority: trustme.CA, tmp_path: pathlib.Path
) -> None:
    """A socket that is shut down loses its encryption while it still holds data."""
    images = trusting(tls_server, authority, tmp_path)
    tls_server.answers = [Answer(body=DATA, length=2 * len(DATA), hang=True)]
    with images.open(IMAGE_ID) as connection:
        assert DATA.startswith(read_on(connection, 1))
        connection.cut()
        for _ in range(3):
            with pytest.raises(exception.DownloadInterrupted):
                read_on(connection, 1)


def check_cut_while_reading(server: Server, images: glance.GlanceImageService) -> None:
    server.answers = [Answer(body=DATA[:1000], length=len(DATA), hang=True)]
    has_read = threading.Event()
    failures: list[exception.DownloadInterrupted] = []

    def read_all(connection: service.Connection) -> None:
        read_on(connection, 1000)
        has_read.set()
        try:
            read_on(connection)
        except exception.DownloadInterrupted as exc:
            failures.append(exc)

    with images.open(IMAGE_ID) as connection:
        reader = threading.Thread(target=read_all, args=(connection,), daemon=True)
        reader.start()
        assert has_read.wait(TIMEOUT_SECONDS)
        connection.cut()
        reader.join(TIMEOUT_SECONDS)
        assert not reader.is_alive()
    assert len(failures) == 1


def trusting(
    server: Server, authority: trustme.CA, tmp_path: pathlib.Path
) -> glance.GlanceImageService:
    certificate = tmp_path / 'ca.pem'
    authority.cert_pem.write_to_path(certificate)
    return with_token(server, settings=dataclasses.replace(PATIENT, verify=str(certificate)))


ASKED = {
    'metadata': (lambda images: images.show(IMAGE_ID), exception.ImageServiceUnavailable),
    'data': (read, exception.DownloadInterrupted),
}


@pytest.mark.filterwarnings('ignore:Unverified HTTPS request')
@pytest.mark.parametrize('what', ASKED)
def test_tls_needs_configured_authority(
    tls_server: Server, authority: trustme.CA, tmp_path: pathlib.Path, what: str
) -> None:
    ask, refusal = ASKED[what]
    with pytest.raises(refusal, match='CERTIFICATE_VERIFY_FAILED'):
        ask(configured(tls_server))
    assert tls_server.requests == []

    certificate = tmp_path / 'ca.pem'
    authority.cert_pem.write_to_path(certificate)
    for options in ({'cafile': str(certificate)}, {'insecure': True}):
        tls_server.answers = [document() if what == 'metadata' else Answer(body=DATA)]
        ask(configured(tls_server, **options))
    assert tls_server.tokens() == ['secret-token'] * 2


@pytest.mark.parametrize('what', ASKED)
def test_tls_needs_matching_host_name(
    authority: trustme.CA, tmp_path: pathlib.Path, what: str
) -> None:
    ask, refusal = ASKED[what]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('glance.example').configure_cert(tls)
    certificate = tmp_path / 'ca.pem'
    authority.cert_pem.write_to_path(certificate)
    with serving(tls) as other:
        with pytest.raises(refusal, match=r"not valid for '127\.0\.0\.1'"):
            ask(configured(other, cafile=str(certificate)))
        assert other.requests == []


@pytest.mark.parametrize('what', ASKED)
def test_client_certificate_is_sent(
    authority: trustme.CA, tmp_path: pathlib.Path, what: str
) -> None:
    ask, refusal = ASKED[what]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    authority.issue_cert('127.0.0.1').configure_cert(tls)
    own = authority.issue_cert('compute.example')
    for name, pem in (
        ('ca.pem', authority.cert_pem),
        ('cert.pem', own.cert_chain_pems[0]),
        ('key.pem', own.private_key_pem),
    ):
        pem.write_to_path(tmp_path / name)
    trust = {'cafile': str(tmp_path / 'ca.pem')}
    proof = {'certfile': str(tmp_path / 'cert.pem'), 'keyfile': str(tmp_path / 'key.pem')}
    with serving(tls) as strict:
        strict.answers = [document() if what == 'metadata' else Answer(body=DATA)]
        with pytest.raises(refusal):
            ask(configured(strict, **trust))
        ask(configured(strict, **trust, **proof))
        assert len(strict.requests) == 1


def configured(server: Server, **options: object) -> glance.GlanceImageService:
    """Make the service from the options of a compute."""
    conf = precache_conf.new([], [])
    for name, value in {'num_retries': 0, **options}.items():
        conf.set_override(name, value, 'glance')
    return with_token(server, settings=glance.GlanceSettings.from_conf(conf))


def test_requests_carry_request_id(server: Server) -> None:
    server.answers = [document(), Answer(body=DATA), document()]
    own = glance.GlanceImageService.with_token(
        SETTINGS, endpoint=server.url, token=None, request_id='req-of-the-call'
    )
    own.show(IMAGE_ID)
    read(own)
    with context.bind_request_id('req-of-the-thread'):
        with_token(server).show(IMAGE_ID)
    ids = [headers['x-openstack-request-id'] for _, headers in server.requests]
    assert ids == ['req-of-the-call', 'req-of-the-call', 'req-of-the-thread']


@pytest.mark.parametrize('content_type', ['text/html', 'text/plain', 'application/json', None])
def test_any_content_type_streamed(
    server: Server,
    images: glance.GlanceImageService,
    caplog: pytest.LogCaptureFixture,
    content_type: str | None,
) -> None:
    """An endless answer is neither read before its first bytes are returned, nor logged."""
    caplog.set_level(logging.DEBUG)
    server.answers = [Answer(body=DATA, length=2 * len(DATA), hang=True, content_type=content_type)]
    with images.open(IMAGE_ID) as connection:
        assert DATA.startswith(read_on(connection, 100_000))


def test_refused_token_replaced_once(server: Server) -> None:
    fresh = iter(['second', 'third'])
    images = with_token(server, 'first', lambda: next(fresh))
    server.answers = [Answer(401), document(), Answer(body=DATA), Answer(401), Answer(body=DATA)]
    images.show(IMAGE_ID)
    assert read(images) == DATA
    assert read(images) == DATA
    assert server.tokens() == ['first', 'second', 'second', 'second', 'third']


def test_token_refused_on_resume_replaced(
    server: Server,
) -> None:
    images = with_token(server, 'first', lambda: 'second')
    total = len(DATA)
    headers = {'Content-Range': f'bytes 100-{total - 1}/{total}'}
    server.answers = [Answer(401), Answer(206, DATA[100:], headers)]
    assert read(images, 100) == DATA[100:]
    assert [asked.get('range') for _, asked in server.requests] == ['bytes=100-', 'bytes=100-']
    assert server.tokens() == ['first', 'second']


def test_refused_fresh_token_ends_download(server: Server) -> None:
    asked: list[str] = []

    def fresh_token() -> str:
        asked.append('again')
        return 'no-better'

    server.answers = [Answer(401), Answer(401)]
    with pytest.raises(exception.ImageUnauthorized):
        read(with_token(server, 'first', fresh_token))
    assert asked == ['again']


class Credentials(noauth.NoAuth):
    """Counts how often its token was rejected."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals = 0

    def get_token(self, session: object) -> str:
        return f'token-{self.renewals}'

    def invalidate(self) -> bool:
        self.renewals += 1
        return True


def test_fresh_tokens_are_rate_limited() -> None:
    credentials, now = Credentials(), [1000.0]
    images = glance.GlanceImageService(SETTINGS, credentials, clock=lambda: now[0])

    assert images.token() == 'token-0'
    assert {images.token(fresh=True) for _ in range(1000)} == {'token-1'}
    now[0] += glance.FRESH_TOKEN_SECONDS - 0.1
    assert images.token(fresh=True) == 'token-1'
    now[0] += 0.1
    assert images.token(fresh=True) == 'token-2'
    assert images.token() == 'token-2'


def test_refusal_without_fresh_token_ends_download(server: Server) -> None:
    server.answers = [Answer(401)]
    with pytest.raises(exception.ImageUnauthorized):
        read(with_token(server, 'first', lambda: None))
    assert len(server.requests) == 1


def _service_with_credentials(url: str, path: pathlib.Path) -> glance.GlanceImageService:
    """Return a conductor's image service that logs in at a Keystone under the same URL."""
    path.write_text(
        f"""[glance]
endpoint_override = {url}
auth_type = v3password
auth_url = {url}/v3
username = precacher
password = wrong-secret
project_name = service
user_domain_name = Default
project_domain_name = Default
"""
    )
    return wiring_images.of_service(precache_conf.new(config_files=[str(path)]))


def test_refused_login_names_user_once(
    server: Server, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = _service_with_credentials(server.url, tmp_path / 'conductor.conf')
    why = 'Keystone refuses the password of [glance] username precacher'
    for use in (lambda: own.show(IMAGE_ID), own.token, lambda: read(own)):
        server.answers = [Answer(401)]
        with pytest.raises(exception.CredentialsRefused) as refused:
            use()
        assert str(refused.value) == why

    assert caplog.messages == [f'Image service of [glance] is unavailable: {why}']


def test_token_is_never_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    images = with_token(server, 'first-secret', lambda: 'second-secret')
    server.answers = [Answer(401), document(), Answer(body=DATA), Answer(500)]
    images.show(IMAGE_ID)
    read(images)
    with pytest.raises(exception.DownloadInterrupted):
        read(images)
    assert IMAGE_ID in caplog.text
    assert 'secret' not in caplog.text


@pytest.mark.parametrize(
    ('options', 'verify', 'certificate'),
    [
        ({}, True, None),
        ({'insecure': True}, False, None),
        ({'cafile': '/ca.pem'}, '/ca.pem', None),
        ({'certfile': '/c.pem', 'keyfile': '/k.pem'}, True, ('/c.pem', '/k.pem')),
    ],
)
def test_settings_come_from_options(
    options: dict[str, object], verify: bool | str, certificate: tuple[str, str] | None
) -> None:
    conf = precache_conf.new([], [])
    for name, value in options.items():
        conf.set_override(name, value, 'glance')
    settings = glance.GlanceSettings.from_conf(conf)
    assert settings == glance.GlanceSettings(verify=verify, client_certificate=certificate)
    assert glance.new_session(settings).verify == verify


def test_silent_keystone_times_out() -> None:
    settings = glance.GlanceSettings(read_timeout_seconds=0.1)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        auth = v3.Password(f'http://127.0.0.1:{silent.getsockname()[1]}/v3', 'user', 'secret')
        images = glance.GlanceImageService(settings, auth)
        with pytest.raises(exception.ImageServiceUnavailable, match='Keystone'):
            images.token()
