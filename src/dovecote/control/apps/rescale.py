"""What somebody wants of an app's scale: some of its bounds, checked before they are taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from dovecote.control.scaling import Scale
from dovecote.errors import Invalid
from dovecote.model.records import App

DEFAULT_SCALE = Scale(minimum=0, maximum=5, target_concurrency=10, idle_after=60)
MOST_INSTANCES = 200
MOST_CONCURRENCY = 200


@dataclass(frozen=True)
class Rescale:
    """None leaves a bound as it is."""

    minimum: int | None = None
    maximum: int | None = None
    target_concurrency: int | None = None
    idle_after: timedelta | None = None

    def on(self, app: App) -> App:
        """The app with these bounds. Raises Invalid."""
        wanted = replace(app, **{name: value for name, value in vars(self).items() if value is not None})
        if not 0 <= wanted.minimum <= wanted.maximum or not 1 <= wanted.maximum <= MOST_INSTANCES:
            raise Invalid(f"instances go from 0 to {MOST_INSTANCES}, and minimum is not more than maximum")
        if not 1 <= wanted.target_concurrency <= MOST_CONCURRENCY:
            raise Invalid(f"target_concurrency is from 1 to {MOST_CONCURRENCY}")
        if not timedelta(seconds=1) <= wanted.idle_after <= timedelta(days=1):
            raise Invalid("idle_after is from a second to a day")
        return wanted
