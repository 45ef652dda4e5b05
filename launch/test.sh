#!/usr/bin/env bash
# Makes .venv, installs, and runs the tests on 8 fake CPU devices. Arguments go to pytest:
#   bash launch/test.sh tests/kernels -k ring
set -eu
# shellcheck source=launch/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment test "${TEST_REQUIREMENT:-.[test]}"
# A later -m wins, so `launch/test.sh -m slow` runs the slow tests.
# Most of the time is compiling on one core, so there are several processes; tests of one file share fixtures.
# In the order of names: otherwise xdist starts the file with the fewest tests last, which takes longest.
exec .venv/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder -m 'not slow and not parity and not exhaustive' "$@"
