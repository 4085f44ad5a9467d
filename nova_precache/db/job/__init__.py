# SPDX-License-Identifier: Apache-2.0
"""The steps in the life of a job, each for many jobs at once, inside a transaction.

``claim`` leases hosts, within ``host_limits``; ``locking`` locks jobs and reads them; ``call``
assigns a job to its host and begins it; ``progress`` records bytes; ``finish`` decides how a call
ends, and ``outcome`` writes that to the job and its tasks. ``demand`` is what requests want of a
job; ``stop`` lists the orders to computes that follow.
"""
