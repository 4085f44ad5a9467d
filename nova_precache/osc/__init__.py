# SPDX-License-Identifier: Apache-2.0
"""The plugin of python-openstackclient: ``openstack precache …``.

One module for the commands of each noun: ``requests``, ``tasks``, ``pins``, ``hosts``,
``images``, ``caches``, ``services``, ``cells``, ``estimates``. They share ``arguments`` of the
command line, ``resolving`` of names to ids, ``naming`` of images, the HTTP ``client``, ``listing``
of pages, and the ``columns`` and ``tables`` of the output; ``waiting`` and ``showing`` follow a
request with ``--wait``. ``plugin`` registers it all.
"""
