# SPDX-License-Identifier: Apache-2.0
"""One command boots guests from images that were cached in both ways, and leaves nothing."""

import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from tests.command import Command
from tests.service import wait_until
from tests.slow.conftest import require_guests
from tools import boot_sector

pytestmark = pytest.mark.slow


@pytest.fixture
def command() -> Iterator[Command]:
    require_guests()
    # Not tmp_path, which QEMU's user cannot read.
    with tempfile.TemporaryDirectory(prefix='nova-precache-test-') as name:
        pathlib.Path(name).chmod(0o711)
        started = Command(pathlib.Path(name), 'tools.beside_nova', '--boot', '--keep')
        try:
            yield started
        finally:
            started.end()


@pytest.mark.timeout(900)  # the whole cloud, in some forty processes
def test_killed_boot_command_leaves_no_process(
    command: Command,
) -> None:
    command.wait_for(lambda: 'until Ctrl-C' in command.said(), 'it was shown, and waits', 840)

    assert command.said().count(boot_sector.LINE) == 2
    assert command.said().count('│ 0 times') == 2
    assert any('libvirtd' in line[0] for line in command.alive() if line)

    command.process.kill()

    command.process.wait()
    wait_until(lambda: not command.alive(), 'nothing is left')
