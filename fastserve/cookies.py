"""Set-Cookie as a browser must understand it.

Knows: the grammar and the rules of RFC 6265 and of its successor (draft-ietf-httpbis-rfc6265bis: SameSite, the prefixes
of names) and Partitioned. Never sees: a ctx, a request (the core reads those). Invariant: a cookie that a
browser would throw away, or take for another, is a ValueError here.
"""

import re
from datetime import datetime
from typing import Final

from fastserve.dates import format_date

__all__ = ["cookie_key", "format_cookie"]

COOKIE_MAX: Final = 4096
"""Bytes of name and value together, of which browsers throw away more."""

ATTRIBUTE_MAX: Final = 1024
"""Bytes of the value of an attribute, of which browsers ignore more."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r'(?:[!#-+\--:<-\[\]-~]*|"[!#-+\--:<-\[\]-~]*")')
_PATH = re.compile(r"/[ -:<-~]*")
_DOMAIN = re.compile(r"\.?[0-9A-Za-z](?:[0-9A-Za-z.-]*[0-9A-Za-z])?")
_SAME_SITE = {"strict": "Strict", "lax": "Lax", "none": "None"}


def format_cookie(
    name: str, value: str, *, max_age: int | None = None, expires: datetime | float | None = None,
    path: str | None = "/", domain: str | None = None, secure: bool = False, http_only: bool = False,
    same_site: str | None = "Lax", partitioned: bool = False,
) -> str:
    """The value of a Set-Cookie field; `RequestCtx.set_cookie` says what each argument means."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"not a cookie's name: {name[:80]!r}")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value of the cookie {name} has characters that must be encoded: {value[:80]!r}")
    if len(name) + len(value) > COOKIE_MAX:
        raise ValueError(f"name and value of a cookie are limited to {COOKIE_MAX} bytes")
    parts = [f"{name}={value}"]
    if expires is not None:
        parts.append(f"Expires={format_date(expires)}")
    if max_age is not None:
        parts.append(f"Max-Age={int(max_age)}")
    if domain is not None:
        parts.append(f"Domain={_checked('domain', domain, _DOMAIN)}")
    if path is not None:
        parts.append(f"Path={_checked('path', path, _PATH)}")
    if secure:
        parts.append("Secure")
    if http_only:
        parts.append("HttpOnly")
    if same_site is not None:
        if same_site.lower() not in _SAME_SITE:
            raise ValueError(f"same_site is Strict, Lax, None or nothing, not {same_site[:80]!r}")
        parts.append(f"SameSite={_SAME_SITE[same_site.lower()]}")
        if same_site.lower() == "none" and not secure:
            raise ValueError("browsers drop a cookie with SameSite=None that is not secure")
    if partitioned:
        parts.append("Partitioned")
        if not secure:
            raise ValueError("browsers drop a partitioned cookie that is not secure")
    _check_prefix(name.lower(), path, domain, secure, http_only)
    return "; ".join(parts)


def cookie_key(field: str) -> tuple[str, str, str, bool]:
    """Of the value of a Set-Cookie field: name, domain, path, and whether each site has its own, by which a browser
    tells cookies apart."""
    pair, *attributes = field.split("; ")
    values = {name.lower(): value for name, _, value in (attribute.partition("=") for attribute in attributes)}
    domain = values.get("domain", "").lstrip(".").lower()
    return pair.partition("=")[0], domain, values.get("path", ""), "partitioned" in values


def _checked(what: str, value: str, pattern: re.Pattern[str]) -> str:
    if len(value) > ATTRIBUTE_MAX or not pattern.fullmatch(value):
        raise ValueError(f"not a cookie's {what}: {value[:80]!r}")
    return value


def _check_prefix(name: str, path: str | None, domain: str | None, secure: bool, http_only: bool) -> None:
    """Browsers believe these names and compare them without case."""
    if name.startswith(("__secure-", "__host-", "__http-", "__host-http-")) and not secure:
        raise ValueError("browsers drop a cookie of such a name that is not secure")
    if name.startswith("__host-") and (path != "/" or domain is not None):
        raise ValueError("browsers drop a cookie of such a name unless its path is / and it has no domain")
    if name.startswith(("__http-", "__host-http-")) and not http_only:
        raise ValueError("browsers drop a cookie of such a name that is not http_only")
