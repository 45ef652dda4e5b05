# shellcheck shell=bash
# Sourced by the scripts beside it: moves to the repository's root and defines `environment`.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P) || exit 1
cd -- "$root" || exit 1

# Large pages for what XLA's CPU backend holds: less of a step goes into page faults (docs/notes/cpu_speed.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

fail() {
  printf '%s\n' "$1" >&2
  exit 1
}

# The first Python >= 3.11 of $PYTHON, python3, python3.13 ... python3.11, python.
find_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    # A name can be there and still not run (a version manager's shim), so it is asked rather than looked up.
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$name"
      return
    fi
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON: not a Python 3.11 or newer that runs"
  done
  fail "No Python 3.11 or newer was found: install one, or name it, PYTHON=/path/to/python3.11 bash $0"
}

# environment NAME REQUIREMENT: .venv with sora_jax in it, with the extras that REQUIREMENT names, all in the locked
# versions. What the stamp of an earlier run shows to be there is not installed again.
environment() {
  local requirement=$2 stamp=.venv/.installed-$1 wanted python
  # The paths in an editable install are absolute: a moved folder is installed anew.
  wanted=$(printf '%s\n' "$root" "$requirement" && cat constraints.txt pyproject.toml)
  if ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
    python=$(find_python) || exit 1
    echo "Making .venv with $("$python" --version) ..."
    "$python" -m venv --clear .venv ||
      fail "Python's venv module is incomplete here; on Debian and Ubuntu: apt install python3-venv"
  fi
  [ "$wanted" = "$(cat "$stamp" 2>/dev/null)" ] && return
  rm -f "$stamp"
  echo "Installing sora_jax and what it needs into .venv (a few minutes the first time) ..."
  # Setuptools first and no build isolation: the build, too, then uses the locked version.
  pip_install setuptools
  pip_install --no-build-isolation --editable "$requirement"
  compile_installed
  printf '%s\n' "$wanted" >"$stamp.new" && mv "$stamp.new" "$stamp"
}

# pip would compile on one core, half of the time of an install: see compile_installed.
pip_install() {
  .venv/bin/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt "$@" ||
    fail "pip could not install $*: its own words are above"
}

# Bytecode of all that is installed, on all cores. With PYTHONDONTWRITEBYTECODE set, as in many containers, Python
# would otherwise compile what it imports at every start: 6 s of each.
compile_installed() {
  # What some packages have for other Pythons does not compile, and need not.
  .venv/bin/python -m compileall -qq -j 0 .venv/lib || :
}
