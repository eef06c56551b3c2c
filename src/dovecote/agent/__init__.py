"""The chat coding agent: a customer like any other, it acts only through `dovecote.sdk`.

Import `dovecote.agent.turns` for it; that is slow, hence nothing is imported here.
"""
