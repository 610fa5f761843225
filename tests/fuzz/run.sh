#!/bin/sh
# The engine under libFuzzer, with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   run.sh SECONDS [TARGET]     head, body, message or proxy; without one, half of the time is for heads
#
# Knows: how to build one executable a target and how libFuzzer reports. Never sees: what a target claims
# (tests/_probe_fuzz.pxi).
# Invariant: 0: nothing was found. 1: an input breaks a claim; it lies in build/fuzz/, and the line that replays
# it is printed. 77: no clang with libFuzzer here, or no libpython to link with. 2: anything else.
#
# PYTHON chooses the interpreter (it needs Cython, setuptools and a libpython), CLANG the compiler, CFLAGS adds
# to its flags (-DFASTSERVE_NO_SIMD). The corpora under build/fuzz/corpus grow from run to run.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$root/build/fuzz
python=${PYTHON:-python3}
clang=${CLANG:-clang}
flags="-std=gnu11 -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all ${CFLAGS:-}"

usage() {
    sed -n '4p' "$0" >&2
    exit 2
}

skip() {
    echo "SKIPPED: $*"
    exit 77
}

fail() {
    echo "$*" >&2
    exit 2
}

say() {
    "$python" -c "import sysconfig; print(sysconfig.get_config_var('$1') or '')"
}

tools() {
    command -v "$clang" >/dev/null || skip "no clang (\$CLANG: $clang)"
    echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d == 0 && n; }' \
        | "$clang" -fsanitize=fuzzer,address,undefined -x c -o "$out/try" - 2>/dev/null \
        || skip "$clang has no libFuzzer (on Debian it is in libclang-rt-dev of the same version)"
    echo 'int main(void) { return 0; }' \
        | "$clang" -x c -o "$out/try" - -L"$lib" -lpython"$version" 2>/dev/null \
        || skip "no libpython$version to link with"
}

build() {   # nothing, if neither a source nor a tool nor a flag changed
    mark=$({
        cat "$here"/main.c "$here"/engine.allow "$here"/*.py "$here"/run.sh "$root"/setup.py "$root"/tests/_probe*.p* \
            "$root"/fastserve/engine/*
        "$python" -c "import sys, Cython; print(sys.version, sys.base_prefix, Cython.__version__)"
        "$clang" --version 2>&1 || true
        echo "$flags"
    } | cksum)
    [ "$(cat "$out/mark" 2>/dev/null)" != "$mark" ] || return 0
    tools
    "$python" "$here/probe_c.py" "$out" || fail "the probe could not be made into C"
    include=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
    # shellcheck disable=SC2086
    "$clang" $flags -fsanitize=fuzzer-no-link -fsanitize-coverage-allowlist="$here/engine.allow" \
        -Wno-unused-function -I"$include" -I"$root/fastserve/engine" -c -o "$out/probe.o" "$out/probe.c" \
        || fail "the probe does not compile"
    for target in head body message proxy; do
        # shellcheck disable=SC2086
        "$clang" $flags -fsanitize=fuzzer -fsanitize-coverage-allowlist="$here/engine.allow" \
            -DTARGET="fuzz_$target" -I"$include" -o "$out/$target.new" "$here/main.c" "$out/probe.o" \
            -L"$lib" -Wl,-rpath,"$lib" -lpython"$version" -pthread -lm -ldl \
            || fail "$target does not link"
        mv "$out/$target.new" "$out/$target"
    done
    echo "$mark" >"$out/mark"
}

# Some kernels lay memory out at addresses that a sanitizer does not expect.
fuzzer() {  # <target> <arguments of libFuzzer ...>
    fixed=$(setarch -R true 2>/dev/null && echo "setarch -R" || true)
    target=$1
    shift
    ASAN_OPTIONS=detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS} $fixed "$out/$target" "$@"
}

round() {   # <target> <seconds> <max_len> <len_control>: one line of what was done; 1: a finding
    log=$out/$1.log
    status=0
    fuzzer "$1" -max_total_time="$2" -max_len="$3" -len_control="$4" -dict="$here/http.dict" \
        -artifact_prefix="$out/$1-" -rss_limit_mb=2048 -timeout=2 -print_final_stats=1 "$out/corpus/$1" >"$log" 2>&1 || status=$?
    last=$(grep -E '^#[0-9]+.*cov: ' "$log" | tail -n 1)
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    findings=$(grep -c 'Test unit written to' "$log" || true)
    input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    case $input in
        "$out/$1-timeout-"*)    # by the clock: was it the input, or was the machine busy?
            if fuzzer "$1" -timeout=30 "$input" >>"$log" 2>&1; then
                echo "$1: a busy machine ended this early, not a slow input" >&2
                rm "$input"
                status=0 findings=0
            fi ;;
    esac
    printf '%-8s %4s s  max_len %-6s %10s executions  %6s /s  cov %s  ft %s  corpus %s  findings %s\n' \
        "$1" "$2" "$3" "${executed:-?}" "${rate:-?}" \
        "$(echo "$last" | sed -n 's/.*cov: \([0-9]*\).*/\1/p')" \
        "$(echo "$last" | sed -n 's/.*ft: \([0-9]*\).*/\1/p')" \
        "$(echo "$last" | sed -n 's/.*corp: \([0-9]*\).*/\1/p')" "$findings"
    [ "$status" != 0 ] || return 0
    grep -E '^BROKEN: |^SUMMARY: |^ALARM: |runtime error: ' "$log" >&2 || tail -n 20 "$log" >&2
    [ "$findings" != 0 ] || fail "the fuzzer failed by itself: $log"
    echo "replay: PYTHONHOME=$PYTHONHOME ASAN_OPTIONS=detect_leaks=0 $out/$1 $input" >&2
    return 1
}

run() {     # <target> <seconds>: short inputs most of the time, long ones at the end of a long run
    long=0
    [ "$2" -lt 20 ] || long=$(($2 / 5))
    short=$(($2 - long))
    round "$1" $((short > 0 ? short : 1)) 4096 100 || return 1
    [ "$long" = 0 ] || round "$1" "$long" 24576 0
}

[ $# -ge 1 ] && [ $# -le 2 ] || usage
case $1 in *[!0-9]* | '') usage ;; esac
case ${2:-} in head | body | message | proxy | '') ;; *) usage ;; esac

mkdir -p "$out"
version=$(say LDVERSION)
lib=$(say LIBDIR)
PYTHONHOME=$("$python" -c "import sys; print(sys.base_prefix)")
exec 9>"$out/lock"
flock 9
(unset PYTHONHOME; build)
"$python" "$here/seeds.py" "$out/corpus" || fail "there are no seeds"
exec 9>&-
export PYTHONHOME

found=0
for target in ${2:-head body message proxy}; do
    seconds=$1
    [ -n "${2:-}" ] || { [ "$target" = head ] && seconds=$(($1 / 2)) || seconds=$(($1 / 6)); }
    run "$target" "$seconds" || found=1
done
exit "$found"
