#!/bin/sh
# examples/dinner, the demonstration: what it says, how it ends, what it leaves behind.
#
#     sh tests/test_dinner.sh build/dinner
#
# About 40 s. Needs redis-server, redis-cli, timeout and /proc; starts its own servers only.
set -u

dinner=${1:?usage: sh tests/test_dinner.sh PATH-OF-DINNER}
case $dinner in
    /*) ;;
    *) dinner=$PWD/$dinner ;;
esac
work=$(mktemp -d) || exit 2
server=
passed=0
failed=0

tidy() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null
        wait "$server" 2>/dev/null
    fi
    rm -rf "$work"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# check WHAT COMMAND...: the case passes if the command succeeds.
check() {
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "ok - $what"
    else
        failed=$((failed + 1))
        echo "not ok - $what"
        echo "    status ${status-none}, ${took-0} s, output:"
        sed 's/^/    | /' "$work/out"
    fi
}

# run SECONDS COMMAND...: in a fresh TMPDIR, without standard input; sets status, took; output in
# $work/out. timeout makes the status 124, and nothing here expects that.
run() {
    limit=$1
    shift
    fresh_home
    began=$(date +%s)
    TMPDIR=$home timeout "$limit" "$@" <&- >"$work/out" 2>&1
    status=$?
    took=$(($(date +%s) - began))
}

homes=0
fresh_home() {
    homes=$((homes + 1))
    home=$work/h$homes
    mkdir "$home"
}

# Processes that were started with the TMPDIR of this case, or work inside of it: redis-server
# overwrites its environment, but has its working directory there.
processes() {
    for process in /proc/[0-9]*; do
        case $(readlink "$process/cwd" 2>/dev/null) in
            "$home"*) echo "${process#/proc/}" ;;
            *)
                if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "TMPDIR=$home"; then
                    echo "${process#/proc/}"
                fi
                ;;
        esac
    done 2>/dev/null
}

no_process() { [ -z "$(processes)" ]; }
no_file() { [ -z "$(ls -A "$home")" ]; }
says() { grep -qF -- "$1" "$work/out"; }
is() { [ "$1" = "$2" ]; }
fast() { [ "$took" -le "$1" ]; }
both() { [ "$1" = "$3" ] && [ "$2" = "$3" ]; }

# until_true SECONDS COMMAND...
until_true() {
    tries=$(($1 * 10))
    shift
    while ! "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

leaves_nothing() {
    check "$1: no process left" no_process
    check "$1: no file left" no_file
}

# stopped_by SIGNAL: in the middle of a dinner, to the parent alone.
stopped_by() {
    fresh_home
    : >"$work/out"
    TMPDIR=$home "$dinner" <&- >"$work/out" 2>&1 &
    pid=$!
    until_true 10 says 'sits down, fence'
    began=$(date +%s)
    kill -s "$1" "$pid"
    wait "$pid"
    status=$?
    took=$(($(date +%s) - began))
}

# ---------------------------------------------------------------------------- a whole dinner

run 30 "$dinner"
check 'a dinner: status 0' is "$status" 0
check 'a dinner: ends within 15 s' fast 15
check 'a dinner: says that never two sat at once' says "Nobody ever sat on anybody's lap"
check 'a dinner: fences grew' says 'fences grew'
check 'a dinner: somebody was turned away' says 'leaves without the seat'
check 'a dinner: somebody waited' says 'waits as long as it takes'
check 'a dinner: has a picture with a legend' says 'leaves without having eaten'
leaves_nothing 'a dinner'

run 30 env LC_ALL=C "$dinner" --people 20 --key "$(printf '%0100d' 7)"
check 'twenty people: status 0' is "$status" 0
check 'twenty people: the last one came' says 'Ursula arrives'
only_ascii() { ! LC_ALL=C grep -q '[^ -~]' "$work/out"; }
check 'LC_ALL=C, no terminal: printable ASCII only' only_ascii
narrow() { ! sed -n '/^Who sat when/,$p' "$work/out" | grep -q '.\{81\}'; }
check 'no terminal: the picture has 80 columns' narrow

# --------------------------------------------------------------------- the check can say no

run 30 "$dinner" --no-lock
check '--no-lock: status 1' is "$status" 1
check '--no-lock: says that two sat at once' says 'Two sat at once'
check '--no-lock: names who and when' says "sat on Ada's lap from"
leaves_nothing '--no-lock'

# -------------------------------------------------------------------------------- ended early

stopped_by INT
check 'SIGINT: status 130' is "$status" 130
check 'SIGINT: within 5 s' fast 5
check 'SIGINT: the guest at the table gave back the seat' says 'gives the seat back'
leaves_nothing 'SIGINT'

stopped_by TERM
check 'SIGTERM: status 143' is "$status" 143
leaves_nothing 'SIGTERM'

stopped_by KILL
check 'SIGKILL: status 137' is "$status" 137
check 'SIGKILL: guests and server end, too' until_true 10 no_process

# ------------------------------------------------------------------------------- what is wrong

run 5 "$dinner" --help
check '--help: status 0' is "$status" 0
check '--help: names the options' says '--people N'

for arguments in --people '--people 0' '--people 21' '--people x' '--people=' '--people 3x' \
    --url --key '--key=' --what table '--no-lock --url redis://localhost' '--url what://is/this'; do
    # shellcheck disable=SC2086  # several words are meant
    run 10 "$dinner" $arguments
    check "$arguments: status 64" is "$status" 64
    check "$arguments: says why" says 'dinner: '
done

for url in unix:///nowhere/at/all.sock redis://127.0.0.1:1; do
    run 20 "$dinner" --url "$url"
    check "nobody at $url: status 2" is "$status" 2
    check "nobody at $url: within 5 s" fast 5
    leaves_nothing "nobody at $url"
done

run 10 env PATH=/nowhere "$dinner"
check 'no redis-server: status 2' is "$status" 2
check 'no redis-server: says so' says 'redis-server'
leaves_nothing 'no redis-server'

run 10 env TMPDIR=/nowhere/at/all "$dinner"
check 'no TMPDIR: status 2' is "$status" 2

# --------------------------------------------------------------------- a server of the user's

socket=$work/own.sock
redis-server --port 0 --unixsocket "$socket" --save '' --appendonly no --dir "$work" \
    >"$work/own.log" 2>&1 &
server=$!
answers() { [ "$(redis-cli -s "$socket" ping 2>/dev/null)" = PONG ]; }
check "a server of the user's: answers" until_true 10 answers

fresh_home
TMPDIR=$home "$dinner" --url "unix://$socket" --key theirs <&- >"$work/first" 2>&1 &
pid=$!
run 30 "$dinner" --url "unix://$socket" --key theirs
wait "$pid"
check 'two dinners at one table: both status 0' both "$?" "$status" 0
cat "$work/first" >>"$work/out"
check "a server of the user's: not named ours" says 'the server that you named'
no_file_but_fence() { [ "$(redis-cli -s "$socket" keys '*')" = '{theirs}:fence' ]; }
check "a server of the user's: only the fence stays" no_file_but_fence
check "a server of the user's: still runs" answers

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
