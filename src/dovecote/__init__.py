"""Dovecote: the self-hosted serverless home for chat coding agents."""

__version__ = "0.1.0"
