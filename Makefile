## Targets:
##   all        the two programs and the examples (default)
##   test       build and run all test suites; ends in "N passed, N failed"
##   test-poll  those with threads once more, on poll(2) instead of epoll
##   check      layers, tidy and header in one run
##   demo       a proxy and a backend on this machine, and traffic through them
##   examples   build the examples
##   layers     sections use only what they may, no symbol leaks
##   tidy       the rules of style that a machine can check
##   header     revdial.h compiles as C++11, static, alone, twice, without warnings
##   asan       all suites with AddressSanitizer and UBSan: gcc with epoll, clang with poll(2)
##   tsan       the suites with threads under ThreadSanitizer
##   yields     the same on some, with threads that give way at locks by chance
##   helgrind   a small load under valgrind's helgrind
##   portable   the engine's suites with 32 bits, and big-endian (needs a cross compiler and qemu)
##   systems    header and programs compile for macOS, BSDs, musl (downloads zig; needs python3)
##   yamuxspec  the programs take each frame in each state of a stream as specified (needs python3)
##   interop    against the commonest of other yamux libraries (needs python3, go, node, npm)
##   interop-all  against all nine of them (also needs cargo and, for Python, libgmp-dev)
##   tls        TLS and the programs with it (needs mbedTLS and openssl; TLS=openssl: libssl, too)
##   tls-versions  the same on other versions of mbedTLS (downloads them; needs cargo)
##   sim        two engines, and a world of proxies and agents, by random seeds (SEEDS=20000)
##   thorough   suites that draw random cases, with twenty times as many of them
##   sweep      each call of the system fails in each way, at each place (SWEEP_SEEDS=3)
##   explore    every order of events in a small world, as deep as SECONDS=60 allow
##   fuzz       what reads bytes of strangers (FUZZ_SECONDS=20 each, FUZZ="engine egress")
##   differential  requests and answers are what llhttp and Go's net/http read (needs node and go)
##   coverage   lines and branches of each section that `test` reaches, and their gates (needs gcc)
##   mutate     random changes of revdial.h that `test` has to notice (COUNT=200 SEED=1; hours)
##   timing     nothing but a verdict depends on a secret's bytes (needs valgrind)
##   e2e        the programs with curl, nginx, ssh and broken networks (needs root for some)
##   hostile    attacks on the programs beside an honest session (HOSTILE_SECONDS=60 for each)
##   chaos      the parts of e2e in which processes, networks, names and clocks fail (needs root)
##   soak       mixed load with kills and reloads, MINUTES=60: nothing lost, nothing leaked
##   bench      how fast it is beside other tunnels (needs python3; BENCH="relay lib" for parts)
##   bench-peers  builds frp and rathole for it (downloads them; needs go, cargo)
##   format     clang-format over all C files
##   man        man pages of the programs, from what they say with --help
##   install    headers, programs, man pages and revdial.pc to $(DESTDIR)$(PREFIX)
##   install-headers  the headers and revdial.pc alone
##   uninstall  removes all of these
##   package    what is installed can be built with, by pkg-config and CMake, too
##   matrix     compilers, libraries, processors, versions of mbedTLS: a line for each (an hour)
##   size       bytes of text at -Os: the engine alone, a backend alone, everything
##   clean      removes build/
## Honours CC CFLAGS CPPFLAGS LDFLAGS LDLIBS, DESTDIR PREFIX BINDIR INCLUDEDIR MANDIR PKGCONFIGDIR.
## CI=true makes warnings errors.
## TLS=mbedtls (or yes), openssl or no chooses the programs' TLS library; the default is mbedtls
## where it is installed. TLS_LIBS is what it is linked with.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
PKGCONFIGDIR ?= $(PREFIX)/share/pkgconfig
BUILD = build

# Tests want line numbers and a short build, and those with threads wait more than they work.
# Whoever sets CFLAGS gets them everywhere.
ifeq ($(origin CFLAGS),undefined)
CFLAGS = -O2 -g
TEST_CFLAGS = -O1 -g
THREAD_CFLAGS = -g
DEMO_CFLAGS = -Og
else
DEMO_CFLAGS = $(CFLAGS)
TEST_CFLAGS = $(CFLAGS)
THREAD_CFLAGS = $(CFLAGS)
endif

WARNINGS = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wcast-qual -Wstrict-prototypes \
	-Wmissing-prototypes -Wundef -Wswitch-enum -Wvla -Wwrite-strings \
	-Wno-missing-field-initializers # zero is the default of every field
# gcc takes longer for this one in revdial.h than to parse it; clang and header.sh look.
ifneq ($(findstring clang,$(CC)),clang)
WARNINGS += -Wno-misleading-indentation
endif
ifeq ($(CI),true)
WARNINGS += -Werror
endif

# One job for each processor, unless the caller has chosen.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
ifneq ($(filter clean,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif

# A suite that includes only the core has no threads to check, and no poll(2) to use for epoll.
# Some count time, and the core does not check its invariants for them.
# OUTSIDE suites test files of the programs, which know the public half of revdial.h only.
# WHOLE suites replace other system calls than the rest, and compile all of revdial.h.
SOURCES := $(sort $(wildcard tests/test_*.c))
CORE := $(filter-out $(shell grep -L REVDIAL_NO_RUNTIME $(SOURCES) /dev/null),$(SOURCES))
CORE := $(CORE:tests/%.c=%)
CHECKED := $(patsubst tests/%.c,$(BUILD)/%, \
	$(shell grep -l '^.define REVDIAL_SELF_CHECK' $(SOURCES) /dev/null))
OUTSIDE := $(shell grep -l '^.include "../examples/' $(SOURCES) /dev/null)
OUTSIDE := $(filter-out $(CORE),$(OUTSIDE:tests/%.c=%))
OUTSIDE := $(OUTSIDE:%=$(BUILD)/%)
THREADED := $(filter-out $(CORE:%=$(BUILD)/%) $(OUTSIDE),$(SOURCES:tests/%.c=$(BUILD)/%))
WHOLE := $(shell grep -El '^#define (FAKE_|REVDIAL_IMPLEMENTATION)' $(SOURCES) /dev/null)
WHOLE := $(filter $(WHOLE:tests/%.c=$(BUILD)/%),$(THREADED))
CHECKED := $(filter-out $(WHOLE),$(CHECKED))
# Those that take longest come first: at the end of a run one alone would leave processors idle.
SLOW = test_floods% test_faults% test_sim% test_flow% test_world%
slow_first = $(filter $(SLOW),$(1)) $(filter-out $(SLOW),$(1))
NAMES = $(CORE) $(notdir $(OUTSIDE) $(THREADED))
SUITES = $(addprefix $(BUILD)/,$(call slow_first,$(NAMES)))
PROGRAMS = $(BUILD)/revdial-proxy $(BUILD)/revdial-agent
objects_of = $(patsubst examples/%.c,$(BUILD)/%.o,$(sort $(wildcard examples/$(1)/*.c)))
EXAMPLES = $(patsubst examples/%.c,$(BUILD)/examples/%,$(sort $(wildcard examples/*.c)))
TLS_SUITES = $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/tls/test_*.c))
BENCHES = $(patsubst tests/bench/%.c,$(BUILD)/bench/%, \
	$(filter-out tests/bench/tls.c,$(wildcard tests/bench/*.c)))

# The programs have TLS where mbedTLS compiles and links, unless the caller chooses. In the TLS
# suites mbedTLS plays the peers that misbehave, whatever is tested.
MBEDTLS_LIBS = -lmbedtls -lmbedx509 -lmbedcrypto
ifeq ($(TLS),openssl)
TLS_LIBS ?= -lssl -lcrypto
TLS_TEST_LIBS = $(TLS_LIBS) $(MBEDTLS_LIBS)
PROGRAM_TLS = -DPROGRAM_TLS -DPROGRAM_TLS_OPENSSL
endif
TLS_LIBS ?= $(MBEDTLS_LIBS)
TLS_TEST_LIBS ?= $(TLS_LIBS)
HAS_MBEDTLS = $(shell echo 'int main(void) { mbedtls_ssl_init(0); return 0; }' | \
	$(CC) -w $(CPPFLAGS) $(LDFLAGS) -include mbedtls/ssl.h -x c -o /dev/null - $(TLS_LIBS) \
	2>/dev/null && echo mbedtls)
ifeq ($(origin TLS),undefined)
TLS := $(HAS_MBEDTLS)
endif
ifneq ($(filter-out mbedtls yes openssl no,$(TLS)),)
$(error TLS=$(TLS): it must be yes or mbedtls, openssl, or no)
endif
ifneq ($(filter yes mbedtls,$(TLS)),)
ifneq ($(HAS_MBEDTLS),mbedtls)
$(error TLS=$(TLS): mbedTLS does not compile or link (Debian: libmbedtls-dev))
endif
override TLS := mbedtls
endif
ifeq ($(TLS),mbedtls)
PROGRAM_TLS = -DPROGRAM_TLS
endif
ifdef PROGRAM_TLS
PROGRAM_LIBS = $(TLS_LIBS)
NO_TLS =
else
NO_TLS = no-tls
endif

COMPILE = $(CC) -std=c11 $(WARNINGS)
LINK = $(LDFLAGS) -pthread $(LDLIBS)
RUN = REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/run.sh

.DELETE_ON_ERROR:
.PHONY: all suites examples test test-poll sim sweep thorough check demo run-demo layers tidy \
	header asan tsan yields helgrind portable matrix systems yamuxspec interop interop-all \
	tls tls-versions explore fuzz differential coverage mutate timing e2e hostile chaos soak \
	bench bench-peers format man install install-headers uninstall package size clean help \
	no-tls look FORCE

all: $(PROGRAMS) examples $(NO_TLS)

# Nobody should find that out from an agent that cannot do https.
no-tls:
	@echo '$(if $(filter no,$(TLS)),Without TLS: TLS=no,Without TLS: mbedTLS does not compile or \
		link (Debian: libmbedtls-dev))'

examples: $(EXAMPLES)
suites: $(SUITES)

# $(1) the flags of this kind of program, $(2) its libraries
define build
@mkdir -p $(@D)
$(COMPILE) $(1) -I. $(CPPFLAGS) -MMD -MP -MF $@.d -MT $@ -o $@ $< $(filter %.o,$^) $(2) $(LINK)
endef
define object
@mkdir -p $(@D)
$(CCACHE) $(COMPILE) $(1) -I. $(CPPFLAGS) -MMD -MP -MF $@.d -MT $@ -c -o $@ -x c $<
endef
CCACHE := $(shell command -v ccache 2>/dev/null)

# The implementation is compiled once for each way of use. What links with it sees revdial.h with
# declarations in place of its functions: suites may call all of them, as they are not static here.
HOLLOW = $(BUILD)/hollow/revdial.h
OPEN = $(BUILD)/open/revdial.h
LINKED = -I$(BUILD)/hollow
OPENED = -I$(BUILD)/open -Itests -Wno-missing-prototypes
$(HOLLOW): revdial.h tests/hollow.awk
	@mkdir -p $(@D)
	LC_ALL=C awk -f tests/hollow.awk $< >$@
$(OPEN): revdial.h tests/hollow.awk
	@mkdir -p $(@D)
	LC_ALL=C awk -v open=1 -f tests/hollow.awk $< >$@
$(BUILD)/revdial.o: revdial.h $(BUILD)/flags
	$(call object,$(CFLAGS) $(SECTIONS) -DREVDIAL_IMPLEMENTATION)
$(BUILD)/impl-core.o: tests/impl.c $(OPEN) $(BUILD)/flags
	$(call object,$(TEST_CFLAGS) $(OPENED) -DREVDIAL_NO_RUNTIME)
$(BUILD)/impl-checked.o: tests/impl.c $(OPEN) $(BUILD)/flags
	$(call object,$(TEST_CFLAGS) $(OPENED) -DREVDIAL_NO_RUNTIME -DREVDIAL_SELF_CHECK)
$(BUILD)/impl.o: tests/impl.c $(OPEN) $(BUILD)/flags
	$(call object,$(THREAD_CFLAGS) $(OPENED))
$(BUILD)/impl-public.o: revdial.h $(BUILD)/flags
	$(call object,$(THREAD_CFLAGS) -DREVDIAL_IMPLEMENTATION)
$(BUILD)/impl-poll.o: tests/impl.c $(OPEN) $(BUILD)/flags
	$(call object,$(THREAD_CFLAGS) $(OPENED) -DREVDIAL_POLL)

# A function that is bound when it is first called has the linker save all registers, and with them
# the secret that memcpy() has just moved, on the stack, where it stays. Suites look for it there.
# An agent has no proxy in it, nor the other way round: the linker drops functions that nothing
# calls, and tables, which would otherwise keep the functions in them.
SECTIONS = -ffunction-sections -fdata-sections
ifneq ($(filter Linux FreeBSD,$(shell uname)),)
BIND_NOW = -Wl,-z,now
DROP_UNUSED = -Wl,--gc-sections
endif
$(PROGRAMS): $(BUILD)/revdial.o $(BUILD)/flags
	$(CC) $(CFLAGS) $(CPPFLAGS) $(BIND_NOW) $(DROP_UNUSED) -o $@ $(filter %.o,$^) $(PROGRAM_LIBS) \
		$(LINK)
$(BUILD)/revdial-proxy: $(call objects_of,proxy) $(call objects_of,program) $(BUILD)/proxy/page.o
$(BUILD)/revdial-agent: $(call objects_of,agent) $(call objects_of,program)
$(call objects_of,proxy) $(call objects_of,agent) $(call objects_of,program): \
		$(BUILD)/%.o: examples/%.c $(HOLLOW) $(BUILD)/flags
	$(call object,$(CFLAGS) $(SECTIONS) -D_POSIX_C_SOURCE=200809L $(LINKED) \
		$(PROGRAM_TLS))
$(BUILD)/proxy/page.c: examples/proxy/page.html examples/page.awk
	@mkdir -p $(@D)
	LC_ALL=C awk -f examples/page.awk $< >$@
$(BUILD)/proxy/page.o: $(BUILD)/proxy/page.c $(BUILD)/flags
	$(call object,$(CFLAGS) -Iexamples/proxy)
$(BUILD)/examples/%: examples/%.c $(BUILD)/revdial.o $(HOLLOW) $(BUILD)/flags
	$(call build,$(CFLAGS) $(LINKED) $(DROP_UNUSED))
$(BUILD)/bench/tls: tests/bench/tls.c $(BUILD)/flags $(BUILD)/bench/flags
	$(call build,$(BENCH_CFLAGS),$(TLS_LIBS))
$(BUILD)/bench/%: tests/bench/%.c $(BUILD)/flags $(BUILD)/bench/flags
	$(call build,$(BENCH_CFLAGS) -D_GNU_SOURCE)
$(BUILD)/tls/%: tests/tls/%.c $(BUILD)/impl.o $(HOLLOW) $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE $(LINKED) $(PROGRAM_TLS) -Itests $(BIND_NOW),\
		$(TLS_TEST_LIBS))
# It plays the simulated world, as test_world does.
$(BUILD)/tls/test_sweep: $(BUILD)/tls/%: tests/tls/%.c $(BUILD)/flags
	$(call build,$(TEST_CFLAGS) -D_GNU_SOURCE $(PROGRAM_TLS) -Itests,$(TLS_TEST_LIBS))
$(OUTSIDE): $(BUILD)/%: tests/%.c $(BUILD)/impl-public.o $(HOLLOW) $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE $(LINKED))
$(WHOLE:=-poll): $(BUILD)/%-poll: tests/%.c $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE -DREVDIAL_POLL)
# Its threads never wait for anything, they only work.
$(BUILD)/test_world $(BUILD)/test_world-poll: private THREAD_CFLAGS = $(TEST_CFLAGS)
$(WHOLE): $(BUILD)/%: tests/%.c $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE)
$(filter-out $(WHOLE:=-poll),$(THREADED:=-poll)): $(BUILD)/%-poll: tests/%.c $(BUILD)/impl-poll.o \
		$(HOLLOW) $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE $(LINKED) -DREVDIAL_POLL)
$(filter-out $(WHOLE),$(THREADED)): $(BUILD)/%: tests/%.c $(BUILD)/impl.o $(HOLLOW) $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE $(LINKED))
$(CHECKED): $(BUILD)/%: tests/%.c $(BUILD)/impl-checked.o $(HOLLOW) $(BUILD)/flags
	$(call build,$(TEST_CFLAGS) -D_GNU_SOURCE $(LINKED))
$(filter-out $(CHECKED),$(CORE:%=$(BUILD)/%)): $(BUILD)/%: tests/%.c $(BUILD)/impl-core.o \
		$(HOLLOW) $(BUILD)/flags
	$(call build,$(TEST_CFLAGS) -D_GNU_SOURCE $(LINKED))

# The engine's suites as this compiler sees them, which makes no code of them.
look: $(CORE:%=look-%)
$(CORE:%=look-%): look-%: tests/%.c $(HOLLOW)
	$(COMPILE) -D_GNU_SOURCE $(LINKED) -I. $(CPPFLAGS) -fsyntax-only $<

# Changes when the flags do, so that everything is built again.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(ALL_FLAGS)' | cmp -s - $@ || echo '$(ALL_FLAGS)' >$@
# What measures nothing need not be fast.
BENCH_CFLAGS = $(if $(filter-out 0,$(BENCH_SMOKE)),-g,$(CFLAGS))
$(BUILD)/bench/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(BENCH_CFLAGS)' | cmp -s - $@ || echo '$(BENCH_CFLAGS)' >$@
ALL_FLAGS = $(COMPILE) $(CFLAGS) $(TEST_CFLAGS) $(THREAD_CFLAGS) $(CPPFLAGS) $(LINK) $(TLS)

-include $(wildcard $(BUILD)/*.d $(BUILD)/proxy/*.d $(BUILD)/agent/*.d $(BUILD)/program/*.d \
	$(BUILD)/examples/*.d $(BUILD)/bench/*.d $(BUILD)/tls/*.d)

# Suites wait more than they work: three times as many run at once as there are processors.
RUN_SUITES = @RUN_JOBS=$$((3 * $$(nproc 2>/dev/null || echo 2))) $(RUN)
test: $(SUITES)
	$(RUN_SUITES) $(SUITES)

test-poll: $(THREADED:=-poll)
	$(RUN_SUITES) $(THREADED:=-poll)

SEEDS = 20000
sim: $(BUILD)/test_sim $(BUILD)/test_world
	$(BUILD)/test_sim --seeds 0 $(SEEDS)
	$(BUILD)/test_world --seeds 0 $(SEEDS)

# Suites whose number of cases depends on TEST_THOROUGH.
THOROUGH := $(shell grep -El 'test_share|TEST_THOROUGH|engine_script\.h' $(SOURCES) /dev/null)
THOROUGH := $(call slow_first,$(THOROUGH:tests/%.c=%))
thorough: $(THOROUGH:%=$(BUILD)/%)
	@TEST_THOROUGH=1 RUN_TIMEOUT=900 $(RUN) $(THOROUGH:%=$(BUILD)/%)

SWEEP_SEEDS = 3
sweep: $(BUILD)/test_world
	$(BUILD)/test_world --sweep $(SWEEP_SEEDS)

# The header is compiled 40 times.
check: all
	@RUN_TIMEOUT=1200 $(RUN) tests/layers.sh tests/tidy.sh tests/header.sh

layers tidy header:
	@CC='$(CC)' sh tests/$@.sh

# Whoever tries this waits for the compiler: half as long with fewer optimisations.
demo:
	+@$(MAKE) --no-print-directory BUILD='$(BUILD)/demo' CFLAGS='$(DEMO_CFLAGS)' run-demo
run-demo: $(PROGRAMS) $(BUILD)/examples/http_handler
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/demo.sh

e2e: all
	@REVDIAL_BUILD='$(BUILD)' bash tests/e2e/run.sh $(E2E)

# Its suites need mbedTLS; without it this fails and says so.
tls: $(PROGRAMS) $(if $(PROGRAM_TLS),$(TLS_SUITES))
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/tls/run.sh $(TLS_SUITES)

tls-versions:
	@mkdir -p $(BUILD)
	+@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' MAKE='$(MAKE)' sh tests/tls/versions.sh

SECONDS = 60
explore: $(BUILD)/test_explore
	$(BUILD)/test_explore --seconds $(SECONDS)

differential:
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' python3 tests/differential/run.py \
		$(if $(DIFFERENTIAL),--count '$(DIFFERENTIAL)') $(if $(SEED),--seed '$(SEED)')

fuzz:
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/fuzz/run.sh $(FUZZ)

# tests/cover/mutate.py says what else can be chosen.
COUNT = 200
SEED = 1
coverage:
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' python3 tests/cover/coverage.py
mutate:
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' python3 tests/cover/mutate.py --count '$(COUNT)' \
		--seed '$(SEED)' --mutants '$(MUTANT)' $(if $(FULL),--full)

timing:
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/timing/run.sh

systems:
	@REVDIAL_BUILD='$(BUILD)' sh tests/systems.sh

YAMUXSPEC = python3 tests/yamuxspec/yamuxspec.py --log '$(BUILD)'/yamuxspec.log
yamuxspec: $(PROGRAMS)
	@for how in 'raw http' 'ws ws'; do \
		$(YAMUXSPEC) backend --carrier $${how% *} -- '$(BUILD)'/revdial-agent \
			--server $${how#* }://{server} --name peer --target {target} && \
		$(YAMUXSPEC) proxy --carrier $${how% *} -- '$(BUILD)'/revdial-proxy \
			--listen 127.0.0.1:0 --expose 127.0.0.1:0=peer || exit; \
	done

interop: $(PROGRAMS)
	@REVDIAL_BUILD='$(BUILD)' python3 tests/interop/run.py --spec-of go-yamux-5 \
		hashicorp go-yamux-5 js-yamux

interop-all: $(PROGRAMS)
	@REVDIAL_BUILD='$(BUILD)' python3 tests/interop/run.py --spec

# The programs once more with each TLS library that is here.
bench: $(BENCHES) $(PROGRAMS) $(if $(filter mbedtls,$(TLS)),$(BUILD)/bench/tls)
	+@for library in mbedtls openssl; do \
		$(MAKE) TLS=$$library BUILD='$(BUILD)'/bench/$$library \
			$(PROGRAMS:$(BUILD)/%='$(BUILD)'/bench/$$library/%) >/dev/null 2>&1; \
	done; :
	@exec env REVDIAL_BUILD='$(BUILD)' CC='$(CC)' python3 tests/bench/run.py $(BENCH)

hostile: $(PROGRAMS)
	@REVDIAL_BUILD='$(BUILD)' HOSTILE='$(HOSTILE)' HOSTILE_SECONDS='$(HOSTILE_SECONDS)' \
		HOSTILE_JOBS='$(HOSTILE_JOBS)' python3 tests/hostile/run.py

chaos: $(PROGRAMS)
	@REVDIAL_BUILD='$(BUILD)' bash tests/e2e/run.sh chaos trouble

soak: $(PROGRAMS)
	@REVDIAL_BUILD='$(BUILD)' MINUTES='$(MINUTES)' python3 tests/soak/soak.py

bench-peers:
	@REVDIAL_BUILD='$(BUILD)' sh tests/bench/get_peers.sh

# Each compiler has the threads wait in another way. With ASAN_ONCE, whatever its value, each suite
# is for one compiler, which builds and runs it in less time: gcc what is optimised, clang the rest.
ASAN = -fsanitize=address,undefined -fno-sanitize-recover=all
WITH_PROGRAMS_OR_THREADS = $(notdir $(OUTSIDE) $(THREADED))
WITH_POLL = $(notdir $(THREADED:=-poll))
ifdef ASAN_ONCE
ASAN_GCC = $(CORE) test_world
ASAN_CLANG = $(filter-out $(ASAN_GCC),$(WITH_PROGRAMS_OR_THREADS) $(WITH_POLL))
else
ASAN_GCC = $(NAMES)
ASAN_CLANG = $(CORE) $(WITH_POLL)
endif
asan:
	+@MAKE='$(MAKE)' CI='$(CI)' sh tests/sanitize.sh asan '$(ASAN)' \
		gcc '$(call slow_first,$(ASAN_GCC))' \
		clang '$(call slow_first,$(ASAN_CLANG))'

tsan:
	+@MAKE='$(MAKE)' CI='$(CI)' sh tests/sanitize.sh tsan -fsanitize=thread \
		clang '$(WITH_PROGRAMS_OR_THREADS)' gcc '$(notdir $(THREADED))'

# Suites with many threads and no deadlines that matter.
YIELDING = test_callers test_scarce test_dial
yields:
	+@MAKE='$(MAKE)' CI='$(CI)' sh tests/sanitize.sh yields '-fsanitize=thread -DTEST_YIELDS' \
		clang '$(YIELDING)' gcc '$(YIELDING)'

# valgrind has suppressions of its own for the C library; there are none for revdial.h.
helgrind:
	+@$(MAKE) --no-print-directory BUILD=build/helgrind CC=gcc CFLAGS='-O1 -g -DTEST_HELGRIND' \
		build/helgrind/test_scarce
	@echo 'exec valgrind -q --tool=helgrind --error-exitcode=9 build/helgrind/test_scarce U14' \
		>build/helgrind/load.sh
	@$(RUN) build/helgrind/load.sh

# What runs here runs as it is. The emulator is slow: it plays few of the simulation's seeds, and
# leaves out what the order of bytes does not touch but that takes long: rows that cut megabytes at
# every place, links with millions of packets. PORTABLE: also musl, and aarch64.
PORTABLE = m32 s390x
core_with = +@$(MAKE) --no-print-directory BUILD=build/$(1) TLS=no $(2) $(CORE:%=build/$(1)/%)
portable: $(PORTABLE:%=portable-%)
	@RUN_TIMEOUT=300 $(RUN) $(foreach kind,$(PORTABLE),$(CORE:%=build/$(kind)/%$(RUN_BY_$(kind))))
portable-m32:
	$(call core_with,m32,CFLAGS='-O2 -g -m32 -idirafter /usr/include/$(shell uname -m)-linux-gnu')
portable-musl:
	$(call core_with,musl,CC=musl-gcc CFLAGS='-O2 -g' LDFLAGS=-static)
RUN_BY_s390x = .sh
RUN_BY_aarch64 = .sh
portable-s390x portable-aarch64: portable-%:
	$(call core_with,$*,CC=$*-linux-gnu-gcc CFLAGS='-O2 -g' LDFLAGS=-static)
	@for p in $(CORE); do \
		case $$p in \
		test_sim) args='--seeds 0 300' ;; \
		test_pace) args='-comes_late -share_a_link' ;; \
		test_http) args='-A77_every_byte' ;; \
		test_flow) args='-the_window_grows_to' ;; \
		test_mux) args='row_1_ row_4 row_8 row_9 row_13 row_18 row_21' ;; \
		*) args= ;; \
		esac; \
		echo "exec qemu-$*-static build/$*/$$p $$args" >build/$*/$$p.sh; \
	done

matrix:
	+@MAKE='$(MAKE)' sh tests/matrix.sh $(MATRIX)

format:
	clang-format -i $(wildcard *.h tests/*.[ch] tests/*/*.[ch] examples/*.[ch] examples/*/*.[ch])

# Man pages are what the programs say of themselves. MAN1= leaves them out, where the programs
# cannot run on the machine that builds them.
MAN1 = $(PROGRAMS:%=%.1)
man: $(MAN1)
$(BUILD)/%.1: $(BUILD)/% examples/man.awk
	'$(abspath $<)' --help | \
		LC_ALL=C awk -v version="$$('$(abspath $<)' --version)" -f examples/man.awk >$@

VERSION = $(shell sed -n 's/^\#define REVDIAL_VERSION_STRING "\(.*\)"/\1/p' revdial.h)
$(BUILD)/revdial.pc: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' 'includedir=$(INCLUDEDIR)' '' 'Name: revdial' \
		'Description: connections through a reversed tunnel, in one C header' \
		'Version: $(VERSION)' 'Cflags: -I$${includedir} -pthread' 'Libs: -pthread' >$@

# Everybody may read what is installed, whatever the umask of the user who installs it.
install: install-headers $(PROGRAMS) $(MAN1) $(NO_TLS)
	umask 022 && mkdir -p '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(MANDIR)/man1'
	install -m 755 $(PROGRAMS) '$(DESTDIR)$(BINDIR)/'
	$(if $(MAN1),install -m 644 $(MAN1) '$(DESTDIR)$(MANDIR)/man1/')

install-headers: $(BUILD)/revdial.pc
	umask 022 && mkdir -p '$(DESTDIR)$(INCLUDEDIR)' '$(DESTDIR)$(PKGCONFIGDIR)'
	install -m 644 revdial.h revdial_tls.h '$(DESTDIR)$(INCLUDEDIR)/'
	install -m 644 $(BUILD)/revdial.pc '$(DESTDIR)$(PKGCONFIGDIR)/'

uninstall:
	rm -f '$(DESTDIR)$(INCLUDEDIR)/revdial.h' '$(DESTDIR)$(INCLUDEDIR)/revdial_tls.h' \
		'$(DESTDIR)$(PKGCONFIGDIR)/revdial.pc' \
		$(PROGRAMS:$(BUILD)/%='$(DESTDIR)$(BINDIR)/%') \
		$(MAN1:$(BUILD)/%='$(DESTDIR)$(MANDIR)/man1/%')

package: $(PROGRAMS) $(MAN1)
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' MAKE='$(MAKE)' sh tests/package.sh

# What a program with little room compiles: without assertions and tables for unwinding. A backend
# and own_loop, which has the engine alone, are programs of one file, so all of revdial.h is static
# there, and the linker drops what they do not use. The objects have all that others may call.
OS = $(CC) -std=c11 -Os -DNDEBUG -fno-asynchronous-unwind-tables $(SECTIONS) -I.
ALONE = -x c -DREVDIAL_IMPLEMENTATION -c revdial.h
size:
	@mkdir -p $(BUILD)/size
	@$(OS) -DREVDIAL_NO_RUNTIME -o $(BUILD)/size/engine.o $(ALONE)
	@$(OS) -DREVDIAL_NO_RUNTIME -DREVDIAL_NO_PROXY -o $(BUILD)/size/engine-no-proxy.o $(ALONE)
	@$(OS) -DREVDIAL_API=static $(DROP_UNUSED) -o $(BUILD)/size/own_loop examples/own_loop.c
	@$(OS) -DREVDIAL_API=static -DREVDIAL_NO_PROXY $(DROP_UNUSED) -pthread \
		-o $(BUILD)/size/backend examples/minimal_backend.c
	@$(OS) -o $(BUILD)/size/all.o $(ALONE)
	@cd $(BUILD)/size && size own_loop engine.o engine-no-proxy.o backend all.o

clean:
	rm -rf build

help:
	@sed -n 's/^## \{0,1\}//p' Makefile
