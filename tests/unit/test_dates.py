"""HTTP-date, written and read.

Knows: the three forms of RFC 9110, section 5.6.7, and the standard library's reading of one of them.
Never sees: a field of a request.
"""

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.dates import _MONTHS, format_date, parse_date

MOMENT = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize("text", [
    "Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994",
])
def test_the_three_forms(text: str) -> None:
    assert parse_date(text) == MOMENT


@pytest.mark.parametrize("text", [
    "", "0", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 6 Nov 1994 08:49:37 GMT",
    "sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 nov 1994 08:49:37 GMT", "Sun, 31 Feb 1994 08:49:37 GMT",
    "Sun, 06 Nov 1994 24:49:37 GMT", "Sun, 06 Nov 1994 08:60:37 GMT", "Sun, 06 Nov 1994 08:49:61 GMT",
    "Sun, 06 Nov 1994 08:49:37 GMT ", " Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 +0000",
    "Sun, 00 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 0000 08:49:37 GMT", "1994-11-06T08:49:37Z", "784111777",
    "Sun Nov 06 08:49:37 94", "Sun, 06-Nov-94 08:49:37 GMT", "Sun, 0६ Nov 1994 08:49:37 GMT",
])
def test_what_is_no_date(text: str) -> None:
    assert parse_date(text) is None


def test_a_leap_second_is_the_one_before_it() -> None:
    assert parse_date("Sat, 31 Dec 2016 23:59:60 GMT") == datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_a_year_of_two_digits_is_at_most_fifty_years_ahead() -> None:
    this = datetime.now(UTC).year
    for ahead in (-49, -1, 0, 1, 49):
        year = this + ahead
        found = parse_date(f"Monday, 06-Nov-{year % 100:02} 08:49:37 GMT")
        assert found is not None
        assert found.year == year
    # The same year to the second: half a century from now is the last moment of it that counts as ahead.
    now = datetime.now(UTC)
    for moment, years in ((now + timedelta(days=2), -50), (now - timedelta(days=2), 50)):
        if (moment.month, moment.day) == (2, 29):
            moment -= timedelta(days=1)         # which that year has not got
        text = f"{moment.day:02}-{_MONTHS[moment.month - 1]}-{(moment.year + 50) % 100:02} {moment:%H:%M:%S}"
        found = parse_date(f"Monday, {text} GMT")
        assert found is not None
        assert found.year == moment.year + years
    beyond = parse_date(f"Monday, 06-Nov-{(this + 51) % 100:02} 08:49:37 GMT")
    assert beyond is not None
    assert beyond.year == this - 49


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.sampled_from(
    (UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))))))
def test_what_is_written_is_read(moment: datetime) -> None:
    text = format_date(moment)
    assert parse_date(text) == moment.replace(microsecond=0)
    if moment.astimezone(UTC).year >= 1000:
        assert text == format_datetime(moment.astimezone(UTC), usegmt=True)
        assert parsedate_to_datetime(text) == moment.replace(microsecond=0)


@given(st.floats(-6e10, 2e11))
def test_seconds_are_cut(seconds: float) -> None:
    found = parse_date(format_date(seconds))
    assert found is not None
    assert found.timestamp() == seconds // 1


@pytest.mark.parametrize("when", [datetime(2026, 1, 1), 1e12, -1e12, float("inf"), float("nan")])
def test_what_is_no_moment(when: datetime | float) -> None:
    with pytest.raises(ValueError):
        format_date(when)


@given(st.text(max_size=60))
def test_anything_is_a_date_or_none(text: str) -> None:
    assert parse_date(text) is None or format_date(parse_date(text) or 0)
