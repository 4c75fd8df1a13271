#!/bin/sh
# Runs test programs and test scripts one after the other, and counts.
#
#     run.sh [-s title] directory program...
#
# A program is a word; with arguments behind it if it needs some, in the same word.
# What each prints is kept in directory/NAME.log, and shown if it failed. The last line is
# "N passed, N failed". With -s there is one line for them all, which begins with the title.
# A program says how it went as cmocka does or in a line "N passed, N failed". One that ends badly,
# says nothing, or skips a test has failed: a test that cannot be made is not a test that passed.

title=
if [ "$1" = -s ]; then
    title=$2
    shift 2
fi
directory=$1
shift
mkdir -p "$directory" || exit 1
limit=${TEST_LIMIT:-300} # seconds for one program
all_passed=0
all_failed=0

# The log in, what passed and what failed out. Of the tests that cmocka announced, those have passed
# that it calls OK; the others have failed, never ran because of a crash, or were skipped.
count() {
    awk '/^\[==========\] Running [0-9]+ test\(s\)/ { failed += $3 }
         /\[       OK \]/ { passed++; failed-- }
         /^[0-9]+ passed, [0-9]+ failed$/ { passed += $1; failed += $3 }
         END { print passed + 0, failed + 0 }' "$1"
}

for program; do
    name=$(basename "${program%% *}" .sh)
    log=$directory/$name.log
    [ -n "$title" ] || printf '%-20s ' "$name"
    began=$(date +%s)
    case ${program%% *} in *.sh) program="sh $program" ;; esac
    # shellcheck disable=SC2086 # words
    timeout --foreground -k 10 "$limit" $program >"$log" 2>&1 </dev/null
    status=$?
    seconds=$(($(date +%s) - began))
    # shellcheck disable=SC2046 # two words
    set -- $(count "$log")
    passed=$1
    failed=$2
    why=
    if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
        why=", not finished after $limit s"
    elif [ "$status" -gt 128 ]; then
        why=", ended by signal $((status - 128))"
    elif [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
        why=", exit status $status"
    elif [ $((passed + failed)) -eq 0 ]; then
        why=', no test ran'
    fi
    [ -z "$why" ] || failed=$((failed + 1))
    all_passed=$((all_passed + passed))
    all_failed=$((all_failed + failed))
    [ -n "$title" ] || echo "$passed passed, $failed failed, $seconds s$why"
    if [ "$failed" -ne 0 ]; then
        [ -z "$title" ] || echo "$title: $name: $failed failed$why"
        sed 's/^/    /' "$log"
        echo "    (that was $log)"
    fi
done

echo "${title:+$title: }$all_passed passed, $all_failed failed"
[ "$all_failed" -eq 0 ] && [ "$all_passed" -gt 0 ]
