# SPDX-License-Identifier: Apache-2.0
"""A machine of its own in namespaces: all of this one's files, none of which it can change.

Its root is an overlay over ours, with a file system in memory on top. Its processes end with it.
The network is ours. systemd does not run there: ``systemctl`` starts what a unit says as the user
that it names, with its capabilities, and waits for the notification that it serves.
"""

import contextlib
import os
import pathlib
import shlex
import subprocess
from collections.abc import Iterator, Mapping

from nova_precache.standalone import process

PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
_ENVIRONMENT = '/root/environment'
_MAKE = """\
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1"/upper "$1"/work "$1"/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --rbind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mount -t tmpfs tmpfs "$1/root/run"
echo ready
exec sleep infinity
"""
_SYSTEMCTL = '''\
#!/usr/bin/python3
"""systemctl enable --now UNIT...; systemctl stop UNIT..."""
import os, pathlib, shlex, shutil, signal, socket, subprocess, sys, time

def settings(unit):
    lines = pathlib.Path(f'/etc/systemd/system/{unit}.service').read_text().splitlines()
    return dict(line.split('=', 1) for line in lines if '=' in line and not line.startswith('#'))

def start(unit):
    said = settings(unit)
    if 'StateDirectory' in said:
        state = pathlib.Path('/var/lib', said['StateDirectory'])
        state.mkdir(exist_ok=True)
        shutil.chown(state, said['User'], said['Group'])
    capabilities = ['+' + each.removeprefix('CAP_').lower()
                    for each in said.get('AmbientCapabilities', '').split()]
    granted = [f'--{kind}-caps={",".join(capabilities)}' for kind in ('inh', 'ambient')]
    path = f'/run/{unit}.socket'
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(path)
    os.chmod(path, 0o777)
    notified.settimeout(1)
    log = pathlib.Path(f'/var/log/{unit}.log')
    with log.open('ab') as output:
        child = subprocess.Popen(
            ['setpriv', f'--reuid={said["User"]}', f'--regid={said["Group"]}', '--init-groups',
             *(granted if capabilities else []), '--', *shlex.split(said['ExecStart'])],
            env={'PATH': os.defpath, 'NOTIFY_SOCKET': path}, umask=int(said['UMask'], 8),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd='/')
    pathlib.Path(f'/run/{unit}.pid').write_text(str(child.pid))
    end = time.monotonic() + 120
    message = b''
    while b'READY=1' not in message:
        if child.poll() is not None or time.monotonic() > end:
            sys.exit(f'{unit} did not start: {log.read_text()[-5000:]}')
        try:
            message = notified.recv(4096)
        except TimeoutError:
            pass

def stop(unit):
    path = pathlib.Path(f'/run/{unit}.pid')
    pid = int(path.read_text())
    os.kill(pid, signal.SIGTERM)
    while pathlib.Path(f'/proc/{pid}/exe').is_symlink() and os.path.exists(f'/proc/{pid}/root/etc'):
        time.sleep(0.1)
    path.unlink()
    pathlib.Path(f'/run/{unit}.socket').unlink()

verb, *units = [word for word in sys.argv[1:] if word != '--now']
for unit in units:
    {'enable': start, 'stop': stop}[verb](unit)
'''


class Machine:
    """Runs scripts, one after the other, as root of a machine.

    :param directory: an empty one of this machine
    """

    def __init__(self, directory: pathlib.Path, holder: int) -> None:
        self._root = directory / 'root'
        self._holder = holder

    def command(self, script: str) -> list[str]:
        """Return the command that runs a script there; what is exported stays for the next."""
        keeping = (
            f'set -euo pipefail; cd /root; . {_ENVIRONMENT}\n{script}\nexport -p > {_ENVIRONMENT}\n'
        )
        entered = ['nsenter', f'--target={self._holder}', '--mount', '--pid', '--']
        return [*entered, 'chroot', str(self._root), '/bin/bash', '-c', keeping]

    def run(self, script: str, answers: str = '') -> subprocess.CompletedProcess[str]:
        """Run a script to its end.

        :param answers: its standard input; there is no terminal
        """
        return subprocess.run(
            self.command(script),
            input=answers,
            capture_output=True,
            text=True,
            check=False,
            env={'PATH': PATH},
            start_new_session=True,
            timeout=600,
        )

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        quoted = shlex.quote(path)
        ran = self.run(f'cat > {quoted}; chmod {mode:o} {quoted}', text)
        assert ran.returncode == 0, ran.stderr


@contextlib.contextmanager
def machine(directory: pathlib.Path, variables: Mapping[str, str]) -> Iterator[Machine]:
    """Make a machine and remove it with all that runs there.

    :param variables: of the environment of the scripts
    """
    directory.mkdir()
    unshare = ['unshare', '--mount', '--propagation=private', '--pid', '--fork']
    command = [*unshare, '--kill-child', 'bash', '-c', _MAKE, 'machine', str(directory)]
    with subprocess.Popen(
        process.dies_with_parent(command, 'KILL'), stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == 'ready\n'
            (child,) = (
                pathlib.Path(f'/proc/{holder.pid}/task/{holder.pid}/children').read_text().split()
            )
            made = Machine(directory, int(child))
            exported = {**_of_pip(), 'HOME': '/root', 'PATH': PATH, **variables}
            lines = [f'export {name}={shlex.quote(value)}' for name, value in exported.items()]
            _write(made, _ENVIRONMENT, '\n'.join(lines))
            made.write('/usr/local/sbin/systemctl', _SYSTEMCTL, 0o755)
            yield made
        finally:
            holder.kill()


def _write(made: Machine, path: str, text: str) -> None:
    """Write the file that each script begins with."""
    command = made.command('')[:-3]
    subprocess.run(
        [*command, '/usr/bin/tee', path], input=text.encode(), check=True, stdout=subprocess.DEVNULL
    )


def _of_pip() -> dict[str, str]:
    """Return what says where pip finds packages."""
    return {name: value for name, value in os.environ.items() if name.startswith('PIP_')}
