"""`python -m dovecote`."""

from dovecote.cli import run

run()
