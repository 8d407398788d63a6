# make demo   make its own environment, install, and run the quickstart (two fine-tunes, evaluated)
# make study-demo   the whole study in small: 3 seeds x 2 losses, evaluated, compared, a page to look at
# make vision-demo   pretrain a small encoder on generated shapes, probe it, draw what happened
# make test   install what is missing, then linters, type checker and tests
# make test-ci   a core of the slow tests, and those that need more than `make test` installs: DeepSpeed, lm-eval, Chromium
# make test-slow   heavy trials: every engine against one process, kill trials, launches
# make docs   guides and API reference in build/docs/index.html; fails on a broken link or reference
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo study-demo vision-demo test test-ci test-slow browser docs lint typecheck format clean

demo: $(VENV)/.installed
	$(BIN)/mce-llm quickstart

study-demo: $(VENV)/.installed-eval
	$(BIN)/mce-llm study quickstart --output runs/study-demo

vision-demo: $(VENV)/.installed-vision
	$(BIN)/python vision/pretrain.py --config vision/configs/shapes_demo.yaml
	$(BIN)/python vision/knn.py --config vision/configs/shapes_knn.yaml
	$(BIN)/python vision/pictures.py --run runs/shapes-demo --output_dir runs/shapes-demo/pictures

test: lint typecheck
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-ci: $(VENV)/.installed-slow browser
	$(BIN)/python -m pytest -m ci -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(VENV)/.installed-slow
	$(BIN)/python -m pytest -m slow

# -E: a page that is not read again does not repeat its warnings, and a second build would pass.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -c docs . build/docs
	@echo "open build/docs/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy mce_llm recipes eval vision benchmarks

# The report is looked at in a browser, which pip has not. Where it cannot be installed its tests say so and are skipped.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name && exit; done > /dev/null; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium \
			> /dev/null || echo "Chromium could not be installed"; \
	else \
		echo "Chromium is not installed, and only root can do that, with apt-get"; \
	fi

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Reinstalled only when pyproject.toml changes: the stamps are newer than it otherwise.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-eval: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[eval]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-vision: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[vision]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	@touch $(VENV)/.installed $@

# DeepSpeed runs on the CPU too, and the slow tests shard a model with it; others run lm-evaluation-harness, and one
# builds the documentation.
$(VENV)/.installed-slow: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev,deepspeed,docs,lm-eval]"
	@touch $(VENV)/.installed $(VENV)/.installed-dev $@

clean:
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
