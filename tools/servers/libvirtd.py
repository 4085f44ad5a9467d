# SPDX-License-Identifier: Apache-2.0
"""A libvirtd with directories and processes of its own, whose guests end with it.

It is Debian's, and runs as root. A mount namespace replaces the fixed directories of libvirtd,
so that several run in parallel and the machine's own is not touched; each has its own host name.
In a process namespace the kernel kills the guests with it: QEMU is a daemon, which outlives a
libvirtd that stops or is killed.
"""

import os
import pathlib
import pwd
import shutil
import subprocess
import uuid

import psutil

from nova_precache.standalone import environment, process
from tools import waiting

VERSION = '12.8.0'
# The Python binding, built for the libvirt of the machine.
BINDING = environment.PythonEnvironment(
    name=f'libvirt-python-{VERSION}', requirements=(f'libvirt-python=={VERSION}',)
)
# QEMU runs as this user. Debian's libvirt does not start without its default user, which the
# package libvirt-daemon-system adds; without the package, that is an alias of this one.
QEMU_USER = 'nobody'
_NAMES = {
    'passwd': 'libvirt-qemu:x:{user.pw_uid}:{user.pw_gid}::/nonexistent:/usr/sbin/nologin\n',
    'group': 'libvirt-qemu:x:{user.pw_gid}:\n',
}
_PROGRAMS = ('libvirtd', 'virsh', 'qemu-system-x86_64', 'qemu-img', 'pkg-config', 'gcc')
_PATH = f'{os.environ["PATH"]}{os.pathsep}/usr/sbin'

# The first process of the namespace also reaps ended QEMUs.
_RUN = """\
set -e
for name in etc var/lib var/cache run var/log; do
    mkdir -p "$1/$name" "/$name/libvirt"
    mount --bind "$1/$name" "/$name/libvirt"
done
echo "$2" > /proc/sys/kernel/hostname
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid &
wait
"""
_LIBVIRTD = """\
unix_sock_dir = "/run/libvirt"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{host_uuid}"
"""
# Debian's ownership: libvirt gives the files of a guest to the user of QEMU.
_QEMU = f"""\
user = "{QEMU_USER}"
group = "nogroup"
dynamic_ownership = 1
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


class Libvirtd:
    """One libvirtd, in the foreground; it dies with the thread that started it.

    :param directory: an empty one with a short path, for a socket
    :param hostname: reported as the name of the machine, which must be unique in Nova
    """

    def __init__(self, directory: pathlib.Path, hostname: str) -> None:
        self.directory = directory
        self._hostname = hostname
        self.log = directory / 'libvirtd.log'
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """The URI for clients, which need not be in its namespaces."""
        return f'qemu+unix:///system?socket={self.directory}/run/libvirt-sock'

    def start(self) -> None:
        """Start it and return before it serves; then call ``wait``.

        :raises nova_precache.standalone.process.ServerFailed: this machine cannot run it
        """
        if why := why_not():
            raise process.ServerFailed(why)
        (self.directory / 'etc').mkdir(parents=True)
        (self.directory / 'etc' / 'libvirtd.conf').write_text(
            _LIBVIRTD.format(host_uuid=uuid.uuid4())
        )
        (self.directory / 'etc' / 'qemu.conf').write_text(_QEMU)
        for name, line in _NAMES.items():
            names = pathlib.Path('/etc', name).read_text()
            added = line.format(user=pwd.getpwnam(QEMU_USER))
            (self.directory / name).write_text(f'{names.rstrip()}\n{added}')
            (self.directory / name).chmod(0o644)
        namespaces = ['--mount', '--propagation=private', '--uts', '--pid', '--mount-proc']
        arguments = [str(self.directory), self._hostname]
        command = ['unshare', *namespaces, '--fork', '--kill-child', 'sh', '-c', _RUN, 'libvirtd']
        with self.log.open('ab') as log:
            self._process = subprocess.Popen(
                process.dies_with_parent([*command, *arguments], 'KILL'),
                env={**os.environ, 'PATH': _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o022,  # QEMU passes through its directories
            )

    def wait(self) -> None:
        """Wait until it answers; the first answer takes seconds, since it examines QEMU.

        :raises nova_precache.standalone.process.ServerFailed: it ended, or takes too long
        """
        waiting.wait_for_child(
            'libvirtd', self._process, lambda: self._virsh('version').returncode == 0, self.log
        )

    def stop(self) -> None:
        """Kill it and its guests, and wait until they have ended."""
        if self._process is None:
            return
        # The first process of the namespace ends after all others in it, then unshare.
        namespace = psutil.Process(self._process.pid).children()
        for first in namespace:
            first.kill()
        if not namespace:
            self._process.kill()
        self._process.wait(process.STOP_SECONDS)
        self._process = None

    def virsh(self, *arguments: str) -> str:
        """Run a command of virsh and return its output.

        :raises nova_precache.standalone.process.ServerFailed: it failed
        """
        done = self._virsh(*arguments)
        if done.returncode != 0:
            raise process.ServerFailed(f'virsh {" ".join(arguments)} failed: {done.stderr}')
        return done.stdout

    def _virsh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ['virsh', '--connect', self.uri, *arguments],
            capture_output=True,
            text=True,
            timeout=process.START_SECONDS,
            check=False,
        )


def why_not() -> str | None:
    """Return why this machine cannot run it; None if it can."""
    if os.geteuid() != 0:
        return 'libvirtd and its namespaces need root'
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f'missing {", ".join(missing)}: "bindep --brief boot" lists the packages'
    return None
