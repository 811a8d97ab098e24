// Reads HTTP/1.1 and HTTP/1.0 messages: heads, and the framing of bodies. Pure: no socket, clock or
// memory of its own. Section numbers are those of RFC 9112, "9110:" those of RFC 9110.
//
// Requests are read strictly. What two readers could understand differently is refused, because one
// of them would see another message, or another end of it, than we do (request smuggling). Answers
// that break rules are taken, as curl, nginx and HAProxy take them, if their end is clear: only the
// target has a say in them, and we write them anew.
//
// A head is looked for with http_head_end() as its bytes come, and parsed once it is complete. Then
// http_body_read() takes the body apart, piece by piece.
#ifndef REVDIAL_HTTP_READER_H
#define REVDIAL_HTTP_READER_H

#include "http_text.h"

enum {
    HTTP_HEAD_MAX = 16384,      // bytes; more than browsers send with all their cookies
    HTTP_LINES_MAX = 100,       // field lines, as Apache and HAProxy have it
    HTTP_TARGET_MAX = 8000,     // bytes; what 9110:4.1 asks every recipient to take
    HTTP_METHOD_MAX = 32,       // the longest registered one has 17
    HTTP_HOST_MAX = 253,        // of a name in DNS
    HTTP_TRACE_SIZE = 128,      // of a traceparent, which has 55 letters so far
    HTTP_CHUNK_LINE_MAX = 1024  // bytes of a chunk's size and its extensions
};

// Fields that mean something to us. The order is that of the names in http_reader.c.
enum http_kind {
    HTTP_OTHER,
    HTTP_HOST,
    HTTP_CONTENT_LENGTH,
    HTTP_TRANSFER_ENCODING,
    HTTP_EXPECT,
    HTTP_X_FORWARDED_FOR,
    HTTP_X_FORWARDED_PROTO,
    HTTP_X_FORWARDED_HOST,
    HTTP_FORWARDED,
    HTTP_X_REAL_IP,
    HTTP_CONNECTION,  // from here on for one hop only
    HTTP_KEEP_ALIVE,
    HTTP_TE,
    HTTP_UPGRADE,
    HTTP_PROXY,  // all that begin with it
    HTTP_NAMED   // by Connection
};

typedef struct http_field {
    http_text name, value;
    enum http_kind kind;
} http_field;

enum http_framing {
    HTTP_NO_BODY,
    HTTP_LENGTH,
    HTTP_CHUNKED,
    HTTP_UNTIL_CLOSE  // of a response
};

// What a head says. All texts point into the bytes that were parsed.
typedef struct http_head {
    int minor;               // HTTP/1.minor
    http_text method;        // of a request
    http_text target;        // without what absolute-form has before the path; or "*"
    http_text host;          // without the port and a last dot; len 0: an HTTP/1.0 request has none
    http_text authority;     // with them, as it was sent
    int status;              // of a response
    http_text reason;        // of a response
    enum http_framing body;  // of a response: see http_response_parse()
    uint64_t length;         // if has_length
    int has_length;          // also of a response that has no body because HEAD was asked
    int is_kept;             // the connection persists after this message (9.3)
    int is_upgrade;          // a request asks for another protocol, or a response is 101
    int has_expect;          // 100-continue
    int takes_trailers;      // TE: trailers
    int is_answer;           // a response or its trailers
    http_field fields[HTTP_LINES_MAX];
    size_t field_count;
    const char *problem;  // why it was refused, for people; static
} http_head;

// How far a head has been looked at. All zero at first.
typedef struct http_scan {
    size_t line, at;  // where the line begins that is not complete, and what is unseen
    unsigned lines;
    int is_trailer;       // a trailer section: has no first line, and may be empty
    int is_answer;        // of a response: a line may end with LF alone
    const char *problem;  // static
} http_scan;

// Looks for the end of a head in all bytes of it that there are.
//   returns  its length with the empty line, 0 more is needed, or -status: refused
int http_head_end(http_scan *s, const char *data, size_t len);

// Parses a complete head, from its first byte to its empty line.
//   returns  0, or the status to refuse a request with (for a response always 502)
int http_request_parse(http_head *h, const char *data, size_t len);
// The same for a CONNECT request, whose `authority` is where it wants to go (9110:9.3.6).
int http_connect_parse(http_head *h, const char *data, size_t len);
// is_head: the request was HEAD, whose response has no body
int http_response_parse(http_head *h, int is_head, const char *data, size_t len);
// Only the fields are set. Those that frame or route a message must not be there (9110:6.5.1).
int http_trailer_parse(http_head *h, int is_answer, const char *data, size_t len);

// May the request be sent again when no answer came (9110:9.2.2)?
int http_is_idempotent(const http_head *h);
// Copies the request's traceparent (W3C Trace Context, section 3.2); "" if it has none, several, or
// one that is malformed.
void http_trace(const http_head *h, char trace[HTTP_TRACE_SIZE]);

// A body, and where we are in it.
//
//   LENGTH, UNTIL_CLOSE: DATA ──▶ DONE
//   CHUNKED: SIZE ─▶ DATA ─▶ DATA_CR ─▶ DATA_LF ─▶ SIZE; SIZE of 0 ─▶ TRAILER ─▶ DONE
//   and in a line that begins with a size: SIZE ─▶ SIZE_LF, or for each extension
//   EXTENSION ─▶ NAME ─▶ EQUALS ─▶ VALUE, or EQUALS ─▶ QUOTED ⇄ ESCAPED; QUOTED ─▶ QUOTE_END
//   In a response SIZE ─▶ SIZE_BLANK, too, and no SIZE_LF or DATA_LF where a line has no CR.
enum http_body_state {
    HTTP_BODY_DONE,
    HTTP_BODY_SIZE,
    HTTP_BODY_SIZE_BLANK,
    HTTP_BODY_EXTENSION,  // behind its ';'
    HTTP_BODY_NAME,
    HTTP_BODY_EQUALS,  // behind '='
    HTTP_BODY_VALUE,
    HTTP_BODY_QUOTED,
    HTTP_BODY_ESCAPED,    // after '\' in it
    HTTP_BODY_QUOTE_END,  // after its last '"'
    HTTP_BODY_SIZE_LF,
    HTTP_BODY_DATA,
    HTTP_BODY_DATA_CR,
    HTTP_BODY_DATA_LF,
    HTTP_BODY_TRAILER
};

typedef struct http_body {
    enum http_framing framing;
    enum http_body_state state;
    int is_answer;      // as in http_head
    uint64_t left;      // of the body or the chunk
    unsigned line_len;  // bytes of this line with a size
    unsigned digits;    // of the size
    http_scan trailer;
    const char *problem;  // static
} http_body;

void http_body_init(http_body *b, const http_head *h);

// Takes bytes of a body up to the end of one piece of payload.
//   payload  the piece, len 0 if there is none; points into data
//   returns  how many bytes were used; 0: more are needed, beside those that are there (or the body
//            is DONE); -1: it is malformed
// A trailer section is used as a whole: payload is then all of it, and the body is DONE.
ptrdiff_t http_body_read(http_body *b, const char *data, size_t len, http_text *payload);

#endif  // REVDIAL_HTTP_READER_H
