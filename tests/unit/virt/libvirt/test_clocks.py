# SPDX-License-Identifier: Apache-2.0
"""A host whose clock differs from the one that stamps the files, as over NFS.

The file system uses the machine's clock; the host's clock is shifted in a process of its
own, before anything of the service is imported.
"""

import datetime
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

DAY = 86400
shifted = pytest.mark.parametrize('days', [-2, 0, 2], ids='host clock {:+}'.format)

_PROGRAM = """
import sys, time
real = time.time
time.time = lambda: real() + float(sys.argv[2])
import json, os, pathlib
from tests import disk_images
from tests.functional import kill_harness
from nova_precache import exception
from nova_precache.transfer_control import Control
from nova_precache.image import fake

path, images = pathlib.Path(sys.argv[1]), fake.FakeImageService()
driver = kill_harness.make_driver(str(path))
driver.init_host()

def names():
    return sorted(os.listdir(path / '_base'))

def age(seconds):
    for each in (path / '_base').iterdir():
        os.utime(each, (real() - seconds,) * 2)

told = {}
image = images.add(disk_images.content(disk_images.MIB))
driver.cache_image(images, image.id, lambda progress: None)
driver.manage_image_cache()
told['stays'] = len(names())
[first], [second] = driver.cached_images(), driver.cached_images()
told['is_stable'] = first == second
told['touched_at'] = first.touched_at.isoformat()
told['host_now'] = time.time()
age(86000)
driver.manage_image_cache()
told['stays for a day'] = len(names())
assert driver.cache_image(images, image.id, lambda progress: None).existing
driver.manage_image_cache()
told['stays when it was touched'] = len(names())
age(86500)
driver.manage_image_cache()
told['left after a day'] = len(names())

control = Control()
stop = exception.ShuttingDown('stops')
large = images.add(disk_images.content(4 * disk_images.MIB))
status, _ = kill_harness.try_to_cache(
    driver, images, large.id, control,
    lambda progress: control.stop(stop) if progress.bytes_done > 2 * disk_images.MIB else None,
)
driver.remove_leftovers()
told['partial stays'] = [status, len(names())]
age(86500)
driver.remove_leftovers()
told['partial left after a day'] = len(names())
print(json.dumps(told))
"""


def _told(path: pathlib.Path, days: float) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, '-c', _PROGRAM, str(path), str(days * DAY)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=pathlib.Path(__file__).parents[4],
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@shifted
@pytest.mark.usefixtures('qemu_img')
def test_file_age_uses_stamping_clock(tmp_path: pathlib.Path, days: int) -> None:
    told = _told(tmp_path / 'instances', days)
    host_now = told.pop('host_now')
    touched_at = datetime.datetime.fromisoformat(told.pop('touched_at'))
    assert told == {
        'stays': 1,
        'is_stable': True,
        'stays for a day': 1,
        'stays when it was touched': 1,
        'left after a day': 0,
        'partial stays': ['ShuttingDown', 2],
        'partial left after a day': 0,
    }
    age_seconds = host_now - touched_at.replace(tzinfo=datetime.UTC).timestamp()
    assert abs(age_seconds) < 600, 'it is reported by the clock of the host'
