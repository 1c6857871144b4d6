#!/bin/sh
# Makes or updates a virtual environment: make_venv.sh FOLDER EXTRAS [PIP-REQUIREMENT...]
# Picks $PYTHON, or the first Python of 3.11 or newer that can make one. Does nothing when the
# folder is up to date with pyproject.toml and the same was asked for.
set -eu
folder=$1
extras=$2
shift 2

usable() { # runs, is new enough, can make an environment with pip
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" && echo "$PYTHON"
    return
  fi
  for name in python3.11 python3.12 python3.13 python3 python; do
    if usable "$name"; then
      echo "$name"
      return
    fi
  done
}

wanted="$extras $* $(cksum <pyproject.toml)"
ready="$folder/.ready"
if [ -f "$ready" ] && grep -qxF "$wanted" "$ready" && "$folder/bin/python" -c '' 2>/dev/null; then
  exit 0
fi

if [ ! -f "$ready" ] || ! "$folder/bin/python" -c '' 2>/dev/null; then
  python=$(find_python)
  if [ -z "$python" ]; then
    echo "make: this needs Python 3.11 or newer with venv and pip (on Debian: python3-venv);" \
      "none was found${PYTHON:+ at PYTHON=$PYTHON}. Set PYTHON=/path/to/python." >&2
    exit 1
  fi
  rm -rf "$folder" # what an interrupted run left is not trusted
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --upgrade pip
fi
: >"$ready.new"
rm -f "$ready" # until pip is done the folder counts as broken
if [ -n "$extras" ]; then what=".[$extras]"; else what="."; fi
echo "installing pangu_jax and what it needs into $folder (a minute or two the first time)"
"$folder/bin/python" -m pip install --quiet --editable "$what" "$@"
# Everything asked for at this pyproject.toml so far stays valid; older lines do not.
{ grep -F "$(cksum <pyproject.toml)" "$ready.new" || true; echo "$wanted"; } >"$ready"
rm -f "$ready.new"
