#!/bin/sh
# A header shares its names with every program that includes it. So each macro, each symbol and
# each included file is looked at, and each function of the system that the code calls.

cd "$(dirname "$0")/.." || exit 1
out=${BUILD:-build/debug}/names
passed=0
failed=0
mkdir -p "$out" || exit 1
printf '#include "dlock.h"\n' >"$out/public.c"
printf '#define DLOCK_IMPLEMENTATION\n#include "dlock.h"\n' >"$out/all.c"
cp "$out/all.c" "$out/all.cc"

# none WHAT LINES: there are no such lines.
none() {
    if [ -z "$2" ]; then
        passed=$((passed + 1))
        echo "ok      $1"
    else
        failed=$((failed + 1))
        echo "FAILED  $1"
        echo "$2"
    fi
}

# no_call WHAT NAMES: the code calls no function with one of these names.
no_call() {
    none "$language: no call that $1" "$(grep -xE "$2" "$out/calls")"
}

# macros FILE: the names of the macros that dlock.h itself leaves defined.
macros() {
    # shellcheck disable=SC2086 # flags are words
    ${CC:-cc} -I. $HIREDIS_CFLAGS -dD -E "$1" | awk '
        /^# [0-9]+ "/ { ours = $3 ~ /dlock\.h"$/ }
        ours && $1 == "#define" { sub(/\(.*/, "", $2); defined[$2] = 1 }
        ours && $1 == "#undef" { delete defined[$2] }
        END { for (name in defined) print name }'
}

none 'every macro of the public half begins with DLOCK_' \
    "$(macros "$out/public.c" | grep -vE '^DLOCK_')"
none 'every macro of the implementation begins with DLOCK_, DLOCKI_ or dlocki_' \
    "$(macros "$out/all.c" | grep -vE '^(DLOCK_|DLOCKI_|dlocki_)')"
none 'there are macros to look at' "$([ -n "$(macros "$out/public.c")" ] || echo none)"

# Without -fno-pie a constant table of pointers counts as data that can be written.
for compiler in "${CC:-cc}" "${CXX:-g++}"; do
    case $compiler in "${CC:-cc}") file=all.c language=C ;; *) file=all.cc language=C++ ;; esac
    # shellcheck disable=SC2086 # flags are words
    none "$language: it compiles" \
        "$($compiler -I. $HIREDIS_CFLAGS -fno-pie -O0 -c -o "$out/all.o" "$out/$file" 2>&1)"
    nm -C "$out/all.o" | sed 's/^[0-9a-f]*  *//' >"$out/symbols"
    sed -n 's/^U //p' "$out/symbols" >"$out/calls"
    # Weak ones are templates of the C++ library. Local ones that begin with sds are inline
    # functions of hiredis's header. One with a dot and a number at its end belongs to a single
    # function.
    none "$language: every symbol begins with dlock" \
        "$(grep -vE '^[UVWuvw] |^t sds|^. (dlock_|dlocki_|dlock::)|\.[0-9]+$' "$out/symbols")"
    none "$language: no global variable" "$(grep '^[BbCDdGgSs] ' "$out/symbols")"
    no_call 'ends the program' '_?exit|_Exit|abort|quick_exit|raise|kill|__assert_fail'
    no_call 'prints' '(__)?(v|vf|f|d)?printf(_chk)?|f?puts|f?putc|putchar|fwrite|perror'
    no_call 'makes weak random numbers' 's?rand(_r)?|s?random|[delmnj]rand48'
    no_call 'reads a wall clock' 'time|gettimeofday|localtime(_r)?|gmtime(_r)?'
    no_call 'touches signals, or waits with select' 'signal|sigaction|alarm|p?select'
    no_call 'does not know the size of its buffer' 'st[rp]cpy|strcat|v?sprintf|gets|v?f?scanf'
    none "$language: of hiredis only the reader" "$(
        grep -E '^(redis|sds|hi_|freeReply)' "$out/calls" | grep -v '^redisReader'
    )"
done

sed '/^#endif \/\* DLOCK_H \*\//q' dlock.h >"$out/public.h"
none 'the public half includes stdbool, stddef, stdint; in C++ system_error, too' "$(
    grep -E '^# *include' "$out/public.h" | tr -d ' ' |
        grep -vxE '#include<(stdbool\.h|stddef\.h|stdint\.h|system_error)>'
)"
none 'the public half needs no hiredis' "$(${CC:-cc} -I. -M "$out/public.c" | grep hiredis)"

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
