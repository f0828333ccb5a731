# shellcheck shell=bash
# Prepares .venv: the one piece of code behind run.sh and test.sh, which source it. Keeps to what bash 3.2 (macOS) can do.
#
#   root=/the/checkout; source "$root/scripts/setup.sh"; setup [EXTRA,EXTRA...]
#
# Afterwards $venv/bin holds Python and bareconv with the versions of constraints.txt, the extras of pyproject.toml
# that were asked for and, where there is an NVIDIA driver, CuPy. What was set up is noted in $stamp, last of all: a
# start that finds there what it needs is through here in some 20 ms. All that is said goes to standard error. A
# set-up that cannot be done ends the script with exit code 2 and one sentence, and leaves nothing half-made behind.
#
# From the user's environment:
#   PYTHON=/path/to/python3     the Python to use, instead of the newest suitable one on the PATH
#   BARECONV_EXTRAS=test,peers  extras to install as well
#   BARECONV_CUDA=none|12|13    leave CuPy out, or take the one for this CUDA, instead of asking the driver
#   pip's own settings          (PIP_INDEX_URL, PIP_PROXY, pip.conf ...) count as always

: "${root:?the checkout, set by the script that sources this one}"
venv="$root/.venv"
stamp="$venv/bareconv-setup"                 # lines of key=value
unfinished="$venv/bareconv-setup-unfinished" # there while a set-up is under way
log="$venv/bareconv-setup.log"               # what pip says, and beside it, in .log.full, all that it does

say() { printf '%s\n' "$*" >&2; }
die() {
    say "${0##*/}: $*"
    exit 2
}

# setup EXTRAS: leaves $venv ready for use, or ends the script.
setup() {
    wanted_extras=${1:-}
    case ${BARECONV_CUDA:-none} in
        none | 12 | 13) ;;
        *) die "BARECONV_CUDA=$BARECONV_CUDA: it can be none, 12 or 13" ;;
    esac
    unset PYTHONHOME PYTHONPATH __PYVENV_LAUNCHER__ PIP_TARGET PIP_PREFIX PIP_ROOT # they lead past .venv
    export PIP_USER=0

    if ! is_ready; then
        python="$venv/bin/python"
        if [ -n "$why_new" ]; then find_python; fi
        lock
        if ! is_ready; then set_up; fi # a set-up that we waited for may have done it
        exec 9<&-                      # unlock
    fi
    if [ "$had_cupy" = failed ]; then
        say "On the CPU only: CuPy could not be installed. To try that again: BARECONV_CUDA=$cuda $0"
    fi
}

set_up() {
    trap abandon EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ -n "$why_new" ]; then make_venv; fi
    probe "$venv/bin/python" || die "$venv/bin/python, just made, does not run"
    choose_cuda
    : >"$unfinished"
    if [ "$files $extras" != "$had_files $had_extras" ]; then install_packages; fi
    if [ "$files $cuda" != "$had_files $had_cuda" ]; then install_cupy; fi
    write_stamp
    rm -f "$unfinished"
    trap - EXIT HUP INT TERM
    say "Ready after $SECONDS s."
}

# When set_up ends before its end: a new .venv goes. One that was only added to stays, marked as unfinished, for the
# next start to make anew.
abandon() {
    if [ -n "$why_new" ]; then rm -rf "$venv"; fi
}

# ---------------------------------------------------------------------------------- what there is, what is wanted

# Whether $venv holds what is wanted. Sets had_files, had_extras ... (there, by the stamp), files, extras, cuda
# (wanted), and why_new: why .venv must be made from scratch, if it must.
is_ready() {
    read_stamp
    files=$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)
    judge_venv
    merge_extras
    if [ -n "$why_new" ]; then had_files='' had_cuda='' had_cupy=''; fi
    [ -z "$why_new" ] && [ "$files $extras $cuda" = "$had_files $had_extras $had_cuda" ]
}

read_stamp() {
    local key value
    had_root='' had_python='' had_files='' had_extras='' had_cuda='' had_cupy=''
    if [ ! -f "$stamp" ]; then return; fi
    while IFS='=' read -r key value; do
        case $key in
            root) had_root=$value ;;
            python) had_python=$value ;;
            files) had_files=$value ;;
            extras) had_extras=$value ;;
            cuda) had_cuda=$value ;;
            cupy) had_cupy=$value ;;
        esac
    done <"$stamp"
    # A CuPy that could not be installed is tried again when asked for, not at every start.
    if [ "$had_cupy" = failed ] && [ -n "${BARECONV_CUDA:-}" ]; then had_cuda='' had_cupy=''; fi
}

write_stamp() {
    printf '%s\n' "root=$root" "python=$version" "files=$files" "extras=$extras" "cuda=$cuda" "cupy=$had_cupy" \
        >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

# Sets why_new, and cuda where .venv can stay. A .venv without a stamp is somebody's own and is added to.
judge_venv() {
    local asked_base='' had=''
    why_new='' cuda=''
    if [ -n "${PYTHON:-}" ]; then
        if probe "$PYTHON"; then asked_base=$base; else asked_base=none; fi
    fi
    if [ ! -e "$venv" ] && [ ! -L "$venv" ]; then
        why_new="once, about a minute"
    elif [ -e "$unfinished" ]; then
        why_new="anew: the last set-up was interrupted"
    elif ! probe "$venv/bin/python" || ! is_new_enough "$version"; then
        why_new="anew: the Python in it does not run or is too old"
    elif had=${had_python:-$version} && [ "${version%.*}" != "${had%.*}" ]; then
        why_new="anew: its Python was $had and now is $version"
    elif [ "$root" != "${had_root:-$root}" ]; then
        why_new="anew: it was made for $had_root"
    elif [ -n "$asked_base" ] && [ "$asked_base" != "$base" ]; then
        why_new="anew: it was made with another Python"
    else
        choose_cuda
        case "$had_cuda>$cuda" in
            '12>13' | '13>12') why_new="anew: for CUDA $cuda instead of $had_cuda" ;;
        esac
    fi
}

# probe PYTHON: sets version (3.11.7), driver (the newest CUDA it can run: 13.0, or none) and base (the file that this
# Python is, virtual environment or not). Fails where that Python does not run.
probe() {
    local answer
    answer=$("$1" -I -S "$root/scripts/probe.py" 2>/dev/null </dev/null) || return 1
    version=${answer%% *} answer=${answer#* }
    driver=${answer%% *} base=${answer#* }
}

# Sets cuda, the CUDA to have CuPy for: 12, 13 or nothing.
choose_cuda() {
    local wanted=${BARECONV_CUDA:-$driver}
    wanted=${wanted%%.*}
    if [ "$wanted" = none ] || [ "$wanted" -lt 12 ]; then
        cuda=$had_cuda # a driver that is gone may come back
    elif [ "$wanted" -eq 12 ]; then
        cuda=12
    else
        cuda=13 # a newer driver runs it as well
    fi
}

# Sets extras: those there and those wanted, separated by commas.
merge_extras() {
    local extra IFS=','
    extras=$had_extras
    for extra in $wanted_extras; do
        if [ -z "$extra" ]; then continue; fi
        case ",$extras," in
            *",$extra,"*) ;;
            *) extras=${extras:+$extras,}$extra ;;
        esac
    done
}

# --------------------------------------------------------------------------------------------------- finding Python

is_new_enough() { # VERSION
    local minor=${1#*.}
    [ "${1%%.*}" -eq 3 ] && [ "${minor%%.*}" -ge 11 ]
}

# Sets python, a suitable one, and python_version. Looks at every candidate on the PATH, for there are some that exist
# and do not run (pyenv's) and some that lack the venv module (Debian's).
find_python() {
    local name path found minor rank best=0 without_venv='' too_old=''
    local about='import sys
from importlib.util import find_spec
able = find_spec("venv") and find_spec("ensurepip")
base = getattr(sys, "_base_executable", sys.executable)
if sys.implementation.name == "cpython":
    print("%d.%d.%d" % sys.version_info[:3], "able" if able else "unable", base)'
    for name in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        while IFS= read -r path; do
            if [ -z "$path" ]; then continue; fi
            found=$("$path" -I -c "$about" 2>/dev/null </dev/null) || continue
            if [ -z "$found" ]; then continue; fi
            version=${found%% *} found=${found#* }
            if ! is_new_enough "$version"; then
                too_old=${too_old:-"$version ($path)"}
            elif [ "${found%% *}" = unable ]; then
                without_venv=${without_venv:-"$version ($path)"}
            else
                minor=${version#*.} rank=${minor%%.*}
                if [ "$rank" -gt 14 ]; then rank=1; fi # there may be no wheels of the pinned versions for it
                if [ "$rank" -gt "$best" ]; then best=$rank python=${found#* } python_version=$version; fi
            fi
        done <<END
$(type -ap "$name" || true)
END
        if [ -n "${PYTHON:-}" ]; then break; fi
    done
    if [ "$best" -gt 0 ]; then return; fi

    local get="install Python 3.11 or newer (your system's package python3, or https://www.python.org/downloads/)"
    local or="or name one that is not on the PATH: PYTHON=/path/to/python3 $0"
    if [ -n "$without_venv" ]; then
        name="python${without_venv%.* (*}-venv" # 3.11.2 (/usr/bin/python3): python3.11-venv
        die "Python $without_venv lacks the venv module: install it (on Debian: apt install $name) and start again."
    elif [ -n "${PYTHON:-}" ]; then
        if [ -n "$too_old" ]; then too_old="Python ${too_old%% *}, too old"; fi
        die "PYTHON=$PYTHON is ${too_old:-no Python that runs}: $get, or name another."
    elif [ -n "$too_old" ]; then
        die "Python $too_old is too old: $get, $or"
    else
        die "found no Python that runs: $get, $or"
    fi
}

# ----------------------------------------------------------------------------------------------------------- doing it

# Waits until no other set-up is at work on $venv, and keeps others out. The lock is on this very file, through file
# descriptor 9 of this shell, and goes with it: nothing to leave behind.
lock() {
    local take='import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | (fcntl.LOCK_NB if "try" in sys.argv else 0))
except BlockingIOError:
    sys.exit(1)
except OSError:  # a file system that knows no locks
    pass'
    exec 9<"$root/scripts/setup.sh"
    if ! "$python" -I -S -c "$take" try; then
        say "Waiting for another set-up of .venv to end ..."
        "$python" -I -S -c "$take"
    fi
}

make_venv() {
    if [ "$python" = "$venv/bin/python" ]; then find_python; fi
    say "Setting up .venv with Python $python_version ($why_new) ..."
    if ! { rm -rf "$venv" && mkdir "$venv" && : >"$unfinished"; } 2>/dev/null; then
        die "cannot write to $venv: who owns it?"
    fi
    if ! "$python" -I -m venv "$venv" >"$log" 2>&1 </dev/null; then
        quote_log
        die "Python $python_version ($python) could not make a virtual environment: see its words above."
    fi
}

install_packages() {
    if [ -n "$why_new" ]; then
        :
    elif [ "$files" != "$had_files" ]; then
        say "Bringing .venv up to date with pyproject.toml and constraints.txt ..."
    else
        say "Adding to .venv what ${0##*/} needs ($extras) ..."
    fi
    if ! "$venv/bin/python" -I -c 'import pip' 2>/dev/null; then # uv makes such environments
        "$venv/bin/python" -I -m ensurepip >"$log" 2>&1 || die "there is no pip in $venv: delete it and start again."
    fi
    # setuptools first, then no isolation: the build uses the pinned one, and a repeated set-up needs no network.
    if pip_install setuptools && pip_install --no-build-isolation --editable ".${extras:+[$extras]}"; then return; fi
    rm -f "$unfinished" # pip downloads all before it changes anything: an old .venv is as it was
    local reason
    reason=$(why_unreachable)
    if [ -z "$reason" ]; then
        quote_log
        die "pip could not install the packages: see its words above."
    fi
    die "pip could not reach its package index ($reason): connect to the network, or set PIP_PROXY or PIP_INDEX_URL" \
        "for your proxy or mirror, and start again."
}

# Without CuPy there is still the CPU: a failure here is said and noted, and no more.
install_cupy() {
    had_cupy=''
    if [ -z "$cuda" ]; then
        case $driver in
            [0-9].* | 1[01].*) say "The NVIDIA driver (CUDA $driver) is too old for CuPy, which needs 12: CPU only." ;;
        esac
        return
    fi
    say "Installing CuPy for CUDA $cuda (once, more than 1 GB to download; BARECONV_CUDA=none leaves it out) ..."
    if pip_install --no-build-isolation --editable ".[cuda$cuda]"; then
        had_cupy=installed
    else
        had_cupy=failed
        local reason
        reason=$(why_unreachable)
        if [ -n "$reason" ]; then say "pip could not reach its package index ($reason)."; else quote_log; fi
    fi
}

# pip_install ARGUMENT...: in $root, whose name may hold anything; with the pins.
pip_install() {
    rm -f "$log.full"
    (cd "$root" && exec "$venv/bin/python" -I -m pip install --quiet --no-input --disable-pip-version-check \
        --log "$log.full" --constraint constraints.txt "$@") >"$log" 2>&1 </dev/null
}

quote_log() { tail -n 12 "$log" | sed 's/^/    /' >&2; }

# The words with which pip's log says that the network failed it; nothing, where it was something else.
why_unreachable() {
    local words='name resolution|name or service not known|nodename nor servname|failed to resolve'
    words="$words|network is unreachable|no route to host|connection refused|connection reset|timed out"
    words="$words|proxy ?error|tunnel connection failed|certificate_verify_failed"
    grep -oiE "$words" "$log.full" 2>/dev/null | sed -n '$p' || true
}
