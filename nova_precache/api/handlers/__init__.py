# SPDX-License-Identifier: Apache-2.0
"""The handlers, one module a resource.

Each reads in order: microversion, schema, policy, load, act, serialise. The schema
comes before the policy because a Nova answers 400 to a malformed body whoever sent it.
"""
