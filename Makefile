# make demo, make test: each sets up what it needs, once.
TORCH ?= torch==2.13.0
# Modules are compiled when they are first imported; most never are.
INSTALL := -m pip install --quiet --no-compile
PYTHON ?= python3
VENV := .venv
WHEEL := build/wheel
BIN := $(VENV)/bin
OUT ?= out
DEVICE ?= cpu
QUICK ?=
WORKERS ?= 2
PACKAGES ?= build/gpu-packages
PAGES ?= build/pages
GPU_PYTHON ?= 3.12
GPU_THERE ?=

.PHONY: demo train-demo test check lint types unit fast rest faults compiled docs docs-version docs-publish wheel release-check compat bench gpu gpu-packages clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/agebody demo --output $(OUT)
	$(BIN)/agebody export anny --years 4 --output $(OUT)/body.glb --overwrite
	$(BIN)/agebody view anny --output $(OUT)/body.html --overwrite

# A small network learns from synthetic people, on two cores and without a GPU: at most 25 minutes.
train-demo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_demo.py --output $(OUT)/train

# Everything. Both environments are filled at once, as pip uses one core. The unit tests show their progress; beside
# them the rest runs, each part printed when it ends.
test:
	+$(MAKE) --no-print-directory --jobs=2 $(VENV)/.installed-dev $(WHEEL)/.torch
	+$(MAKE) --no-print-directory lint
	+$(MAKE) --no-print-directory --jobs=2 unit rest

rest:
	+$(MAKE) --no-print-directory --output-sync=target types compiled docs wheel

# For daily work, at most two minutes: lint, types, and the tests that are not marked as slow.
check: lint
	+$(MAKE) --no-print-directory --jobs=2 types fast

# Clusters on this machine that lose nodes, workers and calls: about six minutes.
faults: export OMP_NUM_THREADS = 1
faults: $(VENV)/.installed-dev
	$(BIN)/pytest tests/test_faults.py -m faults

# What is compiled once serves all workers, and the many processes that tests start.
test check unit fast compiled: export PYTHONDONTWRITEBYTECODE =
# Workers beside each other would only wait for one another's threads.
unit fast compiled: export OMP_NUM_THREADS = 1

fast: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

unit: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# torch's compilers cannot see through the run-time type checker that the other tests run with.
compiled: $(VENV)/.installed-dev
	AGEBODY_TYPECHECK=0 $(BIN)/pytest tests/test_compile.py tests/test_compat_smplx.py -k "compile or export or onnx or vmap or network"

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/build_site.py

# The site as one of the versions in a folder, from which readers choose: PAGES/0.2 and so on.
docs-version: $(VENV)/.installed-dev
	$(BIN)/python docs/build_site.py $(PAGES)

# The branch gh-pages keeps all versions. If it cannot be fetched though it is there, the push is refused.
docs-publish:
	git worktree add --detach $(PAGES)
	git -C $(PAGES) fetch --depth 1 origin gh-pages && git -C $(PAGES) checkout -B gh-pages FETCH_HEAD \
		|| { git -C $(PAGES) checkout --orphan gh-pages && git -C $(PAGES) rm -rf --quiet .; }
	$(MAKE) --no-print-directory docs-version
	git -C $(PAGES) add --all
	git -C $(PAGES) commit --quiet --message "The site of $$(git describe --always --tags)"
	git -C $(PAGES) push origin gh-pages

# The built wheel, not the tree: in an environment of its own that sees only torch and what torch brings.
wheel: $(VENV)/.installed-dev $(WHEEL)/.torch
	rm -rf dist $(WHEEL)/.torch
	$(BIN)/python -m build --quiet --wheel --sdist
	$(WHEEL)/bin/python $(INSTALL) dist/*.whl
	cd $(WHEEL) && bin/python -I ../../tests/wheel_check.py

# Of use once: what an earlier wheel brought could hide what a later one lacks.
$(WHEEL)/.torch:
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python $(INSTALL) "$(TORCH)"
	touch $@

# Before a release: the tag is the version everywhere, and the package index takes what was built.
release-check: $(VENV)/.installed-dev
	AGEBODY_TYPECHECK=0 AGEBODY_TAG="$(TAG)" $(BIN)/pytest tests/test_package.py
	$(BIN)/python -m twine check --strict dist/*

# The fast tests with the oldest and the newest versions allowed, for each Python that is found: gigabytes.
compat: $(VENV)/.installed-dev
	$(BIN)/python tests/compat.py

# All subjects, and the page made of them: make bench DEVICE=cuda where there is a GPU.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run.py --device $(DEVICE)
	$(BIN)/python benchmarks/report.py

# On a machine with a GPU and torch for it, an ordered plan: the most informative steps first; a step that fails or
# takes too long does not stop the next, and results are written after each. What else it needs is found in
# PACKAGES, if it is not installed. A rehearsal without a GPU: make gpu DEVICE=cpu QUICK=--quick
gpu: export PYTHONPATH := $(PACKAGES):src:kernels
gpu: DEVICE = cuda
gpu:
	$(PYTHON) benchmarks/gpu.py --device $(DEVICE) $(QUICK)

# What that needs besides torch, for a machine without a package index: make gpu-packages GPU_PYTHON=3.12
# GPU_THERE=LIST, of `pip freeze` on that machine, leaves out what it has.
gpu-packages: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu_packages.py --output $(PACKAGES) --python $(GPU_PYTHON) $(if $(GPU_THERE),--there $(GPU_THERE))

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python $(INSTALL) -e ".[free,render]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python $(INSTALL) -e ".[free,render,dev,docs]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist site $(OUT)
