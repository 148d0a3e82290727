# make report   make the environment, install, run the stages on simulated patients, say where the report is
# make test     make the environment, install, run every check
# make docs     make the documentation site: _docs/index.html (Python 3.11 or newer)
# make test-fast   what the edits since the last commit, or since branch main, reach; under two minutes
# Needs Python 3.10 or newer and git. Another Python: make PYTHON=/path/to/python3 ...   Parameters: make report ARGS="--preset tiny -p seed 1"
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUN = $(VENV)/bin/python

.NOTPARALLEL:
.PHONY: help install report test test-fast docs address export readme check-export check-clean check-readme nbdev-test lint pytest clean
help:
	@sed -n '1,5s/^# //p' Makefile

install: $(VENV)/.installed
$(VENV)/.installed: settings.ini setup.py pyproject.toml constraints.txt .ci/environment.py
	@$(PYTHON) .ci/environment.py --venv $(VENV)

report: install
	@$(RUN) -m cxr_lib.running.command run $(ARGS)

docs: install
	@$(RUN) .ci/make_docs.py

# The quick checks first; pytest last, so that its closing line ends the log.
test: check-export check-clean check-readme lint nbdev-test pytest

# Runs a command and prints the seconds that it took: $(call timed,what,command)
timed = @echo "== $(1)"; start=$$(date +%s); $(2) && echo "   $(1): $$(($$(date +%s) - start)) s"

check-export: install
	$(call timed,the committed modules are what the notebooks export,$(RUN) tests/check_repository.py export)
check-clean: install
	$(call timed,the notebooks are clean,$(RUN) tests/check_repository.py clean)
check-readme: install
	$(call timed,README.md is what index.ipynb gives,$(RUN) tests/check_repository.py readme)
lint: install
	$(call timed,ruff,$(RUN) -m ruff check --no-cache .)
	$(call timed,types,$(RUN) tests/check_types.py)
	$(call timed,rooms that fit on a screen,$(RUN) tests/measure_house.py)
# In a project folder of its own: the stages make one small run, which the other notebooks open.
nbdev-test: install
	$(call timed,every notebook runs,env -u CXR_HOME $(RUN) -u tests/run_notebooks.py)
# The main job has the machine to itself; the many small tests share it, one core each.
pytest: install
	$(call timed,the main job at its full size,$(RUN) -m pytest tests/running/test_main_job.py)
	@echo "== everything else"
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25 --ignore tests/running/test_main_job.py

test-fast: install
	@OMP_NUM_THREADS=1 $(RUN) tests/run_fast.py

# For those who change a notebook: write the modules, the README. For the owner: badges and install cells.
address:
	@$(PYTHON) .ci/address.py
export: install
	@$(RUN) -c "from nbdev.doclinks import nbdev_export; nbdev_export()"
readme: install
	@$(RUN) tests/check_repository.py readme --write
clean:
	rm -rf $(VENV) build _proc _docs *.egg-info .pytest_cache .ruff_cache .hypothesis
