# SPDX-License-Identifier: Apache-2.0
"""The image cache of one compute: a directory of whole, verified base files.

``populator`` fills it, by the one routine for precaching and boots; ``expiry`` removes unused
files, ``sweeper`` what ended transfers left behind. ``store`` knows the base files, ``layout``
their names and paths, ``notes`` their kernels and ramdisks, ``space`` the free disk space.
``partials`` has unfinished downloads, ``journal`` what is recorded of one. ``locks`` is the lock
of a base file: ``lock_queue`` queues the threads for it, ``lock_waiters`` sees other processes
that wait for it, ``boot_signal`` the boots among them.
"""
