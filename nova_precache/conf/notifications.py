# SPDX-License-Identifier: Apache-2.0
"""[notifications]: whether and where the versioned notifications go, with Nova's names."""

from oslo_config import cfg

GROUP = cfg.OptGroup('notifications', title='Notifications')

OPTIONS = [
    cfg.StrOpt(
        'notification_format',
        default='versioned',
        choices=[
            ('versioned', 'Send versioned notifications.'),
            ('both', 'The same; notifications of image caching are always versioned.'),
            ('unversioned', 'Send no versioned notifications; the default of Nova.'),
        ],
        help="""
Format of the notifications. Their driver and destination are configured in
[oslo_messaging_notifications]; without a driver, none is sent.
""",
    ),
    cfg.ListOpt(
        'versioned_notifications_topics',
        default=['versioned_notifications'],
        help="""
Topics of the versioned notifications. Each topic receives all of them; in
RabbitMQ, its queue is named after the topic, with .info appended.
""",
    ),
    cfg.BoolOpt(
        'precache_notifications',
        default=True,
        help="""
Also send image_precache.request.* and image_precache.task, in addition to the
notifications that Nova sends about image caching. For a request that names
hosts instead of an aggregate, only these are sent.
""",
    ),
]
