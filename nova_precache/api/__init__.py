# SPDX-License-Identifier: Apache-2.0
"""The two HTTP APIs: /v2.1 as Nova serves it, and /v1 with the operations that Nova lacks.

- ``app``: the layers that a request passes, in order; ``auth``, ``requestlog`` and ``faults``
  (domain error to HTTP) are some of them
- ``routes``: the table of all operations, in the form of ``operations``, from which requests are
  routed and the OpenAPI document (``openapi``) and the API reference are built
- ``dispatch``: from the table to a handler, with ``microversion``; ``request`` has the arguments
  and the result of handlers
- ``handlers``, ``schemas``: one module per resource
- what handlers share: ``validation`` (by schemas), ``parsing`` (bodies against the inventory),
  ``visibility`` (by project), ``paging``, ``serializers``, ``times``
- ``estimator``: the bytes, space and time of a request
"""
