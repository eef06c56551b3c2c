"""Sandboxes as tools over MCP: a customer like any other, it acts only through `dovecote.sdk`.

`http.Endpoint` serves them at /mcp, `stdio` to a program that started us. Nothing is imported here, nor the MCP
library before it is needed: that takes a second.
"""
