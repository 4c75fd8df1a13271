#!/bin/sh
# Compares source files with what clang-format makes of them.
#
#     format.sh check FILE...     shows the differences; fails if there are any
#     format.sh fix FILE...       makes them as they should be
#
# clang-format has no way to leave a comment behind code in the column that somebody chose for it.
# So the blanks between code and a comment do not count, and are left alone.

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
command=$1
shift
different=0

squeeze() {
    sed 's|\([^[:blank:]]\)[[:blank:]]\{1,\}\(/[*/]\)|\1 \2|'
}

for file; do
    squeeze <"$file" >"$work/is"
    clang-format "$file" | squeeze >"$work/should"
    ! diff -u --label "$file" --label "$file, formatted" "$work/is" "$work/should" \
        >"$work/patch" || continue
    different=1
    case $command in
    fix) patch --quiet --ignore-whitespace --no-backup-if-mismatch "$file" "$work/patch" ;;
    *) cat "$work/patch" ;;
    esac || exit 1
done

[ "$command" = fix ] || [ "$different" -eq 0 ]
