"""The list of limits: values, bounds, text forms and everything that derives from it."""

import dataclasses
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastserve import config
from fastserve.config import DESCRIPTORS_KEPT, SPECS, Config, env_values, markdown_table, option, variable

NUMBERS = [name for name, spec in SPECS.items() if spec.kind in ("count", "size", "duration")]
WHOLE = [name for name in NUMBERS if SPECS[name].kind != "duration"]
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend an RLIMIT_NOFILE."""

    def pretend(soft: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, resource.RLIM_INFINITY))

    return pretend


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """Pretend a number of usable cores, with or without the GIL."""

    def pretend(count: int, gil: bool) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count if pid == 0 else 0)))
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: gil, raising=False)

    return pretend


# --- values ---


def test_defaults() -> None:
    assert dataclasses.asdict(Config()) == {
        "workers": 64,
        "max_workers": None,
        "max_idle_worker_duration": 10,
        "reactors": None,
        "on_worker_start": None,
        "on_headers": None,
        "error_handler": None,
        "backlog": 4096,
        "reuse_port": False,
        "trusted_proxies": "",
        "forwarded_field": "X-Forwarded-For",
        "concurrency": None,
        "reject_slots": None,
        "max_conns_per_ip": 0,
        "max_memory": 1073741824,
        "max_queue": 1024,
        "queue_timeout": 5,
        "header_timeout": 10,
        "body_timeout": 60,
        "min_body_rate": 240,
        "min_write_rate": 240,
        "handler_timeout": 0,
        "write_timeout": 30,
        "idle_timeout": 75,
        "shutdown_timeout": 30,
        "read_buffer_size": 16384,
        "max_target_size": 8192,
        "max_header_fields": 100,
        "max_request_body_size": 4194304,
        "max_requests_per_conn": 0,
        "refused_methods": "CONNECT, TRACE",
        "stream_request_body": False,
        "name": "fastserve",
        "default_date": True,
        "default_content_type": True,
        "io_uring": True,
        "health_path": "",
        "metrics_path": "",
        "access_log": "",
        "access_log_format": "combined",
        "log_all_errors": False,
    }


def test_is_immutable_and_takes_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().workers = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Config(3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Config(worker=3)  # type: ignore[call-arg]


def test_a_duration_given_as_int_is_kept_as_float() -> None:
    assert isinstance(Config(queue_timeout=3).queue_timeout, float)


def alone(name: str, value: object) -> Any:
    """The value of one field after construction, with such others as make it possible."""
    others: dict[str, Any] = {"workers": 2} if name == "max_workers" else {}
    others |= {"workers": 4096} if name == "reactors" else {}
    return getattr(Config(**(others | {name: value})), name)


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_are_allowed_and_what_lies_beyond_is_not(name: str) -> None:
    spec = SPECS[name]
    assert alone(name, spec.low) == spec.low
    assert alone(name, spec.high) == spec.high
    for value in (spec.low - (0.0001 if spec.kind == "duration" else 1), spec.high + 1):
        with pytest.raises(ValueError) as caught:
            alone(name, value)
        assert str(caught.value) == f"{name} must be {spec.low} to {spec.high} {spec.unit}, not {value}"


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", ["64", 64.0, True, b"64"])
def test_a_whole_number_must_be_an_int(name: str, value: object) -> None:
    with pytest.raises(TypeError) as caught:
        alone(name, value)
    assert str(caught.value) == f"{name} must be a whole number of {SPECS[name].unit}, not {value!r}"


@pytest.mark.parametrize("value", ["5s", True, None])
def test_a_duration_must_be_a_number(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Config(queue_timeout=value)
    assert str(caught.value) == f"queue_timeout must be a number of seconds, not {value!r}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_duration_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match=r"^idle_timeout must be 0\.001 to 86400 seconds, not -?(nan|inf)$"):
        Config(idle_timeout=value)


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - {"max_workers", "reactors", "concurrency", "reject_slots"}))
def test_none_is_refused_where_nothing_is_chosen_at_start(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be .*, not None$"):
        alone(name, None)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_a_flag_must_be_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^reuse_port must be True or False, not "):
        Config(reuse_port=value)


@pytest.mark.parametrize("value", ["", "x", "my server/1.0 (test)", "x" * 200])
def test_a_name_is_kept(value: str) -> None:
    assert Config(name=value).name == value


@pytest.mark.parametrize("value", ["a\r\nb", "a\tb", "\x7f", "caf\u00e9", " a", "a ", "x" * 201])
def test_a_name_that_could_break_a_reply_is_refused(value: str) -> None:
    with pytest.raises(ValueError) as caught:
        Config(name=value)
    assert str(caught.value).startswith("name must be 0 to 200 printable ASCII characters")
    assert len(str(caught.value).splitlines()) == 1


def test_a_name_must_be_a_str() -> None:
    with pytest.raises(TypeError, match=r"^name must be a str, not b'x'$"):
        Config(name=b"x")  # type: ignore[arg-type]


def test_a_hook_must_be_callable() -> None:
    assert Config(on_worker_start=print).on_worker_start is print
    with pytest.raises(TypeError, match=r"^on_worker_start must be callable, not 3$"):
        Config(on_worker_start=3)  # type: ignore[arg-type]


def test_more_workers_than_reactors() -> None:
    assert Config(workers=3, reactors=2).reactors == 2
    with pytest.raises(ValueError, match=r"^workers must be at least reactors \+ 1 = 4, not 3$"):
        Config(workers=3, reactors=3)


def test_no_fewer_max_workers_than_workers() -> None:
    assert Config(workers=3, max_workers=3).max_workers == 3
    with pytest.raises(ValueError, match=r"^max_workers must be at least workers = 64, not 63$"):
        Config(max_workers=63)


def test_refused_methods_are_tokens_between_commas() -> None:
    assert Config(refused_methods="").refused_methods == ""
    assert Config(refused_methods="PUT,M-SEARCH , X").refused_methods == "PUT,M-SEARCH , X"
    for wrong in ("GET POST", ",", "GET,,PUT", "G/T", "X" * 33):
        with pytest.raises(ValueError, match=r"^refused_methods must be methods separated by commas, not "):
            Config(refused_methods=wrong)


# --- what is chosen at start ---


def test_resolved_leaves_no_none_but_the_hooks(cores: Callable[[int, bool], None]) -> None:
    cores(8, True)
    settled = Config(workers=7).resolved()
    assert [n for n in SPECS if getattr(settled, n) is None] == ["on_worker_start", "on_headers", "error_handler"]
    assert (settled.max_workers, settled.reactors) == (7, 1)


def test_resolved_keeps_what_was_given(cores: Callable[[int, bool], None]) -> None:
    cores(8, False)
    given = Config(workers=7, max_workers=9, reactors=2, concurrency=5, reject_slots=7, on_worker_start=print, name="x")
    assert given.resolved() == given


@pytest.mark.parametrize(("count", "workers", "reactors"), [(1, 64, 1), (8, 64, 8), (128, 64, 63), (8, 2, 1)])
def test_reactors_without_gil_follow_the_cores_and_leave_a_worker(
    cores: Callable[[int, bool], None], count: int, workers: int, reactors: int
) -> None:
    cores(count, False)
    assert Config(workers=workers).resolved().reactors == reactors


@pytest.mark.parametrize(("concurrency", "slots"), [(1, 1), (3, 1), (100, 25), (65536, 1024)])
def test_a_quarter_of_the_connections_is_told(concurrency: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert Config(concurrency=concurrency).resolved().reject_slots == slots


@pytest.mark.parametrize("path", ["health", "/a b", "/a?b", "/a#b", "/\u00e9", "/a\x7f", "*", "http://x/"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"^health_path must be "):
        Config(health_path=path)


def test_proxies_and_their_field() -> None:
    assert Config(trusted_proxies="10.0.0.0/8, unix").trusted_proxies == "10.0.0.0/8, unix"
    with pytest.raises(ValueError, match=r"^trusted_proxies must be addresses, .*; '10\.0\.0\.1/8' is none$"):
        Config(trusted_proxies="10.0.0.1/8")
    with pytest.raises(ValueError, match=r"^forwarded_field must be X-Forwarded-For or Forwarded, not 'Via'$"):
        Config(forwarded_field="Via")


def test_there_are_two_formats_of_the_access_log() -> None:
    assert Config(access_log_format="json").access_log_format == "json"
    with pytest.raises(ValueError, match=r"^access_log_format must be combined or json, not 'common'$"):
        Config(access_log_format="common")


def test_two_answers_need_two_paths() -> None:
    assert Config(health_path="/h", metrics_path="/m").metrics_path == "/m"
    with pytest.raises(ValueError, match=r"^metrics_path must be another than health_path, not '/h'$"):
        Config(health_path="/h", metrics_path="/h")


def test_before_python_3_13_there_is_a_gil(
    cores: Callable[[int, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(8, False)
    monkeypatch.delattr(sys, "_is_gil_enabled")
    assert Config().resolved().reactors == 1


@pytest.mark.parametrize(
    ("soft", "concurrency"),
    [
        (1024, 589),
        (200, 63),
        (66_848, 65_536),
        (66_847, 65_535),
        (1_000_000, 65_536),
        (64, 1),
        (resource.RLIM_INFINITY, 65_536),
    ],
)
def test_concurrency_follows_the_descriptors(
    descriptors: Callable[[int], None], soft: int, concurrency: int
) -> None:
    descriptors(soft)
    assert Config().resolved().concurrency == concurrency


@pytest.mark.parametrize("soft", [200, 400, 1024, 4096, 10_000])
@pytest.mark.parametrize("given", [{}, {"reject_slots": 50}, {"concurrency": 60}, {"concurrency": 100}])
def test_there_are_descriptors_for_all_that_are_held(
    descriptors: Callable[[int], None], soft: int, given: dict[str, int]
) -> None:
    descriptors(soft)
    settled = Config(**given).resolved()
    assert settled.concurrency is not None and settled.reject_slots is not None
    assert settled.concurrency + settled.reject_slots + DESCRIPTORS_KEPT <= soft


def test_reject_slots_that_leave_no_connection_are_refused_at_start(descriptors: Callable[[int], None]) -> None:
    descriptors(1024)
    assert Config(reject_slots=735).resolved().concurrency == 1
    words = r"^reject_slots must be below 736, which RLIMIT_NOFILE = 1024 leaves, not 736$"
    with pytest.raises(ValueError, match=words):
        Config(reject_slots=736).resolved()


@pytest.mark.parametrize(("workers", "concurrency"), [(2, 738), (64, 589), (512, 557)])
def test_what_workers_open_is_kept_for_them(
    descriptors: Callable[[int], None], workers: int, concurrency: int
) -> None:
    """Up to a quarter of what there is."""
    descriptors(1024)
    assert Config(workers=workers).resolved().concurrency == concurrency
    assert Config(workers=2, max_workers=workers).resolved().concurrency == concurrency


def test_concurrency_beyond_the_descriptors_is_refused_at_start(descriptors: Callable[[int], None]) -> None:
    descriptors(1024)
    settled = Config(concurrency=1023).resolved()
    assert (settled.concurrency, settled.reject_slots) == (1023, 1)
    with pytest.raises(ValueError, match=r"^concurrency must be below RLIMIT_NOFILE = 1024, not 1024$"):
        Config(concurrency=1024).resolved()


# --- text ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("1ms", 0.001),
        ("30s", 30),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h", 3600),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert SPECS["idle_timeout"].parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5 s",
        "5S",
        "-5",
        "+5",
        ".5",
        "5.",
        "1e3",
        "5d",
        "nan",
        "inf",
        "1_0",
        "\u0665",
        "5s\n",
        "5KiB",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        SPECS["idle_timeout"].parse(text)
    assert str(caught.value) == f"must be a duration such as 30, 500ms, 30s, 5m or 1h, not {text!r}"


@pytest.mark.parametrize(
    ("text", "size"), [("16384", 16384), ("5B", 5), ("16KiB", 16384), ("4MiB", 4194304), ("1GiB", 2**30)]
)
def test_sizes(text: str, size: int) -> None:
    assert SPECS["max_request_body_size"].parse(text) == size


@pytest.mark.parametrize(
    "text", ["", "KiB", "16 KiB", "16K", "16KB", "16kib", "-1", "1.5MiB", "1_0", "5s", "\u0665"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        SPECS["max_request_body_size"].parse(text)
    assert str(caught.value) == f"must be a size such as 16384, 16KiB, 4MiB or 1GiB, not {text!r}"


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "+1", "1.0", "1_0", " 64", "64\n", "1KiB", "\u0665", "9" * 5000]
)
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        SPECS["workers"].parse(text)
    assert str(caught.value) == f"must be a whole number of threads, not {text!r}"


@pytest.mark.parametrize("text", ["1", "true", "yes", "on", "TRUE", "On"])
def test_switched_on(text: str) -> None:
    assert SPECS["reuse_port"].parse(text) is True


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "FALSE"])
def test_switched_off(text: str) -> None:
    assert SPECS["reuse_port"].parse(text) is False


@pytest.mark.parametrize("text", ["", "2", "y", "enable"])
def test_what_is_no_switch(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be 1, true, yes, on or 0, false, no, off, not "):
        SPECS["reuse_port"].parse(text)


def test_bounds_hold_for_text_and_the_message_repeats_it() -> None:
    with pytest.raises(ValueError, match=r"^must be 1024 to 1048576 bytes, not '2GiB'$"):
        SPECS["read_buffer_size"].parse("2GiB")
    with pytest.raises(ValueError, match=r"^must be 0\.001 to 86400 seconds, not '25h'$"):
        SPECS["idle_timeout"].parse("25h")
    with pytest.raises(ValueError, match=r"^must be 2 to 4096 threads, not '1'$"):
        SPECS["workers"].parse("1")


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.kind not in ("hook", "text")])
def test_what_is_shown_can_be_typed(name: str) -> None:
    spec = SPECS[name]
    for value in {spec.default, *([] if spec.kind == "flag" else [spec.low, spec.high])} - {None}:
        assert spec.parse(spec.show(value)) == value


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("workers", 4096, "4096"),
        ("queue_timeout", 5.0, "5s"),
        ("queue_timeout", 0.25, "250ms"),
        ("queue_timeout", 7200.0, "2h"),
        ("shutdown_timeout", 0.0, "0s"),
        ("read_buffer_size", 16384, "16KiB"),
        ("read_buffer_size", 16385, "16385B"),
        ("max_request_body_size", 0, "0B"),
        ("reuse_port", True, "on"),
        ("reuse_port", False, "off"),
        ("name", "fastserve", "fastserve"),
        ("max_workers", None, "as `workers`"),
    ],
)
def test_shown(name: str, value: object, text: str) -> None:
    assert SPECS[name].show(value) == text


# --- the environment ---


def test_names_derive_from_the_field() -> None:
    assert option("max_queue") == "--max-queue"
    assert variable("max_queue") == "FASTSERVE_MAX_QUEUE"


def test_from_env_reads_every_field_but_the_hook() -> None:
    for name, spec in SPECS.items():
        if spec.kind == "hook":
            continue
        texts = {"health_path": "/x", "metrics_path": "/x", "access_log_format": "json", "trusted_proxies": "unix",
                 "forwarded_field": "Forwarded"}
        value = {"flag": True, "text": texts.get(name, "x")}.get(spec.kind, spec.high)
        text = spec.show(value)
        others = {variable("workers"): "4096"} if name in ("reactors", "max_workers") else {}
        assert getattr(Config.from_env(others | {variable(name): text}), name) == value, name
    assert Config.from_env({"FASTSERVE_ON_WORKER_START": "print"}) == Config()


def test_an_empty_variable_is_not_set_except_the_name() -> None:
    assert env_values({"FASTSERVE_WORKERS": "", "FASTSERVE_REUSE_PORT": ""}) == {}
    assert Config.from_env({"FASTSERVE_NAME": ""}).name == ""


def test_other_variables_are_ignored() -> None:
    environ = {"FASTSERVE_PORT": "tcp://10.0.0.1:80", "FASTSERVE_SERVICE_HOST": "10.0.0.1", "WORKERS": "3"}
    assert env_values(environ) == {}


def test_no_field_has_a_name_that_kubernetes_sets_for_a_service() -> None:
    assert not [name for name in SPECS if re.match(r"(port|service)(_|$)", name)]


def test_overrides_win_over_the_environment_before_the_whole_is_checked() -> None:
    environ = {"FASTSERVE_WORKERS": "3", "FASTSERVE_MAX_QUEUE": "9"}
    settled = Config.from_env(environ, workers=80, reactors=70)
    assert (settled.workers, settled.reactors, settled.max_queue) == (80, 70, 9)


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ValueError, match=r"^FASTSERVE_WORKERS must be 2 to 4096 threads, not '1'$"):
        Config.from_env({"FASTSERVE_WORKERS": "1"})
    with pytest.raises(ValueError, match=r"^FASTSERVE_NAME must be 0 to 200 printable"):
        Config.from_env({"FASTSERVE_NAME": "a\nb"})


# --- the table ---


def test_every_field_is_described_in_one_sentence() -> None:
    for name, spec in SPECS.items():
        for text in (spec.meaning, spec.client):
            assert text and "\n" not in text and "|" not in text and not text.endswith("."), name
        if spec.default is None:
            assert spec.none, name


def test_the_table_has_a_row_for_every_field() -> None:
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + len(dataclasses.fields(Config))
    assert all(re.fullmatch(r"\|( [^|]* \|){6}", line) for line in lines)
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    assert "| `queue_timeout` | seconds | 5s | 1ms to 24h |" in markdown_table()
    assert "| `reuse_port` |  | off |  |" in markdown_table()


def test_the_module_prints_the_table() -> None:
    run = subprocess.run([sys.executable, config.__file__], capture_output=True, text=True, check=True)
    assert run.stdout == markdown_table() + "\n"


def test_the_readme_contains_the_table() -> None:
    text = README.read_text() if README.exists() else ""
    found = re.search(r"<!-- config -->\n(.*?)\n<!-- /config -->", text, re.DOTALL)
    if not found:
        pytest.skip("README.md has no <!-- config --> markers yet")
    assert found[1].strip() == markdown_table()
