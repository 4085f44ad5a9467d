# SPDX-License-Identifier: Apache-2.0
"""[notifications]: whether and where the versioned notifications go, with Nova's names."""

from oslo_config import cfg

GROUP = cfg.OptGroup('notifications', title='Notifications')

OPTIONS = [
    cfg.StrOpt(
        'notification_format',
        default='versioned',
        choices=[
            ('versioned', 'They are sent.'),
            ('both', 'The same: of image caching there are only versioned ones.'),
            ('unversioned', 'They are not sent, as by Nova, whose default this is.'),
        ],
        help="""
Form of the notifications that are sent. Where they are sent to is said by
[oslo_messaging_notifications], and unless a driver is set there, none is sent.
""",
    ),
    cfg.ListOpt(
        'versioned_notifications_topics',
        default=['versioned_notifications'],
        help="""
Topics of the versioned notifications, each of which gets all of them: in
RabbitMQ, in a queue that is named after the topic with .info appended.
""",
    ),
    cfg.BoolOpt(
        'precache_notifications',
        default=True,
        help="""
Send image_precache.request.* and image_precache.task, too, beside those of
image caching that Nova sends. Of a request for hosts that it names itself,
without an aggregate, there are only these.
""",
    ),
]
