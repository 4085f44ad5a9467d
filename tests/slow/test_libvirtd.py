# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of the tests' own leaves no process behind, nor do its guests."""

import contextlib
import os
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Callable

import psutil
import pytest

from tests.conftest import require_server
from tests.service import wait_until
from tools.servers import libvirtd
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
MARK = 'NOVA_PRECACHE_TEST_OF_LIBVIRTD'
_DOMAIN = """\
<domain type='qemu'>
  <name>idle</name>
  <uuid>{mark}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type>hvm</type></os>
</domain>
"""
_OWNER = """\
import pathlib, sys
from tools.servers import libvirtd

started = libvirtd.Libvirtd(pathlib.Path(sys.argv[1]), 'alone')
started.start()
started.wait()
print(started.virsh('create', sys.argv[2]), flush=True)
sys.stdin.read()
started.stop()
"""


def _stop(owner: subprocess.Popen[bytes]) -> None:
    assert owner.stdin
    owner.stdin.close()
    owner.wait(TIMEOUT_SECONDS)


def _kill(owner: subprocess.Popen[bytes]) -> None:
    owner.kill()
    owner.wait(TIMEOUT_SECONDS)


@pytest.mark.parametrize('end', [_stop, _kill])
def test_libvirtd_guest_dies_with_owner(
    end: Callable[[subprocess.Popen[bytes]], None], tmp_path: pathlib.Path
) -> None:
    why_not = libvirtd.why_not()
    require_server('libvirt', why_not is None, str(why_not))
    mark = str(uuid.uuid4())
    domain = tmp_path / 'domain.xml'
    domain.write_text(_DOMAIN.format(mark=mark))
    with subprocess.Popen(
        [sys.executable, '-c', _OWNER, str(tmp_path / 'own'), str(domain)],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout
        assert 'created' in owner.stdout.readline().decode()
        assert {'libvirtd', 'qemu-system-x86_64'} <= set(_running(mark))
        end(owner)

    wait_until(lambda: not _running(mark), 'nothing of it runs')


def _running(mark: str) -> list[str]:
    """Return the names of the processes that have a mark in environment or command line."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if each.environ().get(MARK) == mark or mark in each.cmdline():
                found.append(pathlib.Path(each.exe()).name)
    return found
