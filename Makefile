## Targets:
##   all        the two programs and the examples (default)
##   test       build and run all test suites; ends in "N passed, N failed"
##   check      layers, tidy and header in one run
##   demo       a proxy and a backend on this machine, and traffic through them
##   examples   build the examples
##   layers     sections use only what they may, no symbol leaks
##   tidy       the rules of style that a machine can check
##   header     revdial.h compiles as C++11, static, alone, twice, without warnings
##   asan       all suites with AddressSanitizer and UBSan: gcc with epoll, clang with poll(2)
##   tsan       the suites with threads under ThreadSanitizer
##   portable   the engine's suites with 32 bits, and big-endian (needs a cross compiler and qemu)
##   interop    against other yamux and WebSocket libraries (needs go, node, npm)
##   tls        TLS and the programs with it (needs mbedTLS and openssl; TLS=openssl: libssl, too)
##   tls-versions  the same on other versions of mbedTLS (downloads them; needs cargo)
##   fuzz       what reads bytes of strangers (FUZZ_SECONDS=60 in all, FUZZ="engine egress")
##   timing     nothing but a verdict depends on a secret's bytes (needs valgrind)
##   e2e        the programs with curl, nginx, ssh and broken networks (needs root for some)
##   bench      how fast it is beside other tunnels (needs python3; BENCH="relay lib" for parts)
##   bench-peers  builds frp and rathole for it (downloads them; needs go, cargo)
##   format     clang-format over all C files
##   install    revdial.h and the programs to $(DESTDIR)$(PREFIX)
##   uninstall  removes them
##   clean      removes build/
## Honours CC CFLAGS CPPFLAGS LDFLAGS LDLIBS PREFIX DESTDIR. CI=true makes warnings errors.
## TLS=mbedtls, openssl or no chooses the programs' TLS library; the default is mbedtls where it is
## installed. TLS_LIBS is what it is linked with.

PREFIX ?= /usr/local
BUILD = build

# Tests want line numbers and a short build, and those with threads wait more than they work.
# Whoever sets CFLAGS gets them everywhere.
ifeq ($(origin CFLAGS),undefined)
CFLAGS = -O2 -g
TEST_CFLAGS = -O1 -g
THREAD_CFLAGS = -g
else
TEST_CFLAGS = $(CFLAGS)
THREAD_CFLAGS = $(CFLAGS)
endif

WARNINGS = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wcast-qual -Wstrict-prototypes \
	-Wmissing-prototypes -Wundef -Wswitch-enum -Wvla -Wwrite-strings \
	-Wno-missing-field-initializers # zero is the default of every field
ifeq ($(CI),true)
WARNINGS += -Werror
endif

# One compile per program: each has the implementation in it. -j for who did not ask for anything.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
ifneq ($(filter clean,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif

# A suite that includes only the core has no threads to check, and no poll(2) to use for epoll.
SOURCES := $(sort $(wildcard tests/test_*.c tests/sim.c))
THREADED := $(patsubst tests/%.c,$(BUILD)/%, \
	$(shell grep -L REVDIAL_NO_RUNTIME $(SOURCES) /dev/null))
THREADED := $(filter $(BUILD)/%,$(THREADED))
SUITES = $(SOURCES:tests/%.c=$(BUILD)/%) $(THREADED:=-poll)
CORE = $(notdir $(filter-out $(THREADED),$(SOURCES:tests/%.c=$(BUILD)/%)))
PROGRAMS = $(patsubst examples/%.c,$(BUILD)/revdial-%,$(wildcard examples/proxy.c examples/agent.c))
EXAMPLES = $(patsubst examples/%.c,$(BUILD)/examples/%, \
	$(sort $(filter-out examples/proxy.c examples/agent.c,$(wildcard examples/*.c))))
INTEROP = $(patsubst tests/interop/%.c,$(BUILD)/interop/%,$(wildcard tests/interop/*.c))
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
ifeq ($(origin TLS),undefined)
TLS := $(shell echo 'int main(void) { mbedtls_ssl_init(0); return 0; }' | \
	$(CC) -w $(CPPFLAGS) $(LDFLAGS) -include mbedtls/ssl.h -x c -o /dev/null - $(TLS_LIBS) \
	2>/dev/null && echo mbedtls)
endif
ifneq ($(filter-out mbedtls openssl no,$(TLS)),)
$(error TLS=$(TLS): it must be mbedtls, openssl or no)
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

COMPILE = $(CC) -std=c11 $(WARNINGS) -I. $(CPPFLAGS)
LINK = $(LDFLAGS) -pthread $(LDLIBS)
RUN = REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/run.sh

.DELETE_ON_ERROR:
.PHONY: all suites examples test check demo layers tidy header asan tsan portable interop tls \
	tls-versions fuzz timing e2e bench bench-peers format install uninstall clean help no-tls FORCE

all: $(PROGRAMS) examples $(NO_TLS)

# Nobody should find that out from an agent that cannot do https.
no-tls:
	@echo '$(if $(filter no,$(TLS)),Without TLS: TLS=no,Without TLS: mbedTLS does not compile or \
		link (Debian: libmbedtls-dev))'

examples: $(EXAMPLES)
suites: $(SUITES)

comma = ,
# $(1) the flags of this kind of program, $(2) its libraries
define build
@mkdir -p $(@D)
$(COMPILE) $(1) -MMD -MP -MF $@.d -MT $@ -o $@ $< $(2) $(LINK)
endef

# A function that is bound when it is first called has the linker save all registers, and with them
# the secret that memcpy() has just moved, on the stack, where it stays. Suites look for it there.
ifneq ($(filter Linux FreeBSD,$(shell uname)),)
BIND_NOW = -Wl,-z,now
endif
$(BUILD)/revdial-%: examples/%.c $(BUILD)/flags
	$(call build,$(CFLAGS) $(BIND_NOW) $(PROGRAM_TLS),$(PROGRAM_LIBS))
$(BUILD)/tls/%: tests/tls/%.c $(BUILD)/flags
	$(call build,$(TEST_CFLAGS) -D_GNU_SOURCE $(PROGRAM_TLS) -Itests $(BIND_NOW),\
		$(TLS_TEST_LIBS))
$(BUILD)/examples/%: examples/%.c $(BUILD)/flags
	$(call build,$(CFLAGS))
$(BUILD)/interop/%: tests/interop/%.c $(BUILD)/flags
	$(call build,$(CFLAGS))
$(BUILD)/bench/tls: tests/bench/tls.c $(BUILD)/flags
	$(call build,$(CFLAGS),$(TLS_LIBS))
$(BUILD)/bench/%: tests/bench/%.c $(BUILD)/flags
	$(call build,$(CFLAGS) -D_GNU_SOURCE)
$(BUILD)/%-poll: tests/%.c $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE -DREVDIAL_POLL)
$(THREADED): $(BUILD)/%: tests/%.c $(BUILD)/flags
	$(call build,$(THREAD_CFLAGS) -D_GNU_SOURCE)
$(BUILD)/%: tests/%.c $(BUILD)/flags
	$(call build,$(TEST_CFLAGS) -D_GNU_SOURCE)

# Changes when the flags do, so that everything is built again.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(COMPILE) $(CFLAGS) $(TEST_CFLAGS) $(THREAD_CFLAGS) $(LINK) $(TLS)' | cmp -s - $@ || \
		echo '$(COMPILE) $(CFLAGS) $(TEST_CFLAGS) $(THREAD_CFLAGS) $(LINK) $(TLS)' >$@

-include $(wildcard $(BUILD)/*.d $(BUILD)/examples/*.d $(BUILD)/interop/*.d \
	$(BUILD)/bench/*.d $(BUILD)/tls/*.d)

test: $(SUITES) all
	@$(RUN) $(SUITES)

# The header is compiled 50 times.
check: all
	@RUN_TIMEOUT=550 $(RUN) tests/layers.sh tests/tidy.sh tests/header.sh

layers tidy header:
	@CC='$(CC)' sh tests/$@.sh

demo: all
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/demo.sh

e2e: all
	@REVDIAL_BUILD='$(BUILD)' bash tests/e2e/run.sh $(E2E)

# Its suites need mbedTLS; without it this fails and says so.
tls: $(PROGRAMS) $(if $(PROGRAM_TLS),$(TLS_SUITES))
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/tls/run.sh $(TLS_SUITES)

tls-versions:
	@mkdir -p $(BUILD)
	+@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' MAKE='$(MAKE)' sh tests/tls/versions.sh

fuzz:
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/fuzz/run.sh $(FUZZ)

timing:
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' sh tests/timing/run.sh

interop: $(INTEROP)
	@REVDIAL_BUILD='$(BUILD)' sh tests/interop/run.sh

bench: $(BENCHES) $(PROGRAMS) $(if $(filter mbedtls,$(TLS)),$(BUILD)/bench/tls)
	@REVDIAL_BUILD='$(BUILD)' CC='$(CC)' python3 tests/bench/run.py $(BENCH)

bench-peers:
	@REVDIAL_BUILD='$(BUILD)' sh tests/bench/get_peers.sh

# $(1) name, $(2) compilers, $(3) flags, $(4) the suites of the first compiler, $(5) of the others.
# A compiler that is not here or that lacks the runtime is passed over, unless CI=true. One is
# enough for tsan. Suites with threads are not optimised: compiling would take longer than they do.
define sanitized
+@ccs=; programs=; flags='-g -fno-omit-frame-pointer $(3)'; \
for cc in $(2); do \
	if [ $(1) = tsan ] && [ "$$ccs" ]; then break; fi; \
	if ! echo 'int main(void) { return 0; }' | $$cc $(3) -o /dev/null -x c - 2>/dev/null; then \
		echo "$$cc cannot link with $(3)"; \
		if [ "$(CI)" = true ]; then exit 1; else continue; fi; \
	fi; \
	suites='$(notdir $(4))'; \
	if [ "$$ccs" ]; then suites='$(notdir $(5))'; fi; \
	ccs="$$ccs $$cc"; goals=; \
	for p in $$suites; do goals="$$goals build/$(1)-$$cc/$$p"; done; \
	$(MAKE) --no-print-directory BUILD=build/$(1)-$$cc CC=$$cc CFLAGS="-O1 $$flags" \
		THREAD_CFLAGS="$$flags" $$goals all || exit 1; \
	programs="$$programs $$goals"; \
done; \
test "$$ccs" || exit 1; \
RUN_TIMEOUT=400 $(RUN) $$programs
endef

# Each compiler has the threads wait in another way.
ASAN = -fsanitize=address,undefined -fno-sanitize-recover=all
asan:
	$(call sanitized,asan,gcc clang,$(ASAN),$(CORE) $(THREADED),$(CORE) $(THREADED:=-poll))

tsan:
	$(call sanitized,tsan,clang gcc,-fsanitize=thread,$(THREADED),)

# 32 bits run as they are. The emulator is slow: it plays a tenth of the simulation's seeds, and
# leaves out the rows that cut megabytes at every place.
portable:
	+@$(MAKE) --no-print-directory BUILD=build/m32 \
		CFLAGS='-O2 -g -m32 -idirafter /usr/include/$(shell uname -m)-linux-gnu' \
		$(CORE:%=build/m32/%)
	+@$(MAKE) --no-print-directory BUILD=build/s390x CC=s390x-linux-gnu-gcc CFLAGS='-O2 -g' \
		LDFLAGS=-static $(CORE:%=build/s390x/%)
	@for p in $(CORE); do \
		case $$p in \
		test_sim) args='--seeds 0 1000' ;; \
		test_mux) args='row_1_ row_4 row_8 row_9 row_13 row_18 row_21' ;; \
		*) args= ;; \
		esac; \
		echo "exec qemu-s390x-static build/s390x/$$p $$args" >build/s390x/$$p.sh; \
	done
	@RUN_TIMEOUT=300 $(RUN) $(CORE:%=build/m32/%) $(CORE:%=build/s390x/%.sh)

format:
	clang-format -i $(wildcard *.h tests/*.[ch] tests/*/*.[ch] examples/*.[ch])

# Everybody may use it, whatever the umask of who installs it.
install: $(PROGRAMS) $(NO_TLS)
	umask 022 && mkdir -p '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(PREFIX)/bin'
	install -m 644 revdial.h revdial_tls.h '$(DESTDIR)$(PREFIX)/include/'
	install -m 755 $(PROGRAMS) '$(DESTDIR)$(PREFIX)/bin/'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/include/revdial.h' '$(DESTDIR)$(PREFIX)/include/revdial_tls.h' \
		$(PROGRAMS:$(BUILD)/%='$(DESTDIR)$(PREFIX)/bin/%')

clean:
	rm -rf build

help:
	@sed -n 's/^## \{0,1\}//p' Makefile
