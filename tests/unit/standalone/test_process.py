# SPDX-License-Identifier: Apache-2.0
"""Children die with this process, and logs are cut to their end."""

import pathlib
import subprocess
import sys

import psutil

from nova_precache.standalone import process
from tools.waiting import TIMEOUT_SECONDS

_PARENT = """
import subprocess
from nova_precache.standalone import process
command = ['sh', '-c', 'echo $$; exec sleep 600']
subprocess.run(process.dies_with_parent(command, 'TERM'))
"""


def test_child_dies_with_killed_parent() -> None:
    with subprocess.Popen([sys.executable, '-c', _PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()

        parent.kill()

    assert psutil.wait_procs([child], timeout=TIMEOUT_SECONDS)[1] == []


def test_log_tail_is_its_last_lines(tmp_path: pathlib.Path) -> None:
    log = tmp_path / 'some.log'
    log.write_text('one\ntwo\nthree\n')

    assert process.tail(log, 2) == 'two\nthree'


def test_missing_log_has_explaining_tail(tmp_path: pathlib.Path) -> None:
    assert 'was not written' in process.tail(tmp_path / 'none.log')
