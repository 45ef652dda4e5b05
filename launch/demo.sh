#!/usr/bin/env bash
# Makes .venv, installs, and runs `sora-jax demo`. Arguments go to it.
set -eu
# shellcheck source=launch/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment base .
exec .venv/bin/sora-jax demo "$@"
