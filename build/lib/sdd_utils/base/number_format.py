"""Shares and differences as text, the same in every table, sentence and page; none is "-0.0"."""

_HUNDREDTHS = ("points", "% of the loss")


def percent(value: float, low_high: list[float] | None = None) -> str:
    """0.915 as "91.5 %", with its interval where there is one."""
    return f"{100 * value:z.1f} %{f' {percent_interval(low_high)}' if low_high else ''}"


def percent_interval(low_high: list[float]) -> str:
    """[0.88, 0.95] as "[88.0, 95.0]"."""
    return f"[{100 * low_high[0]:z.1f}, {100 * low_high[1]:z.1f}]"


def in_unit(value: float, unit: str) -> float:
    """A difference as the number that its unit shows, e.g. 0.012 in points as 1.2."""
    return 100 * value if unit in _HUNDREDTHS else value


def amount(value: float, unit: str) -> str:
    """A difference in its unit as text, e.g. 0.012 in points as "+1.2"."""
    return f"{in_unit(value, unit):+z.{1 if unit in _HUNDREDTHS else 3}f}"


def points(difference: float, low_high: list[float]) -> str:
    """0.01 as "+1.0 [-4.0, +6.9]", in percentage points."""
    middle, low, high = (amount(value, "points") for value in (difference, *low_high))
    return f"{middle} [{low}, {high}]"
