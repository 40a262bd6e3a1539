"""The fields of a command's settings: each has a line of explanation, and its type says which numbers it may have."""

import math
from dataclasses import dataclass, field
from typing import Annotated, get_args, get_type_hints

from vine_mini.types import UserError


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; without `low` itself if `above`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, x) -> bool:
        return self.low <= x <= self.high and x < math.inf and not (self.above and x == self.low)  # a NaN fails as well

    def __str__(self):
        start = f"above {self.low}" if self.above else f"at least {self.low}"
        return start if self.high == math.inf else f"{start} and at most {self.high}"


Count = Annotated[int, Range(1, 10**9)]
Several = Annotated[int, Range(2, 10**9)]
Whole = Annotated[int, Range(0, 10**9)]
LARGE = 1e30  # near the largest float32
Amount = Annotated[float, Range(0, LARGE)]
Positive = Annotated[float, Range(0, LARGE, above=True)]
COLDEST = 1e-3  # of the temperatures; a lower one divides logits to infinity
Warm = Annotated[float, Range(COLDEST, LARGE)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
WEEK = 7 * 86_400  # seconds
Seconds = Annotated[float, Range(0, WEEK, above=True)]
Seed = Annotated[int, Range(0, 2**31)]


def check_ranges(config) -> None:
    """Raises UserError for a number that the type of its field does not allow."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        for part in (hint, *get_args(hint)):  # of `Count | None`, the part `Count`
            for limits in getattr(part, "__metadata__", ()):
                if value is not None and value not in limits:
                    raise UserError(f"{name} = {value}: must be {limits}")


def one_of(what: str, given: str, choices) -> None:
    """Raises UserError where `given` is none of the choices."""
    if given not in choices:
        raise UserError(f"unknown {what} {given!r}: choose from {', '.join(choices)}")


def knob(default, why: str, **more):
    """A dataclass field whose one line of explanation is also its `--help`."""
    return field(default=default, metadata={"help": why, **more})
