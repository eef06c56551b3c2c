"""`dovecote demo`: the main job with a real project, each step shown with its time."""

from dovecote.cli.demo.play import play

__all__ = ["play"]
