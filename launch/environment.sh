# shellcheck shell=bash
# For the scripts beside it to source: changes to the repository's root and defines `environment`.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P) || exit 1
cd -- "$root" || exit 1

# Huge pages for XLA:CPU's memory: fewer page faults (docs/notes/cpu_speed.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

fail() {
  printf '%s\n' "$1" >&2
  exit 1
}

# The first Python >= 3.11 of $PYTHON, python3, python3.13 ... python3.11, python.
find_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    # Run it: a version manager's shim can exist and still fail.
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$name"
      return
    fi
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON: not a Python 3.11 or newer that runs"
  done
  fail "No Python 3.11 or newer was found: install one, or name it, PYTHON=/path/to/python3.11 bash $0"
}

# environment NAME REQUIREMENT: makes .venv with sora_jax and the extras of REQUIREMENT, in the locked versions. The
# stamp of an earlier run with the same requirement skips the installation.
environment() {
  local requirement=$2 stamp=.venv/.installed-$1 wanted python
  # An editable install has absolute paths: a moved folder is installed again.
  wanted=$(printf '%s\n' "$root" "$requirement" && cat constraints.txt pyproject.toml setup.cfg)
  if ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
    python=$(find_python) || exit 1
    echo "Making .venv with $("$python" --version) ..."
    "$python" -m venv --clear .venv ||
      fail "Python's venv module is incomplete here; on Debian and Ubuntu: apt install python3-venv"
  fi
  [ "$wanted" = "$(cat "$stamp" 2>/dev/null)" ] && return
  rm -f "$stamp"
  echo "Installing sora_jax and its dependencies into .venv (a few minutes the first time) ..."
  # Setuptools first and no build isolation, so that the build uses the locked version.
  pip_install setuptools
  pip_install --no-build-isolation --editable "$requirement"
  compile_installed
  printf '%s\n' "$wanted" >"$stamp.new" && mv "$stamp.new" "$stamp"
}

# Without compiling: pip compiles on one core, see compile_installed.
pip_install() {
  .venv/bin/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt "$@" ||
    fail "pip could not install $*: its output is above"
}

# Compiles all installed modules to bytecode, on all cores. Where PYTHONDONTWRITEBYTECODE is set, as in many containers,
# Python would otherwise compile its imports at every start.
compile_installed() {
  # Some packages contain files for other Python versions, which do not compile.
  .venv/bin/python -m compileall -qq -j 0 .venv/lib || :
}
