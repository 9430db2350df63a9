# tools/packages.sh - sourced by tools/quickstart and tools/check: installs what is missing.

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# missing_packages NEED... : those of tools/packages.txt that are not installed, one a line
missing_packages() {
    local need package wanted status
    while read -r need package; do
        case $need in '' | '#'*) continue ;; esac
        for wanted in "$@"; do
            [ "$need" = "$wanted" ] || continue
            status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)
            [ "$status" = 'install ok installed' ] || printf '%s\n' "$package"
        done
    done < tools/packages.txt
}

# need_packages NEED... : returns when all are there, else installs them or says how
need_packages() {
    local missing as_root=()
    if ! command -v dpkg-query > /dev/null; then
        say "No Debian here: tools/packages.txt lists what is needed ($*)."
        return 0
    fi
    missing=$(missing_packages "$@" | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        if ! sudo -n true 2> /dev/null; then
            say "Packages are missing. Run this line, then this script again:"
            die "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing% }"
        fi
        as_root=(sudo -n)
    fi
    say "Installing: ${missing% }"
    local log
    log=$(mktemp)
    # shellcheck disable=SC2086 # one word for each package
    if ! { "${as_root[@]}" apt-get -q update
           "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
               apt-get install -q -y --no-install-recommends $missing; } > "$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "Installing failed; the line was: apt-get install -y --no-install-recommends ${missing% }"
    fi
    rm -f "$log"
}

# quietly LOG COMMAND... : output goes to LOG, its end is shown when the command fails
quietly() {
    local log=$1
    shift
    "$@" > "$log" 2>&1 && return 0
    tail -n 40 "$log" >&2
    say "failed: $* (log: $log)"
    return 1
}
