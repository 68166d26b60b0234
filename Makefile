# `make demo` runs the main job, `make test` the checks and tests. Both set up .venv the first time and when what it is
# made from has changed; nothing outside this folder is touched.
#
#   make test PYTHON=/path/to/python3.12     another Python than the first suitable one on the PATH
#   make demo DEMO="--frames DIR"            arguments for `gdfusion demo`
#   make pictures                            docs/images anew, with the shipped weights

PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { command -v $$python; break; }; done)
JOBS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python -m

# A ROS installation that the shell has sourced would shadow the environment's own ROS.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: demo test check pictures environment clean

demo: environment
	$(VENV)/bin/gdfusion demo $(DEMO)

test: check
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(JOBS) -m "not real and not slow_real"

check: environment
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

pictures: environment
	$(VENV)/bin/python docs/pictures.py

environment: $(VENV)/ready

$(VENV)/ready: pyproject.toml setup.py constraints.txt CMakeLists.txt package.xml \
		$(wildcard msg/*.msg cmake/* cmake/*/* gdfusion_ros/kernels/*.cpp gdfusion_ros/kernels/*.h) gdfusion_ros/kernels/CMakeLists.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.10, 3.11 or 3.12 is missing;" \
		"on Debian and Ubuntu: sudo apt install python3 python3-venv python3-dev" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module;" \
		"on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "error: $(PYTHON) has no C headers;" \
		"on Debian and Ubuntu: sudo apt install python3-dev" >&2; exit 1; }
	@command -v c++ >/dev/null && command -v cc >/dev/null || { echo "error: a C++ compiler is missing;" \
		"on Debian and Ubuntu: sudo apt install build-essential" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON): about 3 GB and some minutes, once."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(RUN) pip install --quiet --constraint constraints.txt pip
	$(RUN) pip install --quiet --constraint constraints.txt --group build --group dev
	$(RUN) pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[nuscenes,onnx,openvino,ray,rerun,viewer]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
