#!/usr/bin/env bash
# check_clients.sh [CLIENT ...]: runs unmodified clients against servers of this checkout, each in an environment of its
# own, and says what works. Without arguments all of scripts/clients/clients.txt.
#
#   PYTHON   an environment that has jaxinfer with the extra test; clients' environments are made with its Python
#            (default: .venv/bin/python)
#   CLIENTS  folder for the environments, kept for the next run (default: build/clients)
#
# Packages come from the index and the registry that pip and npm are set to. Exit code 1 where a case failed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=${CLIENTS:-build/clients}
here=$PWD
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

servers=()
stop() { for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done; wait; }
trap stop EXIT

# serve NAME ARGUMENT...: starts one of scripts/clients/servers.py and waits until it is ready.
serve() {
    local log=$folder/$1.log
    : >"$log"
    "$python" scripts/clients/servers.py "$@" --port 0 >"$log" 2>&1 &
    servers+=($!)
    until grep -q '^ready' "$log"; do
        kill -0 "${servers[-1]}" 2>/dev/null || { cat "$log"; exit 1; }
        sleep 0.2
    done
}
address() { sed -n "s#^ready .* on \(.*\) (gRPC) and \(http://[^/]*\)/v1.*#\\$2#p" "$folder/$1.log"; }

# A client's environment is made anew when its line in clients.txt has changed.
make_python() { # FOLDER PACKAGE...
    [ "$(cat "$1/made" 2>/dev/null)" = "${*:2}" ] && return
    rm -rf "$1"
    "$("$python" -c 'import sys; print(sys._base_executable)')" -m venv "$1"
    "$1/bin/python" -m pip install -qq --disable-pip-version-check "${@:2}"
    echo "${*:2}" >"$1/made"
}
make_node() { # FOLDER PACKAGE...
    [ "$(cat "$1/made" 2>/dev/null)" = "${*:2}" ] && return
    rm -rf "$1"
    mkdir -p "$1"
    npm install --silent --no-audit --no-fund --prefix "$1" "${@:2}"
    echo "${*:2}" >"$1/made"
}

serve demo "$folder/demo"
serve scripted
DEMO_GRPC=$(address demo 1) DEMO_URL=$(address demo 2) SCRIPTED_URL=$(address scripted 2)
export DEMO_GRPC DEMO_URL SCRIPTED_URL

failed=0
while read -r name kind packages program; do
    case $name in '' | '#'*) continue ;; esac
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
    printf '%s (%s)\n' "$name" "$packages"
    if [ "$kind" = node ] && ! command -v npm >/dev/null; then
        echo "  skipped  all: npm is not installed"
        continue
    fi
    export CLIENT_FOLDER=$folder/$name
    "make_$kind" "$CLIENT_FOLDER" ${packages//,/ }
    run=("$python")
    if [[ $program = *.mjs ]]; then
        # A module finds packages beside itself.
        cp scripts/clients/cases.mjs "scripts/clients/$program" "$CLIENT_FOLDER"
        run=(node) program=$CLIENT_FOLDER/$program
    else
        program=$here/scripts/clients/$program
        [ "$kind" = node ] || run=("$CLIENT_FOLDER/bin/python")
    fi
    "${run[@]}" "$program" </dev/null || failed=1
done <scripts/clients/clients.txt
exit $failed
