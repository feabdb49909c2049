#!/usr/bin/env bash
# Installs the system libraries that uvd needs on Debian or Ubuntu: with apt when root, else prints the one line to run.
# `system-packages.sh tests` also installs Chromium and its driver, for the tests of web pages; without, those are skipped.
# Needed: a C compiler and Python's headers (xtcocotools is compiled), venv, and a software OpenGL (OSMesa).
set -euo pipefail

missing=()
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
name=${PYTHON:-python3.11}
if ! python=$(command -v "$name"); then
  echo "uvd needs Python 3.11, and $name is not on the PATH. Install it, or name another: make PYTHON=/path/to/python3.11 …"
  exit 1
fi
"$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3.11-venv)
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
  || missing+=(python3.11-dev)
# Not `ldconfig -p | grep -q`: with pipefail, grep's early exit would make ldconfig fail.
libraries=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p)
[[ $libraries == *libOSMesa.so* ]] || missing+=(libosmesa6)
[[ $libraries == *libEGL.so.1* ]] || missing+=(libegl1)
if [ "${1:-}" = tests ]; then
  { command -v chromium && command -v chromedriver; } >/dev/null || missing+=(chromium chromium-driver)
fi

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing system packages: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "uvd needs system packages that are not installed. Run this once, then the same command again:"
  echo "  sudo apt-get update && sudo apt-get install -y ${missing[*]}"
  exit 1
fi
