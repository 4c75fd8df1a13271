#!/bin/sh
# For the test scripts of programs, which read it with ".": counting what passes. `tidy` is theirs,
# and so are $out, what the program said, and $status and $took, how its run went.

passed=0
failed=0
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
        sed 's/^/    | /' "$out"
    fi
}
