# SPDX-License-Identifier: Apache-2.0
"""Base files that libvirt gave to the user of its guests, and an agent that is not root.

Each test does its work in a process of another user, on real files.
"""

import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nova_precache import exception, model
from nova_precache.cache import layout
from nova_precache.image import fake
from nova_precache.inspection import sandbox
from nova_precache.virt import libvirt
from tests import disk_images, other_user
from tests.functional import kill_harness

pytestmark = [pytest.mark.usefixtures('qemu_img'), pytest.mark.timeout(120)]

OLD = 1_000_000_000
EXPIRES: dict[str, object] = {'image_cache__remove_unused_original_minimum_age_seconds': 3600}
DATA = disk_images.content(disk_images.MIB)


@pytest.fixture
def instances_path() -> Iterator[pathlib.Path]:
    """Instances of the agent, in a directory that its user may search."""
    directory = pathlib.Path(tempfile.mkdtemp(dir='/tmp'))
    directory.chmod(0o755)
    path = directory / 'instances'
    path.mkdir()
    os.chown(path, other_user.AGENT, other_user.AGENT)
    yield path
    shutil.rmtree(directory)


class Agent:
    """The driver of an agent that runs as that user, and one image that was booted once."""

    def __init__(self, instances_path: pathlib.Path) -> None:
        self.instances_path = instances_path
        self.images = fake.FakeImageService()
        self.image_id = self.images.add(DATA).id
        self.base = pathlib.Path(layout.CacheLayout(str(instances_path)).base_path(self.image_id))
        assert self.cache() == ('cached', None, 1)
        self.give_to(other_user.NOBODY)

    def give_to(self, owner: int, mode: int = 0o644) -> None:
        """Change the owner of the base file, and make it old."""
        os.chown(self.base, owner, owner)
        self.base.chmod(mode)
        os.utime(self.base, (OLD, OLD))

    @property
    def is_young(self) -> bool:
        return self.base.stat().st_mtime > OLD

    def driver(self, **options: object) -> libvirt.LibvirtDriver:
        driver = kill_harness.make_driver(str(self.instances_path), **options)
        driver.init_host()
        return driver

    def cache(self, **rights: bool) -> Any:
        """Return the status and the reason of a task, and the number of its downloads."""

        def work() -> tuple[str, str | None, int]:
            outcome = kill_harness.try_to_cache(self.driver(), self.images, self.image_id)
            return *outcome, len(self.images.opens)

        return other_user.run(work, **rights)


@pytest.fixture
def agent(instances_path: pathlib.Path) -> Agent:
    return Agent(instances_path)


def test_capability_allows_touching_foreign_file(agent: Agent) -> None:
    assert agent.cache(fowner=True) == ('existing', None, 0)
    assert agent.is_young
    assert agent.base.stat().st_uid == other_user.NOBODY


@pytest.mark.parametrize(
    ('owner', 'name'), [(other_user.NOBODY, 'nobody'), (other_user.NAMELESS, '64902'), (0, 'root')]
)
def test_without_capability_task_names_owner(agent: Agent, owner: int, name: str) -> None:
    agent.give_to(owner)
    reason = f'owned by {name}, and this process lacks CAP_FOWNER ({agent.base})'
    assert agent.cache() == ('NotOurs', f'present, but cannot be kept: {reason}', 0)
    assert not agent.is_young
    assert exception.NotOurs.retry is model.Retry.NEVER


def test_ineffective_capability_over_nfs_recognized(agent: Agent) -> None:
    kind, reason, downloads = agent.cache(own_namespace=True)
    assert (kind, downloads) == ('NotOurs', 0)
    assert reason.startswith('present, but cannot be kept: owned by nobody, and CAP_FOWNER has no')
    assert not agent.is_young


def test_writable_foreign_file_can_be_touched(agent: Agent) -> None:
    agent.give_to(other_user.NOBODY, mode=0o666)
    assert agent.cache() == ('existing', None, 0)
    assert agent.is_young


def test_immutable_file_is_reported(agent: Agent) -> None:
    agent.give_to(other_user.AGENT)
    if subprocess.run(['chattr', '+i', str(agent.base)], check=False).returncode != 0:
        pytest.skip('this file system knows no immutable files')
    try:
        kind, reason, downloads = agent.cache(fowner=True)
    finally:
        subprocess.run(['chattr', '-i', str(agent.base)], check=True)
    assert (kind, downloads) == ('NotOurs', 0)
    assert 'and it is immutable' in reason


@pytest.mark.parametrize('fowner', [False, True])
@pytest.mark.parametrize('mode', [0o600, 0o000])
def test_unreadable_file_reported_without_download(agent: Agent, mode: int, fowner: bool) -> None:
    """A nova-compute with another umask wrote it: its content cannot be judged here."""
    agent.give_to(other_user.NOBODY, mode)
    assert agent.cache(fowner=fowner) == (
        'NotOurs',
        f'present, but cannot be read: owned by nobody, and its mode is {mode:04o} ({agent.base})',
        0,
    )
    names = other_user.run(lambda: [each.name for each in agent.driver().cached_images()])
    assert names == [agent.base.name], 'as for the task, it is there'


@pytest.mark.parametrize(
    ('mends', 'is_kept'),
    [
        (lambda base: os.chown(base, other_user.AGENT, other_user.AGENT), True),
        (lambda base: base.chmod(0o666), True),
        (lambda base: os.chown(base, other_user.NAMELESS, -1), False),
        (lambda base: None, False),
    ],
)
def test_untouchable_file_touched_once_changed(agent: Agent, mends: Any, is_kept: bool) -> None:
    def work() -> list[str]:
        driver = agent.driver()
        outcome = kill_harness.try_to_cache(driver, agent.images, agent.image_id)
        os.write(refused[1], b'.')
        os.read(mended[0], 1)
        driver.cached_images(recount=False)
        return [outcome[0], str(agent.is_young)]

    refused, mended = os.pipe(), os.pipe()
    helper = os.fork()
    if not helper:  # the one that is root
        os.read(refused[0], 1)
        mends(agent.base)
        os.write(mended[1], b'.')
        os._exit(0)
    assert other_user.run(work) == ['NotOurs', str(is_kept)]
    os.waitpid(helper, 0)
    for descriptor in (*refused, *mended):
        os.close(descriptor)


def test_boot_uses_untouchable_file(agent: Agent) -> None:
    def work() -> tuple[bool, str]:
        disk = agent.driver().create_root_disk(agent.images, agent.image_id, 'instance')
        return disk.image_existing, str(disk.backing_file)

    assert other_user.run(work) == (True, str(agent.base))


def test_used_foreign_file_does_not_expire(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round had checked the disks before, and the boot could not update the file's time."""

    def work() -> bool:
        driver = agent.driver(**EXPIRES)
        names = driver._expirer._used_names

        def look_then_boot() -> Any:
            found = names()
            driver._expirer._used_names = names
            driver.create_root_disk(agent.images, agent.image_id, 'instance')
            return found

        driver._expirer._used_names = look_then_boot
        driver.manage_image_cache()
        return agent.base.exists()

    assert other_user.run(work)


def test_unused_foreign_file_expires(agent: Agent) -> None:
    other_user.run(lambda: agent.driver(**EXPIRES).manage_image_cache())
    assert not agent.base.exists()


def test_sticky_directory_keeps_foreign_files(agent: Agent) -> None:
    os.chown(agent.base.parent, 0, 0)
    agent.base.parent.chmod(0o1777)
    assert other_user.run(lambda: agent.driver(**EXPIRES).manage_image_cache()) is None
    assert agent.base.exists()
    other_user.run(lambda: agent.driver(**EXPIRES).manage_image_cache(), fowner=True)
    assert not agent.base.exists()


@pytest.mark.parametrize(('rights', 'warns'), [({}, True), ({'fowner': True}, False)])
def test_start_without_capability_warns(
    agent: Agent, rights: dict[str, bool], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> list[str]:
        caplog.clear()
        agent.driver()
        return [each for each in caplog.messages if 'CAP_FOWNER' in each]

    lines = other_user.run(work, **rights)
    assert bool(lines) == warns
    if warns:
        assert 'AmbientCapabilities=CAP_FOWNER' in lines[0]


def test_root_needs_no_capability(
    instances_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() != 0:
        pytest.skip('this is not root')
    kill_harness.make_driver(str(instances_path)).init_host()
    assert 'CAP_FOWNER' not in caplog.text


def test_image_readers_do_not_inherit_capability() -> None:
    def work() -> str:
        limits = sandbox.ResourceLimits(1024**3, cpu_seconds=10, wall_seconds=10)
        return sandbox.run(
            ['grep', '-E', 'Cap(Inh|Prm|Eff|Amb)', '/proc/self/status'], limits
        ).output

    lines = other_user.run(work, fowner=True).split()
    assert lines[1::2] == ['0' * 16] * 4


def test_created_files_are_world_readable(agent: Agent) -> None:
    agent.base.unlink()
    assert agent.cache() == ('cached', None, 1)
    assert stat.S_IMODE(agent.base.stat().st_mode) == 0o644
    assert abs(agent.base.stat().st_mtime - time.time()) < 3600
