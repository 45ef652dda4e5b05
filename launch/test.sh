#!/usr/bin/env bash
# The tests, on 8 fake CPU devices: makes .venv, installs, runs pytest. Arguments go to it.
set -eu
# shellcheck source=launch/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment test '.[test]'
# A later -m wins, so `launch/test.sh -m slow` runs the slow ones.
exec .venv/bin/python -m pytest -m 'not slow and not parity' "$@"
