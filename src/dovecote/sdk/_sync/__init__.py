"""The blocking client by `python -m dovecote.sdk.generate`."""

# Generated from _async/__init__.py by `python -m dovecote.sdk.generate`; change that and run it.
