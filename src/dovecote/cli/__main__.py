"""`python -m dovecote.cli`, for a server that is started without `dovecote` on the path."""

from dovecote.cli import run

run()
