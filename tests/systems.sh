#!/bin/sh
# Header and programs compile for systems that are not here, without a warning: a cross compiler
# with their headers (zig, from the package registry of Python) makes object files.    make systems
here=$(dirname "$0")
cd "$here/.." || exit 1
build=${REVDIAL_BUILD:-build}/systems
warnings='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-missing-field-initializers -Werror'
passed=0
failed=0

mkdir -p "$build"
if [ -z "${ZIG-}" ] && ! [ -x "$build/zig/bin/python" ]; then
    python3 -m venv "$build/zig" && "$build/zig/bin/pip" -q install ziglang==0.17.1 || exit 1
fi
# The compiler itself, and not Python before it 366 times.
zig=${ZIG:-$(echo "$build"/zig/lib/python*/site-packages/ziglang/zig)}

# compiles TARGET WHAT ARGUMENTS...
compiles() {
    name="$1: $2"
    target=$1
    shift 2
    if $zig cc -target "$target" -std=c11 $warnings -I. -c -o "$build/object.o" "$@" \
        >"$build/log" 2>&1; then
        echo "ok $name"
        passed=$((passed + 1))
    else
        echo "FAIL $name"
        sed 's/^/    /' "$build/log" | head -n 30
        failed=$((failed + 1))
    fi
}

for target in aarch64-macos x86_64-macos x86_64-freebsd x86_64-netbsd aarch64-linux-musl \
    riscv64-linux-gnu; do
    compiles "$target" revdial.h -DREVDIAL_IMPLEMENTATION -x c revdial.h
    for file in examples/program/*.c examples/proxy/*.c examples/agent/*.c; do
        case $target in
        *linux*) posix=-D_POSIX_C_SOURCE=200809L ;;
        *) posix= ;; # their headers show everything unless that asks for less
        esac
        compiles "$target" "$file" $posix "$file"
    done
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
