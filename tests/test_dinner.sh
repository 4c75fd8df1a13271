#!/bin/sh
# examples/dinner, the demonstration: what it says, how it ends, what it leaves behind.
#
#     sh tests/test_dinner.sh build/dinner
#
# About 90 s. Needs redis-server, redis-cli, timeout and /proc; starts its own servers only.
set -u

dinner=${1:?usage: sh tests/test_dinner.sh PATH-OF-DINNER}
case $dinner in
    /*) ;;
    *) dinner=$PWD/$dinner ;;
esac
work=$(mktemp -d) || exit 2
out=$work/out # what the last dinner said
server=

tidy() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null
        wait "$server" 2>/dev/null
    fi
    rm -rf "$work"
}
. tests/checks.sh

# run SECONDS COMMAND...: in a fresh TMPDIR, without standard input; sets status, took; output in
# $out. timeout makes the status 124, and nothing here expects that.
run() {
    limit=$1
    shift
    fresh_home
    began=$(date +%s)
    TMPDIR=$home timeout "$limit" "$@" <&- >"$out" 2>&1
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
says() { grep -qF -- "$1" "$out"; }
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

# in_order: nobody sat down while another one still waited who had come long before. Read from the
# lines that the guests print when they come, sit and leave; the picture and the verdict are made
# from something else. Without anybody who came behind another there is nothing to say.
in_order() {
    awk '
        / (arrives|comes back)[;]/ {
            came[$3] = $1
            gives_up[$3] = 1e9
            if (/ does not wait/) {
                next
            }
            for (i = 1; i < NF; i++) {
                if ($i == "at" && $(i + 1) == "most") gives_up[$3] = $1 + $(i - 2)
            }
            for (other in waits) behind++
            waits[$3] = 1
        }
        / sits down/ {
            for (other in waits) {
                if (came[other] + 0.2 < came[$3] && $1 < gives_up[other] - 0.1) overtaken++
            }
            delete waits[$3]
        }
        / leaves without/ { delete waits[$3] }
        END { exit overtaken > 0 || behind == 0 }
    ' "$out"
}
out_of_order() { ! in_order; }

leaves_nothing() {
    check "$1: no process left" no_process
    check "$1: no file left" no_file
}

# stopped_by SIGNAL: in the middle of a dinner, to the parent alone.
stopped_by() {
    fresh_home
    : >"$out"
    TMPDIR=$home "$dinner" <&- >"$out" 2>&1 &
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
check 'a dinner: says that it was in order of arrival' says 'Served in order of arrival: yes; '
check 'a dinner: it was' in_order
moves_up() { sed -n '/^Who sat when/,/ wait, in order/p' "$out" | grep -q '^ .*21'; }
check 'a dinner: the picture shows how a line moves up' moves_up
leaves_nothing 'a dinner'

run 30 env LC_ALL=C "$dinner" --people 20 --key "$(printf '%0100d' 7)"
check 'twenty people: status 0' is "$status" 0
check 'twenty people: the last one came' says 'Ursula arrives'
check 'twenty people: says that it was in order of arrival' says 'Served in order of arrival: yes; '
check 'twenty people: it was' in_order
only_ascii() { ! LC_ALL=C grep -q '[^ -~]' "$out"; }
check 'LC_ALL=C, no terminal: printable ASCII only' only_ascii
narrow() { ! sed -n '/^Who sat when/,$p' "$out" | grep -q '.\{81\}'; }
check 'no terminal: the picture has 80 columns' narrow

# ------------------------------------------------------------------------ in order of arrival

# Several at once, each with a server of its own, but not so many that nobody gets through.
fresh_home
for evenings in '1:5 2:5 3:7 7:20' '4:9 5:12 6:16'; do
    for evening in $evenings; do
        {
            TMPDIR=$home timeout 30 "$dinner" --seed "${evening%:*}" --people "${evening#*:}" \
                <&- >"$work/$evening" 2>&1
            echo "$?" >"$work/$evening.status"
        } &
    done
    wait
    for evening in $evenings; do
        out=$work/$evening
        read -r status <"$out.status"
        check "seed and people $evening: status 0" is "$status" 0
        check "seed and people $evening: says that it was in order of arrival" \
            says 'Served in order of arrival: yes; '
        check "seed and people $evening: it was" in_order
    done
done
out=$work/7:20
check 'seed 7: some leave because their patience ends' says 'the call may wait'
out=$work/1:5
check 'seed 1: Ada does not wait' says 'Ada arrives; does not wait'
out=$work/2:5
check 'seed 2: Ada does' says 'Ada arrives; waits as long as it takes'
leaves_nothing 'several evenings'
out=$work/out

# --------------------------------------------------------------------- the check can say no

run 30 "$dinner" --people 20 --no-queue
check '--no-queue: status 0' is "$status" 0
check '--no-queue: says that it was not in order of arrival' says 'Served in order of arrival: no; '
check '--no-queue: names who, and by whom' says ' was overtaken by '
check '--no-queue: says what the queue is for' says 'try the same without --no-queue'
check '--no-queue: never two at once all the same' says "Nobody ever sat on anybody's lap"
check '--no-queue: it was not in order of arrival' out_of_order
leaves_nothing '--no-queue'

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
    --seed '--seed x' '--seed -1' --url --key '--key=' --what table '--url what://is/this' \
    '--no-lock --url redis://localhost' '--no-lock --no-queue'; do
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
redis() { redis-cli -s "$socket" "$@"; }
answers() { [ "$(redis ping 2>/dev/null)" = PONG ]; }
check "a server of the user's: answers" until_true 10 answers

fresh_home
TMPDIR=$home "$dinner" --url "unix://$socket" --key theirs <&- >"$work/first" 2>&1 &
pid=$!
run 30 "$dinner" --url "unix://$socket" --key theirs
wait "$pid"
check 'two dinners at one table: both status 0' both "$?" "$status" 0
cat "$work/first" >>"$out"
check "a server of the user's: not named ours" says 'the server that you named'
no_file_but_fence() { [ "$(redis keys '*')" = '{theirs}:fence' ]; }
check "a server of the user's: only the fence stays" no_file_but_fence

# The last in line is put before all others, again and again.
fresh_home
TMPDIR=$home timeout 30 "$dinner" --url "unix://$socket" --key jumped --people 12 <&- >"$out" 2>&1 &
pid=$!
while kill -0 "$pid" 2>/dev/null; do
    last=$(redis zrange '{jumped}:queue' -1 -1)
    [ -z "$last" ] || redis zadd '{jumped}:queue' xx 1 "$last" >/dev/null
    sleep 0.05
done
wait "$pid"
status=$?
check 'a jumped queue: status 1' is "$status" 1
check 'a jumped queue: says that it was not in order of arrival' \
    says 'Served in order of arrival: no; '
check 'a jumped queue: never two at once all the same' says "Nobody ever sat on anybody's lap"
check 'a jumped queue: it was not in order of arrival' out_of_order
check "a server of the user's: still runs" answers

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
