#!/bin/sh
# TLS between our own ends and with openssl as the other one.     make tls, make TLS=openssl tls
#     run.sh SUITE...
build=${REVDIAL_BUILD:-build}
REVDIAL_TLS_CERTS=$build/tls/certs
export REVDIAL_TLS_CERTS
if [ ! -x "${1-}" ] || ! command -v openssl >/dev/null; then
    echo "mbedTLS or openssl is missing: libmbedtls-dev, openssl"
    echo "0 passed, 1 failed"
    exit 1
fi
rm -rf "$REVDIAL_TLS_CERTS"
mkdir -p "$REVDIAL_TLS_CERTS" && sh tests/tls/certs.sh "$REVDIAL_TLS_CERTS" || exit 1
RUN_TIMEOUT=600 sh tests/run.sh "$@" tests/tls/peers.sh
