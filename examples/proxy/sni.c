// TLS that ends behind the agent: the ClientHello says where it goes, and goes there, too.
#include "sni.h"

#include <string.h>

#include "front.h"

enum {
    RECORD_HEAD = 5,
    RECORD_MAX = 16384,
    TYPE_HANDSHAKE = 22,
    CLIENT_HELLO = 1,
    HELLO_HEAD = 4,
    EXTENSION_SERVER_NAME = 0,
    NAME_HOST = 0
};

// ------------------------------------------------------------------------------------------------
// The ClientHello

// What is left to read. One that is too short stays so: is_short, and all reads give nothing.
typedef struct sni_reader {
    const uint8_t *at;
    size_t left;
    int is_short;
} sni_reader;

static uint32_t number(sni_reader *r, size_t size)
{
    uint32_t n = 0;
    if (r->left < size) r->is_short = 1;
    if (r->is_short) return 0;
    for (size_t i = 0; i < size; i++) n = n << 8 | r->at[i];
    r->at += size;
    r->left -= size;
    return n;
}

// What follows a length of that many bytes.
static sni_reader part(sni_reader *r, size_t size)
{
    sni_reader inner = {r->at, 0, 1};
    size_t len = number(r, size);
    if (r->left < len) r->is_short = 1;
    if (r->is_short) return inner;
    inner = (sni_reader){r->at, len, 0};
    r->at += len;
    r->left -= len;
    return inner;
}

// The list of names has one host name. Returns 0 if it is malformed.
static int names_parse(route_host *where, sni_reader *from)
{
    sni_reader list = part(from, 2), name;
    if (from->is_short || from->left > 0 || list.left == 0) return 0;
    while (list.left > 0) {
        uint32_t type = number(&list, 1);
        name = part(&list, 2);
        if (list.is_short || type != NAME_HOST || where->host[0]) return 0;
        if (route_host_set(where, (const char *)name.at, name.left, -1)) return 0;
    }
    return 1;
}

static int extensions_parse(route_host *where, sni_reader *from)
{
    while (from->left > 0) {
        uint32_t type = number(from, 2);
        sni_reader body = part(from, 2);
        if (from->is_short) return 0;
        if (type == EXTENSION_SERVER_NAME && !names_parse(where, &body)) return 0;
    }
    return 1;
}

// The body of the message. Returns 0 if it is malformed.
static int hello_parse(route_host *where, sni_reader *from)
{
    sni_reader extensions;
    number(from, 2);                                         // version
    for (int i = 0; i < 8; i++) number(from, 4);             // random
    if (part(from, 1).left > 32) return 0;                   // session
    if (part(from, 2).left < 2) return 0;                    // cipher suites
    if (part(from, 1).left < 1 || from->is_short) return 0;  // compression
    if (from->left == 0) return 1;
    extensions = part(from, 2);
    return !from->is_short && from->left == 0 && extensions_parse(where, &extensions);
}

// How long the message is with its head, as far as we know.
static size_t hello_size(const uint8_t *message, size_t got)
{
    if (got < HELLO_HEAD) return HELLO_HEAD;
    return HELLO_HEAD + ((size_t)message[1] << 16 | (size_t)message[2] << 8 | message[3]);
}

// Joins what is in the records, up to the end of the message: early data may follow. Returns how
// many bytes of the message that is, or -1.
static ptrdiff_t hello_join(const uint8_t *data, size_t len, uint8_t message[SNI_HELLO_MAX])
{
    size_t got = 0;
    while (len >= RECORD_HEAD && got < hello_size(message, got)) {
        size_t size = (size_t)data[3] << 8 | data[4], n;
        if (data[0] != TYPE_HANDSHAKE || data[1] != 3 || size == 0 || size > RECORD_MAX) return -1;
        data += RECORD_HEAD;
        len -= RECORD_HEAD;
        n = size < len ? size : len;
        if (n > SNI_HELLO_MAX - got) return -1;
        memcpy(message + got, data, n);
        got += n;
        data += n;
        len -= n;
    }
    return (ptrdiff_t)got;
}

enum sni_step sni_parse(route_host *where, const uint8_t *data, size_t len)
{
    uint8_t message[SNI_HELLO_MAX];
    sni_reader body = {message + HELLO_HEAD, 0, 0};
    ptrdiff_t got;
    size_t size;
    *where = (route_host){"", -1};
    if ((len > 0 && data[0] != TYPE_HANDSHAKE) || (len > 1 && data[1] != 3)) return SNI_STRANGER;
    got = hello_join(data, len, message);
    if (got < 0 || (got > 0 && message[0] != CLIENT_HELLO)) return SNI_BAD;
    size = hello_size(message, (size_t)got);
    if (size > SNI_HELLO_MAX) return SNI_BAD;
    if (size > (size_t)got) return SNI_MORE;
    body.left = size - HELLO_HEAD;
    return hello_parse(where, &body) ? SNI_FOUND : SNI_BAD;
}

// ------------------------------------------------------------------------------------------------
// Answers

enum tls_alert {
    ALERT_ACCESS_DENIED = 49,
    ALERT_DECODE_ERROR = 50,
    ALERT_INTERNAL_ERROR = 80,
    ALERT_UNRECOGNIZED_NAME = 112
};

// A fatal alert in a record of TLS 1.2, which clients of every version read.
static void say_alert(revdial_route *r, enum tls_alert alert)
{
    const uint8_t record[] = {21, 3, 3, 0, 2, 2, (uint8_t)alert};
    memcpy(r->text, record, sizeof record);
    r->reply = r->text;
    r->reply_len = sizeof record;
}

static int sni_refuse(revdial_route *r, enum tls_alert alert, const char *why)
{
    say_alert(r, alert);
    r->why = why;
    return REVDIAL_ROUTE_REFUSE;
}

static int sni_route(void *ud, revdial_route *r)
{
    route_host where;
    route_choice choice;
    r->why = "it does not speak TLS";
    switch (sni_parse(&where, r->data, r->len)) {
    case SNI_MORE: return REVDIAL_ROUTE_MORE;
    case SNI_STRANGER: return REVDIAL_ROUTE_REFUSE;
    case SNI_BAD: return sni_refuse(r, ALERT_DECODE_ERROR, "its ClientHello is malformed");
    case SNI_FOUND: break;
    }
    if (route_find(ud, &where, &choice)) return front_dial(r, &choice, &where);
    return sni_refuse(r, ALERT_UNRECOGNIZED_NAME,
                      where.host[0] ? "no route leads to the server name that it sent"
                                    : "it sent no server name, and no route takes all");
}

static void sni_done(void *ud, revdial_route *r, const revdial_err *why)
{
    (void)ud;
    if (!why) return;
    say_alert(r, why->code == REVDIAL_EDENIED ? ALERT_ACCESS_DENIED : ALERT_INTERNAL_ERROR);
}

const front_kind front_sni = {"sni", sni_route, sni_done, SNI_HELLO_MAX + 4096};
