"""The API of Dovecote itself, under /v1, and the console."""
