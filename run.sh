#!/usr/bin/env bash
# Compares the CPU and the GPU: prepares .venv the first time, then starts "bareconv compare" with your arguments.
#
#   ./run.sh --quick        a first answer within minutes
#   ./run.sh --help         all there is to choose
#
# Needs Python 3.11 or newer and, the first time, the network; without an NVIDIA GPU the CPU is measured alone. Can be
# called from anywhere: paths among the arguments, and the results, are relative to the folder you are in.
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # for "sh run.sh"
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=scripts/setup.sh
source "$root/scripts/setup.sh"
setup "${BARECONV_EXTRAS:-}"
exec "$venv/bin/bareconv" compare "$@"
