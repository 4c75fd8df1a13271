#!/bin/sh
# examples/loop_poll, loop_libuv, loop_libevent: many locks that wait at once, in one thread, on two
# connections. What they say is compared with what their server saw.
#
#     sh tests/test_examples.sh build/debug
#
# About a minute. Needs redis-server, redis-cli, timeout and /proc; uses servers of its own only.
set -u

build=${1:?usage: sh tests/test_examples.sh DIRECTORY-OF-THE-PROGRAMS}
case $build in
    /*) ;;
    *) build=$PWD/$build ;;
esac
programs='loop_poll loop_libuv loop_libevent'
work=$(mktemp -d) || exit 2
socket=$work/server.sock
children= # that were started in the background

tidy() {
    # shellcheck disable=SC2086 # words
    [ -z "$children" ] || kill -9 $children 2>/dev/null
    wait
    rm -rf "$work"
}
. tests/checks.sh

# run SECONDS COMMAND...: sets status and took; the output is in $out, temporary files are in $home.
# timeout makes the status 124, which nothing here expects.
out=$work/out
home=$work/home
mkdir "$home"
run() {
    limit=$1
    shift
    began=$(date +%s)
    TMPDIR=$home timeout "$limit" "$@" <&- >"$out" 2>&1
    status=$?
    took=$(($(date +%s) - began))
}

# start COMMAND...: the same in the background, without a limit; sets pid.
start() {
    TMPDIR=$home "$@" <&- >"$out" 2>&1 &
    pid=$!
    children="$server $pid"
}

# ended: waits until that has ended, and has an end of its own.
ended() {
    began=$(date +%s)
    until_true 60 gone || kill -9 "$pid"
    wait "$pid"
    status=$?
    took=$(($(date +%s) - began))
    children=$server
}
gone() {
    case $(sed -n 's/^State:[[:blank:]]*//p' "/proc/$pid/status" 2>/dev/null) in
        '' | Z*) true ;;
        *) false ;;
    esac
}

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

# Processes that were started with this TMPDIR, or work inside of it: redis-server overwrites its
# environment, but has its working directory there.
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
says() { grep -qF -- "$1" "$out"; }
says_only() { [ "$(cat "$out")" = "$1" ]; }
is() { [ "$1" = "$2" ]; }
between() { [ "$1" -le "$2" ] && [ "$2" -le "$3" ]; }

# --- what the server says

redis() { redis-cli -s "$socket" "$@"; }
answers() { [ "$(redis ping 2>/dev/null)" = PONG ]; }
info() { redis info "$1" | tr -d '\r' | sed -n "s/^$2[:=]//p"; }
connections() { info stats total_connections_received; }
# Everybody but redis-cli itself.
clients() { [ "$(redis client list | grep -vc 'cmd=client')" = "$1" ]; }
waiting() { [ "$(redis zcard "{$key}:queue")" = "$1" ]; }
scripts() { # that were called since the last CONFIG RESETSTAT
    info commandstats 'cmdstat_eval\(sha\)\{0,1\}:calls' | sed 's/,.*//' |
        awk '{ n += $1 } END { print n + 0 }'
}
only_a_fence() { [ "$(redis keys '*')" = "{$key}:fence" ]; }

# Somebody who looks like a dlock of another program holds the key.
someone_holds_it() {
    redis set "$key" dl1-00000000000000000000000000000000 px "$1" >/dev/null
}

redis-server --port 0 --unixsocket "$socket" --save '' --appendonly no --dir "$work" \
    >"$work/server.log" 2>&1 &
server=$!
children=$server
: >"$out"
check 'the server answers' until_true 20 answers
url=unix://$socket

# ThreadSanitizer may have a thread of its own.
case ${build##*/} in
    tsan) most=2 ;;
    *) most=1 ;;
esac
one_thread() {
    set -- "/proc/$pid/task"/*
    [ -d "$1" ] && [ $# -le "$most" ]
}

for name in $programs; do
    program=$build/$name
    key=key:$name

    # ------------------------------------------------------------- a thousand locks, in order

    redis flushall >/dev/null
    redis config resetstat >/dev/null
    before=$(connections)
    run 60 "$program" --url "$url" --key "$key"
    check "$name: status 0" is "$status" 0
    check "$name: says so in one line" \
        says_only '1000 of 1000 locks acquired, in order of arrival, on 2 connections'
    # To look at the counter again is a connection, too.
    check "$name: the server saw two connections" is $(($(connections) - before - 1)) 2
    check "$name: about one command to acquire, one to release" between 2000 "$(scripts)" 2200
    check "$name: nothing stays but the fence" only_a_fence

    # --------------------------------------------- all wait at the same time; ended by Ctrl-C

    for signal in INT TERM; do
        case $signal in INT) expected=130 ;; TERM) expected=143 ;; esac
        redis flushall >/dev/null
        someone_holds_it 600000
        start "$program" --url "$url" --key "$key"
        check "$name, $signal: a thousand stand in line" until_true 30 waiting 1000
        check "$name, $signal: two connections" clients 2
        check "$name, $signal: one thread" one_thread
        kill -s "$signal" "$pid"
        ended
        check "$name, $signal: status $expected" is "$status" "$expected"
        check "$name, $signal: within 10 s" between 0 "$took" 10
        check "$name, $signal: says only how many" \
            says_only '0 of 1000 locks acquired, in order of arrival, on 2 connections'
        check "$name, $signal: nobody is left in line" until_true 10 waiting 0
        check "$name, $signal: nobody is left at the server" until_true 10 clients 0
    done

    # ------------------------------------------------------- ended while they take turns

    redis flushall >/dev/null
    start "$program" --url "$url" --key "$key" --locks 10000
    taking_turns() { [ "$(redis zscore "{$key}:fence" f)" != "$(redis zscore "{$key}:fence" f)" ]; }
    check "$name, in the middle: they take turns" until_true 30 taking_turns
    kill -s INT "$pid"
    ended
    check "$name, in the middle: status 130" is "$status" 130
    check "$name, in the middle: within 20 s" between 0 "$took" 20
    check "$name, in the middle: some had it" says ' of 10000 locks acquired, in order'
    check "$name, in the middle: nothing stays but the fence" until_true 5 only_a_fence

    # ---------------------------------------------- control: another order is seen, and judged

    redis flushall >/dev/null
    someone_holds_it 4000
    start "$program" --url "$url" --key "$key" --locks 5
    check "$name, a jumped queue: five stand in line" until_true 3 waiting 5
    redis zadd "{$key}:queue" xx 1 "$(redis zrange "{$key}:queue" -1 -1)" >/dev/null
    ended
    check "$name, a jumped queue: status 1" is "$status" 1
    check "$name, a jumped queue: says so" \
        says '5 of 5 locks acquired, not in order of arrival, on 2 connections'

    # ----------------------------------------------------------------------------- one alone

    run 20 "$program" --url "$url" --key "$key" --locks 1
    check "$name, one lock: status 0" is "$status" 0
    check "$name, one lock: never waits, so there is no second connection" \
        says_only '1 of 1 locks acquired, in order of arrival, on 1 connection'

    # -------------------------------------------------------------------------- what is wrong

    run 5 "$program" --help
    check "$name --help: status 0" is "$status" 0
    check "$name --help: names the options" says '--locks N'
    for arguments in --locks '--locks 0' '--locks 100001' '--locks x' '--locks 3x' --url --key \
        --what 'table 1' '--url what://is/this' '--url redis://:0x'; do
        # shellcheck disable=SC2086  # several words are meant
        run 10 "$program" $arguments
        check "$name $arguments: status 64" is "$status" 64
        check "$name $arguments: says why" says "$name: "
    done
    run 10 "$program" --url "$url" --key ''
    check "$name, an empty key: status 64" is "$status" 64

    for dead in unix:///nowhere/at/all.sock redis://127.0.0.1:1; do
        run 20 "$program" --url "$dead"
        check "$name, nobody at $dead: status 2" is "$status" 2
        check "$name, nobody at $dead: within 10 s" between 0 "$took" 10
        check "$name, nobody at $dead: says so" says "$name: "
    done
    redis flushall >/dev/null
    redis rpush "$key" 'not a lock' >/dev/null
    run 20 "$program" --url "$url" --key "$key" --locks 3
    check "$name, a key that is no lock: says why, once" is "$(grep -c "^$name: " "$out")" 1
    check "$name, a key that is no lock: does not say 0" between 1 "$status" 2

    run 10 env PATH=/nowhere "$program"
    check "$name, no redis-server: status 2" is "$status" 2
    check "$name, no redis-server: says so" says redis-server
    run 10 env TMPDIR=/nowhere/at/all "$program"
    check "$name, no TMPDIR: status 2" is "$status" 2

    # ------------------------------------------------------------------ a server of their own

    : >"$out"
    check "$name: no process is left so far" no_process
    check "$name: no file is left so far" no_file
    start "$program" --locks 10000
    server_is_up() { ls "$home"/loop_*/server.sock >/dev/null 2>&1; }
    check "$name, killed: its server was there" until_true 20 server_is_up
    kill -s KILL "$pid"
    ended
    check "$name, killed: status 137" is "$status" 137
    check "$name, killed: its server ends, too" until_true 20 no_process
    rm -rf "$home"/loop_*
done

# ------------------------------------------------- ten thousand each, at a server of their own

# libevent's timers go off up to four milliseconds late unless they are told not to.
for name in $programs; do
    EVENT_PRECISE_TIMER=1 TMPDIR=$home timeout 200 "$build/$name" --locks 10000 <&- \
        >"$work/$name.out" 2>&1 &
    eval "$name=$!"
    children="$children $!"
done
for name in $programs; do
    eval "wait \$$name"
    status=$?
    out=$work/$name.out
    check "$name, 10000 locks: status 0" is "$status" 0
    check "$name, 10000 locks: says so in one line" \
        says_only '10000 of 10000 locks acquired, in order of arrival, on 2 connections'
done
check 'no process is left' no_process
check 'no file is left' no_file
check "the test's own server still runs" answers

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
