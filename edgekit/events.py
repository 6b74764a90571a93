"""What a stage tells the outside while it runs; the terminal and the JSON lines are two listeners.

It knows nothing of how events are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    `kind` is one of `stage-started`, `stage-finished`, `stage-cached`, `progress`, `metric`, `message`,
    `export-finished`, `build-finished`. `stage` names the stage. `completed` and `total` count `unit`s (`total` None
    when unknown).
    `values` holds named numbers such as `loss` or `accuracy`; `text` is for people.
    """

    kind: str
    stage: str = ""
    text: str = ""
    completed: int = 0
    total: int | None = None
    unit: str = "steps"
    values: dict[str, float] = field(default_factory=dict)


class EventSink(Protocol):
    """Anything that takes events; it must not raise."""

    def __call__(self, event: Event) -> None:
        """Takes one event."""


def ignore(event: Event) -> None:
    """Drops the event: the sink for library use."""


def within(events: EventSink, stage: str) -> EventSink:
    """Returns a sink that passes events on, those without a stage as of `stage`."""

    def tell(event: Event) -> None:
        events(event if event.stage else replace(event, stage=stage))

    return tell


def track(  # noqa: PLR0913 - the fields of an event
    items: Iterable[Item], events: EventSink, *, stage: str, text: str, total: int | None, unit: str = "items"
) -> Iterator[Item]:
    """Yields `items` and reports progress after each."""
    events(Event("progress", stage=stage, text=text, completed=0, total=total, unit=unit))
    for count, item in enumerate(items, start=1):
        yield item
        events(Event("progress", stage=stage, text=text, completed=count, total=total, unit=unit))
