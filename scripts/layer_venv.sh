#!/bin/sh
# layer_venv.sh BASE VENV: makes the environment VENV, which sees every package of the environment BASE and takes what is
# installed next, while BASE stays as it is. The same Python, no second copy of half a gigabyte, seconds instead of
# minutes. pip comes from BASE, too, and counts what BASE has as installed.
set -eu
base=$1
venv=$2
"$("$base/bin/python" -c 'import sys; print(sys._base_executable)')" -m venv --without-pip "$venv"
site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# addsitedir reads BASE's own .pth files, too: a path alone would not.
printf 'import site; site.addsitedir("%s")\n' "$(site "$base")" >"$(site "$venv")/base.pth"
