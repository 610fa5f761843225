"""Faults of a request that we refuse and other parsers take, as predicates.

Knows: RFC 9110, RFC 9112, RFC 3986. Never sees: our parser, or that it refuses.
Invariant: written with other means than the parser's (regular expressions, ipaddress). A predicate gets the
bytes of a message and an event: `method`, `target`, `http_version`, `headers` with names in lower case and
values without the blanks around them.
"""

import ipaddress
import re


def values(event, name):
    return [value for key, value in event.headers if key == name]


def length_too_long(raw, event):
    return any(len(value) > 18 for value in values(event, b"content-length"))


def coding_on_1_0(raw, event):
    return values(event, b"transfer-encoding") and event.http_version == b"1.0"


def connection_no_token_list(raw, event):
    members = [member.strip(b" \t") for value in values(event, b"connection") for member in value.split(b",")]
    return any(not re.fullmatch(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]*", member) for member in members)


def other_expectation(raw, event):
    expected = [value.lower() for value in values(event, b"expect")]
    return event.http_version != b"1.0" and expected not in ([], [b"100-continue"])


def split_authority(text):
    """(host, port) or None; h11 does not look at it."""
    name = rb"(\[([0-9A-Fa-f:.]*)\]|(?:[-A-Za-z0-9._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)"
    match = re.fullmatch(name + rb"(?::([0-9]*))?", text)
    if not match or int(match[3] or 0) > 65535:
        return None
    if match[2] is not None:
        try:
            ipaddress.IPv6Address(match[2].decode())
        except ValueError:
            return None
    return match[1], match[3]


def bad_host(raw, event):
    return any(split_authority(value) is None for value in values(event, b"host"))


def bad_target(raw, event):
    target = event.target
    if b"#" in target:
        return True
    if event.method == b"CONNECT":
        return not (split_authority(target) or (b"", None))[1]
    if target.startswith(b"/"):
        return False
    if target == b"*":
        return event.method != b"OPTIONS"
    match = re.fullmatch(rb"(?i)(https?)://([^/?]*)([/?].*)?", target)
    if not match or split_authority(match[2]) is None:
        return True
    usual = 443 if match[1].lower() == b"https" else 80
    named = {(host.lower(), int(port or usual)) for host, port in
             filter(None, map(split_authority, [match[2], *values(event, b"host")]))}
    return len(named) != 1
