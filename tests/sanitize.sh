#!/bin/sh
# The live core, in Python and over sockets, under a sanitizer.
#
#   sanitize.sh address [pytest arguments]   memory errors and undefined behaviour
#   sanitize.sh thread [pytest arguments]    data races
#
# The arguments are tests/live and what of tests/unit reads bytes in the core unless said otherwise.
# PYTHON chooses the interpreter (one with a GIL: the sanitizer sees its mutexes, but not the atomics
# inside a free-threaded one). The build goes into an environment of its own below build/.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
kind=${1:-}
case $kind in
    address)
        flags="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
        preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ;;
    thread)
        flags="-O1 -g -fsanitize=thread"
        preload=$(gcc -print-file-name=libtsan.so) ;;
    *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
shift
cd "$root"
place=$root/build/sanitize-$kind
[ -x "$place/bin/pytest" ] || "${PYTHON:-python3}" -m venv "$place"
FASTSERVE_CFLAGS=$flags "$place/bin/pip" install --quiet '.[test]'

[ $# -gt 0 ] || set -- tests/live tests/unit/test_args.py
if [ $kind = address ]; then
    LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        PYTHONMALLOC=malloc "$place/bin/pytest" -q "$@"
else
    rm -f "$place"/races.*
    # Some kernels lay memory out at addresses that the sanitizer does not expect.
    fixed=$(command -v setarch >/dev/null && echo "setarch -R" || true)
    # Of a forked child only the thread that forked lives: some tests start others there.
    LD_PRELOAD=$preload \
        TSAN_OPTIONS="exitcode=0 report_signal_unsafe=0 die_after_fork=0 log_path=$place/races \
            suppressions=$root/tests/sanitize.supp" \
        $fixed "$place/bin/pytest" -q "$@"
    # One file a process; of races in other libraries there is nothing to say here.
    if cat "$place"/races.* 2>/dev/null | grep '^SUMMARY.*_core'; then exit 1; fi
fi
