#!/usr/bin/env bash
# From nothing to sampled videos: makes .venv, installs, runs `sora-jax demo`. Arguments go to it.
set -eu
# shellcheck source=launch/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment base .
exec .venv/bin/sora-jax demo "$@"
