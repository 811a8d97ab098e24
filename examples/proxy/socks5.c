// SOCKS5 (RFC 1928) with the agent's name as the user name (RFC 1929). CONNECT only.
#include "socks5.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <string.h>

#include "front.h"

// ------------------------------------------------------------------------------------------------
// What the client says. It waits for an answer to each part, so a part is read again when the next
// one comes: all of it is at most 1 KiB.

typedef struct socks5_bytes {
    const uint8_t *at;
    size_t len;
} socks5_bytes;

static socks5_bytes take(socks5_bytes *from, size_t n)
{
    socks5_bytes head = {from->at, n};
    from->at += n;
    from->len -= n;
    return head;
}

// VER NMETHODS METHODS. A client that offers a user name has the agent's for us.
static enum socks5_step methods_parse(socks5_hello *out, socks5_bytes *from)
{
    socks5_bytes methods;
    if (from->len > 0 && from->at[0] != 5) return SOCKS5_STRANGER;
    if (from->len < 2 || from->len < 2u + from->at[1]) return SOCKS5_MORE;
    methods = take(from, 2u + from->at[1]);
    methods.len -= 2;
    out->answers = 1;
    out->method = SOCKS5_NO_METHOD;
    if (methods.len && memchr(methods.at + 2, SOCKS5_NONE, methods.len)) out->method = SOCKS5_NONE;
    if (methods.len && memchr(methods.at + 2, SOCKS5_PASSWORD, methods.len))
        out->method = SOCKS5_PASSWORD;
    return out->method == SOCKS5_NO_METHOD ? SOCKS5_BAD_METHOD : SOCKS5_REQUEST;
}

// VER ULEN USER PLEN PASSWORD
static enum socks5_step login_parse(socks5_hello *out, socks5_bytes *from)
{
    size_t user_len, password_len;
    if (from->len > 0 && from->at[0] != 1) return SOCKS5_BAD_LOGIN;
    if (from->len < 2) return SOCKS5_MORE;
    user_len = from->at[1];
    if (from->len < 3 + user_len) return SOCKS5_MORE;
    password_len = from->at[2 + user_len];
    if (from->len < 3 + user_len + password_len) return SOCKS5_MORE;
    memcpy(out->user, from->at + 2, user_len);
    take(from, 3 + user_len + password_len);
    if (memchr(out->user, '\0', user_len)) return SOCKS5_BAD_LOGIN;
    out->answers = 2;
    return SOCKS5_REQUEST;
}

static enum socks5_step bad_request(socks5_hello *out, enum socks5_reply reply)
{
    out->reply = reply;
    return SOCKS5_BAD_REQUEST;
}

// Where the client wants to go: ADDR PORT of that type.
static const char *address_parse(route_host *out, int type, socks5_bytes address)
{
    const uint8_t *end = address.at + address.len;
    int port = end[-2] << 8 | end[-1];
    char text[INET6_ADDRSTRLEN];
    if (type == 3) return route_host_set(out, (const char *)address.at + 1, address.len - 3, port);
    if (!inet_ntop(type == 1 ? AF_INET : AF_INET6, address.at, text, sizeof text)) return "no text";
    return route_host_set(out, text, strlen(text), port);
}

// VER CMD RSV ATYP ADDR PORT
static enum socks5_step request_parse(socks5_hello *out, socks5_bytes *from)
{
    size_t size;
    if (from->len > 0 && from->at[0] != 5) return bad_request(out, SOCKS5_FAILED);
    if (from->len > 1 && from->at[1] != 1) return bad_request(out, SOCKS5_NO_SUCH_COMMAND);
    if (from->len > 2 && from->at[2] != 0) return bad_request(out, SOCKS5_FAILED);
    if (from->len < 5) return SOCKS5_MORE;
    switch (from->at[3]) {
    case 1: size = 4; break;
    case 3: size = 1u + from->at[4]; break;
    case 4: size = 16; break;
    default: return bad_request(out, SOCKS5_NO_SUCH_ADDRESS_TYPE);
    }
    if (from->len < 4 + size + 2) return SOCKS5_MORE;
    int type = take(from, 4).at[3];
    if (address_parse(&out->where, type, take(from, size + 2)))
        return bad_request(out, SOCKS5_HOST_UNREACHABLE);
    return SOCKS5_REQUEST;
}

enum socks5_step socks5_parse(socks5_hello *out, const uint8_t *data, size_t len)
{
    socks5_bytes rest = {data, len};
    memset(out, 0, sizeof *out);
    out->step = methods_parse(out, &rest);
    if (out->step == SOCKS5_REQUEST && out->method == SOCKS5_PASSWORD)
        out->step = login_parse(out, &rest);
    if (out->step == SOCKS5_REQUEST) out->step = request_parse(out, &rest);
    out->len = len - rest.len;
    return out->step;
}

// ------------------------------------------------------------------------------------------------
// Answers. A client that has sent all at once gets them together.

// r->state while the client speaks: how many answers it has got. While the dial runs: which it has
// not got, of method and login.
enum { OWES_METHOD = 1, OWES_PASSWORD = 2, OWES_LOGIN = 4 };

static void say(revdial_route *r, const void *data, size_t len)
{
    memcpy(r->text + r->reply_len, data, len);
    r->reply = r->text;
    r->reply_len += len;
}

static void say_owed(revdial_route *r, int owed)
{
    if (owed & OWES_METHOD) say(r, "\5\0", 2);
    if (owed & OWES_PASSWORD) say(r, "\5\2", 2);
    if (owed & OWES_LOGIN) say(r, "\1\0", 2);
}

static int owed_of(const socks5_hello *hello, int had)
{
    int owed = 0;
    if (had < 1 && hello->answers >= 1)
        owed |= hello->method == SOCKS5_PASSWORD ? OWES_PASSWORD : OWES_METHOD;
    if (had < 2 && hello->answers >= 2) owed |= OWES_LOGIN;
    return owed;
}

static void say_reply(revdial_route *r, enum socks5_reply reply)
{
    const uint8_t bytes[] = {5, (uint8_t)reply, 0, 1, 0, 0, 0, 0, 0, 0};
    say(r, bytes, sizeof bytes);
}

static int refused(revdial_route *r, int owed, enum socks5_reply reply, const char *why)
{
    say_owed(r, owed);
    say_reply(r, reply);
    r->why = why;
    return REVDIAL_ROUTE_REFUSE;
}

static int socks5_route(void *ud, revdial_route *r)
{
    socks5_hello hello;
    route_choice where;
    enum socks5_step step = socks5_parse(&hello, r->data, r->len);
    int owed = owed_of(&hello, r->state);
    r->reply_len = 0;
    switch (step) {
    case SOCKS5_MORE:
        say_owed(r, owed);
        r->state = hello.answers;
        return REVDIAL_ROUTE_MORE;
    case SOCKS5_STRANGER: r->why = "it does not speak SOCKS5"; return REVDIAL_ROUTE_REFUSE;
    case SOCKS5_BAD_METHOD:
        say(r, "\5\xFF", 2);
        r->why = "it offers neither a connection without login nor one with a password";
        return REVDIAL_ROUTE_REFUSE;
    case SOCKS5_BAD_LOGIN:
        say_owed(r, owed);
        say(r, "\1\1", 2);
        r->why = "its login is malformed";
        return REVDIAL_ROUTE_REFUSE;
    case SOCKS5_BAD_REQUEST:
        return refused(r, owed, hello.reply, "its request is malformed, or no CONNECT");
    case SOCKS5_REQUEST: break;
    }
    if (route_decide(ud, &hello.where, hello.user, &where) != ROUTE_FOUND)
        return refused(r, owed, SOCKS5_NOT_ALLOWED,
                       "no route leads there, and its user is no name of an agent");
    r->used = hello.len;
    r->state = owed;
    return front_dial(r, &where, &hello.where);
}

static enum socks5_reply reply_of(const revdial_err *why)
{
    switch (why->code) {
    case REVDIAL_ELIMIT:
    case REVDIAL_EDENIED: return SOCKS5_NOT_ALLOWED;
    case REVDIAL_ETIMEDOUT: return SOCKS5_EXPIRED;
    case REVDIAL_ENOBACKEND:
    case REVDIAL_EDRAINING:
    case REVDIAL_ELOST: return SOCKS5_NETWORK_UNREACHABLE;
    default: break;
    }
    switch (why->reset) {
    case REVDIAL_RESET_CONNECT_REFUSED: return SOCKS5_REFUSED;
    case REVDIAL_RESET_CONNECT_TIMEOUT: return SOCKS5_EXPIRED;
    case REVDIAL_RESET_UNREACHABLE:
    case REVDIAL_RESET_NO_SUCH_HOST: return SOCKS5_HOST_UNREACHABLE;
    default: return SOCKS5_FAILED;
    }
}

static void socks5_done(void *ud, revdial_route *r, const revdial_err *why)
{
    (void)ud;
    r->reply_len = 0;
    say_owed(r, r->state);
    say_reply(r, why ? reply_of(why) : SOCKS5_SUCCEEDED);
}

const front_kind front_socks5 = {"socks5", socks5_route, socks5_done, 0};
