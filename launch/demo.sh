#!/usr/bin/env bash
# Makes .venv, installs, and runs `sora-jax demo` within its --minutes. Arguments go to it.
set -eu
since=$(date +%s)
# shellcheck source=launch/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment base .
exec .venv/bin/sora-jax demo --since="$since" "$@"
