"""Templates of a tenant: made of images and build files, named, listed, removed."""

from dovecote.control.templates.building import Building, Ground
from dovecote.control.templates.context import MAX_BYTES, MAX_FILES, Context, receive
from dovecote.control.templates.dovecotefile import Instruction, Recipe
from dovecote.control.templates.progress import Deployed, Done, Event, OnTheWay, Prepared, Printed, Step, Telling
from dovecote.control.templates.templates import Templates

__all__ = [
    "MAX_BYTES",
    "MAX_FILES",
    "Building",
    "Context",
    "Deployed",
    "Done",
    "Event",
    "Ground",
    "Instruction",
    "OnTheWay",
    "Prepared",
    "Printed",
    "Recipe",
    "Step",
    "Telling",
    "Templates",
    "receive",
]
