# SPDX-License-Identifier: Apache-2.0
"""Policy: check a caller's rights by the documented rules and the operator's file."""

from collections.abc import Mapping
from typing import Any

from oslo_config import cfg
from oslo_policy import policy

from nova_precache import context as request_context, exception, policies
from nova_precache.policies import base


class _Rules(policy.Enforcer):
    """Looks for changes of the operator's files only when asked, not at each check."""

    def load_rules(self, force_reload: bool = False) -> None:
        """Keep the loaded rules."""

    def refresh(self) -> None:
        super().load_rules()


class Enforcer:
    """The rules of one process; the operator's file is reloaded when it changes.

    That is noticed once for each caller, by :meth:`is_admin`.

    :raises nova_precache.exception.ConfigError: the file cannot be read
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._enforcer = _Rules(conf)
        self._enforcer.register_defaults(policies.list_rules())
        # Unknown rules are no error: the file may be Nova's.
        try:
            self._enforcer.refresh()
        except (ValueError, TypeError, AttributeError) as exc:
            path = conf.oslo_policy.policy_file
            reason = ' '.join(str(exc).split())
            raise exception.ConfigError(
                f'[oslo_policy] policy_file = {path} cannot be read: {reason}'
            ) from exc

    def authorize(
        self,
        context: request_context.RequestContext,
        rule: str,
        target: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the caller satisfies the rule.

        :param target: attributes of the object of the action, such as its ``project_id``
        :raises nova_precache.exception.PolicyNotAuthorized: it does not
        """
        if not self._allows(context, rule, dict(target or {})):
            raise exception.PolicyNotAuthorized(rule)

    def unknown_rules(self) -> list[str]:
        """List the rules of this service in the operator's file that are not used."""
        known = {rule.name for rule in policies.list_rules()}
        own = {name for name in self._enforcer.file_rules if name.startswith(base.OWN_PREFIX)}
        return sorted(own - known)

    def is_admin(self, context: request_context.RequestContext) -> bool:
        """Return whether the caller satisfies the rule ``context_is_admin``."""
        self._enforcer.refresh()
        own = {'project_id': context.project_id, 'user_id': context.user_id}
        return self._allows(context, base.CONTEXT_IS_ADMIN, own)

    def _allows(
        self, context: request_context.RequestContext, rule: str, target: dict[str, Any]
    ) -> bool:
        # A plain dictionary, because oslo.context warns about the key is_admin.
        credentials = {**context.to_policy_values(), 'is_admin': context.is_admin}
        return bool(self._enforcer.authorize(rule, target, credentials))
