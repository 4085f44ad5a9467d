# SPDX-License-Identifier: Apache-2.0
"""The conductor: plans requests, claims hosts, calls computes, records the outcomes.

- Process: ``service`` starts and stops the parts; ``manager`` has the RPC endpoints, ``rpcapi``
  their clients, ``metrics`` the counters.
- Plan: ``planning`` gathers the facts, ``planner`` decides which hosts get a task;
  ``image_access`` checks images for a project. ``pins`` requests what pinned hosts lack, and
  ``pin_loop`` runs it when a round is due or work of a pin has ended.
- Work: ``dispatcher`` claims hosts, ``host_worker`` calls one, ``tracker`` records the outcome,
  ``retry`` decides whether another attempt follows. ``job_access`` and ``companions`` supply a
  call; ``database_wait`` waits out an outage.
- Without a call: ``lifecycle`` opens and expires windows; ``stop_orders`` stops transfers and
  changes their options.
- Hosts: ``report_endpoint`` reads their reports by the parts of ``report_parts``, ``pace`` sets
  their interval, ``report_buffer`` writes them; ``unknown_hosts`` makes hosts register again,
  ``liveness`` is the interface to their state; ``nova_backend`` calls stock nova-computes.
- Notifications: ``announcer``.
"""
