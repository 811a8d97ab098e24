// The name of the server in the first bytes of a TLS connection.
#ifndef REVDIAL_PROXY_SNI_H
#define REVDIAL_PROXY_SNI_H

#include <stdint.h>

#include "routes.h"

enum { SNI_HELLO_MAX = 16384 };

enum sni_step {
    SNI_MORE,
    SNI_STRANGER,  // this is no TLS
    SNI_BAD,       // a ClientHello that is malformed, or longer than SNI_HELLO_MAX
    SNI_FOUND      // where->host is "" if the client names no server
};

// Reads a ClientHello from its first byte on (RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3),
// in as many records as it comes.
enum sni_step sni_parse(route_host *where, const uint8_t *data, size_t len);

#endif  // REVDIAL_PROXY_SNI_H
