# SPDX-License-Identifier: Apache-2.0
"""The steps in the life of a request, inside a transaction.

``create`` saves it, ``plan`` gives it tasks, ``gating`` opens them, ``rollout`` stops it after
failures, ``actions`` change it on demand, ``completion`` ends it; ``queries`` lists requests.
"""
