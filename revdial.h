// revdial.h 0.1.0 -- one connection in, many streams back out.      SPDX-License-Identifier: MIT
//
// A backend behind NAT or a firewall dials a proxy and authenticates. Then the connection is turned
// round: the proxy opens as many streams to the backend as it needs, each with its own flow
// control. Needs libc and pthreads. The wire is yamux after an HTTP upgrade, as
// tests/vectors/README.md specifies it.
//
// USE       In exactly one C file, before any other include, define REVDIAL_IMPLEMENTATION and
//           include this file. Everywhere else just include it. Link with -pthread. C11; the public
//           half is C++11 too.
//
// EXAMPLE   A proxy that fetches one line from the backend "cam-1":
//
//               #define REVDIAL_IMPLEMENTATION
//               #include "revdial.h"
//               #include <stdio.h>
//               int main(void)
//               {
//                   revdial_credential row = {.secret = "s3cret", .names = "cam-*"};
//                   revdial_proxy_config cfg = {0};
//                   revdial_err err;
//                   cfg.listen = "127.0.0.1:7000";
//                   cfg.credentials = &row;
//                   cfg.credential_count = 1;
//                   revdial_proxy *p = revdial_proxy_start(&cfg, &err);
//                   if (!p || revdial_proxy_wait(p, "cam-1", 1, -1) < 0) return 1;
//                   revdial_stream *st = revdial_dial(p, "cam-1", NULL, &err);
//                   char line[80];
//                   ptrdiff_t n = st ? revdial_read(st, line, sizeof line) : 0;
//                   if (n > 0) fwrite(line, 1, (size_t)n, stdout);
//                   revdial_close(st);
//                   revdial_proxy_stop(p);
//                   return n > 0 ? 0 : 1;
//               }
//
// CHOOSE    Ways to use a stream, and what each costs:
//    exposes               Connections to a port become streams. No code of yours; no thread, and
//                          about 1 KB of memory per idle connection.
//    exposes with a route  The same, where a client's first bytes say which backend it wants, and
//                          get an answer: HTTP, SNI, CONNECT, SOCKS5. Two callbacks per client.
//    dial_async + relay    Your own listener, or your own choice of backend for each client. Two
//                          callbacks per client; then as cheap as exposes.
//    stream_fd, dial_fd    Code that wants a connected socket. Two descriptors per stream, and the
//                          kernel copies each byte once more.
//    dial + read, write    Blocking code. One thread per stream in use, or one revdial_poll() loop.
//    engine                Your own event loop. No thread, no socket; you write the I/O and timers,
//                          and do without registry, reconnect and relay.
//           revdial_proxy_attach() takes backends that your own server has accepted, for any of the
//           first four. It costs nothing more than a connection to `listen`.
//
// LAYERS    your program --- api.proxy, api.agent ---> impl.proxy, impl.agent  names, dials, links
//                                                      impl.owner            what both have
//                      --- api.stream -------------> impl.stream, impl.relay blocking, copying
//                                                      impl.reader           reads the socket
//                                                      impl.transport        TLS
//                                                      impl.log, impl.lookup lines, host names
//                                                      impl.loop, impl.sys   threads from here up
//                      --- api.engine -------------> impl.engine             no I/O from here down
//                                                      impl.http, impl.mux   handshake, streams
//                                                      impl.auth             credentials
//                                                      impl.egress           egress proxies
//                                                      impl.ws, impl.wire    frames
//                                                      impl.pace             queue control
//                                                      impl.base             bytes
//
// MAP       `grep -n MARK: revdial.h` prints it with line numbers.
//    api.types     handles, errors, reset codes, limits, what a dial asks for
//    api.engine    the protocol for your own loop
//    api.transport TLS, or anything else between the socket and the session
//    api.config    what proxy and agent share
//    api.proxy     listen, registry, dial
//    api.stream    read, write, shutdown, reset, close, deadlines, poll, relay
//    api.session   one authenticated connection
//    api.agent     serve, reconnect, forward
//    impl.base     memory, lists, budgets, SHA-256 and SHA-1, text
//    impl.wire     frames and the stream preamble as bytes
//    impl.pace     queue control: how much may be on its way
//    impl.mux      what the protocol means: streams, credit, scheduling, limits
//    impl.auth     who may register as what: credentials, names
//    impl.http     the upgrade handshake
//    impl.egress   the way through an egress proxy: CONNECT and SOCKS5
//    impl.ws       WebSocket frames as a carrier
//    impl.engine   handshake, carrier and mux as one machine
//    impl.sys      every system call
//    impl.loop     I/O thread: descriptors, timers, tasks; pool of threads
//    impl.lookup   host names to addresses
//    impl.log      events, their fields, and how many lines a second
//    impl.transport what is between a session and its socket: TLS
//    impl.reader   what reads a session's socket: the loop, or a thread that waits
//    impl.stream   sessions on a loop; blocking calls
//    impl.relay    descriptor <-> stream inside the loop
//    impl.owner    what proxy and agent share: their sessions, counters, handlers
//    impl.proxy    listeners, registry, dials
//    impl.agent    allow list, targets, links to proxies
//
// TO CHANGE          LOOK AT
//    an error        REVDIAL_ERRORS, one line
//    a reset code    REVDIAL_RESETS, rvd_stream_reset_error(), the table in tests/vectors/README.md
//    a limit         revdial_limits, rvd_engine_limits_check(), rvd_engine_limits_resolve(); its
//                    default is a constant at the top of impl.base or impl.mux
//    queue control   the constants of impl.pace, tests/test_pace.c, tests/pace_link.h
//    a frame's rule  rvd_mux_on_header() and the functions before it, tests/test_mux.c
//    a stream state  the three small machines above rvd_mux_stream
//    a header        RVD_HTTP_FIELDS, tests/vectors/. For one that a hook sees also
//                    RVD_HTTP_LABELS, revdial_engine_config, revdial_auth_req,
//                    rvd_proxy_request_keep(), rvd_agent_engine_config()
//    a carrier       revdial_carrier, rvd_http_note_upgrade(), rvd_engine_framing; then grep for
//                    CARRIER_WEBSOCKET
//    a way to prove  Digest and Credentials in impl.auth, Challenges in impl.http
//    wrong guesses   the constants above rvd_auth_guard, rvd_auth_payer_of()
//    a proxy option  revdial_proxy_config, rvd_proxy_config_check(), its use; a text also in
//                    rvd_proxy_texts_keep(), one for the engine in rvd_proxy_engine_config(); then
//                    a row in examples/proxy.c. An agent's: the same, with rvd_agent_
//    a system call   impl.sys
//    a log line      RVD_LOG_EVENTS, one line, then rvd_log_begin()
//
// WORDS     session   one authenticated, multiplexed connection
//           stream    one logical byte stream in it, closed half by half
//           proxy     listens, registers backends by name, opens streams to them
//           backend   dials the proxy and serves the streams; `instance` tells its processes apart
//           agent     the object that keeps a backend's sessions alive
//           target    the address a stream should reach from the backend
//           credit    bytes a side may still send on a stream; the window is what it was granted
//           carrier   what the bytes of yamux ride in: the connection as it is, or WebSocket frames
//           engine    handshake and mux without I/O; the loop is the thread that gives it I/O
//           source    where attempts to register come from: one IPv4 address, or one IPv6 /64
//
// MACROS    REVDIAL_NO_RUNTIME  the engine alone: no thread, clock or descriptor
//           REVDIAL_POLL        poll(2) where epoll would be used
//           REVDIAL_API         linkage of public functions, e.g. static
//           REVDIAL_ASSERT      default assert(); checks our own invariants, never a peer's bytes
//           REVDIAL_SELF_CHECK  check every invariant of a session at each call of its engine
//
// STABILITY Later versions keep these names and meanings, and may add functions, values of enums,
//           and fields at the end of structs, whose zero means today's behaviour. That holds for
//           source code: compile all that shares these structs against one copy of this file, for
//           there is no stable binary interface.
//           On the wire, versions can be mixed: both ends announce their features, and one is used
//           only where both announce it.

#if defined(REVDIAL_IMPLEMENTATION) && defined(__cplusplus)
#error "revdial.h: the implementation is C; define REVDIAL_IMPLEMENTATION in a C file, not in C++"
#undef REVDIAL_IMPLEMENTATION  // or hundreds of errors would follow
#endif

#if defined(REVDIAL_IMPLEMENTATION) && !defined(REVDIAL_NO_RUNTIME)
// Whatever was included first has settled what the system's headers show.
#if defined(__linux__) && defined(_FEATURES_H) && \
    (!defined(_GNU_SOURCE) || (defined(__GLIBC__) && !defined(__USE_GNU)))
#error "revdial.h: include the implementation before any other header, or use -D_GNU_SOURCE"
#undef REVDIAL_IMPLEMENTATION
#endif
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1  // accept4, epoll, eventfd
#endif
#endif

#ifndef REVDIAL_H
#define REVDIAL_H

#include <signal.h>  // sig_atomic_t
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>  // struct iovec

#define REVDIAL_VERSION_MAJOR 0
#define REVDIAL_VERSION_MINOR 1
#define REVDIAL_VERSION_PATCH 0
#define REVDIAL_VERSION_STRING "0.1.0"
#define REVDIAL_VERSION_NUMBER \
    (REVDIAL_VERSION_MAJOR * 10000 + REVDIAL_VERSION_MINOR * 100 + REVDIAL_VERSION_PATCH)

#ifndef REVDIAL_API
#define REVDIAL_API extern  // override: static, __attribute__((visibility("default"))), ...
#endif

#ifdef __cplusplus
extern "C" {
#endif

// ================================================================================================
// MARK: api.types
// Handles, errors, hooks and the limits that every object shares.
// ================================================================================================

typedef struct revdial_proxy revdial_proxy;      // listeners and the registry of named backends
typedef struct revdial_agent revdial_agent;      // keeps a backend's sessions to its proxies alive
typedef struct revdial_session revdial_session;  // one authenticated connection; reference-counted
typedef struct revdial_stream revdial_stream;    // one logical byte stream; its receiver owns it
typedef struct revdial_engine revdial_engine;    // the whole protocol without a socket or a thread
typedef struct revdial_egress revdial_egress;    // our side of an egress proxy's handshake

// X(name, value, text). Every call returns >= 0 for success or one of these.
#define REVDIAL_ERRORS(X) \
    X(EAGAIN, -1, "nothing to do now, and the deadline said not to wait") \
    X(ETIMEDOUT, -2, "a deadline passed") \
    X(ECLOSED, -3, "closed on this side") \
    X(ERESET, -4, "the peer reset the stream, or its session died") \
    X(ENOBACKEND, -5, "no live session under that name") \
    X(EREFUSED, -6, "the backend refused the stream") \
    X(EUNREACH, -7, "the backend could not reach the target") \
    X(EDENIED, -8, "authenticated, but not allowed") \
    X(EAUTH, -9, "credentials missing or wrong") \
    X(EDUPLICATE, -10, "another identity holds this name") \
    X(EPROTO, -11, "the peer broke the protocol") \
    X(EUPGRADE, -12, "the HTTP upgrade was refused or stripped on the way") \
    X(EDRAINING, -13, "going away: no new streams here") \
    X(ELIMIT, -14, "a configured limit is reached") \
    X(ENOMEM, -15, "out of memory") \
    X(EINVAL, -16, "invalid argument") \
    X(ESYS, -17, "a system call failed") \
    X(EDEADLK, -18, "a blocking call on an I/O thread") \
    X(ELOST, -19, "the connection under the session was lost") \
    X(ETLS, -20, "the TLS handshake, a certificate or a record was not good")

// What an HTTP gateway answers for the error that revdial_dial() gave it:
//   400  EINVAL, if the name or the target is the client's; else 500
//   403  EDENIED
//   502  EREFUSED, EUNREACH, ELOST; later, before a response has begun: ERESET, ELOST
//   503  ENOBACKEND, EDRAINING, ELIMIT, ENOMEM, ECLOSED; Retry-After makes sense
//   504  ETIMEDOUT
//   500  all others: they are the gateway's own mistakes
enum revdial_error {
    REVDIAL_OK = 0,
#define REVDIAL_X(name, value, text) REVDIAL_##name = value,
    REVDIAL_ERRORS(REVDIAL_X)
#undef REVDIAL_X
};

// X(name, value, text). Why a stream was reset; on the wire in the length of WindowUpdate+RST.
// 64..255 belong to the application.
#define REVDIAL_RESETS(X) \
    X(NONE, 0, "no reason given") \
    X(REFUSED, 1, "refused") \
    X(CANCEL, 2, "cancelled") \
    X(INTERNAL, 3, "internal error") \
    X(PROTOCOL, 4, "protocol error") \
    X(TIMEOUT, 5, "timed out") \
    X(CALM, 6, "over a budget") \
    X(CONNECT_REFUSED, 7, "the target refused the connection") \
    X(CONNECT_TIMEOUT, 8, "connecting to the target timed out") \
    X(UNREACHABLE, 9, "the target is unreachable") \
    X(NO_SUCH_HOST, 10, "the target's host name does not resolve") \
    X(FORBIDDEN, 11, "the target is not on the backend's allow list") \
    X(DRAINING, 12, "the backend is going away") \
    X(NO_BACKEND, 13, "no backend")

enum revdial_reset_code {
    REVDIAL_RESET_APPLICATION = 64,
#define REVDIAL_X(name, value, text) REVDIAL_RESET_##name = value,
    REVDIAL_RESETS(REVDIAL_X)
#undef REVDIAL_X
};

// Places of counters by reset code: one for each code up to 13, one for 14 to 63, which are not
// assigned, and one for the application's.
enum { REVDIAL_RESET_PLACES = 16 };

// What went wrong, written into the caller's memory; there is no thread-local error.
typedef struct revdial_err {
    int code;       // REVDIAL_E*
    int reset;      // REVDIAL_RESET_* or the application's code, when a peer gave one
    int sys;        // errno, when code is REVDIAL_ESYS (or a system call was the cause)
    char msg[240];  // for people: the field or "dial NAME to TARGET", what was given, what is wrong
} revdial_err;

typedef struct revdial_kv {
    const char *key;
    const char *value;
} revdial_kv;

enum revdial_direction { REVDIAL_RD = 1, REVDIAL_WR = 2, REVDIAL_RDWR = 3 };

enum revdial_log_level {
    REVDIAL_LOG_ERROR = 1,
    REVDIAL_LOG_WARN,
    REVDIAL_LOG_INFO,
    REVDIAL_LOG_DEBUG
};

// What a session (proxy side) or an agent's connection (backend side) is doing.
enum revdial_state {
    REVDIAL_CONNECTING = 1,
    REVDIAL_UP,
    REVDIAL_DRAINING,
    REVDIAL_DOWN,
    REVDIAL_BACKOFF,
    REVDIAL_STOPPED
};

// Receives one log line. `event` is a stable name ("session.up"), `msg` holds its fields as logfmt:
// `session=00c0ffee12345678 name=cam-1 reason="the peer closed the connection"`. A value in quotes
// is a JSON string. A key that ends in _ms, _bytes or _count has a decimal number, every other key
// a text. Whatever a peer sent, msg is one line of valid UTF-8 without control characters.
// Called from any thread, with its signal mask, never under a lock.
typedef void revdial_log_fn(void *ud, int level, const char *event, const char *msg);

// One function allocates (ptr NULL), resizes and frees (new_size 0). old_size is exact, so that an
// arena needs no header. Returning NULL for an allocation is always survived.
typedef void *revdial_alloc_fn(void *ud, void *ptr, size_t old_size, size_t new_size);

// Limits of one session. 0 selects the default. A value outside the range given is REVDIAL_EINVAL;
// times may be up to INT_MAX, and have no minimum where none is given. Every limit is enforced.
typedef struct revdial_limits {
    // Streams that the peer may have open: default 65536 (256 for a stock yamux peer), 1 to
    // 16777216.
    uint32_t max_streams;
    // First credit of each stream, in bytes: default 65536 (262144 for a stock yamux peer), 8192 to
    // 16 MiB.
    uint32_t stream_window;
    // Largest size that a stream's window grows to: default 16 MiB, 8192 to 16 MiB.
    uint32_t stream_window_max;
    // Bytes received and not yet read, over all streams: default 64 MiB, min 1 MiB. When it is
    // full, the streams whose data has waited longest for its reader are reset with
    // REVDIAL_RESET_CALM. New streams are still accepted.
    uint32_t session_window;
    // Largest frame while several streams are busy: default 65524, 512 to 65524.
    uint32_t frame_bytes_max;
    // Idle time before a ping: default 15000, min 100.
    int keepalive_ms;
    // Time after that ping before the session is given up, unless a byte arrives or the peer's
    // system acknowledges some of the bytes that wait to be sent: default 15000.
    int dead_after_ms;
    // From connect or accept to the 101, whatever arrives meanwhile: default 10000.
    int handshake_timeout_ms;
    // Time until an incoming stream that nobody accepts is refused: default 30000.
    int accept_timeout_ms;
    // The session is given up when bytes wait to be sent and for this time the socket takes none,
    // the peer's system acknowledges none, and neither credit nor a pong arrives: default 30000.
    int write_stall_ms;
} revdial_limits;

// Ways to authenticate. Fields named *schemes hold a set of them.
enum revdial_auth_scheme {
    REVDIAL_AUTH_BEARER = 1,  // a token, RFC 6750
    REVDIAL_AUTH_BASIC = 2,   // user and password, RFC 7617
    REVDIAL_AUTH_DIGEST = 4,  // both ends prove the password without sending it: RFC 7616, SHA-256
    REVDIAL_AUTH_MTLS = 8     // the certificate verified by the transport; for the proxy's table
};

// One row of the proxy's table: who may register which names, and what proves it.
typedef struct revdial_credential {
    // The token or password, or instead "sha256:" and 64 hex digits, its hash; for DIGEST alone
    // "ha1:" and 64 hex digits, the hash of user:realm:password. MTLS needs none.
    const char *secret;
    // The identity that the row proves.
    //   BASIC, DIGEST  the user name
    //   BEARER         any text. NULL: an identity of the secret's own, "token " and 16 hex digits
    //                  that stay the same while this proxy runs
    //   MTLS           a glob for an entry of revdial_identity.san ("DNS:*.cams.example") or for
    //                  its subject. The identity is the entry that matched, at most 127 bytes
    // With MTLS, what '*' matched in the certificate is what '*' stands for in `names`:
    // "DNS:*.cams.example" with "cam-*" lets 7.cams.example register cam-7 and no other name. "**"
    // in `names` is any text. Rows with other wildcards in both fields are refused.
    const char *user;
    const char *names;  // names it may register: comma list, globs with * and ?; NULL = none
    unsigned schemes;   // REVDIAL_AUTH_*, a set of those allowed for this row; 0 = BEARER
    // Identities that the rows of one group admit may share a name. NULL: the identities that one
    // MTLS row admits share its names, and any other identity shares with nobody. Any text; a group
    // is never taken for a user of the same text.
    const char *group;
} revdial_credential;

// What a transport has verified about the peer.
typedef struct revdial_identity {
    int verified;       // 0: nothing, and the rest is empty
    char subject[256];  // "CN=cam-1, O=Cams"
    char san[512];      // "DNS:cam-1.example,URI:spiffe://x/y": only entries that fit whole
    uint8_t cert_sha256[32];
} revdial_identity;

// Fields of a DIGEST answer, RFC 7616 section 3.4. The nonce is fresh and was issued by this proxy;
// realm and uri are the proxy's own, too.
typedef struct revdial_digest {
    const char *realm, *nonce, *uri, *nc, *cnonce, *response;
} revdial_digest;

// What a backend presented when it asked to register. Pointers are valid during the call only.
typedef struct revdial_auth_req {
    const char *secret;            // the token or password, "" if none was sent
    const char *name;              // the name to register, "" if none was sent
    const char *instance;          // "" if none was sent
    const char *peer;              // "address:port", "unix" or "" (engine)
    unsigned scheme;               // REVDIAL_AUTH_*; 0: none was sent, so only tls can prove it
    const char *user;              // BASIC, DIGEST, else ""
    const revdial_identity *tls;   // what its certificate proves; NULL: no certificate, or no TLS
    const revdial_digest *digest;  // DIGEST, else NULL: call revdial_auth_verify()
    // DIGEST: room for 65 bytes, in which revdial_auth_verify() leaves the proof that the proxy
    // knows the password, too. A backend that does not get it disconnects.
    char *proof;
    // Room for 128 bytes, in which a hook may write a NUL-terminated group, as
    // revdial_credential.group; NULL where groups have no meaning.
    char *group;
} revdial_auth_req;

// What becomes of a backend that asks to register. The values are HTTP statuses, except the last.
// A hook may also return an error: REVDIAL_EAUTH means UNAUTHORIZED, EDENIED FORBIDDEN, EDUPLICATE
// CONFLICT, every other one UNAVAILABLE. So may the caller of revdial_engine_auth().
enum revdial_verdict {                   // and the error that the backend gets:
    REVDIAL_VERDICT_ADMIT = 0,           // none: the answer is 101
    REVDIAL_VERDICT_BAD_REQUEST = 400,   // EUPGRADE: no name was sent, and the row has several
    REVDIAL_VERDICT_UNAUTHORIZED = 401,  // EAUTH: the credentials are missing or wrong
    REVDIAL_VERDICT_FORBIDDEN = 403,     // EDENIED: they are right, but not for this name
    REVDIAL_VERDICT_CONFLICT = 409,      // EDUPLICATE: another identity holds the name
    REVDIAL_VERDICT_TOO_MANY = 429,      // ELIMIT: it failed too often; Retry-After is 5 s
    REVDIAL_VERDICT_UNAVAILABLE = 503,   // ELIMIT: no room or no memory; Retry-After is 5 s
    REVDIAL_VERDICT_STALE_NONCE = 1401   // EAUTH: 401 with stale=true, because a nonce is not valid
                                         // or not any longer; the backend may try once more
};

// The application's own check of credentials. It writes the identity that was proved, NUL-
// terminated, to `identity`. For DIGEST it finds the row of req->user and calls
// revdial_auth_verify(). Runs on a thread of its own and may block.
//   returns  a revdial_verdict, or an error that stands for one
typedef int revdial_auth_fn(void *ud, const revdial_auth_req *req, char *identity, size_t size);

// How a dial chooses among the sessions of a name.
enum revdial_pick {
    REVDIAL_PICK_ROUND_ROBIN = 0,
    REVDIAL_PICK_LEAST_STREAMS,
    REVDIAL_PICK_KEY  // same key, same backend, while that backend lives and answers
};

enum revdial_dial_flag {
    REVDIAL_DIAL_WAIT = 1,  // wait for a backend to appear instead of REVDIAL_ENOBACKEND
    REVDIAL_DIAL_EARLY = 2  // return before the other end has accepted; not about `early` below
};

enum { REVDIAL_EARLY_MAX = 4096 };  // bytes; with a preamble they fit in the smallest window

// What a dial asks for.
typedef struct revdial_dial_opts {
    const char *target;       // "host:port" or "unix:/path" beyond the backend; NULL = its own
    const char *client_addr;  // "ip:port" of the original client, for the target's PROXY header
    const char *local_addr;   // "ip:port" the client connected to
    // Free-form pairs for the other end, {"traceparent", "00-…"}. A key has no '=' in it and is
    // none of those that revdial_stream_meta() lists.
    const revdial_kv *meta;
    size_t meta_count;
    int pick;         // REVDIAL_PICK_*
    unsigned flags;   // REVDIAL_DIAL_*
    const void *key;  // for REVDIAL_PICK_KEY
    size_t key_len;
    int timeout_ms;  // of the whole dial: 0 = 10000, -1 = none
    // The stream's first bytes, if they are known already. They travel with the opening, which
    // saves a round trip. A backend that refuses has not used them, and the next backend that is
    // asked gets them, too. Where another session could be asked instead, they are held back until
    // the backend has answered if it is less than 10 ms away or was silent for the last 50 ms: only
    // a dial whose bytes were not sent can move to another session when the backend falls silent.
    const void *early;
    size_t early_len;  // at most REVDIAL_EARLY_MAX
} revdial_dial_opts;

// Text for a REVDIAL_E* code. Static, never NULL.
//   thread   any
REVDIAL_API const char *revdial_strerror(int code);

// Text for a reset code; "application code" from 64. Static, never NULL.
//   thread   any
REVDIAL_API const char *revdial_reset_text(int reset);

// Version and build options of the implementation that was linked. Static.
//   thread   any
REVDIAL_API const char *revdial_version(void);

// REVDIAL_VERSION_NUMBER of the linked implementation: 10000 * major + 100 * minor + patch.
//   thread   any
REVDIAL_API int revdial_version_number(void);

// Does an allow list name this target? Resolves nothing: "127.0.0.1:22", "10.0.0.0/8:80-90",
// "[fd00::]/8:*", "*.svc.local:443" and "unix:/run/x" are patterns.
//   allow    NULL-terminated; NULL allows nothing
//   returns  1 yes, 0 no
//   thread   any
REVDIAL_API int revdial_target_allowed(const char *const *allow, const char *target);

// Checks a rule of an allow list.
//   returns  NULL if it is good, else a static text: what is wrong, and how it is written
//   thread   any
REVDIAL_API const char *revdial_allow_problem(const char *rule);

// ================================================================================================
// MARK: api.engine
// The protocol as a machine for your own loop: bytes and the time go in; bytes, events and "call me
// at" come out. It never calls you back, so there is no re-entrancy to get wrong. One pass is:
//
//     for (at = 0; at < len; at += used) {            // bytes came from the socket
//         used = revdial_engine_input(e, buf + at, len - at, now_us);
//         while (revdial_engine_event(e, &ev)) ...    // drain to the end, every time
//     }
//     n = revdial_engine_output(e, iov, 16);
//     revdial_engine_sent(e, writev(fd, iov, n));
//     while (revdial_engine_event(e, &ev)) ...        // after any call: drain before you wait
//     wake_us = revdial_engine_tick(e, now_us);       // any call may have brought it forward
//
// Received payload is a slice of your input buffer until revdial_engine_event() returns 0; what you
// did not consume by then is copied. The functions stand in this order: the session, its streams,
// then the same reads and writes without a copy, then the client side of an egress proxy.
//   thread   one at a time per engine (and per revdial_egress), unless a function says otherwise
// ================================================================================================

enum revdial_role {
    REVDIAL_ROLE_PROXY = 1,   // answers the upgrade; yamux client, opens odd streams
    REVDIAL_ROLE_BACKEND = 2  // asks for the upgrade; yamux server
};

enum revdial_event_type {
    REVDIAL_EV_NONE = 0,
    REVDIAL_EV_AUTH,      // proxy: answer ev.auth with revdial_engine_auth(), now or later
    REVDIAL_EV_UP,        // the handshake is over; text = features in force
    REVDIAL_EV_OPEN,      // the peer opened stream id; accept or reset it. meta is its preamble
    REVDIAL_EV_ACCEPTED,  // the peer accepted our stream id
    REVDIAL_EV_READABLE,  // stream id has bytes where it had none: read until EAGAIN
    REVDIAL_EV_WRITABLE,  // stream id may be written again; id 0: revdial_engine_open() may succeed
    REVDIAL_EV_SENT,      // stream id: all lent memory has been sent and is yours again
    REVDIAL_EV_FIN,       // stream id: the peer finished; EOF comes after the bytes
    REVDIAL_EV_RESET,     // stream id was reset with code; bytes that came before it can be read
    REVDIAL_EV_GOAWAY,    // the peer drains: open nothing more here
    REVDIAL_EV_RTT,       // a ping came back: rtt_us
    REVDIAL_EV_SILENT,    // code 1: no answer to a ping for 0.5 s; code 0: a byte has arrived since
    REVDIAL_EV_DEAD       // the session is over: code, text. Send the remaining output, then close
};

typedef struct revdial_event {
    int type;     // REVDIAL_EV_*
    uint32_t id;  // the stream, 0 for the session
    int code;     // RESET: REVDIAL_RESET_*; DEAD: REVDIAL_E*; SILENT: 1 or 0
    int status;   // DEAD during the handshake: the HTTP status, else 0
    void *ud;     // what revdial_engine_set_ud() set for this stream
    int64_t rtt_us;
    int retry_after_ms;  // DEAD by 429 or 503: how long the proxy asked to wait, else 0
    // DEAD by 401: pass it as cfg.challenge to the next attempt. NULL: the credentials are wrong.
    const char *challenge;
    const revdial_auth_req *auth;  // AUTH
    const revdial_kv *meta;        // OPEN: "target", "client", "local", "id", "timeout_ms", yours
    size_t meta_count;
    const char *text;  // valid until the next call on this engine
} revdial_event;

// What the bytes ride in after the handshake. A proxy uses what the backend asks for.
enum revdial_carrier {
    REVDIAL_CARRIER_RAW = 0,       // Upgrade: revdial
    REVDIAL_CARRIER_WEBSOCKET = 1  // Upgrade: websocket, for front ends that pass nothing else
};

typedef struct revdial_engine_config {
    int role;      // REVDIAL_ROLE_*
    int upgraded;  // 1: the handshake happened elsewhere, yamux starts at byte 0 with stock rules
    int carrier;   // REVDIAL_CARRIER_*; a proxy reads it from the request, unless upgraded
    const char *host;      // backend: Host header
    const char *path;      // default "/revdial"
    const char *name;      // backend: the name to register
    const char *instance;  // backend: stable id of this process
    const char *secret;    // backend: token or password; NULL sends no Authorization
    const char *user;      // backend: of BASIC and DIGEST
    // REVDIAL_AUTH_*, a set; 0 = BEARER. A proxy asks for these, a backend may use them. A backend
    // with BEARER or BASIC alone sends the secret with its first request. Otherwise the proxy's 401
    // ends this engine with ev.challenge, and the next engine uses the strongest way that the 401
    // asks for. After DIGEST, or with DIGEST alone, a backend refuses a proxy that does not prove
    // that it knows the password.
    unsigned auth_schemes;
    const char *challenge;  // backend: from the REVDIAL_EV_DEAD of the last attempt
    const char *realm;      // proxy: of the 401; default "revdial"
    // Proxy: the nonce of a 401 with DIGEST, unpredictable and never used for another engine. The
    // caller checks that an answer is to a nonce it issued, and that it is the first one.
    const char *nonce;
    // Proxy: comma list of globs of the web pages that may register, "https://ops.example"; at most
    // 1024 bytes; NULL = none.
    const char *origins;
    const revdial_kv *headers;  // backend: extra request headers
    size_t header_count;
    const char *peer;     // proxy: "address:port" for revdial_auth_req
    uint64_t session_id;  // proxy: announced as Revdial-Session
    uint64_t seed;        // unpredictable: for hashes of ids, DIGEST's cnonce, WebSocket's masks
    int accept_streams;   // 1: the peer may open streams (always so for a backend)
    revdial_limits limits;
    revdial_alloc_fn *alloc;  // NULL = realloc and free
    void *alloc_ud;
} revdial_engine_config;

// What an engine holds and has done.
typedef struct revdial_engine_info {
    uint64_t session_id;  // Revdial-Session; 0 if it was not announced, or not yet
    uint32_t streams;     // in the table, opened by either side
    uint32_t features;    // REVDIAL_FEATURE_* in force
    int carrier;          // REVDIAL_CARRIER_*
    int was_probe;        // proxy: DEAD by a request that did not ask for a session (health check)
    uint64_t streams_opened, streams_reset;
    uint64_t rx_bytes, tx_bytes;  // payload
    uint64_t rx_frames, tx_frames;
    int64_t rtt_us;                         // least of the recent pings, 0 before the first
    int64_t last_rx_us;                     // when the last bytes came, on the clock of now_us
    size_t buffered_bytes;                  // received and unread
    size_t output_bytes;                    // waiting to be sent
    size_t memory_bytes;                    // allocated now
    uint64_t credit_waits;                  // times that a stream had bytes to send and no credit
    uint64_t resets[REVDIAL_RESET_PLACES];  // streams_reset by code
} revdial_engine_info;

enum revdial_feature {
    REVDIAL_FEATURE_RSTCODE = 1,
    REVDIAL_FEATURE_PREAMBLE = 2,
    REVDIAL_FEATURE_DRAIN = 4,
    REVDIAL_FEATURE_PROMPTACK = 8,
    REVDIAL_FEATURE_PINGS = 16
};

// Why a stream does not move, and its flow control in numbers.
typedef struct revdial_flow_info {
    const char *blocked_on;  // "peer's credit", "socket", "turn", "reader", "accept" or ""
    uint32_t send_credit;    // bytes we may still send
    uint32_t recv_credit;    // bytes the peer may still send
    uint32_t window;         // our receive window now
    uint64_t sent, received, consumed;
    uint32_t buffered;  // received - consumed
    // Since when, on the clock of now_us (CLOCK_MONOTONIC in the runtime half); 0 = not blocked.
    // For "socket" and "turn": when the session last sent a byte.
    int64_t blocked_since_us;
} revdial_flow_info;

// New engine. Nothing happens until bytes or time come in.
//   now_us   any monotonic clock, microseconds, >= 0
//   returns  NULL: out of memory, or a config field makes no sense (reason in err)
//   owns     copies all of cfg; free with revdial_engine_free()
REVDIAL_API revdial_engine *revdial_engine_new(const revdial_engine_config *cfg, int64_t now_us,
                                               revdial_err *err);

// Frees the engine and all its streams. NULL is ignored.
REVDIAL_API void revdial_engine_free(revdial_engine *e);

// Bytes from the wire; len 0 is the end of the connection. Stops after each piece that raises an
// event: drain the events, then pass the rest.
//   returns  bytes used, 0..len (0 also while events wait to be drained); REVDIAL_ECLOSED once
//            dead; EINVAL for a len over PTRDIFF_MAX, such as the -1 of a read(2) that failed
//   owns     buf stays yours; it must not change until revdial_engine_event() has returned 0
REVDIAL_API ptrdiff_t revdial_engine_input(revdial_engine *e, const void *buf, size_t len,
                                           int64_t now_us);

// Next event.
//   returns  1 and *ev, or 0 when there is none: then unread payload has been copied, and the
//            buffer of revdial_engine_input() is yours again
REVDIAL_API int revdial_engine_event(revdial_engine *e, revdial_event *ev);

// Bytes for the wire, in order, without removing them.
//   returns  vectors filled, 0..max; call again after revdial_engine_sent()
REVDIAL_API int revdial_engine_output(revdial_engine *e, struct iovec *iov, int max);

// The first n bytes of the last revdial_engine_output() are on the wire; its next call shows the
// others again. If this makes room for a writer that waits, REVDIAL_EV_WRITABLE follows. A negative
// n, as a writev(2) that failed returns it, counts as 0.
REVDIAL_API void revdial_engine_sent(revdial_engine *e, size_t n);

// Bytes that may wait in the engine before writes take no more: default 256 KiB.
// REVDIAL_EV_WRITABLE tells when they take more again. A driver that knows the rate of its link
// sets a few milliseconds' worth. While several streams are busy, each writes a quarter of this in
// its turn, but at least 16 KiB. Below 16 KiB a turn is a quarter of it, at least 1 KiB, and no
// frame is longer than all of it.
REVDIAL_API void revdial_engine_set_output_max(revdial_engine *e, size_t bytes);

// Tells the time before writes that no input or tick has come just before. With peers that have
// REVDIAL_FEATURE_PINGS it matters: the engine measures how long what is written takes to the peer.
REVDIAL_API void revdial_engine_set_now(revdial_engine *e, int64_t now_us);

// Runs what is due: pings, timeouts, delayed frames. Early calls do nothing.
//   returns  when to call again, on now_us's clock; -1 never
REVDIAL_API int64_t revdial_engine_tick(revdial_engine *e, int64_t now_us);

// Will the session end soon unless a byte moves? It does when a pong is late, or when the socket
// takes no output.
//   returns  1: check about once a second whether the peer's system acknowledges bytes (SIOCOUTQ)
//            and report it with revdial_engine_acked(); 0 no
REVDIAL_API int revdial_engine_is_waiting(const revdial_engine *e);

// At at_us or later the peer's system has acknowledged bytes, but not yet all that were sent. On a
// slow link this is the only sign of life, because ping and pong queue behind earlier bytes.
REVDIAL_API void revdial_engine_acked(revdial_engine *e, int64_t at_us);

// Answer to REVDIAL_EV_AUTH.
//   verdict  a revdial_verdict, or an error that stands for one, as revdial_auth_verify() returns
//   returns  0, or REVDIAL_EINVAL if no answer is awaited (the peer has gone meanwhile)
REVDIAL_API int revdial_engine_auth(revdial_engine *e, int verdict);

// Checks a request against a table: first what was presented, then the name. A wrong secret costs
// the same work, within 1 %, whatever the table has for the user that was presented: no row, one or
// several, plain texts or hashes.
//   row      set to the index of the row that proved itself, even if it does not list the name
//            (not with MTLS); may be NULL
//   returns  0, REVDIAL_EAUTH or REVDIAL_EDENIED
//   thread   any
REVDIAL_API int revdial_auth_verify(const revdial_auth_req *req, const revdial_credential *rows,
                                    size_t count, size_t *row);

// Opens a stream. With the preamble feature its target, addresses and meta go along; without it the
// peer gets none of them, and asking for a target is REVDIAL_EINVAL. The early bytes follow.
//   returns  the stream's id; REVDIAL_EAGAIN: too many opens are unanswered, try again at
//            EV_WRITABLE with id 0; EDRAINING, ECLOSED, ELIMIT, ENOMEM, EINVAL
//   owns     the id is yours until revdial_engine_close()
REVDIAL_API int64_t revdial_engine_open(revdial_engine *e, const revdial_dial_opts *opts, void *ud);

// Accepts a stream that EV_OPEN announced. Reading, writing or finishing it accepts it too.
//   returns  0, or REVDIAL_EINVAL
REVDIAL_API int revdial_engine_accept(revdial_engine *e, uint32_t id);

// Sends the early bytes of a stream that was opened without them. Allowed once, before any write.
// Like those of an opening they wait for no turn and take no room from other streams.
//   returns  0, REVDIAL_ERESET, EINVAL (also over REVDIAL_EARLY_MAX), ENOMEM
REVDIAL_API int revdial_engine_early(revdial_engine *e, uint32_t id, const void *buf, size_t len);

// Sets the pointer that comes back as ev.ud.
//   returns  0, or REVDIAL_EINVAL: no such stream
REVDIAL_API int revdial_engine_set_ud(revdial_engine *e, uint32_t id, void *ud);

// Takes received bytes and gives their credit back to the peer.
//   returns  >0 bytes; 0 the peer finished and all was read; REVDIAL_EAGAIN nothing there yet;
//            REVDIAL_ERESET, ELOST, ECLOSED, EINVAL (no such stream, or len is 0 or over
//            PTRDIFF_MAX)
REVDIAL_API ptrdiff_t revdial_engine_read(revdial_engine *e, uint32_t id, void *buf, size_t len);

// Would a write of any size take something now?
//   returns  1; 0: wait for EV_WRITABLE; or the error that a write would return
REVDIAL_API int revdial_engine_writable(revdial_engine *e, uint32_t id);

// Queues bytes as far as the peer's credit and the output allow. Copies.
//   returns  bytes taken, 0..len (0: wait for EV_WRITABLE); REVDIAL_ERESET, ECLOSED, ENOMEM, EINVAL
//            (no such stream, or a len over PTRDIFF_MAX)
REVDIAL_API ptrdiff_t revdial_engine_write(revdial_engine *e, uint32_t id, const void *buf,
                                           size_t len);

// Stops reading: bytes that still arrive are dropped, and a peer that sends much more is reset.
//   returns  0, EINVAL
REVDIAL_API int revdial_engine_end_read(revdial_engine *e, uint32_t id);

// Ends writing: after the bytes written so far the peer reads EOF.
//   returns  0, ERESET, EINVAL
REVDIAL_API int revdial_engine_end_write(revdial_engine *e, uint32_t id);

// Aborts both directions now. On a stream not yet accepted this is the refusal. Once both sides
// have finished, the stream is over and the peer is told nothing.
//   code     0..255, REVDIAL_RESET_* or the application's from 64
//   returns  0, EINVAL
REVDIAL_API int revdial_engine_reset(revdial_engine *e, uint32_t id, int code);

// Gives the stream up: ends writing if that has not happened, then drops what still arrives. After
// 64 KiB or 30 s of that it is reset. The id is no longer yours.
REVDIAL_API void revdial_engine_close(revdial_engine *e, uint32_t id);

// Announces that nothing new is accepted and nothing new will be opened; what runs goes on. With
// the drain feature the peer is told at once, else when the last stream has ended.
REVDIAL_API void revdial_engine_drain(revdial_engine *e);

// Ends the session: GoAway, then REVDIAL_EV_DEAD with REVDIAL_ECLOSED.
REVDIAL_API void revdial_engine_terminate(revdial_engine *e);

// The same, and tells a peer that understands it that another session of its instance has replaced
// this one: its REVDIAL_EV_DEAD has REVDIAL_EDUPLICATE.
REVDIAL_API void revdial_engine_replace(revdial_engine *e);

// Pings the peer now, unless a ping is unanswered. REVDIAL_EV_RTT or REVDIAL_EV_SILENT follows.
REVDIAL_API void revdial_engine_ping(revdial_engine *e, int64_t now_us);

// Fills in what the engine holds and has done.
REVDIAL_API void revdial_engine_get_info(const revdial_engine *e, revdial_engine_info *out);

// Fills in why a stream does not move.
//   returns  0, or REVDIAL_EINVAL: no such stream
REVDIAL_API int revdial_engine_get_flow(revdial_engine *e, uint32_t id, revdial_flow_info *out);

// ---- without a copy ----
//
// For a driver that moves bulk data: reads where bytes already lie, and writes that stay where they
// are. Everything can be done without them.

// Number of upcoming wire bytes that belong to this stream, with nothing unread before them. To
// avoid a copy, receive that many straight into the buffer that you will pass to
// revdial_engine_read(), and pass them to revdial_engine_input() there. 0 is always safe.
REVDIAL_API size_t revdial_engine_expected(revdial_engine *e, uint32_t id);

// peek shows received bytes where they lie, and does not accept the stream. consume accepts it, and
// gives the credit of n bytes back; call it when they have left you. A negative n is ignored.
//   returns  >0 bytes at *data; else what revdial_engine_read() would return
REVDIAL_API ptrdiff_t revdial_engine_peek(revdial_engine *e, uint32_t id, const void **data);
REVDIAL_API void revdial_engine_consume(revdial_engine *e, uint32_t id, size_t n);

// reserve gives room for payload inside the output, with a gap for the header before it. commit
// makes the first n bytes written there a frame (0 or a negative n gives the room back). No other
// call on the engine may come between the two.
//   returns  bytes of room at *at; 0: wait for EV_WRITABLE; errors as revdial_engine_write();
//            EINVAL also for a want of 0
REVDIAL_API ptrdiff_t revdial_engine_reserve(revdial_engine *e, uint32_t id, void **at,
                                             size_t want);
REVDIAL_API void revdial_engine_commit(revdial_engine *e, uint32_t id, size_t n);

// A write without a copy: the bytes it takes stay where they are, and revdial_engine_output() shows
// them behind a header. EV_SENT tells when all have been sent. After RESET or DEAD no EV_SENT
// follows; call revdial_engine_recall() to get the buffer back.
//   returns  bytes taken, as revdial_engine_write()
//   owns     buf is yours, and must not change while revdial_engine_lent() is not 0
REVDIAL_API ptrdiff_t revdial_engine_lend(revdial_engine *e, uint32_t id, const void *buf,
                                          size_t len);

// Bytes lent on this stream, closed or not, that are still needed.
REVDIAL_API size_t revdial_engine_lent(revdial_engine *e, uint32_t id);

// Takes lent memory back before it was sent, by copying what is still needed. Bytes that the last
// revdial_engine_output() showed may be in a system call now: they stay lent until
// revdial_engine_sent(), also of 0 bytes. Call again after that.
//   returns  bytes that are still needed where they are; REVDIAL_ENOMEM: some could not be copied,
//            and revdial_engine_lent() says how many are still lent
REVDIAL_API ptrdiff_t revdial_engine_recall(revdial_engine *e, uint32_t id);

// ---- through an egress proxy ----
//
// The client side of the handshake with an egress proxy: bytes in, bytes out, no waiting. It comes
// first on a connection, before TLS and before the handshake of an engine.

// New handshake.
//   url      "http://[user:password@]host:port": CONNECT (RFC 9110 section 9.3.6), Basic; or
//            "socks5://[user:password@]host:port" (RFC 1928, 1929); "socks5h:" means the same.
//            In user and password every byte but letters, digits and -._~ is written %XX
//   target   "host:port" of the proxy. A host name is sent as it is: the egress proxy resolves it
//   alloc    NULL = realloc and free
//   returns  NULL: out of memory, or one of the texts makes no sense. The reason in err never
//            quotes the url, which may hold a password
//   owns     copies url and target; free with revdial_egress_free()
REVDIAL_API revdial_egress *revdial_egress_new(const char *url, const char *target,
                                               revdial_alloc_fn *alloc, void *alloc_ud,
                                               revdial_err *err);

// Wipes and frees. NULL is ignored.
REVDIAL_API void revdial_egress_free(revdial_egress *v);

// Where to connect to: the egress proxy's "host:port". Valid until revdial_egress_free().
REVDIAL_API const char *revdial_egress_address(const revdial_egress *v);

// Bytes from the egress proxy; len 0 is the end of the connection.
//   returns  bytes used, 0..len. Unused bytes after success are the first of the tunnel
REVDIAL_API size_t revdial_egress_input(revdial_egress *v, const void *buf, size_t len);

// Bytes for the egress proxy, without removing them.
//   returns  how many, 0 if there is nothing to send now
REVDIAL_API size_t revdial_egress_output(const revdial_egress *v, const void **data);

// The first n bytes of the last revdial_egress_output() have been sent; they are wiped.
REVDIAL_API void revdial_egress_sent(revdial_egress *v, size_t n);

// State of the handshake.
//   err             why it failed; the text names the egress proxy as the cause
//   retry_after_ms  how long the egress proxy asked to wait, else 0; may be NULL
//   returns  0 not yet; 1 open; REVDIAL_EAUTH: it wants other credentials; EUNREACH: it refuses, or
//            cannot reach the target; EPROTO, ELOST, ENOMEM
REVDIAL_API int revdial_egress_state(const revdial_egress *v, revdial_err *err,
                                     int *retry_after_ms);

// ================================================================================================
// MARK: api.transport
// What moves a session's bytes in place of the bare socket: TLS (revdial_tls.h is one), or anything
// that is a reliable stream of bytes. Nothing here may block, call revdial, or raise SIGPIPE.
// ================================================================================================

// The transport must wait until the socket can be read, or written. Any call may return either.
enum revdial_want { REVDIAL_WANT_READ = -30, REVDIAL_WANT_WRITE = -31 };

// The transport of one connection. Calls never overlap, but come from different threads. Those that
// may be NULL say so. do_handshake is called first, until it returns 0. After an error only
// do_reason and do_close are called. (Names with do_, because some systems #define read, write and
// close.)
typedef struct revdial_transport {
    void *ctx;
    int (*do_handshake)(void *ctx);  // 0 done, REVDIAL_WANT_* or REVDIAL_E*; NULL = none needed
    // >0 bytes; 0: the peer announced its end; WANT_*; E*. A connection that ends without that
    // announcement is REVDIAL_ELOST: it may have been cut.
    ptrdiff_t (*do_read)(void *ctx, void *buf, size_t len);
    // >0 bytes, WANT_* or E*. After WANT_* it is called with the same pointer and length again.
    ptrdiff_t (*do_write)(void *ctx, const void *buf, size_t len);
    size_t (*do_pending)(void *ctx);      // bytes for do_read that the socket does not show
    int (*do_finish)(void *ctx);          // announce our end: 0, WANT_* or E*
    void (*do_close)(void *ctx);          // free ctx; the descriptor stays open
    const char *(*do_reason)(void *ctx);  // of the last error, for people; NULL = no text
    int (*do_peer)(void *ctx, revdial_identity *out);  // after the handshake; NULL = unknown
} revdial_transport;

// Makes transports.
typedef struct revdial_tls {
    void *ud;
    // Called once per connection; its descriptor fd is non-blocking. host is the name that the
    // peer's certificate must have; NULL: this side is the server. Returns 0, or REVDIAL_E* and the
    // reason in err; then *out is not used.
    //   thread   any, several at one time
    int (*wrap)(void *ud, int fd, const char *host, revdial_transport *out, revdial_err *err);
} revdial_tls;

// ================================================================================================
// MARK: api.config
// What a proxy and an agent share. The rules of the runtime half:
//   Fields    Every field may be left zero: `revdial_proxy_config c = {0};`, no init functions.
//             Configs and their strings are copied before the call returns. The pointers that hooks
//             get (ud, alloc_ud, log_ud, auth_ud, credential_ud) are passed on as they are.
//   Lists     One setting with several values is a comma list; blanks around items and empty items
//             are ignored. Structs come as a pointer and a count. Allow lists are arrays of strings
//             that end in NULL.
//   Times     In milliseconds. A config field: 0 = the default (no limit where the comment gives no
//             default), -1 = no limit where the comment says so. timeout_ms and drain_ms of a
//             function: 0 = do not wait, -1 = no limit. (The timeout_ms of revdial_dial_opts is a
//             config field: 0 is its default.)
//   Streams   A handler or caller that gets a revdial_stream owns it and calls revdial_close()
//             once; nothing else frees it. One reader and one writer may use it at the same time.
//   Threads   Any thread may call anything, also from callbacks. A function with a `blocks` line
//             returns REVDIAL_EDEADLK on an I/O thread instead of hanging.
//   Hooks     No lock is held while a hook runs. A hook must return: after longjmp(), a C++
//             exception or pthread_exit() out of one, the state of the library is undefined. The
//             same holds for pthread_cancel() of a thread inside a call: disable it there
//             (pthread_setcancelstate()).
//   Signals   The library's threads block all signals, except while a handler runs, or a hook other
//             than log, alloc and those of a transport. Then they have the signal mask of the
//             thread that started the proxy or the agent; a program that they start inherits it.
//   NULL      Every close, free and unref ignores NULL. `err` may always be NULL.
//   fork(2)   Only the parent may go on with what is open. In the child each call fails with
//             REVDIAL_ECLOSED (or returns NULL, or does nothing) and never touches the parent's
//             connections; what the child opens itself works. Descriptors of revdial_stream_fd()
//             and revdial_dial_fd() are plain sockets, usable by either. exec(2) closes all
//             descriptors of the library.
// ================================================================================================

typedef struct revdial_common {
    revdial_log_fn *log;  // NULL = silent
    void *log_ud;
    int log_level;            // REVDIAL_LOG_*, 0 = INFO
    int access_log;           // 1: stream.open and stream.end are INFO, 0: they are DEBUG
    revdial_alloc_fn *alloc;  // NULL = realloc and free; called from any thread
    void *alloc_ud;
    revdial_limits limits;
    unsigned io_threads;  // proxy: I/O threads that share the sessions, default 1
    // A thread that waits for bytes busy-polls up to this many microseconds before it sleeps; it
    // stops by itself when waits are longer or another thread needs the core. 20 to 100 shortens
    // round trips on one host or rack, and costs processor time and up to 10 % of the rate of bulk
    // by blocking calls. 0 = never.
    unsigned spin_us;
    // TCP keepalive of clients of exposed ports, of targets and of sockets in a relay: idle time
    // before the first probe. Three more follow, a quarter of that apart. 0 = 60000, so that a
    // peer that has vanished is noticed after 105 s; -1 = none.
    int tcp_keepalive_ms;
    // TCP congestion control of the sessions, e.g. "bbr" (Linux: TCP_CONGESTION). NULL = as the
    // system has it. Checked at the start: REVDIAL_EINVAL lists what the system offers.
    const char *congestion;
    // Agent: for https:// and wss://. Proxy: for `listen`, except unix:. Must outlive both. TLS
    // handshakes get about 2 ms of each pass of an I/O thread, so that they do not hold up traffic.
    const revdial_tls *tls;
} revdial_common;

// Appends " key=value" to msg, in the form that a revdial_log_fn gets: for an application that
// writes lines of its own. A long value is cut and ends in "..."; a field that does not fit is left
// out. No blank precedes the first field.
//   msg      NUL-terminated, "" at first
//   size     of the memory that msg is in
//   value    any bytes; NULL or "" adds nothing
//   thread   any
REVDIAL_API void revdial_log_field(char *msg, size_t size, const char *key, const char *value);

enum {
    REVDIAL_AUTH_PLACES = 4,
    REVDIAL_DIAL_PLACES = 18,  // the last one is for up to 32.8 s
    REVDIAL_ERROR_PLACES = 21
};

typedef struct revdial_stats {
    unsigned sessions, streams;
    uint64_t sessions_opened, sessions_closed, auth_failures, handshakes_refused;
    uint64_t streams_opened, streams_reset, dials_failed, reconnects;
    uint64_t rx_bytes, tx_bytes;  // payload of streams
    size_t memory_bytes;
    uint64_t credit_waits;                  // times that a stream had bytes to send and no credit
    uint64_t resets[REVDIAL_RESET_PLACES];  // streams_reset by code
    // A proxy's refusals of backends by answer, for some by scheme: 0 BEARER, 1 BASIC, 2 DIGEST, 3
    // MTLS. A request without credentials, with which DIGEST begins, is not counted.
    uint64_t refused_401[REVDIAL_AUTH_PLACES], refused_403[REVDIAL_AUTH_PLACES];
    uint64_t refused_409, refused_429, refused_503;
    // A proxy's dials that are over: how many, the sum of their times, how many of them took up to
    // 250 µs << i, and how many failed with the error -i.
    uint64_t dials, dial_us;
    uint64_t dials_within[REVDIAL_DIAL_PLACES], dials_failed_by[REVDIAL_ERROR_PLACES];
} revdial_stats;

typedef struct revdial_session_info {
    uint64_t id;
    char name[65], instance[65], identity[128], peer[72];
    int state;    // REVDIAL_UP, DRAINING or DOWN
    int carrier;  // REVDIAL_CARRIER_*
    unsigned streams;
    uint64_t streams_opened, rx_bytes, tx_bytes;
    int64_t age_ms, rtt_us;
    size_t queued_bytes;  // that wait to be sent
    size_t unread_bytes;  // received, and not yet read
    size_t memory_bytes;
    uint64_t streams_reset;
    uint64_t credit_waits;                  // times that a stream had bytes to send and no credit
    uint64_t resets[REVDIAL_RESET_PLACES];  // streams_reset by code
} revdial_session_info;

// One stream of a session.
typedef struct revdial_stream_info {
    char dial[28];     // the id of its dial, as in the logs of both ends
    int is_dialled;    // by this side
    char client[80];   // what the peer's dial said; "" if this side has dialled
    char target[264];  // as client
    revdial_flow_info flow;
    int64_t blocked_ms;  // how long it has been blocked on flow.blocked_on
} revdial_stream_info;

// ================================================================================================
// MARK: api.proxy
// Where backends register and streams are opened.
// ================================================================================================

// What becomes of a client by its first bytes.
enum revdial_route_verdict {
    // Send `reply`, if there is one, and call again: when more has arrived, or at once if bytes are
    // left and some were used. A client that sends no more (is_end) is refused instead.
    REVDIAL_ROUTE_MORE = 1,
    // Dial the backend `name`; the bytes that are not used are the first that it gets.
    REVDIAL_ROUTE_DIAL,
    // Send `reply` and FIN, and drop for up to 5 s what the client still sends, so that no RST
    // destroys the reply. Without a reply the connection is reset.
    REVDIAL_ROUTE_REFUSE,
    // The hook has the connection now: fd is its own, and so are copies of the bytes not used. The
    // library forgets it; on_client does not tell of it.
    REVDIAL_ROUTE_TAKE
};

// A client whose first bytes are there, and what the hook answers. Pointers are valid during the
// call only, in both directions.
typedef struct revdial_route {
    // What the client has sent, and no call has used yet.
    const uint8_t *data;
    size_t len;
    int is_end;  // the client sends no more
    int fd;      // for TAKE: non-blocking
    const char
        *client;        // as revdial_client.address: the source of a PROXY header, if there was one
    const char *local;  // where it connected to, "host:port"; NULL if that is not known
    int state;          // 0 at first, then what the last call left: the step of a protocol
    // The answer. Zero or NULL at first, where nothing else is said.
    size_t used;             // bytes of data that are done with
    const char *name;        // DIAL; at first the port's
    revdial_dial_opts dial;  // DIAL; at first the port's, with client_addr and local_addr
    const void *reply;       // for the client
    size_t reply_len;
    int half_closed_ms;  // DIAL; at first the port's
    char text[1024];     // room for the strings of the answer
} revdial_route;

// Decides about a client. On the proxy's first I/O thread: must not block.
//   returns  a revdial_route_verdict
typedef int revdial_route_fn(void *ud, revdial_route *r);

// The dial that a route asked for has ended: why is NULL, and the relay begins once r->reply is
// sent; or why has the reason, and the client gets r->reply as one that was refused does. Of r only
// fd, client, local, state and the reply have a meaning. On the same thread as the route. Not
// called for a client whose port was unexposed or whose proxy stops meanwhile.
typedef void revdial_route_done_fn(void *ud, revdial_route *r, const revdial_err *why);

// A port for clients. Each connection to it becomes a stream, dialled and relayed by the I/O
// threads. A client whose dial fails has its connection reset (a Unix socket: closed).
typedef struct revdial_expose {
    const char *listen;  // "host:port" or "unix:/path"; port 0 = any, see revdial_proxy_address()
    const char *name;    // the backend; may be NULL with a route
    revdial_dial_opts dial;  // client_addr, local_addr and early are set for each connection
    int idle_ms;             // ends a connection after this time without a byte; 0 = never
    int half_closed_ms;      // the same once one side has finished; 0 = 3600000, -1 = never
    unsigned max_waiting;    // most clients that wait for their dial, default 4096; more are not
                             // accepted until one is connected. On a port with a route the
                             // client that has been silent for longest makes room, after 1 s.
    // Decides where each client goes. NULL: all go to `name`. A client that waits for its decision
    // costs no thread, about 400 bytes, and what it has sent. It counts for max_waiting.
    revdial_route_fn *route;
    revdial_route_done_fn *route_done;  // NULL: nothing is sent
    void *route_ud;                     // of both
    // Bytes from a client without a decision, after which it is refused, default 16384, up to
    // 65536.
    size_t route_bytes_max;
    int route_timeout_ms;  // from accept to the decision, default 10000
    // Comma list of addresses, networks ("10.0.0.0/8", "fd00::/8") and "unix:". Connections from
    // there begin with a header of the PROXY protocol, version 1 or 2, within route_timeout_ms. Its
    // source is the client from then on; a header without one (LOCAL, UNKNOWN) changes nothing.
    // Others must not send a header: it would be payload. NULL = none.
    const char *trusted_proxies;
    // The same form: other clients are closed at once. One behind a trusted proxy is judged by its
    // header. NULL = everybody.
    const char *allow_from;
} revdial_expose;

// Outcome of one client connection; valid during the call. REVDIAL_ECLOSED: the client left before
// its dial finished, or the proxy closed the connection. Out of memory when a client is accepted is
// only logged.
typedef struct revdial_client {
    size_t expose;           // index of its port in the config; the id of its port less 1
    const char *address;     // "host:port" or "unix"
    int is_relayed;          // 0: the dial failed
    uint64_t moved[2];       // bytes to the backend, and back
    const revdial_err *why;  // NULL: both directions ended with EOF
} revdial_client;

typedef struct revdial_proxy_config {
    // Comma list "host:port,[::]:port,unix:/path"; port 0 = any; NULL = none, for proxies that get
    // all connections by revdial_proxy_attach().
    // "[::]:port" accepts IPv4, too, unless `listen` or `exposes` has an IPv4 address or a host
    // name with that port.
    const char *listen;
    unsigned unix_mode;  // of Unix sockets in `listen` and `exposes`, 0660; 0 = by the umask
    const char *path;    // of the upgrade request, default "/revdial"
    const revdial_credential *credentials;  // NULL and 0 = none
    size_t credential_count;
    // Decides instead of the table; with neither, every backend is refused. At most eight calls at
    // a time for one source. Backends that wait for a slow hook use up max_pending.
    revdial_auth_fn *auth;
    void *auth_ud;
    int auth_anonymous;     // 1: call `auth` for requests without credentials, too; 0: they get 401
    unsigned auth_schemes;  // REVDIAL_AUTH_*, a set: what a 401 asks for; 0 = what the table has,
                            // BEARER with a hook
    const char *realm;      // of BASIC and DIGEST, default "revdial"
    // Web pages whose browsers may register: comma list of globs, "https://ops.example". NULL =
    // none: a request with an Origin that is not listed gets 403.
    const char *origins;
    // Limit N of wrong credentials, default 10; -1: no limit. Above it a request is answered with
    // 429 and its credentials are not checked.
    //   one source, one name       N at once, then one every 5 s
    //   one source, all names      ten times as many, ten times as often
    //   one IPv6 /48               eight times as many as a /64 of it
    // BEARER, BASIC, DIGEST and the verdicts of `auth` count alike; a certificate is no guess. What
    // was right within the last day has budgets of its own, so that a guesser does not lock out its
    // neighbours. An agent (name and instance) that was right: N at once, then one every 5 s. Other
    // instances that present a credential known from this source: together 10 N at once, then one
    // every 0.5 s. With the default a
    // source can try 720 secrets an hour for one name, as many for each agent that was in, and
    // 14,400 in all. There is no limit for all sources together: a botnet could use it to lock
    // everybody out. A proxy that was restarted has forgotten both. It remembers the 4096 largest
    // debts and the latest 16,384 keys of requests that were right, two for each, in 320 KiB.
    int max_auth_failures;
    unsigned max_sessions;           // default 65536
    unsigned max_sessions_per_name;  // default 64
    // Sessions of one identity, over all its names; 0 = no limit, so that one credential for "*"
    // can take all of max_sessions.
    unsigned max_sessions_per_identity;
    // Connections that have not authenticated yet, default 512. Each has handshake_timeout_ms, but
    // the time that it waits for the proxy's own TLS work does not count. One source gets 7/8 of
    // the places; the rest wait in a queue with eight times as many places, but at most a quarter
    // of the process's descriptors. The next place goes to the first in the queue that has sent a
    // byte. A connection loses its place to the queue after 2 s without progress, 5 s while others
    // come up. So a thousand agents behind one address all get in, and silent connections do not
    // keep them out. When the queue is full, or a connection comes from a source with fewer than
    // half as many as the busiest one, the connection of the busiest source whose last progress is
    // the oldest is dropped. A connection whose `auth` call runs is not; if all are such, a new one
    // waits or is refused.
    unsigned max_pending;
    // A session came up, drains, or is down (why is NULL when this side closed it). On an I/O
    // thread: must not block. UP comes before any dial can pick the session; UP and DOWN come in
    // pairs.
    void (*on_session)(void *ud, revdial_session *s, int state, const revdial_err *why);
    // The backend opened a stream to us. NULL = refused. On a thread of its own; owns st.
    void (*on_stream)(void *ud, revdial_stream *st);
    const revdial_expose *exposes;  // exposes[i] has the id i + 1; see revdial_proxy_expose()
    size_t expose_count;
    // A client's connection to an exposed port is over. On an I/O thread: must not block.
    void (*on_client)(void *ud, const revdial_client *client);
    void *ud;  // of on_session, on_stream and on_client
    revdial_common common;
} revdial_proxy_config;

// A connection that another server accepted, with what it has read from it.
typedef struct revdial_attach_opts {
    const void *early;  // bytes already read
    size_t early_len;
    int upgraded;          // 0: the request is in early or still to come. 1: you have sent the 101
    const char *name;      // upgraded only: the name to register; the proxy trusts you for it
    const char *instance;  // upgraded only
    const char *identity;  // upgraded only
    const char *group;     // upgraded only: as revdial_credential.group
    // Your TLS on it; NULL: none, whatever common.tls says. Taken over like fd.
    const revdial_transport *transport;
} revdial_attach_opts;

// Binds, listens and starts the I/O threads.
//   returns  NULL: reason in err
//   owns     free with revdial_proxy_stop()
//   thread   any
REVDIAL_API revdial_proxy *revdial_proxy_start(const revdial_proxy_config *cfg, revdial_err *err);

// The address that listener `index` is bound to, "host:port", "[host]:port" or "unix:path". Those
// of `listen` come first, then one for each of `exposes`.
//   returns  its length, or REVDIAL_EINVAL: no such listener, or buf too small
//   thread   any
REVDIAL_API int revdial_proxy_address(revdial_proxy *p, unsigned index, char *buf, size_t size);

// Listens for clients while the proxy runs, as it does for `exposes`. When it fails, nothing has
// changed.
//   returns  the port's id > 0; REVDIAL_EINVAL (a field makes no sense), ESYS (err->sys says why:
//            EADDRINUSE, EACCES, ...), ENOMEM, EDRAINING, ECLOSED, or EDEADLK: the lookup of a host
//            name in `listen` would block an I/O thread
//   owns     copies *x
//   blocks   only to look up a host name in `listen`
//   thread   any
REVDIAL_API int64_t revdial_proxy_expose(revdial_proxy *p, const revdial_expose *x,
                                         revdial_err *err);

enum revdial_unexpose_flag { REVDIAL_END_CLIENTS = 1 };  // end the port's connections, too

// Stops listening. The address can be bound again when this returns, the path of a Unix socket is
// removed, and the port's hooks are not called any more: clients that a route or a dial for it has
// not finished with are closed. Without REVDIAL_END_CLIENTS other connections go on to their end.
// on_client still tells of each.
//   returns  0; REVDIAL_EINVAL: no port has this id; ECLOSED. 1 on an I/O thread other than the
//            first (io_threads), where it does not wait: a moment later the hooks are not called
//            any more and a TCP port is closed
//   blocks   for a pass of an I/O thread
//   thread   any
REVDIAL_API int revdial_proxy_unexpose(revdial_proxy *p, int64_t id, unsigned flags);

// The address that the port with this id is bound to, as revdial_proxy_address() gives it.
//   returns  its length, or REVDIAL_EINVAL: no such port, or buf too small
//   thread   any
REVDIAL_API int revdial_proxy_expose_address(revdial_proxy *p, int64_t id, char *buf, size_t size);

// Takes over a connection. Why one is refused is logged, too.
//   fd       a connected stream socket
//   owns     fd, on success and on failure
//   returns  0, ECLOSED, ELIMIT, ENOMEM, ESYS, ELOST (fd is not connected, or no longer), EINVAL
//            (it is no stream socket or no descriptor, or a field of how makes no sense)
//   thread   any
REVDIAL_API int revdial_proxy_attach(revdial_proxy *p, int fd, const revdial_attach_opts *how,
                                     revdial_err *err);

// Checks whether any backend could register by this row: that no field is missing, that the secret
// can be presented, and that some name matches. A proxy takes no table with a row that fails.
//   returns  NULL: it is good; else a static text that begins with the field and quotes no secret
//   thread   any
REVDIAL_API const char *revdial_credential_problem(const revdial_credential *row);

// Also end the sessions that the old table admitted and the new one would not: it has no row with
// the identity and secret that they presented and a glob for their name. The order of rows does not
// matter.
enum revdial_credentials_flag { REVDIAL_END_STALE = 1 };

// Replaces the table of credentials for requests to come. Without REVDIAL_END_STALE sessions stay
// until they reconnect. NULL and 0 are a table that admits nobody. From now on the group of its new
// row decides who may share a name with a session.
//   flags    REVDIAL_END_STALE or 0
//   returns  0; REVDIAL_EINVAL, ENOMEM: the old table is in force, or not all sessions were ended
//   owns     copies the rows (secrets as hashes: the proxy's memory does not have them)
//   thread   any
REVDIAL_API int revdial_proxy_replace_credentials(revdial_proxy *p, const revdial_credential *rows,
                                                  size_t count, unsigned flags, revdial_err *err);

// Replaces the application's check for requests to come; NULL = the table. Calls of the old one
// that run may go on until revdial_proxy_stop().
//   thread   any
REVDIAL_API void revdial_proxy_replace_auth(revdial_proxy *p, revdial_auth_fn *auth, void *auth_ud);

// Waits until at least min_sessions backends of that name are up.
//   blocks   for timeout_ms
//   returns  how many are up, REVDIAL_ETIMEDOUT, ECLOSED, EDEADLK, EINVAL (no name)
//   thread   any but I/O threads
REVDIAL_API int revdial_proxy_wait(revdial_proxy *p, const char *name, unsigned min_sessions,
                                   int timeout_ms);

// Live sessions whose name matches the glob (NULL = all).
//   owns     each of the min(cap, returned) sessions in out comes with a reference for you
//   returns  how many there are
//   thread   any
REVDIAL_API size_t revdial_proxy_list(revdial_proxy *p, const char *name_glob,
                                      revdial_session **out, size_t cap);

// Counters of the proxy and of all its sessions.
//   thread   any
REVDIAL_API void revdial_proxy_get_stats(revdial_proxy *p, revdial_stats *out);

// Stops accepting, tells the backends, and waits for the streams to end. Sessions whose streams
// have not ended at the timeout are dropped.
//   blocks   for timeout_ms
//   returns  0 all ended, REVDIAL_ETIMEDOUT, EDEADLK
//   thread   any but I/O threads
REVDIAL_API int revdial_proxy_drain(revdial_proxy *p, int timeout_ms);

// Ends all sessions, joins the threads and frees the proxy. Streams that the application still
// holds stay valid memory: their calls return REVDIAL_ECLOSED.
//   blocks   until callbacks that run have returned
//   returns  0; REVDIAL_EDEADLK in a callback of this proxy, including on_stream and auth, because
//            it would wait for itself: nothing has happened then
//   thread   any but callbacks
REVDIAL_API int revdial_proxy_stop(revdial_proxy *p);

// Opens a stream to a backend of that name and waits until the other end has accepted it: the
// handler took it, or the target is connected. (A stock yamux peer: until the opening is sent.)
// Another session of the name is asked if one refuses, drains, cannot connect to the target, or
// dies or falls silent (0.9 s) before it accepts and before it was sent any byte of the client.
//   blocks   for opts->timeout_ms, 10 s by default
//   returns  NULL: err has ENOBACKEND, EREFUSED, EUNREACH, EDENIED (target), ETIMEDOUT, EDRAINING,
//            ELOST, ELIMIT, ENOMEM, EINVAL, ECLOSED or EDEADLK, and in err->reset the peer's reason
//   owns     free with revdial_close()
//   thread   any but I/O threads
REVDIAL_API revdial_stream *revdial_dial(revdial_proxy *p, const char *name,
                                         const revdial_dial_opts *opts, revdial_err *err);

// As revdial_dial(), and gives a connected socket, as revdial_stream_fd() does.
//   blocks   as revdial_dial()
//   returns  a descriptor to close(2), or REVDIAL_E*
//   thread   any but I/O threads
REVDIAL_API int revdial_dial_fd(revdial_proxy *p, const char *name, const revdial_dial_opts *opts,
                                revdial_err *err);

// Outcome of a dial: st is yours; or it is NULL and err says why. Runs on an I/O thread and must
// not block. Every blocking call on st (read, write, poll) returns REVDIAL_EDEADLK there, so hand
// st to revdial_relay() or revdial_stream_fd(), or pass it to another thread.
typedef void revdial_dial_fn(void *ud, revdial_stream *st, const revdial_err *err);

// Dials without a thread that waits. cb is called exactly once, later, unless this call fails.
//   returns  a dial id > 0, or REVDIAL_E*
//   thread   any
REVDIAL_API int64_t revdial_dial_async(revdial_proxy *p, const char *name,
                                       const revdial_dial_opts *opts, revdial_dial_fn *cb,
                                       void *ud);

// Cancels a dial: cb gets REVDIAL_ECLOSED, and the backend stops connecting to the target.
//   returns  0, or REVDIAL_EINVAL: it is over already
//   thread   any
REVDIAL_API int revdial_dial_cancel(revdial_proxy *p, int64_t dial);

// ================================================================================================
// MARK: api.stream
// One logical connection. EOF is returned if and only if the peer finished and every byte before
// that was delivered; anything else that ends a stream is an error, after the bytes that arrived.
// A stream that the peer opened is accepted by the first call that reads, writes, shuts a direction
// down, polls it for POLLIN, or hands it on (revdial_relay(), revdial_stream_fd()). The dialler
// waits for that; all other calls accept nothing.
// ================================================================================================

// Reads what is there, waiting for the first byte.
//   blocks   until the read deadline
//   returns  >0 bytes; 0 EOF and nothing else; REVDIAL_EAGAIN, ETIMEDOUT, ERESET (see
//            revdial_stream_error()), ELOST, ECLOSED; EINVAL: no room for a byte, count is
//            negative, or the lengths add up to more than PTRDIFF_MAX
//   thread   any but I/O threads, one reader at a time
REVDIAL_API ptrdiff_t revdial_read(revdial_stream *st, void *buf, size_t len);
REVDIAL_API ptrdiff_t revdial_readv(revdial_stream *st, const struct iovec *iov, int count);

// Writes all of it, as the peer grants credit.
//   blocks   until the write deadline
//   returns  len; less if the deadline passed or the stream failed in between; or REVDIAL_EAGAIN,
//            ETIMEDOUT, ERESET, ELOST, ECLOSED if nothing was taken; EINVAL as above, except that
//            a write of 0 bytes returns 0 and accepts the stream. buf is yours again in every case
//   thread   any but I/O threads; the bytes of two calls are never mixed, one call waits for the
//            other
REVDIAL_API ptrdiff_t revdial_write(revdial_stream *st, const void *buf, size_t len);
REVDIAL_API ptrdiff_t revdial_writev(revdial_stream *st, const struct iovec *iov, int count);

// REVDIAL_WR: the peer reads EOF after what was written. REVDIAL_RD: bytes that still arrive are
// dropped, and a peer that sends much more is told to stop.
//   how      REVDIAL_RD, REVDIAL_WR or REVDIAL_RDWR
//   returns  0, ERESET, EINVAL
//   thread   any
REVDIAL_API int revdial_shutdown(revdial_stream *st, int how);

// Aborts both directions at once. If the stream was not accepted yet, the dialler gets
// REVDIAL_EREFUSED with this code. Once both sides have finished, the stream is over and the peer
// is told nothing.
//   code     0..255, REVDIAL_RESET_* or yours from 64
//   thread   any
REVDIAL_API int revdial_reset(revdial_stream *st, int code);

// Finishes what was not finished and frees the handle. Never blocks, never fails; what was written
// is still delivered. A stream that is closed before it was accepted is refused.
//   thread   any; not while another thread is inside a call on st
REVDIAL_API void revdial_close(revdial_stream *st);

// Sets the point in time, timeout_ms from now, at which reads or writes return. It bounds all calls
// together, so a peer that sends one byte at a time cannot extend it. Wakes a call that is waiting.
//   which    REVDIAL_RD, REVDIAL_WR or both
//   thread   any
REVDIAL_API int revdial_stream_set_deadline(revdial_stream *st, int which, int timeout_ms);

typedef struct revdial_pollfd {
    revdial_stream *st;  // or NULL:
    int fd;
    short events, revents;  // POLLIN, POLLOUT; POLLHUP and POLLERR as poll(2)
} revdial_pollfd;

// poll(2) over streams and descriptors, mixed; level-triggered. Polling for POLLIN accepts a stream
// of the peer. Keep streams of one session adjacent: the session is locked once per run of them.
// If several streams of a session are ready, what the thread then writes to them is sent together:
// with the last one's, with the next poll, or by the I/O thread, which is woken at once.
//   blocks   for timeout_ms
//   returns  how many items have revents, 0 at the timeout, REVDIAL_ENOMEM, ESYS, EDEADLK,
//            EINVAL (count is over INT_MAX)
//   thread   any but I/O threads
REVDIAL_API int revdial_poll(revdial_pollfd *items, size_t count, int timeout_ms);

// Turns the stream into a connected socket; the I/O thread moves the bytes. shutdown(SHUT_WR) ends
// one direction, and a stream that failed ends the socket with ECONNRESET.
//   owns     on success st is gone and the descriptor is yours to close(2)
//   returns  the descriptor, or ESYS, ENOMEM, ECLOSED: st is still yours
//   thread   any
REVDIAL_API int revdial_stream_fd(revdial_stream *st);

typedef struct revdial_relay_opts {
    const void *early;   // bytes already read from rfd: they go first
    size_t early_len;    // at most 64 KiB
    int idle_ms;         // ends the relay after this time without a byte either way; 0 = never
    int half_closed_ms;  // the same once one direction has ended; 0 = 3600000, -1 = never
    // Called once, on an I/O thread, when both directions have ended. moved[0] bytes went from rfd
    // to the stream, moved[1] back. why is NULL when both directions ended with EOF.
    void (*done)(void *ud, const uint64_t moved[2], const revdial_err *why);
    void *ud;
} revdial_relay_opts;

// Hands the stream and descriptors to the I/O thread, which copies both ways with half-close and
// back-pressure and closes them all. A stream that fails ends a socket with RST, not with FIN.
//   rfd, wfd a socket (the same twice) or two pipes; made non-blocking
//   owns     all three, on success and on failure
//   returns  0, ECLOSED, ESYS, ENOMEM, EINVAL (done is called after 0 only)
//   thread   any
REVDIAL_API int revdial_relay(revdial_stream *st, int rfd, int wfd, const revdial_relay_opts *opts);

// Why the stream failed.
//   returns  0 it has not, or REVDIAL_E*; *reset the peer's code, may be NULL
//   thread   any
REVDIAL_API int revdial_stream_error(revdial_stream *st, int *reset);

// What came with the dial: "target", "client", "local", "id", "timeout_ms", or a key of the
// dialler's meta.
//   returns  NULL if absent; valid until revdial_close()
//   thread   any
REVDIAL_API const char *revdial_stream_meta(revdial_stream *st, const char *key);

// The session underneath, with a reference for you.
//   thread   any
REVDIAL_API revdial_session *revdial_stream_session(revdial_stream *st);

// Why the stream does not move, and how many bytes each side may send.
//   thread   any
REVDIAL_API int revdial_stream_get_flow(revdial_stream *st, revdial_flow_info *out);

// ================================================================================================
// MARK: api.session
// One authenticated connection. A session that died stays valid memory while it is referenced.
// ================================================================================================

// Takes one more reference.
//   returns  s
//   thread   any
REVDIAL_API revdial_session *revdial_session_ref(revdial_session *s);

// Gives a reference back.
//   thread   any
REVDIAL_API void revdial_session_unref(revdial_session *s);

// Name, peer, state and counters of the session.
//   thread   any
REVDIAL_API void revdial_session_get_info(revdial_session *s, revdial_session_info *out);

// The streams of a session that have been blocked for at least blocked_ms, 0 = all. The session
// does nothing else meanwhile: about 0.1 µs for each of its streams.
//   out      room for cap of them, may be NULL if cap is 0
//   returns  how many there are
//   thread   any
REVDIAL_API size_t revdial_session_list_streams(revdial_session *s, int blocked_ms,
                                                revdial_stream_info *out, size_t cap);

// Opens no new streams from now on; the session closes when the last one has ended, or at the
// timeout. Returns at once.
//   thread   any
REVDIAL_API int revdial_session_drain(revdial_session *s, int timeout_ms);

// Drops the connection now; its streams fail with REVDIAL_ECLOSED here and ELOST there.
//   thread   any
REVDIAL_API void revdial_session_kill(revdial_session *s);

// Dials on this session, from either side (the peer may refuse: EREFUSED). As revdial_dial().
//   thread   any but I/O threads
REVDIAL_API revdial_stream *revdial_session_dial(revdial_session *s, const revdial_dial_opts *opts,
                                                 revdial_err *err);

// ================================================================================================
// MARK: api.agent
// The backend's side: connect, authenticate, serve, reconnect.
// ================================================================================================

// Called before every attempt to connect, for a token that expires or a password that changes.
// Writes it NUL-terminated to `secret`, which is wiped after the attempt. Runs on a thread of its
// own and may block.
//   returns  0, or REVDIAL_E*: the attempt has failed
typedef int revdial_credential_fn(void *ud, unsigned attempt, char *secret, size_t size);

typedef struct revdial_agent_config {
    // Comma list of "http://host[:port][/path]" or "unix:/path", a session to each; https:// and
    // wss:// over TLS; ws:// and wss:// where a front end passes only WebSocket.
    const char *url;
    const char *name;  // what revdial_dial() will ask for: [a-z0-9._-], up to 64
    // Tells the processes of a name apart: a new session replaces the old one of its instance, and
    // that agent is told. The part before the last '.' names a machine: when a new session has the
    // machine, name and identity of an old one, the proxy pings the old one and drops it after 1 s
    // without a byte. Default: a hash of host name, name and url, '.', and 16 random digits for
    // each revdial_agent_start().
    const char *instance;
    const char *secret;  // token or password, kept for reconnects; or:
    revdial_credential_fn *credential_fn;
    void *credential_ud;
    const char *user;  // of BASIC and DIGEST
    // REVDIAL_AUTH_*, a set of those that may be used; the strongest that the proxy asks for is
    // taken. 0 = BEARER. With DIGEST alone the proxy must prove that it knows the password, too.
    unsigned auth_schemes;
    // 1: send a token or password over plain TCP to hosts other than loopback. DIGEST sends none
    // and does not need this.
    int allow_cleartext;
    // Egress proxy to connect through, as for revdial_egress_new():
    // "http://user:password@host:port" or "socks5://...". NULL = none. HTTPS_PROXY and the like are
    // ignored, because programs disagree about their exceptions.
    const char *egress;
    const char *server_name;  // that certificates must be for; default: the host of the URL
    // 1: one session to every address of a host name. Addresses are resolved once per attempt to
    // connect. Not with egress, because there the egress proxy resolves the name.
    int all_addresses;
    const revdial_kv *headers;  // extra request headers, for front ends
    size_t header_count;
    // Serves one stream, on a thread of its own; owns st. NULL = forward streams to targets without
    // a thread; then default_target or allow (which may be an empty list) is required.
    void (*handler)(void *ud, revdial_stream *st);
    void *ud;  // of handler and on_state
    // Targets that streams may ask for, NULL-terminated; NULL = none. Rules are checked against the
    // address that is connected to. A rule with a host name covers private and public addresses. It
    // never covers loopback (except localhost), link-local, carrier NAT (100.64.0.0/10) or cloud
    // metadata addresses; add an address rule for those. A rule that can match nothing is refused:
    // revdial_allow_problem().
    const char *const *allow;
    const char *default_target;  // when the dialler named none; always allowed
    int proxy_protocol;          // 1 or 2: start target connections with that PROXY header
    int connect_timeout_ms;      // to targets, default 5000
    int idle_timeout_ms;         // of forwarded streams, default none
    int half_closed_timeout_ms;  // of those that one side has finished, 0 = 3600000, -1 = none
    unsigned max_handlers;       // most handlers at one time, default 1024; more are refused
    int backoff_min_ms, backoff_max_ms;  // full jitter, defaults 500 and 30000; reset after 30 s up
    // Consecutive rejections (401 and 403 of a revdial proxy, logins refused by the egress proxy)
    // before giving up. 0: one before the first success, no limit after it. -1: no limit.
    int auth_fail_limit;
    // An attempt starts, a session is up, drains, is down; a retry is due in retry_in_ms; all over.
    // On an I/O thread: must not block.
    void (*on_state)(void *ud, int state, const revdial_err *why, int retry_in_ms);
    const volatile sig_atomic_t *stop;  // revdial_serve() drains and returns when this is not 0; a
                                        // signal handler may set it
    int drain_ms;  // time for streams to end when it stops, default 30000; -1 = no limit
    revdial_common common;
} revdial_agent_config;

// Connects, authenticates, serves and reconnects in this thread until cfg->stop is set.
//   blocks   until stopped, or until the credentials are rejected for good
//   returns  0 stopped, REVDIAL_EAUTH, EDENIED, EINVAL, ENOMEM, ESYS
//   thread   any
REVDIAL_API int revdial_serve(const revdial_agent_config *cfg, revdial_err *err);

// The same in threads of its own.
//   returns  NULL: reason in err
//   owns     free with revdial_agent_stop()
//   thread   any
REVDIAL_API revdial_agent *revdial_agent_start(const revdial_agent_config *cfg, revdial_err *err);

// A live session, for dials to the proxy (revdial_session_dial()).
//   blocks   for timeout_ms
//   returns  a session with a reference for you, or NULL: err is ETIMEDOUT, ECLOSED (the agent has
//            stopped) or EDEADLK
//   thread   any but I/O threads
REVDIAL_API revdial_session *revdial_agent_wait(revdial_agent *a, int timeout_ms, revdial_err *err);

// Replaces the allow list, for targets that are connected to from now on. What runs goes on.
//   allow    as in the config
//   returns  0; REVDIAL_EINVAL (see revdial_allow_problem()) or ENOMEM: the old list is in force
//   thread   any
REVDIAL_API int revdial_agent_replace_allow(revdial_agent *a, const char *const *allow,
                                            revdial_err *err);

// Sessions that are up or drain.
//   owns     each of the min(cap, returned) sessions in out comes with a reference for you
//   returns  how many there are
//   thread   any
REVDIAL_API size_t revdial_agent_list(revdial_agent *a, revdial_session **out, size_t cap);

// What the agent does for one URL, or with all_addresses for one address of it.
typedef struct revdial_link_info {
    char url[300];
    int state;            // REVDIAL_CONNECTING, UP, BACKOFF or STOPPED
    int retry_in_ms;      // BACKOFF: time until the next attempt
    int64_t since_ms;     // how long it has been in that state
    unsigned attempts;    // to connect, so far
    uint64_t session_id;  // UP: of revdial_session_info
    revdial_err why;      // of the last attempt or session that failed; code is 0 if none has
} revdial_link_info;

// The agent's links, in the order of its URLs.
//   returns  how many there are; min(cap, returned) are in out
//   thread   any
REVDIAL_API size_t revdial_agent_list_links(revdial_agent *a, revdial_link_info *out, size_t cap);

// Counters of the agent and of all its sessions.
//   thread   any
REVDIAL_API void revdial_agent_get_stats(revdial_agent *a, revdial_stats *out);

// Stops connecting, tells the proxies, and waits for the streams to end. Sessions whose streams
// have not ended at the timeout are dropped. Only revdial_agent_stop() frees the agent.
//   blocks   for drain_ms
//   returns  0 all streams had ended, REVDIAL_ETIMEDOUT; EDEADLK as revdial_agent_stop()
//   thread   any but callbacks
REVDIAL_API int revdial_agent_drain(revdial_agent *a, int drain_ms);

// Drains for drain_ms, then ends, joins and frees the agent.
//   blocks   for drain_ms, and until handlers have returned (their streams fail at the end of it),
//            as well as credential_fn, if an attempt is in it. A thread that is in the system's
//            resolver is not waited for: it ends when the resolver returns, and until then it
//            touches nothing of yours, but its code must stay loaded
//   returns  0 all streams had ended, REVDIAL_ETIMEDOUT; EDEADLK in a handler or another callback
//            of this agent, because it would wait for itself: nothing has happened then
//   thread   any but callbacks
REVDIAL_API int revdial_agent_stop(revdial_agent *a, int drain_ms);

#ifdef __cplusplus
}
#endif
#endif  // REVDIAL_H

#ifdef REVDIAL_IMPLEMENTATION
#ifndef REVDIAL_IMPLEMENTED
#define REVDIAL_IMPLEMENTED

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// ================================================================================================
// MARK: impl.base  uses:
// What every section needs: memory, big-endian, time arithmetic, budgets, hashes, texts.
// ================================================================================================

#ifndef REVDIAL_ASSERT
#define REVDIAL_ASSERT(cond) assert(cond)
#endif

// FAST: always inlined, for hot paths. SLOW: never inlined, so that its callers stay short.
#if defined(__GNUC__)
#define RVD_BASE_FAST inline __attribute__((always_inline))
#define RVD_BASE_SLOW __attribute__((noinline))
#else
#define RVD_BASE_FAST inline
#define RVD_BASE_SLOW
#endif

// Defaults of revdial_limits for the life of a session.
enum {
    RVD_BASE_KEEPALIVE_MS = 15000,
    RVD_BASE_DEAD_AFTER_MS = 15000,
    RVD_BASE_HANDSHAKE_MS = 10000,
    RVD_BASE_STALL_MS = 30000
};

// Every object allocates through a heap, so that its total is known and a test can refuse the n-th
// request.
typedef struct rvd_heap {
    revdial_alloc_fn *fn;  // NULL = realloc and free
    void *ud;
    size_t live_bytes;
} rvd_heap;

static void *rvd_base_resize(rvd_heap *h, void *p, size_t old_size, size_t new_size)
{
    void *fresh;
    REVDIAL_ASSERT(new_size > 0);
    fresh = h->fn ? h->fn(h->ud, p, old_size, new_size) : realloc(p, new_size);
    if (fresh) h->live_bytes += new_size - old_size;
    return fresh;
}

static void *rvd_base_alloc(rvd_heap *h, size_t size)
{
    void *p = rvd_base_resize(h, NULL, 0, size);
    if (p) memset(p, 0, size);
    return p;
}

static void rvd_base_free(rvd_heap *h, void *p, size_t size)
{
    if (!p) return;
    REVDIAL_ASSERT(h->live_bytes >= size);
    h->live_bytes -= size;
    if (h->fn)
        h->fn(h->ud, p, size, 0);
    else
        free(p);
}

// Copies of what a caller handed over, in one block that is freed as a whole. The same calls lay it
// out twice. In the first pass there is no block: they count, and return NULL. Then
// rvd_base_arena_open() makes the block, and the second pass fills it.
typedef struct rvd_base_arena {
    char *at;
    size_t len;   // counted or filled so far
    size_t size;  // of the block
} rvd_base_arena;

// Begins the second pass, into a block that has room for what was counted.
static void rvd_base_arena_fill(rvd_base_arena *a, void *block)
{
    a->at = (char *)block;
    a->size = a->len;
    a->len = 0;
}

// The same, into a block of its own. Returns 0 without memory.
static int rvd_base_arena_open(rvd_base_arena *a, rvd_heap *h)
{
    if (a->len == 0) a->len = 1;
    rvd_base_arena_fill(a, rvd_base_alloc(h, a->len));
    return a->at != NULL;
}

static void *rvd_base_keep_bytes(rvd_base_arena *a, const void *from, size_t len)
{
    char *to = a->at ? a->at + a->len : NULL;
    if (!from) return NULL;
    REVDIAL_ASSERT(!to || len <= a->size - a->len);
    if (to && len > 0) memcpy(to, from, len);
    a->len += len;
    return to;
}

static const char *rvd_base_keep_text(rvd_base_arena *a, const char *text)
{
    return text ? (const char *)rvd_base_keep_bytes(a, text, strlen(text) + 1) : NULL;
}

// Zeroed room for items of any type; NULL for none.
static inline void *rvd_base_keep_room(rvd_base_arena *a, size_t count, size_t item_size)
{
    char *to;
    a->len = (a->len + sizeof(uint64_t) - 1) / sizeof(uint64_t) * sizeof(uint64_t);
    to = a->at && count > 0 ? a->at + a->len : NULL;
    a->len += count * item_size;
    REVDIAL_ASSERT(!a->at || a->len <= a->size);
    return to;
}

static inline const revdial_kv *rvd_base_keep_pairs(rvd_base_arena *a, const revdial_kv *pairs,
                                                    size_t count)
{
    revdial_kv *to = (revdial_kv *)rvd_base_keep_room(a, count, sizeof *to);
    for (size_t i = 0; i < count; i++) {
        revdial_kv pair;
        pair.key = rvd_base_keep_text(a, pairs[i].key);
        pair.value = rvd_base_keep_text(a, pairs[i].value);
        if (to) to[i] = pair;
    }
    return to;
}

// No buffer is longer than this. A larger length is the negative result of a failed call, passed on
// unchecked.
#define RVD_BASE_LEN_MAX ((size_t)PTRDIFF_MAX)

static inline int64_t rvd_base_later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t rvd_base_sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

// An intrusive list: the head is a link too, a link that is in no list points to itself.
typedef struct rvd_base_link {
    struct rvd_base_link *next, *prev;
} rvd_base_link;

#define RVD_BASE_OWNER(link, type, member) ((type *)(void *)((char *)(link)-offsetof(type, member)))

static void rvd_base_link_init(rvd_base_link *l)
{
    l->next = l->prev = l;
}

static int rvd_base_link_is_alone(const rvd_base_link *l)
{
    return l->next == l;
}

static void rvd_base_link_remove(rvd_base_link *l)
{
    l->next->prev = l->prev;
    l->prev->next = l->next;
    rvd_base_link_init(l);
}

static void rvd_base_link_push(rvd_base_link *head, rvd_base_link *l)
{
    REVDIAL_ASSERT(rvd_base_link_is_alone(l));
    l->prev = head->prev;
    l->next = head;
    head->prev->next = l;
    head->prev = l;
}

static uint32_t rvd_base_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

// v's own bytes, read as big-endian, are a number whose own bytes are v in big-endian; unlike four
// shifts, each compiler makes that one instruction.
static inline void rvd_base_put_u32(uint8_t *p, uint32_t v)
{
    uint32_t turned = rvd_base_u32((const uint8_t *)&v);
    memcpy(p, &turned, sizeof turned);
}

static uint32_t rvd_base_u16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | (uint32_t)p[1];
}

static void rvd_base_put_u16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static uint64_t rvd_base_u64(const uint8_t *p)
{
    return (uint64_t)rvd_base_u32(p) << 32 | rvd_base_u32(p + 4);
}

static void rvd_base_put_u64(uint8_t *p, uint64_t v)
{
    rvd_base_put_u32(p, (uint32_t)(v >> 32));
    rvd_base_put_u32(p + 4, (uint32_t)v);
}

static size_t rvd_base_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

static uint32_t rvd_base_min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

// FNV-1a, then a mix so that all bits count. Anyone that knows h can make texts that collide.
static uint64_t rvd_base_hash(const void *data, size_t len, uint64_t h)
{
    const uint8_t *p = (const uint8_t *)data;
    h ^= 0xCBF29CE484222325u;
    for (size_t i = 0; i < len; i++) h = (h ^ p[i]) * 0x100000001B3u;
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCDu;
    return h ^ h >> 29;
}

// A token bucket in integers: `burst` at once, then `rate` a second. Counted in millionths.
typedef struct rvd_base_bucket {
    int64_t millionths, at_us;
    int64_t burst, rate;
} rvd_base_bucket;

static void rvd_base_bucket_init(rvd_base_bucket *b, int64_t burst, int64_t rate, int64_t now_us)
{
    b->burst = burst;
    b->rate = rate;
    b->millionths = burst * 1000000;
    b->at_us = now_us;
}

// Takes one token. Returns 0 if there is none left.
static int rvd_base_bucket_take(rvd_base_bucket *b, int64_t now_us)
{
    int64_t passed = now_us - b->at_us;
    int64_t full = b->burst * 1000000;
    if (passed > 0) {
        b->at_us = now_us;
        if (passed > full / b->rate)
            b->millionths = full;
        else
            b->millionths += passed * b->rate;
        if (b->millionths > full) b->millionths = full;
    }
    if (b->millionths < 1000000) return 0;
    b->millionths -= 1000000;
    return 1;
}

// ---- secrets ----

// Overwrites a secret. The writes are volatile: a plain memset before free() may be dropped.
static void rvd_base_wipe(void *p, size_t size)
{
    volatile uint8_t *at = (volatile uint8_t *)p;
    while (size-- > 0) *at++ = 0;
}

// A secret may be among the copies.
static void rvd_base_arena_free(rvd_base_arena *a, rvd_heap *h)
{
    if (a->at) rvd_base_wipe(a->at, a->size);
    rvd_base_free(h, a->at, a->size);
    memset(a, 0, sizeof *a);
}

// 1 if equal. Looks at every byte, so that the time taken does not tell where they differ.
static int rvd_base_equal(const void *a, const void *b, size_t len)
{
    const volatile uint8_t *x = (const volatile uint8_t *)a;
    const volatile uint8_t *y = (const volatile uint8_t *)b;
    unsigned difference = 0;
    for (size_t i = 0; i < len; i++) difference |= (unsigned)(x[i] ^ y[i]);
    return difference == 0;
}

// SHA-256, FIPS 180-4. Secrets are compared as digests: these have the same length, and which byte
// differs says nothing about the secret.
enum { RVD_BASE_SHA256_SIZE = 32 };

typedef struct rvd_base_sha256 {
    uint32_t state[8];
    uint64_t total;     // bytes taken so far
    uint8_t block[64];  // the last total % 64 of them wait here for a full block
} rvd_base_sha256;

// The constants K of section 4.2.2.
static const uint32_t rvd_base_sha256_round[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rvd_base_rotr(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

// The message schedule W of section 6.2.2, step 1.
static void rvd_base_sha256_schedule(uint32_t w[64], const uint8_t block[64])
{
    for (size_t i = 0; i < 16; i++) w[i] = rvd_base_u32(block + 4 * i);
    for (size_t i = 16; i < 64; i++) {
        uint32_t near = w[i - 2], far = w[i - 15];
        uint32_t s1 = rvd_base_rotr(near, 17) ^ rvd_base_rotr(near, 19) ^ near >> 10;
        uint32_t s0 = rvd_base_rotr(far, 7) ^ rvd_base_rotr(far, 18) ^ far >> 3;
        w[i] = s1 + w[i - 7] + s0 + w[i - 16];
    }
}

static void rvd_base_sha256_compress(uint32_t state[8], const uint8_t block[64])
{
    uint32_t w[64], v[8];  // v: the working variables a..h of the standard
    rvd_base_sha256_schedule(w, block);
    memcpy(v, state, sizeof v);
    for (size_t i = 0; i < 64; i++) {
        uint32_t s1 = rvd_base_rotr(v[4], 6) ^ rvd_base_rotr(v[4], 11) ^ rvd_base_rotr(v[4], 25);
        uint32_t s0 = rvd_base_rotr(v[0], 2) ^ rvd_base_rotr(v[0], 13) ^ rvd_base_rotr(v[0], 22);
        uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        uint32_t t1 = v[7] + s1 + choice + rvd_base_sha256_round[i] + w[i];
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += t1;
        v[0] = t1 + s0 + majority;
    }
    for (size_t i = 0; i < 8; i++) state[i] += v[i];
    rvd_base_wipe(w, sizeof w);
}

static void rvd_base_sha256_init(rvd_base_sha256 *s)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memset(s, 0, sizeof *s);
    memcpy(s->state, start, sizeof start);
}

static void rvd_base_sha256_update(rvd_base_sha256 *s, const void *data, size_t len)
{
    const uint8_t *at = (const uint8_t *)data;
    while (len > 0) {
        size_t held = (size_t)(s->total % 64);
        size_t take = rvd_base_min(64 - held, len);
        memcpy(s->block + held, at, take);
        s->total += take;
        at += take;
        len -= take;
        if (held + take == 64) rvd_base_sha256_compress(s->state, s->block);
    }
}

// Gives the digest and wipes the state, which held the end of a secret.
static void rvd_base_sha256_final(rvd_base_sha256 *s, uint8_t digest[RVD_BASE_SHA256_SIZE])
{
    static const uint8_t pad[64] = {0x80};
    uint64_t bits = s->total * 8;
    uint8_t length[8];
    rvd_base_put_u64(length, bits);
    rvd_base_sha256_update(s, pad, 1 + (size_t)((119 - s->total % 64) % 64));
    rvd_base_sha256_update(s, length, sizeof length);
    for (size_t i = 0; i < 8; i++) rvd_base_put_u32(digest + 4 * i, s->state[i]);
    rvd_base_wipe(s, sizeof *s);
}

// HMAC-SHA-256, RFC 2104, with a key of 32 bytes.
static void rvd_base_hmac(const uint8_t key[RVD_BASE_SHA256_SIZE], const void *data, size_t len,
                          uint8_t mac[RVD_BASE_SHA256_SIZE])
{
    rvd_base_sha256 s;
    uint8_t pad[64];
    for (size_t i = 0; i < sizeof pad; i++)
        pad[i] = (uint8_t)((i < RVD_BASE_SHA256_SIZE ? key[i] : 0) ^ 0x36);
    rvd_base_sha256_init(&s);
    rvd_base_sha256_update(&s, pad, sizeof pad);
    rvd_base_sha256_update(&s, data, len);
    rvd_base_sha256_final(&s, mac);
    for (size_t i = 0; i < sizeof pad; i++) pad[i] ^= 0x36 ^ 0x5c;
    rvd_base_sha256_init(&s);
    rvd_base_sha256_update(&s, pad, sizeof pad);
    rvd_base_sha256_update(&s, mac, RVD_BASE_SHA256_SIZE);
    rvd_base_sha256_final(&s, mac);
    rvd_base_wipe(pad, sizeof pad);
}

// SHA-1, FIPS 180-4. It is broken for signatures. The WebSocket handshake uses it only to show that
// the other end has read a header.
enum { RVD_BASE_SHA1_SIZE = 20 };

// f and K of sections 4.1.1 and 4.2.1, which change every 20 rounds.
static uint32_t rvd_base_sha1_mix(size_t round, const uint32_t v[5])
{
    uint32_t choice = (v[1] & v[2]) | (~v[1] & v[3]);
    uint32_t parity = v[1] ^ v[2] ^ v[3];
    uint32_t majority = (v[1] & v[2]) | (v[1] & v[3]) | (v[2] & v[3]);
    if (round < 20) return choice + 0x5a827999;
    if (round < 40) return parity + 0x6ed9eba1;
    return round < 60 ? majority + 0x8f1bbcdc : parity + 0xca62c1d6;
}

static void rvd_base_sha1_compress(uint32_t state[5], const uint8_t block[64])
{
    uint32_t w[80], v[5];  // v: the working variables a..e of the standard
    for (size_t i = 0; i < 16; i++) w[i] = rvd_base_u32(block + 4 * i);
    for (size_t i = 16; i < 80; i++)
        w[i] = rvd_base_rotr(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 31);
    memcpy(v, state, sizeof v);
    for (size_t i = 0; i < 80; i++) {
        uint32_t t = rvd_base_rotr(v[0], 27) + rvd_base_sha1_mix(i, v) + v[4] + w[i];
        memmove(v + 1, v, 4 * sizeof v[0]);
        v[2] = rvd_base_rotr(v[2], 2);
        v[0] = t;
    }
    for (size_t i = 0; i < 5; i++) state[i] += v[i];
}

static void rvd_base_sha1(const void *data, size_t len, uint8_t digest[RVD_BASE_SHA1_SIZE])
{
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    const uint8_t *at = (const uint8_t *)data;
    uint8_t tail[128] = {0};  // the last bytes, 0x80, zeros, the length in bits
    size_t left = len % 64, tail_len = left < 56 ? 64 : 128;
    for (size_t i = 0; i + 64 <= len; i += 64) rvd_base_sha1_compress(state, at + i);
    if (left) memcpy(tail, at + len - left, left);
    tail[left] = 0x80;
    rvd_base_put_u64(tail + tail_len - 8, (uint64_t)len << 3);
    for (size_t i = 0; i < tail_len; i += 64) rvd_base_sha1_compress(state, tail + i);
    for (size_t i = 0; i < 5; i++) rvd_base_put_u32(digest + 4 * i, state[i]);
}

// ---- text ----

// A piece of text that lives in another buffer and need not end with a NUL.
typedef struct rvd_base_slice {
    const char *at;
    size_t len;
} rvd_base_slice;

static rvd_base_slice rvd_base_slice_of(const char *s)
{
    rvd_base_slice slice = {s, strlen(s)};
    return slice;
}

static rvd_base_slice rvd_base_trim(rvd_base_slice s)
{
    while (s.len > 0 && (s.at[0] == ' ' || s.at[0] == '\t')) {
        s.at++;
        s.len--;
    }
    while (s.len > 0 && (s.at[s.len - 1] == ' ' || s.at[s.len - 1] == '\t')) s.len--;
    return s;
}

static char rvd_base_lower(char c)
{
    return (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
}

// The value of a hexadecimal digit of either case; 16 for any other byte. No branch tells a digit
// from a letter, because the digit may belong to the hash of a secret.
static unsigned rvd_base_hex_value(char c)
{
    unsigned number = (unsigned)(uint8_t)c - '0', letter = ((unsigned)(uint8_t)c | 0x20) - 'a';
    unsigned is_number = number < 10, is_letter = letter < 6;
    return is_number * number + is_letter * (letter + 10) + 16 * (1 - is_number - is_letter);
}

// Reads exactly 2 * size hexadecimal digits, of either case.
//   returns  1, or 0 if there are not that many before a NUL or another byte
static int rvd_base_hex(uint8_t *out, size_t size, const char *hex)
{
    for (size_t i = 0; i < 2 * size; i++) {
        unsigned digit = rvd_base_hex_value(hex[i]);
        if (digit > 15) return 0;
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | digit : digit << 4);
    }
    return 1;
}

// Reads the unsigned decimal number that `s` begins with: no sign, no leading zero, at most `max`.
//   returns  how many digits it has, and *out; 0 if there is no such number
static size_t rvd_base_digits(const char *s, size_t len, uint64_t max, uint64_t *out)
{
    uint64_t n = 0;
    size_t at = 0;
    for (; at < len && s[at] >= '0' && s[at] <= '9'; at++) {
        unsigned digit = (unsigned)(s[at] - '0');
        if ((at > 0 && s[0] == '0') || digit > max || n > (max - digit) / 10) return 0;
        n = 10 * n + digit;
    }
    if (at > 0) *out = n;
    return at;
}

// Reads a text that has to be such a number and nothing else.
//   returns  1 and *out, or 0
static int rvd_base_decimal(const char *s, size_t len, uint64_t max, uint64_t *out)
{
    uint64_t n;
    if (len == 0 || rvd_base_digits(s, len, max, &n) != len) return 0;
    *out = n;
    return 1;
}

// Names are short enough for a log line and safe in a file name, a URL and a DNS label list.
enum { RVD_BASE_NAME_MAX = 64 };
#define RVD_BASE_NAME_RULE \
    "a name has 1 to 64 of a-z 0-9 . _ -, the first and the last a letter or digit"
#define RVD_BASE_INSTANCE_RULE \
    "an instance has 1 to 64 of A-Z a-z 0-9 . _ -, the first and the last a letter or digit"

// [a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?, with A-Z beside a-z if upper_ok.
static int rvd_base_is_label(const char *s, size_t len, int upper_ok)
{
    if (len == 0 || len > RVD_BASE_NAME_MAX) return 0;
    for (size_t i = 0; i < len; i++) {
        char c = s[i];
        int is_plain =
            (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (upper_ok && c >= 'A' && c <= 'Z');
        int is_inside = i > 0 && i + 1 < len && (c == '.' || c == '_' || c == '-');
        if (!is_plain && !is_inside) return 0;
    }
    return 1;
}

static int rvd_base_is_name(const char *s, size_t len)
{
    return rvd_base_is_label(s, len, 0);
}

// May the metadata of a dial have this key? The names below are reserved for what the preamble
// carries in fields of its own, so that no application can forge them.
static int rvd_base_is_meta_key(const char *key)
{
    static const char *const ours[] = {"target", "client", "local", "id", "timeout_ms"};
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        if (strcmp(key, ours[i]) == 0) return 0;
    return *key && !strchr(key, '=');
}

// Does all of `text` match? '*' is any run of bytes, '?' any one. Only the last '*' is ever taken
// up again, so the work is at most pattern_len * text_len.
static int rvd_base_glob(const char *pattern, size_t pattern_len, const char *text, size_t text_len)
{
    size_t p = 0, t = 0;
    size_t after_star = 0;  // in pattern; 0 = no '*' seen
    size_t star_end = 0;    // in text: where the run of that '*' ends for now
    while (t < text_len) {
        if (p < pattern_len && pattern[p] == '*') {
            after_star = ++p;
            star_end = t;
        } else if (p < pattern_len && (pattern[p] == '?' || pattern[p] == text[t])) {
            p++;
            t++;
        } else if (after_star) {
            p = after_star;
            t = ++star_end;
        } else {
            return 0;
        }
    }
    while (p < pattern_len && pattern[p] == '*') p++;
    return p == pattern_len;
}

// Takes the next item off a comma list, without the blanks around it. Empty items are skipped (RFC
// 9110 section 5.6.1.2). This function reads every comma list.
//   returns  1 and *item, or 0 at the end
static int rvd_base_list_next(rvd_base_slice *rest, rvd_base_slice *item)
{
    while (rest->len > 0) {
        const char *comma = (const char *)memchr(rest->at, ',', rest->len);
        size_t len = comma ? (size_t)(comma - rest->at) : rest->len;
        rvd_base_slice raw = {rest->at, len};
        rest->at += comma ? len + 1 : len;
        rest->len -= comma ? len + 1 : len;
        *item = rvd_base_trim(raw);
        if (item->len > 0) return 1;
    }
    return 0;
}

// The same for a list that ends with a NUL.
//   returns  the length of *item, 0 at the end
static size_t rvd_base_item(const char **list, const char **item)
{
    rvd_base_slice rest = rvd_base_slice_of(*list), next = {NULL, 0};
    rvd_base_list_next(&rest, &next);
    *list = rest.at;
    *item = next.at;
    return next.len;
}

// Text under construction in memory of the caller. It always ends with a NUL, so `size` is one more
// than the longest text. What does not fit is cut off, and `overflow` says so.
typedef struct rvd_base_text {
    char *at;
    size_t size, len;
    int overflow;
} rvd_base_text;

// An empty text in `size` bytes of the caller, at least 1.
static rvd_base_text rvd_base_text_in(void *at, size_t size)
{
    rvd_base_text t = {(char *)at, size, 0, 0};
    REVDIAL_ASSERT(size > 0);
    t.at[0] = '\0';
    return t;
}

static void rvd_base_text_add(rvd_base_text *t, const char *s)
{
    REVDIAL_ASSERT(t->len < t->size);
    while (*s && t->len + 1 < t->size) t->at[t->len++] = *s++;
    t->at[t->len] = '\0';
    if (*s) t->overflow = 1;
}

// RVD_BASE_ADD(&t, a, b, c) appends several pieces; a piece that is NULL is left out.
// RVD_BASE_JOIN(buf, size, a, b, c) makes them the text of a buffer and returns its length.
// RVD_BASE_NUMBER(n) is a decimal number as such a piece.
enum { RVD_BASE_NUMBER_SIZE = 21 };  // 2^64 - 1 has 20 digits
#define RVD_BASE_PIECES(...) ((const char *const[]){__VA_ARGS__})
#define RVD_BASE_COUNT(...) (sizeof RVD_BASE_PIECES(__VA_ARGS__) / sizeof(char *))
#define RVD_BASE_ADD(t, ...) \
    rvd_base_text_add_all(t, RVD_BASE_PIECES(__VA_ARGS__), RVD_BASE_COUNT(__VA_ARGS__))
#define RVD_BASE_JOIN(buf, size, ...) \
    rvd_base_join(buf, size, RVD_BASE_PIECES(__VA_ARGS__), RVD_BASE_COUNT(__VA_ARGS__))
#define RVD_BASE_NUMBER(n) rvd_base_number((char[RVD_BASE_NUMBER_SIZE]){0}, n)

static void rvd_base_text_add_all(rvd_base_text *t, const char *const *pieces, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (pieces[i]) rvd_base_text_add(t, pieces[i]);
}

static size_t rvd_base_join(char *buf, size_t size, const char *const *pieces, size_t count)
{
    rvd_base_text t = rvd_base_text_in(buf, size);
    rvd_base_text_add_all(&t, pieces, count);
    return t.len;
}

static const char *rvd_base_number(char digits[RVD_BASE_NUMBER_SIZE], uint64_t n)
{
    char *at = digits + RVD_BASE_NUMBER_SIZE - 1;
    *at = '\0';
    do {
        *--at = (char)('0' + n % 10);
        n /= 10;
    } while (n > 0);
    return at;
}

// Appends text from a peer: at most `max` bytes, with '?' for quotes and for bytes that are not
// printable ASCII.
static void rvd_base_text_add_said(rvd_base_text *t, const char *s, size_t len, size_t max)
{
    char one[2] = {0, 0};
    for (size_t i = 0; i < len && i < max; i++) {
        one[0] = s[i] >= ' ' && s[i] < 0x7f && s[i] != '"' ? s[i] : '?';
        rvd_base_text_add(t, one);
    }
    if (len > max) rvd_base_text_add(t, "...");
}

static void rvd_base_text_add_decimal(rvd_base_text *t, uint64_t n)
{
    rvd_base_text_add(t, RVD_BASE_NUMBER(n));
}

// A lower-case digit. There is no table and no branch, because the number may belong to the hash of
// a secret, which caches would reveal.
static char rvd_base_hex_digit(unsigned n)
{
    return (char)('0' + n + ((9 - n) >> 8 & ('a' - '0' - 10)));
}

// Two digits a byte, lower case.
static void rvd_base_text_add_hex(rvd_base_text *t, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        char pair[3] = {rvd_base_hex_digit(bytes[i] >> 4), rvd_base_hex_digit(bytes[i] & 15), 0};
        rvd_base_text_add(t, pair);
    }
}

// Exactly 16 digits, lower case.
static void rvd_base_text_add_hex16(rvd_base_text *t, uint64_t n)
{
    uint8_t bytes[8];
    rvd_base_put_u64(bytes, n);
    rvd_base_text_add_hex(t, bytes, sizeof bytes);
}

// RFC 4648 section 4, with its padding.
static void rvd_base_text_add_base64(rvd_base_text *t, const void *data, size_t len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *at = (const uint8_t *)data;
    char four[5] = {0};
    for (; len > 0; at += rvd_base_min(len, 3), len -= rvd_base_min(len, 3)) {
        uint32_t bits = (uint32_t)at[0] << 16;
        if (len > 1) bits |= (uint32_t)at[1] << 8;
        if (len > 2) bits |= at[2];
        for (size_t i = 0; i < 4; i++) four[i] = i > len ? '=' : digits[bits >> (18 - 6 * i) & 63];
        rvd_base_text_add(t, four);
    }
    rvd_base_wipe(four, sizeof four);  // what is coded here may be a password
}

static int rvd_base_base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// Reads all of such text: every digit, full padding, and no bits left over (section 3.5). `out` has
// room for 3 bytes per 4 digits and may be where the text is.
//   returns  how many bytes, or -1: something else
static ptrdiff_t rvd_base_base64_read(uint8_t *out, const char *text, size_t len)
{
    size_t pads = 0, bytes = 0;
    if (len % 4) return -1;
    while (pads < 2 && pads < len && text[len - 1 - pads] == '=') pads++;
    for (size_t i = 0; i < len; i += 4) {
        size_t digits = i + 4 == len ? 4 - pads : 4;
        uint32_t n = 0;
        for (size_t k = 0; k < digits; k++) {
            int value = rvd_base_base64_value(text[i + k]);
            if (value < 0) return -1;
            n |= (uint32_t)value << (18 - 6 * k);
        }
        for (size_t k = 0; k + 1 < digits; k++) out[bytes++] = (uint8_t)(n >> (16 - 8 * k));
        if (digits < 4 && n & (digits == 3 ? 0xff : 0xffff)) return -1;
    }
    return (ptrdiff_t)bytes;
}

// ================================================================================================
// MARK: impl.wire  uses: base
// What the bytes look like: yamux frames and the stream preamble. Pure functions, no state.
//
//    0               1               2               3
//   +---------------+---------------+-------------------------------+
//   | version 0     | type          | flags                         |
//   +---------------+---------------+-------------------------------+
//   | stream id (odd: opened by the sender of the 101; 0: session)  |
//   +---------------------------------------------------------------+
//   | length: payload (Data), credit (WindowUpdate), value (Ping),  |
//   | code (GoAway), reason (WindowUpdate with RST)                 |
//   +---------------------------------------------------------------+
// ================================================================================================

enum rvd_wire_type { RVD_WIRE_DATA, RVD_WIRE_WINDOW, RVD_WIRE_PING, RVD_WIRE_GOAWAY };
enum { RVD_WIRE_SYN = 1, RVD_WIRE_ACK = 2, RVD_WIRE_FIN = 4, RVD_WIRE_RST = 8 };
enum { RVD_WIRE_GO_NORMAL, RVD_WIRE_GO_PROTOCOL, RVD_WIRE_GO_INTERNAL, RVD_WIRE_GO_REPLACED };

#define RVD_WIRE_HEADER 12           // bytes before a payload
#define RVD_WIRE_WINDOW0 262144u     // first credit where nothing else was negotiated (yamux spec)
#define RVD_WIRE_FRAME_MAX 65524u    // our largest payload: 64 KiB with its header, as go-yamux
#define RVD_WIRE_PREAMBLE_MAX 4096u  // a preamble is addresses and a few names, not a document
#define RVD_WIRE_PREAMBLE_HEAD 16u   // of them say how long it is
#define RVD_WIRE_LINE_MAX 108        // of version 1 (section 2.1): 107 bytes, and a NUL
#define RVD_WIRE_META_MAX 40         // key-value pairs in a preamble, ours included

typedef struct rvd_wire_frame {
    uint32_t version, type, flags, id, length;
} rvd_wire_frame;

static void rvd_wire_frame_put(uint8_t *p, uint32_t type, uint32_t flags, uint32_t id,
                               uint32_t length)
{
    p[0] = 0;
    p[1] = (uint8_t)type;
    rvd_base_put_u16(p + 2, flags);
    rvd_base_put_u32(p + 4, id);
    rvd_base_put_u32(p + 8, length);
}

static void rvd_wire_frame_get(const uint8_t *p, rvd_wire_frame *f)
{
    f->version = p[0];
    f->type = p[1];
    f->flags = rvd_base_u16(p + 2);
    f->id = rvd_base_u32(p + 4);
    f->length = rvd_base_u32(p + 8);
}

// ---- addresses as text ----

// An IP address with a port, as PROXY protocol carries them.
typedef struct rvd_wire_addr {
    int family;  // 0 none, 4, 6
    uint8_t ip[16];
    uint32_t port;
} rvd_wire_addr;

// IPv4 in IPv6 (RFC 4291 section 2.5.5.2).
static const uint8_t rvd_wire_mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};

// Four numbers. Returns what follows them, or NULL.
static const char *rvd_wire_ip4_parse(const char *s, uint8_t *ip)
{
    for (int i = 0; i < 4; i++) {
        uint64_t part = 0;
        size_t digits;
        if (i > 0 && *s++ != '.') return NULL;
        digits = rvd_base_digits(s, 4, 255, &part);  // a fourth one is too many
        if (digits == 0) return NULL;
        ip[i] = (uint8_t)part;
        s += digits;
    }
    return s;
}

// One group of up to four hex digits. Returns what follows it, or NULL if there is none.
static const char *rvd_wire_group_parse(const char *s, uint8_t *out)
{
    uint32_t v = 0;
    int digits = 0;
    for (; rvd_base_hex_value(*s) < 16; s++, digits++) {
        if (digits == 4) return NULL;
        v = v << 4 | rvd_base_hex_value(*s);
    }
    if (digits == 0) return NULL;
    rvd_base_put_u16(out, v);
    return s;
}

// RFC 4291 section 2.2, all three forms, up to the closing bracket.
static const char *rvd_wire_ip6_parse(const char *s, uint8_t *ip)
{
    uint8_t parts[16] = {0};
    int have = 0, gap = -1;
    if (s[0] == ':' && s[1] == ':') {
        gap = 0;
        s += 2;
    }
    while (*s != ']' && *s != '\0') {
        const char *after;
        if (have == 16) return NULL;
        after = have <= 12 ? rvd_wire_ip4_parse(s, parts + have) : NULL;
        if (after) {
            have += 4;
            s = after;
            break;
        }
        s = rvd_wire_group_parse(s, parts + have);
        if (!s) return NULL;
        have += 2;
        if (*s != ':') break;
        s++;
        if (*s == ':') {
            if (gap >= 0) return NULL;
            gap = have;
            s++;
        } else if (*s == ']' || *s == '\0') {
            return NULL;
        }
    }
    if (gap < 0 ? have != 16 : have > 14) return NULL;
    if (gap < 0) gap = have;
    memset(ip, 0, 16);
    memcpy(ip, parts, (size_t)gap);
    memcpy(ip + 16 - (have - gap), parts + gap, (size_t)(have - gap));
    return s;
}

// "1.2.3.4:80" or "[::1]:80". Returns 1, or 0 and *out without an address.
static int rvd_wire_addr_parse(const char *s, rvd_wire_addr *out)
{
    rvd_wire_addr a;
    uint64_t port = 0;
    memset(&a, 0, sizeof a);
    memset(out, 0, sizeof *out);
    if (*s == '[') {
        s = rvd_wire_ip6_parse(s + 1, a.ip);
        if (!s || *s++ != ']') return 0;
        a.family = 6;
    } else {
        s = rvd_wire_ip4_parse(s, a.ip);
        if (!s) return 0;
        a.family = 4;
    }
    if (*s++ != ':' || !rvd_base_decimal(s, strlen(s), 65535, &port)) return 0;
    a.port = (uint32_t)port;
    *out = a;
    return 1;
}

static void rvd_wire_hex_add(rvd_base_text *t, uint32_t v)
{
    char text[5] = "";
    int n = 0;
    for (int shift = 12; shift >= 0; shift -= 4)
        if (v >> shift || shift == 0) text[n++] = rvd_base_hex_digit(v >> shift & 15);
    rvd_base_text_add(t, text);
}

// The longest run of zero groups (RFC 5952 section 4.2.3); *len < 2 if there is none.
static int rvd_wire_ip6_gap(const uint8_t *ip, int *len)
{
    int best = 0;
    *len = 0;
    for (int i = 0; i < 8; i++) {
        int n = 0;
        while (i + n < 8 && !ip[2 * (i + n)] && !ip[2 * (i + n) + 1]) n++;
        if (n > *len) {
            *len = n;
            best = i;
        }
    }
    return best;
}

static void rvd_wire_ip_add(rvd_base_text *t, const rvd_wire_addr *a)
{
    int gap_len, gap = rvd_wire_ip6_gap(a->ip, &gap_len);
    if (a->family == 4) {
        for (int i = 0; i < 4; i++) RVD_BASE_ADD(t, i ? "." : NULL, RVD_BASE_NUMBER(a->ip[i]));
        return;
    }
    for (int i = 0; i < 8; i++) {
        if (gap_len > 1 && i == gap) {
            rvd_base_text_add(t, "::");
            i += gap_len - 1;
            continue;
        }
        if (i && !(gap_len > 1 && i == gap + gap_len)) rvd_base_text_add(t, ":");
        rvd_wire_hex_add(t, rvd_base_u16(a->ip + 2 * i));
    }
}

static void rvd_wire_addr_add(rvd_base_text *t, const rvd_wire_addr *a)
{
    if (a->family == 6) rvd_base_text_add(t, "[");
    rvd_wire_ip_add(t, a);
    RVD_BASE_ADD(t, a->family == 6 ? "]:" : ":", RVD_BASE_NUMBER(a->port));
}

// Where a client comes from and where it connected to; the latter is all zeros if that is not known
// or not of the same family. Returns 0 if the client's address is not known.
static int rvd_wire_route_parse(const char *client, const char *local, rvd_wire_addr *src,
                                rvd_wire_addr *dst)
{
    memset(dst, 0, sizeof *dst);
    if (!client || !rvd_wire_addr_parse(client, src)) return 0;
    if (!local || !rvd_wire_addr_parse(local, dst) || dst->family != src->family)
        memset(dst, 0, sizeof *dst);
    dst->family = src->family;
    return 1;
}

// ---- the preamble: a PROXY protocol v2 header (its specification, section 2.2) ----

static const uint8_t rvd_wire_proxy_signature[12] = {0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D,
                                                     0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A};

enum {
    RVD_WIRE_TLV_AUTHORITY = 0x02,  // the target
    RVD_WIRE_TLV_ID = 0x05,         // the dial's id, in both ends' logs
    RVD_WIRE_TLV_TIMEOUT = 0xE0,    // milliseconds the dialler still waits, u32
    RVD_WIRE_TLV_META = 0xE1        // "key=value", repeatable
};

typedef struct rvd_wire_out {
    uint8_t *at;
    size_t size, len;
    int overflow;
} rvd_wire_out;

static void rvd_wire_out_add(rvd_wire_out *o, const void *p, size_t n)
{
    if (n > o->size - o->len) {
        o->overflow = 1;
        return;
    }
    if (n) memcpy(o->at + o->len, p, n);
    o->len += n;
}

static void rvd_wire_out_tlv(rvd_wire_out *o, uint32_t type, const char *a, const char *b)
{
    uint8_t head[3];
    size_t a_len = strlen(a), b_len = b ? strlen(b) + 1 : 0;
    if (a_len + b_len > RVD_WIRE_PREAMBLE_MAX) {
        o->overflow = 1;
        return;
    }
    head[0] = (uint8_t)type;
    rvd_base_put_u16(head + 1, (uint32_t)(a_len + b_len));
    rvd_wire_out_add(o, head, 3);
    rvd_wire_out_add(o, a, a_len);
    if (!b) return;
    rvd_wire_out_add(o, "=", 1);
    rvd_wire_out_add(o, b, b_len - 1);
}

static void rvd_wire_out_addresses(rvd_wire_out *o, const char *client, const char *local)
{
    rvd_wire_addr src, dst;
    uint8_t ports[4];
    size_t ip_len;
    if (!rvd_wire_route_parse(client, local, &src, &dst)) return;
    ip_len = src.family == 4 ? 4 : 16;
    o->at[12] = 0x21;  // version 2, PROXY
    o->at[13] = src.family == 4 ? 0x11 : 0x21;
    rvd_base_put_u16(ports, src.port);
    rvd_base_put_u16(ports + 2, dst.port);
    rvd_wire_out_add(o, src.ip, ip_len);
    rvd_wire_out_add(o, dst.ip, ip_len);
    rvd_wire_out_add(o, ports, 4);
}

static rvd_wire_out rvd_wire_out_begin(uint8_t *buf, size_t size, const char *client,
                                       const char *local)
{
    rvd_wire_out o = {buf, size, RVD_WIRE_PREAMBLE_HEAD, 0};
    REVDIAL_ASSERT(size >= RVD_WIRE_PREAMBLE_HEAD);
    memcpy(buf, rvd_wire_proxy_signature, sizeof rvd_wire_proxy_signature);
    buf[12] = 0x20;  // version 2, LOCAL: no original client
    buf[13] = 0x00;
    rvd_wire_out_addresses(&o, client, local);
    return o;
}

// Returns the length of all, 0 if it did not fit.
static size_t rvd_wire_out_end(rvd_wire_out *o)
{
    if (o->overflow) return 0;
    rvd_base_put_u16(o->at + 14, (uint32_t)(o->len - RVD_WIRE_PREAMBLE_HEAD));
    return o->len;
}

// Writes the preamble of a dial. Returns its length, 0 if it does not fit or a key is not allowed.
static size_t rvd_wire_preamble_put(uint8_t *buf, size_t size, const revdial_dial_opts *opts,
                                    const char *id)
{
    rvd_wire_out o = rvd_wire_out_begin(buf, size, opts->client_addr, opts->local_addr);
    if (opts->target) rvd_wire_out_tlv(&o, RVD_WIRE_TLV_AUTHORITY, opts->target, NULL);
    rvd_wire_out_tlv(&o, RVD_WIRE_TLV_ID, id, NULL);
    if (opts->timeout_ms > 0) {
        uint8_t tlv[7] = {RVD_WIRE_TLV_TIMEOUT, 0, 4, 0, 0, 0, 0};
        rvd_base_put_u32(tlv + 3, (uint32_t)opts->timeout_ms);
        rvd_wire_out_add(&o, tlv, sizeof tlv);
    }
    if (opts->meta_count > size) return 0;  // each takes some bytes
    for (size_t i = 0; i < opts->meta_count; i++) {
        const char *key = opts->meta[i].key;
        if (!rvd_base_is_meta_key(key)) return 0;
        rvd_wire_out_tlv(&o, RVD_WIRE_TLV_META, key, opts->meta[i].value);
    }
    return rvd_wire_out_end(&o);
}

// The header with which a server that speaks the PROXY protocol is told of its client, by what the
// stream's preamble said. Either address may be NULL.
//   version  1 (text, section 2.1) or 2
//   returns  its length, 0 if it does not fit
static inline size_t rvd_wire_header_put(uint8_t *buf, size_t size, int version, const char *client,
                                         const char *local)
{
    rvd_base_text t = rvd_base_text_in((char *)buf, size);
    rvd_wire_addr src, dst;
    if (version == 2) {
        rvd_wire_out o = rvd_wire_out_begin(buf, size, client, local);
        return rvd_wire_out_end(&o);
    }
    if (rvd_wire_route_parse(client, local, &src, &dst)) {
        rvd_base_text_add(&t, src.family == 4 ? "PROXY TCP4 " : "PROXY TCP6 ");
        rvd_wire_ip_add(&t, &src);
        rvd_base_text_add(&t, " ");
        rvd_wire_ip_add(&t, &dst);
        RVD_BASE_ADD(&t, " ", RVD_BASE_NUMBER(src.port), " ", RVD_BASE_NUMBER(dst.port), "\r\n");
    } else {
        rvd_base_text_add(&t, "PROXY UNKNOWN\r\n");
    }
    return t.overflow ? 0 : t.len;
}

// How long the preamble is that starts with these bytes: 0 = more needed, -1 = not a preamble.
static ptrdiff_t rvd_wire_preamble_length(const uint8_t *p, size_t len)
{
    size_t total;
    if (memcmp(p, rvd_wire_proxy_signature, rvd_base_min(len, 12)) != 0) return -1;
    if (len < RVD_WIRE_PREAMBLE_HEAD) return 0;
    total = RVD_WIRE_PREAMBLE_HEAD + (size_t)rvd_base_u16(p + 14);
    if ((p[12] & 0xF0) != 0x20 || total > RVD_WIRE_PREAMBLE_MAX) return -1;
    return (ptrdiff_t)total;
}

// A preamble as text.
typedef struct rvd_wire_meta {
    revdial_kv kv[RVD_WIRE_META_MAX];
    size_t count;
    rvd_base_text text;                       // over `store`
    char store[RVD_WIRE_PREAMBLE_MAX + 384];  // its bytes; addresses and numbers grow as text
} rvd_wire_meta;

static int rvd_wire_meta_add(rvd_wire_meta *m, const char *key, const char *value)
{
    if (m->count == RVD_WIRE_META_MAX) return 0;
    m->kv[m->count].key = key;
    m->kv[m->count].value = value;
    m->count++;
    return 1;
}

// Copies n bytes as a string. NULL if they hold a NUL or do not fit.
static char *rvd_wire_meta_text(rvd_wire_meta *m, const uint8_t *p, size_t n)
{
    char *at = m->store + m->text.len;
    if (memchr(p, 0, n) || n + 1 > m->text.size - m->text.len) return NULL;
    memcpy(at, p, n);
    at[n] = '\0';
    m->text.len += n + 1;
    return at;
}

static int rvd_wire_meta_address(rvd_wire_meta *m, const char *key, const rvd_wire_addr *a)
{
    char *at = m->store + m->text.len;
    rvd_wire_addr_add(&m->text, a);
    m->text.len++;  // the NUL that ends it
    return !m->text.overflow && rvd_wire_meta_add(m, key, at);
}

// The address block of a header that is there as a whole; families are 0 if it has no addresses.
// Returns its length, or -1.
static ptrdiff_t rvd_wire_block_get(const uint8_t *p, size_t len, rvd_wire_addr *src,
                                    rvd_wire_addr *dst)
{
    int family = p[13] >> 4;
    size_t ip_len = family == 1 ? 4 : 16;
    size_t block = family == 0 ? 0 : family == 3 ? 216 : 2 * ip_len + 4;
    memset(src, 0, sizeof *src);
    memset(dst, 0, sizeof *dst);
    if ((p[12] & 0x0F) > 1 || family > 3 || (p[13] & 0x0F) > 2 || 16 + block > len) return -1;
    if ((p[12] & 0x0F) == 0 || family == 0 || family == 3) return (ptrdiff_t)block;
    src->family = dst->family = family == 1 ? 4 : 6;
    memcpy(src->ip, p + 16, ip_len);
    memcpy(dst->ip, p + 16 + ip_len, ip_len);
    src->port = rvd_base_u16(p + 16 + 2 * ip_len);
    dst->port = rvd_base_u16(p + 18 + 2 * ip_len);
    return (ptrdiff_t)block;
}

static ptrdiff_t rvd_wire_addresses_get(rvd_wire_meta *m, const uint8_t *p, size_t len)
{
    rvd_wire_addr src, dst;
    ptrdiff_t block = rvd_wire_block_get(p, len, &src, &dst);
    if (block < 0 || !src.family) return block;
    if (!rvd_wire_meta_address(m, "client", &src)) return -1;
    if (dst.port && !rvd_wire_meta_address(m, "local", &dst)) return -1;
    return block;
}

static int rvd_wire_tlv_get(rvd_wire_meta *m, uint32_t type, const uint8_t *p, size_t n)
{
    char *text, *equals;
    if (type == RVD_WIRE_TLV_TIMEOUT) {
        text = m->store + m->text.len;
        if (n != 4) return 0;
        rvd_base_text_add_decimal(&m->text, rvd_base_u32(p));
        m->text.len++;
        return !m->text.overflow && rvd_wire_meta_add(m, "timeout_ms", text);
    }
    if (type != RVD_WIRE_TLV_AUTHORITY && type != RVD_WIRE_TLV_ID && type != RVD_WIRE_TLV_META)
        return 1;  // unknown types are skipped, as the specification asks
    text = rvd_wire_meta_text(m, p, n);
    if (!text) return 0;
    if (type == RVD_WIRE_TLV_AUTHORITY) return rvd_wire_meta_add(m, "target", text);
    if (type == RVD_WIRE_TLV_ID) return rvd_wire_meta_add(m, "id", text);
    equals = strchr(text, '=');
    if (!equals || equals == text) return 0;
    *equals = '\0';
    if (!rvd_base_is_meta_key(text)) return 0;
    return rvd_wire_meta_add(m, text, equals + 1);
}

// Reads a whole preamble. Returns 0 if it is malformed.
static int rvd_wire_preamble_get(const uint8_t *p, size_t len, rvd_wire_meta *m)
{
    ptrdiff_t block;
    m->count = 0;
    m->text = rvd_base_text_in(m->store, sizeof m->store);
    block = rvd_wire_addresses_get(m, p, len);
    if (block < 0) return 0;
    for (size_t at = 16 + (size_t)block; at < len;) {
        size_t n;
        if (len - at < 3) return 0;
        n = rvd_base_u16(p + at + 1);
        if (n > len - at - 3 || !rvd_wire_tlv_get(m, p[at], p + at + 3, n)) return 0;
        at += 3 + n;
    }
    return 1;
}

// ---- the header of a balancer in front of us ----

// The next field of a line of version 1, which one blank ends, or the end of the line. Returns what
// follows it, or NULL: it does not fit.
static const char *rvd_wire_line_field(const char *s, char *field, size_t size)
{
    const char *blank = strchr(s, ' ');
    size_t len = blank ? (size_t)(blank - s) : strlen(s);
    if (len == 0 || len >= size) return NULL;
    memcpy(field, s, len);
    field[len] = '\0';
    return s[len] ? s + len + 1 : s + len;
}

static const char *rvd_wire_line_ip(const char *s, rvd_wire_addr *a)
{
    char field[46];
    const char *rest = rvd_wire_line_field(s, field, sizeof field), *end = NULL;
    if (rest && a->family == 4) end = rvd_wire_ip4_parse(field, a->ip);
    if (rest && a->family == 6) end = rvd_wire_ip6_parse(field, a->ip);
    return end && !*end ? rest : NULL;
}

static const char *rvd_wire_line_port(const char *s, rvd_wire_addr *a)
{
    char field[6];
    const char *rest = rvd_wire_line_field(s, field, sizeof field);
    uint64_t port;
    if (!rest || (field[0] == '0' && field[1])) return NULL;
    if (!rvd_base_decimal(field, strlen(field), 65535, &port)) return NULL;
    a->port = (uint32_t)port;
    return rest;
}

// What follows "PROXY " in a line of version 1. Returns 0 if it is malformed.
static int rvd_wire_line_parse(const char *s, rvd_wire_addr *src, rvd_wire_addr *dst)
{
    if (strcmp(s, "UNKNOWN") == 0 || strncmp(s, "UNKNOWN ", 8) == 0) return 1;
    if (strncmp(s, "TCP4 ", 5) != 0 && strncmp(s, "TCP6 ", 5) != 0) return 0;
    src->family = dst->family = s[3] - '0';
    s = rvd_wire_line_ip(s + 5, src);
    if (s) s = rvd_wire_line_ip(s, dst);
    if (s) s = rvd_wire_line_port(s, src);
    if (s && !*s) return 0;
    if (s) s = rvd_wire_line_port(s, dst);
    return s && !*s && s[-1] != ' ';
}

// A header of version 1 (section 2.1): a line, with its CR LF.
static ptrdiff_t rvd_wire_line_get(const uint8_t *p, size_t len, rvd_wire_addr *src,
                                   rvd_wire_addr *dst)
{
    char line[RVD_WIRE_LINE_MAX];
    const uint8_t *cr = (const uint8_t *)memchr(p, '\r', rvd_base_min(len, RVD_WIRE_LINE_MAX - 1));
    size_t n = cr ? (size_t)(cr - p) : 0;
    if (memcmp(p, "PROXY ", rvd_base_min(len, 6)) != 0) return -1;
    if (!cr) return len < RVD_WIRE_LINE_MAX - 1 ? 0 : -1;
    if (n + 1 == len) return 0;
    if (n < 6 || p[n + 1] != '\n' || memchr(p, 0, n)) return -1;
    memcpy(line, p, n);
    line[n] = '\0';
    return rvd_wire_line_parse(line + 6, src, dst) ? (ptrdiff_t)n + 2 : -1;
}

// An IPv4 address that came as ::ffff:1.2.3.4.
static void rvd_wire_unmap(rvd_wire_addr *a)
{
    if (a->family != 6 || memcmp(a->ip, rvd_wire_mapped, sizeof rvd_wire_mapped) != 0) return;
    memmove(a->ip, a->ip + 12, 4);
    memset(a->ip + 4, 0, 12);
    a->family = 4;
}

// Reads the header with which a connection from a balancer begins, of either version. A family of 0
// means that it has no addresses. (Of a datagram it is none of ours.)
//   returns  its length, 0: more is needed, -1: it is malformed
static inline ptrdiff_t rvd_wire_header_get(const uint8_t *p, size_t len, rvd_wire_addr *src,
                                            rvd_wire_addr *dst)
{
    ptrdiff_t whole;
    memset(src, 0, sizeof *src);
    memset(dst, 0, sizeof *dst);
    if (len == 0) return 0;
    if (p[0] == 'P') {
        whole = rvd_wire_line_get(p, len, src, dst);
    } else {
        whole = rvd_wire_preamble_length(p, len);
        if (whole > (ptrdiff_t)len) return 0;
        if (whole > 0 &&
            ((p[13] & 0x0F) == 2 || rvd_wire_block_get(p, (size_t)whole, src, dst) < 0))
            return -1;
    }
    rvd_wire_unmap(src);
    rvd_wire_unmap(dst);
    return whole;
}

// ================================================================================================
// MARK: impl.pace  uses: base
// Queue control of a session: how many bytes may be on their way to the peer, over all its streams.
// Pure: positions in the output and times in, a number of bytes out. Nothing here waits or sends.
// Start at rvd_pace_pong(), where everything is learnt.
// ================================================================================================

// Pings ride in the output between the frames. A pong says that the peer's engine has taken every
// byte before its ping. Hence the round trip, the rate of delivery, and the bytes still on their
// way. What exceeds rate x least round trip stands in a queue, where it delays every stream.
//
// The law is a mixture, because none of the known ones fits. LEDBAT (RFC 6817) and LEDBAT++ follow
// the delay alone: noise in it holds them at a fraction of a fast link, and the one that comes last
// wins. BBR follows the windowed maximum of the rate, which noise disturbs less, but its doubled
// round trip is the queue that is to be avoided here. Copa shares fairly, because the queue it aims
// at does not grow with its rate, and it notices competitors, because then the queue never empties.
// CoDel needs to sit in the router. So: the cap is BBR's, the greatest recent rate x (least round
// trip + slack); the slack in milliseconds shrinks with the square root of the rate, so that of two
// sessions behind one queue the slower one keeps relatively more in it, and their rates converge;
// and a queue that does not go when we stop filling it is somebody else's: then the congestion
// control of TCP decides alone, as fair or unfair as it is, and the queue is examined again later.

#define RVD_PACE_PINGS 24u         // on their way at a time: some 16 in a round trip
#define RVD_PACE_SPACING_US 2000   // between pings, so that they are at most 500 a second
#define RVD_PACE_STEP 2048u        // least bytes between pings: not one for every keystroke
#define RVD_PACE_USED 16384u       // bytes in a round trip that tell something of the link
#define RVD_PACE_LEAST 8192u       // least cap: some packets, or acknowledgements are delayed
#define RVD_PACE_MOST 1073741824u  // greatest cap, far from where its sums would overflow
#define RVD_PACE_CRUMB 1024u       // less room than this is none: no tiny frames
#define RVD_PACE_ROUNDS 5u         // the window of the greatest rate
#define RVD_PACE_FULL 2            // rounds behind a queue until it is asked whose it is
#define RVD_PACE_GAIN 16u          // the unit of gains: a cap that neither grows nor shrinks
#define RVD_PACE_OLD_US 10000000   // a least round trip of this age is forgotten,
#define RVD_PACE_LOST_US 60000000  //   or of this, while somebody else's queue stands;
#define RVD_PACE_STALE_US 5000000  //   and at half of it the queue is drained to measure it again
#define RVD_PACE_FREE_US 3000000   // for this time somebody else's queue is left alone
#define RVD_PACE_WAIT_US 1000000   // a pong that takes longer, and four round trips, is not awaited
#define RVD_PACE_NEAR_US 2000      // below this round trip wake-ups count, not queues:
#define RVD_PACE_NEAR_STEP 262144u  //   pings are rare, for a link that is near and still slow
#define RVD_PACE_NEAR_GAP_US 100000
#define RVD_PACE_NEAR_RATE 25000000u  // bytes a second that no slow link carries
#define RVD_PACE_LATE_US 20000        // pongs this late tell of a queue, if they are
#define RVD_PACE_LATE_PONGS 5u        //   this many in a row
#define RVD_PACE_FRAME_US 2000        // frames are as long as the link sends in this time,
#define RVD_PACE_FRAME_MIN 1024u      //   within these bounds
#define RVD_PACE_FRAME_MAX 65536u

// What bounds the bytes on their way:
//
//   HOLD    rate x (least round trip + slack), probing now and then whether the rate can grow
//   DRAIN   a little less than rate x least round trip: whose is the queue?
//   GROW    no cap: TCP starts slowly enough, and no queue is seen yet
//   FREE    no cap: the queue is not ours, or pongs tell nothing
//   NEAR    no cap: the round trip is too short to measure a queue
//
//   GROW --a round behind a queue--> HOLD                  GROW, HOLD --short round trip--> NEAR
//   HOLD --two rounds behind a long queue, or the least round trip is stale--> DRAIN
//   DRAIN --the queue has gone--> HOLD                     DRAIN --it stays--> FREE
//   FREE --later, or our rate has grown--> DRAIN           FREE --no queue is left--> GROW
//   NEAR --pongs are late--> DRAIN
//   GROW, HOLD, DRAIN --no pong comes--> FREE
enum rvd_pace_state { RVD_PACE_HOLD, RVD_PACE_DRAIN, RVD_PACE_GROW, RVD_PACE_FREE, RVD_PACE_NEAR };

// Positions and times are the low 32 bits: only differences are used.
typedef struct rvd_pace_ping {
    uint32_t sent_us, mark;   // when, and where in the output
    uint32_t since, from_us;  // the same of the last byte that was known to be taken then
} rvd_pace_ping;

// Invariants: count <= PINGS; the first ping's value is `value` - count + 1.
typedef struct rvd_pace {
    rvd_pace_ping pings[RVD_PACE_PINGS];
    uint32_t first, count, value;
    uint32_t ping_mark, ping_us;  // of the last ping
    uint32_t taken, taken_us;     // what the peer has taken, and since when that is known
    uint32_t cap, target;         // the cap moves to its target, a piece with each pong
    uint32_t min_us, next_us;     // least round trip; the least since min_at
    uint32_t noise_us;            // how far round trips are above the least of their round
    uint32_t rates[RVD_PACE_ROUNDS], round;
    uint32_t gain, probe_rate;  // a gain above the unit probes; the rate before it
    uint32_t free_rate;         // least rate while FREE
    uint8_t state;
    uint8_t is_drained;        // DRAIN: no more than the cap is on its way
    uint8_t is_full;           // somebody has waited for room since the last ping
    uint8_t rest, full, late;  // rounds until the next probe; rounds behind a queue; late pongs
    // This round: of pings that were sent after `round_mark`.
    uint8_t was_full;
    uint32_t round_mark, round_rate, least_us, samples;
    uint64_t sum_us;
    int64_t now_us, full_us, min_at, free_until;
} rvd_pace;

static void rvd_pace_init(rvd_pace *p, int64_t now_us)
{
    memset(p, 0, sizeof *p);
    p->state = RVD_PACE_GROW;
    p->gain = RVD_PACE_GAIN;
    p->least_us = UINT32_MAX;
    p->now_us = p->min_at = now_us;
    p->taken_us = (uint32_t)now_us;
}

static void rvd_pace_become(rvd_pace *p, enum rvd_pace_state to)
{
    switch ((enum rvd_pace_state)p->state) {
    case RVD_PACE_GROW: REVDIAL_ASSERT(to != RVD_PACE_GROW && to != RVD_PACE_DRAIN); break;
    case RVD_PACE_HOLD: REVDIAL_ASSERT(to != RVD_PACE_GROW && to != RVD_PACE_HOLD); break;
    case RVD_PACE_DRAIN: REVDIAL_ASSERT(to == RVD_PACE_HOLD || to == RVD_PACE_FREE); break;
    case RVD_PACE_FREE: REVDIAL_ASSERT(to == RVD_PACE_DRAIN || to == RVD_PACE_GROW); break;
    case RVD_PACE_NEAR: REVDIAL_ASSERT(to == RVD_PACE_DRAIN); break;
    }
    p->state = (uint8_t)to;
    p->full = p->late = p->is_drained = 0;
    p->gain = RVD_PACE_GAIN;
}

static int rvd_pace_has_cap(const rvd_pace *p)
{
    return p->state <= RVD_PACE_DRAIN;
}

static uint32_t rvd_pace_rate(const rvd_pace *p)
{
    uint32_t most = 0;
    for (unsigned i = 0; i < RVD_PACE_ROUNDS; i++)
        if (p->rates[i] > most) most = p->rates[i];
    return most;
}

static void rvd_pace_rate_set(rvd_pace *p, uint32_t rate)
{
    memset(p->rates, 0, sizeof p->rates);
    p->rates[p->round % RVD_PACE_ROUNDS] = rate;
}

static uint32_t rvd_pace_bytes(uint32_t rate, uint32_t us)
{
    uint64_t bytes = (uint64_t)rate * us / 1000000;
    return bytes < RVD_PACE_MOST ? (uint32_t)bytes : RVD_PACE_MOST;
}

static uint32_t rvd_pace_root(uint64_t x)
{
    uint64_t root = 0;
    for (uint64_t bit = (uint64_t)1 << 31; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= x) root += bit;
    return (uint32_t)root;
}

// The queue that is wanted, in time: 10 ms at 10 Mbit/s, 3 ms at 100 Mbit/s, 22 ms at 2 Mbit/s, and
// a part of the round trip, which is never measured better than that. Where round trips vary more
// than our own bursts explain, it covers that, too, or the link would run dry.
static uint32_t rvd_pace_slack(const rvd_pace *p, uint32_t rate)
{
    uint32_t us = rvd_pace_root(UINT64_C(125000000000000) / (rate ? rate : 1));
    uint32_t own = p->min_us / 16 + 2000;
    uint32_t noise = p->noise_us > own ? 2 * (p->noise_us - own) : 0;
    if (us > 40000) us = 40000;
    if (us < 2000) us = 2000;
    return us + p->min_us / 32 + rvd_base_min_u32(noise, p->min_us / 2);
}

// How long frames may be, and turns of streams: a keystroke waits for one of each.
static uint32_t rvd_pace_frame(const rvd_pace *p)
{
    uint32_t bytes = rvd_pace_bytes(rvd_pace_rate(p), RVD_PACE_FRAME_US);
    if (p->state == RVD_PACE_NEAR || bytes > RVD_PACE_FRAME_MAX) return RVD_PACE_FRAME_MAX;
    return bytes < RVD_PACE_FRAME_MIN ? RVD_PACE_FRAME_MIN : bytes;
}

// How many bytes may be added to the output, of which `added` have been so far. UINT32_MAX: any.
static inline uint32_t rvd_pace_room(const rvd_pace *p, uint32_t added)
{
    uint32_t flight = added - p->taken;
    if (!rvd_pace_has_cap(p)) return UINT32_MAX;
    return flight < p->cap && p->cap - flight >= RVD_PACE_CRUMB ? p->cap - flight : 0;
}

// Somebody waits for room.
static void rvd_pace_wait(rvd_pace *p, int64_t now_us)
{
    if (!p->is_full) p->full_us = now_us;
    p->is_full = p->was_full = 1;
}

// Bytes between pings.
static uint32_t rvd_pace_step(const rvd_pace *p)
{
    uint32_t cap = rvd_pace_has_cap(p) ? p->cap : rvd_pace_bytes(rvd_pace_rate(p), p->min_us);
    if (p->state == RVD_PACE_NEAR) return RVD_PACE_NEAR_STEP;
    return cap / 16 > RVD_PACE_STEP ? cap / 16 : RVD_PACE_STEP;
}

// Should a ping go in front of the next frame?
static inline int rvd_pace_is_due(const rvd_pace *p, uint32_t added, int64_t now_us)
{
    uint32_t bytes = added - p->ping_mark, step, gap = (uint32_t)now_us - p->ping_us;
    if (bytes < RVD_PACE_STEP || p->count == RVD_PACE_PINGS) return 0;
    step = rvd_pace_step(p);
    if (bytes < step) return 0;
    if (p->state == RVD_PACE_NEAR) return gap >= RVD_PACE_NEAR_GAP_US;
    return gap >= RVD_PACE_SPACING_US || bytes >= (rvd_pace_has_cap(p) ? p->cap / 4 : 4 * step);
}

// A full pipe without a ping on its way would never be known to have emptied.
static int rvd_pace_is_blind(const rvd_pace *p, uint32_t added)
{
    return !p->count && rvd_pace_room(p, added) == 0;
}

// A ping ends the output at `added`. Returns its value.
static uint32_t rvd_pace_ping_add(rvd_pace *p, uint32_t added, int64_t now_us)
{
    rvd_pace_ping *g = &p->pings[(p->first + p->count) % RVD_PACE_PINGS];
    g->sent_us = p->ping_us = (uint32_t)now_us;
    g->mark = p->ping_mark = added;
    g->since = p->taken;
    g->from_us = p->taken_us;
    if (rvd_pace_room(p, added)) p->is_full = 0;
    p->count++;
    return ++p->value;
}

// ---- what pongs tell ----

static void rvd_pace_round_start(rvd_pace *p, uint32_t mark)
{
    p->round_mark = mark;
    p->least_us = UINT32_MAX;
    p->sum_us = 0;
    p->samples = p->round_rate = 0;
    p->was_full = 0;
}

static void rvd_pace_hold(rvd_pace *p)
{
    uint32_t rate = rvd_pace_rate(p), slack = rvd_pace_slack(p, rate);
    uint64_t cap = (uint64_t)rvd_pace_bytes(rate, p->min_us + slack) * p->gain / RVD_PACE_GAIN;
    p->target = cap < RVD_PACE_MOST ? (uint32_t)cap : RVD_PACE_MOST;
    if (p->target < RVD_PACE_LEAST) p->target = RVD_PACE_LEAST;
}

static void rvd_pace_drain(rvd_pace *p, uint32_t rate)
{
    uint32_t bytes = rvd_pace_bytes(rate, p->min_us) / 16 * 15;
    int had_cap = rvd_pace_has_cap(p);
    rvd_pace_rate_set(p, rate);
    p->target = bytes > RVD_PACE_LEAST ? bytes : RVD_PACE_LEAST;
    if (!had_cap || p->cap / 4 > p->target) p->cap = p->target;
    rvd_pace_become(p, RVD_PACE_DRAIN);
}

static void rvd_pace_free(rvd_pace *p)
{
    rvd_pace_become(p, RVD_PACE_FREE);
    p->free_rate = UINT32_MAX;
    p->free_until = p->now_us + RVD_PACE_FREE_US;
}

// Where the link may have room, the cap is raised by an eighth; as long as the rate follows, it
// grows faster and faster.
static void rvd_pace_probe(rvd_pace *p, uint32_t queue_us, uint32_t slack_us)
{
    uint32_t rate = p->round_rate;
    if (p->gain == RVD_PACE_GAIN && p->rest > (queue_us < slack_us / 2 ? 2 : 0)) {
        p->rest--;
    } else if (p->gain == RVD_PACE_GAIN) {
        p->gain = RVD_PACE_GAIN * 9 / 8;
        p->probe_rate = rvd_pace_rate(p);
    } else if (queue_us < slack_us && rate > p->probe_rate + p->probe_rate / 16) {
        p->gain = rvd_base_min_u32(RVD_PACE_GAIN * 2, p->gain + 2 * (p->gain - RVD_PACE_GAIN));
        p->probe_rate = rate;
    } else {
        p->gain = RVD_PACE_GAIN;
        p->rest = 3;
    }
}

// Otherwise the application has little to send, and that tells nothing of the link.
static int rvd_pace_is_used(const rvd_pace *p)
{
    return p->was_full || rvd_pace_bytes(p->round_rate, 2 * p->least_us) >= p->cap;
}

static void rvd_pace_hold_judge(rvd_pace *p, uint32_t queue_us)
{
    uint32_t slack = rvd_pace_slack(p, rvd_pace_rate(p));
    int is_stale = p->now_us - p->min_at > RVD_PACE_STALE_US && queue_us > slack / 2 + 1000;
    if (p->min_us < RVD_PACE_NEAR_US && p->round_rate > RVD_PACE_NEAR_RATE) {
        rvd_pace_become(p, RVD_PACE_NEAR);
        return;
    }
    if (!rvd_pace_is_used(p)) return;
    p->full = p->was_full && queue_us > slack / 2 * 3 ? (uint8_t)(p->full + 1) : 0;
    if (p->full == RVD_PACE_FULL || (is_stale && p->was_full)) {
        rvd_pace_drain(p, p->round_rate);
        return;
    }
    if (queue_us > slack / 2 * 3) {  // then the rate of this round is what the link gives us
        rvd_pace_rate_set(p, p->round_rate);
        p->gain = RVD_PACE_GAIN;
        p->rest = 2;
    } else if (p->was_full) {
        rvd_pace_probe(p, queue_us, slack);
    } else {
        p->gain = RVD_PACE_GAIN;
    }
    rvd_pace_hold(p);
    p->rates[++p->round % RVD_PACE_ROUNDS] = 0;
}

static void rvd_pace_grow_end(rvd_pace *p, uint32_t rate)
{
    rvd_pace_rate_set(p, rate);
    rvd_pace_become(p, RVD_PACE_HOLD);
    rvd_pace_hold(p);
    p->cap = p->target;
}

static void rvd_pace_grow_judge(rvd_pace *p, uint32_t queue_us)
{
    int is_used = rvd_pace_bytes(p->round_rate, p->least_us) >= RVD_PACE_USED;
    if (p->min_us < RVD_PACE_NEAR_US)
        rvd_pace_become(p, RVD_PACE_NEAR);
    else if (is_used && queue_us > rvd_pace_slack(p, rvd_pace_rate(p)))
        rvd_pace_grow_end(p, p->round_rate);
    p->rates[++p->round % RVD_PACE_ROUNDS] = 0;
}

// Has somebody else's queue gone? When our rate has grown, or after a while, it is tried.
static void rvd_pace_free_judge(rvd_pace *p, uint32_t queue_us)
{
    uint32_t rate = p->round_rate;
    int is_settled = p->free_until - p->now_us < RVD_PACE_FREE_US / 3 * 2;
    p->rates[++p->round % RVD_PACE_ROUNDS] = rate;
    if (queue_us < rvd_pace_slack(p, rate))
        rvd_pace_become(p, RVD_PACE_GROW);
    else if (p->now_us >= p->free_until || (is_settled && rate / 3 > p->free_rate / 2))
        rvd_pace_drain(p, rate);
    else if (is_settled && rate < p->free_rate)
        p->free_rate = rate;
}

static void rvd_pace_round_end(rvd_pace *p, uint32_t added)
{
    uint32_t queue = p->least_us - p->min_us;
    uint32_t noise = (uint32_t)(p->sum_us / p->samples) - p->least_us;
    if (p->state == RVD_PACE_HOLD) p->noise_us = (3 * p->noise_us + noise) / 4;
    switch ((enum rvd_pace_state)p->state) {
    case RVD_PACE_GROW: rvd_pace_grow_judge(p, queue); break;
    case RVD_PACE_HOLD: rvd_pace_hold_judge(p, queue); break;
    case RVD_PACE_DRAIN:
        if (queue > 2 * rvd_pace_slack(p, rvd_pace_rate(p))) {
            rvd_pace_free(p);
        } else {
            rvd_pace_become(p, RVD_PACE_HOLD);
            rvd_pace_hold(p);
        }
        break;
    case RVD_PACE_FREE: rvd_pace_free_judge(p, queue); break;
    case RVD_PACE_NEAR: break;
    }
    // What a new cap does shows in pings that are sent from now on.
    rvd_pace_round_start(p, p->state == RVD_PACE_HOLD ? added : p->taken);
}

// Learns the round trip of a ping, also of one that impl.mux sent.
static void rvd_pace_trip(rvd_pace *p, uint32_t trip_us, int64_t now_us)
{
    p->now_us = now_us;
    if (!p->min_us || trip_us <= p->min_us + p->min_us / 32) {
        p->min_us = p->min_us ? rvd_base_min_u32(p->min_us, trip_us) : trip_us;
        p->next_us = 0;
        p->min_at = now_us;
    } else if (!p->next_us || trip_us < p->next_us) {
        p->next_us = trip_us;
    }
    if (now_us - p->min_at <= (p->state == RVD_PACE_HOLD ? RVD_PACE_OLD_US : RVD_PACE_LOST_US))
        return;
    p->min_us = p->next_us;
    p->next_us = 0;
    p->min_at = now_us;
}

// The cap moves in proportion to what the peer has taken: jumps would become bursts, and bursts
// queues.
static void rvd_pace_move(rvd_pace *p, uint32_t bytes)
{
    uint32_t up = bytes / 4, down = bytes / 2;
    if (p->cap < p->target)
        p->cap = p->target - p->cap > up ? p->cap + up : p->target;
    else
        p->cap = p->cap - p->target > down ? p->cap - down : p->target;
}

// NEAR: pings are rare, and the rate is that between two pongs.
static void rvd_pace_near(rvd_pace *p, uint32_t trip_us, uint32_t rate)
{
    int is_late = trip_us > RVD_PACE_LATE_US && rate < RVD_PACE_NEAR_RATE;
    p->late = is_late ? (uint8_t)(p->late + 1) : 0;
    if (p->late < RVD_PACE_LATE_PONGS) return;
    rvd_pace_drain(p, rate);
}

static void rvd_pace_sample(rvd_pace *p, const rvd_pace_ping *g, uint32_t trip_us, uint32_t added)
{
    if ((int32_t)(g->mark - p->round_mark) <= 0) return;
    p->least_us = rvd_base_min_u32(p->least_us, trip_us);
    p->sum_us += trip_us;
    p->samples++;
    if ((int32_t)(g->since - p->round_mark) >= 0 || (p->state == RVD_PACE_DRAIN && p->samples >= 4))
        rvd_pace_round_end(p, added);
}

static uint32_t rvd_pace_speed(uint32_t bytes, uint32_t us)
{
    uint64_t rate = (uint64_t)bytes * 1000000 / (us ? us : 1);
    return rate < UINT32_MAX ? (uint32_t)rate : UINT32_MAX;
}

// A pong has come. Returns 0 if its ping is not one of ours on their way.
static int rvd_pace_pong(rvd_pace *p, uint32_t value, uint32_t added, int64_t now_us)
{
    uint32_t skipped = value - (p->value - p->count + 1), trip, bytes, rate;
    uint32_t us = (uint32_t)now_us;
    rvd_pace_ping g;
    if (skipped >= p->count) return 0;
    g = p->pings[(p->first + skipped) % RVD_PACE_PINGS];
    p->first = (p->first + skipped + 1) % RVD_PACE_PINGS;
    p->count -= skipped + 1;
    trip = us - g.sent_us ? us - g.sent_us : 1;
    bytes = g.mark - p->taken;
    p->taken = g.mark;
    p->taken_us = us;
    rate = rvd_pace_speed(g.mark - g.since, us - g.from_us);
    rvd_pace_trip(p, trip, now_us);
    if (p->state == RVD_PACE_NEAR) {
        rvd_pace_near(p, trip, rate);
        return 1;
    }
    if (rate > p->round_rate) p->round_rate = rate;
    if (rate > p->rates[p->round % RVD_PACE_ROUNDS]) p->rates[p->round % RVD_PACE_ROUNDS] = rate;
    rvd_pace_move(p, bytes);
    if (p->state == RVD_PACE_DRAIN && !p->is_drained) {
        // Pings that were sent before do not tell what is left of the queue.
        if (added - p->taken > p->cap || p->cap > p->target) return 1;
        p->is_drained = 1;
        rvd_pace_round_start(p, added);
        return 1;
    }
    rvd_pace_sample(p, &g, trip, added);
    return 1;
}

// When somebody waits for room and no pong comes for this long, the cap ends. INT64_MAX: never.
static int64_t rvd_pace_next_tick(const rvd_pace *p, int64_t now_us)
{
    int64_t at_us;
    if (!p->is_full || !p->count || !rvd_pace_has_cap(p)) return INT64_MAX;
    at_us = now_us - ((uint32_t)now_us - p->pings[p->first].sent_us);
    return rvd_base_later(at_us, p->full_us) + RVD_PACE_WAIT_US + 4 * (int64_t)p->min_us;
}

static void rvd_pace_tick(rvd_pace *p, int64_t now_us)
{
    p->now_us = now_us;
    if (now_us >= rvd_pace_next_tick(p, now_us)) rvd_pace_free(p);
}

// ================================================================================================
// MARK: impl.mux  uses: base wire pace
// Sessions and streams. All protocol decisions are here; nothing here waits, sends or calls back.
// The way in is rvd_mux_input(), the way out rvd_mux_output(); rvd_mux_event() tells what happened.
// ================================================================================================

// ---- limits that are not configurable, each with its reason ----

#define RVD_MUX_CHUNK_MIN 256u      // smallest block of unread bytes: one byte must not cost a page
#define RVD_MUX_CHUNK_MAX 16384u    // largest: a full window must not cost a thousand blocks
#define RVD_MUX_OUT_CHUNK 65536u    // holds our largest frame with its header
#define RVD_MUX_SPARES 1048576u     // bytes of free blocks kept per size while data flows
#define RVD_MUX_OUT_LEAST 4096u     // least output limit: below it writers would stall
#define RVD_MUX_QUANTUM_MIN 16372u  // least bytes of a DRR turn, except on a thin link
#define RVD_MUX_QUANTUM_PART 4u     // otherwise a turn is this fraction of the output limit
#define RVD_MUX_OUT_MAX 262144u     // default of revdial_engine_set_output_max()
#define RVD_MUX_SPARSE_BYTES 1024u  // writes up to this size do not wait for a turn
#define RVD_MUX_SPARSE_ROOM 65536u  // room above the output limit for such writes, FINs and RSTs
#define RVD_MUX_CONTROL 4096u       // bytes of control frames prepared at a time
#define RVD_MUX_STUCK_MS 10000u     // after this time without a read the reader has stopped
#define RVD_MUX_MOVING_MS 1000u     // a reader that still reads after this time is slow, not stuck
#define RVD_MUX_MOVED_BYTES 1024u   // least bytes read that count as progress of a reader
#define RVD_MUX_HELD_FACTOR 2u      // memory over unread bytes: blocks may be half empty
#define RVD_MUX_REFUSALS 16384u     // refused streams queued while the peer takes no bytes
#define RVD_MUX_PREAMBLE_MIN 128u   // first allocation: most preambles are shorter
#define RVD_MUX_PREAMBLES 4194304u  // bytes of incomplete preambles, over all streams
#define RVD_MUX_PONGS 32u           // as go-yamux; hashicorp/yamux has one ping in flight
#define RVD_MUX_STOCK_STREAMS 256u  // yamux's accept backlog
#define RVD_MUX_UNACKED_STOCK 128u  // unanswered opens to a stock peer: half its backlog
#define RVD_MUX_LINGER_BYTES 65536u  // dropped after our close before the stream is reset
#define RVD_MUX_LINGER_US 30000000   // or after this time
#define RVD_MUX_PREAMBLE_US 5000000  // time for a preamble, which fits in one packet
#define RVD_MUX_ORPHAN_US 60000000   // no credit from a peer that has finished: it stopped reading
#define RVD_MUX_TINY_US 40000        // then even a tiny window is used (silly window, RFC 1122)
#define RVD_MUX_PROMISE_US 5000      // a WRITABLE that is not used for this time expires
#define RVD_MUX_IDLE_US 5000000      // a window that is not used for this time shrinks
#define RVD_MUX_SLOW_BYTES 1024u     // least credit returned after that time: more than keystrokes
#define RVD_MUX_LATE_US 1000000      // a tick this late: the machine was suspended, deadlines move
#define RVD_MUX_RTT_US 30000000      // interval of round-trip measurements
#define RVD_MUX_ASK_US 500000        // no byte this long after we opened a stream: a ping, and
#define RVD_MUX_DOUBT_US 400000      //   this long after it the peer is silent: within a second
#define RVD_MUX_DOUBT_LATE 100000    // a tick this late may have unread bytes: it does not judge
#define RVD_MUX_LATE_FRAMES 8u       // in flight when a stream ends: an ACK, a FIN, some credit
#define RVD_MUX_RTT_LEAST 1000       // below this wake-ups count, not the distance
#define RVD_MUX_RTT_SAMPLES 8u       // the window of the minimum
#define RVD_MUX_RTT_LOAD 32768u      // this many bytes during a ping may have queued before it
#define RVD_MUX_CREDIT_STEP 256u     // smallest steps in which a peer may return credit
#define RVD_MUX_GRANT_MAX 1048576u   // credit is returned at the latest in steps of this size
#define RVD_MUX_ID_LAST 0x7FFF0000u  // peers with int32 ids: open no more, drain

// Rates that only an attack reaches. They are for 256 streams and scale with the stream limit.
#define RVD_MUX_SYN_RATE 4000       // streams opened, per second and as a burst
#define RVD_MUX_RESET_BURST 200     // streams the peer opened and reset before we answered:
#define RVD_MUX_RESET_RATE 33       //   rapid reset, CVE-2023-44487
#define RVD_MUX_PROVOKED_BURST 200  // resets the peer's misbehaviour makes us send:
#define RVD_MUX_PROVOKED_RATE 33    //   CVE-2025-8671
#define RVD_MUX_GLITCH_BURST 1000   // frames without effect: empty data, CVE-2019-9518
#define RVD_MUX_GLITCH_RATE 100
#define RVD_MUX_PING_BURST 32  // CVE-2019-9512
#define RVD_MUX_PING_RATE 10
#define RVD_MUX_PACE_BURST 2000  // from a peer that controls its queue: what impl.pace sends
#define RVD_MUX_PACE_RATE 2000
#define RVD_MUX_PACE_VALUE 0x80000000u  // its pings have values from here on, others lower ones
#define RVD_MUX_WINDOW_BURST 64         // window updates beyond two per frame and stream of ours
#define RVD_MUX_WINDOW_RATE 100

// ---- streams ----

// A stream is two independent halves and a handshake, as in RFC 9000 section 3: three small
// machines, each changed by one function, instead of one with the product of their states.
//
//   handshake   ASKED --ACK or any other frame but RST--> OPEN             opened here
//               OFFERED --preamble--> SHOWN --accept--> OPEN               opened by the peer
//               any --RST either way--> OPEN
//   sending     OPEN --finish--> ENDING --FIN sent--> ENDED      any --RST either way--> RESET
//   receiving   OPEN --FIN--> ENDED   OPEN --we stop--> DROPPED  OPEN, DROPPED --RST--> RESET
//
// Once both sides have sent FIN the peer has forgotten the stream: a reset then concerns our own
// application only, and sends no frame.
enum rvd_mux_phase {
    RVD_MUX_ASKED,    // our SYN is in the output and unanswered
    RVD_MUX_OFFERED,  // the peer's SYN has arrived, its preamble has not
    RVD_MUX_SHOWN,    // EV_OPEN was raised; the application has not answered
    RVD_MUX_OPEN
};
enum rvd_mux_tx { RVD_MUX_TX_OPEN, RVD_MUX_TX_ENDING, RVD_MUX_TX_ENDED, RVD_MUX_TX_RESET };
enum rvd_mux_rx { RVD_MUX_RX_OPEN, RVD_MUX_RX_DROPPED, RVD_MUX_RX_ENDED, RVD_MUX_RX_RESET };

// Control frames to send: bits, not a queue, so that they can neither overflow nor be lost.
enum { RVD_MUX_CTL_ACK = 1, RVD_MUX_CTL_CREDIT = 2, RVD_MUX_CTL_FIN = 4, RVD_MUX_CTL_RST = 8 };

// Pending events of a stream.
enum {
    RVD_MUX_TELL_OPEN = 1,
    RVD_MUX_TELL_ACCEPTED = 2,
    RVD_MUX_TELL_READABLE = 4,
    RVD_MUX_TELL_SENT = 8,
    RVD_MUX_TELL_FIN = 16,
    RVD_MUX_TELL_RESET = 32
};

// Pending events of the session. SLICE: READABLE for the slice, whose stream is not in the list.
enum {
    RVD_MUX_NEWS_SLICE = 1,
    RVD_MUX_NEWS_GOAWAY = 2,
    RVD_MUX_NEWS_RTT = 4,
    RVD_MUX_NEWS_OPENABLE = 8,  // raised when an open can succeed
    RVD_MUX_NEWS_DEAD = 16,
    RVD_MUX_NEWS_MUTE = 32  // is_mute has changed since the last EV_SILENT
};

// Why a writer waits.
enum rvd_mux_wait { RVD_MUX_WAIT_NONE, RVD_MUX_WAIT_CREDIT, RVD_MUX_WAIT_TURN };

// A stream has at most one timer. Each kind has one duration, so one queue per kind is sorted.
enum rvd_mux_timer {
    RVD_MUX_TIMER_NONE,
    RVD_MUX_TIMER_PREAMBLE,
    RVD_MUX_TIMER_ACCEPT,
    RVD_MUX_TIMER_LINGER,
    RVD_MUX_TIMER_ORPHAN,
    RVD_MUX_TIMER_TINY,
    RVD_MUX_TIMERS
};

typedef struct rvd_mux_chunk {
    struct rvd_mux_chunk *next;
    uint32_t size, start, end;  // data[start..end) is unread, data[end..size) free
    uint8_t data[];
} rvd_mux_chunk;

// Invariants: recv_credit + buffered <= the largest value that window has had; a stream that is not
// released is in the table; `head` is NULL if and only if all buffered bytes are in the slice.
typedef struct rvd_mux_stream {
    struct rvd_mux_stream *hash_next;
    rvd_base_link ctl, tell, turn, timer;  // each in at most one list of the session
    rvd_base_link held;                    // in a list while `head` is not NULL
    union {
        rvd_mux_chunk *preamble;  // while OFFERED: what has arrived of it
        void *ud;                 // then: the application's
    };
    rvd_mux_chunk *head, *tail;
    uint8_t phase, tx, rx, wait, timer_kind;
    uint8_t ctl_bits, tell_bits;
    // Bits, so that an idle stream stays small.
    unsigned released : 1;     // the application has closed it, or was not told of it yet
    unsigned after_fin : 1;    // data after FIN was forgiven once; the next time it is reset
    unsigned tiny_ok : 1;      // the tiny-window delay has passed
    unsigned fin_sent : 1;     // our FIN is in the output: with the peer's the stream is over
    unsigned is_past : 1;      // the peer has reused the id: its frames are no longer for this one
    unsigned reset_local : 1;  // we reset it, not the peer
    unsigned stopped : 1;      // the application has stopped reading: it gets no EOF either
    unsigned is_moving : 1;    // its reader makes progress: slow, but not stuck
    uint32_t id, reset_code;
    uint32_t send_credit, recv_credit, window;
    uint32_t buffered;
    uint32_t turn_left;    // bytes that it may still write in its turn
    uint32_t promise;      // round in which it got a WRITABLE that it has not used; 0 = none
    uint32_t dropped;      // bytes dropped after our close
    uint32_t lent;         // bytes of its loans that are in the lender's memory
    uint32_t epoch_bytes;  // consumed since epoch_us
    uint32_t moved_bytes;  // consumed since stuck_ms
    uint32_t held_ms;      // rvd_mux_now_ms() when bytes were first left unread; 0 = never
    uint32_t stuck_ms;     // since when the bytes that it holds now have waited for their reader
    int64_t epoch_us;
    int64_t timer_us;  // when its timer is due; without one: since when it may wait for credit
    uint64_t sent, received;
    uint64_t out_mark;  // where its last data frame ends in the output
} rvd_mux_stream;

// Lent payload: its header is in the output, its bytes are in the lender's memory or, after a
// recall, in `copy`. Loans are in the order of the output.
typedef struct rvd_mux_loan {
    struct rvd_mux_loan *next;
    rvd_mux_stream *stream;  // whose lender's they are; NULL: `copy`
    const uint8_t *bytes;    // the first byte that is not sent
    uint8_t *copy;
    uint64_t at;         // position of bytes[0] in the output, counted like out_added
    uint32_t len, size;  // bytes left to send, bytes lent
} rvd_mux_loan;

// ---- sessions ----

// Free chunks of one size, so that a steady flow allocates nothing: memory that is freed goes back
// to the system, which clears it before it hands it out again, and that costs as much as a copy.
typedef struct rvd_mux_spares {
    rvd_mux_chunk *first;
    uint32_t bytes;
} rvd_mux_spares;

typedef struct rvd_mux_config {
    int is_client;  // yamux client: opens odd streams
    int accept_streams;
    unsigned features;      // REVDIAL_FEATURE_*, those in force
    uint32_t send_window;   // first credit that the peer gives us per stream
    uint32_t recv_window;   // first credit that the peer assumes
    uint32_t peer_streams;  // how many streams of ours the peer accepts
    uint64_t session_id, seed;
    revdial_limits limits;  // resolved: no zeros
} rvd_mux_config;

// Where the body of the frame that is being received goes.
enum rvd_mux_body { RVD_MUX_BODY_NONE, RVD_MUX_BODY_STREAM, RVD_MUX_BODY_DRAIN };

typedef struct rvd_mux {
    rvd_heap *heap;
    rvd_mux_config cfg;
    int64_t now_us, wake_us;

    rvd_mux_stream **table;  // chains, keyed by a secret multiple of the id
    rvd_mux_stream *last;    // found last: calls on one stream come in groups
    uint64_t table_key;      // odd and unpredictable
    uint32_t table_bits, stream_count;
    uint32_t ours, theirs;  // in the table, opened by us and by the peer
    uint32_t unacked;       // ours, unanswered
    uint32_t next_id;

    // Input.
    uint8_t header[RVD_WIRE_HEADER];
    uint32_t header_len;
    rvd_wire_frame frame;  // whose body is coming in
    enum rvd_mux_body body;
    uint32_t body_left;
    rvd_mux_stream *body_stream;
    rvd_mux_stream *slice_stream;  // payload that still lies in the caller's buffer
    const uint8_t *slice;
    uint32_t slice_len;
    unsigned news;         // RVD_MUX_NEWS_*, to be told
    uint64_t allowance;    // bytes that may still arrive for streams that are over
    uint64_t late_frames;  // and frames without a payload

    // Output: prepared control frames, then whole data frames. shown_*: what output() showed last.
    uint8_t control[RVD_MUX_CONTROL];
    uint32_t control_len, control_sent;
    rvd_mux_chunk *out_head, *out_tail;
    rvd_mux_spares spares[2];            // for input, for output
    uint32_t frame_left;                 // bytes of the half-sent data frame at the head
    uint32_t shown_data, shown_control;  // bytes in front of the other data frames
    uint64_t out_added, out_sent;        // of data frames, in bytes, lent ones included
    uint64_t out_shown;                  // how far the last output() showed them; then out_sent
    uint64_t out_edge;                   // where a frame ended when output() last showed all
    rvd_mux_stream *growing;             // its frame is the last one and may still grow
    uint32_t growing_len;
    rvd_mux_loan *loans, *loans_last;
    uint64_t out_max;
    uint32_t quantum;     // bytes in a turn while several streams are busy
    uint32_t frame_max;   // while one is: a ping waits for the end of a frame
    rvd_pace pace;        // in force if the peer has REVDIAL_FEATURE_PINGS
    int64_t progress_us;  // the output last moved, or began to wait
    int64_t acked_us;     // last sign that the peer takes bytes: credit, a pong, or its system's
                          // acknowledgement
    uint32_t reserved;    // room given out by reserve
    // WRITABLE promises room: only as many writers are woken as the room lasts for. Promises of
    // earlier rounds are void.
    uint32_t promised, promise_round;
    int64_t promised_us;  // time of the last promise
    rvd_base_link ctl, tell, turns, timers[RVD_MUX_TIMERS];
    rvd_base_link fresh;  // as turns, of streams that have just begun to send: they go first
    uint32_t pongs[RVD_MUX_PONGS], pong_first, pong_count;

    // Liveness and round trips.
    int64_t last_rx_us, ping_us, rtt_us, next_rtt_us;
    int64_t
        asked_us;  // the first stream we opened since last_rx_us; 0 none, -1 after the last tick
    int64_t doubt_at;  // the tick that pings or judges next; never one after a suspension
    int64_t drain_us;  // until when an idle session that drains stays
    int64_t rtt[RVD_MUX_RTT_SAMPLES];
    uint64_t ping_rx_bytes;  // rx_bytes when the ping was sent
    uint32_t rtt_count, ping_value;
    uint8_t ping_wanted, ping_out;
    uint8_t is_mute;  // it has not answered a ping in time

    // The end.
    uint8_t draining, go_sent, go_wanted, peer_draining, silent;
    uint32_t go_code;
    int dead;  // REVDIAL_E* that ended the session, 0 while it lives
    const char *dead_text;

    uint64_t buffered;        // unread bytes of all streams
    uint64_t held_size;       // memory of the chunks that they lie in
    uint64_t standing_bytes;  // of them, those of streams in held[0]
    rvd_base_link held[2];    // streams with chunks, by is_moving; stuck longest first
    uint64_t grown;           // windows beyond their first size
    uint64_t preambles;       // bytes of incomplete preambles
    uint32_t refusals;        // since the output was last below its limit
    rvd_base_bucket syns, resets, provoked, glitches, pings, windows;
    uint64_t opened, reset_count, rx_bytes, tx_bytes, rx_frames, tx_frames, tx_data_frames;
    uint64_t reset_counts[REVDIAL_RESET_PLACES];  // reset_count by code
    uint64_t credit_waits;
    uint64_t window_frames;       // window updates that our data and opens allow the peer
    rvd_wire_meta *meta;          // of the stream in the current EV_OPEN
    rvd_mux_stream *meta_stream;  // the stream of the next EV_OPEN
} rvd_mux;

static void rvd_mux_die(rvd_mux *m, int code, const char *text);

// ---- chunks ----

// Returns NULL if chunks of that size are not kept.
static rvd_mux_spares *rvd_mux_spares_of(rvd_mux *m, uint32_t size)
{
    if (size == RVD_MUX_CHUNK_MAX) return &m->spares[0];
    return size == RVD_MUX_OUT_CHUNK ? &m->spares[1] : NULL;
}

// A new empty chunk, in no list. NULL without memory.
static rvd_mux_chunk *rvd_mux_chunk_new(rvd_mux *m, uint32_t size)
{
    rvd_mux_spares *spares = rvd_mux_spares_of(m, size);
    rvd_mux_chunk *c = spares ? spares->first : NULL;
    if (c) {
        spares->first = c->next;
        spares->bytes -= size;
    } else {
        c = rvd_base_resize(m->heap, NULL, 0, sizeof *c + size);
        if (!c) return NULL;
    }
    c->next = NULL;
    c->size = size;
    c->start = c->end = 0;
    return c;
}

static void rvd_mux_chunk_free(rvd_mux *m, rvd_mux_chunk *c)
{
    rvd_mux_spares *spares = rvd_mux_spares_of(m, c->size);
    if (!spares || spares->bytes + c->size > RVD_MUX_SPARES) {
        rvd_base_free(m->heap, c, sizeof *c + c->size);
        return;
    }
    c->next = spares->first;
    spares->first = c;
    spares->bytes += c->size;
}

static void rvd_mux_spares_free(rvd_mux *m)
{
    for (int i = 0; i < 2; i++) {
        while (m->spares[i].first) {
            rvd_mux_chunk *c = m->spares[i].first;
            m->spares[i].first = c->next;
            rvd_base_free(m->heap, c, sizeof *c + c->size);
        }
        m->spares[i].bytes = 0;
    }
}

// ---- the table ----

static inline uint32_t rvd_mux_slot(const rvd_mux *m, uint32_t id)
{
    return (uint32_t)((id ^ m->table_key >> 32) * m->table_key >> (64 - m->table_bits));
}

RVD_BASE_SLOW static rvd_mux_stream *rvd_mux_look_up(rvd_mux *m, uint32_t id)
{
    rvd_mux_stream *s = m->table[rvd_mux_slot(m, id)];
    while (s && s->id != id) s = s->hash_next;
    m->last = s;
    return s;
}

static inline rvd_mux_stream *rvd_mux_find(rvd_mux *m, uint32_t id)
{
    rvd_mux_stream *s = m->last;
    return s && s->id == id ? s : rvd_mux_look_up(m, id);
}

static int rvd_mux_is_mine(const rvd_mux *m, uint32_t id)
{
    return (id & 1) == (m->cfg.is_client ? 1u : 0u);
}

// Doubles the table. Without memory the chains get longer instead.
static void rvd_mux_table_grow(rvd_mux *m)
{
    size_t old_count = (size_t)1 << m->table_bits;
    rvd_mux_stream **old = m->table;
    rvd_mux_stream **fresh = rvd_base_alloc(m->heap, 2 * old_count * sizeof *fresh);
    if (!fresh) return;
    m->table = fresh;
    m->table_bits++;
    for (size_t i = 0; i < old_count; i++) {
        rvd_mux_stream *s = old[i];
        while (s) {
            rvd_mux_stream *next = s->hash_next;
            rvd_mux_stream **slot = &fresh[rvd_mux_slot(m, s->id)];
            s->hash_next = *slot;
            *slot = s;
            s = next;
        }
    }
    rvd_base_free(m->heap, old, old_count * sizeof(*old));
}

static rvd_mux_stream *rvd_mux_stream_new(rvd_mux *m, uint32_t id, enum rvd_mux_phase phase)
{
    rvd_mux_stream **slot, *s = rvd_base_alloc(m->heap, sizeof *s);
    if (!s) return NULL;
    if (m->stream_count >= (uint32_t)1 << m->table_bits) rvd_mux_table_grow(m);
    s->id = id;
    s->phase = (uint8_t)phase;
    rvd_base_link_init(&s->ctl);
    rvd_base_link_init(&s->tell);
    rvd_base_link_init(&s->turn);
    rvd_base_link_init(&s->timer);
    rvd_base_link_init(&s->held);
    s->send_credit = m->cfg.send_window;
    s->recv_credit = s->window = m->cfg.recv_window;
    s->turn_left = m->quantum;
    s->epoch_us = m->now_us;
    slot = &m->table[rvd_mux_slot(m, id)];
    s->hash_next = *slot;
    *slot = s;
    m->stream_count++;
    m->opened++;
    if (rvd_mux_is_mine(m, id))
        m->ours++;
    else
        m->theirs++;
    return s;
}

static void rvd_mux_preamble_free(rvd_mux *m, rvd_mux_stream *s)
{
    rvd_mux_chunk *c = s->preamble;
    if (c) {
        m->preambles -= c->size;
        rvd_base_free(m->heap, c, sizeof *c + c->size);
    }
    s->preamble = NULL;
}

// Drops the unread bytes. Their credit is not returned to the peer.
static void rvd_mux_rx_clear(rvd_mux *m, rvd_mux_stream *s)
{
    if (!rvd_base_link_is_alone(&s->held) && !s->is_moving) m->standing_bytes -= s->buffered;
    rvd_base_link_remove(&s->held);
    while (s->head) {
        rvd_mux_chunk *c = s->head;
        s->head = c->next;
        m->held_size -= c->size;
        rvd_mux_chunk_free(m, c);
    }
    s->tail = NULL;
    if (m->slice_stream == s) {
        m->slice_stream = NULL;
        m->news &= ~(unsigned)RVD_MUX_NEWS_SLICE;
    }
    m->buffered -= s->buffered;
    s->buffered = 0;
}

// The stream has used its WRITABLE, or never will.
static void rvd_mux_promise_keep(rvd_mux *m, rvd_mux_stream *s)
{
    if (s->promise && s->promise == m->promise_round) m->promised--;
    s->promise = 0;
}

static void rvd_mux_turn_leave(rvd_mux *m, rvd_mux_stream *s)
{
    rvd_base_link_remove(&s->turn);
    s->wait = RVD_MUX_WAIT_NONE;
    rvd_mux_promise_keep(m, s);
}

static void rvd_mux_stream_free(rvd_mux *m, rvd_mux_stream *s)
{
    rvd_mux_stream **slot = &m->table[rvd_mux_slot(m, s->id)];
    while (*slot != s) slot = &(*slot)->hash_next;
    *slot = s->hash_next;
    if (m->last == s) m->last = NULL;
    if (m->growing == s) m->growing = NULL;
    if (m->meta_stream == s) m->meta_stream = NULL;
    rvd_mux_rx_clear(m, s);
    if (s->phase == RVD_MUX_OFFERED) rvd_mux_preamble_free(m, s);
    rvd_base_link_remove(&s->ctl);
    rvd_base_link_remove(&s->tell);
    rvd_mux_turn_leave(m, s);
    rvd_base_link_remove(&s->timer);
    if (m->body_stream == s) {
        m->body_stream = NULL;
        if (m->body == RVD_MUX_BODY_STREAM) m->body = RVD_MUX_BODY_DRAIN;
    }
    m->allowance += s->recv_credit;
    m->late_frames += RVD_MUX_LATE_FRAMES;
    m->grown -= s->window - m->cfg.recv_window;
    m->stream_count--;
    if (rvd_mux_is_mine(m, s->id))
        m->ours--;
    else
        m->theirs--;
    rvd_base_free(m->heap, s, sizeof *s);
}

// ---- small changes of state ----

// Notes a control frame to send. A dead session takes none: after an error of a write the
// application may still end writing, and a FIN would make a stream with lost bytes look complete.
static void rvd_mux_ctl_add(rvd_mux *m, rvd_mux_stream *s, unsigned bit)
{
    if (m->dead) return;
    s->ctl_bits = (uint8_t)(s->ctl_bits | bit);
    if (rvd_base_link_is_alone(&s->ctl)) rvd_base_link_push(&m->ctl, &s->ctl);
}

static void rvd_mux_ctl_drop(rvd_mux_stream *s)
{
    s->ctl_bits = 0;
    rvd_base_link_remove(&s->ctl);
}

static void rvd_mux_tell(rvd_mux *m, rvd_mux_stream *s, unsigned bit)
{
    if (s->released) return;
    s->tell_bits = (uint8_t)(s->tell_bits | bit);
    if (rvd_base_link_is_alone(&s->tell)) rvd_base_link_push(&m->tell, &s->tell);
}

static void rvd_mux_untell(rvd_mux_stream *s)
{
    s->tell_bits = 0;
    rvd_base_link_remove(&s->tell);
}

static int64_t rvd_mux_timer_length(const rvd_mux *m, enum rvd_mux_timer kind)
{
    switch (kind) {
    case RVD_MUX_TIMER_PREAMBLE: return RVD_MUX_PREAMBLE_US;
    case RVD_MUX_TIMER_ACCEPT: return (int64_t)m->cfg.limits.accept_timeout_ms * 1000;
    case RVD_MUX_TIMER_LINGER: return RVD_MUX_LINGER_US;
    case RVD_MUX_TIMER_ORPHAN: return RVD_MUX_ORPHAN_US;
    case RVD_MUX_TIMER_TINY: return RVD_MUX_TINY_US;
    case RVD_MUX_TIMER_NONE:
    case RVD_MUX_TIMERS: break;
    }
    return 0;
}

static void rvd_mux_timer_set(rvd_mux *m, rvd_mux_stream *s, enum rvd_mux_timer kind)
{
    rvd_base_link_remove(&s->timer);
    s->timer_kind = (uint8_t)kind;
    s->timer_us = m->now_us + rvd_mux_timer_length(m, kind);
    if (kind != RVD_MUX_TIMER_NONE) rvd_base_link_push(&m->timers[kind], &s->timer);
}

static void rvd_mux_phase_become(rvd_mux *m, rvd_mux_stream *s, enum rvd_mux_phase to)
{
    switch ((enum rvd_mux_phase)s->phase) {
    case RVD_MUX_ASKED: REVDIAL_ASSERT(to == RVD_MUX_OPEN); break;
    case RVD_MUX_OFFERED: REVDIAL_ASSERT(to == RVD_MUX_SHOWN || to == RVD_MUX_OPEN); break;
    case RVD_MUX_SHOWN: REVDIAL_ASSERT(to == RVD_MUX_OPEN); break;
    case RVD_MUX_OPEN: REVDIAL_ASSERT(0); break;
    }
    if (s->phase == RVD_MUX_ASKED) m->unacked--;
    if (s->phase == RVD_MUX_OFFERED) rvd_mux_preamble_free(m, s);
    if (s->phase == RVD_MUX_OFFERED && to == RVD_MUX_SHOWN) s->released = 0;
    s->phase = (uint8_t)to;
}

static void rvd_mux_tx_become(rvd_mux_stream *s, enum rvd_mux_tx to)
{
    REVDIAL_ASSERT(to > s->tx);  // the order of the enum is the order of the arrows
    s->tx = (uint8_t)to;
}

static void rvd_mux_rx_become(rvd_mux_stream *s, enum rvd_mux_rx to)
{
    REVDIAL_ASSERT(s->rx == RVD_MUX_RX_OPEN || s->rx == RVD_MUX_RX_DROPPED);
    REVDIAL_ASSERT(to != RVD_MUX_RX_OPEN);
    s->rx = (uint8_t)to;
}

// Is the stream unused by protocol, application, lenders and output?
static int rvd_mux_is_settled(const rvd_mux_stream *s)
{
    int sent = s->tx == RVD_MUX_TX_ENDED || s->tx == RVD_MUX_TX_RESET;
    int received = s->rx == RVD_MUX_RX_ENDED || s->rx == RVD_MUX_RX_RESET;
    return s->released && sent && received && !s->lent &&
           !(s->ctl_bits & ~(unsigned)RVD_MUX_CTL_CREDIT);
}

// If it is, it leaves the table.
static void rvd_mux_settle(rvd_mux *m, rvd_mux_stream *s)
{
    if (rvd_mux_is_settled(s)) rvd_mux_stream_free(m, s);
}

static void rvd_mux_count_reset(rvd_mux *m, uint32_t code)
{
    const uint32_t own = REVDIAL_RESET_PLACES - 1, unknown = own - 1;
    m->reset_count++;
    m->reset_counts[code >= REVDIAL_RESET_APPLICATION ? own : rvd_base_min_u32(code, unknown)]++;
}

// We reset the stream: no more data is sent, and arriving frames are ignored.
static void rvd_mux_reset(rvd_mux *m, rvd_mux_stream *s, uint32_t code)
{
    int is_over = s->fin_sent && s->rx == RVD_MUX_RX_ENDED;
    if (s->tx == RVD_MUX_TX_RESET) {  // by the peer; its unread bytes are dropped
        s->reset_local = 1;
        rvd_mux_rx_clear(m, s);
        return;
    }
    s->reset_code = code;
    s->reset_local = 1;
    rvd_mux_tx_become(s, RVD_MUX_TX_RESET);
    if (s->rx != RVD_MUX_RX_ENDED && s->rx != RVD_MUX_RX_RESET)
        rvd_mux_rx_become(s, RVD_MUX_RX_RESET);
    rvd_mux_rx_clear(m, s);
    if (s->phase != RVD_MUX_OPEN) rvd_mux_phase_become(m, s, RVD_MUX_OPEN);
    // A refusal takes the place of the ACK. A stream that was accepted or read cannot be refused:
    // its ACK is still sent, so that the peer does not retry it elsewhere as if unused.
    s->ctl_bits &= RVD_MUX_CTL_ACK;
    if (!s->ctl_bits) rvd_base_link_remove(&s->ctl);
    rvd_mux_turn_leave(m, s);
    rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    rvd_mux_count_reset(m, code);
    if (is_over) return;  // the peer may reuse the id: a reset would hit its next stream
    rvd_mux_ctl_add(m, s, RVD_MUX_CTL_RST);
}

// A reset that the application did not ask for: it gets EV_RESET.
static void rvd_mux_reset_tell(rvd_mux *m, rvd_mux_stream *s, uint32_t code)
{
    rvd_mux_reset(m, s, code);
    rvd_mux_tell(m, s, RVD_MUX_TELL_RESET);
    rvd_mux_settle(m, s);
}

RVD_BASE_SLOW static void rvd_mux_credit_check(rvd_mux *m, rvd_mux_stream *s);

static void rvd_mux_ack(rvd_mux *m, rvd_mux_stream *s)
{
    uint32_t extra = m->cfg.limits.stream_window - m->cfg.recv_window;
    if (s->phase != RVD_MUX_SHOWN) return;
    rvd_mux_phase_become(m, s, RVD_MUX_OPEN);
    s->window += extra;
    m->grown += extra;
    rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    rvd_mux_ctl_add(m, s, RVD_MUX_CTL_ACK);
    rvd_mux_credit_check(m, s);
}

// ---- budgets ----

static void rvd_mux_protocol_error(rvd_mux *m, const char *text)
{
    if (m->dead) return;
    m->go_code = RVD_WIRE_GO_PROTOCOL;
    m->go_wanted = 1;
    rvd_mux_die(m, REVDIAL_EPROTO, text);
}

static void rvd_mux_glitch(rvd_mux *m)
{
    if (!rvd_base_bucket_take(&m->glitches, m->now_us))
        rvd_mux_protocol_error(m, "too many meaningless frames");
}

// Resets a stream of the peer because the peer misbehaves on it.
static void rvd_mux_provoked(rvd_mux *m, rvd_mux_stream *s, uint32_t code)
{
    if (!rvd_base_bucket_take(&m->provoked, m->now_us)) {
        rvd_mux_protocol_error(m, "too many streams had to be reset");
        return;
    }
    rvd_mux_reset_tell(m, s, code);
}

// A stream gives up its unread bytes. A stream that the peer has reset already kept them for its
// reader, which now gets an error instead: never EOF.
static void rvd_mux_sacrifice(rvd_mux *m, rvd_mux_stream *s)
{
    if (s->tx != RVD_MUX_TX_RESET) {
        rvd_mux_reset_tell(m, s, REVDIAL_RESET_CALM);
        return;
    }
    s->reset_local = 1;
    rvd_mux_rx_clear(m, s);
}

// A time in 32 bits, which keeps a stream small. Only differences are used. It starts again after
// 49 days: a stream that has waited longer passes for one that has just begun to wait.
static uint32_t rvd_mux_now_ms(const rvd_mux *m)
{
    return (uint32_t)(m->now_us / 1000);
}

// The stream that has waited longest for its reader. If no reader has stopped for STUCK_US, it is
// one of the kind (standing or moving) that holds more bytes, so that a flood of unread uploads
// does not push out slowly read ones, nor many of these a new stream.
static rvd_mux_stream *rvd_mux_stuck_longest(rvd_mux *m)
{
    rvd_base_link *standing = m->held[0].next, *moving = m->held[1].next;
    const uint32_t now_ms = rvd_mux_now_ms(m);
    rvd_mux_stream *a, *b, *older;
    if (moving == &m->held[1]) return RVD_BASE_OWNER(standing, rvd_mux_stream, held);
    if (standing == &m->held[0]) return RVD_BASE_OWNER(moving, rvd_mux_stream, held);
    a = RVD_BASE_OWNER(standing, rvd_mux_stream, held);
    b = RVD_BASE_OWNER(moving, rvd_mux_stream, held);
    older = now_ms - a->stuck_ms >= now_ms - b->stuck_ms ? a : b;
    if (now_ms - older->stuck_ms >= RVD_MUX_STUCK_MS) return older;
    return m->standing_bytes >= m->buffered / 2 ? a : b;
}

// Above the budget for unread bytes the streams that are stuck longest are reset, one by one. The
// others are not affected, and new streams are accepted.
static void rvd_mux_calm(rvd_mux *m)
{
    const uint64_t most = m->cfg.limits.session_window;
    while (m->buffered > most || m->held_size > most * RVD_MUX_HELD_FACTOR)
        rvd_mux_sacrifice(m, rvd_mux_stuck_longest(m));
}

// ---- received bytes ----

static uint32_t rvd_mux_chunk_size(const rvd_mux_stream *s, uint32_t len)
{
    uint32_t size = RVD_MUX_CHUNK_MIN;
    if (s->tail) size = s->tail->size;  // a stream that fills its chunks gets larger ones
    if (len < size && s->tail) len = size + 1;
    while (size < len && size < RVD_MUX_CHUNK_MAX) size *= 2;
    return size;
}

// From now on its bytes wait for a reader.
static void rvd_mux_hold(rvd_mux *m, rvd_mux_stream *s)
{
    s->stuck_ms = rvd_mux_now_ms(m);
    if (!s->held_ms) s->held_ms = s->stuck_ms;
    s->moved_bytes = 0;
    rvd_base_link_remove(&s->held);
    rvd_base_link_push(&m->held[s->is_moving], &s->held);
}

// Accounts for n bytes that were read from its chunks.
static void rvd_mux_moved(rvd_mux *m, rvd_mux_stream *s, uint32_t n)
{
    uint32_t left = s->buffered - n;
    if (!s->is_moving) m->standing_bytes -= n;
    s->moved_bytes += n;
    if (s->head && s->moved_bytes < RVD_MUX_MOVED_BYTES) return;
    if (!s->is_moving && rvd_mux_now_ms(m) - s->held_ms >= RVD_MUX_MOVING_MS) {
        s->is_moving = 1;
        m->standing_bytes -= left;
    }
    if (s->head)
        rvd_mux_hold(m, s);
    else
        rvd_base_link_remove(&s->held);
}

// Appends to the stream's chunks; `buffered` includes the bytes already. Returns 0 without memory.
static int rvd_mux_store(rvd_mux *m, rvd_mux_stream *s, const uint8_t *p, uint32_t len)
{
    if (!s->head) rvd_mux_hold(m, s);
    if (!s->is_moving) m->standing_bytes += len;
    while (len) {
        rvd_mux_chunk *c = s->tail;
        uint32_t n;
        if (!c || c->end == c->size) {
            uint32_t size = rvd_mux_chunk_size(s, len);
            c = rvd_mux_chunk_new(m, size);
            if (!c) return 0;
            m->held_size += size;
            if (s->tail)
                s->tail->next = c;
            else
                s->head = c;
            s->tail = c;
        }
        n = rvd_base_min_u32(len, c->size - c->end);
        memcpy(c->data + c->end, p, n);
        c->end += n;
        p += n;
        len -= n;
    }
    return 1;
}

// The caller takes its buffer back: the rest of the slice is copied to the stream's chunks.
static void rvd_mux_slice_keep(rvd_mux *m)
{
    rvd_mux_stream *s = m->slice_stream;
    m->slice_stream = NULL;
    if (!m->slice_len) return;
    if (!rvd_mux_store(m, s, m->slice, m->slice_len)) {
        rvd_mux_reset_tell(m, s, REVDIAL_RESET_INTERNAL);
        return;
    }
    rvd_mux_calm(m);
}

// Keeps n bytes of a preamble. Returns 0 if the stream was reset instead.
static int rvd_mux_preamble_keep(rvd_mux *m, rvd_mux_stream *s, const uint8_t *p, uint32_t n)
{
    rvd_mux_chunk *c = s->preamble;
    const uint32_t had = c ? c->size : 0, len = c ? c->end : 0;
    uint32_t size = c ? had : RVD_MUX_PREAMBLE_MIN;
    while (size < len + n) size *= 2;
    if (size > had) {
        c = rvd_base_resize(m->heap, c, c ? sizeof *c + had : 0, sizeof *c + size);
        if (!c) {
            rvd_mux_reset_tell(m, s, REVDIAL_RESET_INTERNAL);
            return 0;
        }
        c->size = size;
        m->preambles += size - had;
        s->preamble = c;
    }
    while (m->preambles > RVD_MUX_PREAMBLES) {  // the oldest is first
        rvd_mux_stream *old =
            RVD_BASE_OWNER(m->timers[RVD_MUX_TIMER_PREAMBLE].next, rvd_mux_stream, timer);
        int is_own = old == s;
        rvd_mux_reset_tell(m, old, REVDIAL_RESET_CALM);
        if (is_own) return 0;
    }
    memcpy(c->data + len, p, n);
    c->end = len + n;
    return 1;
}

// The preamble is complete. Its fields stay in m->meta for EV_OPEN; no more input is taken before
// that event was drained.
static void rvd_mux_preamble_read(rvd_mux *m, rvd_mux_stream *s)
{
    if (!m->meta) m->meta = rvd_base_alloc(m->heap, sizeof *m->meta);
    if (!m->meta) {
        rvd_mux_reset_tell(m, s, REVDIAL_RESET_INTERNAL);
        return;
    }
    if (!rvd_wire_preamble_get(s->preamble->data, s->preamble->end, m->meta)) {
        rvd_mux_provoked(m, s, REVDIAL_RESET_PROTOCOL);
        return;
    }
    m->meta_stream = s;
    rvd_mux_phase_become(m, s, RVD_MUX_SHOWN);
    rvd_mux_timer_set(m, s, RVD_MUX_TIMER_ACCEPT);
    rvd_mux_tell(m, s, RVD_MUX_TELL_OPEN);
}

// Collects the preamble; what follows it in p is payload. Returns bytes taken.
static uint32_t rvd_mux_preamble_input(rvd_mux *m, rvd_mux_stream *s, const uint8_t *p,
                                       uint32_t len)
{
    uint32_t used = 0;
    while (used < len) {
        const rvd_mux_chunk *c = s->preamble;
        uint32_t whole = RVD_WIRE_PREAMBLE_HEAD, n;  // as far as we know
        ptrdiff_t total;
        if (c && c->end >= whole) whole = (uint32_t)rvd_wire_preamble_length(c->data, c->end);
        n = rvd_base_min_u32(len - used, whole - (c ? c->end : 0));
        if (!rvd_mux_preamble_keep(m, s, p + used, n)) return used;
        used += n;
        c = s->preamble;
        total = rvd_wire_preamble_length(c->data, c->end);
        if (total < 0) {
            rvd_mux_provoked(m, s, REVDIAL_RESET_PROTOCOL);
            return used;
        }
        if (total == (ptrdiff_t)c->end) {
            rvd_mux_preamble_read(m, s);
            return used;
        }
    }
    return used;
}

// Bytes that will not be read. They use up the peer's credit; it gets no more, and is reset when it
// sends much more.
static void rvd_mux_drop(rvd_mux *m, rvd_mux_stream *s, uint32_t len)
{
    s->dropped += rvd_base_min_u32(len, UINT32_MAX - s->dropped);
    if (s->rx != RVD_MUX_RX_DROPPED || s->tx == RVD_MUX_TX_RESET || m->dead) return;
    // A stock peer loses its unread bytes when it is reset, so it gets time to finish.
    if (s->dropped >= RVD_MUX_LINGER_BYTES ||
        (s->recv_credit == 0 && m->cfg.features & REVDIAL_FEATURE_RSTCODE))
        rvd_mux_reset_tell(m, s, REVDIAL_RESET_CANCEL);
}

// Takes a piece of a frame's body for a stream. Returns 1 if an event must be drained first.
static int rvd_mux_payload(rvd_mux *m, rvd_mux_stream *s, const uint8_t *p, uint32_t len)
{
    s->recv_credit -= len;
    s->received += len;
    if (s->rx != RVD_MUX_RX_OPEN) {
        rvd_mux_drop(m, s, len);
        return 0;
    }
    m->rx_bytes += len;
    if (s->phase == RVD_MUX_OFFERED) {
        uint32_t used = rvd_mux_preamble_input(m, s, p, len);
        if (m->body_stream != s) return 1;  // it was reset and is gone
        if (s->rx != RVD_MUX_RX_OPEN) return 1;
        s->epoch_bytes += used;
        m->rx_bytes -= used;  // bytes of the preamble, not the application's
        rvd_mux_credit_check(m, s);
        p += used;
        len -= used;
        if (!len) return s->phase == RVD_MUX_SHOWN;
    }
    if (!s->buffered && !m->slice_stream) {
        m->slice_stream = s;
        m->slice = p;
        m->slice_len = s->buffered = len;
        m->buffered += len;
        rvd_mux_tell(m, s, RVD_MUX_TELL_READABLE);
        return 1;
    }
    s->buffered += len;
    m->buffered += len;
    if (!rvd_mux_store(m, s, p, len)) {
        rvd_mux_reset_tell(m, s, REVDIAL_RESET_INTERNAL);
        return 1;
    }
    rvd_mux_calm(m);
    return 0;
}

// Number of upcoming wire bytes that belong to s, with nothing unread before them.
static size_t rvd_mux_expected(const rvd_mux *m, const rvd_mux_stream *s)
{
    if (m->body != RVD_MUX_BODY_STREAM || m->body_stream != s || m->dead) return 0;
    if (s->rx != RVD_MUX_RX_OPEN || s->phase == RVD_MUX_OFFERED || s->buffered) return 0;
    return m->body_left;
}

static inline size_t rvd_mux_peek(rvd_mux *m, rvd_mux_stream *s, const uint8_t **data)
{
    if (s->head) {
        *data = s->head->data + s->head->start;
        return s->head->end - s->head->start;
    }
    if (m->slice_stream == s) {
        *data = m->slice;
        return m->slice_len;
    }
    return 0;
}

// ---- credit ----

// Windows grow by measured need: if half a window is consumed within four round trips, the window
// is what limits the peer. They grow only by what the session has to spare.
static void rvd_mux_window_adapt(rvd_mux *m, rvd_mux_stream *s)
{
    const revdial_limits *l = &m->cfg.limits;
    int64_t elapsed = m->now_us - s->epoch_us;
    int64_t rtt = m->rtt_us > RVD_MUX_RTT_LEAST ? m->rtt_us : RVD_MUX_RTT_LEAST;
    uint64_t fourfold = (uint64_t)rtt * 4 * s->epoch_bytes / s->window;
    int pressed = m->buffered > l->session_window / 2;
    // Large windows are granted in small steps: an epoch lasts until half a window is consumed.
    if (s->epoch_bytes < s->window / 2 && !pressed && elapsed <= RVD_MUX_IDLE_US) return;
    if (pressed || elapsed > RVD_MUX_IDLE_US) {
        uint32_t smaller = s->window / 2 > m->cfg.recv_window ? s->window / 2 : m->cfg.recv_window;
        m->grown -= s->window - smaller;
        s->window = smaller;
    } else if ((uint64_t)elapsed < fourfold && s->window <= l->stream_window_max / 2 &&
               m->grown + s->window <= l->session_window / 2) {
        m->grown += s->window;
        s->window *= 2;
    }
    s->epoch_us = m->now_us;
    s->epoch_bytes = 0;
}

// Credit that could be granted now.
static uint32_t rvd_mux_credit_room(const rvd_mux_stream *s)
{
    uint32_t out = s->recv_credit + s->buffered;
    return s->window > out ? s->window - out : 0;
}

// Is enough credit to be returned for a window update? Where bytes come slowly, smaller amounts are
// returned now and then: they may be the only sign of life that gets through.
static inline int rvd_mux_credit_is_due(const rvd_mux *m, const rvd_mux_stream *s)
{
    uint32_t room = rvd_mux_credit_room(s);
    uint32_t step = rvd_base_min_u32(s->window / 2, RVD_MUX_GRANT_MAX);
    return room >= step || (s->recv_credit < RVD_MUX_SPARSE_BYTES && room >= 16384) ||
           (m->now_us - s->epoch_us > RVD_MUX_IDLE_US && room >= RVD_MUX_SLOW_BYTES);
}

RVD_BASE_SLOW static void rvd_mux_credit_check(rvd_mux *m, rvd_mux_stream *s)
{
    if (!rvd_mux_credit_is_due(m, s)) return;
    if (s->rx != RVD_MUX_RX_OPEN || s->tx == RVD_MUX_TX_RESET) return;
    if (s->ctl_bits & RVD_MUX_CTL_CREDIT) return;
    if (s->phase == RVD_MUX_OFFERED || s->phase == RVD_MUX_SHOWN) return;  // after the ACK
    rvd_mux_ctl_add(m, s, RVD_MUX_CTL_CREDIT);
}

RVD_BASE_SLOW static void rvd_mux_chunks_consume(rvd_mux *m, rvd_mux_stream *s, uint32_t n)
{
    uint32_t left = n;
    while (left && s->head) {
        rvd_mux_chunk *c = s->head;
        uint32_t k = rvd_base_min_u32(left, c->end - c->start);
        c->start += k;
        left -= k;
        if (c->start < c->end) break;
        s->head = c->next;
        if (!s->head) s->tail = NULL;
        m->held_size -= c->size;
        rvd_mux_chunk_free(m, c);
    }
    REVDIAL_ASSERT(left == 0);
    rvd_mux_moved(m, s, n);
}

static RVD_BASE_FAST void rvd_mux_consume(rvd_mux *m, rvd_mux_stream *s, uint32_t n)
{
    REVDIAL_ASSERT(n <= s->buffered);
    if (s->head) {
        rvd_mux_chunks_consume(m, s, n);
    } else {
        REVDIAL_ASSERT(m->slice_stream == s && n <= m->slice_len);
        m->slice += n;
        m->slice_len -= n;
    }
    s->buffered -= n;
    m->buffered -= n;
    s->epoch_bytes += n;
    if (rvd_mux_credit_is_due(m, s)) rvd_mux_credit_check(m, s);
}

RVD_BASE_SLOW static size_t rvd_mux_chunks_read(rvd_mux *m, rvd_mux_stream *s, uint8_t *to,
                                                size_t len)
{
    size_t got = 0;
    while (got < len && s->buffered) {
        const uint8_t *at = NULL;
        size_t n = rvd_base_min(rvd_mux_peek(m, s, &at), len - got);
        memcpy(to + got, at, n);
        rvd_mux_consume(m, s, (uint32_t)n);
        got += n;
    }
    return got;
}

static RVD_BASE_FAST size_t rvd_mux_read(rvd_mux *m, rvd_mux_stream *s, uint8_t *to, size_t len)
{
    size_t n = rvd_base_min(len, s->buffered);
    if (s->head) return rvd_mux_chunks_read(m, s, to, len);
    if (n == 0) return 0;
    if (to != m->slice) memcpy(to, m->slice, n);  // see revdial_engine_expected()
    rvd_mux_consume(m, s, (uint32_t)n);
    return n;
}

// ---- output of data ----

RVD_BASE_SLOW static uint8_t *rvd_mux_out_chunk(rvd_mux *m)
{
    rvd_mux_chunk *c = rvd_mux_chunk_new(m, RVD_MUX_OUT_CHUNK);
    m->growing = NULL;
    if (!c) return NULL;
    if (m->out_tail)
        m->out_tail->next = c;
    else
        m->out_head = c;
    m->out_tail = c;
    return c->data;
}

// Room for `len` contiguous bytes at the end of the output. NULL without memory.
static inline uint8_t *rvd_mux_out_room(rvd_mux *m, uint32_t len)
{
    rvd_mux_chunk *c = m->out_tail;
    return c && c->size - c->end >= len ? c->data + c->end : rvd_mux_out_chunk(m);
}

static uint64_t rvd_mux_out_len(const rvd_mux *m)
{
    return m->out_added - m->out_sent;
}

static int rvd_mux_is_blocked(const rvd_mux *m)
{
    return rvd_mux_out_len(m) > 0 || m->control_len > m->control_sent;
}

static void rvd_mux_out_began(rvd_mux *m)
{
    if (!rvd_mux_is_blocked(m)) m->progress_us = m->now_us;
}

// A control frame behind all data that is queued now.
static int rvd_mux_out_put(rvd_mux *m, uint32_t type, uint32_t flags, uint32_t id, uint32_t length)
{
    uint8_t *at = rvd_mux_out_room(m, RVD_WIRE_HEADER);
    if (!at) return 0;
    rvd_mux_out_began(m);
    rvd_wire_frame_put(at, type, flags, id, length);
    m->out_tail->end += RVD_WIRE_HEADER;
    m->out_added += RVD_WIRE_HEADER;
    m->tx_frames++;
    return 1;
}

// ---- queue control ----

static inline int rvd_mux_is_paced(const rvd_mux *m)
{
    return (m->cfg.features & REVDIAL_FEATURE_PINGS) != 0;
}

// Bytes that may be put on their way to the peer.
static inline uint32_t rvd_mux_pace_room(const rvd_mux *m)
{
    return rvd_mux_is_paced(m) ? rvd_pace_room(&m->pace, (uint32_t)m->out_added) : UINT32_MAX;
}

static void rvd_mux_pace_ping(rvd_mux *m)
{
    uint32_t value = (m->pace.value + 1) | RVD_MUX_PACE_VALUE;
    if (!rvd_mux_out_put(m, RVD_WIRE_PING, RVD_WIRE_SYN, 0, value)) return;
    rvd_pace_ping_add(&m->pace, (uint32_t)m->out_added, m->now_us);
}

// A frame comes next: is there to be a ping in front of it?
static inline void rvd_mux_pace_lead(rvd_mux *m)
{
    if (rvd_mux_is_paced(m) && rvd_pace_is_due(&m->pace, (uint32_t)m->out_added, m->now_us))
        rvd_mux_pace_ping(m);
}

// How much a stream writes in its turn: on a fast link the limit of the output is large, and large
// turns save calls without delaying other streams for long.
static void rvd_mux_turns_set(rvd_mux *m)
{
    uint32_t most = m->cfg.limits.frame_bytes_max;
    uint64_t turn = m->out_max / RVD_MUX_QUANTUM_PART;
    m->quantum = turn < most ? (uint32_t)turn : most;
    if (m->out_max >= RVD_MUX_QUANTUM_MIN && m->quantum < RVD_MUX_QUANTUM_MIN)
        m->quantum = rvd_base_min_u32(RVD_MUX_QUANTUM_MIN, most);
    if (m->quantum < RVD_MUX_SPARSE_BYTES)
        m->quantum = rvd_base_min_u32(RVD_MUX_SPARSE_BYTES, most);
    m->frame_max = m->out_max < RVD_MUX_QUANTUM_MIN ? (uint32_t)m->out_max : RVD_WIRE_FRAME_MAX;
    if (!rvd_mux_is_paced(m)) return;
    m->quantum = rvd_base_min_u32(m->quantum, rvd_pace_frame(&m->pace));
    m->frame_max = rvd_base_min_u32(m->frame_max, rvd_pace_frame(&m->pace));
}

static int rvd_mux_pace_pong(rvd_mux *m, uint32_t value)
{
    if (!rvd_pace_pong(&m->pace, value & ~RVD_MUX_PACE_VALUE, (uint32_t)m->out_added, m->now_us))
        return 0;
    m->acked_us = m->now_us;
    if (rvd_pace_is_blind(&m->pace, (uint32_t)m->out_added)) rvd_mux_pace_ping(m);
    rvd_mux_turns_set(m);
    return 1;
}

// ---- output limit and turns ----

// Sets how much output may wait.
static void rvd_mux_out_max_set(rvd_mux *m, uint64_t bytes)
{
    m->out_max = bytes < RVD_MUX_OUT_LEAST ? RVD_MUX_OUT_LEAST : bytes;
    rvd_mux_turns_set(m);
}

// Does a stream wait for its turn?
static inline int rvd_mux_has_waiters(const rvd_mux *m)
{
    return !rvd_base_link_is_alone(&m->turns) || !rvd_base_link_is_alone(&m->fresh);
}

// A stream of which nothing is on its way has just begun to send, or sends little: it goes before
// those that always send.
static int rvd_mux_is_new(const rvd_mux *m, const rvd_mux_stream *s)
{
    return rvd_mux_is_paced(m) && (int32_t)((uint32_t)s->out_mark - m->pace.taken) <= 0;
}

static void rvd_mux_wait_turn(rvd_mux *m, rvd_mux_stream *s)
{
    s->wait = RVD_MUX_WAIT_TURN;
    if (!rvd_base_link_is_alone(&s->turn)) return;
    rvd_base_link_push(rvd_mux_is_new(m, s) ? &m->fresh : &m->turns, &s->turn);
}

static void rvd_mux_wait_credit(rvd_mux *m, rvd_mux_stream *s)
{
    if (s->wait == RVD_MUX_WAIT_CREDIT) return;
    s->wait = RVD_MUX_WAIT_CREDIT;
    if (s->timer_kind == RVD_MUX_TIMER_NONE) s->timer_us = m->now_us;
    m->credit_waits++;
}

// Silly window avoidance of the sender: a very small credit is not used at once.
static int rvd_mux_is_tiny(rvd_mux *m, rvd_mux_stream *s, size_t want)
{
    enum rvd_mux_timer timer = RVD_MUX_TIMER_NONE;
    if (s->send_credit >= RVD_MUX_SPARSE_BYTES || s->send_credit >= want) return 0;
    if (s->send_credit && s->tiny_ok) return 0;
    if (s->send_credit)
        timer = RVD_MUX_TIMER_TINY;
    else if (s->rx == RVD_MUX_RX_ENDED)
        timer = RVD_MUX_TIMER_ORPHAN;
    if (timer != RVD_MUX_TIMER_NONE && s->timer_kind == RVD_MUX_TIMER_NONE)
        rvd_mux_timer_set(m, s, timer);
    return 1;
}

// Deficit round robin: while others wait, a stream writes one quantum in its turn. A stream that
// has hardly used its quantum (a keystroke) does not wait behind bulk streams, up to a bound.
RVD_BASE_SLOW static uint32_t rvd_mux_allowed_in_turn(rvd_mux *m, rvd_mux_stream *s, size_t want)
{
    uint64_t queued = rvd_mux_out_len(m);
    uint32_t n = (uint32_t)rvd_base_min(want, m->frame_max);
    uint32_t quantum = m->quantum, room = rvd_mux_pace_room(m);
    int others = rvd_mux_has_waiters(m), full = queued >= m->out_max || !room;
    if (want == 0 || s->wait == RVD_MUX_WAIT_TURN) return 0;
    if (rvd_mux_is_tiny(m, s, want)) {
        rvd_mux_wait_credit(m, s);
        return 0;
    }
    if (!others && !full) s->turn_left = quantum;
    if (s->turn_left > quantum) s->turn_left = quantum;  // it was set when turns were longer
    if (room) n = rvd_base_min_u32(n, room);
    if (others || full) n = rvd_base_min_u32(n, s->turn_left);
    if (full && want > RVD_MUX_SPARSE_BYTES && s->turn_left + RVD_MUX_SPARSE_BYTES <= quantum)
        n = 0;
    if (full) n = rvd_base_min_u32(n, RVD_MUX_SPARSE_BYTES);
    if (queued >= m->out_max + RVD_MUX_SPARSE_ROOM) n = 0;
    if (n == 0) {
        if (!room) rvd_pace_wait(&m->pace, m->now_us);
        rvd_mux_wait_turn(m, s);
        return 0;
    }
    s->wait = RVD_MUX_WAIT_NONE;
    return rvd_base_min_u32(n, s->send_credit);
}

// How much of `want` the stream may write now. 0: it waits for a WRITABLE.
static inline uint32_t rvd_mux_allowed(rvd_mux *m, rvd_mux_stream *s, size_t want)
{
    uint32_t n = (uint32_t)rvd_base_min(want, m->frame_max);
    if (rvd_mux_has_waiters(m) || rvd_mux_out_len(m) >= m->out_max || n == 0 ||
        s->send_credit < RVD_MUX_SPARSE_BYTES || rvd_mux_pace_room(m) < n)
        return rvd_mux_allowed_in_turn(m, s, want);
    s->turn_left = m->quantum;
    s->wait = RVD_MUX_WAIT_NONE;
    return rvd_base_min_u32(n, s->send_credit);
}

// Accounts for n bytes of the stream that were added to the output.
static inline void rvd_mux_account(rvd_mux *m, rvd_mux_stream *s, uint32_t n)
{
    s->out_mark = m->out_added;
    s->send_credit -= n;
    s->sent += n;
    s->turn_left -= rvd_base_min_u32(n, s->turn_left);
    s->tiny_ok = 0;
    m->tx_bytes += n;
}

// Ends the output with a data frame of n bytes. `here` of them, all or none, are already there
// behind the gap for the header.
static inline void rvd_mux_frame_add(rvd_mux *m, rvd_mux_stream *s, uint32_t n, uint32_t here)
{
    rvd_mux_chunk *c = m->out_tail;
    REVDIAL_ASSERT(n && n <= s->send_credit && RVD_WIRE_HEADER + here <= c->size - c->end);
    rvd_mux_out_began(m);
    rvd_wire_frame_put(c->data + c->end, RVD_WIRE_DATA, 0, s->id, n);
    m->growing = here ? s : NULL;
    m->growing_len = n;
    c->end += RVD_WIRE_HEADER + here;
    m->out_added += RVD_WIRE_HEADER + n;
    m->tx_frames++;
    m->tx_data_frames++;
    rvd_mux_account(m, s, n);
}

static void rvd_mux_commit(rvd_mux *m, rvd_mux_stream *s, uint32_t n)
{
    rvd_mux_frame_add(m, s, n, n);
}

// Adds a small write to the stream's last frame, if that is the last one and output() has not shown
// it. Returns 0 if it cannot.
static inline int rvd_mux_frame_grow(rvd_mux *m, rvd_mux_stream *s, const uint8_t *bytes,
                                     uint32_t n)
{
    rvd_mux_chunk *c = m->out_tail;
    if (m->growing != s || s->out_mark != m->out_added || c->size - c->end < n) return 0;
    if (n + m->growing_len > m->quantum) return 0;
    memcpy(c->data + c->end, bytes, n);
    c->end += n;
    m->growing_len += n;
    rvd_base_put_u32(c->data + c->end - m->growing_len - 4, m->growing_len);
    m->out_added += n;
    rvd_mux_account(m, s, n);
    return 1;
}

// ---- loans ----

// Adds a data frame whose n bytes stay in the lender's memory. Returns 0 without memory.
static int rvd_mux_loan_add(rvd_mux *m, rvd_mux_stream *s, const uint8_t *bytes, uint32_t n)
{
    rvd_mux_loan *loan = rvd_base_alloc(m->heap, sizeof *loan);
    if (!loan) return 0;
    rvd_mux_pace_lead(m);
    if (!rvd_mux_out_room(m, RVD_WIRE_HEADER)) {
        rvd_base_free(m->heap, loan, sizeof *loan);
        return 0;
    }
    rvd_mux_frame_add(m, s, n, 0);
    loan->stream = s;
    loan->bytes = bytes;
    loan->at = m->out_added - n;
    loan->len = loan->size = n;
    if (m->loans)
        m->loans_last->next = loan;
    else
        m->loans = loan;
    m->loans_last = loan;
    s->lent += n;
    return 1;
}

static void rvd_mux_loan_free(rvd_mux *m, rvd_mux_loan *loan)
{
    rvd_base_free(m->heap, loan->copy, loan->size);
    rvd_base_free(m->heap, loan, sizeof *loan);
}

// n bytes of the stream's lender are no longer needed.
static void rvd_mux_loan_repay(rvd_mux *m, rvd_mux_stream *s, uint32_t n)
{
    s->lent -= n;
    if (s->lent) return;
    if (!m->dead && s->tx != RVD_MUX_TX_RESET) rvd_mux_tell(m, s, RVD_MUX_TELL_SENT);
    rvd_mux_settle(m, s);
}

// n bytes of the first loan are on the wire.
static void rvd_mux_loan_sent(rvd_mux *m, uint32_t n)
{
    rvd_mux_loan *loan = m->loans;
    rvd_mux_stream *s = loan->stream;
    loan->bytes += n;
    loan->at += n;
    loan->len -= n;
    if (!loan->len) {
        m->loans = loan->next;
        rvd_mux_loan_free(m, loan);
    }
    if (s) rvd_mux_loan_repay(m, s, n);
}

// Copies the unsent bytes of the stream's loans, except those that output() has shown. What was
// copied before memory ran out is no longer lent. Returns bytes still lent, or REVDIAL_ENOMEM.
static ptrdiff_t rvd_mux_recall(rvd_mux *m, rvd_mux_stream *s)
{
    uint32_t lent = s->lent;
    for (rvd_mux_loan *loan = m->loans; loan && lent; loan = loan->next) {
        uint8_t *copy;
        if (loan->stream != s || loan->at < m->out_shown) continue;
        copy = rvd_base_resize(m->heap, NULL, 0, loan->size);
        if (!copy) return REVDIAL_ENOMEM;
        memcpy(copy, loan->bytes, loan->len);
        loan->bytes = loan->copy = copy;
        loan->stream = NULL;
        lent -= loan->len;
        s->lent -= loan->len;
    }
    return (ptrdiff_t)lent;
}

// ---- output of control ----

static int rvd_mux_control_put(rvd_mux *m, uint32_t type, uint32_t flags, uint32_t id,
                               uint32_t length)
{
    if (m->control_len == m->control_sent) m->control_len = m->control_sent = 0;
    if (RVD_MUX_CONTROL - m->control_len < RVD_WIRE_HEADER) return 0;
    rvd_mux_out_began(m);
    rvd_wire_frame_put(m->control + m->control_len, type, flags, id, length);
    m->control_len += RVD_WIRE_HEADER;
    m->tx_frames++;
    return 1;
}

// FIN and RST come after the stream's own data: behind it in the output if some is still there.
static int rvd_mux_last_put(rvd_mux *m, rvd_mux_stream *s, uint32_t flag, uint32_t length)
{
    if (s->out_mark <= m->out_sent)
        return rvd_mux_control_put(m, RVD_WIRE_WINDOW, flag, s->id, length);
    if (!rvd_mux_out_put(m, RVD_WIRE_WINDOW, flag, s->id, length)) return 0;
    s->out_mark = m->out_added;
    return 1;
}

static int rvd_mux_credit_put(rvd_mux *m, rvd_mux_stream *s, uint32_t flag)
{
    uint32_t delta = 0;
    if (s->rx == RVD_MUX_RX_OPEN) {
        if (!flag) rvd_mux_window_adapt(m, s);  // to all that was consumed until now
        delta = rvd_mux_credit_room(s);
    }
    if (flag == RVD_WIRE_ACK) {
        uint32_t extra = s->window - m->cfg.recv_window;
        delta = rvd_base_min_u32(delta, extra);
    }
    if (!flag && !delta) return 1;
    if (!rvd_mux_control_put(m, RVD_WIRE_WINDOW, flag, s->id, delta)) return 0;
    s->recv_credit += delta;
    return 1;
}

// Sends what one stream owes, in order. Returns 0 if it did not fit.
static int rvd_mux_stream_control(rvd_mux *m, rvd_mux_stream *s)
{
    unsigned bits = s->ctl_bits;
    if (bits & RVD_MUX_CTL_ACK) {
        if (!rvd_mux_credit_put(m, s, RVD_WIRE_ACK)) return 0;
        bits &= ~(unsigned)RVD_MUX_CTL_ACK;
        s->ctl_bits = (uint8_t)bits;
    }
    if (bits & RVD_MUX_CTL_CREDIT) {
        if (!rvd_mux_credit_put(m, s, 0)) return 0;
        bits &= ~(unsigned)RVD_MUX_CTL_CREDIT;
        s->ctl_bits = (uint8_t)bits;
    }
    if (bits & RVD_MUX_CTL_FIN) {
        if (!rvd_mux_last_put(m, s, RVD_WIRE_FIN, 0)) return 0;
        rvd_mux_tx_become(s, RVD_MUX_TX_ENDED);
        s->fin_sent = 1;
    }
    if (bits & RVD_MUX_CTL_RST) {
        if (!rvd_mux_last_put(m, s, RVD_WIRE_RST, s->reset_code)) return 0;
    }
    s->ctl_bits = 0;
    return 1;
}

// Goes behind all that is queued, because no SYN may follow a GoAway.
static void rvd_mux_goaway_put(rvd_mux *m)
{
    if (!rvd_mux_out_put(m, RVD_WIRE_GOAWAY, 0, 0, m->go_code)) return;
    m->go_wanted = 0;
    m->go_sent = 1;
}

// Are there control frames to prepare? A session that has just died still sends its GoAway.
static inline int rvd_mux_has_control(const rvd_mux *m)
{
    return !rvd_base_link_is_alone(&m->ctl) || m->pong_count || m->ping_wanted || m->go_wanted ||
           m->dead;
}

// Prepares control frames: pongs, then those of the streams, then our ping.
RVD_BASE_SLOW static void rvd_mux_control_fill(rvd_mux *m)
{
    if (m->silent) return;
    while (m->pong_count) {
        if (!rvd_mux_control_put(m, RVD_WIRE_PING, RVD_WIRE_ACK, 0, m->pongs[m->pong_first]))
            return;
        m->pong_first = (m->pong_first + 1) % RVD_MUX_PONGS;
        m->pong_count--;
    }
    while (!rvd_base_link_is_alone(&m->ctl)) {
        rvd_mux_stream *s = RVD_BASE_OWNER(m->ctl.next, rvd_mux_stream, ctl);
        if (!rvd_mux_stream_control(m, s)) return;
        rvd_base_link_remove(&s->ctl);
        rvd_mux_settle(m, s);
    }
    if (m->ping_wanted && !m->dead &&
        rvd_mux_control_put(m, RVD_WIRE_PING, RVD_WIRE_SYN, 0, m->ping_value + 1)) {
        m->ping_value++;
        m->ping_wanted = 0;
        m->ping_out = 1;
        m->ping_us = m->now_us;
        m->ping_rx_bytes = m->rx_bytes;
    }
    if (m->go_wanted) rvd_mux_goaway_put(m);
    m->silent = m->dead != 0;  // the GoAway was the last frame
}

// Where output() is in the data frames: in a chunk, or at a loan that comes next.
typedef struct rvd_mux_cursor {
    const rvd_mux_chunk *chunk;
    uint32_t start;  // in it
    const rvd_mux_loan *loan;
    uint64_t at;
} rvd_mux_cursor;

// Fills vectors with data frames, up to `end`. Returns how many are filled now.
static int rvd_mux_show(rvd_mux_cursor *c, uint64_t end, struct iovec *iov, int n, int max)
{
    while (c->at < end && n < max) {
        uint64_t len = end - c->at;
        const uint8_t *from;
        if (c->loan && c->loan->at == c->at) {
            from = c->loan->bytes;
            if (len >= c->loan->len) {
                len = c->loan->len;
                c->loan = c->loan->next;
            }
        } else if (c->start == c->chunk->end) {
            c->chunk = c->chunk->next;
            c->start = c->chunk->start;
            continue;
        } else {
            if (c->loan && len > c->loan->at - c->at) len = c->loan->at - c->at;
            from = c->chunk->data + c->start;
            len = rvd_base_min((size_t)len, c->chunk->end - c->start);
            c->start += (uint32_t)len;
        }
        // An iovec has no const; writev() does not write to it.
        iov[n].iov_base = (void *)(uintptr_t)from;
        iov[n++].iov_len = (size_t)len;
        c->at += len;
    }
    return n;
}

// Shows pending output: the rest of a half-sent data frame, control, then data.
static int rvd_mux_output(rvd_mux *m, struct iovec *iov, int max)
{
    rvd_mux_cursor c;
    int n = 0, full = 0;
    if (rvd_mux_has_control(m)) {
        rvd_mux_control_fill(m);
        // An ACK that found no room must not be overtaken by the data that follows it.
        full =
            RVD_MUX_CONTROL - m->control_len < RVD_WIRE_HEADER && !rvd_base_link_is_alone(&m->ctl);
    }
    m->growing = NULL;
    m->shown_data = m->shown_control = 0;
    if (!rvd_mux_is_blocked(m)) return 0;
    c.chunk = m->out_head;
    c.start = m->out_head ? m->out_head->start : 0;
    c.loan = m->loans;
    c.at = m->out_sent;
    if (m->control_len > m->control_sent) {
        n = rvd_mux_show(&c, m->out_sent + m->frame_left, iov, 0, max);
        m->shown_data = (uint32_t)(c.at - m->out_sent);
        if (m->shown_data == m->frame_left && n < max) {
            iov[n].iov_base = m->control + m->control_sent;
            iov[n].iov_len = m->shown_control = m->control_len - m->control_sent;
            n++;
        }
    }
    if (!full) n = rvd_mux_show(&c, m->out_added, iov, n, max);
    m->out_shown = c.at;
    if (c.at == m->out_added) m->out_edge = c.at;
    return n;
}

// The first chunk is used up. The last one stays, empty.
static void rvd_mux_chunk_done(rvd_mux *m)
{
    rvd_mux_chunk *c = m->out_head;
    if (c == m->out_tail) {
        c->start = c->end = 0;
        return;
    }
    m->out_head = c->next;
    rvd_mux_chunk_free(m, c);
}

// n bytes of chunks and loans are on the wire.
static void rvd_mux_out_advance(rvd_mux *m, size_t n)
{
    while (n) {
        rvd_mux_chunk *c = m->out_head;
        rvd_mux_loan *loan = m->loans;
        uint32_t k;
        if (loan && loan->at == m->out_sent) {
            k = (uint32_t)rvd_base_min(n, loan->len);
            m->out_sent += k;
            rvd_mux_loan_sent(m, k);
        } else {
            k = (uint32_t)rvd_base_min(n, c->end - c->start);
            if (loan && k > loan->at - m->out_sent) k = (uint32_t)(loan->at - m->out_sent);
            m->out_sent += k;
            c->start += k;
            if (c->start == c->end) rvd_mux_chunk_done(m);
        }
        n -= k;
    }
}

// Accounts for n sent bytes of data frames. Keeps frame_left exact, by walking the headers if not
// all that was shown has been sent.
static void rvd_mux_data_sent(rvd_mux *m, size_t n)
{
    if (n && m->out_sent + n == m->out_edge) {
        rvd_mux_out_advance(m, n);
        m->frame_left = 0;
        return;
    }
    while (n) {
        uint32_t k;
        if (!m->frame_left) {
            const uint8_t *p = m->out_head->data + m->out_head->start;
            m->frame_left = RVD_WIRE_HEADER;
            if (p[1] == RVD_WIRE_DATA) m->frame_left += rvd_base_u32(p + 8);
        }
        k = (uint32_t)rvd_base_min(n, m->frame_left);
        m->frame_left -= k;
        n -= k;
        rvd_mux_out_advance(m, k);
    }
}

// Budget: usually all that was shown has been sent, and then nothing is done per frame.
static void rvd_mux_sent(rvd_mux *m, size_t n)
{
    size_t first = rvd_base_min(n, m->shown_data);
    size_t control = rvd_base_min(n - first, m->shown_control);
    m->shown_data -= (uint32_t)first;
    m->shown_control -= (uint32_t)control;
    if (n) {
        m->progress_us = m->now_us;
        rvd_mux_data_sent(m, first);
        m->control_sent += (uint32_t)control;
        rvd_mux_data_sent(m, n - first - control);
    }
    m->out_shown = m->out_sent;
}

// ---- input, one frame at a time: header, body, flags; always in that order ----

static void rvd_mux_on_reset(rvd_mux *m, rvd_mux_stream *s, uint32_t code)
{
    int unanswered = s->phase == RVD_MUX_OFFERED || s->phase == RVD_MUX_SHOWN;
    if (s->tx == RVD_MUX_TX_RESET) {
        if (!s->reset_local) rvd_mux_glitch(m);
        rvd_mux_ctl_drop(s);  // both at once: our pending control frames are void
        rvd_mux_settle(m, s);
        return;
    }
    if (unanswered && !rvd_base_bucket_take(&m->resets, m->now_us)) {
        rvd_mux_protocol_error(m, "calm: too many streams opened and reset");
        return;
    }
    rvd_mux_tx_become(s, RVD_MUX_TX_RESET);
    if (s->rx != RVD_MUX_RX_ENDED) rvd_mux_rx_become(s, RVD_MUX_RX_RESET);
    if (s->phase != RVD_MUX_OPEN) rvd_mux_phase_become(m, s, RVD_MUX_OPEN);
    s->reset_code = m->cfg.features & REVDIAL_FEATURE_RSTCODE && code <= 255 ? code : 0;
    rvd_mux_ctl_drop(s);
    rvd_mux_turn_leave(m, s);
    rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    rvd_mux_count_reset(m, s->reset_code);
    if (s->tell_bits & RVD_MUX_TELL_OPEN) {  // EV_OPEN was not raised, so no event is needed
        s->released = 1;
        rvd_base_link_remove(&s->tell);
        rvd_mux_rx_clear(m, s);
    }
    rvd_mux_tell(m, s, RVD_MUX_TELL_RESET);
    rvd_mux_settle(m, s);
}

static void rvd_mux_on_fin(rvd_mux *m, rvd_mux_stream *s)
{
    if (s->rx == RVD_MUX_RX_RESET) {
        if (!s->fin_sent) return;
        rvd_mux_ctl_drop(s);  // our reset is not sent yet, and the stream is over
        rvd_mux_settle(m, s);
        return;
    }
    if (s->rx == RVD_MUX_RX_ENDED) {
        rvd_mux_glitch(m);
        return;
    }
    if (s->phase == RVD_MUX_OFFERED) {
        rvd_mux_provoked(m, s, REVDIAL_RESET_PROTOCOL);
        return;
    }
    rvd_mux_rx_become(s, RVD_MUX_RX_ENDED);
    if (s->timer_kind == RVD_MUX_TIMER_LINGER) rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    if (s->wait == RVD_MUX_WAIT_CREDIT && s->send_credit == 0)
        rvd_mux_timer_set(m, s, RVD_MUX_TIMER_ORPHAN);
    rvd_mux_tell(m, s, RVD_MUX_TELL_FIN);
    rvd_mux_settle(m, s);
}

// Acts on the flags of the frame, after its body.
static void rvd_mux_on_frame_end(rvd_mux *m)
{
    rvd_mux_stream *s = m->body_stream;
    m->body = RVD_MUX_BODY_NONE;
    m->body_stream = NULL;
    if (!s || m->dead) return;
    if (m->frame.flags & RVD_WIRE_RST) {
        int coded = m->frame.type == RVD_WIRE_WINDOW;
        if (m->frame.flags & RVD_WIRE_FIN && s->rx == RVD_MUX_RX_OPEN) {
            uint32_t id = s->id;
            rvd_mux_on_fin(m, s);
            s = rvd_mux_find(m, id);
        }
        if (s && !m->dead) rvd_mux_on_reset(m, s, coded ? m->frame.length : 0);
    } else if (m->frame.flags & RVD_WIRE_FIN) {
        rvd_mux_on_fin(m, s);
    }
}

static void rvd_mux_refuse(rvd_mux *m, uint32_t id, uint32_t code)
{
    m->allowance += m->cfg.recv_window;
    m->body = RVD_MUX_BODY_DRAIN;
    if (rvd_mux_out_len(m) <= m->out_max) m->refusals = 0;
    if (++m->refusals > RVD_MUX_REFUSALS)
        rvd_mux_protocol_error(m, "too many refused streams while the output is blocked");
    else if (!rvd_mux_out_put(m, RVD_WIRE_WINDOW, RVD_WIRE_RST, id, code))
        rvd_mux_die(m, REVDIAL_ENOMEM, "out of memory for a refusal");
}

// Why a new stream of the peer is refused: a reset code, or NONE.
static uint32_t rvd_mux_refusal(rvd_mux *m)
{
    if (!m->cfg.accept_streams) return REVDIAL_RESET_REFUSED;
    if (m->draining) return REVDIAL_RESET_DRAINING;
    if (m->theirs >= m->cfg.limits.max_streams) return REVDIAL_RESET_REFUSED;
    return REVDIAL_RESET_NONE;
}

// A new stream of the peer, validated by its header before anything changes.
static void rvd_mux_on_syn(rvd_mux *m, rvd_mux_stream *old)
{
    const rvd_wire_frame *f = &m->frame;
    uint32_t refusal = rvd_mux_refusal(m);
    rvd_mux_stream *s;
    int has_preamble = (m->cfg.features & REVDIAL_FEATURE_PREAMBLE) != 0;
    if (rvd_mux_is_mine(m, f->id)) {
        rvd_mux_protocol_error(m, "SYN with our own parity");
        return;
    }
    if (old && !(old->tx == RVD_MUX_TX_RESET && old->rx != RVD_MUX_RX_OPEN) &&
        !(old->tx == RVD_MUX_TX_ENDED && old->rx == RVD_MUX_RX_ENDED)) {
        rvd_mux_protocol_error(m, "SYN for a live stream");
        return;
    }
    if (f->type == RVD_WIRE_DATA && f->length > m->cfg.recv_window) {
        rvd_mux_protocol_error(m, "SYN with more data than the first window");
        return;
    }
    if (f->type == RVD_WIRE_WINDOW && !(f->flags & RVD_WIRE_RST) &&
        f->length > UINT32_MAX - m->cfg.send_window) {
        rvd_mux_protocol_error(m, "window overflow");
        return;
    }
    if (!rvd_base_bucket_take(&m->syns, m->now_us)) {
        rvd_mux_protocol_error(m, "calm: too many streams opened");
        return;
    }
    if (f->flags & RVD_WIRE_RST) {
        m->allowance += m->cfg.recv_window;
        if (!rvd_base_bucket_take(&m->resets, m->now_us))
            rvd_mux_protocol_error(m, "calm: too many streams opened and reset");
        return;
    }
    if (!m->cfg.accept_streams) rvd_mux_glitch(m);
    if (old && !refusal) refusal = REVDIAL_RESET_REFUSED;  // the application still holds it
    s = refusal ? NULL
                : rvd_mux_stream_new(m, f->id, has_preamble ? RVD_MUX_OFFERED : RVD_MUX_SHOWN);
    if (!s) {
        if (old) old->is_past = 1;
        rvd_mux_refuse(m, f->id, refusal ? refusal : REVDIAL_RESET_INTERNAL);
        return;
    }
    if (f->type == RVD_WIRE_WINDOW) s->send_credit += f->length;
    m->body_stream = s;
    if (has_preamble) {
        s->released = 1;
        rvd_mux_timer_set(m, s, RVD_MUX_TIMER_PREAMBLE);
        return;
    }
    rvd_mux_timer_set(m, s, RVD_MUX_TIMER_ACCEPT);
    rvd_mux_tell(m, s, RVD_MUX_TELL_OPEN);
}

// Window updates without a flag answer data, in steps that an implementation may use, or follow an
// open. More of them are a flood.
static void rvd_mux_window_count(rvd_mux *m)
{
    uint64_t earned = 2 * (m->tx_data_frames + m->opened) + m->tx_bytes / RVD_MUX_CREDIT_STEP;
    if (m->window_frames < earned)
        m->window_frames++;
    else if (!rvd_base_bucket_take(&m->windows, m->now_us))
        rvd_mux_protocol_error(m, "calm: too many window updates");
}

// A frame for a stream that is not in the table: late, or never opened.
static void rvd_mux_on_stray(rvd_mux *m)
{
    const rvd_wire_frame *f = &m->frame;
    int never = rvd_mux_is_mine(m, f->id) && f->id >= m->next_id;
    int is_end = (f->flags & (RVD_WIRE_RST | RVD_WIRE_FIN)) != 0;
    if (f->type == RVD_WIRE_DATA && f->length) {
        if (never) {
            rvd_mux_protocol_error(m, "data for a stream that was never opened");
            return;
        }
        if (f->length > m->allowance) {
            rvd_mux_protocol_error(m, "more data for a closed stream than it had credit");
            return;
        }
        return;
    }
    if (never && !is_end) {
        rvd_mux_protocol_error(m, "frame for a stream that was never opened");
        return;
    }
    if (f->type == RVD_WIRE_DATA && !is_end)
        rvd_mux_glitch(m);
    else if (m->late_frames)
        m->late_frames--;
    else if (is_end || f->length == 0)
        rvd_mux_glitch(m);
    else
        rvd_mux_window_count(m);
}

static void rvd_mux_on_credit(rvd_mux *m, rvd_mux_stream *s, uint32_t delta)
{
    if (s->tx != RVD_MUX_TX_OPEN && s->tx != RVD_MUX_TX_ENDING) return;
    if (delta > UINT32_MAX - s->send_credit) {
        rvd_mux_protocol_error(m, "window overflow");
        return;
    }
    s->send_credit += delta;
    if (!delta) return;
    m->acked_us = m->now_us;
    if (s->timer_kind == RVD_MUX_TIMER_ORPHAN) rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    if (s->wait != RVD_MUX_WAIT_CREDIT) return;
    if (s->send_credit < RVD_MUX_SPARSE_BYTES && !s->tiny_ok) {
        if (s->timer_kind == RVD_MUX_TIMER_NONE) rvd_mux_timer_set(m, s, RVD_MUX_TIMER_TINY);
        return;
    }
    if (s->timer_kind == RVD_MUX_TIMER_TINY) rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    rvd_mux_wait_turn(m, s);
}

static void rvd_mux_on_window(rvd_mux *m, rvd_mux_stream *s)
{
    const rvd_wire_frame *f = &m->frame;
    if (!f->flags) rvd_mux_window_count(m);
    if (!(f->flags & (RVD_WIRE_FIN | RVD_WIRE_RST)) && !f->length &&
        !(f->flags & RVD_WIRE_ACK && rvd_mux_is_mine(m, s->id)))
        rvd_mux_glitch(m);
    if (!(f->flags & RVD_WIRE_RST)) rvd_mux_on_credit(m, s, f->length);
}

// The header of a data frame for a stream in the table.
static void rvd_mux_on_data(rvd_mux *m, rvd_mux_stream *s)
{
    const rvd_wire_frame *f = &m->frame;
    if (f->length > s->recv_credit) {
        rvd_mux_protocol_error(m, "more data than the stream had credit for");
        return;
    }
    if (!f->length) {
        if (!f->flags) rvd_mux_glitch(m);
        return;
    }
    if (s->rx != RVD_MUX_RX_ENDED) return;
    if (s->after_fin && s->tx != RVD_MUX_TX_RESET) {
        rvd_mux_provoked(m, s, REVDIAL_RESET_PROTOCOL);
        return;
    }
    s->after_fin = 1;
    rvd_mux_glitch(m);
}

static void rvd_mux_on_stream_frame(rvd_mux *m)
{
    const rvd_wire_frame *f = &m->frame;
    rvd_mux_stream *s;
    uint32_t id = f->id;
    if (id == 0) {
        rvd_mux_protocol_error(m, "stream frame with id 0");
        return;
    }
    s = rvd_mux_find(m, id);
    if (f->type == RVD_WIRE_DATA && f->length) {
        m->body = RVD_MUX_BODY_DRAIN;
        m->body_left = f->length;
    }
    if (f->flags & RVD_WIRE_SYN) {
        rvd_mux_on_syn(m, s);
        if (m->body != RVD_MUX_BODY_NONE && m->body_stream) m->body = RVD_MUX_BODY_STREAM;
        return;
    }
    if (!s || s->is_past) {
        rvd_mux_on_stray(m);
        return;
    }
    if (rvd_mux_is_mine(m, id)) {
        if (s->phase == RVD_MUX_ASKED && !(f->flags & RVD_WIRE_RST)) {
            rvd_mux_phase_become(m, s, RVD_MUX_OPEN);
            rvd_mux_tell(m, s, RVD_MUX_TELL_ACCEPTED);
        } else if (f->flags & RVD_WIRE_ACK) {
            rvd_mux_glitch(m);
        }
    }
    m->body_stream = s;  // freed or reset below, it takes this back
    if (m->body != RVD_MUX_BODY_NONE) m->body = RVD_MUX_BODY_STREAM;
    if (f->type == RVD_WIRE_DATA)
        rvd_mux_on_data(m, s);
    else
        rvd_mux_on_window(m, s);
}

static void rvd_mux_on_pong(rvd_mux *m, uint32_t value)
{
    int64_t best, took = m->now_us > m->ping_us ? m->now_us - m->ping_us : 1;
    if (value & RVD_MUX_PACE_VALUE && rvd_mux_is_paced(m) && rvd_mux_pace_pong(m, value)) return;
    if (!m->ping_out || value != m->ping_value) {
        rvd_mux_glitch(m);
        return;
    }
    m->ping_out = 0;
    m->acked_us = m->now_us;
    rvd_pace_trip(&m->pace, (uint32_t)rvd_base_sooner(took, UINT32_MAX), m->now_us);
    m->news |= RVD_MUX_NEWS_RTT;
    // A round trip behind our own bulk data would make windows grow, and these the round trip.
    if (m->rtt_us && took > m->rtt_us && m->rx_bytes - m->ping_rx_bytes > RVD_MUX_RTT_LOAD) return;
    m->rtt[m->rtt_count++ % RVD_MUX_RTT_SAMPLES] = took;
    best = m->rtt[0];
    for (uint32_t i = 1; i < RVD_MUX_RTT_SAMPLES && i < m->rtt_count; i++)
        if (m->rtt[i] < best) best = m->rtt[i];
    m->rtt_us = best;
}

static void rvd_mux_on_ping(rvd_mux *m)
{
    const rvd_wire_frame *f = &m->frame;
    unsigned kind = f->flags & (RVD_WIRE_SYN | RVD_WIRE_ACK);
    if (f->id != 0) {
        rvd_mux_glitch(m);
        return;
    }
    if (kind == RVD_WIRE_ACK) {
        rvd_mux_on_pong(m, f->length);
        return;
    }
    if (kind == 0) {
        rvd_mux_glitch(m);
        return;
    }
    if (kind != RVD_WIRE_SYN) {
        rvd_mux_protocol_error(m, "ping and pong in one frame");
        return;
    }
    if (!rvd_base_bucket_take(&m->pings, m->now_us)) {
        rvd_mux_protocol_error(m, "calm: too many pings");
        return;
    }
    if (m->pong_count == RVD_MUX_PONGS) {
        m->pong_first = (m->pong_first + 1) % RVD_MUX_PONGS;
        m->pong_count--;
        rvd_mux_glitch(m);
    }
    m->pongs[(m->pong_first + m->pong_count++) % RVD_MUX_PONGS] = f->length;
}

static void rvd_mux_on_goaway(rvd_mux *m)
{
    if (m->frame.length == RVD_WIRE_GO_NORMAL) {
        if (m->peer_draining)
            rvd_mux_glitch(m);
        else
            m->news |= RVD_MUX_NEWS_GOAWAY;
        m->peer_draining = 1;
        return;
    }
    if (m->frame.length == RVD_WIRE_GO_REPLACED && m->cfg.features & REVDIAL_FEATURE_RSTCODE) {
        rvd_mux_die(m, REVDIAL_EDUPLICATE,
                    "another session of this instance has replaced this one");
        return;
    }
    rvd_mux_die(m, REVDIAL_EPROTO,
                m->frame.length == RVD_WIRE_GO_PROTOCOL ? "the peer reports a protocol error"
                                                        : "the peer reports an internal error");
}

static void rvd_mux_on_header(rvd_mux *m)
{
    rvd_wire_frame *f = &m->frame;
    rvd_wire_frame_get(m->header, f);
    m->header_len = 0;
    f->flags &= RVD_WIRE_SYN | RVD_WIRE_ACK | RVD_WIRE_FIN | RVD_WIRE_RST;
    m->rx_frames++;
    switch (f->type) {
    case RVD_WIRE_DATA:
    case RVD_WIRE_WINDOW: rvd_mux_on_stream_frame(m); break;
    case RVD_WIRE_PING: rvd_mux_on_ping(m); break;
    case RVD_WIRE_GOAWAY: rvd_mux_on_goaway(m); break;
    default: rvd_mux_protocol_error(m, "unknown frame type"); break;
    }
    if (m->body == RVD_MUX_BODY_NONE) rvd_mux_on_frame_end(m);
    if (m->dead) m->body = RVD_MUX_BODY_NONE;
}

// Collects a header. The version is judged at once: it tells a wrong protocol from a slow one.
static size_t rvd_mux_header_input(rvd_mux *m, const uint8_t *p, size_t len)
{
    size_t n = rvd_base_min(len, RVD_WIRE_HEADER - m->header_len);
    memcpy(m->header + m->header_len, p, n);
    m->header_len += (uint32_t)n;
    if (m->header[0] != 0)
        rvd_mux_protocol_error(m, "not a yamux frame: version is not 0");
    else if (m->header_len == RVD_WIRE_HEADER)
        rvd_mux_on_header(m);
    return n;
}

// Must events be drained before more input is taken?
static int rvd_mux_has_events(const rvd_mux *m)
{
    return m->slice_stream || m->news & (RVD_MUX_NEWS_GOAWAY | RVD_MUX_NEWS_DEAD) ||
           !rvd_base_link_is_alone(&m->tell);
}

// Takes bytes until an event must be drained. Returns how many.
RVD_BASE_SLOW static size_t rvd_mux_any_input(rvd_mux *m, const uint8_t *p, size_t len)
{
    size_t used = 0;
    int stop = 0;
    while (used < len && !stop && !m->dead) {
        uint32_t n;
        if (m->body == RVD_MUX_BODY_NONE) {
            used += rvd_mux_header_input(m, p + used, len - used);
            stop = (m->news & RVD_MUX_NEWS_GOAWAY) != 0;  // told before what comes after it
            continue;
        }
        n = (uint32_t)rvd_base_min(len - used, m->body_left);
        m->body_left -= n;
        if (m->body == RVD_MUX_BODY_STREAM)
            stop = rvd_mux_payload(m, m->body_stream, p + used, n);
        else
            m->allowance -= n < m->allowance ? n : m->allowance;
        used += n;
        if (m->body_left == 0) rvd_mux_on_frame_end(m);
    }
    return used;
}

// Is this a complete data frame without flags, for an open stream that has read all before it?
// Nearly all frames are, so they are handled in place.
static RVD_BASE_FAST rvd_mux_stream *rvd_mux_plain(rvd_mux *m, const uint8_t *p, size_t len)
{
    rvd_mux_stream *s;
    uint32_t n;
    if (len <= RVD_WIRE_HEADER || rvd_base_u32(p) != 0) return NULL;  // version 0, Data, no flag
    n = rvd_base_u32(p + 8);
    if ((size_t)n - 1 >= len - RVD_WIRE_HEADER) return NULL;  // 0, or not all of it is here
    s = rvd_mux_find(m, rvd_base_u32(p + 4));
    if (!s || s->phase != RVD_MUX_OPEN || s->rx != RVD_MUX_RX_OPEN) return NULL;
    return n > s->recv_credit || s->buffered ? NULL : s;
}

// The only way in. Budget of a plain frame: no copy, no list, no token, no clock, about 60
// instructions; all else is handled by rvd_mux_any_input().
static RVD_BASE_FAST size_t rvd_mux_input(rvd_mux *m, const uint8_t *p, size_t len)
{
    rvd_mux_stream *s;
    if (rvd_mux_has_events(m)) return 0;
    s = m->body == RVD_MUX_BODY_NONE && !m->header_len ? rvd_mux_plain(m, p, len) : NULL;
    if (!s) return rvd_mux_any_input(m, p, len);
    m->slice_stream = s;
    m->slice = p + RVD_WIRE_HEADER;
    m->slice_len = rvd_base_u32(p + 8);
    m->news |= RVD_MUX_NEWS_SLICE;
    m->buffered += m->slice_len;
    m->rx_bytes += m->slice_len;
    m->rx_frames++;
    s->buffered = m->slice_len;
    s->received += m->slice_len;
    s->recv_credit -= m->slice_len;
    return RVD_WIRE_HEADER + m->slice_len;
}

// ---- time ----

static void rvd_mux_on_timer(rvd_mux *m, rvd_mux_stream *s, enum rvd_mux_timer kind)
{
    rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    switch (kind) {
    case RVD_MUX_TIMER_PREAMBLE:
    case RVD_MUX_TIMER_ACCEPT: rvd_mux_reset_tell(m, s, REVDIAL_RESET_TIMEOUT); break;
    case RVD_MUX_TIMER_LINGER:
    case RVD_MUX_TIMER_ORPHAN: rvd_mux_reset_tell(m, s, REVDIAL_RESET_CANCEL); break;
    case RVD_MUX_TIMER_TINY:
        s->tiny_ok = 1;
        if (s->wait == RVD_MUX_WAIT_CREDIT) rvd_mux_wait_turn(m, s);
        break;
    case RVD_MUX_TIMER_NONE:
    case RVD_MUX_TIMERS: REVDIAL_ASSERT(0); break;
    }
}

// Is a ping unanswered? Also one that is queued because the socket takes nothing.
static int rvd_mux_is_asking(const rvd_mux *m)
{
    return m->ping_out || (m->ping_wanted && rvd_mux_is_blocked(m));
}

// Time of the last sign of life.
static int64_t rvd_mux_silent_us(const rvd_mux *m)
{
    int64_t at = rvd_base_later(m->ping_us, m->last_rx_us);
    return rvd_base_later(m->ping_wanted ? rvd_base_later(at, m->progress_us) : at, m->acked_us);
}

// Time of the last progress of the output.
static int64_t rvd_mux_moved_us(const rvd_mux *m)
{
    return rvd_base_later(m->progress_us, m->acked_us);
}

// How long a pong may take before dials should use another session.
static int64_t rvd_mux_doubt_us(const rvd_mux *m)
{
    return 2 * m->rtt_us > RVD_MUX_DOUBT_US ? 2 * m->rtt_us : RVD_MUX_DOUBT_US;
}

// If several sessions can be chosen, a dead one must not keep its dials until it is noticed. So a
// stream that we opened also asks for a sign of life.
static void rvd_mux_tick_doubt(rvd_mux *m)
{
    int is_due = m->now_us >= m->doubt_at && m->now_us - m->doubt_at <= RVD_MUX_DOUBT_LATE;
    if (m->asked_us < 0)
        m->asked_us = m->now_us + 1;  // later than a byte that came just now
    else if (m->asked_us <= m->last_rx_us && m->now_us - m->asked_us >= RVD_MUX_ASK_US)
        m->asked_us = 0;  // not before its time: the next dial need not set the timer again
    if (m->is_mute || !is_due || !rvd_mux_is_asking(m)) return;
    if (m->now_us - rvd_mux_silent_us(m) < rvd_mux_doubt_us(m)) return;
    m->is_mute = 1;
    m->news ^= RVD_MUX_NEWS_MUTE;
}

static void rvd_mux_ping(rvd_mux *m)
{
    if (m->dead || m->ping_out || m->ping_wanted) return;
    m->ping_wanted = 1;
    m->ping_us = m->now_us;
    m->next_rtt_us = m->now_us + RVD_MUX_RTT_US;
}

// Silence leads to a ping, and silence after it ends the session. Any byte counts as life, because
// a pong may be stuck behind a bulk transfer.
static void rvd_mux_tick_liveness(rvd_mux *m)
{
    const revdial_limits *l = &m->cfg.limits;
    int64_t quiet = m->now_us - m->last_rx_us;
    if (rvd_mux_is_asking(m) &&
        m->now_us - rvd_mux_silent_us(m) >= (int64_t)l->dead_after_ms * 1000) {
        rvd_mux_die(m, REVDIAL_ELOST, "no byte from the peer: it is gone");
        return;
    }
    if (rvd_mux_is_blocked(m) &&
        m->now_us - rvd_mux_moved_us(m) >= (int64_t)l->write_stall_ms * 1000) {
        rvd_mux_die(m, REVDIAL_ELOST, "the peer takes no bytes: it is gone");
        return;
    }
    rvd_mux_tick_doubt(m);
    if (quiet >= (int64_t)l->keepalive_ms * 1000 || m->now_us >= m->next_rtt_us ||
        (m->asked_us > m->last_rx_us && m->now_us - m->asked_us >= RVD_MUX_ASK_US))
        rvd_mux_ping(m);
}

static int64_t rvd_mux_next_tick(const rvd_mux *m)
{
    const revdial_limits *l = &m->cfg.limits;
    int64_t at = INT64_MAX;
    if (m->dead) return -1;
    for (int k = 0; k < RVD_MUX_TIMERS; k++)
        if (!rvd_base_link_is_alone(&m->timers[k]))
            at = rvd_base_sooner(
                at, RVD_BASE_OWNER(m->timers[k].next, rvd_mux_stream, timer)->timer_us);
    if (rvd_mux_is_asking(m)) {
        at = rvd_base_sooner(at, rvd_mux_silent_us(m) + (int64_t)l->dead_after_ms * 1000);
    } else if (m->ping_wanted) {  // it goes out with the next output; look again in any case
        at = rvd_base_sooner(at, m->now_us + (int64_t)l->dead_after_ms * 1000);
    } else {
        at = rvd_base_sooner(at, m->last_rx_us + (int64_t)l->keepalive_ms * 1000);
        at = rvd_base_sooner(at, m->next_rtt_us);
    }
    if (rvd_mux_is_blocked(m))
        at = rvd_base_sooner(at, rvd_mux_moved_us(m) + (int64_t)l->write_stall_ms * 1000);
    if (m->draining && !m->stream_count) at = rvd_base_sooner(at, m->drain_us);
    if (m->promised && rvd_mux_has_waiters(m))
        at = rvd_base_sooner(at, m->promised_us + RVD_MUX_PROMISE_US);
    return rvd_base_sooner(at, rvd_pace_next_tick(&m->pace, m->now_us));
}

static int64_t rvd_mux_next_doubt(const rvd_mux *m)
{
    int64_t at = INT64_MAX;
    if (m->dead) return at;
    if (!m->ping_out && !m->ping_wanted)
        return m->asked_us ? m->asked_us + RVD_MUX_ASK_US : INT64_MAX;
    if (m->is_mute) return at;
    at = (rvd_mux_is_asking(m) ? rvd_mux_silent_us(m) : m->ping_us) + rvd_mux_doubt_us(m);
    if (at > m->now_us) return at;
    return rvd_mux_is_asking(m) ? m->now_us + 1 : INT64_MAX;  // a late tick: the next one judges
}

// Frees memory that an idle session does not need.
static void rvd_mux_trim(rvd_mux *m)
{
    if (rvd_mux_is_blocked(m) || m->reserved || m->now_us - m->progress_us < RVD_MUX_LATE_US)
        return;
    if (m->out_head) rvd_base_free(m->heap, m->out_head, sizeof(rvd_mux_chunk) + m->out_head->size);
    m->out_head = m->out_tail = NULL;
    rvd_mux_spares_free(m);
    if (m->meta_stream) return;
    rvd_base_free(m->heap, m->meta, sizeof *m->meta);
    m->meta = NULL;
}

// Unused WRITABLEs have expired.
static void rvd_mux_promises_end(rvd_mux *m)
{
    if (m->now_us - m->promised_us < RVD_MUX_PROMISE_US) return;
    m->promised = 0;
    if (++m->promise_round == 0) m->promise_round = 1;
}

static inline void rvd_mux_now(rvd_mux *m, int64_t now_us)
{
    if (now_us > m->now_us) m->now_us = now_us;
    if (m->promised) rvd_mux_promises_end(m);
}

// The machine was suspended, not the peer: postpones all deadlines by that time.
static void rvd_mux_forgive(rvd_mux *m, int64_t late_us)
{
    m->last_rx_us = rvd_base_sooner(m->last_rx_us + late_us, m->now_us);
    m->ping_us = rvd_base_sooner(m->ping_us + late_us, m->now_us);
    m->progress_us = rvd_base_sooner(m->progress_us + late_us, m->now_us);
    m->acked_us = rvd_base_sooner(m->acked_us + late_us, m->now_us);
    for (int k = 0; k < RVD_MUX_TIMERS; k++)
        for (rvd_base_link *l = m->timers[k].next; l != &m->timers[k]; l = l->next)
            RVD_BASE_OWNER(l, rvd_mux_stream, timer)->timer_us += late_us;
}

static int64_t rvd_mux_tick(rvd_mux *m, int64_t now_us)
{
    rvd_mux_now(m, now_us);
    if (m->wake_us > 0 && m->now_us - m->wake_us > RVD_MUX_LATE_US)
        rvd_mux_forgive(m, m->now_us - m->wake_us);
    if (!m->dead) rvd_mux_tick_liveness(m);
    rvd_pace_tick(&m->pace, m->now_us);
    for (int k = 0; k < RVD_MUX_TIMERS; k++) {
        while (!m->dead && !rvd_base_link_is_alone(&m->timers[k])) {
            rvd_mux_stream *s = RVD_BASE_OWNER(m->timers[k].next, rvd_mux_stream, timer);
            if (s->timer_us > m->now_us) break;
            rvd_mux_on_timer(m, s, (enum rvd_mux_timer)k);
        }
    }
    rvd_mux_trim(m);
    m->wake_us = rvd_mux_next_tick(m);
    m->doubt_at = rvd_mux_next_doubt(m);
    return m->wake_us < 0 ? -1 : rvd_base_sooner(m->wake_us, m->doubt_at);
}

// ---- what happened ----

static int rvd_mux_open_is_blocked(const rvd_mux *m)
{
    uint32_t limit =
        m->cfg.features & REVDIAL_FEATURE_PROMPTACK ? m->cfg.peer_streams : RVD_MUX_UNACKED_STOCK;
    return m->unacked >= limit || rvd_mux_out_len(m) > m->out_max + RVD_MUX_SPARSE_ROOM;
}

static void rvd_mux_event_open(rvd_mux *m, rvd_mux_stream *s, revdial_event *ev)
{
    ev->type = REVDIAL_EV_OPEN;
    if (m->meta_stream != s) return;
    m->meta_stream = NULL;
    ev->meta = m->meta->kv;
    ev->meta_count = m->meta->count;
}

static int rvd_mux_event_stream(rvd_mux *m, rvd_mux_stream *s, revdial_event *ev)
{
    unsigned bit = s->tell_bits & (0u - s->tell_bits);  // the lowest: bits are in order
    memset(ev, 0, sizeof *ev);
    s->tell_bits = (uint8_t)(s->tell_bits & ~bit);
    if (!s->tell_bits) rvd_base_link_remove(&s->tell);
    ev->id = s->id;
    ev->ud = s->ud;
    switch (bit) {
    case RVD_MUX_TELL_OPEN: rvd_mux_event_open(m, s, ev); break;
    case RVD_MUX_TELL_ACCEPTED: ev->type = REVDIAL_EV_ACCEPTED; break;
    case RVD_MUX_TELL_READABLE: ev->type = REVDIAL_EV_READABLE; break;
    case RVD_MUX_TELL_SENT: ev->type = REVDIAL_EV_SENT; break;
    case RVD_MUX_TELL_FIN: ev->type = REVDIAL_EV_FIN; break;
    case RVD_MUX_TELL_RESET:
        ev->type = REVDIAL_EV_RESET;
        ev->code = (int)s->reset_code;
        break;
    default: REVDIAL_ASSERT(0); return 0;
    }
    return 1;
}

// The next writer to wake, if there is room beyond what is promised already.
static int rvd_mux_event_turn(rvd_mux *m, revdial_event *ev)
{
    uint32_t quantum = m->quantum;
    rvd_base_link *turns;
    rvd_mux_stream *s;
    if (rvd_mux_out_len(m) + (uint64_t)m->promised * quantum >= m->out_max) return 0;
    if (rvd_mux_pace_room(m) <= (uint64_t)m->promised * quantum) {
        rvd_pace_wait(&m->pace, m->now_us);
        return 0;
    }
    turns = rvd_base_link_is_alone(&m->fresh) ? &m->turns : &m->fresh;
    s = RVD_BASE_OWNER(turns->next, rvd_mux_stream, turn);
    rvd_mux_turn_leave(m, s);
    s->turn_left = quantum;
    s->promise = m->promise_round;
    m->promised++;
    m->promised_us = m->now_us;
    *ev = (revdial_event){.type = REVDIAL_EV_WRITABLE, .id = s->id, .ud = s->ud};
    return 1;
}

static int rvd_mux_event_session(rvd_mux *m, revdial_event *ev)
{
    unsigned bit;
    if (m->news & RVD_MUX_NEWS_DEAD)
        bit = RVD_MUX_NEWS_DEAD;
    else if (m->news & RVD_MUX_NEWS_GOAWAY)
        bit = RVD_MUX_NEWS_GOAWAY;
    else if (m->news & RVD_MUX_NEWS_RTT)
        bit = RVD_MUX_NEWS_RTT;
    else if (m->news & RVD_MUX_NEWS_MUTE)
        bit = RVD_MUX_NEWS_MUTE;
    else if (m->news & RVD_MUX_NEWS_OPENABLE && !rvd_mux_open_is_blocked(m))
        bit = RVD_MUX_NEWS_OPENABLE;
    else
        return 0;
    m->news &= ~bit;
    memset(ev, 0, sizeof *ev);
    ev->type = bit == RVD_MUX_NEWS_DEAD     ? REVDIAL_EV_DEAD
               : bit == RVD_MUX_NEWS_GOAWAY ? REVDIAL_EV_GOAWAY
               : bit == RVD_MUX_NEWS_RTT    ? REVDIAL_EV_RTT
               : bit == RVD_MUX_NEWS_MUTE   ? REVDIAL_EV_SILENT
                                            : REVDIAL_EV_WRITABLE;
    if (bit == RVD_MUX_NEWS_RTT) ev->rtt_us = m->rtt_us;
    if (bit == RVD_MUX_NEWS_MUTE) ev->code = m->is_mute;
    if (bit == RVD_MUX_NEWS_DEAD) {
        ev->code = m->dead;
        ev->text = m->dead_text;
    }
    return 1;
}

RVD_BASE_SLOW static int rvd_mux_event_any(rvd_mux *m, revdial_event *ev)
{
    if (m->slice_stream && rvd_base_link_is_alone(&m->tell)) rvd_mux_slice_keep(m);
    if (!rvd_base_link_is_alone(&m->tell))
        return rvd_mux_event_stream(m, RVD_BASE_OWNER(m->tell.next, rvd_mux_stream, tell), ev);
    if (m->news && rvd_mux_event_session(m, ev)) return 1;
    return rvd_mux_has_waiters(m) && !m->dead && rvd_mux_event_turn(m, ev);
}

// Writes *ev only if there is an event. Budget of the two usual answers, READABLE for the slice and
// no event: no list is changed, 20 instructions each.
static RVD_BASE_FAST int rvd_mux_event(rvd_mux *m, revdial_event *ev)
{
    if (m->news & RVD_MUX_NEWS_SLICE) {
        const rvd_mux_stream *s = m->slice_stream;
        m->news &= ~(unsigned)RVD_MUX_NEWS_SLICE;
        *ev = (revdial_event){.type = REVDIAL_EV_READABLE, .id = s->id, .ud = s->ud};
        return 1;
    }
    if (!m->slice_len) m->slice_stream = NULL;
    if (!m->slice_stream && !m->news && rvd_base_link_is_alone(&m->tell) && !rvd_mux_has_waiters(m))
        return 0;
    return rvd_mux_event_any(m, ev);
}

// The first cause sticks. What was received stays readable.
static void rvd_mux_die(rvd_mux *m, int code, const char *text)
{
    if (m->dead) return;
    m->dead = code;
    m->dead_text = text;
    m->news = (m->news & RVD_MUX_NEWS_SLICE) | RVD_MUX_NEWS_DEAD;
    m->header_len = 0;
}

// ---- the application's calls ----

static void rvd_mux_drain_check(rvd_mux *m)
{
    if (!m->draining || m->stream_count || m->dead) return;
    if (m->now_us < m->drain_us) return;  // a SYN that crosses our GoAway gets its refusal
    if (!m->go_sent) {
        m->go_code = RVD_WIRE_GO_NORMAL;
        m->go_wanted = 1;
    }
    rvd_mux_die(m, REVDIAL_EDRAINING, "drained");
}

// Bytes arrived from a peer that was silent, or while we drain.
RVD_BASE_SLOW static void rvd_mux_heard(rvd_mux *m)
{
    if (m->dead) return;  // by what came: that is the last event
    if (m->is_mute) m->news ^= RVD_MUX_NEWS_MUTE;
    m->is_mute = 0;
    rvd_mux_drain_check(m);
}

static void rvd_mux_drain(rvd_mux *m)
{
    if (m->draining || m->dead) return;
    m->draining = 1;
    m->drain_us = m->now_us + 4 * m->rtt_us;
    if (m->cfg.features & REVDIAL_FEATURE_DRAIN) {
        m->go_code = RVD_WIRE_GO_NORMAL;
        m->go_wanted = 1;
    }
}

static void rvd_mux_shutdown(rvd_mux *m)
{
    if (m->dead) return;
    m->go_wanted = !m->go_sent;
    m->go_code = RVD_WIRE_GO_NORMAL;
    rvd_mux_die(m, REVDIAL_ECLOSED, "closed here");
}

static void rvd_mux_replace(rvd_mux *m)
{
    if (m->dead) return;
    m->go_wanted = 1;
    m->go_code =
        m->cfg.features & REVDIAL_FEATURE_RSTCODE ? RVD_WIRE_GO_REPLACED : RVD_WIRE_GO_NORMAL;
    rvd_mux_die(m, REVDIAL_ECLOSED, "replaced");
}

static void rvd_mux_eof(rvd_mux *m)
{
    int torn = m->header_len > 0 || m->body != RVD_MUX_BODY_NONE;
    if (torn)
        rvd_mux_die(m, REVDIAL_ELOST, "the connection ended in the middle of a frame");
    else if (m->peer_draining)
        rvd_mux_die(m, REVDIAL_EDRAINING, "the peer closed the connection after draining");
    else
        rvd_mux_die(m, REVDIAL_ELOST, "the peer closed the connection");
}

// A frame of the opening: n bytes behind a header, already in the output or copied to it.
static void rvd_mux_open_data(rvd_mux *m, rvd_mux_stream *s, const void *bytes, size_t n)
{
    memmove(m->out_tail->data + m->out_tail->end + RVD_WIRE_HEADER, bytes, n);
    rvd_mux_commit(m, s, (uint32_t)n);
}

// SYN, preamble and first bytes are queued together, so that none is sent without the others. The
// smallest window has room for preamble and bytes.
static int64_t rvd_mux_open_put(rvd_mux *m, const revdial_dial_opts *opts)
{
    uint32_t with = (m->cfg.features & REVDIAL_FEATURE_PREAMBLE) != 0;
    uint32_t room = 2 * RVD_WIRE_HEADER + with * (RVD_WIRE_HEADER + RVD_WIRE_PREAMBLE_MAX) +
                    RVD_WIRE_HEADER + (uint32_t)opts->early_len;
    uint8_t *at = rvd_mux_out_room(m, room);
    uint32_t extra = m->cfg.limits.stream_window - m->cfg.recv_window;
    size_t len = 0;
    char id_text[40];
    rvd_base_text id = rvd_base_text_in(id_text, sizeof id_text);
    rvd_mux_stream *s;
    if (!at) return REVDIAL_ENOMEM;
    if (with) {
        rvd_base_text_add_hex16(&id, m->cfg.session_id);
        RVD_BASE_ADD(&id, ".", RVD_BASE_NUMBER(m->next_id));
        len = rvd_wire_preamble_put(at + 3 * RVD_WIRE_HEADER, RVD_WIRE_PREAMBLE_MAX, opts, id_text);
        if (!len) return REVDIAL_EINVAL;
    }
    s = rvd_mux_stream_new(m, m->next_id, RVD_MUX_ASKED);
    if (!s) return REVDIAL_ENOMEM;
    m->next_id += 2;
    m->unacked++;
    if (m->asked_us <= m->last_rx_us) m->asked_us = -1;
    rvd_mux_out_put(m, RVD_WIRE_WINDOW, RVD_WIRE_SYN, s->id, 0);
    if (extra) {
        rvd_mux_out_put(m, RVD_WIRE_WINDOW, 0, s->id, extra);
        s->window += extra;
        s->recv_credit += extra;
        m->grown += extra;
    }
    if (with) {
        rvd_mux_open_data(m, s, at + 3 * RVD_WIRE_HEADER, len);
        m->tx_bytes -= len;  // ours, not the application's
        m->growing = NULL;   // the preamble has a frame to itself
    }
    if (opts->early_len) rvd_mux_open_data(m, s, opts->early, opts->early_len);
    s->out_mark = m->out_added;
    return s->id;
}

static int64_t rvd_mux_open(rvd_mux *m, const revdial_dial_opts *opts)
{
    if (m->dead) return REVDIAL_ECLOSED;
    if (m->draining || m->peer_draining) return REVDIAL_EDRAINING;
    if (m->next_id > RVD_MUX_ID_LAST) {
        rvd_mux_drain(m);
        return REVDIAL_EDRAINING;
    }
    if (m->ours >= m->cfg.peer_streams) return REVDIAL_ELIMIT;
    if (opts->target && !(m->cfg.features & REVDIAL_FEATURE_PREAMBLE)) return REVDIAL_EINVAL;
    if (opts->early_len > REVDIAL_EARLY_MAX || (opts->early_len && !opts->early))
        return REVDIAL_EINVAL;
    if (rvd_mux_open_is_blocked(m)) {
        m->news |= RVD_MUX_NEWS_OPENABLE;
        return REVDIAL_EAGAIN;
    }
    return rvd_mux_open_put(m, opts);
}

static int rvd_mux_early(rvd_mux *m, rvd_mux_stream *s, const void *bytes, size_t n)
{
    if (s->tx != RVD_MUX_TX_OPEN) return REVDIAL_ERESET;
    if (n > REVDIAL_EARLY_MAX || n > s->send_credit) return REVDIAL_EINVAL;
    if (!rvd_mux_out_room(m, RVD_WIRE_HEADER + (uint32_t)n)) return REVDIAL_ENOMEM;
    rvd_mux_open_data(m, s, bytes, n);
    return REVDIAL_OK;
}

static void rvd_mux_finish(rvd_mux *m, rvd_mux_stream *s)
{
    if (s->tx != RVD_MUX_TX_OPEN) return;
    rvd_mux_ack(m, s);
    rvd_mux_tx_become(s, RVD_MUX_TX_ENDING);
    rvd_mux_turn_leave(m, s);
    if (s->timer_kind == RVD_MUX_TIMER_TINY || s->timer_kind == RVD_MUX_TIMER_ORPHAN)
        rvd_mux_timer_set(m, s, RVD_MUX_TIMER_NONE);
    rvd_mux_ctl_add(m, s, RVD_MUX_CTL_FIN);
}

static void rvd_mux_stop(rvd_mux *m, rvd_mux_stream *s)
{
    rvd_mux_ack(m, s);
    s->stopped = 1;
    rvd_mux_rx_clear(m, s);
    if (s->rx == RVD_MUX_RX_OPEN) rvd_mux_rx_become(s, RVD_MUX_RX_DROPPED);
}

// Closes a stream: FIN, then arriving bytes are dropped, and only if these are too many RST,
// because some peers lose data when RST overtakes it.
static void rvd_mux_close(rvd_mux *m, rvd_mux_stream *s)
{
    s->released = 1;
    s->ud = NULL;
    rvd_mux_untell(s);
    if (s->phase == RVD_MUX_SHOWN) rvd_mux_reset(m, s, REVDIAL_RESET_REFUSED);
    rvd_mux_finish(m, s);
    rvd_mux_stop(m, s);
    rvd_mux_rx_clear(m, s);
    if (s->rx == RVD_MUX_RX_DROPPED) rvd_mux_timer_set(m, s, RVD_MUX_TIMER_LINGER);
    rvd_mux_settle(m, s);
}

// Why nothing can be read now: 0 EOF, REVDIAL_EAGAIN, or the end.
static int rvd_mux_read_state(const rvd_mux *m, const rvd_mux_stream *s)
{
    if (s->stopped) return REVDIAL_ECLOSED;
    if (s->reset_local) return REVDIAL_ERESET;  // unread bytes were dropped: no EOF, even after FIN
    switch ((enum rvd_mux_rx)s->rx) {
    case RVD_MUX_RX_ENDED: return 0;
    case RVD_MUX_RX_RESET: return REVDIAL_ERESET;
    case RVD_MUX_RX_DROPPED: return REVDIAL_ECLOSED;
    case RVD_MUX_RX_OPEN: break;
    }
    return m->dead ? REVDIAL_ELOST : REVDIAL_EAGAIN;
}

static int rvd_mux_write_state(const rvd_mux *m, const rvd_mux_stream *s)
{
    if (s->tx == RVD_MUX_TX_OPEN && !m->dead) return 0;
    switch ((enum rvd_mux_tx)s->tx) {
    case RVD_MUX_TX_RESET: return REVDIAL_ERESET;
    case RVD_MUX_TX_ENDING:
    case RVD_MUX_TX_ENDED: return REVDIAL_ECLOSED;
    case RVD_MUX_TX_OPEN: break;
    }
    return m->dead ? REVDIAL_ELOST : 0;
}

// Room for the payload of a frame of at most n bytes at the end of the output. Returns how many, 0
// without memory.
static inline uint32_t rvd_mux_frame_room(rvd_mux *m, uint8_t **at, uint32_t n)
{
    uint32_t room;
    rvd_mux_pace_lead(m);
    room = m->out_tail ? m->out_tail->size - m->out_tail->end : 0;
    if (room < RVD_WIRE_HEADER + n && room >= RVD_WIRE_HEADER + RVD_MUX_OUT_CHUNK / 8)
        n = room - RVD_WIRE_HEADER;  // a shorter frame rather than a gap
    *at = rvd_mux_out_room(m, RVD_WIRE_HEADER + n);
    if (!*at) return 0;
    *at += RVD_WIRE_HEADER;
    return n;
}

static ptrdiff_t rvd_mux_reserve(rvd_mux *m, rvd_mux_stream *s, uint8_t **at, size_t want)
{
    uint32_t n;
    int state = rvd_mux_write_state(m, s);
    if (state) return state;
    rvd_mux_ack(m, s);
    if (s->promise) rvd_mux_promise_keep(m, s);
    n = rvd_mux_allowed(m, s, want);
    if (!n) return 0;
    n = rvd_mux_frame_room(m, at, n);
    return n ? (ptrdiff_t)n : REVDIAL_ENOMEM;
}

static ptrdiff_t rvd_mux_write(rvd_mux *m, rvd_mux_stream *s, const uint8_t *bytes, size_t len)
{
    uint8_t *at;
    uint32_t n;
    int state = rvd_mux_write_state(m, s);
    if (state) return state;
    rvd_mux_ack(m, s);
    if (s->promise) rvd_mux_promise_keep(m, s);
    n = rvd_mux_allowed(m, s, len);
    if (!n || rvd_mux_frame_grow(m, s, bytes, n)) return (ptrdiff_t)n;
    n = rvd_mux_frame_room(m, &at, n);
    if (!n) return REVDIAL_ENOMEM;
    memcpy(at, bytes, n);
    rvd_mux_commit(m, s, n);
    return (ptrdiff_t)n;
}

// As rvd_mux_reserve(), without room for a payload.
static ptrdiff_t rvd_mux_lend(rvd_mux *m, rvd_mux_stream *s, const uint8_t *bytes, size_t len)
{
    uint32_t n;
    int state = rvd_mux_write_state(m, s);
    if (state) return state;
    rvd_mux_ack(m, s);
    if (s->promise) rvd_mux_promise_keep(m, s);
    n = rvd_mux_allowed(m, s, len);
    if (n && !rvd_mux_loan_add(m, s, bytes, n)) return REVDIAL_ENOMEM;
    return (ptrdiff_t)n;
}

static void rvd_mux_ledger_blocked(const rvd_mux *m, const rvd_mux_stream *s,
                                   revdial_flow_info *out)
{
    const int64_t timed_us =
        s->timer_us - rvd_mux_timer_length(m, (enum rvd_mux_timer)s->timer_kind);
    out->blocked_on = "";
    if (s->phase == RVD_MUX_ASKED || s->phase == RVD_MUX_SHOWN) {
        out->blocked_on = "accept";
        out->blocked_since_us = s->phase == RVD_MUX_ASKED ? s->epoch_us : timed_us;
    } else if (s->wait == RVD_MUX_WAIT_CREDIT) {
        out->blocked_on = "peer's credit";
        out->blocked_since_us = timed_us;
    } else if (s->wait == RVD_MUX_WAIT_TURN) {
        out->blocked_on = rvd_mux_out_len(m) >= m->out_max ? "socket" : "turn";
        out->blocked_since_us = m->progress_us;
    } else if (s->buffered && s->recv_credit == 0) {
        out->blocked_on = "reader";
        out->blocked_since_us = m->now_us;
        if (s->head) out->blocked_since_us -= (int64_t)(rvd_mux_now_ms(m) - s->stuck_ms) * 1000;
    }
}

static void rvd_mux_ledger(const rvd_mux *m, const rvd_mux_stream *s, revdial_flow_info *out)
{
    rvd_mux_ledger_blocked(m, s, out);
    out->send_credit = s->send_credit;
    out->recv_credit = s->recv_credit;
    out->window = s->window;
    out->sent = s->sent;
    out->received = s->received;
    out->consumed = s->received - s->buffered;
    out->buffered = s->buffered;
}

// ---- memory ----

static void rvd_mux_buckets_init(rvd_mux *m)
{
    int64_t scale = m->cfg.limits.max_streams / RVD_MUX_STOCK_STREAMS;
    if (scale < 1) scale = 1;
    rvd_base_bucket_init(&m->syns, RVD_MUX_SYN_RATE * scale, RVD_MUX_SYN_RATE * scale, m->now_us);
    rvd_base_bucket_init(&m->resets, RVD_MUX_RESET_BURST * scale, RVD_MUX_RESET_RATE * scale,
                         m->now_us);
    rvd_base_bucket_init(&m->provoked, RVD_MUX_PROVOKED_BURST * scale,
                         RVD_MUX_PROVOKED_RATE * scale, m->now_us);
    rvd_base_bucket_init(&m->glitches, RVD_MUX_GLITCH_BURST * scale, RVD_MUX_GLITCH_RATE * scale,
                         m->now_us);
    if (rvd_mux_is_paced(m))
        rvd_base_bucket_init(&m->pings, RVD_MUX_PACE_BURST, RVD_MUX_PACE_RATE, m->now_us);
    else
        rvd_base_bucket_init(&m->pings, RVD_MUX_PING_BURST, RVD_MUX_PING_RATE, m->now_us);
    rvd_base_bucket_init(&m->windows, RVD_MUX_WINDOW_BURST * scale, RVD_MUX_WINDOW_RATE * scale,
                         m->now_us);
}

// Starts a session in *m, which is zeroed. Returns 0 without memory.
static int rvd_mux_start(rvd_mux *m, rvd_heap *heap, const rvd_mux_config *cfg, int64_t now_us)
{
    m->heap = heap;
    m->cfg = *cfg;
    m->now_us = m->last_rx_us = m->progress_us = m->acked_us = now_us;
    m->next_rtt_us = now_us;  // the first ping goes out at once
    m->next_id = cfg->is_client ? 1 : 2;
    m->promise_round = 1;
    rvd_pace_init(&m->pace, now_us);
    rvd_mux_out_max_set(m, m->out_max ? m->out_max : RVD_MUX_OUT_MAX);  // it may have been set
    m->table_bits = 4;
    m->table_key = ((cfg->seed | 1) * 0x9E3779B97F4A7C15u) | 1;
    rvd_base_link_init(&m->ctl);
    rvd_base_link_init(&m->tell);
    rvd_base_link_init(&m->turns);
    rvd_base_link_init(&m->fresh);
    rvd_base_link_init(&m->held[0]);
    rvd_base_link_init(&m->held[1]);
    for (int k = 0; k < RVD_MUX_TIMERS; k++) rvd_base_link_init(&m->timers[k]);
    rvd_mux_buckets_init(m);
    m->table = rvd_base_alloc(heap, ((size_t)1 << m->table_bits) * sizeof *m->table);
    return m->table != NULL;
}

static void rvd_mux_end(rvd_mux *m)
{
    if (!m->heap) return;
    for (uint32_t i = 0; m->table && i < (uint32_t)1 << m->table_bits; i++)
        while (m->table[i]) rvd_mux_stream_free(m, m->table[i]);
    if (m->table)
        rvd_base_free(m->heap, m->table, ((size_t)1 << m->table_bits) * sizeof(*m->table));
    while (m->loans) {
        rvd_mux_loan *loan = m->loans;
        m->loans = loan->next;
        rvd_mux_loan_free(m, loan);
    }
    while (m->out_head) {
        rvd_mux_chunk *c = m->out_head;
        m->out_head = c->next;
        rvd_base_free(m->heap, c, sizeof *c + c->size);
    }
    rvd_mux_spares_free(m);
    rvd_base_free(m->heap, m->meta, sizeof(rvd_wire_meta));
}

#ifdef REVDIAL_SELF_CHECK
// Loans are in the order of the output. Returns the bytes lent.
static uint64_t rvd_mux_loans_check(const rvd_mux *m)
{
    uint64_t lent = 0, at = m->out_sent;
    for (const rvd_mux_loan *loan = m->loans; loan; loan = loan->next) {
        REVDIAL_ASSERT(loan->at >= at && loan->len && loan->len <= loan->size);
        REVDIAL_ASSERT(loan->next || loan == m->loans_last);
        at = loan->at + loan->len;
        REVDIAL_ASSERT((loan->stream == NULL) == (loan->copy != NULL));
        if (loan->stream) lent += loan->len;
    }
    REVDIAL_ASSERT(at <= m->out_added);
    return lent;
}

// Unread bytes: a stream that has chunks is in the list of its kind, stuck longest first, and the
// memory of the chunks is bounded.
static void rvd_mux_held_check(rvd_mux *m)
{
    uint64_t size = 0, bytes[2] = {0, 0};
    for (int moving = 0; moving < 2; moving++) {
        uint32_t oldest_ms = UINT32_MAX;
        for (rvd_base_link *l = m->held[moving].next; l != &m->held[moving]; l = l->next) {
            const rvd_mux_stream *s = RVD_BASE_OWNER(l, rvd_mux_stream, held);
            const uint32_t stuck_for_ms = rvd_mux_now_ms(m) - s->stuck_ms;
            REVDIAL_ASSERT(s->head && s->is_moving == moving && stuck_for_ms <= oldest_ms);
            oldest_ms = stuck_for_ms;
            bytes[moving] += s->buffered;
            for (const rvd_mux_chunk *c = s->head; c; c = c->next) size += c->size;
        }
    }
    REVDIAL_ASSERT(bytes[0] == m->standing_bytes && size == m->held_size);
    REVDIAL_ASSERT(bytes[0] + bytes[1] + (m->slice_stream ? m->slice_len : 0) == m->buffered);
    REVDIAL_ASSERT(size <= m->cfg.limits.session_window * (uint64_t)RVD_MUX_HELD_FACTOR);
}

// Every invariant, at entry and exit of each call of the engine in test builds.
static void rvd_mux_check(rvd_mux *m)
{
    uint64_t buffered = 0, grown = 0, lent = 0;
    uint32_t count = 0, mine = 0, unacked = 0, promised = 0;
    if (!m->heap || !m->table) return;
    for (uint32_t i = 0; i < (uint32_t)1 << m->table_bits; i++) {
        for (rvd_mux_stream *s = m->table[i]; s; s = s->hash_next) {
            REVDIAL_ASSERT(rvd_mux_slot(m, s->id) == i);
            REVDIAL_ASSERT(s->received >= s->buffered);
            REVDIAL_ASSERT(s->window >= m->cfg.recv_window);
            REVDIAL_ASSERT(s->wait != RVD_MUX_WAIT_TURN || !rvd_base_link_is_alone(&s->turn));
            REVDIAL_ASSERT(s->rx == RVD_MUX_RX_OPEN || s->rx == RVD_MUX_RX_ENDED ||
                           s->rx == RVD_MUX_RX_RESET || s->buffered == 0);
            REVDIAL_ASSERT((s->ctl_bits == 0) == rvd_base_link_is_alone(&s->ctl));
            REVDIAL_ASSERT((s->tell_bits == 0) == rvd_base_link_is_alone(&s->tell));
            REVDIAL_ASSERT(s->phase == RVD_MUX_OPEN || s->tx != RVD_MUX_TX_RESET);
            REVDIAL_ASSERT(m->dead || !rvd_mux_is_settled(s));
            REVDIAL_ASSERT(!s->released || s->phase == RVD_MUX_OFFERED || s->buffered == 0);
            buffered += s->buffered;
            grown += s->window - m->cfg.recv_window;
            lent += s->lent;
            count++;
            mine += (uint32_t)rvd_mux_is_mine(m, s->id);
            unacked += s->phase == RVD_MUX_ASKED;
            promised += s->promise == m->promise_round;
        }
    }
    REVDIAL_ASSERT(buffered == m->buffered && grown == m->grown && unacked == m->unacked);
    REVDIAL_ASSERT(count == m->stream_count && mine == m->ours && count == m->ours + m->theirs);
    REVDIAL_ASSERT(m->buffered - (m->slice_stream ? m->slice_len : 0) <=
                   m->cfg.limits.session_window);
    rvd_mux_held_check(m);
    REVDIAL_ASSERT(promised == m->promised);
    REVDIAL_ASSERT(m->pong_count <= RVD_MUX_PONGS);
    REVDIAL_ASSERT(m->control_sent <= m->control_len && m->control_len <= RVD_MUX_CONTROL);
    REVDIAL_ASSERT(m->out_sent <= m->out_shown && m->out_shown <= m->out_added);
    REVDIAL_ASSERT(lent == rvd_mux_loans_check(m));
}
#endif

// ================================================================================================
// MARK: impl.auth  uses: base
// Decides who may register under which name: credentials, names, groups, nonces, and budgets for
// wrong guesses. Pure: it takes the time as a parameter and has no lock, clock, socket or callback.
// Start at revdial_auth_verify(), and for what a proxy remembers at rvd_auth_guard.
// ================================================================================================

enum {
    // Bytes, without a NUL:
    RVD_AUTH_TOKEN_MAX = 4096,     // of a bearer token: a large JWT
    RVD_AUTH_PASSWORD_MAX = 2048,  // with the user and in base64 it is no longer than a token
    RVD_AUTH_IDENTITY_MAX = 127,   // of an identity, and so of a user: buffers for one have 128
    RVD_AUTH_REALM_MAX = 64,
    RVD_AUTH_HEX_SIZE = 65,                       // of a SHA-256 in hex, with its NUL
    RVD_AUTH_SECRET_SIZE = 7 + RVD_AUTH_HEX_SIZE  // the same behind "sha256:"
};

// b64token of RFC 6750 section 2.1: what may follow "Bearer ".
static int rvd_auth_is_bearer(const char *token, size_t len)
{
    static const char bytes[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/";
    size_t at = 0;
    while (at < len && memchr(bytes, token[at], sizeof bytes - 1)) at++;
    if (at == 0 || len > RVD_AUTH_TOKEN_MAX) return 0;
    while (at < len && token[at] == '=') at++;
    return at == len;
}

// May the text stand between quotes in a header field?
static int rvd_auth_is_quotable(const char *text, size_t max)
{
    size_t len = strlen(text);
    for (size_t i = 0; i < len; i++)
        if (text[i] < ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\') return 0;
    return len > 0 && len <= max;
}

static const char *rvd_auth_password_problem(const char *password)
{
    size_t len = strlen(password);
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)password[i] < ' ' || password[i] == 0x7f) return "secret: has a control byte";
    return len > RVD_AUTH_PASSWORD_MAX ? "secret: a password over 2048 bytes" : NULL;
}

static const char *rvd_auth_secret_problem(unsigned scheme, const char *user, const char *secret)
{
    if (scheme == REVDIAL_AUTH_BEARER || scheme == 0)
        return rvd_auth_is_bearer(secret, strlen(secret))
                   ? NULL
                   : "secret: not a bearer token (letters, digits, -._~+/ and = at its end; 4096 "
                     "bytes)";
    if (!user || !rvd_auth_is_quotable(user, RVD_AUTH_IDENTITY_MAX) || strchr(user, ':'))
        return "user: not 1 to 127 of printable ASCII without : \" and \\";
    return rvd_auth_password_problem(secret);
}

// ---- Digest -------------------------------------------------------------------------------------

// The SHA-256 of texts with ':' between them. NULL is an empty one.
static void rvd_auth_digest(const char *const *parts, size_t count,
                            uint8_t digest[RVD_BASE_SHA256_SIZE])
{
    rvd_base_sha256 s;
    rvd_base_sha256_init(&s);
    for (size_t i = 0; i < count; i++) {
        if (i > 0) rvd_base_sha256_update(&s, ":", 1);
        if (parts[i]) rvd_base_sha256_update(&s, parts[i], strlen(parts[i]));
    }
    rvd_base_sha256_final(&s, digest);
}

// The same in hex.
static void rvd_auth_hash(const char *const *parts, size_t count, char hex[RVD_AUTH_HEX_SIZE])
{
    uint8_t digest[RVD_BASE_SHA256_SIZE];
    rvd_base_text t = rvd_base_text_in(hex, RVD_AUTH_HEX_SIZE);
    rvd_auth_digest(parts, count, digest);
    rvd_base_text_add_hex(&t, digest, sizeof digest);
    rvd_base_wipe(digest, sizeof digest);
}

// H(A1) of RFC 7616 section 3.4.2. Within the realm, knowing it is as good as the password.
static void rvd_auth_ha1(const char *user, const char *realm, const char *secret,
                         char hex[RVD_AUTH_HEX_SIZE])
{
    const char *const parts[] = {user, realm, secret};
    rvd_auth_hash(parts, 3, hex);
}

// The response of section 3.4.1. With "" for the method: rspauth of section 3.5, by which the other
// end proves that it knows the password.
static void rvd_auth_respond(const revdial_digest *d, const char *ha1, const char *method,
                             char hex[RVD_AUTH_HEX_SIZE])
{
    const char *const a2[] = {method, d->uri};
    char ha2[RVD_AUTH_HEX_SIZE];
    const char *const parts[] = {ha1, d->nonce, d->nc, d->cnonce, "auth", ha2};
    rvd_auth_hash(a2, 2, ha2);
    rvd_auth_hash(parts, 6, hex);
}

// ---- Names --------------------------------------------------------------------------------------

static unsigned rvd_auth_wildcards(const char *s, size_t len)
{
    unsigned count = 0;
    for (size_t i = 0; i < len; i++) count += s[i] == '*' || s[i] == '?';
    return count;
}

// A text of a certificate, and the glob of the row that it matches.
typedef struct rvd_auth_match {
    const char *glob, *at;
    size_t len;
} rvd_auth_match;

// Does a '*' in a pattern of names stand for the text that the '*' of the row's glob has matched?
// It does (TIED) where each has one: otherwise each device of a fleet could take the names of all
// others. "**" in the pattern permits that (UNTIED). With other wildcards in both it is UNCLEAR,
// and such a row is refused.
enum rvd_auth_tie { RVD_AUTH_UNTIED, RVD_AUTH_TIED, RVD_AUTH_UNCLEAR };

static enum rvd_auth_tie rvd_auth_tie_of(const char *glob, const char *pattern, size_t len)
{
    size_t glob_len = strlen(glob);
    unsigned theirs = rvd_auth_wildcards(glob, glob_len), ours = rvd_auth_wildcards(pattern, len);
    if (theirs == 0 || ours == 0) return RVD_AUTH_UNTIED;
    for (size_t i = 1; i < len; i++)
        if (pattern[i] == '*' && pattern[i - 1] == '*') return RVD_AUTH_UNTIED;
    if (theirs > 1 || ours > 1 || !strchr(glob, '*') || !memchr(pattern, '*', len))
        return RVD_AUTH_UNCLEAR;
    return RVD_AUTH_TIED;
}

static int rvd_auth_tied_matches(const char *pattern, size_t len, const char *name,
                                 const rvd_auth_match *shown)
{
    size_t head = (size_t)((const char *)memchr(pattern, '*', len) - pattern);
    size_t skip = (size_t)(strchr(shown->glob, '*') - shown->glob);
    size_t middle = shown->len + 1 - strlen(shown->glob), tail = len - head - 1;
    if (strlen(name) != head + middle + tail) return 0;
    return memcmp(name, pattern, head) == 0 && memcmp(name + head, shown->at + skip, middle) == 0 &&
           memcmp(name + head + middle, pattern + head + 1, tail) == 0;
}

// The only item of a list, if it is a name and not a pattern: a backend need not send that name.
//   returns  its length, 0 if there is no such name
static size_t rvd_auth_sole_name(const char *names, const char **name)
{
    const char *second;
    size_t len = names ? rvd_base_item(&names, name) : 0;
    if (len == 0 || rvd_base_item(&names, &second) > 0) return 0;
    return rvd_base_is_name(*name, len) ? len : 0;
}

// Is there a name that matches this glob?
static int rvd_auth_is_name_glob(const char *glob, size_t len)
{
    size_t least = 0;  // length of the shortest name that may match
    for (size_t i = 0; i < len; i++) {
        int is_edge = i == 0 || i + 1 == len;
        if (glob[i] == '*') continue;
        if (least++ == RVD_BASE_NAME_MAX) return 0;
        if (glob[i] == '?' || rvd_base_is_name(&glob[i], 1)) continue;
        if (is_edge || !memchr("._-", glob[i], 3)) return 0;
    }
    return len > 0;
}

// Does a comma list of globs cover the name?
//   shown   what has matched of a certificate; NULL: the identity is not one of a certificate
static int rvd_auth_covers(const char *names, const char *name, const rvd_auth_match *shown)
{
    const char *item;
    size_t len;
    while (names && (len = rvd_base_item(&names, &item)) > 0) {
        enum rvd_auth_tie tie = shown ? rvd_auth_tie_of(shown->glob, item, len) : RVD_AUTH_UNTIED;
        if (tie == RVD_AUTH_UNTIED && rvd_base_glob(item, len, name, strlen(name))) return 1;
        if (tie == RVD_AUTH_TIED && rvd_auth_tied_matches(item, len, name, shown)) return 1;
    }
    return 0;
}

static unsigned rvd_auth_row_schemes(const revdial_credential *row)
{
    return row->schemes ? row->schemes : REVDIAL_AUTH_BEARER;
}

static int rvd_auth_matches(const revdial_credential *row, const char *name, rvd_auth_match *shown)
{
    if (shown->len == 0 || shown->len > RVD_AUTH_IDENTITY_MAX) return 0;
    if (!rvd_base_glob(shown->glob, strlen(shown->glob), shown->at, shown->len)) return 0;
    return !name || rvd_auth_covers(row->names, name, shown);
}

// Finds the text of a verified certificate that a row's glob matches and that may register the
// name: an entry of its SANs, or else its subject.
//   name   NULL: any text that the glob matches
static int rvd_auth_match_peer(const revdial_credential *row, const revdial_identity *peer,
                               const char *name, rvd_auth_match *out)
{
    const char *list = peer->san;
    if (!row->user) return 0;
    out->glob = row->user;
    while ((out->len = rvd_base_item(&list, &out->at)) > 0)
        if (rvd_auth_matches(row, name, out)) return 1;
    out->at = peer->subject;
    out->len = strlen(peer->subject);
    return rvd_auth_matches(row, name, out);
}

// ---- Credentials --------------------------------------------------------------------------------

// May a backend that has proved this row register under the name? "" is the row's only name.
static int rvd_auth_row_covers(const revdial_credential *row, const char *name,
                               const rvd_auth_match *shown)
{
    const char *sole;
    if (!*name) return rvd_auth_sole_name(row->names, &sole) > 0;
    return rvd_base_is_name(name, strlen(name)) && rvd_auth_covers(row->names, name, shown);
}

// A row may hold a hash in place of its secret: a prefix and 64 hex digits. No token can be taken
// for one, because a token has no ':'.
//   returns  1 and *digest, 0: the prefix is not there, -1: the digits are not
static int rvd_auth_row_hash(const char *secret, const char *prefix,
                             uint8_t digest[RVD_BASE_SHA256_SIZE])
{
    size_t skip = strlen(prefix);
    if (strncmp(secret, prefix, skip) != 0) return 0;
    if (strlen(secret) != skip + 2 * (size_t)RVD_BASE_SHA256_SIZE) return -1;
    return rvd_base_hex(digest, RVD_BASE_SHA256_SIZE, secret + skip) ? 1 : -1;
}

static int rvd_auth_is_hash(const char *secret)
{
    return strncmp(secret, "sha256:", 7) == 0 || strncmp(secret, "ha1:", 4) == 0;
}

// A request while it is checked. The work of a check must not tell what the table has for the user
// in the request. So each check computes as many proofs as the user with the most rows needs, and
// each proof hashes as many blocks as the longest secret needs.
typedef struct rvd_auth_claim {
    const revdial_auth_req *req;
    unsigned scheme;
    unsigned proofs;    // still to be done
    size_t secret_max;  // bytes of the longest secret in plain text; 0: the work may differ
    uint8_t presented[RVD_BASE_SHA256_SIZE];  // BEARER, BASIC: of the secret
    char ha1[RVD_AUTH_HEX_SIZE];              // DIGEST: of the row that was looked at last
} rvd_auth_claim;

// Compared in place of a secret, to do the work that one would have taken.
#define RVD_AUTH_NO_HASH "0000000000000000000000000000000000000000000000000000000000000000"
static const char rvd_auth_nobody[] = "nobody";

// Blocks of SHA-256 that a text of this length fills.
static size_t rvd_auth_blocks(size_t len)
{
    return (len + 8) / 64 + 1;
}

// Hashes the blocks by which a text of `len` bytes is shorter than one of `most` bytes.
static void rvd_auth_even_out(size_t len, size_t most)
{
    static const uint8_t block[64];
    size_t missing = rvd_auth_blocks(most) - rvd_auth_blocks(len);
    rvd_base_sha256 s;
    rvd_base_sha256_init(&s);
    while (missing--) rvd_base_sha256_update(&s, block, sizeof block);
}

// The hash of a row's secret: SHA-256, or for DIGEST H(A1) with the user that was presented, which
// is the row's own. Whether the row has it or it is computed is the same work.
//   returns  1, or 0: the row has none and matches nothing
static int rvd_auth_row_digest(const rvd_auth_claim *c, const char *secret,
                               uint8_t digest[RVD_BASE_SHA256_SIZE])
{
    const revdial_digest *d = c->scheme == REVDIAL_AUTH_DIGEST ? c->req->digest : NULL;
    const char *const own = d ? "ha1:" : "sha256:", *const other = d ? "sha256:" : "ha1:";
    uint8_t listed[RVD_BASE_SHA256_SIZE] = {0};
    int is_other = strncmp(secret, other, strlen(other)) == 0;
    int found = is_other ? -1 : rvd_auth_row_hash(secret, own, listed);
    const char *const parts[] = {c->req->user, d ? d->realm : "", found ? rvd_auth_nobody : secret};
    size_t before = d ? strlen(parts[0]) + strlen(parts[1]) + 2 : 0;
    if (!found && c->secret_max) rvd_auth_row_hash(RVD_AUTH_NO_HASH, "", listed);
    if (!found || c->secret_max) rvd_auth_digest(d ? parts : parts + 2, d ? 3 : 1, digest);
    if (c->secret_max) rvd_auth_even_out(before + strlen(parts[2]), before + c->secret_max);
    if (found) memcpy(digest, listed, sizeof listed);
    rvd_base_wipe(listed, sizeof listed);
    return found >= 0 && *secret;
}

static int rvd_auth_proves_digest(rvd_auth_claim *c, const uint8_t ha1[RVD_BASE_SHA256_SIZE])
{
    const revdial_digest *d = c->req->digest;
    rvd_base_text t = rvd_base_text_in(c->ha1, sizeof c->ha1);
    char response[RVD_AUTH_HEX_SIZE];
    int is_same;
    rvd_base_text_add_hex(&t, ha1, RVD_BASE_SHA256_SIZE);
    rvd_auth_respond(d, c->ha1, "GET", response);
    is_same = strlen(d->response) == 64 && rvd_base_equal(response, d->response, 64);
    rvd_base_wipe(response, sizeof response);
    return is_same;
}

// Does what was presented prove this secret? As much work whether it does or not.
static int rvd_auth_proves(rvd_auth_claim *c, const char *secret)
{
    uint8_t expected[RVD_BASE_SHA256_SIZE] = {0};
    int has = rvd_auth_row_digest(c, secret, expected);
    int is_same = c->scheme == REVDIAL_AUTH_DIGEST
                      ? rvd_auth_proves_digest(c, expected)
                      : rvd_base_equal(c->presented, expected, sizeof expected);
    if (c->proofs) c->proofs--;
    rvd_base_wipe(expected, sizeof expected);
    return is_same & has && (c->scheme == REVDIAL_AUTH_DIGEST || c->req->secret[0]);
}

static size_t rvd_auth_user_hash(const char *user)
{
    return (size_t)rvd_base_hash(user, strlen(user), 0);
}

// Could this row prove the claim? A token alone identifies its row; all else needs a user.
static int rvd_auth_takes(const rvd_auth_claim *c, const revdial_credential *row)
{
    return row->secret && rvd_auth_row_schemes(row) & c->scheme &&
           (row->user || c->scheme == REVDIAL_AUTH_BEARER);
}

// Sets how much work the check is, for every user the same. Counts rows by buckets of users.
static void rvd_auth_weigh(rvd_auth_claim *c, const revdial_credential *rows, size_t count)
{
    enum { BUCKETS = 1024 };  // a few users share one where there are thousands
    uint16_t has[BUCKETS];
    if (c->scheme == REVDIAL_AUTH_BEARER) return;  // all rows are looked at
    memset(has, 0, sizeof has);
    c->proofs = 1;
    c->secret_max = sizeof rvd_auth_nobody - 1;
    for (size_t i = 0; i < count; i++) {
        uint16_t *n;
        size_t len;
        if (!rvd_auth_takes(c, &rows[i])) continue;
        n = &has[rvd_auth_user_hash(rows[i].user) % BUCKETS];
        if (*n < UINT16_MAX) ++*n;
        if (*n > c->proofs) c->proofs = *n;
        len = rvd_auth_is_hash(rows[i].secret) ? 0 : strlen(rows[i].secret);
        if (len > c->secret_max) c->secret_max = len;
    }
}

// Compares with every row that could prove the claim, also after one of them has.
static int rvd_auth_check_rows(rvd_auth_claim *c, const revdial_credential *rows, size_t count,
                               size_t *row)
{
    const char *name = c->req->name ? c->req->name : "", *user = c->req->user;
    size_t hash = rvd_auth_user_hash(user);
    int verdict = REVDIAL_EAUTH;
    for (size_t i = 0; i < count; i++) {
        if (!rvd_auth_takes(c, &rows[i])) continue;
        if (c->scheme != REVDIAL_AUTH_BEARER &&
            (rvd_auth_user_hash(rows[i].user) != hash || strcmp(rows[i].user, user) != 0))
            continue;
        if (!rvd_auth_proves(c, rows[i].secret) || verdict == REVDIAL_OK) continue;
        verdict = rvd_auth_row_covers(&rows[i], name, NULL) ? REVDIAL_OK : REVDIAL_EDENIED;
        if (row) *row = i;
        if (verdict != REVDIAL_OK) continue;
        if (c->scheme == REVDIAL_AUTH_DIGEST && c->req->proof)
            rvd_auth_respond(c->req->digest, c->ha1, "", c->req->proof);
    }
    while (c->proofs) rvd_auth_proves(c, rvd_auth_nobody);
    return verdict;
}

// A certificate that no row matches is denied, unless some row can be proved in another way.
static int rvd_auth_check_peer(const revdial_auth_req *req, const revdial_credential *rows,
                               size_t count, size_t *row)
{
    const char *name = req->name ? req->name : "";
    rvd_auth_match shown;
    int is_known = 0, has_other = 0;
    for (size_t i = 0; i < count; i++) {
        unsigned schemes = rvd_auth_row_schemes(&rows[i]);
        has_other |= schemes != REVDIAL_AUTH_MTLS;
        if (!(schemes & REVDIAL_AUTH_MTLS)) continue;
        if (!rvd_auth_match_peer(&rows[i], req->tls, NULL, &shown)) continue;
        is_known = 1;
        if (*name && !rvd_auth_match_peer(&rows[i], req->tls, name, &shown)) continue;
        if (!rvd_auth_row_covers(&rows[i], name, &shown)) continue;
        if (row) *row = i;
        return REVDIAL_OK;
    }
    return has_other && !is_known ? REVDIAL_EAUTH : REVDIAL_EDENIED;
}

int revdial_auth_verify(const revdial_auth_req *req, const revdial_credential *rows, size_t count,
                        size_t *row)
{
    revdial_auth_req own = *req;
    rvd_auth_claim claim;
    int verdict;
    if (!own.secret) own.secret = "";
    if (!own.user) own.user = "";
    if (!own.scheme && !own.secret[0] && own.tls && own.tls->verified)
        return rvd_auth_check_peer(req, rows, count, row);
    memset(&claim, 0, sizeof claim);
    claim.req = &own;
    claim.scheme = own.scheme ? own.scheme : REVDIAL_AUTH_BEARER;
    if (claim.scheme == REVDIAL_AUTH_DIGEST && !own.digest) return REVDIAL_EAUTH;
    rvd_auth_digest(&own.secret, 1, claim.presented);
    rvd_auth_weigh(&claim, rows, count);
    verdict = rvd_auth_check_rows(&claim, rows, count, row);
    rvd_base_wipe(&claim, sizeof claim);
    return verdict;
}

// The verdict that an answer of the application is.
static enum revdial_verdict rvd_auth_verdict(int answer)
{
    switch (answer) {
    case REVDIAL_VERDICT_ADMIT:
    case REVDIAL_VERDICT_BAD_REQUEST:
    case REVDIAL_VERDICT_UNAUTHORIZED:
    case REVDIAL_VERDICT_FORBIDDEN:
    case REVDIAL_VERDICT_CONFLICT:
    case REVDIAL_VERDICT_TOO_MANY:
    case REVDIAL_VERDICT_STALE_NONCE: return (enum revdial_verdict)answer;
    case REVDIAL_EAUTH: return REVDIAL_VERDICT_UNAUTHORIZED;
    case REVDIAL_EDENIED: return REVDIAL_VERDICT_FORBIDDEN;
    case REVDIAL_EDUPLICATE: return REVDIAL_VERDICT_CONFLICT;
    default: return REVDIAL_VERDICT_UNAVAILABLE;
    }
}

// ---- What is wrong with a row -------------------------------------------------------------------

// A row is refused if no request could ever be admitted by it.

static const char *rvd_auth_row_names_problem(const revdial_credential *row)
{
    const char *names = row->names, *item;
    size_t len, count = 0;
    if (!names) return NULL;  // none, and the row says so
    for (; (len = rvd_base_item(&names, &item)) > 0; count++) {
        if (memchr(item, '[', len)) return "names: a glob has * and ?, and no [ ]";
        if (!rvd_auth_is_name_glob(item, len))
            return "names: no name matches one of them: 1 to 64 of a-z 0-9 . _ - with a letter or "
                   "digit at both ends; * and ? are globs";
        if (rvd_auth_row_schemes(row) & REVDIAL_AUTH_MTLS &&
            rvd_auth_tie_of(row->user, item, len) == RVD_AUTH_UNCLEAR)
            return "MTLS: with a * in user, names need one * (what it matched) or **";
    }
    return count ? NULL : "names: an empty list; * is any name";
}

static const char *rvd_auth_row_user_problem(const revdial_credential *row, unsigned schemes)
{
    const unsigned with_password = REVDIAL_AUTH_BASIC | REVDIAL_AUTH_DIGEST;
    size_t least = 0;  // bytes of the shortest text that an MTLS glob matches
    int has_kind = 0;  // it may match an entry of the SANs, or a subject
    if (schemes == REVDIAL_AUTH_BEARER && !row->user) return NULL;
    if (!row->user || !row->user[0])
        return schemes == REVDIAL_AUTH_BEARER ? "user: empty; NULL makes each token an identity"
                                              : "BASIC, DIGEST and MTLS need a user";
    if (schemes & with_password && strlen(row->user) > RVD_AUTH_IDENTITY_MAX)
        return "user: over 127 bytes";
    for (const char *at = row->user; *at; at++) {
        least += *at != '*';
        has_kind |= memchr(":=*?", *at, 4) != NULL;
    }
    if (schemes & REVDIAL_AUTH_MTLS && least > RVD_AUTH_IDENTITY_MAX)
        return "user: matches only texts over 127 bytes, too long for an identity";
    for (const char *at = row->user; *at; at++) {
        if ((uint8_t)*at < ' ' || *at == 0x7f) return "user: has a control byte";
        if (schemes & with_password && memchr(":\"\\", *at, 3)) return "user: has : \" or \\";
    }
    if (schemes == REVDIAL_AUTH_MTLS && !has_kind)
        return "user: MTLS needs an entry of the SANs, as DNS:cam-1.example, or a subject, as "
               "CN=cam-1";
    return NULL;
}

static const char *rvd_auth_row_secret_problem(const revdial_credential *row, unsigned schemes)
{
    uint8_t digest[RVD_BASE_SHA256_SIZE];
    int sha256, ha1;
    int has_secret = row->secret && row->secret[0];
    if (schemes == REVDIAL_AUTH_MTLS)
        return has_secret ? "secret: a row with MTLS alone must have none" : NULL;
    if (!has_secret) return "no secret";
    sha256 = rvd_auth_row_hash(row->secret, "sha256:", digest);
    ha1 = rvd_auth_row_hash(row->secret, "ha1:", digest);
    rvd_base_wipe(digest, sizeof digest);
    if (sha256 && schemes & REVDIAL_AUTH_DIGEST)
        return "DIGEST needs the password, or ha1: and its hash";
    if (ha1 && schemes & (REVDIAL_AUTH_BEARER | REVDIAL_AUTH_BASIC))
        return "ha1: is for DIGEST alone";
    if (sha256 < 0 || ha1 < 0) return "sha256: and ha1: need 64 hex digits";
    if (sha256 || ha1) return NULL;
    if (schemes & REVDIAL_AUTH_BEARER) {
        const char *problem = rvd_auth_secret_problem(REVDIAL_AUTH_BEARER, NULL, row->secret);
        if (problem) return problem;
    }
    if (!(schemes & (REVDIAL_AUTH_BASIC | REVDIAL_AUTH_DIGEST))) return NULL;
    return rvd_auth_password_problem(row->secret);
}

const char *revdial_credential_problem(const revdial_credential *row)
{
    unsigned schemes = rvd_auth_row_schemes(row);
    const char *problem;
    if (schemes >= 2 * REVDIAL_AUTH_MTLS) return "an unknown scheme";
    problem = rvd_auth_row_user_problem(row, schemes);
    if (!problem) problem = rvd_auth_row_secret_problem(row, schemes);
    return problem ? problem : rvd_auth_row_names_problem(row);
}

#ifndef REVDIAL_NO_RUNTIME

// ---- What a proxy remembers ---------------------------------------------------------------------

enum {
    RVD_AUTH_NONCES = 65536,        // challenges that may wait for their answer
    RVD_AUTH_NONCE_US = 60000000,   // an answer to a challenge takes one new connection
    RVD_AUTH_SEAL = 16,             // bytes of an HMAC that seal a nonce
    RVD_AUTH_NONCE_SIZE = 65,       // of a nonce: seal and content in hex, and the NUL
    RVD_AUTH_FAILURES = 10,         // enough for typing errors and rollouts, not for guessing
    RVD_AUTH_FAILURE_US = 5000000,  // debt per failure, of a name: the Retry-After of a 429
    RVD_AUTH_PEER_US = 500000,      // of its peer: ten names may fail as often as one may
    RVD_AUTH_BLOCK_US = 62500,      // of its block: eight peers may
    RVD_AUTH_DEBTORS = 4096,        // remembered debts, 64 KiB
    RVD_AUTH_PROVEN = 16384,        // remembered keys of requests that were right, 256 KiB
    RVD_AUTH_WAYS = 4,              // slots of either table that one key may use
    RVD_AUTH_BUCKETS = 16384,       // for hashes of blocks: strangers seldom share one
    RVD_AUTH_HOOKS = 8  // calls for one block at a time: half of the threads is left to others
};

#define RVD_AUTH_PROVEN_US 86400000000  // and they are remembered for a day

// Keys with a time each: until when a debtor has paid what it owes, and when a request was right.
typedef struct rvd_auth_entry {
    uint64_t key;  // 0: none
    int64_t at_us;
} rvd_auth_entry;

typedef struct rvd_auth_memory {
    rvd_auth_entry *entries;  // NULL until one is needed
    size_t size;
} rvd_auth_memory;

// A request that the application's hook is to judge. A hook may block, and it has few threads. One
// block of peers gets RVD_AUTH_HOOKS of them; its other requests wait.
typedef struct rvd_auth_turn {
    rvd_base_link link;  // in the guard's queue while it waits
    size_t bucket;       // of its block
    int is_counted;      // it has one of the block's threads
} rvd_auth_turn;

// What a proxy remembers from one request to the next. It has no lock: the proxy holds its own in
// each call that takes a guard which is not const.
typedef struct rvd_auth_guard {
    rvd_heap *heap;
    int64_t credit_us;  // the most that any debtor may owe; negative: there is no limit
    // Random. The inputs of HMACs with this key differ in length, so that one stands for no other:
    // 16 bytes seal a nonce, 17 mask it, 32 are a mark, 42 the mark of a request.
    uint8_t key[RVD_BASE_SHA256_SIZE];
    uint64_t seed;    // random, so that nobody can choose which keys share a bucket
    uint64_t nonces;  // made so far
    uint8_t nonce_used[RVD_AUTH_NONCES / 8];  // a bit for each of the latest
    rvd_auth_memory debtors, proven;
    rvd_base_link queue;                  // of rvd_auth_turn, the oldest first
    uint16_t hooks_of[RVD_AUTH_BUCKETS];  // calls that run, by the bucket of their block
} rvd_auth_guard;

static void rvd_auth_guard_init(rvd_auth_guard *g, rvd_heap *heap, int max_failures)
{
    memset(g, 0, sizeof *g);
    g->heap = heap;
    g->credit_us = (max_failures ? max_failures : RVD_AUTH_FAILURES) * (int64_t)RVD_AUTH_FAILURE_US;
    g->debtors.size = RVD_AUTH_DEBTORS;
    g->proven.size = RVD_AUTH_PROVEN;
    rvd_base_link_init(&g->queue);
}

static void rvd_auth_guard_end(rvd_auth_guard *g)
{
    rvd_base_free(g->heap, g->debtors.entries, RVD_AUTH_DEBTORS * sizeof(rvd_auth_entry));
    rvd_base_free(g->heap, g->proven.entries, RVD_AUTH_PROVEN * sizeof(rvd_auth_entry));
    rvd_base_wipe(g->key, sizeof g->key);
}

// A request counts against its peer: an IPv4 address, or an IPv6 /64, which is what one customer
// gets. 0 is no peer: a Unix socket has permissions of its own.
//   ip   4 or 16 bytes
static uint64_t rvd_auth_peer_key(const uint8_t *ip, size_t len)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
    int is_mapped = len == 16 && memcmp(ip, mapped, sizeof mapped) == 0;
    if (len == 4 || is_mapped) return 1ull << 32 | rvd_base_u32(ip + (is_mapped ? 12 : 0));
    return rvd_base_u64(ip) ? rvd_base_u64(ip) : 1;
}

// A peer's block: its IPv6 /48. A customer that rents one machine is often given a whole one, 65536
// peers. So places that are taken by the first to come, in the waiting room and at a hook, are
// counted by blocks. Wrong credentials count less for the block than for the peer: otherwise one
// guessing customer of a carrier would lock out all others. IPv4 addresses are too scarce for that:
// each is its own block. The keys of blocks are inverted, and no address in use begins with the
// three bits that they begin with, so that none is the key of a peer.
static uint64_t rvd_auth_peer_block(uint64_t peer_key)
{
    return peer_key >> 33 ? ~(peer_key | 0xFFFF) : peer_key;
}

static size_t rvd_auth_bucket(const rvd_auth_guard *g, uint64_t peer_block)
{
    return (size_t)(rvd_base_hash(&peer_block, sizeof peer_block, g->seed) % RVD_AUTH_BUCKETS);
}

// A number that stands for two texts. Only a holder of the key can compute it. The first text is a
// word of ours or a hash from a table, so that two pairs are never the same with the ':' between.
static uint64_t rvd_auth_mark(const rvd_auth_guard *g, const char *first, const char *second)
{
    const char *const parts[] = {first, second};
    uint8_t digest[RVD_BASE_SHA256_SIZE];
    rvd_auth_digest(parts, 2, digest);
    rvd_base_hmac(g->key, digest, sizeof digest, digest);
    return rvd_base_u64(digest);
}

// ---- The table of a proxy -----------------------------------------------------------------------

// The rows of a proxy, with copies of all texts and hashes in place of secrets. A table never
// changes; it is replaced by another one.
typedef struct rvd_auth_table {
    rvd_heap heap;  // of its own: a table is made and freed without the owner's lock
    rvd_base_arena texts;
    unsigned refs;  // guarded by the owner's lock
    unsigned schemes;
    size_t count;
    revdial_credential *rows;  // each has a user, and all but those for MTLS a secret
    uint64_t *marks;           // of each row's secret and user
} rvd_auth_table;

static void rvd_auth_table_free(rvd_auth_table *t)
{
    rvd_heap heap;
    if (!t) return;
    heap = t->heap;
    rvd_base_arena_free(&t->texts, &heap);
    rvd_base_free(&heap, t, sizeof *t);
}

// A secret as its hash, with a prefix. With a user it is H(A1), the hash of Digest.
static void rvd_auth_secret_hash(const char *secret, const char *user, const char *realm,
                                 char text[RVD_AUTH_SECRET_SIZE])
{
    const char *const parts[] = {user, realm, secret};
    int is_hash = rvd_auth_is_hash(secret);
    char hex[RVD_AUTH_HEX_SIZE];
    if (!is_hash) rvd_auth_hash(user ? parts : parts + 2, user ? 3 : 1, hex);
    RVD_BASE_JOIN(text, RVD_AUTH_SECRET_SIZE,
                  is_hash ? ""
                  : user  ? "ha1:"
                          : "sha256:",
                  is_hash ? secret : hex);
}

// Adds a row for schemes of one kind. By the row's mark a session that it has admitted is found
// again in a later table: wherever the row stands there, but not with another secret.
//   row    of which user, names and group are copies; NULL in the first pass
//   from   the row as it was configured
static void rvd_auth_table_add(rvd_auth_table *t, const rvd_auth_guard *g, const char *realm,
                               revdial_credential row, const revdial_credential *from)
{
    char secret[RVD_AUTH_SECRET_SIZE] = "", own[sizeof "token " + 16];
    rvd_base_text identity = rvd_base_text_in(own, sizeof own);
    uint64_t mark;
    if (row.schemes != REVDIAL_AUTH_MTLS)
        rvd_auth_secret_hash(from->secret, row.schemes == REVDIAL_AUTH_DIGEST ? from->user : NULL,
                             realm, secret);
    row.secret = rvd_base_keep_text(&t->texts, secret[0] ? secret : NULL);
    mark = rvd_auth_mark(g, secret, from->user);
    rvd_base_text_add(&identity, "token ");
    rvd_base_text_add_hex16(&identity, mark);
    if (!from->user) row.user = rvd_base_keep_text(&t->texts, own);
    if (t->rows) t->rows[t->count] = row;
    if (t->marks) t->marks[t->count] = mark;
    t->schemes |= row.schemes;
    t->count++;
}

// One pass of the arena. What a row holds for a secret is another thing for BEARER and BASIC, for
// DIGEST, and for MTLS; a row that is for several of these becomes several rows.
static void rvd_auth_table_keep(rvd_auth_table *t, const rvd_auth_guard *g, const char *realm,
                                const revdial_credential *rows, size_t count)
{
    static const unsigned kinds[] = {REVDIAL_AUTH_BEARER | REVDIAL_AUTH_BASIC, REVDIAL_AUTH_DIGEST,
                                     REVDIAL_AUTH_MTLS};
    t->rows = (revdial_credential *)rvd_base_keep_room(&t->texts, 3 * count, sizeof *t->rows);
    t->marks = (uint64_t *)rvd_base_keep_room(&t->texts, 3 * count, sizeof *t->marks);
    t->count = 0;
    for (size_t i = 0; i < count; i++) {
        revdial_credential row = {.user = rvd_base_keep_text(&t->texts, rows[i].user),
                                  .names = rvd_base_keep_text(&t->texts, rows[i].names),
                                  .group = rvd_base_keep_text(&t->texts, rows[i].group)};
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            row.schemes = rvd_auth_row_schemes(&rows[i]) & kinds[k];
            if (row.schemes) rvd_auth_table_add(t, g, realm, row, &rows[i]);
        }
    }
}

//   rows     revdial_credential_problem() has none with any of them
//   returns  the table, with one reference, or NULL without memory
static rvd_auth_table *rvd_auth_table_new(const rvd_auth_guard *g, const char *realm,
                                          const revdial_credential *rows, size_t count)
{
    rvd_heap heap = {g->heap->fn, g->heap->ud, 0};
    rvd_auth_table *t =
        count > SIZE_MAX / 8 / sizeof *rows ? NULL : rvd_base_alloc(&heap, sizeof *t);
    if (!t) return NULL;
    t->heap = heap;
    t->refs = 1;
    rvd_auth_table_keep(t, g, realm, rows, count);
    if (rvd_base_arena_open(&t->texts, &t->heap)) {
        rvd_auth_table_keep(t, g, realm, rows, count);
        return t;
    }
    rvd_auth_table_free(t);
    return NULL;
}

// Marks of a session's identity, and of those that may share its name. Marks of different kinds
// differ: a user may have the name of a certificate or of a group.
typedef struct rvd_auth_holder {
    uint64_t who;
    uint64_t group;  // `who`: it shares with itself alone
} rvd_auth_holder;

//   group   NULL: none
static rvd_auth_holder rvd_auth_holder_of(const rvd_auth_guard *g, const char *identity,
                                          const char *group)
{
    rvd_auth_holder h;
    h.who = rvd_auth_mark(g, "user", identity);
    h.group = group ? rvd_auth_mark(g, "group", group) : h.who;
    return h;
}

// The same for an identity that a row has admitted. All certificates that one MTLS row admits may
// share a name; where a '*' ties each to names of its own, there is none to share.
static rvd_auth_holder rvd_auth_row_holder(const rvd_auth_guard *g, const revdial_credential *row,
                                           const char *identity)
{
    rvd_auth_holder h = rvd_auth_holder_of(g, identity, row->group);
    if (row->schemes != REVDIAL_AUTH_MTLS) return h;
    h.who = rvd_auth_mark(g, "certificate", identity);
    if (!row->group) h.group = rvd_auth_mark(g, "row", row->user);
    return h;
}

// An identity shares with itself, also if its row has changed groups since.
static int rvd_auth_shares(rvd_auth_holder a, rvd_auth_holder b)
{
    return a.group == b.group || a.who == b.who;
}

// Checks a request against a table.
//   row       set to the row that was proved, also if it does not list the name; else to t->count
//   name      set to the name to register: the one in the request, or the row's only one
//   identity  set to what the row proves, if one was proved
//   returns   as revdial_auth_verify()
static int rvd_auth_table_check(const rvd_auth_table *t, const revdial_auth_req *req, size_t *row,
                                char name[RVD_BASE_NAME_MAX + 1],
                                char identity[RVD_AUTH_IDENTITY_MAX + 1])
{
    const revdial_credential *by;
    const char *sole;
    rvd_auth_match match;
    int code;
    *row = t->count;
    code = revdial_auth_verify(req, t->rows, t->count, row);
    if (*row == t->count) return code;
    by = &t->rows[*row];
    if (by->schemes != REVDIAL_AUTH_MTLS) {
        RVD_BASE_JOIN(identity, RVD_AUTH_IDENTITY_MAX + 1, by->user);
    } else if (rvd_auth_match_peer(by, req->tls, req->name[0] ? req->name : NULL, &match)) {
        memcpy(identity, match.at, match.len);
        identity[match.len] = '\0';
    }
    if (code) return code;
    RVD_BASE_JOIN(name, RVD_BASE_NAME_MAX + 1, req->name);
    if (!name[0]) {
        size_t len = rvd_auth_sole_name(by->names, &sole);
        memcpy(name, sole, len);
        name[len] = '\0';
    }
    return code;
}

// The row by which a table admits a session that an earlier table has admitted, or NULL. The
// identity of a certificate is the text that a row has matched; now another row may match it.
//   mark   of the row that admitted it
static const revdial_credential *rvd_auth_table_row(const rvd_auth_table *t, uint64_t mark,
                                                    const char *name, const char *identity)
{
    for (size_t i = 0; i < t->count; i++) {
        const revdial_credential *row = &t->rows[i];
        rvd_auth_match match = {row->user, identity, strlen(identity)};
        if (row->schemes == REVDIAL_AUTH_MTLS
                ? rvd_auth_matches(row, name, &match)
                : t->marks[i] == mark && rvd_auth_covers(row->names, name, NULL))
            return row;
    }
    return NULL;
}

// ---- Nonces of Digest ---------------------------------------------------------------------------
// A nonce is a number and a time under a seal: 16 bytes of an HMAC over both, then both, masked
// with an HMAC of the seal, so that strangers can read neither. The proxy remembers one bit for
// each of the last 65536: it is set when the nonce is answered.

// Masks 16 bytes, or unmasks them.
static void rvd_auth_nonce_mask(const rvd_auth_guard *g, const uint8_t *seal, uint8_t *bytes)
{
    uint8_t input[RVD_AUTH_SEAL + 1], mac[RVD_BASE_SHA256_SIZE];
    memcpy(input, seal, RVD_AUTH_SEAL);
    input[RVD_AUTH_SEAL] = 'm';  // for "mask"
    rvd_base_hmac(g->key, input, sizeof input, mac);
    for (size_t i = 0; i < RVD_AUTH_SEAL; i++) bytes[i] ^= mac[i];
}

static void rvd_auth_nonce_seal(const rvd_auth_guard *g, uint64_t number, int64_t now_us,
                                char text[RVD_AUTH_NONCE_SIZE])
{
    rvd_base_text t = rvd_base_text_in(text, RVD_AUTH_NONCE_SIZE);
    uint8_t bytes[RVD_AUTH_SEAL], mac[RVD_BASE_SHA256_SIZE];
    rvd_base_put_u64(bytes, number);
    rvd_base_put_u64(bytes + 8, (uint64_t)now_us);
    rvd_base_hmac(g->key, bytes, sizeof bytes, mac);
    rvd_auth_nonce_mask(g, mac, bytes);
    rvd_base_text_add_hex(&t, mac, RVD_AUTH_SEAL);
    rvd_base_text_add_hex(&t, bytes, sizeof bytes);
}

static void rvd_auth_nonce_make(rvd_auth_guard *g, int64_t now_us, char text[RVD_AUTH_NONCE_SIZE])
{
    uint64_t number = g->nonces++;
    g->nonce_used[number % RVD_AUTH_NONCES / 8] &= (uint8_t) ~(1u << number % 8);
    rvd_auth_nonce_seal(g, number, now_us, text);
}

// May this nonce be answered? Once, within RVD_AUTH_NONCE_US. A wrong answer uses it up, too.
static int rvd_auth_nonce_take(rvd_auth_guard *g, const revdial_digest *d, int64_t now_us)
{
    uint8_t raw[2 * RVD_AUTH_SEAL], mac[RVD_BASE_SHA256_SIZE], *bytes = raw + RVD_AUTH_SEAL;
    uint8_t *used, bit;
    uint64_t number, age_us;
    if (strcmp(d->nc, "00000001") != 0 || strlen(d->nonce) != RVD_AUTH_NONCE_SIZE - 1) return 0;
    if (!rvd_base_hex(raw, sizeof raw, d->nonce)) return 0;
    rvd_auth_nonce_mask(g, raw, bytes);
    rvd_base_hmac(g->key, bytes, RVD_AUTH_SEAL, mac);
    if (!rvd_base_equal(mac, raw, RVD_AUTH_SEAL)) return 0;
    number = rvd_base_u64(bytes);
    age_us = (uint64_t)now_us - rvd_base_u64(bytes + 8);
    used = &g->nonce_used[number % RVD_AUTH_NONCES / 8];
    bit = (uint8_t)(1u << number % 8);
    if (g->nonces - number - 1 >= RVD_AUTH_NONCES || age_us > RVD_AUTH_NONCE_US || *used & bit)
        return 0;
    *used |= bit;
    return 1;
}

// ---- Debts, and requests that were right --------------------------------------------------------
// Wrong credentials put a peer, a name at that peer, and so on, into debt. Time pays it off.

// Which debt grows if a request is wrong.
enum rvd_auth_payer {
    RVD_AUTH_UNSEEN,  // none can: the request gets 429 and is not checked
    RVD_AUTH_BY_NAME,
    RVD_AUTH_BY_AGENT,
    RVD_AUTH_BY_SECRET
};

// What a request is counted by: keys of debtors, and of what was right. 0: by nothing.
typedef struct rvd_auth_guess {
    uint64_t peer, block;
    uint64_t name;              // the name and user in the request, at this peer
    uint64_t agent;             // the same with its instance
    uint64_t secret;            // the secret (Digest: the user alone), at this peer, for any name
    uint64_t others;            // all requests of this peer that are checked because of `secret`
    enum rvd_auth_payer payer;  // of rvd_auth_may_check()
} rvd_auth_guess;

// The mark of a request at its peer.
//   kind   'n' name, 'a' agent, 's' secret, 'o' others: the fields of rvd_auth_guess
static uint64_t rvd_auth_request_mark(const rvd_auth_guard *g, uint64_t peer_key,
                                      const revdial_auth_req *req, char kind)
{
    const char *const parts[] = {req->user, kind == 's' ? req->secret : req->name,
                                 kind == 'a' ? req->instance : NULL};
    uint8_t input[RVD_BASE_SHA256_SIZE + 10], mac[RVD_BASE_SHA256_SIZE];
    rvd_auth_digest(parts, kind == 'o' ? 0 : 3, input);
    rvd_base_put_u64(input + RVD_BASE_SHA256_SIZE, peer_key);
    input[RVD_BASE_SHA256_SIZE + 8] = (uint8_t)(kind == 'o' ? 0 : req->scheme);
    input[RVD_BASE_SHA256_SIZE + 9] = (uint8_t)kind;
    rvd_base_hmac(g->key, input, sizeof input, mac);
    rvd_base_wipe(input, sizeof input);
    return rvd_base_u64(mac);
}

//   req   NULL: not known yet. Where it presents nothing, or there is no limit, it is no guess
static rvd_auth_guess rvd_auth_guess_of(const rvd_auth_guard *g, uint64_t peer_key,
                                        const revdial_auth_req *req)
{
    rvd_auth_guess guess = {.peer = peer_key, .block = rvd_auth_peer_block(peer_key)};
    if (!req || !req->scheme || !peer_key || g->credit_us < 0) return guess;
    guess.name = rvd_auth_request_mark(g, peer_key, req, 'n');
    if (req->instance && req->instance[0])
        guess.agent = rvd_auth_request_mark(g, peer_key, req, 'a');
    guess.secret = rvd_auth_request_mark(g, peer_key, req, 's');
    guess.others = rvd_auth_request_mark(g, peer_key, req, 'o');
    return guess;
}

// Finds a key. make: if there is none it takes the place of the one with the earliest time.
//   returns  NULL: there is none, or no memory for it
static rvd_auth_entry *rvd_auth_entry_of(rvd_auth_guard *g, rvd_auth_memory *m, uint64_t key,
                                         int make)
{
    size_t at = (size_t)(rvd_base_hash(&key, sizeof key, g->seed) % (m->size / RVD_AUTH_WAYS));
    rvd_auth_entry *first, *earliest;
    if (!m->entries && make) m->entries = rvd_base_alloc(g->heap, m->size * sizeof *m->entries);
    if (!m->entries || !key) return NULL;
    earliest = first = &m->entries[at * RVD_AUTH_WAYS];
    for (size_t i = 0; i < RVD_AUTH_WAYS; i++) {
        if (first[i].key == key) return &first[i];
        if (first[i].at_us < earliest->at_us) earliest = &first[i];
    }
    if (!make) return NULL;
    earliest->key = key;
    earliest->at_us = 0;
    return earliest;
}

// The request was right: when it is admitted, and when its session ends.
static void rvd_auth_remember(rvd_auth_guard *g, const rvd_auth_guess *guess, int64_t now_us)
{
    const uint64_t keys[] = {guess->agent, guess->secret};
    for (int i = 0; guess->name && i < 2; i++) {
        rvd_auth_entry *e = rvd_auth_entry_of(g, &g->proven, keys[i], 1);
        if (e) e->at_us = now_us;
    }
}

static int rvd_auth_is_proven(rvd_auth_guard *g, uint64_t key, int64_t now_us)
{
    const rvd_auth_entry *e = rvd_auth_entry_of(g, &g->proven, key, 0);
    return e && now_us - e->at_us < RVD_AUTH_PROVEN_US;
}

static int rvd_auth_may_owe(rvd_auth_guard *g, uint64_t who, int64_t due_us, int64_t now_us)
{
    const rvd_auth_entry *debtor = rvd_auth_entry_of(g, &g->debtors, who, 0);
    return !debtor || debtor->at_us - now_us + due_us <= g->credit_us;
}

// Adds to a debt. The debt stays bounded, however many checks run at the same time.
static void rvd_auth_owe(rvd_auth_guard *g, uint64_t who, int64_t due_us, int64_t now_us)
{
    int64_t most_us = now_us + g->credit_us;
    rvd_auth_entry *debtor = rvd_auth_entry_of(g, &g->debtors, who, 1);
    if (!debtor) return;
    if (debtor->at_us < now_us) debtor->at_us = now_us;
    debtor->at_us += due_us;
    if (debtor->at_us > most_us) debtor->at_us = most_us;
}

// Which debt may grow? Where a peer owes the most that it may, guesses get no answer. But an agent
// that was right there within a day is admitted again, whatever its neighbours send, unless they
// know its instance; and with another instance it is admitted as long as its neighbours send less
// than a limit of its own.
static enum rvd_auth_payer rvd_auth_payer_of(rvd_auth_guard *g, const rvd_auth_guess *guess,
                                             int64_t now_us)
{
    int64_t block_us = guess->block == guess->peer ? RVD_AUTH_PEER_US : RVD_AUTH_BLOCK_US;
    if (!guess->name) return RVD_AUTH_BY_NAME;
    if (rvd_auth_may_owe(g, guess->name, RVD_AUTH_FAILURE_US, now_us) &&
        rvd_auth_may_owe(g, guess->peer, RVD_AUTH_PEER_US, now_us) &&
        rvd_auth_may_owe(g, guess->block, block_us, now_us))
        return RVD_AUTH_BY_NAME;
    if (rvd_auth_is_proven(g, guess->agent, now_us) &&
        rvd_auth_may_owe(g, guess->agent, RVD_AUTH_FAILURE_US, now_us))
        return RVD_AUTH_BY_AGENT;
    if (!rvd_auth_may_owe(g, guess->others, RVD_AUTH_PEER_US, now_us)) return RVD_AUTH_UNSEEN;
    if (rvd_auth_is_proven(g, guess->secret, now_us)) return RVD_AUTH_BY_SECRET;
    rvd_auth_owe(g, guess->others, RVD_AUTH_PEER_US, now_us);  // or such guesses would be free
    return RVD_AUTH_UNSEEN;
}

// May the request be checked? If not it is answered with 429.
static int rvd_auth_may_check(rvd_auth_guard *g, rvd_auth_guess *guess, int64_t now_us)
{
    guess->payer = rvd_auth_payer_of(g, guess, now_us);
    return guess->payer != RVD_AUTH_UNSEEN;
}

// The request was wrong.
static void rvd_auth_charge(rvd_auth_guard *g, const rvd_auth_guess *guess, int64_t now_us)
{
    if (!guess->name) return;
    switch (guess->payer) {
    case RVD_AUTH_UNSEEN: break;
    case RVD_AUTH_BY_AGENT: rvd_auth_owe(g, guess->agent, RVD_AUTH_FAILURE_US, now_us); break;
    case RVD_AUTH_BY_SECRET: rvd_auth_owe(g, guess->others, RVD_AUTH_PEER_US, now_us); break;
    case RVD_AUTH_BY_NAME:
        rvd_auth_owe(g, guess->name, RVD_AUTH_FAILURE_US, now_us);
        rvd_auth_owe(g, guess->peer, RVD_AUTH_PEER_US, now_us);
        if (guess->block != guess->peer) rvd_auth_owe(g, guess->block, RVD_AUTH_BLOCK_US, now_us);
        break;
    }
}

// ---- Calls of a hook ----------------------------------------------------------------------------

// Asks for a thread of the hook.
//   peer_block   0: no peer, so without a limit
//   returns      1: call the hook now; 0: the turn waits
static int rvd_auth_turn_begin(rvd_auth_guard *g, rvd_auth_turn *t, uint64_t peer_block)
{
    rvd_base_link_init(&t->link);
    t->bucket = rvd_auth_bucket(g, peer_block);
    t->is_counted = 0;
    if (!peer_block || g->credit_us < 0) return 1;
    t->is_counted = g->hooks_of[t->bucket] < RVD_AUTH_HOOKS;
    if (t->is_counted)
        g->hooks_of[t->bucket]++;
    else
        rvd_base_link_push(&g->queue, &t->link);
    return t->is_counted;
}

// The call is over, or the request went away while it waited.
//   returns  the turn that has the thread now: call the hook for it; or NULL
static rvd_auth_turn *rvd_auth_turn_end(rvd_auth_guard *g, rvd_auth_turn *t)
{
    rvd_base_link_remove(&t->link);
    if (!t->is_counted) return NULL;
    for (rvd_base_link *l = g->queue.next; l != &g->queue; l = l->next) {
        rvd_auth_turn *next = RVD_BASE_OWNER(l, rvd_auth_turn, link);
        if (next->bucket != t->bucket) continue;
        rvd_base_link_remove(&next->link);
        next->is_counted = 1;
        return next;
    }
    g->hooks_of[t->bucket]--;
    return NULL;
}

#endif  // REVDIAL_NO_RUNTIME

// ================================================================================================
// MARK: impl.http  uses: base auth
// The upgrade handshake of both ends: bytes in, bytes out; the only state is one head. Each byte is
// checked as it arrives, and nothing that was received is ever sent back.
// Start at rvd_http_head_feed(), then rvd_http_request_read() or rvd_http_response_read().
// ================================================================================================

enum {
    RVD_HTTP_HEAD_MAX = 8192,     // bytes of a head: what nginx and Apache take by default
    RVD_HTTP_HEAD_FIRST = 1024,   // first size of the buffer: our own request fits without growing
    RVD_HTTP_FIELDS_MAX = 64,     // header lines: ours are 10, a few proxies add some each
    RVD_HTTP_METHOD_MAX = 32,     // longer than any registered method
    RVD_HTTP_TARGET_MAX = 1024,   // bytes of a path
    RVD_HTTP_INTERIM_MAX = 4,     // 1xx answers before the real one; more is a peer that plays
    RVD_HTTP_ANSWER_SIZE = 1024,  // room that rvd_http_response_write() needs at most

    RVD_HTTP_NONCE_MAX = 256,  // bytes of a nonce, cnonce or opaque of the peer; ours have 64
    RVD_HTTP_PARAMS_MAX = 32,  // parameters of one scheme: Digest has 12

    RVD_HTTP_WINDOW_MIN = 8192,  // less has us spend a frame header on every few bytes
    // Largest window, because two of them add up in 32 bits; most streams, the ids of one parity.
    RVD_HTTP_TERM_MAX = 0x7fffffff,
    RVD_HTTP_STOCK_WINDOW = 256 * 1024,  // yamux's, for a peer that announces none
    RVD_HTTP_STOCK_STREAMS = 256,        // and the backlog its implementations share

    RVD_HTTP_RETRY_MS_MIN = 1000,   // a peer's Retry-After is honoured within these bounds:
    RVD_HTTP_RETRY_MS_MAX = 300000  // it may not make us spin, nor send us away for good
};

// What the reader of a head says. From 400 on it is the HTTP status to answer.
enum rvd_http_verdict {
    RVD_HTTP_MORE = 0,  // so far it is legal
    RVD_HTTP_DONE = 1,  // the blank line was the last byte used
    RVD_HTTP_DROP = 2,  // not HTTP at all: close without a word
    RVD_HTTP_NOMEM = 3,
    RVD_HTTP_BAD = 4  // a response that breaks the protocol
};

// ---- bytes and slices ----

static int rvd_http_is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

static int rvd_http_is_alnum(uint8_t c)
{
    return rvd_http_is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

// A byte of a token, RFC 9110 section 5.6.2.
static int rvd_http_is_tchar(uint8_t c)
{
    static const char marks[] = "!#$%&'*+-.^_`|~";
    return rvd_http_is_alnum(c) || memchr(marks, c, sizeof marks - 1) != NULL;
}

// A byte of a field's value, RFC 9110 section 5.5. Bytes above ASCII are legal only in fields that
// this library ignores.
static int rvd_http_is_value_byte(uint8_t c, int ascii_only)
{
    return c == '\t' || (c >= ' ' && c < 0x7f) || (c >= 0x80 && !ascii_only);
}

// Is it this word, in upper or lower case? `word` is in lower case.
static int rvd_http_is_word(rvd_base_slice s, const char *word)
{
    if (s.len != strlen(word)) return 0;
    for (size_t i = 0; i < s.len; i++)
        if (rvd_base_lower(s.at[i]) != word[i]) return 0;
    return 1;
}

// One or more bytes, each legal in a token or equal to `also`.
static int rvd_http_is_token(rvd_base_slice s, char also)
{
    for (size_t i = 0; i < s.len; i++)
        if (!rvd_http_is_tchar((uint8_t)s.at[i]) && s.at[i] != also) return 0;
    return s.len > 0;
}

// uri-host [":" port] of RFC 9110 section 7.2, without user names, percent signs, zone ids and
// empty ports, which no host of a revdial proxy needs.
static int rvd_http_is_host(rvd_base_slice s)
{
    size_t at = 0;
    uint64_t port = 0;
    if (s.len > 0 && s.at[0] == '[') {
        at = 1;
        while (at < s.len &&
               (memchr("abcdefABCDEF:.", s.at[at], 14) || rvd_http_is_digit((uint8_t)s.at[at])))
            at++;
        if (at < 3 || at == s.len || s.at[at] != ']') return 0;
        at++;
    } else {
        while (at < s.len && (rvd_http_is_alnum((uint8_t)s.at[at]) || memchr("-._", s.at[at], 3)))
            at++;
        if (at == 0) return 0;
    }
    if (at == s.len) return 1;
    return s.at[at] == ':' && rvd_base_decimal(s.at + at + 1, s.len - at - 1, 65535, &port) &&
           port > 0;
}

// A path that a backend may request and a proxy may serve.
static int rvd_http_is_path(const char *path)
{
    size_t len = strlen(path);
    if (len == 0 || len > RVD_HTTP_TARGET_MAX || path[0] != '/') return 0;
    for (size_t i = 0; i < len; i++)
        if (path[i] <= ' ' || path[i] > '~' || path[i] == '#') return 0;
    return 1;
}

// ---- fields ----

// X(name, text): the header fields that this library reads, in lower case.
#define RVD_HTTP_FIELDS(X) \
    X(HOST, "host") \
    X(CONNECTION, "connection") \
    X(UPGRADE, "upgrade") \
    X(AUTHORIZATION, "authorization") \
    X(CONTENT_LENGTH, "content-length") \
    X(TRANSFER_ENCODING, "transfer-encoding") \
    X(EXPECT, "expect") \
    X(RETRY_AFTER, "retry-after") \
    X(CHALLENGE, "www-authenticate") \
    X(PROOF, "authentication-info") \
    X(VERSION, "revdial-version") \
    X(NAME, "revdial-name") \
    X(INSTANCE, "revdial-instance") \
    X(FEATURES, "revdial-features") \
    X(SESSION, "revdial-session") \
    X(WS_KEY, "sec-websocket-key") \
    X(WS_VERSION, "sec-websocket-version") \
    X(WS_PROTOCOL, "sec-websocket-protocol") \
    X(WS_ACCEPT, "sec-websocket-accept") \
    X(WS_EXTENSIONS, "sec-websocket-extensions") \
    X(ORIGIN, "origin") \
    X(LOCATION, "location") \
    X(COPY, "revdial-upgrade")

enum rvd_http_field_kind {
    RVD_HTTP_FIELD_OTHER = 0,
    RVD_HTTP_FIELD_REVDIAL,  // "revdial-" and something of a later version
#define RVD_HTTP_X(name, text) RVD_HTTP_FIELD_##name,
    RVD_HTTP_FIELDS(RVD_HTTP_X)
#undef RVD_HTTP_X
        RVD_HTTP_FIELD_KINDS
};

static const char *const rvd_http_field_names[RVD_HTTP_FIELD_KINDS] = {
#define RVD_HTTP_X(name, text) [RVD_HTTP_FIELD_##name] = text,
    RVD_HTTP_FIELDS(RVD_HTTP_X)
#undef RVD_HTTP_X
};

static enum rvd_http_field_kind rvd_http_field_kind_of(rvd_base_slice name)
{
    rvd_base_slice prefix = {name.at, 8};
    for (int kind = RVD_HTTP_FIELD_REVDIAL + 1; kind < RVD_HTTP_FIELD_KINDS; kind++)
        if (rvd_http_is_word(name, rvd_http_field_names[kind]))
            return (enum rvd_http_field_kind)kind;
    if (name.len > 8 && rvd_http_is_word(prefix, "revdial-")) return RVD_HTTP_FIELD_REVDIAL;
    return RVD_HTTP_FIELD_OTHER;
}

// ---- the reader of a head ----

// What the next byte belongs to.
//
//     request:   METHOD -SP-> TARGET -SP-> VERSION -CR-> LINE_LF
//     response:  STATUS -SP-> REASON -CR-> LINE_LF
//     then:      LINE_LF -LF-> LINE -tchar-> NAME -:-> VALUE -CR-> LINE_LF
//     at last:   LINE -CR-> BLANK_LF -LF-> done
enum rvd_http_state {
    RVD_HTTP_AT_METHOD = 0,  // a request starts here
    RVD_HTTP_AT_TARGET,
    RVD_HTTP_AT_VERSION,
    RVD_HTTP_AT_STATUS,  // a response starts here: "HTTP/1.1 101 "
    RVD_HTTP_AT_REASON,
    RVD_HTTP_AT_LINE_LF,
    RVD_HTTP_AT_LINE,  // a field, or the blank line
    RVD_HTTP_AT_NAME,
    RVD_HTTP_AT_VALUE,
    RVD_HTTP_AT_BLANK_LF
};

// The head of a message while it arrives. After RVD_HTTP_DONE its bytes follow the grammar.
typedef struct rvd_http_head {
    rvd_heap *heap;
    char *buf;         // holds a secret: wiped before it is given back
    size_t size, len;  // len <= RVD_HTTP_HEAD_MAX
    size_t token_at;   // where the method, target, version or name that is being read begins
    size_t target_at, target_len;
    size_t fields_at;  // where the first header line begins
    int is_request;
    enum rvd_http_state state;
    int verdict;  // the first one that is not RVD_HTTP_MORE stays
    unsigned fields;
    unsigned interims;  // 1xx responses read before this head
    int ascii_only;     // the value that is being read is of a field we know
} rvd_http_head;

static void rvd_http_head_reset(rvd_http_head *h)
{
    h->len = h->token_at = h->target_at = h->target_len = h->fields_at = 0;
    h->state = h->is_request ? RVD_HTTP_AT_METHOD : RVD_HTTP_AT_STATUS;
    h->verdict = RVD_HTTP_MORE;
    h->fields = 0;
    h->ascii_only = 0;
}

static void rvd_http_head_init(rvd_http_head *h, rvd_heap *heap, int is_request)
{
    memset(h, 0, sizeof *h);
    h->heap = heap;
    h->is_request = is_request;
    rvd_http_head_reset(h);
}

// Invalidates all pointers into the head. May be called again.
static void rvd_http_head_free(rvd_http_head *h)
{
    if (!h->buf) return;
    rvd_base_wipe(h->buf, h->size);
    rvd_base_free(h->heap, h->buf, h->size);
    h->buf = NULL;
    h->size = h->len = 0;
}

// Does not use realloc, which may leave a copy of the secret in the memory that it frees.
static int rvd_http_head_grow(rvd_http_head *h)
{
    size_t size = h->size ? 2 * h->size : RVD_HTTP_HEAD_FIRST;
    size_t len = h->len;
    char *fresh = (char *)rvd_base_alloc(h->heap, size);
    if (!fresh) return 0;
    if (len > 0) memcpy(fresh, h->buf, len);
    rvd_http_head_free(h);
    h->buf = fresh;
    h->size = size;
    h->len = len;
    return 1;
}

static void rvd_http_become(rvd_http_head *h, enum rvd_http_state to)
{
    static const unsigned arrows[] = {[RVD_HTTP_AT_METHOD] = 1u << RVD_HTTP_AT_TARGET,
                                      [RVD_HTTP_AT_TARGET] = 1u << RVD_HTTP_AT_VERSION,
                                      [RVD_HTTP_AT_VERSION] = 1u << RVD_HTTP_AT_LINE_LF,
                                      [RVD_HTTP_AT_STATUS] = 1u << RVD_HTTP_AT_REASON,
                                      [RVD_HTTP_AT_REASON] = 1u << RVD_HTTP_AT_LINE_LF,
                                      [RVD_HTTP_AT_LINE_LF] = 1u << RVD_HTTP_AT_LINE,
                                      [RVD_HTTP_AT_LINE] =
                                          1u << RVD_HTTP_AT_NAME | 1u << RVD_HTTP_AT_BLANK_LF,
                                      [RVD_HTTP_AT_NAME] = 1u << RVD_HTTP_AT_VALUE,
                                      [RVD_HTTP_AT_VALUE] = 1u << RVD_HTTP_AT_LINE_LF,
                                      [RVD_HTTP_AT_BLANK_LF] = 0};
    REVDIAL_ASSERT(arrows[h->state] & 1u << to);
    (void)arrows;  // without assertions
    h->state = to;
}

// The byte being judged ends a token; the next one begins another.
static int rvd_http_enter(rvd_http_head *h, enum rvd_http_state state)
{
    rvd_http_become(h, state);
    h->token_at = h->len + 1;
    return RVD_HTTP_MORE;
}

// TLS, SOCKS, RDP and scanners begin with a byte that no HTTP client sends first, and they read no
// answer.
static int rvd_http_take_method(rvd_http_head *h, uint8_t c)
{
    int is_control = c < ' ' && c != '\r' && c != '\n' && c != '\t';
    if (h->len == 0 && (is_control || c >= 0x7f)) return RVD_HTTP_DROP;
    if (c == ' ' && h->len > 0) return rvd_http_enter(h, RVD_HTTP_AT_TARGET);
    if (c < 'A' || c > 'Z' || h->len == RVD_HTTP_METHOD_MAX) return 400;
    return RVD_HTTP_MORE;
}

static int rvd_http_take_target(rvd_http_head *h, uint8_t c)
{
    size_t len = h->len - h->token_at;
    if (c == ' ' && len > 0) {
        h->target_at = h->token_at;
        h->target_len = len;
        return rvd_http_enter(h, RVD_HTTP_AT_VERSION);
    }
    if (c <= ' ' || c >= 0x7f) return 400;
    return len == RVD_HTTP_TARGET_MAX ? 414 : RVD_HTTP_MORE;
}

// HTTP-version of RFC 9112 section 2.3. Another version may have other rules for the bytes that
// follow, so it is checked before them.
static int rvd_http_take_version(rvd_http_head *h, uint8_t c)
{
    static const char form[] = "HTTP/0.0";  // 0 stands for a digit
    size_t at = h->len - h->token_at;
    if (at == sizeof form - 1) {
        if (c != '\r') return 400;
        if (memcmp(h->buf + h->token_at, "HTTP/1.1", at) != 0) return 505;
        return rvd_http_enter(h, RVD_HTTP_AT_LINE_LF);
    }
    if (form[at] == '0') return rvd_http_is_digit(c) ? RVD_HTTP_MORE : 400;
    return c == (uint8_t)form[at] ? RVD_HTTP_MORE : 400;
}

// status-line of RFC 9112 section 4. Version 1.0 is accepted because old load balancers use it in
// their refusals.
static int rvd_http_take_status(rvd_http_head *h, uint8_t c)
{
    static const char form[] = "HTTP/1.1 100 ";
    int is_legal;
    if (h->len == 7)
        is_legal = c == '0' || c == '1';
    else if (h->len == 9)
        is_legal = c >= '1' && c <= '5';
    else if (h->len == 10 || h->len == 11)
        is_legal = rvd_http_is_digit(c);
    else
        is_legal = c == (uint8_t)form[h->len];
    if (!is_legal) return RVD_HTTP_BAD;
    return h->len + 1 == sizeof form - 1 ? rvd_http_enter(h, RVD_HTTP_AT_REASON) : RVD_HTTP_MORE;
}

static int rvd_http_take_line(rvd_http_head *h, uint8_t c)
{
    if (h->fields == 0) h->fields_at = h->len;
    if (c == '\r') return rvd_http_enter(h, RVD_HTTP_AT_BLANK_LF);
    if (!rvd_http_is_tchar(c)) return 400;
    if (h->fields == RVD_HTTP_FIELDS_MAX) return 431;
    h->fields++;
    rvd_http_become(h, RVD_HTTP_AT_NAME);
    h->token_at = h->len;
    return RVD_HTTP_MORE;
}

static int rvd_http_take_name(rvd_http_head *h, uint8_t c)
{
    rvd_base_slice name = {h->buf + h->token_at, h->len - h->token_at};
    if (c != ':') return rvd_http_is_tchar(c) ? RVD_HTTP_MORE : 400;
    h->ascii_only = rvd_http_field_kind_of(name) != RVD_HTTP_FIELD_OTHER;
    return rvd_http_enter(h, RVD_HTTP_AT_VALUE);
}

static int rvd_http_take_value(rvd_http_head *h, uint8_t c, int ascii_only)
{
    if (c == '\r') return rvd_http_enter(h, RVD_HTTP_AT_LINE_LF);
    return rvd_http_is_value_byte(c, ascii_only) ? RVD_HTTP_MORE : 400;
}

static int rvd_http_take_lf(rvd_http_head *h, uint8_t c)
{
    return c == '\n' ? rvd_http_enter(h, RVD_HTTP_AT_LINE) : 400;
}

static int rvd_http_take(rvd_http_head *h, uint8_t c)
{
    switch (h->state) {
    case RVD_HTTP_AT_METHOD: return rvd_http_take_method(h, c);
    case RVD_HTTP_AT_TARGET: return rvd_http_take_target(h, c);
    case RVD_HTTP_AT_VERSION: return rvd_http_take_version(h, c);
    case RVD_HTTP_AT_STATUS: return rvd_http_take_status(h, c);
    case RVD_HTTP_AT_REASON: return rvd_http_take_value(h, c, 0);
    case RVD_HTTP_AT_LINE_LF: return rvd_http_take_lf(h, c);
    case RVD_HTTP_AT_LINE: return rvd_http_take_line(h, c);
    case RVD_HTTP_AT_NAME: return rvd_http_take_name(h, c);
    case RVD_HTTP_AT_VALUE: return rvd_http_take_value(h, c, h->ascii_only);
    case RVD_HTTP_AT_BLANK_LF: return c == '\n' ? RVD_HTTP_DONE : 400;
    }
    return 400;
}

// Takes bytes until the head is complete or illegal, and none beyond.
//   used     bytes taken: after RVD_HTTP_DONE up to and with the blank line, after a refusal up to
//            and with the illegal byte
//   returns  an rvd_http_verdict or, for a request, the status to answer; later calls repeat it
static int rvd_http_head_feed(rvd_http_head *h, const uint8_t *buf, size_t len, size_t *used)
{
    size_t at = 0;
    while (at < len && h->verdict == RVD_HTTP_MORE) {
        if (h->len == RVD_HTTP_HEAD_MAX) {
            h->verdict = 431;
        } else if (h->len == h->size && !rvd_http_head_grow(h)) {
            h->verdict = RVD_HTTP_NOMEM;
            break;
        } else {
            h->buf[h->len] = (char)buf[at];
            h->verdict = rvd_http_take(h, buf[at]);
            h->len++;
        }
        at++;
    }
    if (!h->is_request && h->verdict >= 400) h->verdict = RVD_HTTP_BAD;
    *used = at;
    return h->verdict;
}

// ---- challenges and parameters ----

// X(name, text): the parameters of Digest, its challenge and its proof.
#define RVD_HTTP_PARAMS(X) \
    X(USERNAME, "username") \
    X(REALM, "realm") \
    X(NONCE, "nonce") \
    X(URI, "uri") \
    X(RESPONSE, "response") \
    X(QOP, "qop") \
    X(NC, "nc") \
    X(CNONCE, "cnonce") \
    X(ALGORITHM, "algorithm") \
    X(OPAQUE, "opaque") \
    X(USERHASH, "userhash") \
    X(STALE, "stale") \
    X(RSPAUTH, "rspauth")

enum rvd_http_param {
#define RVD_HTTP_X(name, text) RVD_HTTP_PARAM_##name,
    RVD_HTTP_PARAMS(RVD_HTTP_X)
#undef RVD_HTTP_X
        RVD_HTTP_PARAM_KINDS
};

typedef struct rvd_http_params {
    rvd_base_slice value[RVD_HTTP_PARAM_KINDS];
    unsigned seen;  // a bit of each kind
    unsigned count;
} rvd_http_params;

static void rvd_http_skip(rvd_base_slice *s, size_t len)
{
    s->at += len;
    s->len -= len;
}

static void rvd_http_skip_any(rvd_base_slice *s, const char *set, size_t set_len)
{
    while (s->len > 0 && memchr(set, s->at[0], set_len)) rvd_http_skip(s, 1);
}

static rvd_base_slice rvd_http_take_token(rvd_base_slice *rest)
{
    rvd_base_slice token = {rest->at, 0};
    while (token.len < rest->len && rvd_http_is_tchar((uint8_t)rest->at[token.len])) token.len++;
    rvd_http_skip(rest, token.len);
    return token;
}

// The value behind the '=' of an auth-param (RFC 9110 section 11.2): a token or a quoted string. A
// string with a backslash is refused: ours have none, and two readers may disagree about it.
//   returns  1 and *value, or 0
static int rvd_http_take_value_of(rvd_base_slice *rest, rvd_base_slice *value)
{
    rvd_http_skip_any(rest, " \t", 2);
    if (rest->len > 0 && rest->at[0] == '"') {
        rvd_http_skip(rest, 1);
        value->at = rest->at;
        value->len = 0;
        while (value->len < rest->len && !memchr("\"\\", rest->at[value->len], 2)) value->len++;
        if (value->len == rest->len || rest->at[value->len] != '"') return 0;
        rvd_http_skip(rest, value->len + 1);
    } else {
        *value = rvd_http_take_token(rest);
        if (value->len == 0) return 0;
    }
    rvd_http_skip_any(rest, " \t", 2);
    return rest->len == 0 || rest->at[0] == ',';
}

// Takes the "= value" of the parameter `name`. Unknown parameters are only counted.
//   returns  1, or 0: malformed, a repetition, or more than RVD_HTTP_PARAMS_MAX
static int rvd_http_take_param(rvd_base_slice *rest, rvd_base_slice name, rvd_http_params *out)
{
    rvd_base_slice value;
    if (rest->len == 0 || rest->at[0] != '=') return 0;
    rvd_http_skip(rest, 1);
    if (!rvd_http_take_value_of(rest, &value) || out->count++ == RVD_HTTP_PARAMS_MAX) return 0;
#define RVD_HTTP_X(kind, text) \
    if (rvd_http_is_word(name, text)) { \
        if (out->seen & 1u << RVD_HTTP_PARAM_##kind) return 0; \
        out->seen |= 1u << RVD_HTTP_PARAM_##kind; \
        out->value[RVD_HTTP_PARAM_##kind] = value; \
    }
    RVD_HTTP_PARAMS(RVD_HTTP_X)
#undef RVD_HTTP_X
    return 1;
}

// Reads a text that is a comma list of parameters.
static int rvd_http_params_read(rvd_base_slice rest, rvd_http_params *out)
{
    memset(out, 0, sizeof *out);
    for (;;) {
        rvd_base_slice name;
        rvd_http_skip_any(&rest, " \t,", 3);
        if (rest.len == 0) return 1;
        name = rvd_http_take_token(&rest);
        rvd_http_skip_any(&rest, " \t", 2);
        if (name.len == 0 || !rvd_http_take_param(&rest, name, out)) return 0;
    }
}

// What the WWW-Authenticate lines of a 401 accept.
typedef struct rvd_http_challenge {
    unsigned schemes;  // REVDIAL_AUTH_*; DIGEST only with SHA-256 and qop=auth
    int is_bad;        // something broke the grammar; counts if nothing else is of use
    int is_stale;      // of the DIGEST one
    rvd_base_slice realm, nonce, opaque;
} rvd_http_challenge;

static int rvd_http_lists(rvd_base_slice list, const char *word)
{
    rvd_base_slice item;
    while (rvd_base_list_next(&list, &item))
        if (rvd_http_is_word(item, word)) return 1;
    return 0;
}

// A challenge is complete. The first Digest challenge that we can answer counts. MD5, the default
// when there is no algorithm parameter, is not one.
static void rvd_http_challenge_note(rvd_http_challenge *c, rvd_base_slice scheme,
                                    const rvd_http_params *p)
{
    const unsigned needed = 1u << RVD_HTTP_PARAM_REALM | 1u << RVD_HTTP_PARAM_NONCE;
    if (rvd_http_is_word(scheme, "bearer")) c->schemes |= REVDIAL_AUTH_BEARER;
    if (rvd_http_is_word(scheme, "basic")) c->schemes |= REVDIAL_AUTH_BASIC;
    if (!rvd_http_is_word(scheme, "digest") || c->schemes & REVDIAL_AUTH_DIGEST) return;
    if (!rvd_http_is_word(p->value[RVD_HTTP_PARAM_ALGORITHM], "sha-256")) return;
    if (!rvd_http_lists(p->value[RVD_HTTP_PARAM_QOP], "auth")) return;
    c->realm = p->value[RVD_HTTP_PARAM_REALM];
    c->nonce = p->value[RVD_HTTP_PARAM_NONCE];
    c->opaque = p->value[RVD_HTTP_PARAM_OPAQUE];
    c->is_stale = rvd_http_is_word(p->value[RVD_HTTP_PARAM_STALE], "true");
    if ((p->seen & needed) != needed || c->nonce.len == 0 || c->realm.len > RVD_AUTH_REALM_MAX ||
        c->nonce.len > RVD_HTTP_NONCE_MAX || c->opaque.len > RVD_HTTP_NONCE_MAX)
        c->is_bad = 1;
    else
        c->schemes |= REVDIAL_AUTH_DIGEST;
}

// Adds one line, which may hold several challenges (RFC 9110 section 11.6.1): a token that no '='
// follows begins the next challenge.
static void rvd_http_challenge_read(rvd_http_challenge *c, rvd_base_slice rest)
{
    rvd_base_slice scheme = {NULL, 0}, word;
    rvd_http_params params;
    memset(&params, 0, sizeof params);
    for (;;) {
        rvd_http_skip_any(&rest, " \t,", 3);
        if (rest.len == 0) break;
        word = rvd_http_take_token(&rest);
        rvd_http_skip_any(&rest, " \t", 2);
        if (word.len > 0 && (rest.len == 0 || rest.at[0] != '=')) {
            rvd_http_challenge_note(c, scheme, &params);
            memset(&params, 0, sizeof params);
            scheme = word;
        } else if (word.len == 0 || !rvd_http_take_param(&rest, word, &params)) {
            c->is_bad = 1;
            return;
        }
    }
    rvd_http_challenge_note(c, scheme, &params);
}

// ---- what a head says ----

// What the lists of Connection, Upgrade and other fields say.
enum {
    RVD_HTTP_ASKS_UPGRADE = 1,   // Connection: upgrade
    RVD_HTTP_ASKS_CLOSE = 2,     // Connection: close
    RVD_HTTP_HAS_REVDIAL = 4,    // Upgrade: revdial
    RVD_HTTP_HAS_WEBSOCKET = 8,  // Upgrade: websocket
    RVD_HTTP_BAD_LIST = 16,      // either is malformed, or Connection would have a field removed
    RVD_HTTP_BAD_FEATURES = 32,  // Revdial-Features is malformed
    RVD_HTTP_HAS_PROTOCOL = 64   // Sec-WebSocket-Protocol: revdial
};

// What one end announces to the other, in a request or in a 101.
typedef struct rvd_http_terms {
    int is_revdial;     // it sends Revdial-Version; if not, these are a stock peer's terms
    unsigned features;  // REVDIAL_FEATURE_* that it has
    uint32_t window;    // bytes that the other end may send on a new stream
    uint32_t streams;   // how many streams the other end may open
    int has_window, has_streams;  // it announced them, so it understands ours
} rvd_http_terms;

static const rvd_http_terms rvd_http_stock = {.window = RVD_HTTP_STOCK_WINDOW,
                                              .streams = RVD_HTTP_STOCK_STREAMS};

typedef struct rvd_http_facts {
    rvd_base_slice value[RVD_HTTP_FIELD_KINDS];  // of the last line of each kind, trimmed
    unsigned count[RVD_HTTP_FIELD_KINDS];        // lines of each kind
    unsigned flags;
    unsigned upgrades, protocols;  // items of Upgrade, of Sec-WebSocket-Protocol
    rvd_http_terms terms;
    rvd_http_challenge challenge;  // all lines of it
} rvd_http_facts;

typedef struct rvd_http_feature {
    const char *name;
    unsigned bit;
} rvd_http_feature;

static const rvd_http_feature rvd_http_features[] = {{"rstcode", REVDIAL_FEATURE_RSTCODE},
                                                     {"preamble", REVDIAL_FEATURE_PREAMBLE},
                                                     {"drain", REVDIAL_FEATURE_DRAIN},
                                                     {"promptack", REVDIAL_FEATURE_PROMPTACK},
                                                     {"pings", REVDIAL_FEATURE_PINGS}};
enum { RVD_HTTP_FEATURE_COUNT = sizeof rvd_http_features / sizeof rvd_http_features[0] };

// A Connection option names a field that the next hop removes (RFC 9110 section 7.6.1). If it named
// a field that this library reads, a middlebox could remove what the handshake depends on.
static void rvd_http_note_connection(rvd_http_facts *f, rvd_base_slice item)
{
    enum rvd_http_field_kind kind = rvd_http_field_kind_of(item);
    if (kind == RVD_HTTP_FIELD_UPGRADE)
        f->flags |= RVD_HTTP_ASKS_UPGRADE;
    else if (rvd_http_is_word(item, "close"))
        f->flags |= RVD_HTTP_ASKS_CLOSE;
    else if (kind != RVD_HTTP_FIELD_OTHER || !rvd_http_is_token(item, '-'))
        f->flags |= RVD_HTTP_BAD_LIST;
}

static void rvd_http_note_upgrade(rvd_http_facts *f, rvd_base_slice item)
{
    if (!rvd_http_is_token(item, '/')) f->flags |= RVD_HTTP_BAD_LIST;
    if (rvd_http_is_word(item, "revdial")) f->flags |= RVD_HTTP_HAS_REVDIAL;
    if (rvd_http_is_word(item, "websocket")) f->flags |= RVD_HTTP_HAS_WEBSOCKET;
    f->upgrades++;
}

// RFC 6455 section 11.3.4: the case of a subprotocol counts.
static void rvd_http_note_protocol(rvd_http_facts *f, rvd_base_slice item)
{
    if (item.len == 7 && memcmp(item.at, "revdial", 7) == 0) f->flags |= RVD_HTTP_HAS_PROTOCOL;
    f->protocols++;
}

// "window=65536": sets *out and *has, or RVD_HTTP_BAD_FEATURES if it is no such number or not the
// first.
static void rvd_http_note_number(rvd_http_facts *f, rvd_base_slice number, uint64_t least,
                                 uint32_t *out, int *has)
{
    uint64_t n = 0;
    if (!rvd_base_decimal(number.at, number.len, RVD_HTTP_TERM_MAX, &n) || n < least || *has)
        f->flags |= RVD_HTTP_BAD_FEATURES;
    *has = 1;
    *out = (uint32_t)n;
}

static void rvd_http_note_feature(rvd_http_facts *f, rvd_base_slice item)
{
    const char *equals = (const char *)memchr(item.at, '=', item.len);
    rvd_base_slice key = {item.at, equals ? (size_t)(equals - item.at) : item.len};
    rvd_base_slice number = {item.at + key.len, 0};
    rvd_http_terms *t = &f->terms;
    if (equals) {
        number.at++;
        number.len = item.len - key.len - 1;
    }
    if (!rvd_http_is_token(item, '=')) f->flags |= RVD_HTTP_BAD_FEATURES;
    if (rvd_http_is_word(key, "window"))
        rvd_http_note_number(f, number, RVD_HTTP_WINDOW_MIN, &t->window, &t->has_window);
    else if (rvd_http_is_word(key, "streams"))
        rvd_http_note_number(f, number, 0, &t->streams, &t->has_streams);
    for (size_t i = 0; i < RVD_HTTP_FEATURE_COUNT; i++)
        if (rvd_http_is_word(item, rvd_http_features[i].name))
            t->features |= rvd_http_features[i].bit;
}

// Splits the header line at *at, which the reader has accepted, and moves *at to the next line.
//   returns  1 and its name and value, or 0 at the blank line
static int rvd_http_field_next(const rvd_http_head *h, size_t *at, rvd_base_slice *name,
                               rvd_base_slice *value)
{
    const char *line = h->buf + *at;
    const char *colon, *cr;
    if (*line == '\r') return 0;
    colon = (const char *)memchr(line, ':', h->len - *at);
    cr = (const char *)memchr(line, '\r', h->len - *at);
    REVDIAL_ASSERT(colon && cr && colon < cr);
    name->at = line;
    name->len = (size_t)(colon - line);
    value->at = colon + 1;
    value->len = (size_t)(cr - colon) - 1;
    *value = rvd_base_trim(*value);
    *at += (size_t)(cr - line) + 2;
    return 1;
}

static void rvd_http_gather(const rvd_http_head *h, rvd_http_facts *f)
{
    size_t at = h->fields_at;
    rvd_base_slice name, value, item;
    memset(f, 0, sizeof *f);
    f->terms = rvd_http_stock;
    while (rvd_http_field_next(h, &at, &name, &value)) {
        enum rvd_http_field_kind kind = rvd_http_field_kind_of(name);
        f->count[kind]++;
        f->value[kind] = value;
        if (kind == RVD_HTTP_FIELD_CONNECTION)
            while (rvd_base_list_next(&value, &item)) rvd_http_note_connection(f, item);
        if (kind == RVD_HTTP_FIELD_UPGRADE)
            while (rvd_base_list_next(&value, &item)) rvd_http_note_upgrade(f, item);
        if (kind == RVD_HTTP_FIELD_FEATURES)
            while (rvd_base_list_next(&value, &item)) rvd_http_note_feature(f, item);
        if (kind == RVD_HTTP_FIELD_CHALLENGE) rvd_http_challenge_read(&f->challenge, value);
        if (kind == RVD_HTTP_FIELD_WS_PROTOCOL)
            while (rvd_base_list_next(&value, &item)) rvd_http_note_protocol(f, item);
    }
    f->terms.is_revdial = f->count[RVD_HTTP_FIELD_VERSION] > 0;
    if (!f->terms.is_revdial) f->terms = rvd_http_stock;
}

// Each end announces its own version, and the lower one is in force, so that later versions work
// with this one. A peer that sends no version is a stock peer, whatever else it sends.
//   returns  1, or 0: malformed
static int rvd_http_check_terms(const rvd_http_facts *f)
{
    rvd_base_slice version = f->value[RVD_HTTP_FIELD_VERSION];
    uint64_t n = 0;
    if (f->flags & RVD_HTTP_BAD_FEATURES || f->count[RVD_HTTP_FIELD_VERSION] > 1) return 0;
    if (!f->terms.is_revdial) return 1;
    return rvd_base_decimal(version.at, version.len, 999, &n) && n >= 1;
}

// ---- WebSocket ----

enum { RVD_HTTP_ACCEPT_SIZE = 29 };  // the 20 bytes of a SHA-1 in base64

// Sec-WebSocket-Accept for a key shows that the server knows WebSocket (RFC 6455 section 4.2.2).
static void rvd_http_accept_of(rvd_base_slice key, char accept[RVD_HTTP_ACCEPT_SIZE])
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    uint8_t both[24 + sizeof guid - 1], digest[RVD_BASE_SHA1_SIZE];
    rvd_base_text t = rvd_base_text_in(accept, RVD_HTTP_ACCEPT_SIZE);
    REVDIAL_ASSERT(key.len == 24);
    memcpy(both, key.at, 24);
    memcpy(both + 24, guid, sizeof guid - 1);
    rvd_base_sha1(both, sizeof both, digest);
    rvd_base_text_add_base64(&t, digest, sizeof digest);
}

// 16 bytes in base64.
static int rvd_http_is_ws_key(rvd_base_slice s)
{
    if (s.len != 24 || s.at[22] != '=' || s.at[23] != '=') return 0;
    for (size_t i = 0; i < 22; i++)
        if (!rvd_http_is_alnum((uint8_t)s.at[i]) && s.at[i] != '+' && s.at[i] != '/') return 0;
    return memchr("AQgw", s.at[21], 4) != NULL;  // 4 of its 6 bits are padding
}

// Checks the fields of RFC 6455 section 4.2.1 that only WebSocket has. Extensions are ignored.
//   returns  0, or the status to answer
static int rvd_http_check_websocket(const rvd_http_facts *f)
{
    rvd_base_slice version = f->value[RVD_HTTP_FIELD_WS_VERSION];
    if (f->count[RVD_HTTP_FIELD_WS_VERSION] > 1 || f->count[RVD_HTTP_FIELD_WS_KEY] > 1) return 400;
    if (!rvd_http_is_word(version, "13")) return 426;
    if (!rvd_http_is_ws_key(f->value[RVD_HTTP_FIELD_WS_KEY])) return 400;
    return f->flags & RVD_HTTP_HAS_PROTOCOL ? 0 : 400;
}

// Does the 101 answer this key, with our subprotocol and no extension (section 4.1)?
static int rvd_http_is_ws_switch(const rvd_http_facts *f, const char *accept)
{
    rvd_base_slice got = f->value[RVD_HTTP_FIELD_WS_ACCEPT];
    if (f->count[RVD_HTTP_FIELD_WS_ACCEPT] != 1 || f->count[RVD_HTTP_FIELD_WS_EXTENSIONS]) return 0;
    if (got.len != strlen(accept) || memcmp(got.at, accept, got.len) != 0) return 0;
    return f->protocols == 1 && f->flags & RVD_HTTP_HAS_PROTOCOL;
}

// ---- the request ----

// X(KIND, member, field, upper_ok, rule): the fields that hold a name. A backend takes it from that
// member of revdial_engine_config, a proxy shows it in that of revdial_auth_req.
#define RVD_HTTP_LABELS(X) \
    X(NAME, name, "Revdial-Name", 0, RVD_BASE_NAME_RULE) \
    X(INSTANCE, instance, "Revdial-Instance", 1, RVD_BASE_INSTANCE_RULE)

// What a backend's request says. Its strings are never NULL and point into the head.
typedef struct rvd_http_request {
    revdial_auth_req auth;  // without peer, tls, proof and group
    revdial_digest digest;  // DIGEST: where auth.digest points
    rvd_http_terms terms;
    int is_stripped;                    // 426 because a middlebox took Upgrade or Connection away
    int is_probe;                       // nothing in it asks for a session
    int carrier;                        // REVDIAL_CARRIER_*
    char accept[RVD_HTTP_ACCEPT_SIZE];  // WebSocket: what the answer to its key is
} rvd_http_request;

// Ends a value with a NUL in place: it is followed at least by the CR of its line.
static const char *rvd_http_terminate(rvd_http_head *h, rvd_base_slice value)
{
    char *at;
    if (!value.at || value.len == 0) return "";
    at = h->buf + (value.at - h->buf);
    at[value.len] = '\0';
    return at;
}

// The path is compared byte for byte. The other forms of a target (RFC 9112 sections 3.2.2 to
// 3.2.4: a URI, an authority, or '*') are refused: they are for HTTP proxies.
static int rvd_http_check_target(const rvd_http_head *h, const char *path)
{
    const char *target = h->buf + h->target_at;
    if (rvd_http_is_alnum((uint8_t)target[0]) || target[0] == '[' || target[0] == '*') return 400;
    if (h->target_len != strlen(path)) return 404;
    return memcmp(target, path, h->target_len) == 0 ? 0 : 404;
}

// A connection carries one request, without a body. Anything that could make two readers disagree
// about its end is refused (RFC 9112 section 11.2).
static int rvd_http_check_framing(const rvd_http_facts *f)
{
    rvd_base_slice length = f->value[RVD_HTTP_FIELD_CONTENT_LENGTH];
    unsigned lengths = f->count[RVD_HTTP_FIELD_CONTENT_LENGTH];
    if (f->count[RVD_HTTP_FIELD_HOST] != 1) return 400;
    if (!rvd_http_is_host(f->value[RVD_HTTP_FIELD_HOST])) return 400;
    if (f->count[RVD_HTTP_FIELD_TRANSFER_ENCODING] > 0 || lengths > 1) return 400;
    if (lengths == 1 && (length.len != 1 || length.at[0] != '0')) return 400;
    if (f->count[RVD_HTTP_FIELD_EXPECT] > 0) return 417;
    return 0;
}

static int rvd_http_check_upgrade(const rvd_http_facts *f)
{
    if (f->flags & RVD_HTTP_BAD_LIST) return 400;
    if (!(f->flags & RVD_HTTP_ASKS_UPGRADE)) return 426;
    if (f->flags & RVD_HTTP_ASKS_CLOSE) return 400;
    if (f->flags & RVD_HTTP_HAS_REVDIAL) return 0;
    return f->flags & RVD_HTTP_HAS_WEBSOCKET ? rvd_http_check_websocket(f) : 426;
}

// A browser names the origin of the page that makes the request (RFC 6455 section 10.2); other
// clients need not. A page must not register with the client certificate or the network access of
// its browser. That Origin equals Host proves nothing: the author of the page controls where that
// name leads.
static int rvd_http_may_origin(const rvd_http_facts *f, const char *origins)
{
    rvd_base_slice rest, item, origin = f->value[RVD_HTTP_FIELD_ORIGIN];
    if (f->count[RVD_HTTP_FIELD_ORIGIN] == 0) return 1;
    if (f->count[RVD_HTTP_FIELD_ORIGIN] > 1 || !origins) return 0;
    rest = rvd_base_slice_of(origins);
    while (rvd_base_list_next(&rest, &item))
        if (rvd_base_glob(item.at, item.len, origin.at, origin.len)) return 1;
    return 0;
}

// A browser's Origin is "null" or scheme://host[:port] in lower case, without anything behind it.
// Could one match this glob? A '*' may stand for any part.
static int rvd_http_is_origin_glob(rvd_base_slice s)
{
    size_t host = 0;  // where it begins
    for (size_t i = 0; i < s.len; i++) {
        char c = s.at[i];
        if (c == '/' && i > 1 && s.at[i - 1] == '/' && s.at[i - 2] == ':') host = i + 1;
        if (c <= ' ' || c > '~' || (c >= 'A' && c <= 'Z')) return 0;
        if (c == '/' && host && i >= host) return 0;
    }
    if (s.at[s.len - 1] == '/') return 0;
    return host || memchr(s.at, '*', s.len) || rvd_http_is_word(s, "null");
}

static const char *rvd_http_origins_problem(const char *origins)
{
    rvd_base_slice rest = rvd_base_slice_of(origins), item;
    while (rvd_base_list_next(&rest, &item))
        if (!rvd_http_is_origin_glob(item))
            return "origins: one that no browser sends: scheme://host[:port] in lower case, and "
                   "nothing behind it; * and ? are globs";
    return NULL;
}

// Did the backend ask for an upgrade? Revdial-Upgrade says so, which no middlebox removes.
static int rvd_http_has_copy(const rvd_http_facts *f)
{
    rvd_base_slice copy = f->value[RVD_HTTP_FIELD_COPY];
    return rvd_http_is_word(copy, "revdial") || rvd_http_is_word(copy, "websocket");
}

// Do the fields look like those of a health check, a browser or a crawler?
static int rvd_http_is_probe(const rvd_http_facts *f)
{
    static const enum rvd_http_field_kind ours[] = {RVD_HTTP_FIELD_UPGRADE, RVD_HTTP_FIELD_COPY,
                                                    RVD_HTTP_FIELD_VERSION, RVD_HTTP_FIELD_NAME,
                                                    RVD_HTTP_FIELD_AUTHORIZATION};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (f->count[ours[i]]) return 0;
    return 1;
}

// The same for the rest of a request that was refused for its first line: HTTP/1.0, which some
// health checks speak, and front ends unless they are configured for 1.1.
static int rvd_http_is_probe_rest(const uint8_t *rest, size_t len)
{
    static const char field[] = "evdial-";
    for (size_t i = 0; i + sizeof field <= len; i++)
        if (memcmp(rest + i, field, sizeof field - 1) == 0) return 0;
    return 1;
}

// A field that holds a name must be absent, or stand there once and be legal.
static int rvd_http_check_label(const rvd_http_facts *f, enum rvd_http_field_kind kind,
                                int upper_ok)
{
    if (f->count[kind] == 0) return 1;
    return f->count[kind] == 1 &&
           rvd_base_is_label(f->value[kind].at, f->value[kind].len, upper_ok);
}

static int rvd_http_is_lower_hex(rvd_base_slice s, size_t len)
{
    if (s.len != len) return 0;
    for (size_t i = 0; i < len; i++)
        if (!memchr("0123456789abcdef", s.at[i], 16)) return 0;
    return 1;
}

static int rvd_http_read_bearer(rvd_http_head *h, rvd_base_slice token, rvd_http_request *out)
{
    if (!rvd_auth_is_bearer(token.at, token.len)) return 400;
    out->auth.scheme = REVDIAL_AUTH_BEARER;
    out->auth.secret = rvd_http_terminate(h, token);
    return 0;
}

// RFC 7617 section 2: base64 of user ':' password, decoded in place. Anything else is answered like
// a wrong password.
static int rvd_http_read_basic(rvd_http_head *h, rvd_base_slice token, rvd_http_request *out)
{
    char *at = h->buf + (token.at - h->buf), *colon;
    ptrdiff_t len = -1;
    if (token.len <= RVD_AUTH_TOKEN_MAX)
        len = rvd_base_base64_read((uint8_t *)at, token.at, token.len);
    colon = len > 0 ? (char *)memchr(at, ':', (size_t)len) : NULL;
    if (!colon || colon - at > RVD_AUTH_IDENTITY_MAX) return 401;
    for (ptrdiff_t i = 0; i < len; i++)
        if ((uint8_t)at[i] < ' ' || at[i] == 0x7f) return 401;
    *colon = at[len] = '\0';
    out->auth.scheme = REVDIAL_AUTH_BASIC;
    out->auth.user = at;
    out->auth.secret = colon + 1;
    return 0;
}

// RFC 7616 section 3.4. Nonce, realm and uri are checked later.
static int rvd_http_read_digest(rvd_http_head *h, rvd_base_slice rest, rvd_http_request *out)
{
    const unsigned needed = (1u << (RVD_HTTP_PARAM_CNONCE + 1)) - 1;  // the first eight
    rvd_http_params p;
    const rvd_base_slice *v = p.value;
    if (!rvd_http_params_read(rest, &p) || (p.seen & needed) != needed) return 400;
    if (v[RVD_HTTP_PARAM_USERNAME].len > RVD_AUTH_IDENTITY_MAX) return 400;
    if (v[RVD_HTTP_PARAM_REALM].len > RVD_AUTH_REALM_MAX) return 400;
    if (v[RVD_HTTP_PARAM_URI].len > RVD_HTTP_TARGET_MAX) return 400;
    if (v[RVD_HTTP_PARAM_NONCE].len > RVD_HTTP_NONCE_MAX) return 400;
    if (v[RVD_HTTP_PARAM_CNONCE].len > RVD_HTTP_NONCE_MAX) return 400;
    if (!rvd_http_is_lower_hex(v[RVD_HTTP_PARAM_RESPONSE], 64)) return 400;
    if (!rvd_http_is_lower_hex(v[RVD_HTTP_PARAM_NC], 8)) return 400;
    if (!rvd_http_is_word(v[RVD_HTTP_PARAM_ALGORITHM], "sha-256")) return 401;  // absent: MD5
    if (!rvd_http_is_word(v[RVD_HTTP_PARAM_QOP], "auth")) return 401;
    if (rvd_http_is_word(v[RVD_HTTP_PARAM_USERHASH], "true")) return 401;
    out->auth.scheme = REVDIAL_AUTH_DIGEST;
    out->auth.user = rvd_http_terminate(h, v[RVD_HTTP_PARAM_USERNAME]);
    out->digest.realm = rvd_http_terminate(h, v[RVD_HTTP_PARAM_REALM]);
    out->digest.nonce = rvd_http_terminate(h, v[RVD_HTTP_PARAM_NONCE]);
    out->digest.uri = rvd_http_terminate(h, v[RVD_HTTP_PARAM_URI]);
    out->digest.nc = rvd_http_terminate(h, v[RVD_HTTP_PARAM_NC]);
    out->digest.cnonce = rvd_http_terminate(h, v[RVD_HTTP_PARAM_CNONCE]);
    out->digest.response = rvd_http_terminate(h, v[RVD_HTTP_PARAM_RESPONSE]);
    out->auth.digest = &out->digest;
    return 0;
}

// credentials of RFC 9110 section 11.4. An unknown scheme is answered like wrong credentials.
//   returns  0 and the credentials in *out, or the status to answer
static int rvd_http_read_authorization(rvd_http_head *h, const rvd_http_facts *f,
                                       rvd_http_request *out)
{
    rvd_base_slice rest = f->value[RVD_HTTP_FIELD_AUTHORIZATION], scheme;
    if (f->count[RVD_HTTP_FIELD_AUTHORIZATION] == 0) return 0;
    if (f->count[RVD_HTTP_FIELD_AUTHORIZATION] > 1) return 400;
    scheme = rvd_http_take_token(&rest);
    if (scheme.len == 0 || (rest.len > 0 && rest.at[0] != ' ')) return 400;
    rvd_http_skip_any(&rest, " ", 1);
    if (rvd_http_is_word(scheme, "bearer")) return rvd_http_read_bearer(h, rest, out);
    if (rvd_http_is_word(scheme, "basic")) return rvd_http_read_basic(h, rest, out);
    if (rvd_http_is_word(scheme, "digest")) return rvd_http_read_digest(h, rest, out);
    return 401;
}

static int rvd_http_read_ours(rvd_http_head *h, const rvd_http_facts *f, rvd_http_request *out)
{
    int status, is_legal = rvd_http_check_terms(f);
#define RVD_HTTP_X(kind, member, field, upper_ok, rule) \
    is_legal &= rvd_http_check_label(f, RVD_HTTP_FIELD_##kind, upper_ok);
    RVD_HTTP_LABELS(RVD_HTTP_X)
#undef RVD_HTTP_X
    if (!is_legal) return 400;
    status = rvd_http_read_authorization(h, f, out);
    if (status) return status;
#define RVD_HTTP_X(kind, member, field, upper_ok, rule) \
    out->auth.member = rvd_http_terminate(h, f->value[RVD_HTTP_FIELD_##kind]);
    RVD_HTTP_LABELS(RVD_HTTP_X)
#undef RVD_HTTP_X
    return 0;
}

// Reads a request whose head is complete. May be called once per head, because it ends values in
// place.
//   path     of this proxy
//   origins  of the pages that may use a browser's WebSocket; NULL = none
//   returns  0, or the status to answer; the credentials are read but not verified
static int rvd_http_request_read(rvd_http_head *h, const char *path, const char *origins,
                                 rvd_http_request *out)
{
    rvd_http_facts facts;
    int status;
    REVDIAL_ASSERT(h->is_request && h->verdict == RVD_HTTP_DONE);
    memset(out, 0, sizeof *out);
    out->auth.secret = out->auth.user = "";
#define RVD_HTTP_X(kind, member, field, upper_ok, rule) out->auth.member = "";
    RVD_HTTP_LABELS(RVD_HTTP_X)
#undef RVD_HTTP_X
    rvd_http_gather(h, &facts);
    out->is_probe = rvd_http_is_probe(&facts);
    out->terms = facts.terms;
    if (h->target_at != 4 || memcmp(h->buf, "GET", 3) != 0) return 405;
    status = rvd_http_check_target(h, path);
    if (status) return status;
    status = rvd_http_check_framing(&facts);
    if (status) return status;
    status = rvd_http_check_upgrade(&facts);
    out->is_stripped = status == 426 && rvd_http_has_copy(&facts);
    if (status) return status;
    if (!rvd_http_may_origin(&facts, origins)) return 403;
    if (!(facts.flags & RVD_HTTP_HAS_REVDIAL)) {
        out->carrier = REVDIAL_CARRIER_WEBSOCKET;
        rvd_http_accept_of(facts.value[RVD_HTTP_FIELD_WS_KEY], out->accept);
    }
    return rvd_http_read_ours(h, &facts, out);
}

// The request that a backend sends.
typedef struct rvd_http_offer {
    const revdial_engine_config *cfg;  // the names, each NULL or "" to leave it out; the headers
    const char *host, *path;
    const char *secret;            // NULL or "" sends no Authorization
    unsigned scheme;               // REVDIAL_AUTH_*, 0 = BEARER
    const char *user;              // BASIC, DIGEST
    const revdial_digest *digest;  // DIGEST
    const char *opaque;            // DIGEST: of the challenge, "" = there was none
    const char *ws_key;            // WebSocket: Sec-WebSocket-Key; NULL asks for the raw carrier
    rvd_http_terms terms;          // is_revdial is not looked at
} rvd_http_offer;

// An application may add any header except those that the handshake uses.
static int rvd_http_is_extra(const revdial_kv *header)
{
    rvd_base_slice name, value;
    if (!header->key || !header->value) return 0;
    name = rvd_base_slice_of(header->key);
    value = rvd_base_slice_of(header->value);
    if (!rvd_http_is_token(name, '-')) return 0;
    if (rvd_http_field_kind_of(name) != RVD_HTTP_FIELD_OTHER) return 0;
    for (size_t i = 0; i < value.len; i++)
        if (!rvd_http_is_value_byte((uint8_t)value.at[i], 0)) return 0;
    return 1;
}

static int rvd_http_is_set(const char *s)
{
    return s && *s;
}

static int rvd_http_may_label(const char *text, int upper_ok)
{
    return !rvd_http_is_set(text) || rvd_base_is_label(text, strlen(text), upper_ok);
}

// Why a revdial proxy would refuse this request as malformed; NULL if it would not.
static const char *rvd_http_offer_problem(const rvd_http_offer *o)
{
    const revdial_engine_config *cfg = o->cfg;
    const char *problem = NULL;
    if (!o->host || !rvd_http_is_host(rvd_base_slice_of(o->host)))
        return "host: not a host or host:port";
    if (!o->path || !rvd_http_is_path(o->path))
        return "path: must begin with '/' and hold neither blanks nor bytes above ASCII";
#define RVD_HTTP_X(kind, member, field, upper_ok, rule) \
    if (!problem && !rvd_http_may_label(cfg->member, upper_ok)) problem = #member ": " rule;
    RVD_HTTP_LABELS(RVD_HTTP_X)
#undef RVD_HTTP_X
    if (problem) return problem;
    if (rvd_http_is_set(o->secret) && rvd_auth_secret_problem(o->scheme, o->user, o->secret))
        return rvd_auth_secret_problem(o->scheme, o->user, o->secret);
    if (o->terms.window < RVD_HTTP_WINDOW_MIN || o->terms.window > RVD_HTTP_TERM_MAX)
        return "stream_window: not in 8192..2147483647";
    if (o->terms.streams > RVD_HTTP_TERM_MAX) return "max_streams: not in 0..2147483647";
    for (size_t i = 0; i < cfg->header_count; i++)
        if (!rvd_http_is_extra(&cfg->headers[i]))
            return "headers: one is malformed or belongs to the handshake";
    return NULL;
}

static void rvd_http_write_field(rvd_base_text *t, const char *name, const char *value)
{
    RVD_BASE_ADD(t, name, ": ", value, "\r\n");
}

static void rvd_http_write_terms(rvd_base_text *t, const rvd_http_terms *terms)
{
    rvd_http_write_field(t, "Revdial-Version", "1");
    rvd_base_text_add(t, "Revdial-Features: ");
    for (size_t i = 0; i < RVD_HTTP_FEATURE_COUNT; i++)
        if (terms->features & rvd_http_features[i].bit)
            RVD_BASE_ADD(t, rvd_http_features[i].name, ", ");
    RVD_BASE_ADD(t, "window=", RVD_BASE_NUMBER(terms->window),
                 ", streams=", RVD_BASE_NUMBER(terms->streams), "\r\n");
}

static void rvd_http_write_quoted(rvd_base_text *t, const char *before, const char *value)
{
    RVD_BASE_ADD(t, before, "=\"", value, "\"");
}

static void rvd_http_write_basic(rvd_base_text *t, const rvd_http_offer *o)
{
    char pair[RVD_AUTH_IDENTITY_MAX + RVD_AUTH_PASSWORD_MAX + 2];
    size_t len = RVD_BASE_JOIN(pair, sizeof pair, o->user, ":", o->secret);
    rvd_base_text_add_base64(t, pair, len);
    rvd_base_wipe(pair, sizeof pair);
}

static void rvd_http_write_digest(rvd_base_text *t, const rvd_http_offer *o)
{
    char ha1[RVD_AUTH_HEX_SIZE], response[RVD_AUTH_HEX_SIZE];
    rvd_auth_ha1(o->user, o->digest->realm, o->secret, ha1);
    rvd_auth_respond(o->digest, ha1, "GET", response);
    rvd_http_write_quoted(t, "username", o->user);
    rvd_http_write_quoted(t, ", realm", o->digest->realm);
    rvd_http_write_quoted(t, ", uri", o->digest->uri);
    rvd_base_text_add(t, ", algorithm=SHA-256");
    rvd_http_write_quoted(t, ", nonce", o->digest->nonce);
    RVD_BASE_ADD(t, ", nc=", o->digest->nc);
    rvd_http_write_quoted(t, ", cnonce", o->digest->cnonce);
    rvd_base_text_add(t, ", qop=auth");
    rvd_http_write_quoted(t, ", response", response);
    if (rvd_http_is_set(o->opaque)) rvd_http_write_quoted(t, ", opaque", o->opaque);
    rvd_base_wipe(ha1, sizeof ha1);
}

static void rvd_http_write_authorization(rvd_base_text *t, const rvd_http_offer *o)
{
    rvd_base_text_add(t, "Authorization: ");
    if (o->scheme == REVDIAL_AUTH_DIGEST) {
        rvd_base_text_add(t, "Digest ");
        rvd_http_write_digest(t, o);
    } else if (o->scheme == REVDIAL_AUTH_BASIC) {
        rvd_base_text_add(t, "Basic ");
        rvd_http_write_basic(t, o);
    } else {
        RVD_BASE_ADD(t, "Bearer ", o->secret);
    }
    rvd_base_text_add(t, "\r\n");
}

// Appends the request. It holds the secret: wipe the text when it has been sent.
//   t        room for RVD_HTTP_HEAD_MAX + 1 bytes takes every request that a proxy of ours takes
//   returns  its length, or 0: the offer has a problem, or does not fit
static size_t rvd_http_request_write(rvd_base_text *t, const rvd_http_offer *offer)
{
    const revdial_engine_config *cfg = offer->cfg;
    const char *carrier = offer->ws_key ? "websocket" : "revdial";
    size_t start = t->len;
    if (rvd_http_offer_problem(offer)) return 0;
    RVD_BASE_ADD(t, "GET ", offer->path, " HTTP/1.1\r\n");
    rvd_http_write_field(t, "Host", offer->host);
    rvd_http_write_field(t, "Connection", "Upgrade");
    rvd_http_write_field(t, "Upgrade", carrier);
    if (offer->ws_key) {
        rvd_http_write_field(t, "Sec-WebSocket-Version", "13");
        rvd_http_write_field(t, "Sec-WebSocket-Key", offer->ws_key);
        rvd_http_write_field(t, "Sec-WebSocket-Protocol", "revdial");
    }
    if (rvd_http_is_set(offer->secret)) rvd_http_write_authorization(t, offer);
    rvd_http_write_terms(t, &offer->terms);
#define RVD_HTTP_X(kind, member, field, upper_ok, rule) \
    if (rvd_http_is_set(cfg->member)) rvd_http_write_field(t, field, cfg->member);
    RVD_HTTP_LABELS(RVD_HTTP_X)
#undef RVD_HTTP_X
    rvd_http_write_field(t, "Revdial-Upgrade", carrier);
    for (size_t i = 0; i < cfg->header_count; i++)
        rvd_http_write_field(t, cfg->headers[i].key, cfg->headers[i].value);
    rvd_base_text_add(t, "\r\n");
    return t->overflow ? 0 : t->len - start;
}

// ---- the response ----

// A refusal: what the proxy sends, and what the proxy and the backend make of it. It is these bytes
// and no others: it shows nothing of the request.
typedef struct rvd_http_refusal {
    int status;
    int code;            // REVDIAL_E* of the session that does not come up
    const char *reason;  // of the status line
    const char *fields;  // beside Connection, Content-Type and Content-Length
    const char *body;    // one line of at most 63 bytes
    const char *text;    // for the error on both sides; NULL: as the body
} rvd_http_refusal;

static const rvd_http_refusal rvd_http_refusals[] = {
    {400, REVDIAL_EUPGRADE, "Bad Request", "", "malformed request", NULL},
    {401, REVDIAL_EAUTH, "Unauthorized", "", "credentials missing or wrong",
     NULL},  // and challenges
    {403, REVDIAL_EDENIED, "Forbidden", "", "these credentials do not cover this name",
     "this name is not allowed with these credentials"},
    {404, REVDIAL_EUPGRADE, "Not Found", "", "nothing here", "wrong path"},
    {405, REVDIAL_EUPGRADE, "Method Not Allowed", "Allow: GET\r\n", "only GET",
     "the method is not GET"},
    {408, REVDIAL_EUPGRADE, "Request Timeout", "", "the request took too long", NULL},
    {409, REVDIAL_EDUPLICATE, "Conflict", "", "another identity holds this name", NULL},
    {414, REVDIAL_EUPGRADE, "URI Too Long", "", "path too long", "the path is too long"},
    {417, REVDIAL_EUPGRADE, "Expectation Failed", "", "no expectations are met",
     "the request has an Expect header"},
    {426, REVDIAL_EUPGRADE, "Upgrade Required",
     "Upgrade: revdial, websocket\r\nSec-WebSocket-Version: 13\r\n",
     "send Upgrade: revdial or websocket (did a middlebox remove it?)",
     "the request did not ask for Upgrade: revdial or websocket"},
    {429, REVDIAL_ELIMIT, "Too Many Requests", "Retry-After: 5\r\n", "too many attempts", NULL},
    {431, REVDIAL_EUPGRADE, "Request Header Fields Too Large", "", "request head too large",
     "the head of the request is too large"},
    {503, REVDIAL_ELIMIT, "Service Unavailable", "Retry-After: 5\r\n", "no room now",
     "the proxy takes no more sessions now"},
    {505, REVDIAL_EUPGRADE, "HTTP Version Not Supported", "", "only HTTP/1.1", "not HTTP/1.1"}};

enum { RVD_HTTP_REFUSAL_COUNT = sizeof rvd_http_refusals / sizeof rvd_http_refusals[0] };

// The refusal with that status. Other statuses have a row with status 0.
static const rvd_http_refusal *rvd_http_refusal_of(int status)
{
    static const rvd_http_refusal other = {0,  REVDIAL_EUPGRADE,          "",
                                           "", "the upgrade was refused", NULL};
    for (size_t i = 0; i < RVD_HTTP_REFUSAL_COUNT; i++)
        if (rvd_http_refusals[i].status == status) return &rvd_http_refusals[i];
    return &other;
}

static const char *rvd_http_refusal_text(int status)
{
    const rvd_http_refusal *r = rvd_http_refusal_of(status);
    return r->text ? r->text : r->body;
}

typedef struct rvd_http_answer {
    int status;            // 101, or one of the refusals
    rvd_http_terms terms;  // ours; not sent, like session_id, if the request was not is_revdial
    uint64_t session_id;   // for both ends' logs
    unsigned schemes;      // 401: REVDIAL_AUTH_* that we ask for; 0 = BEARER
    const char *realm;     // 401: NULL = "revdial"
    const char *nonce;     // 401 with DIGEST
    int is_stale;          // 401: the credentials were not looked at, only the nonce
    const char *proof;     // 101 to DIGEST, else NULL
    const char *cnonce;    // 101 to DIGEST: the peer's
    const char *accept;    // WebSocket: Sec-WebSocket-Accept; NULL for the raw carrier
} rvd_http_answer;

// Writes a line for each scheme, the strongest first, because clients may choose by the order (RFC
// 7235).
static void rvd_http_write_challenges(rvd_base_text *t, const rvd_http_answer *answer)
{
    unsigned schemes = answer->schemes ? answer->schemes : REVDIAL_AUTH_BEARER;
    const char *realm = answer->realm ? answer->realm : "revdial";
    if (schemes & REVDIAL_AUTH_DIGEST) {
        rvd_http_write_quoted(t, "WWW-Authenticate: Digest realm", realm);
        rvd_base_text_add(t, ", qop=\"auth\", algorithm=SHA-256");
        rvd_http_write_quoted(t, ", nonce", answer->nonce);
        rvd_base_text_add(t, answer->is_stale ? ", stale=true\r\n" : "\r\n");
    }
    if (schemes & REVDIAL_AUTH_BEARER) {
        rvd_http_write_quoted(t, "WWW-Authenticate: Bearer realm", realm);
        rvd_base_text_add(t, "\r\n");
    }
    if (schemes & REVDIAL_AUTH_BASIC) {
        rvd_http_write_quoted(t, "WWW-Authenticate: Basic realm", realm);
        rvd_base_text_add(t, "\r\n");
    }
}

static void rvd_http_write_refusal(rvd_base_text *t, const rvd_http_answer *answer)
{
    int status = answer->status;
    const rvd_http_refusal *refusal = rvd_http_refusal_of(status);
    REVDIAL_ASSERT(refusal->status == status);
    RVD_BASE_ADD(t, "HTTP/1.1 ", RVD_BASE_NUMBER((uint64_t)refusal->status), " ", refusal->reason,
                 "\r\n", refusal->fields);
    if (status == 401) rvd_http_write_challenges(t, answer);
    // By this field the backend knows that the refusal does not come from a front end.
    if (answer->terms.is_revdial) rvd_http_write_field(t, "Revdial-Version", "1");
    // RFC 9110 section 7.8: a sender of Upgrade lists it in Connection.

    rvd_http_write_field(t, "Connection", status == 426 ? "upgrade, close" : "close");
    rvd_http_write_field(t, "Content-Type", "text/plain");
    rvd_http_write_field(t, "Content-Length", RVD_BASE_NUMBER(strlen(refusal->body) + 1));
    RVD_BASE_ADD(t, "\r\n", refusal->body, "\n");
}

// Appends the answer.
//   t        RVD_HTTP_ANSWER_SIZE bytes are always enough
static void rvd_http_response_write(rvd_base_text *t, const rvd_http_answer *answer)
{
    if (answer->status != 101) {
        rvd_http_write_refusal(t, answer);
        return;
    }
    rvd_base_text_add(t, "HTTP/1.1 101 Switching Protocols\r\n");
    rvd_http_write_field(t, "Connection", "Upgrade");
    rvd_http_write_field(t, "Upgrade", answer->accept ? "websocket" : "revdial");
    if (answer->accept) {
        rvd_http_write_field(t, "Sec-WebSocket-Accept", answer->accept);
        rvd_http_write_field(t, "Sec-WebSocket-Protocol", "revdial");
    }
    if (answer->proof) {  // RFC 7616 section 3.5
        rvd_http_write_quoted(t, "Authentication-Info: rspauth", answer->proof);
        rvd_http_write_quoted(t, ", qop=auth, nc=00000001, cnonce", answer->cnonce);
        rvd_base_text_add(t, "\r\n");
    }
    if (answer->terms.is_revdial) {
        rvd_http_write_terms(t, &answer->terms);
        rvd_base_text_add(t, "Revdial-Session: ");
        rvd_base_text_add_hex16(t, answer->session_id);
        rvd_base_text_add(t, "\r\n");
    }
    rvd_base_text_add(t, "\r\n");
}

typedef struct rvd_http_response {
    int status;            // 101: switched, and the fields up to session_id count
    rvd_http_terms terms;  // a refusal that is not is_revdial may come from a front end
    uint64_t session_id;   // 0 if none was sent
    int retry_after_ms;    // of 429 and 503: how long we are asked to wait, 0 if not (legibly) said
    int is_stripped;       // 426 to a request for just that: a middlebox took Upgrade away
    rvd_base_slice reason;         // of the status line
    rvd_base_slice location;       // of a redirect, empty if none was sent
    rvd_http_challenge challenge;  // of 401
    rvd_base_slice proof;          // of 101, empty if none was sent
} rvd_http_response;

static int rvd_http_read_session(const rvd_http_facts *f, uint64_t *out)
{
    rvd_base_slice id = f->value[RVD_HTTP_FIELD_SESSION];
    uint8_t bytes[8];
    if (f->count[RVD_HTTP_FIELD_SESSION] == 0) return 1;
    if (f->count[RVD_HTTP_FIELD_SESSION] > 1 || id.len != 16) return 0;
    if (!rvd_base_hex(bytes, sizeof bytes, id.at)) return 0;
    for (size_t i = 0; i < sizeof bytes; i++) *out = *out << 8 | bytes[i];
    return 1;
}

// rspauth of RFC 7616 section 3.5, or empty if it is missing or malformed.
static rvd_base_slice rvd_http_read_proof(const rvd_http_facts *f)
{
    static const rvd_base_slice none;
    rvd_http_params params;
    if (f->count[RVD_HTTP_FIELD_PROOF] != 1) return none;
    if (!rvd_http_params_read(f->value[RVD_HTTP_FIELD_PROOF], &params)) return none;
    return params.value[RVD_HTTP_PARAM_RSPAUTH];
}

// Did the proxy switch to exactly what we asked for?
static int rvd_http_read_switch(rvd_http_facts *f, const char *accept, rvd_http_response *out)
{
    unsigned asks = f->flags & (RVD_HTTP_ASKS_UPGRADE | RVD_HTTP_ASKS_CLOSE);
    if (f->flags & RVD_HTTP_BAD_LIST || asks != RVD_HTTP_ASKS_UPGRADE) return 0;
    if (!(f->flags & (accept ? RVD_HTTP_HAS_WEBSOCKET : RVD_HTTP_HAS_REVDIAL))) return 0;
    if (f->upgrades != 1 || (accept && !rvd_http_is_ws_switch(f, accept))) return 0;
    if (!rvd_http_check_terms(f)) return 0;
    out->proof = rvd_http_read_proof(f);
    return rvd_http_read_session(f, &out->session_id);
}

// Seconds to wait, in ms. Returns 0 for a date or a malformed number: then the caller uses its own
// delay.
static int rvd_http_retry_ms(const rvd_http_facts *f)
{
    rvd_base_slice value = f->value[RVD_HTTP_FIELD_RETRY_AFTER];
    uint64_t seconds = 0;
    if (f->count[RVD_HTTP_FIELD_RETRY_AFTER] != 1) return 0;
    if (!rvd_base_decimal(value.at, value.len, UINT32_MAX, &seconds)) return 0;
    if (seconds * 1000 < RVD_HTTP_RETRY_MS_MIN) return RVD_HTTP_RETRY_MS_MIN;
    if (seconds * 1000 > RVD_HTTP_RETRY_MS_MAX) return RVD_HTTP_RETRY_MS_MAX;
    return (int)(seconds * 1000);
}

// The text behind the number of the status line, which may be empty (RFC 9112 section 4).
static rvd_base_slice rvd_http_reason(const rvd_http_head *h)
{
    rvd_base_slice reason = {h->buf + 12, 0};
    while (*reason.at == ' ') reason.at++;
    while (reason.at[reason.len] != '\r' && reason.at[reason.len] != '\n') reason.len++;
    return reason;
}

// Reads a response whose head is complete.
//   accept   WebSocket: the Sec-WebSocket-Accept that answers our key; NULL if we asked for raw
//   returns  RVD_HTTP_DONE: the final response, see out->status; RVD_HTTP_MORE: an interim
//            response, and the head is ready for the next one; RVD_HTTP_BAD
static int rvd_http_response_read(rvd_http_head *h, const char *accept, rvd_http_response *out)
{
    rvd_http_facts facts;
    const char *line = h->buf;
    REVDIAL_ASSERT(!h->is_request && h->verdict == RVD_HTTP_DONE);
    memset(out, 0, sizeof *out);
    out->status = (line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0');
    rvd_http_gather(h, &facts);
    out->terms = facts.terms;
    if (out->status < 200) {
        // RFC 9110 section 15.2: not in HTTP/1.0; sections 8.6 and RFC 9112 6.1: never with a body.
        if (line[7] == '0' || facts.count[RVD_HTTP_FIELD_CONTENT_LENGTH] > 0) return RVD_HTTP_BAD;
        if (facts.count[RVD_HTTP_FIELD_TRANSFER_ENCODING] > 0) return RVD_HTTP_BAD;
    }
    if (out->status == 101)
        return rvd_http_read_switch(&facts, accept, out) ? RVD_HTTP_DONE : RVD_HTTP_BAD;
    if (out->status < 200) {
        if (h->interims++ == RVD_HTTP_INTERIM_MAX) return RVD_HTTP_BAD;
        rvd_http_head_reset(h);
        return RVD_HTTP_MORE;
    }
    if (out->status == 429 || out->status == 503) out->retry_after_ms = rvd_http_retry_ms(&facts);
    out->reason = rvd_http_reason(h);
    if (out->status < 400) out->location = facts.value[RVD_HTTP_FIELD_LOCATION];
    out->challenge = facts.challenge;
    out->is_stripped = out->status == 426 &&
                       facts.flags & (accept ? RVD_HTTP_HAS_WEBSOCKET : RVD_HTTP_HAS_REVDIAL);
    return RVD_HTTP_DONE;
}

// ================================================================================================
// MARK: impl.egress  uses: base wire http
// The handshake with an egress proxy, before TLS and before the upgrade: HTTP CONNECT (RFC 9110
// section 9.3.6) and SOCKS5 (RFC 1928, RFC 1929). Bytes in, bytes out. revdial_egress_new() writes
// everything that will be sent, and it is wiped as it is sent. Start at revdial_egress_input().
// ================================================================================================

enum {
    RVD_EGRESS_HOST_MAX = 255,       // octets of a name (RFC 1035 section 2.3.4), a byte in SOCKS5
    RVD_EGRESS_ADDRESS_SIZE = 264,   // with brackets, a port and NUL
    RVD_EGRESS_USER_MAX = 255,       // RFC 1929: a length is one byte
    RVD_EGRESS_PASSWORD_MAX = 1024,  // over CONNECT some are tokens
    RVD_EGRESS_OUT_SIZE = 2560,      // CONNECT with two hosts and the longest credentials in base64
    RVD_EGRESS_REPLY_MAX = 262       // RFC 1928 section 6, with a name of 255 bytes
};

// What the next bytes from the egress proxy are.
//     CONNECT:  ANSWER --> OPEN
//     SOCKS5:   METHOD --> LOGIN --> REPLY --> OPEN, or METHOD --> REPLY      any --> FAILED
enum rvd_egress_state {
    RVD_EGRESS_ANSWER,  // the head of its HTTP response
    RVD_EGRESS_METHOD,  // how it wants us to authenticate
    RVD_EGRESS_LOGIN,   // whether it accepts our credentials
    RVD_EGRESS_REPLY,   // what became of its connect
    RVD_EGRESS_OPEN,
    RVD_EGRESS_FAILED
};

struct revdial_egress {
    rvd_heap heap;
    enum rvd_egress_state state;
    int has_login;
    char address[RVD_EGRESS_ADDRESS_SIZE];
    // All that is sent. SOCKS5: a greeting, from login_at a login, from request_at the request.
    uint8_t out[RVD_EGRESS_OUT_SIZE];
    size_t login_at, request_at, out_len;
    size_t out_sent, out_end;             // bytes out_sent..out_end may be sent now
    rvd_http_head head;                   // ANSWER
    uint8_t reply[RVD_EGRESS_REPLY_MAX];  // METHOD, LOGIN, REPLY
    size_t reply_len;
    revdial_err err;
    int retry_after_ms;
};

// ---- the URL ----

// Lives on the stack of revdial_egress_new(), which wipes it.
typedef struct rvd_egress_url {
    int is_socks, has_login;
    rvd_base_slice address;
    size_t user_len, password_len;
    char user[RVD_EGRESS_USER_MAX], password[RVD_EGRESS_PASSWORD_MAX];
} rvd_egress_url;

// Length of what is before the last ':' of "host:port"; 0 if there is no port.
static size_t rvd_egress_host_len(rvd_base_slice s)
{
    size_t len = s.len;
    if (len == 0 || s.at[len - 1] == ']') return 0;
    while (len > 0 && s.at[len - 1] != ':') len--;
    return len > 0 ? len - 1 : 0;
}

static int rvd_egress_is_address(rvd_base_slice s)
{
    size_t len = rvd_egress_host_len(s);
    return len > 0 && len <= RVD_EGRESS_HOST_MAX && rvd_http_is_host(s);
}

static int rvd_egress_is_target(const char *text)
{
    rvd_wire_addr a;
    if (!rvd_egress_is_address(rvd_base_slice_of(text))) return 0;
    return text[0] != '[' || rvd_wire_addr_parse(text, &a);
}

// Decodes userinfo of RFC 3986 section 3.2.1. Control characters, NUL included, are not allowed in
// names and passwords (RFC 7617 section 2).
//   returns  its length, or -1: an illegal byte, or too long
static ptrdiff_t rvd_egress_decode(rvd_base_slice from, char *to, size_t size)
{
    size_t len = 0;
    for (size_t at = 0; at < from.len; at++, len++) {
        uint8_t c = (uint8_t)from.at[at];
        int is_plain = rvd_http_is_alnum(c) || memchr("-._~!$&'()*+,;=", c, 15) != NULL;
        if (len == size || (!is_plain && c != '%')) return -1;
        if (c == '%') {
            if (from.len - at < 3 || !rvd_base_hex(&c, 1, from.at + at + 1)) return -1;
            if (c < ' ' || c == 0x7f) return -1;
            at += 2;
        }
        to[len] = (char)c;
    }
    return (ptrdiff_t)len;
}

// "user[:password]".
static const char *rvd_egress_login_parse(rvd_base_slice info, rvd_egress_url *u)
{
    static const char why[] =
        "egress: user name or password too long, or not in the form of a URL (%XX)";
    const char *colon = (const char *)memchr(info.at, ':', info.len);
    size_t user_len = colon ? (size_t)(colon - info.at) : info.len;
    rvd_base_slice user = {info.at, user_len}, password = {info.at + user_len, 0};
    ptrdiff_t n;
    if (colon) {
        password.at++;
        password.len = info.len - user_len - 1;
    }
    n = rvd_egress_decode(user, u->user, sizeof u->user);
    if (n < 0) return why;
    u->user_len = (size_t)n;
    n = rvd_egress_decode(password, u->password, sizeof u->password);
    if (n < 0) return why;
    u->password_len = (size_t)n;
    u->has_login = 1;
    if (u->is_socks)
        return u->user_len && n && n <= RVD_EGRESS_USER_MAX
                   ? NULL
                   : "egress: SOCKS5 needs a user name and a password of 1 to 255 bytes each";
    // RFC 7617 section 2: the first colon ends the name.
    return memchr(u->user, ':', u->user_len) ? "egress: a user name must not contain ':'" : NULL;
}

// Returns what is wrong with the URL, without quoting it because of its password; or NULL.
static const char *rvd_egress_url_parse(const char *text, rvd_egress_url *u)
{
    static const char *const schemes[] = {"http://", "socks5://", "socks5h://"};
    rvd_base_slice rest = rvd_base_slice_of(text), info = {NULL, 0};
    const char *at = NULL, *problem;
    size_t i = 0, count = sizeof schemes / sizeof schemes[0];
    while (i < count && strncmp(text, schemes[i], strlen(schemes[i])) != 0) i++;
    if (strncmp(text, "https://", 8) == 0)
        return "egress: there is no TLS to an egress proxy: write http://HOST:PORT";
    if (i == count) return "egress: not http://HOST:PORT or socks5://HOST:PORT";
    u->is_socks = i > 0;
    rest.at += strlen(schemes[i]);
    rest.len -= strlen(schemes[i]);
    at = (const char *)memchr(rest.at, '@', rest.len);
    if (at) {
        info.at = rest.at;
        info.len = (size_t)(at - rest.at);
        rest.at += info.len + 1;
        rest.len -= info.len + 1;
        problem = rvd_egress_login_parse(info, u);
        if (problem) return problem;
    }
    if (rest.len > 0 && rest.at[rest.len - 1] == '/') rest.len--;
    u->address = rest;
    return rvd_egress_is_address(rest) ? NULL
                                       : "egress: not HOST:PORT behind the scheme and the login";
}

// ---- requests ----

static void rvd_egress_put_connect(revdial_egress *v, const rvd_egress_url *u, const char *target)
{
    char login[RVD_EGRESS_USER_MAX + 1 + RVD_EGRESS_PASSWORD_MAX];
    rvd_base_text t = rvd_base_text_in(v->out, sizeof v->out);
    RVD_BASE_ADD(&t, "CONNECT ", target, " HTTP/1.1\r\n");
    rvd_http_write_field(&t, "Host", target);
    if (u->has_login) {
        memcpy(login, u->user, u->user_len);
        login[u->user_len] = ':';
        memcpy(login + u->user_len + 1, u->password, u->password_len);
        rvd_base_text_add(&t, "Proxy-Authorization: Basic ");
        rvd_base_text_add_base64(&t, login, u->user_len + 1 + u->password_len);
        rvd_base_text_add(&t, "\r\n");
        rvd_base_wipe(login, sizeof login);
    }
    rvd_base_text_add(&t, "\r\n");
    REVDIAL_ASSERT(!t.overflow);
    v->out_len = v->out_end = t.len;
}

// RFC 1928 section 5: an address in its own form, a name with its length.
static void rvd_egress_put_target(rvd_wire_out *o, const char *target)
{
    size_t host_len = rvd_egress_host_len(rvd_base_slice_of(target));
    const char *digits = target + host_len + 1;
    rvd_wire_addr a;
    uint8_t head[5] = {5, 1, 0, 3, 0};  // version, CONNECT, reserved, what kind of address
    uint8_t port[2];
    uint64_t number = 0;
    rvd_base_decimal(digits, strlen(digits), 65535, &number);
    rvd_base_put_u16(port, (uint32_t)number);
    if (rvd_wire_addr_parse(target, &a)) {
        head[3] = a.family == 4 ? 1 : 4;
        rvd_wire_out_add(o, head, 4);
        rvd_wire_out_add(o, a.ip, a.family == 4 ? 4 : 16);
    } else {
        head[4] = (uint8_t)host_len;
        rvd_wire_out_add(o, head, 5);
        rvd_wire_out_add(o, target, host_len);
    }
    rvd_wire_out_add(o, port, 2);
}

static void rvd_egress_put_socks(revdial_egress *v, const rvd_egress_url *u, const char *target)
{
    static const uint8_t open[] = {5, 1, 0}, either[] = {5, 2, 0, 2};  // RFC 1928 section 3
    uint8_t lengths[2] = {(uint8_t)u->user_len, (uint8_t)u->password_len};
    static const uint8_t version = 1;  // RFC 1929 section 2
    rvd_wire_out o = {v->out, sizeof v->out, 0, 0};
    if (!u->has_login) {
        rvd_wire_out_add(&o, open, sizeof open);
        v->login_at = o.len;
    } else {
        rvd_wire_out_add(&o, either, sizeof either);
        v->login_at = o.len;
        rvd_wire_out_add(&o, &version, 1);
        rvd_wire_out_add(&o, &lengths[0], 1);
        rvd_wire_out_add(&o, u->user, u->user_len);
        rvd_wire_out_add(&o, &lengths[1], 1);
        rvd_wire_out_add(&o, u->password, u->password_len);
    }
    v->request_at = o.len;
    rvd_egress_put_target(&o, target);
    REVDIAL_ASSERT(!o.overflow);
    v->out_len = o.len;
    v->out_end = v->login_at;
}

// ---- answers ----

static void rvd_egress_become(revdial_egress *v, enum rvd_egress_state to)
{
    static const unsigned arrows[] = {
        [RVD_EGRESS_ANSWER] = 1u << RVD_EGRESS_OPEN | 1u << RVD_EGRESS_FAILED,
        [RVD_EGRESS_METHOD] =
            1u << RVD_EGRESS_LOGIN | 1u << RVD_EGRESS_REPLY | 1u << RVD_EGRESS_FAILED,
        [RVD_EGRESS_LOGIN] = 1u << RVD_EGRESS_REPLY | 1u << RVD_EGRESS_FAILED,
        [RVD_EGRESS_REPLY] = 1u << RVD_EGRESS_OPEN | 1u << RVD_EGRESS_FAILED,
        [RVD_EGRESS_OPEN] = 0,
        [RVD_EGRESS_FAILED] = 0};
    REVDIAL_ASSERT(arrows[v->state] & 1u << to);
    (void)arrows;  // without assertions
    v->state = to;
}

// number: the egress proxy's status or code, -1 if it sent none.
static void rvd_egress_fail(revdial_egress *v, int code, int number, const char *why)
{
    rvd_base_text t = rvd_base_text_in(v->err.msg, sizeof v->err.msg);
    char address[128];  // leaves room for the reason
    RVD_BASE_JOIN(address, sizeof address, v->address);
    rvd_egress_become(v, RVD_EGRESS_FAILED);
    v->err.code = code;
    RVD_BASE_ADD(&t, "egress proxy ", address, number < 0 ? ": " : " refused: ");
    if (number >= 0) RVD_BASE_ADD(&t, RVD_BASE_NUMBER((uint64_t)number), ", ");
    rvd_base_text_add(&t, why);
    v->out_end = v->out_sent;  // nothing more is sent
}

static const char *rvd_egress_status_text(int status)
{
    switch (status) {
    case 400: return "it considers our CONNECT request malformed";
    case 403: return "its rules forbid this destination";
    case 404: return "it does not know this destination";
    case 405:
    case 501: return "it does not support CONNECT";
    case 429: return "too many requests";
    case 500: return "it failed, or cannot reach the destination";
    case 502: return "it got no connection to the destination";
    case 503: return "it cannot serve this now, or cannot reach the destination";
    case 504: return "its connection to the destination timed out";
    default: return status < 400 ? "not a valid answer to CONNECT" : "it gives no reason";
    }
}

// The head of its response is complete.
static void rvd_egress_judge(revdial_egress *v, const rvd_http_response *r)
{
    v->retry_after_ms = r->retry_after_ms;
    if (r->status == 407 || r->status == 401) {  // by RFC 9110 it is 407; tinyproxy sends either
        rvd_egress_fail(v, REVDIAL_EAUTH, r->status,
                        v->has_login ? "it rejects the user name or the password"
                                     : "it wants a user name and a password");
    } else if (r->status / 100 != 2) {
        rvd_egress_fail(v, r->status < 300 ? REVDIAL_EPROTO : REVDIAL_EUNREACH, r->status,
                        rvd_egress_status_text(r->status));
    } else if (v->out_sent != v->out_end) {
        rvd_egress_fail(v, REVDIAL_EPROTO, -1, "it sent data before our request");
    } else {
        rvd_egress_become(v, RVD_EGRESS_OPEN);  // RFC 9110 section 9.3.6: then comes the tunnel
    }
}

static size_t rvd_egress_take_answer(revdial_egress *v, const uint8_t *buf, size_t len)
{
    rvd_http_response r;
    size_t used = 0;
    int verdict = rvd_http_head_feed(&v->head, buf, len, &used);
    if (verdict == RVD_HTTP_DONE) verdict = rvd_http_response_read(&v->head, NULL, &r);
    if (verdict == RVD_HTTP_DONE)
        rvd_egress_judge(v, &r);
    else if (verdict == RVD_HTTP_NOMEM)
        rvd_egress_fail(v, REVDIAL_ENOMEM, -1, "out of memory for its answer");
    else if (verdict != RVD_HTTP_MORE)
        rvd_egress_fail(v, REVDIAL_EPROTO, -1, "its answer is not that of an HTTP proxy");
    return used;
}

// RFC 1928 section 3.
static void rvd_egress_take_method(revdial_egress *v)
{
    if (v->reply[1] == 2 && v->has_login) {
        rvd_egress_become(v, RVD_EGRESS_LOGIN);
        v->out_end = v->request_at;
    } else if (v->reply[1] == 0) {
        rvd_egress_become(v, RVD_EGRESS_REPLY);
        rvd_base_wipe(v->out + v->out_sent, v->request_at - v->out_sent);  // it is not asked for
        v->out_sent = v->request_at;
        v->out_end = v->out_len;
    } else if (v->reply[1] == 0xff) {
        rvd_egress_fail(v, REVDIAL_EAUTH, 255,
                        v->has_login ? "it takes no user name and password"
                                     : "it wants a user name and a password");
    } else {
        rvd_egress_fail(v, REVDIAL_EPROTO, -1, "it wants a method that it was not offered");
    }
}

// RFC 1929 section 2. The version is ignored, because some proxies send 5.
static void rvd_egress_take_login(revdial_egress *v)
{
    if (v->reply[1] != 0) {
        rvd_egress_fail(v, REVDIAL_EAUTH, v->reply[1], "it rejects the user name or the password");
        return;
    }
    rvd_egress_become(v, RVD_EGRESS_REPLY);
    v->out_end = v->out_len;
}

// RFC 1928 section 6.
static void rvd_egress_take_reply(revdial_egress *v)
{
    static const char *const texts[] = {"",
                                        "it failed, and does not say why",
                                        "its rules forbid this destination",
                                        "the network of the destination is unreachable",
                                        "the destination is unreachable, or has no such name",
                                        "the destination refuses the connection",
                                        "the packets to the destination expire on the way",
                                        "it does not support CONNECT",
                                        "it cannot reach addresses of this kind"};
    size_t rep = v->reply[1];
    if (rep == 0)
        rvd_egress_become(v, RVD_EGRESS_OPEN);
    else
        rvd_egress_fail(v, REVDIAL_EUNREACH, (int)rep,
                        rep < sizeof texts / sizeof texts[0] ? texts[rep]
                                                             : "an unknown reply code");
}

// The size of the message, as far as its first bytes tell. A refusal ends with its code.
static size_t rvd_egress_reply_size(const revdial_egress *v)
{
    if (v->state != RVD_EGRESS_REPLY || v->reply_len < 2 || v->reply[1] != 0) return 2;
    if (v->reply_len < 5) return 5;
    if (v->reply[3] == 3) return 7 + (size_t)v->reply[4];
    return v->reply[3] == 1 ? 10 : 22;
}

static int rvd_egress_reply_is_legal(const revdial_egress *v)
{
    const uint8_t *p = v->reply;
    if (v->state != RVD_EGRESS_LOGIN && p[0] != 5) return 0;
    return v->state != RVD_EGRESS_REPLY || v->reply_len < 4 || p[1] != 0 || p[3] == 1 ||
           p[3] == 3 || p[3] == 4;
}

// Takes the next byte of a SOCKS5 message.
static void rvd_egress_take_socks(revdial_egress *v, uint8_t c)
{
    v->reply[v->reply_len++] = c;
    if (!rvd_egress_reply_is_legal(v)) {
        rvd_egress_fail(v, REVDIAL_EPROTO, -1, "its answer is not that of a SOCKS5 proxy");
        return;
    }
    if (v->reply_len < rvd_egress_reply_size(v)) return;
    v->reply_len = 0;
    if (v->out_sent != v->out_end)
        rvd_egress_fail(v, REVDIAL_EPROTO, -1, "it sent data before our request");
    else if (v->state == RVD_EGRESS_METHOD)
        rvd_egress_take_method(v);
    else if (v->state == RVD_EGRESS_LOGIN)
        rvd_egress_take_login(v);
    else
        rvd_egress_take_reply(v);
}

// ---- the public calls ----

static revdial_egress *rvd_egress_alloc(rvd_heap *heap, const rvd_egress_url *u, const char *target)
{
    revdial_egress *v = (revdial_egress *)rvd_base_alloc(heap, sizeof *v);
    if (!v) return NULL;
    v->heap = *heap;
    v->has_login = u->has_login;
    v->state = u->is_socks ? RVD_EGRESS_METHOD : RVD_EGRESS_ANSWER;
    memcpy(v->address, u->address.at, u->address.len);
    rvd_http_head_init(&v->head, &v->heap, 0);
    if (u->is_socks)
        rvd_egress_put_socks(v, u, target);
    else
        rvd_egress_put_connect(v, u, target);
    return v;
}

revdial_egress *revdial_egress_new(const char *url, const char *target, revdial_alloc_fn *alloc,
                                   void *alloc_ud, revdial_err *err)
{
    rvd_heap heap = {alloc, alloc_ud, 0};
    rvd_egress_url u;
    revdial_egress *v = NULL;
    const char *problem;
    memset(&u, 0, sizeof u);
    problem = url ? rvd_egress_url_parse(url, &u) : "egress: NULL";
    if (!problem && (!target || !rvd_egress_is_target(target)))
        problem = "egress: only a server at HOST:PORT is reached through an egress proxy";
    if (!problem) v = rvd_egress_alloc(&heap, &u, target);
    rvd_base_wipe(&u, sizeof u);
    if (!v && err) {
        memset(err, 0, sizeof *err);
        err->code = problem ? REVDIAL_EINVAL : REVDIAL_ENOMEM;
        RVD_BASE_JOIN(err->msg, sizeof err->msg,
                      problem ? problem : "out of memory for the egress proxy");
    }
    return v;
}

void revdial_egress_free(revdial_egress *v)
{
    rvd_heap heap;
    if (!v) return;
    rvd_http_head_free(&v->head);
    heap = v->heap;
    rvd_base_wipe(v, sizeof *v);
    rvd_base_free(&heap, v, sizeof *v);
}

const char *revdial_egress_address(const revdial_egress *v)
{
    return v->address;
}

size_t revdial_egress_input(revdial_egress *v, const void *buf, size_t len)
{
    const uint8_t *p = (const uint8_t *)buf;
    size_t at = 0;
    if (len > RVD_BASE_LEN_MAX) return 0;
    if (len == 0 && v->state < RVD_EGRESS_OPEN)
        rvd_egress_fail(v, REVDIAL_ELOST, -1, "it closed the connection without an answer");
    while (at < len && v->state < RVD_EGRESS_OPEN) {
        if (v->state == RVD_EGRESS_ANSWER)
            at += rvd_egress_take_answer(v, p + at, len - at);
        else
            rvd_egress_take_socks(v, p[at++]);
    }
    return at;
}

size_t revdial_egress_output(const revdial_egress *v, const void **data)
{
    *data = v->out + v->out_sent;
    return v->out_end - v->out_sent;
}

void revdial_egress_sent(revdial_egress *v, size_t n)
{
    n = n > RVD_BASE_LEN_MAX ? 0 : rvd_base_min(n, v->out_end - v->out_sent);
    rvd_base_wipe(v->out + v->out_sent, n);
    v->out_sent += n;
}

int revdial_egress_state(const revdial_egress *v, revdial_err *err, int *retry_after_ms)
{
    if (retry_after_ms) *retry_after_ms = v->retry_after_ms;
    if (v->state != RVD_EGRESS_FAILED) return v->state == RVD_EGRESS_OPEN;
    if (err) *err = v->err;
    return v->err.code;
}

// ================================================================================================
// MARK: impl.ws  uses: base
// WebSocket (RFC 6455) as a carrier, both ends: frames around the bytes of a session. Bytes in,
// bytes out; the ends of messages have no meaning. In: rvd_ws_input() shows payload piece by piece,
// rvd_ws_taken() says how much of it was used. Out: rvd_ws_data_put() and rvd_ws_close_put()
// begin frames, rvd_ws_show() and rvd_ws_sent() bring them to the wire.
//
//    0               1               2
//   +-+-+-+-+-------+-+-------------+- - - - - - - - - - -+- - - - - - - - -+- - - - - - - - - -
//   |F|0 0 0| opcode|M| length 0-125| 126: 16, 127: 64 bits| M: key, 4 bytes | payload
//   +-+-+-+-+-------+-+-------------+- - - - - - - - - - -+- - - - - - - - -+- - - - - - - - - -
// ================================================================================================

enum {
    RVD_WS_WORK = 65536,         // bytes masked at a time: a frame of yamux at its largest
    RVD_WS_FEW = 128,            // the same when memory for that is not there
    RVD_WS_PAYLOAD_MAX = 65536,  // of a frame we send: more than some libraries take in a message
    RVD_WS_CONTROL_MAX = 125,    // RFC 6455 section 5.5
    RVD_WS_HEADER_MAX = 14,      // 2, length 8, key 4
    RVD_WS_IDLE_US = 1000000,    // time without use after which the work buffer is freed
    RVD_WS_GLITCH_BURST = 1000,  // frames in a row that bring no payload: pings, empty messages
    RVD_WS_GLITCH_RATE = 100
};

enum {
    RVD_WS_CONTINUATION = 0,
    RVD_WS_TEXT = 1,
    RVD_WS_BINARY = 2,
    RVD_WS_CLOSE = 8,
    RVD_WS_PING = 9,
    RVD_WS_PONG = 10
};

// Why a side closes, RFC 6455 section 7.4.1.
enum {
    RVD_WS_STATUS_NONE = 0,  // not said
    RVD_WS_STATUS_NORMAL = 1000,
    RVD_WS_STATUS_AWAY = 1001,
    RVD_WS_STATUS_PROTOCOL = 1002,
    RVD_WS_STATUS_UNSUPPORTED = 1003,
    RVD_WS_STATUS_BAD_DATA = 1007,
    RVD_WS_STATUS_POLICY = 1008,
    RVD_WS_STATUS_INTERNAL = 1011
};

// What comes in.      OPEN --the peer's Close--> CLOSED      OPEN --it breaks the rules--> FAILED
enum rvd_ws_state { RVD_WS_OPEN, RVD_WS_CLOSED, RVD_WS_FAILED };

typedef struct rvd_ws {
    rvd_heap *heap;
    int is_client;          // the side that masks
    const int64_t *now_us;  // the session's clock

    // Input: the frame that is coming in.
    enum rvd_ws_state state;
    int status;        // CLOSED: of the peer's Close; FAILED: to send in ours
    const char *text;  // FAILED: why
    uint8_t in_head[RVD_WS_HEADER_MAX];
    uint32_t in_head_len;
    uint32_t in_opcode;
    uint32_t in_mask_at;  // of its payload unmasked so far, modulo 4
    uint64_t in_left;     // of its payload
    uint8_t in_key[4];
    uint8_t in_body;     // its header is complete
    uint8_t in_message;  // the next data frame has to continue this one's message
    uint8_t has_moved;   // payload has come since the last frame without
    uint8_t control[RVD_WS_CONTROL_MAX];
    uint32_t control_len;
    rvd_base_bucket glitches;

    // Output. The peer may have sent many pings: the last one is answered (section 5.5.3).
    uint8_t out_head[2 * (RVD_WS_HEADER_MAX + RVD_WS_CONTROL_MAX)];  // a pong, a header
    uint32_t out_head_len, out_head_sent;
    uint64_t out_left;  // of the payload behind it
    uint8_t pong[RVD_WS_CONTROL_MAX];
    uint32_t pong_len;
    uint8_t pong_wanted, close_put;

    // Keys: unpredictable for the author of the payload (section 10.3), eight from each digest.
    uint8_t secret[8], keys[RVD_BASE_SHA256_SIZE], out_key[4];
    uint32_t keys_left;
    uint64_t key_blocks;

    // A client masks what goes out here, a server unmasks what comes in: bytes [work_at, work_end).
    uint8_t *work;
    uint8_t few[RVD_WS_FEW];
    size_t work_at, work_end;
    int64_t work_us;  // used last
} rvd_ws;

// ---- keys and masks ----

// Bytes that cannot be guessed without the seed and that do not reveal it.
static void rvd_ws_derive(const char *what, const uint8_t seed[8], uint64_t n, uint8_t digest[32])
{
    rvd_base_sha256 s;
    uint8_t count[8];
    rvd_base_put_u64(count, n);
    rvd_base_sha256_init(&s);
    rvd_base_sha256_update(&s, what, strlen(what));
    rvd_base_sha256_update(&s, seed, 8);
    rvd_base_sha256_update(&s, count, sizeof count);
    rvd_base_sha256_final(&s, digest);
}

// The client's nonce for Sec-WebSocket-Key: 16 bytes in base64.
static void rvd_ws_nonce(uint64_t seed, char text[25])
{
    rvd_base_text t = rvd_base_text_in(text, 25);
    uint8_t bytes[8], digest[RVD_BASE_SHA256_SIZE];
    rvd_base_put_u64(bytes, seed);
    rvd_ws_derive("nonce", bytes, 0, digest);
    rvd_base_text_add_base64(&t, digest, 16);
}

static void rvd_ws_key_next(rvd_ws *w)
{
    if (!w->keys_left) {
        rvd_ws_derive("mask", w->secret, w->key_blocks++, w->keys);
        w->keys_left = sizeof w->keys / 4;
    }
    w->keys_left--;
    memcpy(w->out_key, w->keys + (size_t)4 * w->keys_left, 4);
}

// XORs with the key, eight bytes at a time. `at` is the first one's place in its payload.
static void rvd_ws_mask(uint8_t *restrict to, const uint8_t *restrict from, size_t len,
                        const uint8_t key[4], size_t at)
{
    uint8_t turned[8];
    uint64_t wide, bytes;
    size_t i = 0;
    for (size_t k = 0; k < 8; k++) turned[k] = key[(at + k) % 4];
    memcpy(&wide, turned, 8);
    for (; i + 8 <= len; i += 8) {
        memcpy(&bytes, from + i, 8);
        bytes ^= wide;
        memcpy(to + i, &bytes, 8);
    }
    for (; i < len; i++) to[i] = from[i] ^ turned[i % 8];
}

// The empty buffer to mask in: only `few` bytes when there is no memory for RVD_WS_WORK.
static uint8_t *rvd_ws_work(rvd_ws *w, size_t *size)
{
    REVDIAL_ASSERT(w->work_at == w->work_end);
    w->work_at = w->work_end = 0;
    w->work_us = *w->now_us;
    if (!w->work) w->work = rvd_base_resize(w->heap, NULL, 0, RVD_WS_WORK);
    *size = w->work ? RVD_WS_WORK : RVD_WS_FEW;
    return w->work ? w->work : w->few;
}

// ---- input ----

static void rvd_ws_become(rvd_ws *w, enum rvd_ws_state to, int status)
{
    REVDIAL_ASSERT(w->state == RVD_WS_OPEN && to != RVD_WS_OPEN);
    w->state = to;
    w->status = status;
}

static void rvd_ws_fail(rvd_ws *w, int status, const char *text)
{
    rvd_ws_become(w, RVD_WS_FAILED, status);
    w->text = text;
}

static int rvd_ws_is_control(const rvd_ws *w)
{
    return w->in_opcode >= RVD_WS_CLOSE;
}

// What is wrong with the first two bytes of a frame; NULL: nothing.
static const char *rvd_ws_problem(const rvd_ws *w)
{
    int is_final = w->in_head[0] >> 7, is_masked = w->in_head[1] >> 7;
    if (w->in_head[0] & 0x70) return "WebSocket: reserved bits are set";
    switch (w->in_head[0] & 15) {
    case RVD_WS_CONTINUATION:
        if (!w->in_message) return "WebSocket: a continuation of nothing";
        break;
    case RVD_WS_TEXT:
    case RVD_WS_BINARY:
        if (w->in_message) return "WebSocket: a message begins inside another";
        break;
    case RVD_WS_CLOSE:
    case RVD_WS_PING:
    case RVD_WS_PONG:
        if (!is_final || (w->in_head[1] & 127) > RVD_WS_CONTROL_MAX)
            return "WebSocket: a control frame in pieces, or over 125 bytes";
        break;
    default: return "WebSocket: unknown opcode";
    }
    if (is_masked && w->is_client) return "WebSocket: a masked frame from a server";
    if (!is_masked && !w->is_client) return "WebSocket: a frame without mask from a client";
    return NULL;
}

static uint32_t rvd_ws_head_len(const rvd_ws *w)
{
    uint32_t length = w->in_head[1] & 127;
    return 2 + (length == 126 ? 2u : length == 127 ? 8u : 0u) + (w->is_client ? 0u : 4u);
}

// Reads the length. Returns 0 if it is not in its shortest form (section 5.2).
static int rvd_ws_length_get(const rvd_ws *w, uint64_t *out)
{
    const uint8_t *p = w->in_head + 2;
    uint32_t length = w->in_head[1] & 127;
    *out = length;
    if (length == 126) *out = rvd_base_u16(p);
    if (length == 127) *out = rvd_base_u64(p);
    if (length == 126) return *out > 125;
    return length != 127 || (*out > 0xFFFF && *out >> 63 == 0);
}

// Takes a token for a ping, a pong or an empty message without payload since the last one.
static void rvd_ws_glitch(rvd_ws *w)
{
    int is_fine = w->has_moved || rvd_base_bucket_take(&w->glitches, *w->now_us);
    w->has_moved = 0;
    if (!is_fine) rvd_ws_fail(w, RVD_WS_STATUS_POLICY, "calm: too many frames without payload");
}

// A status that may be sent: sections 7.4.1 and 7.4.2.
static int rvd_ws_is_status(uint32_t status)
{
    if (status >= 3000) return status < 5000;
    return status >= 1000 && status <= 1014 && status != 1004 && status != 1005 && status != 1006;
}

static void rvd_ws_on_close(rvd_ws *w)
{
    uint32_t status = w->control_len >= 2 ? rvd_base_u16(w->control) : 0;
    if (w->control_len == 1 || (w->control_len && !rvd_ws_is_status(status))) {
        rvd_ws_fail(w, RVD_WS_STATUS_PROTOCOL, "WebSocket: no valid status in Close");
        return;
    }
    rvd_ws_become(w, RVD_WS_CLOSED, (int)status);
}

static void rvd_ws_on_frame_end(rvd_ws *w)
{
    w->in_body = 0;
    w->in_head_len = 0;
    if (!rvd_ws_is_control(w)) {
        w->in_message = !(w->in_head[0] >> 7);
        if ((w->in_head[1] & 127) == 0) rvd_ws_glitch(w);
        return;
    }
    if (w->in_opcode == RVD_WS_CLOSE) {
        rvd_ws_on_close(w);
        return;
    }
    if (w->in_opcode == RVD_WS_PING) {
        memcpy(w->pong, w->control, w->control_len);
        w->pong_len = w->control_len;
        w->pong_wanted = 1;
    }
    rvd_ws_glitch(w);
}

static void rvd_ws_on_head(rvd_ws *w)
{
    if (!rvd_ws_length_get(w, &w->in_left)) {
        rvd_ws_fail(w, RVD_WS_STATUS_PROTOCOL, "WebSocket: a length in too many bytes");
        return;
    }
    if (!w->is_client) memcpy(w->in_key, w->in_head + w->in_head_len - 4, 4);
    w->in_body = 1;
    w->in_mask_at = 0;
    w->control_len = 0;
    if (!w->in_left) rvd_ws_on_frame_end(w);
}

// Collects a header. Its first two bytes are judged before the rest is waited for.
static size_t rvd_ws_head_input(rvd_ws *w, const uint8_t *p, size_t len)
{
    uint32_t want = w->in_head_len < 2 ? 2 : rvd_ws_head_len(w);
    size_t n = rvd_base_min(len, want - w->in_head_len);
    memcpy(w->in_head + w->in_head_len, p, n);
    w->in_head_len += (uint32_t)n;
    if (w->in_head_len < want) return n;
    if (want == 2) {
        const char *problem = rvd_ws_problem(w);
        w->in_opcode = w->in_head[0] & 15;
        if (problem)
            rvd_ws_fail(w, RVD_WS_STATUS_PROTOCOL, problem);
        else if (w->in_opcode == RVD_WS_TEXT)
            rvd_ws_fail(w, RVD_WS_STATUS_UNSUPPORTED,
                        "WebSocket: a text message, where only binary is allowed");
        if (w->state != RVD_WS_OPEN || rvd_ws_head_len(w) > 2) return n;
    }
    rvd_ws_on_head(w);
    return n;
}

static size_t rvd_ws_control_input(rvd_ws *w, const uint8_t *p, size_t len)
{
    size_t n = rvd_base_min(len, (size_t)w->in_left);
    if (w->is_client)
        memcpy(w->control + w->control_len, p, n);
    else
        rvd_ws_mask(w->control + w->control_len, p, n, w->in_key, w->control_len);
    w->control_len += (uint32_t)n;
    w->in_left -= n;
    if (!w->in_left) rvd_ws_on_frame_end(w);
    return n;
}

typedef struct rvd_ws_piece {
    const uint8_t *at;
    size_t len;  // 0: there is none
} rvd_ws_piece;

// Shows payload, in place if it is not masked. Bytes that were unmasked but not taken are shown
// again, because the caller comes back with them.
static void rvd_ws_payload_show(rvd_ws *w, const uint8_t *p, size_t len, rvd_ws_piece *piece)
{
    uint8_t *work = w->work ? w->work : w->few;
    size_t size;
    if (len > w->in_left) len = (size_t)w->in_left;
    piece->at = p;
    piece->len = len;
    if (w->is_client) return;
    if (w->work_at == w->work_end) {
        work = rvd_ws_work(w, &size);
        w->work_end = rvd_base_min(len, size);
        rvd_ws_mask(work, p, w->work_end, w->in_key, w->in_mask_at);
        w->in_mask_at = (uint32_t)((w->in_mask_at + w->work_end) % 4);
    }
    piece->at = work + w->work_at;
    piece->len = rvd_base_min(len, w->work_end - w->work_at);
}

// Takes headers and control frames up to the next payload, or to the end of p or of the session.
//   piece    payload that follows the bytes used, if any: valid until the next call
//   returns  bytes used
static size_t rvd_ws_input(rvd_ws *w, const uint8_t *p, size_t len, rvd_ws_piece *piece)
{
    size_t used = 0;
    piece->at = NULL;
    piece->len = 0;
    while (used < len && w->state == RVD_WS_OPEN) {
        if (!w->in_body) {
            used += rvd_ws_head_input(w, p + used, len - used);
        } else if (rvd_ws_is_control(w)) {
            used += rvd_ws_control_input(w, p + used, len - used);
        } else {
            rvd_ws_payload_show(w, p + used, len - used, piece);
            break;
        }
    }
    return used;
}

// The caller has used n bytes of the piece.
static void rvd_ws_taken(rvd_ws *w, size_t n)
{
    REVDIAL_ASSERT(n <= w->in_left);
    if (!n) return;
    w->in_left -= n;
    w->has_moved = 1;
    if (!w->is_client) w->work_at += n;
    if (!w->in_left) rvd_ws_on_frame_end(w);
}

// How many of the next bytes are unmasked payload. A client's frames are masked: 0.
static size_t rvd_ws_expected(const rvd_ws *w)
{
    int is_plain = w->is_client && w->in_body && !rvd_ws_is_control(w);
    if (!is_plain) return 0;
    return w->in_left < SIZE_MAX ? (size_t)w->in_left : SIZE_MAX;
}

// Would the end of the connection cut a frame in two?
static int rvd_ws_is_torn(const rvd_ws *w)
{
    return w->in_head_len > 0 || w->in_body;
}

// ---- output ----

// Has the last frame been sent, so that another one may begin?
static int rvd_ws_is_between(const rvd_ws *w)
{
    return w->out_head_sent == w->out_head_len && !w->out_left;
}

// Writes a header. In a client's frame out_key is the key.
static void rvd_ws_head_put(rvd_ws *w, unsigned opcode, uint64_t len)
{
    uint8_t *p = w->out_head + w->out_head_len;
    uint8_t mask = w->is_client ? 0x80 : 0;
    REVDIAL_ASSERT(len <= RVD_WS_PAYLOAD_MAX);
    *p++ = (uint8_t)(0x80 | opcode);
    if (len <= 125) {
        *p++ = (uint8_t)(mask | len);
    } else if (len <= 0xFFFF) {
        *p++ = mask | 126;
        rvd_base_put_u16(p, (uint32_t)len);
        p += 2;
    } else {
        *p++ = mask | 127;
        rvd_base_put_u64(p, len);
        p += 8;
    }
    if (mask) {
        memcpy(p, w->out_key, 4);
        p += 4;
    }
    w->out_head_len = (uint32_t)(p - w->out_head);
}

static void rvd_ws_control_put(rvd_ws *w, unsigned opcode, const uint8_t *body, uint32_t len)
{
    static const uint8_t plain[4];
    const uint8_t *key = plain;
    if (w->is_client) {
        rvd_ws_key_next(w);
        key = w->out_key;
    }
    rvd_ws_head_put(w, opcode, len);
    rvd_ws_mask(w->out_head + w->out_head_len, body, len, key, 0);
    w->out_head_len += len;
}

// The pong that is owed, if any.
static void rvd_ws_pong_put(rvd_ws *w)
{
    REVDIAL_ASSERT(rvd_ws_is_between(w));
    w->out_head_len = w->out_head_sent = 0;
    if (w->pong_wanted) rvd_ws_control_put(w, RVD_WS_PONG, w->pong, w->pong_len);
    w->pong_wanted = 0;
}

// Client: takes bytes for the frame that comes next, masked. Returns how many.
static size_t rvd_ws_gather(rvd_ws *w, const struct iovec *iov, int count)
{
    size_t size, n = 0;
    uint8_t *work = rvd_ws_work(w, &size);
    size = rvd_base_min(size, RVD_WS_PAYLOAD_MAX);
    rvd_ws_key_next(w);
    for (int i = 0; i < count && n < size; i++) {
        size_t k = rvd_base_min(iov[i].iov_len, size - n);
        rvd_ws_mask(work + n, iov[i].iov_base, k, w->out_key, n);
        n += k;
    }
    w->work_end = n;
    return n;
}

// Begins a frame of len bytes. A client's payload is in its work buffer; the caller shows a
// server's.
static void rvd_ws_data_put(rvd_ws *w, size_t len)
{
    rvd_ws_head_put(w, RVD_WS_BINARY, len);
    w->out_left = len;
}

// The last frame. status: 0 = none.
static void rvd_ws_close_put(rvd_ws *w, int status)
{
    uint8_t body[2];
    REVDIAL_ASSERT(rvd_ws_is_between(w) && !w->close_put);
    w->out_head_len = w->out_head_sent = 0;
    rvd_base_put_u16(body, (uint32_t)status);
    rvd_ws_control_put(w, RVD_WS_CLOSE, body, status ? 2 : 0);
    w->close_put = 1;
}

// Shows what is left of headers, and of a client's payload. Returns vectors filled.
static int rvd_ws_show(rvd_ws *w, struct iovec *iov, int max)
{
    int n = 0;
    if (w->out_head_sent < w->out_head_len && n < max) {
        iov[n].iov_base = w->out_head + w->out_head_sent;
        iov[n++].iov_len = w->out_head_len - w->out_head_sent;
    }
    if (w->is_client && w->out_left && n < max) {
        iov[n].iov_base = (w->work ? w->work : w->few) + w->work_at;
        iov[n++].iov_len = w->work_end - w->work_at;
    }
    return n;
}

// n bytes are on the wire. Returns how many of them were payload.
static size_t rvd_ws_sent(rvd_ws *w, size_t n)
{
    size_t head = rvd_base_min(n, w->out_head_len - w->out_head_sent);
    w->out_head_sent += (uint32_t)head;
    n -= head;
    REVDIAL_ASSERT(n <= w->out_left);
    w->out_left -= n;
    if (w->is_client) w->work_at += n;
    return n;
}

// ---- memory ----

static rvd_ws *rvd_ws_new(rvd_heap *heap, int is_client, uint64_t seed, const int64_t *now_us)
{
    rvd_ws *w = rvd_base_alloc(heap, sizeof *w);
    if (!w) return NULL;
    w->heap = heap;
    w->is_client = is_client;
    w->now_us = now_us;
    rvd_base_put_u64(w->secret, seed);
    rvd_base_bucket_init(&w->glitches, RVD_WS_GLITCH_BURST, RVD_WS_GLITCH_RATE, *now_us);
    return w;
}

// Frees memory that an idle session does not need.
static void rvd_ws_trim(rvd_ws *w)
{
    if (!w->work || w->work_at < w->work_end || *w->now_us - w->work_us < RVD_WS_IDLE_US) return;
    rvd_base_free(w->heap, w->work, RVD_WS_WORK);
    w->work = NULL;
    w->work_at = w->work_end = 0;
}

static void rvd_ws_free(rvd_ws *w)
{
    if (!w) return;
    if (w->work) rvd_base_free(w->heap, w->work, RVD_WS_WORK);
    rvd_base_wipe(w->secret, sizeof w->secret);
    rvd_base_free(w->heap, w, sizeof *w);
}

// ================================================================================================
// MARK: impl.engine  uses: base wire mux auth http ws
// Handshake, carrier and mux as one machine, on both ends: the public revdial_engine_* calls.
// ================================================================================================

// What the engine waits for. A refused one still has output to send. The mux knows how a session
// ends.
//
//   HEAD --request--> VERDICT --accepted--> READY --EV_UP--> UP        proxy
//   HEAD --101, or config.upgraded--> READY --EV_UP--> UP              backend
//   HEAD, VERDICT --refused, timeout, EOF--> DEAD
enum rvd_engine_state {
    RVD_ENGINE_HEAD,     // the peer's request or response
    RVD_ENGINE_VERDICT,  // the application's answer to REVDIAL_EV_AUTH
    RVD_ENGINE_DEAD,     // nothing: the handshake has failed
    RVD_ENGINE_READY,    // that EV_UP is fetched. From here on there is a session
    RVD_ENGINE_UP        // nothing: only the mux has a say
};

enum {
    RVD_ENGINE_WHY_SIZE = 240,  // as much as revdial_err has room for
    RVD_ENGINE_REASON_MAX = 48,
    RVD_ENGINE_LOCATION_MAX = 120
};

typedef struct rvd_engine_framing rvd_engine_framing;

struct revdial_engine {
    rvd_heap heap;
    enum rvd_engine_state state;
    int role;
    int accept_streams;
    revdial_limits limits;  // as configured; resolved per peer when the session comes up
    rvd_base_arena texts;   // of the config, which follow
    const char *path, *peer;
    const char *realm, *nonce;  // proxy: of our 401
    const char *origins;        // proxy: NULL = none
    uint64_t session_id, seed;
    int64_t start_us;  // the clock is mux.now_us, from the start

    rvd_http_head head;
    rvd_http_request request;
    unsigned auth_schemes;
    // DIGEST. Proxy: what revdial_auth_verify() left; backend: what the proxy's answer must hold.
    char proof[RVD_AUTH_HEX_SIZE];
    unsigned sent_scheme;  // backend: of our Authorization, 0 if there was none
    int has_secret;        // backend
    char *challenge;       // backend: of the 401, if the next attempt can do better
    rvd_base_text hello;   // our half of the handshake, until it is sent; may hold a secret
    size_t hello_sent;

    int tell;                          // REVDIAL_EV_AUTH or _DEAD is due, or EV_NONE
    int dead, status, retry_after_ms;  // of a handshake that failed
    int was_probe;                     // by a request that did not ask for a session
    const char *dead_text;
    char *why;  // backend: RVD_ENGINE_WHY_SIZE bytes for it, or NULL
    char features_text[64];
    int carrier;                        // REVDIAL_CARRIER_*
    char accept[RVD_HTTP_ACCEPT_SIZE];  // backend: what has to answer our key
    const rvd_engine_framing *framing;  // of that carrier; NULL: the mux's bytes go as they are
    rvd_ws *ws;                         // of WebSocket
    rvd_mux mux;
};

#ifdef REVDIAL_SELF_CHECK
#define RVD_ENGINE_CHECK(e) rvd_mux_check(&(e)->mux)
#else
#define RVD_ENGINE_CHECK(e) (void)(e)
#endif

static void rvd_engine_hello_free(revdial_engine *e)
{
    if (e->hello.at) rvd_base_wipe(e->hello.at, e->hello.size);
    rvd_base_free(&e->heap, e->hello.at, e->hello.size);
    memset(&e->hello, 0, sizeof e->hello);
    e->hello_sent = 0;
}

static int rvd_engine_hello_alloc(revdial_engine *e, size_t size)
{
    void *at = rvd_base_alloc(&e->heap, size);
    if (at) e->hello = rvd_base_text_in(at, size);
    return at != NULL;
}

static void rvd_engine_become(revdial_engine *e, enum rvd_engine_state to)
{
    static const unsigned arrows[] = {
        [RVD_ENGINE_HEAD] =
            1u << RVD_ENGINE_VERDICT | 1u << RVD_ENGINE_READY | 1u << RVD_ENGINE_DEAD,
        [RVD_ENGINE_VERDICT] = 1u << RVD_ENGINE_READY | 1u << RVD_ENGINE_DEAD,
        [RVD_ENGINE_READY] = 1u << RVD_ENGINE_UP,
        [RVD_ENGINE_UP] = 0};
    REVDIAL_ASSERT(arrows[e->state] & 1u << to);
    (void)arrows;  // without assertions
    e->state = to;
}

static int rvd_engine_has_session(const revdial_engine *e)
{
    return e->state >= RVD_ENGINE_READY;
}

// The handshake failed. The first cause sticks.
static void rvd_engine_die(revdial_engine *e, int code, int status, const char *text)
{
    if (e->state == RVD_ENGINE_DEAD) return;
    rvd_engine_become(e, RVD_ENGINE_DEAD);
    e->dead = code;
    e->status = status;
    e->dead_text = text;
    e->tell = REVDIAL_EV_DEAD;
    rvd_http_head_free(&e->head);
}

// ---- carriers ----

// How a carrier frames the bytes of the mux. The raw carrier does not: it has no such table.
struct rvd_engine_framing {
    int (*start)(revdial_engine *e);                                   // 0: out of memory
    size_t (*input)(revdial_engine *e, const uint8_t *p, size_t len);  // as rvd_mux_input()
    int (*output)(revdial_engine *e, struct iovec *iov, int max);      // as rvd_mux_output()
    size_t (*sent)(revdial_engine *e, size_t n);  // n bytes are on the wire: how many are the mux's
    size_t (*expected)(const revdial_engine *e);  // how many of the next are payload as they stand
    size_t (*unsent)(const revdial_engine *e);    // bytes of its own that wait for the wire
    int (*is_torn)(const revdial_engine *e);      // would the end of the connection cut a frame?
    void (*trim)(revdial_engine *e);              // frees what an idle session need not hold
    void (*free)(revdial_engine *e);
};

// ---- the WebSocket carrier ----

// Bytes that the mux has ready for the wire.
static size_t rvd_engine_ready(const rvd_mux *m)
{
    return (size_t)rvd_mux_out_len(m) + m->control_len - m->control_sent;
}

// The peer's Close is the end of the connection, with or without a reason.
static void rvd_engine_ws_ended(revdial_engine *e)
{
    rvd_mux *m = &e->mux;
    switch (e->ws->state == RVD_WS_FAILED ? -1 : e->ws->status) {
    case -1: rvd_mux_die(m, REVDIAL_EPROTO, e->ws->text); break;
    case RVD_WS_STATUS_NONE:
    case RVD_WS_STATUS_NORMAL:
    case RVD_WS_STATUS_AWAY: rvd_mux_eof(m); break;
    case RVD_WS_STATUS_PROTOCOL:
    case RVD_WS_STATUS_UNSUPPORTED:
    case RVD_WS_STATUS_BAD_DATA:
        rvd_mux_die(m, REVDIAL_EPROTO, "WebSocket: the peer reports a protocol error");
        break;
    default: rvd_mux_die(m, REVDIAL_ELOST, "WebSocket: the peer closed it with an unusual status");
    }
}

static size_t rvd_engine_ws_input(revdial_engine *e, const uint8_t *p, size_t len)
{
    rvd_mux *m = &e->mux;
    rvd_ws *w = e->ws;
    size_t used = 0;
    while (used < len && w->state == RVD_WS_OPEN && !m->dead && !rvd_mux_has_events(m)) {
        rvd_ws_piece piece;
        size_t n;
        used += rvd_ws_input(w, p + used, len - used, &piece);
        if (!piece.len) continue;
        n = rvd_mux_input(m, piece.at, piece.len);
        rvd_ws_taken(w, n);
        used += n;
    }
    if (w->state != RVD_WS_OPEN) rvd_engine_ws_ended(e);
    return used;
}

// The status of our Close, after the mux has sent its last byte; -1: not yet, or no Close at all.
static int rvd_engine_ws_status(const revdial_engine *e)
{
    const rvd_mux *m = &e->mux;
    if (e->ws->close_put) return -1;
    if (e->ws->state != RVD_WS_OPEN) return e->ws->status;
    if (!m->silent || m->dead == REVDIAL_ELOST) return -1;
    return m->dead == REVDIAL_EPROTO   ? RVD_WS_STATUS_PROTOCOL
           : m->dead == REVDIAL_ENOMEM ? RVD_WS_STATUS_INTERNAL
                                       : RVD_WS_STATUS_NORMAL;
}

// Begins the next frames: a pong, all that the mux has ready as one data frame, or Close. After the
// peer's Close nothing of the mux is sent.
static void rvd_engine_ws_begin(revdial_engine *e)
{
    struct iovec iov[8];
    rvd_mux *m = &e->mux;
    rvd_ws *w = e->ws;
    int status, count;
    size_t len = 0;
    if (w->state == RVD_WS_OPEN && !w->close_put) {
        rvd_ws_pong_put(w);
        count = rvd_mux_output(m, iov, w->is_client ? 8 : 0);
        len = rvd_engine_ready(m);
        if (len && w->is_client) len = rvd_ws_gather(w, iov, count);
        if (len) rvd_ws_data_put(w, rvd_base_min(len, RVD_WS_PAYLOAD_MAX));
    }
    if (!rvd_ws_is_between(w)) return;
    status = rvd_engine_ws_status(e);
    if (status >= 0) rvd_ws_close_put(w, status);
}

// A server shows the mux's own output behind the header: the frame is the next out_left bytes of
// that output. Later output may change which bytes these are, but never makes them fewer.
static int rvd_engine_ws_output(revdial_engine *e, struct iovec *iov, int max)
{
    rvd_ws *w = e->ws;
    uint64_t left;
    int n, count;
    if (rvd_ws_is_between(w)) rvd_engine_ws_begin(e);
    n = rvd_ws_show(w, iov, max);
    if (w->is_client || !w->out_left) return n;
    left = w->out_left;
    count = n + rvd_mux_output(&e->mux, iov + n, max - n);
    for (; n < count && left; n++) {
        if (iov[n].iov_len > left) iov[n].iov_len = (size_t)left;
        left -= iov[n].iov_len;
    }
    return n;
}

static int rvd_engine_ws_start(revdial_engine *e)
{
    int is_client = e->role == REVDIAL_ROLE_BACKEND;
    e->ws = rvd_ws_new(&e->heap, is_client, e->seed, &e->mux.now_us);
    return e->ws != NULL;
}

static size_t rvd_engine_ws_sent(revdial_engine *e, size_t n)
{
    return rvd_ws_sent(e->ws, n);
}

static size_t rvd_engine_ws_expected(const revdial_engine *e)
{
    return rvd_ws_expected(e->ws);
}

static size_t rvd_engine_ws_unsent(const revdial_engine *e)
{
    return e->ws->out_head_len - e->ws->out_head_sent;
}

static int rvd_engine_ws_is_torn(const revdial_engine *e)
{
    return rvd_ws_is_torn(e->ws);
}

static void rvd_engine_ws_trim(revdial_engine *e)
{
    if (!e->mux.slice_stream) rvd_ws_trim(e->ws);
}

static void rvd_engine_ws_free(revdial_engine *e)
{
    rvd_ws_free(e->ws);
}

static const rvd_engine_framing rvd_engine_websocket = {.start = rvd_engine_ws_start,
                                                        .input = rvd_engine_ws_input,
                                                        .output = rvd_engine_ws_output,
                                                        .sent = rvd_engine_ws_sent,
                                                        .expected = rvd_engine_ws_expected,
                                                        .unsent = rvd_engine_ws_unsent,
                                                        .is_torn = rvd_engine_ws_is_torn,
                                                        .trim = rvd_engine_ws_trim,
                                                        .free = rvd_engine_ws_free};

// Returns 0: out of memory.
static int rvd_engine_framing_start(revdial_engine *e)
{
    static const rvd_engine_framing *const framings[] = {
        [REVDIAL_CARRIER_RAW] = NULL, [REVDIAL_CARRIER_WEBSOCKET] = &rvd_engine_websocket};
    const rvd_engine_framing *f = framings[e->carrier];
    if (f && !f->start(e)) return 0;
    e->framing = f;
    return 1;
}

// ---- what both ends say ----

static unsigned rvd_engine_all_features(void)
{
    return REVDIAL_FEATURE_RSTCODE | REVDIAL_FEATURE_PREAMBLE | REVDIAL_FEATURE_DRAIN |
           REVDIAL_FEATURE_PROMPTACK | REVDIAL_FEATURE_PINGS;
}

static uint32_t rvd_engine_window(const revdial_engine *e)
{
    return e->limits.stream_window ? e->limits.stream_window : 65536;
}

// The terms that this end announces. A proxy that accepts no streams announces 0 of them.
static rvd_http_terms rvd_engine_terms(const revdial_engine *e)
{
    rvd_http_terms t = {.is_revdial = 1, .features = rvd_engine_all_features()};
    t.window = rvd_engine_window(e);
    if (e->accept_streams) t.streams = e->limits.max_streams ? e->limits.max_streams : 65536;
    return t;
}

// Proxy: answers with a status and gives up the connection.
static void rvd_engine_refuse(revdial_engine *e, int status, int is_stale)
{
    rvd_http_answer answer;
    memset(&answer, 0, sizeof answer);
    answer.status = status;
    answer.schemes = e->auth_schemes;
    answer.realm = e->realm;
    answer.nonce = e->nonce;
    answer.is_stale = is_stale;
    answer.terms.is_revdial = e->request.terms.is_revdial;
    if (rvd_engine_hello_alloc(e, RVD_HTTP_ANSWER_SIZE))
        rvd_http_response_write(&e->hello, &answer);
    rvd_engine_die(e, rvd_http_refusal_of(status)->code, status, rvd_http_refusal_text(status));
}

static void rvd_engine_features_note(revdial_engine *e, unsigned features)
{
    rvd_base_text t = rvd_base_text_in(e->features_text, sizeof e->features_text);
    for (size_t i = 0; i < RVD_HTTP_FEATURE_COUNT; i++)
        if (features & rvd_http_features[i].bit)
            RVD_BASE_ADD(&t, t.len ? " " : NULL, rvd_http_features[i].name);
}

static void rvd_engine_limits_resolve(revdial_engine *e, const rvd_http_terms *peer,
                                      rvd_mux_config *cfg)
{
    revdial_limits *l = &cfg->limits;
    *l = e->limits;
    cfg->recv_window = peer->has_window ? rvd_engine_window(e) : RVD_WIRE_WINDOW0;
    if (!l->max_streams) l->max_streams = peer->has_streams ? 65536 : RVD_MUX_STOCK_STREAMS;
    if (l->stream_window < cfg->recv_window) l->stream_window = cfg->recv_window;
    if (!l->stream_window_max) l->stream_window_max = 16u << 20;
    if (l->stream_window_max < l->stream_window) l->stream_window_max = l->stream_window;
    if (!l->session_window) l->session_window = 64u << 20;
    if (!l->frame_bytes_max) l->frame_bytes_max = RVD_WIRE_FRAME_MAX;
    if (!l->keepalive_ms) l->keepalive_ms = RVD_BASE_KEEPALIVE_MS;
    if (!l->dead_after_ms) l->dead_after_ms = RVD_BASE_DEAD_AFTER_MS;
    if (!l->accept_timeout_ms) l->accept_timeout_ms = 30000;
    if (!l->write_stall_ms) l->write_stall_ms = RVD_BASE_STALL_MS;
}

static void rvd_engine_come_up(revdial_engine *e, const rvd_http_terms *peer)
{
    rvd_mux_config cfg;
    memset(&cfg, 0, sizeof cfg);
    cfg.is_client = e->role == REVDIAL_ROLE_PROXY;
    cfg.accept_streams = e->accept_streams;
    cfg.features = peer->is_revdial ? peer->features & rvd_engine_all_features() : 0;
    cfg.send_window = peer->window;
    cfg.peer_streams = peer->streams;
    cfg.session_id = e->session_id;
    cfg.seed = e->seed;
    rvd_engine_limits_resolve(e, peer, &cfg);
    rvd_engine_features_note(e, cfg.features);
    rvd_http_head_free(&e->head);
    if (!rvd_engine_framing_start(e) || !rvd_mux_start(&e->mux, &e->heap, &cfg, e->mux.now_us)) {
        rvd_engine_die(e, REVDIAL_ENOMEM, 0, "out of memory for the session");
        return;
    }
    rvd_engine_become(e, RVD_ENGINE_READY);
}

// ---- the handshake ----

// Are the credentials of a scheme that is accepted here, and the realm and uri of Digest ours?
static int rvd_engine_is_meant(const revdial_engine *e)
{
    const rvd_http_request *r = &e->request;
    if (r->auth.scheme && !(e->auth_schemes & r->auth.scheme)) return 0;
    if (!r->auth.digest) return 1;
    return strcmp(r->digest.realm, e->realm) == 0 && strcmp(r->digest.uri, e->path) == 0;
}

static void rvd_engine_on_request(revdial_engine *e, int has_more)
{
    int status = rvd_http_request_read(&e->head, e->path, e->origins, &e->request);
    if (!status && !rvd_engine_is_meant(e)) status = 401;
    // RFC 9931: bytes before our 101 may be a smuggled request.
    if (!status && has_more) status = 400;
    if (status) {
        e->was_probe = e->request.is_probe;
        rvd_engine_refuse(e, status, 0);
        return;
    }
    e->request.auth.peer = e->peer;
    if (e->request.auth.digest) e->request.auth.proof = e->proof;
    e->carrier = e->request.carrier;
    rvd_engine_become(e, RVD_ENGINE_VERDICT);
    e->tell = REVDIAL_EV_AUTH;
}

// Keeps the strongest challenge of a 401 that we may answer, for the next attempt.
static int rvd_engine_keep_challenge(revdial_engine *e, const rvd_http_challenge *c)
{
    unsigned fit = c->schemes & e->auth_schemes;
    rvd_base_text t;
    e->challenge = rvd_base_alloc(&e->heap, RVD_HTTP_ANSWER_SIZE);
    if (!e->challenge) return 0;
    t = rvd_base_text_in(e->challenge, RVD_HTTP_ANSWER_SIZE);
    if (fit & REVDIAL_AUTH_DIGEST) {
        rvd_base_text_add(&t, "Digest algorithm=SHA-256, qop=auth");
        rvd_http_write_quoted(&t, ", realm", rvd_http_terminate(&e->head, c->realm));
        rvd_http_write_quoted(&t, ", nonce", rvd_http_terminate(&e->head, c->nonce));
        rvd_http_write_quoted(&t, ", opaque", rvd_http_terminate(&e->head, c->opaque));
    } else {
        rvd_base_text_add(&t, fit & REVDIAL_AUTH_BEARER ? "Bearer" : "Basic");
    }
    return 1;
}

// Describes an answer and where a redirect points. The text lives as long as the engine.
static const char *rvd_engine_answer_text(revdial_engine *e, const rvd_http_response *r)
{
    rvd_base_text t;
    if (!e->why) e->why = rvd_base_alloc(&e->heap, RVD_ENGINE_WHY_SIZE);
    if (!e->why) return rvd_http_refusal_text(r->status);
    t = rvd_base_text_in(e->why, RVD_ENGINE_WHY_SIZE);
    RVD_BASE_ADD(&t, r->terms.is_revdial ? "the proxy answered " : "the front end answered ",
                 RVD_BASE_NUMBER((uint64_t)r->status), r->reason.len ? " " : NULL);
    rvd_base_text_add_said(&t, r->reason.at, r->reason.len, RVD_ENGINE_REASON_MAX);
    if (r->location.len) {
        rvd_base_text_add(&t, " and points to \"");
        rvd_base_text_add_said(&t, r->location.at, r->location.len, RVD_ENGINE_LOCATION_MAX);
        rvd_base_text_add(&t, "\"");
    } else if (r->status == 404) {
        rvd_base_text_add(&t, " (is this the path of the proxy?)");
    } else if (r->status < 300) {
        rvd_base_text_add(&t, ", so it is no revdial proxy");
    }
    return e->why;
}

// A 401 to our credentials is a rejection. One to a request without them names the schemes for the
// next attempt. A front end's 401 is neither: it does not know our credentials.
static void rvd_engine_on_unauthorized(revdial_engine *e, const rvd_http_response *r)
{
    const rvd_http_challenge *c = &r->challenge;
    int is_stale = e->sent_scheme == REVDIAL_AUTH_DIGEST && c->is_stale;
    const char *text = rvd_http_refusal_text(401);
    int code = REVDIAL_EAUTH;
    if (e->has_secret && (!e->sent_scheme || is_stale)) {
        if (c->schemes & e->auth_schemes) {
            text = "the proxy asks for credentials";
            if (!rvd_engine_keep_challenge(e, c)) code = REVDIAL_ENOMEM;
            rvd_engine_die(e, code, 401, text);
            return;
        }
        if (c->is_bad) code = REVDIAL_EUPGRADE;
        text = c->is_bad ? "the proxy's challenge is malformed"
                         : "the proxy asks for no way to authenticate that this agent may use";
    }
    if (!r->terms.is_revdial) code = REVDIAL_EUPGRADE;
    rvd_engine_die(e, code, 401, r->terms.is_revdial ? text : rvd_engine_answer_text(e, r));
}

// Any other refusal.
static void rvd_engine_on_refusal(revdial_engine *e, const rvd_http_response *r)
{
    int code = rvd_http_refusal_of(r->status)->code;
    if (code == REVDIAL_EDENIED && !r->terms.is_revdial) code = REVDIAL_EUPGRADE;
    e->retry_after_ms = r->retry_after_ms;
    rvd_engine_die(e, code, r->status,
                   r->is_stripped        ? "something on the way stripped the Upgrade header"
                   : r->terms.is_revdial ? rvd_http_refusal_text(r->status)
                                         : rvd_engine_answer_text(e, r));
}

// With DIGEST: has the proxy proved that it knows the password?
static int rvd_engine_is_proved(const revdial_engine *e, const rvd_http_response *r)
{
    if (e->sent_scheme != REVDIAL_AUTH_DIGEST) return e->auth_schemes != REVDIAL_AUTH_DIGEST;
    return r->proof.len == RVD_AUTH_HEX_SIZE - 1 &&
           rvd_base_equal(r->proof.at, e->proof, r->proof.len);
}

static void rvd_engine_on_response(revdial_engine *e)
{
    rvd_http_response r;
    int verdict = rvd_http_response_read(&e->head, e->accept[0] ? e->accept : NULL, &r);
    if (verdict == RVD_HTTP_MORE) return;
    if (verdict != RVD_HTTP_DONE) {
        rvd_engine_die(e, REVDIAL_EUPGRADE, r.status, "the answer is not a valid HTTP upgrade");
        return;
    }
    if (r.status == 401) {
        rvd_engine_on_unauthorized(e, &r);
        return;
    }
    if (r.status == 101 && !rvd_engine_is_proved(e, &r)) {
        rvd_engine_die(e, REVDIAL_EAUTH, 101, "the proxy did not prove that it knows the password");
        return;
    }
    if (r.status != 101) {
        rvd_engine_on_refusal(e, &r);
        return;
    }
    e->session_id = r.session_id;
    rvd_engine_come_up(e, &r.terms);
}

// Names the protocol of a peer that does not speak HTTP. TLS begins with the type of a record, 22
// from a client and 21 or 22 from a server (RFC 8446 section 5.1).
static const char *rvd_engine_stranger(const revdial_engine *e, uint8_t first)
{
    int is_tls = first == 22 || first == 21;
    if (e->role == REVDIAL_ROLE_PROXY)
        return is_tls ? "the peer speaks TLS, but this port does not: the agent needs http://"
                      : "the peer does not speak HTTP";
    return is_tls ? "the server speaks TLS on that port: use https:// or wss://"
                  : "what the server says is not HTTP";
}

static size_t rvd_engine_head_input(revdial_engine *e, const uint8_t *p, size_t len)
{
    size_t used = 0;
    int verdict = rvd_http_head_feed(&e->head, p, len, &used);
    if (verdict == RVD_HTTP_MORE) return used;
    if (verdict == RVD_HTTP_NOMEM) {
        rvd_engine_die(e, REVDIAL_ENOMEM, 0, "out of memory for the request");
    } else if (verdict == RVD_HTTP_DROP) {
        rvd_engine_die(e, REVDIAL_EUPGRADE, 0, rvd_engine_stranger(e, *p));
    } else if (verdict == RVD_HTTP_BAD) {
        rvd_engine_die(e, REVDIAL_EUPGRADE, 0,
                       e->head.len > 1 ? "the answer is not valid HTTP"
                                       : rvd_engine_stranger(e, *p));
    } else if (verdict != RVD_HTTP_DONE) {
        e->was_probe = verdict == 505 && rvd_http_is_probe_rest(p + used, len - used);
        rvd_engine_refuse(e, verdict, 0);
    } else if (e->role == REVDIAL_ROLE_PROXY) {
        rvd_engine_on_request(e, used < len);
    } else {
        rvd_engine_on_response(e);
    }
    return used;
}

static void rvd_engine_eof(revdial_engine *e)
{
    if (rvd_engine_has_session(e) && e->framing && e->framing->is_torn(e))
        rvd_mux_die(&e->mux, REVDIAL_ELOST, "the connection ended in the middle of a frame");
    else if (rvd_engine_has_session(e))
        rvd_mux_eof(&e->mux);
    else if (e->role == REVDIAL_ROLE_BACKEND && e->state == RVD_ENGINE_HEAD && !e->head.len)
        rvd_engine_die(e, REVDIAL_ELOST, 0,
                       "the server hung up without an answer: does that port want https://?");
    else
        rvd_engine_die(e, REVDIAL_ELOST, 0, "the connection ended during the handshake");
}

// Input before the session is up, its end, and an impossible length.
RVD_BASE_SLOW static ptrdiff_t rvd_engine_rare_input(revdial_engine *e, const uint8_t *p,
                                                     size_t len)
{
    size_t used = 0;
    if (len > RVD_BASE_LEN_MAX) return REVDIAL_EINVAL;
    if (e->state == RVD_ENGINE_DEAD || e->mux.dead) return REVDIAL_ECLOSED;
    if (len == 0) rvd_engine_eof(e);
    while (e->state == RVD_ENGINE_HEAD && used < len)
        used += rvd_engine_head_input(e, p + used, len - used);
    if (e->state == RVD_ENGINE_VERDICT && used < len) rvd_engine_refuse(e, 400, 0);
    return (ptrdiff_t)used;
}

ptrdiff_t revdial_engine_input(revdial_engine *e, const void *buf, size_t len, int64_t now_us)
{
    ptrdiff_t used;
    RVD_ENGINE_CHECK(e);
    if (e->state != RVD_ENGINE_UP || e->mux.dead || (ptrdiff_t)len <= 0) {
        if (now_us > e->mux.now_us) e->mux.now_us = now_us;
        used = rvd_engine_rare_input(e, buf, len);
    } else {
        rvd_mux_now(&e->mux, now_us);
        e->mux.last_rx_us = e->mux.now_us;
        used = (ptrdiff_t)(e->framing ? e->framing->input(e, buf, len)
                                      : rvd_mux_input(&e->mux, buf, len));
        if (e->mux.is_mute | e->mux.draining) rvd_mux_heard(&e->mux);
    }
    RVD_ENGINE_CHECK(e);
    return used;
}

int revdial_engine_auth(revdial_engine *e, int verdict)
{
    rvd_http_answer answer;
    if (e->state != RVD_ENGINE_VERDICT || e->tell == REVDIAL_EV_AUTH) return REVDIAL_EINVAL;
    verdict = (int)rvd_auth_verdict(verdict);

    if (verdict) {
        int is_stale = verdict == REVDIAL_VERDICT_STALE_NONCE;
        rvd_engine_refuse(e, is_stale ? 401 : verdict, is_stale);
        return REVDIAL_OK;
    }
    memset(&answer, 0, sizeof answer);
    answer.status = 101;
    answer.terms = rvd_engine_terms(e);
    answer.terms.is_revdial = e->request.terms.is_revdial;
    answer.session_id = e->session_id;
    if (e->proof[0]) answer.proof = e->proof;
    answer.cnonce = e->request.digest.cnonce;
    answer.accept = e->request.carrier == REVDIAL_CARRIER_WEBSOCKET ? e->request.accept : NULL;
    if (!rvd_engine_hello_alloc(e, RVD_HTTP_ANSWER_SIZE)) {
        rvd_engine_die(e, REVDIAL_ENOMEM, 0, "out of memory for the answer");
        return REVDIAL_ENOMEM;
    }
    rvd_http_response_write(&e->hello, &answer);
    rvd_engine_come_up(e, &e->request.terms);
    if (rvd_engine_has_session(e)) return REVDIAL_OK;
    rvd_engine_hello_free(e);  // or the peer would be told yes
    return REVDIAL_ENOMEM;
}

// ---- events, output, time ----

// The handshake's event.
RVD_BASE_SLOW static int rvd_engine_event_own(revdial_engine *e, revdial_event *ev)
{
    memset(ev, 0, sizeof *ev);
    ev->type = e->tell;
    e->tell = REVDIAL_EV_NONE;
    if (ev->type == REVDIAL_EV_AUTH) ev->auth = &e->request.auth;
    if (e->state == RVD_ENGINE_READY) {
        rvd_engine_become(e, RVD_ENGINE_UP);
        ev->type = REVDIAL_EV_UP;
        ev->text = e->features_text;
    }
    if (ev->type == REVDIAL_EV_DEAD) {
        ev->code = e->dead;
        ev->status = e->status;
        ev->retry_after_ms = e->retry_after_ms;
        ev->challenge = e->challenge;
        ev->text = e->dead_text;
    }
    return ev->type != REVDIAL_EV_NONE;
}

int revdial_engine_event(revdial_engine *e, revdial_event *ev)
{
    int told;
    if (e->state != RVD_ENGINE_UP) return rvd_engine_event_own(e, ev);
    told = rvd_mux_event(&e->mux, ev);
    RVD_ENGINE_CHECK(e);
    return told;
}

int revdial_engine_output(revdial_engine *e, struct iovec *iov, int max)
{
    int n = 0;
    if (e->hello.at && max > 0) {
        iov[0].iov_base = e->hello.at + e->hello_sent;
        iov[0].iov_len = e->hello.len - e->hello_sent;
        n = 1;
    }
    if (rvd_engine_has_session(e)) {
        n += e->framing ? e->framing->output(e, iov + n, max - n)
                        : rvd_mux_output(&e->mux, iov + n, max - n);
        rvd_mux_drain_check(&e->mux);
    }
    return n;
}

void revdial_engine_sent(revdial_engine *e, size_t n)
{
    size_t hello;
    if (n > RVD_BASE_LEN_MAX) n = 0;
    hello = rvd_base_min(n, e->hello.len - e->hello_sent);
    e->hello_sent += hello;
    if (e->hello.at && e->hello_sent == e->hello.len) rvd_engine_hello_free(e);
    n -= hello;
    if (e->framing) n = e->framing->sent(e, n);
    if (rvd_engine_has_session(e)) rvd_mux_sent(&e->mux, n);
    RVD_ENGINE_CHECK(e);
}

void revdial_engine_set_output_max(revdial_engine *e, size_t bytes)
{
    rvd_mux_out_max_set(&e->mux, bytes);
}

void revdial_engine_set_now(revdial_engine *e, int64_t now_us)
{
    rvd_mux_now(&e->mux, now_us);
}

int64_t revdial_engine_tick(revdial_engine *e, int64_t now_us)
{
    int64_t at = e->start_us + (int64_t)e->limits.handshake_timeout_ms * 1000;
    if (rvd_engine_has_session(e)) {
        at = rvd_mux_tick(&e->mux, now_us);
        rvd_mux_drain_check(&e->mux);
        if (e->framing) e->framing->trim(e);
        RVD_ENGINE_CHECK(e);
        return e->mux.dead ? -1 : at;
    }
    rvd_mux_now(&e->mux, now_us);
    if (e->state == RVD_ENGINE_DEAD) return -1;
    if (e->mux.now_us < at) return at;
    // A peer that sent some bytes gets an answer. A silent connection is closed without one.
    if (e->role == REVDIAL_ROLE_PROXY && (e->head.len || e->state == RVD_ENGINE_VERDICT))
        rvd_engine_refuse(e, 408, 0);
    else
        rvd_engine_die(e, REVDIAL_ETIMEDOUT, 0, "the handshake took too long");
    return -1;
}

int revdial_engine_is_waiting(const revdial_engine *e)
{
    const rvd_mux *m = &e->mux;
    return rvd_engine_has_session(e) && !m->dead && (rvd_mux_is_asking(m) || rvd_mux_is_blocked(m));
}

void revdial_engine_acked(revdial_engine *e, int64_t at_us)
{
    rvd_mux *m = &e->mux;
    m->acked_us = rvd_base_later(m->acked_us, rvd_base_sooner(at_us, m->now_us));
}

// ---- streams ----

static rvd_mux_stream *rvd_engine_find(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_has_session(e) ? rvd_mux_find(&e->mux, id) : NULL;
    return s && !s->released ? s : NULL;
}

int64_t revdial_engine_open(revdial_engine *e, const revdial_dial_opts *opts, void *ud)
{
    static const revdial_dial_opts none;
    int64_t id;
    if (!rvd_engine_has_session(e)) return REVDIAL_ECLOSED;
    id = rvd_mux_open(&e->mux, opts ? opts : &none);
    if (id > 0) rvd_mux_find(&e->mux, (uint32_t)id)->ud = ud;
    RVD_ENGINE_CHECK(e);
    return id;
}

int revdial_engine_accept(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s || rvd_mux_is_mine(&e->mux, id)) return REVDIAL_EINVAL;
    rvd_mux_ack(&e->mux, s);
    return REVDIAL_OK;
}

int revdial_engine_early(revdial_engine *e, uint32_t id, const void *buf, size_t len)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    int code = REVDIAL_EINVAL;
    if (s && rvd_mux_is_mine(&e->mux, id) && len) code = rvd_mux_early(&e->mux, s, buf, len);
    RVD_ENGINE_CHECK(e);
    return code;
}

int revdial_engine_set_ud(revdial_engine *e, uint32_t id, void *ud)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s) return REVDIAL_EINVAL;
    s->ud = ud;
    return REVDIAL_OK;
}

ptrdiff_t revdial_engine_peek(revdial_engine *e, uint32_t id, const void **data)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    const uint8_t *at;
    size_t n;
    if (!s) return REVDIAL_EINVAL;
    n = rvd_mux_peek(&e->mux, s, &at);
    if (!n) return rvd_mux_read_state(&e->mux, s);
    *data = at;
    return (ptrdiff_t)n;
}

void revdial_engine_consume(revdial_engine *e, uint32_t id, size_t n)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s || !n || n > RVD_BASE_LEN_MAX) return;
    rvd_mux_ack(&e->mux, s);
    rvd_mux_consume(&e->mux, s, (uint32_t)rvd_base_min(n, s->buffered));
    RVD_ENGINE_CHECK(e);
}

size_t revdial_engine_expected(revdial_engine *e, uint32_t id)
{
    const rvd_mux_stream *s = rvd_engine_find(e, id);
    size_t n = s ? rvd_mux_expected(&e->mux, s) : 0;
    return n && e->framing ? rvd_base_min(n, e->framing->expected(e)) : n;
}

ptrdiff_t revdial_engine_read(revdial_engine *e, uint32_t id, void *buf, size_t len)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    size_t got;
    if (!s || (ptrdiff_t)len <= 0) return REVDIAL_EINVAL;  // 0, or over PTRDIFF_MAX
    if (s->phase == RVD_MUX_SHOWN) rvd_mux_ack(&e->mux, s);
    got = rvd_mux_read(&e->mux, s, buf, len);
    RVD_ENGINE_CHECK(e);
    return got ? (ptrdiff_t)got : rvd_mux_read_state(&e->mux, s);
}

ptrdiff_t revdial_engine_reserve(revdial_engine *e, uint32_t id, void **at, size_t want)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    uint8_t *room = NULL;
    ptrdiff_t n;
    if (!s || !want || want > RVD_BASE_LEN_MAX) return REVDIAL_EINVAL;
    n = rvd_mux_reserve(&e->mux, s, &room, want);
    *at = room;
    e->mux.reserved = n > 0 ? (uint32_t)n : 0;
    return n;
}

void revdial_engine_commit(revdial_engine *e, uint32_t id, size_t n)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (n > RVD_BASE_LEN_MAX) n = 0;
    REVDIAL_ASSERT(s && n <= e->mux.reserved);
    e->mux.reserved = 0;
    if (n) rvd_mux_commit(&e->mux, s, (uint32_t)n);
    RVD_ENGINE_CHECK(e);
}

int revdial_engine_writable(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    int state = s ? rvd_mux_write_state(&e->mux, s) : REVDIAL_EINVAL;
    return state ? state : rvd_mux_allowed(&e->mux, s, RVD_WIRE_FRAME_MAX) > 0;
}

ptrdiff_t revdial_engine_write(revdial_engine *e, uint32_t id, const void *buf, size_t len)
{
    const uint8_t *from = buf;
    size_t done = 0;
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s || len > RVD_BASE_LEN_MAX) return REVDIAL_EINVAL;
    while (done < len) {
        ptrdiff_t n = rvd_mux_write(&e->mux, s, from + done, len - done);
        if (n < 0 && !done) return n;
        if (n <= 0) break;
        done += (size_t)n;
    }
    RVD_ENGINE_CHECK(e);
    if (done || len) return (ptrdiff_t)done;
    rvd_mux_ack(&e->mux, s);
    return rvd_mux_write_state(&e->mux, s);
}

ptrdiff_t revdial_engine_lend(revdial_engine *e, uint32_t id, const void *buf, size_t len)
{
    const uint8_t *from = buf;
    size_t done = 0;
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s || len > RVD_BASE_LEN_MAX) return REVDIAL_EINVAL;
    while (done < len) {
        ptrdiff_t n = rvd_mux_lend(&e->mux, s, from + done, len - done);
        if (n < 0 && !done) return n;
        if (n <= 0) break;
        done += (size_t)n;
    }
    RVD_ENGINE_CHECK(e);
    return (ptrdiff_t)done;
}

size_t revdial_engine_lent(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_has_session(e) ? rvd_mux_find(&e->mux, id) : NULL;
    return s ? s->lent : 0;
}

ptrdiff_t revdial_engine_recall(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_has_session(e) ? rvd_mux_find(&e->mux, id) : NULL;
    ptrdiff_t n = s ? rvd_mux_recall(&e->mux, s) : 0;
    if (n == 0 && s) rvd_mux_settle(&e->mux, s);
    RVD_ENGINE_CHECK(e);
    return n;
}

int revdial_engine_end_read(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s) return REVDIAL_EINVAL;
    rvd_mux_stop(&e->mux, s);
    rvd_mux_drop(&e->mux, s, 0);  // with its credit used up nothing more comes: it is told now
    RVD_ENGINE_CHECK(e);
    return REVDIAL_OK;
}

int revdial_engine_end_write(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s) return REVDIAL_EINVAL;
    if (s->tx == RVD_MUX_TX_RESET) return REVDIAL_ERESET;
    rvd_mux_finish(&e->mux, s);
    RVD_ENGINE_CHECK(e);
    return REVDIAL_OK;
}

int revdial_engine_reset(revdial_engine *e, uint32_t id, int code)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s || code < 0 || code > 255) return REVDIAL_EINVAL;
    rvd_mux_reset(&e->mux, s, (uint32_t)code);
    rvd_mux_untell(s);  // the caller knows
    RVD_ENGINE_CHECK(e);
    return REVDIAL_OK;
}

void revdial_engine_close(revdial_engine *e, uint32_t id)
{
    rvd_mux_stream *s = rvd_engine_find(e, id);
    if (!s) return;
    rvd_mux_close(&e->mux, s);
    rvd_mux_drain_check(&e->mux);
    RVD_ENGINE_CHECK(e);
}

int revdial_engine_get_flow(revdial_engine *e, uint32_t id, revdial_flow_info *out)
{
    const rvd_mux_stream *s = rvd_engine_find(e, id);
    memset(out, 0, sizeof *out);
    if (!s) return REVDIAL_EINVAL;
    rvd_mux_ledger(&e->mux, s, out);
    return REVDIAL_OK;
}

// ---- the session ----

void revdial_engine_drain(revdial_engine *e)
{
    if (!rvd_engine_has_session(e)) return;
    rvd_mux_drain(&e->mux);
    rvd_mux_drain_check(&e->mux);
}

void revdial_engine_terminate(revdial_engine *e)
{
    if (rvd_engine_has_session(e))
        rvd_mux_shutdown(&e->mux);
    else
        rvd_engine_die(e, REVDIAL_ECLOSED, 0, "closed here");
}

void revdial_engine_replace(revdial_engine *e)
{
    if (rvd_engine_has_session(e)) rvd_mux_replace(&e->mux);
    revdial_engine_terminate(e);
}

void revdial_engine_ping(revdial_engine *e, int64_t now_us)
{
    if (!rvd_engine_has_session(e)) return;
    rvd_mux_now(&e->mux, now_us);
    rvd_mux_ping(&e->mux);
}

void revdial_engine_get_info(const revdial_engine *e, revdial_engine_info *out)
{
    const rvd_mux *m = &e->mux;
    memset(out, 0, sizeof *out);
    out->memory_bytes = e->heap.live_bytes;
    out->carrier = e->carrier;
    out->session_id = e->session_id;
    out->was_probe = e->was_probe;
    out->output_bytes = e->hello.len - e->hello_sent;
    if (!rvd_engine_has_session(e)) return;
    out->streams = m->stream_count;
    out->features = m->cfg.features;
    out->streams_opened = m->opened;
    out->streams_reset = m->reset_count;
    memcpy(out->resets, m->reset_counts, sizeof out->resets);
    out->credit_waits = m->credit_waits;
    out->rx_bytes = m->rx_bytes;
    out->tx_bytes = m->tx_bytes;
    out->rx_frames = m->rx_frames;
    out->tx_frames = m->tx_frames;
    out->rtt_us = m->rtt_us;
    out->last_rx_us = m->last_rx_us;
    out->buffered_bytes = (size_t)m->buffered;
    out->output_bytes += rvd_engine_ready(m);
    if (e->framing) out->output_bytes += e->framing->unsent(e);
}

// The only problem that is not the caller's; recognised by its address.
static const char rvd_engine_no_memory[] = "out of memory";

// given: NULL, or the value that text is about.
static void rvd_engine_error(revdial_err *err, int code, const char *text, const char *given)
{
    rvd_base_text t;
    if (!err) return;
    memset(err, 0, sizeof *err);
    err->code = code;
    t = rvd_base_text_in(err->msg, sizeof err->msg);
    if (given) {
        rvd_base_text_add(&t, "\"");
        rvd_base_text_add_said(&t, given, strlen(given), RVD_ENGINE_LOCATION_MAX);
        rvd_base_text_add(&t, "\": ");
    }
    rvd_base_text_add(&t, text);
}

// Least and most of what a limit may be when it is not 0, which is its default.
typedef struct rvd_engine_range {
    const char *field;
    int64_t given, least, most;
} rvd_engine_range;

// Returns 0, or REVDIAL_EINVAL and which limit is out of its range.
static int rvd_engine_limits_check(const revdial_limits *l, revdial_err *err)
{
    const rvd_engine_range ranges[] = {
        {"max_streams: ", l->max_streams, 1, 1 << 24},
        {"stream_window: ", l->stream_window, RVD_HTTP_WINDOW_MIN, 16 << 20},
        {"stream_window_max: ", l->stream_window_max, RVD_HTTP_WINDOW_MIN, 16 << 20},
        {"session_window: ", l->session_window, 1 << 20, UINT32_MAX},
        {"frame_bytes_max: ", l->frame_bytes_max, 512, RVD_WIRE_FRAME_MAX},
        {"keepalive_ms: time ", l->keepalive_ms, 1000 / RVD_MUX_PING_RATE, INT32_MAX},
        {"dead_after_ms: time ", l->dead_after_ms, 1, INT32_MAX},
        {"handshake_timeout_ms: time ", l->handshake_timeout_ms, 1, INT32_MAX},
        {"accept_timeout_ms: time ", l->accept_timeout_ms, 1, INT32_MAX},
        {"write_stall_ms: time ", l->write_stall_ms, 1, INT32_MAX}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const rvd_engine_range *r = &ranges[i];
        char text[128];
        if (r->given == 0 || (r->given >= r->least && r->given <= r->most)) continue;
        RVD_BASE_JOIN(text, sizeof text, "limits.", r->field, r->given < 0 ? "-" : NULL,
                      RVD_BASE_NUMBER((uint64_t)(r->given < 0 ? -r->given : r->given)),
                      " is not in ", RVD_BASE_NUMBER((uint64_t)r->least), "..",
                      RVD_BASE_NUMBER((uint64_t)r->most));
        rvd_engine_error(err, REVDIAL_EINVAL, text, NULL);
        return REVDIAL_EINVAL;
    }
    return REVDIAL_OK;
}

// What is wrong with a config except its limits, or NULL.
//   given    the value that is wrong, if it is a text
static const char *rvd_engine_config_problem(const revdial_engine_config *cfg, const char **given)
{
    *given = NULL;
    if (cfg->role != REVDIAL_ROLE_PROXY && cfg->role != REVDIAL_ROLE_BACKEND)
        return "role: neither REVDIAL_ROLE_PROXY nor REVDIAL_ROLE_BACKEND";
    if (cfg->carrier != REVDIAL_CARRIER_RAW && cfg->carrier != REVDIAL_CARRIER_WEBSOCKET)
        return "carrier: neither REVDIAL_CARRIER_RAW nor REVDIAL_CARRIER_WEBSOCKET";
    if (cfg->auth_schemes >= 2 * REVDIAL_AUTH_DIGEST) return "auth_schemes: an unknown bit";
    if (cfg->realm && !rvd_auth_is_quotable(cfg->realm, RVD_AUTH_REALM_MAX))
        return "realm: not 1 to 64 of printable ASCII without \" and \\";
    if (cfg->role == REVDIAL_ROLE_PROXY && cfg->auth_schemes & REVDIAL_AUTH_DIGEST &&
        (!cfg->nonce || !rvd_auth_is_quotable(cfg->nonce, RVD_AUTH_HEX_SIZE - 1)))
        return "nonce: DIGEST needs one, of 1 to 64 of printable ASCII without \" and \\";
    *given = cfg->path;
    if (cfg->path && (!rvd_http_is_path(cfg->path) || strlen(cfg->path) > RVD_HTTP_TARGET_MAX))
        return "path: must begin with '/', without blanks, at most 1024 bytes";
    *given = NULL;
    if (cfg->origins && strlen(cfg->origins) > RVD_HTTP_TARGET_MAX)
        return "origins: over 1024 bytes";
    if (cfg->header_count && !cfg->headers) return "headers: NULL, but the count is not 0";
    *given = cfg->origins;
    return cfg->origins ? rvd_http_origins_problem(cfg->origins) : NULL;
}

// How a backend answers the challenge of its last attempt: parts of the request.
typedef struct rvd_engine_answer {
    revdial_digest digest;
    char realm[RVD_AUTH_REALM_MAX + 1];
    char nonce[RVD_HTTP_NONCE_MAX + 1], opaque[RVD_HTTP_NONCE_MAX + 1];
    char cnonce[33];
} rvd_engine_answer;

static void rvd_engine_copy(char *to, rvd_base_slice from)
{
    if (from.len > 0) memcpy(to, from.at, from.len);
    to[from.len] = '\0';
}

// Which scheme to use now: one that needs no challenge, or the strongest that the challenge offers.
//   returns  REVDIAL_AUTH_*; 0: none before there is a challenge; -1: it is malformed
static int rvd_engine_scheme(const revdial_engine *e, const char *challenge,
                             rvd_http_challenge *out)
{
    unsigned fit = e->auth_schemes;
    memset(out, 0, sizeof *out);
    if (fit == REVDIAL_AUTH_BEARER || fit == REVDIAL_AUTH_BASIC) return (int)fit;
    if (!challenge) return 0;
    for (const char *c = challenge; *c; c++)
        if (*c < ' ' || *c > '~') return -1;
    rvd_http_challenge_read(out, rvd_base_slice_of(challenge));
    fit &= out->schemes;
    if (fit & REVDIAL_AUTH_DIGEST) return REVDIAL_AUTH_DIGEST;
    if (fit & REVDIAL_AUTH_BEARER) return REVDIAL_AUTH_BEARER;
    return fit ? REVDIAL_AUTH_BASIC : -1;
}

// DIGEST: makes our response, and the proof that the proxy has to send. The cnonce depends on the
// seed and the nonce, so that no proxy can choose everything that is hashed.
static void rvd_engine_answer_make(revdial_engine *e, const rvd_http_challenge *c,
                                   const rvd_http_offer *offer, rvd_engine_answer *a)
{
    uint8_t key[RVD_BASE_SHA256_SIZE] = {0}, mac[RVD_BASE_SHA256_SIZE];
    char ha1[RVD_AUTH_HEX_SIZE];
    rvd_base_text t = rvd_base_text_in(a->cnonce, sizeof a->cnonce);
    rvd_engine_copy(a->realm, c->realm);
    rvd_engine_copy(a->nonce, c->nonce);
    rvd_engine_copy(a->opaque, c->opaque);
    rvd_base_put_u64(key, e->seed);
    rvd_base_hmac(key, a->nonce, strlen(a->nonce), mac);
    rvd_base_text_add_hex(&t, mac, (sizeof a->cnonce - 1) / 2);
    a->digest.realm = a->realm;
    a->digest.nonce = a->nonce;
    a->digest.uri = e->path;
    a->digest.nc = "00000001";
    a->digest.cnonce = a->cnonce;
    rvd_auth_ha1(offer->user, a->realm, offer->secret, ha1);
    rvd_auth_respond(&a->digest, ha1, "", e->proof);
    rvd_base_wipe(ha1, sizeof ha1);
}

// Backend: our key; e->accept is set to the answer that it needs. NULL for the raw carrier.
static const char *rvd_engine_ws_key(revdial_engine *e, char key[25])
{
    if (e->carrier != REVDIAL_CARRIER_WEBSOCKET) return NULL;
    rvd_ws_nonce(e->seed, key);
    rvd_http_accept_of(rvd_base_slice_of(key), e->accept);
    return key;
}

// Backend: the request goes out first.
static const char *rvd_engine_request_write(revdial_engine *e, const rvd_http_offer *offer)
{
    const char *problem = rvd_http_offer_problem(offer);
    if (problem) return problem;
    if (!rvd_engine_hello_alloc(e, RVD_HTTP_HEAD_MAX + 1)) return rvd_engine_no_memory;
    return rvd_http_request_write(&e->hello, offer) ? NULL
                                                    : "headers: the request is over 8192 bytes";
}

static const char *rvd_engine_request_put(revdial_engine *e, const revdial_engine_config *cfg)
{
    rvd_http_offer offer;
    rvd_http_challenge challenge;
    rvd_engine_answer answer;
    char key[25];
    int scheme = rvd_engine_scheme(e, cfg->challenge, &challenge);
    memset(&offer, 0, sizeof offer);
    memset(&answer, 0, sizeof answer);
    if (scheme < 0) return "challenge: not one that REVDIAL_EV_DEAD gave";
    e->has_secret = rvd_http_is_set(cfg->secret);
    offer.host = cfg->host ? cfg->host : "localhost";
    offer.path = e->path;
    offer.cfg = cfg;
    offer.ws_key = rvd_engine_ws_key(e, key);
    offer.terms = rvd_engine_terms(e);
    if (e->has_secret) {  // checked now, if only sent later
        const char *problem = rvd_auth_secret_problem(
            scheme ? (unsigned)scheme : REVDIAL_AUTH_DIGEST, cfg->user, cfg->secret);
        if (problem) return problem;
    }
    if (e->has_secret && scheme) {
        e->sent_scheme = offer.scheme = (unsigned)scheme;
        offer.user = cfg->user;
        offer.secret = cfg->secret;
    }
    if (e->sent_scheme == REVDIAL_AUTH_DIGEST) {
        rvd_engine_answer_make(e, &challenge, &offer, &answer);
        offer.digest = &answer.digest;
        offer.opaque = answer.opaque;
    }
    return rvd_engine_request_write(e, &offer);
}

static void rvd_engine_texts_keep(revdial_engine *e, const revdial_engine_config *cfg)
{
    e->path = rvd_base_keep_text(&e->texts, cfg->path ? cfg->path : "/revdial");
    e->peer = rvd_base_keep_text(&e->texts, cfg->peer ? cfg->peer : "");
    e->realm = rvd_base_keep_text(&e->texts, cfg->realm ? cfg->realm : "revdial");
    e->nonce = rvd_base_keep_text(&e->texts, cfg->nonce ? cfg->nonce : "");
    e->origins = rvd_base_keep_text(&e->texts, cfg->origins);
}

// Returns NULL, or what is wrong.
static const char *rvd_engine_config_copy(revdial_engine *e, const revdial_engine_config *cfg)
{
    e->role = cfg->role;
    e->accept_streams = cfg->accept_streams || cfg->role == REVDIAL_ROLE_BACKEND;
    e->limits = cfg->limits;
    if (!e->limits.handshake_timeout_ms) e->limits.handshake_timeout_ms = RVD_BASE_HANDSHAKE_MS;
    e->session_id = cfg->session_id;
    e->seed = cfg->seed;
    e->auth_schemes = cfg->auth_schemes ? cfg->auth_schemes : REVDIAL_AUTH_BEARER;
    e->carrier = cfg->carrier;
    rvd_engine_texts_keep(e, cfg);
    if (!rvd_base_arena_open(&e->texts, &e->heap)) return rvd_engine_no_memory;
    rvd_engine_texts_keep(e, cfg);
    return NULL;
}

revdial_engine *revdial_engine_new(const revdial_engine_config *cfg, int64_t now_us,
                                   revdial_err *err)
{
    const char *given, *problem = rvd_engine_config_problem(cfg, &given);
    rvd_heap heap = {cfg->alloc, cfg->alloc_ud, 0};
    revdial_engine *e;
    if (rvd_engine_limits_check(&cfg->limits, err)) return NULL;
    e = problem ? NULL : rvd_base_alloc(&heap, sizeof *e);
    if (!e) {
        rvd_engine_error(err, problem ? REVDIAL_EINVAL : REVDIAL_ENOMEM,
                         problem ? problem : rvd_engine_no_memory, problem ? given : NULL);
        return NULL;
    }
    e->heap = heap;
    e->start_us = e->mux.now_us = now_us;
    rvd_http_head_init(&e->head, &e->heap, cfg->role == REVDIAL_ROLE_PROXY);
    problem = rvd_engine_config_copy(e, cfg);
    if (!problem && cfg->upgraded) {
        rvd_engine_come_up(e, &rvd_http_stock);
        if (!rvd_engine_has_session(e)) problem = rvd_engine_no_memory;
    } else if (!problem && cfg->role == REVDIAL_ROLE_BACKEND) {
        problem = rvd_engine_request_put(e, cfg);
    }
    if (!problem) return e;
    rvd_engine_error(err, problem == rvd_engine_no_memory ? REVDIAL_ENOMEM : REVDIAL_EINVAL,
                     problem, NULL);
    revdial_engine_free(e);
    return NULL;
}

void revdial_engine_free(revdial_engine *e)
{
    rvd_heap heap;
    if (!e) return;
    rvd_mux_end(&e->mux);
    if (e->framing) e->framing->free(e);
    rvd_http_head_free(&e->head);
    rvd_engine_hello_free(e);
    rvd_base_wipe(e->proof, sizeof e->proof);
    rvd_base_free(&e->heap, e->challenge, RVD_HTTP_ANSWER_SIZE);
    rvd_base_free(&e->heap, e->why, RVD_ENGINE_WHY_SIZE);
    rvd_base_arena_free(&e->texts, &e->heap);
    heap = e->heap;
    rvd_base_free(&heap, e, sizeof *e);
}

int revdial_version_number(void)
{
    return REVDIAL_VERSION_NUMBER;
}

const char *revdial_version(void)
{
#if defined(REVDIAL_NO_RUNTIME)
    return "revdial " REVDIAL_VERSION_STRING " (engine)";
#elif defined(REVDIAL_POLL) || !defined(__linux__)
    return "revdial " REVDIAL_VERSION_STRING " (poll)";
#else
    return "revdial " REVDIAL_VERSION_STRING " (epoll)";
#endif
}

const char *revdial_strerror(int code)
{
    switch (code) {
    case REVDIAL_OK: return "success";
#define REVDIAL_X(name, value, text) \
    case value: return text;
        REVDIAL_ERRORS(REVDIAL_X)
#undef REVDIAL_X
    default: return "unknown error";
    }
}

const char *revdial_reset_text(int reset)
{
    switch (reset) {
#define REVDIAL_X(name, value, text) \
    case value: return text;
        REVDIAL_RESETS(REVDIAL_X)
#undef REVDIAL_X
    default: return reset >= REVDIAL_RESET_APPLICATION ? "application code" : "unknown reason";
    }
}

#ifndef REVDIAL_NO_RUNTIME

// ================================================================================================
// MARK: impl.sys  uses: base
// Every system call of the library, each in one function: EINTR is retried, descriptors are
// close-on-exec and non-blocking, nothing raises SIGPIPE, results are >= 0 or -errno. Addresses and
// their text form live here too.
// ================================================================================================

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

// epoll and eventfd, or poll and a pipe. -DREVDIAL_POLL chooses the portable pair on Linux as well.
#if defined(__linux__) && !defined(REVDIAL_POLL)
#define RVD_SYS_EPOLL 1
#define RVD_SYS_INHERITS 1  // an accepted socket has the options of its listener
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#else
#define RVD_SYS_EPOLL 0
#define RVD_SYS_INHERITS 0
#endif

#ifdef __linux__
#include <sys/ioctl.h>
#include <sys/random.h>
#ifndef SIOCOUTQ
#define SIOCOUTQ TIOCOUTQ  // as in linux/sockios.h, which libc does not bring
#endif
#endif

// Systems with SOCK_CLOEXEC have accept4 and pipe2 as well. On others fcntl follows the call, and a
// fork in between leaks the descriptor to the child.
#ifndef RVD_SYS_FLAGS_ATOMIC
#ifdef SOCK_CLOEXEC
#define RVD_SYS_FLAGS_ATOMIC 1
#else
#define RVD_SYS_FLAGS_ATOMIC 0
#endif
#endif

// Every system call is made as RVD_SYS(call)(arguments), so that a test can put another function in
// its place.
#ifndef RVD_SYS
#define RVD_SYS(call) call
#endif

// Makes a call again while a signal interrupts it. r: its result, or -errno.
#define RVD_SYS_RETRY(r, call) \
    do { \
        (r) = (call); \
        if ((r) < 0) (r) = -errno; \
    } while ((r) == -EINTR)

enum {
    RVD_SYS_HOST_MAX = 255,  // octets of a name, RFC 1035 section 2.3.4; a unix path is shorter
    RVD_SYS_PATH_MAX = sizeof(((struct sockaddr_un *)0)->sun_path),  // with NUL, 108 on Linux
    RVD_SYS_TEXT_MAX = RVD_SYS_PATH_MAX + 8,                         // "unix:", path, NUL
    RVD_SYS_IOV_MAX = 1024,  // what Linux and the BSDs take in one call
    // A session's mux pings every 15 s: there it catches only what that cannot see, after 105 s.
    RVD_SYS_KEEPALIVE_MS = 60000,
    RVD_SYS_KEEPALIVE_COUNT = 3,     // questions, a quarter of that time apart
    RVD_SYS_CLIENT_UNSENT = 262144,  // for one client or target: as much as a window at first
    RVD_SYS_FDS_KEPT_MAX = 1024,  // as many as may be in their handshake at once, and as many again
    RVD_SYS_SEND_BUFFER_MAX = 4194304,  // the system has a limit of its own
    RVD_SYS_PAIR_WAIT_MS = 1000,        // a connection to ourselves arrives at once or never
    RVD_SYS_PAIR_STRANGERS = 16         // other people's connections to look past
};

// ---- errors, clock, randomness ----

// Fills err, which may be NULL: `text`, if there is one, in quotes and cut; `why`; the system's own
// reason. Control bytes of a peer or a file become '?', so that they cannot steer a terminal.
static void rvd_sys_fail(revdial_err *err, int code, int sys, const char *text, const char *why)
{
    enum { TEXT_MAX = 130 };  // leaves 100 bytes of msg for the reason
    rvd_base_text t;
    if (!err) return;
    memset(err, 0, sizeof *err);
    err->code = code;
    err->sys = sys;
    t = rvd_base_text_in(err->msg, sizeof err->msg);
    if (text) {
        rvd_base_text_add(&t, "\"");
        rvd_base_text_add_said(&t, text, rvd_base_min(strlen(text), TEXT_MAX), TEXT_MAX);
        rvd_base_text_add(&t, "\": ");
    }
    for (char one[2] = {0, 0}; *why; why++) {
        one[0] = *why > 0x1f && *why < 0x7f ? *why : '?';
        rvd_base_text_add(&t, one);
    }
    // strerror() makes a static buffer for unknown numbers only, and these come from the system.
    if (sys) RVD_BASE_ADD(&t, ": ", strerror(sys));
}

// Microseconds of CLOCK_MONOTONIC, never 0, so that 0 can mean "not set" everywhere.
static int64_t rvd_sys_now_us(void)
{
    struct timespec t = {0, 0};
    RVD_SYS(clock_gettime)(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000 + 1;
}

static int rvd_sys_close(int fd)
{
    if (fd < 0) return 0;
    // Not retried: after EINTR the descriptor is gone on Linux, its number may be someone else's.
    return RVD_SYS(close)(fd) < 0 && errno != EINTR && errno != EINPROGRESS ? -errno : 0;
}

static int rvd_sys_random_device(unsigned char *buf, size_t len)
{
    int fd, result = 0;
    RVD_SYS_RETRY(fd, RVD_SYS(open)("/dev/urandom", O_RDONLY | O_CLOEXEC));
    if (fd < 0) return fd;
    while (len > 0 && result == 0) {
        ptrdiff_t n;
        RVD_SYS_RETRY(n, RVD_SYS(read)(fd, buf, len));
        if (n <= 0) {
            result = n == 0 ? -EIO : (int)n;
        } else {
            buf += n;
            len -= (size_t)n;
        }
    }
    rvd_sys_close(fd);
    return result;
}

static int rvd_sys_random(void *buf, size_t len)
{
    unsigned char *at = buf;
#ifdef __linux__
    while (len > 0) {
        ptrdiff_t n;
        RVD_SYS_RETRY(n, RVD_SYS(getrandom)(at, len, 0));
        if (n <= 0) break;  // ENOSYS, or EPERM in a sandbox: the device may still be there
        at += n;
        len -= (size_t)n;
    }
#endif
    return len == 0 ? 0 : rvd_sys_random_device(at, len);
}

// ---- threads ----

// The signal mask of this thread.
static void rvd_sys_mask_get(sigset_t *mask)
{
    sigemptyset(mask);
    pthread_sigmask(SIG_BLOCK, NULL, mask);
}

// Surround the application's hooks and handlers on our threads. A program that they start inherits
// the mask, and with all signals blocked it could not be ended.
//   theirs   what rvd_sys_mask_get() said in the thread that opened the proxy or the agent
//   ours     filled, for rvd_sys_hook_end()
static void rvd_sys_hook_begin(const sigset_t *theirs, sigset_t *ours)
{
    pthread_sigmask(SIG_SETMASK, theirs, ours);
}

static void rvd_sys_hook_end(const sigset_t *ours)
{
    pthread_sigmask(SIG_SETMASK, ours, NULL);
}

// Starts a thread with all signals blocked: they belong to the application's threads.
//   stack    bytes; 0 = the system's default
static int rvd_sys_thread_start(pthread_t *thread, void *(*run)(void *), void *arg, size_t stack)
{
    pthread_attr_t attr;
    sigset_t all, before;
    long least = sysconf(_SC_THREAD_STACK_MIN);
    int r = pthread_attr_init(&attr);
    if (r) return -r;
    if (stack && least > 0 && stack < (size_t)least) stack = (size_t)least;
    if (stack) r = pthread_attr_setstacksize(&attr, stack);
    if (r == 0) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = RVD_SYS(pthread_create)(thread, &attr, run, arg);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attr);
    return -r;
}

// ---- processes ----

// The process that opened an object. A child of fork(2) has a copy of the object without its
// threads, and locks that a thread may have held at the fork: there each call has to fail before it
// takes a lock. A page that fork(2) fills with zeros shows that without a system call, which would
// cost each read and write 50 ns or more. Without such pages the process id is compared.
typedef struct rvd_sys_origin {
    atomic_uint refs;
    pid_t pid;
    const volatile unsigned char *page;  // starts with 1 here, with 0 in a child; NULL: see pid
    rvd_heap heap;
} rvd_sys_origin;

enum { RVD_SYS_PAGE = 4096 };  // at least; the system rounds up

static const volatile unsigned char *rvd_sys_origin_page(void)
{
    unsigned char *page = NULL;
#if defined(MADV_WIPEONFORK) && defined(MAP_ANONYMOUS)
    void *at = RVD_SYS(mmap)(NULL, RVD_SYS_PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return NULL;
    page = at;
    if (RVD_SYS(madvise)(at, RVD_SYS_PAGE, MADV_WIPEONFORK) == 0) {
        page[0] = 1;
    } else {  // Linux before 4.14
        munmap(at, RVD_SYS_PAGE);
        page = NULL;
    }
#endif
    return page;
}

// This process, with one reference. NULL without memory.
static rvd_sys_origin *rvd_sys_origin_new(revdial_alloc_fn *alloc, void *alloc_ud)
{
    rvd_heap heap = {alloc, alloc_ud, 0};
    rvd_sys_origin *o = rvd_base_alloc(&heap, sizeof *o);
    if (!o) return NULL;
    atomic_init(&o->refs, 1);
    o->pid = RVD_SYS(getpid)();
    o->page = rvd_sys_origin_page();
    o->heap = heap;
    return o;
}

static rvd_sys_origin *rvd_sys_origin_ref(rvd_sys_origin *o)
{
    atomic_fetch_add_explicit(&o->refs, 1, memory_order_relaxed);
    return o;
}

static void rvd_sys_origin_unref(rvd_sys_origin *o)
{
    rvd_heap heap;
    if (!o || atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) != 1) return;
    if (o->page) munmap((void *)(uintptr_t)o->page, RVD_SYS_PAGE);
    heap = o->heap;
    rvd_base_free(&heap, o, sizeof *o);
}

// Are we in a child of that process?
static int rvd_sys_is_child(const rvd_sys_origin *o)
{
    return o->page ? !*o->page : o->pid != RVD_SYS(getpid)();
}

// A condition whose deadlines are on the clock of rvd_sys_now_us().
static int rvd_sys_cond_open(pthread_cond_t *cond)
{
#ifdef __APPLE__  // which waits for a duration instead
    return -pthread_cond_init(cond, NULL);
#else
    pthread_condattr_t attr;
    int r = pthread_condattr_init(&attr);
    if (r) return -r;
    r = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    if (r == 0) r = pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
    return -r;
#endif
}

// A point in time of rvd_sys_now_us(), which adds one.
static void rvd_sys_timespec(struct timespec *to, int64_t at_us)
{
    at_us = at_us > 0 ? at_us - 1 : 0;
    to->tv_sec = (time_t)(at_us / 1000000);
    to->tv_nsec = (long)(at_us % 1000000) * 1000;
}

// Returns 0 when woken, or spuriously, and -ETIMEDOUT from at_us on; at_us -1 = never.
static int rvd_sys_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t at_us)
{
    struct timespec until;
    if (at_us < 0) return -pthread_cond_wait(cond, lock);
#ifdef __APPLE__
    rvd_sys_timespec(&until, at_us - rvd_sys_now_us() + 1);
    return -pthread_cond_timedwait_relative_np(cond, lock, &until);
#else
    rvd_sys_timespec(&until, at_us);
    return -RVD_SYS(pthread_cond_timedwait)(cond, lock, &until);
#endif
}

// A latch: one thread waits until another one opens it. The memory may be freed as soon as it is
// open. The futex form halves the futex calls of busy threads: 8 threads with 2000 round trips each
// make 74,000 of them, and 152,000 with a mutex and a condition. (Where SYS_futex_time64 exists,
// the kernel's timespec may differ from libc's.)
#if RVD_SYS_EPOLL && !defined(SYS_futex_time64)

// As in linux/futex.h, which libc does not bring.
#define RVD_SYS_FUTEX_WAKE 129         // FUTEX_WAKE, FUTEX_PRIVATE_FLAG
#define RVD_SYS_FUTEX_WAIT 137         // FUTEX_WAIT_BITSET, FUTEX_PRIVATE_FLAG: it has a deadline
#define RVD_SYS_FUTEX_ANY 0xffffffffu  // FUTEX_BITSET_MATCH_ANY

// The thread that opens the latch makes a system call only if the other one sleeps. Its wake may
// come when the memory is in other use already: every futex has to expect spurious wakes.
typedef struct rvd_sys_latch {
    atomic_int state;  // 0 shut, 1 shut and somebody sleeps, 2 open
} rvd_sys_latch;

static int rvd_sys_latch_init(rvd_sys_latch *l)
{
    atomic_init(&l->state, 0);
    return 0;
}

static void rvd_sys_latch_free(rvd_sys_latch *l)
{
    (void)l;
}

static void rvd_sys_latch_open(rvd_sys_latch *l)
{
    if (atomic_exchange_explicit(&l->state, 2, memory_order_acq_rel) == 1)
        RVD_SYS(syscall)(SYS_futex, &l->state, RVD_SYS_FUTEX_WAKE, 1, NULL, NULL, 0);
}

// Returns 0, or -ETIMEDOUT from at_us on; -1 = never.
static int rvd_sys_latch_wait(rvd_sys_latch *l, int64_t at_us)
{
    int shut = 0;
    struct timespec until;
    rvd_sys_timespec(&until, at_us);
    if (!atomic_compare_exchange_strong(&l->state, &shut, 1) && shut == 2) return 0;
    while (atomic_load_explicit(&l->state, memory_order_acquire) == 1)
        if (RVD_SYS(syscall)(SYS_futex, &l->state, RVD_SYS_FUTEX_WAIT, 1, at_us < 0 ? NULL : &until,
                             NULL, RVD_SYS_FUTEX_ANY) < 0 &&
            errno == ETIMEDOUT)
            return -ETIMEDOUT;
    return 0;
}

#else

typedef struct rvd_sys_latch {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int is_open;  // guarded by lock
} rvd_sys_latch;

static int rvd_sys_latch_init(rvd_sys_latch *l)
{
    int r = -pthread_mutex_init(&l->lock, NULL);
    l->is_open = 0;
    if (r < 0) return r;
    r = rvd_sys_cond_open(&l->cond);
    if (r < 0) pthread_mutex_destroy(&l->lock);
    return r;
}

static void rvd_sys_latch_free(rvd_sys_latch *l)
{
    pthread_cond_destroy(&l->cond);
    pthread_mutex_destroy(&l->lock);
}

static void rvd_sys_latch_open(rvd_sys_latch *l)
{
    pthread_mutex_lock(&l->lock);
    l->is_open = 1;
    pthread_cond_signal(&l->cond);
    pthread_mutex_unlock(&l->lock);
}

static int rvd_sys_latch_wait(rvd_sys_latch *l, int64_t at_us)
{
    int r = 0;
    pthread_mutex_lock(&l->lock);
    while (!l->is_open && r == 0) r = rvd_sys_cond_wait(&l->cond, &l->lock, at_us);
    if (l->is_open) r = 0;
    pthread_mutex_unlock(&l->lock);
    return r;
}

#endif

// ---- addresses ----

// The text forms are "1.2.3.4:80", "[::1]:80", "name:80" and "unix:/path".

typedef struct rvd_sys_addr {
    struct sockaddr_storage ss;
    socklen_t len;
} rvd_sys_addr;

enum rvd_sys_kind { RVD_SYS_NAME = 1, RVD_SYS_IPV4, RVD_SYS_IPV6, RVD_SYS_UNIX };

// An address text taken apart.
typedef struct rvd_sys_endpoint {
    enum rvd_sys_kind kind;
    uint16_t port;
    char host[RVD_SYS_HOST_MAX + 1];  // without brackets; the path of a unix socket
} rvd_sys_endpoint;

static const struct sockaddr *rvd_sys_sockaddr(const rvd_sys_addr *a)
{
    return (const struct sockaddr *)&a->ss;
}

// Resolvers read "127.1" and "0x7f.1" as addresses; a person that reads a rule does not.
static int rvd_sys_is_numeric(const char *label, size_t len)
{
    size_t hex = label[0] == '0' && (label[1] | 0x20) == 'x' ? 2 : 0;
    if (hex) hex += strspn(label + 2, "0123456789abcdefABCDEF");
    return len == hex || len == strspn(label, "0123456789");
}

// Letters, digits, '-', '_' and single dots, one of which may end it. The last label is no number.
static int rvd_sys_is_name(const char *host)
{
    size_t label = 0, end = strlen(host);
    if (end > 0 && host[end - 1] == '.') end--;
    for (size_t i = 0; i < end; i++) {
        char c = host[i], lower = (char)(c | 0x20);
        int digit = c >= '0' && c <= '9';
        if (c == '.') {
            if (i == label) return 0;
            label = i + 1;
        } else if (!digit && !(lower >= 'a' && lower <= 'z') && c != '-' && c != '_') {
            return 0;
        }
    }
    return end > label && !rvd_sys_is_numeric(host + label, end - label);
}

// RFC 4007 section 11: only link-local addresses need a zone, so others must not have one.
static int rvd_sys_parse_ipv6(const char *host, struct sockaddr_in6 *to)
{
    char text[INET6_ADDRSTRLEN];
    const char *zone = strchr(host, '%');
    size_t len = zone ? (size_t)(zone - host) : strlen(host);
    uint64_t scope = 0;
    if (len >= sizeof text) return -EINVAL;
    memcpy(text, host, len);
    text[len] = 0;
    memset(to, 0, sizeof *to);
    to->sin6_family = AF_INET6;
    if (inet_pton(AF_INET6, text, &to->sin6_addr) != 1) return -EINVAL;
    if (!zone) return 0;
    if (!IN6_IS_ADDR_LINKLOCAL(&to->sin6_addr)) return -EINVAL;
    rvd_base_decimal(zone + 1, strlen(zone + 1), UINT32_MAX, &scope);
    to->sin6_scope_id = scope > 0 ? (uint32_t)scope : if_nametoindex(zone + 1);
    return to->sin6_scope_id ? 0 : -EINVAL;
}

// What is wrong with the host, or NULL. Sets its kind.
static const char *rvd_sys_check_host(rvd_sys_endpoint *e, int bracketed)
{
    struct sockaddr_in6 v6;
    struct in_addr v4;
    if (bracketed) {
        e->kind = RVD_SYS_IPV6;
        return rvd_sys_parse_ipv6(e->host, &v6) < 0 ? "no IPv6 address between the brackets" : NULL;
    }
    if (!e->host[0]) return "the host is missing: write HOST:PORT, as in 127.0.0.1:80";
    if (strstr(e->host, "//")) return "not a URL: write HOST:PORT without the scheme";
    if (strchr(e->host, ':'))
        return strspn(e->host, "0123456789abcdefABCDEF:.%") == strlen(e->host)
                   ? "an IPv6 address needs brackets, as in [::1]:80"
                   : "write HOST:PORT, with one colon";
    e->kind = inet_pton(AF_INET, e->host, &v4) == 1 ? RVD_SYS_IPV4 : RVD_SYS_NAME;
    if (e->kind == RVD_SYS_NAME && !rvd_sys_is_name(e->host))
        return "the host is neither an IPv4 address nor a name";
    return NULL;
}

static int rvd_sys_split_unix(const char *text, const char *path, rvd_sys_endpoint *e,
                              revdial_err *err)
{
    char why[80];
    size_t len = strlen(path);
    e->kind = RVD_SYS_UNIX;
    e->port = 0;
    if (path[0] != '/') {
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, text, "the path of a unix socket must start with /");
        return -EINVAL;
    }
    if (len >= RVD_SYS_PATH_MAX) {
        RVD_BASE_JOIN(why, sizeof why, "the path of a unix socket has at most ",
                      RVD_BASE_NUMBER(RVD_SYS_PATH_MAX - 1), " bytes");
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, text, why);
        return -ENAMETOOLONG;
    }
    memcpy(e->host, path, len + 1);
    return 0;
}

// What is wrong with an address text without a colon: the host or the port is missing.
static const char *rvd_sys_half_problem(const char *text)
{
    if (text[0] && strspn(text, "0123456789") == strlen(text))
        return "the host is missing: write HOST:PORT, as in 127.0.0.1:80";
    if (text[0] == '/') return "a unix socket is written unix:/path";
    return "the port is missing: write HOST:PORT, as in host:80";
}

// Splits "host:port" or "unix:/path". Resolves nothing.
//   port_min 1; or 0 to listen on a port that the system picks
//   returns  0; -EINVAL or -ENAMETOOLONG, and err names the text
static int rvd_sys_addr_split(const char *text, int port_min, rvd_sys_endpoint *e, revdial_err *err)
{
    const char *colon = strrchr(text, ':'), *host = text, *why = NULL;
    size_t len = colon ? (size_t)(colon - text) : 0;
    int bracketed = text[0] == '[';
    uint64_t port = 0;
    int has_port = colon && rvd_base_decimal(colon + 1, strlen(colon + 1), 65535, &port) &&
                   port >= (uint64_t)port_min;
    memset(e, 0, sizeof *e);
    if (strncmp(text, "unix:", 5) == 0) return rvd_sys_split_unix(text, text + 5, e, err);
    if (bracketed) {
        const char *end = strchr(text, ']');
        if (!end || !colon || colon != end + 1) why = "an IPv6 address is written [::1]:80";
        host = text + 1;
        len = end ? (size_t)(end - host) : 0;
    }
    if (!why && len > RVD_SYS_HOST_MAX) why = "the host is too long";
    if (!why) {
        memcpy(e->host, host, len);
        why = colon ? rvd_sys_check_host(e, bracketed) : rvd_sys_half_problem(text);
    }
    if (!why && !has_port)
        why = port_min ? "the port must be from 1 to 65535" : "the port must be from 0 to 65535";
    if (why) {
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, text, why);
        return -EINVAL;
    }
    e->port = (uint16_t)port;
    return 0;
}

// Converts a numeric address or a path. Resolves nothing: a name is -EINVAL.
static int rvd_sys_addr_parse(const char *text, int port_min, rvd_sys_addr *to, revdial_err *err)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&to->ss;
    struct sockaddr_in *in = (struct sockaddr_in *)&to->ss;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&to->ss;
    rvd_sys_endpoint e;
    int r = rvd_sys_addr_split(text, port_min, &e, err);
    if (r < 0) return r;
    memset(to, 0, sizeof *to);
    switch (e.kind) {
    case RVD_SYS_UNIX:
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path, e.host, strlen(e.host) + 1);
        to->len = (socklen_t)sizeof *un;
        return 0;
    case RVD_SYS_IPV4:
        in->sin_family = AF_INET;
        in->sin_port = htons(e.port);
        inet_pton(AF_INET, e.host, &in->sin_addr);
        to->len = (socklen_t)sizeof *in;
        return 0;
    case RVD_SYS_IPV6:
        r = rvd_sys_parse_ipv6(e.host, in6);
        in6->sin6_port = htons(e.port);
        to->len = (socklen_t)sizeof *in6;
        if (r == 0) return 0;
        break;  // its interface vanished since the split
    case RVD_SYS_NAME: break;
    }
    rvd_sys_fail(err, REVDIAL_EINVAL, 0, text, "not a numeric address");
    return -EINVAL;
}

// The text form, which rvd_sys_addr_parse() reads back; "unix" for a unix socket without a path.
//   size     RVD_SYS_TEXT_MAX is always enough
//   returns  the length of the whole text; size or more: it was cut
static size_t rvd_sys_addr_format(const rvd_sys_addr *a, char *buf, size_t size)
{
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&a->ss;
    const struct sockaddr_in *in = (const struct sockaddr_in *)&a->ss;
    char host[INET6_ADDRSTRLEN] = "?", path[RVD_SYS_PATH_MAX + 1] = "", text[RVD_SYS_TEXT_MAX];
    size_t len, offset = offsetof(struct sockaddr_un, sun_path);
    if (a->ss.ss_family == AF_INET6) {
        uint32_t zone = in6->sin6_scope_id;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        len = RVD_BASE_JOIN(text, sizeof text, "[", host, zone ? "%" : NULL,
                            zone ? RVD_BASE_NUMBER(zone) : NULL,
                            "]:", RVD_BASE_NUMBER(ntohs(in6->sin6_port)));
    } else if (a->ss.ss_family == AF_INET) {
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        len = RVD_BASE_JOIN(text, sizeof text, host, ":", RVD_BASE_NUMBER(ntohs(in->sin_port)));
    } else {
        // sun_path need not end in a NUL. An abstract name starts with one and stays unnamed.
        if (a->len > offset && a->len <= sizeof(struct sockaddr_un))
            memcpy(path, (const char *)&a->ss + offset, a->len - offset);
        len = RVD_BASE_JOIN(text, sizeof text, path[0] ? "unix:" : "unix", path);
    }
    if (size > 0) RVD_BASE_JOIN(buf, size, text);
    return len;
}

// Is it an address of this machine only?
static int rvd_sys_addr_is_loopback(const rvd_sys_addr *a)
{
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&a->ss;
    const struct sockaddr_in *in = (const struct sockaddr_in *)&a->ss;
    if (a->ss.ss_family == AF_UNIX) return 1;
    if (a->ss.ss_family == AF_INET) return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    if (a->ss.ss_family != AF_INET6) return 0;
    if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) return in6->sin6_addr.s6_addr[12] == 127;
    return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

// Is it an address that stands for all of this machine's?
static int rvd_sys_addr_is_wildcard(const rvd_sys_addr *a)
{
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&a->ss;
    const struct sockaddr_in *in = (const struct sockaddr_in *)&a->ss;
    if (a->ss.ss_family == AF_INET) return in->sin_addr.s_addr == htonl(INADDR_ANY);
    return a->ss.ss_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
}

static void rvd_sys_addr_set_port(rvd_sys_addr *a, uint16_t port)
{
    if (a->ss.ss_family == AF_INET) ((struct sockaddr_in *)&a->ss)->sin_port = htons(port);
    if (a->ss.ss_family == AF_INET6) ((struct sockaddr_in6 *)&a->ss)->sin6_port = htons(port);
}

// 0 for a unix socket.
static uint16_t rvd_sys_addr_port(const rvd_sys_addr *a)
{
    if (a->ss.ss_family == AF_INET) return ntohs(((const struct sockaddr_in *)&a->ss)->sin_port);
    if (a->ss.ss_family == AF_INET6) return ntohs(((const struct sockaddr_in6 *)&a->ss)->sin6_port);
    return 0;
}

// The same address and port?
static int rvd_sys_addr_is_same(const rvd_sys_addr *a, const rvd_sys_addr *b)
{
    const struct sockaddr_in6 *a6 = (const struct sockaddr_in6 *)&a->ss;
    const struct sockaddr_in6 *b6 = (const struct sockaddr_in6 *)&b->ss;
    const struct sockaddr_in *a4 = (const struct sockaddr_in *)&a->ss;
    const struct sockaddr_in *b4 = (const struct sockaddr_in *)&b->ss;
    if (a->ss.ss_family != b->ss.ss_family) return 0;
    if (a->ss.ss_family == AF_INET)
        return a4->sin_port == b4->sin_port && a4->sin_addr.s_addr == b4->sin_addr.s_addr;
    return a->ss.ss_family == AF_INET6 && a6->sin6_port == b6->sin6_port &&
           a6->sin6_scope_id == b6->sin6_scope_id &&
           memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof a6->sin6_addr) == 0;
}

// An IPv6 socket reports an IPv4 peer as ::ffff:1.2.3.4. This makes it 1.2.3.4, as logs, budgets,
// rules and PROXY headers have it.
static void rvd_sys_unmap(rvd_sys_addr *a)
{
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&a->ss;
    struct sockaddr_in in;
    if (a->ss.ss_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) return;
    memset(&in, 0, sizeof in);
    in.sin_family = AF_INET;
    in.sin_port = in6->sin6_port;
    memcpy(&in.sin_addr, in6->sin6_addr.s6_addr + 12, sizeof in.sin_addr);
    memset(a, 0, sizeof *a);
    memcpy(&a->ss, &in, sizeof in);
    a->len = (socklen_t)sizeof in;
}

// The bytes of an address. IPv4 in IPv6 counts as IPv4, so that no other spelling evades a rule.
static const uint8_t *rvd_sys_addr_ip(const rvd_sys_addr *a, int *len)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
    const uint8_t *ip = (const uint8_t *)&((const struct sockaddr_in6 *)&a->ss)->sin6_addr;
    int is_v4 = a->ss.ss_family == AF_INET,
        is_mapped = !is_v4 && !memcmp(ip, mapped, sizeof mapped);
    *len = is_v4 || is_mapped ? 4 : 16;
    if (is_v4) return (const uint8_t *)&((const struct sockaddr_in *)&a->ss)->sin_addr;
    return is_mapped ? ip + sizeof mapped : ip;
}

static int rvd_sys_prefix_matches(const uint8_t *a, const uint8_t *b, int bits)
{
    int whole = bits / 8, rest = bits % 8;
    if (memcmp(a, b, (size_t)whole) != 0) return 0;
    return !rest || ((a[whole] ^ b[whole]) & (0xFF00 >> rest & 0xFF)) == 0;
}

// A network, or all unix sockets.
typedef struct rvd_sys_net {
    uint8_t ip[16];
    int ip_len;  // 4 or 16; 0: unix sockets
    int bits;    // of ip that count
} rvd_sys_net;

// "10.0.0.0/8", "fd00::/8", an address alone, or "unix:". Returns 0 if it is none of these.
static inline int rvd_sys_net_parse(const char *text, size_t len, rvd_sys_net *out)
{
    const char *slash = (const char *)memchr(text, '/', len);
    size_t host_len = slash ? (size_t)(slash - text) : len;
    char host[INET6_ADDRSTRLEN];
    uint64_t bits;
    memset(out, 0, sizeof *out);
    if (len == 5 && memcmp(text, "unix:", 5) == 0) return 1;
    if (host_len >= sizeof host) return 0;
    memcpy(host, text, host_len);
    host[host_len] = '\0';
    if (inet_pton(AF_INET, host, out->ip) == 1)
        out->ip_len = 4;
    else if (inet_pton(AF_INET6, host, out->ip) == 1)
        out->ip_len = 16;
    else
        return 0;
    bits = 8 * (uint64_t)out->ip_len;
    if (slash && !rvd_base_decimal(slash + 1, len - host_len - 1, bits, &bits)) return 0;
    out->bits = (int)bits;
    return 1;
}

//   ip_len   4 or 16; 0: a unix socket
static inline int rvd_sys_nets_have(const rvd_sys_net *nets, size_t count, const uint8_t *ip,
                                    int ip_len)
{
    for (size_t i = 0; i < count; i++) {
        if (nets[i].ip_len != ip_len) continue;
        if (!ip_len || rvd_sys_prefix_matches(ip, nets[i].ip, nets[i].bits)) return 1;
    }
    return 0;
}

static int rvd_sys_getsockname(int fd, rvd_sys_addr *a)
{
    int r;
    memset(a, 0, sizeof *a);
    a->len = (socklen_t)sizeof a->ss;
    RVD_SYS_RETRY(r, RVD_SYS(getsockname)(fd, (struct sockaddr *)&a->ss, &a->len));
    if (r == 0) rvd_sys_unmap(a);
    return r;
}

static int rvd_sys_getpeername(int fd, rvd_sys_addr *a)
{
    int r;
    memset(a, 0, sizeof *a);
    a->len = (socklen_t)sizeof a->ss;
    RVD_SYS_RETRY(r, RVD_SYS(getpeername)(fd, (struct sockaddr *)&a->ss, &a->len));
    if (r == 0) rvd_sys_unmap(a);
    return r;
}

static int rvd_sys_resolve_verdict(int eai)
{
    int sys = errno;
    if (eai == EAI_MEMORY) return -ENOMEM;
    if (eai == EAI_SYSTEM && sys > 0) return -sys;
    if (eai == EAI_NONAME) return -ENOENT;
#ifdef EAI_NODATA
    if (eai == EAI_NODATA) return -ENOENT;
#endif
#ifdef EAI_ADDRFAMILY
    if (eai == EAI_ADDRFAMILY) return -ENOENT;
#endif
    return -EAGAIN;  // EAI_FAIL too: a server that refuses to answer does not say that no host is
}

// Fills err with why rvd_sys_resolve() failed.
//   text     the address text
//   missing  the message when there is no such host
static void rvd_sys_resolve_fail(revdial_err *err, int error, const char *text, const char *missing)
{
    if (error == -ENOENT)
        rvd_sys_fail(err, REVDIAL_ESYS, 0, text, missing);
    else if (error == -EAGAIN)
        rvd_sys_fail(err, REVDIAL_ESYS, 0, text,
                     "cannot resolve the host: no name server gives an answer (DNS)");
    else
        rvd_sys_fail(err, REVDIAL_ESYS, -error, text, "cannot resolve the host");
}

// Asks the system's resolver.
//   blocks   until the resolver answers: pool threads only
//   returns  addresses filled, 1..max, in the order to try; -ENOENT there is no such host; -EAGAIN
//            no name server answered; -ENOMEM or another error of the system
static int rvd_sys_resolve(const char *host, uint16_t port, rvd_sys_addr *out, int max)
{
    struct addrinfo hints, *list = NULL, *a;
    char service[8];
    int r, count = 0;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    RVD_BASE_JOIN(service, sizeof service, RVD_BASE_NUMBER(port));
    do r = RVD_SYS(getaddrinfo)(host, service, &hints, &list);
    while (r == EAI_SYSTEM && errno == EINTR);
    if (r) return rvd_sys_resolve_verdict(r);
    for (a = list; a && count < max; a = a->ai_next) {
        if (a->ai_family != AF_INET && a->ai_family != AF_INET6) continue;
        memset(&out[count], 0, sizeof out[count]);
        memcpy(&out[count].ss, a->ai_addr, a->ai_addrlen);
        out[count++].len = a->ai_addrlen;
    }
    freeaddrinfo(list);
    return count ? count : -ENOENT;
}

// ---- descriptors and options ----

// The limit of descriptors of this process; 0: unknown.
static size_t rvd_sys_fds_max(void)
{
    struct rlimit limit;
    if (RVD_SYS(getrlimit)(RLIMIT_NOFILE, &limit) < 0) return 0;
    return limit.rlim_cur > INT_MAX ? INT_MAX : (size_t)limit.rlim_cur;
}

// Descriptors below this number are for connections that peers open at will; the rest is reserved
// for what the process cannot do without. The system assigns the lowest free number, so a number
// shows how many are in use.
static int rvd_sys_fd_most(void)
{
    int limit = (int)rvd_sys_fds_max(), kept = limit / 8;
    if (limit == 0 || limit == INT_MAX) return INT_MAX;
    return limit - (kept < RVD_SYS_FDS_KEPT_MAX ? kept : RVD_SYS_FDS_KEPT_MAX);
}

// The number that the next descriptor will have, or -errno.
static int rvd_sys_fd_next(int any)
{
    int fd;
    RVD_SYS_RETRY(fd, RVD_SYS(fcntl)(any, F_DUPFD_CLOEXEC, 0));
    if (fd < 0) return fd;
    rvd_sys_close(fd);
    return fd;
}

static int rvd_sys_set_flag(int fd, int flag, int on)
{
    int flags, r;
    RVD_SYS_RETRY(flags, RVD_SYS(fcntl)(fd, F_GETFL));
    if (flags < 0) return flags;
    if (((flags & flag) != 0) == on) return 0;
    RVD_SYS_RETRY(r, RVD_SYS(fcntl)(fd, F_SETFL, on ? flags | flag : flags & ~flag));
    return r < 0 ? r : 0;
}

static int rvd_sys_set_nonblocking(int fd)
{
    return rvd_sys_set_flag(fd, O_NONBLOCK, 1);
}

// Moves a descriptor 0, 1 or 2 of a program without standard streams to another number, so that no
// library that prints to fd 2 writes to our socket. Keeps or closes fd.
static int rvd_sys_own_number(int fd)
{
    int r;
    if (fd < 0 || fd > 2) return fd;
    RVD_SYS_RETRY(r, RVD_SYS(fcntl)(fd, F_DUPFD_CLOEXEC, 3));
    rvd_sys_close(fd);
    return r;
}

// Makes fd non-blocking and close-on-exec where its system call could not. Keeps or closes fd.
static int rvd_sys_own(int fd)
{
    int r = 0;
    fd = rvd_sys_own_number(fd);
    if (fd < 0 || RVD_SYS_FLAGS_ATOMIC) return fd;
    RVD_SYS_RETRY(r, RVD_SYS(fcntl)(fd, F_SETFD, FD_CLOEXEC));
    if (r >= 0) r = rvd_sys_set_nonblocking(fd);
    if (r == 0) return fd;
    rvd_sys_close(fd);
    return r;
}

static int rvd_sys_set_int(int fd, int level, int option, int value)
{
    int r;
    RVD_SYS_RETRY(r, RVD_SYS(setsockopt)(fd, level, option, &value, (socklen_t)sizeof value));
    return r;
}

// The socket is writable only while the kernel holds fewer unsent bytes than this.
static int rvd_sys_set_notsent_lowat(int fd, int bytes)
{
#ifdef TCP_NOTSENT_LOWAT
    return rvd_sys_set_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, bytes);
#else
    (void)fd;
    (void)bytes;
    return -ENOTSUP;
#endif
}

// Results are ignored: a refused option costs only speed, and unix sockets refuse all of them.
static void rvd_sys_tune_client(int fd)
{
    rvd_sys_set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    // Else the kernel would buffer megabytes for a stalled reader, in memory that all TCP shares.
    rvd_sys_set_notsent_lowat(fd, RVD_SYS_CLIENT_UNSENT);
}

// TCP keepalive: the first probe after idle_ms without a byte. A peer that has vanished is noticed
// after 1.75 times idle_ms. In whole seconds.
//   idle_ms  0 = RVD_SYS_KEEPALIVE_MS, -1 = not at all
static void rvd_sys_set_keepalive(int fd, int idle_ms)
{
    int idle_s = (idle_ms ? idle_ms : RVD_SYS_KEEPALIVE_MS) / 1000;
    if (idle_ms < 0) return;
    rvd_sys_set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    if (idle_s > 32767) idle_s = 32767;  // what Linux takes
#ifdef TCP_KEEPIDLE
    rvd_sys_set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle_s < 1 ? 1 : idle_s);
    rvd_sys_set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, idle_s < 4 ? 1 : idle_s / 4);
    rvd_sys_set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, RVD_SYS_KEEPALIVE_COUNT);
#endif
}

// The congestion control of a TCP socket, by its name. Unix sockets refuse it.
static int rvd_sys_set_congestion(int fd, const char *name)
{
#ifdef TCP_CONGESTION
    int r;
    RVD_SYS_RETRY(
        r, RVD_SYS(setsockopt)(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name)));
    return r;
#else
    (void)fd;
    (void)name;
    return -ENOTSUP;
#endif
}

// The names of what the system offers, with blanks between them; "" where it does not say.
static void rvd_sys_congestion_list(char *text, size_t size)
{
    static const char path[] = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    ptrdiff_t n = 0;
    int fd;
    RVD_SYS_RETRY(fd, RVD_SYS(open)(path, O_RDONLY | O_CLOEXEC));
    if (fd >= 0) {
        RVD_SYS_RETRY(n, RVD_SYS(read)(fd, text, size - 1));
        rvd_sys_close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
}

// A stream socket: AF_INET, AF_INET6 or AF_UNIX.
static int rvd_sys_socket_tcp(int family)
{
    int fd, type = SOCK_STREAM;
#if RVD_SYS_FLAGS_ATOMIC
    type |= SOCK_NONBLOCK | SOCK_CLOEXEC;
#endif
    RVD_SYS_RETRY(fd, RVD_SYS(socket)(family, type, 0));
    return rvd_sys_own(fd);
}

// May sockets of this process have that congestion control? Returns 0, or REVDIAL_EINVAL or
// REVDIAL_ESYS with what there is in err.
static int rvd_sys_congestion_check(const char *name, revdial_err *err)
{
    char offered[128], why[220];
    int r, fd = rvd_sys_socket_tcp(AF_INET);
    if (fd < 0) {
        rvd_sys_fail(err, REVDIAL_ESYS, -fd, NULL, "common.congestion: no socket to try it on");
        return REVDIAL_ESYS;
    }
    r = rvd_sys_set_congestion(fd, name);
    rvd_sys_close(fd);
    if (r == 0) return 0;
    rvd_sys_congestion_list(offered, sizeof offered);
    RVD_BASE_JOIN(why, sizeof why, "common.congestion: ",
                  r == -EPERM ? "not allowed to this process" : "not known to this system",
                  offered[0] ? "; there are: " : "", offered);
    rvd_sys_fail(err, REVDIAL_EINVAL, 0, name, why);
    return REVDIAL_EINVAL;
}

// A session's socket. The session's own timers notice a dead peer. The system backs them up after
// timeout_ms, which has to be longer: for the system a window that stays closed is silence as well,
// and a slow peer's window may stay closed for a minute.
static void rvd_sys_tune_session(int fd, int timeout_ms, const char *congestion)
{
    rvd_sys_set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (congestion[0]) rvd_sys_set_congestion(fd, congestion);
    rvd_sys_set_keepalive(fd, 0);
#ifdef TCP_USER_TIMEOUT
    rvd_sys_set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, timeout_ms);
#else
    (void)timeout_ms;
#endif
}

// Limits how many written bytes the system holds, those in flight included. 0: the system's own
// limit, which is the default.
static void rvd_sys_set_send_buffer(int fd, int bytes)
{
    rvd_sys_set_int(fd, SOL_SOCKET, SO_SNDBUF, bytes ? bytes : RVD_SYS_SEND_BUFFER_MAX);
#ifdef SO_BUF_LOCK
    if (!bytes) rvd_sys_set_int(fd, SOL_SOCKET, SO_BUF_LOCK, 0);
#endif
}

static int rvd_sys_shutdown_wr(int fd)
{
    int r;
    RVD_SYS_RETRY(r, RVD_SYS(shutdown)(fd, SHUT_WR));
    return r;
}

// Written bytes that the peer's system has not acknowledged: a reset would lose them. 0 on what has
// no such queue; -ENOTSUP where the system cannot say.
static int rvd_sys_unsent(int fd)
{
#ifdef SIOCOUTQ
    int r, bytes = 0;
    RVD_SYS_RETRY(r, RVD_SYS(ioctl)(fd, SIOCOUTQ, &bytes));
    if (r < 0) return r == -ENOTTY || r == -EINVAL ? 0 : r;
    return bytes;
#else
    (void)fd;
    return -ENOTSUP;
#endif
}

// Linux resets a TCP connection that is dissolved, even if others have copies of the descriptor. (A
// shutdown would send FIN, which reads as EOF; on a unix socket that is all that there is.)
static void rvd_sys_disconnect(int fd)
{
#ifdef __linux__
    struct sockaddr none;
    rvd_sys_addr own;
    int r;
    memset(&none, 0, sizeof none);
    none.sa_family = AF_UNSPEC;
    RVD_SYS_RETRY(r, RVD_SYS(connect)(fd, &none, (socklen_t)sizeof none));
    if (r < 0 && rvd_sys_getsockname(fd, &own) == 0 && own.ss.ss_family == AF_UNIX)
        RVD_SYS(shutdown)(fd, SHUT_RDWR);
#else
    (void)fd;
#endif
}

// While this is on, the other end of a TCP connection reads ECONNRESET when the descriptor is
// closed, also when the system does that because the process was killed.
static void rvd_sys_set_abort(int fd, int on)
{
    struct linger now = {on, 0};
    int r;
    RVD_SYS_RETRY(r, RVD_SYS(setsockopt)(fd, SOL_SOCKET, SO_LINGER, &now, (socklen_t)sizeof now));
}

// Closes so that the other end of a TCP connection reads ECONNRESET, not EOF. What is unsent is
// lost. On a pipe or a unix socket there is no such thing: it reads EOF (see rvd_sys_socketpair()).
// A close alone is not enough, because a child of the application may have a copy of fd.
static int rvd_sys_close_reset(int fd)
{
    rvd_sys_set_abort(fd, 1);
    rvd_sys_disconnect(fd);
    return rvd_sys_close(fd);
}

// Closes a session's or a listener's socket, so that no copy in a child keeps it in use.
static int rvd_sys_close_both(int fd)
{
    RVD_SYS(shutdown)(fd, SHUT_RDWR);
    return rvd_sys_close(fd);
}

// ---- moving bytes ----

// All four work on sockets and on pipes; -EAGAIN: not now.

// write(2) has no MSG_NOSIGNAL. So SIGPIPE is blocked in this thread around it, and the one that
// the write raised is taken back; one that was pending before is somebody else's and stays.
typedef struct rvd_sys_sigpipe {
    sigset_t before;
    int was_blocked, was_pending;
} rvd_sys_sigpipe;

static int rvd_sys_sigpipe_is_pending(void)
{
    sigset_t pending;
    sigemptyset(&pending);
    return sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1;
}

static void rvd_sys_sigpipe_hold(rvd_sys_sigpipe *s)
{
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &only, &s->before);
    s->was_blocked = sigismember(&s->before, SIGPIPE) == 1;
    s->was_pending = s->was_blocked && rvd_sys_sigpipe_is_pending();
}

static void rvd_sys_sigpipe_release(const rvd_sys_sigpipe *s, int broken)
{
    sigset_t only;
    int taken;
    sigemptyset(&only);
    sigaddset(&only, SIGPIPE);
    // Pending, and for this thread alone: sigwait() returns at once.
    if (broken && !s->was_pending && rvd_sys_sigpipe_is_pending()) sigwait(&only, &taken);
    if (!s->was_blocked) pthread_sigmask(SIG_SETMASK, &s->before, NULL);
}

static ptrdiff_t rvd_sys_write_pipe(int fd, const void *buf, size_t len)
{
    rvd_sys_sigpipe guard;
    ptrdiff_t n;
    rvd_sys_sigpipe_hold(&guard);
    RVD_SYS_RETRY(n, RVD_SYS(write)(fd, buf, len));
    rvd_sys_sigpipe_release(&guard, n == -EPIPE);
    return n;
}

static ptrdiff_t rvd_sys_write(int fd, const void *buf, size_t len)
{
    ptrdiff_t n;
    RVD_SYS_RETRY(n, RVD_SYS(send)(fd, buf, len, MSG_NOSIGNAL));
    return n == -ENOTSOCK ? rvd_sys_write_pipe(fd, buf, len) : n;
}

// To a socket only: what has taken its number, if it was closed behind our back, gets nothing.
static ptrdiff_t rvd_sys_writev(int fd, const struct iovec *iov, int count)
{
    struct msghdr m;
    ptrdiff_t n;
    if (count > RVD_SYS_IOV_MAX) count = RVD_SYS_IOV_MAX;  // a short write is in the contract
    memset(&m, 0, sizeof m);
    m.msg_iov = (struct iovec *)(uintptr_t)iov;  // struct msghdr has no const
    m.msg_iovlen = (uint16_t)count;              // an int or a size_t, by system
    RVD_SYS_RETRY(n, count == 1                  // send() costs less
                         ? RVD_SYS(send)(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL)
                         : RVD_SYS(sendmsg)(fd, &m, MSG_NOSIGNAL));
    return n;
}

// Returns 0 at the end.
static ptrdiff_t rvd_sys_read(int fd, void *buf, size_t len)
{
    ptrdiff_t n;
    RVD_SYS_RETRY(n, RVD_SYS(recv)(fd, buf, len, 0));
    if (n != -ENOTSOCK) return n;
    RVD_SYS_RETRY(n, RVD_SYS(read)(fd, buf, len));
    return n;
}

static ptrdiff_t rvd_sys_readv(int fd, const struct iovec *iov, int count)
{
    ptrdiff_t n;
    if (count == 1) return rvd_sys_read(fd, iov->iov_base, iov->iov_len);
    RVD_SYS_RETRY(n, RVD_SYS(readv)(fd, iov, count));
    return n;
}

// Looks at what a socket has, without taking it. Returns 0 at the end.
static ptrdiff_t rvd_sys_peek(int fd, void *buf, size_t len)
{
    ptrdiff_t n;
    RVD_SYS_RETRY(n, RVD_SYS(recv)(fd, buf, len, MSG_PEEK));
    return n;
}

// ---- connections ----

// A socket that asks for an unused port of this machine may be given that very port as its own. TCP
// then connects it to itself (RFC 9293 section 3.5, simultaneous open), and the program that
// belongs there finds the port taken. That counts as refused, and the connection is dissolved: a
// FIN to itself would keep the port in TIME_WAIT.
//   to       what it is connected to
//   returns  0, or -ECONNREFUSED
static int rvd_sys_refuse_itself(int fd, const rvd_sys_addr *to)
{
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    rvd_sys_addr own, peer;
    int r;
    if (rvd_sys_getsockname(fd, &own) < 0 || rvd_sys_addr_port(&own) != rvd_sys_addr_port(to))
        return 0;
    // `to` may be a wildcard address, which leads to this machine.
    if (rvd_sys_getpeername(fd, &peer) < 0 || !rvd_sys_addr_is_same(&own, &peer)) return 0;
    rvd_sys_set_abort(fd, 1);
    RVD_SYS_RETRY(r, RVD_SYS(connect)(fd, &nobody, (socklen_t)sizeof nobody));
    return -ECONNREFUSED;
}

// Returns 0 connected; -EINPROGRESS (wait until fd is writable, then ask rvd_sys_connect_result());
// -EAGAIN a unix listener whose queue is full; or why not.
static int rvd_sys_connect_start(int fd, const rvd_sys_addr *to)
{
    int r;
    // An interrupted connect goes on by itself; asking again tells how far it is.
    RVD_SYS_RETRY(r, RVD_SYS(connect)(fd, rvd_sys_sockaddr(to), to->len));
    if (r < 0 && r != -EISCONN && r != -EALREADY && r != -EINPROGRESS) return r;
    return to->ss.ss_family == AF_UNIX ? 0 : -EINPROGRESS;
}

// Returns 1, 0: it is a socket of another kind, or -errno: -ENOTSOCK, -EBADF, ...
static int rvd_sys_is_stream(int fd)
{
    int type = 0, r;
    socklen_t len = (socklen_t)sizeof type;
    RVD_SYS_RETRY(r, RVD_SYS(getsockopt)(fd, SOL_SOCKET, SO_TYPE, &type, &len));
    return r < 0 ? r : type == SOCK_STREAM;
}

// Returns 0 connected, -EINPROGRESS not yet (the event was spurious), or why it failed.
static int rvd_sys_connect_result(int fd)
{
    rvd_sys_addr peer;
    int error = 0, r;
    socklen_t len = (socklen_t)sizeof error;
    RVD_SYS_RETRY(r, RVD_SYS(getsockopt)(fd, SOL_SOCKET, SO_ERROR, &error, &len));
    if (r < 0) return r;
    if (error) return -error;
    r = rvd_sys_getpeername(fd, &peer);
    if (r < 0) return r == -ENOTCONN ? -EINPROGRESS : r;
    return rvd_sys_refuse_itself(fd, &peer);
}

// Removes the path of a listener, BEFORE that one is closed: a path whose listener is gone may be a
// successor's a moment later.
static int rvd_sys_unlink(const char *path)
{
    int r;
    RVD_SYS_RETRY(r, RVD_SYS(unlink)(path));
    return r;
}

static int rvd_sys_bind(int fd, const rvd_sys_addr *at)
{
    int r;
    RVD_SYS_RETRY(r, RVD_SYS(bind)(fd, rvd_sys_sockaddr(at), at->len));
    return r;
}

// The path exists. A socket without a listener, left by a process that died, is replaced; a live
// socket and a file of another type stay. Two processes that replace the same dead socket at the
// same time can still collide: there is no "unlink if unchanged".
static int rvd_sys_bind_stale(int fd, const rvd_sys_addr *at)
{
    const struct sockaddr_un *un = (const struct sockaddr_un *)&at->ss;
    struct stat before, after;
    int probe, r;
    if (RVD_SYS(lstat)(un->sun_path, &before) < 0 || !S_ISSOCK(before.st_mode)) return -EADDRINUSE;
    probe = rvd_sys_socket_tcp(AF_UNIX);
    if (probe < 0) return probe;
    r = rvd_sys_connect_start(probe, at);
    rvd_sys_close(probe);
    if (r != -ECONNREFUSED) return -EADDRINUSE;
    if (RVD_SYS(lstat)(un->sun_path, &after) < 0 || after.st_ino != before.st_ino)
        return -EADDRINUSE;  // another process is replacing it
    r = rvd_sys_unlink(un->sun_path);
    return r < 0 ? r : rvd_sys_bind(fd, at);
}

static int rvd_sys_queue(int fd, int backlog)
{
    int r;
    RVD_SYS_RETRY(r, RVD_SYS(listen)(fd, backlog));
    return r;
}

// Sets the mode of a bound unix socket. A symbolic link in its place is not followed, where the
// system supports that.
static int rvd_sys_set_mode(const rvd_sys_addr *at, unsigned mode)
{
    const char *path = ((const struct sockaddr_un *)&at->ss)->sun_path;
    int r;
    RVD_SYS_RETRY(r, RVD_SYS(fchmodat)(AT_FDCWD, path, (mode_t)mode, AT_SYMLINK_NOFOLLOW));
    if (r == -EOPNOTSUPP) RVD_SYS_RETRY(r, RVD_SYS(fchmodat)(AT_FDCWD, path, (mode_t)mode, 0));
    return r;
}

typedef struct rvd_sys_listen_how {
    int takes_ipv4;  // "[::]:80" takes IPv4, too, where the system can do that
    unsigned mode;   // of a unix socket; 0 = what the umask leaves
} rvd_sys_listen_how;

// The mode is set in time, because no client can connect to a unix socket before it listens.
static int rvd_sys_listen_as(const rvd_sys_addr *at, int backlog, rvd_sys_listen_how how)
{
    int family = at->ss.ss_family, r = 0, fd = rvd_sys_socket_tcp(family);
    if (fd < 0) return fd;
    if (family != AF_UNIX) r = rvd_sys_set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (r == 0 && family == AF_INET6) {
        r = rvd_sys_set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, !how.takes_ipv4);
        if (how.takes_ipv4) r = 0;  // OpenBSD has IPv6 only
    }
    if (r == 0) r = rvd_sys_bind(fd, at);
    if (r == -EADDRINUSE && family == AF_UNIX) r = rvd_sys_bind_stale(fd, at);
    if (r == 0 && family == AF_UNIX && how.mode) r = rvd_sys_set_mode(at, how.mode);
    if (r == 0) r = rvd_sys_queue(fd, backlog);
    if (r == 0) return fd;
    rvd_sys_close(fd);
    return r;
}

// Each address listens for itself: "[::]:80" leaves IPv4 to "0.0.0.0:80", so that both can be
// listed, on every system and in any order.
static int rvd_sys_listen(const rvd_sys_addr *at, int backlog)
{
    static const rvd_sys_listen_how plain;
    return rvd_sys_listen_as(at, backlog, plain);
}

// Is this an error of the one connection that accept was about to return (accept(2) lists them)?
static int rvd_sys_is_aborted(int error)
{
    return error == ECONNABORTED || error == EPROTO || error == EPERM || error == ENETDOWN ||
           error == ENETUNREACH || error == EHOSTDOWN || error == EHOSTUNREACH ||
           error == ENOPROTOOPT || error == EOPNOTSUPP;
}

// Does not retry after a shortage of resources, so it cannot spin.
//   peer     may be NULL
//   returns  a descriptor; -EAGAIN none waits; -ECONNABORTED that one is gone, ask again; -EMFILE,
//            -ENFILE, -ENOBUFS, -ENOMEM: leave them in the queue for a while
static int rvd_sys_accept(int listener, rvd_sys_addr *peer)
{
    rvd_sys_addr ignored;
    int fd;
    if (!peer) peer = &ignored;
    memset(peer, 0, sizeof *peer);
    peer->len = (socklen_t)sizeof peer->ss;
#if RVD_SYS_FLAGS_ATOMIC
    RVD_SYS_RETRY(fd, RVD_SYS(accept4)(listener, (struct sockaddr *)&peer->ss, &peer->len,
                                       SOCK_NONBLOCK | SOCK_CLOEXEC));
#else
    RVD_SYS_RETRY(fd, RVD_SYS(accept)(listener, (struct sockaddr *)&peer->ss, &peer->len));
#endif
    if (fd < 0) return rvd_sys_is_aborted(-fd) ? -ECONNABORTED : fd;
    rvd_sys_unmap(peer);
    return rvd_sys_own(fd);
}

// Waits like poll(2). A signal ends the wait with 0 items: the caller looks at its clock again.
static int rvd_sys_poll(struct pollfd *items, size_t count, int timeout_ms)
{
    int n = RVD_SYS(poll)(items, (nfds_t)count, timeout_ms);
    if (n >= 0) return n;
    return errno == EINTR ? 0 : -errno;
}

// Accepts the connection that comes from `from`, and closes others that arrive before it.
static int rvd_sys_accept_from(int listener, const rvd_sys_addr *from)
{
    const struct sockaddr_in *want = (const struct sockaddr_in *)&from->ss;
    int64_t until_us = rvd_sys_now_us() + (int64_t)RVD_SYS_PAIR_WAIT_MS * 1000;
    int strangers = 0;
    while (strangers < RVD_SYS_PAIR_STRANGERS) {
        struct pollfd item = {listener, POLLIN, 0};
        rvd_sys_addr peer;
        const struct sockaddr_in *got = (const struct sockaddr_in *)&peer.ss;
        int fd = rvd_sys_accept(listener, &peer);
        if (fd >= 0 && got->sin_port == want->sin_port &&
            got->sin_addr.s_addr == want->sin_addr.s_addr)
            return fd;
        if (fd >= 0 || fd == -ECONNABORTED) {
            rvd_sys_close(fd);
            strangers++;
        } else if (fd == -EAGAIN && rvd_sys_now_us() < until_us) {
            fd = rvd_sys_poll(&item, 1, RVD_SYS_PAIR_WAIT_MS);
            if (fd < 0) return fd;
        } else {
            return fd == -EAGAIN ? -ETIMEDOUT : fd;
        }
    }
    return -ECONNABORTED;
}

// Two connected sockets: fds[0] for us, non-blocking; fds[1] to give away, blocking as sockets are.
// They are TCP on loopback because a unix socket cannot be reset: its other end would read EOF when
// a stream has failed, and EOF must mean that all bytes came.
static int rvd_sys_socketpair(int fds[2])
{
    rvd_sys_addr at, from;
    int r = rvd_sys_addr_parse("127.0.0.1:0", 0, &at, NULL);
    int listener = r < 0 ? r : rvd_sys_listen(&at, 1);
    fds[0] = fds[1] = -1;
    if (listener < 0) return listener;
    r = rvd_sys_getsockname(listener, &at);
    if (r == 0) r = fds[1] = rvd_sys_socket_tcp(AF_INET);
    if (r >= 0) r = rvd_sys_connect_start(fds[1], &at);
    if (r == 0 || r == -EINPROGRESS) r = rvd_sys_getsockname(fds[1], &from);
    if (r == 0) r = fds[0] = rvd_sys_accept_from(listener, &from);
    if (r >= 0) r = rvd_sys_connect_result(fds[1]);
    if (r == 0) r = rvd_sys_set_flag(fds[1], O_NONBLOCK, 0);
    rvd_sys_close(listener);
    if (r == 0) {
        rvd_sys_tune_client(fds[0]);
        rvd_sys_tune_client(fds[1]);
        return 0;
    }
    rvd_sys_close(fds[0]);
    rvd_sys_close(fds[1]);
    fds[0] = fds[1] = -1;
    return r;
}

// ---- waking a thread that waits for descriptors ----

typedef struct rvd_sys_wake {
    int fd[2];  // wait on fd[0]; an eventfd is both
} rvd_sys_wake;

static int rvd_sys_wake_open(rvd_sys_wake *w)
{
#if RVD_SYS_EPOLL
    int fd;
    RVD_SYS_RETRY(fd, RVD_SYS(eventfd)(0, EFD_NONBLOCK | EFD_CLOEXEC));
    fd = rvd_sys_own_number(fd);
    w->fd[0] = w->fd[1] = fd < 0 ? -1 : fd;
    return fd < 0 ? fd : 0;
#else
    int r;
    w->fd[0] = w->fd[1] = -1;
#if RVD_SYS_FLAGS_ATOMIC
    RVD_SYS_RETRY(r, RVD_SYS(pipe2)(w->fd, O_NONBLOCK | O_CLOEXEC));
#else
    RVD_SYS_RETRY(r, RVD_SYS(pipe)(w->fd));
#endif
    if (r < 0) return r;
    for (int i = 0; i < 2 && r >= 0; i++) r = w->fd[i] = rvd_sys_own(w->fd[i]);
    if (r >= 0) return 0;
    rvd_sys_close(w->fd[0]);
    rvd_sys_close(w->fd[1]);
    w->fd[0] = w->fd[1] = -1;
    return r;
#endif
}

// A full pipe means that a wake is on its way already.
static void rvd_sys_wake_notify(rvd_sys_wake *w)
{
    uint64_t one = 1;
    ptrdiff_t n;
    RVD_SYS_RETRY(n, RVD_SYS(write)(w->fd[1], &one, sizeof one));
}

static void rvd_sys_wake_drain(rvd_sys_wake *w)
{
    uint64_t junk[64];
    ptrdiff_t n;
    do RVD_SYS_RETRY(n, RVD_SYS(read)(w->fd[0], junk, sizeof junk));
    while (n == (ptrdiff_t)sizeof junk);
}

static void rvd_sys_wake_close(rvd_sys_wake *w)
{
    rvd_sys_close(w->fd[0]);
    if (w->fd[1] != w->fd[0]) rvd_sys_close(w->fd[1]);
    w->fd[0] = w->fd[1] = -1;
}

#if RVD_SYS_EPOLL

static int rvd_sys_epoll_open(void)
{
    int fd;
    RVD_SYS_RETRY(fd, RVD_SYS(epoll_create1)(EPOLL_CLOEXEC));
    return rvd_sys_own_number(fd);
}

// Both directions, edge-triggered, once and for all. Events bring the id.
static int rvd_sys_epoll_add(int epoll, int fd, uint64_t id)
{
    struct epoll_event e;
    int r;
    memset(&e, 0, sizeof e);
    e.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    e.data.u64 = id;
    RVD_SYS_RETRY(r, RVD_SYS(epoll_ctl)(epoll, EPOLL_CTL_ADD, fd, &e));
    return r;
}

// Muted, nothing but the end of the connection is reported. Unmuting reports what is ready.
static void rvd_sys_epoll_mute(int epoll, int fd, uint64_t id, int on)
{
    struct epoll_event e;
    int r;
    memset(&e, 0, sizeof e);
    e.events = on ? EPOLLET : EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    e.data.u64 = id;
    RVD_SYS_RETRY(r, RVD_SYS(epoll_ctl)(epoll, EPOLL_CTL_MOD, fd, &e));
}

static void rvd_sys_epoll_remove(int epoll, int fd)
{
    struct epoll_event unused;  // Linux before 2.6.9 read it
    int r;
    memset(&unused, 0, sizeof unused);
    RVD_SYS_RETRY(r, RVD_SYS(epoll_ctl)(epoll, EPOLL_CTL_DEL, fd, &unused));
}

// A signal ends the wait with 0 events, as in rvd_sys_poll().
static int rvd_sys_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout_ms)
{
    int n = RVD_SYS(epoll_wait)(epoll, events, max, timeout_ms);
    if (n >= 0) return n;
    return errno == EINTR ? 0 : -errno;
}

#endif

static int rvd_sys_hostname(char *buf, size_t size)
{
    if (gethostname(buf, size) < 0) return -errno;
    buf[size - 1] = '\0';
    return 0;
}

// ================================================================================================
// MARK: impl.loop  uses: base sys
// The I/O thread: edge-triggered descriptors, timers, tasks from other threads, a hook for what may
// wait; and a pool of threads for what blocks. Each loop and each pool has one lock; none is taken
// while another is held, and none is held while a callback runs. Start at rvd_loop_pass().
// ================================================================================================

enum {
    RVD_LOOP_READ = 1,   // a read would not say EAGAIN
    RVD_LOOP_WRITE = 2,  // a write would not say EAGAIN
    RVD_LOOP_HUP = 4,    // an error, or both directions are over; READ and WRITE are set with it
    // The peer's half of a socket is over; READ is set with it. Unless this or HUP is set, an owner
    // may clear READ after a read of fewer bytes than it asked for and save the one that would say
    // EAGAIN: an end that comes later has an edge of its own. Never set by poll, which looks again.
    RVD_LOOP_EOF = 8
};

enum {
    RVD_LOOP_BUFFER = 256 * 1024,    // input of one read: beyond this a larger one gains nothing
    RVD_LOOP_STACK = 256 * 1024,     // callbacks are shallow and keep no buffers on the stack
    RVD_LOOP_BATCH = 32,             // descriptors between two flushes in a pass
    RVD_LOOP_EVENTS = 256,           // per wait: 3 KiB, and the call is paid for long before
    RVD_LOOP_WAIT_MS = 3600 * 1000,  // longest sleep, so that no distant timer overflows an int
    RVD_LOOP_SPIN_MAX_US = 1000,     // beyond this a sleep is as good
    RVD_LOOP_SPIN_MOST = 8,          // bounds of a score: how much of the past counts
    RVD_LOOP_SPIN_LEAST = -16,
    RVD_LOOP_SPIN_REST_MIN = 32,  // more short waits than long ones before it is tried again
    RVD_LOOP_SPIN_REST_MAX = 2048,
    RVD_LOOP_SPIN_HITS = 16,     // by then cores are there again
    RVD_LOOP_SPIN_PAUSE_US = 20  // a look takes less, a turn of somebody else more
};

// A descriptor. Zero it, set fd and run, and keep it in place while it is added. The loop sets bits
// of `ready` when they become true, and calls run for new bits only. The owner clears a bit when a
// call returns EAGAIN; a bit may stay set while the owner does not want to go on.
typedef struct rvd_loop_io rvd_loop_io;
struct rvd_loop_io {
    int fd;
    unsigned ready;
    void (*run)(rvd_loop_io *io);  // may remove and free any io
    rvd_base_link link;            // private: to run in this pass or the next, or in no list
    uint64_t slot;                 // private: 0 = not added, else see rvd_loop_watch_add()
};

// Zero it and set run. Only setting a timer that is not set needs memory.
typedef struct rvd_loop_timer rvd_loop_timer;
struct rvd_loop_timer {
    int64_t at_us;
    void (*run)(rvd_loop_timer *timer);  // stopped by then; may set or free any timer
    size_t slot;                         // private: index in the heap plus one, 0 = not set
};

// Zero it and set run. Must stay until it has run. `queued` is atomic: any thread posts.
typedef struct rvd_loop_task rvd_loop_task;
struct rvd_loop_task {
    rvd_loop_task *next;
    void (*run)(rvd_loop_task *task);  // not queued by then; may post or free any task
    atomic_int queued;
};

// Zero it and set run. Must stay until it has run.
typedef struct rvd_loop_flush rvd_loop_flush;
struct rvd_loop_flush {
    rvd_loop_flush *next;
    void (*run)(rvd_loop_flush *flush);  // not queued by then; may queue or free any
    int queued;
};

// Polling before sleep. Waking an idle core takes longer than most answers on the same machine or
// rack, so a thread that waits may poll for a while, if that pays: `score` counts how past waits
// went. Two threads that answer each other may run on one core while other cores idle. While they
// sleep in turn the system sees no reason to separate them, so polling is tried again soon; where
// cores are really scarce, less and less often.
typedef struct rvd_loop_spin {
    int limit_us;  // set before start, then read-only; 0 = never
    int score;     // < 0: not now
    int rest;      // the last one, when polling was in somebody's way; 0 = all is well
    int hits;      // waits that polling has ended since then
} rvd_loop_spin;

typedef struct rvd_loop {
    // set before start, then read-only
    unsigned char *buf;  // RVD_LOOP_BUFFER bytes for the task or callback that runs
    rvd_sys_wake wake;
    pthread_t thread;
    int started;

    // any thread
    atomic_int running;
    _Atomic(pthread_t) owner;  // while running
    atomic_int posted;         // the task list is not empty; written under lock
    atomic_int asleep;         // the loop waits or is about to; see rvd_loop_post()

    pthread_mutex_t lock;
    rvd_loop_task *tasks, **tasks_end;  // guarded by lock

    // loop thread only
    rvd_loop_spin spin;
    rvd_heap heap;
    int64_t now_us;
    int stopping;
    int firing;  // timers run
    uint64_t passes;
    rvd_base_link active, again;  // ios to run in this pass, in the next one
    rvd_loop_flush *flushes, **flushes_end;
    rvd_loop_timer **timers;  // a binary heap, the earliest first
    size_t timer_count, timer_room;
    rvd_loop_task stop_task;
    rvd_loop_io wake_io;
#if RVD_SYS_EPOLL
    int epoll;
    struct epoll_event events[RVD_LOOP_EVENTS];
    struct rvd_loop_place *places;
    size_t place_count, place_room;
    size_t place_free;  // the first free one plus one, 0 = none
    uint32_t turn;      // of the last io that was added
#else
    rvd_loop_io **ios;     // ios[i] is polled by polls[i]; an io knows its i + 1 as its slot
    struct pollfd *polls;  // fds < 0 are skipped by the system
    size_t io_count, io_room, poll_room;
#endif
} rvd_loop;

// Doubles an array; NULL and no change when out of memory.
static void *rvd_loop_grown(rvd_heap *heap, void *items, size_t *room, size_t item_size)
{
    size_t more = *room ? *room * 2 : 16;
    void *fresh;
    if (more > SIZE_MAX / item_size) return NULL;
    fresh = rvd_base_resize(heap, items, *room * item_size, more * item_size);
    if (fresh) *room = more;
    return fresh;
}

static int64_t rvd_loop_now(const rvd_loop *loop)
{
    return loop->now_us;
}

// Number of the pass, for owners that limit what they do in one.
static uint64_t rvd_loop_passes(const rvd_loop *loop)
{
    return loop->passes;
}

// Any thread: is this the thread that runs the loop? `owner` is read only while `running` says that
// it is set. Only this thread itself can have stored its own id there, so no race makes it "yes".
static int rvd_loop_is_owner(rvd_loop *loop)
{
    return atomic_load_explicit(&loop->running, memory_order_acquire) &&
           pthread_equal(atomic_load_explicit(&loop->owner, memory_order_relaxed), pthread_self());
}

// ---- descriptors ----

// All ios that become ready are put into the list `active` before any of them runs, so that
// removing one is unlinking it.

// Moves all of `from` to the end of `to`.
static void rvd_loop_link_move(rvd_base_link *to, rvd_base_link *from)
{
    if (rvd_base_link_is_alone(from)) return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    rvd_base_link_init(from);
}

// Runs io in the next pass, which will not wait: for an owner that has used up its share of this
// pass. An io that has yet to run in this pass runs only then.
static void rvd_loop_again(rvd_loop *loop, rvd_loop_io *io)
{
    REVDIAL_ASSERT(io->slot);
    if (rvd_base_link_is_alone(&io->link)) rvd_base_link_push(&loop->again, &io->link);
}

// Runs io in this pass if its descriptors still run, else in the next, which will not wait.
static void rvd_loop_soon(rvd_loop *loop, rvd_loop_io *io)
{
    REVDIAL_ASSERT(io->slot);
    if (rvd_base_link_is_alone(&io->link)) rvd_base_link_push(&loop->active, &io->link);
}

static void rvd_loop_mark(rvd_loop *loop, rvd_loop_io *io, unsigned bits)
{
    if (!(bits & ~io->ready)) return;
    io->ready |= bits;
    if (rvd_base_link_is_alone(&io->link)) rvd_base_link_push(&loop->active, &io->link);
}

#if RVD_SYS_EPOLL

// What the kernel knows of an io is the number of its place and of its turn in it, not its address.
// So an io can be replaced by another one without a system call, and a descriptor that is closed
// need not be taken out before: if a child of the application has a copy of it, the kernel goes on
// to report what happens there, in a turn that is over.
typedef struct rvd_loop_place {
    rvd_loop_io *io;  // NULL: free
    size_t next;      // if it is free: as place_free
} rvd_loop_place;

enum { RVD_LOOP_SLOT_FILE = 1 };  // a regular file, which epoll refuses: it is always ready

#define RVD_LOOP_TURN_SHIFT 32  // the turn stands above the place; the first one is 1

static int rvd_loop_watch_open(rvd_loop *loop)
{
    loop->epoll = rvd_sys_epoll_open();
    return loop->epoll < 0 ? loop->epoll : 0;
}

static void rvd_loop_watch_close(rvd_loop *loop)
{
    rvd_sys_close(loop->epoll);
    rvd_base_free(&loop->heap, loop->places, loop->place_room * sizeof *loop->places);
}

// The place of a slot. Only for slots that are in use or were.
static rvd_loop_place *rvd_loop_place_of(rvd_loop *loop, uint64_t slot)
{
    return &loop->places[(uint32_t)slot];
}

static int rvd_loop_place_take(rvd_loop *loop, rvd_loop_io *io)
{
    size_t at = loop->place_free ? loop->place_free - 1 : loop->place_count;
    if (at == loop->place_room) {
        void *fresh =
            rvd_loop_grown(&loop->heap, loop->places, &loop->place_room, sizeof *loop->places);
        if (!fresh) return -ENOMEM;
        loop->places = fresh;
    }
    if (loop->place_free)
        loop->place_free = loop->places[at].next;
    else
        loop->place_count++;
    if (++loop->turn == 0) loop->turn = 1;
    io->slot = (uint64_t)loop->turn << RVD_LOOP_TURN_SHIFT | at;
    loop->places[at].io = io;
    return 0;
}

static void rvd_loop_place_release(rvd_loop *loop, rvd_loop_io *io)
{
    rvd_loop_place *place = rvd_loop_place_of(loop, io->slot);
    place->io = NULL;
    place->next = loop->place_free;
    loop->place_free = (uint32_t)io->slot + (size_t)1;
}

static int rvd_loop_watch_add(rvd_loop *loop, rvd_loop_io *io)
{
    int r = rvd_loop_place_take(loop, io);
    if (r < 0) return r;
    r = rvd_sys_epoll_add(loop->epoll, io->fd, io->slot);
    if (r == 0) return 0;
    rvd_loop_place_release(loop, io);
    io->slot = 0;
    if (r != -EPERM) return r;
    io->slot = RVD_LOOP_SLOT_FILE;
    io->ready = RVD_LOOP_READ | RVD_LOOP_WRITE | RVD_LOOP_EOF;  // a short read says nothing
    rvd_loop_again(loop, io);
    return 0;
}

static void rvd_loop_watch_remove(rvd_loop *loop, rvd_loop_io *io, int is_closing)
{
    if (io->slot == RVD_LOOP_SLOT_FILE) return;
    if (!is_closing) rvd_sys_epoll_remove(loop->epoll, io->fd);
    rvd_loop_place_release(loop, io);
}

static void rvd_loop_watch_replace(rvd_loop *loop, rvd_loop_io *io)
{
    if (io->slot != RVD_LOOP_SLOT_FILE) rvd_loop_place_of(loop, io->slot)->io = io;
}

static void rvd_loop_watch_mute(rvd_loop *loop, rvd_loop_io *io, int on)
{
    rvd_sys_epoll_mute(loop->epoll, io->fd, io->slot, on);
}

static int rvd_loop_watch_wait(rvd_loop *loop, int timeout_ms)
{
    int i, n = rvd_sys_epoll_wait(loop->epoll, loop->events, RVD_LOOP_EVENTS, timeout_ms);
    for (i = 0; i < n; i++) {
        uint64_t slot = loop->events[i].data.u64;
        rvd_loop_io *io = rvd_loop_place_of(loop, slot)->io;
        unsigned bits = 0, got = loop->events[i].events;
        if (!io || io->slot != slot) continue;  // closed here, and open in a child
        if (got & EPOLLIN) bits |= RVD_LOOP_READ;
        if (got & EPOLLRDHUP) bits |= RVD_LOOP_READ | RVD_LOOP_EOF;
        if (got & EPOLLOUT) bits |= RVD_LOOP_WRITE;
        if (got & (EPOLLHUP | EPOLLERR)) bits |= RVD_LOOP_READ | RVD_LOOP_WRITE | RVD_LOOP_HUP;
        rvd_loop_mark(loop, io, bits);
    }
    return n;
}

#else

static int rvd_loop_watch_open(rvd_loop *loop)
{
    (void)loop;
    return 0;
}

static void rvd_loop_watch_close(rvd_loop *loop)
{
    rvd_base_free(&loop->heap, loop->ios, loop->io_room * sizeof *loop->ios);
    rvd_base_free(&loop->heap, loop->polls, loop->poll_room * sizeof *loop->polls);
}

static int rvd_loop_watch_add(rvd_loop *loop, rvd_loop_io *io)
{
    void *fresh;
    if (loop->io_count == loop->io_room) {
        fresh = rvd_loop_grown(&loop->heap, loop->ios, &loop->io_room, sizeof *loop->ios);
        if (!fresh) return -ENOMEM;
        loop->ios = fresh;
    }
    if (loop->io_count == loop->poll_room) {
        fresh = rvd_loop_grown(&loop->heap, loop->polls, &loop->poll_room, sizeof *loop->polls);
        if (!fresh) return -ENOMEM;
        loop->polls = fresh;
    }
    loop->ios[loop->io_count] = io;
    io->slot = ++loop->io_count;
    return 0;
}

static void rvd_loop_watch_remove(rvd_loop *loop, rvd_loop_io *io, int is_closing)
{
    rvd_loop_io *last = loop->ios[--loop->io_count];
    (void)is_closing;
    loop->ios[io->slot - 1] = last;
    last->slot = io->slot;
}

static void rvd_loop_watch_replace(rvd_loop *loop, rvd_loop_io *io)
{
    loop->ios[io->slot - 1] = io;
}

static void rvd_loop_watch_mute(rvd_loop *loop, rvd_loop_io *io, int on)
{
    (void)loop, (void)io, (void)on;
}

static int rvd_loop_watch_wait(rvd_loop *loop, int timeout_ms)
{
    size_t i;
    int n;
    for (i = 0; i < loop->io_count; i++) {
        const rvd_loop_io *io = loop->ios[i];
        struct pollfd *p = &loop->polls[i];
        // poll(2) would report a hang-up every time, whatever the events: once is enough.
        p->fd = io->ready & RVD_LOOP_HUP ? -1 : io->fd;
        p->events = 0;
        p->revents = 0;
        if (!(io->ready & RVD_LOOP_READ)) p->events |= POLLIN;
        if (!(io->ready & RVD_LOOP_WRITE)) p->events |= POLLOUT;
    }
    n = rvd_sys_poll(loop->polls, loop->io_count, timeout_ms);
    for (i = 0; n > 0 && i < loop->io_count; i++) {
        unsigned bits = 0;
        int got = loop->polls[i].revents;
        if (got & POLLIN) bits |= RVD_LOOP_READ;
        if (got & POLLOUT) bits |= RVD_LOOP_WRITE;
        if (got & (POLLHUP | POLLERR | POLLNVAL))
            bits |= RVD_LOOP_READ | RVD_LOOP_WRITE | RVD_LOOP_HUP;
        rvd_loop_mark(loop, loop->ios[i], bits);
    }
    return n;
}

#endif

// Watches io for both directions until it is removed. A socket that connects is added after
// rvd_sys_connect_start(): before that it counts as hung up.
//   returns  0; -ENOMEM, -ENOSPC, -EBADF...: not added
static int rvd_loop_add(rvd_loop *loop, rvd_loop_io *io)
{
    REVDIAL_ASSERT(io->run && !io->slot);
    io->ready = 0;
    rvd_base_link_init(&io->link);
    return rvd_loop_watch_add(loop, io);
}

static void rvd_loop_drop(rvd_loop *loop, rvd_loop_io *io, int is_closing)
{
    if (!io->slot) return;
    rvd_loop_watch_remove(loop, io, is_closing);
    rvd_base_link_remove(&io->link);
    io->slot = 0;
}

// io does not run after this, not even for events of this pass. To be called before its descriptor
// is closed. Does nothing if io is not added.
static void rvd_loop_remove(rvd_loop *loop, rvd_loop_io *io)
{
    rvd_loop_drop(loop, io, 0);
}

// The same without a system call: its descriptor is closed next.
static void rvd_loop_forget(rvd_loop *loop, rvd_loop_io *io)
{
    rvd_loop_drop(loop, io, 1);
}

// `to` takes the place of `from`, which is no longer added: the descriptor, what is ready, and what
// was yet to run.
static void rvd_loop_replace(rvd_loop *loop, rvd_loop_io *from, rvd_loop_io *to)
{
    REVDIAL_ASSERT(from->slot && to->run && !to->slot);
    to->fd = from->fd;
    to->ready = from->ready;
    to->slot = from->slot;
    rvd_base_link_init(&to->link);
    rvd_loop_watch_replace(loop, to);
    if (!rvd_base_link_is_alone(&from->link)) rvd_loop_soon(loop, to);
    rvd_base_link_remove(&from->link);
    from->slot = 0;
}

// Mutes a descriptor while another thread reads it. If it is ready when it is unmuted, the loop
// reports that. Only where RVD_SYS_EPOLL; io has to stay added.
//   thread   any
static void rvd_loop_mute(rvd_loop *loop, rvd_loop_io *io, int on)
{
    rvd_loop_watch_mute(loop, io, on);
}

// ---- timers ----

static void rvd_loop_timer_place(rvd_loop *loop, size_t i, rvd_loop_timer *t)
{
    loop->timers[i] = t;
    t->slot = i + 1;
}

// Puts t into the heap, where place i is free.
static void rvd_loop_timer_settle(rvd_loop *loop, size_t i, rvd_loop_timer *t)
{
    rvd_loop_timer **heap = loop->timers;
    size_t child;
    while (i > 0 && t->at_us < heap[(i - 1) / 2]->at_us) {
        rvd_loop_timer_place(loop, i, heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    for (child = 2 * i + 1; child < loop->timer_count; child = 2 * i + 1) {
        if (child + 1 < loop->timer_count && heap[child + 1]->at_us < heap[child]->at_us) child++;
        if (heap[child]->at_us >= t->at_us) break;
        rvd_loop_timer_place(loop, i, heap[child]);
        i = child;
    }
    rvd_loop_timer_place(loop, i, t);
}

static void rvd_loop_timer_stop(rvd_loop *loop, rvd_loop_timer *t)
{
    size_t i = t->slot - 1;
    rvd_loop_timer *last;
    if (!t->slot) return;
    t->slot = 0;
    last = loop->timers[--loop->timer_count];
    if (last != t) rvd_loop_timer_settle(loop, i, last);
}

// Sets t, or moves it if it is set. A timer that another timer sets to now or the past runs in the
// next pass, so that no pass is endless.
//   returns  0; -ENOMEM: t is not set. Moving cannot fail
static int rvd_loop_timer_set(rvd_loop *loop, rvd_loop_timer *t, int64_t at_us)
{
    REVDIAL_ASSERT(t->run);
    if (!t->slot && loop->timer_count == loop->timer_room) {
        void *fresh =
            rvd_loop_grown(&loop->heap, loop->timers, &loop->timer_room, sizeof *loop->timers);
        if (!fresh) return -ENOMEM;
        loop->timers = fresh;
    }
    if (loop->firing && at_us <= loop->now_us) at_us = loop->now_us + 1;
    t->at_us = at_us;
    rvd_loop_timer_settle(loop, t->slot ? t->slot - 1 : loop->timer_count++, t);
    return 0;
}

static void rvd_loop_run_timers(rvd_loop *loop)
{
    loop->firing = 1;
    while (loop->timer_count > 0 && loop->timers[0]->at_us <= loop->now_us) {
        rvd_loop_timer *t = loop->timers[0];
        rvd_loop_timer_stop(loop, t);
        t->run(t);
    }
    loop->firing = 0;
}

// ---- tasks ----

// Has the loop run the task in its next pass, in the order of the posts. Posting a queued task does
// nothing: it has yet to run, and will see all that was written before this call. When the task
// runs, this call no longer touches the loop, so the task may cause the loop to be freed.
//   thread   any
//
// Why no wake-up is lost, and few are sent. The two sides do
//
//     post:  posted = 1;  then read asleep, and if it is 1 set it to 0 and write to the wake
//     loop:  asleep = 1;  then read posted, and if it is 1 do not wait;  wait;  asleep = 0
//
// and the first two steps of each are sequentially consistent, hence in one order that both sides
// agree on. If asleep = 1 comes first in it, the poster reads that 1 or something later. A later 0
// is either another poster's, which then writes to the wake, or the loop's own, and then the loop
// is awake and reads posted before it waits again. If posted = 1 comes first, the loop reads 1 and
// does not wait. With acquire and release alone both could read the old value (each store still in
// its processor's buffer), and the loop would sleep on a task. Of many posters only the one that
// turns 1 into 0 writes, and posts to a loop that is awake cost no system call. The loop's own
// asleep = 0 may be relaxed: a poster that misses it writes once too often. The lock orders tasks.
static void rvd_loop_post(rvd_loop *loop, rvd_loop_task *task)
{
    // Acquire and release on both sides: the loop, which clears it, sees what a poster wrote.
    if (atomic_exchange_explicit(&task->queued, 1, memory_order_acq_rel)) return;
    task->next = NULL;
    pthread_mutex_lock(&loop->lock);
    *loop->tasks_end = task;
    loop->tasks_end = &task->next;
    atomic_store(&loop->posted, 1);
    // Under the lock, although it is a system call: it cannot block, and once the loop holds the
    // lock and has the task, no poster is still on its way to the wake.
    if (atomic_load(&loop->asleep) && atomic_exchange(&loop->asleep, 0))
        rvd_sys_wake_notify(&loop->wake);
    pthread_mutex_unlock(&loop->lock);
}

static void rvd_loop_run_posted(rvd_loop *loop)
{
    rvd_loop_task *task, *next;
    pthread_mutex_lock(&loop->lock);
    task = loop->tasks;
    loop->tasks = NULL;
    loop->tasks_end = &loop->tasks;
    atomic_store_explicit(&loop->posted, 0, memory_order_relaxed);
    pthread_mutex_unlock(&loop->lock);
    for (; task; task = next) {
        next = task->next;
        atomic_exchange_explicit(&task->queued, 0, memory_order_acq_rel);
        task->run(task);
    }
}

// Tasks that these tasks post run in this pass, too: what they write goes out together. Tasks that
// those post wait for the next pass, so that a task that posts itself cannot starve descriptors.
static void rvd_loop_run_tasks(rvd_loop *loop)
{
    for (int i = 0; i < 2 && atomic_load_explicit(&loop->posted, memory_order_relaxed); i++)
        rvd_loop_run_posted(loop);
}

static void rvd_loop_on_wake(rvd_loop_io *io)
{
    rvd_loop *loop = RVD_BASE_OWNER(io, rvd_loop, wake_io);
    io->ready = 0;
    // An eventfd raises an edge at every write and cannot fill up: it need not be read.
    if (!RVD_SYS_EPOLL) rvd_sys_wake_drain(&loop->wake);
}

// ---- the end of the pass ----

// Runs f once, after at most RVD_LOOP_BATCH more descriptors. A flush that another flush queues
// runs in the next batch, for which the loop does not wait.
static void rvd_loop_flush_later(rvd_loop *loop, rvd_loop_flush *f)
{
    REVDIAL_ASSERT(f->run);
    if (f->queued) return;
    f->queued = 1;
    f->next = NULL;
    *loop->flushes_end = f;
    loop->flushes_end = &f->next;
}

static void rvd_loop_run_flushes(rvd_loop *loop)
{
    rvd_loop_flush *f = loop->flushes, *next;
    loop->flushes = NULL;
    loop->flushes_end = &loop->flushes;
    for (; f; f = next) {
        next = f->next;
        f->queued = 0;
        f->run(f);
    }
}

// Flushes after each batch: output need not wait for the end of a large pass, so that the other
// ends can begin on it.
static void rvd_loop_run_ios(rvd_loop *loop)
{
    int count = 0;
    while (!rvd_base_link_is_alone(&loop->active)) {
        rvd_loop_io *io = RVD_BASE_OWNER(loop->active.next, rvd_loop_io, link);
        rvd_base_link_remove(&io->link);
        io->run(io);
        if (++count % RVD_LOOP_BATCH == 0) rvd_loop_run_flushes(loop);
    }
}

// ---- polling before sleep ----

// Before the loop starts.
static void rvd_loop_spin_limit(rvd_loop *loop, unsigned us)
{
    loop->spin.limit_us = (int)rvd_base_min_u32(us, RVD_LOOP_SPIN_MAX_US);
}

static int rvd_loop_spin_pays(const rvd_loop_spin *p)
{
    return p->limit_us > 0 && p->score >= 0;
}

typedef struct rvd_loop_look {
    int64_t begun_us, last_us;
    int is_late;  // the last pause was long
} rvd_loop_look;

static rvd_loop_look rvd_loop_look_begin(void)
{
    int64_t now = rvd_sys_now_us();
    rvd_loop_look look = {now, now, 0};
    return look;
}

static void rvd_loop_spin_rest(rvd_loop_spin *p)
{
    if (p->rest < RVD_LOOP_SPIN_REST_MAX) p->rest = p->rest ? 2 * p->rest : RVD_LOOP_SPIN_REST_MIN;
    p->score = -p->rest;
    p->hits = 0;
}

// A look has found something. If it came between two looks, it came from another core, or from a
// thread that needed this core only for a moment.
static void rvd_loop_spin_hit(rvd_loop_spin *p, const rvd_loop_look *look)
{
    if (look->last_us == look->begun_us || look->is_late) return;
    if (p->hits < RVD_LOOP_SPIN_HITS && ++p->hits == RVD_LOOP_SPIN_HITS) p->rest = 0;
}

// Between two looks, which take a microsecond or two, another thread may have this core. A longer
// pause shows that one did. If it was the thread that answers, the look after it finds something.
// Otherwise, or if the pause alone was too long, polling is in another thread's way.
//   returns  0 when the time is up, or when polling is in another thread's way
static int rvd_loop_spin_on(rvd_loop_spin *p, rvd_loop_look *look)
{
    int64_t now;
    if (!look->is_late) sched_yield();
    now = rvd_sys_now_us();
    if (look->is_late || now - look->last_us > p->limit_us) rvd_loop_spin_rest(p);
    look->is_late = now - look->last_us > RVD_LOOP_SPIN_PAUSE_US;
    look->last_us = now;
    return p->score >= 0 && now - look->begun_us < p->limit_us;
}

// Learns from a wait of waited_us, polled or slept.
static void rvd_loop_spin_learn(rvd_loop_spin *p, int64_t waited_us)
{
    if (waited_us > p->limit_us)
        p->score -= p->score > RVD_LOOP_SPIN_LEAST ? 2 : 0;
    else if (p->score < RVD_LOOP_SPIN_MOST)
        p->score++;
}

// ---- the loop ----

static int rvd_loop_timeout_ms(const rvd_loop *loop)
{
    int64_t left_us;
    if (!rvd_base_link_is_alone(&loop->active) || loop->flushes) return 0;
    if (loop->timer_count == 0) return RVD_LOOP_WAIT_MS;
    // The callbacks took time since now_us was read.
    left_us = loop->timers[0]->at_us - rvd_sys_now_us();
    if (left_us <= 0) return 0;
    if (left_us >= (int64_t)RVD_LOOP_WAIT_MS * 1000) return RVD_LOOP_WAIT_MS;
    return (int)((left_us + 999) / 1000);  // up: waking early would find nothing due
}

// Polls for a while. Returns like a wait; 0: nothing came.
static int rvd_loop_wait_awake(rvd_loop *loop)
{
    rvd_loop_look look = rvd_loop_look_begin();
    int n;
    do n = rvd_loop_watch_wait(loop, 0);
    while (n == 0 && !atomic_load_explicit(&loop->posted, memory_order_relaxed) &&
           rvd_loop_spin_on(&loop->spin, &look));
    if (n > 0) rvd_loop_spin_hit(&loop->spin, &look);
    return n;
}

static int rvd_loop_wait(rvd_loop *loop)
{
    int n, timeout_ms = rvd_loop_timeout_ms(loop);
    if (timeout_ms != 0 && rvd_loop_spin_pays(&loop->spin)) {
        n = rvd_loop_wait_awake(loop);
        if (n != 0) return n;
        timeout_ms = rvd_loop_timeout_ms(loop);
    }
    if (timeout_ms != 0) {
        atomic_store(&loop->asleep, 1);  // see rvd_loop_post()
        if (atomic_load(&loop->posted)) timeout_ms = 0;
    }
    n = rvd_loop_watch_wait(loop, timeout_ms);
    atomic_store_explicit(&loop->asleep, 0, memory_order_relaxed);
    return n;
}

// Timers come after descriptors: when the machine was suspended, the bytes that waited are seen
// before a timer decides that none came.
static int rvd_loop_pass(rvd_loop *loop)
{
    int n;
    int64_t begun_us = loop->spin.limit_us > 0 ? rvd_sys_now_us() : 0;
    loop->passes++;
    rvd_loop_link_move(&loop->active, &loop->again);
    n = rvd_loop_wait(loop);
    if (n < 0) return n;
    loop->now_us = rvd_sys_now_us();
    if (loop->spin.limit_us > 0) rvd_loop_spin_learn(&loop->spin, loop->now_us - begun_us);
    rvd_loop_run_ios(loop);
    rvd_loop_run_tasks(loop);
    rvd_loop_run_timers(loop);
    rvd_loop_run_flushes(loop);
    return 0;
}

static void rvd_loop_on_stop(rvd_loop_task *task)
{
    rvd_loop *loop = RVD_BASE_OWNER(task, rvd_loop, stop_task);
    loop->stopping = 1;
}

static void rvd_loop_free(rvd_loop *loop)
{
    rvd_heap heap;
    if (!loop) return;
    REVDIAL_ASSERT(!atomic_load(&loop->running) && !loop->started);
    rvd_loop_remove(loop, &loop->wake_io);
    rvd_loop_watch_close(loop);
    rvd_sys_wake_close(&loop->wake);
    rvd_base_free(&loop->heap, loop->timers, loop->timer_room * sizeof *loop->timers);
    rvd_base_free(&loop->heap, loop->buf, RVD_LOOP_BUFFER);
    // A poster whose task has run may still be inside unlock.
    pthread_mutex_lock(&loop->lock);
    pthread_mutex_unlock(&loop->lock);
    pthread_mutex_destroy(&loop->lock);
    heap = loop->heap;
    rvd_base_free(&heap, loop, sizeof *loop);
}

// alloc runs on the loop's thread, here and in rvd_loop_free(). NULL = realloc and free.
//   returns  NULL: reason in err
static rvd_loop *rvd_loop_new(revdial_alloc_fn *alloc, void *alloc_ud, revdial_err *err)
{
    rvd_heap heap = {alloc, alloc_ud, 0};
    rvd_loop *loop = rvd_base_alloc(&heap, sizeof *loop);
    int r;
    if (!loop || pthread_mutex_init(&loop->lock, NULL) != 0) {
        rvd_base_free(&heap, loop, sizeof *loop);
        rvd_sys_fail(err, REVDIAL_ENOMEM, 0, NULL, "no memory for an I/O loop");
        return NULL;
    }
    loop->heap = heap;
    loop->now_us = rvd_sys_now_us();
    rvd_base_link_init(&loop->active);
    rvd_base_link_init(&loop->again);
    loop->tasks_end = &loop->tasks;
    loop->flushes_end = &loop->flushes;
    loop->stop_task.run = rvd_loop_on_stop;
    loop->wake_io.run = rvd_loop_on_wake;
    loop->wake.fd[0] = loop->wake.fd[1] = -1;
    loop->buf = rvd_base_resize(&loop->heap, NULL, 0, RVD_LOOP_BUFFER);
    r = rvd_loop_watch_open(loop);
    if (r == 0) r = rvd_sys_wake_open(&loop->wake);
    loop->wake_io.fd = loop->wake.fd[0];
    if (r == 0) r = rvd_loop_add(loop, &loop->wake_io);
    if (r == 0 && loop->buf) return loop;
    if (!loop->buf || r == -ENOMEM)
        rvd_sys_fail(err, REVDIAL_ENOMEM, 0, NULL, "no memory for an I/O loop");
    else
        rvd_sys_fail(err, REVDIAL_ESYS, -r, NULL, "no descriptors for an I/O loop");
    rvd_loop_free(loop);
    return NULL;
}

// Runs the loop in this thread until it is stopped.
//   returns  0, or -errno when waiting for descriptors failed
static int rvd_loop_run(rvd_loop *loop)
{
    int r = 0;
    REVDIAL_ASSERT(!atomic_load(&loop->running));
    atomic_store_explicit(&loop->owner, pthread_self(), memory_order_relaxed);
    atomic_store_explicit(&loop->running, 1, memory_order_release);
    while (!loop->stopping && r == 0) r = rvd_loop_pass(loop);
    loop->stopping = 0;
    atomic_store_explicit(&loop->running, 0, memory_order_release);
    return r;
}

// Ends the run after what was posted before. If the loop does not run, its next run ends at once.
//   thread   any
static void rvd_loop_stop(rvd_loop *loop)
{
    rvd_loop_post(loop, &loop->stop_task);
}

static void *rvd_loop_thread(void *arg)
{
    return (void *)(intptr_t)rvd_loop_run(arg);
}

// Runs the loop in a thread of its own.
//   returns  0, or -errno: no thread
static int rvd_loop_start(rvd_loop *loop)
{
    int r;
    REVDIAL_ASSERT(!loop->started);
    r = rvd_sys_thread_start(&loop->thread, rvd_loop_thread, loop, RVD_LOOP_STACK);
    loop->started = r == 0;
    return r;
}

// Waits for the thread to end, which rvd_loop_stop() causes.
//   returns  as rvd_loop_run(); 0 if there was no thread
static int rvd_loop_join(rvd_loop *loop)
{
    void *result = NULL;
    REVDIAL_ASSERT(!rvd_loop_is_owner(loop));
    if (!loop->started) return 0;
    pthread_join(loop->thread, &result);
    loop->started = 0;
    return (int)(intptr_t)result;
}

// ---- threads for what blocks: the resolver, the application's hooks and handlers ----

enum {
    RVD_LOOP_POOL_IDLE_US = 10 * 1000 * 1000,  // a thread costs little and its start a lot
    RVD_LOOP_NO_QUEUE = 1                      // submit: refuse rather than let the job wait
};

// Zero it and set run. Must stay until it runs.
typedef struct rvd_loop_job rvd_loop_job;
struct rvd_loop_job {
    rvd_loop_job *next;
    void (*run)(rvd_loop_job *job);  // may free it
};

// A thread of a pool. Lives on its stack.
typedef struct rvd_loop_worker {
    rvd_base_link link;  // guarded by the pool's lock
    pthread_t thread;
} rvd_loop_worker;

// Every thread that ends joins the one that ended before it, and rvd_loop_pool_close() joins the
// last: all threads are joined, and no join waits for a thread that is not ending.
typedef struct rvd_loop_pool {
    unsigned max;  // set before start, then read-only
    pthread_mutex_t lock;
    pthread_cond_t changed;          // a job came, or closed, or the last thread ends
    rvd_loop_job *jobs, **jobs_end;  // guarded by lock, as all below: jobs that wait
    size_t job_count;                // waiting and running; never less than the busy threads
    rvd_base_link workers;
    unsigned thread_count;
    int closed;
    int has_ended;
    pthread_t ended;  // if has_ended: to be joined
} rvd_loop_pool;

static int rvd_loop_pool_open(rvd_loop_pool *pool, unsigned max)
{
    int r;
    REVDIAL_ASSERT(max > 0);
    memset(pool, 0, sizeof *pool);
    pool->max = max;
    pool->jobs_end = &pool->jobs;
    rvd_base_link_init(&pool->workers);
    r = -pthread_mutex_init(&pool->lock, NULL);
    if (r < 0) return r;
    r = rvd_sys_cond_open(&pool->changed);
    if (r < 0) pthread_mutex_destroy(&pool->lock);
    return r;
}

// Next job, waiting for one; NULL: this thread has to end.
static rvd_loop_job *rvd_loop_pool_take_locked(rvd_loop_pool *pool)
{
    int64_t until_us = rvd_sys_now_us() + RVD_LOOP_POOL_IDLE_US;
    rvd_loop_job *job;
    int r = 0;
    while (!pool->jobs && !pool->closed && r == 0)
        r = rvd_sys_cond_wait(&pool->changed, &pool->lock, until_us);
    job = pool->jobs;
    if (!job) return NULL;
    pool->jobs = job->next;
    if (!pool->jobs) pool->jobs_end = &pool->jobs;
    return job;
}

static void *rvd_loop_pool_thread(void *arg)
{
    rvd_loop_pool *pool = arg;
    rvd_loop_worker me = {.thread = pthread_self()};
    rvd_loop_job *job;
    pthread_t before;
    int has_before;
    rvd_base_link_init(&me.link);
    pthread_mutex_lock(&pool->lock);
    rvd_base_link_push(&pool->workers, &me.link);
    while ((job = rvd_loop_pool_take_locked(pool)) != NULL) {
        pthread_mutex_unlock(&pool->lock);
        job->run(job);
        pthread_mutex_lock(&pool->lock);
        pool->job_count--;
    }
    rvd_base_link_remove(&me.link);
    has_before = pool->has_ended;
    before = pool->ended;
    pool->ended = pthread_self();
    pool->has_ended = 1;
    if (--pool->thread_count == 0) pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->lock);
    if (has_before) pthread_join(before, NULL);
    return NULL;
}

// Runs the job on a thread: one that idles, a new one up to max, or the first to finish.
//   flags    0 or RVD_LOOP_NO_QUEUE
//   returns  0; -ESHUTDOWN after close; -EAGAIN all max are busy (NO_QUEUE); or what kept a thread
//            from starting, if that leaves none to run the job (NO_QUEUE: none that is free)
//   thread   any
static int rvd_loop_pool_submit(rvd_loop_pool *pool, rvd_loop_job *job, unsigned flags)
{
    pthread_t thread;
    int r = 0;
    pthread_mutex_lock(&pool->lock);
    if (pool->closed) {
        r = -ESHUTDOWN;
    } else if (pool->job_count >= pool->thread_count) {  // no thread is free
        r = -EAGAIN;
        // Under the lock, so that a job is never queued behind a thread that then fails to start.
        if (pool->thread_count < pool->max)
            r = rvd_sys_thread_start(&thread, rvd_loop_pool_thread, pool, 0);
        if (r == 0)
            pool->thread_count++;
        else if (pool->thread_count > 0 && !(flags & RVD_LOOP_NO_QUEUE))
            r = 0;
    }
    if (r == 0) {
        job->next = NULL;
        *pool->jobs_end = job;
        pool->jobs_end = &job->next;
        pool->job_count++;
        pthread_cond_signal(&pool->changed);
    }
    pthread_mutex_unlock(&pool->lock);
    return r;
}

// Is this one of the pool's threads, which rvd_loop_pool_close() would wait for?
//   thread   any
static int rvd_loop_pool_is_mine(rvd_loop_pool *pool)
{
    int yes = 0;
    pthread_mutex_lock(&pool->lock);
    for (rvd_base_link *l = pool->workers.next; !yes && l != &pool->workers; l = l->next)
        yes = pthread_equal(RVD_BASE_OWNER(l, rvd_loop_worker, link)->thread, pthread_self());
    pthread_mutex_unlock(&pool->lock);
    return yes;
}

// Refuses new jobs, runs those that wait, joins all threads.
//   blocks   until the last job has returned
//   thread   any but the pool's
static void rvd_loop_pool_close(rvd_loop_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->closed = 1;
    pthread_cond_broadcast(&pool->changed);
    while (pool->thread_count > 0) rvd_sys_cond_wait(&pool->changed, &pool->lock, -1);
    pthread_mutex_unlock(&pool->lock);
    if (pool->has_ended) pthread_join(pool->ended, NULL);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
}

// ================================================================================================
// MARK: impl.lookup  uses: base sys loop
// Host names to addresses, for many askers at once. The system's resolver cannot be interrupted, so
// nothing waits for its threads: a cancelled lookup is forgotten, and a thread that is still in the
// resolver when the desk closes is detached. It then uses only the desk, which is a block of its
// own from malloc() and is freed by its last user.
// Start at rvd_lookup_begin(). Lock order: the desk's, then a loop's.
// ================================================================================================

enum {
    RVD_LOOKUP_PLACES = 64,     // lookups at the same time, those of RVD_LOOKUP_URGENT aside
    RVD_LOOKUP_WAITING = 1024,  // names of one asker that wait for a place; more are refused
    RVD_LOOKUP_ADDRESSES = 16,  // of one host name
    RVD_LOOKUP_URGENT = 0       // the asker whose lookups wait for no place
};

// WAITING --> READY --> RUNNING --> over
enum rvd_lookup_state {
    RVD_LOOKUP_IS_WAITING,  // for a place
    RVD_LOOKUP_IS_READY,    // has a place, and the next thread takes it
    RVD_LOOKUP_IS_RUNNING   // in the resolver
};

// A name that one asker wants to know, however many lookups it has for it.
typedef struct rvd_lookup_name {
    rvd_base_link link;     // of those in the same state
    rvd_base_link lookups;  // of rvd_lookup; empty when all were cancelled
    enum rvd_lookup_state state;
    uint64_t asker, zone;
    pthread_t thread;  // RUNNING
    int is_left;       // RUNNING: the desk has closed
    char host[RVD_SYS_HOST_MAX + 1];
} rvd_lookup_name;

// Zero it, set loop, done, out and max, and keep it in place until done has run or the lookup is
// cancelled.
typedef struct rvd_lookup {
    rvd_loop *loop;
    rvd_loop_task *done;
    rvd_sys_addr *out;
    int max;
    int result;             // as that of rvd_sys_resolve(), once done runs
    uint16_t port;          // private, as all below
    rvd_lookup_name *name;  // guarded by the desk's lock; NULL: not waiting
    rvd_base_link link;
} rvd_lookup;

typedef struct rvd_lookup_desk {
    atomic_uint users;  // its owner, and each thread
    pthread_mutex_t lock;
    pthread_cond_t changed;
    // guarded by lock
    rvd_base_link waiting, ready, running;  // of rvd_lookup_name
    unsigned ready_count, idle_count;       // names and threads that wait for each other
    unsigned thread_count;                  // without detached ones
    int closed;
    int has_ended;
    pthread_t ended;  // if has_ended: to be joined, as in a pool
} rvd_lookup_desk;

static void rvd_lookup_release(rvd_lookup_desk *d)
{
    rvd_heap heap = {NULL, NULL, sizeof *d};
    if (atomic_fetch_sub(&d->users, 1) > 1) return;
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->lock);
    rvd_base_free(&heap, d, sizeof *d);
}

// NULL: no memory.
static rvd_lookup_desk *rvd_lookup_open(void)
{
    rvd_heap heap = {NULL, NULL, 0};
    rvd_lookup_desk *d = rvd_base_alloc(&heap, sizeof *d);
    if (!d) return NULL;
    atomic_init(&d->users, 1);
    rvd_base_link_init(&d->waiting);
    rvd_base_link_init(&d->ready);
    rvd_base_link_init(&d->running);
    if (pthread_mutex_init(&d->lock, NULL) == 0) {
        if (rvd_sys_cond_open(&d->changed) == 0) return d;
        pthread_mutex_destroy(&d->lock);
    }
    rvd_base_free(&heap, d, sizeof *d);
    return NULL;
}

static uint64_t rvd_lookup_hash(const char *s)
{
    uint64_t h = 0xCBF29CE484222325u;                                        // FNV-1a
    for (; *s; s++) h = (h ^ ((unsigned char)*s | 0x20u)) * 0x100000001B3u;  // either case
    return h;
}

// The last two labels: lookups of names in one zone tend to fail together.
static const char *rvd_lookup_zone(const char *host)
{
    const char *at = host + strlen(host);
    if (at > host) at--;  // a dot at the end ends no label
    for (int dots = 0; at > host; at--)
        if (at[-1] == '.' && ++dots == 2) break;
    return at;
}

static rvd_lookup_name *rvd_lookup_name_of(rvd_base_link *l)
{
    return RVD_BASE_OWNER(l, rvd_lookup_name, link);
}

static void rvd_lookup_name_free(rvd_lookup_name *n)
{
    rvd_heap heap = {NULL, NULL, sizeof *n};
    rvd_base_link_remove(&n->link);
    rvd_base_free(&heap, n, sizeof *n);
}

static void rvd_lookup_become(rvd_lookup_desk *d, rvd_lookup_name *n, enum rvd_lookup_state state)
{
    REVDIAL_ASSERT(state == n->state + 1);
    rvd_base_link_remove(&n->link);
    rvd_base_link_push(state == RVD_LOOKUP_IS_READY ? &d->ready : &d->running, &n->link);
    n->state = state;
}

typedef struct rvd_lookup_places {
    unsigned all, askers, zones;  // taken: in all, by one asker, by one zone of it
} rvd_lookup_places;

static void rvd_lookup_count(const rvd_base_link *list, const rvd_lookup_name *n,
                             rvd_lookup_places *out)
{
    for (rvd_base_link *l = list->next; l != list; l = l->next) {
        const rvd_lookup_name *other = rvd_lookup_name_of(l);
        if (other->asker == RVD_LOOKUP_URGENT) continue;
        out->all++;
        out->askers += other->asker == n->asker;
        out->zones += other->asker == n->asker && other->zone == n->zone;
    }
}

// One asker may hold no more places than are free, and half as many for names of one zone. So there
// is a place for the next asker, however many slow lookups the others have.
static int rvd_lookup_may_start(const rvd_lookup_desk *d, const rvd_lookup_name *n)
{
    rvd_lookup_places taken = {0, 0, 0};
    unsigned left;
    if (n->asker == RVD_LOOKUP_URGENT) return 1;
    rvd_lookup_count(&d->ready, n, &taken);
    rvd_lookup_count(&d->running, n, &taken);
    left = taken.all < RVD_LOOKUP_PLACES ? RVD_LOOKUP_PLACES - taken.all : 0;
    return taken.askers < left && 2 * taken.zones < left;
}

// The first name that may start. If one may not, others of the same asker and zone behind it are
// skipped, so that a long queue is not counted again for each.
static rvd_lookup_name *rvd_lookup_next(rvd_lookup_desk *d)
{
    const rvd_lookup_name *held = NULL;
    for (rvd_base_link *l = d->waiting.next; l != &d->waiting; l = l->next) {
        rvd_lookup_name *n = rvd_lookup_name_of(l);
        if (held && n->asker == held->asker && n->zone == held->zone) continue;
        if (rvd_lookup_may_start(d, n)) return n;
        held = n;
    }
    return NULL;
}

static void *rvd_lookup_thread(void *arg);

// Assigns places to waiting names, and starts threads for them.
static void rvd_lookup_dispatch_locked(rvd_lookup_desk *d)
{
    rvd_lookup_name *n;
    while (!d->closed && (n = rvd_lookup_next(d)) != NULL) {
        if (d->idle_count <= d->ready_count) {
            pthread_t thread;
            atomic_fetch_add(&d->users, 1);
            if (rvd_sys_thread_start(&thread, rvd_lookup_thread, d, 0) < 0) {
                atomic_fetch_sub(&d->users, 1);  // the caller is one
                return;
            }
            d->thread_count++;
            d->idle_count++;
        }
        rvd_lookup_become(d, n, RVD_LOOKUP_IS_READY);
        d->ready_count++;
        pthread_cond_signal(&d->changed);
    }
}

// Completes all lookups of a name.
static void rvd_lookup_tell_locked(rvd_lookup_name *n, const rvd_sys_addr *found, int count)
{
    while (!rvd_base_link_is_alone(&n->lookups)) {
        rvd_lookup *l = RVD_BASE_OWNER(n->lookups.next, rvd_lookup, link);
        l->result = count < l->max ? count : l->max;
        for (int i = 0; i < l->result; i++) {
            l->out[i] = found[i];
            rvd_sys_addr_set_port(&l->out[i], l->port);
        }
        l->name = NULL;
        rvd_base_link_remove(&l->link);
        rvd_loop_post(l->loop, l->done);
    }
}

// The next name, waiting for one; NULL: this thread has to end.
static rvd_lookup_name *rvd_lookup_take_locked(rvd_lookup_desk *d)
{
    int64_t until_us = rvd_sys_now_us() + RVD_LOOP_POOL_IDLE_US;
    rvd_lookup_name *n;
    int r = 0;
    while (rvd_base_link_is_alone(&d->ready) && !d->closed && r == 0)
        r = rvd_sys_cond_wait(&d->changed, &d->lock, until_us);
    d->idle_count--;
    if (rvd_base_link_is_alone(&d->ready)) return NULL;
    n = rvd_lookup_name_of(d->ready.next);
    d->ready_count--;
    n->thread = pthread_self();
    rvd_lookup_become(d, n, RVD_LOOKUP_IS_RUNNING);
    return n;
}

// As in a pool, a thread that ends joins the one that ended before it. Releases the lock.
static void rvd_lookup_thread_end_locked(rvd_lookup_desk *d)
{
    int has_before = d->has_ended;
    pthread_t before = d->ended;
    d->ended = pthread_self();
    d->has_ended = 1;
    if (--d->thread_count == 0) pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    if (has_before) pthread_join(before, NULL);
}

static void *rvd_lookup_thread(void *arg)
{
    rvd_lookup_desk *d = arg;
    rvd_sys_addr found[RVD_LOOKUP_ADDRESSES];
    rvd_lookup_name *n;
    int is_left = 0;
    pthread_mutex_lock(&d->lock);
    while (!is_left && (n = rvd_lookup_take_locked(d)) != NULL) {
        int count;
        pthread_mutex_unlock(&d->lock);
        count = rvd_sys_resolve(n->host, 0, found, RVD_LOOKUP_ADDRESSES);
        pthread_mutex_lock(&d->lock);
        is_left = n->is_left;
        rvd_lookup_tell_locked(n, found, count);
        rvd_lookup_name_free(n);
        d->idle_count++;
        rvd_lookup_dispatch_locked(d);
    }
    if (is_left)
        pthread_mutex_unlock(&d->lock);
    else
        rvd_lookup_thread_end_locked(d);
    rvd_lookup_release(d);
    return NULL;
}

// The name, if this asker is looking it up already. *waiting: how many of its names wait.
static rvd_lookup_name *rvd_lookup_find(rvd_lookup_desk *d, uint64_t asker, const char *host,
                                        unsigned *waiting)
{
    rvd_base_link *lists[] = {&d->waiting, &d->ready, &d->running};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        for (rvd_base_link *l = lists[i]->next; l != lists[i]; l = l->next) {
            rvd_lookup_name *n = rvd_lookup_name_of(l);
            if (n->asker != asker) continue;
            if (strcmp(n->host, host) == 0) return n;
            *waiting += n->state == RVD_LOOKUP_IS_WAITING;
        }
    return NULL;
}

static rvd_lookup_name *rvd_lookup_name_new(rvd_lookup_desk *d, uint64_t asker, const char *host)
{
    rvd_heap heap = {NULL, NULL, 0};
    rvd_lookup_name *n = rvd_base_alloc(&heap, sizeof *n);
    if (!n) return NULL;
    rvd_base_link_init(&n->lookups);
    rvd_base_link_init(&n->link);
    n->asker = asker;
    n->zone = rvd_lookup_hash(rvd_lookup_zone(host));
    RVD_BASE_JOIN(n->host, sizeof n->host, host);
    rvd_base_link_push(&d->waiting, &n->link);
    return n;
}

// Asks for the addresses of a host: l->done is posted to l->loop when they, or none, are there.
//   asker    whose share of the places it takes: any number, or RVD_LOOKUP_URGENT
//   returns  0; -EAGAIN no thread can be had, or too many names of that asker wait; -ENOMEM
//   thread   any
static int rvd_lookup_begin(rvd_lookup_desk *d, rvd_lookup *l, uint64_t asker,
                            const rvd_sys_endpoint *e)
{
    unsigned waiting = 0;
    rvd_lookup_name *n;
    int r = 0;
    l->port = e->port;
    rvd_base_link_init(&l->link);
    pthread_mutex_lock(&d->lock);
    n = rvd_lookup_find(d, asker, e->host, &waiting);
    if (!n && waiting >= RVD_LOOKUP_WAITING)
        r = -EAGAIN;
    else if (!n && !(n = rvd_lookup_name_new(d, asker, e->host)))
        r = -ENOMEM;
    if (r == 0) rvd_lookup_dispatch_locked(d);
    if (r == 0 && n->state == RVD_LOOKUP_IS_WAITING && rvd_base_link_is_alone(&n->lookups) &&
        (asker == RVD_LOOKUP_URGENT || d->thread_count == 0)) {
        rvd_lookup_name_free(n);
        r = -EAGAIN;
    }
    if (r == 0) {
        l->name = n;
        rvd_base_link_push(&n->lookups, &l->link);
    }
    pthread_mutex_unlock(&d->lock);
    return r;
}

// Cancels a lookup. If it was the last of a name that has no thread yet, the name is dropped.
//   returns  1; 0: it was not waiting, or its task has been posted
//   thread   any
static int rvd_lookup_cancel(rvd_lookup_desk *d, rvd_lookup *l)
{
    rvd_lookup_name *n;
    pthread_mutex_lock(&d->lock);
    n = l->name;
    if (n) {
        l->name = NULL;
        rvd_base_link_remove(&l->link);
        if (rvd_base_link_is_alone(&n->lookups) && n->state != RVD_LOOKUP_IS_RUNNING) {
            d->ready_count -= n->state == RVD_LOOKUP_IS_READY;
            rvd_lookup_name_free(n);
            rvd_lookup_dispatch_locked(d);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return n != NULL;
}

// Drops names that have no thread yet, and detaches the threads that are in the resolver.
//   blocks   until the other threads have ended, which they do at once
static void rvd_lookup_close(rvd_lookup_desk *d)
{
    if (!d) return;
    pthread_mutex_lock(&d->lock);
    d->closed = 1;
    while (!rvd_base_link_is_alone(&d->waiting))
        rvd_lookup_name_free(rvd_lookup_name_of(d->waiting.next));
    while (!rvd_base_link_is_alone(&d->ready))
        rvd_lookup_name_free(rvd_lookup_name_of(d->ready.next));
    for (rvd_base_link *l = d->running.next; l != &d->running; l = l->next) {
        rvd_lookup_name *n = rvd_lookup_name_of(l);
        REVDIAL_ASSERT(rvd_base_link_is_alone(&n->lookups));
        n->is_left = 1;
        pthread_detach(n->thread);
        d->thread_count--;
    }
    pthread_cond_broadcast(&d->changed);
    while (d->thread_count > 0) rvd_sys_cond_wait(&d->changed, &d->lock, -1);
    pthread_mutex_unlock(&d->lock);
    if (d->has_ended) pthread_join(d->ended, NULL);
    rvd_lookup_release(d);
}

// ================================================================================================
// MARK: impl.log  uses: base sys loop
// Lines of the log: fields that no peer can forge, and a limit of lines per event and second. The
// rest is counted, and the count is logged. One lock, a leaf; nothing is called under it.
// Start at rvd_log_begin().
// ================================================================================================

#define RVD_LOG_TEXT 2048  // with a name, an identity, a URL, a target and a reason at length
#define RVD_LOG_VALUE 320  // a URL of an agent fits
#define RVD_LOG_PERIOD_US 1000000  // what was suppressed is said once in this time

// X(event, text, burst, lines per minute after that). 0: no limit, for events that are logged only
// on request.
#define RVD_LOG_EVENTS(X) \
    X(ACCEPT_PAUSED, "accept.paused", 1, 12) \
    X(CLIENT_GONE, "client.gone", 0, 0) \
    X(CLIENT_REFUSED, "client.refused", 20, 300) \
    X(DIAL_FAILED, "dial.failed", 20, 300) \
    X(LINK_CHALLENGED, "link.challenged", 0, 0) \
    X(LINK_NEXT, "link.next_address", 50, 600) \
    X(LINK_RETRY, "link.retry", 50, 600) \
    X(LINK_STOPPED, "link.stopped", 50, 600) \
    X(SESSION_DOWN, "session.down", 50, 600) \
    X(SESSION_DRAINING, "session.draining", 50, 600) \
    X(SESSION_REFUSED, "session.refused", 20, 300) \
    X(SESSION_REPLACED, "session.replaced", 50, 600) \
    X(SESSION_REVOKED, "session.revoked", 50, 600) \
    X(SESSION_SILENT, "session.silent", 50, 600) \
    X(SESSION_UP, "session.up", 50, 600) \
    X(STREAM_END, "stream.end", 0, 0) \
    X(STREAM_OPEN, "stream.open", 0, 0) \
    X(STREAM_REFUSED, "stream.refused", 20, 300)

#define RVD_LOG_EVENT_ID(id, name, burst, rate) RVD_LOG_##id,
enum rvd_log_event { RVD_LOG_EVENTS(RVD_LOG_EVENT_ID) RVD_LOG_EVENT_COUNT };
#undef RVD_LOG_EVENT_ID

typedef struct rvd_log_kind {
    const char *name;
    int burst, per_minute;
} rvd_log_kind;

#define RVD_LOG_EVENT_ROW(id, name, burst, rate) {name, burst, rate},
static const rvd_log_kind rvd_log_kinds[] = {RVD_LOG_EVENTS(RVD_LOG_EVENT_ROW)};
#undef RVD_LOG_EVENT_ROW

typedef struct rvd_log {
    // Set before start, then read-only.
    revdial_log_fn *fn;
    void *ud;
    int level;  // of a line that is still wanted; -1: none is
    int access_level;
    rvd_loop *loop;
    rvd_loop_timer timer;  // loop thread only: it is time to say what was suppressed

    rvd_loop_task task;    // sets the timer
    pthread_mutex_t lock;  // guards all below
    rvd_base_bucket buckets[RVD_LOG_EVENT_COUNT];
    unsigned suppressed[RVD_LOG_EVENT_COUNT];  // since that was last said
} rvd_log;

typedef struct rvd_log_line {
    enum rvd_log_event event;
    int level;
    char text[RVD_LOG_TEXT];
} rvd_log_line;

// ---- fields ----

// Decodes one character of UTF-8 (RFC 3629). A malformed byte counts as U+FFFD.
static size_t rvd_log_rune(const uint8_t *s, uint32_t *rune)
{
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    size_t more = s[0] < 0x80         ? 0
                  : s[0] >> 5 == 0x06 ? 1
                  : s[0] >> 4 == 0x0E ? 2
                  : s[0] >> 3 == 0x1E ? 3
                                      : 4;
    uint32_t r = more ? s[0] & 0x3Fu >> more : s[0];
    *rune = 0xFFFD;
    if (more == 4) return 1;
    for (size_t i = 1; i <= more; i++) {
        if ((s[i] & 0xC0) != 0x80) return 1;  // the NUL, too
        r = r << 6 | (s[i] & 0x3Fu);
    }
    if (r < least[more] || r > 0x10FFFF || r >> 11 == 0xD800 >> 11) return 1;
    *rune = r;
    return more + 1;
}

// Could it end a line, control a terminal, or hide or reorder the text beside it?
static int rvd_log_is_control(uint32_t r)
{
    static const uint32_t ranges[][2] = {
        {0x00, 0x1F},     {0x7F, 0x9F},       // C0, DEL, C1
        {0x061C, 0x061C}, {0x200B, 0x200F},   // of direction, of no width
        {0x2028, 0x202E}, {0x2060, 0x206F},   // line ends, embeddings, isolates
        {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFD}};  // byte order, annotations, what was no UTF-8
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (r >= ranges[i][0] && r <= ranges[i][1]) return 1;
    return 0;
}

// Escapes one character as in JSON. Returns how many bytes it read.
static size_t rvd_log_escape(const char *s, char out[7])
{
    uint32_t r;
    size_t len = rvd_log_rune((const uint8_t *)s, &r), n = 0;
    if (rvd_log_is_control(r)) {
        const char *brief = r == '\n' ? "n" : r == '\r' ? "r" : r == '\t' ? "t" : NULL;
        out[n++] = '\\';
        out[n++] = brief ? *brief : 'u';
        for (int shift = 12; !brief && shift >= 0; shift -= 4)
            out[n++] = rvd_base_hex_digit(r >> shift & 15);
    } else {
        if (r == '"' || r == '\\') out[n++] = '\\';
        memcpy(out + n, s, len);
        n += len;
    }
    out[n] = '\0';
    return len;
}

static int rvd_log_is_bare(const char *value)
{
    while (*value > ' ' && *value < 0x7F && !strchr("\"=\\", *value)) value++;
    return !*value;
}

void revdial_log_field(char *msg, size_t size, const char *key, const char *value)
{
    char text[RVD_LOG_VALUE + 8], one[7];
    rvd_base_text t = rvd_base_text_in(text, sizeof text), all;
    size_t len = strlen(msg), quote = value && !rvd_log_is_bare(value);
    if (!value || !*value) return;
    while (*value && t.len < RVD_LOG_VALUE) {
        value += rvd_log_escape(value, one);
        rvd_base_text_add(&t, one);
    }
    if (len + strlen(key) + t.len + 8 > size) return;  // blank, '=', two quotes, dots and the NUL
    all = rvd_base_text_in(msg + len, size - len);
    RVD_BASE_ADD(&all, len ? " " : NULL, key, quote ? "=\"" : "=", text, *value ? "..." : NULL,
                 quote ? "\"" : NULL);
}

static void rvd_log_text(rvd_log_line *l, const char *key, const char *value)
{
    revdial_log_field(l->text, sizeof l->text, key, value);
}

static void rvd_log_number(rvd_log_line *l, const char *key, uint64_t n)
{
    rvd_log_text(l, key, RVD_BASE_NUMBER(n));
}

// The id of a session; 0: it has none.
static void rvd_log_id(rvd_log_line *l, const char *key, uint64_t id)
{
    char text[17];
    rvd_base_text t = rvd_base_text_in(text, sizeof text);
    rvd_base_text_add_hex16(&t, id);
    if (id) rvd_log_text(l, key, text);
}

// ---- lines ----

static int rvd_log_wants(const rvd_log *log, int level)
{
    return level <= log->level;
}

// Counts the line. Returns 0 if there have been too many of its event.
static int rvd_log_admits(rvd_log *log, enum rvd_log_event event)
{
    int admits, is_first;
    if (!rvd_log_kinds[event].per_minute) return 1;
    pthread_mutex_lock(&log->lock);
    admits = rvd_base_bucket_take(&log->buckets[event], rvd_sys_now_us() / 60);  // see its rate
    is_first = !admits && log->suppressed[event]++ == 0;
    pthread_mutex_unlock(&log->lock);
    if (is_first) rvd_loop_post(log->loop, &log->task);
    return admits;
}

// Begins a line, to which fields are added before rvd_log_end(). Lines of level DEBUG have no
// limit: a reader that asks for them wants all of them.
//   returns  0: no log takes it, or there have been too many; do not end it
static int rvd_log_begin(rvd_log *log, rvd_log_line *l, enum rvd_log_event event, int level)
{
    if (!rvd_log_wants(log, level)) return 0;
    if (level < REVDIAL_LOG_DEBUG && !rvd_log_admits(log, event)) return 0;
    l->event = event;
    l->level = level;
    l->text[0] = '\0';
    return 1;
}

static void rvd_log_end(const rvd_log *log, const rvd_log_line *l)
{
    log->fn(log->ud, l->level, rvd_log_kinds[l->event].name, l->text);
}

// Logs how many lines were suppressed.
static void rvd_log_tell(rvd_log *log)
{
    for (size_t i = 0; i < RVD_LOG_EVENT_COUNT; i++) {
        rvd_log_line l = {.level = REVDIAL_LOG_WARN};
        unsigned count;
        pthread_mutex_lock(&log->lock);
        count = log->suppressed[i];
        log->suppressed[i] = 0;
        pthread_mutex_unlock(&log->lock);
        if (!count || !rvd_log_wants(log, l.level)) continue;
        rvd_log_text(&l, "suppressed", rvd_log_kinds[i].name);
        rvd_log_number(&l, "suppressed_count", count);
        log->fn(log->ud, l.level, "log.suppressed", l.text);
    }
}

static void rvd_log_on_task(rvd_loop_task *task)
{
    rvd_log *log = RVD_BASE_OWNER(task, rvd_log, task);
    int64_t at_us = rvd_loop_now(log->loop) + RVD_LOG_PERIOD_US;
    if (log->timer.slot) return;
    if (rvd_loop_timer_set(log->loop, &log->timer, at_us) < 0) rvd_log_tell(log);
}

static void rvd_log_on_timer(rvd_loop_timer *timer)
{
    rvd_log_tell(RVD_BASE_OWNER(timer, rvd_log, timer));
}

// To be called before the loop starts. The caller sets log->loop before that, too.
//   returns  0 or -errno
static int rvd_log_open(rvd_log *log, const revdial_common *common)
{
    log->fn = common->log;
    log->ud = common->log_ud;
    log->level = !log->fn ? -1 : common->log_level ? common->log_level : REVDIAL_LOG_INFO;
    log->access_level = common->access_log ? REVDIAL_LOG_INFO : REVDIAL_LOG_DEBUG;
    log->task.run = rvd_log_on_task;
    log->timer.run = rvd_log_on_timer;
    for (size_t i = 0; i < RVD_LOG_EVENT_COUNT; i++)
        rvd_base_bucket_init(&log->buckets[i], rvd_log_kinds[i].burst, rvd_log_kinds[i].per_minute,
                             rvd_sys_now_us() / 60);  // a minute is its second
    return -pthread_mutex_init(&log->lock, NULL);
}

// To be called when no thread logs any more.
static void rvd_log_close(rvd_log *log)
{
    rvd_log_tell(log);
    pthread_mutex_destroy(&log->lock);
}

// ================================================================================================
// MARK: impl.transport  uses: base sys
// What encrypts a session's bytes, between its engine and its socket: a revdial_transport under a
// lock of its own, so that one thread may write while another reads. Results are bytes,
// REVDIAL_WANT_*, or REVDIAL_E* with *err. Start at rvd_transport_read().
// ================================================================================================

#define RVD_TRANSPORT_RECORD 16384  // payload of one TLS record, RFC 8446 section 5.1
#define RVD_TRANSPORT_RECORDS 4     // in a row, one way
// In one write. Four records that are encrypted and sent together cost a quarter less processor
// time than one by one, with OpenSSL and AES-128-GCM. More gains little, and delays keystrokes.
#define RVD_TRANSPORT_BULK (RVD_TRANSPORT_RECORDS * RVD_TRANSPORT_RECORD)
#define RVD_TRANSPORT_BRIEF 4096  // a write of at most this is left to the loop while that reads

//   HANDSHAKE --done--> OPEN --all was said--> OVER      HANDSHAKE, OPEN --an error--> OVER
enum rvd_transport_state {
    RVD_TRANSPORT_HANDSHAKE,
    RVD_TRANSPORT_OPEN,
    RVD_TRANSPORT_OVER  // what the socket still brings is dropped
};

// What is to be sent is copied to `held` first: so that many frames become one record, and so that
// what the transport was once given stays as it is until it is done with it, whatever becomes of
// the frames. The copy costs nothing beside the encryption.
typedef struct rvd_transport {
    revdial_transport t;    // set before start, then read-only
    revdial_identity peer;  // loop thread only until the request is judged
    pthread_mutex_t lock;   // a leaf, around each call of t; guards what follows
    enum rvd_transport_state state;
    ptrdiff_t next;  // what do_read is to return the next time; 1: call it
    revdial_err why;
    // Only the thread that sends for the session:
    rvd_heap heap;             // for `bulk`: the session's is under the session's lock
    uint8_t *held;             // `record` or `bulk`
    size_t held_at, held_len;  // in it, what do_write has not taken yet
    size_t sent_bytes;         // in all, up to a record: the first may hold a secret
    uint8_t *bulk;             // RVD_TRANSPORT_BULK bytes; NULL since the last short write
    uint8_t record[RVD_TRANSPORT_RECORD];
} rvd_transport;

static void rvd_transport_become(rvd_transport *w, enum rvd_transport_state to)
{
    switch (w->state) {
    case RVD_TRANSPORT_HANDSHAKE: REVDIAL_ASSERT(to != RVD_TRANSPORT_HANDSHAKE); break;
    case RVD_TRANSPORT_OPEN:
    case RVD_TRANSPORT_OVER: REVDIAL_ASSERT(to == RVD_TRANSPORT_OVER); break;
    }
    w->state = to;
}

static rvd_transport *rvd_transport_new(rvd_heap *heap, const revdial_transport *t,
                                        revdial_err *err)
{
    rvd_transport *w = rvd_base_alloc(heap, sizeof *w);
    if (w && pthread_mutex_init(&w->lock, NULL) == 0) {
        w->t = *t;
        w->next = 1;
        w->heap.fn = heap->fn;
        w->heap.ud = heap->ud;
        w->state = t->do_handshake ? RVD_TRANSPORT_HANDSHAKE : RVD_TRANSPORT_OPEN;
        return w;
    }
    rvd_base_free(heap, w, sizeof *w);
    rvd_sys_fail(err, REVDIAL_ENOMEM, 0, NULL, "out of memory for a transport");
    return NULL;
}

// The transport goes when the descriptor does; the identity stays as long as the session.
static void rvd_transport_close(rvd_transport *w)
{
    if (!w || !w->t.do_close) return;
    w->t.do_close(w->t.ctx);
    w->t.do_close = NULL;
}

static void rvd_transport_free(rvd_heap *heap, rvd_transport *w)
{
    if (!w) return;
    rvd_transport_close(w);
    pthread_mutex_destroy(&w->lock);
    rvd_base_free(&w->heap, w->bulk, RVD_TRANSPORT_BULK);
    rvd_base_wipe(w, sizeof *w);
    rvd_base_free(heap, w, sizeof *w);
}

static enum rvd_transport_state rvd_transport_state(rvd_transport *w)
{
    enum rvd_transport_state state;
    pthread_mutex_lock(&w->lock);
    state = w->state;
    pthread_mutex_unlock(&w->lock);
    return state;
}

// Bytes that a write left unfinished. Asked by the thread that sends, or under the session's lock
// while none does. NULL: none.
static size_t rvd_transport_holds(const rvd_transport *w)
{
    return w ? w->held_len : 0;
}

static int rvd_transport_is_wanting(ptrdiff_t n)
{
    return n == REVDIAL_WANT_READ || n == REVDIAL_WANT_WRITE;
}

// What a call of the transport has returned. With its lock.
static ptrdiff_t rvd_transport_result(rvd_transport *w, ptrdiff_t n, revdial_err *err)
{
    const char *why;
    int code = n < -INT_MAX ? REVDIAL_ETLS : (int)n;
    if (n >= 0 || rvd_transport_is_wanting(n)) return n;
    rvd_transport_become(w, RVD_TRANSPORT_OVER);
    why = w->t.do_reason ? w->t.do_reason(w->t.ctx) : NULL;
    rvd_sys_fail(err, code, 0, NULL, why ? why : revdial_strerror(code));
    return code;
}

// A step of the handshake. Returns 0 when it is done.
static int rvd_transport_handshake(rvd_transport *w, revdial_err *err)
{
    int r;
    pthread_mutex_lock(&w->lock);
    r = (int)rvd_transport_result(w, w->t.do_handshake(w->t.ctx), err);
    if (r == 0) {
        rvd_transport_become(w, RVD_TRANSPORT_OPEN);
        if (w->t.do_peer && w->t.do_peer(w->t.ctx, &w->peer) < 0)
            memset(&w->peer, 0, sizeof w->peer);
    }
    pthread_mutex_unlock(&w->lock);
    return r;
}

// Several records make one read, so that a thread that waits for them is woken once. An end or an
// error behind them is for the next time. With its lock.
static ptrdiff_t rvd_transport_records(rvd_transport *w, uint8_t *buf, size_t len)
{
    ptrdiff_t n = w->next;
    size_t at = 0;
    for (int i = 0; n > 0 && i < RVD_TRANSPORT_RECORDS; i++) {
        if (at && len - at < RVD_TRANSPORT_RECORD) break;
        n = rvd_transport_result(w, w->t.do_read(w->t.ctx, buf + at, len - at), &w->why);
        if (n > 0) at += (size_t)n;
    }
    // REVDIAL_WANT_* is not kept: by then there may be more, and the event of it gone by.
    w->next = at && n <= 0 && !rvd_transport_is_wanting(n) ? n : 1;
    return at ? (ptrdiff_t)at : n;
}

// Sets *n as a read of a non-blocking socket returns it: 0 when the peer has finished. A transport
// may hold bytes that the socket does not show: only REVDIAL_WANT_* says that there are no more.
//   returns  0: nothing can come through it any more, or not yet
static int rvd_transport_read(rvd_transport *w, void *buf, size_t len, ptrdiff_t *n,
                              revdial_err *err)
{
    int is_open;
    pthread_mutex_lock(&w->lock);
    is_open = w->state == RVD_TRANSPORT_OPEN || w->next <= 0;
    if (is_open) *n = rvd_transport_records(w, buf, len);
    if (is_open && *n < 0) *err = w->why;
    pthread_mutex_unlock(&w->lock);
    return is_open;
}

// Gives the transport what it holds still to take. Returns 0 when it has all of it.
static ptrdiff_t rvd_transport_push(rvd_transport *w, revdial_err *err)
{
    while (w->held_len) {
        // When it is over, the thread that found out has told the session.
        ptrdiff_t n = REVDIAL_WANT_READ;
        pthread_mutex_lock(&w->lock);
        if (w->state == RVD_TRANSPORT_OPEN)
            n = rvd_transport_result(w, w->t.do_write(w->t.ctx, w->held + w->held_at, w->held_len),
                                     err);
        pthread_mutex_unlock(&w->lock);
        if (n < 0) return n;
        if (w->sent_bytes < RVD_TRANSPORT_RECORD) rvd_base_wipe(w->held + w->held_at, (size_t)n);
        w->sent_bytes = rvd_base_min(w->sent_bytes + (size_t)n, RVD_TRANSPORT_RECORD);
        w->held_at += (size_t)n;
        w->held_len -= (size_t)n;
    }
    return 0;
}

// Chooses where to gather, all that was held being sent, for `len` bytes that wait. Returns how
// many it has room for.
static size_t rvd_transport_make_room(rvd_transport *w, size_t len)
{
    if (len > RVD_TRANSPORT_RECORD && !w->bulk)
        w->bulk = rvd_base_resize(&w->heap, NULL, 0, RVD_TRANSPORT_BULK);
    if (len <= RVD_TRANSPORT_RECORD && w->bulk) {
        rvd_base_free(&w->heap, w->bulk, RVD_TRANSPORT_BULK);
        w->bulk = NULL;
    }
    w->held = w->bulk ? w->bulk : w->record;  // without memory it is a record at a time
    w->held_at = 0;
    return w->bulk ? RVD_TRANSPORT_BULK : RVD_TRANSPORT_RECORD;
}

static size_t rvd_transport_len(const struct iovec *iov, int count)
{
    size_t len = 0;
    for (int i = 0; i < count; i++) len += iov[i].iov_len;
    return len;
}

// Takes bytes from vectors, behind the first `skip` of them, up to `room`. Returns how many.
static size_t rvd_transport_gather(rvd_transport *w, const struct iovec *iov, int count,
                                   size_t skip, size_t room)
{
    for (int i = 0; i < count && w->held_len < room; i++) {
        size_t from = rvd_base_min(skip, iov[i].iov_len);
        size_t n = rvd_base_min(iov[i].iov_len - from, room - w->held_len);
        skip -= from;
        if (n) memcpy(w->held + w->held_len, (const uint8_t *)iov[i].iov_base + from, n);
        w->held_len += n;
    }
    return w->held_len;
}

// Another thread is in the transport, and what there is to write is not worth waiting for it.
static int rvd_transport_is_busy(rvd_transport *w, const struct iovec *iov, int count)
{
    if (rvd_transport_len(iov, count) > RVD_TRANSPORT_BRIEF) return 0;
    if (pthread_mutex_trylock(&w->lock)) return 1;
    pthread_mutex_unlock(&w->lock);
    return 0;
}

// As a write to a non-blocking socket. Only one thread at a time may call it. REVDIAL_WANT_READ
// says that the loop should try.
static ptrdiff_t rvd_transport_write(rvd_transport *w, const struct iovec *iov, int count,
                                     revdial_err *err)
{
    size_t taken = 0, len = rvd_transport_len(iov, count);
    ptrdiff_t n;
    if (rvd_transport_state(w) == RVD_TRANSPORT_HANDSHAKE) return REVDIAL_WANT_READ;
    n = rvd_transport_push(w, err);
    while (n == 0 && taken < rvd_base_min(len, RVD_TRANSPORT_BULK)) {
        size_t room = rvd_transport_make_room(w, len - taken);
        taken += rvd_transport_gather(w, iov, count, taken, room);
        n = rvd_transport_push(w, err);
    }
    return n == 0 || (taken && rvd_transport_is_wanting(n)) ? (ptrdiff_t)taken : n;
}

// Says to the peer that nothing more comes. Returns REVDIAL_WANT_*, or something else when it was
// said or never can be.
static int rvd_transport_finish(rvd_transport *w)
{
    int r = 0;
    pthread_mutex_lock(&w->lock);
    if (w->state == RVD_TRANSPORT_OPEN)
        r = (int)rvd_transport_result(w, w->t.do_finish(w->t.ctx), NULL);
    if (!rvd_transport_is_wanting(r)) rvd_transport_become(w, RVD_TRANSPORT_OVER);
    pthread_mutex_unlock(&w->lock);
    return r;
}

// Does the transport hold bytes that no event of the socket will tell of? A write may bring some.
static int rvd_transport_pending(rvd_transport *w)
{
    size_t n = 0;
    pthread_mutex_lock(&w->lock);
    if (w->state == RVD_TRANSPORT_OPEN) n = w->t.do_pending(w->t.ctx);
    pthread_mutex_unlock(&w->lock);
    return n != 0;
}

// ================================================================================================
// MARK: impl.reader  uses: base sys loop
// Which thread reads a session's socket. If only one thread waits for bytes, it reads them itself,
// straight into its own buffer where the next bytes are for it: a message then costs no more
// hand-overs between threads than on a bare socket. It also handles what arrives for other streams
// meanwhile. Otherwise the loop reads. All of it under the session's lock, except
// rvd_reader_wait(). Start at the states.
// ================================================================================================

// A thread's read goes to its own buffer, as far as the next bytes are its own, and then to a
// spill, from where it is copied. That holds a burst of small frames; a read that is mostly the
// thread's own has a small spill, for headers: of 512 MB in bulk 87 MB are copied so, else 155 MB.
#define RVD_READER_SPILL 16384
#define RVD_READER_SPILL_LESS 512
#define RVD_READER_SOON_US 200    // a thread that reads again within this time was back soon;
#define RVD_READER_RETURNS 4      // after this many times in a row it is expected back
#define RVD_READER_LEASE_US 1000  // many messages; and what is not read meanwhile is little late

//     WATCH   the loop watches the socket, and nobody reads
//     LOOP    the loop reads, or acts on what it has read
//     THREAD  a thread reads; the loop is muted, and may only write
//     LEASE   nobody reads and the loop is muted: the thread went to its caller and is due back
//
//     WATCH --the socket is readable--> LOOP --all of it was handled--> WATCH
//     WATCH, LEASE --a thread waits, alone, and no stream needs the loop--> THREAD
//     THREAD --goes; others wait, the socket is full, or it is seldom back soon--> WATCH
//     THREAD --goes, and has been back soon some times in a row--> LEASE
//     LEASE --none came for a lease; another waits; a stream ends; a relay begins--> WATCH
//
// The lease saves the two system calls per message that mute and unmute the loop: 5,000 round
// trips of 64 bytes between blocking threads take 37,000 calls with it and 60,000 without. No
// thread waits while it runs, but a stream that the peer opens then, or the answer to an
// asynchronous dial, is read up to two leases late. tests/test_reader_model.c goes through all
// interleavings of this.
enum rvd_reader_state { RVD_READER_WATCH, RVD_READER_LOOP, RVD_READER_THREAD, RVD_READER_LEASE };

typedef struct rvd_reader {
    rvd_loop *loop;   // set before start, then read-only, as:
    rvd_loop_io *io;  // the socket
    enum rvd_reader_state state;
    size_t waiting;      // threads that wait, in all
    size_t needs_loop;   // streams that do: relays, and others without a thread
    const void *driver;  // the waiter of the thread that reads
    int is_asleep;       // it is about to sleep, or does: interrupt it if need be
    // Its last read was full, so the next one does not wait first: to read 256 MB in pieces of
    // 64 KiB takes 17,000 system calls with this, 52,000 without.
    int is_full;
    rvd_loop_spin spin;  // the thread that reads only, without the lock, too
    int64_t left_us;     // when it last went
    unsigned returns;    // times in a row that it was back soon
    // A lease is asked for by a thread, begun and ended by the loop. It goes on while threads read.
    int is_leased;
    uint32_t drives, lease_drives;  // how often a thread has read, now and when the lease began
    rvd_loop_timer lease;           // loop thread only
    rvd_sys_wake interrupt;         // opened with spill
    uint8_t *spill;                 // RVD_READER_SPILL bytes for what is not the reader's own
} rvd_reader;

#ifdef REVDIAL_SELF_CHECK
// Every invariant, each time that the lock is released in test builds.
static void rvd_reader_check(const rvd_reader *r)
{
    REVDIAL_ASSERT((r->state == RVD_READER_THREAD) == (r->driver != NULL));
    REVDIAL_ASSERT(r->state < RVD_READER_THREAD || (r->spill && RVD_SYS_EPOLL));
    REVDIAL_ASSERT(!r->is_asleep || r->driver);
    REVDIAL_ASSERT(r->state != RVD_READER_THREAD || r->waiting > 0);
    REVDIAL_ASSERT(r->state != RVD_READER_LEASE || (r->is_leased && !r->needs_loop));
    REVDIAL_ASSERT(r->returns <= RVD_READER_RETURNS);
}
#else
static void rvd_reader_check(const rvd_reader *r)
{
    (void)r;
}
#endif

static void rvd_reader_init(rvd_reader *r, rvd_loop *loop, rvd_loop_io *io)
{
    r->loop = loop;
    r->io = io;
    r->state = RVD_READER_WATCH;
    r->spin.limit_us = loop->spin.limit_us;
}

static void rvd_reader_free(rvd_reader *r, rvd_heap *heap)
{
    if (r->spill) rvd_sys_wake_close(&r->interrupt);
    rvd_base_free(heap, r->spill, RVD_READER_SPILL);
}

// The only way to change the state.
static void rvd_reader_become(rvd_reader *r, enum rvd_reader_state to)
{
    switch (r->state) {
    case RVD_READER_WATCH: REVDIAL_ASSERT(to == RVD_READER_LOOP || to == RVD_READER_THREAD); break;
    case RVD_READER_LOOP: REVDIAL_ASSERT(to == RVD_READER_WATCH); break;
    case RVD_READER_THREAD: REVDIAL_ASSERT(to == RVD_READER_WATCH || to == RVD_READER_LEASE); break;
    case RVD_READER_LEASE: REVDIAL_ASSERT(to == RVD_READER_WATCH || to == RVD_READER_THREAD); break;
    }
    r->state = to;
}

// The loop watches the socket again. What is there already is reported to it.
static void rvd_reader_watch(rvd_reader *r)
{
    rvd_reader_become(r, RVD_READER_WATCH);
    if (r->io->slot) rvd_loop_mute(r->loop, r->io, 0);
}

// Ends a lease. Returns 0 if there was none.
static int rvd_reader_lease_end(rvd_reader *r)
{
    if (r->state != RVD_READER_LEASE) return 0;
    rvd_reader_watch(r);
    return 1;
}

// The thread that reads has to look at the session.
static void rvd_reader_interrupt(rvd_reader *r)
{
    if (!r->is_asleep) return;
    r->is_asleep = 0;
    rvd_sys_wake_notify(&r->interrupt);
}

// The loop is about to read. Returns 0 while a thread does, or is due back.
static int rvd_reader_loop_begin(rvd_reader *r)
{
    if (r->state != RVD_READER_WATCH) return 0;
    rvd_reader_become(r, RVD_READER_LOOP);
    return 1;
}

static void rvd_reader_loop_end(rvd_reader *r)
{
    if (r->state == RVD_READER_LOOP) rvd_reader_become(r, RVD_READER_WATCH);
}

// May a thread that waits read? Where several wait the loop reads for all of them in one call.
// Without memory or a descriptor for it the loop reads, too.
static int rvd_reader_may_begin(rvd_reader *r, rvd_heap *heap)
{
    if (!RVD_SYS_EPOLL || r->waiting > 1 || r->needs_loop) return 0;
    if (r->state != RVD_READER_WATCH && r->state != RVD_READER_LEASE) return 0;
    if (r->spill) return 1;
    r->spill = rvd_base_alloc(heap, RVD_READER_SPILL);
    if (!r->spill) return 0;
    if (rvd_sys_wake_open(&r->interrupt) == 0) return 1;
    rvd_base_free(heap, r->spill, RVD_READER_SPILL);
    r->spill = NULL;
    return 0;
}

static void rvd_reader_begin(rvd_reader *r, const void *driver, int64_t now_us)
{
    if (r->state == RVD_READER_WATCH) rvd_loop_mute(r->loop, r->io, 1);
    rvd_reader_become(r, RVD_READER_THREAD);
    r->driver = driver;
    r->drives++;
    if (now_us - r->left_us > RVD_READER_SOON_US)
        r->returns = 0;
    else if (r->returns < RVD_READER_RETURNS)
        r->returns++;
}

// The thread goes. Returns 1 if the loop has to begin a lease.
static int rvd_reader_end(rvd_reader *r, int may_lease)
{
    r->driver = NULL;
    if (!may_lease || r->returns < RVD_READER_RETURNS || r->waiting > 1 || r->needs_loop) {
        rvd_reader_watch(r);
        return 0;
    }
    rvd_reader_become(r, RVD_READER_LEASE);
    if (r->is_leased) return 0;
    r->is_leased = 1;
    return 1;
}

// Loop thread: begins the lease that a thread has asked for.
static void rvd_reader_lease_begin(rvd_reader *r)
{
    if (!r->is_leased || r->lease.slot) return;
    r->lease_drives = r->drives;
    if (rvd_loop_timer_set(r->loop, &r->lease, rvd_loop_now(r->loop) + RVD_READER_LEASE_US) == 0)
        return;
    r->is_leased = 0;
    rvd_reader_lease_end(r);
}

// Its time is over. Has a thread read since it began? Then it may go on. One that has not come back
// is no longer waited for; one that sleeps in its read asks for a new lease when it goes.
static void rvd_reader_lease_over(rvd_reader *r)
{
    r->is_leased = r->state >= RVD_READER_THREAD && r->drives != r->lease_drives;
    if (!r->is_leased && rvd_reader_lease_end(r)) r->returns = 0;
}

// Where a thread reads to: len bytes that are its own, and the spill for what follows them.
static void rvd_reader_vectors(rvd_reader *r, struct iovec iov[2], uint8_t *own, size_t len)
{
    iov[0].iov_base = own;
    iov[0].iov_len = len;
    iov[1].iov_base = r->spill;
    iov[1].iov_len = len < RVD_READER_SPILL ? RVD_READER_SPILL : RVD_READER_SPILL_LESS;
    r->is_asleep = 1;
}

static ptrdiff_t rvd_reader_recv(rvd_reader *r, const struct iovec *iov)
{
    int skip = iov[0].iov_len == 0;
    return rvd_sys_readv(r->io->fd, iov + skip, 2 - skip);
}

// Looks for bytes without sleeping, where that may pay. -EAGAIN: there are none.
static ptrdiff_t rvd_reader_look(rvd_reader *r, const struct iovec *iov, int spins)
{
    rvd_loop_look look = {0};
    ptrdiff_t n;
    if (spins) look = rvd_loop_look_begin();
    do n = rvd_reader_recv(r, iov);
    while (n == -EAGAIN && spins && rvd_loop_spin_on(&r->spin, &look));
    if (n > 0 && spins) rvd_loop_spin_hit(&r->spin, &look);
    return n;
}

// Reads what has come, without the lock, after sleeping until something has. Sets *room if the
// socket can be written, where that was waited for.
static ptrdiff_t rvd_reader_wait(rvd_reader *r, const struct iovec *iov, int timeout_ms, int *room)
{
    struct pollfd p[2];
    int wants_room = *room, result, spins = !wants_room && rvd_loop_spin_pays(&r->spin);
    *room = 0;
    if (r->is_full || spins) {
        ptrdiff_t n = rvd_reader_look(r, iov, spins);
        if (n != -EAGAIN) return n;
    }
    p[0].fd = r->io->fd;
    p[0].events = wants_room ? POLLIN | POLLOUT : POLLIN;
    p[0].revents = 0;
    p[1].fd = r->interrupt.fd[0];
    p[1].events = POLLIN;
    result = rvd_sys_poll(p, 2, timeout_ms);
    if (result < 0) return result;
    *room = wants_room && p[0].revents & (POLLOUT | POLLERR | POLLHUP);
    return p[0].revents & ~POLLOUT ? rvd_reader_recv(r, iov) : -EAGAIN;
}

// With the lock again.
static void rvd_reader_woken(rvd_reader *r, const struct iovec *iov, ptrdiff_t n, int64_t now_us)
{
    if (!r->is_asleep) rvd_sys_wake_drain(&r->interrupt);
    r->is_asleep = 0;
    r->is_full = n > 0 && (size_t)n == iov[0].iov_len + iov[1].iov_len;
    r->left_us = now_us;
}

// ================================================================================================
// MARK: impl.stream  uses: base sys loop log transport reader
// Sessions on a loop, and the blocking calls of streams on top. One lock per session guards its
// engine and all its streams; it is never held during a system call that can block, nor during a
// callback of the application. Lock order: a session's, then a pool's, a loop's or a proxy's.
// Start at rvd_stream_session_run(), then revdial_read().
// ================================================================================================

#define RVD_STREAM_IOV 16  // vectors per send: eight frames of a burst with their headers
// Reads or sends in a row before others get their turn. More is no faster, and small messages wait
// for all of it: with 8 a ping beside four bulk streams took three times as long.
#define RVD_STREAM_ROUNDS 2
#define RVD_STREAM_LOOKS 256  // streams that a poll looks at under one hold of the session's lock
// After a read of BURST bytes more may be there at once. A thread that got PIECE bytes from it, and
// has room, is woken after the next read. Four threads that read 64 MB each: 26,000 system calls
// with it, 27,800 without; eight threads: 29,900 and 31,700.
#define RVD_STREAM_BURST 65536
#define RVD_STREAM_PIECE 4096
#define RVD_STREAM_SHAKE_US 2000  // that transports' handshakes may take of a pass of the loop
// How many times bytes of a handshake count as progress: honest peers send about four pieces.
#define RVD_STREAM_MOVES 6
#define RVD_STREAM_LEND 8192          // smaller writes are copied faster than they are lent
#define RVD_STREAM_RECALL_US 10000    // between two attempts to get memory
#define RVD_STREAM_HEARD_US 50000     // a backend that sent a byte in this time is thought alive
#define RVD_STREAM_NEAR_US 10000      // a round trip that nobody notices
#define RVD_STREAM_LINGER_US 2000000  // after the last frame: our close must not destroy it
#define RVD_STREAM_LINGER_BYTES 262144
#define RVD_STREAM_LAST_US 30000000  // to send the last frames, as for others (write_stall_ms)
#define RVD_STREAM_HURRY_US 250000   // in place of both when the session has to end soon

// How much may wait unsent, in the kernel and again in the engine: what the link carries in five
// milliseconds, so that a keystroke does not wait behind a bulk transfer.
#define RVD_STREAM_QUEUE_MIN 16384
#define RVD_STREAM_QUEUE_MAX 262144
// At the start, when nothing is known of the link: on a thin one everything else waits behind what
// is sent now. Others are known after 50 ms.
#define RVD_STREAM_QUEUE_START 8192
#define RVD_STREAM_QUEUE_THIN 4096  // the least, for links under 160 kB/s,
#define RVD_STREAM_THIN_PART 10     // where a tenth of a second's worth may wait
#define RVD_STREAM_PACE_US 50000    // the shortest time over which a rate is measured
#define RVD_STREAM_PACE_PART 200    // of a second's worth: 5 ms

// A link is thin if its socket is full three quarters of the time. The system's send buffer would
// hold a minute's worth of it, so it gets one of four seconds' worth. That is more than any round
// trip without a queue, so that the bound itself is not what makes the link look thin.
#define RVD_STREAM_THIN_US 2000000  // the shortest time over which that is measured,
#define RVD_STREAM_THIN_TIMES 2     // twice: right after an outage it tells nothing
#define RVD_STREAM_THIN_SECONDS 4
#define RVD_STREAM_THIN_BYTES 524288  // a link that carries more in four seconds is not thin

// How often we ask what the peer's system has acknowledged: 8 times in the shorter of dead_after
// and write_stall, within these bounds.
#define RVD_STREAM_LOOK_PART 8
#define RVD_STREAM_TIMEOUT_FACTOR 4  // of the socket's own timeout to the session's
#define RVD_STREAM_LOOK_MIN_US 10000
#define RVD_STREAM_LOOK_MAX_US 2000000

enum {
    RVD_STREAM_WAKE_RD = 1,
    RVD_STREAM_WAKE_WR = 2,
    RVD_STREAM_WAKE_END = 4,
    RVD_STREAM_WAKE_CALL = 8  // the application has changed what there is to wait for
};

// Counts what runs on an owner's loops (sessions, relays, dials): it is freed after all of them.
typedef struct rvd_stream_work {
    pthread_mutex_t lock;  // a leaf: nothing is locked under it
    pthread_cond_t changed;
    size_t count;  // guarded by lock
} rvd_stream_work;

static int rvd_stream_work_open(rvd_stream_work *w)
{
    int r = -pthread_mutex_init(&w->lock, NULL);
    if (r < 0) return r;
    w->count = 0;
    r = rvd_sys_cond_open(&w->changed);
    if (r < 0) pthread_mutex_destroy(&w->lock);
    return r;
}

static void rvd_stream_work_close(rvd_stream_work *w)
{
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}

static void rvd_stream_work_begin(rvd_stream_work *w)
{
    pthread_mutex_lock(&w->lock);
    w->count++;
    pthread_mutex_unlock(&w->lock);
}

static void rvd_stream_work_end(rvd_stream_work *w)
{
    pthread_mutex_lock(&w->lock);
    w->count--;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void rvd_stream_work_wait(rvd_stream_work *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->count) rvd_sys_cond_wait(&w->changed, &w->lock, -1);
    pthread_mutex_unlock(&w->lock);
}

// What the owner of a session (proxy or agent) does when something happens to it. All of them on
// the loop thread, except where it says otherwise.
typedef struct rvd_stream_host {
    int is_proxy;        // the session's name is its peer's
    size_t member_size;  // of what the owner keeps of each session
    // Under the lock. A proxy's: the request, whose texts last for this call; on_auth follows.
    void (*on_request_locked)(revdial_session *s, const revdial_auth_req *req);
    // An agent's: why the handshake failed, and what the proxy said about another attempt.
    void (*on_dead_locked)(revdial_session *s, const revdial_event *ev);
    // Any thread: st is new, its owner from here on is the host. May refuse it.
    void (*on_open_locked)(revdial_session *s, revdial_stream *st);
    // Without the lock.
    void (*on_auth)(revdial_session *s);  // a proxy's: the request wants a verdict
    void (*on_up)(revdial_session *s);
    void (*on_goaway)(revdial_session *s);
    void (*on_silent)(revdial_session *s);                        // a ping was not answered in time
    void (*on_down)(revdial_session *s, const revdial_err *why);  // once, always
} rvd_stream_host;

// Wakes a thread that polls; once until it is heard, however many streams move meanwhile.
typedef struct rvd_stream_bell {
    rvd_sys_wake wake;
    atomic_int is_rung;
} rvd_stream_bell;

static void rvd_stream_bell_ring(rvd_stream_bell *b)
{
    if (!atomic_exchange(&b->is_rung, 1)) rvd_sys_wake_notify(&b->wake);
}

// What has moved is looked at after this.
static void rvd_stream_bell_hear(rvd_stream_bell *b)
{
    rvd_sys_wake_drain(&b->wake);
    atomic_store(&b->is_rung, 0);
}

// A thread that sleeps until a stream moves. Lives on its stack, guarded by the session's lock.
typedef struct rvd_stream_waiter rvd_stream_waiter;
struct rvd_stream_waiter {
    rvd_base_link link;  // in the stream's list; alone: waits for something else
    unsigned events;
    int woken;
    int is_released;  // by the latch, now or soon: it has to stay until then
    rvd_stream_waiter *next_woken;
    rvd_sys_latch *latch;  // or:
    rvd_stream_bell *bell;
    // A reader's buffer: what arrives while it sleeps goes there at once. Or a writer's bytes: they
    // are lent to the engine as there is room, and it sleeps until the last of them is sent.
    uint32_t id;
    uint8_t *buf;
    const uint8_t *from;
    size_t len, got;
};

// What happens to a stream that no thread reads: a relay, a target being connected, a dial. Runs
// under the lock, with RVD_STREAM_WAKE_* bits.
typedef void rvd_stream_sink(revdial_stream *st, unsigned events);

struct revdial_stream {
    rvd_base_link link;    // in the session's list
    rvd_base_link kicked;  // in the session's list of sinks to run
    rvd_base_link waiters;
    revdial_session *session;  // holds a reference; set before start, then read-only
    // Guarded by the session's lock from here on.
    uint32_t id;
    unsigned kick_events;
    short quiet;  // events that a poll did not find, POLLERR among them, and nothing came since
    rvd_stream_sink *sink;
    void *sink_ud;
    int sink_is_loops;                       // it runs on the loop thread only
    int64_t rd_deadline_us, wr_deadline_us;  // 0 = do not wait, INT64_MAX = none
    int reset_code;                          // -1: was not reset by the peer
    int is_aborted;                          // we reset it
    int is_dialled;                          // by us
    int is_polled;                           // which has accepted it, once and for all
    int is_writing;                          // a call is at it; others wait until it is done
    char *meta;                              // "key\0value\0…"
    size_t meta_size;
};

// Something on a loop that may outlast its session: a relay to a reader that does not read.
typedef struct rvd_stream_guest {
    rvd_base_link link;
    void (*end)(struct rvd_stream_guest *guest);  // be over soon, whatever it costs
} rvd_stream_guest;

enum { RVD_STREAM_CONGESTION = 16 };  // a name with its NUL, as Linux has it (TCP_CA_NAME_MAX)

// All that runs on one loop, so that its owner can end it.
typedef struct rvd_stream_group {
    rvd_loop *loop;  // set before start, then read-only, as:
    rvd_log *log;    // of the owner, as:
    rvd_stream_work *work;
    int tcp_keepalive_ms;
    char congestion[RVD_STREAM_CONGESTION];
    sigset_t mask;                   // of the thread that made it, for hooks
    rvd_base_link sessions, guests;  // loop thread only, as all below
    rvd_loop_task end;
    int ending;
    uint64_t shake_pass;  // of the loop
    int64_t shake_us;     // that transports' handshakes have taken in that pass
    uint64_t late_pass;   // in which one that had begun had to wait
} rvd_stream_group;

// A session; changed by rvd_stream_become().
//   HANDSHAKE --the proxy has admitted it--> UP --a GoAway, or our drain--> DRAINING
//   HANDSHAKE, UP, DRAINING --an error, an end, or we kill it--> DEAD
//   DEAD --the loop has told every stream--> LINGER --the last frame is sent--> SAID
//   LINGER, SAID --an error, the peer has closed, or time is up--> CLOSING
//   CLOSING --no thread uses the descriptor any more--> DOWN
// The loop thread alone makes it LINGER and what follows.
enum rvd_stream_state {
    RVD_STREAM_HANDSHAKE,
    RVD_STREAM_UP,
    RVD_STREAM_DRAINING,  // no new streams
    RVD_STREAM_DEAD,      // `why` says what ended it; the loop has yet to act
    RVD_STREAM_LINGER,    // the last frames are on their way
    RVD_STREAM_SAID,      // and the peer was told that no more follow; we wait for its end
    RVD_STREAM_CLOSING,
    RVD_STREAM_DOWN  // the descriptor is closed
};

// What the event of the engine asks of the loop once the lock is released.
enum {
    RVD_STREAM_PEND_AUTH = 1,
    RVD_STREAM_PEND_UP = 2,
    RVD_STREAM_PEND_GOAWAY = 4,
    RVD_STREAM_PEND_DEAD = 8,
    RVD_STREAM_PEND_DOWN = 16,    // the owner is told
    RVD_STREAM_PEND_CLOSED = 32,  // and may forget it: the descriptor is closed
    RVD_STREAM_PEND_SILENT = 64
};

typedef struct rvd_stream_dial rvd_stream_dial;

// How far the peer is while its handshake lasts.
typedef struct rvd_stream_handshake {
    int64_t since_us;   // it waits for its turn at the transport since then; 0: it does not wait
    int64_t waited_us;  // in all
    int moves;          // of the peer's bytes, that have counted as progress
    int has_said;       // a byte of the request has come
    int has_shaken;     // a byte of the transport's handshake has come
    int left_silent;    // it went without either, as a health check does
    // Milliseconds after start_us when it last made progress; read by the owner, any thread. (Not
    // of 64 bits: where a processor has no such atomics, they need a library.)
    atomic_uint moved_ms;
} rvd_stream_handshake;

// What the link can carry, as far as its socket tells, and what may wait unsent for it.
typedef struct rvd_stream_pace {
    int64_t since_us;     // the rate is measured since then
    uint64_t bytes;       // sent since then
    int was_blocked;      // since then, so that the link and not the writers set the rate
    int queue_bytes;      // what may wait
    int64_t full_at_us;   // the socket takes no more since then, if blocked
    int64_t full_us;      // it did not for this long since thin_us
    int64_t thin_us;      // it is measured whether the link is thin since then
    uint64_t thin_bytes;  // wire_bytes at that time
    int thin_times;       // in a row that it was
    int send_buffer;      // of the socket; 0: as the system likes
} rvd_stream_pace;

// What the peer's system has acknowledged: a peer that takes bytes is not dead.
typedef struct rvd_stream_look {
    int64_t next_us;  // when to look; 0: no need
    int64_t last_us;
    int64_t step_us;
    int64_t acked_bytes;  // of wire_bytes, at last_us; without what a transport adds
    int timeout_ms;       // of the socket itself, after which the system ends the connection
} rvd_stream_look;

// Threads that were woken under the lock, and go on once it is released.
typedef struct rvd_stream_wakeups {
    rvd_stream_waiter *first, **last;
    // Loop thread only: readers that got a piece of a burst may get more of it before they go on.
    rvd_stream_waiter *held;
    int holds;
} rvd_stream_wakeups;

// A thread that polls was told of several streams, and writes to each of them: what it writes goes
// out with the last one. For 12,800 answers on 64 streams that is 19,400 sends instead of 25,100,
// and a fifth less processor time.
typedef struct rvd_stream_batch {
    size_t left;       // streams
    pthread_t thread;  // if left
} rvd_stream_batch;

// How it ends.
typedef struct rvd_stream_end {
    int64_t drain_until_us;  // 0: it does not drain, or without a limit
    int is_brief;            // no time is left for last frames
    size_t lingered;         // bytes that came meanwhile; loop thread only
} rvd_stream_end;

struct revdial_session {
    atomic_int refs;
    // Set before start, then read-only.
    const rvd_stream_host *host;
    void *owner;             // the proxy or agent; lives until `work` is done
    void *member;            // what the owner keeps of this session; lives as long as it does
    rvd_sys_origin *origin;  // holds a reference
    rvd_stream_group *group;
    rvd_loop *loop;  // the group's
    int fd;
    rvd_transport *transport;  // NULL: bytes move through fd itself
    char peer[RVD_SYS_TEXT_MAX];
    char name[65], instance[65], identity[128];  // proxy: written once, before on_up
    uint64_t id;  // backend: the proxy has said it, written once, before on_up
    int64_t start_us;

    // Loop thread only.
    rvd_base_link link;  // in its group
    rvd_loop_io io;
    rvd_loop_timer timer;
    rvd_loop_flush flush;
    rvd_loop_task kick;
    rvd_stream_handshake handshake;

    pthread_mutex_t lock;  // guards all below
    rvd_heap heap;
    revdial_engine *engine;
    _Atomic(enum rvd_stream_state) state;  // written under the lock, read by any thread
    unsigned pend;
    int kick_queued;
    int sending;     // a thread is between output and sent, with the lock released
    int has_queued;  // a sleeping writer's bytes have come to the output since the last send
    rvd_stream_batch batch;
    int blocked;       // the socket takes no more until the loop says so
    int64_t armed_us;  // the timer, as last set
    rvd_stream_pace pace;
    rvd_stream_look look;
    uint64_t wire_bytes;  // sent, ever
    revdial_err why;      // what ended it
    rvd_stream_end end;
    rvd_base_link streams, dials_waiting, dials_over;
    rvd_base_link kicked[2];  // sinks to run: by the thread that handles events, by the loop
    rvd_reader reader;
    rvd_stream_wakeups wakeups;
    atomic_uint stream_count;  // written under the lock, read without it to pick a session
    atomic_int is_silent;      // a ping was not answered in time; as state
};

// An attempt to open a stream on one session. Lives with its owner, guarded by the session's lock.
//   WAITING --the engine has room--> ASKED --accepted, refused, dead--> OVER
//   WAITING --refused, dead--> OVER --another session is asked--> WAITING
enum rvd_stream_dial_state { RVD_STREAM_DIAL_WAITING, RVD_STREAM_DIAL_ASKED, RVD_STREAM_DIAL_OVER };

struct rvd_stream_dial {
    rvd_base_link link;  // in dials_waiting or dials_over
    enum rvd_stream_dial_state state;
    const revdial_dial_opts *opts;  // stays valid while the dial lasts
    int64_t start_us, deadline_us;
    revdial_stream *st;  // the result once OVER; NULL: err says why
    int is_movable;      // another session may be asked as well: bytes of the client can wait
    int holds_early;     // they go out once the stream is accepted
    int is_unreachable;  // the target could not be connected
    int retry_safe;      // nothing that the client sent can have been processed
    uint32_t stream_id;  // 0: none has been asked for
    uint64_t session_id;
    revdial_err err;
    rvd_stream_waiter *waiter;            // a thread waits; or:
    void (*done)(rvd_stream_dial *dial);  // on the loop thread, without the lock
};

// Asked before the lock by each call of the application: a thread that fork(2) has left behind may
// hold it.
#define RVD_STREAM_CHILD "this is a child of the process that opened it: see fork in api.config"

static int rvd_stream_is_child(const revdial_session *s)
{
    return rvd_sys_is_child(s->origin);
}

static void rvd_stream_lock(revdial_session *s)
{
    pthread_mutex_lock(&s->lock);
}

static void rvd_stream_release(rvd_stream_waiter *w)
{
    while (w) {
        rvd_stream_waiter *next = w->next_woken;  // w is gone as soon as it may go
        rvd_sys_latch_open(w->latch);
        w = next;
    }
}

// The only way to release the lock: releases the threads that were woken under it. They wait until
// then, s may be gone.
static void rvd_stream_unlock(revdial_session *s)
{
    rvd_stream_waiter *w = s->wakeups.first;
    s->wakeups.first = NULL;
    s->wakeups.last = &s->wakeups.first;
    rvd_reader_check(&s->reader);
    pthread_mutex_unlock(&s->lock);
    rvd_stream_release(w);
}

// Loop thread, without the lock: the pass is over, or will last.
static void rvd_stream_release_held(revdial_session *s)
{
    rvd_stream_waiter *w = s->wakeups.held;
    s->wakeups.held = NULL;
    rvd_stream_release(w);
}

static int rvd_stream_flush_locked(revdial_session *s);
static void rvd_stream_events_locked(revdial_session *s);
static int rvd_stream_sleep_locked(revdial_session *s, rvd_stream_waiter *w, int64_t deadline_us);

static int rvd_stream_fail(revdial_err *err, int code, int reset, const char *text)
{
    rvd_sys_fail(err, code, 0, NULL, text);
    if (err) err->reset = reset;
    return code;
}

// Puts words before the reason, which is cut at its end to fit. err may be NULL.
static void rvd_stream_fail_in(revdial_err *err, const char *where)
{
    char why[sizeof err->msg];
    if (!err) return;
    memcpy(why, err->msg, sizeof why);
    RVD_BASE_JOIN(err->msg, sizeof err->msg, where, why);
}

// What proxies and agents have in common; its limits are for the engine to check.
static const char *rvd_stream_common_problem(const revdial_common *c)
{
    if (c->log_level < 0 || c->log_level > REVDIAL_LOG_DEBUG)
        return "common.log_level: none of REVDIAL_LOG_*";
    if (c->tls && !c->tls->wrap) return "common.tls: wrap is NULL";
    if (c->tcp_keepalive_ms < -1) return "common.tcp_keepalive_ms: below -1, which means none";
    return NULL;
}

// And what only the system knows. Returns 0 or an error.
static int rvd_stream_common_check(const revdial_common *c, revdial_err *err)
{
    return c->congestion ? rvd_sys_congestion_check(c->congestion, err) : REVDIAL_OK;
}

// ---- bytes of the socket, through its transport if there is one ----
// Without the session's lock. Results are bytes, REVDIAL_WANT_*, or REVDIAL_E* with *err.

// Returns 0 when the peer has finished.
static ptrdiff_t rvd_stream_recv(revdial_session *s, void *buf, size_t len, revdial_err *err)
{
    ptrdiff_t n;
    if (s->transport) {
        if (rvd_transport_read(s->transport, buf, len, &n, err)) return n;
        if (s->state < RVD_STREAM_LINGER) return REVDIAL_WANT_READ;  // no byte goes past it
    }
    n = rvd_sys_read(s->fd, buf, len);
    if (n >= 0) return n;
    if (n == -EAGAIN) return REVDIAL_WANT_READ;
    rvd_sys_fail(err, REVDIAL_ELOST, (int)-n, NULL, "receiving from the peer failed");
    return REVDIAL_ELOST;
}

// Only the thread that is `sending` may call it. REVDIAL_WANT_READ: the loop should try.
static ptrdiff_t rvd_stream_send(revdial_session *s, const struct iovec *iov, int count,
                                 revdial_err *err)
{
    ptrdiff_t n;
    if (s->transport) {
        if (!rvd_loop_is_owner(s->loop) && rvd_transport_is_busy(s->transport, iov, count))
            return REVDIAL_WANT_READ;
        return rvd_transport_write(s->transport, iov, count, err);
    }
    n = rvd_sys_writev(s->fd, iov, count);
    if (n >= 0) return n;
    if (n == -EAGAIN) return REVDIAL_WANT_WRITE;
    rvd_sys_fail(err, REVDIAL_ELOST, (int)-n, NULL, "sending to the peer failed");
    return REVDIAL_ELOST;
}

// Says to the peer that nothing more comes. Only the thread that is `sending` may call it.
static int rvd_stream_send_end(revdial_session *s)
{
    int r = s->transport ? rvd_transport_finish(s->transport) : 0;
    if (rvd_transport_is_wanting(r)) return r;
    return rvd_sys_shutdown_wr(s->fd) < 0 ? REVDIAL_ELOST : REVDIAL_OK;
}

// Is the transport still in its handshake?
static int rvd_stream_is_shaking(revdial_session *s)
{
    return s->transport && rvd_transport_state(s->transport) == RVD_TRANSPORT_HANDSHAKE;
}

// ---- references ----

revdial_session *revdial_session_ref(revdial_session *s)
{
    if (s) atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

void revdial_session_unref(revdial_session *s)
{
    rvd_sys_origin *origin;
    rvd_heap heap;
    if (!s || rvd_stream_is_child(s)) return;
    if (atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) return;
    REVDIAL_ASSERT(rvd_base_link_is_alone(&s->streams));
    revdial_engine_free(s->engine);
    rvd_reader_free(&s->reader, &s->heap);
    pthread_mutex_destroy(&s->lock);
    rvd_base_wipe(s->member, s->host->member_size);
    rvd_base_free(&s->heap, s->member, s->host->member_size);
    origin = s->origin;
    heap = s->heap;
    heap.live_bytes = sizeof *s + (s->transport ? sizeof *s->transport : 0);
    rvd_transport_free(&heap, s->transport);
    rvd_base_free(&heap, s, sizeof *s);
    rvd_sys_origin_unref(origin);
}

// Has the loop look at the session again; any thread.
static void rvd_stream_kick_locked(revdial_session *s)
{
    if (s->kick_queued || s->state == RVD_STREAM_DOWN) return;
    s->kick_queued = 1;
    revdial_session_ref(s);
    rvd_loop_post(s->loop, &s->kick);
}

// Loop thread: send when all events of this pass have been handled.
static void rvd_stream_flush_soon_locked(revdial_session *s)
{
    if (s->flush.queued) return;
    revdial_session_ref(s);
    rvd_loop_flush_later(s->loop, &s->flush);
}

// Is this the session's I/O thread? The loop exists for as long as the session is not down.
static int rvd_stream_on_loop_locked(revdial_session *s)
{
    return s->state != RVD_STREAM_DOWN && rvd_loop_is_owner(s->loop);
}

static int rvd_stream_is_on_loop(revdial_session *s)
{
    int yes;
    rvd_stream_lock(s);
    yes = rvd_stream_on_loop_locked(s);
    rvd_stream_unlock(s);
    return yes;
}

// After a call that may have queued output.
static void rvd_stream_touch_locked(revdial_session *s)
{
    if (s->state == RVD_STREAM_DOWN) return;
    if (rvd_stream_on_loop_locked(s))
        rvd_stream_flush_soon_locked(s);
    else
        rvd_stream_flush_locked(s);
}

// The only way to change the state.
static void rvd_stream_become(revdial_session *s, enum rvd_stream_state to)
{
    enum rvd_stream_state from = s->state;
    switch (from) {
    case RVD_STREAM_HANDSHAKE: REVDIAL_ASSERT(to == RVD_STREAM_UP || to == RVD_STREAM_DEAD); break;
    case RVD_STREAM_UP: REVDIAL_ASSERT(to == RVD_STREAM_DRAINING || to == RVD_STREAM_DEAD); break;
    case RVD_STREAM_DRAINING: REVDIAL_ASSERT(to == RVD_STREAM_DEAD); break;
    case RVD_STREAM_DEAD: REVDIAL_ASSERT(to == RVD_STREAM_LINGER); break;
    case RVD_STREAM_LINGER:
        REVDIAL_ASSERT(to == RVD_STREAM_SAID || to == RVD_STREAM_CLOSING);
        break;
    case RVD_STREAM_SAID: REVDIAL_ASSERT(to == RVD_STREAM_CLOSING); break;
    case RVD_STREAM_CLOSING: REVDIAL_ASSERT(to == RVD_STREAM_DOWN); break;
    case RVD_STREAM_DOWN: REVDIAL_ASSERT(0); break;
    }
    s->state = to;
}

static int rvd_stream_is_up(const revdial_session *s)
{
    return s->state == RVD_STREAM_UP || s->state == RVD_STREAM_DRAINING;
}

// Does it drain, or is it over? No new stream is opened on it. Any thread, without the lock.
static int rvd_stream_is_leaving(const revdial_session *s)
{
    return atomic_load_explicit(&s->state, memory_order_relaxed) >= RVD_STREAM_DRAINING;
}

static void rvd_stream_drain_locked(revdial_session *s)
{
    if (s->state == RVD_STREAM_UP) rvd_stream_become(s, RVD_STREAM_DRAINING);
}

// It is over, and the loop ends it. One that never came up gets a short farewell: strangers must
// not hold descriptors for long.
static void rvd_stream_dead_locked(revdial_session *s)
{
    if (s->state >= RVD_STREAM_DEAD) return;
    if (s->state == RVD_STREAM_HANDSHAKE) s->end.is_brief = 1;
    rvd_stream_become(s, RVD_STREAM_DEAD);
    s->pend |= RVD_STREAM_PEND_DEAD;
    if (!rvd_stream_on_loop_locked(s)) rvd_stream_kick_locked(s);
}

// ---- streams ----

// Threads go on when the lock is released, which they all need: else each would wake up only to
// wait for it.
static void rvd_stream_wake_waiter_locked(revdial_session *s, rvd_stream_waiter *w)
{
    if (w->bell) {
        rvd_stream_bell_ring(w->bell);
        return;
    }
    if (w->woken) return;
    w->woken = 1;
    if (w == s->reader.driver) {
        rvd_reader_interrupt(&s->reader);
        return;
    }
    w->is_released = 1;
    if (s->wakeups.holds && w->got >= RVD_STREAM_PIECE && w->got < w->len) {
        w->next_woken = s->wakeups.held;
        s->wakeups.held = w;
        return;
    }
    *s->wakeups.last = w;
    s->wakeups.last = &w->next_woken;
}

static void rvd_stream_wake_locked(revdial_stream *st, unsigned events)
{
    revdial_session *s = st->session;
    st->quiet = 0;
    for (rvd_base_link *l = st->waiters.next; l != &st->waiters; l = l->next) {
        rvd_stream_waiter *w = RVD_BASE_OWNER(l, rvd_stream_waiter, link);
        if (w->events & events) rvd_stream_wake_waiter_locked(s, w);
    }
    if (!st->sink) return;
    st->kick_events |= events;
    if (rvd_base_link_is_alone(&st->kicked))
        rvd_base_link_push(&s->kicked[st->sink_is_loops], &st->kicked);
}

// What has arrived goes into the buffers of the threads that wait for it.
static void rvd_stream_deliver_locked(revdial_stream *st)
{
    revdial_session *s = st->session;
    for (rvd_base_link *l = st->waiters.next; l != &st->waiters; l = l->next) {
        rvd_stream_waiter *w = RVD_BASE_OWNER(l, rvd_stream_waiter, link);
        ptrdiff_t n;
        if (!w->buf || w->got == w->len) continue;
        n = revdial_engine_read(s->engine, st->id, w->buf + w->got, w->len - w->got);
        if (n <= 0) return;
        w->got += (size_t)n;
        rvd_stream_wake_waiter_locked(s, w);
    }
}

// Takes bytes of the thread that sleeps in a write, until there is no room: the engine then tells
// of more, or why there is none. Returns 0 if there is no such thread.
static int rvd_stream_queue_write_locked(revdial_stream *st)
{
    revdial_session *s = st->session;
    for (rvd_base_link *l = st->waiters.next; l != &st->waiters; l = l->next) {
        rvd_stream_waiter *w = RVD_BASE_OWNER(l, rvd_stream_waiter, link);
        ptrdiff_t n;
        if (!w->from) continue;
        do {
            size_t left = w->len - w->got;
            n = 0;
            if (left >= RVD_STREAM_LEND && !s->transport)
                n = revdial_engine_lend(s->engine, st->id, w->from + w->got, left);
            else if (left)
                n = revdial_engine_write(s->engine, st->id, w->from + w->got, left);
            if (n > 0) {
                w->got += (size_t)n;
                s->has_queued = 1;
            }
        } while (n > 0);
        if (n < 0 || (w->got == w->len && !revdial_engine_lent(s->engine, st->id)))
            rvd_stream_wake_waiter_locked(s, w);
        return 1;
    }
    return 0;
}

// Sets the sink that gets the stream's events from now on; NULL: none.
static void rvd_stream_sink_set_locked(revdial_stream *st, rvd_stream_sink *sink, void *ud,
                                       int is_loops)
{
    revdial_session *s = st->session;
    if (st->sink_is_loops) s->reader.needs_loop--;
    rvd_base_link_remove(&st->kicked);
    st->sink = sink;
    st->sink_ud = ud;
    st->sink_is_loops = is_loops;
    if (!is_loops) return;
    s->reader.needs_loop++;
    rvd_reader_interrupt(&s->reader);
    rvd_reader_lease_end(&s->reader);
}

static revdial_stream *rvd_stream_new_locked(revdial_session *s)
{
    revdial_stream *st = rvd_base_alloc(&s->heap, sizeof *st);
    if (!st) return NULL;
    rvd_base_link_init(&st->link);
    rvd_base_link_init(&st->kicked);
    rvd_base_link_init(&st->waiters);
    st->session = revdial_session_ref(s);
    st->rd_deadline_us = st->wr_deadline_us = INT64_MAX;
    st->reset_code = -1;
    rvd_base_link_push(&s->streams, &st->link);
    atomic_fetch_add_explicit(&s->stream_count, 1, memory_order_relaxed);
    return st;
}

static void rvd_stream_meta_free_locked(revdial_stream *st)
{
    rvd_base_free(&st->session->heap, st->meta, st->meta_size);
    st->meta = NULL;
    st->meta_size = 0;
}

// Gives the handle back. The caller holds a reference of its own to the session.
static void rvd_stream_free_locked(revdial_stream *st)
{
    revdial_session *s = st->session;
    REVDIAL_ASSERT(rvd_base_link_is_alone(&st->waiters));
    rvd_stream_sink_set_locked(st, NULL, NULL, 0);
    rvd_reader_lease_end(&s->reader);  // its reader may not be back soon
    if (st->id) revdial_engine_close(s->engine, st->id);
    rvd_base_link_remove(&st->link);
    atomic_fetch_sub_explicit(&s->stream_count, 1, memory_order_relaxed);
    rvd_stream_meta_free_locked(st);
    rvd_base_free(&s->heap, st, sizeof *st);
    revdial_session_unref(s);
}

static int rvd_stream_meta_copy_locked(revdial_stream *st, const revdial_event *ev)
{
    size_t size = 0;
    char *at;
    for (size_t i = 0; i < ev->meta_count; i++)
        size += strlen(ev->meta[i].key) + strlen(ev->meta[i].value) + 2;
    if (!size) return 1;
    st->meta = rvd_base_alloc(&st->session->heap, size);
    if (!st->meta) return 0;
    st->meta_size = size;
    at = st->meta;
    for (size_t i = 0; i < ev->meta_count; i++) {
        size_t key = strlen(ev->meta[i].key) + 1, value = strlen(ev->meta[i].value) + 1;
        memcpy(at, ev->meta[i].key, key);
        memcpy(at + key, ev->meta[i].value, value);
        at += key + value;
    }
    return 1;
}

static void rvd_stream_incoming_locked(revdial_session *s, const revdial_event *ev)
{
    revdial_stream *st = rvd_stream_new_locked(s);
    if (!st || !rvd_stream_meta_copy_locked(st, ev)) {
        revdial_engine_reset(s->engine, ev->id, REVDIAL_RESET_INTERNAL);
        revdial_engine_close(s->engine, ev->id);
        if (st) rvd_stream_free_locked(st);
        return;
    }
    st->id = ev->id;
    revdial_engine_set_ud(s->engine, st->id, st);
    s->host->on_open_locked(s, st);
}

// ---- what lines of the log say about a session and a stream ----

static void rvd_stream_log_session(rvd_log_line *l, const revdial_session *s)
{
    rvd_log_id(l, "session", s->id);
    rvd_log_text(l, "name", s->name);
}

// The id of a dial as the engine made it, in case that the stream does not bring it along.
static void rvd_stream_log_dial(rvd_log_line *l, uint64_t session, uint32_t stream)
{
    char text[28];
    rvd_base_text t = rvd_base_text_in(text, sizeof text);
    rvd_base_text_add_hex16(&t, session);
    RVD_BASE_ADD(&t, ".", RVD_BASE_NUMBER(stream));
    if (stream) rvd_log_text(l, "dial", text);
}

// Which way is the same on both ends.
static void rvd_stream_log_end(rvd_log_line *l, uint64_t to_target, uint64_t to_client,
                               int64_t since_us, const revdial_err *why)
{
    rvd_log_number(l, "to_target_bytes", to_target);
    rvd_log_number(l, "to_client_bytes", to_client);
    rvd_log_number(l, "duration_ms", (uint64_t)(rvd_sys_now_us() - since_us) / 1000);
    rvd_log_text(l, "reason", why ? why->msg : "EOF");
}

// ---- dials on one session ----

// The dialler's error for a reset.
static int rvd_stream_reset_error(int reset)
{
    switch (reset) {
    case REVDIAL_RESET_CONNECT_REFUSED:
    case REVDIAL_RESET_CONNECT_TIMEOUT:
    case REVDIAL_RESET_UNREACHABLE:
    case REVDIAL_RESET_NO_SUCH_HOST: return REVDIAL_EUNREACH;
    case REVDIAL_RESET_FORBIDDEN: return REVDIAL_EDENIED;
    case REVDIAL_RESET_TIMEOUT: return REVDIAL_ETIMEDOUT;
    case REVDIAL_RESET_DRAINING: return REVDIAL_EDRAINING;
    case REVDIAL_RESET_NO_BACKEND: return REVDIAL_ENOBACKEND;
    case REVDIAL_RESET_CALM: return REVDIAL_ELIMIT;
    default: return REVDIAL_EREFUSED;
    }
}

static void rvd_stream_dial_become(rvd_stream_dial *d, enum rvd_stream_dial_state to)
{
    switch (d->state) {
    case RVD_STREAM_DIAL_WAITING: REVDIAL_ASSERT(to != RVD_STREAM_DIAL_WAITING); break;
    case RVD_STREAM_DIAL_ASKED: REVDIAL_ASSERT(to == RVD_STREAM_DIAL_OVER); break;
    case RVD_STREAM_DIAL_OVER: REVDIAL_ASSERT(to == RVD_STREAM_DIAL_WAITING); break;
    }
    d->state = to;
}

static void rvd_stream_dial_over_locked(revdial_session *s, rvd_stream_dial *d)
{
    rvd_stream_dial_become(d, RVD_STREAM_DIAL_OVER);
    rvd_base_link_remove(&d->link);
    if (d->waiter) {
        rvd_stream_wake_waiter_locked(s, d->waiter);
        return;
    }
    rvd_base_link_push(&s->dials_over, &d->link);
    if (!rvd_stream_on_loop_locked(s)) rvd_stream_kick_locked(s);
}

static void rvd_stream_dial_fail_locked(revdial_session *s, rvd_stream_dial *d, int code,
                                        const char *text)
{
    revdial_stream *st = d->st;
    d->st = NULL;
    rvd_stream_fail(&d->err, code, 0, text);
    if (st) {
        d->err.reset = st->reset_code > 0 ? st->reset_code : 0;
        rvd_stream_free_locked(st);
    }
    rvd_stream_dial_over_locked(s, d);
}

// Sink of a stream that was asked for: it is accepted, refused, or its session died.
static void rvd_stream_dial_sink(revdial_stream *st, unsigned events)
{
    revdial_session *s = st->session;
    rvd_stream_dial *d = st->sink_ud;
    if (events & RVD_STREAM_WAKE_END) {
        int reset = st->reset_code;
        if (reset < 0) {
            int code = s->why.code == REVDIAL_ECLOSED || s->why.code == REVDIAL_EDRAINING
                           ? s->why.code
                           : REVDIAL_ELOST;
            rvd_stream_dial_fail_locked(s, d, code, s->why.msg);
            return;
        }
        d->is_unreachable = rvd_stream_reset_error(reset) == REVDIAL_EUNREACH;
        d->retry_safe =
            reset == REVDIAL_RESET_REFUSED || reset == REVDIAL_RESET_DRAINING || d->is_unreachable;
        rvd_stream_dial_fail_locked(s, d, rvd_stream_reset_error(reset),
                                    reset == REVDIAL_RESET_FORBIDDEN && !d->opts->target
                                        ? "no target was named, and the backend has no default one"
                                        : revdial_reset_text(reset));
        return;
    }
    rvd_stream_sink_set_locked(st, NULL, NULL, 0);
    // Without memory for them the stream is reset, which its owner finds out.
    if (d->holds_early &&
        revdial_engine_early(s->engine, st->id, d->opts->early, d->opts->early_len) < 0)
        revdial_engine_reset(s->engine, st->id, REVDIAL_RESET_INTERNAL);
    rvd_stream_dial_over_locked(s, d);
}

// A backend that falls silent with the client's first bytes may have used them, so that nobody else
// may get them. Where another could be asked, they go along only if that saves a round trip worth
// the name, and only to a backend that was heard from just now.
static int rvd_stream_dial_holds(const rvd_stream_dial *d, const revdial_engine_info *info)
{
    const revdial_dial_opts *o = d->opts;
    if (!d->is_movable || !o->early || !o->early_len || o->early_len > REVDIAL_EARLY_MAX) return 0;
    return info->rtt_us < RVD_STREAM_NEAR_US ||
           rvd_sys_now_us() - info->last_rx_us > RVD_STREAM_HEARD_US;
}

static const char *rvd_stream_open_text(int code, const revdial_dial_opts *opts)
{
    if (code == REVDIAL_EINVAL && opts->target)
        return "this backend takes no target, or the metadata is over 4 KiB";
    if (code == REVDIAL_EINVAL) return "the metadata is over 4 KiB";
    return revdial_strerror(code);
}

enum { RVD_STREAM_META_MAX = 4096 / 5 };  // entries of a preamble: a head of 3, a key and a '='

static const char *rvd_stream_meta_problem(const revdial_dial_opts *o)
{
    if (o->meta_count && !o->meta) return "meta: NULL, but the count is not 0";
    if (o->meta_count > RVD_STREAM_META_MAX) return "meta: over 4 KiB";
    for (size_t i = 0; i < o->meta_count; i++) {
        if (!o->meta[i].key || !o->meta[i].value) return "meta: a key or a value is NULL";
        if (!rvd_base_is_meta_key(o->meta[i].key))
            return "meta: a key is empty, has a '=', or is one that revdial sends itself";
    }
    return NULL;
}

static const char *rvd_stream_opts_problem(const revdial_dial_opts *o)
{
    if (o->early_len > REVDIAL_EARLY_MAX) return "early: over 4096 bytes";
    if (o->early_len && !o->early) return "early: NULL, but the length is not 0";
    if (o->pick < REVDIAL_PICK_ROUND_ROBIN || o->pick > REVDIAL_PICK_KEY)
        return "pick: none of REVDIAL_PICK_*";
    if (o->flags & ~(unsigned)(REVDIAL_DIAL_WAIT | REVDIAL_DIAL_EARLY))
        return "flags: not of REVDIAL_DIAL_*";
    if (!o->key && (o->key_len || o->pick == REVDIAL_PICK_KEY)) return "key: NULL";
    if (o->timeout_ms < -1) return "timeout_ms: below -1, which means no limit";
    return rvd_stream_meta_problem(o);
}

// Is this an address? NULL is none, and fine. Returns 0, or REVDIAL_EINVAL.
static int rvd_stream_address_check(const char *field, const char *text, revdial_err *err)
{
    rvd_sys_addr a;
    if (!text || rvd_sys_addr_parse(text, 0, &a, err) == 0) return REVDIAL_OK;
    rvd_stream_fail_in(err, field);
    return REVDIAL_EINVAL;
}

// Is this HOST:PORT or unix:/path? The zone of an IPv6 address is an interface of the backend, so
// it is not looked for here. NULL is none, and fine. Returns 0, or REVDIAL_EINVAL.
static int rvd_stream_target_check(const char *text, revdial_err *err)
{
    const char *zone = text && text[0] == '[' ? strchr(text, '%') : NULL;
    const char *end = zone ? strchr(zone, ']') : NULL;
    char plain[RVD_SYS_TEXT_MAX];
    rvd_sys_endpoint e;
    if (end && end > zone + 1 && strlen(text) < sizeof plain) {
        memcpy(plain, text, (size_t)(zone - text));
        memcpy(plain + (zone - text), end, strlen(end) + 1);
        text = plain;
    }
    if (!text || rvd_sys_addr_split(text, 1, &e, err) == 0) return REVDIAL_OK;
    rvd_stream_fail_in(err, "target: ");
    return REVDIAL_EINVAL;
}

// Checks what does not depend on the backend.
//   returns  0, or REVDIAL_EINVAL
static int rvd_stream_dial_check(const revdial_dial_opts *o, revdial_err *err)
{
    const char *problem = rvd_stream_opts_problem(o);
    if (problem) return rvd_stream_fail(err, REVDIAL_EINVAL, 0, problem);
    if (rvd_stream_target_check(o->target, err)) return REVDIAL_EINVAL;
    if (rvd_stream_address_check("client_addr: ", o->client_addr, err)) return REVDIAL_EINVAL;
    return rvd_stream_address_check("local_addr: ", o->local_addr, err);
}

// Puts the backend and the target before the reason of a failed dial.
static void rvd_stream_dial_fail_in(revdial_err *err, const char *who, const char *target)
{
    enum { TARGET_MAX = 80 };  // bytes that are shown: the reason needs room, too
    char where[sizeof "dial  to : " + 160 + TARGET_MAX], shown[TARGET_MAX + 1] = "";
    for (size_t i = 0; target && target[i] && i < TARGET_MAX; i++)
        shown[i] = target[i] > 0x1f && target[i] < 0x7f ? target[i] : '?';
    RVD_BASE_JOIN(where, sizeof where, "dial ", who, target ? " to " : NULL, shown, ": ");
    rvd_stream_fail_in(err, where);
}

// Asks the engine for a stream. The dial is over, asked, or waits for room.
static void rvd_stream_dial_ask_locked(revdial_session *s, rvd_stream_dial *d)
{
    revdial_dial_opts opts = *d->opts;
    revdial_engine_info info;
    revdial_stream *st;
    int is_early;
    int64_t id, left_ms = (d->deadline_us - rvd_sys_now_us()) / 1000;
    if (d->state == RVD_STREAM_DIAL_OVER) rvd_stream_dial_become(d, RVD_STREAM_DIAL_WAITING);
    rvd_base_link_remove(&d->link);
    memset(&d->err, 0, sizeof d->err);
    d->retry_safe = 1;  // until something has been sent
    if (!rvd_stream_is_up(s)) {
        rvd_stream_dial_fail_locked(s, d, s->why.code ? s->why.code : REVDIAL_ECLOSED,
                                    s->why.code ? s->why.msg : "the session is not up");
        return;
    }
    opts.timeout_ms = d->deadline_us == INT64_MAX ? -1 : left_ms < 1 ? 1 : (int)left_ms;
    revdial_engine_get_info(s->engine, &info);
    is_early = opts.flags & REVDIAL_DIAL_EARLY || !(info.features & REVDIAL_FEATURE_PROMPTACK);
    d->holds_early = !is_early && rvd_stream_dial_holds(d, &info);
    if (d->holds_early) opts.early_len = 0;
    st = rvd_stream_new_locked(s);
    id = st ? revdial_engine_open(s->engine, &opts, st) : REVDIAL_ENOMEM;
    if (id > 0) {
        st->id = (uint32_t)id;
        st->is_dialled = 1;
        d->st = st;
        d->stream_id = st->id;
        d->session_id = s->id;
        d->retry_safe = !opts.early_len;
        rvd_stream_dial_become(d, RVD_STREAM_DIAL_ASKED);
        rvd_stream_sink_set_locked(st, rvd_stream_dial_sink, d, 0);
        if (is_early) rvd_stream_dial_sink(st, 0);
        return;
    }
    if (st) rvd_stream_free_locked(st);
    if (id == REVDIAL_EAGAIN) {
        rvd_base_link_push(&s->dials_waiting, &d->link);
        return;
    }
    if (id == REVDIAL_EDRAINING) {  // of its own accord, if it has run out of ids
        rvd_stream_drain_locked(s);
        rvd_stream_kick_locked(s);
    }
    d->retry_safe = id != REVDIAL_EINVAL && id != REVDIAL_ENOMEM;
    rvd_stream_dial_fail_locked(s, d, (int)id, rvd_stream_open_text((int)id, d->opts));
}

// The engine has room again.
static void rvd_stream_dials_retry_locked(revdial_session *s)
{
    rvd_base_link *l = s->dials_waiting.prev;
    int last = 0;
    while (!last && !rvd_base_link_is_alone(&s->dials_waiting)) {
        rvd_stream_dial *d = RVD_BASE_OWNER(s->dials_waiting.next, rvd_stream_dial, link);
        last = &d->link == l;
        rvd_stream_dial_ask_locked(s, d);
        if (d->state == RVD_STREAM_DIAL_WAITING) break;
    }
}

// Its owner gives up: the backend is told to stop connecting.
static void rvd_stream_dial_abandon_locked(revdial_session *s, rvd_stream_dial *d, int reset,
                                           int code, const char *text)
{
    if (d->state == RVD_STREAM_DIAL_OVER) return;
    d->retry_safe = 0;
    if (d->st) revdial_engine_reset(s->engine, d->st->id, reset);
    rvd_stream_dial_fail_locked(s, d, code, text);
}

// Another session is to be asked in its place: the backend is told not to go on.
static void rvd_stream_dial_move_locked(revdial_session *s, rvd_stream_dial *d)
{
    if (!d->retry_safe) return;
    if (d->st) revdial_engine_reset(s->engine, d->st->id, REVDIAL_RESET_CANCEL);
    rvd_stream_dial_fail_locked(s, d, REVDIAL_ETIMEDOUT,
                                "the backend answers neither the dial nor a ping");
}

// Loop thread, without the lock: dials that it has not answered are better made elsewhere.
static void rvd_stream_dials_move(revdial_session *s)
{
    rvd_base_link *next;
    rvd_stream_lock(s);
    while (!rvd_base_link_is_alone(&s->dials_waiting))
        rvd_stream_dial_move_locked(s,
                                    RVD_BASE_OWNER(s->dials_waiting.next, rvd_stream_dial, link));
    for (rvd_base_link *l = s->streams.next; l != &s->streams; l = next) {
        revdial_stream *st = RVD_BASE_OWNER(l, revdial_stream, link);
        next = l->next;  // st goes
        if (st->sink == rvd_stream_dial_sink) rvd_stream_dial_move_locked(s, st->sink_ud);
    }
    rvd_stream_flush_soon_locked(s);
    rvd_stream_unlock(s);
}

static int64_t rvd_stream_deadline(int timeout_ms)
{
    if (timeout_ms < 0) return INT64_MAX;
    return rvd_sys_now_us() + (int64_t)timeout_ms * 1000;
}

// The time of a dial begins. d->opts is set.
static void rvd_stream_dial_begin(rvd_stream_dial *d)
{
    d->start_us = rvd_sys_now_us();
    d->deadline_us = rvd_stream_deadline(d->opts->timeout_ms ? d->opts->timeout_ms : 10000);
}

// Dials on one session and waits. Sets d's result.
static void rvd_stream_dial_blocking(revdial_session *s, rvd_stream_dial *d)
{
    rvd_stream_waiter w;
    rvd_sys_latch latch;
    int r = rvd_sys_latch_init(&latch);
    if (r < 0) {
        rvd_sys_fail(&d->err, REVDIAL_ESYS, -r, NULL, "no condition variable");
        return;
    }
    memset(&w, 0, sizeof w);
    w.latch = &latch;
    rvd_base_link_init(&d->link);
    d->waiter = &w;
    rvd_stream_lock(s);
    rvd_stream_dial_ask_locked(s, d);
    rvd_stream_flush_locked(s);
    rvd_stream_sleep_locked(s, &w, d->deadline_us);
    rvd_stream_dial_abandon_locked(s, d, REVDIAL_RESET_TIMEOUT, REVDIAL_ETIMEDOUT,
                                   "the dial timed out: the backend has not answered");
    rvd_stream_flush_locked(s);
    rvd_stream_unlock(s);
    rvd_sys_latch_free(&latch);
}

revdial_stream *revdial_session_dial(revdial_session *s, const revdial_dial_opts *opts,
                                     revdial_err *err)
{
    static const revdial_dial_opts none;
    rvd_stream_dial d;
    memset(&d, 0, sizeof d);
    if (s && rvd_stream_is_child(s)) {
        rvd_stream_fail(err, REVDIAL_ECLOSED, 0, RVD_STREAM_CHILD);
        return NULL;
    }
    if (!s || rvd_stream_is_on_loop(s)) {
        rvd_stream_fail(err, s ? REVDIAL_EDEADLK : REVDIAL_EINVAL, 0,
                        s ? "dial: would block its own I/O thread" : "session: NULL");
        return NULL;
    }
    d.opts = opts ? opts : &none;
    if (rvd_stream_dial_check(d.opts, err)) return NULL;
    rvd_stream_dial_begin(&d);
    rvd_stream_dial_blocking(s, &d);
    if (!d.st)
        rvd_stream_dial_fail_in(&d.err, s->host->is_proxy ? s->name : s->peer, d.opts->target);
    if (err) *err = d.err;
    return d.st;
}

// ---- events of the engine ----

static void rvd_stream_on_dead_locked(revdial_session *s, const revdial_event *ev)
{
    rvd_stream_dead_locked(s);
    if (s->host->on_dead_locked) s->host->on_dead_locked(s, ev);
    if (s->why.code) return;
    if (rvd_stream_is_shaking(s))
        rvd_stream_fail(&s->why, ev->code, 0, "the TLS handshake was not over in time");
    else
        rvd_stream_fail(&s->why, ev->code, 0, ev->text);
}

static void rvd_stream_on_event_locked(revdial_session *s, const revdial_event *ev)
{
    revdial_stream *st = ev->ud;
    switch (ev->type) {
    case REVDIAL_EV_AUTH:
        s->host->on_request_locked(s, ev->auth);
        s->pend |= RVD_STREAM_PEND_AUTH;
        break;
    case REVDIAL_EV_UP:
        rvd_stream_become(s, RVD_STREAM_UP);
        s->pend |= RVD_STREAM_PEND_UP;
        break;
    case REVDIAL_EV_GOAWAY:
        rvd_stream_drain_locked(s);
        s->pend |= RVD_STREAM_PEND_GOAWAY;
        break;
    case REVDIAL_EV_SILENT:
        atomic_store_explicit(&s->is_silent, ev->code, memory_order_relaxed);
        s->pend |= ev->code ? RVD_STREAM_PEND_SILENT : 0;
        break;
    case REVDIAL_EV_DEAD: rvd_stream_on_dead_locked(s, ev); break;
    case REVDIAL_EV_OPEN: rvd_stream_incoming_locked(s, ev); break;
    case REVDIAL_EV_ACCEPTED: rvd_stream_wake_locked(st, RVD_STREAM_WAKE_WR); break;
    case REVDIAL_EV_SENT:
        if (st) rvd_stream_queue_write_locked(st);
        break;
    case REVDIAL_EV_READABLE:
        rvd_stream_deliver_locked(st);
        rvd_stream_wake_locked(st, RVD_STREAM_WAKE_RD);
        break;
    case REVDIAL_EV_FIN: rvd_stream_wake_locked(st, RVD_STREAM_WAKE_RD); break;
    case REVDIAL_EV_WRITABLE:
        if (!st) {
            rvd_stream_dials_retry_locked(s);
        } else {
            st->quiet = 0;
            if (!rvd_stream_queue_write_locked(st)) rvd_stream_wake_locked(st, RVD_STREAM_WAKE_WR);
        }
        break;
    case REVDIAL_EV_RESET:
        st->reset_code = ev->code;
        rvd_stream_wake_locked(st, RVD_STREAM_WAKE_RD | RVD_STREAM_WAKE_WR | RVD_STREAM_WAKE_END);
        break;
    default: break;  // EV_RTT: revdial_engine_get_info() has it
    }
}

// Runs the sinks of streams to which something happened.
static void rvd_stream_sinks_locked(rvd_base_link *kicked)
{
    while (!rvd_base_link_is_alone(kicked)) {
        revdial_stream *st = RVD_BASE_OWNER(kicked->next, revdial_stream, kicked);
        unsigned events = st->kick_events;
        rvd_base_link_remove(&st->kicked);
        st->kick_events = 0;
        if (st->sink) st->sink(st, events);
    }
}

// Drains the engine's events. On the loop thread each is acted on before the next, while its
// payload still lies in the input buffer; elsewhere relays and the session wait for the loop.
static void rvd_stream_events_locked(revdial_session *s)
{
    int on_loop = rvd_stream_on_loop_locked(s);
    revdial_event ev;
    while (revdial_engine_event(s->engine, &ev)) {
        rvd_stream_on_event_locked(s, &ev);
        rvd_stream_sinks_locked(&s->kicked[0]);
        if (on_loop) rvd_stream_sinks_locked(&s->kicked[1]);
    }
    if (!on_loop && (s->pend || !rvd_base_link_is_alone(&s->kicked[1]))) rvd_stream_kick_locked(s);
    // The code that ends `blocked` flushes.
    if (on_loop && s->has_queued && !s->sending && !s->blocked) rvd_stream_flush_soon_locked(s);
}

// ---- sending ----

// The connection broke.
static void rvd_stream_broken_locked(revdial_session *s, const revdial_err *err)
{
    if (s->state < RVD_STREAM_DEAD && !s->why.code) s->why = *err;
    rvd_stream_dead_locked(s);
}

// Loop thread: a call wants to hear of the socket.
static void rvd_stream_wait_io(revdial_session *s, int want)
{
    s->io.ready &= ~(unsigned)(want == REVDIAL_WANT_READ ? RVD_LOOP_READ : RVD_LOOP_WRITE);
}

// The socket takes no more, so the loop watches for room. Where a write waits for a read there is
// room, and arriving bytes wake the loop anyway.
static void rvd_stream_blocked_locked(revdial_session *s, int want)
{
    s->blocked = 1;
    s->pace.full_at_us = rvd_sys_now_us();
    s->pace.was_blocked |= want == REVDIAL_WANT_WRITE;
    if (rvd_stream_on_loop_locked(s) && want == REVDIAL_WANT_WRITE) rvd_stream_wait_io(s, want);
    rvd_reader_interrupt(&s->reader);
    rvd_reader_lease_end(&s->reader);
    if (s->reader.state != RVD_READER_THREAD && !rvd_stream_on_loop_locked(s))
        rvd_stream_kick_locked(s);  // only the loop may say that it wants to know
}

// The socket may take more.
static void rvd_stream_unblock_locked(revdial_session *s)
{
    if (!s->blocked) return;
    s->blocked = 0;
    s->pace.full_us += rvd_sys_now_us() - s->pace.full_at_us;
}

// One send of what is queued, with the lock released. Returns 0 when there is no more to do now.
static int rvd_stream_send_locked(revdial_session *s, int *released)
{
    struct iovec iov[RVD_STREAM_IOV];
    revdial_err err;
    ptrdiff_t n;
    int count = revdial_engine_output(s->engine, iov, RVD_STREAM_IOV), is_pending;
    if (!count && !rvd_transport_holds(s->transport)) return 0;
    *released = 1;
    rvd_stream_unlock(s);
    n = rvd_stream_send(s, iov, count, &err);
    is_pending = s->transport && rvd_transport_pending(s->transport);
    rvd_stream_lock(s);
    if (is_pending) rvd_stream_kick_locked(s);
    if (rvd_transport_is_wanting(n)) {
        revdial_engine_sent(s->engine, 0);  // none of it is on its way
        rvd_stream_blocked_locked(s, (int)n);
        return 0;
    }
    if (n < 0) {
        rvd_stream_broken_locked(s, &err);
        return 0;
    }
    s->pace.bytes += (uint64_t)n;
    s->wire_bytes += (uint64_t)n;
    revdial_engine_sent(s->engine, (size_t)n);
    rvd_stream_events_locked(s);
    return 1;
}

// Has the peer's system acknowledged something since the last look, and has more to? While bytes
// move so, the peer is slow and not dead. One that has acknowledged all owes an answer instead.
// Progress counts from the last look on, so that a dying peer is not given more time than stated.
static void rvd_stream_look_locked(revdial_session *s, int64_t now_us)
{
    int64_t acked;
    int unsent;
    if (s->look.next_us && now_us < s->look.next_us) return;
    if (!revdial_engine_is_waiting(s->engine)) {
        s->look.next_us = 0;
        return;
    }
    unsent = s->sending ? -1 : rvd_sys_unsent(s->fd);
    if (unsent >= 0) {
        acked = (int64_t)s->wire_bytes - unsent - (int64_t)rvd_transport_holds(s->transport);
        if (s->look.next_us && unsent && acked > s->look.acked_bytes)
            revdial_engine_acked(s->engine, s->look.last_us);
        s->look.acked_bytes = acked;
        s->look.last_us = now_us;
    }
    s->look.next_us = now_us + s->look.step_us;
}

// Returns when to call again, -1 never.
static int64_t rvd_stream_tick_locked(revdial_session *s, int64_t now_us)
{
    int64_t at;
    rvd_stream_look_locked(s, now_us);
    at = revdial_engine_tick(s->engine, now_us);
    return at >= 0 && s->look.next_us && s->look.next_us < at ? s->look.next_us : at;
}

// What a thread has done may want the timer earlier, and only the loop sets it.
static void rvd_stream_rearm_locked(revdial_session *s, int64_t now_us)
{
    int64_t at = rvd_stream_tick_locked(s, now_us);
    rvd_stream_events_locked(s);  // room that was promised and not used is another's now
    if (s->has_queued && !s->sending && !s->blocked) rvd_stream_kick_locked(s);
    if (at >= 0 && (!s->armed_us || at < s->armed_us)) rvd_stream_kick_locked(s);
}

// Sends all that is queued, unless another thread is sending: it takes these frames along.
// Returns 1 if the lock was released meanwhile: what the caller knew may be old.
static int rvd_stream_flush_locked(revdial_session *s)
{
    int rounds = 0, released = 0;
    if (s->sending || s->blocked || s->state == RVD_STREAM_DOWN) return 0;
    s->sending = 1;
    do {
        s->has_queued = 0;
        while (rounds < RVD_STREAM_ROUNDS && rvd_stream_send_locked(s, &released)) rounds++;
        rvd_stream_events_locked(s);
    } while (s->has_queued && !s->blocked && rounds < RVD_STREAM_ROUNDS);
    if (rounds == RVD_STREAM_ROUNDS) rvd_stream_kick_locked(s);
    s->has_queued = s->sending = 0;
    // The last stream of a drain may have ended just now, and only the loop sets timers.
    if (s->state == RVD_STREAM_CLOSING ||
        (s->state >= RVD_STREAM_DRAINING && !rvd_stream_on_loop_locked(s)))
        rvd_stream_kick_locked(s);
    // Room that this has made was promised to somebody, for a while only.
    if (released && s->reader.waiting && rvd_stream_is_up(s) && !rvd_stream_on_loop_locked(s))
        rvd_stream_rearm_locked(s, rvd_sys_now_us());
    return released;
}

// A thread that polls was told of several streams at once, and is at them: what it writes goes out
// with what it writes to the last of them, when it polls again, or when the loop gets to it,
// whatever comes first.
static int rvd_stream_batch_goes_on_locked(const revdial_session *s)
{
    return s->batch.left > 1 && pthread_equal(s->batch.thread, pthread_self());
}

// A call has written. It sends, or leaves that to the thread that ends `blocked` or sends now.
static void rvd_stream_written_locked(revdial_session *s)
{
    if (rvd_stream_batch_goes_on_locked(s)) {
        s->batch.left--;
        if (!s->sending && !s->blocked) rvd_stream_kick_locked(s);
        return;
    }
    s->batch.left = 0;
    rvd_stream_flush_locked(s);
}

// Is there a call's writing that was left, so that what else there is may go with it?
static int rvd_stream_batch_is_open_locked(const revdial_session *s)
{
    return rvd_stream_batch_goes_on_locked(s) && (s->kick_queued || s->sending);
}

// ---- the loop's part ----

static void rvd_stream_moved(revdial_session *s)
{
    int64_t since_us = rvd_loop_now(s->loop) - s->start_us;  // < 0: since this pass began
    unsigned ms = since_us > 0 ? (unsigned)(since_us / 1000) : 0;
    atomic_store_explicit(&s->handshake.moved_ms, ms, memory_order_relaxed);
}

// The peer's bytes have come, or have made room for ours.
static void rvd_stream_moves(revdial_session *s)
{
    if (s->state != RVD_STREAM_HANDSHAKE || s->handshake.moves == RVD_STREAM_MOVES) return;
    s->handshake.moves++;
    rvd_stream_moved(s);
}

// The time on the clock of its handshake: waiting for us is not the peer's delay.
static int64_t rvd_stream_shake_clock(const revdial_session *s)
{
    int64_t now_us = rvd_loop_now(s->loop);
    if (s->state != RVD_STREAM_HANDSHAKE) return now_us;
    if (s->handshake.since_us) now_us = s->handshake.since_us;
    return now_us - s->handshake.waited_us;
}

static void rvd_stream_queue_set_locked(revdial_session *s, int bytes)
{
    if (bytes < RVD_STREAM_QUEUE_THIN) bytes = RVD_STREAM_QUEUE_THIN;
    if (bytes > RVD_STREAM_QUEUE_MAX) bytes = RVD_STREAM_QUEUE_MAX;
    if (bytes == s->pace.queue_bytes) return;
    s->pace.queue_bytes = bytes;
    rvd_sys_set_notsent_lowat(s->fd, bytes);
    revdial_engine_set_output_max(s->engine, (size_t)bytes);
}

static void rvd_stream_send_buffer_locked(revdial_session *s, int bytes)
{
    if (bytes > s->pace.send_buffer / 4 * 3 && bytes < s->pace.send_buffer / 4 * 5) return;
    s->pace.send_buffer = bytes;
    rvd_sys_set_send_buffer(s->fd, bytes);
}

// Bounds what stands between a thin link and our pings. Where nothing moves there is no measure.
static void rvd_stream_thin_locked(revdial_session *s, int64_t now)
{
    int64_t passed = now - s->pace.thin_us, full = s->pace.full_us;
    uint64_t bytes = s->wire_bytes - s->pace.thin_bytes, want;
    if (passed < RVD_STREAM_THIN_US || !bytes) return;
    if (s->blocked) full += now - s->pace.full_at_us;
    want = bytes * RVD_STREAM_THIN_SECONDS * 1000000 / (uint64_t)passed;
    s->pace.thin_us = s->pace.full_at_us = now;
    s->pace.thin_bytes = s->wire_bytes;
    s->pace.full_us = 0;
    if (full < passed / 4 * 3 || want >= RVD_STREAM_THIN_BYTES) {
        s->pace.thin_times = 0;
        if (s->pace.send_buffer && want >= RVD_STREAM_THIN_BYTES)
            rvd_stream_send_buffer_locked(s, 0);
        return;
    }
    if (++s->pace.thin_times < RVD_STREAM_THIN_TIMES) return;
    rvd_stream_send_buffer_locked(s, (int)rvd_base_later((int64_t)want, RVD_STREAM_QUEUE_MIN));
}

static int rvd_stream_queue_of(uint64_t rate)
{
    uint64_t bytes = rate / RVD_STREAM_PACE_PART, thin = rate / RVD_STREAM_THIN_PART;
    if (bytes >= RVD_STREAM_QUEUE_MIN) return (int)rvd_base_min((size_t)bytes, 1 << 20);
    return thin < RVD_STREAM_QUEUE_MIN ? (int)thin : RVD_STREAM_QUEUE_MIN;
}

// Follows the measured rate. Only a socket that was full tells what the link can carry; while it
// never is, more may wait.
static void rvd_stream_pace_locked(revdial_session *s, int64_t now)
{
    int64_t passed = now - s->pace.since_us;
    uint64_t rate;
    if (passed < RVD_STREAM_PACE_US) return;
    rvd_stream_thin_locked(s, now);
    rate = s->pace.bytes * 1000000 / (uint64_t)passed;
    if (s->pace.was_blocked && s->pace.bytes)
        rvd_stream_queue_set_locked(s, rvd_stream_queue_of(rate));
    else if (rate / RVD_STREAM_PACE_PART > (uint64_t)s->pace.queue_bytes)
        rvd_stream_queue_set_locked(s, 2 * s->pace.queue_bytes);
    s->pace.since_us = now;
    s->pace.bytes = 0;
    s->pace.was_blocked = s->blocked;
}

static void rvd_stream_timer_arm_locked(revdial_session *s)
{
    int64_t clock_us = rvd_stream_shake_clock(s);
    int64_t at = rvd_stream_tick_locked(s, clock_us);
    if (at >= 0) at += rvd_loop_now(s->loop) - clock_us;
    if (s->end.drain_until_us && (at < 0 || s->end.drain_until_us < at)) at = s->end.drain_until_us;
    if (at < 0) at = rvd_loop_now(s->loop) + 60000000;
    if (at == s->armed_us) return;
    // A refused timer is tried again by the next event; the socket's own timeout backs it up.
    if (rvd_loop_timer_set(s->loop, &s->timer, at) == 0) s->armed_us = at;
}

// Every stream and dial of the session learns that it is over.
static void rvd_stream_end_all_locked(revdial_session *s)
{
    for (rvd_base_link *l = s->streams.next; l != &s->streams; l = l->next)
        rvd_stream_wake_locked(RVD_BASE_OWNER(l, revdial_stream, link),
                               RVD_STREAM_WAKE_RD | RVD_STREAM_WAKE_WR | RVD_STREAM_WAKE_END);
    while (!rvd_base_link_is_alone(&s->dials_waiting)) {
        rvd_stream_dial *d = RVD_BASE_OWNER(s->dials_waiting.next, rvd_stream_dial, link);
        rvd_stream_dial_fail_locked(s, d, s->why.code, s->why.msg);
    }
    rvd_stream_sinks_locked(&s->kicked[0]);
    rvd_stream_sinks_locked(&s->kicked[1]);
}

// Closes the descriptor, unless a thread is at it: then that thread calls again. Has to be
// followed by rvd_stream_pend_run().
static void rvd_stream_close_locked(revdial_session *s)
{
    if (s->state == RVD_STREAM_DOWN) return;
    if (s->state != RVD_STREAM_CLOSING) rvd_stream_become(s, RVD_STREAM_CLOSING);
    rvd_reader_interrupt(&s->reader);
    if (s->sending || s->reader.state == RVD_READER_THREAD) return;
    rvd_stream_become(s, RVD_STREAM_DOWN);
    rvd_base_link_remove(&s->link);
    rvd_loop_remove(s->loop, &s->io);
    rvd_loop_timer_stop(s->loop, &s->timer);
    rvd_loop_timer_stop(s->loop, &s->reader.lease);
    // Somebody closed it behind our back: the number may be somebody else's by now.
    if (s->why.sys != EBADF && s->why.sys != ENOTSOCK) rvd_sys_close_both(s->fd);
    s->pend |= RVD_STREAM_PEND_CLOSED;
    if (s->why.code == REVDIAL_EDRAINING) s->pend |= RVD_STREAM_PEND_DOWN;
}

// While it lingers: when all output is sent, finishes our direction; then reads for a moment, so
// that our close does not make the system drop bytes that it has not delivered.
static void rvd_stream_linger_locked(revdial_session *s)
{
    struct iovec rest;
    int64_t wait_us = s->end.is_brief ? RVD_STREAM_HURRY_US : RVD_STREAM_LINGER_US;
    int r, is_mute = s->transport && rvd_transport_state(s->transport) != RVD_TRANSPORT_OPEN;
    if (s->state != RVD_STREAM_LINGER || s->sending) return;
    // Without a transport that works there is nothing to say, but its own last word may be on its
    // way: why the handshake failed.
    if (!is_mute && s->blocked) return;
    if (!is_mute &&
        (rvd_transport_holds(s->transport) || revdial_engine_output(s->engine, &rest, 1)))
        return;  // the next flush goes on
    s->sending = 1;
    rvd_stream_unlock(s);
    r = rvd_stream_send_end(s);
    rvd_stream_lock(s);
    s->sending = 0;
    if (rvd_transport_is_wanting(r)) {
        s->blocked = 1;
        s->pace.full_at_us = rvd_loop_now(s->loop);
        if (r == REVDIAL_WANT_WRITE) rvd_stream_wait_io(s, r);
        return;
    }
    rvd_stream_become(s, RVD_STREAM_SAID);
    if (s->transport) {  // the socket itself is read from now on
        s->io.ready |= RVD_LOOP_READ;
        rvd_loop_again(s->loop, &s->io);
    }
    if (r < 0 || rvd_loop_timer_set(s->loop, &s->timer, rvd_loop_now(s->loop) + wait_us) < 0)
        rvd_stream_close_locked(s);
}

// Dead: every stream learns of it at once; what is left to say goes out as the peer takes it.
static void rvd_stream_die(revdial_session *s)
{
    revdial_engine_info info;
    int64_t wait_us;
    rvd_stream_lock(s);
    rvd_stream_become(s, RVD_STREAM_LINGER);
    wait_us = s->end.is_brief ? RVD_STREAM_HURRY_US : RVD_STREAM_LAST_US;
    revdial_engine_terminate(s->engine);
    rvd_stream_events_locked(s);
    rvd_stream_end_all_locked(s);
    rvd_reader_lease_end(&s->reader);
    revdial_engine_get_info(s->engine, &info);
    // A WebSocket peer that has said Close waits for ours.
    if (info.carrier == REVDIAL_CARRIER_WEBSOCKET && !s->why.sys) rvd_stream_flush_locked(s);
    if (s->why.sys || s->why.code == REVDIAL_ELOST ||
        rvd_loop_timer_set(s->loop, &s->timer, rvd_loop_now(s->loop) + wait_us) < 0) {
        rvd_stream_close_locked(s);
    } else {
        rvd_stream_flush_locked(s);
        rvd_stream_linger_locked(s);
    }
    // A drained session is over when its last byte is out and it is closed, any other one now.
    if (s->why.code != REVDIAL_EDRAINING) s->pend |= RVD_STREAM_PEND_DOWN;
    rvd_stream_unlock(s);
}

// Dials that are over call back here, without the lock.
static void rvd_stream_dials_done(revdial_session *s)
{
    rvd_stream_lock(s);
    while (!rvd_base_link_is_alone(&s->dials_over)) {
        rvd_stream_dial *d = RVD_BASE_OWNER(s->dials_over.next, rvd_stream_dial, link);
        rvd_base_link_remove(&d->link);
        rvd_stream_unlock(s);
        d->done(d);
        rvd_stream_lock(s);
    }
    rvd_stream_unlock(s);
}

// What the events of a pass ask of the owner, in order, without the lock.
static void rvd_stream_pend_run(revdial_session *s)
{
    unsigned pend;
    do {
        rvd_stream_lock(s);
        pend = s->pend;
        s->pend = 0;
        rvd_stream_unlock(s);
        if (pend & RVD_STREAM_PEND_AUTH) s->host->on_auth(s);
        if (pend & RVD_STREAM_PEND_UP) s->host->on_up(s);
        if (pend & RVD_STREAM_PEND_GOAWAY) s->host->on_goaway(s);
        if (pend & RVD_STREAM_PEND_SILENT && s->host->on_silent) s->host->on_silent(s);
        if (pend & RVD_STREAM_PEND_DEAD) rvd_stream_die(s);
        rvd_stream_dials_done(s);
        if (pend & RVD_STREAM_PEND_DOWN) s->host->on_down(s, &s->why);
        if (pend & RVD_STREAM_PEND_CLOSED) {
            rvd_transport_close(s->transport);
            rvd_stream_work_end(s->group->work);  // from here on the owner may be gone
            revdial_session_unref(s);             // the loop's; the caller has one of its own
        }
    } while (pend);
}

// The same between two events of a read. Nobody stays asleep for the owner's callbacks.
static void rvd_stream_pend_run_locked(revdial_session *s)
{
    s->wakeups.holds = 0;
    rvd_stream_unlock(s);
    rvd_stream_release_held(s);
    rvd_stream_pend_run(s);
    rvd_stream_lock(s);
}

// All events of one read. The lock is released where the owner has to act before the rest.
static void rvd_stream_feed_locked(revdial_session *s, const unsigned char *p, size_t len)
{
    size_t at = 0;
    while (at < len && s->state < RVD_STREAM_LINGER) {
        ptrdiff_t used =
            revdial_engine_input(s->engine, p + at, len - at, rvd_stream_shake_clock(s));
        rvd_stream_events_locked(s);
        if (s->pend || !rvd_base_link_is_alone(&s->dials_over)) rvd_stream_pend_run_locked(s);
        if (used < 0) return;
        at += (size_t)used;
    }
}

// What came with a new session. Its caller has begun the loop's reading before the session could be
// up, so that no thread reads what follows before this is in.
static void rvd_stream_feed_early(revdial_session *s, const unsigned char *p, size_t len)
{
    rvd_stream_lock(s);
    rvd_stream_feed_locked(s, p, len);
    rvd_reader_loop_end(&s->reader);
    rvd_stream_unlock(s);
    rvd_stream_pend_run(s);
}

// The loop is about to read. Not while a thread does.
static int rvd_stream_loop_claims(revdial_session *s)
{
    int claimed;
    rvd_stream_lock(s);
    claimed = rvd_reader_loop_begin(&s->reader);
    rvd_stream_unlock(s);
    return claimed;
}

// A step of a transport's handshake may take milliseconds. Once a pass of the loop has spent its
// time on them, the next in line goes on in the next pass: meanwhile the bytes of all others move.
// Those that have begun go first: of a thousand that come at once some are soon done, instead of
// all at the end, when their patience is.
static int rvd_stream_shake_waits(revdial_session *s)
{
    rvd_stream_group *g = s->group;
    uint64_t pass = rvd_loop_passes(s->loop);
    int is_next = s->handshake.has_shaken || g->late_pass + 1 < pass;
    if (g->shake_pass != pass) g->shake_us = 0;
    g->shake_pass = pass;
    if (is_next && g->shake_us < RVD_STREAM_SHAKE_US) {
        if (s->handshake.since_us)
            s->handshake.waited_us += rvd_loop_now(s->loop) - s->handshake.since_us;
        s->handshake.since_us = 0;
        return 0;
    }
    if (s->handshake.has_shaken) g->late_pass = pass;
    if (!s->handshake.since_us) s->handshake.since_us = rvd_loop_now(s->loop);
    rvd_stream_moved(s);
    rvd_loop_again(s->loop, &s->io);
    return 1;
}

// Has the peer said nothing, not even to the transport? Asked before that reads, until it has.
static int rvd_stream_is_silent(revdial_session *s)
{
    uint8_t byte;
    if (!s->handshake.has_shaken) s->handshake.has_shaken = rvd_sys_peek(s->fd, &byte, 1) > 0;
    return !s->handshake.has_shaken;
}

// The transport's handshake. Returns 1 when bytes may move.
static int rvd_stream_shake(revdial_session *s)
{
    revdial_err err;
    int64_t begun_us;
    int r, is_silent, is_first = !s->handshake.has_shaken;
    if (!rvd_stream_is_shaking(s)) return 1;
    if (s->state >= RVD_STREAM_LINGER) return 0;
    if (rvd_stream_shake_waits(s)) return 0;
    is_silent = rvd_stream_is_silent(s);
    begun_us = rvd_sys_now_us();
    if (is_first && s->handshake.waited_us && s->io.ready & (RVD_LOOP_EOF | RVD_LOOP_HUP))
        r = rvd_stream_fail(&err, REVDIAL_ELOST, 0,
                            "the peer closed the connection while it was queued");
    else
        r = rvd_transport_handshake(s->transport, &err);
    s->group->shake_us += rvd_sys_now_us() - begun_us;
    if (r == 0) return 1;
    if (rvd_transport_is_wanting(r)) {
        rvd_stream_wait_io(s, r);
        return 0;
    }
    s->handshake.left_silent = is_silent;
    rvd_stream_lock(s);
    rvd_stream_broken_locked(s, &err);
    rvd_stream_unlock(s);
    return 0;
}

// Returns 0 when there is nothing more to read now. The last one in a pass holds nobody back.
//   waits   set to 1 if a transport has to write before it can read
static int rvd_stream_read_once(revdial_session *s, int is_last, int *waits)
{
    rvd_loop *loop = s->loop;
    revdial_err err;
    ptrdiff_t n = REVDIAL_WANT_READ;
    int is_wanting;
    if (rvd_stream_loop_claims(s)) n = rvd_stream_recv(s, loop->buf, RVD_LOOP_BUFFER, &err);
    is_wanting = rvd_transport_is_wanting(n);
    rvd_stream_lock(s);
    if (s->state >= RVD_STREAM_LINGER && !is_wanting) {
        s->end.lingered += n > 0 ? (size_t)n : 0;
        if (n <= 0 || s->end.lingered > RVD_STREAM_LINGER_BYTES) rvd_stream_close_locked(s);
    } else if (n > 0) {
        int was_handshake = s->state == RVD_STREAM_HANDSHAKE || s->state == RVD_STREAM_DEAD;
        s->handshake.has_said = 1;
        s->wakeups.holds = !is_last && n >= RVD_STREAM_BURST;
        rvd_stream_feed_locked(s, loop->buf, (size_t)n);
        s->wakeups.holds = 0;
        if (was_handshake) rvd_base_wipe(loop->buf, (size_t)n);  // there was a secret in it
    } else if (n == 0) {
        revdial_engine_input(s->engine, NULL, 0, rvd_loop_now(loop));
        rvd_stream_events_locked(s);
    } else if (!is_wanting) {
        rvd_stream_broken_locked(s, &err);
    }
    if (n <= 0 && !is_wanting && !s->handshake.has_said) s->handshake.left_silent = 1;
    if (!is_wanting && s->state < RVD_STREAM_LINGER) rvd_stream_flush_soon_locked(s);
    rvd_reader_loop_end(&s->reader);
    rvd_stream_unlock(s);
    *waits = n == REVDIAL_WANT_WRITE;
    if (n <= 0) rvd_stream_wait_io(s, *waits ? REVDIAL_WANT_WRITE : REVDIAL_WANT_READ);
    if (s->transport) return n > 0;
    // A short read has emptied the socket; an end that came with it has its own edge or its mark.
    if (n > 0 && n < RVD_LOOP_BUFFER && !s->wakeups.held &&
        !(s->io.ready & (RVD_LOOP_EOF | RVD_LOOP_HUP))) {
        s->io.ready &= ~(unsigned)RVD_LOOP_READ;
        return 0;
    }
    return n > 0;
}

static void rvd_stream_on_io(rvd_loop_io *io)
{
    revdial_session *s = RVD_BASE_OWNER(io, revdial_session, io);
    int rounds = 0, open, is_shaken, waits = 0;
    revdial_session_ref(s);
    is_shaken = rvd_stream_shake(s);
    if (!s->handshake.since_us) rvd_stream_moves(s);
    if (is_shaken && (io->ready & RVD_LOOP_WRITE || s->transport)) {  // a write may wait for a read
        rvd_stream_lock(s);
        if (s->blocked) rvd_stream_flush_soon_locked(s);
        rvd_stream_unblock_locked(s);
        rvd_stream_unlock(s);
    }
    while (is_shaken && io->slot && io->ready & RVD_LOOP_READ && rounds < RVD_STREAM_ROUNDS) {
        rounds++;
        if (!rvd_stream_read_once(s, rounds == RVD_STREAM_ROUNDS, &waits)) break;
    }
    rvd_stream_release_held(s);
    rvd_stream_pend_run(s);
    open = io->slot != 0 && !waits;
    if (rvd_stream_is_shaking(s)) open = 0;
    if (open && io->ready & RVD_LOOP_READ) rvd_loop_again(s->loop, io);
    revdial_session_unref(s);
}

static void rvd_stream_on_flush(rvd_loop_flush *f)
{
    revdial_session *s = RVD_BASE_OWNER(f, revdial_session, flush);
    rvd_stream_lock(s);
    if (s->state < RVD_STREAM_LINGER) {
        rvd_stream_pace_locked(s, rvd_loop_now(s->loop));
        rvd_stream_tick_locked(s, rvd_stream_shake_clock(s));  // it may want to say something
    }
    rvd_stream_flush_locked(s);
    if (s->state < RVD_STREAM_LINGER) rvd_stream_timer_arm_locked(s);
    rvd_stream_linger_locked(s);
    rvd_stream_events_locked(s);
    rvd_stream_unlock(s);
    rvd_stream_pend_run(s);
    revdial_session_unref(s);
}

static void rvd_stream_on_timer(rvd_loop_timer *t)
{
    revdial_session *s = RVD_BASE_OWNER(t, revdial_session, timer);
    revdial_session_ref(s);
    rvd_stream_lock(s);
    s->armed_us = 0;
    if (s->state >= RVD_STREAM_LINGER) {
        rvd_stream_close_locked(s);
    } else {
        if (s->end.drain_until_us && rvd_loop_now(s->loop) >= s->end.drain_until_us) {
            if (!s->why.code)
                rvd_stream_fail(&s->why, REVDIAL_ETIMEDOUT, 0,
                                "drain: streams were still open at the timeout");
            revdial_engine_terminate(s->engine);
            s->end.drain_until_us = 0;
        }
        rvd_stream_timer_arm_locked(s);
        rvd_stream_events_locked(s);
        rvd_stream_flush_soon_locked(s);
    }
    rvd_stream_unlock(s);
    rvd_stream_pend_run(s);
    revdial_session_unref(s);
}

static void rvd_stream_on_lease(rvd_loop_timer *t)
{
    revdial_session *s = RVD_BASE_OWNER(t, revdial_session, reader.lease);
    rvd_stream_lock(s);
    rvd_reader_lease_over(&s->reader);
    if (rvd_stream_is_up(s)) rvd_reader_lease_begin(&s->reader);
    rvd_stream_unlock(s);
}

// Another thread left something for the loop.
static void rvd_stream_on_kick(rvd_loop_task *t)
{
    revdial_session *s = RVD_BASE_OWNER(t, revdial_session, kick);
    rvd_stream_lock(s);
    s->kick_queued = 0;
    if (s->blocked && s->state != RVD_STREAM_DOWN) {
        // A thread that got EAGAIN could not clear this mark. There may be room by now: try a send.
        s->io.ready &= ~(unsigned)RVD_LOOP_WRITE;
        rvd_stream_unblock_locked(s);
    }
    if (s->state == RVD_STREAM_CLOSING) rvd_stream_close_locked(s);
    rvd_stream_sinks_locked(&s->kicked[1]);
    if (rvd_stream_is_up(s)) rvd_reader_lease_begin(&s->reader);
    if (s->state != RVD_STREAM_DOWN) rvd_stream_flush_soon_locked(s);
    if (s->transport && s->state != RVD_STREAM_DOWN && rvd_transport_pending(s->transport)) {
        s->io.ready |= RVD_LOOP_READ;
        rvd_loop_again(s->loop, &s->io);
    }
    rvd_stream_unlock(s);
    rvd_stream_pend_run(s);
    revdial_session_unref(s);
}

void revdial_session_kill(revdial_session *s)
{
    if (!s || rvd_stream_is_child(s)) return;
    rvd_stream_lock(s);
    if (!s->why.code) rvd_stream_fail(&s->why, REVDIAL_ECLOSED, 0, "closed here");
    revdial_engine_terminate(s->engine);
    rvd_stream_events_locked(s);
    rvd_stream_kick_locked(s);
    rvd_stream_unlock(s);
}

// ---- a thread that reads ----

static int rvd_stream_may_drive_locked(revdial_session *s)
{
    if (s->transport || !rvd_stream_is_up(s) || s->pend) return 0;  // the loop decrypts for all
    return rvd_reader_may_begin(&s->reader, &s->heap);
}

// Bytes that a thread has read.
static void rvd_stream_drive_feed_locked(revdial_session *s, const uint8_t *p, size_t len,
                                         int64_t now_us)
{
    size_t at = 0;
    while (at < len && s->state < RVD_STREAM_LINGER) {
        ptrdiff_t used = revdial_engine_input(s->engine, p + at, len - at, now_us);
        rvd_stream_events_locked(s);
        if (used < 0) return;
        at += (size_t)used;
    }
}

static void rvd_stream_drive_read_locked(revdial_session *s, const struct iovec *iov, ptrdiff_t n,
                                         int64_t now_us)
{
    size_t own = n > 0 ? rvd_base_min((size_t)n, iov[0].iov_len) : 0;
    revdial_err err;
    if (n > 0) {
        rvd_stream_drive_feed_locked(s, iov[0].iov_base, own, now_us);
        rvd_stream_drive_feed_locked(s, iov[1].iov_base, (size_t)n - own, now_us);
    } else if (n == 0) {
        revdial_engine_input(s->engine, NULL, 0, now_us);
        rvd_stream_events_locked(s);
    } else if (n != -EAGAIN) {
        rvd_sys_fail(&err, REVDIAL_ELOST, (int)-n, NULL, "receiving from the peer failed");
        rvd_stream_broken_locked(s, &err);
    }
}

// What the loop would do at the end of its pass.
static void rvd_stream_drive_flush_locked(revdial_session *s, int64_t now_us)
{
    if (!rvd_stream_is_up(s)) return;
    rvd_stream_pace_locked(s, now_us);
    // What came in may want the timer as well, and a flush that sends nothing does not look.
    if (!rvd_stream_flush_locked(s) && rvd_stream_is_up(s)) rvd_stream_rearm_locked(s, now_us);
}

// One sleep, one read. Returns 0 or -ETIMEDOUT.
static int rvd_stream_drive_step_locked(revdial_session *s, rvd_stream_waiter *w,
                                        int64_t deadline_us)
{
    size_t own = w->buf ? revdial_engine_expected(s->engine, w->id) : 0;
    int room = s->blocked, timeout_ms = -1, spins = s->reader.spin.limit_us > 0;
    struct iovec iov[2];
    int64_t now_us, begun_us = spins ? rvd_sys_now_us() : 0;
    ptrdiff_t n;
    rvd_reader_vectors(&s->reader, iov, w->buf ? w->buf + w->got : NULL,
                       rvd_base_min(own, w->len - w->got));
    if (deadline_us != INT64_MAX) {
        int64_t left = (deadline_us - rvd_sys_now_us() + 999) / 1000;
        timeout_ms = left < 0 ? 0 : left > INT32_MAX ? INT32_MAX : (int)left;
    }
    rvd_stream_unlock(s);
    n = rvd_reader_wait(&s->reader, iov, timeout_ms, &room);
    now_us = rvd_sys_now_us();
    rvd_stream_lock(s);
    rvd_reader_woken(&s->reader, iov, n, now_us);
    if (room) rvd_stream_unblock_locked(s);
    if (spins) rvd_loop_spin_learn(&s->reader.spin, now_us - begun_us);
    rvd_stream_drive_read_locked(s, iov, n, now_us);
    if (room || !w->woken) rvd_stream_drive_flush_locked(s, now_us);
    return now_us >= deadline_us ? -ETIMEDOUT : 0;
}

// Reads for all until w is woken, or until the loop should read. Returns 0 or -ETIMEDOUT.
static int rvd_stream_drive_locked(revdial_session *s, rvd_stream_waiter *w, int64_t deadline_us)
{
    int64_t now_us = rvd_sys_now_us();
    int r = 0, asks;
    rvd_reader_begin(&s->reader, w, now_us);
    rvd_stream_rearm_locked(s, now_us);
    while (!w->woken && r == 0 && rvd_stream_is_up(s) && !s->reader.needs_loop && !s->pend)
        r = rvd_stream_drive_step_locked(s, w, deadline_us);
    asks = rvd_reader_end(&s->reader, !s->blocked && rvd_stream_is_up(s));
    // The end goes on: the loop waited for us to go, or we have seen the room for the last frames.
    if (asks || s->blocked || !rvd_stream_is_up(s)) rvd_stream_kick_locked(s);
    return r;
}

// Sleeps until w is woken, which may have been before; from then on nobody knows w.
// Returns 0 or -ETIMEDOUT.
static int rvd_stream_sleep_locked(revdial_session *s, rvd_stream_waiter *w, int64_t deadline_us)
{
    int r = 0, has_passed = 0;
    s->reader.waiting++;
    while (!w->woken && r == 0) {
        if (rvd_stream_may_drive_locked(s)) {
            r = rvd_stream_drive_locked(s, w, deadline_us);
            continue;
        }
        rvd_reader_lease_end(&s->reader);
        if (rvd_stream_is_up(s)) rvd_stream_rearm_locked(s, rvd_sys_now_us());
        rvd_stream_unlock(s);
        r = rvd_sys_latch_wait(w->latch, deadline_us == INT64_MAX ? -1 : deadline_us);
        has_passed = r == 0;
        rvd_stream_lock(s);
    }
    if (w->woken) r = 0;
    if (w->is_released && !has_passed) {
        rvd_stream_unlock(s);
        rvd_sys_latch_wait(w->latch, -1);
        rvd_stream_lock(s);
    }
    w->woken = 1;
    s->reader.waiting--;
    return r;
}

// ---- a new session ----

typedef struct rvd_stream_session_config {
    const rvd_stream_host *host;
    void *owner;
    rvd_sys_origin *origin;
    rvd_stream_group *group;
    int fd;
    const char *peer;
    const revdial_engine_config *engine;
    const revdial_tls *tls;              // NULL: none
    const char *tls_host;                // what the peer must prove to be; NULL: we are the server
    const revdial_transport *transport;  // one that is made already, instead
} rvd_stream_session_config;

static int rvd_stream_session_transport(revdial_session *s, const rvd_stream_session_config *cfg,
                                        revdial_err *err)
{
    revdial_transport t;
    int code;
    if (!cfg->tls && !cfg->transport) return REVDIAL_OK;
    if (cfg->transport) {
        t = *cfg->transport;
    } else {
        memset(&t, 0, sizeof t);
        rvd_stream_fail(err, REVDIAL_ETLS, 0, "the transport cannot be set up");
        code = cfg->tls->wrap(cfg->tls->ud, cfg->fd, cfg->tls_host, &t, err);
        if (code) return code;
    }
    s->transport = rvd_transport_new(&s->heap, &t, err);
    if (s->transport) return REVDIAL_OK;
    if (!cfg->transport) t.do_close(t.ctx);
    return REVDIAL_ENOMEM;
}

static void rvd_stream_times_set(revdial_session *s, const revdial_limits *l)
{
    int keepalive = l->keepalive_ms ? l->keepalive_ms : RVD_BASE_KEEPALIVE_MS;
    int dead = l->dead_after_ms ? l->dead_after_ms : RVD_BASE_DEAD_AFTER_MS;
    int stall = l->write_stall_ms ? l->write_stall_ms : RVD_BASE_STALL_MS;
    int64_t step = (int64_t)(dead < stall ? dead : stall) * 1000 / RVD_STREAM_LOOK_PART;
    int64_t timeout = RVD_STREAM_TIMEOUT_FACTOR * rvd_base_later(stall, (int64_t)keepalive + dead);
    if (step > RVD_STREAM_LOOK_MAX_US) step = RVD_STREAM_LOOK_MAX_US;
    s->look.step_us = rvd_base_later(step, RVD_STREAM_LOOK_MIN_US);
    s->look.timeout_ms = timeout < INT_MAX ? (int)timeout : INT_MAX;
}

// A session with one reference, not yet on its loop. NULL: err, which must not be NULL, says why;
// fd and transport are still the caller's.
static revdial_session *rvd_stream_session_new(const rvd_stream_session_config *cfg,
                                               revdial_err *err)
{
    rvd_heap heap = {cfg->engine->alloc, cfg->engine->alloc_ud, 0};
    revdial_session *s = rvd_base_alloc(&heap, sizeof *s);
    if (!s) {
        rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for a session");
        return NULL;
    }
    s->member = rvd_base_alloc(&heap, cfg->host->member_size);
    s->engine = s->member ? revdial_engine_new(cfg->engine, rvd_sys_now_us(), err) : NULL;
    if (!s->engine || pthread_mutex_init(&s->lock, NULL)) {
        if (!s->member) rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for a session");
        if (s->engine) rvd_stream_fail(err, REVDIAL_ESYS, 0, "no mutex for a session");
        revdial_engine_free(s->engine);
        rvd_base_free(&heap, s->member, cfg->host->member_size);
        rvd_base_free(&heap, s, sizeof *s);
        return NULL;
    }
    atomic_init(&s->refs, 1);
    s->heap = heap;
    s->host = cfg->host;
    s->owner = cfg->owner;
    s->origin = rvd_sys_origin_ref(cfg->origin);
    atomic_init(&s->stream_count, 0);
    atomic_init(&s->state, RVD_STREAM_HANDSHAKE);
    atomic_init(&s->handshake.moved_ms, 0);
    s->group = cfg->group;
    s->loop = cfg->group->loop;
    rvd_reader_init(&s->reader, s->loop, &s->io);
    s->fd = cfg->fd;
    s->id = cfg->engine->session_id;
    s->start_us = rvd_sys_now_us();
    rvd_stream_times_set(s, &cfg->engine->limits);
    RVD_BASE_JOIN(s->peer, sizeof s->peer, cfg->peer);
    rvd_base_link_init(&s->link);
    rvd_base_link_init(&s->streams);
    rvd_base_link_init(&s->kicked[1]);
    rvd_base_link_init(&s->kicked[0]);
    rvd_base_link_init(&s->dials_waiting);
    rvd_base_link_init(&s->dials_over);
    s->io.fd = cfg->fd;
    s->io.run = rvd_stream_on_io;
    s->timer.run = rvd_stream_on_timer;
    s->reader.lease.run = rvd_stream_on_lease;
    s->wakeups.last = &s->wakeups.first;
    s->flush.run = rvd_stream_on_flush;
    s->kick.run = rvd_stream_on_kick;
    if (!rvd_stream_session_transport(s, cfg, err)) return s;
    revdial_session_unref(s);
    return NULL;
}

// Its owner is closing: a short time is left for the last frames.
static void rvd_stream_kill_soon(revdial_session *s)
{
    rvd_stream_lock(s);
    s->end.is_brief = 1;
    // Last frames of a drain may still be on their way out: they get some seconds.
    if (s->state == RVD_STREAM_LINGER || s->state == RVD_STREAM_SAID)
        rvd_loop_timer_set(s->loop, &s->timer,
                           rvd_loop_now(s->loop) + (s->state == RVD_STREAM_SAID
                                                        ? RVD_STREAM_HURRY_US
                                                        : RVD_STREAM_LINGER_US));
    rvd_stream_unlock(s);
    revdial_session_kill(s);
}

// Puts it on its loop, whose thread calls this; the loop then holds the reference.
// Returns 0 or -errno: then nothing has happened.
static int rvd_stream_session_run(revdial_session *s)
{
    int r = rvd_loop_add(s->loop, &s->io);
    if (r < 0) return r;
    rvd_stream_work_begin(s->group->work);
    rvd_base_link_push(&s->group->sessions, &s->link);
    rvd_sys_tune_session(s->fd, s->look.timeout_ms, s->group->congestion);
    rvd_stream_lock(s);
    rvd_stream_queue_set_locked(s, RVD_STREAM_QUEUE_START);
    s->pace.since_us = s->pace.thin_us = rvd_loop_now(s->loop);
    rvd_stream_flush_soon_locked(s);
    rvd_stream_unlock(s);
    if (s->group->ending) rvd_stream_kill_soon(s);
    return 0;
}

static void rvd_stream_on_group_end(rvd_loop_task *task)
{
    rvd_stream_group *g = RVD_BASE_OWNER(task, rvd_stream_group, end);
    g->ending = 1;
    for (rvd_base_link *l = g->sessions.next; l != &g->sessions; l = l->next)
        rvd_stream_kill_soon(RVD_BASE_OWNER(l, revdial_session, link));
    for (rvd_base_link *l = g->guests.next; l != &g->guests; l = l->next) {
        rvd_stream_guest *guest = RVD_BASE_OWNER(l, rvd_stream_guest, link);
        guest->end(guest);
    }
}

static void rvd_stream_group_init(rvd_stream_group *g, rvd_loop *loop, rvd_log *log,
                                  rvd_stream_work *work, const revdial_common *common)
{
    const char *congestion = common->congestion ? common->congestion : "";
    g->loop = loop;
    g->log = log;
    g->work = work;
    g->tcp_keepalive_ms = common->tcp_keepalive_ms;
    RVD_BASE_JOIN(g->congestion, sizeof g->congestion, congestion);
    rvd_sys_mask_get(&g->mask);
    g->end.run = rvd_stream_on_group_end;
    rvd_base_link_init(&g->sessions);
    rvd_base_link_init(&g->guests);
}

// Ends every session of the group, and any that still comes.
static void rvd_stream_group_end(rvd_stream_group *g)
{
    rvd_loop_post(g->loop, &g->end);
}

// ---- the application's calls on a session ----

static size_t rvd_stream_memory_locked(const revdial_session *s, const revdial_engine_info *info)
{
    return info->memory_bytes + s->heap.live_bytes + sizeof *s;
}

void revdial_session_get_info(revdial_session *s, revdial_session_info *out)
{
    revdial_engine_info info;
    size_t memory;
    memset(out, 0, sizeof *out);
    out->state = REVDIAL_DOWN;
    if (rvd_stream_is_child(s)) return;
    rvd_stream_lock(s);
    revdial_engine_get_info(s->engine, &info);
    out->state = s->state == RVD_STREAM_UP         ? REVDIAL_UP
                 : s->state == RVD_STREAM_DRAINING ? REVDIAL_DRAINING
                                                   : REVDIAL_DOWN;
    out->streams = atomic_load_explicit(&s->stream_count, memory_order_relaxed);
    memory = rvd_stream_memory_locked(s, &info);
    rvd_stream_unlock(s);
    out->id = s->id;
    RVD_BASE_JOIN(out->name, sizeof out->name, s->name);
    RVD_BASE_JOIN(out->instance, sizeof out->instance, s->instance);
    RVD_BASE_JOIN(out->identity, sizeof out->identity, s->identity);
    RVD_BASE_JOIN(out->peer, sizeof out->peer, s->peer);
    out->carrier = info.carrier;
    out->streams_opened = info.streams_opened;
    out->rx_bytes = info.rx_bytes;
    out->tx_bytes = info.tx_bytes;
    out->rtt_us = info.rtt_us;
    out->age_ms = (rvd_sys_now_us() - s->start_us) / 1000;
    out->queued_bytes = info.output_bytes;
    out->unread_bytes = info.buffered_bytes;
    out->memory_bytes = memory;
    out->streams_reset = info.streams_reset;
    out->credit_waits = info.credit_waits;
    memcpy(out->resets, info.resets, sizeof out->resets);
}

// What a session has counted so far.
static void rvd_stream_stats_count(revdial_stats *out, const revdial_engine_info *info)
{
    out->rx_bytes += info->rx_bytes;
    out->tx_bytes += info->tx_bytes;
    out->streams_opened += info->streams_opened;
    out->streams_reset += info->streams_reset;
    out->credit_waits += info->credit_waits;
    for (int i = 0; i < REVDIAL_RESET_PLACES; i++) out->resets[i] += info->resets[i];
}

static void rvd_stream_stats_add(revdial_stats *out, revdial_session *s)
{
    revdial_engine_info info;
    rvd_stream_lock(s);
    revdial_engine_get_info(s->engine, &info);
    out->memory_bytes += rvd_stream_memory_locked(s, &info);
    rvd_stream_unlock(s);
    out->streams += atomic_load_explicit(&s->stream_count, memory_order_relaxed);
    rvd_stream_stats_count(out, &info);
}

static void rvd_stream_describe(revdial_stream *st, revdial_stream_info *out)
{
    const char *dial = revdial_stream_meta(st, "id");
    rvd_base_text t = rvd_base_text_in(out->dial, sizeof out->dial);
    if (dial) {
        RVD_BASE_ADD(&t, dial);
    } else {
        rvd_base_text_add_hex16(&t, st->session->id);
        RVD_BASE_ADD(&t, ".", RVD_BASE_NUMBER(st->id));
    }
    out->is_dialled = st->is_dialled;
    RVD_BASE_JOIN(out->client, sizeof out->client, revdial_stream_meta(st, "client"));
    RVD_BASE_JOIN(out->target, sizeof out->target, revdial_stream_meta(st, "target"));
}

size_t revdial_session_list_streams(revdial_session *s, int blocked_ms, revdial_stream_info *out,
                                    size_t cap)
{
    size_t count = 0;
    const int64_t now_us = rvd_sys_now_us();
    if (rvd_stream_is_child(s)) return 0;
    rvd_stream_lock(s);
    for (rvd_base_link *l = s->streams.next; l != &s->streams; l = l->next) {
        revdial_stream *st = RVD_BASE_OWNER(l, revdial_stream, link);
        revdial_flow_info flow;
        int64_t for_ms = 0;
        if (revdial_engine_get_flow(s->engine, st->id, &flow) < 0) continue;
        if (flow.blocked_since_us) for_ms = (now_us - flow.blocked_since_us) / 1000;
        if (for_ms < 0) for_ms = 0;
        if (blocked_ms > 0 && for_ms < blocked_ms) continue;
        if (count++ >= cap) continue;
        rvd_stream_describe(st, &out[count - 1]);
        out[count - 1].flow = flow;
        out[count - 1].blocked_ms = for_ms;
    }
    rvd_stream_unlock(s);
    return count;
}

int revdial_session_drain(revdial_session *s, int timeout_ms)
{
    int64_t until = rvd_stream_deadline(timeout_ms);
    if (!s) return REVDIAL_EINVAL;
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    rvd_stream_drain_locked(s);
    s->end.drain_until_us = until == INT64_MAX ? 0 : until;
    revdial_engine_drain(s->engine);
    rvd_stream_events_locked(s);
    rvd_stream_kick_locked(s);
    rvd_stream_unlock(s);
    return REVDIAL_OK;
}

// ---- the application's calls on a stream ----

// What an error of the engine is for the application: a session that we closed is not a lost one.
static int rvd_stream_error_locked(revdial_stream *st, int code)
{
    if (st->is_aborted) return REVDIAL_ECLOSED;
    if (code == REVDIAL_ELOST && st->session->why.code == REVDIAL_ECLOSED) return REVDIAL_ECLOSED;
    if (code == REVDIAL_ERESET && st->session->why.code == REVDIAL_ECLOSED && st->reset_code < 0)
        return REVDIAL_ECLOSED;
    return code;
}

// Sleeps until the stream moves: w says what is waited for, the rest of it is set here. Returns
// bytes that have come into its buffer, or were taken from it, meanwhile, 0, or REVDIAL_EAGAIN,
// ETIMEDOUT, EDEADLK, ENOMEM.
static ptrdiff_t rvd_stream_wait_locked(revdial_stream *st, rvd_stream_waiter *w)
{
    revdial_session *s = st->session;
    const int64_t *deadline =
        w->events & RVD_STREAM_WAKE_RD ? &st->rd_deadline_us : &st->wr_deadline_us;
    rvd_sys_latch latch;
    int r;
    if (*deadline == 0) return REVDIAL_EAGAIN;
    if (rvd_stream_on_loop_locked(s)) return REVDIAL_EDEADLK;
    if (*deadline != INT64_MAX && *deadline <= rvd_sys_now_us()) return REVDIAL_ETIMEDOUT;
    if (rvd_sys_latch_init(&latch) < 0) return REVDIAL_ENOMEM;
    rvd_base_link_init(&w->link);
    w->events |= RVD_STREAM_WAKE_END;
    w->latch = &latch;
    w->id = st->id;
    rvd_base_link_push(&st->waiters, &w->link);
    if (w->from) {
        rvd_stream_queue_write_locked(st);
        if (s->has_queued) rvd_stream_flush_locked(s);
    }
    r = rvd_stream_sleep_locked(s, w, *deadline);
    rvd_base_link_remove(&w->link);
    rvd_sys_latch_free(&latch);
    if (w->got) return (ptrdiff_t)w->got;
    return r == -ETIMEDOUT ? REVDIAL_ETIMEDOUT : 0;
}

// How many bytes the vectors have. REVDIAL_EINVAL: a negative count, or more bytes than a call can
// return.
static ptrdiff_t rvd_stream_iov_len(const struct iovec *iov, int count)
{
    size_t total = 0;
    if (count < 0) return REVDIAL_EINVAL;
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > RVD_BASE_LEN_MAX - total) return REVDIAL_EINVAL;
        total += iov[i].iov_len;
    }
    return (ptrdiff_t)total;
}

static ptrdiff_t rvd_stream_read_locked(revdial_stream *st, const struct iovec *iov, int count)
{
    ptrdiff_t total = 0;
    for (int i = 0; i < count; i++) {
        ptrdiff_t n;
        if (!iov[i].iov_len) continue;
        n = revdial_engine_read(st->session->engine, st->id, iov[i].iov_base, iov[i].iov_len);
        if (n <= 0) return total ? total : n;
        total += n;
        if ((size_t)n < iov[i].iov_len) break;
    }
    return total;
}

ptrdiff_t revdial_readv(revdial_stream *st, const struct iovec *iov, int count)
{
    revdial_session *s = st->session;
    ptrdiff_t n;
    int first = 0;
    if (rvd_stream_iov_len(iov, count) <= 0) return REVDIAL_EINVAL;  // 0 would look like EOF
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    for (;;) {
        rvd_stream_waiter w = {.events = RVD_STREAM_WAKE_RD};
        int released;
        n = rvd_stream_read_locked(st, iov, count);
        released = 0;  // goes out: the accept and the credit that this has earned
        if (n == REVDIAL_EAGAIN || !rvd_stream_batch_is_open_locked(s))
            released = rvd_stream_flush_locked(s);
        if (n != REVDIAL_EAGAIN) break;
        if (released) continue;
        while (first < count - 1 && !iov[first].iov_len) first++;
        w.buf = iov[first].iov_base;
        w.len = iov[first].iov_len;
        n = rvd_stream_wait_locked(st, &w);
        if (n > 0) rvd_stream_flush_locked(s);
        if (n) break;
    }
    if (n < 0) n = rvd_stream_error_locked(st, (int)n);
    rvd_stream_unlock(s);
    return n;
}

ptrdiff_t revdial_read(revdial_stream *st, void *buf, size_t len)
{
    struct iovec iov;
    iov.iov_base = buf;
    iov.iov_len = len;
    return revdial_readv(st, &iov, 1);
}

// The caller's memory is needed no more. Where there is none to copy it to, that has to wait until
// it has been sent, or the descriptor is closed.
static void rvd_stream_recall_locked(revdial_stream *st)
{
    revdial_session *s = st->session;
    while (revdial_engine_recall(s->engine, st->id) != 0 && s->state != RVD_STREAM_DOWN) {
        rvd_sys_latch never;
        int has_latch = rvd_sys_latch_init(&never) == 0;
        rvd_stream_unlock(s);
        if (has_latch) {
            rvd_sys_latch_wait(&never, rvd_sys_now_us() + RVD_STREAM_RECALL_US);
            rvd_sys_latch_free(&never);
        } else {
            sched_yield();
        }
        rvd_stream_lock(s);
        rvd_stream_flush_locked(s);
    }
}

// Takes what may be sent now. A large piece is sent from where it lies if nobody is sending, and
// copied only if the socket does not take all of it.
static ptrdiff_t rvd_stream_put_locked(revdial_stream *st, const uint8_t *data, size_t len)
{
    revdial_session *s = st->session;
    ptrdiff_t n;
    revdial_engine_set_now(s->engine, rvd_sys_now_us());
    if (len < RVD_STREAM_LEND || s->sending || s->blocked || s->transport)
        return revdial_engine_write(s->engine, st->id, data, len);
    n = revdial_engine_lend(s->engine, st->id, data, len);
    if (n <= 0) return n;
    rvd_stream_flush_locked(s);
    rvd_stream_recall_locked(st);
    return n;
}

// Leaves the bytes to the thread that sends, and sleeps until they are sent. Returns as a wait.
static ptrdiff_t rvd_stream_leave_locked(revdial_stream *st, const uint8_t *data, size_t len)
{
    rvd_stream_waiter w = {.events = RVD_STREAM_WAKE_CALL, .from = data, .len = len};
    ptrdiff_t n = rvd_stream_wait_locked(st, &w);
    if (revdial_engine_lent(st->session->engine, st->id)) rvd_stream_recall_locked(st);
    return n;
}

// Writers of one stream take turns, so that a call's bytes stay together however often it waits.
static int rvd_stream_write_begin_locked(revdial_stream *st)
{
    while (st->is_writing) {
        rvd_stream_waiter w = {.events = RVD_STREAM_WAKE_WR};
        int r = (int)rvd_stream_wait_locked(st, &w);
        if (r) return r;
    }
    st->is_writing = 1;
    return 0;
}

static void rvd_stream_write_end_locked(revdial_stream *st)
{
    st->is_writing = 0;
    st->quiet = 0;  // a write that fits ends the engine's wait for room, and it tells of none
    if (!rvd_base_link_is_alone(&st->waiters)) rvd_stream_wake_locked(st, RVD_STREAM_WAKE_WR);
}

ptrdiff_t revdial_writev(revdial_stream *st, const struct iovec *iov, int count)
{
    revdial_session *s = st->session;
    ptrdiff_t done = 0, n;
    int has_turn, waits = 0;
    if (rvd_stream_iov_len(iov, count) < 0) return REVDIAL_EINVAL;
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    n = rvd_stream_write_begin_locked(st);
    has_turn = n == 0;
    for (int i = 0; i < count && n >= 0; i++) {
        const uint8_t *at = iov[i].iov_base;
        size_t left = iov[i].iov_len;
        do {
            n = waits ? rvd_stream_leave_locked(st, at, left) : rvd_stream_put_locked(st, at, left);
            if (n > 0) {
                at += n;
                left -= (size_t)n;
                done += n;
            }
            waits = left && !waits && n == 0 && !rvd_stream_flush_locked(s);
        } while (n >= 0 && left);
    }
    if (has_turn) rvd_stream_write_end_locked(st);
    rvd_stream_written_locked(s);
    if (n < 0) n = rvd_stream_error_locked(st, (int)n);
    rvd_stream_unlock(s);
    return done ? done : n;
}

ptrdiff_t revdial_write(revdial_stream *st, const void *buf, size_t len)
{
    struct iovec iov;
    union {
        const void *in;
        void *out;
    } p;
    p.in = buf;
    iov.iov_base = p.out;  // writev only reads it
    iov.iov_len = len;
    return revdial_writev(st, &iov, 1);
}

int revdial_shutdown(revdial_stream *st, int how)
{
    revdial_session *s = st->session;
    int r = REVDIAL_OK;
    if (how < REVDIAL_RD || how > REVDIAL_RDWR) return REVDIAL_EINVAL;
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    revdial_engine_accept(s->engine, st->id);
    if (how & REVDIAL_RD) revdial_engine_end_read(s->engine, st->id);
    if (how & REVDIAL_WR) r = revdial_engine_end_write(s->engine, st->id);
    rvd_stream_wake_locked(st, RVD_STREAM_WAKE_RD | RVD_STREAM_WAKE_WR | RVD_STREAM_WAKE_CALL);
    rvd_stream_touch_locked(s);
    rvd_stream_unlock(s);
    return r;
}

int revdial_reset(revdial_stream *st, int code)
{
    revdial_session *s = st->session;
    int r;
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    r = revdial_engine_reset(s->engine, st->id, code);
    if (!r && st->reset_code < 0) st->is_aborted = 1;
    rvd_stream_wake_locked(st, RVD_STREAM_WAKE_RD | RVD_STREAM_WAKE_WR | RVD_STREAM_WAKE_CALL);
    rvd_stream_touch_locked(s);
    rvd_stream_unlock(s);
    return r;
}

void revdial_close(revdial_stream *st)
{
    revdial_session *s;
    if (!st || rvd_stream_is_child(st->session)) return;
    s = revdial_session_ref(st->session);
    rvd_stream_lock(s);
    rvd_stream_free_locked(st);
    rvd_stream_touch_locked(s);
    rvd_stream_unlock(s);
    revdial_session_unref(s);
}

int revdial_stream_set_deadline(revdial_stream *st, int which, int timeout_ms)
{
    revdial_session *s = st->session;
    int64_t at = timeout_ms == 0 ? 0 : rvd_stream_deadline(timeout_ms);
    if (which < REVDIAL_RD || which > REVDIAL_RDWR) return REVDIAL_EINVAL;
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    if (which & REVDIAL_RD) st->rd_deadline_us = at;
    if (which & REVDIAL_WR) st->wr_deadline_us = at;
    rvd_stream_wake_locked(st, RVD_STREAM_WAKE_RD | RVD_STREAM_WAKE_WR | RVD_STREAM_WAKE_CALL);
    rvd_stream_unlock(s);
    return REVDIAL_OK;
}

int revdial_stream_error(revdial_stream *st, int *reset)
{
    revdial_session *s = st->session;
    revdial_flow_info ledger;
    int code = 0;
    if (reset) *reset = 0;
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    if (reset) *reset = st->reset_code > 0 ? st->reset_code : 0;
    if (st->is_aborted)
        code = REVDIAL_ECLOSED;
    else if (st->reset_code >= 0)
        code = REVDIAL_ERESET;
    else if (s->why.code || s->state >= RVD_STREAM_DEAD)
        code = s->why.code == REVDIAL_ECLOSED ? REVDIAL_ECLOSED : REVDIAL_ELOST;
    else if (revdial_engine_get_flow(s->engine, st->id, &ledger) < 0)
        code = REVDIAL_ECLOSED;
    rvd_stream_unlock(s);
    return code;
}

const char *revdial_stream_meta(revdial_stream *st, const char *key)
{
    const char *at = st->meta, *end = at ? at + st->meta_size : at;
    while (at < end) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, key) == 0) return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

revdial_session *revdial_stream_session(revdial_stream *st)
{
    return revdial_session_ref(st->session);
}

int revdial_stream_get_flow(revdial_stream *st, revdial_flow_info *out)
{
    revdial_session *s = st->session;
    int r;
    memset(out, 0, sizeof *out);
    if (rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
    rvd_stream_lock(s);
    r = revdial_engine_get_flow(s->engine, st->id, out);
    rvd_stream_unlock(s);
    return r;
}

// ---- poll ----

// What the stream is ready for, as poll(2) has it: where a call would not wait. POLLHUP when both
// directions are over, POLLERR when it failed; these two need not be asked for. Most streams of a
// large poll are as quiet as they were in the last one.
static short rvd_stream_ready_locked(revdial_stream *st, short events)
{
    const void *data;
    revdial_engine *e = st->session->engine;
    ptrdiff_t in, out;
    int ready = 0;
    if (((events & (POLLIN | POLLOUT)) | POLLERR) == (st->quiet & (events | POLLERR))) return 0;
    in = revdial_engine_peek(e, st->id, &data);
    out = events & POLLOUT || in <= 0 ? revdial_engine_writable(e, st->id) : 0;
    if (in != REVDIAL_EAGAIN) ready |= POLLIN;
    if (out != 0) ready |= POLLOUT;
    if (in <= 0 && in != REVDIAL_EAGAIN && out < 0) ready |= POLLHUP;
    if (in < 0 && in != REVDIAL_EAGAIN) ready |= POLLERR;
    ready &= events | POLLHUP | POLLERR;
    st->quiet = (short)(ready ? 0 : (events & (POLLIN | POLLOUT)) | POLLERR);
    return (short)ready;
}

typedef struct rvd_stream_poll {
    revdial_pollfd *items;
    size_t count, fd_count;
    struct pollfd *fds;          // of the items that are descriptors, then the bell
    rvd_stream_waiter *waiters;  // one per item; NULL: it does not wait
    rvd_stream_bell bell;
} rvd_stream_poll;

static void rvd_stream_poll_leave_locked(rvd_stream_poll *p, size_t i)
{
    const revdial_pollfd *item = &p->items[i];
    rvd_stream_waiter *w = &p->waiters[i];
    revdial_session *s = item->st->session;
    if (w->bell) return;
    rvd_base_link_init(&w->link);
    w->events = RVD_STREAM_WAKE_END | (item->events & POLLIN ? RVD_STREAM_WAKE_RD : 0u) |
                (item->events & POLLOUT ? RVD_STREAM_WAKE_WR : 0u);
    w->bell = &p->bell;
    rvd_base_link_push(&item->st->waiters, &w->link);
    s->reader.waiting++;
    rvd_reader_lease_end(&s->reader);
}

// The peer may wait for that before it sends what is polled for. Returns 1 if it has to be sent.
static int rvd_stream_poll_accept_locked(const revdial_pollfd *item)
{
    revdial_stream *st = item->st;
    if (st->is_dialled || st->is_polled || !(item->events & POLLIN)) return 0;
    st->is_polled = 1;
    return revdial_engine_accept(st->session->engine, st->id) == REVDIAL_OK;
}

// Looks at streams from items[i] on that are of one session, at most RVD_STREAM_LOOKS.
// Returns how many it looked at; adds the ready ones.
static size_t rvd_stream_poll_look_at(rvd_stream_poll *p, size_t i, int *ready)
{
    revdial_session *s = p->items[i].st->session;
    size_t end = rvd_base_min(p->count, i + RVD_STREAM_LOOKS), at = i, found = 0;
    int accepted = 0;
    rvd_stream_lock(s);
    if (s->batch.left) rvd_stream_flush_locked(s);
    for (; at < end && p->items[at].st && p->items[at].st->session == s; at++) {
        revdial_pollfd *item = &p->items[at];
        accepted |= rvd_stream_poll_accept_locked(item);
        item->revents = rvd_stream_ready_locked(item->st, item->events);
        found += item->revents != 0;
        if (p->waiters) rvd_stream_poll_leave_locked(p, at);
    }
    s->batch.thread = pthread_self();
    s->batch.left = found;
    if (accepted) rvd_stream_flush_locked(s);
    rvd_stream_unlock(s);
    *ready += (int)found;
    return at - i;
}

// Looks at every stream, and leaves a waiter with each if it is to wait. Returns the ready ones.
static int rvd_stream_poll_look(rvd_stream_poll *p)
{
    int ready = 0;
    for (size_t i = 0; i < p->count;)
        i += p->items[i].st ? rvd_stream_poll_look_at(p, i, &ready) : 1;
    return ready;
}

// Looks at the descriptors, or waits for them and the bell. Returns how many of the descriptors are
// ready, or -errno.
static int rvd_stream_poll_fds(rvd_stream_poll *p, int64_t until_us)
{
    int64_t left = until_us == INT64_MAX ? -1 : (until_us - rvd_sys_now_us() + 999) / 1000;
    const struct pollfd *fd = p->fds;
    int r, ready = 0;
    if (until_us != INT64_MAX && left < 0) left = 0;
    if (!p->fd_count && !p->waiters) return 0;
    r = rvd_sys_poll(p->fds, p->fd_count + (p->waiters != NULL),
                     left > INT32_MAX ? INT32_MAX : (int)left);
    if (r < 0) return r;
    if (p->waiters && p->fds[p->fd_count].revents) rvd_stream_bell_hear(&p->bell);
    for (size_t i = 0; i < p->count; i++) {
        if (p->items[i].st) continue;
        p->items[i].revents = fd++->revents;
        ready += p->items[i].revents != 0;
    }
    return ready;
}

// With a waiter at every stream.
static int rvd_stream_poll_run(rvd_stream_poll *p, int64_t until_us)
{
    int r;
    do {
        int streams = rvd_stream_poll_look(p);
        r = rvd_stream_poll_fds(p, streams ? 0 : until_us);
        r = r < 0 ? REVDIAL_ESYS : r + streams;
    } while (!r && rvd_sys_now_us() < until_us);
    for (size_t i = 0; i < p->count; i++) {
        revdial_session *s = p->items[i].st ? p->items[i].st->session : NULL;
        if (!s) continue;
        rvd_stream_lock(s);
        rvd_base_link_remove(&p->waiters[i].link);
        s->reader.waiting--;
        rvd_stream_unlock(s);
    }
    return r;
}

static int rvd_stream_poll_wait(rvd_stream_poll *p, rvd_heap *heap, int64_t until_us)
{
    size_t size = (p->count + 1) * sizeof *p->waiters;
    int r;
    if (rvd_sys_wake_open(&p->bell.wake) < 0) return REVDIAL_ESYS;
    p->waiters = rvd_base_alloc(heap, size);
    p->fds[p->fd_count].fd = p->bell.wake.fd[0];
    p->fds[p->fd_count].events = POLLIN;
    r = p->waiters ? rvd_stream_poll_run(p, until_us) : REVDIAL_ENOMEM;
    rvd_sys_wake_close(&p->bell.wake);
    rvd_base_free(heap, p->waiters, size);
    return r;
}

int revdial_poll(revdial_pollfd *items, size_t count, int timeout_ms)
{
    rvd_heap heap = {NULL, NULL, 0};
    rvd_stream_poll p = {.items = items, .count = count};
    const revdial_session *before = NULL;
    int64_t until = rvd_stream_deadline(timeout_ms);
    size_t size, k = 0;
    int r, streams;
    if (count > INT_MAX) return REVDIAL_EINVAL;
    for (size_t i = 0; i < count; i++) {
        revdial_session *s = items[i].st ? items[i].st->session : NULL;
        p.fd_count += !s;
        if (s && rvd_stream_is_child(s)) return REVDIAL_ECLOSED;
        if (s && s != before && rvd_stream_is_on_loop(s)) return REVDIAL_EDEADLK;
        before = s;
    }
    size = (p.fd_count + 1) * sizeof *p.fds;
    p.fds = rvd_base_alloc(&heap, size);
    if (!p.fds) return REVDIAL_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        if (items[i].st) continue;
        p.fds[k].fd = items[i].fd;
        p.fds[k++].events = items[i].events;
    }
    streams = rvd_stream_poll_look(&p);
    r = rvd_stream_poll_fds(&p, 0);
    r = r < 0 ? REVDIAL_ESYS : r + streams;
    if (!r && timeout_ms) r = rvd_stream_poll_wait(&p, &heap, until);
    rvd_base_free(&heap, p.fds, size);
    return r;
}

// ================================================================================================
// MARK: impl.relay  uses: base sys loop log stream
// A stream and a descriptor, copied both ways on the loop: from the descriptor straight into the
// session's output, from its input straight to the descriptor. Start at rvd_relay_step_locked().
// ================================================================================================

#define RVD_RELAY_READ_MAX 65524u  // our largest frame
#define RVD_RELAY_SHARE 65536u     // bytes in a row before others get their turn
#define RVD_RELAY_EARLY_MAX 65536u
#define RVD_RELAY_UNSENT_US 10000  // first check whether the last bytes have been sent,
#define RVD_RELAY_UNSENT_TRIES 9   // each next one after twice the time, 2.5 s in all
#define RVD_RELAY_HURRY_TRIES 8    // while closing: the last of them only
#define RVD_RELAY_LEFT_US 5000000  // bytes of a dead stream wait this long without progress
// Enough for any answer to a client that has finished. After that one half was forgotten.
#define RVD_RELAY_HALF_MS 3600000

// Four system calls for TCP keepalive are a third of all that a short connection costs, and one
// that is over by then needs none.
#define RVD_RELAY_YOUNG_US 1000000

// What a new connection takes in one segment: no MSS is smaller (RFC 9293 section 3.7.1), and while
// nothing is on its way no system waits for more.
#define RVD_RELAY_FIRST_MAX 536

// RUNNING --both directions are over--> OVER --> freed
// RUNNING --one of them failed--> FAILED --the last bytes left the socket, or time is up--> freed
enum rvd_relay_state { RVD_RELAY_RUNNING, RVD_RELAY_FAILED, RVD_RELAY_OVER };

// Reading from the descriptor.
// OPEN --end of file--> ENDED     OPEN, ENDED --the relay or the stream's way there failed--> LOST
enum rvd_relay_in { RVD_RELAY_IN_OPEN, RVD_RELAY_IN_ENDED, RVD_RELAY_IN_LOST };

typedef struct rvd_relay {
    rvd_stream_guest guest;
    rvd_loop_io in, out;  // out is used only if it is another descriptor
    rvd_loop_timer timer;
    rvd_loop_task start;
    revdial_stream *st;
    revdial_session *session;  // holds a reference
    enum rvd_relay_state state;
    enum rvd_relay_in in_state;
    uint8_t out_over;
    uint8_t is_young;    // keepalive is still to be set, by the timer
    uint8_t is_untuned;  // rvd_sys_tune_client() is still to be called, see rvd_relay_write()
    uint8_t is_drained;  // as in rvd_relay_ends
    uint8_t is_hook;     // `done` is the application's
    int tries;
    uint8_t *early;
    size_t early_len, early_at;
    int64_t idle_us, moved_us;
    uint64_t moved[2];
    int half_ms;  // idle_us once one direction is over; 0: has become so, or never does
    int why_code, why_reset, why_sys;
    const char *why_text;  // static
    void (*done)(void *ud, const uint64_t moved[2], const revdial_err *why);
    void *ud;
} rvd_relay;

static rvd_loop_io *rvd_relay_out(rvd_relay *r)
{
    return r->out.fd >= 0 ? &r->out : &r->in;
}

static void rvd_relay_become(rvd_relay *r, enum rvd_relay_state to)
{
    REVDIAL_ASSERT(r->state == RVD_RELAY_RUNNING && to != RVD_RELAY_RUNNING);
    r->state = to;
}

static void rvd_relay_in_become(rvd_relay *r, enum rvd_relay_in to)
{
    REVDIAL_ASSERT(to >= r->in_state);  // the order of the enum is the order of the arrows
    r->in_state = to;
}

// The first cause sticks.
static void rvd_relay_fail(rvd_relay *r, int code, int sys, const char *text)
{
    if (r->state != RVD_RELAY_RUNNING) return;
    rvd_relay_become(r, RVD_RELAY_FAILED);
    rvd_relay_in_become(r, RVD_RELAY_IN_LOST);
    if (r->why_code) return;
    r->why_code = code;
    r->why_sys = sys;
    r->why_text = text;
}

static void rvd_relay_fail_stream(rvd_relay *r, ptrdiff_t code)
{
    int reset = r->st->reset_code;
    if (code == REVDIAL_ERESET)
        rvd_relay_fail(r, REVDIAL_ERESET, 0, revdial_reset_text(reset > 0 ? reset : 0));
    else
        rvd_relay_fail(r, rvd_stream_error_locked(r->st, (int)code), 0, "the session ended");
    r->why_reset = reset > 0 ? reset : 0;
}

static void rvd_relay_fail_socket(rvd_relay *r, ptrdiff_t error, const char *text)
{
    revdial_engine_reset(r->session->engine, r->st->id, REVDIAL_RESET_CANCEL);
    rvd_relay_fail(r, REVDIAL_ESYS, (int)-error, text);
    r->out_over = 1;
}

// Without memory the stream fails, on both ends: ending it quietly would look like EOF.
static void rvd_relay_fail_memory(rvd_relay *r)
{
    revdial_engine_reset(r->session->engine, r->st->id, REVDIAL_RESET_INTERNAL);
    rvd_relay_fail(r, REVDIAL_ENOMEM, 0, "out of memory for the stream");
}

static void rvd_relay_moved(rvd_relay *r, int way, size_t n)
{
    r->moved[way] += n;
    r->moved_us = rvd_loop_now(r->session->loop);
}

// One read into the session's output. Returns bytes, 0 to stop for now.
static size_t rvd_relay_read(rvd_relay *r)
{
    revdial_engine *e = r->session->engine;
    void *at;
    ptrdiff_t got, room = revdial_engine_reserve(e, r->st->id, &at, RVD_RELAY_READ_MAX);
    if (room == 0) return 0;  // EV_WRITABLE will tell
    if (room == REVDIAL_ENOMEM) {
        rvd_relay_fail_memory(r);
        return 0;
    }
    if (room < 0) {
        rvd_relay_in_become(r,
                            RVD_RELAY_IN_LOST);  // told when what was received has been delivered
        return 0;
    }
    got = rvd_sys_read(r->in.fd, at, (size_t)room);
    revdial_engine_commit(e, r->st->id, got > 0 ? (size_t)got : 0);
    if (got == -EAGAIN) {
        r->in.ready &= ~(unsigned)RVD_LOOP_READ;
    } else if (got < 0) {
        rvd_relay_fail_socket(r, got, "reading from the socket failed");
    } else if (got == 0) {
        rvd_relay_in_become(r, RVD_RELAY_IN_ENDED);
        revdial_engine_end_write(e, r->st->id);
    } else {
        rvd_relay_moved(r, 0, (size_t)got);
        // A short read has emptied the socket; an end that came with it has its own edge or mark.
        if (got < room && !(r->in.ready & (RVD_LOOP_EOF | RVD_LOOP_HUP)))
            r->in.ready &= ~(unsigned)RVD_LOOP_READ;
        return (size_t)got;
    }
    return 0;
}

static int rvd_relay_early(rvd_relay *r)
{
    while (r->early_at < r->early_len) {
        ptrdiff_t n = revdial_engine_write(r->session->engine, r->st->id, r->early + r->early_at,
                                           r->early_len - r->early_at);
        if (n == REVDIAL_ENOMEM) rvd_relay_fail_memory(r);
        if (n < 0 && r->state == RVD_RELAY_RUNNING) rvd_relay_in_become(r, RVD_RELAY_IN_LOST);
        if (n <= 0) return 0;
        r->early_at += (size_t)n;
        rvd_relay_moved(r, 0, (size_t)n);
    }
    return 1;
}

static void rvd_relay_pump_in(rvd_relay *r)
{
    size_t share = 0;
    revdial_engine_set_now(r->session->engine, rvd_loop_now(r->session->loop));
    if (!rvd_relay_early(r)) return;
    while (r->in_state == RVD_RELAY_IN_OPEN && r->in.ready & RVD_LOOP_READ) {
        size_t n = rvd_relay_read(r);
        if (!n) break;
        share += n;
        if (share >= RVD_RELAY_SHARE) {
            rvd_loop_again(r->session->loop, &r->in);
            return;
        }
    }
    // Waiting for credit must not hide that the client has gone.
    if (r->in_state == RVD_RELAY_IN_OPEN && r->in.ready & RVD_LOOP_HUP) {
        int error = rvd_sys_connect_result(r->in.fd);
        if (error < 0 && error != -EINPROGRESS && error != -ENOTSOCK)
            rvd_relay_fail_socket(r, error, "the socket's other end has gone");
    }
}

// Writes what is there. Returns 0 to stop for now.
static int rvd_relay_write(rvd_relay *r, const void *data, size_t len)
{
    rvd_loop_io *io = rvd_relay_out(r);
    ptrdiff_t n;
    if (!(io->ready & RVD_LOOP_WRITE)) return 0;
    // Many connections are over after one short request, for which the options change nothing.
    if (r->is_untuned && (r->moved[1] || len > RVD_RELAY_FIRST_MAX)) {
        r->is_untuned = 0;
        rvd_sys_tune_client(io->fd);
    }
    n = rvd_sys_write(io->fd, data, len);
    if (n == -EAGAIN) n = 0;
    if (n < 0) {
        rvd_relay_fail_socket(r, n, "writing to the socket failed");
        return 0;
    }
    revdial_engine_consume(r->session->engine, r->st->id, (size_t)n);
    if (n) rvd_relay_moved(r, 1, (size_t)n);
    if ((size_t)n < len) io->ready &= ~(unsigned)RVD_LOOP_WRITE;
    return (size_t)n == len;
}

static void rvd_relay_pump_out(rvd_relay *r)
{
    while (!r->out_over) {
        const void *data;
        ptrdiff_t n = revdial_engine_peek(r->session->engine, r->st->id, &data);
        if (n == REVDIAL_EAGAIN) return;
        if (n > 0) {
            if (!rvd_relay_write(r, data, (size_t)n)) return;
            continue;
        }
        r->out_over = 1;
        if (n < 0) {
            rvd_relay_fail_stream(r, n);
        } else if (r->out.fd >= 0) {
            rvd_loop_forget(r->session->loop, &r->out);
            rvd_sys_set_abort(r->out.fd, 0);
            rvd_sys_shutdown_wr(r->out.fd);  // a child may have a copy
            rvd_sys_close(r->out.fd);
            r->out.fd = -2;  // closed, and still not the same as in
        } else {
            rvd_sys_shutdown_wr(r->in.fd);
        }
    }
}

// The stream is dead, and its last bytes wait for a reader that may never read again.
static void rvd_relay_left(rvd_relay *r)
{
    rvd_loop *loop = r->session->loop;
    int64_t now = rvd_loop_now(loop);
    if (r->idle_us > 0 && r->idle_us <= RVD_RELAY_LEFT_US) return;
    r->idle_us = RVD_RELAY_LEFT_US;
    r->moved_us = now;
    if (rvd_loop_timer_set(loop, &r->timer, now + r->idle_us) < 0)
        rvd_relay_fail_stream(r, r->st->reset_code >= 0 ? REVDIAL_ERESET : REVDIAL_ELOST);
}

// One direction is over, and the other may be silent for a time of its own. Without memory for a
// timer that is not bounded; keepalive still is.
static void rvd_relay_half_over(rvd_relay *r)
{
    rvd_loop *loop = r->session->loop;
    int64_t now = rvd_loop_now(loop), us = (int64_t)r->half_ms * 1000;
    r->half_ms = 0;
    if (us <= 0 || (r->idle_us > 0 && r->idle_us <= us)) return;
    // A young one's timer comes sooner, and is set to this then.
    if ((!r->is_young || us < RVD_RELAY_YOUNG_US) &&
        rvd_loop_timer_set(loop, &r->timer, now + us) < 0)
        return;
    r->idle_us = us;
    r->moved_us = now;
}

// Moves what can be moved. Loop thread, under the session's lock. Once over, rvd_relay_end() has to
// run without it.
static void rvd_relay_step_locked(rvd_relay *r, unsigned events)
{
    if (r->state == RVD_RELAY_RUNNING) {
        rvd_relay_pump_out(r);
        rvd_relay_pump_in(r);
    }
    // A stream that was reset after its FIN delivers all, but what we send is lost: say so.
    if (events & RVD_STREAM_WAKE_END && r->in_state == RVD_RELAY_IN_OPEN)
        rvd_relay_in_become(r, RVD_RELAY_IN_LOST);
    if (events & RVD_STREAM_WAKE_END && r->state == RVD_RELAY_RUNNING && !r->out_over)
        rvd_relay_left(r);
    if (r->state == RVD_RELAY_RUNNING && r->out_over && r->in_state == RVD_RELAY_IN_LOST)
        rvd_relay_fail_stream(r, r->st->reset_code >= 0 ? REVDIAL_ERESET : REVDIAL_ELOST);
    if (r->state == RVD_RELAY_RUNNING && r->out_over && r->in_state == RVD_RELAY_IN_ENDED)
        rvd_relay_become(r, RVD_RELAY_OVER);
    if (r->state == RVD_RELAY_RUNNING && (r->out_over || r->in_state == RVD_RELAY_IN_ENDED))
        rvd_relay_half_over(r);
    rvd_stream_flush_soon_locked(r->session);
}

static void rvd_relay_free(rvd_relay *r)
{
    revdial_session *s = r->session;
    rvd_stream_lock(s);
    if (r->st) rvd_stream_free_locked(r->st);
    rvd_stream_touch_locked(s);
    rvd_base_free(&s->heap, r->early, r->early_len);
    rvd_base_free(&s->heap, r, sizeof *r);
    rvd_stream_unlock(s);
    rvd_stream_work_end(s->group->work);
    revdial_session_unref(s);
}

static void rvd_relay_tell(rvd_relay *r, const revdial_err *why)
{
    sigset_t ours;
    if (!r->done) return;
    if (r->is_hook) rvd_sys_hook_begin(&r->session->group->mask, &ours);
    r->done(r->ud, r->moved, why);
    if (r->is_hook) rvd_sys_hook_end(&ours);
}

// Loop thread, without the lock: closes what is left and tells.
static void rvd_relay_end(rvd_relay *r)
{
    int failed = r->state == RVD_RELAY_FAILED;
    rvd_loop *loop = r->session->loop;
    revdial_err why;
    // What was delivered to the socket must not be torn up by our reset.
    if (failed && r->tries++ < RVD_RELAY_UNSENT_TRIES && rvd_sys_unsent(rvd_relay_out(r)->fd) > 0 &&
        rvd_loop_timer_set(loop, &r->timer,
                           rvd_loop_now(loop) + (RVD_RELAY_UNSENT_US << ((r->tries - 1) % 8))) == 0)
        return;
    rvd_loop_timer_stop(loop, &r->timer);
    rvd_loop_forget(loop, &r->in);
    rvd_loop_forget(loop, &r->out);
    rvd_base_link_remove(&r->guest.link);
    if (failed) {
        rvd_sys_close_reset(r->in.fd);
        if (r->out.fd >= 0) rvd_sys_close_reset(r->out.fd);
    } else {
        rvd_sys_set_abort(r->in.fd, 0);
        rvd_sys_close(r->in.fd);
        if (r->out.fd >= 0) rvd_sys_close(r->out.fd);
    }
    if (failed) rvd_sys_fail(&why, r->why_code, r->why_sys, NULL, r->why_text);
    if (failed) why.reset = r->why_reset;
    rvd_relay_tell(r, failed ? &why : NULL);
    rvd_relay_free(r);
}

static void rvd_relay_run(rvd_relay *r)
{
    revdial_session *s = r->session;
    unsigned events;
    int over;
    rvd_stream_lock(s);
    // What happened before it began, or while it waited, is seen now.
    events = r->st->reset_code >= 0 || s->state >= RVD_STREAM_LINGER ? RVD_STREAM_WAKE_END : 0;
    rvd_relay_step_locked(r, events);
    over = r->state != RVD_RELAY_RUNNING;
    rvd_stream_unlock(s);
    // One that waits for its last bytes to leave is looked at when its timer says so.
    if (over && !(r->tries && r->timer.slot)) rvd_relay_end(r);
}

static void rvd_relay_on_in(rvd_loop_io *io)
{
    rvd_relay_run(RVD_BASE_OWNER(io, rvd_relay, in));
}

static void rvd_relay_on_out(rvd_loop_io *io)
{
    rvd_relay_run(RVD_BASE_OWNER(io, rvd_relay, out));
}

static void rvd_relay_sink(revdial_stream *st, unsigned events)
{
    rvd_relay *r = st->sink_ud;
    if (!r->in.slot) return;  // not started: it will look for itself
    rvd_relay_step_locked(r, events);
    if (r->state != RVD_RELAY_RUNNING) rvd_loop_soon(r->session->loop, &r->in);
}

// It has become old enough to outlive its peer.
static void rvd_relay_grow_up(rvd_relay *r)
{
    r->is_young = 0;
    rvd_sys_set_keepalive(r->in.fd, r->session->group->tcp_keepalive_ms);
}

static void rvd_relay_on_timer(rvd_loop_timer *t)
{
    rvd_relay *r = RVD_BASE_OWNER(t, rvd_relay, timer);
    revdial_session *s = r->session;
    int64_t now = rvd_loop_now(s->loop);
    if (r->is_young) rvd_relay_grow_up(r);
    if (r->state == RVD_RELAY_RUNNING && !r->idle_us) return;
    if (r->state == RVD_RELAY_RUNNING && now - r->moved_us < r->idle_us) {
        rvd_loop_timer_set(s->loop, t, r->moved_us + r->idle_us);
        return;
    }
    if (r->state == RVD_RELAY_RUNNING) {
        rvd_stream_lock(s);
        if (r->st->reset_code >= 0)
            rvd_relay_fail_stream(r, REVDIAL_ERESET);
        else if (s->state >= RVD_STREAM_LINGER)
            rvd_relay_fail_stream(r, REVDIAL_ELOST);
        revdial_engine_reset(s->engine, r->st->id, REVDIAL_RESET_TIMEOUT);
        rvd_relay_fail(r, REVDIAL_ETIMEDOUT, 0, "idle for too long");
        rvd_stream_flush_soon_locked(s);
        rvd_stream_unlock(s);
    }
    rvd_relay_end(r);
}

// Its owner is closing: a reader that does not read is not waited for.
static void rvd_relay_on_group_end(rvd_stream_guest *guest)
{
    rvd_relay *r = RVD_BASE_OWNER(guest, rvd_relay, guest);
    revdial_session *s = r->session;
    rvd_stream_lock(s);
    revdial_engine_reset(s->engine, r->st->id, REVDIAL_RESET_CANCEL);
    rvd_relay_fail(r, REVDIAL_ECLOSED, 0, "closed here");
    rvd_stream_unlock(s);
    if (r->tries < RVD_RELAY_HURRY_TRIES) r->tries = RVD_RELAY_HURRY_TRIES;
    rvd_loop_timer_stop(s->loop, &r->timer);
    if (r->in.slot) rvd_loop_again(s->loop, &r->in);
}

// Whom a running relay will tell of its end with this function; NULL: it is another one's, or over.
static void *rvd_relay_runs_for(rvd_stream_guest *guest,
                                void (*done)(void *, const uint64_t[2], const revdial_err *))
{
    const rvd_relay *r = RVD_BASE_OWNER(guest, rvd_relay, guest);
    if (guest->end != rvd_relay_on_group_end || r->state != RVD_RELAY_RUNNING) return NULL;
    return r->done == done ? r->ud : NULL;
}

// Sets the timer for what comes first: growing up, or having been idle for too long.
static int rvd_relay_time(rvd_relay *r)
{
    int64_t after_us = r->is_young ? RVD_RELAY_YOUNG_US : r->idle_us;
    if (r->idle_us && r->idle_us < after_us) after_us = r->idle_us;
    return after_us ? rvd_loop_timer_set(r->session->loop, &r->timer, r->moved_us + after_us) : 0;
}

// First thing on the loop thread.
static void rvd_relay_on_start(rvd_loop_task *task)
{
    rvd_relay *r = RVD_BASE_OWNER(task, rvd_relay, start);
    rvd_loop *loop = r->session->loop;
    int error = r->in.slot ? 0 : rvd_loop_add(loop, &r->in);
    rvd_base_link_push(&r->session->group->guests, &r->guest.link);
    if (error == 0 && r->out.fd >= 0) error = rvd_loop_add(loop, &r->out);
    // A client mostly speaks first, and most sockets have room: no event is needed to begin.
    rvd_relay_out(r)->ready |= RVD_LOOP_WRITE;
    if (r->st->is_dialled && !r->is_drained) r->in.ready |= RVD_LOOP_READ;
    r->moved_us = rvd_loop_now(loop);
    if (error == 0) error = rvd_relay_time(r);
    if (error < 0) {
        rvd_stream_lock(r->session);
        rvd_relay_fail_socket(r, error, "the loop cannot watch the socket");
        rvd_stream_unlock(r->session);
        r->tries = RVD_RELAY_UNSENT_TRIES;
        rvd_relay_end(r);
        return;
    }
    if (r->session->group->ending) rvd_relay_on_group_end(&r->guest);
    rvd_relay_run(r);
}

// Descriptors that are prepared for a relay.
typedef struct rvd_relay_ends {
    int rfd, wfd;
    int is_young, is_untuned, is_hook;  // as in rvd_relay
    int is_drained;                     // all that was there has been read
    rvd_loop_io *watched;  // by the session's loop, which calls: the relay takes its place; or NULL
} rvd_relay_ends;

// Takes over the stream and the descriptors. Returns an error: then all is still the caller's.
static int rvd_relay_new_locked(revdial_stream *st, const rvd_relay_ends *ends,
                                const revdial_relay_opts *opts, rvd_relay **out)
{
    revdial_session *s = st->session;
    rvd_relay *r = rvd_base_alloc(&s->heap, sizeof *r);
    if (!r) return REVDIAL_ENOMEM;
    if (opts->early_len) {
        r->early = rvd_base_alloc(&s->heap, opts->early_len);
        if (!r->early) {
            rvd_base_free(&s->heap, r, sizeof *r);
            return REVDIAL_ENOMEM;
        }
        memcpy(r->early, opts->early, opts->early_len);
        r->early_len = opts->early_len;
    }
    rvd_base_link_init(&r->guest.link);
    r->guest.end = rvd_relay_on_group_end;
    r->st = st;
    r->session = revdial_session_ref(s);
    r->in.fd = ends->rfd;
    r->in.run = rvd_relay_on_in;
    r->out.fd = ends->wfd == ends->rfd ? -1 : ends->wfd;
    r->out.run = rvd_relay_on_out;
    r->timer.run = rvd_relay_on_timer;
    r->start.run = rvd_relay_on_start;
    r->idle_us = (int64_t)opts->idle_ms * 1000;
    r->half_ms = opts->half_closed_ms ? opts->half_closed_ms : RVD_RELAY_HALF_MS;
    r->is_young = ends->is_young && s->group->tcp_keepalive_ms >= 0;
    r->is_untuned = ends->is_untuned != 0;
    r->is_drained = ends->is_drained != 0;
    r->is_hook = ends->is_hook != 0;
    r->done = opts->done;
    r->ud = opts->ud;
    rvd_stream_sink_set_locked(st, rvd_relay_sink, r, 1);
    if (ends->watched) rvd_loop_replace(s->loop, ends->watched, &r->in);
    *out = r;
    return REVDIAL_OK;
}

// Starts a relay, and accepts the stream. On an error the stream and the descriptors are still the
// caller's.
static int rvd_relay_start(revdial_stream *st, const rvd_relay_ends *ends,
                           const revdial_relay_opts *opts)
{
    revdial_session *s = st->session;
    rvd_relay *r = NULL;
    int code;
    revdial_session_ref(s);  // of st's own the relay disposes
    rvd_stream_lock(s);
    code = s->state == RVD_STREAM_DOWN ? REVDIAL_ECLOSED : rvd_relay_new_locked(st, ends, opts, &r);
    if (!code) {
        rvd_stream_meta_free_locked(st);  // nobody is left to ask for it
        rvd_stream_work_begin(s->group->work);
        if (!ends->watched) rvd_loop_post(s->loop, &r->start);
        if (revdial_engine_accept(s->engine, st->id) == REVDIAL_OK) rvd_stream_touch_locked(s);
    }
    rvd_stream_unlock(s);
    if (!code && ends->watched) rvd_relay_on_start(&r->start);
    revdial_session_unref(s);
    return code;
}

// The same on any descriptors.
static int rvd_relay_begin(revdial_stream *st, int rfd, int wfd, const revdial_relay_opts *opts)
{
    static const revdial_relay_opts none;
    const rvd_relay_ends ends = {.rfd = rfd, .wfd = wfd, .is_young = 1, .is_hook = 1};
    if (!opts) opts = &none;
    if (opts->early_len > RVD_RELAY_EARLY_MAX || opts->idle_ms < 0 || opts->half_closed_ms < -1)
        return REVDIAL_EINVAL;
    if (opts->early_len && !opts->early) return REVDIAL_EINVAL;
    if (rvd_sys_set_nonblocking(rfd) < 0) return REVDIAL_ESYS;
    if (wfd != rfd && rvd_sys_set_nonblocking(wfd) < 0) return REVDIAL_ESYS;
    rvd_sys_tune_client(wfd);
    rvd_sys_set_abort(rfd, 1);  // a process that is killed must not end them with FIN
    if (wfd != rfd) rvd_sys_set_abort(wfd, 1);
    return rvd_relay_start(st, &ends, opts);
}

int revdial_relay(revdial_stream *st, int rfd, int wfd, const revdial_relay_opts *opts)
{
    int code;
    if (rvd_stream_is_child(st->session)) {  // copies: a reset would hit the parent's connection
        rvd_sys_close(rfd);
        if (wfd != rfd) rvd_sys_close(wfd);
        return REVDIAL_ECLOSED;
    }
    code = rvd_relay_begin(st, rfd, wfd, opts);
    if (!code) return REVDIAL_OK;
    revdial_reset(st, REVDIAL_RESET_INTERNAL);  // closing alone would look like EOF
    revdial_close(st);
    rvd_sys_close_reset(rfd);
    if (wfd != rfd) rvd_sys_close_reset(wfd);
    return code;
}

int revdial_stream_fd(revdial_stream *st)
{
    const revdial_relay_opts opts = {.half_closed_ms = -1};  // no TCP socket ends for that
    int fds[2], code;
    if (rvd_stream_is_child(st->session)) return REVDIAL_ECLOSED;
    if (rvd_sys_socketpair(fds) < 0) return REVDIAL_ESYS;
    code = rvd_relay_begin(st, fds[0], fds[0], &opts);
    if (!code) return fds[1];
    rvd_sys_close(fds[0]);
    rvd_sys_close(fds[1]);
    return code;
}

// ================================================================================================
// MARK: impl.owner  uses: base sys loop log stream
// What a proxy and an agent have in common: an owner has sessions, counts what they do, and hands
// their streams to threads of the application. Start at rvd_owner_open().
// ================================================================================================

// What an owner keeps of each of its sessions begins with this.
typedef struct rvd_owner_member {
    revdial_session *session;  // set before start, then read-only
    rvd_base_link link;        // in the owner's list, which holds a reference to session
    int is_up;                 // it has come up; guarded by the owner's lock, as link
} rvd_owner_member;

typedef struct rvd_owner {
    // Set before start, then read-only.
    const revdial_common *common;  // of its config
    rvd_log log;
    rvd_stream_work work;
    rvd_sys_origin *origin;
    rvd_loop_pool handlers;  // opened by the owner, as are:
    void (*handler)(void *ud, revdial_stream *st);
    void *ud;

    pthread_mutex_t lock;  // guards all below
    pthread_cond_t changed;
    rvd_heap heap;
    rvd_base_link members;  // of rvd_owner_member
    unsigned member_count, up_count;
    int was_cut;          // a drain ended sessions that had streams left
    revdial_stats stats;  // of sessions that are gone, and counters
} rvd_owner;

//   returns  0, or REVDIAL_ESYS or ENOMEM with this text
static int rvd_owner_open(rvd_owner *o, const revdial_common *common, const char *text,
                          revdial_err *err)
{
    int code = REVDIAL_ESYS;
    o->common = common;
    o->heap.fn = common->alloc;
    o->heap.ud = common->alloc_ud;
    rvd_base_link_init(&o->members);
    if (pthread_mutex_init(&o->lock, NULL) == 0) {
        if (rvd_sys_cond_open(&o->changed) == 0) {
            if (rvd_log_open(&o->log, common) == 0) {
                o->origin = rvd_sys_origin_new(common->alloc, common->alloc_ud);
                if (!o->origin) code = REVDIAL_ENOMEM;
                if (o->origin && rvd_stream_work_open(&o->work) == 0) return REVDIAL_OK;
                rvd_sys_origin_unref(o->origin);
                rvd_log_close(&o->log);
            }
            pthread_cond_destroy(&o->changed);
        }
        pthread_mutex_destroy(&o->lock);
    }
    return rvd_stream_fail(err, code, 0, text);
}

static void rvd_owner_close(rvd_owner *o)
{
    REVDIAL_ASSERT(o->heap.live_bytes == 0);
    rvd_stream_work_close(&o->work);
    rvd_log_close(&o->log);
    pthread_cond_destroy(&o->changed);
    pthread_mutex_destroy(&o->lock);
    rvd_sys_origin_unref(o->origin);
}

// In a child of fork(2) no lock of o may be taken: a thread of the parent may have held it.
static int rvd_owner_is_child(const rvd_owner *o)
{
    return rvd_sys_is_child(o->origin);
}

// Memory that is not counted in heap.live_bytes, so that any thread may allocate without the lock.
static void *rvd_owner_alloc(const rvd_owner *o, size_t size)
{
    rvd_heap heap = {o->common->alloc, o->common->alloc_ud, 0};
    return rvd_base_alloc(&heap, size);
}

static void rvd_owner_free(const rvd_owner *o, void *p, size_t size)
{
    rvd_heap heap = {o->common->alloc, o->common->alloc_ud, size};
    rvd_base_free(&heap, p, size);
}

// Waits until o->changed is signalled, or until until_us (INT64_MAX: for ever). Returns 0 or
// -ETIMEDOUT.
static int rvd_owner_wait_locked(rvd_owner *o, int64_t until_us)
{
    return rvd_sys_cond_wait(&o->changed, &o->lock, until_us == INT64_MAX ? -1 : until_us);
}

// Makes an engine and frees it, so that a config that no session could use is refused at the start.
static int rvd_owner_probe(const revdial_engine_config *e, revdial_err *err)
{
    revdial_engine *probe = revdial_engine_new(e, 1, err);
    revdial_engine_free(probe);
    return probe ? REVDIAL_OK : err ? err->code : REVDIAL_EINVAL;
}

// ---- its sessions ----

static void rvd_owner_member_init(rvd_owner_member *m, revdial_session *s)
{
    m->session = s;
    rvd_base_link_init(&m->link);
}

static void rvd_owner_add_locked(rvd_owner *o, rvd_owner_member *m)
{
    revdial_session_ref(m->session);
    rvd_base_link_push(&o->members, &m->link);
    o->member_count++;
}

// The caller drops the list's reference to the session once the lock is released.
static void rvd_owner_remove_locked(rvd_owner *o, rvd_owner_member *m)
{
    rvd_base_link_remove(&m->link);
    o->member_count--;
    o->up_count -= (unsigned)m->is_up;
    pthread_cond_broadcast(&o->changed);
}

static void rvd_owner_up_locked(rvd_owner *o, rvd_owner_member *m)
{
    m->is_up = 1;
    o->up_count++;
    o->stats.sessions_opened++;
    pthread_cond_broadcast(&o->changed);
}

// The session is over: its counters are added to those of the owner. The owner's lock comes after
// the session's, so the caller has read info before it took this one.
static void rvd_owner_down_locked(rvd_owner *o, rvd_owner_member *m,
                                  const revdial_engine_info *info)
{
    rvd_owner_remove_locked(o, m);
    o->stats.sessions_closed += (unsigned)m->is_up;
    rvd_stream_stats_count(&o->stats, info);
}

typedef struct rvd_owner_snapshot {
    revdial_session **all;
    size_t count, size;
} rvd_owner_snapshot;

// Takes a reference to every session, up or not. Returns 0, or REVDIAL_ENOMEM and an empty list.
static int rvd_owner_snapshot_locked(rvd_owner *o, rvd_owner_snapshot *list)
{
    list->count = 0;
    list->size = (o->member_count + (size_t)1) * sizeof *list->all;
    list->all = rvd_owner_alloc(o, list->size);
    for (rvd_base_link *l = o->members.next; list->all && l != &o->members; l = l->next) {
        rvd_owner_member *m = RVD_BASE_OWNER(l, rvd_owner_member, link);
        list->all[list->count++] = revdial_session_ref(m->session);
    }
    return list->all ? REVDIAL_OK : REVDIAL_ENOMEM;
}

static int rvd_owner_snapshot_open(rvd_owner *o, rvd_owner_snapshot *list)
{
    int code;
    pthread_mutex_lock(&o->lock);
    code = rvd_owner_snapshot_locked(o, list);
    pthread_mutex_unlock(&o->lock);
    return code;
}

static void rvd_owner_snapshot_close(rvd_owner *o, rvd_owner_snapshot *list)
{
    for (size_t i = 0; i < list->count; i++) revdial_session_unref(list->all[i]);
    rvd_owner_free(o, list->all, list->size);
}

static void rvd_owner_get_stats(rvd_owner *o, revdial_stats *out)
{
    rvd_owner_snapshot list;
    memset(out, 0, sizeof *out);
    if (rvd_owner_is_child(o)) return;
    pthread_mutex_lock(&o->lock);
    rvd_owner_snapshot_locked(o, &list);  // a session that ends after this is counted once
    *out = o->stats;
    out->sessions = o->up_count;
    pthread_mutex_unlock(&o->lock);
    for (size_t i = 0; i < list.count; i++) rvd_stream_stats_add(out, list.all[i]);
    rvd_owner_snapshot_close(o, &list);
}

// ---- streams of the peer that the application handles ----

typedef struct rvd_owner_call {
    rvd_loop_job job;
    rvd_owner *owner;
    revdial_stream *st;
} rvd_owner_call;

static void rvd_owner_call_run(rvd_loop_job *job)
{
    rvd_owner_call *c = RVD_BASE_OWNER(job, rvd_owner_call, job);
    rvd_owner *o = c->owner;
    revdial_stream *st = c->st;
    sigset_t ours;
    rvd_owner_free(o, c, sizeof *c);
    rvd_sys_hook_begin(&st->session->group->mask, &ours);
    o->handler(o->ud, st);
    rvd_sys_hook_end(&ours);
    rvd_stream_work_end(&o->work);
}

// Has a thread of its own call the handler, or refuses the stream.
static void rvd_owner_serve_locked(rvd_owner *o, revdial_session *s, revdial_stream *st)
{
    rvd_owner_call *c = rvd_owner_alloc(o, sizeof *c);
    if (c) {
        c->job.run = rvd_owner_call_run;
        c->owner = o;
        c->st = st;
        rvd_stream_work_begin(&o->work);
        if (rvd_loop_pool_submit(&o->handlers, &c->job, RVD_LOOP_NO_QUEUE) == 0) return;
        rvd_stream_work_end(&o->work);
        rvd_owner_free(o, c, sizeof *c);
    }
    revdial_engine_reset(s->engine, st->id, REVDIAL_RESET_CALM);
    rvd_stream_free_locked(st);
}

// ================================================================================================
// MARK: impl.proxy  uses: base wire auth sys loop log reader stream relay owner
// Listeners, clients of exposed ports, the registry of names, and dials that choose a session. The
// registry has one lock. Under it only a loop's lock and that of the work counter are taken, and no
// callback is called.
// Start at revdial_proxy_start().
// ================================================================================================

#define RVD_PROXY_BACKLOG 4096           // what Linux allows: a storm of reconnecting backends fits
#define RVD_PROXY_ACCEPTS 64             // connections in a row before sessions get their turn
#define RVD_PROXY_CLIENTS_WAITING 4096   // those of an absent backend must not take all descriptors
#define RVD_PROXY_CLIENT_WATCH_US 50000  // most dials take less
#define RVD_PROXY_PAUSE_US 100000        // after EMFILE; connections wait in the kernel's queue
#define RVD_PROXY_OTHERS 4               // of 32 places are kept from the busiest source
#define RVD_PROXY_STALE_US 2000000       // without progress a place goes to the queue of its source
#define RVD_PROXY_BUSY_US 5000000        // instead while others come up: the proxy may be slow
#define RVD_PROXY_COMING_US 1000000      // others come up: one did within this time
#define RVD_PROXY_QUEUE_US 100000        // interval of looks at the queue
#define RVD_PROXY_SILENCE_US 10000000    // in the queue without a byte; as long as a handshake
#define RVD_PROXY_QUEUE 8                // times the places: length of the queue
#define RVD_PROXY_QUEUE_POLLS 128        // of the queue, polled at a time
#define RVD_PROXY_TRIES 8                // further sessions that one dial asks, where that is safe
#define RVD_PROXY_RIVALS 16              // old sessions of one machine that are pinged at a time
#define RVD_PROXY_RIVAL_US 1000000       // time for their answer
#define RVD_PROXY_CONTEST_US 120000000   // a replaced agent comes back within this time
#define RVD_PROXY_AILING 4               // unreachable targets remembered per session
#define RVD_PROXY_AILING_US 5000000      // time for which others are asked first; doubles
#define RVD_PROXY_AILING_MORE 3          //   this often, to 40 s: one dial pays for each try
#define RVD_PROXY_BUCKETS 256            // of the table of names
#define RVD_PROXY_AUTH_THREADS 16        // hooks that may block at the same time
#define RVD_PROXY_STREAM_THREADS 1024
#define RVD_PROXY_UNEXPOSED "the port was unexposed"
#define RVD_PROXY_NOT_ALLOWED "not from an address in allow_from"
#define RVD_PROXY_ROUTE_BYTES 16384       // a request's head; nginx and HAProxy take as much
#define RVD_PROXY_ROUTE_BYTES_MAX 65536u  // what a relay takes over
#define RVD_PROXY_ROUTE_MS 10000
#define RVD_PROXY_YIELD_US 1000000   // without a decision; a head takes a round trip or two
#define RVD_PROXY_REPLY_US 10000000  // for a client to take a reply
#define RVD_PROXY_LINGER_US 5000000  // for what it still sends; nginx waits as long

typedef struct rvd_proxy_name {
    struct rvd_proxy_name *next;
    char name[65];
    rvd_base_link sessions;  // of rvd_proxy_member
    unsigned count;
    int64_t replaced_us;  // when a session of it was last replaced
    int is_contested;     // and another one was, less than RVD_PROXY_CONTEST_US before
} rvd_proxy_name;

// A target that a session could not reach. It counts for this target only: a client that asks for a
// target that does not exist must not turn clients of other targets away.
typedef struct rvd_proxy_ailment {
    uint64_t target;    // its hash
    int64_t until_us;   // others are asked first; 0: none
    unsigned failures;  // in a row
} rvd_proxy_ailment;

// What the proxy keeps of a session, from accept(2) on.
typedef struct rvd_proxy_member {
    rvd_owner_member base;

    // Loop thread only, or that of the hook while that is at work.
    struct rvd_proxy_auth *check;  // a hook is at work on it, or will be; else NULL
    int is_down;                   // the session is over
    rvd_auth_guess guess;          // of its request; the peer and block from the start
    const char *limit;             // that refused it, for our log: the peer is told 503
    rvd_loop_timer verdict;        // silent for a second since

    // The request: the loop thread's, and a hook's while one is at work. Its texts are there from
    // its arrival to the verdict.
    revdial_auth_req auth;
    revdial_digest digest;  // of auth
    rvd_base_arena texts;   // of both; guarded by the session's lock

    // Set before it is registered.
    int is_listed;      // a row of a table has admitted it
    uint64_t row_mark;  // which

    // Guarded by the proxy's lock; `who` and holder from its registration on.
    int is_pending;          // it counts as one that has not authenticated
    rvd_base_link asking;    // in p->waiting: it may have to give way
    rvd_auth_holder holder;  // its identity, and the group that may share its name
    rvd_proxy_name *name;  // NULL: it is not registered. The registry holds a reference to session
    rvd_base_link link;
    int64_t rival_us;    // another process of its machine connected; 0: none has
    atomic_uint picked;  // dials on their way to it; any thread
    rvd_proxy_ailment ailments[RVD_PROXY_AILING];
} rvd_proxy_member;

// A port, for backends or for clients. Loop 0 makes it what it is not yet.
//   LISTENS --the proxy drains or stops--> CLOSED      LISTENS, CLOSED --unexposed--> GONE
enum rvd_proxy_listener_state { RVD_PROXY_LISTENS, RVD_PROXY_CLOSED, RVD_PROXY_GONE };

typedef struct rvd_proxy_listener {
    rvd_loop_io io;
    rvd_loop_timer pause;
    rvd_loop_task resume;  // loop 0: accepts again, or for the first time
    rvd_loop_task end;     // loop 0: unexposed; and when nobody needs it any more, frees it

    // Set before it is listed.
    revdial_proxy *proxy;
    int64_t id;  // 0: for backends
    revdial_expose expose;
    const rvd_sys_net *trusted, *allowed;  // of expose
    size_t trusted_count, allowed_count;
    char address[RVD_SYS_TEXT_MAX];

    rvd_base_link routed;  // loop 0 only: of rvd_proxy_route
    int is_wildcard;       // each client may have come to another address

    atomic_uint refs;         // of the list, of clients, of calls
    atomic_int ends_clients;  // REVDIAL_END_CLIENTS
    // Guarded by the proxy's lock.
    enum rvd_proxy_listener_state state;
    rvd_base_link link;                 // in p->listeners, those for backends first
    char unlink[RVD_SYS_PATH_MAX + 1];  // of a unix socket, when we are done
    unsigned waiting;                   // clients dialled for
    int is_full;                        // nothing is accepted before a dial is over
    unsigned unexpose_flags;
    size_t size;   // of all
    char texts[];  // an arena: those of expose
} rvd_proxy_listener;

// Ends the relays of ports that were unexposed, on one loop.
typedef struct rvd_proxy_sweep {
    rvd_loop_task task;
    rvd_stream_group *group;
    atomic_uint wanted;  // how often it has to look
} rvd_proxy_sweep;

// A client of an exposed port, from accept(2) to the end of its connection; or ROUTED, from the
// decision of an rvd_proxy_route on.
//   LISTED --the dial takes long--> WATCHED      all --the dial is over--> JOINED or gone
enum rvd_proxy_client_state {
    RVD_PROXY_LISTED,
    RVD_PROXY_WATCHED,
    RVD_PROXY_ROUTED,
    RVD_PROXY_JOINED
};

typedef struct rvd_proxy_client {
    rvd_base_link link;  // in p->clients while LISTED; guarded by the proxy's lock, as state
    enum rvd_proxy_client_state state;
    uint32_t early_len;  // bytes that went out with the dial
    rvd_loop_io io;      // loop 0: while WATCHED, for a client that goes away
    rvd_loop_task task;
    rvd_proxy_listener *listener;
    revdial_stream *st;  // what came of the dial, or:
    revdial_err *why;
    int64_t dial, since_us;
    char address[];  // behind it, if the port has a route: the target
} rvd_proxy_client;

// Bytes that wait, in memory that grows with them.
typedef struct rvd_proxy_bytes {
    uint8_t *at;
    size_t len, size;
} rvd_proxy_bytes;

// A client of a port with `route` or `trusted_proxies`, until it is refused or a relay takes over.
// On loop 0.
//   READING --the decision--> DIALLING --connected--> GREETING --the reply is sent--> the relay's
//   READING, DIALLING --a refusal with a reply--> REFUSING --it is sent, and FIN--> LINGERING
// In each state except DIALLING it ends when the client, its time or its port is over; a dial is
// cancelled then, and ends first.
enum rvd_proxy_route_state {
    RVD_PROXY_READING,
    RVD_PROXY_DIALLING,
    RVD_PROXY_GREETING,
    RVD_PROXY_REFUSING,
    RVD_PROXY_LINGERING
};

typedef struct rvd_proxy_route {
    rvd_base_link link;  // in its port's `routed`, except while DIALLING
    enum rvd_proxy_route_state state;
    uint8_t wants_header;  // of the PROXY protocol
    uint8_t is_end;        // the client has sent FIN
    uint8_t is_seen;       // the hook knows all of `in`
    rvd_loop_io io;
    rvd_loop_timer timer;
    rvd_loop_task task;  // the dial is over, on another loop
    rvd_proxy_listener *listener;
    rvd_proxy_client *client;  // DIALLING and GREETING
    revdial_err *why;          // REFUSING and LINGERING, if there was memory
    char *addresses;           // as texts: the client's, then where it connected to
    rvd_proxy_bytes in, out;
    size_t got;                // bytes behind the header
    int step, half_closed_ms;  // what the hook has left, what it wants
    int64_t since_us;
} rvd_proxy_route;

// A connection that waits for a place among those that authenticate.
typedef struct rvd_proxy_queued {
    int fd;
    rvd_sys_addr peer;
    int64_t since_us;
} rvd_proxy_queued;

struct revdial_proxy {
    rvd_owner own;
    // Set before start, then read-only.
    revdial_proxy_config cfg;
    rvd_base_arena texts;  // of cfg
    rvd_loop **loops;
    rvd_stream_group *groups;  // one per loop, as:
    rvd_proxy_sweep *sweeps;
    unsigned loop_count, backend_ports;
    rvd_loop_timer client_watch;  // loop 0
    rvd_loop_pool auth_pool;
    rvd_loop_task stop_listening;  // loop 0
    rvd_loop_task dials_wake;      // loop 0
    rvd_loop_task queue_task;      // loop 0: somebody may have left a place

    // Loop 0 only.
    rvd_loop_timer queue_timer;
    rvd_proxy_queued *queue;  // by age; NULL until it is needed
    size_t queue_room, queue_max;

    // Loop 0 only.
    int fd_most;  // for clients; see rvd_sys_fd_most()
    int is_short_of_fds;

    // Guarded by own.lock.
    rvd_auth_table *table;
    revdial_auth_fn *auth;
    void *auth_ud;
    rvd_auth_guard guard;   // its key and seed are set before start
    rvd_base_link waiting;  // sessions whose request is not complete, or is queued, by age
    uint16_t waiting_of[RVD_AUTH_BUCKETS];  // by the bucket of their block
    rvd_proxy_name *names[RVD_PROXY_BUCKETS];
    unsigned pending, next_loop;
    size_t queue_count;  // written by loop 0
    int64_t last_up_us;  // a session came up
    int draining, closing;
    int ports_closing;  // stop_listening has yet to run
    rvd_base_link listeners;
    rvd_base_link dials;  // asynchronous ones, all that are not over
    rvd_base_link clients;
    int64_t next_dial, last_expose;
};

static void rvd_proxy_log(revdial_proxy *p, enum rvd_log_event event, int level, const char *why)
{
    rvd_log_line l;
    if (!rvd_log_begin(&p->own.log, &l, event, level)) return;
    rvd_log_text(&l, "reason", why);
    rvd_log_end(&p->own.log, &l);
}

// A refused session has no id, and its name is the one that it asked for.
static void rvd_proxy_log_session(revdial_session *s, enum rvd_log_event event, int level,
                                  const char *why)
{
    revdial_proxy *p = s->owner;
    revdial_session_info info;
    rvd_log_line l;
    if (!rvd_log_begin(&p->own.log, &l, event, level)) return;
    revdial_session_get_info(s, &info);
    if (event == RVD_LOG_SESSION_REFUSED)
        rvd_log_text(&l, "name", s->name);
    else
        rvd_stream_log_session(&l, s);
    rvd_log_text(&l, "instance", s->instance);
    rvd_log_text(&l, "identity", s->identity);
    rvd_log_text(&l, "peer", s->peer);
    rvd_log_text(&l, "carrier", info.carrier == REVDIAL_CARRIER_WEBSOCKET ? "websocket" : NULL);
    rvd_log_text(&l, "reason", why);
    rvd_log_end(&p->own.log, &l);
}

static void rvd_proxy_tell(revdial_proxy *p, revdial_session *s, int state, const revdial_err *why)
{
    sigset_t ours;
    if (!p->cfg.on_session) return;
    rvd_sys_hook_begin(&s->group->mask, &ours);
    p->cfg.on_session(p->cfg.ud, s, state, why);
    rvd_sys_hook_end(&ours);
}

// ---- the registry ----

static size_t rvd_proxy_bucket(const revdial_proxy *p, const rvd_proxy_member *m)
{
    return rvd_auth_bucket(&p->guard, m->guess.block);
}

static rvd_proxy_name **rvd_proxy_slot(revdial_proxy *p, const char *name)
{
    rvd_proxy_name **slot =
        &p->names[rvd_base_hash(name, strlen(name), p->guard.seed) % RVD_PROXY_BUCKETS];
    while (*slot && strcmp((*slot)->name, name) != 0) slot = &(*slot)->next;
    return slot;
}

static void rvd_proxy_forget_locked(revdial_proxy *p, rvd_proxy_member *m)
{
    rvd_proxy_name **slot = rvd_proxy_slot(p, m->name->name), *n = m->name;
    rvd_base_link_remove(&m->link);
    if (--n->count == 0) {
        *slot = n->next;
        rvd_base_free(&p->own.heap, n, sizeof *n);
    }
    m->name = NULL;
}

static rvd_proxy_name *rvd_proxy_name_get_locked(revdial_proxy *p, const char *name)
{
    rvd_proxy_name **slot = rvd_proxy_slot(p, name);
    if (*slot) return *slot;
    *slot = rvd_base_alloc(&p->own.heap, sizeof **slot);
    if (!*slot) return NULL;
    RVD_BASE_JOIN((*slot)->name, sizeof(*slot)->name, name);
    rvd_base_link_init(&(*slot)->sessions);
    return *slot;
}

// Do both run on one machine? Then their instances are equal up to the last '.'.
static int rvd_proxy_is_same_machine(const revdial_session *a, const revdial_session *b)
{
    const char *dot = strrchr(a->instance, '.'), *other = strrchr(b->instance, '.');
    return dot && other && dot - a->instance == other - b->instance &&
           memcmp(a->instance, b->instance, (size_t)(dot - a->instance)) == 0;
}

static void rvd_proxy_contest_locked(rvd_proxy_name *n)
{
    int64_t now_us = rvd_sys_now_us();
    n->is_contested = n->replaced_us && now_us - n->replaced_us < RVD_PROXY_CONTEST_US;
    n->replaced_us = now_us;
}

// Finds the session that the new session s replaces: it has the same identity and instance.
//   returns  0, or REVDIAL_EDUPLICATE: another identity holds the name
static int rvd_proxy_conflict_locked(rvd_proxy_name *n, revdial_session *s, revdial_session **old)
{
    const rvd_proxy_member *own = s->member;
    for (rvd_base_link *l = n->sessions.next; l != &n->sessions; l = l->next) {
        rvd_proxy_member *m = RVD_BASE_OWNER(l, rvd_proxy_member, link);
        if (rvd_stream_is_leaving(m->base.session)) continue;
        if (!rvd_auth_shares(m->holder, own->holder)) return REVDIAL_EDUPLICATE;
        if (s->instance[0] && m->holder.who == own->holder.who &&
            strcmp(m->base.session->instance, s->instance) == 0)
            *old = m->base.session;
    }
    return REVDIAL_OK;
}

// Has this identity reached max_sessions_per_identity? Looks at all sessions, if there is a limit.
static int rvd_proxy_is_greedy_locked(const revdial_proxy *p, uint64_t who)
{
    unsigned count = 0, limit = p->cfg.max_sessions_per_identity;
    if (!limit) return 0;
    for (rvd_base_link *l = p->own.members.next; l != &p->own.members && count < limit; l = l->next)
        count += RVD_BASE_OWNER(l, rvd_proxy_member, base.link)->holder.who == who;
    return count >= limit;
}

static unsigned rvd_proxy_or(unsigned value, unsigned fallback)
{
    return value ? value : fallback;
}

// The limit that one more session would exceed, or NULL.
static const char *rvd_proxy_limit_locked(const revdial_proxy *p, const rvd_proxy_name *n,
                                          const rvd_proxy_member *m)
{
    if (p->own.member_count >= rvd_proxy_or(p->cfg.max_sessions, 65536))
        return "the proxy has as many sessions as it may: max_sessions";
    if (n->count >= rvd_proxy_or(p->cfg.max_sessions_per_name, 64))
        return "the name has as many sessions as it may: max_sessions_per_name";
    if (rvd_proxy_is_greedy_locked(p, m->holder.who))
        return "the identity has as many sessions as it may: max_sessions_per_identity";
    return NULL;
}

// Takes the name for s.
//   old   *old: the session that s replaces, with a reference; untouched if s is refused
static int rvd_proxy_register_locked(revdial_proxy *p, revdial_session *s, revdial_session **old)
{
    rvd_proxy_name *n;
    rvd_proxy_member *m = s->member;
    revdial_session *same = NULL;
    int code;
    if (p->draining || p->closing) return REVDIAL_EDRAINING;
    n = rvd_proxy_name_get_locked(p, s->name);
    if (!n) return REVDIAL_ENOMEM;
    code = rvd_proxy_conflict_locked(n, s, &same);
    m->limit = code || same ? NULL : rvd_proxy_limit_locked(p, n, m);
    if (m->limit) code = REVDIAL_ELIMIT;
    if (code) {
        if (!n->count) {
            *rvd_proxy_slot(p, s->name) = n->next;
            rvd_base_free(&p->own.heap, n, sizeof *n);
        }
        return code;
    }
    rvd_base_link_push(&n->sessions, &m->link);
    rvd_owner_add_locked(&p->own, &m->base);
    m->name = n;
    n->count++;
    if (same) rvd_proxy_contest_locked(n);
    *old = revdial_session_ref(same);
    return REVDIAL_OK;
}

// ---- picking ----

typedef struct rvd_proxy_pick {
    const char *name;
    const revdial_dial_opts *opts;
    uint64_t target;                  // its hash
    uint64_t tried[RVD_PROXY_TRIES];  // ids of sessions not to ask again
    unsigned tried_count;
    int has_others;  // another session could have been picked as well
    int was_ailing;  // the one that was picked could not reach the target lately
} rvd_proxy_pick;

static int rvd_proxy_is_tried(const rvd_proxy_pick *pick, const revdial_session *s)
{
    for (unsigned i = 0; i < pick->tried_count; i++)
        if (pick->tried[i] == s->id) return 1;
    return 0;
}

// Higher is better. Rendezvous hashing: each key ranks all backends, so that only the keys of a
// backend that disconnects move to others.
static uint64_t rvd_proxy_rank(const rvd_proxy_pick *pick, const rvd_proxy_member *m)
{
    const revdial_dial_opts *o = pick->opts;
    const revdial_session *s = m->base.session;
    const void *who = s->instance[0] ? (const void *)s->instance : (const void *)&s->id;
    size_t who_len = s->instance[0] ? strlen(s->instance) : sizeof s->id;
    if (o->pick == REVDIAL_PICK_LEAST_STREAMS)
        return UINT64_MAX - atomic_load_explicit(&s->stream_count, memory_order_relaxed) -
               atomic_load_explicit(&m->picked, memory_order_relaxed);
    return rvd_base_hash(who, who_len, rvd_base_hash(o->key, o->key_len, 0));
}

static rvd_proxy_ailment *rvd_proxy_ailment_of(rvd_proxy_member *m, uint64_t target)
{
    for (size_t i = 0; i < RVD_PROXY_AILING; i++)
        if (m->ailments[i].until_us && m->ailments[i].target == target) return &m->ailments[i];
    return NULL;
}

// The health of a session for this dial, best first. A worse one is asked if no better one is left.
enum rvd_proxy_health { RVD_PROXY_WELL, RVD_PROXY_AILS, RVD_PROXY_SILENT };

static enum rvd_proxy_health rvd_proxy_health_of(rvd_proxy_member *m, const rvd_proxy_pick *pick)
{
    const rvd_proxy_ailment *a = rvd_proxy_ailment_of(m, pick->target);
    if (atomic_load_explicit(&m->base.session->is_silent, memory_order_relaxed))
        return RVD_PROXY_SILENT;
    return a && a->until_us > rvd_sys_now_us() ? RVD_PROXY_AILS : RVD_PROXY_WELL;
}

static int rvd_proxy_is_better(rvd_proxy_member *m, rvd_proxy_member *best,
                               const rvd_proxy_pick *pick)
{
    enum rvd_proxy_health health = rvd_proxy_health_of(m, pick);
    enum rvd_proxy_health other = best ? rvd_proxy_health_of(best, pick) : RVD_PROXY_WELL;
    if (!best || health != other) return !best || health < other;
    return pick->opts->pick != REVDIAL_PICK_ROUND_ROBIN &&
           rvd_proxy_rank(pick, m) > rvd_proxy_rank(pick, best);
}

static int64_t rvd_proxy_ailing_us(const rvd_proxy_ailment *a)
{
    return (int64_t)RVD_PROXY_AILING_US
           << (a->failures < RVD_PROXY_AILING_MORE ? a->failures : RVD_PROXY_AILING_MORE);
}

// Once the time of an ailment is over, this dial alone finds out whether the target can be reached.
static void rvd_proxy_ailment_try_locked(rvd_proxy_pick *pick, rvd_proxy_member *m)
{
    rvd_proxy_ailment *a = rvd_proxy_ailment_of(m, pick->target);
    pick->was_ailing = a != NULL;
    if (a && a->until_us <= rvd_sys_now_us())
        a->until_us = rvd_sys_now_us() + rvd_proxy_ailing_us(a);
}

// Notes whether the session has reached the target of a dial.
static void rvd_proxy_ailment_note(revdial_proxy *p, const rvd_proxy_pick *pick,
                                   const revdial_session *s, int is_reached)
{
    rvd_proxy_member *m = s->member;
    rvd_proxy_ailment *a;
    pthread_mutex_lock(&p->own.lock);
    a = rvd_proxy_ailment_of(m, pick->target);
    if (a && is_reached) memset(a, 0, sizeof *a);
    if (!is_reached && !a) {
        a = &m->ailments[0];
        for (size_t i = 1; i < RVD_PROXY_AILING; i++)
            if (m->ailments[i].until_us < a->until_us) a = &m->ailments[i];
        memset(a, 0, sizeof *a);
        a->target = pick->target;
    }
    if (a && !is_reached) {
        a->until_us = rvd_sys_now_us() + rvd_proxy_ailing_us(a);
        a->failures += (unsigned)pick->was_ailing;
    }
    pthread_mutex_unlock(&p->own.lock);
}

// Chooses a session, with a reference. NULL: *code says why.
static revdial_session *rvd_proxy_pick_locked(revdial_proxy *p, rvd_proxy_pick *pick, int *code)
{
    rvd_proxy_name *n = *rvd_proxy_slot(p, pick->name);
    rvd_proxy_member *best = NULL;
    pick->has_others = 0;
    *code = p->closing ? REVDIAL_ECLOSED : REVDIAL_ENOBACKEND;
    if (!n || p->closing) return NULL;
    for (rvd_base_link *l = n->sessions.next; l != &n->sessions; l = l->next) {
        rvd_proxy_member *m = RVD_BASE_OWNER(l, rvd_proxy_member, link);
        if (m->base.is_up && rvd_stream_is_leaving(m->base.session)) *code = REVDIAL_EDRAINING;
        if (!m->base.is_up || rvd_stream_is_leaving(m->base.session)) continue;
        if (rvd_proxy_is_tried(pick, m->base.session)) continue;
        pick->has_others = best != NULL;
        if (rvd_proxy_is_better(m, best, pick)) best = m;
    }
    if (!best) return NULL;
    rvd_proxy_ailment_try_locked(pick, best);
    if (pick->opts->pick != REVDIAL_PICK_KEY) {  // the least recently picked one is in front
        rvd_base_link_remove(&best->link);
        rvd_base_link_push(&n->sessions, &best->link);
    }
    atomic_fetch_add_explicit(&best->picked, 1, memory_order_relaxed);
    return revdial_session_ref(best->base.session);
}

// The dial has become a stream, which counts instead, or has failed.
static void rvd_proxy_unpick(revdial_session *s)
{
    if (!s) return;
    atomic_fetch_sub_explicit(&((rvd_proxy_member *)s->member)->picked, 1, memory_order_relaxed);
    revdial_session_unref(s);
}

static const char *rvd_proxy_pick_text(int code)
{
    switch (code) {
    case REVDIAL_ENOBACKEND: return "no backend of that name is connected";
    case REVDIAL_EDRAINING: return "all backends of that name are going away";
    case REVDIAL_ETIMEDOUT: return "the dial timed out: no backend of that name came up";
    default: return "the proxy is closed";
    }
}

// ---- sessions come and go ----

static void rvd_proxy_waiting_begin_locked(revdial_proxy *p, rvd_proxy_member *m)
{
    rvd_base_link_push(&p->waiting, &m->asking);
    p->waiting_of[rvd_proxy_bucket(p, m)]++;
}

static void rvd_proxy_waiting_end_locked(revdial_proxy *p, rvd_proxy_member *m)
{
    if (rvd_base_link_is_alone(&m->asking)) return;
    rvd_base_link_remove(&m->asking);
    p->waiting_of[rvd_proxy_bucket(p, m)]--;
}

static void rvd_proxy_pending_end_locked(revdial_proxy *p, rvd_proxy_member *m)
{
    rvd_proxy_waiting_end_locked(p, m);
    if (m->is_pending) p->pending--;
    m->is_pending = 0;
    if (p->queue_count) rvd_loop_post(p->loops[0], &p->queue_task);
}

static void rvd_proxy_pending_end(revdial_proxy *p, revdial_session *s)
{
    pthread_mutex_lock(&p->own.lock);
    rvd_proxy_pending_end_locked(p, s->member);
    pthread_mutex_unlock(&p->own.lock);
}

// The request is no longer needed: wipes and frees its texts.
static void rvd_proxy_request_forget_locked(revdial_session *s)
{
    rvd_proxy_member *m = s->member;
    rvd_base_arena_free(&m->texts, &s->heap);
    m->auth.secret = m->auth.user = m->auth.name = m->auth.instance = NULL;
    m->auth.digest = NULL;
}

static void rvd_proxy_verdict(revdial_session *s, enum revdial_verdict verdict)
{
    rvd_stream_lock(s);
    revdial_engine_auth(s->engine, (int)verdict);
    rvd_proxy_request_forget_locked(s);
    rvd_stream_events_locked(s);
    rvd_stream_flush_soon_locked(s);
    rvd_stream_unlock(s);
}

// Ends a session for a reason of the proxy's own. Drops one reference of the caller.
static void rvd_proxy_end(revdial_session *s, int code, const char *why)
{
    rvd_stream_lock(s);
    if (!s->why.code) rvd_stream_fail(&s->why, code, 0, why);
    rvd_stream_unlock(s);
    revdial_session_kill(s);
    revdial_session_unref(s);
}

// Ends a session because a new one replaces it. It counts as lost: no call of ours has closed it.
static void rvd_proxy_replace(revdial_session *old)
{
    rvd_stream_lock(old);
    if (!old->why.code)
        rvd_stream_fail(&old->why, REVDIAL_EDUPLICATE, 0, "the same instance connected again");
    // A moment for its last frame: an agent that reconnects in a loop would hold many.
    old->end.is_brief = 1;
    revdial_engine_replace(old->engine);
    rvd_stream_unlock(old);
    revdial_session_kill(old);
    revdial_session_unref(old);
}

// A restarted process may leave a session behind that keepalive would find dead only after 30 s.
// Sessions of the same identity and machine are pinged, and end if they stay silent for a second.
static void rvd_proxy_question(revdial_proxy *p, const revdial_session *s)
{
    revdial_session *rivals[RVD_PROXY_RIVALS];
    rvd_proxy_member *own = s->member;
    size_t count = 0;
    pthread_mutex_lock(&p->own.lock);
    for (rvd_base_link *l = own->name->sessions.next;
         l != &own->name->sessions && count < RVD_PROXY_RIVALS; l = l->next) {
        rvd_proxy_member *m = RVD_BASE_OWNER(l, rvd_proxy_member, link);
        if (m == own || m->holder.who != own->holder.who ||
            !rvd_proxy_is_same_machine(m->base.session, s))
            continue;
        m->rival_us = rvd_sys_now_us();
        rivals[count++] = revdial_session_ref(m->base.session);
    }
    pthread_mutex_unlock(&p->own.lock);
    for (size_t i = 0; i < count; i++) {
        rvd_stream_lock(rivals[i]);
        revdial_engine_ping(rivals[i]->engine, rvd_sys_now_us());
        if (atomic_load(&rivals[i]->is_silent)) rivals[i]->pend |= RVD_STREAM_PEND_SILENT;
        rvd_stream_kick_locked(rivals[i]);
        rvd_stream_unlock(rivals[i]);
        revdial_session_unref(rivals[i]);
    }
}

static void rvd_proxy_on_verdict(rvd_loop_timer *t)
{
    rvd_proxy_member *m = RVD_BASE_OWNER(t, rvd_proxy_member, verdict);
    if (!atomic_load(&m->base.session->is_silent)) return;
    rvd_proxy_end(revdial_session_ref(m->base.session), REVDIAL_ELOST,
                  "no answer, and its machine has connected again");
}

// For the log: name and identity, as far as they are known.
static void rvd_proxy_note_refused(revdial_session *s)
{
    const rvd_proxy_member *m = s->member;
    const revdial_identity *tls = m->auth.tls;
    if (!s->name[0]) RVD_BASE_JOIN(s->name, sizeof s->name, m->auth.name);
    if (!s->instance[0]) RVD_BASE_JOIN(s->instance, sizeof s->instance, m->auth.instance);
    if (s->identity[0] || !tls || !tls->verified) return;
    RVD_BASE_JOIN(s->identity, sizeof s->identity, tls->san[0] ? tls->san : tls->subject);
}

static void rvd_proxy_count_refused_locked(revdial_proxy *p, const revdial_auth_req *req,
                                           enum revdial_verdict verdict)
{
    const int is_wrong = verdict == REVDIAL_VERDICT_UNAUTHORIZED;
    const int is_denied = verdict == REVDIAL_VERDICT_FORBIDDEN;
    revdial_stats *stats = &p->own.stats;
    unsigned scheme = req->scheme, place = 0;
    if (!scheme && req->tls && req->tls->verified) scheme = REVDIAL_AUTH_MTLS;
    while (scheme >> (place + 1)) place++;
    stats->handshakes_refused++;
    stats->auth_failures += req->scheme && (is_wrong || is_denied);
    stats->refused_401[place] += scheme && is_wrong;
    stats->refused_403[place] += scheme && is_denied;
    stats->refused_409 += verdict == REVDIAL_VERDICT_CONFLICT;
    stats->refused_429 += verdict == REVDIAL_VERDICT_TOO_MANY;
    stats->refused_503 += verdict == REVDIAL_VERDICT_UNAVAILABLE;
}

// Loop thread: there is a verdict on the credentials. Registers the session, or refuses it.
//   table    that gave the verdict; NULL: a hook did. A table that was replaced since admits nobody
static void rvd_proxy_admit(revdial_session *s, enum revdial_verdict verdict,
                            const rvd_auth_table *table)
{
    revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    revdial_session *old = NULL;
    int64_t now_us = rvd_sys_now_us();
    int is_contested = 0;
    pthread_mutex_lock(&p->own.lock);
    if (verdict == REVDIAL_VERDICT_UNAUTHORIZED) rvd_auth_charge(&p->guard, &m->guess, now_us);
    if (!verdict) rvd_auth_remember(&p->guard, &m->guess, now_us);
    if (!verdict && !s->name[0]) verdict = REVDIAL_VERDICT_BAD_REQUEST;
    if (!verdict && table && table != p->table) verdict = REVDIAL_VERDICT_UNAVAILABLE;
    if (!verdict) RVD_BASE_JOIN(s->instance, sizeof s->instance, m->auth.instance);
    if (!verdict) verdict = rvd_auth_verdict(rvd_proxy_register_locked(p, s, &old));
    if (old) is_contested = m->name->is_contested;
    if (verdict) rvd_proxy_count_refused_locked(p, &m->auth, verdict);
    pthread_mutex_unlock(&p->own.lock);
    if (verdict) rvd_proxy_note_refused(s);
    if (old) {
        rvd_proxy_log_session(old, RVD_LOG_SESSION_REPLACED,
                              is_contested ? REVDIAL_LOG_WARN : REVDIAL_LOG_INFO,
                              is_contested ? "the same instance connected again and again: if two "
                                             "agents use it, give each its own"
                                           : "the same instance connected again");
        rvd_proxy_replace(old);
    }
    if (!verdict) rvd_proxy_question(p, s);
    rvd_proxy_verdict(s, verdict);
}

// ---- the table of credentials ----

// Sets the session's identity, and which may share its name. group: NULL or "": itself alone.
static void rvd_proxy_holder_set(revdial_session *s, const char *group)
{
    const revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    m->holder = rvd_auth_holder_of(&p->guard, s->identity, group && group[0] ? group : NULL);
}

static void rvd_proxy_table_unref(revdial_proxy *p, rvd_auth_table *t)
{
    unsigned refs;
    pthread_mutex_lock(&p->own.lock);
    refs = --t->refs;
    pthread_mutex_unlock(&p->own.lock);
    if (!refs) rvd_auth_table_free(t);
}

static rvd_auth_table *rvd_proxy_table_ref(revdial_proxy *p)
{
    rvd_auth_table *t;
    pthread_mutex_lock(&p->own.lock);
    t = p->table;
    t->refs++;
    pthread_mutex_unlock(&p->own.lock);
    return t;
}

// Refuses a wrong row when it is configured, not when an agent presents its credentials.
static int rvd_proxy_rows_check(const revdial_credential *rows, size_t count, revdial_err *err)
{
    if (!rows != !count)
        return rvd_stream_fail(err, REVDIAL_EINVAL, 0,
                               rows ? "credential_count: 0, with credentials"
                                    : "credentials: NULL, but the count is not 0");
    for (size_t i = 0; i < count; i++) {
        const char *problem = revdial_credential_problem(&rows[i]);
        char text[160];
        if (!problem) continue;
        RVD_BASE_JOIN(text, sizeof text, "credentials[", RVD_BASE_NUMBER(i), "]: ", problem);
        return rvd_stream_fail(err, REVDIAL_EINVAL, 0, text);
    }
    return REVDIAL_OK;
}

// What a 401 asks for now; 0 = the engine's default.
static unsigned rvd_proxy_schemes(revdial_proxy *p)
{
    unsigned schemes = p->cfg.auth_schemes;
    pthread_mutex_lock(&p->own.lock);
    if (!schemes && !p->auth) schemes = p->table->schemes;
    pthread_mutex_unlock(&p->own.lock);
    return schemes & ~(unsigned)REVDIAL_AUTH_MTLS;  // certificates come before the request
}

static int rvd_proxy_check_table(const rvd_auth_table *t, revdial_session *s)
{
    const revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    size_t row;
    int code = rvd_auth_table_check(t, &m->auth, &row, s->name, s->identity);
    if (code) return code;
    m->is_listed = 1;
    m->row_mark = t->marks[row];
    m->holder = rvd_auth_row_holder(&p->guard, &t->rows[row], s->identity);
    return REVDIAL_OK;
}

static uint64_t rvd_proxy_peer_key(const rvd_sys_addr *a)
{
    const void *ip4 = &((const struct sockaddr_in *)&a->ss)->sin_addr;
    const void *ip6 = &((const struct sockaddr_in6 *)&a->ss)->sin6_addr;
    if (a->ss.ss_family == AF_INET) return rvd_auth_peer_key(ip4, 4);
    return a->ss.ss_family == AF_INET6 ? rvd_auth_peer_key(ip6, 16) : 0;
}

// ---- the check ----

// A call of the authentication hook, running or queued.
//   QUEUED --one of its block is done--> ASKED --> freed       QUEUED --it goes away--> freed
typedef struct rvd_proxy_auth {
    rvd_auth_turn turn;  // guarded by the proxy's lock
    rvd_loop_job job;
    rvd_loop_task task;
    revdial_session *session;  // holds a reference
    revdial_auth_fn *hook;
    void *ud;
    enum revdial_verdict verdict;
    char identity[128], group[128];
} rvd_proxy_auth;

static void rvd_proxy_auth_submit(rvd_proxy_auth *a)
{
    revdial_proxy *p = a->session->owner;
    if (rvd_loop_pool_submit(&p->auth_pool, &a->job, 0) == 0) return;
    a->verdict = REVDIAL_VERDICT_UNAVAILABLE;
    rvd_loop_post(a->session->loop, &a->task);
}

// The hook has returned for a, or is not called for it: the next request of the block has its turn.
static void rvd_proxy_auth_next(revdial_proxy *p, rvd_proxy_auth *a)
{
    rvd_auth_turn *turn;
    rvd_proxy_auth *next = NULL;
    pthread_mutex_lock(&p->own.lock);
    turn = rvd_auth_turn_end(&p->guard, &a->turn);
    if (turn) next = RVD_BASE_OWNER(turn, rvd_proxy_auth, turn);
    if (next) rvd_proxy_waiting_end_locked(p, next->session->member);
    pthread_mutex_unlock(&p->own.lock);
    if (next) rvd_proxy_auth_submit(next);
}

// A closed connection counts as pending until its hook returns; otherwise a client could queue any
// number of hooks.
static void rvd_proxy_auth_free(rvd_proxy_auth *a)
{
    revdial_session *s = a->session;
    rvd_proxy_member *m = s->member;
    m->check = NULL;
    rvd_proxy_auth_next(s->owner, a);
    if (m->is_down) rvd_proxy_pending_end(s->owner, s);
    rvd_stream_lock(s);
    if (m->is_down) rvd_proxy_request_forget_locked(s);
    rvd_base_free(&s->heap, a, sizeof *a);
    rvd_stream_unlock(s);
    rvd_stream_work_end(s->group->work);
    revdial_session_unref(s);
}

static void rvd_proxy_auth_done(rvd_loop_task *task)
{
    rvd_proxy_auth *a = RVD_BASE_OWNER(task, rvd_proxy_auth, task);
    revdial_session *s = a->session;
    const rvd_proxy_member *m = s->member;
    if (s->state == RVD_STREAM_HANDSHAKE) {
        a->identity[sizeof a->identity - 1] = '\0';
        RVD_BASE_JOIN(s->identity, sizeof s->identity, a->identity);
        a->group[sizeof a->group - 1] = '\0';
        rvd_proxy_holder_set(s, a->group);
        RVD_BASE_JOIN(s->name, sizeof s->name, m->auth.name);
        rvd_proxy_admit(s, a->verdict, NULL);
        rvd_stream_pend_run(s);
    }
    rvd_proxy_auth_free(a);
}

static void rvd_proxy_auth_run(rvd_loop_job *job)
{
    rvd_proxy_auth *a = RVD_BASE_OWNER(job, rvd_proxy_auth, job);
    revdial_session *s = a->session;
    revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    sigset_t ours;
    int may;
    pthread_mutex_lock(&p->own.lock);
    may = rvd_auth_may_check(&p->guard, &m->guess, rvd_sys_now_us());
    pthread_mutex_unlock(&p->own.lock);
    m->auth.group = a->group;
    a->verdict = REVDIAL_VERDICT_TOO_MANY;  // it has failed too often since it was queued
    if (may && !rvd_stream_is_leaving(s)) {
        rvd_sys_hook_begin(&s->group->mask, &ours);
        a->verdict = rvd_auth_verdict(a->hook(a->ud, &m->auth, a->identity, sizeof a->identity));
        rvd_sys_hook_end(&ours);
    }
    rvd_loop_post(s->loop, &a->task);
}

// Has the application's hook judge the request on another thread. While the request is queued, its
// connection may be dropped for a newcomer, like one whose request is not complete.
static void rvd_proxy_ask(revdial_session *s, revdial_auth_fn *hook, void *ud)
{
    revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    rvd_proxy_auth *a;
    int is_turn;
    rvd_stream_lock(s);
    a = rvd_base_alloc(&s->heap, sizeof *a);
    rvd_stream_unlock(s);
    if (!a) {
        rvd_proxy_verdict(s, REVDIAL_VERDICT_UNAVAILABLE);
        return;
    }
    a->job.run = rvd_proxy_auth_run;
    a->task.run = rvd_proxy_auth_done;
    a->session = revdial_session_ref(s);
    a->hook = hook;
    a->ud = ud;
    m->check = a;
    rvd_stream_work_begin(s->group->work);
    pthread_mutex_lock(&p->own.lock);
    is_turn = rvd_auth_turn_begin(&p->guard, &a->turn, m->guess.block);
    if (!is_turn) rvd_proxy_waiting_begin_locked(p, m);
    pthread_mutex_unlock(&p->own.lock);
    if (is_turn) rvd_proxy_auth_submit(a);
}

// Loop thread: a session has gone. If its turn with the hook has not come, the hook is not called.
static void rvd_proxy_unask(revdial_proxy *p, rvd_proxy_auth *a)
{
    int is_queued;
    pthread_mutex_lock(&p->own.lock);
    is_queued = !rvd_base_link_is_alone(&a->turn.link);
    rvd_base_link_remove(&a->turn.link);
    pthread_mutex_unlock(&p->own.lock);
    if (is_queued) rvd_proxy_auth_free(a);
}

static void rvd_proxy_request_keep(rvd_proxy_member *m, const revdial_auth_req *req)
{
    rvd_base_arena *a = &m->texts;
    m->auth = *req;
    m->auth.secret = rvd_base_keep_text(a, req->secret);
    m->auth.user = rvd_base_keep_text(a, req->user);
    m->auth.name = rvd_base_keep_text(a, req->name);
    m->auth.instance = rvd_base_keep_text(a, req->instance);
    if (!req->digest) return;
    m->digest.realm = rvd_base_keep_text(a, req->digest->realm);
    m->digest.nonce = rvd_base_keep_text(a, req->digest->nonce);
    m->digest.uri = rvd_base_keep_text(a, req->digest->uri);
    m->digest.nc = rvd_base_keep_text(a, req->digest->nc);
    m->digest.cnonce = rvd_base_keep_text(a, req->digest->cnonce);
    m->digest.response = rvd_base_keep_text(a, req->digest->response);
    m->auth.digest = &m->digest;
}

static void rvd_proxy_on_request_locked(revdial_session *s, const revdial_auth_req *req)
{
    rvd_proxy_member *m = s->member;
    rvd_proxy_request_keep(m, req);
    if (rvd_base_arena_open(&m->texts, &s->heap)) rvd_proxy_request_keep(m, req);
    m->auth.peer = s->peer;
    m->auth.tls = s->transport && s->transport->peer.verified ? &s->transport->peer : NULL;
}

static void rvd_proxy_on_auth(revdial_session *s)
{
    rvd_proxy_member *m = s->member;
    revdial_proxy *p = s->owner;
    enum revdial_verdict verdict = REVDIAL_VERDICT_ADMIT;
    int64_t now_us = rvd_sys_now_us();
    rvd_auth_guess guess = m->guess;
    revdial_auth_fn *check;
    rvd_auth_table *table;
    void *ud;
    if (m->texts.at) guess = rvd_auth_guess_of(&p->guard, guess.peer, &m->auth);
    pthread_mutex_lock(&p->own.lock);
    rvd_proxy_waiting_end_locked(p, m);
    m->guess = guess;  // while it waits, other threads look for the busiest block
    check = p->auth;
    ud = p->auth_ud;
    if (!m->texts.at)
        verdict = REVDIAL_VERDICT_UNAVAILABLE;  // out of memory for the request
    else if (m->auth.digest && !rvd_auth_nonce_take(&p->guard, m->auth.digest, now_us))
        verdict = REVDIAL_VERDICT_STALE_NONCE;
    else if (!rvd_auth_may_check(&p->guard, &m->guess, now_us))
        verdict = REVDIAL_VERDICT_TOO_MANY;
    else if (check && !m->auth.scheme && !m->auth.tls && !p->cfg.auth_anonymous)
        verdict = REVDIAL_VERDICT_UNAUTHORIZED;  // not worth a thread
    pthread_mutex_unlock(&p->own.lock);
    if (verdict) {
        rvd_proxy_admit(s, verdict, NULL);
    } else if (check) {
        rvd_proxy_ask(s, check, ud);
    } else {
        table = rvd_proxy_table_ref(p);
        rvd_proxy_admit(s, rvd_auth_verdict(rvd_proxy_check_table(table, s)), table);
        rvd_proxy_table_unref(p, table);
    }
}

static void rvd_proxy_on_up(revdial_session *s)
{
    revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    int draining;
    rvd_proxy_pending_end(p, s);
    rvd_proxy_log_session(s, RVD_LOG_SESSION_UP, REVDIAL_LOG_INFO, NULL);
    rvd_proxy_tell(p, s, REVDIAL_UP, NULL);
    pthread_mutex_lock(&p->own.lock);
    rvd_owner_up_locked(&p->own, &m->base);
    p->last_up_us = rvd_loop_now(s->loop);
    if (!rvd_base_link_is_alone(&p->dials)) rvd_loop_post(p->loops[0], &p->dials_wake);
    draining = p->draining;
    pthread_mutex_unlock(&p->own.lock);
    if (draining) revdial_session_drain(s, -1);  // it came up after the others were told to drain
}

static void rvd_proxy_on_goaway(revdial_session *s)
{
    revdial_proxy *p = s->owner;
    rvd_proxy_log_session(s, RVD_LOG_SESSION_DRAINING, REVDIAL_LOG_INFO, NULL);
    rvd_proxy_tell(p, s, REVDIAL_DRAINING, NULL);
}

// Is there another session to ask that is well?
static int rvd_proxy_has_others_locked(const rvd_proxy_member *m)
{
    for (rvd_base_link *l = m->link.next; l != &m->link; l = l->next) {
        const rvd_proxy_member *other = RVD_BASE_OWNER(l, rvd_proxy_member, link);
        if (l == &m->name->sessions || !other->base.is_up) continue;
        if (!rvd_stream_is_leaving(other->base.session) &&
            !atomic_load(&other->base.session->is_silent))
            return 1;
    }
    return 0;
}

static void rvd_proxy_on_silent(revdial_session *s)
{
    revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    int64_t rival_us, now_us = rvd_sys_now_us();
    int has_others;
    if (!m->name) return;
    pthread_mutex_lock(&p->own.lock);
    has_others = rvd_proxy_has_others_locked(m);
    rival_us = m->rival_us;
    pthread_mutex_unlock(&p->own.lock);
    if (rival_us && now_us - rival_us < RVD_PROXY_RIVAL_US)
        rvd_loop_timer_set(s->loop, &m->verdict, rival_us + RVD_PROXY_RIVAL_US);
    rvd_proxy_log_session(s, RVD_LOG_SESSION_SILENT, REVDIAL_LOG_INFO,
                          has_others ? "no answer to a ping: others are asked first"
                                     : "no answer to a ping");
    if (has_others) rvd_stream_dials_move(s);
}

// A backend that asked for a challenge has done nothing wrong, nor has the health check of a load
// balancer, which sends nothing or no upgrade request: both are logged at DEBUG.
static void rvd_proxy_log_refused(revdial_session *s, const revdial_engine_info *info,
                                  const revdial_err *why)
{
    const rvd_proxy_member *m = s->member;
    int is_asking = why->code == REVDIAL_EAUTH && !m->auth.scheme;
    int is_check = s->handshake.left_silent || info->was_probe;
    rvd_proxy_log_session(s, RVD_LOG_SESSION_REFUSED,
                          is_asking || is_check ? REVDIAL_LOG_DEBUG : REVDIAL_LOG_WARN,
                          m->limit ? m->limit : why->msg);
}

static void rvd_proxy_on_down(revdial_session *s, const revdial_err *why)
{
    revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    revdial_engine_info info;
    int was_up = 0, was_registered = m->name != NULL;
    m->is_down = 1;
    if (m->check) rvd_proxy_unask(p, m->check);
    if (!m->check) rvd_proxy_pending_end(p, s);
    rvd_stream_lock(s);
    if (!m->check) rvd_proxy_request_forget_locked(s);
    revdial_engine_get_info(s->engine, &info);
    rvd_stream_unlock(s);
    pthread_mutex_lock(&p->own.lock);
    rvd_loop_timer_stop(s->loop, &m->verdict);
    if (was_registered) {
        was_up = m->base.is_up;
        if (why->code == REVDIAL_ETIMEDOUT && p->draining) p->own.was_cut = 1;
        rvd_proxy_forget_locked(p, m);
        rvd_owner_down_locked(&p->own, &m->base, &info);
    }
    if (was_up) rvd_auth_remember(&p->guard, &m->guess, rvd_sys_now_us());
    pthread_mutex_unlock(&p->own.lock);
    if (was_up)
        rvd_proxy_log_session(s, RVD_LOG_SESSION_DOWN, REVDIAL_LOG_INFO, why->msg);
    else
        rvd_proxy_log_refused(s, &info, why);
    if (was_up) rvd_proxy_tell(p, s, REVDIAL_DOWN, why->code == REVDIAL_ECLOSED ? NULL : why);
    if (was_registered) revdial_session_unref(s);  // the registry's; the caller has one
}

static void rvd_proxy_on_open_locked(revdial_session *s, revdial_stream *st)
{
    revdial_proxy *p = s->owner;
    rvd_owner_serve_locked(&p->own, s, st);
}

static const rvd_stream_host rvd_proxy_host = {
    .is_proxy = 1,
    .member_size = sizeof(rvd_proxy_member),
    .on_request_locked = rvd_proxy_on_request_locked,
    .on_open_locked = rvd_proxy_on_open_locked,
    .on_auth = rvd_proxy_on_auth,
    .on_up = rvd_proxy_on_up,
    .on_goaway = rvd_proxy_on_goaway,
    .on_silent = rvd_proxy_on_silent,
    .on_down = rvd_proxy_on_down,
};

// ---- new connections ----

// A connection on its way to its loop.
typedef struct rvd_proxy_arrival {
    rvd_loop_task task;
    revdial_session *session;
    size_t early_len;
    int is_upgraded;
    uint8_t early[];
} rvd_proxy_arrival;

static void rvd_proxy_arrive(rvd_loop_task *task)
{
    rvd_proxy_arrival *a = RVD_BASE_OWNER(task, rvd_proxy_arrival, task);
    revdial_session *s = a->session, *old = NULL;
    rvd_proxy_member *m = s->member;
    revdial_proxy *p = s->owner;
    int code = 0;
    if (a->is_upgraded) {
        pthread_mutex_lock(&p->own.lock);
        code = rvd_proxy_register_locked(p, s, &old);
        pthread_mutex_unlock(&p->own.lock);
        if (old) rvd_proxy_replace(old);
    }
    if (code || rvd_stream_session_run(s) < 0) {
        rvd_sys_close(s->fd);
        rvd_proxy_pending_end(p, s);
        if (m->name) {
            pthread_mutex_lock(&p->own.lock);
            rvd_proxy_forget_locked(p, m);
            rvd_owner_remove_locked(&p->own, &m->base);
            pthread_mutex_unlock(&p->own.lock);
            revdial_session_unref(s);
        }
        revdial_session_unref(s);
    } else {
        rvd_stream_lock(s);
        rvd_reader_loop_begin(&s->reader);
        rvd_stream_events_locked(s);
        rvd_stream_unlock(s);
        rvd_stream_pend_run(s);
        pthread_mutex_lock(&p->own.lock);
        if (!a->is_upgraded && !m->is_down) rvd_proxy_waiting_begin_locked(p, m);
        pthread_mutex_unlock(&p->own.lock);
        rvd_stream_feed_early(s, a->early, a->early_len);
    }
    rvd_base_wipe(a->early, a->early_len);
    rvd_owner_free(&p->own, a, sizeof *a + a->early_len);
    rvd_stream_work_end(&p->own.work);
}

static void rvd_proxy_member_init(revdial_session *s, const rvd_sys_addr *peer)
{
    const revdial_proxy *p = s->owner;
    rvd_proxy_member *m = s->member;
    rvd_owner_member_init(&m->base, s);
    m->guess = rvd_auth_guess_of(&p->guard, peer ? rvd_proxy_peer_key(peer) : 0, NULL);
    m->verdict.run = rvd_proxy_on_verdict;
    m->is_pending = 1;
    rvd_base_link_init(&m->asking);
    rvd_base_link_init(&m->link);
    atomic_init(&m->picked, 0);
}

// What the proxy's config says about each of its sessions.
static void rvd_proxy_engine_config(revdial_proxy *p, revdial_engine_config *e)
{
    const revdial_proxy_config *cfg = &p->cfg;
    memset(e, 0, sizeof *e);
    e->role = REVDIAL_ROLE_PROXY;
    e->path = cfg->path;
    e->realm = cfg->realm;
    e->origins = cfg->origins;
    e->auth_schemes = rvd_proxy_schemes(p);
    e->accept_streams = cfg->on_stream != NULL;
    e->limits = cfg->common.limits;
    e->alloc = cfg->common.alloc;
    e->alloc_ud = cfg->common.alloc_ud;
}

// how is NULL for a connection that a listener of ours has accepted.
static revdial_session *rvd_proxy_session_new(revdial_proxy *p, int fd, const rvd_sys_addr *peer,
                                              const revdial_attach_opts *how, revdial_err *err)
{
    revdial_engine_config e;
    rvd_stream_session_config cfg;
    revdial_session *s;
    char nonce[RVD_AUTH_NONCE_SIZE], text[RVD_SYS_TEXT_MAX] = "unknown";
    if (peer) rvd_sys_addr_format(peer, text, sizeof text);
    memset(&cfg, 0, sizeof cfg);
    rvd_proxy_engine_config(p, &e);
    e.upgraded = how && how->upgraded;
    e.peer = text;
    if (e.auth_schemes & REVDIAL_AUTH_DIGEST) {
        pthread_mutex_lock(&p->own.lock);
        rvd_auth_nonce_make(&p->guard, rvd_sys_now_us(), nonce);
        pthread_mutex_unlock(&p->own.lock);
        e.nonce = nonce;
    }
    if (rvd_sys_random(&e.session_id, sizeof e.session_id) < 0 ||
        rvd_sys_random(&e.seed, sizeof e.seed) < 0) {
        rvd_stream_fail(err, REVDIAL_ESYS, 0, "no randomness for a session");
        return NULL;
    }
    cfg.host = &rvd_proxy_host;
    cfg.owner = p;
    cfg.origin = p->own.origin;
    cfg.fd = fd;
    cfg.peer = text;
    cfg.engine = &e;
    if (how)
        cfg.transport = how->transport;
    else if (strncmp(text, "unix", 4) != 0)  // files have permissions of their own
        cfg.tls = p->cfg.common.tls;
    pthread_mutex_lock(&p->own.lock);
    cfg.group = &p->groups[p->next_loop++ % p->loop_count];
    pthread_mutex_unlock(&p->own.lock);
    s = rvd_stream_session_new(&cfg, err);
    if (s) rvd_proxy_member_init(s, peer);
    return s;
}

// Sends a new session to its loop, with the bytes that were read early. Takes over the fd and s.
static int rvd_proxy_launch(revdial_proxy *p, revdial_session *s, const revdial_attach_opts *how)
{
    size_t early = how ? how->early_len : 0;
    rvd_proxy_arrival *a = rvd_owner_alloc(&p->own, sizeof *a + early);
    if (!a) {
        rvd_sys_close(s->fd);
        rvd_proxy_pending_end(p, s);
        revdial_session_unref(s);
        return REVDIAL_ENOMEM;
    }
    a->task.run = rvd_proxy_arrive;
    a->session = s;
    a->early_len = early;
    a->is_upgraded = how && how->upgraded;
    if (early) memcpy(a->early, how->early, early);
    rvd_stream_work_begin(&p->own.work);
    if (rvd_loop_is_owner(s->loop))
        rvd_proxy_arrive(&a->task);
    else
        rvd_loop_post(s->loop, &a->task);
    return REVDIAL_OK;
}

// The block with the most connections whose request is not complete.
static size_t rvd_proxy_busiest_locked(const revdial_proxy *p)
{
    size_t most = 0;
    for (size_t i = 1; i < RVD_AUTH_BUCKETS; i++)
        if (p->waiting_of[i] > p->waiting_of[most]) most = i;
    return most;
}

// The connection to drop for a newcomer: of the busiest block, the one whose last progress is the
// longest ago. Sources with few pending connections are never the victim.
//   is_own   the newcomer's source has at least half as many pending connections as the busiest
//            one: then only one without progress for RVD_PROXY_STALE_US (_BUSY_US) is dropped
//   returns  a reference, or NULL
static revdial_session *rvd_proxy_victim_locked(revdial_proxy *p, size_t busiest, int is_own)
{
    int64_t now_us = rvd_sys_now_us(), oldest_us = INT64_MAX;
    revdial_session *victim = NULL;
    if (is_own) {
        int is_coming = now_us - p->last_up_us < RVD_PROXY_COMING_US;
        oldest_us = now_us - (is_coming ? RVD_PROXY_BUSY_US : RVD_PROXY_STALE_US);
    }
    for (rvd_base_link *l = p->waiting.next; l != &p->waiting; l = l->next) {
        rvd_proxy_member *m = RVD_BASE_OWNER(l, rvd_proxy_member, asking);
        revdial_session *s = m->base.session;
        unsigned moved_ms = atomic_load_explicit(&s->handshake.moved_ms, memory_order_relaxed);
        int64_t moved_us = s->start_us + (int64_t)moved_ms * 1000;
        if (rvd_proxy_bucket(p, m) != busiest || moved_us >= oldest_us) continue;
        victim = s;
        oldest_us = moved_us;
    }
    return revdial_session_ref(victim);
}

// How a connection asks for a place among the pending ones. COMES: a new one; one of the busiest
// source goes to the end of the queue. WAITED: the head of the queue. MUST: the queue is full, so
// even a connection of its own source that makes progress may be dropped for it.
enum rvd_proxy_want { RVD_PROXY_COMES, RVD_PROXY_WAITED, RVD_PROXY_MUST };

// Counts a connection that has not authenticated. The last places are kept from the busiest source.
//   returns  0; REVDIAL_EAGAIN: no place is free now; REVDIAL_ECLOSED: the proxy drains or closes
static int rvd_proxy_pending_begin(revdial_proxy *p, uint64_t block, enum rvd_proxy_want want)
{
    unsigned most = rvd_proxy_or(p->cfg.max_pending, 512), others = most / 32 * RVD_PROXY_OTHERS;
    revdial_session *victim = NULL;
    int code = REVDIAL_OK, is_own = 0;
    size_t busiest = 0, own = rvd_auth_bucket(&p->guard, block);
    pthread_mutex_lock(&p->own.lock);
    if (p->pending >= most - others || p->queue_count) {
        busiest = rvd_proxy_busiest_locked(p);
        is_own = 2 * p->waiting_of[own] + 1 > p->waiting_of[busiest];
        if (own == busiest) most -= others;
    }
    if (p->closing || p->draining) {
        code = REVDIAL_ECLOSED;
    } else if (want == RVD_PROXY_COMES && own == busiest && p->queue_count) {
        code = REVDIAL_EAGAIN;
    } else if (p->pending >= most) {
        victim = rvd_proxy_victim_locked(p, busiest, is_own && want != RVD_PROXY_MUST);
        if (!victim) code = REVDIAL_EAGAIN;
    }
    if (victim) rvd_proxy_pending_end_locked(p, victim->member);
    if (!code) p->pending++;
    if (victim) p->own.stats.handshakes_refused++;
    pthread_mutex_unlock(&p->own.lock);
    if (victim)
        rvd_proxy_end(victim, REVDIAL_ELOST,
                      "dropped for another connection, because it made no progress");
    return code;
}

static void rvd_proxy_pending_undo(revdial_proxy *p)
{
    pthread_mutex_lock(&p->own.lock);
    p->pending--;
    pthread_mutex_unlock(&p->own.lock);
}

// Starts a session on a connection that has its place. Closes the connection if that fails.
static void rvd_proxy_begin(revdial_proxy *p, int fd, const rvd_sys_addr *peer)
{
    revdial_err err;
    revdial_session *s = rvd_proxy_session_new(p, fd, peer, NULL, &err);
    if (s) {
        rvd_proxy_launch(p, s, NULL);
        return;
    }
    rvd_proxy_log(p, RVD_LOG_SESSION_REFUSED, REVDIAL_LOG_WARN, err.msg);
    rvd_proxy_pending_undo(p);
    rvd_sys_close(fd);
}

static void rvd_proxy_refuse(revdial_proxy *p, int fd)
{
    rvd_proxy_log(p, RVD_LOG_SESSION_REFUSED, REVDIAL_LOG_DEBUG, "too many pending connections");
    pthread_mutex_lock(&p->own.lock);
    p->own.stats.handshakes_refused++;
    pthread_mutex_unlock(&p->own.lock);
    rvd_sys_close(fd);
}

// ---- the queue ----
// A source that has most places gets no more while its own handshakes make progress: its further
// connections wait here, as a descriptor and an address. Agents speak first, so only a connection
// that has sent a byte gets a place; a silent one makes room for others here, too.

static void rvd_proxy_queue_set(revdial_proxy *p, size_t count)
{
    pthread_mutex_lock(&p->own.lock);
    p->queue_count = count;
    pthread_mutex_unlock(&p->own.lock);
    if (!count)
        rvd_loop_timer_stop(p->loops[0], &p->queue_timer);
    else if (!p->queue_timer.slot)  // without memory, a place that gets free triggers it
        rvd_loop_timer_set(p->loops[0], &p->queue_timer,
                           rvd_loop_now(p->loops[0]) + RVD_PROXY_QUEUE_US);
}

// Loop 0. Gives places to queued connections that have sent a byte, oldest first, and drops those
// that have been silent for too long.
static void rvd_proxy_queue_pass(revdial_proxy *p)
{
    struct pollfd polls[RVD_PROXY_QUEUE_POLLS];
    size_t at = 0, kept = 0, count = p->queue_count;
    int64_t patience_us = count > p->queue_max / 2 ? RVD_PROXY_STALE_US : RVD_PROXY_SILENCE_US;
    int64_t until_us = rvd_loop_now(p->loops[0]) - patience_us;
    int code = REVDIAL_OK;
    while (at < count && code != REVDIAL_EAGAIN) {
        size_t some = rvd_base_min(count - at, RVD_PROXY_QUEUE_POLLS);
        for (size_t i = 0; i < some; i++) {
            polls[i].fd = p->queue[at + i].fd;
            polls[i].events = POLLIN;
            polls[i].revents = 0;
        }
        rvd_sys_poll(polls, some, 0);
        for (size_t i = 0; i < some; i++, at++) {
            rvd_proxy_queued q = p->queue[at];
            if (polls[i].revents && code != REVDIAL_EAGAIN) {
                code = rvd_proxy_pending_begin(p, rvd_auth_peer_block(rvd_proxy_peer_key(&q.peer)),
                                               RVD_PROXY_WAITED);
                if (!code) rvd_proxy_begin(p, q.fd, &q.peer);
            }
            if (polls[i].revents && code == REVDIAL_OK) continue;
            if ((!polls[i].revents && q.since_us <= until_us) || code == REVDIAL_ECLOSED)
                rvd_proxy_refuse(p, q.fd);
            else
                p->queue[kept++] = q;
        }
    }
    if (kept != at) memmove(p->queue + kept, p->queue + at, (count - at) * sizeof *p->queue);
    rvd_proxy_queue_set(p, kept + count - at);
}

static void rvd_proxy_on_queue_task(rvd_loop_task *task)
{
    rvd_proxy_queue_pass(RVD_BASE_OWNER(task, revdial_proxy, queue_task));
}

static void rvd_proxy_on_queue_timer(rvd_loop_timer *t)
{
    rvd_proxy_queue_pass(RVD_BASE_OWNER(t, revdial_proxy, queue_timer));
}

// Returns 0 when the queue is full.
static int rvd_proxy_enqueue(revdial_proxy *p, int fd, const rvd_sys_addr *peer)
{
    rvd_proxy_queued *q;
    if (p->queue_count >= p->queue_max) return 0;
    if (p->queue_count == p->queue_room) {
        void *fresh;
        pthread_mutex_lock(&p->own.lock);
        fresh = rvd_loop_grown(&p->own.heap, p->queue, &p->queue_room, sizeof *p->queue);
        pthread_mutex_unlock(&p->own.lock);
        if (!fresh) return 0;
        p->queue = fresh;
    }
    q = &p->queue[p->queue_count];
    q->fd = fd;
    q->peer = *peer;
    q->since_us = rvd_loop_now(p->loops[0]);
    rvd_proxy_queue_set(p, p->queue_count + 1);
    return 1;
}

static void rvd_proxy_accept(revdial_proxy *p, int fd, const rvd_sys_addr *peer)
{
    uint64_t block = rvd_auth_peer_block(rvd_proxy_peer_key(peer));
    int code = rvd_proxy_pending_begin(p, block, RVD_PROXY_COMES);
    if (code == REVDIAL_EAGAIN && rvd_proxy_enqueue(p, fd, peer)) return;
    if (code == REVDIAL_EAGAIN) code = rvd_proxy_pending_begin(p, block, RVD_PROXY_MUST);
    if (!code)
        rvd_proxy_begin(p, fd, peer);
    else
        rvd_proxy_refuse(p, fd);
}

// ---- ports ----

static void rvd_proxy_listener_become(rvd_proxy_listener *l, enum rvd_proxy_listener_state to)
{
    REVDIAL_ASSERT(to > l->state);  // the order of the enum is the order of the arrows
    l->state = to;
}

static rvd_proxy_listener *rvd_proxy_listener_ref(rvd_proxy_listener *l)
{
    atomic_fetch_add(&l->refs, 1);
    return l;
}

// Freed by loop 0, after what was posted for it.
static void rvd_proxy_listener_unref(rvd_proxy_listener *l)
{
    if (atomic_fetch_sub(&l->refs, 1) == 1) rvd_loop_post(l->proxy->loops[0], &l->end);
}

// Removes the path of a unix socket, once.
static void rvd_proxy_listener_unlink(rvd_proxy_listener *l)
{
    char path[sizeof l->unlink];
    pthread_mutex_lock(&l->proxy->own.lock);
    memcpy(path, l->unlink, sizeof path);
    l->unlink[0] = '\0';
    pthread_mutex_unlock(&l->proxy->own.lock);
    if (path[0]) rvd_sys_unlink(path);
}

// Loop 0, or nobody watches it. The path goes first: after the close it may already be a
// successor's.
static void rvd_proxy_listener_close(rvd_proxy_listener *l)
{
    rvd_proxy_listener_unlink(l);
    if (l->io.fd >= 0) rvd_sys_close_both(l->io.fd);
    l->io.fd = -1;
}

static void rvd_proxy_listener_free(rvd_proxy_listener *l)
{
    rvd_proxy_listener_close(l);
    rvd_owner_free(&l->proxy->own, l, l->size);
}

static void rvd_proxy_listener_unwatch(rvd_proxy_listener *l)
{
    rvd_loop_timer_stop(l->proxy->loops[0], &l->pause);
    rvd_loop_remove(l->proxy->loops[0], &l->io);
    rvd_proxy_listener_close(l);
}

static void rvd_proxy_client_begin(rvd_proxy_listener *l, int fd, const rvd_sys_addr *peer);
static int rvd_proxy_route_yield(rvd_proxy_listener *l);

// How many connections may be accepted now. A port with max_waiting clients leaves the others in
// the kernel's queue: in a burst their turn comes soon; for an absent backend they cost nothing.
static unsigned rvd_proxy_accepts(rvd_proxy_listener *l)
{
    unsigned most, left;
    if (!l->id) return RVD_PROXY_ACCEPTS;
    most = rvd_proxy_or(l->expose.max_waiting, RVD_PROXY_CLIENTS_WAITING);
    pthread_mutex_lock(&l->proxy->own.lock);
    left = l->waiting < most ? most - l->waiting : 0;
    l->is_full = left == 0;
    pthread_mutex_unlock(&l->proxy->own.lock);
    if (left == 0) left = (unsigned)rvd_proxy_route_yield(l);
    return rvd_base_min_u32(left, RVD_PROXY_ACCEPTS);
}

static void rvd_proxy_pause(rvd_proxy_listener *l, const char *why)
{
    rvd_loop *loop = l->proxy->loops[0];
    rvd_proxy_log(l->proxy, RVD_LOG_ACCEPT_PAUSED, REVDIAL_LOG_WARN, why);
    if (rvd_loop_timer_set(loop, &l->pause, rvd_loop_now(loop) + RVD_PROXY_PAUSE_US) < 0)
        rvd_loop_post(loop, &l->resume);
}

// Some descriptors are kept for backends. Once a client has got one of these, no client is accepted
// until the next free descriptor is below them again; clients wait in the kernel's queues.
static int rvd_proxy_has_fd_for_client(rvd_proxy_listener *l)
{
    revdial_proxy *p = l->proxy;
    int next;
    if (!p->is_short_of_fds) return 1;
    p->fd_most = rvd_sys_fd_most();  // it may have been raised
    next = rvd_sys_fd_next(l->io.fd);
    p->is_short_of_fds = next < 0 || next >= p->fd_most;
    return !p->is_short_of_fds;
}

// Accepts one connection. Returns 0 to stop for now.
static int rvd_proxy_listener_accept(rvd_proxy_listener *l)
{
    rvd_sys_addr peer;
    int fd;
    if (l->id && !rvd_proxy_has_fd_for_client(l)) {
        rvd_proxy_pause(l, "the descriptors that are left are kept for backends");
        return 0;
    }
    fd = rvd_sys_accept(l->io.fd, &peer);
    if (fd == -ECONNABORTED) return 1;
    if (fd == -EAGAIN) {
        l->io.ready &= ~(unsigned)RVD_LOOP_READ;
        return 0;
    }
    if (fd < 0) {
        rvd_proxy_pause(l, strerror(-fd));
        return 0;
    }
    if (l->id && fd >= l->proxy->fd_most) l->proxy->is_short_of_fds = 1;
    if (l->id)
        rvd_proxy_client_begin(l, fd, &peer);
    else
        rvd_proxy_accept(l->proxy, fd, &peer);
    return l->io.fd >= 0;  // on_client may have unexposed it
}

static void rvd_proxy_on_listener(rvd_loop_io *io)
{
    rvd_proxy_listener *l = RVD_BASE_OWNER(io, rvd_proxy_listener, io);
    unsigned most = rvd_proxy_accepts(l), count = 0;
    if (most == 0) return;
    rvd_proxy_listener_ref(l);
    while (count < most && rvd_proxy_listener_accept(l)) count++;
    if (count == most) rvd_loop_again(l->proxy->loops[0], io);
    rvd_proxy_listener_unref(l);
}

static void rvd_proxy_on_resume(rvd_loop_task *task)
{
    rvd_proxy_listener *l = RVD_BASE_OWNER(task, rvd_proxy_listener, resume);
    rvd_loop *loop = l->proxy->loops[0];
    int r = 0;
    if (l->io.fd < 0) return;
    if (l->io.slot)
        rvd_loop_again(loop, &l->io);
    else
        r = rvd_loop_add(loop, &l->io);
    if (r < 0) rvd_proxy_pause(l, strerror(-r));
}

static void rvd_proxy_on_pause(rvd_loop_timer *t)
{
    rvd_proxy_on_resume(&RVD_BASE_OWNER(t, rvd_proxy_listener, pause)->resume);
}

// Can this be a backend's connection?
//   returns  0, or REVDIAL_E* and the reason
static int rvd_proxy_attach_check(int fd, const revdial_attach_opts *how, rvd_sys_addr *peer,
                                  revdial_err *err)
{
    const char *problem = NULL, *name = how->upgraded ? how->name : "attached";
    const char *instance = how->upgraded && how->instance ? how->instance : "none";
    int r = rvd_sys_is_stream(fd);
    if (!name || !rvd_base_is_name(name, strlen(name))) problem = RVD_BASE_NAME_RULE;
    if (!rvd_base_is_label(instance, strlen(instance), 1)) problem = RVD_BASE_INSTANCE_RULE;
    if (how->upgraded && how->identity && strlen(how->identity) > RVD_AUTH_IDENTITY_MAX)
        problem = "identity: over 127 bytes";
    if (how->early_len && !how->early) problem = "early: NULL, but the length is not 0";
    if (how->early_len > RVD_BASE_LEN_MAX / 2) problem = "early_len: negative, or too large";
    if (r == 0 || r == -ENOTSOCK) problem = "fd: not a stream socket";
    if (problem) return rvd_stream_fail(err, REVDIAL_EINVAL, 0, problem);
    if (r > 0) r = rvd_sys_getpeername(fd, peer);
    if (r == 0) r = rvd_sys_set_nonblocking(fd);
    if (r == 0) return REVDIAL_OK;
    rvd_sys_fail(err,
                 r == -ENOTCONN ? REVDIAL_ELOST
                 : r == -EBADF  ? REVDIAL_EINVAL
                                : REVDIAL_ESYS,
                 -r, NULL, "fd");
    return err->code;
}

// Closes the descriptor and the transport that were handed over. Returns the error's code.
static int rvd_proxy_attach_refuse(revdial_proxy *p, int fd, const revdial_attach_opts *how,
                                   const revdial_err *why)
{
    int is_ours = why->code == REVDIAL_ECLOSED || why->code == REVDIAL_ELIMIT;
    rvd_proxy_log(p, RVD_LOG_SESSION_REFUSED, is_ours ? REVDIAL_LOG_DEBUG : REVDIAL_LOG_WARN,
                  why->msg);
    if (how->transport) how->transport->do_close(how->transport->ctx);
    rvd_sys_close(fd);
    return why->code;
}

int revdial_proxy_attach(revdial_proxy *p, int fd, const revdial_attach_opts *how, revdial_err *err)
{
    static const revdial_attach_opts none;
    rvd_sys_addr peer;
    revdial_session *s;
    revdial_err own;
    int code;
    if (!err) err = &own;
    memset(err, 0, sizeof *err);
    if (rvd_owner_is_child(&p->own)) {
        rvd_sys_close(fd);
        return rvd_stream_fail(err, REVDIAL_ECLOSED, 0, RVD_STREAM_CHILD);
    }
    if (!how) how = &none;
    if (rvd_proxy_attach_check(fd, how, &peer, err))
        return rvd_proxy_attach_refuse(p, fd, how, err);
    code =
        rvd_proxy_pending_begin(p, rvd_auth_peer_block(rvd_proxy_peer_key(&peer)), RVD_PROXY_MUST);
    if (code) {
        code = code == REVDIAL_EAGAIN ? REVDIAL_ELIMIT : code;
        rvd_stream_fail(err, code, 0, revdial_strerror(code));
        return rvd_proxy_attach_refuse(p, fd, how, err);
    }
    s = rvd_proxy_session_new(p, fd, &peer, how, err);
    if (!s) {
        rvd_proxy_pending_undo(p);
        return rvd_proxy_attach_refuse(p, fd, how, err);
    }
    if (how->upgraded) {
        RVD_BASE_JOIN(s->name, sizeof s->name, how->name);
        RVD_BASE_JOIN(s->instance, sizeof s->instance, how->instance);
        RVD_BASE_JOIN(s->identity, sizeof s->identity, how->identity);
        rvd_proxy_holder_set(s, how->group);
    }
    code = rvd_proxy_launch(p, s, how);
    return code ? rvd_stream_fail(err, code, 0, "out of memory for a session") : REVDIAL_OK;
}

// ---- dials ----

static rvd_proxy_pick rvd_proxy_pick_start(const revdial_proxy *p, const char *name,
                                           const revdial_dial_opts *opts)
{
    rvd_proxy_pick pick;
    memset(&pick, 0, sizeof pick);
    pick.name = name;
    pick.opts = opts;
    if (opts->target)
        pick.target = rvd_base_hash(opts->target, strlen(opts->target), p->guard.seed);
    return pick;
}

// Should the dial wait for a backend to appear? Not after one has refused it.
static int rvd_proxy_waits(const rvd_proxy_pick *pick, const revdial_err *refusal)
{
    return pick->opts->flags & REVDIAL_DIAL_WAIT && refusal->code != REVDIAL_EREFUSED &&
           refusal->code != REVDIAL_EUNREACH;
}

// Waits for a backend, if the dial asked to.
static revdial_session *rvd_proxy_pick_wait(revdial_proxy *p, rvd_proxy_pick *pick,
                                            const rvd_stream_dial *d, int *code)
{
    revdial_session *s;
    int r = 0;
    pthread_mutex_lock(&p->own.lock);
    s = rvd_proxy_pick_locked(p, pick, code);
    while (!s && rvd_proxy_waits(pick, &d->err) && *code != REVDIAL_ECLOSED && r == 0) {
        r = rvd_owner_wait_locked(&p->own, d->deadline_us);
        s = rvd_proxy_pick_locked(p, pick, code);
    }
    if (!s && r) *code = REVDIAL_ETIMEDOUT;
    pthread_mutex_unlock(&p->own.lock);
    return s;
}

// Counts a call that may still run when the proxy is stopped, so that the proxy is freed after it.
// Returns 0 if the proxy is being stopped already.
static int rvd_proxy_enter(revdial_proxy *p)
{
    int open;
    pthread_mutex_lock(&p->own.lock);
    open = !p->closing;
    if (open) rvd_stream_work_begin(&p->own.work);
    pthread_mutex_unlock(&p->own.lock);
    return open;
}

// May the dial ask another session? Only where nothing can have been processed: it was refused
// before it was accepted, or nothing that the client sent has gone out. What came of it is noted.
static int rvd_proxy_may_retry(revdial_proxy *p, rvd_proxy_pick *pick, const rvd_stream_dial *d,
                               const revdial_session *s)
{
    if (d->is_unreachable || (d->st && pick->was_ailing))
        rvd_proxy_ailment_note(p, pick, s, d->st != NULL);
    if (d->st || !d->retry_safe || pick->tried_count == RVD_PROXY_TRIES) return 0;
    pick->tried[pick->tried_count++] = s->id;
    return 1;
}

static int rvd_proxy_is_on_loop(revdial_proxy *p)
{
    for (unsigned i = 0; i < p->loop_count; i++)
        if (rvd_loop_is_owner(p->loops[i])) return 1;
    return 0;
}

// Logs a failed dial of a client, or of the application (from is NULL), which also has the error. A
// client that closed its connection is no failure: DEBUG.
static void rvd_proxy_log_dial(revdial_proxy *p, const char *name, const rvd_stream_dial *d,
                               const rvd_proxy_listener *from)
{
    int is_gone = from && d->err.code == REVDIAL_ECLOSED;
    rvd_log_line l;
    if (!rvd_log_begin(&p->own.log, &l, is_gone ? RVD_LOG_CLIENT_GONE : RVD_LOG_DIAL_FAILED,
                       is_gone || !from ? REVDIAL_LOG_DEBUG : REVDIAL_LOG_WARN))
        return;
    rvd_log_id(&l, "session", d->session_id);
    rvd_stream_log_dial(&l, d->session_id, d->stream_id);
    rvd_log_text(&l, "name", name);
    rvd_log_text(&l, "client", d->opts->client_addr);
    rvd_log_text(&l, "listen", from ? from->address : NULL);
    rvd_log_text(&l, "target", d->opts->target);
    rvd_log_text(&l, "reason", d->err.msg);
    rvd_log_end(&p->own.log, &l);
}

// The dial is over: how it went is counted.
static void rvd_proxy_count_dial_locked(revdial_proxy *p, const rvd_stream_dial *d)
{
    const int64_t took_us = rvd_sys_now_us() - d->start_us;
    revdial_stats *stats = &p->own.stats;
    if (!d->st) {
        stats->dials_failed++;
        if (d->err.code < 0 && d->err.code > -REVDIAL_ERROR_PLACES)
            stats->dials_failed_by[-d->err.code]++;
    }
    stats->dials++;
    stats->dial_us += (uint64_t)took_us;
    for (int i = 0; i < REVDIAL_DIAL_PLACES; i++)
        stats->dials_within[i] += took_us <= (int64_t)250 << i;
}

// Asks one session after the other, as long as that is safe. The reason of a refusal is kept; that
// no further session is left says less.
static void rvd_proxy_dial_sessions(revdial_proxy *p, const char *name, rvd_stream_dial *d)
{
    rvd_proxy_pick pick = rvd_proxy_pick_start(p, name, d->opts);
    int code, again;
    do {
        revdial_session *s = rvd_proxy_pick_wait(p, &pick, d, &code);
        if (!s) {
            if (!d->err.code || code == REVDIAL_ETIMEDOUT || code == REVDIAL_ECLOSED)
                rvd_stream_fail(&d->err, code, 0, rvd_proxy_pick_text(code));
            return;
        }
        d->is_movable = pick.has_others;
        rvd_stream_dial_blocking(s, d);
        again = rvd_proxy_may_retry(p, &pick, d, s);
        rvd_proxy_unpick(s);
    } while (again);
}

// Are the name and the options valid? Returns 0, or REVDIAL_EINVAL.
static int rvd_proxy_dial_check(const char *name, const revdial_dial_opts *opts, revdial_err *err)
{
    if (rvd_base_is_name(name, strlen(name))) return rvd_stream_dial_check(opts, err);
    rvd_sys_fail(err, REVDIAL_EINVAL, 0, name, RVD_BASE_NAME_RULE);
    rvd_stream_fail_in(err, "name: ");
    return REVDIAL_EINVAL;
}

revdial_stream *revdial_dial(revdial_proxy *p, const char *name, const revdial_dial_opts *opts,
                             revdial_err *err)
{
    static const revdial_dial_opts none;
    rvd_stream_dial d;
    memset(&d, 0, sizeof d);
    d.opts = opts ? opts : &none;
    rvd_stream_dial_begin(&d);
    if (p && name && rvd_owner_is_child(&p->own)) {
        rvd_stream_fail(err, REVDIAL_ECLOSED, 0, RVD_STREAM_CHILD);
        return NULL;
    }
    if (!p || !name || rvd_proxy_is_on_loop(p)) {
        rvd_stream_fail(err, p && name ? REVDIAL_EDEADLK : REVDIAL_EINVAL, 0,
                        p && name ? "dial: would block its own I/O thread"
                                  : "dial: proxy or name is NULL");
        return NULL;
    }
    if (rvd_proxy_dial_check(name, d.opts, err)) return NULL;
    if (!rvd_proxy_enter(p)) {
        rvd_stream_fail(err, REVDIAL_ECLOSED, 0, rvd_proxy_pick_text(REVDIAL_ECLOSED));
        return NULL;
    }
    rvd_proxy_dial_sessions(p, name, &d);
    pthread_mutex_lock(&p->own.lock);
    rvd_proxy_count_dial_locked(p, &d);
    pthread_mutex_unlock(&p->own.lock);
    if (!d.st) rvd_proxy_log_dial(p, name, &d, NULL);
    rvd_stream_work_end(&p->own.work);
    if (!d.st) rvd_stream_dial_fail_in(&d.err, name, d.opts->target);
    if (err) *err = d.err;
    return d.st;
}

int revdial_dial_fd(revdial_proxy *p, const char *name, const revdial_dial_opts *opts,
                    revdial_err *err)
{
    revdial_err own;
    revdial_stream *st = revdial_dial(p, name, opts, err ? err : &own);
    int fd;
    if (!st) return err ? err->code : own.code;
    fd = revdial_stream_fd(st);
    if (fd >= 0) return fd;
    revdial_reset(st, REVDIAL_RESET_INTERNAL);
    revdial_close(st);
    rvd_stream_fail(err, fd, 0, "no socket for the stream");
    rvd_stream_dial_fail_in(err, name, opts ? opts->target : NULL);
    return fd;
}

// A dial with a callback. It runs on loop 0 while it waits for a backend, then on its session's
// loop.
typedef struct rvd_proxy_dial {
    rvd_stream_dial dial;
    rvd_base_link link;  // in p->dials, guarded by the proxy's lock
    rvd_loop_task task;
    rvd_loop_timer timer;
    revdial_proxy *proxy;
    int64_t id;
    rvd_loop *loop;            // guarded by the proxy's lock
    int is_waiting;            // for a backend; guarded by the proxy's lock
    int is_cancelled;          // guarded by the proxy's lock
    revdial_session *session;  // that was picked, with a reference
    int is_asked;
    int is_over;  // called back; its task, once run, frees it
    rvd_proxy_pick pick;
    const rvd_proxy_listener *from;  // the client's port; NULL: the application dials
    revdial_dial_opts opts;          // its strings are in `texts`
    revdial_dial_fn *cb;
    int is_hook;  // cb is the application's
    void *ud;
    size_t size;   // of all
    char texts[];  // an arena
} rvd_proxy_dial;

static void rvd_proxy_dial_drop(rvd_proxy_dial *d)
{
    rvd_owner_free(&d->proxy->own, d, d->size);
}

static void rvd_proxy_dial_free(rvd_proxy_dial *d)
{
    revdial_proxy *p = d->proxy;
    rvd_proxy_dial_drop(d);
    rvd_stream_work_end(&p->own.work);
}

static void rvd_proxy_dial_end(rvd_proxy_dial *d)
{
    revdial_proxy *p = d->proxy;
    sigset_t ours;
    pthread_mutex_lock(&p->own.lock);
    rvd_base_link_remove(&d->link);
    rvd_proxy_count_dial_locked(p, &d->dial);
    pthread_mutex_unlock(&p->own.lock);
    rvd_loop_timer_stop(d->loop, &d->timer);
    rvd_proxy_unpick(d->session);
    if (!d->dial.st) rvd_proxy_log_dial(p, d->pick.name, &d->dial, d->from);
    if (!d->dial.st) rvd_stream_dial_fail_in(&d->dial.err, d->pick.name, d->opts.target);
    if (d->is_hook) rvd_sys_hook_begin(&p->groups[0].mask, &ours);
    d->cb(d->ud, d->dial.st, d->dial.st ? NULL : &d->dial.err);
    if (d->is_hook) rvd_sys_hook_end(&ours);
    d->is_over = 1;
    if (!atomic_load(&d->task.queued)) rvd_proxy_dial_free(d);
}

static void rvd_proxy_dial_fail(rvd_proxy_dial *d, int code, const char *text)
{
    if (!d->dial.err.code) rvd_stream_fail(&d->dial.err, code, 0, text);
    rvd_proxy_dial_end(d);
}

// Picks a session and sends the dial to its loop; or lets it wait on loop 0; or ends it. Another
// thread may free the dial as soon as it is posted, so the post is the last step, under the lock.
static void rvd_proxy_dial_pick(rvd_proxy_dial *d)
{
    revdial_proxy *p = d->proxy;
    int code, is_over;
    rvd_loop_timer_stop(d->loop, &d->timer);
    pthread_mutex_lock(&p->own.lock);
    d->session = rvd_proxy_pick_locked(p, &d->pick, &code);
    d->is_waiting = !d->session && rvd_proxy_waits(&d->pick, &d->dial.err) && !p->closing;
    is_over = !d->session && !d->is_waiting;
    if (!is_over) {
        d->loop = d->session ? d->session->loop : p->loops[0];
        rvd_loop_post(d->loop, &d->task);
    }
    pthread_mutex_unlock(&p->own.lock);
    if (is_over) rvd_proxy_dial_fail(d, code, rvd_proxy_pick_text(code));
}

static int rvd_proxy_dial_is_cancelled(rvd_proxy_dial *d)
{
    int yes;
    pthread_mutex_lock(&d->proxy->own.lock);
    yes = d->is_cancelled;
    pthread_mutex_unlock(&d->proxy->own.lock);
    return yes;
}

static void rvd_proxy_dial_done(rvd_stream_dial *dial)
{
    rvd_proxy_dial *d = RVD_BASE_OWNER(dial, rvd_proxy_dial, dial);
    revdial_session *s = d->session;
    if (rvd_proxy_dial_is_cancelled(d)) {  // also if it has succeeded
        if (dial->st) revdial_reset(dial->st, REVDIAL_RESET_CANCEL);
        revdial_close(dial->st);
        dial->st = NULL;
        rvd_stream_fail(&dial->err, REVDIAL_ECLOSED, 0, "the dial was cancelled");
        rvd_proxy_dial_end(d);
        return;
    }
    if (!rvd_proxy_may_retry(d->proxy, &d->pick, dial, s)) {
        rvd_proxy_dial_end(d);
        return;
    }
    d->session = NULL;
    d->is_asked = 0;
    rvd_proxy_unpick(s);
    rvd_proxy_dial_pick(d);
}

static void rvd_proxy_dial_abandon(rvd_proxy_dial *d, int reset, int code, const char *text)
{
    revdial_session *s = d->session;
    if (!s || !d->is_asked) {
        rvd_proxy_dial_fail(d, code, text);
        return;
    }
    revdial_session_ref(s);
    rvd_stream_lock(s);
    rvd_stream_dial_abandon_locked(s, &d->dial, reset, code, text);
    rvd_stream_flush_soon_locked(s);
    rvd_stream_unlock(s);
    rvd_stream_dials_done(s);
    revdial_session_unref(s);
}

static void rvd_proxy_dial_on_timer(rvd_loop_timer *t)
{
    rvd_proxy_dial *d = RVD_BASE_OWNER(t, rvd_proxy_dial, timer);
    rvd_proxy_dial_abandon(d, REVDIAL_RESET_TIMEOUT, REVDIAL_ETIMEDOUT,
                           d->session ? "the dial timed out: the backend has not answered"
                                      : "the dial timed out: no backend of that name came up");
}

// On the loop that the dial is at now: asks its session, goes on waiting, or ends a cancelled dial.
static void rvd_proxy_dial_run(rvd_loop_task *task)
{
    rvd_proxy_dial *d = RVD_BASE_OWNER(task, rvd_proxy_dial, task);
    revdial_proxy *p = d->proxy;
    revdial_session *s;
    rvd_loop *loop;
    int is_cancelled, is_waiting;
    if (d->is_over) {
        rvd_proxy_dial_free(d);
        return;
    }
    pthread_mutex_lock(&p->own.lock);
    loop = d->loop;
    is_cancelled = d->is_cancelled;
    is_waiting = d->is_waiting;
    pthread_mutex_unlock(&p->own.lock);
    if (!rvd_loop_is_owner(loop)) {  // it moved on after this was posted
        rvd_loop_post(loop, task);
        return;
    }
    if (is_cancelled) {
        rvd_proxy_dial_abandon(d, REVDIAL_RESET_CANCEL, REVDIAL_ECLOSED, "the dial was cancelled");
        return;
    }
    if (!d->session && !is_waiting) {  // there was none when it began
        rvd_proxy_dial_pick(d);
        return;
    }
    if (d->dial.deadline_us != INT64_MAX && !d->timer.slot &&
        rvd_loop_timer_set(loop, &d->timer, d->dial.deadline_us) < 0) {
        rvd_proxy_dial_fail(d, REVDIAL_ENOMEM, "out of memory for a timer");
        return;
    }
    if (is_waiting || d->is_asked) return;
    s = revdial_session_ref(d->session);
    d->is_asked = 1;
    d->dial.is_movable = d->pick.has_others;
    rvd_stream_lock(s);
    rvd_stream_dial_ask_locked(s, &d->dial);
    rvd_stream_flush_soon_locked(s);
    rvd_stream_unlock(s);
    rvd_stream_dials_done(s);
    revdial_session_unref(s);
}

// Loop 0: a backend came up, so waiting dials try again. Their timers run on this thread, so none
// can fire meanwhile. Once a dial is posted it belongs to another thread.
static void rvd_proxy_on_dials_wake(rvd_loop_task *task)
{
    revdial_proxy *p = RVD_BASE_OWNER(task, revdial_proxy, dials_wake);
    rvd_base_link *next;
    pthread_mutex_lock(&p->own.lock);
    for (rvd_base_link *l = p->dials.next; l != &p->dials; l = next) {
        rvd_proxy_dial *d = RVD_BASE_OWNER(l, rvd_proxy_dial, link);
        int code;
        next = l->next;
        if (!d->is_waiting || d->is_cancelled) continue;
        d->session = rvd_proxy_pick_locked(p, &d->pick, &code);
        if (!d->session) continue;
        rvd_loop_timer_stop(p->loops[0], &d->timer);
        d->is_waiting = 0;
        d->loop = d->session->loop;
        rvd_loop_post(d->loop, &d->task);
    }
    pthread_mutex_unlock(&p->own.lock);
}

static revdial_dial_opts rvd_proxy_opts_keep(rvd_base_arena *a, const revdial_dial_opts *from)
{
    revdial_dial_opts o = *from;
    o.meta = rvd_base_keep_pairs(a, from->meta, from->meta_count);
    o.target = rvd_base_keep_text(a, from->target);
    o.client_addr = rvd_base_keep_text(a, from->client_addr);
    o.local_addr = rvd_base_keep_text(a, from->local_addr);
    o.key = rvd_base_keep_bytes(a, from->key, from->key_len);
    o.early = rvd_base_keep_bytes(a, from->early, from->early_len);
    return o;
}

// Returns NULL without memory.
static rvd_proxy_dial *rvd_proxy_dial_new(revdial_proxy *p, const char *name,
                                          const revdial_dial_opts *opts)
{
    static const revdial_dial_opts none;
    rvd_base_arena texts = {NULL, 0, 0};
    rvd_proxy_dial *d;
    size_t size;
    if (!opts) opts = &none;
    rvd_proxy_opts_keep(&texts, opts);
    rvd_base_keep_text(&texts, name);
    size = sizeof *d + texts.len;
    d = rvd_owner_alloc(&p->own, size);
    if (!d) return NULL;
    rvd_base_arena_fill(&texts, d->texts);
    d->size = size;
    d->opts = rvd_proxy_opts_keep(&texts, opts);
    d->pick = rvd_proxy_pick_start(p, rvd_base_keep_text(&texts, name), &d->opts);
    d->proxy = p;
    d->task.run = rvd_proxy_dial_run;
    d->timer.run = rvd_proxy_dial_on_timer;
    d->dial.opts = &d->opts;
    d->dial.done = rvd_proxy_dial_done;
    rvd_stream_dial_begin(&d->dial);
    rvd_base_link_init(&d->dial.link);
    rvd_base_link_init(&d->link);
    return d;
}

// Once the lock is released the dial may be over.
static int64_t rvd_proxy_dial_start_locked(revdial_proxy *p, rvd_proxy_dial *d)
{
    int code;
    d->id = ++p->next_dial;
    d->session = rvd_proxy_pick_locked(p, &d->pick, &code);
    d->is_waiting = !d->session && d->opts.flags & REVDIAL_DIAL_WAIT;
    d->loop = d->session ? d->session->loop : p->loops[0];
    rvd_base_link_push(&p->dials, &d->link);
    rvd_stream_work_begin(&p->own.work);
    rvd_loop_post(d->loop, &d->task);
    return d->id;
}

int64_t revdial_dial_async(revdial_proxy *p, const char *name, const revdial_dial_opts *opts,
                           revdial_dial_fn *cb, void *ud)
{
    static const revdial_dial_opts none;
    int is_valid = p && name && cb && !rvd_proxy_dial_check(name, opts ? opts : &none, NULL);
    rvd_proxy_dial *d;
    int64_t id = REVDIAL_ECLOSED;
    if (is_valid && rvd_owner_is_child(&p->own)) return REVDIAL_ECLOSED;
    d = is_valid ? rvd_proxy_dial_new(p, name, opts) : NULL;
    if (!d) return is_valid ? REVDIAL_ENOMEM : REVDIAL_EINVAL;
    d->cb = cb;
    d->is_hook = 1;
    d->ud = ud;
    pthread_mutex_lock(&p->own.lock);
    if (!p->closing) id = rvd_proxy_dial_start_locked(p, d);
    pthread_mutex_unlock(&p->own.lock);
    if (id < 0) rvd_proxy_dial_drop(d);
    return id;
}

int revdial_dial_cancel(revdial_proxy *p, int64_t dial)
{
    int code = REVDIAL_EINVAL;
    if (rvd_owner_is_child(&p->own)) return REVDIAL_ECLOSED;
    pthread_mutex_lock(&p->own.lock);
    for (rvd_base_link *l = p->dials.next; l != &p->dials; l = l->next) {
        rvd_proxy_dial *d = RVD_BASE_OWNER(l, rvd_proxy_dial, link);
        if (d->id != dial || d->is_cancelled) continue;
        d->is_cancelled = 1;
        rvd_loop_post(d->loop, &d->task);
        code = REVDIAL_OK;
        break;
    }
    pthread_mutex_unlock(&p->own.lock);
    return code;
}

// ---- clients of exposed ports ----
// Accepted on loop 0, dialled as by revdial_dial_async(), relayed on the loop of their session.

static void rvd_proxy_client_become(rvd_proxy_client *c, enum rvd_proxy_client_state to)
{
    REVDIAL_ASSERT(to > c->state && to != RVD_PROXY_ROUTED);
    c->state = to;
}

static void rvd_proxy_client_tell(const rvd_proxy_listener *l, revdial_client *told)
{
    revdial_proxy *p = l->proxy;
    sigset_t ours;
    told->expose = (size_t)(l->id - 1);
    if (!p->cfg.on_client) return;
    rvd_sys_hook_begin(&p->groups[0].mask, &ours);
    p->cfg.on_client(p->cfg.ud, told);
    rvd_sys_hook_end(&ours);
}

static const char *rvd_proxy_client_target(const rvd_proxy_client *c)
{
    const char *own = c->address + strlen(c->address) + 1;
    if (!c->listener->expose.route) return c->listener->expose.dial.target;
    return *own ? own : NULL;
}

// Without memory: NULL.
static rvd_proxy_client *rvd_proxy_client_new(rvd_proxy_listener *l, int fd, const char *address,
                                              const char *target, enum rvd_proxy_client_state state)
{
    size_t address_size = strlen(address) + 1, target_len = target ? strlen(target) : 0;
    size_t size = sizeof(rvd_proxy_client) + address_size + (l->expose.route ? target_len + 1 : 0);
    rvd_proxy_client *c = rvd_owner_alloc(&l->proxy->own, size);
    if (!c) return NULL;
    memcpy(c->address, address, address_size);
    if (l->expose.route && target) memcpy(c->address + address_size, target, target_len);
    rvd_base_link_init(&c->link);
    c->state = state;
    c->io.fd = fd;
    c->listener = rvd_proxy_listener_ref(l);
    c->since_us = rvd_loop_now(l->proxy->loops[0]);
    rvd_stream_work_begin(&l->proxy->own.work);
    return c;
}

static void rvd_proxy_client_free(rvd_proxy_client *c)
{
    rvd_proxy_listener *l = c->listener;
    rvd_owner *own = &l->proxy->own;
    size_t size = sizeof *c + strlen(c->address) + 1;
    const char *target = l->expose.route ? rvd_proxy_client_target(c) : NULL;
    if (l->expose.route) size += (target ? strlen(target) : 0) + 1;
    rvd_owner_free(own, c, size);
    rvd_proxy_listener_unref(l);
    rvd_stream_work_end(&own->work);
}

// Tells the application what became of a client, and frees it.
static void rvd_proxy_client_end(rvd_proxy_client *c, const uint64_t moved[2],
                                 const revdial_err *why)
{
    revdial_client told;
    memset(&told, 0, sizeof told);
    told.address = c->address;
    told.is_relayed = c->state == RVD_PROXY_JOINED;
    if (moved) memcpy(told.moved, moved, sizeof told.moved);
    if (moved) told.moved[0] += c->early_len;
    told.why = why;
    rvd_proxy_client_tell(c->listener, &told);
    rvd_proxy_client_free(c);
}

static void rvd_proxy_client_failed(rvd_proxy_client *c, const revdial_err *why)
{
    rvd_sys_close_reset(c->io.fd);
    rvd_proxy_client_end(c, NULL, why);
}

// Begins a line about the stream of a client, which is still there.
static int rvd_proxy_log_client(const rvd_proxy_client *c, rvd_log_line *l,
                                enum rvd_log_event event)
{
    const revdial_session *s = c->st->session;
    if (!rvd_log_begin(s->group->log, l, event, s->group->log->access_level)) return 0;
    rvd_log_id(l, "session", s->id);
    rvd_stream_log_dial(l, s->id, c->st->id);
    rvd_log_text(l, "name", s->name);
    rvd_log_text(l, "client", c->address);
    rvd_log_text(l, "listen", c->listener->address);
    rvd_log_text(l, "target", rvd_proxy_client_target(c));
    return 1;
}

static void rvd_proxy_client_on_over(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    rvd_proxy_client *c = ud;
    rvd_log_line l;
    if (rvd_proxy_log_client(c, &l, RVD_LOG_STREAM_END)) {
        rvd_stream_log_end(&l, moved[0] + c->early_len, moved[1], c->since_us, why);
        rvd_log_end(c->st->session->group->log, &l);
    }
    rvd_proxy_client_end(c, moved, why);
}

// The dial has succeeded, and the client is not watched (any more).
//   opts     zero, or `early` and half_closed_ms
static void rvd_proxy_client_relay(rvd_proxy_client *c, revdial_relay_opts opts)
{
    const int is_drained =
        c->state != RVD_PROXY_ROUTED && c->early_len > 0 && c->early_len < REVDIAL_EARLY_MAX;
    const rvd_relay_ends ends = {.rfd = c->io.fd, .wfd = c->io.fd, .is_drained = is_drained};
    revdial_err err;
    rvd_log_line l;
    int code, is_ended;
    if (rvd_proxy_log_client(c, &l, RVD_LOG_STREAM_OPEN))
        rvd_log_end(c->st->session->group->log, &l);
    opts.idle_ms = c->listener->expose.idle_ms;
    opts.done = rvd_proxy_client_on_over;
    opts.ud = c;
    rvd_proxy_client_become(c, RVD_PROXY_JOINED);
    is_ended = atomic_load(&c->listener->ends_clients);
    code = is_ended ? REVDIAL_ECLOSED : rvd_relay_start(c->st, &ends, &opts);
    if (!code) return;
    rvd_stream_fail(&err, code, 0,
                    is_ended ? RVD_PROXY_UNEXPOSED : "the connection could not be relayed");
    if (rvd_proxy_log_client(c, &l, RVD_LOG_STREAM_END)) {
        rvd_stream_log_end(&l, 0, 0, c->since_us, &err);
        rvd_log_end(c->st->session->group->log, &l);
    }
    revdial_reset(c->st, is_ended ? REVDIAL_RESET_CANCEL : REVDIAL_RESET_INTERNAL);
    revdial_close(c->st);
    rvd_proxy_client_failed(c, &err);
}

static void rvd_proxy_client_join(rvd_proxy_client *c)
{
    const revdial_relay_opts opts = {.half_closed_ms = c->listener->expose.half_closed_ms};
    rvd_proxy_client_relay(c, opts);
}

// Loop 0: no longer watched.
static void rvd_proxy_client_unwatch(rvd_loop_task *task)
{
    rvd_proxy_client *c = RVD_BASE_OWNER(task, rvd_proxy_client, task);
    revdial_proxy *p = c->listener->proxy;
    revdial_err why;
    rvd_loop_remove(p->loops[0], &c->io);
    if (c->st) {
        rvd_proxy_client_join(c);
        return;
    }
    rvd_stream_fail(&why, REVDIAL_ENOMEM, 0, "the dial failed, and there was no memory to say why");
    if (c->why) why = *c->why;
    rvd_owner_free(&p->own, c->why, sizeof *c->why);
    rvd_proxy_client_failed(c, &why);
}

// Returns 1 if the port has to be told that it may accept again.
static int rvd_proxy_waiter_left_locked(rvd_proxy_listener *l)
{
    int was_full = l->is_full;
    l->waiting--;
    l->is_full = 0;
    return was_full;
}

static void rvd_proxy_client_on_dialled(void *ud, revdial_stream *st, const revdial_err *err)
{
    rvd_proxy_client *c = ud;
    revdial_proxy *p = c->listener->proxy;
    int is_watched, was_full;
    pthread_mutex_lock(&p->own.lock);
    was_full = rvd_proxy_waiter_left_locked(c->listener);
    is_watched = c->state == RVD_PROXY_WATCHED;
    rvd_base_link_remove(&c->link);
    pthread_mutex_unlock(&p->own.lock);
    if (was_full) rvd_loop_post(p->loops[0], &c->listener->resume);
    c->st = st;
    if (is_watched) {  // by loop 0, which need not be this one
        c->why = st ? NULL : rvd_owner_alloc(&p->own, sizeof *c->why);
        if (c->why) *c->why = *err;
        rvd_loop_post(p->loops[0], &c->task);
    } else if (st) {
        rvd_proxy_client_join(c);
    } else {
        rvd_proxy_client_failed(c, err);
    }
}

// A client that resets its connection needs no dial any more. FIN cancels nothing: a client may
// have finished sending and wait for the answer.
static void rvd_proxy_client_on_io(rvd_loop_io *io)
{
    rvd_proxy_client *c = RVD_BASE_OWNER(io, rvd_proxy_client, io);
    if (io->ready & RVD_LOOP_HUP) revdial_dial_cancel(c->listener->proxy, c->dial);
}

// Loop 0. Watches only clients whose dial takes longer than RVD_PROXY_CLIENT_WATCH_US: most dials
// end before that, and watching costs a system call.
static void rvd_proxy_on_client_watch(rvd_loop_timer *t)
{
    revdial_proxy *p = RVD_BASE_OWNER(t, revdial_proxy, client_watch);
    int64_t old = rvd_loop_now(p->loops[0]) - RVD_PROXY_CLIENT_WATCH_US;
    pthread_mutex_lock(&p->own.lock);
    while (!rvd_base_link_is_alone(&p->clients)) {
        rvd_proxy_client *c = RVD_BASE_OWNER(p->clients.next, rvd_proxy_client, link);
        if (c->since_us > old) {
            rvd_loop_timer_set(p->loops[0], t, c->since_us + RVD_PROXY_CLIENT_WATCH_US);
            break;
        }
        rvd_base_link_remove(&c->link);
        if (rvd_loop_add(p->loops[0], &c->io) == 0) rvd_proxy_client_become(c, RVD_PROXY_WATCHED);
    }
    pthread_mutex_unlock(&p->own.lock);
}

// Bytes that a client has sent by now go out with the dial; the relay finds its FIN later. A unix
// socket is not read: if the dial fails, closing it with bytes unread is an error at the client.
//   returns  0, or the error that ended the connection: the socket reports it only once
static int rvd_proxy_client_early(rvd_proxy_client *c, int family, uint8_t *bytes)
{
    ptrdiff_t n = 0;
    if (family != AF_UNIX) n = rvd_sys_read(c->io.fd, bytes, REVDIAL_EARLY_MAX);
    if (n > 0) c->early_len = (uint32_t)n;
    return n == -EAGAIN || n == -ENOMEM || n == -ENOBUFS || n > 0 ? 0 : (int)n;
}

// What the sockets of a port's clients have in common. Where they do not inherit it, each gets it.
static void rvd_proxy_client_tune(const rvd_proxy_listener *l, int fd)
{
    rvd_sys_tune_client(fd);
    rvd_sys_set_keepalive(fd, l->proxy->cfg.common.tcp_keepalive_ms);
    if (!l->expose.route) rvd_sys_set_abort(fd, 1);  // a routed one may be taken
}

// What a client's dial is about, and whom it tells of its end.
typedef struct rvd_proxy_asking {
    const char *name;
    revdial_dial_opts opts;
    revdial_dial_fn *cb;
    void *ud;
} rvd_proxy_asking;

// Returns 0, or REVDIAL_E*: the client is still there.
static int rvd_proxy_client_dial(rvd_proxy_client *c, const rvd_proxy_asking *ask)
{
    revdial_proxy *p = c->listener->proxy;
    rvd_proxy_dial *d = rvd_proxy_dial_new(p, ask->name, &ask->opts);
    int is_routed = c->state == RVD_PROXY_ROUTED;
    int64_t id = REVDIAL_ECLOSED;
    if (!d) return REVDIAL_ENOMEM;
    d->cb = ask->cb;
    d->ud = ask->ud;
    d->from = c->listener;
    if (!is_routed &&
        !p->client_watch.slot)  // without memory one that goes away is found out later
        rvd_loop_timer_set(p->loops[0], &p->client_watch, c->since_us + RVD_PROXY_CLIENT_WATCH_US);
    pthread_mutex_lock(&p->own.lock);
    if (!p->closing) {
        c->listener->waiting += !is_routed;  // which counts since it was accepted
        if (!is_routed) rvd_base_link_push(&p->clients, &c->link);
        c->dial = p->next_dial + 1;
        id = rvd_proxy_dial_start_locked(p, d);
    }
    pthread_mutex_unlock(&p->own.lock);
    if (id > 0) return REVDIAL_OK;
    rvd_proxy_dial_drop(d);
    return (int)id;
}

// A client that was not dialled for: the library refused it, or the hook, or it has gone.
static void rvd_proxy_log_unrouted(const rvd_proxy_listener *l, const char *client, int code,
                                   const char *why)
{
    rvd_log *log = &l->proxy->own.log;
    enum rvd_log_event event =
        code == REVDIAL_ECLOSED ? RVD_LOG_CLIENT_GONE : RVD_LOG_CLIENT_REFUSED;
    int level = code == REVDIAL_ECLOSED    ? REVDIAL_LOG_DEBUG
                : code == REVDIAL_EREFUSED ? log->access_level
                                           : REVDIAL_LOG_WARN;
    rvd_log_line line;
    if (!rvd_log_begin(log, &line, event, level)) return;
    rvd_log_text(&line, "client", client);
    rvd_log_text(&line, "listen", l->address);
    rvd_log_text(&line, "reason", why);
    rvd_log_end(log, &line);
}

// Where a client has connected to, as text, maybe in buf, of RVD_SYS_TEXT_MAX; NULL: not known.
static const char *rvd_proxy_client_local(const rvd_proxy_listener *l, int fd,
                                          const rvd_sys_addr *peer, char *buf)
{
    rvd_sys_addr at;
    if (peer->ss.ss_family == AF_UNIX) return NULL;
    if (!l->is_wildcard) return l->address;
    if (rvd_sys_getsockname(fd, &at) < 0) return NULL;
    rvd_sys_addr_format(&at, buf, RVD_SYS_TEXT_MAX);
    return buf;
}

// A client of a port where all go to one backend.
static void rvd_proxy_client_plain(rvd_proxy_listener *l, int fd, const rvd_sys_addr *peer)
{
    revdial_proxy *p = l->proxy;
    char from[RVD_SYS_TEXT_MAX], local[RVD_SYS_TEXT_MAX];
    uint8_t *early = p->loops[0]->buf;  // this loop's, and it is not reading now
    rvd_proxy_asking ask = {l->expose.name, l->expose.dial, rvd_proxy_client_on_dialled, NULL};
    rvd_stream_dial none = {.opts = &ask.opts};
    const char *to = rvd_proxy_client_local(l, fd, peer, local);
    rvd_proxy_client *c;
    int code, error;
    rvd_sys_addr_format(peer, from, sizeof from);
    c = rvd_proxy_client_new(l, fd, from, NULL, RVD_PROXY_LISTED);
    if (!c) {
        rvd_proxy_log_unrouted(l, from, REVDIAL_ENOMEM, "out of memory for a client");
        rvd_sys_close_reset(fd);
        return;
    }
    c->io.run = rvd_proxy_client_on_io;
    c->task.run = rvd_proxy_client_unwatch;
    error = rvd_proxy_client_early(c, peer->ss.ss_family, early);
    ask.ud = c;
    ask.opts.client_addr = to ? from : NULL;
    ask.opts.local_addr = to;
    ask.opts.early = early;
    ask.opts.early_len = c->early_len;
    code = error ? REVDIAL_ECLOSED : rvd_proxy_client_dial(c, &ask);
    if (!code) return;
    ask.opts.client_addr = from;
    rvd_sys_fail(&none.err, code, -error, NULL,
                 error ? "the client has gone" : revdial_strerror(code));
    rvd_proxy_log_dial(p, l->expose.name, &none, l);
    rvd_proxy_client_failed(c, &none.err);
}

// ---- clients whose first bytes are read before they are dialled for ----
// All of it, and each call of a hook, on loop 0: once that has unexposed a port, no hook runs.

// Appends. Returns 0 without memory.
static int rvd_proxy_bytes_add(const rvd_owner *o, rvd_proxy_bytes *b, const void *data, size_t len)
{
    size_t size = b->size ? b->size : 64;
    while (size < b->len + len) size *= 2;
    if (len && size > b->size) {
        uint8_t *fresh = rvd_owner_alloc(o, size);
        if (!fresh) return 0;
        if (b->len) memcpy(fresh, b->at, b->len);
        rvd_owner_free(o, b->at, b->size);
        b->at = fresh;
        b->size = size;
    }
    if (len) memcpy(b->at + b->len, data, len);
    b->len += len;
    return 1;
}

static void rvd_proxy_bytes_drop(const rvd_owner *o, rvd_proxy_bytes *b, size_t len)
{
    b->len -= len;
    if (b->len) {
        memmove(b->at, b->at + len, b->len);
        return;
    }
    rvd_owner_free(o, b->at, b->size);
    b->at = NULL;
    b->size = 0;
}

static void rvd_proxy_route_become(rvd_proxy_route *r, enum rvd_proxy_route_state to)
{
    REVDIAL_ASSERT(to > r->state && (to <= RVD_PROXY_GREETING || r->state != RVD_PROXY_GREETING));
    r->state = to;
}

static const char *rvd_proxy_route_local(const rvd_proxy_route *r)
{
    return r->addresses + strlen(r->addresses) + 1;
}

// Sets the two texts. Returns 0 without memory.
static int rvd_proxy_route_name(rvd_proxy_route *r, const char *client, const char *local)
{
    const rvd_owner *o = &r->listener->proxy->own;
    size_t client_size = strlen(client) + 1, local_size = strlen(local) + 1;
    char *fresh = rvd_owner_alloc(o, client_size + local_size);
    if (!fresh) return 0;
    memcpy(fresh, client, client_size);
    memcpy(fresh + client_size, local, local_size);
    if (r->addresses)
        rvd_owner_free(o, r->addresses,
                       (size_t)(rvd_proxy_route_local(r) - r->addresses) +
                           strlen(rvd_proxy_route_local(r)) + 1);
    r->addresses = fresh;
    return 1;
}

// Frees what is left of it. Its socket is closed, or somebody else's.
static void rvd_proxy_route_free(rvd_proxy_route *r)
{
    rvd_proxy_listener *l = r->listener;
    rvd_owner *o = &l->proxy->own;
    int was_full;
    rvd_base_link_remove(&r->link);
    rvd_loop_timer_stop(l->proxy->loops[0], &r->timer);
    rvd_proxy_bytes_drop(o, &r->in, r->in.len);
    rvd_proxy_bytes_drop(o, &r->out, r->out.len);
    if (r->client) rvd_proxy_client_free(r->client);
    if (r->addresses)
        rvd_owner_free(o, r->addresses,
                       (size_t)(rvd_proxy_route_local(r) - r->addresses) +
                           strlen(rvd_proxy_route_local(r)) + 1);
    rvd_owner_free(o, r->why, sizeof *r->why);
    rvd_owner_free(o, r, sizeof *r);
    pthread_mutex_lock(&o->lock);
    was_full = rvd_proxy_waiter_left_locked(l);
    pthread_mutex_unlock(&o->lock);
    if (was_full) rvd_loop_post(l->proxy->loops[0], &l->resume);
    rvd_proxy_listener_unref(l);
    rvd_stream_work_end(&o->work);
}

// Closes it and tells of it. A reply that was followed by FIN must not be torn up by a reset.
static void rvd_proxy_route_end(rvd_proxy_route *r, const revdial_err *why)
{
    rvd_proxy_listener *l = r->listener;
    revdial_stream *st = r->client ? r->client->st : NULL;
    revdial_client told;
    if (st) revdial_reset(st, REVDIAL_RESET_CANCEL);
    revdial_close(st);
    rvd_loop_remove(l->proxy->loops[0], &r->io);
    rvd_base_link_remove(&r->link);
    if (r->state == RVD_PROXY_LINGERING) {
        rvd_sys_set_abort(r->io.fd, 0);
        rvd_sys_close(r->io.fd);
    } else {
        rvd_sys_close_reset(r->io.fd);
    }
    memset(&told, 0, sizeof told);
    told.address = r->addresses;
    told.why = r->why ? r->why : why;
    rvd_proxy_client_tell(l, &told);
    rvd_proxy_route_free(r);
}

// Ends it for a reason that is logged. One that was refused before keeps its first reason.
static void rvd_proxy_route_fail(rvd_proxy_route *r, int code, int sys, const char *text)
{
    revdial_err why;
    rvd_sys_fail(&why, code, sys, NULL, text);
    if (r->state <= RVD_PROXY_GREETING)
        rvd_proxy_log_unrouted(r->listener, r->addresses, code, why.msg);
    rvd_proxy_route_end(r, &why);
}

// Its time is over then. The timer is set from its beginning to its end, so this needs no memory.
static void rvd_proxy_route_until(rvd_proxy_route *r, int64_t at_us)
{
    REVDIAL_ASSERT(r->timer.slot);
    rvd_loop_timer_set(r->listener->proxy->loops[0], &r->timer, at_us);
}

static int64_t rvd_proxy_route_now(const rvd_proxy_route *r)
{
    return rvd_loop_now(r->listener->proxy->loops[0]);
}

// Begins its end: the reply, if there is one, and FIN. Returns 0 if it is gone.
static int rvd_proxy_route_refuse(rvd_proxy_route *r, const revdial_route *q,
                                  const revdial_err *why)
{
    rvd_owner *o = &r->listener->proxy->own;
    if (!q->reply || !q->reply_len || !rvd_proxy_bytes_add(o, &r->out, q->reply, q->reply_len)) {
        rvd_proxy_route_end(r, why);
        return 0;
    }
    r->why = rvd_owner_alloc(o, sizeof *r->why);
    if (r->why) *r->why = *why;
    rvd_proxy_bytes_drop(o, &r->in, r->in.len);
    rvd_proxy_route_become(r, RVD_PROXY_REFUSING);
    rvd_proxy_route_until(r, rvd_proxy_route_now(r) + RVD_PROXY_REPLY_US);
    return 1;
}

// What a hook gets to see of it.
static void rvd_proxy_route_hook_init(const rvd_proxy_route *r, revdial_route *q)
{
    const revdial_expose *x = &r->listener->expose;
    memset(q, 0, offsetof(revdial_route, text));
    q->text[0] = '\0';
    q->data = (const uint8_t *)"";
    q->is_end = r->is_end;
    q->fd = r->io.fd;
    q->client = r->addresses;
    q->local = *rvd_proxy_route_local(r) ? rvd_proxy_route_local(r) : NULL;
    q->state = r->step;
    q->name = x->name;
    q->dial = x->dial;
    q->dial.client_addr = strncmp(q->client, "unix", 4) == 0 ? NULL : q->client;
    q->dial.local_addr = q->local;
    q->half_closed_ms = x->half_closed_ms;
}

// Hands socket and stream to a relay, which sends what is left of the client's first bytes.
static void rvd_proxy_route_join(rvd_proxy_route *r)
{
    revdial_relay_opts opts;
    rvd_proxy_client *c = r->client;
    memset(&opts, 0, sizeof opts);
    opts.half_closed_ms = r->half_closed_ms;
    opts.early = r->in.at;
    opts.early_len = r->in.len;
    r->client = NULL;
    rvd_loop_remove(r->listener->proxy->loops[0], &r->io);
    rvd_proxy_client_relay(c, opts);
    rvd_proxy_route_free(r);
}

// Is there nobody left whom a hook may be called for? That is so while the proxy stops, and once
// the port is unexposed, unless it has no hook.
static int rvd_proxy_route_is_cut(const rvd_proxy_route *r)
{
    rvd_proxy_listener *l = r->listener;
    int is_closing;
    pthread_mutex_lock(&l->proxy->own.lock);
    is_closing = l->proxy->closing;
    pthread_mutex_unlock(&l->proxy->own.lock);
    return is_closing || (l->state == RVD_PROXY_GONE && l->expose.route);
}

// The dial is over, with a stream in `client`, or it failed and why is set. Returns 0 if r is gone.
static int rvd_proxy_route_dialled(rvd_proxy_route *r, const revdial_err *why)
{
    rvd_proxy_listener *l = r->listener;
    revdial_route q;
    sigset_t ours;
    rvd_proxy_route_hook_init(r, &q);
    if (l->expose.route_done && !rvd_proxy_route_is_cut(r)) {
        rvd_sys_hook_begin(&l->proxy->groups[0].mask, &ours);
        l->expose.route_done(l->expose.route_ud, &q, why);
        rvd_sys_hook_end(&ours);
    }
    rvd_base_link_push(&l->routed, &r->link);
    if (rvd_proxy_route_is_cut(r)) {
        rvd_proxy_route_fail(r, REVDIAL_ECLOSED, 0,
                             l->state == RVD_PROXY_GONE ? RVD_PROXY_UNEXPOSED : "the proxy stops");
        return 0;
    }
    if (why) return rvd_proxy_route_refuse(r, &q, why);
    if (!rvd_proxy_bytes_add(&l->proxy->own, &r->out, q.reply, q.reply ? q.reply_len : 0)) {
        rvd_proxy_route_fail(r, REVDIAL_ENOMEM, 0, "out of memory for a reply");
        return 0;
    }
    rvd_proxy_route_become(r, RVD_PROXY_GREETING);
    rvd_proxy_route_until(r, rvd_proxy_route_now(r) + RVD_PROXY_REPLY_US);
    return 1;
}

// Are name and options of a decision good? The addresses are ours, unless a hook has set others.
static int rvd_proxy_route_check(const rvd_proxy_route *r, const revdial_route *q, revdial_err *err)
{
    revdial_dial_opts opts = q->dial;
    if (opts.client_addr == r->addresses) opts.client_addr = NULL;
    if (opts.local_addr == rvd_proxy_route_local(r)) opts.local_addr = NULL;
    if (!q->name) return rvd_stream_fail(err, REVDIAL_EINVAL, 0, "the route hook gave no name");
    if (q->half_closed_ms < -1)
        return rvd_stream_fail(err, REVDIAL_EINVAL, 0, "half_closed_ms: below -1");
    return rvd_proxy_dial_check(q->name, &opts, err);
}

static size_t rvd_proxy_route_max(const revdial_expose *x)
{
    return x->route_bytes_max ? x->route_bytes_max : RVD_PROXY_ROUTE_BYTES;
}

static void rvd_proxy_route_on_dialled(void *ud, revdial_stream *st, const revdial_err *err);

// Begins the dial. The first bytes go with it, and the relay gets the others.
//   returns  0, or REVDIAL_E* and the reason
static int rvd_proxy_route_ask(rvd_proxy_route *r, const revdial_route *q, revdial_err *err)
{
    rvd_owner *o = &r->listener->proxy->own;
    const uint8_t *rest = q->data + q->used;
    size_t len = q->len - q->used, early = rvd_base_min(len, REVDIAL_EARLY_MAX);
    rvd_proxy_asking ask = {q->name, q->dial, rvd_proxy_route_on_dialled, r};
    int code = rvd_proxy_route_check(r, q, err);
    if (code) return code;
    r->half_closed_ms = q->half_closed_ms;
    r->client =
        rvd_proxy_client_new(r->listener, r->io.fd, r->addresses, q->dial.target, RVD_PROXY_ROUTED);
    if (!r->client || !rvd_proxy_bytes_add(o, &r->in, rest + early, len - early) ||
        !rvd_proxy_bytes_add(o, &r->out, q->reply, q->reply ? q->reply_len : 0))
        return rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for a client");
    r->client->since_us = r->since_us;
    r->client->early_len = (uint32_t)early;
    ask.opts.early = rest;
    ask.opts.early_len = early;
    code = rvd_proxy_client_dial(r->client, &ask);
    return code ? rvd_stream_fail(err, code, 0, revdial_strerror(code)) : REVDIAL_OK;
}

// Returns 0 if it is gone.
static int rvd_proxy_route_dial(rvd_proxy_route *r, revdial_route *q)
{
    rvd_proxy_listener *l = r->listener;
    rvd_stream_dial none = {.opts = &q->dial};
    rvd_base_link_remove(&r->link);
    rvd_proxy_route_until(r, INT64_MAX);  // the dial's own
    rvd_proxy_bytes_drop(&l->proxy->own, &r->in, r->in.len);
    rvd_proxy_route_become(r, RVD_PROXY_DIALLING);
    if (l->expose.route) rvd_sys_set_abort(r->io.fd, 1);  // as with a port without
    if (rvd_proxy_route_ask(r, q, &none.err) == 0) return 1;
    rvd_proxy_log_dial(l->proxy, q->name ? q->name : "", &none, l);
    return rvd_proxy_route_dialled(r, &none.err);
}

// The hook wants more. Returns 0 if r is gone.
static int rvd_proxy_route_more(rvd_proxy_route *r, const revdial_route *q)
{
    const revdial_expose *x = &r->listener->expose;
    rvd_owner *o = &r->listener->proxy->own;
    size_t left = q->len - q->used;
    r->is_seen = left == 0 || q->used == 0;
    if (r->is_end && r->is_seen) {
        rvd_proxy_route_fail(r, REVDIAL_EREFUSED, 0, "the client finished before a decision");
        return 0;
    }
    if (r->is_seen && r->got >= rvd_proxy_route_max(x)) {
        rvd_proxy_route_fail(r, REVDIAL_ELIMIT, 0, "no decision after so many bytes");
        return 0;
    }
    r->in.len = 0;
    if (!left) rvd_proxy_bytes_drop(o, &r->in, 0);
    if (rvd_proxy_bytes_add(o, &r->in, q->data + q->used, left) &&
        rvd_proxy_bytes_add(o, &r->out, q->reply, q->reply ? q->reply_len : 0))
        return 1;
    rvd_proxy_route_fail(r, REVDIAL_ENOMEM, 0, "out of memory for the client's bytes");
    return 0;
}

// Asks the hook about bytes that are not r's own. A port without one has decided already.
static int rvd_proxy_route_verdict(rvd_proxy_route *r, revdial_route *q)
{
    const revdial_expose *x = &r->listener->expose;
    int verdict;
    sigset_t ours;
    if (!x->route) return REVDIAL_ROUTE_DIAL;
    rvd_base_link_remove(&r->link);  // so that r is here afterwards
    rvd_sys_hook_begin(&r->listener->proxy->groups[0].mask, &ours);
    verdict = x->route(x->route_ud, q);
    rvd_sys_hook_end(&ours);
    rvd_base_link_push(&r->listener->routed, &r->link);
    r->step = q->state;
    q->used = rvd_base_min(q->used, q->len);
    return verdict;
}

// Returns 0 if r is gone.
static int rvd_proxy_route_decide(rvd_proxy_route *r, const uint8_t *data, size_t len)
{
    revdial_route q;
    revdial_err why;
    int verdict;
    rvd_proxy_route_hook_init(r, &q);
    q.data = data;
    q.len = len;
    verdict = rvd_proxy_route_verdict(r, &q);
    q.data = data;
    q.len = len;
    if (verdict == REVDIAL_ROUTE_TAKE) {
        rvd_loop_remove(r->listener->proxy->loops[0], &r->io);
        rvd_proxy_route_free(r);
        return 0;
    }
    if (r->listener->state == RVD_PROXY_GONE) {
        rvd_proxy_route_fail(r, REVDIAL_ECLOSED, 0, RVD_PROXY_UNEXPOSED);
        return 0;
    }
    if (verdict == REVDIAL_ROUTE_MORE) return rvd_proxy_route_more(r, &q);
    if (verdict == REVDIAL_ROUTE_DIAL) return rvd_proxy_route_dial(r, &q);
    if (verdict == REVDIAL_ROUTE_REFUSE) {
        rvd_stream_fail(&why, REVDIAL_EREFUSED, 0, "refused by the route hook");
        rvd_proxy_log_unrouted(r->listener, r->addresses, why.code, why.msg);
        return rvd_proxy_route_refuse(r, &q, &why);
    }
    rvd_proxy_route_fail(r, REVDIAL_EINVAL, 0, "the route hook returned no verdict");
    return 0;
}

// The header of a PROXY protocol is there: its source is the client from now on, if it has one.
// Returns 0 if r is gone.
static int rvd_proxy_route_meet(rvd_proxy_route *r, const rvd_wire_addr *src,
                                const rvd_wire_addr *dst)
{
    const rvd_proxy_listener *l = r->listener;
    char client[RVD_SYS_TEXT_MAX], local[RVD_SYS_TEXT_MAX];
    rvd_base_text from = rvd_base_text_in(client, sizeof client);
    rvd_base_text to = rvd_base_text_in(local, sizeof local);
    rvd_wire_addr own;
    r->wants_header = 0;
    if (src->family) {
        rvd_wire_addr_add(&from, src);
        if (dst->port) rvd_wire_addr_add(&to, dst);
        if (!rvd_proxy_route_name(r, client, dst->port ? local : rvd_proxy_route_local(r))) {
            rvd_proxy_route_fail(r, REVDIAL_ENOMEM, 0, "out of memory for a client's address");
            return 0;
        }
    }
    rvd_wire_addr_parse(r->addresses, &own);
    if (!l->allowed_count || rvd_sys_nets_have(l->allowed, l->allowed_count, own.ip,
                                               own.family == 4   ? 4
                                               : own.family == 6 ? 16
                                                                 : 0))
        return 1;
    rvd_proxy_route_fail(r, REVDIAL_EDENIED, 0, RVD_PROXY_NOT_ALLOWED);
    return 0;
}

// Returns the length of the header, 0: more is needed, -1: r is gone.
static ptrdiff_t rvd_proxy_route_header(rvd_proxy_route *r, const uint8_t *data, size_t len)
{
    rvd_wire_addr src, dst;
    ptrdiff_t n = rvd_wire_header_get(data, len, &src, &dst);
    if (n > 0) return rvd_proxy_route_meet(r, &src, &dst) ? n : -1;
    if (n < 0 || r->is_end) {
        rvd_proxy_route_fail(r, REVDIAL_EPROTO, 0,
                             n < 0 ? "no PROXY header, or a malformed one"
                                   : "the connection ended within its PROXY header");
        return -1;
    }
    r->in.len = 0;
    if (rvd_proxy_bytes_add(&r->listener->proxy->own, &r->in, data, len)) return 0;
    rvd_proxy_route_fail(r, REVDIAL_ENOMEM, 0, "out of memory for a PROXY header");
    return -1;
}

// What was kept, and n bytes that have just come. Returns 0 if r is gone.
static int rvd_proxy_route_input(rvd_proxy_route *r, const uint8_t *data, size_t len, size_t n)
{
    ptrdiff_t header = 0;
    if (r->wants_header) {
        header = rvd_proxy_route_header(r, data, len);
        if (header <= 0) return header == 0;
        data += header;
        len -= (size_t)header;
        n = len;
        rvd_proxy_bytes_drop(&r->listener->proxy->own, &r->in, r->in.len);
    }
    r->got += n;
    if (r->listener->expose.route && len == 0 && !r->is_end) return 1;
    return rvd_proxy_route_decide(r, data, len);
}

// Reads once. Returns 0 to stop for now, or when r is gone.
static int rvd_proxy_route_read(rvd_proxy_route *r)
{
    const revdial_expose *x = &r->listener->expose;
    uint8_t *buf = r->listener->proxy->loops[0]->buf;  // the loop's, and it is not reading now
    size_t have = r->in.len, room = rvd_proxy_route_max(x) - r->got;
    ptrdiff_t n;
    if (have) memcpy(buf, r->in.at, have);
    if (have && !r->is_seen && !r->wants_header) return rvd_proxy_route_decide(r, buf, have);
    if (!(r->io.ready & RVD_LOOP_READ)) return 0;
    if (r->wants_header) room = RVD_WIRE_PREAMBLE_MAX;
    n = rvd_sys_read(r->io.fd, buf + have, room);
    if (n == -EAGAIN) {
        r->io.ready &= ~(unsigned)RVD_LOOP_READ;
        return 0;
    }
    if (n < 0 || (n == 0 && !have && !r->got)) {
        rvd_proxy_route_fail(r, REVDIAL_ECLOSED, n < 0 ? (int)-n : 0, "the client has gone");
        return 0;
    }
    r->is_end = n == 0;
    if ((size_t)n < room && !(r->io.ready & (RVD_LOOP_EOF | RVD_LOOP_HUP)))
        r->io.ready &= ~(unsigned)RVD_LOOP_READ;
    return rvd_proxy_route_input(r, buf, have + (size_t)n, (size_t)n);
}

// Drops what a refused client still sends, until it has closed, too.
static void rvd_proxy_route_drop(rvd_proxy_route *r)
{
    rvd_loop *loop = r->listener->proxy->loops[0];
    ptrdiff_t n;
    if (!(r->io.ready & RVD_LOOP_READ)) return;
    n = rvd_sys_read(r->io.fd, loop->buf, RVD_LOOP_BUFFER);
    if (n == -EAGAIN)
        r->io.ready &= ~(unsigned)RVD_LOOP_READ;
    else if (n <= 0)
        rvd_proxy_route_fail(r, REVDIAL_EREFUSED, 0, "refused");
    else
        rvd_loop_again(loop, &r->io);
}

// Sends what waits. Returns how much is left, or -errno.
static ptrdiff_t rvd_proxy_route_flush(rvd_proxy_route *r)
{
    ptrdiff_t n;
    if (!r->out.len || !(r->io.ready & RVD_LOOP_WRITE)) return (ptrdiff_t)r->out.len;
    n = rvd_sys_write(r->io.fd, r->out.at, r->out.len);
    if (n == -EAGAIN) n = 0;
    if (n < 0) return n;
    rvd_proxy_bytes_drop(&r->listener->proxy->own, &r->out, (size_t)n);
    if (r->out.len) r->io.ready &= ~(unsigned)RVD_LOOP_WRITE;
    return (ptrdiff_t)r->out.len;
}

// Does what can be done. Returns 0 when it has to wait, or is gone.
static int rvd_proxy_route_step(rvd_proxy_route *r)
{
    ptrdiff_t left = rvd_proxy_route_flush(r);
    if (r->state == RVD_PROXY_DIALLING) {
        if (left < 0 || r->io.ready & RVD_LOOP_HUP)
            revdial_dial_cancel(r->listener->proxy, r->client->dial);
        return 0;
    }
    if (left < 0) rvd_proxy_route_fail(r, REVDIAL_ECLOSED, (int)-left, "the client has gone");
    if (left) return 0;
    switch (r->state) {
    case RVD_PROXY_READING: return rvd_proxy_route_read(r);
    case RVD_PROXY_DIALLING: break;
    case RVD_PROXY_GREETING: rvd_proxy_route_join(r); break;
    case RVD_PROXY_REFUSING:
        rvd_sys_shutdown_wr(r->io.fd);
        rvd_proxy_route_become(r, RVD_PROXY_LINGERING);
        rvd_proxy_route_until(r, rvd_proxy_route_now(r) + RVD_PROXY_LINGER_US);
        return 1;
    case RVD_PROXY_LINGERING: rvd_proxy_route_drop(r); break;
    }
    return 0;
}

static void rvd_proxy_route_run(rvd_proxy_route *r)
{
    while (rvd_proxy_route_step(r)) continue;
}

static void rvd_proxy_route_on_io(rvd_loop_io *io)
{
    rvd_proxy_route_run(RVD_BASE_OWNER(io, rvd_proxy_route, io));
}

static void rvd_proxy_route_on_timer(rvd_loop_timer *t)
{
    rvd_proxy_route *r = RVD_BASE_OWNER(t, rvd_proxy_route, timer);
    const char *text = r->state == RVD_PROXY_READING ? "no decision in time: route_timeout_ms"
                                                     : "the client does not take its reply";
    rvd_proxy_route_fail(r, REVDIAL_ETIMEDOUT, 0, text);
}

// On loop 0: the dial has ended on another one.
static void rvd_proxy_route_on_task(rvd_loop_task *task)
{
    rvd_proxy_route *r = RVD_BASE_OWNER(task, rvd_proxy_route, task);
    revdial_err why;
    rvd_stream_fail(&why, REVDIAL_ENOMEM, 0, "the dial failed, and there was no memory to say why");
    if (r->client->why) why = *r->client->why;
    rvd_owner_free(&r->listener->proxy->own, r->client->why, sizeof *r->client->why);
    r->client->why = NULL;
    if (rvd_proxy_route_dialled(r, r->client->st ? NULL : &why)) rvd_proxy_route_run(r);
}

static void rvd_proxy_route_on_dialled(void *ud, revdial_stream *st, const revdial_err *err)
{
    rvd_proxy_route *r = ud;
    revdial_proxy *p = r->listener->proxy;
    r->client->st = st;
    if (rvd_loop_is_owner(p->loops[0])) {
        if (rvd_proxy_route_dialled(r, err)) rvd_proxy_route_run(r);
        return;
    }
    r->client->why = st ? NULL : rvd_owner_alloc(&p->own, sizeof *r->client->why);
    if (r->client->why) *r->client->why = *err;
    rvd_loop_post(p->loops[0], &r->task);
}

// Ends those of a port that no dial is about.
static void rvd_proxy_routes_end(rvd_proxy_listener *l, const char *why)
{
    while (!rvd_base_link_is_alone(&l->routed))
        rvd_proxy_route_fail(RVD_BASE_OWNER(l->routed.next, rvd_proxy_route, link), REVDIAL_ECLOSED,
                             0, why);
}

// The port is full, and others wait in the kernel's queue. The client that has been silent for
// longest makes room: the hook's calls keep the list in that order. So silent clients cannot close
// a port.
//   returns  1, or 0: nobody does yet
static int rvd_proxy_route_yield(rvd_proxy_listener *l)
{
    rvd_loop *loop = l->proxy->loops[0];
    int64_t until_us = rvd_loop_now(loop) - RVD_PROXY_YIELD_US;
    int is_any = 0;
    for (rvd_base_link *at = l->routed.next; at != &l->routed; at = at->next) {
        rvd_proxy_route *r = RVD_BASE_OWNER(at, rvd_proxy_route, link);
        if (r->state != RVD_PROXY_READING) continue;
        is_any = 1;
        if (r->since_us > until_us) break;
        rvd_proxy_route_fail(r, REVDIAL_ELIMIT, 0, "others wait, and this client is silent");
        return l->io.fd >= 0;  // on_client may have unexposed it
    }
    if (is_any) rvd_loop_timer_set(loop, &l->pause, rvd_loop_now(loop) + RVD_PROXY_PAUSE_US);
    return 0;
}

// Returns NULL without memory.
static rvd_proxy_route *rvd_proxy_route_new(rvd_proxy_listener *l, int fd, const char *from,
                                            const char *local)
{
    revdial_proxy *p = l->proxy;
    rvd_proxy_route *r = rvd_owner_alloc(&p->own, sizeof *r);
    if (!r) return NULL;
    r->listener = l;
    if (!rvd_proxy_route_name(r, from, local)) {
        rvd_owner_free(&p->own, r, sizeof *r);
        return NULL;
    }
    r->io.fd = fd;
    r->io.run = rvd_proxy_route_on_io;
    r->timer.run = rvd_proxy_route_on_timer;
    r->task.run = rvd_proxy_route_on_task;
    r->since_us = rvd_loop_now(p->loops[0]);
    rvd_base_link_init(&r->link);
    rvd_proxy_listener_ref(l);
    rvd_base_link_push(&l->routed, &r->link);
    rvd_stream_work_begin(&p->own.work);
    pthread_mutex_lock(&p->own.lock);
    l->waiting++;
    pthread_mutex_unlock(&p->own.lock);
    return r;
}

static void rvd_proxy_route_begin(rvd_proxy_listener *l, int fd, const rvd_sys_addr *peer,
                                  int wants_header)
{
    rvd_loop *loop = l->proxy->loops[0];
    int64_t ms = l->expose.route_timeout_ms ? l->expose.route_timeout_ms : RVD_PROXY_ROUTE_MS;
    char from[RVD_SYS_TEXT_MAX], local[RVD_SYS_TEXT_MAX];
    const char *to = rvd_proxy_client_local(l, fd, peer, local);
    rvd_proxy_route *r;
    rvd_sys_addr_format(peer, from, sizeof from);
    r = rvd_proxy_route_new(l, fd, from, to ? to : "");
    if (!r) {
        rvd_proxy_log_unrouted(l, from, REVDIAL_ENOMEM, "out of memory for a client");
        rvd_sys_close_reset(fd);
        return;
    }
    r->wants_header = wants_header != 0;
    if (rvd_loop_add(loop, &r->io) < 0 ||
        rvd_loop_timer_set(loop, &r->timer, r->since_us + ms * 1000) < 0) {
        rvd_proxy_route_fail(r, REVDIAL_ENOMEM, 0, "the loop cannot watch the client");
        return;
    }
    r->io.ready |= RVD_LOOP_READ | RVD_LOOP_WRITE;  // a client mostly speaks first
    rvd_proxy_route_run(r);
}

static void rvd_proxy_client_begin(rvd_proxy_listener *l, int fd, const rvd_sys_addr *peer)
{
    int ip_len = 0, is_trusted;
    const uint8_t *ip = NULL;
    if (!RVD_SYS_INHERITS) rvd_proxy_client_tune(l, fd);
    if (peer->ss.ss_family != AF_UNIX) ip = rvd_sys_addr_ip(peer, &ip_len);
    is_trusted = rvd_sys_nets_have(l->trusted, l->trusted_count, ip, ip_len);
    if (!is_trusted && l->allowed_count &&
        !rvd_sys_nets_have(l->allowed, l->allowed_count, ip, ip_len)) {
        char from[RVD_SYS_TEXT_MAX];
        rvd_sys_addr_format(peer, from, sizeof from);
        rvd_proxy_log_unrouted(l, from, REVDIAL_EDENIED, RVD_PROXY_NOT_ALLOWED);
        rvd_sys_close_reset(fd);
        return;
    }
    if (is_trusted || l->expose.route)
        rvd_proxy_route_begin(l, fd, peer, is_trusted);
    else
        rvd_proxy_client_plain(l, fd, peer);
}

// ---- the application's other calls ----

int revdial_proxy_wait(revdial_proxy *p, const char *name, unsigned min_sessions, int timeout_ms)
{
    int64_t until = rvd_stream_deadline(timeout_ms);
    unsigned up = 0;
    int r = 0;
    if (rvd_owner_is_child(&p->own)) return REVDIAL_ECLOSED;
    if (rvd_proxy_is_on_loop(p)) return REVDIAL_EDEADLK;
    if (!name || !rvd_base_is_name(name, strlen(name))) return REVDIAL_EINVAL;
    if (!rvd_proxy_enter(p)) return REVDIAL_ECLOSED;
    pthread_mutex_lock(&p->own.lock);
    for (;;) {
        rvd_proxy_name *n = *rvd_proxy_slot(p, name);
        up = 0;
        for (rvd_base_link *l = n ? n->sessions.next : NULL; n && l != &n->sessions; l = l->next) {
            rvd_proxy_member *m = RVD_BASE_OWNER(l, rvd_proxy_member, link);
            up += m->base.is_up && !rvd_stream_is_leaving(m->base.session);
        }
        if (up >= min_sessions || r || p->closing) break;
        r = rvd_owner_wait_locked(&p->own, until);
    }
    if (up < min_sessions) r = p->closing ? REVDIAL_ECLOSED : REVDIAL_ETIMEDOUT;
    pthread_mutex_unlock(&p->own.lock);
    rvd_stream_work_end(&p->own.work);
    return up < min_sessions ? r : (int)up;
}

size_t revdial_proxy_list(revdial_proxy *p, const char *name_glob, revdial_session **out,
                          size_t cap)
{
    size_t count = 0;
    if (rvd_owner_is_child(&p->own)) return 0;
    pthread_mutex_lock(&p->own.lock);
    for (rvd_base_link *l = p->own.members.next; l != &p->own.members; l = l->next) {
        rvd_proxy_member *m = RVD_BASE_OWNER(l, rvd_proxy_member, base.link);
        const char *name = m->name->name;
        if (!m->base.is_up) continue;
        if (name_glob && !rvd_base_glob(name_glob, strlen(name_glob), name, strlen(name))) continue;
        if (count < cap) out[count] = revdial_session_ref(m->base.session);
        count++;
    }
    pthread_mutex_unlock(&p->own.lock);
    return count;
}

// Applies a new table to a session: it gets the group of its row, or ends if no row admits it and
// drop is set.
static void rvd_proxy_table_apply(revdial_proxy *p, const rvd_auth_table *t, revdial_session *s,
                                  int drop)
{
    rvd_proxy_member *m = s->member;
    const revdial_credential *row = rvd_auth_table_row(t, m->row_mark, s->name, s->identity);
    if (row) {
        rvd_auth_holder holder = rvd_auth_row_holder(&p->guard, row, s->identity);
        pthread_mutex_lock(&p->own.lock);
        m->holder.group = holder.group;
        pthread_mutex_unlock(&p->own.lock);
    } else if (drop) {
        rvd_proxy_log_session(s, RVD_LOG_SESSION_REVOKED, REVDIAL_LOG_INFO, NULL);
        rvd_proxy_end(revdial_session_ref(s), REVDIAL_EAUTH, "its credential was withdrawn");
    }
}

int revdial_proxy_replace_credentials(revdial_proxy *p, const revdial_credential *rows,
                                      size_t count, unsigned flags, revdial_err *err)
{
    rvd_owner_snapshot list;
    rvd_auth_table *fresh, *old;
    int code;
    if (rvd_owner_is_child(&p->own))
        return rvd_stream_fail(err, REVDIAL_ECLOSED, 0, RVD_STREAM_CHILD);
    if (rvd_proxy_rows_check(rows, count, err)) return REVDIAL_EINVAL;
    fresh = rvd_auth_table_new(&p->guard, p->cfg.realm, rows, count);
    if (!fresh) return rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for the table");
    pthread_mutex_lock(&p->own.lock);
    old = p->table;
    p->table = fresh;
    fresh->refs++;  // for the comparison below
    pthread_mutex_unlock(&p->own.lock);
    rvd_proxy_table_unref(p, old);
    code = rvd_owner_snapshot_open(&p->own, &list);
    for (size_t i = 0; i < list.count; i++)
        if (((const rvd_proxy_member *)list.all[i]->member)->is_listed)
            rvd_proxy_table_apply(p, fresh, list.all[i], flags & REVDIAL_END_STALE);
    rvd_owner_snapshot_close(&p->own, &list);
    rvd_proxy_table_unref(p, fresh);
    if (!code) return REVDIAL_OK;
    return rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory; the new table is in force");
}

void revdial_proxy_replace_auth(revdial_proxy *p, revdial_auth_fn *auth, void *auth_ud)
{
    if (rvd_owner_is_child(&p->own)) return;
    pthread_mutex_lock(&p->own.lock);
    p->auth = auth;
    p->auth_ud = auth_ud;
    pthread_mutex_unlock(&p->own.lock);
}

void revdial_proxy_get_stats(revdial_proxy *p, revdial_stats *out)
{
    rvd_owner_get_stats(&p->own, out);
}

// ---- ports that come and go ----

// Finds the port with this id, or the one for backends that is number `index` of them if id is 0.
static rvd_proxy_listener *rvd_proxy_listener_find_locked(revdial_proxy *p, int64_t id,
                                                          unsigned index)
{
    for (rvd_base_link *at = p->listeners.next; at != &p->listeners; at = at->next) {
        rvd_proxy_listener *l = RVD_BASE_OWNER(at, rvd_proxy_listener, link);
        if (l->id == id && (id || index-- == 0)) return l;
    }
    return NULL;
}

static int rvd_proxy_listener_address(revdial_proxy *p, int64_t id, unsigned index, char *buf,
                                      size_t size)
{
    const rvd_proxy_listener *l;
    size_t len = 0;
    if (rvd_owner_is_child(&p->own)) return REVDIAL_ECLOSED;
    pthread_mutex_lock(&p->own.lock);
    l = rvd_proxy_listener_find_locked(p, id, index);
    if (l) len = strlen(l->address);
    if (l && len < size) memcpy(buf, l->address, len + 1);
    pthread_mutex_unlock(&p->own.lock);
    return l && len < size ? (int)len : REVDIAL_EINVAL;
}

int revdial_proxy_address(revdial_proxy *p, unsigned index, char *buf, size_t size)
{
    unsigned backends = p->backend_ports;
    if (index < backends) return rvd_proxy_listener_address(p, 0, index, buf, size);
    return rvd_proxy_listener_address(p, (int64_t)(index - backends) + 1, 0, buf, size);
}

int revdial_proxy_expose_address(revdial_proxy *p, int64_t id, char *buf, size_t size)
{
    return id > 0 ? rvd_proxy_listener_address(p, id, 0, buf, size) : REVDIAL_EINVAL;
}

// Ends the relays of unexposed ports that were begun before this loop learned of it.
static void rvd_proxy_on_sweep(rvd_loop_task *task)
{
    rvd_proxy_sweep *s = RVD_BASE_OWNER(task, rvd_proxy_sweep, task);
    rvd_base_link *guests = &s->group->guests;
    if (!atomic_load(&s->wanted)) return;
    for (rvd_base_link *at = guests->next; at != guests; at = at->next) {
        rvd_stream_guest *guest = RVD_BASE_OWNER(at, rvd_stream_guest, link);
        const rvd_proxy_client *c = rvd_relay_runs_for(guest, rvd_proxy_client_on_over);
        if (c && atomic_load(&c->listener->ends_clients)) guest->end(guest);
    }
    if (atomic_fetch_sub(&s->wanted, 1) > 1) rvd_loop_post(s->group->loop, task);
}

static void rvd_proxy_dials_cancel_locked(const rvd_proxy_listener *l)
{
    rvd_base_link *dials = &l->proxy->dials;
    for (rvd_base_link *at = dials->next; at != dials; at = at->next) {
        rvd_proxy_dial *d = RVD_BASE_OWNER(at, rvd_proxy_dial, link);
        if (d->from != l) continue;
        d->is_cancelled = 1;
        rvd_loop_post(d->loop, &d->task);
    }
}

// Loop 0: ends the port's relays. One whose dial has just succeeded sees the mark. Each loop looks
// twice, because one that was about to start a relay when it was marked has posted the start by the
// first look, and has run it by the second.
static void rvd_proxy_relays_end(rvd_proxy_listener *l)
{
    revdial_proxy *p = l->proxy;
    atomic_store(&l->ends_clients, 1);
    for (unsigned i = 0; i < p->loop_count; i++) {
        atomic_fetch_add(&p->sweeps[i].wanted, 2);
        rvd_loop_post(p->loops[i], &p->sweeps[i].task);
    }
}

// Loop 0. It is unexposed; once it is, the last reference was dropped.
static void rvd_proxy_listener_on_end(rvd_loop_task *task)
{
    rvd_proxy_listener *l = RVD_BASE_OWNER(task, rvd_proxy_listener, end);
    revdial_proxy *p = l->proxy;
    int ends = (l->unexpose_flags & REVDIAL_END_CLIENTS) != 0;
    if (l->state == RVD_PROXY_GONE) {
        rvd_proxy_listener_free(l);
        return;
    }
    rvd_proxy_listener_unwatch(l);
    if (ends) rvd_proxy_relays_end(l);
    pthread_mutex_lock(&p->own.lock);
    rvd_proxy_listener_become(l, RVD_PROXY_GONE);
    if (ends || l->expose.route) rvd_proxy_dials_cancel_locked(l);
    pthread_cond_broadcast(&p->own.changed);
    pthread_mutex_unlock(&p->own.lock);
    rvd_proxy_routes_end(l, RVD_PROXY_UNEXPOSED);
    rvd_proxy_listener_unref(l);
}

// Takes the port out of the list. Returns a reference, or NULL: there is none with this id.
static rvd_proxy_listener *rvd_proxy_listener_take(revdial_proxy *p, int64_t id, unsigned flags)
{
    rvd_proxy_listener *l;
    pthread_mutex_lock(&p->own.lock);
    l = id > 0 ? rvd_proxy_listener_find_locked(p, id, 0) : NULL;
    if (l) {
        rvd_base_link_remove(&l->link);
        l->unexpose_flags = flags;
        rvd_proxy_listener_ref(l);
    }
    pthread_mutex_unlock(&p->own.lock);
    return l;
}

int revdial_proxy_unexpose(revdial_proxy *p, int64_t id, unsigned flags)
{
    rvd_proxy_listener *l;
    int waits, code = REVDIAL_OK;
    if (rvd_owner_is_child(&p->own)) return REVDIAL_ECLOSED;
    l = rvd_proxy_listener_take(p, id, flags);
    if (!l) return REVDIAL_EINVAL;
    waits = !rvd_proxy_is_on_loop(p);
    rvd_proxy_listener_unlink(l);  // now, although its loop may need a moment
    if (rvd_loop_is_owner(p->loops[0])) {
        rvd_proxy_listener_on_end(&l->end);
    } else {
        code = !waits;
        rvd_loop_post(p->loops[0], &l->end);
    }
    pthread_mutex_lock(&p->own.lock);
    while (waits && l->state != RVD_PROXY_GONE) rvd_owner_wait_locked(&p->own, INT64_MAX);
    pthread_mutex_unlock(&p->own.lock);
    rvd_proxy_listener_unref(l);
    return code;
}

// ---- opening and closing ----

static rvd_proxy_listener *rvd_proxy_listener_to_close(revdial_proxy *p)
{
    rvd_proxy_listener *found = NULL;
    pthread_mutex_lock(&p->own.lock);
    for (rvd_base_link *at = p->listeners.next; at != &p->listeners && !found; at = at->next) {
        rvd_proxy_listener *l = RVD_BASE_OWNER(at, rvd_proxy_listener, link);
        if (l->state == RVD_PROXY_LISTENS) found = l;
    }
    if (found) rvd_proxy_listener_become(found, RVD_PROXY_CLOSED);
    pthread_mutex_unlock(&p->own.lock);
    return found;
}

// A port with clients that wait for a decision or a reply, with a reference.
static rvd_proxy_listener *rvd_proxy_listener_with_routes(revdial_proxy *p)
{
    rvd_proxy_listener *found = NULL;
    pthread_mutex_lock(&p->own.lock);
    for (rvd_base_link *at = p->listeners.next; at != &p->listeners && !found; at = at->next) {
        rvd_proxy_listener *l = RVD_BASE_OWNER(at, rvd_proxy_listener, link);
        if (!rvd_base_link_is_alone(&l->routed)) found = rvd_proxy_listener_ref(l);
    }
    pthread_mutex_unlock(&p->own.lock);
    return found;
}

static void rvd_proxy_on_stop_listening(rvd_loop_task *task)
{
    revdial_proxy *p = RVD_BASE_OWNER(task, revdial_proxy, stop_listening);
    rvd_proxy_listener *l;
    for (size_t i = 0; i < p->queue_count; i++) rvd_sys_close(p->queue[i].fd);
    if (p->queue_count) rvd_proxy_queue_set(p, 0);
    while ((l = rvd_proxy_listener_to_close(p)) != NULL) rvd_proxy_listener_unwatch(l);
    while ((l = rvd_proxy_listener_with_routes(p)) != NULL) {
        rvd_proxy_routes_end(l, "the proxy stops");
        rvd_proxy_listener_unref(l);
    }
    pthread_mutex_lock(&p->own.lock);
    p->ports_closing = 0;
    pthread_cond_broadcast(&p->own.changed);
    pthread_mutex_unlock(&p->own.lock);
}

static void rvd_proxy_stop_listening(revdial_proxy *p)
{
    pthread_mutex_lock(&p->own.lock);
    p->ports_closing = 1;
    rvd_loop_post(p->loops[0], &p->stop_listening);
    while (p->ports_closing) rvd_owner_wait_locked(&p->own, INT64_MAX);
    pthread_mutex_unlock(&p->own.lock);
}

int revdial_proxy_drain(revdial_proxy *p, int timeout_ms)
{
    int64_t until = rvd_stream_deadline(timeout_ms);
    rvd_owner_snapshot list;
    int r = 0;
    if (rvd_owner_is_child(&p->own)) return REVDIAL_ECLOSED;
    if (rvd_proxy_is_on_loop(p)) return REVDIAL_EDEADLK;
    pthread_mutex_lock(&p->own.lock);
    p->draining = 1;
    pthread_mutex_unlock(&p->own.lock);
    rvd_proxy_stop_listening(p);
    if (rvd_owner_snapshot_open(&p->own, &list)) return REVDIAL_ENOMEM;
    for (size_t i = 0; i < list.count; i++) revdial_session_drain(list.all[i], timeout_ms);
    rvd_owner_snapshot_close(&p->own, &list);
    pthread_mutex_lock(&p->own.lock);
    while (p->own.member_count && r == 0) r = rvd_owner_wait_locked(&p->own, until);
    r = p->own.member_count || p->own.was_cut ? REVDIAL_ETIMEDOUT : REVDIAL_OK;
    pthread_mutex_unlock(&p->own.lock);
    return r;
}

static void rvd_proxy_free(revdial_proxy *p)
{
    rvd_heap heap = {p->cfg.common.alloc, p->cfg.common.alloc_ud, sizeof *p}, *h = &p->own.heap;
    size_t loops = rvd_proxy_or(p->cfg.common.io_threads, 1);
    rvd_auth_table_free(p->table);
    rvd_auth_guard_end(&p->guard);
    for (unsigned i = 0; i < p->loop_count; i++) rvd_loop_free(p->loops[i]);
    rvd_base_free(h, p->loops, loops * sizeof *p->loops);
    rvd_base_free(h, p->groups, loops * sizeof *p->groups);
    rvd_base_free(h, p->sweeps, loops * sizeof *p->sweeps);
    while (!rvd_base_link_is_alone(&p->listeners)) {
        rvd_proxy_listener *l = RVD_BASE_OWNER(p->listeners.next, rvd_proxy_listener, link);
        rvd_base_link_remove(&l->link);
        rvd_proxy_listener_free(l);
    }
    rvd_base_free(h, p->queue, p->queue_room * sizeof *p->queue);
    rvd_base_arena_free(&p->texts, h);
    rvd_owner_close(&p->own);
    rvd_base_free(&heap, p, sizeof *p);
}

int revdial_proxy_stop(revdial_proxy *p)
{
    if (!p) return REVDIAL_OK;
    if (rvd_owner_is_child(&p->own)) return REVDIAL_ECLOSED;
    if (rvd_proxy_is_on_loop(p) || rvd_loop_pool_is_mine(&p->auth_pool) ||
        rvd_loop_pool_is_mine(&p->own.handlers))
        return REVDIAL_EDEADLK;
    pthread_mutex_lock(&p->own.lock);
    p->closing = 1;
    for (rvd_base_link *l = p->dials.next; l != &p->dials; l = l->next) {
        rvd_proxy_dial *d = RVD_BASE_OWNER(l, rvd_proxy_dial, link);
        d->is_cancelled = 1;
        rvd_loop_post(d->loop, &d->task);
    }
    pthread_cond_broadcast(&p->own.changed);
    pthread_mutex_unlock(&p->own.lock);
    rvd_proxy_stop_listening(p);
    for (unsigned i = 0; i < p->loop_count; i++) rvd_stream_group_end(&p->groups[i]);
    rvd_stream_work_wait(&p->own.work);
    for (unsigned i = 0; i < p->loop_count; i++) {
        rvd_loop_stop(p->loops[i]);
        rvd_loop_join(p->loops[i]);
    }
    rvd_loop_pool_close(&p->auth_pool);
    rvd_loop_pool_close(&p->own.handlers);
    rvd_proxy_free(p);
    return REVDIAL_OK;
}

static int rvd_proxy_nomem(revdial_err *err)
{
    return rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for the proxy");
}

// A comma list of networks as in allow_from. Returns 0, or REVDIAL_EINVAL.
static int rvd_proxy_nets_check(const char *field, const char *list, revdial_err *err)
{
    const char *item;
    rvd_sys_net net;
    size_t len, count = 0;
    if (!list) return REVDIAL_OK;
    for (; (len = rvd_base_item(&list, &item)) > 0; count++) {
        char shown[64] = "";
        if (rvd_sys_net_parse(item, len, &net)) continue;
        memcpy(shown, item, rvd_base_min(len, sizeof shown - 1));
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, shown,
                     "not an address, a network such as 10.0.0.0/8, or unix:");
        rvd_stream_fail_in(err, field);
        return REVDIAL_EINVAL;
    }
    if (count) return REVDIAL_OK;
    rvd_stream_fail(err, REVDIAL_EINVAL, 0, "no address in it");
    rvd_stream_fail_in(err, field);
    return REVDIAL_EINVAL;
}

static const char *rvd_proxy_expose_problem(const revdial_expose *x)
{
    if (!x->listen || !*x->listen) return "listen: no port to listen on";
    if (x->idle_ms < 0) return "idle_ms: negative";
    if (x->half_closed_ms < -1) return "half_closed_ms: below -1, which means never";
    if (!x->name && !x->route) return "name: NULL, and there is no route";
    if (x->route_done && !x->route) return "route_done: there is no route";
    if (x->route_bytes_max > RVD_PROXY_ROUTE_BYTES_MAX) return "route_bytes_max: over 65536";
    if (x->route_timeout_ms < 0) return "route_timeout_ms: negative";
    return NULL;
}

// Returns 0, or REVDIAL_EINVAL.
static int rvd_proxy_expose_check(const revdial_expose *x, revdial_err *err)
{
    const char *problem = rvd_proxy_expose_problem(x);
    if (problem) return rvd_stream_fail(err, REVDIAL_EINVAL, 0, problem);
    if (rvd_proxy_nets_check("trusted_proxies: ", x->trusted_proxies, err)) return REVDIAL_EINVAL;
    if (rvd_proxy_nets_check("allow_from: ", x->allow_from, err)) return REVDIAL_EINVAL;
    if (!x->name) return rvd_stream_dial_check(&x->dial, err);
    return rvd_proxy_dial_check(x->name, &x->dial, err);
}

static int rvd_proxy_exposes_check(const revdial_proxy_config *cfg, revdial_err *err)
{
    for (size_t i = 0; i < cfg->expose_count; i++) {
        char where[32];
        if (rvd_proxy_expose_check(&cfg->exposes[i], err) == 0) continue;
        RVD_BASE_JOIN(where, sizeof where, "exposes[", RVD_BASE_NUMBER(i), "].");
        rvd_stream_fail_in(err, where);
        return REVDIAL_EINVAL;
    }
    return REVDIAL_OK;
}

static int rvd_proxy_config_check(const revdial_proxy_config *cfg, revdial_err *err)
{
    const char *problem = rvd_stream_common_problem(&cfg->common);
    int code;
    if (cfg->common.io_threads > 256) problem = "common.io_threads: over 256";
    if (!cfg->exposes != !cfg->expose_count)
        problem = cfg->exposes ? "exposes: given, but the count is 0"
                               : "exposes: NULL, but the count is not 0";
    if (cfg->credentials && !cfg->credential_count && !cfg->auth)
        problem = "credentials: given, but the count is 0";
    if (cfg->max_auth_failures < -1) problem = "max_auth_failures: below -1, which means no limit";
    if (cfg->unix_mode > 0777) problem = "unix_mode: not from 0 to 0777";
    if (problem) return rvd_stream_fail(err, REVDIAL_EINVAL, 0, problem);
    code = rvd_stream_common_check(&cfg->common, err);
    if (code) return code;
    if (cfg->credential_count && rvd_proxy_rows_check(cfg->credentials, cfg->credential_count, err))
        return REVDIAL_EINVAL;
    return rvd_proxy_exposes_check(cfg, err);
}

static revdial_expose rvd_proxy_expose_keep(rvd_base_arena *a, const revdial_expose *from)
{
    revdial_expose x = *from;
    x.dial.early_len = 0;  // each connection has its own
    x.listen = rvd_base_keep_text(a, from->listen);
    x.name = rvd_base_keep_text(a, from->name);
    x.dial = rvd_proxy_opts_keep(a, &x.dial);
    return x;
}

static const rvd_sys_net *rvd_proxy_nets_keep(rvd_base_arena *a, const char *list, size_t *count)
{
    const char *rest = list, *item;
    rvd_sys_net *to;
    size_t len;
    *count = 0;
    while (rest && rvd_base_item(&rest, &item) > 0) ++*count;
    to = rvd_base_keep_room(a, *count, sizeof *to);
    for (size_t i = 0; list && (len = rvd_base_item(&list, &item)) > 0; i++)
        if (to) rvd_sys_net_parse(item, len, &to[i]);
    return to;
}

static void rvd_proxy_listener_keep(rvd_base_arena *a, rvd_proxy_listener *l,
                                    const revdial_expose *x)
{
    l->expose = rvd_proxy_expose_keep(a, x);
    l->trusted = rvd_proxy_nets_keep(a, x->trusted_proxies, &l->trusted_count);
    l->allowed = rvd_proxy_nets_keep(a, x->allow_from, &l->allowed_count);
    l->expose.trusted_proxies = l->expose.allow_from = NULL;
}

// For clients, or for backends if x is NULL. Returns NULL without memory.
static rvd_proxy_listener *rvd_proxy_listener_new(revdial_proxy *p, const revdial_expose *x)
{
    static const revdial_expose none;
    rvd_base_arena texts = {NULL, 0, 0};
    rvd_proxy_listener *l, counted;
    size_t size;
    if (!x) x = &none;
    rvd_proxy_listener_keep(&texts, &counted, x);
    size = sizeof *l + texts.len;
    l = rvd_owner_alloc(&p->own, size);
    if (!l) return NULL;
    rvd_base_arena_fill(&texts, l->texts);
    rvd_proxy_listener_keep(&texts, l, x);
    l->size = size;
    l->proxy = p;
    rvd_base_link_init(&l->routed);
    l->io.fd = -1;
    l->io.run = rvd_proxy_on_listener;
    l->pause.run = rvd_proxy_on_pause;
    l->resume.run = rvd_proxy_on_resume;
    l->end.run = rvd_proxy_listener_on_end;
    atomic_init(&l->refs, 1);
    rvd_base_link_init(&l->link);
    return l;
}

static void rvd_proxy_texts_keep(revdial_proxy *p, const revdial_proxy_config *cfg)
{
    p->cfg = *cfg;
    p->cfg.listen = rvd_base_keep_text(&p->texts, cfg->listen);
    p->cfg.path = rvd_base_keep_text(&p->texts, cfg->path);
    p->cfg.realm = rvd_base_keep_text(&p->texts, cfg->realm ? cfg->realm : "revdial");
    p->cfg.origins = rvd_base_keep_text(&p->texts, cfg->origins);
    p->cfg.exposes = cfg->exposes;  // until they are there
    p->cfg.credentials = NULL;      // they are replaced while the proxy runs: p->table
}

static int rvd_proxy_config_copy(revdial_proxy *p, const revdial_proxy_config *cfg,
                                 revdial_err *err)
{
    p->own.handler = cfg->on_stream;
    p->own.ud = cfg->ud;
    p->auth = cfg->auth;
    p->auth_ud = cfg->auth_ud;
    rvd_proxy_texts_keep(p, cfg);
    if (!rvd_base_arena_open(&p->texts, &p->own.heap)) return rvd_proxy_nomem(err);
    rvd_proxy_texts_keep(p, cfg);
    p->table = rvd_auth_table_new(&p->guard, p->cfg.realm, cfg->credentials, cfg->credential_count);
    return p->table ? REVDIAL_OK : rvd_proxy_nomem(err);
}

static int rvd_proxy_loops_open(revdial_proxy *p, revdial_err *err)
{
    unsigned count = rvd_proxy_or(p->cfg.common.io_threads, 1);
    p->loops = rvd_base_alloc(&p->own.heap, count * sizeof *p->loops);
    p->groups = rvd_base_alloc(&p->own.heap, count * sizeof *p->groups);
    p->sweeps = rvd_base_alloc(&p->own.heap, count * sizeof *p->sweeps);
    if (!p->loops || !p->groups || !p->sweeps) return rvd_proxy_nomem(err);
    for (; p->loop_count < count; p->loop_count++) {
        rvd_loop *loop = rvd_loop_new(p->cfg.common.alloc, p->cfg.common.alloc_ud, err);
        if (!loop) return REVDIAL_ESYS;
        rvd_loop_spin_limit(loop, p->cfg.common.spin_us);
        p->loops[p->loop_count] = loop;
        p->own.log.loop = p->loops[0];
        rvd_stream_group_init(&p->groups[p->loop_count], loop, &p->own.log, &p->own.work,
                              &p->cfg.common);
        p->sweeps[p->loop_count].task.run = rvd_proxy_on_sweep;
        p->sweeps[p->loop_count].group = &p->groups[p->loop_count];
    }
    return REVDIAL_OK;
}

// Does this text name an IPv4 address, or a host that may have one, and that port?
static int rvd_proxy_may_be_ipv4(const char *text, size_t len, uint16_t port)
{
    char one[RVD_SYS_HOST_MAX + 8];
    rvd_sys_endpoint e;
    if (len >= sizeof one) return 0;
    memcpy(one, text, len);
    one[len] = '\0';
    return rvd_sys_addr_split(one, 0, &e, NULL) == 0 && e.port == port &&
           (e.kind == RVD_SYS_IPV4 || e.kind == RVD_SYS_NAME);
}

// "[::]:80" takes IPv4 as well, unless another address of ours is there for that.
static int rvd_proxy_takes_ipv4(revdial_proxy *p, const rvd_sys_endpoint *e)
{
    const char *list = p->cfg.listen, *item;
    struct in6_addr any;
    int takes = 1;
    size_t len;
    if (e->kind != RVD_SYS_IPV6 || inet_pton(AF_INET6, e->host, &any) != 1) return 0;
    if (!IN6_IS_ADDR_UNSPECIFIED(&any)) return 0;
    while (list && (len = rvd_base_item(&list, &item)) > 0)
        if (rvd_proxy_may_be_ipv4(item, len, e->port)) return 0;
    for (size_t i = 0; i < p->cfg.expose_count; i++) {
        const char *text = p->cfg.exposes[i].listen;
        if (rvd_proxy_may_be_ipv4(text, strlen(text), e->port)) return 0;
    }
    pthread_mutex_lock(&p->own.lock);
    for (rvd_base_link *at = p->listeners.next; at != &p->listeners; at = at->next) {
        const char *text = RVD_BASE_OWNER(at, rvd_proxy_listener, link)->address;
        if (rvd_proxy_may_be_ipv4(text, strlen(text), e->port)) takes = 0;
    }
    pthread_mutex_unlock(&p->own.lock);
    return takes;
}

// The reason in plain words, where the system's text says little.
static const char *rvd_proxy_listen_why(int error)
{
    if (error == -EADDRNOTAVAIL) return "cannot listen there: this machine has no such address";
    if (error == -EADDRINUSE) return "cannot listen there: the address is in use";
    return "cannot listen there";
}

// Converts the address of a port. A host name is looked up, which an I/O thread must not wait for.
static int rvd_proxy_listen_parse(revdial_proxy *p, const char *text, rvd_sys_addr *at,
                                  revdial_err *err)
{
    rvd_sys_endpoint e;
    int r;
    if (rvd_sys_addr_split(text, 0, &e, err) < 0) return REVDIAL_EINVAL;
    if (e.kind != RVD_SYS_NAME)
        return rvd_sys_addr_parse(text, 0, at, err) < 0 ? REVDIAL_EINVAL : REVDIAL_OK;
    if (rvd_proxy_is_on_loop(p)) {
        rvd_sys_fail(err, REVDIAL_EDEADLK, 0, text,
                     "a host name would block this I/O thread: write its address");
        return REVDIAL_EDEADLK;
    }
    r = rvd_sys_resolve(e.host, e.port, at, 1);
    if (r >= 0) return REVDIAL_OK;
    rvd_sys_resolve_fail(err, r, text, "cannot listen there: no such host");
    return REVDIAL_ESYS;
}

// Binds and listens; the loop has yet to watch it.
static int rvd_proxy_listen(rvd_proxy_listener *l, const char *text, revdial_err *err)
{
    rvd_sys_listen_how how = {0, l->proxy->cfg.unix_mode};
    rvd_sys_endpoint e;
    rvd_sys_addr at;
    int code = rvd_proxy_listen_parse(l->proxy, text, &at, err);
    if (code) return code;
    rvd_sys_addr_split(text, 0, &e, NULL);
    how.takes_ipv4 = rvd_proxy_takes_ipv4(l->proxy, &e);
    l->io.fd = rvd_sys_listen_as(&at, RVD_PROXY_BACKLOG, how);
    if (l->io.fd < 0) {
        rvd_sys_fail(err, REVDIAL_ESYS, -l->io.fd, text, rvd_proxy_listen_why(l->io.fd));
        return REVDIAL_ESYS;
    }
    if (e.kind == RVD_SYS_UNIX) RVD_BASE_JOIN(l->unlink, sizeof l->unlink, e.host);
    if (rvd_sys_getsockname(l->io.fd, &at) == 0)
        rvd_sys_addr_format(&at, l->address, sizeof l->address);
    l->is_wildcard = !l->address[0] || rvd_sys_addr_is_wildcard(&at);
    return REVDIAL_OK;
}

// A port that listens, for clients, or for backends if x is NULL. Returns NULL: reason in err.
static rvd_proxy_listener *rvd_proxy_listener_open(revdial_proxy *p, const revdial_expose *x,
                                                   const char *text, revdial_err *err)
{
    rvd_proxy_listener *l = rvd_proxy_listener_new(p, x);
    if (!l) {
        rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for a port");
        return NULL;
    }
    if (rvd_proxy_listen(l, text, err)) {
        rvd_proxy_listener_free(l);
        return NULL;
    }
    if (x) rvd_proxy_client_tune(l, l->io.fd);
    return l;
}

static void rvd_proxy_listener_list_locked(rvd_proxy_listener *l)
{
    revdial_proxy *p = l->proxy;
    if (l->expose.listen)
        l->id = ++p->last_expose;
    else
        p->backend_ports++;
    rvd_base_link_push(&p->listeners, &l->link);
}

// Before the threads start.
static int rvd_proxy_listen_at(revdial_proxy *p, const revdial_expose *x, const char *text,
                               revdial_err *err)
{
    rvd_proxy_listener *l = rvd_proxy_listener_open(p, x, text, err);
    if (!l) return err ? err->code : REVDIAL_ESYS;
    rvd_proxy_listener_list_locked(l);
    if (rvd_loop_add(p->loops[0], &l->io) == 0) return REVDIAL_OK;
    return rvd_stream_fail(err, REVDIAL_ESYS, 0, "the loop cannot watch a listener");
}

static int rvd_proxy_listen_all(revdial_proxy *p, revdial_err *err)
{
    const char *list = p->cfg.listen, *item;
    size_t len;
    int code = REVDIAL_OK;
    while (!code && list && (len = rvd_base_item(&list, &item)) > 0) {
        char text[RVD_SYS_HOST_MAX + 8];  // a name, a colon and a port
        if (len >= sizeof text)
            return rvd_stream_fail(err, REVDIAL_EINVAL, 0, "listen: an address over 262 bytes");
        memcpy(text, item, len);
        text[len] = '\0';
        code = rvd_proxy_listen_at(p, NULL, text, err);
    }
    if (!code && list && p->backend_ports == 0)
        return rvd_stream_fail(err, REVDIAL_EINVAL, 0, "listen: no address in it; NULL = none");
    for (size_t i = 0; !code && i < p->cfg.expose_count; i++)
        code = rvd_proxy_listen_at(p, &p->cfg.exposes[i], p->cfg.exposes[i].listen, err);
    p->cfg.exposes = NULL;
    p->cfg.expose_count = 0;
    return code;
}

int64_t revdial_proxy_expose(revdial_proxy *p, const revdial_expose *x, revdial_err *err)
{
    rvd_proxy_listener *l;
    revdial_err own;
    int64_t id;
    if (!err) err = &own;
    if (!p || !x) return rvd_stream_fail(err, REVDIAL_EINVAL, 0, "expose: proxy or port is NULL");
    if (rvd_owner_is_child(&p->own))
        return rvd_stream_fail(err, REVDIAL_ECLOSED, 0, RVD_STREAM_CHILD);
    if (rvd_proxy_expose_check(x, err)) return REVDIAL_EINVAL;
    l = rvd_proxy_listener_open(p, x, x->listen, err);
    if (!l) return err->code;
    pthread_mutex_lock(&p->own.lock);
    id = p->closing ? REVDIAL_ECLOSED : p->draining ? REVDIAL_EDRAINING : 0;
    if (!id) {
        rvd_proxy_listener_list_locked(l);
        id = l->id;
        rvd_loop_post(p->loops[0], &l->resume);
    }
    pthread_mutex_unlock(&p->own.lock);
    if (id > 0) return id;
    rvd_proxy_listener_free(l);
    return rvd_stream_fail(err, (int)id, 0, "expose: the proxy stops");
}

// Before the threads start: everything that can still be undone by freeing.
static int rvd_proxy_prepare(revdial_proxy *p, const revdial_proxy_config *cfg, revdial_err *err)
{
    int code = REVDIAL_OK;
    if (rvd_sys_random(&p->guard.seed, sizeof p->guard.seed) < 0 ||
        rvd_sys_random(p->guard.key, sizeof p->guard.key) < 0)
        code = rvd_stream_fail(err, REVDIAL_ESYS, 0, "no randomness");
    if (!code) code = rvd_proxy_config_copy(p, cfg, err);
    if (!code) code = rvd_proxy_loops_open(p, err);
    if (!code) code = rvd_proxy_listen_all(p, err);
    return code;
}

// Refuses now what each session would refuse.
static int rvd_proxy_probe(revdial_proxy *p, revdial_err *err)
{
    revdial_engine_config e;
    rvd_proxy_engine_config(p, &e);
    e.nonce = "probe";
    return rvd_owner_probe(&e, err);
}

static revdial_proxy *rvd_proxy_new(const revdial_proxy_config *cfg, revdial_err *err)
{
    rvd_heap heap = {cfg->common.alloc, cfg->common.alloc_ud, 0};
    revdial_proxy *p = rvd_base_alloc(&heap, sizeof *p);
    if (!p) {
        rvd_proxy_nomem(err);
        return NULL;
    }
    p->cfg.common = cfg->common;
    p->fd_most = rvd_sys_fd_most();
    rvd_base_link_init(&p->listeners);
    rvd_base_link_init(&p->dials);
    rvd_base_link_init(&p->clients);
    rvd_base_link_init(&p->waiting);
    rvd_auth_guard_init(&p->guard, &p->own.heap, cfg->max_auth_failures);
    p->stop_listening.run = rvd_proxy_on_stop_listening;
    p->dials_wake.run = rvd_proxy_on_dials_wake;
    p->client_watch.run = rvd_proxy_on_client_watch;
    p->queue_max = rvd_base_min((size_t)rvd_proxy_or(cfg->max_pending, 512) * RVD_PROXY_QUEUE,
                                rvd_sys_fds_max() / 4);
    p->queue_task.run = rvd_proxy_on_queue_task;
    p->queue_timer.run = rvd_proxy_on_queue_timer;
    if (rvd_owner_open(&p->own, &p->cfg.common, "no mutex or no memory for the proxy", err) == 0)
        return p;
    rvd_base_free(&heap, p, sizeof *p);
    return NULL;
}

static int rvd_proxy_start(revdial_proxy *p, revdial_err *err)
{
    unsigned started = 0;
    int r = rvd_loop_pool_open(&p->auth_pool, RVD_PROXY_AUTH_THREADS);
    if (r == 0 && (r = rvd_loop_pool_open(&p->own.handlers, RVD_PROXY_STREAM_THREADS)) < 0)
        rvd_loop_pool_close(&p->auth_pool);
    if (r < 0) return rvd_stream_fail(err, REVDIAL_ESYS, 0, "no pool of threads");
    while (started < p->loop_count && r == 0) {
        r = rvd_loop_start(p->loops[p->loop_count - 1 - started]);  // 0, which accepts, is the last
        started += r == 0;
    }
    if (r == 0) return REVDIAL_OK;
    while (started--) {
        rvd_loop_stop(p->loops[p->loop_count - 1 - started]);
        rvd_loop_join(p->loops[p->loop_count - 1 - started]);
    }
    rvd_loop_pool_close(&p->auth_pool);
    rvd_loop_pool_close(&p->own.handlers);
    rvd_sys_fail(err, REVDIAL_ESYS, -r, NULL, "no I/O thread");
    return REVDIAL_ESYS;
}

revdial_proxy *revdial_proxy_start(const revdial_proxy_config *cfg, revdial_err *err)
{
    revdial_proxy *p;
    if (!cfg) {
        rvd_stream_fail(err, REVDIAL_EINVAL, 0, "config: NULL");
        return NULL;
    }
    if (rvd_proxy_config_check(cfg, err)) return NULL;
    p = rvd_proxy_new(cfg, err);
    if (!p) return NULL;
    if (rvd_proxy_prepare(p, cfg, err) || rvd_proxy_probe(p, err) || rvd_proxy_start(p, err)) {
        rvd_proxy_free(p);
        return NULL;
    }
    return p;
}

// ================================================================================================
// MARK: impl.agent  uses: base wire sys loop lookup log stream relay owner
// The backend's side: the allow list, connecting to targets and proxies, forwarding, and links, of
// which each keeps one session to one proxy alive. All on one loop. Start at rvd_agent_link_next().
// ================================================================================================

#define RVD_AGENT_LINKS 64              // sessions that one agent keeps
#define RVD_AGENT_SECRET 4097           // a token with its NUL
#define RVD_AGENT_VIA_PEEK 4096         // an egress proxy's answer is a few hundred bytes
#define RVD_AGENT_CHALLENGE 1024        // text of a 401 that the next attempt answers
#define RVD_AGENT_CHALLENGES 3          // per attempt: the first, and nonces that became stale
#define RVD_AGENT_JOBS 64               // threads for credential_fn
#define RVD_AGENT_STEADY_US 30000000    // after this time up the next failure is a first one
#define RVD_AGENT_BACKOFF_MIN_MS 500    // default: a proxy that restarts is soon back
#define RVD_AGENT_BACKOFF_MAX_MS 30000  // default: 1000 agents make about 67 attempts a second
#define RVD_AGENT_STOP_US 100000        // how often the stop flag is looked at
#define RVD_AGENT_NO_BITS (-1000)       // of a rule without a slash
#define RVD_AGENT_INSTANCE (16 + 1 + 16 + 1)  // two numbers in hexadecimal, a '.' and a NUL

// ---- which targets are allowed ----

typedef struct rvd_agent_ports {
    uint32_t from, to;
} rvd_agent_ports;

static uint32_t rvd_agent_port(const rvd_sys_addr *a)
{
    if (a->ss.ss_family == AF_INET) return ntohs(((const struct sockaddr_in *)&a->ss)->sin_port);
    return ntohs(((const struct sockaddr_in6 *)&a->ss)->sin6_port);
}

// "80", "80-90" or "*". Returns NULL, or what is wrong.
static const char *rvd_agent_ports_parse(const char *s, size_t len, rvd_agent_ports *out)
{
    const char *dash = memchr(s, '-', len);
    uint64_t from, to;
    size_t first = dash ? (size_t)(dash - s) : len;
    if (len == 1 && *s == '*') {
        out->from = 1;
        out->to = 65535;
        return NULL;
    }
    if (!rvd_base_decimal(s, first, 65535, &from))
        return "allow: a port is a number up to 65535, a range such as 80-90, or *";
    to = from;
    if (dash && !rvd_base_decimal(dash + 1, len - first - 1, 65535, &to))
        return "allow: a range of ports is written 80-90";
    if (from > to) return "allow: a range of ports begins with the lower one, as in 80-90";
    out->from = (uint32_t)from;
    out->to = (uint32_t)to;
    return to > 0 ? NULL : "allow: there is no port 0; all ports are written *";
}

// A rule that is taken apart.
typedef struct rvd_agent_rule {
    enum rvd_sys_kind kind;
    const char *host;  // NAME: a glob of host_len bytes, without the root's dot; UNIX: the path
    size_t host_len;
    rvd_agent_ports ports;
    rvd_sys_addr net;  // IPV4 and IPV6
    int bits;          // of it that count
} rvd_agent_rule;

static int rvd_agent_is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// Why this glob matches no host name, or none that its author can mean; NULL: it is good.
static const char *rvd_agent_glob_problem(const char *host, size_t len)
{
    size_t label = 0, letters = 0, digits = 0, wild = 0;
    if (len > RVD_SYS_HOST_MAX) return "allow: no host name is that long";
    if (host[0] == '.') return "allow: all names below another one are written *.example.com:80";
    for (size_t i = 0; i < len; i++) {
        char c = host[i];
        letters += (size_t)rvd_agent_is_letter(c);
        digits += c >= '0' && c <= '9';
        if (c == '*' || c == '?') wild = i + 1;
        if (c == '.' && i == label) return "allow: nothing between two dots";
        if (c == '.') label = i + 1;
        if (!rvd_agent_is_letter(c) && !(c >= '0' && c <= '9') && !strchr("-.*?", c))
            return "allow: a host name has letters, digits, - _ and dots; * and ? stand for any";
    }
    // A name server decides where "10.0.0.evil.example" leads, not the author of "10.0.0.*".
    if (digits && !letters)
        return "allow: no IPv4 address; a range of them is NET/BITS, as in 10.0.0.0/24:80";
    if (wild <= label && rvd_sys_is_numeric(host + label, len - label))
        return "allow: no host name ends in a number";
    return NULL;
}

// The address of a rule, with IPv4 in IPv6 as IPv4, so that no rule is evaded by spelling.
static const char *rvd_agent_net_parse(const char *host, size_t len, rvd_agent_rule *out)
{
    int is_v6 = memchr(host, ':', len) != NULL, ip_len;
    char text[80];
    char address[61] = "";
    if (len > 60) return "allow: no address is that long";
    memcpy(address, host, len);
    RVD_BASE_JOIN(text, sizeof text, is_v6 ? "[" : NULL, address, is_v6 ? "]:1" : ":1");
    if (rvd_sys_addr_parse(text, 1, &out->net, NULL) < 0)
        return is_v6 ? "allow: no IPv6 address between the brackets"
                     : "allow: no IPv4 address before the /, as in 10.0.0.0/8:80";
    out->kind = is_v6 ? RVD_SYS_IPV6 : RVD_SYS_IPV4;
    rvd_sys_addr_ip(&out->net, &ip_len);
    if (out->bits >= 0 && is_v6 && ip_len == 4) out->bits -= 96;
    if (out->bits == RVD_AGENT_NO_BITS) out->bits = 8 * ip_len;
    return out->bits < 0 ? "allow: a range of IPv4 addresses is written 10.0.0.0/8:80" : NULL;
}

// What stands before the last colon: a name, an address, or NET/BITS; IPv6 in brackets.
static const char *rvd_agent_host_parse(const char *text, const char *end, rvd_agent_rule *out)
{
    const char *slash = memchr(text, '/', (size_t)(end - text)), *host_end = slash ? slash : end;
    int is_v6 = *text == '[', is_inside = is_v6 && slash && end[-1] == ']';
    size_t len = slash ? (size_t)(end - slash - 1) - (size_t)is_inside : 0;
    uint64_t bits;
    out->bits = RVD_AGENT_NO_BITS;
    if (slash && !rvd_base_decimal(slash + 1, len, is_v6 ? 128 : 32, &bits))
        return "allow: what follows the / is a number of bits, as in 10.0.0.0/8:80";
    if (slash) out->bits = (int)bits;
    if (is_v6 && !is_inside && host_end[-1] != ']') return "allow: IPv6 is written [::1]:80";
    out->host = text + is_v6;
    if (is_v6 && !is_inside) host_end--;
    if (host_end <= out->host) return "allow: the host is missing";
    out->host_len = (size_t)(host_end - out->host);
    if (is_v6 && !memchr(out->host, ':', out->host_len))
        return "allow: no IPv6 address between the brackets";
    if (!is_v6 && memchr(out->host, ':', out->host_len))
        return "allow: an IPv6 address needs brackets, as in [::1]:80";
    if (slash || is_v6) return rvd_agent_net_parse(out->host, out->host_len, out);
    if (!rvd_agent_net_parse(out->host, out->host_len, out)) return NULL;
    out->kind = RVD_SYS_NAME;
    if (out->host_len > 1 && host_end[-1] == '.') out->host_len--;
    return rvd_agent_glob_problem(out->host, out->host_len);
}

static const char *rvd_agent_unix_problem(const char *text)
{
    rvd_sys_endpoint e;
    if (rvd_sys_addr_split(text, 1, &e, NULL) == -ENAMETOOLONG)
        return "allow: the path is too long for a socket";
    if (text[5] != '/') return "allow: the path of a unix socket starts with /";
    if (strpbrk(text, "*?")) return "allow: a unix socket is named in full, without * or ?";
    return text[strlen(text) - 1] == '/' ? "allow: this is a directory, not a socket" : NULL;
}

// "HOST:PORTS", "NET/BITS:PORTS", "unix:/path"; IPv6 in brackets: "[fd00::]/8:*" or "[fd00::/8]:*".
//   returns  NULL, or what is wrong and how it is written: such a rule matches nothing
static const char *rvd_agent_rule_parse(const char *text, rvd_agent_rule *out)
{
    const char *colon = strrchr(text, ':'), *bracket = strrchr(text, ']'), *problem;
    memset(out, 0, sizeof *out);
    if (strncmp(text, "unix:", 5) == 0) {
        out->kind = RVD_SYS_UNIX;
        out->host = text + 5;
        out->host_len = strlen(out->host);
        return rvd_agent_unix_problem(text);
    }
    if (strstr(text, "://")) return "allow: a rule has no scheme, as in host:80";
    if (!colon || (bracket && colon < bracket))
        return "allow: the port is missing, as in 127.0.0.1:80 or 10.0.0.0/8:*";
    problem = rvd_agent_host_parse(text, colon, out);
    return problem ? problem : rvd_agent_ports_parse(colon + 1, strlen(colon + 1), &out->ports);
}

// Does an address rule cover this address?
static int rvd_agent_rule_covers(const rvd_agent_rule *rule, const rvd_sys_addr *a)
{
    const struct sockaddr_in6 *net6 = (const struct sockaddr_in6 *)&rule->net.ss;
    const uint8_t *ip, *net_ip;
    int len, net_len;
    uint32_t port;
    if (a->ss.ss_family == AF_UNIX) return 0;
    if (rule->kind != RVD_SYS_IPV4 && rule->kind != RVD_SYS_IPV6) return 0;
    ip = rvd_sys_addr_ip(a, &len);
    net_ip = rvd_sys_addr_ip(&rule->net, &net_len);
    if (len != net_len) return 0;
    if (rule->kind == RVD_SYS_IPV6 && net6->sin6_scope_id && len == 16 &&
        net6->sin6_scope_id != ((const struct sockaddr_in6 *)&a->ss)->sin6_scope_id)
        return 0;
    port = rvd_agent_port(a);
    return port >= rule->ports.from && port <= rule->ports.to &&
           rvd_sys_prefix_matches(ip, net_ip, rule->bits);
}

// Does a name rule cover this host name? *is_local: it is "localhost" and the rule says so, which
// is loopback whatever a name server says (RFC 6761 section 6.3).
static int rvd_agent_rule_names(const rvd_agent_rule *rule, const char *host, uint32_t port,
                                int *is_local)
{
    char pattern[RVD_SYS_HOST_MAX + 1], name[RVD_SYS_HOST_MAX + 1];
    size_t name_len = strlen(host);
    if (rule->kind != RVD_SYS_NAME || port < rule->ports.from || port > rule->ports.to) return 0;
    if (name_len >= sizeof name) return 0;
    if (name_len > 1 && host[name_len - 1] == '.') name_len--;  // the root's dot
    for (size_t i = 0; i < rule->host_len; i++) pattern[i] = rvd_base_lower(rule->host[i]);
    for (size_t i = 0; i < name_len; i++) name[i] = rvd_base_lower(host[i]);
    *is_local = rule->host_len == 9 && memcmp(pattern, "localhost", 9) == 0;
    return rvd_base_glob(pattern, rule->host_len, name, name_len);
}

typedef struct rvd_agent_net {
    uint8_t ip[16];
    int bits;
} rvd_agent_net;

static int rvd_agent_is_in(const uint8_t *ip, const rvd_agent_net *nets, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (rvd_sys_prefix_matches(ip, nets[i].ip, nets[i].bits)) return 1;
    return 0;
}

// Most special addresses of RFC 6890, and the metadata services of clouds, which give a machine its
// credentials. Private networks (RFC 1918 and 4193) are not special: agents are made to reach them.
static int rvd_agent_is_special_v4(const uint8_t *ip)
{
    static const rvd_agent_net nets[] = {
        {{0}, 8},                  // "this" host
        {{100, 64}, 10},           // carriers' NAT; 100.100.100.200 is a metadata service
        {{127}, 8},                // loopback
        {{168, 63, 129, 16}, 32},  // metadata service
        {{169, 254}, 16},          // link-local; 169.254.169.254 is a metadata service
        {{192, 0, 0}, 24},         // protocols; 192.0.0.192 is a metadata service
        {{224}, 3}};               // multicast, reserved, broadcast
    return rvd_agent_is_in(ip, nets, sizeof nets / sizeof *nets);
}

// The IPv4 address that is embedded in an IPv6 address, or NULL.
static const uint8_t *rvd_agent_embedded_v4(const uint8_t *ip)
{
    static const rvd_agent_net nat64 = {{0, 0x64, 0xFF, 0x9B}, 96},
                               stateless = {{0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF}, 96},
                               six_to_four = {{0x20, 0x02}, 16};
    if (rvd_agent_is_in(ip, &nat64, 1) || rvd_agent_is_in(ip, &stateless, 1)) return ip + 12;
    if (rvd_agent_is_in(ip, &six_to_four, 1)) return ip + 2;
    return memcmp(ip + 8, "\2\0\x5E\xFE", 4) == 0 || memcmp(ip + 8, "\0\0\x5E\xFE", 4) == 0
               ? ip + 12  // ISATAP, RFC 5214 section 6.1
               : NULL;
}

// Does it end in the IPv4 address of a metadata service? Clouds write their IPv6 addresses so, and
// so does a NAT64 whose prefix is the network's own (RFC 6052 section 2.2).
static int rvd_agent_ends_in_metadata(const uint8_t *ip)
{
    static const uint8_t services[][4] = {
        {169, 254, 169, 254}, {100, 100, 100, 200}, {168, 63, 129, 16}, {192, 0, 0, 192}};
    for (size_t i = 0; i < sizeof services / sizeof *services; i++)
        if (memcmp(ip + 12, services[i], 4) == 0) return 1;
    return 0;
}

static int rvd_agent_is_special_v6(const uint8_t *ip)
{
    // With the metadata service that is there.
    static const rvd_agent_net nets[] = {
        {{0}, 96},                                // ::, ::1, IPv4 without a prefix of its own
        {{0, 0x64, 0xFF, 0x9B, 0, 1}, 48},        // NAT64 of the network's own (RFC 8215)
        {{0x20, 0x01}, 32},                       // Teredo: any IPv4, in disguise
        {{0xFD, 0, 0, 0x42}, 64},                 // Scaleway, fd00:42::42
        {{0xFD, 0, 0, 0xC1}, 64},                 // Oracle, fd00:c1::a9fe:a9fe
        {{0xFD, 0, 0x01, 0}, 64},                 // Alibaba, fd00:100::100:200
        {{0xFD, 0, 0x0E, 0xC2}, 32},              // Amazon, fd00:ec2::254
        {{0xFD, 0, 0xA9, 0xFE, 0xA9, 0xFE}, 48},  // Akamai, fd00:a9fe:a9fe::1
        {{0xFD, 0x20, 0, 0xCE}, 32},              // Google, fd20:ce::254
        {{0xFE, 0x80}, 10},                       // link-local; OpenStack, fe80::a9fe:a9fe
        {{0xFF}, 8}};                             // multicast
    const uint8_t *v4 = rvd_agent_embedded_v4(ip);
    if (v4 && rvd_agent_is_special_v4(v4)) return 1;
    return rvd_agent_ends_in_metadata(ip) || rvd_agent_is_in(ip, nets, sizeof nets / sizeof *nets);
}

// Addresses that a rule for names never reaches, wherever the name points: its name server decides
// that, not the author of the rule.
static int rvd_agent_is_special(const rvd_sys_addr *a)
{
    int len;
    const uint8_t *ip = rvd_sys_addr_ip(a, &len);
    return len == 4 ? rvd_agent_is_special_v4(ip) : rvd_agent_is_special_v6(ip);
}

// May we connect to this address? host is the name that it was resolved from, NULL if none.
static int rvd_agent_may_connect(const char *const *allow, const rvd_sys_addr *a, const char *host)
{
    for (; allow && *allow; allow++) {
        rvd_agent_rule rule;
        int is_local;
        if (rvd_agent_rule_parse(*allow, &rule)) continue;
        if (rvd_agent_rule_covers(&rule, a)) return 1;
        if (host && rvd_agent_rule_names(&rule, host, rvd_agent_port(a), &is_local) &&
            (is_local ? rvd_sys_addr_is_loopback(a) : !rvd_agent_is_special(a)))
            return 1;
    }
    return 0;
}

// Does a rule for names or unix sockets name this target?
static int rvd_agent_is_named(const char *text, const rvd_sys_endpoint *e)
{
    rvd_agent_rule rule;
    int is_local;
    if (rvd_agent_rule_parse(text, &rule) || rule.kind != e->kind) return 0;
    if (rule.kind == RVD_SYS_UNIX) return strcmp(rule.host, e->host) == 0;
    return rvd_agent_rule_names(&rule, e->host, e->port, &is_local);
}

int revdial_target_allowed(const char *const *allow, const char *target)
{
    rvd_sys_endpoint e;
    rvd_sys_addr a;
    if (!target || rvd_sys_addr_split(target, 1, &e, NULL) < 0) return 0;
    if (e.kind != RVD_SYS_UNIX && e.kind != RVD_SYS_NAME)
        return rvd_sys_addr_parse(target, 1, &a, NULL) == 0 &&
               rvd_agent_may_connect(allow, &a, NULL);
    for (; allow && *allow; allow++)
        if (rvd_agent_is_named(*allow, &e)) return 1;
    return 0;
}

const char *revdial_allow_problem(const char *rule)
{
    rvd_agent_rule parsed;
    return rvd_agent_rule_parse(rule, &parsed);
}

static int rvd_agent_allow_check(const char *const *allow, revdial_err *err)
{
    for (; allow && *allow; allow++) {
        const char *problem = revdial_allow_problem(*allow);
        if (!problem) continue;
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, *allow, problem);
        return REVDIAL_EINVAL;
    }
    return REVDIAL_OK;
}

// ---- connecting to one of several addresses ----

// Finds the addresses of an endpoint and connects to the first one that answers. Loop thread only.
// Its owner says which addresses may be tried, and is told by io, timer and lookup.done.
typedef struct rvd_agent_connector {
    rvd_loop_io io;
    rvd_loop_timer timer;
    rvd_lookup lookup;  // its loop; room for the addresses
    int address_count;
    int address_at;    // how many have been taken
    int64_t until_us;  // for all of them
} rvd_agent_connector;

// addresses has room for RVD_LOOKUP_ADDRESSES, or for one if no name is to be found.
static void rvd_agent_connector_init(rvd_agent_connector *c, rvd_loop *loop,
                                     rvd_sys_addr *addresses, rvd_loop_task *found)
{
    c->io.fd = -1;
    c->lookup.loop = loop;
    c->lookup.done = found;
    c->lookup.out = addresses;
    c->lookup.max = RVD_LOOKUP_ADDRESSES;
}

//   returns  1 the addresses are in place; 0 lookup.done tells; or -errno
static int rvd_agent_connector_find(rvd_agent_connector *c, rvd_lookup_desk *desk, uint64_t asker,
                                    const char *text)
{
    rvd_sys_endpoint e;
    if (rvd_sys_addr_split(text, 1, &e, NULL) == 0 && e.kind == RVD_SYS_NAME)
        return rvd_lookup_begin(desk, &c->lookup, asker, &e);
    c->lookup.result = rvd_sys_addr_parse(text, 1, c->lookup.out, NULL) == 0 ? 1 : -ENOENT;
    return 1;
}

// Gives the connection to the caller.
static int rvd_agent_connector_release(rvd_agent_connector *c)
{
    int fd = c->io.fd;
    rvd_loop_remove(c->lookup.loop, &c->io);
    c->io.fd = -1;
    return fd;
}

static void rvd_agent_connector_close(rvd_agent_connector *c)
{
    int fd = rvd_agent_connector_release(c);
    if (fd >= 0) rvd_sys_close_both(fd);
}

// Gives up the address that was tried and takes the next one.
//   returns  NULL: none is left, or no time
static const rvd_sys_addr *rvd_agent_connector_take(rvd_agent_connector *c)
{
    rvd_agent_connector_close(c);
    if (c->address_at == c->address_count) return NULL;
    if (rvd_loop_now(c->lookup.loop) >= c->until_us) return NULL;
    return &c->lookup.out[c->address_at++];
}

// io tells how the connect went, or the timer that the address has had its share of the time that
// is left: several dead addresses must not hide a live one.
static int rvd_agent_connector_watch(rvd_agent_connector *c)
{
    rvd_loop *loop = c->lookup.loop;
    int64_t now = rvd_loop_now(loop), left_us = c->until_us - now;
    int r = rvd_loop_add(loop, &c->io), left = c->address_count - c->address_at + 1;
    return r < 0 ? r : rvd_loop_timer_set(loop, &c->timer, now + left_us / left);
}

// Begins to connect to the address that was taken.
//   fd_most  a descriptor from this number on is kept for others: -EMFILE
//   returns  0 connected; -EINPROGRESS; or -errno
static int rvd_agent_connector_try(rvd_agent_connector *c, int fd_most)
{
    const rvd_sys_addr *to = &c->lookup.out[c->address_at - 1];
    int r = c->io.fd = rvd_sys_socket_tcp(to->ss.ss_family), failed = 0;
    if (r >= 0) r = r < fd_most ? rvd_sys_connect_start(c->io.fd, to) : -EMFILE;
    if (r == -EINPROGRESS) failed = rvd_agent_connector_watch(c);
    if (failed < 0) r = failed;
    if (r != 0 && r != -EINPROGRESS) rvd_agent_connector_close(c);
    return r;
}

// io has become ready. Returns as rvd_agent_connector_try(). A socket becomes writable, and nothing
// else, when it is connected; only a failure has to be asked for.
static int rvd_agent_connector_result(rvd_agent_connector *c)
{
    const rvd_sys_addr *to = &c->lookup.out[c->address_at - 1];
    int r = -EINPROGRESS;
    if (c->io.ready & RVD_LOOP_HUP)
        r = rvd_sys_connect_result(c->io.fd);
    else if (c->io.ready & RVD_LOOP_WRITE)
        r = rvd_sys_refuse_itself(c->io.fd, to);
    if (r == -EINPROGRESS) c->io.ready = 0;
    return r;
}

// ---- the agent ----

// What a link does.
//   WAITING --> PREPARING --> CONNECTING --> [PASSING -->] JOINED --> WAITING
//   PASSING, JOINED --> CONNECTING to the next address, or to the same one with an answer
//   PREPARING, CONNECTING, PASSING --it failed--> WAITING           any --> STOPPED
enum rvd_agent_link_state {
    RVD_AGENT_WAITING,     // until the next attempt, or the first
    RVD_AGENT_PREPARING,   // threads ask for a credential and resolve the host
    RVD_AGENT_CONNECTING,  // TCP
    RVD_AGENT_PASSING,     // asks the egress proxy to connect us
    RVD_AGENT_JOINED,      // a session, in its handshake or up
    RVD_AGENT_STOPPED
};

typedef struct rvd_agent_link {
    revdial_agent *agent;
    // Set before start, then read-only.
    char text[300];  // the URL
    char host[256];  // of the request
    char path[1025];
    char endpoint[300];           // "host:port" or "unix:/path"
    int secure;                   // over TLS
    char tls_host[256];           // what its certificate must be for, unless server_name says
    int carrier;                  // REVDIAL_CARRIER_*
    rvd_sys_addr pinned;          // all_addresses: this one only
    struct rvd_agent_link *root;  // that resolves for this one

    enum rvd_agent_link_state state;  // loop thread only, as all below
    // The timer is always set until STOPPED, to INT64_MAX if there is nothing to wait for, because
    // moving it needs no memory. lookup.done is posted even if no lookup was needed.
    rvd_agent_connector conn;
    rvd_sys_addr addresses[RVD_LOOKUP_ADDRESSES];
    rvd_loop_task found;
    revdial_egress *egress;  // PASSING
    revdial_session *session;
    int is_up, has_been_up;
    unsigned attempt, failures, auth_failures;
    int64_t up_us;
    int retry_after_ms;  // of this attempt: the longest that an address asked for
    rvd_loop_job job;    // asks for a credential
    rvd_loop_task task;  // the job is done
    int result;          // of the job: 0, or REVDIAL_E*
    revdial_err err;
    char secret[RVD_AGENT_SECRET];  // until the handshake is over
    char challenge[RVD_AGENT_CHALLENGE];
    unsigned challenges;  // of this attempt

    // What others are told; guarded by own.lock.
    int told_as;             // REVDIAL_*
    int64_t told_us, retry_us;  // when it became that, and when it ends
    unsigned told_attempts;
    uint64_t told_session;
    revdial_err told_why;
} rvd_agent_link;

struct revdial_agent {
    rvd_owner own;  // only the loop thread changes its members
    // Set before start, then read-only.
    revdial_agent_config cfg;
    rvd_base_arena texts;                       // of cfg
    char instance[RVD_AGENT_INSTANCE];          // cfg.instance, unless the application chose one
    char egress_address[RVD_SYS_HOST_MAX + 9];  // "host:port", "" = none
    rvd_loop *loop;
    rvd_stream_group group;
    rvd_loop_pool jobs;  // credential_fn
    rvd_lookup_desk *lookups;

    // Loop thread only; links are added under own.lock, too, and stay.
    rvd_agent_link *links[RVD_AGENT_LINKS];
    unsigned link_count, stopped_count;
    int fd_most;  // for targets; see rvd_sys_fd_most()
    rvd_loop_timer stop_timer;
    rvd_loop_task begin_task, stop_task, look_task;
    int stopping;
    uint64_t random;
    revdial_err verdict;  // why it stopped by itself

    // Guarded by own.lock.
    const char *const *allow;  // NULL-terminated, in allow_texts
    rvd_base_arena allow_texts;
    int drain_ms, is_over;
};

// What the agent keeps of a session.
typedef struct rvd_agent_member {
    rvd_owner_member base;
    rvd_agent_link *owner;  // loop thread only; NULL once the link has let go of it
    int retry_after_ms;     // that the proxy asks for; set before its end is told, as:
    int is_challenged;      // by a 401 that the next attempt can answer: it is in owner
} rvd_agent_member;

// retry_ms: when the link tries again, -1 = not the subject
static void rvd_agent_log_retry(rvd_agent_link *l, enum rvd_log_event event, int level,
                                const char *why, int retry_ms)
{
    revdial_agent *a = l->agent;
    rvd_log_line line;
    if (!rvd_log_begin(&a->own.log, &line, event, level)) return;
    rvd_log_id(&line, "session", l->session ? l->session->id : 0);
    rvd_log_text(&line, "name", a->cfg.name);
    rvd_log_text(&line, "server", l->text);
    rvd_log_text(&line, "via", a->egress_address);
    if (retry_ms >= 0) rvd_log_number(&line, "retry_in_ms", (uint64_t)retry_ms);
    rvd_log_text(&line, "reason", why);
    rvd_log_end(&a->own.log, &line);
}

static void rvd_agent_log_link(rvd_agent_link *l, enum rvd_log_event event, int level,
                               const char *why)
{
    rvd_agent_log_retry(l, event, level, why, -1);
}

static void rvd_agent_tell(revdial_agent *a, int state, const revdial_err *why, int retry_ms)
{
    sigset_t ours;
    if (!a->cfg.on_state) return;
    rvd_sys_hook_begin(&a->group.mask, &ours);
    a->cfg.on_state(a->cfg.ud, state, why, retry_ms);
    rvd_sys_hook_end(&ours);
}

static uint64_t rvd_agent_random(revdial_agent *a)
{
    a->random ^= a->random << 13;
    a->random ^= a->random >> 7;
    a->random ^= a->random << 17;
    return a->random;
}

// ---- forwarding a stream to a target ----

typedef struct rvd_agent_forward {
    rvd_agent_connector conn;
    rvd_loop_task task;  // begins, goes on after the lookup, cleans up
    revdial_agent *agent;
    revdial_session *session;  // holds a reference
    revdial_stream *st;        // NULL once the dialler has given up
    int resolving;
    int trusted;  // the default target: no rule needed
    const char *target;
    rvd_sys_endpoint endpoint;
    int denied;  // index + 1 of the last address that no rule covers
    int reset;   // why it is refused: by what was asked, or how the last address failed
    char text[RVD_SYS_TEXT_MAX + 256];
    size_t size;               // in memory
    rvd_sys_addr addresses[];  // room for those of a name, or for the one that was asked for
} rvd_agent_forward;

static void rvd_agent_forward_free(rvd_agent_forward *f)
{
    revdial_session *s = f->session;
    rvd_loop_timer_stop(s->loop, &f->conn.timer);
    rvd_agent_connector_close(&f->conn);
    rvd_stream_lock(s);
    if (f->st) {
        rvd_stream_sink_set_locked(f->st, NULL, NULL, 0);
        rvd_stream_free_locked(f->st);
        rvd_stream_flush_soon_locked(s);
    }
    rvd_base_free(&s->heap, f, f->size);
    rvd_stream_unlock(s);
    rvd_stream_work_end(s->group->work);
    revdial_session_unref(s);
}

// The session and the dial, by the ids that the proxy's log has, too.
static void rvd_agent_log_forward(rvd_log_line *l, const rvd_agent_forward *f, revdial_stream *st)
{
    const char *dial = revdial_stream_meta(st, "id");
    rvd_stream_log_session(l, f->session);
    rvd_log_text(l, "dial", dial);
    if (!dial) rvd_stream_log_dial(l, f->session->id, st->id);
    rvd_log_text(l, "client", revdial_stream_meta(st, "client"));
    rvd_log_text(l, "target", f->target);
}

// Why the target was refused, for the agent's own log: the dialler is told a code only.
static void rvd_agent_refusal_text(const rvd_agent_forward *f, int reset, char *buf, size_t size)
{
    const char *asked = revdial_stream_meta(f->st, "target");
    char address[RVD_SYS_TEXT_MAX];
    rvd_sys_endpoint e;
    revdial_err err;
    if (!asked && !f->agent->cfg.default_target) {
        RVD_BASE_JOIN(buf, size, "no target was asked for, and there is no default (--target)");
    } else if (!f->endpoint.kind && rvd_sys_addr_split(asked, 1, &e, &err) < 0) {
        RVD_BASE_JOIN(buf, size, err.msg);
    } else if (reset == REVDIAL_RESET_FORBIDDEN && f->denied && f->endpoint.kind == RVD_SYS_NAME) {
        rvd_sys_addr_format(&f->addresses[f->denied - 1], address, sizeof address);
        RVD_BASE_JOIN(buf, size, "the name leads to ", address,
                      ", which no rule allows: a name reaches special addresses only by a rule "
                      "for the address");
    } else {
        RVD_BASE_JOIN(buf, size, revdial_reset_text(reset));
    }
}

static void rvd_agent_forward_refuse(rvd_agent_forward *f, int reset)
{
    revdial_session *s = f->session;
    rvd_log_line l;
    rvd_stream_lock(s);
    if (f->st) revdial_engine_reset(s->engine, f->st->id, reset);
    rvd_stream_unlock(s);
    if (f->st && rvd_log_begin(&f->agent->own.log, &l, RVD_LOG_STREAM_REFUSED, REVDIAL_LOG_WARN)) {
        char why[260];
        rvd_agent_refusal_text(f, reset, why, sizeof why);
        rvd_agent_log_forward(&l, f, f->st);
        rvd_log_text(&l, "reason", why);
        rvd_log_end(&f->agent->own.log, &l);
    }
    rvd_agent_forward_free(f);
}

// The reset code for an error of the lookup.
static int rvd_agent_reset_of_name(int error)
{
    if (error == -ENOENT) return REVDIAL_RESET_NO_SUCH_HOST;
    return error == -ENOMEM ? REVDIAL_RESET_CALM : REVDIAL_RESET_UNREACHABLE;
}

// The reset code for an error of connect(2). A unix socket that does not exist counts as refused.
static int rvd_agent_reset_of(int error)
{
    switch (-error) {
    case ECONNREFUSED:
    case ENOENT: return REVDIAL_RESET_CONNECT_REFUSED;
    case ETIMEDOUT: return REVDIAL_RESET_CONNECT_TIMEOUT;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS: return REVDIAL_RESET_CALM;
    default: return REVDIAL_RESET_UNREACHABLE;
    }
}

// Sends the target the client's address. The socket is new, so a header always fits.
static int rvd_agent_header_send(rvd_agent_forward *f)
{
    int version = f->agent->cfg.proxy_protocol;
    uint8_t buf[256];
    size_t n;
    if (!version) return 0;
    n = rvd_wire_header_put(buf, sizeof buf, version, revdial_stream_meta(f->st, "client"),
                            revdial_stream_meta(f->st, "local"));
    return rvd_sys_write(f->conn.io.fd, buf, n) == (ptrdiff_t)n ? 0 : -EPIPE;
}

// What the log line at the end of a stream needs. Exists only if that line is logged.
typedef struct rvd_agent_access {
    revdial_agent *agent;
    int64_t since_us;
    size_t size;
    char about[];  // the fields that it began with
} rvd_agent_access;

static void rvd_agent_access_on_over(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    rvd_agent_access *x = ud;
    revdial_agent *a = x->agent;
    rvd_log_line l;
    if (rvd_log_begin(&a->own.log, &l, RVD_LOG_STREAM_END, a->own.log.access_level)) {
        RVD_BASE_JOIN(l.text, sizeof l.text, x->about);
        rvd_stream_log_end(&l, moved[1], moved[0], x->since_us, why);
        rvd_log_end(&a->own.log, &l);
    }
    rvd_owner_free(&a->own, x, x->size);
}

// Without memory the end of the stream is not logged.
static void rvd_agent_access_begin(const rvd_agent_forward *f, revdial_relay_opts *opts)
{
    revdial_agent *a = f->agent;
    rvd_agent_access *x;
    rvd_log_line l;
    size_t size;
    if (!rvd_log_begin(&a->own.log, &l, RVD_LOG_STREAM_OPEN, a->own.log.access_level)) return;
    rvd_agent_log_forward(&l, f, f->st);
    rvd_log_end(&a->own.log, &l);
    size = sizeof *x + strlen(l.text) + 1;
    x = rvd_owner_alloc(&a->own, size);
    if (!x) return;
    x->agent = a;
    x->since_us = rvd_loop_now(f->session->loop);
    x->size = size;
    memcpy(x->about, l.text, size - sizeof *x);
    opts->done = rvd_agent_access_on_over;
    opts->ud = x;
}

// Connected: the dialler is told, and the relay takes over.
static void rvd_agent_forward_join(rvd_agent_forward *f)
{
    revdial_relay_opts opts;
    revdial_session *s = f->session;
    revdial_stream *st = f->st;
    int fd = f->conn.io.fd, code;
    rvd_relay_ends ends = {.rfd = fd, .wfd = fd, .is_young = 1};
    if (rvd_agent_header_send(f) < 0) {
        rvd_agent_forward_refuse(f, REVDIAL_RESET_UNREACHABLE);
        return;
    }
    ends.is_untuned = !f->agent->cfg.proxy_protocol;
    ends.watched = f->conn.io.slot ? &f->conn.io : NULL;
    memset(&opts, 0, sizeof opts);
    opts.idle_ms = f->agent->cfg.idle_timeout_ms;
    opts.half_closed_ms = f->agent->cfg.half_closed_timeout_ms;
    rvd_agent_access_begin(f, &opts);
    f->st = NULL;
    rvd_stream_lock(s);
    rvd_stream_sink_set_locked(st, NULL, NULL, 0);
    rvd_stream_unlock(s);
    if (!ends.is_untuned) rvd_sys_tune_client(fd);
    rvd_sys_set_abort(fd, 1);
    code = rvd_relay_start(st, &ends, &opts);
    rvd_agent_connector_release(&f->conn);
    if (code) {
        static const uint64_t none[2];
        revdial_err err;
        rvd_stream_fail(&err, REVDIAL_ENOMEM, 0, "the connection could not be relayed");
        if (opts.done) opts.done(opts.ud, none, &err);
        rvd_sys_close_reset(fd);
        f->st = st;
        rvd_agent_forward_refuse(f, REVDIAL_RESET_INTERNAL);
        return;
    }
    rvd_agent_forward_free(f);
}

static int rvd_agent_may_reach(revdial_agent *a, const rvd_sys_addr *to, const char *host)
{
    int may;
    pthread_mutex_lock(&a->own.lock);
    may = rvd_agent_may_connect(a->allow, to, host);
    pthread_mutex_unlock(&a->own.lock);
    return may;
}

// Some descriptors are kept for the links. With several links, a session may use as many as it
// leaves to the others; each of its streams has at most one.
static int rvd_agent_forward_fd_most(rvd_agent_forward *f)
{
    revdial_agent *a = f->agent;
    unsigned count = atomic_load_explicit(&f->session->stream_count, memory_order_relaxed);
    int share = a->link_count > 1 ? (int)count : 0;
    return a->fd_most == INT_MAX ? INT_MAX : a->fd_most - share;
}

// Do the rules allow this address? It is the one that is connected to, so no second lookup can
// change it.
static int rvd_agent_forward_may_try(rvd_agent_forward *f, const rvd_sys_addr *to)
{
    const char *host = f->endpoint.kind == RVD_SYS_NAME ? f->endpoint.host : NULL;
    if (f->trusted || to->ss.ss_family == AF_UNIX) return 1;
    if (rvd_agent_may_reach(f->agent, to, host)) return 1;
    if (f->reset == REVDIAL_RESET_NONE) f->reset = REVDIAL_RESET_FORBIDDEN;
    f->denied = f->conn.address_at;
    return 0;
}

// Tries the next address.
static void rvd_agent_forward_next(rvd_agent_forward *f)
{
    const rvd_sys_addr *to;
    while ((to = rvd_agent_connector_take(&f->conn)) != NULL) {
        int r;
        if (!rvd_agent_forward_may_try(f, to)) continue;
        r = rvd_agent_connector_try(&f->conn, rvd_agent_forward_fd_most(f));
        if (r == -EMFILE) f->agent->fd_most = rvd_sys_fd_most();  // it may have been raised
        if (r == 0) rvd_agent_forward_join(f);
        if (r == 0 || r == -EINPROGRESS) return;
        f->reset = rvd_agent_reset_of(r);
    }
    rvd_agent_forward_refuse(f, f->reset ? f->reset : REVDIAL_RESET_CONNECT_TIMEOUT);
}

static void rvd_agent_forward_failed(rvd_agent_forward *f, int error)
{
    f->reset = rvd_agent_reset_of(error);
    rvd_agent_forward_next(f);
}

static void rvd_agent_forward_on_io(rvd_loop_io *io)
{
    rvd_agent_forward *f = RVD_BASE_OWNER(io, rvd_agent_forward, conn.io);
    int r;
    if (!f->st) return;  // the dialler gave up: the task that cleans up is on its way
    r = rvd_agent_connector_result(&f->conn);
    if (r == 0)
        rvd_agent_forward_join(f);
    else if (r != -EINPROGRESS)
        rvd_agent_forward_failed(f, r);
}

static void rvd_agent_forward_on_timer(rvd_loop_timer *t)
{
    rvd_agent_forward *f = RVD_BASE_OWNER(t, rvd_agent_forward, conn.timer);
    if (!f->st) return;  // the task that cleans up is on its way
    if (!f->resolving)
        rvd_agent_forward_failed(f, -ETIMEDOUT);
    else if (rvd_lookup_cancel(f->agent->lookups, &f->conn.lookup))
        rvd_agent_forward_refuse(f, REVDIAL_RESET_CONNECT_TIMEOUT);
}

// The dialler gave up, or the session died: abort what is under way.
static void rvd_agent_forward_sink(revdial_stream *st, unsigned events)
{
    rvd_agent_forward *f = st->sink_ud;
    if (!(events & RVD_STREAM_WAKE_END)) return;
    f->st = NULL;
    rvd_stream_free_locked(st);
    rvd_loop_post(f->session->loop, &f->task);
}

// All streams of a session share one asker's places in the lookups.
static void rvd_agent_forward_begin(rvd_agent_forward *f)
{
    int64_t limit = f->agent->cfg.connect_timeout_ms ? f->agent->cfg.connect_timeout_ms : 5000;
    rvd_loop *loop = f->conn.lookup.loop;
    int r;
    if (f->reset) {
        rvd_agent_forward_refuse(f, f->reset);
        return;
    }
    f->conn.until_us = rvd_loop_now(loop) + limit * 1000;
    if (rvd_loop_timer_set(loop, &f->conn.timer, f->conn.until_us) < 0) {
        rvd_agent_forward_refuse(f, REVDIAL_RESET_INTERNAL);
        return;
    }
    r = rvd_agent_connector_find(&f->conn, f->agent->lookups, (uint64_t)(uintptr_t)f->session,
                                 f->target);
    f->resolving = r == 0;
    f->conn.address_count = r == 1 && f->conn.lookup.result == 1;
    if (r == 1)
        rvd_agent_forward_next(f);
    else if (r < 0)
        rvd_agent_forward_refuse(f, REVDIAL_RESET_CALM);
}

// Loop thread: starts, goes on after the lookup, or cleans up.
static void rvd_agent_forward_run(rvd_loop_task *task)
{
    rvd_agent_forward *f = RVD_BASE_OWNER(task, rvd_agent_forward, task);
    if (!f->st) {
        if (f->resolving) rvd_lookup_cancel(f->agent->lookups, &f->conn.lookup);
        // The lookup may have posted this task once more, just before it was cancelled.
        if (!atomic_load(&task->queued)) rvd_agent_forward_free(f);
    } else if (!f->resolving) {
        rvd_agent_forward_begin(f);
    } else if (f->conn.lookup.result > 0) {
        f->resolving = 0;
        f->conn.address_count = f->conn.lookup.result;
        rvd_agent_forward_next(f);
    } else {
        rvd_agent_forward_refuse(f, rvd_agent_reset_of_name(f->conn.lookup.result));
    }
}

static int rvd_agent_has_address_rule(const char *const *allow)
{
    rvd_agent_rule rule;
    for (; *allow; allow++) {
        if (rvd_agent_rule_parse(*allow, &rule)) continue;
        if (rule.kind == RVD_SYS_IPV4 || rule.kind == RVD_SYS_IPV6) return 1;
    }
    return 0;
}

// A name that no rule names may still resolve to an address that an address rule covers. Without
// address rules it is not resolved, so that the dialler learns nothing about names here.
static int rvd_agent_judge_target(revdial_agent *a, const char *target, int is_name)
{
    int may;
    pthread_mutex_lock(&a->own.lock);
    may = revdial_target_allowed(a->allow, target) ||
          (is_name && rvd_agent_has_address_rule(a->allow));
    pthread_mutex_unlock(&a->own.lock);
    return may ? REVDIAL_RESET_NONE : REVDIAL_RESET_FORBIDDEN;
}

// What the dialler asked for, as far as it can be judged without resolving. Returns a reset code.
static int rvd_agent_forward_judge(rvd_agent_forward *f, const char *target)
{
    revdial_agent *a = f->agent;
    const char *trusted = a->cfg.default_target;
    f->trusted = trusted && target && strcmp(target, trusted) == 0;
    f->target = f->text;
    if (!f->endpoint.kind || strlen(target) >= sizeof f->text) return REVDIAL_RESET_FORBIDDEN;
    RVD_BASE_JOIN(f->text, sizeof f->text, target);
    if (f->trusted) return REVDIAL_RESET_NONE;
    return rvd_agent_judge_target(a, target, f->endpoint.kind == RVD_SYS_NAME);
}

static void rvd_agent_forward_locked(revdial_agent *a, revdial_session *s, revdial_stream *st)
{
    const char *asked = revdial_stream_meta(st, "target"),
               *target = asked ? asked : a->cfg.default_target;
    rvd_sys_endpoint e;
    rvd_agent_forward *f;
    size_t size = sizeof *f;
    memset(&e, 0, sizeof e);
    if (!target || rvd_sys_addr_split(target, 1, &e, NULL) < 0) e.kind = 0;
    size += (e.kind == RVD_SYS_NAME ? RVD_LOOKUP_ADDRESSES : 1) * sizeof *f->addresses;
    f = rvd_base_alloc(&s->heap, size);
    if (!f) {
        revdial_engine_reset(s->engine, st->id, REVDIAL_RESET_INTERNAL);
        rvd_stream_free_locked(st);
        return;
    }
    f->size = size;
    f->agent = a;
    f->session = revdial_session_ref(s);
    f->st = st;
    f->endpoint = e;
    rvd_agent_connector_init(&f->conn, s->loop, f->addresses, &f->task);
    f->conn.io.run = rvd_agent_forward_on_io;
    f->conn.timer.run = rvd_agent_forward_on_timer;
    f->task.run = rvd_agent_forward_run;
    f->reset = rvd_agent_forward_judge(f, target);
    rvd_stream_work_begin(s->group->work);
    rvd_stream_sink_set_locked(st, rvd_agent_forward_sink, f, 1);
    rvd_loop_post(s->loop, &f->task);
}

static void rvd_agent_on_open_locked(revdial_session *s, revdial_stream *st)
{
    revdial_agent *a = s->owner;
    if (a->cfg.handler)
        rvd_owner_serve_locked(&a->own, s, st);
    else
        rvd_agent_forward_locked(a, s, st);
}

// ---- links ----

static void rvd_agent_link_next(rvd_agent_link *l);

// What revdial_agent_list_links() says of it from now on.
static void rvd_agent_link_note(rvd_agent_link *l, int state)
{
    rvd_owner *own = &l->agent->own;
    pthread_mutex_lock(&own->lock);
    if (l->told_as != state) l->told_us = rvd_sys_now_us();
    l->told_as = state;
    l->told_attempts = l->attempt;
    l->told_session = state == REVDIAL_UP ? l->session->id : 0;
    pthread_mutex_unlock(&own->lock);
}

static void rvd_agent_link_note_why(rvd_agent_link *l, const revdial_err *why)
{
    pthread_mutex_lock(&l->agent->own.lock);
    l->told_why = *why;
    pthread_mutex_unlock(&l->agent->own.lock);
}

static int rvd_agent_link_told(enum rvd_agent_link_state state)
{
    switch (state) {
    case RVD_AGENT_WAITING: return REVDIAL_BACKOFF;
    case RVD_AGENT_PREPARING:
    case RVD_AGENT_CONNECTING:
    case RVD_AGENT_PASSING:
    case RVD_AGENT_JOINED: return REVDIAL_CONNECTING;
    case RVD_AGENT_STOPPED: break;
    }
    return REVDIAL_STOPPED;
}

static void rvd_agent_link_become(rvd_agent_link *l, enum rvd_agent_link_state to)
{
    int is_arrow = to == RVD_AGENT_STOPPED;
    switch (l->state) {
    case RVD_AGENT_WAITING: is_arrow |= to == RVD_AGENT_PREPARING; break;
    case RVD_AGENT_PREPARING:
        is_arrow |= to == RVD_AGENT_CONNECTING || to == RVD_AGENT_WAITING;
        break;
    case RVD_AGENT_CONNECTING: is_arrow = to != RVD_AGENT_PREPARING && to != l->state; break;
    case RVD_AGENT_PASSING: is_arrow = to != RVD_AGENT_PREPARING && to != l->state; break;
    case RVD_AGENT_JOINED: is_arrow |= to == RVD_AGENT_CONNECTING || to == RVD_AGENT_WAITING; break;
    case RVD_AGENT_STOPPED: is_arrow = 0; break;
    }
    REVDIAL_ASSERT(is_arrow);
    (void)is_arrow;  // without assertions
    l->state = to;
    rvd_agent_link_note(l, rvd_agent_link_told(to));
}

// Has the loop check in wait_us whether it is time to stop; without memory for a timer, at once.
static void rvd_agent_look_again(revdial_agent *a, int64_t wait_us)
{
    if (rvd_loop_timer_set(a->loop, &a->stop_timer, rvd_loop_now(a->loop) + wait_us) < 0)
        rvd_loop_post(a->loop, &a->look_task);
}

// Once all links have stopped and no session is left, the agent is over. Handlers and relays may
// still run; the loop ends after them.
static void rvd_agent_check_over(revdial_agent *a)
{
    int over;
    pthread_mutex_lock(&a->own.lock);
    over = a->stopped_count == a->link_count && a->own.member_count == 0;
    pthread_mutex_unlock(&a->own.lock);
    if (!over || a->is_over) return;
    rvd_agent_tell(a, REVDIAL_STOPPED, a->verdict.code ? &a->verdict : NULL, 0);
    pthread_mutex_lock(&a->own.lock);
    a->is_over = 1;
    pthread_cond_broadcast(&a->own.changed);
    pthread_mutex_unlock(&a->own.lock);
    rvd_stream_group_end(&a->group);
    rvd_agent_look_again(a, 0);
}

static void rvd_agent_link_stop(rvd_agent_link *l, const revdial_err *why)
{
    revdial_agent *a = l->agent;
    if (l->state == RVD_AGENT_STOPPED) return;
    rvd_agent_link_become(l, RVD_AGENT_STOPPED);
    rvd_loop_timer_stop(a->loop, &l->conn.timer);
    rvd_agent_connector_close(&l->conn);
    revdial_egress_free(l->egress);
    l->egress = NULL;
    rvd_base_wipe(l->secret, sizeof l->secret);
    a->stopped_count++;
    if (why && !a->verdict.code) a->verdict = *why;
    rvd_agent_check_over(a);
}

// Full jitter: anything from 0 to a bound that doubles, so that a thousand agents do not come back
// in step.
static int rvd_agent_backoff_ms(rvd_agent_link *l)
{
    const revdial_agent_config *cfg = &l->agent->cfg;
    int64_t least = cfg->backoff_min_ms ? cfg->backoff_min_ms : RVD_AGENT_BACKOFF_MIN_MS;
    int64_t most = cfg->backoff_max_ms ? cfg->backoff_max_ms : RVD_AGENT_BACKOFF_MAX_MS;
    int64_t bound = least;
    for (unsigned i = 1; i < l->failures && bound < most; i++) bound *= 2;
    if (bound > most) bound = most;
    return (int)(rvd_agent_random(l->agent) % (uint64_t)(bound + 1));
}

// After a session that was up for RVD_AGENT_STEADY_US the count of failures begins anew.
static void rvd_agent_count_failure(rvd_agent_link *l)
{
    int64_t now = rvd_loop_now(l->agent->loop);
    if (l->is_up && now - l->up_us >= RVD_AGENT_STEADY_US) l->failures = 0;
    l->is_up = 0;
    l->failures++;
}

static int rvd_agent_is_rejected(rvd_agent_link *l, int code)
{
    int limit = l->agent->cfg.auth_fail_limit;
    if (code != REVDIAL_EAUTH && code != REVDIAL_EDENIED) {
        l->auth_failures = 0;
        return 0;
    }
    l->auth_failures++;
    if (limit < 0) return 0;
    if (limit == 0) return !l->has_been_up;
    return l->auth_failures >= (unsigned)limit;
}

static void rvd_agent_link_move_timer(rvd_agent_link *l, int64_t at_us)
{
    int r = rvd_loop_timer_set(l->agent->loop, &l->conn.timer, at_us);
    REVDIAL_ASSERT(r == 0);  // it has its slot
    (void)r;
}

static void rvd_agent_link_wait(rvd_agent_link *l, int wait_ms)
{
    const int64_t until_us = rvd_loop_now(l->agent->loop) + (int64_t)wait_ms * 1000;
    rvd_agent_link_become(l, RVD_AGENT_WAITING);
    rvd_agent_link_move_timer(l, until_us);
    pthread_mutex_lock(&l->agent->own.lock);
    l->retry_us = until_us;
    pthread_mutex_unlock(&l->agent->own.lock);
}

// The attempt or the session is over: again later, or never.
static void rvd_agent_link_failed(rvd_agent_link *l, const revdial_err *why, int retry_after_ms)
{
    revdial_agent *a = l->agent;
    int wait_ms, rejected = rvd_agent_is_rejected(l, why->code);
    int was_replaced = l->is_up && why->code == REVDIAL_EDUPLICATE;
    rvd_base_wipe(l->secret, sizeof l->secret);  // the next attempt gets its own
    rvd_agent_link_note_why(l, why);
    if (a->stopping || rejected || why->code == REVDIAL_EINVAL) {
        rvd_agent_log_link(l, RVD_LOG_LINK_STOPPED,
                           a->stopping ? REVDIAL_LOG_INFO : REVDIAL_LOG_ERROR, why->msg);
        l->session = NULL;
        rvd_agent_link_stop(l, a->stopping ? NULL : why);
        return;
    }
    if (!retry_after_ms) rvd_agent_count_failure(l);  // Retry-After is no failure of the proxy
    wait_ms = rvd_agent_backoff_ms(l);
    if (l->auth_failures ||
        was_replaced) {  // a secret does not mend in a second, nor do two agents
        int most = a->cfg.backoff_max_ms ? a->cfg.backoff_max_ms : RVD_AGENT_BACKOFF_MAX_MS;
        wait_ms = most / 2 + (int)(rvd_agent_random(a) % (uint64_t)(most / 2 + 1));
    }
    if (retry_after_ms) wait_ms = retry_after_ms + wait_ms % (retry_after_ms / 4 + 1);
    rvd_agent_log_retry(l, RVD_LOG_LINK_RETRY, REVDIAL_LOG_WARN, why->msg, wait_ms);
    l->session = NULL;
    rvd_agent_tell(a, REVDIAL_BACKOFF, why, wait_ms);
    rvd_agent_link_wait(l, wait_ms);
}

static void rvd_agent_link_fail(rvd_agent_link *l, int code, int sys, const char *text,
                                const char *why)
{
    revdial_err err;
    rvd_sys_fail(&err, code, sys, text, why);
    rvd_agent_link_failed(l, &err, 0);
}

static const rvd_stream_host rvd_agent_host;

static void rvd_agent_instance(rvd_agent_link *l, char *buf, size_t size)
{
    revdial_agent *a = l->agent;
    unsigned index = 0;
    while (index < a->link_count && a->links[index] != l) index++;
    // The same proxy may be behind several addresses.
    RVD_BASE_JOIN(buf, size, a->cfg.instance, index ? "-" : NULL,
                  index ? RVD_BASE_NUMBER(index) : NULL);
}

// Could an eavesdropper on the way read the token? The server counts: an egress proxy on this
// machine only forwards what it gets.
static int rvd_agent_link_is_cleartext(const rvd_agent_link *l, const rvd_sys_addr *to)
{
    rvd_sys_addr server;
    if (l->secure) return 0;
    if (!rvd_sys_addr_is_loopback(to)) return 1;
    if (!l->agent->cfg.egress) return 0;
    return rvd_sys_addr_parse(l->endpoint, 1, &server, NULL) < 0 ||
           !rvd_sys_addr_is_loopback(&server);
}

// The schemes that may be used towards that address: in cleartext beyond this machine only those
// that do not send the secret, whatever the proxy asks for.
static unsigned rvd_agent_schemes(const rvd_agent_link *l, const rvd_sys_addr *to)
{
    const revdial_agent_config *cfg = &l->agent->cfg;
    unsigned schemes = cfg->auth_schemes ? cfg->auth_schemes : REVDIAL_AUTH_BEARER;
    if (cfg->allow_cleartext || !rvd_agent_link_is_cleartext(l, to)) return schemes;
    return schemes & REVDIAL_AUTH_DIGEST;
}

// What the agent's config says about each of its sessions.
static void rvd_agent_engine_config(const rvd_agent_link *l, revdial_engine_config *e)
{
    const revdial_agent_config *cfg = &l->agent->cfg;
    memset(e, 0, sizeof *e);
    e->role = REVDIAL_ROLE_BACKEND;
    e->host = l->host;
    e->path = l->path;
    e->carrier = l->carrier;
    e->name = cfg->name;
    e->instance = cfg->instance;
    e->secret = cfg->secret;
    e->user = cfg->user;
    e->auth_schemes = cfg->auth_schemes;
    e->headers = cfg->headers;
    e->header_count = cfg->header_count;
    e->limits = cfg->common.limits;
    e->alloc = cfg->common.alloc;
    e->alloc_ud = cfg->common.alloc_ud;
}

static revdial_session *rvd_agent_session_new(rvd_agent_link *l, int fd, revdial_err *err)
{
    revdial_agent *a = l->agent;
    const rvd_sys_addr *to = &l->addresses[l->conn.address_at - 1];
    revdial_engine_config e;
    rvd_stream_session_config cfg;
    revdial_session *s;
    char instance[65], peer[RVD_SYS_TEXT_MAX];
    rvd_agent_instance(l, instance, sizeof instance);
    rvd_sys_addr_format(to, peer, sizeof peer);
    rvd_agent_engine_config(l, &e);
    e.instance = instance;
    e.secret = l->secret[0] ? l->secret : NULL;
    e.auth_schemes = rvd_agent_schemes(l, to);
    e.challenge = l->challenge[0] ? l->challenge : NULL;
    if (rvd_sys_random(&e.seed, sizeof e.seed) < 0) {
        rvd_stream_fail(err, REVDIAL_ESYS, 0, "no randomness for a session");
        return NULL;
    }
    memset(&cfg, 0, sizeof cfg);
    cfg.host = &rvd_agent_host;
    cfg.owner = a;
    cfg.origin = a->own.origin;
    cfg.group = &a->group;
    cfg.fd = fd;
    cfg.peer = peer;
    cfg.engine = &e;
    if (l->secure) cfg.tls = a->cfg.common.tls;
    cfg.tls_host = a->cfg.server_name ? a->cfg.server_name : l->tls_host;
    s = rvd_stream_session_new(&cfg, err);
    if (!s) return NULL;
    RVD_BASE_JOIN(s->name, sizeof s->name, a->cfg.name);
    RVD_BASE_JOIN(s->instance, sizeof s->instance, instance);
    return s;
}

// Connected: the session begins with its handshake.
static void rvd_agent_link_join(rvd_agent_link *l)
{
    revdial_agent *a = l->agent;
    rvd_agent_member *m;
    revdial_session *s;
    revdial_err err;
    int fd = rvd_agent_connector_release(&l->conn);
    rvd_agent_link_move_timer(l, INT64_MAX);
    s = rvd_agent_session_new(l, fd, &err);
    if (s) {
        m = s->member;
        m->owner = l;
        rvd_owner_member_init(&m->base, s);
        pthread_mutex_lock(&a->own.lock);
        rvd_owner_add_locked(&a->own, &m->base);
        pthread_mutex_unlock(&a->own.lock);
        if (rvd_stream_session_run(s) == 0) {
            rvd_agent_link_become(l, RVD_AGENT_JOINED);
            l->session = s;
            return;
        }
        rvd_stream_fail(&err, REVDIAL_ESYS, 0, "the loop cannot watch the connection");
        pthread_mutex_lock(&a->own.lock);
        rvd_owner_remove_locked(&a->own, &m->base);
        pthread_mutex_unlock(&a->own.lock);
        revdial_session_unref(s);
    }
    rvd_sys_close(fd);
    revdial_session_unref(s);
    rvd_agent_link_failed(l, &err, 0);
}

// The address that the link connects to: the egress proxy's or the proxy's.
static const char *rvd_agent_link_hop(const rvd_agent_link *l)
{
    return l->agent->cfg.egress ? l->agent->egress_address : l->endpoint;
}

static const char *rvd_agent_link_why(const rvd_agent_link *l, const char *of_proxy,
                                      const char *of_egress)
{
    return l->agent->cfg.egress ? of_egress : of_proxy;
}

// May the token or password be sent to this address?
static int rvd_agent_link_may_try(rvd_agent_link *l, const rvd_sys_addr *to)
{
    if (!l->secret[0] || rvd_agent_schemes(l, to)) return 1;
    if (!l->err.code)
        rvd_sys_fail(&l->err, REVDIAL_EINVAL, 0, l->text,
                     "refusing to send the token in cleartext beyond this machine: use https://, "
                     "Digest, or allow it (--insecure-cleartext)");
    return 0;
}

// Notes why the address that was tried cannot be connected to.
static void rvd_agent_link_unreachable(rvd_agent_link *l, int error)
{
    rvd_sys_fail(
        &l->err, REVDIAL_ESYS, error, rvd_agent_link_hop(l),
        rvd_agent_link_why(l, "cannot connect to the proxy", "cannot connect to the egress proxy"));
}

// Tries the next address. If none is left, the attempt has failed with the last address's error.
static void rvd_agent_link_connect(rvd_agent_link *l)
{
    const rvd_sys_addr *to;
    while ((to = rvd_agent_connector_take(&l->conn)) != NULL) {
        int r;
        if (!rvd_agent_link_may_try(l, to)) continue;
        r = rvd_agent_connector_try(&l->conn, INT_MAX);
        if (r == 0) r = rvd_agent_connector_watch(&l->conn);  // io tells, as for any other
        if (r == 0 || r == -EINPROGRESS) return;
        rvd_agent_link_unreachable(l, -r);
    }
    rvd_agent_link_failed(l, &l->err, l->retry_after_ms);
}

static void rvd_agent_link_begin(rvd_agent_link *l)
{
    int64_t limit_ms = l->agent->cfg.common.limits.handshake_timeout_ms;
    if (!limit_ms) limit_ms = RVD_BASE_HANDSHAKE_MS;
    rvd_agent_link_become(l, RVD_AGENT_CONNECTING);
    l->conn.until_us = rvd_loop_now(l->agent->loop) + limit_ms * 1000;
    rvd_agent_link_connect(l);
}

// A verdict of the proxy on our identity, or an error of ours: the same at every address.
static int rvd_agent_is_final(int code)
{
    return code == REVDIAL_EAUTH || code == REVDIAL_EDENIED || code == REVDIAL_EDUPLICATE ||
           code == REVDIAL_EINVAL || code == REVDIAL_ENOMEM;
}

// The server at this address gave us no session. The next address is tried.
static void rvd_agent_link_turned_away(rvd_agent_link *l, const revdial_err *why,
                                       int retry_after_ms)
{
    if (retry_after_ms > l->retry_after_ms) l->retry_after_ms = retry_after_ms;
    if (l->agent->stopping || rvd_agent_is_final(why->code) ||
        l->conn.address_at == l->conn.address_count) {
        rvd_agent_link_failed(l, why, l->retry_after_ms);
        return;
    }
    rvd_agent_log_link(l, RVD_LOG_LINK_NEXT, REVDIAL_LOG_INFO, why->msg);
    l->err = *why;
    l->session = NULL;
    l->challenge[0] = '\0';
    l->challenges = 0;
    rvd_agent_link_begin(l);
}

// ---- through an egress proxy ----

static void rvd_agent_egress_failed(rvd_agent_link *l, const revdial_err *why, int retry_after_ms)
{
    rvd_agent_connector_close(&l->conn);
    revdial_egress_free(l->egress);
    l->egress = NULL;
    rvd_agent_link_turned_away(l, why, retry_after_ms);
}

// Returns 0, or -errno: nothing more can be sent, but the answer may have come before that.
static int rvd_agent_egress_send(rvd_agent_link *l)
{
    rvd_loop_io *io = &l->conn.io;
    const void *data;
    size_t len;
    while (io->ready & RVD_LOOP_WRITE && (len = revdial_egress_output(l->egress, &data)) > 0) {
        ptrdiff_t n = rvd_sys_write(io->fd, data, len);
        if (n < 0) io->ready &= ~(unsigned)RVD_LOOP_WRITE;
        if (n < 0 && n != -EAGAIN) return (int)n;
        if (n > 0) revdial_egress_sent(l->egress, (size_t)n);
    }
    return 0;
}

// Takes from the socket the egress proxy's answer and nothing behind it: later bytes belong to the
// next owner of the descriptor, as if there were no egress proxy.
//   returns  1 go on, -EAGAIN nothing has come, or what is wrong with the connection
static int rvd_agent_egress_receive(rvd_agent_link *l)
{
    rvd_loop_io *io = &l->conn.io;
    unsigned char *buf = l->agent->loop->buf;
    ptrdiff_t n = -EAGAIN;
    size_t used;
    if (io->ready & RVD_LOOP_READ) n = rvd_sys_peek(io->fd, buf, RVD_AGENT_VIA_PEEK);
    if (n == -EAGAIN) io->ready &= ~(unsigned)RVD_LOOP_READ;
    if (n < 0) return (int)n;
    used = revdial_egress_input(l->egress, buf, (size_t)n);
    if (used > 0) n = rvd_sys_read(io->fd, buf, used);
    return n < 0 ? (int)n : 1;
}

// Goes on with the egress proxy for as long as there is something to send or to read.
static void rvd_agent_egress_pass(rvd_agent_link *l)
{
    int sent = 0, r, state, retry_after_ms;
    revdial_err err;
    do {
        if (sent == 0) sent = rvd_agent_egress_send(l);
        r = rvd_agent_egress_receive(l);
        state = revdial_egress_state(l->egress, &err, &retry_after_ms);
    } while (r > 0 && state == 0);
    if (state == 0 && r == -EAGAIN && sent == 0) return;
    if (state == 0) {
        rvd_sys_fail(&err, REVDIAL_ELOST, r == -EAGAIN ? -sent : -r, rvd_agent_link_hop(l),
                     "the connection to the egress proxy was lost");
        state = err.code;
    }
    if (state < 0) {
        rvd_agent_egress_failed(l, &err, retry_after_ms);
        return;
    }
    revdial_egress_free(l->egress);
    l->egress = NULL;
    rvd_agent_link_join(l);
}

static void rvd_agent_egress_timed_out(rvd_agent_link *l)
{
    revdial_err err;
    rvd_sys_fail(&err, REVDIAL_ETIMEDOUT, 0, rvd_agent_link_hop(l),
                 "the egress proxy did not answer in time");
    rvd_agent_egress_failed(l, &err, 0);
}

// The egress proxy is connected. This address answers, so it gets all of the time that is left.
static void rvd_agent_egress_begin(rvd_agent_link *l)
{
    revdial_agent *a = l->agent;
    revdial_err err;
    rvd_agent_link_become(l, RVD_AGENT_PASSING);
    l->egress = revdial_egress_new(a->cfg.egress, l->endpoint, a->cfg.common.alloc,
                                   a->cfg.common.alloc_ud, &err);
    if (!l->egress) {
        rvd_agent_egress_failed(l, &err, 0);
        return;
    }
    rvd_agent_link_move_timer(l, l->conn.until_us);
    rvd_agent_egress_pass(l);
}

// The proxy has said how it wants our credentials: once more, at the same address, on a connection
// of its own (there is one request per connection). That is no failure, and nobody waits.
static void rvd_agent_link_answer(rvd_agent_link *l)
{
    rvd_agent_log_link(l, RVD_LOG_LINK_CHALLENGED, REVDIAL_LOG_DEBUG, NULL);
    l->session = NULL;
    l->conn.address_at--;
    rvd_agent_link_begin(l);
}

static void rvd_agent_link_on_io(rvd_loop_io *io)
{
    rvd_agent_link *l = RVD_BASE_OWNER(io, rvd_agent_link, conn.io);
    int r;
    if (l->state == RVD_AGENT_PASSING) {
        rvd_agent_egress_pass(l);
        return;
    }
    r = rvd_agent_connector_result(&l->conn);
    if (r == -EINPROGRESS) return;
    if (r < 0) {
        rvd_agent_link_unreachable(l, -r);
        rvd_agent_link_connect(l);
    } else if (l->agent->cfg.egress) {
        rvd_agent_egress_begin(l);
    } else {
        rvd_agent_link_join(l);
    }
}

static rvd_agent_link *rvd_agent_link_new(revdial_agent *a, const char *text, revdial_err *err);

// all_addresses: every address of the name gets a link of its own.
static void rvd_agent_link_spread(rvd_agent_link *root)
{
    revdial_agent *a = root->agent;
    for (int i = 1; i < root->conn.address_count; i++) {
        rvd_agent_link *l = NULL;
        for (unsigned k = 0; k < a->link_count && !l; k++)
            if (a->links[k]->root == root && a->links[k]->pinned.len &&
                rvd_sys_addr_is_same(&a->links[k]->pinned, &root->addresses[i]))
                l = a->links[k];
        if (l) continue;
        l = rvd_agent_link_new(a, root->text, NULL);
        if (!l) return;
        l->pinned = root->addresses[i];
        l->root = root;
        rvd_agent_link_next(l);
    }
    root->conn.address_count = 1;
}

// Goes on with what a job or a lookup has found, unless the agent stops.
static int rvd_agent_link_is_wanted(rvd_agent_link *l)
{
    if (l->state != RVD_AGENT_PREPARING) return 0;
    if (!l->agent->stopping) return 1;
    rvd_agent_link_stop(l, NULL);
    return 0;
}

// Addresses and a credential are at hand.
static void rvd_agent_link_on_found(rvd_loop_task *task)
{
    rvd_agent_link *l = RVD_BASE_OWNER(task, rvd_agent_link, found);
    if (!rvd_agent_link_is_wanted(l)) return;
    if (l->conn.lookup.result <= 0) {
        rvd_sys_resolve_fail(&l->err, l->conn.lookup.result, rvd_agent_link_hop(l),
                             rvd_agent_link_why(l, "no such host", "no such egress proxy"));
        rvd_agent_link_failed(l, &l->err, 0);
        return;
    }
    l->conn.address_count = l->conn.lookup.result;
    if (l->agent->cfg.all_addresses && !l->root) rvd_agent_link_spread(l);
    l->conn.address_at = l->retry_after_ms = 0;
    l->challenge[0] = '\0';
    l->challenges = 0;
    memset(&l->err, 0, sizeof l->err);
    rvd_agent_link_begin(l);
}

// Finds the addresses of the link; l->found runs next, also if no lookup is needed.
static void rvd_agent_link_resolve(rvd_agent_link *l)
{
    revdial_agent *a = l->agent;
    int r = 1;
    if (l->pinned.len) {
        l->conn.lookup.result = 1;
        l->addresses[0] = l->pinned;
    } else {
        r = rvd_agent_connector_find(&l->conn, a->lookups, RVD_LOOKUP_URGENT,
                                     rvd_agent_link_hop(l));
    }
    if (r < 0) rvd_agent_link_fail(l, REVDIAL_ESYS, 0, l->text, "no thread to resolve the host");
    if (r == 1) rvd_loop_post(a->loop, &l->found);
}

// The job is done.
static void rvd_agent_link_prepared(rvd_loop_task *task)
{
    rvd_agent_link *l = RVD_BASE_OWNER(task, rvd_agent_link, task);
    rvd_stream_work_end(&l->agent->own.work);
    if (!rvd_agent_link_is_wanted(l)) return;
    if (l->result)
        rvd_agent_link_failed(l, &l->err, 0);
    else
        rvd_agent_link_resolve(l);
}

// On a thread of the pool: may block.
static void rvd_agent_link_prepare(rvd_loop_job *job)
{
    rvd_agent_link *l = RVD_BASE_OWNER(job, rvd_agent_link, job);
    const revdial_agent_config *cfg = &l->agent->cfg;
    sigset_t ours;
    rvd_sys_hook_begin(&l->agent->group.mask, &ours);
    l->result = cfg->credential_fn(cfg->credential_ud, l->attempt, l->secret, sizeof l->secret);
    rvd_sys_hook_end(&ours);
    l->secret[sizeof l->secret - 1] = '\0';
    if (l->result) rvd_stream_fail(&l->err, l->result, 0, "credential_fn gave no credential");
    rvd_loop_post(l->agent->loop, &l->task);
}

// Begins an attempt.
static void rvd_agent_link_next(rvd_agent_link *l)
{
    revdial_agent *a = l->agent;
    if (a->stopping) {
        rvd_agent_link_stop(l, NULL);
        return;
    }
    rvd_agent_link_become(l, RVD_AGENT_PREPARING);
    l->attempt++;
    if (l->attempt > 1) {
        pthread_mutex_lock(&a->own.lock);
        a->own.stats.reconnects++;
        pthread_mutex_unlock(&a->own.lock);
    }
    rvd_agent_tell(a, REVDIAL_CONNECTING, NULL, 0);
    l->secret[0] = '\0';
    if (!a->cfg.credential_fn) {
        RVD_BASE_JOIN(l->secret, sizeof l->secret, a->cfg.secret);
        rvd_agent_link_resolve(l);
        return;
    }
    rvd_stream_work_begin(&a->own.work);
    if (rvd_loop_pool_submit(&a->jobs, &l->job, 0) == 0) return;
    rvd_stream_work_end(&a->own.work);
    rvd_agent_link_fail(l, REVDIAL_ESYS, 0, l->text, "no thread to ask for a credential");
}

static void rvd_agent_link_on_timer(rvd_loop_timer *t)
{
    rvd_agent_link *l = RVD_BASE_OWNER(t, rvd_agent_link, conn.timer);
    rvd_agent_link_move_timer(l, INT64_MAX);  // into the slot that it has just left
    if (l->state == RVD_AGENT_CONNECTING) {
        rvd_agent_link_unreachable(l, ETIMEDOUT);
        rvd_agent_link_connect(l);
    } else if (l->state == RVD_AGENT_PASSING) {
        rvd_agent_egress_timed_out(l);
    } else if (l->state == RVD_AGENT_WAITING) {
        rvd_agent_link_next(l);
    }
}

// ---- what happens to a session ----

// The handshake failed: the proxy's answer may say how to log in, or when to try again.
static void rvd_agent_on_dead_locked(revdial_session *s, const revdial_event *ev)
{
    rvd_agent_member *m = s->member;
    m->retry_after_ms = ev->retry_after_ms;
    m->is_challenged = ev->challenge && m->owner;  // answers come to the loop thread only
    if (m->is_challenged)
        RVD_BASE_JOIN(m->owner->challenge, sizeof m->owner->challenge, ev->challenge);
}

static void rvd_agent_on_up(revdial_session *s)
{
    revdial_agent *a = s->owner;
    rvd_agent_member *m = s->member;
    rvd_agent_link *l = m->owner;
    revdial_engine_info info;
    if (l) rvd_base_wipe(l->secret, sizeof l->secret);
    rvd_stream_lock(s);
    revdial_engine_get_info(s->engine, &info);
    s->id = info.session_id;
    rvd_stream_unlock(s);
    pthread_mutex_lock(&a->own.lock);
    rvd_owner_up_locked(&a->own, &m->base);
    pthread_mutex_unlock(&a->own.lock);
    if (l) {
        l->is_up = l->has_been_up = 1;
        l->auth_failures = 0;
        l->up_us = rvd_loop_now(a->loop);
        rvd_agent_link_note(l, REVDIAL_UP);
        rvd_agent_log_link(l, RVD_LOG_SESSION_UP, REVDIAL_LOG_INFO, NULL);
    }
    rvd_agent_tell(a, REVDIAL_UP, NULL, 0);
}

static int rvd_agent_let_go(rvd_agent_member *m)
{
    rvd_agent_link *l = m->owner;
    m->owner = NULL;
    if (!l) return 0;
    l->session = NULL;
    return 1;
}

// The proxy drains: streams go on, and a new session is made soon, to the proxy that then answers
// at that address.
static void rvd_agent_on_goaway(revdial_session *s)
{
    revdial_agent *a = s->owner;
    rvd_agent_member *m = s->member;
    rvd_agent_link *l = m->owner;
    rvd_agent_tell(a, REVDIAL_DRAINING, NULL, 0);
    if (!rvd_agent_let_go(m)) return;
    rvd_agent_log_link(l, RVD_LOG_SESSION_DRAINING, REVDIAL_LOG_INFO, "the proxy is going away");
    rvd_agent_count_failure(l);  // or two agents of one instance would replace each other for ever
    if (a->stopping) {
        rvd_agent_link_stop(l, NULL);
        return;
    }
    rvd_agent_link_wait(l, rvd_agent_backoff_ms(l));
}

// Another agent has replaced this session. Reconnecting soon would replace the other one in turn.
static void rvd_agent_link_replaced(rvd_agent_link *l, const char *instance)
{
    char text[200];
    RVD_BASE_JOIN(text, sizeof text, "another agent uses --instance ", instance,
                  "; give each its own");
    rvd_agent_link_fail(l, REVDIAL_EDUPLICATE, 0, NULL, text);
}

static void rvd_agent_on_down(revdial_session *s, const revdial_err *why)
{
    revdial_agent *a = s->owner;
    rvd_agent_member *m = s->member;
    rvd_agent_link *l = m->owner;
    revdial_engine_info info;
    rvd_stream_lock(s);
    revdial_engine_get_info(s->engine, &info);
    rvd_stream_unlock(s);
    pthread_mutex_lock(&a->own.lock);
    rvd_owner_down_locked(&a->own, &m->base, &info);
    if (why->code == REVDIAL_ETIMEDOUT && a->stopping && m->base.is_up) a->own.was_cut = 1;
    pthread_mutex_unlock(&a->own.lock);
    if (m->base.is_up) rvd_agent_tell(a, REVDIAL_DOWN, why, 0);
    if (l && m->is_challenged && l->challenges++ < RVD_AGENT_CHALLENGES && !a->stopping)
        rvd_agent_link_answer(l);
    else if (l && m->is_challenged)
        rvd_agent_link_fail(
            l, REVDIAL_EUPGRADE, 0, l->text,
            "refuses answers to its own challenges (several proxies behind one address?)");
    else if (l && !m->base.is_up)
        rvd_agent_link_turned_away(l, why, m->retry_after_ms);
    else if (l && why->code == REVDIAL_EDUPLICATE)
        rvd_agent_link_replaced(l, s->instance);
    else if (l)
        rvd_agent_link_failed(l, why, m->retry_after_ms);
    revdial_session_unref(s);
    rvd_agent_check_over(a);
}

static const rvd_stream_host rvd_agent_host = {
    .member_size = sizeof(rvd_agent_member),
    .on_dead_locked = rvd_agent_on_dead_locked,
    .on_open_locked = rvd_agent_on_open_locked,
    .on_up = rvd_agent_on_up,
    .on_goaway = rvd_agent_on_goaway,
    .on_down = rvd_agent_on_down,
};

// ---- stopping ----

static void rvd_agent_stop_links(revdial_agent *a)
{
    int drain_ms;
    if (a->stopping) return;
    a->stopping = 1;
    for (unsigned i = 0; i < a->link_count; i++) {
        rvd_agent_link *l = a->links[i];
        // A link whose credential_fn runs stops when that returns; a joined one with its session.
        // A lookup is cancelled.
        if ((l->state != RVD_AGENT_PREPARING && l->state != RVD_AGENT_JOINED) ||
            rvd_lookup_cancel(a->lookups, &l->conn.lookup))
            rvd_agent_link_stop(l, NULL);
    }
    pthread_mutex_lock(&a->own.lock);
    drain_ms = a->drain_ms;
    pthread_mutex_unlock(&a->own.lock);
    // Only this thread changes the list, so it may walk it without the lock.
    for (rvd_base_link *k = a->own.members.next; k != &a->own.members; k = k->next) {
        rvd_owner_member *m = RVD_BASE_OWNER(k, rvd_owner_member, link);
        revdial_session *s = m->session;
        if (m->is_up && drain_ms) {
            revdial_session_drain(s, drain_ms);
        } else {
            a->own.was_cut |= atomic_load_explicit(&s->stream_count, memory_order_relaxed) != 0;
            revdial_session_kill(s);
        }
    }
    rvd_agent_check_over(a);
}

static void rvd_agent_on_stop_task(rvd_loop_task *task)
{
    rvd_agent_stop_links(RVD_BASE_OWNER(task, revdial_agent, stop_task));
}

// Polls the stop flag, which a signal handler sets, and at the end the count of work that is left.
static void rvd_agent_look(revdial_agent *a)
{
    size_t left;
    if (!a->is_over && *a->cfg.stop) rvd_agent_stop_links(a);
    if (!a->is_over) {
        rvd_agent_look_again(a, RVD_AGENT_STOP_US);
        return;
    }
    pthread_mutex_lock(&a->own.work.lock);
    left = a->own.work.count;
    pthread_mutex_unlock(&a->own.work.lock);
    if (left)
        rvd_agent_look_again(a, RVD_AGENT_STOP_US / 10);
    else
        rvd_loop_stop(a->loop);
}

static void rvd_agent_on_stop_timer(rvd_loop_timer *t)
{
    rvd_agent_look(RVD_BASE_OWNER(t, revdial_agent, stop_timer));
}

static void rvd_agent_on_look_task(rvd_loop_task *task)
{
    rvd_agent_look(RVD_BASE_OWNER(task, revdial_agent, look_task));
}

// ---- opening and closing ----

typedef struct rvd_agent_scheme {
    const char *text, *port;
    int secure, carrier;
} rvd_agent_scheme;

// NULL: an unknown scheme.
static const rvd_agent_scheme *rvd_agent_url_scheme(const char *url)
{
    static const rvd_agent_scheme schemes[] = {
        {"http://", ":80", 0, REVDIAL_CARRIER_RAW},
        {"https://", ":443", 1, REVDIAL_CARRIER_RAW},
        {"ws://", ":80", 0, REVDIAL_CARRIER_WEBSOCKET},
        {"wss://", ":443", 1, REVDIAL_CARRIER_WEBSOCKET},
    };
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (strncmp(url, schemes[i].text, strlen(schemes[i].text)) == 0) return &schemes[i];
    return NULL;
}

// What is wrong with the host and the port of a URL, or NULL.
static const char *rvd_agent_url_host_problem(const rvd_agent_link *l, rvd_sys_endpoint *e)
{
    const char *colon = strrchr(l->endpoint, ':');
    uint64_t port = 0;
    if (l->host[0] != '[' && strchr(l->host, ':') != strrchr(l->host, ':'))
        return "an IPv6 address needs brackets, as in http://[::1]:80";
    if (!rvd_base_decimal(colon + 1, strlen(colon + 1), 65535, &port) || port == 0)
        return "the port must be from 1 to 65535";
    return rvd_sys_addr_split(l->endpoint, 1, e, NULL) < 0 ? "not host or host:port" : NULL;
}

// "SCHEME://host[:port][/path]" or "unix:/path".
static const char *rvd_agent_url_parse(rvd_agent_link *l, const char *url)
{
    const rvd_agent_scheme *scheme = rvd_agent_url_scheme(url);
    const char *rest, *slash, *problem;
    char *zone, *end;
    rvd_sys_endpoint e;
    size_t host_len;
    int has_port;
    if (strncmp(url, "unix:/", 6) == 0) {
        RVD_BASE_JOIN(l->endpoint, sizeof l->endpoint, url);
        RVD_BASE_JOIN(l->host, sizeof l->host, "localhost");
        RVD_BASE_JOIN(l->path, sizeof l->path, "/revdial");
        return NULL;
    }
    if (!scheme) return "not http://, https://, ws://, wss:// or unix:/path";
    l->secure = scheme->secure;
    l->carrier = scheme->carrier;
    rest = url + strlen(scheme->text);
    slash = strchr(rest, '/');
    host_len = slash ? (size_t)(slash - rest) : strlen(rest);
    if (host_len == 0 || host_len >= sizeof l->host - 8) return "no host, or it is too long";
    if (memchr(rest, '@', host_len)) return "credentials do not belong in the URL";
    if (slash && strlen(slash) >= sizeof l->path) return "the path is over 1024 bytes";
    if (slash && strchr(slash, '#')) return "a fragment does not belong in the URL";
    for (const char *at = slash; at && *at; at++)
        if (*at <= ' ' || *at > '~')
            return "path: write a blank as %20, other bytes in the same way";
    memcpy(l->host, rest, host_len);
    has_port = strchr(l->host, ']') ? strchr(strchr(l->host, ']'), ':') != NULL
                                    : strchr(l->host, ':') != NULL;
    RVD_BASE_JOIN(l->endpoint, sizeof l->endpoint, l->host, has_port ? NULL : scheme->port);
    RVD_BASE_JOIN(l->path, sizeof l->path, slash && slash[1] ? slash : "/revdial");
    problem = rvd_agent_url_host_problem(l, &e);
    zone = strchr(l->host, '%');  // means something on this machine only (RFC 6874 section 1)
    end = zone ? strchr(zone, ']') : NULL;
    if (end) memmove(zone, end, strlen(end) + 1);
    if (!problem) RVD_BASE_JOIN(l->tls_host, sizeof l->tls_host, e.host);
    return problem;
}

// A URL that is understood and that this agent cannot serve.
static const char *rvd_agent_link_problem(const rvd_agent_link *l)
{
    if (l->secure && !l->agent->cfg.common.tls)
        return "https:// and wss:// need a TLS transport, and none is configured";
    return NULL;
}

static rvd_agent_link *rvd_agent_link_new(revdial_agent *a, const char *text, revdial_err *err)
{
    rvd_agent_link *l;
    const char *problem;
    if (a->link_count == RVD_AGENT_LINKS) {
        rvd_stream_fail(err, REVDIAL_EINVAL, 0, "url: over 64 of them");
        return NULL;
    }
    pthread_mutex_lock(&a->own.lock);
    l = rvd_base_alloc(&a->own.heap, sizeof *l);
    pthread_mutex_unlock(&a->own.lock);
    if (!l) {
        rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for a link");
        return NULL;
    }
    l->agent = a;
    rvd_agent_connector_init(&l->conn, a->loop, l->addresses, &l->found);
    l->conn.io.run = rvd_agent_link_on_io;
    l->conn.timer.run = rvd_agent_link_on_timer;
    l->job.run = rvd_agent_link_prepare;
    l->task.run = rvd_agent_link_prepared;
    l->found.run = rvd_agent_link_on_found;
    RVD_BASE_JOIN(l->text, sizeof l->text, text);
    problem = rvd_agent_url_parse(l, text);
    if (!problem) problem = rvd_agent_link_problem(l);
    if (!problem && rvd_loop_timer_set(a->loop, &l->conn.timer, INT64_MAX) == 0) {
        pthread_mutex_lock(&a->own.lock);
        a->links[a->link_count++] = l;
        pthread_mutex_unlock(&a->own.lock);
        return l;
    }
    if (problem)
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, text, problem);
    else
        rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for a link");
    pthread_mutex_lock(&a->own.lock);
    rvd_base_free(&a->own.heap, l, sizeof *l);
    pthread_mutex_unlock(&a->own.lock);
    return NULL;
}

static int rvd_agent_links_open(revdial_agent *a, const char *list, revdial_err *err)
{
    const char *item;
    size_t len;
    while ((len = rvd_base_item(&list, &item)) > 0) {
        char text[300];
        if (len >= sizeof text)
            return rvd_stream_fail(err, REVDIAL_EINVAL, 0, "url: one is over 299 bytes");
        memcpy(text, item, len);
        text[len] = '\0';
        if (!rvd_agent_link_new(a, text, err)) return err ? err->code : REVDIAL_EINVAL;
    }
    if (a->link_count) return REVDIAL_OK;
    return rvd_stream_fail(err, REVDIAL_EINVAL, 0, "url: none given");
}

// An instance that no other process has. The first half is the same whenever an agent of that name
// starts on this machine: by it the proxy finds the session that a process has left behind.
static void rvd_agent_instance_make(revdial_agent *a, const revdial_agent_config *cfg)
{
    char host[256] = "";
    const char *parts[] = {host, cfg->name ? cfg->name : "", cfg->url};
    rvd_base_text t = rvd_base_text_in(a->instance, sizeof a->instance);
    uint64_t h = 0xCBF29CE484222325u;
    rvd_sys_hostname(host, sizeof host);
    for (int i = 0; i < 3; i++)
        for (const char *p = parts[i];; p++) {
            h = (h ^ (unsigned char)*p) * 0x100000001B3u;
            if (!*p) break;
        }
    rvd_base_text_add_hex16(&t, h);
    rvd_base_text_add(&t, ".");
    rvd_base_text_add_hex16(&t, rvd_agent_random(a));
}

static const char *const *rvd_agent_allow_keep(rvd_base_arena *texts, const char *const *allow)
{
    size_t count = 0;
    const char **rules;
    while (allow && allow[count]) count++;
    rules = rvd_base_keep_room(texts, count + 1, sizeof *rules);
    for (size_t i = 0; i < count; i++) {
        const char *rule = rvd_base_keep_text(texts, allow[i]);
        if (rules) rules[i] = rule;
    }
    return rules;
}

// Returns 0 without memory: the old list is in force.
static int rvd_agent_allow_set(revdial_agent *a, const char *const *allow)
{
    rvd_base_arena texts = {NULL, 0, 0};
    int has_memory;
    rvd_agent_allow_keep(&texts, allow);
    pthread_mutex_lock(&a->own.lock);
    has_memory = rvd_base_arena_open(&texts, &a->own.heap);
    if (has_memory) {
        rvd_base_arena_free(&a->allow_texts, &a->own.heap);
        a->allow = rvd_agent_allow_keep(&texts, allow);
        a->allow_texts = texts;
    }
    pthread_mutex_unlock(&a->own.lock);
    return has_memory;
}

int revdial_agent_replace_allow(revdial_agent *a, const char *const *allow, revdial_err *err)
{
    int code = rvd_agent_allow_check(allow, err);
    if (code) return code;
    if (rvd_owner_is_child(&a->own))
        return rvd_stream_fail(err, REVDIAL_ECLOSED, 0, RVD_STREAM_CHILD);
    if (rvd_agent_allow_set(a, allow)) return REVDIAL_OK;
    return rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for the allow list");
}

static void rvd_agent_texts_keep(revdial_agent *a, const revdial_agent_config *cfg)
{
    a->cfg = *cfg;
    a->cfg.url = rvd_base_keep_text(&a->texts, cfg->url);
    a->cfg.name = rvd_base_keep_text(&a->texts, cfg->name);
    a->cfg.instance = cfg->instance ? rvd_base_keep_text(&a->texts, cfg->instance) : a->instance;
    a->cfg.secret = rvd_base_keep_text(&a->texts, cfg->secret);
    a->cfg.user = rvd_base_keep_text(&a->texts, cfg->user);
    a->cfg.egress = rvd_base_keep_text(&a->texts, cfg->egress);
    a->cfg.server_name = rvd_base_keep_text(&a->texts, cfg->server_name);
    a->cfg.headers = rvd_base_keep_pairs(&a->texts, cfg->headers, cfg->header_count);
    a->cfg.allow = NULL;  // it is replaced while the agent runs: a->allow
    a->cfg.default_target = rvd_base_keep_text(&a->texts, cfg->default_target);
}

// Returns 0 without memory.
static int rvd_agent_config_copy(revdial_agent *a, const revdial_agent_config *cfg)
{
    rvd_agent_instance_make(a, cfg);
    rvd_agent_texts_keep(a, cfg);
    if (!rvd_base_arena_open(&a->texts, &a->own.heap)) return 0;
    rvd_agent_texts_keep(a, cfg);
    a->own.handler = cfg->handler;
    a->own.ud = cfg->ud;
    a->drain_ms = cfg->drain_ms ? cfg->drain_ms : 30000;
    return rvd_agent_allow_set(a, cfg->allow);
}

// A host, as in "host:port".
static int rvd_agent_is_host(const char *host)
{
    char text[RVD_SYS_HOST_MAX + 8];
    rvd_sys_endpoint e;
    int is_ip6 = strchr(host, ':') != NULL;
    rvd_base_text t = rvd_base_text_in(text, sizeof text);
    RVD_BASE_ADD(&t, is_ip6 ? "[" : NULL, host, is_ip6 ? "]:1" : ":1");
    return !t.overflow && rvd_sys_addr_split(text, 1, &e, NULL) == 0;
}

// What is wrong with the numbers of a config, or NULL.
static const char *rvd_agent_numbers_problem(const revdial_agent_config *cfg)
{
    int least = cfg->backoff_min_ms ? cfg->backoff_min_ms : RVD_AGENT_BACKOFF_MIN_MS;
    int most = cfg->backoff_max_ms ? cfg->backoff_max_ms : RVD_AGENT_BACKOFF_MAX_MS;
    if (cfg->proxy_protocol < 0 || cfg->proxy_protocol > 2) return "proxy_protocol: not 0, 1 or 2";
    if (cfg->backoff_min_ms < 0) return "backoff_min_ms: negative";
    if (cfg->backoff_max_ms < 0) return "backoff_max_ms: negative";
    if (cfg->connect_timeout_ms < 0) return "connect_timeout_ms: negative";
    if (cfg->idle_timeout_ms < 0) return "idle_timeout_ms: negative";
    if (cfg->half_closed_timeout_ms < -1)
        return "half_closed_timeout_ms: below -1, which means no limit";
    if (cfg->drain_ms < -1) return "drain_ms: below -1, which means no limit";
    if (cfg->auth_fail_limit < -1) return "auth_fail_limit: below -1, which means no limit";
    return least > most ? "backoff_min_ms: over backoff_max_ms (30000 by default)" : NULL;
}

static const char *rvd_agent_config_problem(const revdial_agent_config *cfg)
{
    const char *problem = rvd_stream_common_problem(&cfg->common);
    if (problem) return problem;
    if (!cfg->url) return "url: none given";
    if (!cfg->handler && !cfg->allow && !cfg->default_target)
        return "handler: none, and neither default_target nor allow: each stream would be refused";
    if (!cfg->headers != !cfg->header_count)
        return cfg->headers ? "headers: given, but the count is 0"
                            : "headers: NULL, but the count is not 0";
    for (size_t i = 0; i < cfg->header_count; i++)
        if (!cfg->headers[i].key || !cfg->headers[i].value)
            return "headers: one has no key or no value";
    return rvd_agent_numbers_problem(cfg);
}

static int rvd_agent_config_check(const revdial_agent_config *cfg, revdial_err *err)
{
    const char *problem = rvd_agent_config_problem(cfg);
    rvd_sys_endpoint e;
    int code;
    if (problem) return rvd_stream_fail(err, REVDIAL_EINVAL, 0, problem);
    code = rvd_stream_common_check(&cfg->common, err);
    if (code) return code;
    if (cfg->name && !rvd_base_is_name(cfg->name, strlen(cfg->name))) {
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, cfg->name, RVD_BASE_NAME_RULE);
        return REVDIAL_EINVAL;
    }
    if (cfg->instance && !rvd_base_is_label(cfg->instance, strlen(cfg->instance), 1)) {
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, cfg->instance, RVD_BASE_INSTANCE_RULE);
        return REVDIAL_EINVAL;
    }
    if (cfg->server_name && !rvd_agent_is_host(cfg->server_name)) {
        rvd_sys_fail(err, REVDIAL_EINVAL, 0, cfg->server_name,
                     "server_name: neither a host name nor an address");
        return REVDIAL_EINVAL;
    }
    if (cfg->default_target && rvd_sys_addr_split(cfg->default_target, 1, &e, err) < 0) {
        rvd_stream_fail_in(err, "default_target: ");
        return REVDIAL_EINVAL;
    }
    return rvd_agent_allow_check(cfg->allow, err);
}

static void rvd_agent_free(revdial_agent *a)
{
    rvd_heap heap = {a->cfg.common.alloc, a->cfg.common.alloc_ud, sizeof *a};
    for (unsigned i = 0; i < a->link_count; i++) {
        rvd_base_wipe(a->links[i]->secret, sizeof a->links[i]->secret);
        revdial_egress_free(a->links[i]->egress);
        rvd_base_free(&a->own.heap, a->links[i], sizeof *a->links[i]);
    }
    rvd_base_arena_free(&a->allow_texts, &a->own.heap);
    rvd_base_arena_free(&a->texts, &a->own.heap);
    rvd_loop_free(a->loop);
    rvd_owner_close(&a->own);
    rvd_base_free(&heap, a, sizeof *a);
}

// Refuses now what each session would refuse. A secret that credential_fn gives is checked at each
// attempt; "probe" stands for it here.
static int rvd_agent_probe(revdial_agent *a, const rvd_agent_link *l, revdial_err *err)
{
    revdial_engine_config e;
    rvd_agent_engine_config(l, &e);
    if (a->cfg.credential_fn) e.secret = "probe";
    return rvd_owner_probe(&e, err);
}

// The same for the egress proxy, with each server.
static int rvd_agent_probe_egress(revdial_agent *a, revdial_err *err)
{
    rvd_sys_endpoint e;
    if (!a->cfg.egress) return REVDIAL_OK;
    if (a->cfg.all_addresses)
        return rvd_stream_fail(err, REVDIAL_EINVAL, 0,
                               "all_addresses: with egress the egress proxy resolves the name");
    for (unsigned i = 0; i < a->link_count; i++) {
        revdial_egress *v = revdial_egress_new(a->cfg.egress, a->links[i]->endpoint,
                                               a->cfg.common.alloc, a->cfg.common.alloc_ud, err);
        if (!v) return err->code;
        RVD_BASE_JOIN(a->egress_address, sizeof a->egress_address, revdial_egress_address(v));
        revdial_egress_free(v);
    }
    return rvd_sys_addr_split(a->egress_address, 1, &e, err) < 0 ? REVDIAL_EINVAL : REVDIAL_OK;
}

static void rvd_agent_on_begin(rvd_loop_task *task)
{
    revdial_agent *a = RVD_BASE_OWNER(task, revdial_agent, begin_task);
    unsigned count = a->link_count;
    if (a->cfg.stop) rvd_agent_look_again(a, RVD_AGENT_STOP_US);
    for (unsigned i = 0; i < count; i++) rvd_agent_link_next(a->links[i]);
}

static revdial_agent *rvd_agent_new(const revdial_agent_config *cfg, revdial_err *err)
{
    rvd_heap heap = {cfg->common.alloc, cfg->common.alloc_ud, 0};
    revdial_agent *a = rvd_base_alloc(&heap, sizeof *a);
    if (!a) {
        rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for the agent");
        return NULL;
    }
    a->cfg.common = cfg->common;
    a->stop_timer.run = rvd_agent_on_stop_timer;
    a->stop_task.run = rvd_agent_on_stop_task;
    a->begin_task.run = rvd_agent_on_begin;
    a->look_task.run = rvd_agent_on_look_task;
    if (rvd_owner_open(&a->own, &a->cfg.common, "no mutex or no memory for the agent", err) == 0)
        return a;
    rvd_base_free(&heap, a, sizeof *a);
    return NULL;
}

static int rvd_agent_pools_open(revdial_agent *a, revdial_err *err)
{
    unsigned handlers = a->cfg.max_handlers ? a->cfg.max_handlers : 1024;
    if (rvd_loop_pool_open(&a->jobs, RVD_AGENT_JOBS) == 0) {
        if (rvd_loop_pool_open(&a->own.handlers, handlers) == 0) {
            if ((a->lookups = rvd_lookup_open()) != NULL) return REVDIAL_OK;
            rvd_loop_pool_close(&a->own.handlers);
        }
        rvd_loop_pool_close(&a->jobs);
    }
    return rvd_stream_fail(err, REVDIAL_ESYS, 0, "no pool of threads");
}

// Makes an agent that does not run yet. NULL: err says why.
static revdial_agent *rvd_agent_open(const revdial_agent_config *cfg, revdial_err *err)
{
    revdial_agent *a;
    revdial_err own;
    int code = REVDIAL_OK;
    if (!err) err = &own;
    if (!cfg || rvd_agent_config_check(cfg, err)) {
        if (!cfg) rvd_stream_fail(err, REVDIAL_EINVAL, 0, "config: NULL");
        return NULL;
    }
    a = rvd_agent_new(cfg, err);
    if (!a) return NULL;
    if (rvd_sys_random(&a->random, sizeof a->random) < 0 || !a->random)
        code = rvd_stream_fail(err, REVDIAL_ESYS, 0, "no randomness");
    if (!code && !rvd_agent_config_copy(a, cfg))
        code = rvd_stream_fail(err, REVDIAL_ENOMEM, 0, "out of memory for the agent");
    if (!code && !(a->loop = rvd_loop_new(cfg->common.alloc, cfg->common.alloc_ud, err)))
        code = REVDIAL_ESYS;
    a->own.log.loop = a->loop;
    if (!code) rvd_loop_spin_limit(a->loop, cfg->common.spin_us);
    if (!code) code = rvd_agent_links_open(a, cfg->url, err);
    for (unsigned i = 0; !code && i < a->link_count; i++)
        code = rvd_agent_probe(a, a->links[i], err);
    if (!code) code = rvd_agent_probe_egress(a, err);
    if (!code) code = rvd_agent_pools_open(a, err);
    if (code) {
        rvd_agent_free(a);
        return NULL;
    }
    a->fd_most = rvd_sys_fd_most();
    rvd_stream_group_init(&a->group, a->loop, &a->own.log, &a->own.work, &cfg->common);
    return a;
}

static void rvd_agent_close(revdial_agent *a)
{
    rvd_lookup_close(a->lookups);
    rvd_loop_pool_close(&a->jobs);
    rvd_loop_pool_close(&a->own.handlers);
    rvd_agent_free(a);
}

int revdial_serve(const revdial_agent_config *cfg, revdial_err *err)
{
    revdial_err own;
    revdial_agent *a;
    int r, code;
    if (!err) err = &own;
    memset(err, 0, sizeof *err);
    a = rvd_agent_open(cfg, err);
    if (!a) return err->code;
    rvd_loop_post(a->loop, &a->begin_task);
    r = rvd_loop_run(a->loop);
    if (a->verdict.code) *err = a->verdict;
    if (r < 0) rvd_sys_fail(err, REVDIAL_ESYS, -r, NULL, "the I/O loop failed");
    code = err->code;
    rvd_agent_close(a);
    return code;
}

revdial_agent *revdial_agent_start(const revdial_agent_config *cfg, revdial_err *err)
{
    revdial_agent *a = rvd_agent_open(cfg, err);
    int r;
    if (!a) return NULL;
    rvd_loop_post(a->loop, &a->begin_task);
    r = rvd_loop_start(a->loop);
    if (r == 0) return a;
    rvd_sys_fail(err, REVDIAL_ESYS, -r, NULL, "no I/O thread");
    rvd_agent_close(a);
    return NULL;
}

revdial_session *revdial_agent_wait(revdial_agent *a, int timeout_ms, revdial_err *err)
{
    int64_t until = rvd_stream_deadline(timeout_ms);
    revdial_session *found = NULL;
    int r = 0, is_over, code = 0;
    if (rvd_owner_is_child(&a->own)) code = REVDIAL_ECLOSED;
    if (!code && rvd_loop_is_owner(a->loop)) code = REVDIAL_EDEADLK;
    if (code) {
        rvd_stream_fail(err, code, 0, revdial_strerror(code));
        return NULL;
    }
    pthread_mutex_lock(&a->own.lock);
    for (;;) {
        for (rvd_base_link *k = a->own.members.next; k != &a->own.members && !found; k = k->next) {
            const rvd_owner_member *m = RVD_BASE_OWNER(k, rvd_owner_member, link);
            revdial_session *s = m->session;
            if (m->is_up && !rvd_stream_is_leaving(s)) found = revdial_session_ref(s);
        }
        if (found || r || a->is_over) break;
        r = rvd_owner_wait_locked(&a->own, until);
    }
    is_over = a->is_over;
    pthread_mutex_unlock(&a->own.lock);
    if (found) return found;
    rvd_stream_fail(err, is_over ? REVDIAL_ECLOSED : REVDIAL_ETIMEDOUT, 0,
                    is_over ? "the agent has stopped" : "no session came up in time");
    return NULL;
}

size_t revdial_agent_list(revdial_agent *a, revdial_session **out, size_t cap)
{
    size_t count = 0;
    if (rvd_owner_is_child(&a->own)) return 0;
    pthread_mutex_lock(&a->own.lock);
    for (rvd_base_link *k = a->own.members.next; k != &a->own.members; k = k->next) {
        rvd_owner_member *m = RVD_BASE_OWNER(k, rvd_owner_member, link);
        if (!m->is_up) continue;
        if (count < cap) out[count] = revdial_session_ref(m->session);
        count++;
    }
    pthread_mutex_unlock(&a->own.lock);
    return count;
}

static void rvd_agent_link_describe_locked(const rvd_agent_link *l, int64_t now_us,
                                           revdial_link_info *out)
{
    memset(out, 0, sizeof *out);
    RVD_BASE_JOIN(out->url, sizeof out->url, l->text);
    out->state = l->told_as ? l->told_as : REVDIAL_CONNECTING;
    if (out->state == REVDIAL_BACKOFF && l->retry_us > now_us)
        out->retry_in_ms = (int)((l->retry_us - now_us) / 1000);
    if (l->told_us) out->since_ms = (now_us - l->told_us) / 1000;
    out->attempts = l->told_attempts;
    out->session_id = l->told_session;
    out->why = l->told_why;
}

size_t revdial_agent_list_links(revdial_agent *a, revdial_link_info *out, size_t cap)
{
    const int64_t now_us = rvd_sys_now_us();
    size_t count;
    if (rvd_owner_is_child(&a->own)) return 0;
    pthread_mutex_lock(&a->own.lock);
    count = a->link_count;
    for (size_t i = 0; i < count && i < cap; i++)
        rvd_agent_link_describe_locked(a->links[i], now_us, &out[i]);
    pthread_mutex_unlock(&a->own.lock);
    return count;
}

void revdial_agent_get_stats(revdial_agent *a, revdial_stats *out)
{
    rvd_owner_get_stats(&a->own, out);
}

// Asks the loop to stop. Returns 0, or why this thread may not.
static int rvd_agent_ask_to_stop(revdial_agent *a, int drain_ms)
{
    if (rvd_owner_is_child(&a->own)) return REVDIAL_ECLOSED;
    if (rvd_loop_is_owner(a->loop) || rvd_loop_pool_is_mine(&a->own.handlers) ||
        rvd_loop_pool_is_mine(&a->jobs))
        return REVDIAL_EDEADLK;
    pthread_mutex_lock(&a->own.lock);
    a->drain_ms = drain_ms;
    pthread_mutex_unlock(&a->own.lock);
    rvd_loop_post(a->loop, &a->stop_task);
    return REVDIAL_OK;
}

int revdial_agent_drain(revdial_agent *a, int drain_ms)
{
    int r = a ? rvd_agent_ask_to_stop(a, drain_ms) : REVDIAL_OK;
    if (!a || r) return r;
    pthread_mutex_lock(&a->own.lock);
    while (!a->is_over) rvd_owner_wait_locked(&a->own, INT64_MAX);
    r = a->own.was_cut ? REVDIAL_ETIMEDOUT : REVDIAL_OK;
    pthread_mutex_unlock(&a->own.lock);
    return r;
}

int revdial_agent_stop(revdial_agent *a, int drain_ms)
{
    int r = a ? rvd_agent_ask_to_stop(a, drain_ms) : REVDIAL_OK;
    if (!a || r) return r;
    rvd_loop_join(a->loop);
    r = a->own.was_cut ? REVDIAL_ETIMEDOUT : REVDIAL_OK;
    rvd_agent_close(a);
    return r;
}

#endif  // REVDIAL_NO_RUNTIME
#endif  // REVDIAL_IMPLEMENTED
#endif  // REVDIAL_IMPLEMENTATION

// ================================================================================================
// REVISION HISTORY
//   0.1.0  2026   first version
//
// LICENSE
//   MIT License
//
//   Copyright (c) 2026 the revdial authors
//
//   Permission is hereby granted, free of charge, to any person obtaining a copy
//   of this software and associated documentation files (the "Software"), to deal
//   in the Software without restriction, including without limitation the rights
//   to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
//   copies of the Software, and to permit persons to whom the Software is
//   furnished to do so, subject to the following conditions:
//
//   The above copyright notice and this permission notice shall be included in all
//   copies or substantial portions of the Software.
//
//   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
//   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
//   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
//   AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
//   LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
//   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
//   SOFTWARE.
// ================================================================================================
