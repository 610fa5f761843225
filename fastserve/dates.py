"""Dates as HTTP writes them.

Knows: the three forms of HTTP-date (RFC 9110, section 5.6.7) and the English names in them, whatever the locale.
Never sees: a field, a ctx. Invariant: what is written is IMF-fixdate; what is read is one of the three forms, whole, or
no date.
"""

import re
import time
from datetime import UTC, datetime

__all__ = ["format_date", "parse_date"]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_DAY = rf"(?:{'|'.join(_DAYS)})"
_LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = tuple(re.compile(form) for form in (
    rf"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",              # IMF-fixdate
    rf"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",         # RFC 850
    rf"{_DAY} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",                  # asctime
))


def format_date(when: datetime | float) -> str:
    """IMF-fixdate, cut to the second, of an aware datetime or of seconds since 1970. ValueError: a datetime without a
    time zone, or a time outside of the years 1 to 9999."""
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ValueError(f"a datetime without a time zone says no moment: {when}")
        at = when.astimezone(UTC)
    else:
        try:
            at = datetime.fromtimestamp(when // 1, UTC)
        except (OverflowError, OSError) as error:
            raise ValueError(f"not a time: {when}") from error
    return f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} {at:%H:%M:%S} GMT"


def parse_date(text: str) -> datetime | None:
    """An aware datetime; None: it is no HTTP-date. The name of the day is not checked against the date. A year of two
    digits is the latest that does not lie more than 50 years ahead."""
    for form in _FORMS:
        match = form.fullmatch(text)
        if match:
            break
    else:
        return None
    year, second = int(match["year"]), int(match["second"])
    # A leap second is counted as the one before it.
    rest = (_MONTHS.index(match["month"]) + 1, int(match["day"]), int(match["hour"]), int(match["minute"]),
            min(second, 59) if second <= 60 else second)
    if len(match["year"]) == 2:
        now = time.gmtime()
        latest = now.tm_year + 50 - (rest > now[1:6])
        year += (latest - year) // 100 * 100
    try:
        return datetime(year, *rest, tzinfo=UTC)
    except ValueError:
        return None
