# SPDX-License-Identifier: Apache-2.0
"""A process uses the threads that its environment or configuration names, from the start."""

import os
import pathlib
import subprocess
import sys

import pytest

from nova_precache import backend
from tests.conftest import THREADS, needs_eventlet
from tools.waiting import TIMEOUT_SECONDS

CHOOSE = """
from nova_precache import backend, exception
try:
    backend.choose_by_files(sys.argv[1:])
except exception.ConfigError as exc:
    sys.exit(f'refused: {exc}')
print(backend.current())
"""
NOT_INSTALLED = """
class Absent:
    def find_spec(name, *rest):
        if name == 'eventlet':
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent)
"""
JOINED = """
import eventlet; eventlet.monkey_patch()
import os, threading
waiting = threading.Thread(target=threading.Event().wait, daemon=True)
waiting.start()
try:
    waiting.join(0.01)
except eventlet.Timeout:
    print('fails', flush=True)
else:
    print('works', flush=True)
os._exit(0)
"""
KEPT = """
import importlib, types
from nova_precache import backend

canary = sys.modules['canary'] = types.ModuleType('canary')
exec('from time import sleep; from threading import *; lock, mine = Lock(), local()', vars(canary))
names = ('_thread', 'queue', 'select', 'selectors', 'socket', 'threading', 'time')
modules = [importlib.import_module(name) for name in names]
native = {id(thing) for module in modules for thing in vars(module).values()}
kinds = (type(canary.Lock()), type(canary.RLock()), canary.local)
before = [each for each in sys.modules if each.split('.')[0] not in sys.stdlib_module_names]
backend.choose_by_files(sys.argv[1:])
native -= {id(thing) for module in modules for thing in vars(module).values()}
for name in before:
    for attribute, thing in list(vars(sys.modules[name]).items()):
        if name != '__main__' and (id(thing) in native or isinstance(thing, kinds)):
            print(name, attribute)
print(backend.current(), 'oslo_config.cfg' in before)
"""


def _python(
    code: str, *arguments: object, variable: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without an inherited choice of threads."""
    environment = {name: value for name, value in os.environ.items() if name != backend.VARIABLE}
    if variable is not None:
        environment[backend.VARIABLE] = variable
    return subprocess.run(
        [sys.executable, '-c', f'import sys\n{code}', *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env=environment,
    )


@pytest.fixture
def conf(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file that selects eventlet."""
    path = tmp_path / 'nova-precache.conf'
    path.write_text('[DEFAULT]\nconcurrency_backend = eventlet\n')
    return path


def test_default_is_native_despite_eventlet() -> None:
    code = f'import eventlet\n{CHOOSE}\nimport socket; print(socket.socket.__module__)'

    ran = _python(code)

    assert ran.stdout.split() == ['threading', 'socket']


@needs_eventlet
def test_libraries_of_native_threads_import_no_eventlet() -> None:
    ran = _python(f'{CHOOSE}\nimport futurist, oslo_messaging\nprint(sys.modules["eventlet"])')

    assert ran.stdout.split() == ['threading', 'None']


@needs_eventlet
def test_hidden_eventlet_can_be_chosen(conf: pathlib.Path) -> None:
    hidden = 'from nova_precache import backend; backend.hide_eventlet()'

    ran = _python(f'{hidden}\n{CHOOSE}', conf)

    assert ran.stdout.split() == ['eventlet']


def test_eventlet_refused_on_broken_pythons() -> None:
    assert (_python(JOINED).stdout == 'works\n') == (backend.why_no_eventlet() is None)


@pytest.mark.parametrize(
    ('variable', 'named'),
    [
        ('eventlet', 'NOVA_PRECACHE_CONCURRENCY = eventlet'),
        (None, '[DEFAULT] concurrency_backend = eventlet'),
    ],
)
def test_broken_eventlet_refused_before_patching(
    conf: pathlib.Path, variable: str | None, named: str
) -> None:
    older = 'from nova_precache import backend; backend.NO_EVENTLET_FROM = (3, 10)'
    shown = CHOOSE.replace('sys.exit(', 'import socket; print(socket.socket); sys.exit(')

    ran = _python(f'{older}\n{shown}', conf, variable=variable)

    here = f'{sys.version_info.major}.{sys.version_info.minor}'
    assert ran.stderr == (
        f'refused: {named}: eventlet does not work on Python {here}; '
        'use threading, or a Python older than 3.10\n'
    )
    assert ran.stdout == "<class 'socket.socket'>\n"


@needs_eventlet
def test_variable_selects_eventlet() -> None:
    code = f'{CHOOSE}\nimport socket, threading, time\n'
    code += 'for each in (socket.socket, threading.Lock, time.sleep): print(each.__module__)'

    ran = _python(code, variable='eventlet')

    assert ran.stdout.split() == [
        'eventlet',
        'eventlet.greenio.base',
        'eventlet.green.thread',
        'eventlet.greenthread',
    ]
    assert ran.stderr == ''


@needs_eventlet
def test_option_selects_eventlet(conf: pathlib.Path) -> None:
    ran = _python(CHOOSE, conf)

    assert (ran.stdout, ran.stderr) == ('eventlet\n', '')


def test_variable_overrides_option(conf: pathlib.Path) -> None:
    assert _python(CHOOSE, conf, variable='threading').stdout == 'threading\n'


@needs_eventlet
def test_empty_variable_is_ignored(conf: pathlib.Path) -> None:
    assert _python(CHOOSE, conf, variable='').stdout == 'eventlet\n'


def test_invalid_variable_names_valid_values() -> None:
    ran = _python(CHOOSE, variable='gevent')

    assert ran.stderr == (
        'refused: NOVA_PRECACHE_CONCURRENCY = gevent: it must be threading or eventlet\n'
    )


def test_invalid_option_names_valid_values(
    conf: pathlib.Path,
) -> None:
    conf.write_text('[DEFAULT]\nconcurrency_backend = gevent\n')

    ran = _python(CHOOSE, conf)

    assert ran.stderr.startswith('refused: Value for option concurrency_backend from ')
    assert "Valid values are [threading, eventlet], but found 'gevent'" in ran.stderr


@needs_eventlet
def test_missing_eventlet_is_refused() -> None:
    ran = _python(f'{NOT_INSTALLED}{CHOOSE}', variable='eventlet')

    assert ran.stderr == (
        'refused: NOVA_PRECACHE_CONCURRENCY = eventlet: eventlet is not installed: '
        'install nova-precache[eventlet]\n'
    )


def test_already_patched_process_recognized() -> None:
    ran = _python(f'import eventlet; eventlet.monkey_patch()\n{CHOOSE}', variable='threading')

    assert ran.stderr.splitlines()[-1] == (
        'refused: NOVA_PRECACHE_CONCURRENCY = threading, and this process runs under eventlet '
        'already'
    )


@needs_eventlet
def test_reading_choice_imports_nothing_native(conf: pathlib.Path) -> None:
    ran = _python(KEPT, conf)

    kept = ran.stdout.splitlines()
    # The canary is there to be found.
    assert {line for line in kept if not line.startswith('canary ')} == {'eventlet True'}
    assert {'canary sleep', 'canary Lock', 'canary lock', 'canary mine'} <= set(kept)
    assert ran.stderr == ''


@pytest.mark.parametrize('variable', THREADS)
def test_oslo_libraries_use_chosen_threads(variable: str) -> None:
    ran = _python(
        f'{CHOOSE}\n'
        'import oslo_messaging; from oslo_messaging import _utils\n'
        'from oslo_service import backend as theirs\n'
        'print(theirs.get_backend_type().value, _utils.get_executor_with_context())',
        variable=variable,
    )

    assert ran.stdout.split() == [variable] * 3
    assert ran.stderr == ''
