// Writes heads as they go on: requests to the backend, responses to the client. Pure, as the reader
// is. Section numbers with "9110:" are those of RFC 9110, others of RFC 9112.
#ifndef REVDIAL_HTTP_WRITER_H
#define REVDIAL_HTTP_WRITER_H

#include "http_reader.h"

enum {
    // A head that was read, and what is added to it: the client's address, host and protocol.
    HTTP_WRITTEN_MAX = HTTP_HEAD_MAX + 2048,
    HTTP_CHUNK_HEAD_MAX = 20  // of a size in hexadecimal digits, and its CRLF
};

// Where a request comes from.
typedef struct http_source {
    http_text address;  // of the client, without a port; len 0: it has none
    int is_trusted;     // a proxy of ours, whose X-Forwarded-For and its kind are believed
} http_source;

// Writes a request's head as it goes to the backend, always as HTTP/1.1.
//   to       HTTP_WRITTEN_MAX bytes
//   returns  its length
size_t http_request_write(char *to, const http_head *h, const http_source *from);

// How a response goes on.
typedef struct http_answer {
    int minor;       // of the client's HTTP/1.minor
    int is_kept;     // its connection persists
    int is_chunked;  // the body goes on in chunks
    int is_head;     // the request was HEAD
} http_answer;

// The same for a response, or one of the 1xx before it.
size_t http_response_write(char *to, const http_head *h, const http_answer *how);

// The same for a trailer section that ends a chunked body, from the last chunk's line on.
//   h        NULL: there are no fields
size_t http_trailer_write(char *to, const http_head *h);

// The same for a response of our own with a line of text.
size_t http_error_write(char *to, int status, const char *text, const http_answer *how);

// The line before a chunk of that size.
size_t http_chunk_write(char to[HTTP_CHUNK_HEAD_MAX], uint64_t size);

#endif  // REVDIAL_HTTP_WRITER_H
