"""The error that every reader and decoder of images raises, with its reasons."""

from typing import Literal

from cit_curate.errors import BadInputError

Reason = Literal[
    "undecodable_image",
    "decoder_failed",
    "truncated_image",
    "too_many_pixels",
    "format_not_allowed",
    "missing_image",
    "no_image",
    "too_many_bytes",
    "path_escapes",
    "unreadable_archive",
    "damaged_archive",
    "encrypted_image",
]


class ImageRejected(BadInputError):  # noqa: N818
    """An image that cannot be used.

    Attributes:
        reason: The kind of problem.
        detail: A description of the problem.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
