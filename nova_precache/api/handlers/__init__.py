# SPDX-License-Identifier: Apache-2.0
"""The handlers, one module per resource.

Each reads in order: schema, policy, load, act, serialise. The schema
comes before the policy because Nova answers 400 to a malformed body from any caller.
"""
