#!/bin/sh
# install.sh PYTHON REQUIREMENT: installs the package, editable, within the tested versions, saying what it does.
set -eu
python=$1
requirement=$2
printf 'installing %s (about 500 MB, a minute or two the first time) ...\n' "$requirement"
"$python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable "$requirement"
"$python" -m pallas_kernels.native_cpu
echo "installed"
