# SPDX-License-Identifier: Apache-2.0
"""The cells and their hosts, in the tables of Nova's API database.

- Inventory: ``inventory`` is the store; ``aggregates`` and ``mappings`` are its steps in a
  session, ``models`` the tables. ``novadb`` opens the one of a Nova, ``templates`` fills in its
  URLs.
- Reach: ``transports`` connects to the cells' brokers; ``breaker`` stops calls to a cell that
  does not answer.
- Stock nova-computes: ``services`` reads a cell's database, ``liveness`` looks up who is up,
  ``novahosts`` lists them.
"""
