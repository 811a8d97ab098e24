// What a SOCKS5 client says until it is connected.
#ifndef REVDIAL_PROXY_SOCKS5_H
#define REVDIAL_PROXY_SOCKS5_H

#include <stdint.h>

#include "routes.h"

enum socks5_reply {  // RFC 1928 section 6
    SOCKS5_SUCCEEDED = 0,
    SOCKS5_FAILED = 1,
    SOCKS5_NOT_ALLOWED = 2,
    SOCKS5_NETWORK_UNREACHABLE = 3,
    SOCKS5_HOST_UNREACHABLE = 4,
    SOCKS5_REFUSED = 5,
    SOCKS5_EXPIRED = 6,
    SOCKS5_NO_SUCH_COMMAND = 7,
    SOCKS5_NO_SUCH_ADDRESS_TYPE = 8
};

enum socks5_method { SOCKS5_NONE = 0, SOCKS5_PASSWORD = 2, SOCKS5_NO_METHOD = 0xFF };

enum socks5_step {
    SOCKS5_MORE,        // bytes are missing
    SOCKS5_STRANGER,    // this is no SOCKS5: there is nothing to answer
    SOCKS5_BAD_METHOD,  // the client takes neither of our methods
    SOCKS5_BAD_LOGIN,   // not RFC 1929
    SOCKS5_BAD_REQUEST,
    SOCKS5_REQUEST
};

typedef struct socks5_hello {
    enum socks5_step step;
    int answers;                // that the client is to get before that of its request: 0 to 2
    enum socks5_method method;  // once answers > 0
    char user[256];             // "" = none
    route_host where;
    enum socks5_reply reply;  // BAD_REQUEST: what is wrong with it
    size_t len;               // REQUEST: of all this; what follows is for the target
} socks5_hello;

// Reads all that a client has sent so far, from its first byte on.
//   returns  out->step
enum socks5_step socks5_parse(socks5_hello *out, const uint8_t *data, size_t len);

#endif  // REVDIAL_PROXY_SOCKS5_H
