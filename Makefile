# posttrain: `make help` lists what there is.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/posttrain
# Options for any recipe target: make dpo ARGS="trainer.args.beta=0.05"
ARGS   ?=
SIZE   ?= smollm2
KILLS  ?= 50
# Keeps BLAS from starting more threads than there are cores when tests run in parallel.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

MINUTES ?= 3
# What says first what a new release has changed: what PPO takes for granted, the options' names, types and ranges, a
# run of each trainer.
LATEST := tests/ppo/test_ppo_contract.py tests/config/test_options.py tests/config/test_ranges.py \
          tests/training/test_golden.py tests/training/test_continue.py

.DEFAULT_GOAL := help
.PHONY: help install demo doctor test test-slow test-gpu test-latest fuzz check format sft reward dpo grpo rloo kto ppo rlhf sft-dpo online-dpo \
        rest rft sweep report overhead frontier faults gpu gpu-tables clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## the virtual environment, once
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## DPO on the embedded model and data, with a before/after table (5 to 7 minutes on 2 CPU cores)
	$(RUN) +recipe=dpo_smollm2 $(ARGS)

doctor: install  ## what is wrong with a recipe's data: make doctor ARGS="+recipe=dpo_llama data.path=pairs.jsonl"
	$(RUN) doctor $(if $(ARGS),$(ARGS),+recipe=dpo_smollm2)

test: install  ## the test suite (9 minutes on 2 CPU cores with AVX2)
	$(TEST_ENV) $(VENV)/bin/python -m pytest -q -n auto --dist worksteal $(ARGS)

test-slow: install  ## tests on the real embedded model
	$(VENV)/bin/python -m pytest -q -m slow $(ARGS)

test-gpu: install  ## tests that need a CUDA GPU
	$(VENV)/bin/python -m pytest -q -m gpu $(ARGS)

faults: install  ## a campaign of kills at random moments, every trainer: make faults KILLS=50
	$(TEST_ENV) $(VENV)/bin/python -m tests.faults.campaign --kills $(KILLS) $(ARGS)

test-latest:  ## a short suite on the newest releases that pyproject.toml allows (own environment; .ci/latest)
	test -d $(VENV)-latest || $(PYTHON) -m venv $(VENV)-latest
	grep '^torch==' constraints.txt > $(VENV)-latest/torch.txt
	$(VENV)-latest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
	  -c $(VENV)-latest/torch.txt -e '.[annotate,graders,frontier,reasoning-gym]' 'pytest>=9' 'pytest-timeout>=2.4'
	$(VENV)-latest/bin/python -m posttrain --version
	$(TEST_ENV) $(VENV)-latest/bin/python -m pytest -q $(LATEST) $(ARGS)

fuzz: install  ## generated bad configs and files for MINUTES=3: no traceback, nothing accepted that a library refuses
	$(TEST_ENV) $(VENV)/bin/python -m tests.fuzz --minutes $(MINUTES) $(ARGS)

check: install  ## ruff, mypy, and which room imports which
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

format: install  ## ruff format and fixes
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

sft reward dpo grpo rloo kto ppo rlhf rest rft: install
	$(RUN) +recipe=$@_$(SIZE) $(ARGS)
sft-dpo online-dpo: install
	$(RUN) +recipe=$(subst -,_,$@)_$(SIZE) $(ARGS)
sft:     ## supervised fine-tuning             (SIZE=llama for Llama 3.1 8B on a 24 GB GPU)
reward:  ## a reward model from preference pairs
dpo:     ## direct preference optimization
grpo:    ## group relative policy optimization
rloo:    ## REINFORCE leave-one-out
kto:     ## Kahneman-Tversky optimization
ppo:     ## proximal policy optimization
rlhf:       ## SFT, sampled and labelled pairs, reward model, PPO: one pipeline
sft-dpo:    ## SFT, then DPO from it
online-dpo: ## DPO, then rounds on pairs sampled from the policy
rest:       ## reinforced self-training (ReST)
rft:        ## rejection-sampling fine-tuning

sweep: install  ## DPO's beta on a grid, by Hydra multirun
	$(RUN) -m +recipe=dpo_$(SIZE) trainer.args.beta=0.05,0.1,0.3 $(ARGS)

report: install  ## compare the runs in outputs/: a table, pictures, report/index.html (ARGS="--kl-budget 5")
	$(RUN) report outputs $(ARGS)

overhead: install  ## time and memory against a plain TRL script
	$(VENV)/bin/python benchmarks/overhead.py

frontier: install  ## reward against KL for every method, several seeds (SIZE=tiny, small, overoptimization, medium or full; docs/studies/frontier.md)
	$(VENV)/bin/python benchmarks/frontier.py --size $(patsubst smollm2,small,$(SIZE)) $(ARGS)

gpu: install  ## what only a GPU can show, for 8 minutes; the same command goes on (docs/performance.md)
	$(VENV)/bin/python benchmarks/gpu.py $(ARGS)

gpu-tables: install  ## the tables of docs/performance.md and docs/memory.md from what `make gpu` measured
	$(VENV)/bin/python benchmarks/gpu_tables.py

clean:  ## remove the virtual environment (runs in outputs/ stay)
	rm -rf $(VENV)
