"""The API of Dovecote itself, under /v1, and the console."""

from dovecote.api.rest.app import build

__all__ = ["build"]
