#!/bin/sh
# Compiles the small programs in tests/compile in every way that the header promises to support,
# with warnings as errors, and runs them. What must not compile has to say why.

cd "$(dirname "$0")/.." || exit 1
here=tests/compile
all=${BUILD:-build/debug}/compile
out=$all
libraries=${HIREDIS_LIBS:--lhiredis}
passed=0
failed=0
rm -rf "$all"
mkdir -p "$all/gcc" "$all/clang" || exit 1

verdict() { # status, what, text
    if [ "$1" -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok      $2"
    else
        failed=$((failed + 1))
        echo "FAILED  $2"
        echo "$3"
    fi
}

# compile FILE: an object of it, by $c or $cxx, with their standards $c_std and $cxx_std and $flags.
# Strict standards hide POSIX's names, so POSIX is asked for.
posix=-D_POSIX_C_SOURCE=200809L
compile() {
    case $1 in
    *.cc) set -- "$1" "$cxx" "-std=$cxx_std" ;;
    *) set -- "$1" "$c" "-std=$c_std $posix" ;;
    esac
    # shellcheck disable=SC2086 # flags are words
    $2 $3 $flags $HIREDIS_CFLAGS -I. -Wall -Wextra -Wpedantic -Werror -g -c -o "$out/${1%.*}.o" \
        "$here/$1"
}

# works WHAT FILE...: they compile, link, run, and the program finds nothing wrong.
works() {
    what=$1
    shift
    objects=
    linker=$c
    for file; do
        case $file in *.cc) linker=$cxx ;; esac
        said=$(compile "$file" 2>&1)
        status=$?
        if [ $status -ne 0 ]; then
            verdict $status "$what" "$said"
            return
        fi
        objects="$objects $out/${file%.*}.o"
    done
    # shellcheck disable=SC2086 # objects and libraries are words
    said=$($linker -o "$out/program" $objects $libraries $threads 2>&1 && "$out/program" 2>&1)
    verdict $? "$what" "$said
(the exit status counts what was wrong)"
}

# refuses WHAT TEXT FILE: it does not compile, and the compiler repeats the header's text.
refuses() {
    if said=$(compile "$3" 2>&1); then
        verdict 1 "$1" 'it compiled'
    else
        echo "$said" | grep -q "error.*dlock.h.*$2"
        verdict $? "$1" "expected an error with the text: $2
$said"
    fi
}

# suite C-COMPILER C++-COMPILER
suite() {
    c=$1
    cxx=$2
    flags=
    threads=-lpthread
    for c_std in c99 c11 c17 c2x gnu99 gnu17; do
        works "$c -std=$c_std" calls.c
    done
    for cxx_std in c++11 c++14 c++17 c++20 c++2b gnu++11; do
        works "$cxx -std=$cxx_std" calls.cc
    done

    c_std='c99'
    cxx_std='c++11'
    works "$c: two files, C and C" unit_with.c unit_without.c
    works "$c: two files, C and C++" unit_with.c unit_without.cc
    works "$c: two files, C++ and C" unit_with.cc unit_without.c
    works "$c: two files, C++ and C++" unit_with.cc unit_without.cc
    works "$c: two files, DLOCK_STATIC in both" static_one.c static_two.c
    works "$c: two files, another DLOCK_KEY_MAX is noticed" unit_with.c key_max.c
    works "$c: included again and again" twice.c
    works "$c: DLOCK_MALLOC and DLOCK_FREE" memory.c
    works "$c: DLOCK_DEF" linkage.c

    for flags in -DDLOCK_KEY_MAX=16 -DDLOCK_KEY_MAX=1024 -DDLOCK_DEBT_MAX=2 -DDLOCK_STATIC \
        '-include assert.h -DDLOCK_ASSERT=assert'; do
        works "$c: $flags" calls.c
        works "$cxx: $flags" calls.cc
    done
    for flags in -O3 '-O2 -fPIC -fvisibility=hidden'; do
        works "$c: $flags" calls.c
    done

    flags='-fno-exceptions -fno-rtti'
    works "$cxx: $flags" no_exceptions.cc

    flags=-DDLOCK_NO_THREADS
    threads=
    for program in calls.c calls.cc; do
        works "$c: DLOCK_NO_THREADS, $program" $program
        ! said=$(nm -u "$out/calls.o" | grep pthread_)
        verdict $? "$c: DLOCK_NO_THREADS needs nothing of pthread, $program" "$said"
    done

    flags=
    refuses "$c: DLOCK_MALLOC alone" DLOCK_FREE malloc_alone.c
    refuses "$c: DLOCK_FREE alone" DLOCK_MALLOC free_alone.c
    refuses "$c: DLOCK_STATIC alone" DLOCK_IMPLEMENTATION static_alone.c
    for flags in -DDLOCK_KEY_MAX=0 -DDLOCK_KEY_MAX=1025; do
        refuses "$c: $flags" '1 to 1024' calls.c
    done
    flags=-DDLOCK_DEBT_MAX=1
    refuses "$c: $flags" '2 or more' calls.c
    flags=
    posix=
    refuses "$c: -std=c99 without POSIX's names" _POSIX_C_SOURCE=200809L calls.c
}

# Each pair of compilers has a directory, and a processor if there are two.
for c in gcc clang; do
    (
        out=$all/$c
        case $c in gcc) suite gcc g++ ;; *) suite clang clang++ ;; esac
        echo "$passed $failed" >"$all/$c.count"
    ) >"$all/$c.log" 2>&1 &
done
wait
for c in gcc clang; do
    cat "$all/$c.log"
    read -r more_passed more_failed <"$all/$c.count" || failed=$((failed + 1))
    passed=$((passed + more_passed))
    failed=$((failed + more_failed))
done

# As installed, found by pkg-config, in a place where no header of ours is near.
installed=$PWD/$all/installed
cp $here/calls.[ch] "$all" || exit 1
if said=$(MAKEFLAGS='' make --no-print-directory install DESTDIR="$installed" PREFIX=/usr 2>&1) &&
    words=$(PKG_CONFIG_PATH=$installed/usr/share/pkgconfig pkg-config \
        --define-variable=prefix="$installed/usr" --cflags --libs dlock 2>&1); then
    # shellcheck disable=SC2086 # words
    said=$( (cd "$all" && ${CC:-cc} -o program calls.c $words && ./program) 2>&1)
fi
verdict $? 'make install, pkg-config --cflags --libs dlock' "$said
$words"

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
