"""The client for asyncio; `_sync` is generated from it by `python -m dovecote.sdk.generate`."""
