#!/usr/bin/env bash
# For maintainers: writes constraints.txt anew, with the newest versions that fit together today. Look at the
# difference before you commit it, and run ./test.sh on every Python that pyproject.toml names.
#
#   scripts/pin.sh          needs uv (https://docs.astral.sh/uv/) on the PATH, and reads metadata only
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Resolved for the oldest Python, whose pins the newer ones can install too. CUDA 12 and 13 exclude each other, and
# PyTorch's wheel wants one exact toolkit of CUDA 13: so two answers, merged.
resolve() {
    uv pip compile pyproject.toml - --quiet --no-header --no-annotate --python-version 3.11 --python-platform linux \
        --only-binary :all: "$@" <<<"setuptools>=77
$same"
}
same='' # what the second answer must have as the first has it
thirteen=$(resolve --extra test --extra peers --extra numba --extra cuda13)
same=$(grep '^nvidia-cuda-nvrtc==' <<<"$thirteen") # of the tests: CUDA 13's, beside whichever toolkit
twelve=$(resolve --extra test --extra numba --extra cuda12)
toolkit() { sed -n 's/^cuda-toolkit==//p' <<<"$1"; }

{
    cat <<END
# Every package that the project can pull in, directly or not, at the version it is tested with: pip takes the
# versions from here and the names from pyproject.toml. Written by scripts/pin.sh.

# One name for two toolkits: CUDA 12's, and of CUDA 13 the one that PyTorch's wheel wants too.
cuda-toolkit>=$(toolkit "$twelve"),<=$(toolkit "$thirteen")

END
    printf '%s\n%s\n' "$thirteen" "$twelve" | grep -v '^cuda-toolkit==' | LC_ALL=C sort -u
} >constraints.txt.new
mv constraints.txt.new constraints.txt
