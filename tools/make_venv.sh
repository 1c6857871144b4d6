#!/bin/sh
# Makes or updates a virtual environment: make_venv.sh FOLDER EXTRAS [PIP-REQUIREMENT...]
# EXTRAS of the form group:NAME are a group of requirements alone, without pangu_jax.
# Picks $PYTHON, or the first Python of 3.11 or newer that can make one. Does nothing when the
# folder holds what is asked for, as pyproject.toml is now.
set -eu
folder=$1
extras=$2
shift 2

usable() { # runs (a pyenv shim may not), is new enough, can make an environment with pip
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    if usable "$PYTHON"; then echo "$PYTHON"; fi
    return
  fi
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if usable "$name"; then
      echo "$name"
      return
    fi
  done
}

version() {
  "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || echo none
}

trusted() { # finished, not moved since, and of the Python that is asked for
  [ -f "$ready" ] && grep -qxF "$here" "$ready" &&
    "$folder/bin/python" -c '' 2>/dev/null &&
    { [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$folder/bin/python")" ]; }
}

# The file .ready says where the folder was made and, a line each, what has been installed.
ready="$folder/.ready"
here="in $(pwd)"
project=$(cksum <pyproject.toml)
wanted="$project [$extras] $*"
known=""
if trusted; then
  if grep -qxF "$wanted" "$ready"; then exit 0; fi
  known=$(grep -F "$project" "$ready" || true) # of an older pyproject.toml nothing counts
else
  python=$(find_python)
  if [ -z "$python" ]; then
    found=${PYTHON:+"PYTHON=$PYTHON is none"}
    echo "pangu_jax needs Python 3.11 or newer with venv and pip (on Debian: python3-venv), and" \
      "${found:-none was found}; set PYTHON=/path/to/python." >&2
    exit 1
  fi
  rm -rf "$folder" # what an interrupted run left is not trusted
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --upgrade pip
fi
rm -f "$ready" # until pip is done the folder counts as broken
case $extras in
  group:*) set -- --group "${extras#group:}" "$@" ;;
  ?*) set -- --editable ".[$extras]" "$@" ;;
  *) set -- --editable . "$@" ;;
esac
echo "installing what is needed into $folder (a minute or two the first time)"
# Compiling to bytecode takes as long as all else, and pip does it on one core. Files that do not
# compile are left as they are.
"$folder/bin/python" -m pip install --quiet --no-compile "$@"
"$folder/bin/python" -m compileall -qq -j 0 "$folder"/lib/python3*/site-packages >/dev/null || true
printf '%s\n%s\n%s\n' "$here" "$known" "$wanted" >"$ready.new"
mv "$ready.new" "$ready"
