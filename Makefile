# make demo   upscale a photograph with the shipped model (run-time dependencies only)
# make test   everything installed, all tests
# make lint   ruff, mypy --strict, clang-format
# make bench  tile, stage and pipeline benchmarks, some minutes; FULL=1 runs the whole sweep; docs/benchmarks.md has the others
# make native build yonos_trt/_native in place, for working from the checkout without installing

PYTHON ?= python3
VENV   := .venv
DEMO   := .venv-demo
EXTRAS := images,video,export,train,bench,dev,rtx
PIP    := install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := CMakeLists.txt pyproject.toml constraints.txt $(wildcard csrc/*)

.PHONY: demo test lint bench native clean

$(VENV)/.ready: $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip $(PIP) scikit-build-core nanobind cmake ninja
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/pip $(PIP) --no-build-isolation -e ".[$(EXTRAS)]"
	touch $@

$(DEMO)/.ready: $(NATIVE) $(shell find yonos_trt -type f -not -name '*.pyc' -not -name '*.so')
	$(PYTHON) -m venv $(DEMO)
	PIP_CONSTRAINT="$(CURDIR)/constraints.txt" $(DEMO)/bin/pip $(PIP) -C cmake.define.YONOS_CUDA=OFF .
	touch $@

demo: $(DEMO)/.ready
	mkdir -p demo
	$(DEMO)/bin/yonos upscale -i examples/chelsea.png -o demo/chelsea_x4.png --overwrite
	$(DEMO)/bin/python examples/compare.py examples/chelsea.png demo/chelsea_x4.png demo/chelsea_compare.png

test: $(VENV)/.ready
	YONOS_REQUIRE_NATIVE=1 $(VENV)/bin/python -m pytest

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu)

bench: $(VENV)/.ready
	mkdir -p runs
	YONOS_BENCH_FULL=$(FULL) $(VENV)/bin/python -m pytest benchmarks/bench_tiles.py benchmarks/bench_stages.py \
	    benchmarks/bench_pipeline.py -m "not gpu" --benchmark-json=runs/bench.json

# With its own build tree; NATIVE_PYTHON is the interpreter (with nanobind, cmake and ninja) the module is for.
NATIVE_PYTHON ?= $(PYTHON)
native:
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DYONOS_IN_PLACE=ON \
	    -DPython_EXECUTABLE="$$($(NATIVE_PYTHON) -c 'import sys; print(sys.executable)')"
	cmake --build build/native

clean:
	rm -rf $(VENV) $(DEMO) build demo yonos_trt/_native*.so
