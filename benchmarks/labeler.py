"""Score the labeler on the development reports of Open-i, and measure its speed.

The rule by which a fifth of the development reports is set aside stands here before anything is tuned.
"""

import hashlib


def is_set_aside(report_id: str) -> bool:
    "Does a development report belong to the fifth that is scored once and never looked at?"
    return int(hashlib.sha256(report_id.encode()).hexdigest(), 16) % 5 == 0
