#!/bin/sh
# The tests against other versions of what they stand on: hiredis, Redis and Valkey of Debian 13.
#
#     matrix.sh fetch DIRECTORY           downloads and unpacks them there; installs nothing
#     matrix.sh run DIRECTORY TEST... with TEST...
#
# The first tests run with the other hiredis, those behind "with" with each of the other servers;
# one line for each.
#
# They come from where this machine gets its packages, whatever that is: a second list of sources
# is made of the machine's own by replacing the name of the release. apt keeps all that belongs to
# it in DIRECTORY and knows of no installed package, so that it also fetches the libraries. The
# servers run with the C library and the loader they were built for.

release=trixie
directory=$2
here=$PWD/$directory

fail() {
    echo "matrix: $*" >&2
    exit 1
}

fetch() {
    # shellcheck source=/dev/null
    . /etc/os-release
    [ "$ID" = debian ] || fail "needs the package sources of a Debian, this is $PRETTY_NAME"

    rm -rf "$directory"
    mkdir -p "$directory/apt/lists/partial" "$directory/apt/archives/partial" || exit 1
    : >"$directory/apt/status"
    # Sources come as lines, in *.list, or as paragraphs, in *.sources. Others than those of this
    # release are left out.
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        grep -E "^deb .*[[:blank:]]$VERSION_CODENAME" |
        sed "s/\([[:blank:]]\)$VERSION_CODENAME/\1$release/g" >"$directory/apt/old.list"
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        grep -v '^#' "$file" |
            awk -v name="$VERSION_CODENAME" 'BEGIN { RS = ""; ORS = "\n\n" }
                $0 ~ "Suites:[^\n]*[ \t]" name' |
            sed "/^Suites:/s/$VERSION_CODENAME/$release/g; /^Types:/s/deb-src//"
    done >"$directory/apt/new.sources"
    [ -s "$directory/apt/old.list" ] || [ -s "$directory/apt/new.sources" ] ||
        fail "no package source of $VERSION_CODENAME is known"
    mkdir "$directory/apt/parts"
    mv "$directory/apt/old.list" "$directory/apt/new.sources" "$directory/apt/parts"

    set -- -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$here/apt/parts" \
        -o Dir::State::lists="$here/apt/lists" -o Dir::State::status="$here/apt/status" \
        -o Dir::State::extended_states="$here/apt/extended" -o Dir::Cache="$here/apt" \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3
    echo "fetching hiredis, Redis and Valkey of Debian's $release"
    apt-get "$@" update # a source without that release is no harm; what counts comes next
    apt-get "$@" -y --no-install-recommends --download-only install \
        libhiredis-dev redis-server valkey-server >/dev/null || fail 'the download failed'
    for package in "$directory"/apt/archives/*.deb; do
        case $(basename "$package") in
        libhiredis*) dpkg -x "$package" "$directory/hiredis" ;;
        *) dpkg -x "$package" "$directory/servers" ;;
        esac || fail "cannot unpack $package"
    done
    rm -rf "$directory/apt"

    root=$here/servers/usr
    for loader in "$root"/lib*/ld-linux*.so.* "$root"/lib/*/ld-linux*.so.*; do
        [ ! -x "$loader" ] || break
    done
    libraries=$(dirname "$(find "$root/lib" -name libc.so.6)")
    for server in redis-server valkey-server; do
        printf '#!/bin/sh\nexec "%s" --inhibit-cache --library-path "%s" "%s" "$@"\n' \
            "$loader" "$libraries" "$root/bin/$server" >"$directory/$server"
        chmod +x "$directory/$server"
        "$directory/$server" --version >/dev/null || fail "$server does not run"
    done
    : >"$directory/ready"
}

server_version() { # a server
    "$1" --version | sed 's/^\([A-Z][a-z]*\) .*v=\([0-9.]*\).*/\1 \2/'
}

hiredis_version() { # flags of the compiler
    printf '#include <hiredis/hiredis.h>\nHIREDIS_MAJOR.HIREDIS_MINOR.HIREDIS_PATCH\n' |
        ${CC:-cc} "$@" -E -P - | tail -n 1 | tr -d ' '
}

passed=0
failed=0

# combination CONFIGURATION TITLE TEST...: one line, and what went wrong.
combination() {
    build=build/$1
    title=$2
    shift 2
    for test; do
        set -- "$@" "$build/$test"
        shift
    done
    said=$(BUILD=$build sh tests/run.sh -s "$title" "$directory/log" "$@")
    echo "$said"
    # shellcheck disable=SC2046 # two words
    set -- $(echo "$said" | sed -n '$s/.*: \([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p')
    passed=$((passed + ${1:-0}))
    failed=$((failed + ${2:-1}))
}

# run TEST... with TEST...: the first with another hiredis, the others with other servers.
run() {
    ours=$(hiredis_version -I.)
    LD_LIBRARY_PATH=$(dirname "$here"/hiredis/usr/lib/*/libhiredis.so)
    export LD_LIBRARY_PATH
    title="hiredis $(hiredis_version "-I$here/hiredis/usr/include"), $(server_version redis-server)"
    parsing=
    while [ "$1" != with ]; do
        parsing="$parsing $1"
        shift
    done
    shift
    # shellcheck disable=SC2086 # words
    combination hiredis "$title" $parsing
    unset LD_LIBRARY_PATH
    for server in redis-server valkey-server; do
        DLOCK_TEST_SERVER=$here/$server
        export DLOCK_TEST_SERVER
        combination debug "hiredis $ours, $(server_version "$DLOCK_TEST_SERVER")" "$@"
    done
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}

command=$1
shift 2
case $command in
fetch | run) $command "$@" ;;
*) fail "fetch or run, not '$command'" ;;
esac
