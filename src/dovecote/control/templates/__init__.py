"""Templates of a tenant: made of images and build files, named, listed, removed."""

from dovecote.control.templates.context import MAX_BYTES
from dovecote.control.templates.progress import Done, Event, Prepared, Printed, Step
from dovecote.control.templates.templates import Templates

__all__ = ["MAX_BYTES", "Done", "Event", "Prepared", "Printed", "Step", "Templates"]
