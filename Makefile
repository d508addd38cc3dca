# make demo   upscale a photograph with the shipped model (run-time dependencies only)
# make test   everything installed, all tests, in JOBS=2 processes
# make lint   ruff, mypy --strict, clang-format
# make bench  tile, stage and pipeline benchmarks, some minutes; FULL=1 runs the whole sweep; docs/benchmarks.md has the others
# make wheel  sdist and wheel into dist/, repaired, compared, tried where there is no compiler; docs/wheels.md
# make native build yonos_trt/_native in place, for working from the checkout without installing

PYTHON ?= python3
VENV   := .venv
DEMO   := .venv-demo
WEB    := .venv-web
TRITON := .venv-triton
JOBS   ?= 2
EXTRAS := images,video,heic,export,prompt,train,bench,dev,rtx,ray
PIP    := install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := CMakeLists.txt pyproject.toml constraints.txt Makefile csrc $(wildcard csrc/*)

# What pyproject.toml asks for: the project's own dependencies and those of EXTRAS, one a line.
REQUIREMENTS = import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    extras = project["optional-dependencies"]; \
    print(*project["dependencies"], *(r for e in sys.argv[1].split(",") for r in extras[e]), sep="\n")

.PHONY: demo test lint bench wheel native clean

# Other people's packages first, where one without a wheel is built in isolation. The project then needs no network and no
# second CMake: after an edit in csrc/ it only compiles (7 s; isolated, every run fetched its tools and began anew: 4 min).
$(VENV)/.dependencies: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -c '$(REQUIREMENTS)' $(EXTRAS) > $(VENV)/requirements.txt
	@echo "# some 800 MB of packages are fetched: minutes without a word"
	$(VENV)/bin/pip $(PIP) -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.ready: $(VENV)/.dependencies $(NATIVE)
	@echo "# compiles the tile kernels: a minute without a word"
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/pip $(PIP) --no-build-isolation --no-deps -e .
	$(VENV)/bin/python -c 'import yonos_trt._native' || \
	    { rm -rf build; echo "the tile kernels were not compiled: README.md, Install, says what they need" >&2; exit 1; }
	touch $@

$(DEMO)/.ready: $(NATIVE) $(shell find yonos_trt -type f -not -name '*.pyc' -not -name '*.so')
	$(PYTHON) -m venv $(DEMO)
	@echo "# installs what the run time needs and compiles the tile kernels: a minute or two without a word"
	PIP_CONSTRAINT=constraints.txt $(DEMO)/bin/pip $(PIP) .
	touch $@

# Gradio takes no Pillow from 13 on. Its environment holds what it needs besides, and sees the rest in $(VENV).
$(WEB)/.ready: $(VENV)/.ready constraints-web.txt
	$(PYTHON) -m venv $(WEB)
	$(PYTHON) -c '$(REQUIREMENTS)' web > $(WEB)/requirements.txt
	for here in $(WEB)/lib/python*/site-packages; do \
	    echo "import site; site.addsitedir('$(CURDIR)/$(VENV)/$${here#$(WEB)/}')" > $$here/project.pth; done
	$(WEB)/bin/pip install --quiet --disable-pip-version-check -c constraints-web.txt -r $(WEB)/requirements.txt
	touch $@

# Triton's client takes no protobuf from 7 on, so it has an environment of its own; the server lies in nvidia-pytriton,
# of which nothing else is used. Without them the tests of a real server are skipped, and say so.
$(TRITON)/.ready: $(VENV)/.ready constraints-triton.txt
	$(PYTHON) -m venv $(TRITON)
	$(PYTHON) -c '$(REQUIREMENTS)' triton > $(TRITON)/requirements.txt
	for here in $(TRITON)/lib/python*/site-packages; do \
	    echo "import site; site.addsitedir('$(CURDIR)/$(VENV)/$${here#$(TRITON)/}')" > $$here/project.pth; done
	{ $(TRITON)/bin/pip install --quiet --disable-pip-version-check -c constraints-triton.txt -r $(TRITON)/requirements.txt && \
	    $(TRITON)/bin/pip install --quiet --disable-pip-version-check -c constraints-triton.txt --no-deps nvidia-pytriton && \
	    touch $@; } || echo "# no Triton server: its tests are skipped" >&2

demo: $(DEMO)/.ready
	mkdir -p demo
	$(DEMO)/bin/yonos upscale -i examples/chelsea.png -o demo/chelsea_x4.png --overwrite
	$(DEMO)/bin/python examples/compare.py examples/chelsea.png demo/chelsea_x4.png demo/chelsea_compare.png

test: $(VENV)/.ready $(WEB)/.ready $(TRITON)/.ready
	YONOS_REQUIRE_NATIVE=1 YONOS_REQUIRE_WEB=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu)

bench: $(VENV)/.ready
	mkdir -p runs
	YONOS_BENCH_FULL=$(FULL) $(VENV)/bin/python -m pytest benchmarks/bench_tiles.py benchmarks/bench_stages.py \
	    benchmarks/bench_pipeline.py -m "not gpu" --benchmark-json=runs/bench.json

.venv-wheel/.ready: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip $(PIP) $$($(PYTHON) -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["wheel"])')
	touch $@

wheel: .venv-wheel/.ready
	PYTHON="$(PYTHON)" TRY="$(TRY)" bash .ci/wheel

# With its own build tree; NATIVE_PYTHON is the interpreter (with nanobind, cmake and ninja) the module is for.
NATIVE_PYTHON ?= $(PYTHON)
native:
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DYONOS_IN_PLACE=ON -DYONOS_CUDA=ON \
	    -DPython_EXECUTABLE="$$($(NATIVE_PYTHON) -c 'import sys; print(sys.executable)')"
	cmake --build build/native

clean:
	rm -rf $(VENV) $(DEMO) $(WEB) $(TRITON) .venv-wheel build dist demo yonos_trt/_native*.so
