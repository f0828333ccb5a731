#!/usr/bin/env bash
# Checks the project: style, types, tests. Prepares .venv with the tools for it the first time.
#
#   ./test.sh                       everything; the exit code is that of the first part that fails
#   ./test.sh tests/ops -k conv     only pytest, with these arguments; paths are relative to the project's folder
#
# The comparisons with PyTorch need it installed: BARECONV_EXTRAS=peers ./test.sh (close to 1 GB, on Linux several).
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # for "sh test.sh"
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=scripts/setup.sh
source "$root/scripts/setup.sh"
setup "test,${BARECONV_EXTRAS:-}"

cd "$root"
if [ $# -gt 0 ]; then exec "$venv/bin/python" -m pytest "$@"; fi

status=0
check() {
    local code=0
    echo "== $*"
    "$venv/bin/python" -m "$@" || code=$?
    if [ "$status" -eq 0 ]; then status=$code; fi
}
check ruff check
check ruff format --check
check mypy
check pytest --numprocesses auto --dist worksteal # many tests have one thread: as many processes as there are cores
exit "$status"
