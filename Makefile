# `make help` lists the targets. PYTHON chooses the interpreter that .venv is made with.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help book test run results arena weights picture handout checks classifier address lock bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' Makefile

# Made anew only when what it holds should change.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
		echo "Python 3.11, 3.12 or 3.13 is needed; '$(PYTHON)' is not one of them." \
			"Name one that is: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

book: $(READY) ## Execute the notebooks and build the site
	$(BIN)/jupyter-book build -W -n --keep-going .
	@echo "Made _build/html: $$(find _build/html -name '*.html' -not -path '*/_*/*' | wc -l) pages," \
		"$$(du -sh _build/html | cut -f 1), notebooks run in the" \
		"$$($(BIN)/python -c 'from course_lib.book.profiles import start; print(start().profile)') profile." \
		"Open _build/html/index.html in a browser."

test: $(READY) ## Check everything: style, library, notebooks, book and site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	COURSE_PROFILE=smoke $(BIN)/pytest tests/lib -n auto --dist loadfile --junitxml=_build/tests-lib.xml
	COURSE_PROFILE=smoke $(BIN)/pytest tests/book notebooks --nbval --nbval-current-env --junitxml=_build/tests.xml
	@echo "Verified: the library, every notebook against its stored checks, and every page of the site" \
		"in a browser. Reports: _build/tests*.xml. Site: _build/site-test/_build/html/index.html"

run: $(READY) ## Run a chapter into runs/: CHAPTER=gmm_em [PROFILE=full] [DATASET=mnist] [SEED=1]
	@$(BIN)/python -m tools.run "$(CHAPTER)" $(if $(PROFILE),--profile "$(PROFILE)") \
		$(if $(DATASET),--dataset "$(DATASET)") $(if $(SEED),--seed "$(SEED)")

arena: $(READY) ## Run what is missing of the arena's runs: [PROFILE=full]
	@$(BIN)/python -m tools.arena $(if $(PROFILE),--profile "$(PROFILE)")

results: $(READY) ## Compute an experiment's table and store it: NAME=em_starts [WORKERS=1]
	@$(BIN)/python -m tools.results "$(NAME)" $(if $(WORKERS),--workers "$(WORKERS)")

weights: $(READY) ## Train a model and store its weights: NAME=mnist_flow [DATA=folder]
	@$(BIN)/python -m tools.weights "$(NAME)" $(if $(DATA),--data "$(DATA)")

picture: $(READY) ## Draw the landing page's picture with the course's models
	@$(BIN)/python -m tools.picture

handout: $(READY) ## Write handout/: chapters without solutions, as notebooks and as scripts
	@$(BIN)/python -m tools.handout

checks: $(READY) ## Run notebooks and store their checks' lines: [CHAPTER=gmm_em], else all
	@$(BIN)/python -m tools.checks $(CHAPTER)

classifier: $(READY) ## Train the digit classifier again: course_lib/stored/
	@$(BIN)/python -c 'from course_lib.metrics.classifier import main; main()'

address: $(READY) ## Write _config.yml's repository address into the notebooks' set-up cells
	@$(BIN)/python -m tools.notebooks

lock: $(READY) ## Pin in requirements.txt all versions, within pyproject.toml's ranges
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check "uv>=0.5,<1"
	$(BIN)/uv pip compile pyproject.toml --extra book-test --universal --python-version 3.11 \
		-o requirements.txt

bench: $(READY) ## Measure the speed of the library beside others'
	$(BIN)/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## Remove all that was made, but .venv and downloaded data
	rm -rf _build runs notebooks/runs handout book/verified.md
