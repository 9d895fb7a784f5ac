# Sourced by tools/run and tools/check: makes .venv with what they need, once.
# After the first call nothing is fetched; a change of pyproject.toml or csrc/ makes it run again.
#
#   prepare EXTRAS
# sets $python; EXTRAS is "" or "[dev]". Missing OS packages are installed when root, else the command to run
# is printed.

# Every worker of the tests and every program they start would compile all modules again.
unset PYTHONDONTWRITEBYTECODE

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }

install_packages() {
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $*"
        # DEBIAN_FRONTEND: no questions on a machine nobody watches.
        { DEBIAN_FRONTEND=noninteractive apt-get -qq update &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@"; } >&2 ||
            { say "error: apt-get could not install $*"; return 1; }
    else
        say "error: missing OS packages; run:  sudo apt-get install -y --no-install-recommends $*"
        return 1
    fi
}

find_python() {
    local candidate
    for candidate in ${VIRTIO_IPSEC_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    say "error: Python 3.11 or newer is needed; run:  sudo apt-get install -y python3"
    return 1
}

fingerprint() { # of everything that decides what is installed
    cat "$ROOT"/pyproject.toml "$ROOT"/tools/build_ffi.py "$ROOT"/csrc/*.[ch] | sha256sum
}

build_requirements() {
    "$python" - "$ROOT/pyproject.toml" <<'END'
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"])
END
}

prepare() {
    local extras=$1 base stamp name
    shift
    python=$ROOT/.venv/bin/python
    stamp=$ROOT/.venv/stamp${extras}
    if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(fingerprint)" = "$(cat "$stamp")" ]; then
        return 0
    fi
    base=$(find_python) || return 2
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        name=python3-venv
        [ "$(command -v "$base")" = /usr/bin/python3 ] || name=$(basename "$base")-venv
        install_packages "$name" || return 2
    fi
    say "setting up .venv (once)"
    [ -x "$python" ] || "$base" -m venv "$ROOT/.venv" || return 2
    # Build tools in .venv instead of an isolated copy: less to fetch, and a rebuild needs no network.
    "$python" -m pip --disable-pip-version-check -q install $(build_requirements) &&
        "$python" -m pip --disable-pip-version-check -q install --no-build-isolation -e "$ROOT$extras" ||
        { say "error: pip could not install the dependencies (see above)"; return 2; }
    fingerprint >"$stamp"
}
