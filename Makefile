# `.venv` is made once, and anew when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-openai bench lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/igpt demo --out runs/demo

# A process a core, a file of tests in one of them.
test: .venv/installed
	$(BIN)/python -m pytest -rs --numprocesses auto --maxprocesses 8 --dist loadfile

# TensorFlow, which reads OpenAI's checkpoints, stays out of the environment of everything else: it
# has one that sees all of `.venv`.
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.venv-openai/installed: .venv/installed
	$(BIN)/python -m venv --clear .venv-openai
	$(BIN)/python $(SITE) > $$(.venv-openai/bin/python $(SITE))/venv.pth
	.venv-openai/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[openai]'
	touch $@

test-openai: .venv-openai/installed
	.venv-openai/bin/python -m pytest -rs tests/parity/test_openai_checkpoints.py

bench: .venv/installed
	$(BIN)/python benchmarks/bench.py $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-openai build src/*.egg-info
