// Takes bodies apart: see http_reader.h.
#include <string.h>

#include "http_reader.h"

enum { HTTP_SIZE_DIGITS = 15 };  // of a chunk's size, so that it cannot overflow 64 bits

void http_body_init(http_body *b, const http_head *h)
{
    memset(b, 0, sizeof *b);
    b->framing = h->body;
    b->is_answer = b->trailer.is_answer = h->is_answer;
    switch (h->body) {
    case HTTP_NO_BODY: return;
    case HTTP_CHUNKED:
        b->state = HTTP_BODY_SIZE;
        b->trailer.is_trailer = 1;
        return;
    case HTTP_LENGTH:
    case HTTP_UNTIL_CLOSE:
        b->state = HTTP_BODY_DATA;
        b->left = h->body == HTTP_LENGTH ? h->length : UINT64_MAX;
    }
}

// The character may end a line with a size: CR, or in a response LF, too.
static int http_size_ends(http_body *b, char c)
{
    int is_end = c == '\r' || (c == '\n' && b->is_answer);
    if (c == '\r') b->state = HTTP_BODY_SIZE_LF;
    if (c == '\n' && is_end) b->state = b->left ? HTTP_BODY_DATA : HTTP_BODY_TRAILER;
    return is_end;
}

// One character of a size (7.1). Returns 0 if it may not be there.
static int http_size_step(http_body *b, char c)
{
    int digit = http_hex(c);
    if (digit >= 0 && b->state == HTTP_BODY_SIZE) {
        b->left = b->left << 4 | (unsigned)digit;
        b->problem = "a chunk's size is too large";
        return ++b->digits <= HTTP_SIZE_DIGITS;
    }
    b->problem = "a chunk's size is malformed";
    if (b->digits == 0) return 0;
    if (http_is_blank(c)) b->state = HTTP_BODY_SIZE_BLANK;  // as a fixed width has them
    if (http_is_blank(c)) return b->is_answer;
    if (c == ';') b->state = HTTP_BODY_EXTENSION;
    return c == ';' || http_size_ends(b, c);
}

// One character of chunk extensions (7.1.1): ";" name ["=" value], where a value is a token or is
// quoted. Which ones there are is nobody's business, only where they end.
static int http_extension_step(http_body *b, char c)
{
    enum http_body_state was = b->state;
    int is_token = http_has(&http_token, c);
    b->problem = "a chunk's extension is malformed";
    if (was == HTTP_BODY_QUOTED || was == HTTP_BODY_ESCAPED) {
        b->state = HTTP_BODY_QUOTED;
        if (was == HTTP_BODY_QUOTED && c == '"') b->state = HTTP_BODY_QUOTE_END;
        if (was == HTTP_BODY_QUOTED && c == '\\') b->state = HTTP_BODY_ESCAPED;
        return http_has(&http_text_set, c);
    }
    if (was == HTTP_BODY_EXTENSION) {
        b->state = HTTP_BODY_NAME;
        return is_token;
    }
    if (was == HTTP_BODY_EQUALS) {
        b->state = c == '"' ? HTTP_BODY_QUOTED : HTTP_BODY_VALUE;
        return c == '"' || is_token;
    }
    if (is_token) return was != HTTP_BODY_QUOTE_END;
    if (http_size_ends(b, c)) return 1;
    if (c == ';') b->state = HTTP_BODY_EXTENSION;
    if (c == '=' && was == HTTP_BODY_NAME) b->state = HTTP_BODY_EQUALS;
    return b->state != was;
}

// One character of what ends a chunk's data: CRLF, or in a response LF alone.
static int http_data_end_step(http_body *b, char c)
{
    enum http_body_state was = b->state;
    int is_end = c == '\n' && (was == HTTP_BODY_DATA_LF || b->is_answer);
    b->problem = "a chunk is longer than its size";
    b->state = is_end ? HTTP_BODY_SIZE : HTTP_BODY_DATA_LF;
    if (is_end) b->digits = b->line_len = 0;
    return is_end || (c == '\r' && was == HTTP_BODY_DATA_CR);
}

// One character of a line. Returns 0 if it may not be there.
static int http_body_step(http_body *b, char c)
{
    if (++b->line_len > HTTP_CHUNK_LINE_MAX) {
        b->problem = "a chunk's extensions are too long";
        return 0;
    }
    switch (b->state) {
    case HTTP_BODY_SIZE:
    case HTTP_BODY_SIZE_BLANK: return http_size_step(b, c);
    case HTTP_BODY_EXTENSION:
    case HTTP_BODY_NAME:
    case HTTP_BODY_EQUALS:
    case HTTP_BODY_VALUE:
    case HTTP_BODY_QUOTED:
    case HTTP_BODY_ESCAPED:
    case HTTP_BODY_QUOTE_END: return http_extension_step(b, c);
    case HTTP_BODY_SIZE_LF:
        b->problem = "a chunk's size ends with CR alone";
        b->state = b->left ? HTTP_BODY_DATA : HTTP_BODY_TRAILER;
        return c == '\n';
    case HTTP_BODY_DATA_CR:
    case HTTP_BODY_DATA_LF: return http_data_end_step(b, c);
    case HTTP_BODY_DATA:
    case HTTP_BODY_TRAILER:
    case HTTP_BODY_DONE: break;
    }
    return 0;
}

static size_t http_data_take(http_body *b, const char *data, size_t len, http_text *payload)
{
    payload->at = data;
    payload->len = len < b->left ? len : (size_t)b->left;
    if (b->framing != HTTP_UNTIL_CLOSE) b->left -= payload->len;
    if (b->left == 0) b->state = b->framing == HTTP_CHUNKED ? HTTP_BODY_DATA_CR : HTTP_BODY_DONE;
    return payload->len;
}

static ptrdiff_t http_trailer_take(http_body *b, const char *data, size_t len, http_text *payload)
{
    int end = http_head_end(&b->trailer, data, len);
    b->problem = b->trailer.problem;
    if (end <= 0) return end < 0 ? -1 : 0;
    b->state = HTTP_BODY_DONE;
    payload->at = data;
    payload->len = (size_t)end;
    return end;
}

ptrdiff_t http_body_read(http_body *b, const char *data, size_t len, http_text *payload)
{
    size_t used = 0;
    payload->at = data;
    payload->len = 0;
    if (b->state == HTTP_BODY_TRAILER) return http_trailer_take(b, data, len, payload);
    while (used < len && b->state != HTTP_BODY_DATA && b->state != HTTP_BODY_TRAILER &&
           b->state != HTTP_BODY_DONE)
        if (!http_body_step(b, data[used++])) return -1;
    if (b->state == HTTP_BODY_DATA) used += http_data_take(b, data + used, len - used, payload);
    return (ptrdiff_t)used;
}
