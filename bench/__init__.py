"""Measures Dovecote beside what the machine or a plain tool does in the same run."""
