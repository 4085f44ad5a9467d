# SPDX-License-Identifier: Apache-2.0
"""Stock Nova's libvirt driver: reads a command a line and prints its result, as JSON.

It runs with the Python of Nova's environment and imports no module of ours. An empty module
replaces libvirt, so that a call of the hypervisor fails: the commands need none.
"""

import json
import os
import sys
import types

os.environ['OS_NOVA_DISABLE_EVENTLET_PATCHING'] = 'true'
sys.modules['libvirt'] = types.ModuleType('libvirt')

import nova.conf  # noqa: E402
import nova.privsep  # noqa: E402
from nova import context, objects  # noqa: E402
from nova.db.main import (  # noqa: E402
    api as main_db,
    models,
)
from nova.virt import (  # noqa: E402
    fake,
    node,
    storage_users,
)
from nova.virt.libvirt import (  # noqa: E402
    driver as libvirt_driver,
    utils as libvirt_utils,
)
from oslo_utils import fileutils  # noqa: E402

CONF = nova.conf.CONF


def main() -> None:
    CONF(sys.argv[1:], project='nova', default_config_files=[])
    objects.register_all()
    nova.privsep.sys_admin_pctxt.set_client_mode(False)  # without a daemon of root's
    main_db.configure(CONF)
    with main_db.context_manager.writer.using(caller()) as session:
        models.BlockDeviceMapping.metadata.create_all(session.connection())
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + '\n')
        sys.stdout.flush()


def answer(command: dict) -> dict:
    for group, options in command.pop('options').items():
        for name, value in options.items():
            CONF.set_override(name, value, None if group == 'DEFAULT' else group)
    work = COMMANDS[command.pop('do')]
    driver = libvirt_driver.LibvirtDriver(fake.FakeVirtAPI())
    try:
        return {'result': work(driver, **command)}
    except Exception as exc:  # noqa: BLE001 - the exception is the answer
        return {'error': type(exc).__name__, 'message': str(exc)}


def cache_image(driver: libvirt_driver.LibvirtDriver, image_id: str) -> str:
    """Cache an image as nova-compute does on a precache request, and return its outcome."""
    fetched = driver.cache_image(caller(), image_id)
    return 'cached' if fetched else 'existing'


def make_root_disk(
    driver: libvirt_driver.LibvirtDriver, image_id: str, instance: str, root_gb: int
) -> str:
    """Create the root disk as a boot does, and return its path."""
    directory = libvirt_utils.get_instance_path(new_instance(instance, image_id))
    fileutils.ensure_tree(directory)
    driver._create_and_inject_local_root(
        caller(),
        new_instance(instance, image_id, root_gb),
        disk_mapping={'disk': {'bus': 'virtio', 'dev': 'vda', 'type': 'disk'}},
        booted_from_volume=False,
        suffix='',
        disk_images={'image_id': image_id, 'kernel_id': '', 'ramdisk_id': ''},
        injection_info=None,
        fallback_from_host=None,
    )
    return os.path.join(directory, 'disk')


def make_disks(
    driver: libvirt_driver.LibvirtDriver,
    image_id: str,
    kernel_id: str,
    ramdisk_id: str,
    instance: str,
) -> str:
    """Create all files of an instance as a boot does, and return their directory."""
    booted = new_instance(instance, image_id, root_gb=1, kernel_id=kernel_id, ramdisk_id=ramdisk_id)
    driver._create_image(
        caller(), booted, disk_mapping={'disk': {'bus': 'virtio', 'dev': 'vda', 'type': 'disk'}}
    )
    return libvirt_utils.get_instance_path(booted)


def manage_image_cache(
    driver: libvirt_driver.LibvirtDriver, instances: dict, companions: dict
) -> None:
    """Run one round of the image cache manager.

    :param instances: image of each instance on this host, by uuid
    :param companions: ``kernel_id`` and ``ramdisk_id`` of instances that have them, by uuid
    """
    known = [
        new_instance(uuid, image_id, **companions.get(uuid, {}))
        for uuid, image_id in instances.items()
    ]
    driver.manage_image_cache(caller(), known)


def leave_marks(driver: libvirt_driver.LibvirtDriver) -> None:
    """Write the files of the first start and the first round of a nova-compute."""
    node.write_local_node_uuid('2c3b6a0e-8f1d-4f57-9c77-6d0f5a1e9b3d')
    storage_users.register_storage_use(CONF.instances_path, CONF.host)


def caller() -> context.RequestContext:
    """Return the context of a caller with some token, which Glance does not check."""
    return context.RequestContext(is_admin=True, auth_token='none')


def new_instance(
    uuid: str, image_id: str, root_gb: int = 0, kernel_id: str = '', ramdisk_id: str = ''
) -> objects.Instance:
    return objects.Instance(
        id=1,
        uuid=uuid,
        host=CONF.host,
        image_ref=image_id,
        kernel_id=kernel_id,
        ramdisk_id=ramdisk_id,
        os_type=None,
        vm_mode=None,
        vm_state='active',
        task_state=None,
        config_drive='True',
        system_metadata={},
        trusted_certs=None,
        migration_context=None,
        flavor=objects.Flavor(root_gb=root_gb, ephemeral_gb=0, swap=0),
    )


COMMANDS = {
    each.__name__: each
    for each in (cache_image, make_root_disk, make_disks, manage_image_cache, leave_marks)
}

if __name__ == '__main__':
    main()
