#!/bin/sh
# find_python.sh [3.11|newest]: prints the newest usable Python from 3.11 up (or the one asked for), if there is one.
# Looked for on PATH by versioned name, under pyenv, and as plain python3. A candidate counts only if it runs and can
# make virtual environments.
set -u
usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}
case ${1:-newest} in
    newest) minors="13 12 11" ;;
    3.*) minors=${1#3.} ;;
    *) echo "usage: find_python.sh [3.11|3.12|3.13|newest]" >&2; exit 2 ;;
esac
for minor in $minors; do
    for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python3; do
        if path=$(command -v "$candidate" 2>/dev/null) && usable "$path"; then
            echo "$path"
            exit 0
        fi
    done
done
if [ "${1:-newest}" = newest ] && path=$(command -v python3 2>/dev/null) && usable "$path"; then
    echo "$path"
fi
