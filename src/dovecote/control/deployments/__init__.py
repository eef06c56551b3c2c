"""Deployments: a user's directory as what a function runs, and a function taken down with all that runs it."""

from dovecote.control.deployments.deployments import Deployments
from dovecote.control.deployments.files import DeployedFiles

__all__ = ["DeployedFiles", "Deployments"]
