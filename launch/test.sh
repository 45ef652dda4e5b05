#!/usr/bin/env bash
# The tests, on 8 fake CPU devices: makes .venv, installs, runs pytest. Arguments go to it.
set -eu
# shellcheck source=launch/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment test "${TEST_REQUIREMENT:-.[test]}"
# A later -m wins, so `launch/test.sh -m slow` runs the slow ones.
# Most of the time is compiling, one core a process; a file's tests share what they have made.
# In the order of their names: xdist would leave the file with the fewest tests, the longest, to the end.
exec .venv/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder -m 'not slow and not parity and not exhaustive' "$@"
