#!/bin/sh
# What the header, the README, the Makefile and the licence say about each other is true.

cd "$(dirname "$0")/.." || exit 1
out=${BUILD:-build/debug}/docs
passed=0
failed=0
rm -rf "$out"
mkdir -p "$out" || exit 1

# same WHAT ONE OTHER: two texts are the same, and not empty.
same() {
    if [ -n "$2" ] && [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "ok      $1"
    else
        failed=$((failed + 1))
        printf 'FAILED  %s\none:\n%s\nother:\n%s\n' "$1" "$2" "$3"
    fi
}

macro() { # its value
    sed -n "s/^#define $1 *(*\(-*[0-9]*\))*.*/\1/p" dlock.h
}

# --- the header about itself ---

sed '/\*\//q' dlock.h >"$out/preamble"
same 'the list of contents names the sections, in their order' \
    "$(sed -n '/^CONTENTS/,/^$/p' "$out/preamble" | sed 1d | tr -s ' \n' ' ' |
        sed 's/^ //; s/ $//; s/ - /\n/g')" \
    "$(grep '^[A-Z][A-Z]' "$out/preamble" | grep -v '^CONTENTS' | sed 's/  .*//')"

version=$(macro DLOCK_VERSION_MAJOR).$(macro DLOCK_VERSION_MINOR).$(macro DLOCK_VERSION_PATCH)
same 'line 1 has the version of the macros' "$version" \
    "$(sed -n '1s/.* - v\([0-9.]*\) - .*/\1/p' dlock.h)"
same 'the newest revision has it, too' "$version" \
    "$(sed -n '/^REVISIONS/,$s/^ *\([0-9][0-9.]*\)  .*/\1/p' "$out/preamble" | head -n 1)"

defaults=$(sed -n 's/^#define DLOCK_DEFAULT_\([A-Z_]*\) .*/\1/p' dlock.h)
for default in $defaults; do
    value=$(macro "DLOCK_DEFAULT_$default")
    case $default in
    RETRY_MIN_MS) field=retry_delay_ms ;;
    RETRY_MAX_MS)
        field=retry_delay_ms
        value="$(macro DLOCK_DEFAULT_RETRY_MIN_MS) to $value"
        ;;
    *) field=$(echo "$default" | tr '[:upper:]' '[:lower:]') ;;
    esac
    comment=$(sed -n "s|^ .* \**$field; *\(/\*.*0 = .*\)|\1|p" dlock.h)
    echo "$comment" | grep -q "0 = $value\([^0-9]\|$\)"
    same "DLOCK_DEFAULT_$default is what the comment of $field says" $? 0
done
same 'every number that a zero stands for is a DLOCK_DEFAULT_' "$(
    sed -n 's|^    [a-z].*/\*.*[ (]0 = \([0-9]\+\)[^0-9].*|\1|p' dlock.h | sort -u
)" "$(
    sed -n 's|^    [a-z].*/\*.*[ (]0 = \([0-9]\+\)[^0-9].*|\1|p' dlock.h | sort -u |
        while read -r value; do
            sed -n "s/^#define DLOCK_DEFAULT_[A-Z_]* $value$/$value/p" dlock.h
        done | sort -u
)"

# Words only: the one is a comment, with other line ends.
words() {
    tr -s '[:space:]' '\n' | sed 's/^-\{3,\}$//; s/^\/\*$//; s/^\*\/$//; s/^\*$//; /^$/d'
}
words <LICENSE >"$out/licence"
words <dlock.h | tail -n "$(wc -l <"$out/licence")" >"$out/end"
same 'the header ends with the text of LICENSE' "differs:$(diff "$out/licence" "$out/end")" differs:

# --- the code that people copy ---

compiler() { # of a file
    case $1 in
    *.cc) echo "${CXX:-g++} -std=gnu++11" ;;
    *) echo "${CC:-cc}" ;;
    esac
}

# compiles WHAT FILE: as a beginner would compile it, but warnings count.
compiles() {
    # shellcheck disable=SC2046,SC2086 # words
    said=$($(compiler "$2") -I. $HIREDIS_CFLAGS -Wall -Wextra -Wno-unused -Werror "$2" \
        -o "$out/program" ${HIREDIS_LIBS:--lhiredis} -lpthread 2>&1)
    same "$1 compiles and links" "$?$said" 0
}

# includes WHAT FILE: it has all the headers that it needs itself. Where it also gets the
# implementation, that brings many, and what is missing would not be missed.
includes() {
    public=$out/public.${2##*.}
    sed '/^#define DLOCK_IMPLEMENTATION$/d' "$2" >"$public"
    # shellcheck disable=SC2046 # words
    said=$($(compiler "$public") -I. -Wall -Wextra -Wno-unused -Werror -fsyntax-only "$public" 2>&1)
    same "$1 includes what it needs" "$?$said" 0
}

sed -n '/^USE IT/,/^[A-VX-Z]/s/^        //p' "$out/preamble" >"$out/preamble.c"
compiles "the program in the header's preamble" "$out/preamble.c"
includes "the program in the header's preamble" "$out/preamble.c"

# Each block of code in README.md becomes a file NUMBER.c or NUMBER.cc. One that includes dlock.h is
# a whole file and is left as it is. Others are lines of a file: they get every header, and are
# wrapped in a function if they have none of their own.
awk -v out="$out" '
    /^```(c|c\+\+|cpp)$/ { n++; file = out "/" n ($0 == "```c" ? ".c" : ".cc"); next }
    /^```/ { file = ""; next }
    file { print >file }' README.md
blocks=0
for file in "$out"/[0-9]*.c "$out"/[0-9]*.cc; do
    [ -f "$file" ] || continue
    blocks=$((blocks + 1))
    mv "$file" "$out/block"
    if grep -q '^#include "dlock.h"' "$out/block"; then
        cp "$out/block" "$file"
        grep -q 'main(' "$file" || echo 'int main() { return 0; }' >>"$file"
        compiles "block $blocks of README.md, as it is," "$file"
        includes "block $blocks of README.md" "$file"
        continue
    fi
    {
        echo '#define DLOCK_IMPLEMENTATION'
        echo '#include "dlock.h"'
        for name in errno signal stdio stdlib string unistd; do echo "#include <$name.h>"; done
        case $file in *.cc) echo '#include <mutex>' ;; esac
        if grep -q '^[a-z].*)$' "$out/block"; then
            cat "$out/block"
            grep -q 'main(' "$out/block" || echo 'int main() { return 0; }'
        else
            grep '^#' "$out/block"
            echo 'void sample(dlock_factory *factory, const char *key);'
            echo 'void sample(dlock_factory *factory, const char *key)'
            echo '{ dlock_lock lock = DLOCK_INIT; dlock_options options = {}; {'
            grep -v '^#' "$out/block"
            echo '} }'
            echo 'int main() { return 0; }'
        fi
    } >"$file"
    compiles "block $blocks of README.md" "$file"
done
# The command that README.md gives for them, word by word.
sed -n 's/^    cc /cc /p' README.md >"$out/command"
cp "$out/1.c" "$out/program.c" && cp dlock.h "$out"
said=$(cd "$out" && sh -e ./command 2>&1)
same "README.md's command compiles its first block" "$?$said$(wc -l <"$out/command")" 01

same 'README.md has blocks of code' "$([ $blocks -gt 0 ] && echo yes)" yes

# The command that stands in the comment of an example, with another place for the program.
for file in examples/*.c; do
    command=$(sed -n 's/^ \*  *\(cc .*\)/\1/p' "$file")
    said=$(sh -c "$command -Wall -Wextra -Werror -o '$out/program'" 2>&1)
    same "the command in $file compiles it" "$?$said" 0
done

# --- the commands that people type ---

# "make" in backticks, or at the beginning of a line in a block for the shell or in an indented one.
commands=$(awk '
    /^```/ { shell = /^```(sh|console|bash)$/; next }
    (shell || /^    /) && sub(/^\$? *make /, "") { print $1 }
    { while (match($0, /`make [a-z]+/)) {
        print substr($0, RSTART + 6, RLENGTH - 6); $0 = substr($0, RSTART + RLENGTH) } }
    ' README.md | sort -u)
for target in $commands; do
    same "make $target exists" "$(sed -n "s/^\($target\):.*/\1/p" Makefile)" "$target"
done
same 'README.md names make test' "$(echo "$commands" | grep -x test)" test

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
