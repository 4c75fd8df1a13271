# dlock is one header, so that to build means to build its tests, its examples and its benchmarks.
#
# CC CXX CPPFLAGS CFLAGS CXXFLAGS LDFLAGS LDLIBS PREFIX DESTDIR are yours. What is ours has other
# names and stands first, so that yours wins. V=1 shows the commands. Everything built is under
# build/. A target that builds something first installs what it needs and does not find.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules
.PHONY: help deps demo test lint asan tsan matrix bench format install clean

PREFIX ?= /usr/local
Q := $(if $(V),,@)

VERSION := $(shell sed -n '1s/.* - v\([0-9.]*\) - .*/\1/p' dlock.h)
SOURCES := $(wildcard dlock.h tests/*.[ch] tests/compile/*.[ch]* examples/*.[ch] bench/*.[ch]*)
SCRIPTS := $(wildcard tests/*.sh .ci/run)
TESTS := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
TEST_SCRIPTS := tests/test_compile.sh tests/test_names.sh tests/test_docs.sh
EXAMPLES := $(patsubst examples/%.c,%,$(wildcard examples/*.c))
BENCHES := $(basename $(wildcard bench/*.c bench/*.cc))

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

# --- configurations: each has its flags, and its objects in build/NAME -------------------------

CONFIGURATIONS := debug release asan tsan hiredis
OUR_FLAGS := -I. -Wall -Wextra -MMD -MP
debug_FLAGS := -O1 -g
release_FLAGS := -O2 -g
asan_FLAGS := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
tsan_FLAGS := -O1 -g -fsanitize=thread
# The hiredis of `make matrix`. It is searched for when it is needed, for it has to be fetched.
hiredis_FLAGS := $(debug_FLAGS) -Ibuild/matrix/hiredis/usr/include
hiredis_LIBS = $(wildcard build/matrix/hiredis/usr/lib/*/libhiredis.so)
HIREDIS_CFLAGS := $(shell pkg-config --cflags hiredis 2>/dev/null)
HIREDIS_LIBS := $(shell pkg-config --libs hiredis 2>/dev/null || echo -lhiredis)
# The tests in which a model of a server, tests/model.c, runs the scripts, and what it does so with.
MODELLED := $(shell grep -lE '"tests/(scripted|model)\.h"' tests/test_*.c | sed 's|.*/||; s|\.c||')
LUA_CFLAGS := $(shell pkg-config --cflags lua5.1 2>/dev/null || echo -I/usr/include/lua5.1)
LUA_LIBS := $(shell pkg-config --libs lua5.1 2>/dev/null || echo -llua5.1)
%/model.o: OUR_FLAGS += $(LUA_CFLAGS)
# What two of the examples need besides.
%/loop_libuv: EXAMPLE_LIBS = $(shell pkg-config --libs libuv 2>/dev/null || echo -luv)
%/loop_libuv.o: EXAMPLE_CFLAGS = $(shell pkg-config --cflags libuv 2>/dev/null)
%/loop_libevent: EXAMPLE_LIBS = $(shell pkg-config --libs libevent 2>/dev/null || echo -levent)
%/loop_libevent.o: EXAMPLE_CFLAGS = $(shell pkg-config --cflags libevent 2>/dev/null)
export CC CXX HIREDIS_CFLAGS HIREDIS_LIBS

# $(call LINK,configuration,libraries) makes $@ of the objects $^.
LINK = $($(1)_FLAGS) $(LDFLAGS) -o $@ $^ $(2) $(or $($(1)_LIBS),$(HIREDIS_LIBS)) -lpthread $(LDLIBS)

define CONFIGURATION
build/$(1)/%.o: %.c | deps
	@mkdir -p $$(@D); echo '  CC   $$@'
	$$(Q)$$(CC) -std=gnu11 $$(OUR_FLAGS) $$($(1)_FLAGS) $$(HIREDIS_CFLAGS) $$(EXAMPLE_CFLAGS) \
	    $$(CPPFLAGS) $$(CFLAGS) -c -o $$@ $$<
build/$(1)/%.o: %.cc | deps
	@mkdir -p $$(@D); echo '  CXX  $$@'
	$$(Q)$$(CXX) -std=gnu++17 $$(OUR_FLAGS) $$($(1)_FLAGS) $$(HIREDIS_CFLAGS) $$(CPPFLAGS) \
	    $$(CXXFLAGS) -c -o $$@ $$<
build/$(1)/test_%: build/$(1)/tests/test_%.o build/$(1)/tests/support.o
	$$(Q)$$(CC) $$(CFLAGS) $$(call LINK,$(1),-lcmocka $$(if $$(filter %/model.o,$$^),$$(LUA_LIBS)))
$(MODELLED:%=build/$(1)/%): build/$(1)/tests/model.o
build/$(1)/bench/%: build/$(1)/bench/%.o
	$$(Q)$$(CXX) $$(CXXFLAGS) $$(call LINK,$(1),-lbenchmark)
build/$(1)/%: build/$(1)/examples/%.o
	$$(Q)$$(CC) $$(CFLAGS) $$(call LINK,$(1),$$(EXAMPLE_LIBS))
-include $(wildcard build/$(1)/*/*.d)
endef
$(foreach name,$(CONFIGURATIONS),$(eval $(call CONFIGURATION,$(name))))

PROGRAMS = $(TESTS:%=build/$(1)/%) $(EXAMPLES:%=build/$(1)/%)
# $(call RUN,configuration,scripts) runs the tests of one configuration.
RUN = BUILD=build/$(1) sh tests/run.sh build/$(1)/log $(TESTS:%=build/$(1)/%) \
    'tests/test_dinner.sh build/$(1)/dinner' 'tests/test_examples.sh build/$(1)' $(2)
# Those in which threads of one process meet.
THREADED := $(sort test_live_renew $(shell grep -l pthread_create tests/test_*.c | \
    sed 's|.*/||; s|\.c||'))
# Those that show what another hiredis, or another server, does otherwise.
PARSING := $(filter-out test_live_% test_model test_machine_random,$(TESTS)) test_live_acquire \
    test_live_queue
SERVED := test_live_acquire test_live_scripts test_live_server test_live_queue test_live_tools

# --- dependencies ------------------------------------------------------------------------------
# A header or a command, and the Debian package that brings it. gcc brings the sanitizers.

NEEDS_demo := hiredis/hiredis.h=libhiredis-dev redis-server=redis-server
NEEDS_asan := $(NEEDS_demo) cmocka.h=libcmocka-dev uv.h=libuv1-dev event2/event.h=libevent-dev \
    lua5.1/lua.h=liblua5.1-0-dev
NEEDS_tsan := $(NEEDS_asan)
NEEDS_matrix := $(NEEDS_asan)
NEEDS_test := $(NEEDS_asan) gcc=gcc g++=g++ clang=clang pkg-config=pkg-config
NEEDS_lint := $(NEEDS_asan) gcc=gcc g++=g++ clang=clang clang-format=clang-format \
    benchmark/benchmark.h=libbenchmark-dev
NEEDS_format := clang-format=clang-format patch=patch
NEEDS_bench := $(NEEDS_demo) g++=g++ benchmark/benchmark.h=libbenchmark-dev
NEEDS_deps := $(NEEDS_test) $(NEEDS_lint) $(NEEDS_format) $(NEEDS_bench)
NEEDS := $(sort $(foreach goal,$(MAKECMDGOALS),$(NEEDS_$(goal))))

# Redis's package on Debian starts a server for the whole machine and at every boot. Nobody here
# asked for that, so it is stopped and disabled, but only if it came with this installation.
deps:  ## install what all the targets need (Debian, Ubuntu), or say what is missing
	@missing=; \
	for need in $(NEEDS); do \
	    case $$need in \
	    *.h=*) printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$${need%=*}" | \
	        $(CC) $(HIREDIS_CFLAGS) $(CPPFLAGS) $(CFLAGS) -E - ;; \
	    *) command -v "$${need%=*}" ;; \
	    esac >/dev/null 2>&1 || missing="$$missing $${need#*=}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	root=; [ "$$(id -u)" -eq 0 ] || root=sudo; \
	if ! command -v apt-get >/dev/null || ! command -v $${root:-env} >/dev/null; then \
	    echo "missing, by the names of Debian's packages:$$missing" >&2; exit 1; \
	fi; \
	echo "installing:$$missing"; \
	apt="$$root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"; \
	mkdir -p build; \
	{ $$apt update && $$apt install -y --no-install-recommends $$missing; } >build/apt.log 2>&1 \
	    </dev/null || { cat build/apt.log; exit 1; }; \
	case $$missing in *redis-server*) \
	    $$root service redis-server stop; $$root update-rc.d redis-server disable ;; \
	esac >/dev/null 2>&1; true

# --- what people run ---------------------------------------------------------------------------

demo: build/release/dinner  ## five people, one table, one private server: who sat when
	@build/release/dinner

test: $(call PROGRAMS,debug)  ## build and run every test
	@$(call RUN,debug,$(TEST_SCRIPTS))

# Random schedules take several times as long here; DLOCK_SEEDS is how many there are.
asan: $(call PROGRAMS,asan)  ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    DLOCK_SEEDS=4000 $(call RUN,asan)

tsan: $(THREADED:%=build/tsan/%)  ## the tests with threads under ThreadSanitizer
	@BUILD=build/tsan DLOCK_SEEDS=4000 sh tests/run.sh build/tsan/log $^

matrix: $(PARSING:%=build/hiredis/%) $(SERVED:%=build/debug/%)  ## newer hiredis, Redis, Valkey
	@DLOCK_SEEDS=4000 sh tests/matrix.sh run build/matrix $(PARSING) with $(SERVED)

build/matrix/ready: tests/matrix.sh | deps
	@sh tests/matrix.sh fetch build/matrix
$(call PROGRAMS,hiredis): | build/matrix/ready
$(TESTS:%=build/hiredis/tests/%.o) build/hiredis/tests/support.o: | build/matrix/ready
$(EXAMPLES:%=build/hiredis/examples/%.o): | build/matrix/ready

build/release/bench/%.o: OUR_FLAGS += -DBENCH_BUILD='"$(release_FLAGS)"'
bench: $(BENCHES:%=build/release/%)  ## run the benchmarks
	@for program in $^; do echo "$$program"; $$program $(BENCH_FLAGS) || exit 1; done

# --- lint --------------------------------------------------------------------------------------

GCC_WARNINGS := -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror
# Less: padding is no fault; C99 has declarations behind statements.
CLANG_WARNINGS := -Weverything -Werror -Wno-unknown-warning-option -Wno-padded \
    -Wno-declaration-after-statement
# Less: it is not C++98; it is C, too, so its casts and its NULL are C's; a header has no other file
# for the virtual table and the one object of the error category.
CLANGXX_WARNINGS := $(CLANG_WARNINGS) -Wno-c++98-compat -Wno-c++98-compat-pedantic \
    -Wno-old-style-cast -Wno-zero-as-null-pointer-constant -Wno-weak-vtables \
    -Wno-exit-time-destructors
LINT := $(foreach c,gcc clang,$(foreach std,c99 c11 c17,build/lint/$(c)-$(std).o)) \
    $(foreach c,g++ clang++,$(foreach std,c++11 c++17 c++20,build/lint/$(c)-$(std).o))
OWN := $(patsubst %.c,build/lint/%.o,$(wildcard tests/*.c examples/*.c))
OWNXX := $(patsubst %.cc,build/lint/%.o,$(wildcard bench/*.cc))
STRICT = -D_POSIX_C_SOURCE=200809L -std=$* -O2 -I. -MMD -MP $(HIREDIS_CFLAGS) -c -o $@ $<

$(LINT) $(OWN) $(OWNXX): Makefile | deps build/lint/tests build/lint/examples build/lint/bench
-include $(wildcard build/lint/*.d build/lint/*/*.d)
build/lint/%:
	@mkdir -p $@
$(OWN): build/lint/%.o: %.c
	$(Q)gcc -std=gnu11 $(OUR_FLAGS) -Werror -O1 $(HIREDIS_CFLAGS) $(EXAMPLE_CFLAGS) -c -o $@ $<
$(OWNXX): build/lint/%.o: %.cc
	$(Q)g++ -std=gnu++17 $(OUR_FLAGS) -Werror -O1 $(HIREDIS_CFLAGS) -c -o $@ $<
build/lint/gcc-%.o: tests/compile/calls.c
	$(Q)gcc $(GCC_WARNINGS) -Wstrict-prototypes $(STRICT)
build/lint/g++-%.o: tests/compile/calls.cc
	$(Q)g++ $(GCC_WARNINGS) $(STRICT)
build/lint/clang-%.o: tests/compile/calls.c
	$(Q)clang $(CLANG_WARNINGS) $(STRICT)
build/lint/clang++-%.o: tests/compile/calls.cc
	$(Q)clang++ $(CLANGXX_WARNINGS) $(STRICT)

lint: $(LINT) $(OWN) $(OWNXX)  ## strict warnings of gcc and clang, the format, the scripts' syntax
	@sh tests/format.sh check $(SOURCES) || bad=1; \
	! LC_ALL=C.UTF-8 grep -nE '.{101}' $(SOURCES) $(SCRIPTS) Makefile || bad=1; \
	for file in $(SCRIPTS); do $$(sed -n "1s/^#!//p" $$file) -n $$file || bad=1; done; \
	if [ "$$bad" ]; then exit 1; fi; echo 'lint: clean'

format: deps  ## bring the sources into the format that lint asks for
	@sh tests/format.sh fix $(SOURCES)

# --- for other programs ------------------------------------------------------------------------

install:  ## copy the header, and dlock.pc for pkg-config, to DESTDIR/PREFIX
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/pkgconfig
	install -m 644 dlock.h $(DESTDIR)$(PREFIX)/include
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: dlock' 'Version: $(VERSION)' \
	    'Description: a lock shared by many machines, on Redis' 'Requires: hiredis' \
	    'Cflags: -I$${prefix}/include' 'Libs: -lpthread' \
	    >$(DESTDIR)$(PREFIX)/share/pkgconfig/dlock.pc

clean:  ## remove everything that was built
	rm -rf build
