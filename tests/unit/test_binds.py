"""The grammar of bind addresses. No socket, no resolver."""

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastserve.binds import DEFAULT_BIND, Bind, parse_bind


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("127.0.0.1:8000", Bind(kind="tcp", host="127.0.0.1", port=8000)),
        ("0.0.0.0:0", Bind(kind="tcp", host="0.0.0.0", port=0)),
        ("localhost:65535", Bind(kind="tcp", host="localhost", port=65535)),
        ("my-host_1.example.:80", Bind(kind="tcp", host="my-host_1.example.", port=80)),
        ("[::1]:8000", Bind(kind="tcp", host="::1", port=8000)),
        ("[0:0::0]:1", Bind(kind="tcp", host="::", port=1)),
        ("[fe80::1%eth0]:8000", Bind(kind="tcp", host="fe80::1%eth0", port=8000)),
        ("unix:/run/a.sock", Bind(kind="unix", path="/run/a.sock", mode=0o660)),
        ("unix:/run/a:b.sock?mode=600", Bind(kind="unix", path="/run/a:b.sock", mode=0o600)),
        ("unix:/a?mode=0777", Bind(kind="unix", path="/a", mode=0o777)),
        ("unix:/" + "x" * 106, Bind(kind="unix", path="/" + "x" * 106)),
        ("fd:0", Bind(kind="fd", fd=0)),
        ("fd:17", Bind(kind="fd", fd=17)),
        (DEFAULT_BIND, Bind(kind="tcp", host="127.0.0.1", port=8000)),
        ("127.0.0.1:8000?proxy", Bind(kind="tcp", host="127.0.0.1", port=8000, proxy=True)),
        ("a.example:80?proxy", Bind(kind="tcp", host="a.example", port=80, proxy=True)),
        ("[::1]:8000?proxy", Bind(kind="tcp", host="::1", port=8000, proxy=True)),
        ("fd:3?proxy", Bind(kind="fd", fd=3, proxy=True)),
        ("unix:/a?proxy", Bind(kind="unix", path="/a", proxy=True)),
        ("unix:/a?mode=600&proxy", Bind(kind="unix", path="/a", mode=0o600, proxy=True)),
        ("unix:/a?proxy&mode=600", Bind(kind="unix", path="/a", mode=0o600, proxy=True)),
    ],
)
def test_reads(text: str, bind: Bind) -> None:
    assert parse_bind(text) == bind
    assert parse_bind(str(bind)) == bind


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "port is missing"),
        ("8000", "port is missing"),
        ("localhost", "port is missing"),
        ("[::1]", "port is missing"),
        (":8000", "write 127.0.0.1:8000 for this machine only, 0.0.0.0:8000 for everyone"),
        ("localhost:", "the port must be a number"),
        ("localhost:http", "the port must be a number"),
        ("localhost:65536", "from 0 to 65535"),
        ("localhost:-1", "the port must be a number"),
        ("localhost: 80", "the port must be a number"),
        ("localhost:8_0", "the port must be a number"),
        ("localhost:\u0661", "the port must be a number"),
        ("::1:8000", "brackets"),
        ("[127.0.0.1]:80", "no IPv6 address"),
        ("[:::]:80", "no IPv6 address"),
        ("[::1%a b]:80", "brackets"),
        ("127.0.0.256:80", "neither an IPv4 address nor a name"),
        ("127.1:80", "neither an IPv4 address nor a name"),
        ("0:80", "neither an IPv4 address nor a name"),
        ("*:80", "neither an address nor a name"),
        ("-a:80", "neither an address nor a name"),
        ("a b:80", "neither an address nor a name"),
        ("http://localhost:80", "neither a URL nor a path"),
        ("/run/a.sock", "neither a URL nor a path"),
        ("unix:", "absolute"),
        ("unix:a.sock", "absolute"),
        ("unix:@a", "absolute"),
        ("unix:/run/", "directory"),
        ("unix:/a\0b", "NUL"),
        ("unix:/" + "x" * 107, "107 bytes"),
        ("unix:/" + "\u00e9" * 54, "107 bytes"),
        ("unix:/a?", "mode=NNN"),
        ("unix:/a?mode=", "mode=NNN"),
        ("unix:/a?mode=888", "mode=NNN"),
        ("unix:/a?mode=1777", "mode=NNN"),
        ("unix:/a?mode=66", "mode=NNN"),
        ("unix:/a?user=me", "mode=NNN"),
        ("unix:/a?b?mode=600", "mode=NNN"),
        ("unix:/a?mode=600&", "mode=NNN"),
        ("unix:/a?&proxy", "mode=NNN"),
        ("unix:/a?mode=600&mode=600", "mode=NNN"),
        ("unix:/a?proxy&proxy", "mode=NNN"),
        ("unix:/a?proxy=1", "mode=NNN"),
        ("unix:/a?proxy&mode=600&x", "mode=NNN"),
        ("localhost:80?", "only proxy"),
        ("localhost:80?proxy&", "only proxy"),
        ("localhost:80?proxy&proxy", "only proxy"),
        ("localhost:80?mode=600", "only proxy"),
        ("localhost:80?PROXY", "only proxy"),
        ("localhost?proxy", "port is missing"),
        ("?proxy", "port is missing"),
        ("[::1?proxy]:80", "only proxy"),
        ("fd:3?mode=600", "only proxy"),
        ("fd:?proxy", "the descriptor must be a number"),
        ("fd:", "the descriptor must be a number"),
        ("fd:-1", "the descriptor must be a number"),
        ("fd://3", "the descriptor must be a number"),
        ("fd:2147483648", "from 0 to 2147483647"),
    ],
)
def test_refuses_in_one_line_that_names_the_text(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_bind(text)
    message = str(caught.value)
    assert message.startswith(f"cannot bind to {text!r}: ")
    assert why in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        (Bind(kind="unix", path="/a", mode=0o660), "unix:/a"),
        (Bind(kind="unix", path="/a", mode=0), "unix:/a?mode=000"),
        (Bind(kind="tcp", host="::1", port=8), "[::1]:8"),
        (Bind(kind="fd", fd=3), "fd:3"),
        (Bind(kind="unix", path="/a", proxy=True), "unix:/a?proxy"),
        (Bind(kind="unix", path="/a", mode=0o600, proxy=True), "unix:/a?mode=600&proxy"),
        (Bind(kind="tcp", host="::1", port=8, proxy=True), "[::1]:8?proxy"),
        (Bind(kind="fd", fd=3, proxy=True), "fd:3?proxy"),
    ],
)
def test_prints_the_shortest_text(bind: Bind, text: str) -> None:
    assert str(bind) == text
    assert parse_bind(text) == bind


def test_is_immutable_and_hashable() -> None:
    bind = parse_bind("fd:3")
    assert len({bind, parse_bind("fd:3")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        bind.fd = 4  # type: ignore[misc]


pieces = st.sampled_from(
    ["unix:", "fd:", "/", "a", "::1", "[", "]", ":", "80", "?", "&", "proxy", "mode=600", "127.0.0.1", "%e"]
)


@example(":\r")
@given(st.text() | st.lists(pieces).map("".join))
def test_any_text_is_refused_in_one_line_or_reads_back(text: str) -> None:
    try:
        bind = parse_bind(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert parse_bind(str(bind)) == bind
