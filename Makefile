# The verbs of development. `make build` compiles in place; everything else works on what it built.

PYTHON ?= python3

.PHONY: build debug test model stress sanitize fuzz peers lint bench micro faults soak annotate clean

build:
	$(PYTHON) setup.py -q build_ext --inplace

debug:
	FASTSERVE_DEBUG=1 FASTSERVE_CFLAGS="-O1 -g" $(PYTHON) setup.py -q build_ext --inplace --force

test: build
	$(PYTHON) -m pytest

model:
	tests/model/run.sh deep

stress:
	tests/model/run.sh tsan 300

sanitize:
	tests/sanitize.sh address
	tests/sanitize.sh thread

fuzz:
	tests/fuzz/run.sh 600

peers: build
	FASTSERVE_PEERS=10000 $(PYTHON) -m pytest tests/peers

lint: build
	ruff check .
	mypy --strict fastserve examples
	$(PYTHON) -m mypy.stubtest fastserve --allowlist tests/stubtest.allow
	pyright
	cython-lint --max-line-length 120 fastserve tests bench/micro

# ARGS="--quick" for a short one.
bench:
	$(PYTHON) bench/rivals/environment.py
	bench/build/fastserve/bin/python bench/run.py $(ARGS)

micro:
	$(PYTHON) -m pytest bench/micro --benchmark-columns=min,median,iqr --benchmark-sort=name

faults:
	$(PYTHON) bench/faults.py

soak:
	$(PYTHON) bench/soak.py

annotate:
	mkdir -p build
	cython -3 -a -o build/annotated.c -I . fastserve/_core.pyx

clean:
	rm -rf build dist *.egg-info fastserve/*.so
