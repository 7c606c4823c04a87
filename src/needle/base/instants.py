"""RFC 3339 date-times as points in time: what `{"$date": ...}` and Python's datetimes in filters mean.

`2024-01-01T00:00:00Z`, `2024-01-01T01:00:00+01:00` and `2024-01-01 00:00:00.000+00:00` are one instant. Fractions of a
second may have any number of digits and are compared exactly. A date-time without a zone is no instant: it stands for
another one in each zone. A leap second (23:59:60 UTC) is the first second of the next day.

Pure; it must not know filters, nor the datetime module (who has a datetime hands in its text).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DAY_SECONDS: Final = 86_400

_DATE_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?: ?(?:[Zz]|[+-]\d\d(?::?\d\d)?))?", re.ASCII
)

InstantKey = tuple[int, str]
"""(seconds since 1970 UTC, digits of the fraction without trailing zeros): orders and equals as the instants do."""


class Instant(msgspec.Struct, frozen=True):
    """A point in time: its RFC 3339 text and its key."""

    text: str
    key: InstantKey


def instant(text: str) -> Instant | None:
    """The instant that a text names; None if it is no RFC 3339 date-time."""
    key = instant_key(text)
    return None if key is None else Instant(text, key)


def is_date_time(text: str) -> bool:
    """Whether a text is written as a day and a time of it, with or without seconds and zone, right or not. A day alone,
    and a text that ends with the hour, are not."""
    return len(text) >= 16 and _DATE_TIME.fullmatch(text) is not None


def instant_key(text: str) -> InstantKey | None:
    """The key of the instant that a text names; None if it is no RFC 3339 date-time."""
    # Most strings are none: they leave here.
    if len(text) < 20 or text[4] != "-" or text[7] != "-" or text[13] != ":":
        return None
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    day, hour, minute, second = _day(match[1]), int(match[2]), int(match[3]), int(match[4])
    if day is None or hour > 23 or minute > 59 or second > 60:
        return None
    offset = 0
    if match[6]:
        hours, minutes = int(match[7]), int(match[8])
        if hours > 23 or minutes > 59:
            return None
        offset = (hours * 3600 + minutes * 60) * (1 if match[6] == "+" else -1)
    at = day * _DAY_SECONDS + hour * 3600 + minute * 60 + second - offset
    if second == 60 and at % _DAY_SECONDS:
        return None
    return at, (match[5] or "").rstrip("0")


MICROS_MAX: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999."""


def micros(text: str) -> int | None:
    """Microseconds since 1970 of the instant that a text names, rounded up; None if it is no RFC 3339 date-time."""
    key = instant_key(text)
    if key is None:
        return None
    seconds, fraction = key
    return seconds * 1_000_000 + int(fraction[:6].ljust(6, "0")) + (len(fraction) > 6)


def rfc3339(at: int) -> str:
    """The one text of an instant in microseconds since 1970: UTC, with as many digits as it needs."""
    seconds, part = divmod(at, 1_000_000)
    day, second = divmod(seconds, _DAY_SECONDS)
    year, month, of_month = _date(day)
    fraction = f".{part:06}".rstrip("0") if part else ""
    return f"{year:04}-{month:02}-{of_month:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}{fraction}Z"


def _date(day: int) -> tuple[int, int, int]:
    """Year, month and day of the month: the inverse of `_days_since_1970`."""
    era, of_era = divmod(day + 719_468, 146_097)
    of_era_year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * of_era_year + of_era_year // 4 - of_era_year // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + (3 if shifted < 10 else -9)
    return of_era_year + era * 400 + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


@lru_cache(maxsize=4096)
def _day(text: str) -> int | None:
    """Days since 1970 of YYYY-MM-DD; None if there is no such day. A field has few of them, and each many times."""
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:])
    if not 1 <= month <= 12 or not 1 <= day <= _days(year, month):
        return None
    return _days_since_1970(year, month, day)


def _days(year: int, month: int) -> int:
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and leap else _DAYS[month - 1]


def _days_since_1970(year: int, month: int, day: int) -> int:
    """Of the proleptic Gregorian calendar, the year 0 included."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
