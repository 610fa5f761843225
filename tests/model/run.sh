#!/bin/sh
# The lease, examined for longer than a test run has time for.
#
#   run.sh deep             larger instances of lease.pml: about half an hour, 4 GB (MINUTES, MEMORY in MB)
#   run.sh tsan [seconds]   the stress of _probe_lease.pxi under ThreadSanitizer (default 60)
#   run.sh stress [seconds] the same without it, as fast as it goes
#
# PYTHON chooses the interpreter (it needs Cython, setuptools and a libpython to link with), CC the compiler.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
cc=${CC:-gcc}

search() {  # <how pan keeps its states> <instance>
    place=$(mktemp -d)
    cd "$place"
    cp "$here/lease.pml" .
    defines=$(for word in $2; do printf -- '-D%s ' "$word"; done)
    case " $2 " in
        *" LIVENESS "*) kind=""; flags="-a -f" ;;
        *" REST "*) kind="-DNP"; flags="-l -E" ;;
        *) kind="-DSAFETY"; flags="-E" ;;
    esac
    # shellcheck disable=SC2086
    spin -a $defines lease.pml >/dev/null
    # shellcheck disable=SC2086
    gcc -O2 -w $1 $kind -DMEMLIM="${MEMORY:-6000}" -o pan pan.c
    echo "== $2"
    # shellcheck disable=SC2086
    ./pan $flags -m2000000 ${PAN_FLAGS:-} >said 2>&1 || true
    grep -E 'assertion violated|errors:|states, stored|elapsed time|hash factor|MEMLIM|too small' said
    if ! grep -q 'errors: 0' said || grep -qE 'MEMLIM|too small' said; then
        echo "not clean: $place" >&2
        exit 1
    fi
    cd / && rm -r "$place"
}

deep() {
    search -DCOLLAPSE "FIRST=1"
    search -DCOLLAPSE "FIRST=1 LIVENESS"
    search -DCOLLAPSE "FIRST=3 CONNS=1 INDEPENDENT"
    search -DCOLLAPSE "FIRST=1 CONNS=1 CLOSING TAILS"
    search -DCOLLAPSE "FIRST=2"
    search -DCOLLAPSE "FIRST=1 TAILS"
    search -DCOLLAPSE "FIRST=2 CONNS=1 CLOSING"
    search -DCOLLAPSE "FIRST=1 LIVENESS TAILS"
    search -DCOLLAPSE "FIRST=2 CONNS=1 WORKERS=3 INDEPENDENT EAGER SHARP"
    search -DCOLLAPSE "FIRST=1 LEASES=2 NO_GIL SHARP NEVER_FIRST SKEWED EAGER"
    search -DCOLLAPSE "FIRST=1 LEASES=2 WORKERS=1 NO_GIL INDEPENDENT SHARP SPARES REST"
    # These do not come to an end soon: so many minutes each, not every state kept (bit-state hashing).
    PAN_FLAGS="-w33 -k3 -Q${MINUTES:-5}"
    search -DBITSTATE "FIRST=1 LEASES=2 NO_GIL SHARP INDEPENDENT"
    search -DBITSTATE "FIRST=1 LEASES=2 CONNS=3 NO_GIL SHARP NEVER_FIRST EAGER"
    search -DBITSTATE "FIRST=1 LEASES=2 NO_GIL SKEWED CLOSING SHARP"
    search -DBITSTATE "FIRST=1 LEASES=2 NO_GIL SHARP INDEPENDENT NEVER_FIRST EAGER SPARES"
    search -DBITSTATE "FIRST=1 CLOSING"
    search -DBITSTATE "FIRST=1 WORKERS=3"
    search -DBITSTATE "FIRST=1 WORKERS=3 LEASES=2 NO_GIL SHARP NEVER_FIRST"
}

executable() {  # <sanitizer flags>: build/tsan/probe
    cd "$root"
    mkdir -p "$out"
    "$python" - "$out" <<'PY'
import importlib.util
import shutil
import sys
from Cython.Build import cythonize

spec = importlib.util.spec_from_file_location("fastserve_setup", "setup.py")
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
made, = cythonize([recipe.extension("_probe", "tests/_probe.pyx")], compiler_directives=recipe.DIRECTIVES,
                  include_path=["."], build_dir=sys.argv[1], force=True, quiet=True)
shutil.copy(made.sources[0], f"{sys.argv[1]}/probe.c")
PY
    say() { "$python" -c "import sysconfig; print(sysconfig.get_config_var('$1'))"; }
    lib=$(say LIBDIR)
    include=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
    # shellcheck disable=SC2086
    "$cc" -std=gnu11 -g $1 -Wno-unused-function -I"$include" -Ifastserve/engine -I. \
        -o "$out/probe" "$out/probe.c" "$here/tsan_main.c" \
        -L"$lib" -Wl,-rpath,"$lib" -lpython"$(say LDVERSION)" -pthread -lm -ldl -lutil
}

stress() {  # <seconds> <requests a round>
    PYTHONHOME=$("$python" -c "import sys; print(sys.base_prefix)")
    export PYTHONHOME
    # Some kernels lay memory out at addresses that a sanitizer does not expect.
    fixed=$(command -v setarch >/dev/null && echo "setarch -R" || true)
    TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1 second_deadlock_stack=1} $fixed "$out/probe" "
import _probe, time, sys
until = time.monotonic() + $1
total, rounds = {}, 0
ways = [dict(), dict(workers=3, conns=6, chaos=400), dict(gil=False, reactors=2, workers=7), dict(chaos=0, first=0),
        dict(gil=False, reactors=4, workers=9, chaos=300), dict(workers=2, conns=4, chaos=1000, first=300),
        dict(close_early=True, workers=8, conns=64), dict(workers=3, reactors=3, hang=2, skew=2, conns=12),
        dict(gil=False, workers=4, reactors=4, hang=3, skew=3, conns=12, chaos=0)]
seed = int(time.time())
while time.monotonic() < until:
    for way in ways:
        seed += 1
        got = _probe.lease_stress($2, seed=seed, **way)
        if got['wrong'] or got['stalled']:
            print(way, got)
            sys.stdout.flush()
            import os; os._exit(1)
        for name, n in got.items():
            if name not in ('wrong', 'stalled', 'seed'):
                total[name] = total.get(name, 0) + n
        rounds += 1
    for asleep in (False, True):
        n = $2 * (5 if asleep else 20)
        got = _probe.lease_duel(n, asleep=asleep, seed=seed)
        if not got['ended'] or not asleep and not got['own'] + got['seized'] == n == got['holds'] - got['seized']:
            print('duel', asleep, n, got)
            sys.stdout.flush()
            import os; os._exit(1)
        for name, k in got.items():
            total['duel ' + name] = total.get('duel ' + name, 0) + k
print(rounds, 'rounds, last seed', seed, total)
"
}

case ${1:-} in
    deep) deep ;;
    tsan) out=$root/build/tsan; executable "-O1 -fsanitize=thread"; stress "${2:-60}" 2000 ;;
    stress) out=$root/build/stress; executable "-O2"; stress "${2:-60}" 10000 ;;
    *) sed -n '2,9p' "$0" >&2; exit 2 ;;
esac
