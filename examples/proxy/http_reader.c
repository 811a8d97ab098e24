// Reads HTTP/1.1 and HTTP/1.0 messages: see http_reader.h.
#include "http_reader.h"

#include <string.h>

enum { HTTP_BAD = 400, HTTP_TARGET_LONG = 414, HTTP_EXPECTATION = 417, HTTP_HEAD_LARGE = 431 };
enum { HTTP_NO_METHOD = 405, HTTP_NO_VERSION = 505, HTTP_BAD_GATEWAY = 502 };
enum {
    HTTP_OPTIONS_MAX = 32,   // words of Connection: browsers send two
    HTTP_LENGTH_DIGITS = 18  // of Content-Length, so that it cannot overflow 64 bits
};

// ------------------------------------------------------------------------------------------------
// The end of a head

static int http_refuse(const char **problem, int status, const char *why)
{
    *problem = why;
    return -status;
}

// Judges what has come of the first line. Returns 0 or -status.
static int http_scan_first(http_scan *s, const char *data, size_t end)
{
    char first = data[s->line];
    if (first != '\r' && first != '\n' && !http_has(&http_capital, first))
        return http_refuse(&s->problem, HTTP_BAD, "this is not HTTP");
    if (end - s->line > HTTP_METHOD_MAX + HTTP_TARGET_MAX)
        return http_refuse(&s->problem, HTTP_TARGET_LONG, "the target is too long");
    return 0;
}

// A line is complete: its LF is at `end`. Returns as http_head_end().
static int http_scan_line(http_scan *s, const char *data, size_t end)
{
    int is_first = s->lines == 0 && !s->is_trailer;
    int has_cr = end > s->line && data[end - 1] == '\r';
    size_t len = end - s->line - (size_t)has_cr;
    if (!has_cr && !s->is_answer)
        return http_refuse(&s->problem, HTTP_BAD, "a line ends with LF alone");
    if (len == 0 && !is_first) return (int)end + 1;
    // A recipient should ignore one empty line before the request (2.2).
    if (len == 0 && s->line > 0)
        return http_refuse(&s->problem, HTTP_BAD, "empty lines stand before the request");
    if (len > 0 && ++s->lines > HTTP_LINES_MAX + (s->is_trailer ? 0 : 1))
        return http_refuse(&s->problem, HTTP_HEAD_LARGE, "the head has too many lines");
    s->line = end + 1;
    return 0;
}

int http_head_end(http_scan *s, const char *data, size_t len)
{
    size_t most = len < HTTP_HEAD_MAX ? len : HTTP_HEAD_MAX;
    int r = 0;
    while (s->at < most) {
        const char *lf = memchr(data + s->at, '\n', most - s->at);
        size_t end = lf ? (size_t)(lf - data) : most;
        if (s->lines == 0 && !s->is_trailer) r = http_scan_first(s, data, end);
        if (r == 0 && lf) r = http_scan_line(s, data, end);
        if (r != 0) return r;
        s->at = lf ? end + 1 : most;
    }
    if (most == HTTP_HEAD_MAX)
        return http_refuse(&s->problem, HTTP_HEAD_LARGE, "the head is too large");
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Field lines

static const struct {
    const char *name;
    enum http_kind kind;
} http_names[] = {
    {"host", HTTP_HOST},
    {"content-length", HTTP_CONTENT_LENGTH},
    {"transfer-encoding", HTTP_TRANSFER_ENCODING},
    {"expect", HTTP_EXPECT},
    {"x-forwarded-for", HTTP_X_FORWARDED_FOR},
    {"x-forwarded-proto", HTTP_X_FORWARDED_PROTO},
    {"x-forwarded-host", HTTP_X_FORWARDED_HOST},
    {"forwarded", HTTP_FORWARDED},
    {"x-real-ip", HTTP_X_REAL_IP},
    {"connection", HTTP_CONNECTION},
    {"keep-alive", HTTP_KEEP_ALIVE},
    {"te", HTTP_TE},
    {"upgrade", HTTP_UPGRADE},
    {"proxy", HTTP_PROXY},  // httpoxy: CGI hands it on as HTTP_PROXY
};

// CGI and its kind take '_' for '-'.
static int http_name_means(http_text name, const char *word)
{
    size_t i;
    for (i = 0; i < name.len; i++) {
        char c = name.at[i] == '_' ? '-' : http_lower(name.at[i]);
        if (c != word[i]) return 0;  // which ends at a shorter word's NUL
    }
    return word[i] == '\0';
}

static enum http_kind http_name_kind(http_text name)
{
    char first = http_lower(*name.at);
    for (size_t i = 0; i < sizeof http_names / sizeof *http_names; i++)
        if (http_names[i].name[0] == first && http_name_means(name, http_names[i].name))
            return http_names[i].kind;
    if (name.len > 6 && http_name_means(http_part(name, 0, 6), "proxy-")) return HTTP_PROXY;
    return HTTP_OTHER;
}

// One field line without its end (5.1). Returns NULL or the problem.
static const char *http_field_parse(http_field *f, http_text line, const http_set *in_values)
{
    size_t name = http_span(&http_token, line);
    if (name == 0)
        return http_is_blank(*line.at) ? "a field line is folded" : "a field has no name";
    if (name == line.len) return "a field line has no colon";
    if (line.at[name] != ':')
        return http_is_blank(line.at[name]) ? "a blank stands before a colon"
                                            : "a field's name has a character that it may not have";
    f->name = http_part(line, 0, name);
    f->value = http_trim(http_part(line, name + 1, line.len));
    if (http_span(in_values, f->value) != f->value.len)
        return "a field's value has a control character";
    f->kind = http_name_kind(f->name);
    if (f->kind != HTTP_OTHER && memchr(f->name.at, '_', name))
        return "a field's name has '_' where others have '-'";
    return NULL;
}

// Takes a line with its end off the text. at is NULL: there is none.
static http_text http_line_next(const http_head *h, http_text *text)
{
    http_text line = {NULL, 0};
    const char *lf = text->len ? memchr(text->at, '\n', text->len) : NULL;
    size_t len = lf ? (size_t)(lf - text->at) : 0;
    int has_cr = len > 0 && lf[-1] == '\r';
    if (!lf || (!has_cr && !h->is_answer)) return line;
    line = http_part(*text, 0, len - (size_t)has_cr);
    *text = http_part(*text, len + 1, text->len);
    return line;
}

// Field lines up to the empty one, which must be the end. Returns NULL or the problem.
static const char *http_fields_parse(http_head *h, http_text text)
{
    const http_set *in_values = h->is_answer ? &http_answer_set : &http_text_set;
    h->field_count = 0;
    for (;;) {
        http_text line = http_line_next(h, &text);
        const char *problem;
        if (!line.at) return "the head is not complete";
        if (line.len == 0) return text.len ? "bytes follow the head" : NULL;
        if (h->field_count == HTTP_LINES_MAX) return "the head has too many lines";
        problem = http_field_parse(&h->fields[h->field_count++], line, in_values);
        if (problem) return problem;
    }
}

static const http_field *http_find(const http_head *h, enum http_kind kind, unsigned *count)
{
    const http_field *found = NULL;
    *count = 0;
    for (size_t i = 0; i < h->field_count; i++) {
        if (h->fields[i].kind != kind) continue;
        if (!found) found = &h->fields[i];
        ++*count;
    }
    return found;
}

// ------------------------------------------------------------------------------------------------
// What the fields say

// One option of Connection, and the fields that it names (7.6.1 of RFC 9110).
static const char *http_option_heed(http_head *h, http_text option, int *has_upgrade, int *persists)
{
    if (http_text_is(option, "close")) *persists = -1;
    if (http_text_is(option, "keep-alive") && *persists == 0) *persists = 1;
    if (http_text_is(option, "upgrade")) *has_upgrade = 1;
    if (http_span(&http_token, option) != option.len) return "Connection is malformed";
    for (size_t i = 0; i < h->field_count; i++) {
        http_field *f = &h->fields[i];
        if (!http_texts_equal(f->name, option)) continue;
        if (f->kind != HTTP_OTHER && f->kind < HTTP_CONNECTION)
            return "Connection names a field that is for everybody";
        if (f->kind == HTTP_OTHER) f->kind = HTTP_NAMED;
    }
    return NULL;
}

static const char *http_connection_heed(http_head *h)
{
    int has_upgrade = 0, persists = 0;  // -1: close, 1: keep-alive
    unsigned options = 0;
    for (size_t i = 0; i < h->field_count; i++) {
        http_text list = h->fields[i].value;
        while (h->fields[i].kind == HTTP_CONNECTION && list.len) {
            http_text option = http_list_next(&list);
            const char *problem = NULL;
            if (++options > HTTP_OPTIONS_MAX) return "Connection has too many options";
            if (option.len) problem = http_option_heed(h, option, &has_upgrade, &persists);
            if (problem) return problem;
        }
    }
    h->is_kept = persists >= (h->minor == 0 ? 1 : 0);
    h->is_upgrade = has_upgrade;
    return NULL;
}

static const char *http_length_parse(http_head *h, http_text value)
{
    uint64_t length = 0;
    size_t zeros = 0, i;
    while (zeros + 1 < value.len && value.at[zeros] == '0') zeros++;
    for (i = zeros; i < value.len && value.at[i] >= '0' && value.at[i] <= '9'; i++)
        if (i - zeros < HTTP_LENGTH_DIGITS) length = length * 10 + (uint64_t)(value.at[i] - '0');
    if (value.len == 0 || i != value.len || i - zeros > HTTP_LENGTH_DIGITS)
        return "Content-Length is not a number";
    if (zeros && !h->is_answer) return "Content-Length begins with 0";  // octal to some
    if (h->has_length && h->length != length) return "it has several Content-Lengths";
    h->length = length;
    h->has_length = 1;
    return NULL;
}

static const char *http_lengths_parse(http_head *h)
{
    const char *problem = NULL;
    for (size_t i = 0; i < h->field_count && !problem; i++)
        if (h->fields[i].kind == HTTP_CONTENT_LENGTH)
            problem = http_length_parse(h, h->fields[i].value);
    return problem;
}

// The rules of 6.1 to 6.3 that requests and responses share. body is HTTP_NO_BODY if no field
// speaks of one.
static const char *http_framing_heed(http_head *h)
{
    unsigned lengths, codings;
    const http_field *length = http_find(h, HTTP_CONTENT_LENGTH, &lengths);
    const http_field *coding = http_find(h, HTTP_TRANSFER_ENCODING, &codings);
    const char *problem;
    if (length && coding && !h->is_answer) return "it has Content-Length and Transfer-Encoding";
    if (lengths > 1 && !h->is_answer) return "it has several Content-Lengths";
    if (codings > 1) return "it has several Transfer-Encodings";
    if (coding && !http_text_is(coding->value, "chunked"))
        return "Transfer-Encoding is not chunked";
    if (coding && h->minor == 0) return "HTTP/1.0 has no Transfer-Encoding";
    problem = http_lengths_parse(h);
    if (length && coding) h->has_length = h->is_kept = 0;  // 6.3; it may have meant both
    h->body = coding ? HTTP_CHUNKED : length && h->length ? HTTP_LENGTH : HTTP_NO_BODY;
    return problem;
}

static http_text http_value(const http_head *h, enum http_kind kind)
{
    unsigned count;
    http_text none = {"", 0};
    const http_field *f = http_find(h, kind, &count);
    return f ? f->value : none;
}

// Is the word an item of any field of that kind?
static int http_lists(const http_head *h, enum http_kind kind, const char *word)
{
    for (size_t i = 0; i < h->field_count; i++) {
        http_text list = h->fields[i].value;
        while (h->fields[i].kind == kind && list.len)
            if (http_text_is(http_list_next(&list), word)) return 1;
    }
    return 0;
}

// Of the Upgrades that are asked for we pass one on if nothing else can be meant. HTTP/2 in clear
// text would be a way past all rules of this front end.
static int http_is_real_upgrade(const http_head *h)
{
    unsigned upgrades;
    http_find(h, HTTP_UPGRADE, &upgrades);
    return upgrades == 1 && h->minor == 1 && h->body == HTTP_NO_BODY &&
           !http_lists(h, HTTP_UPGRADE, "h2c") && !http_lists(h, HTTP_UPGRADE, "h2");
}

// ------------------------------------------------------------------------------------------------
// Requests

// "host", "host:port", "[address]:port" (3.2). Returns NULL or the problem.
static const char *http_authority_parse(http_head *h, http_text text)
{
    http_text rest = text;
    size_t len;
    unsigned port = 0;
    h->authority = text;
    if (text.len && *text.at == '[') {
        len = 1 + http_span(&http_address_set, http_part(text, 1, text.len));
        if (len < 3 || len == text.len || text.at[len] != ']') return "Host has a bad address";
        len++;
    } else {
        len = http_span(&http_name_set, text);
    }
    h->host = http_part(text, 0, len);
    if (len && text.at[len - 1] == '.') h->host.len--;
    if (h->host.len == 0) return "Host names no host";
    if (h->host.len > HTTP_HOST_MAX) return "no host name is that long";
    rest = http_part(text, len, text.len);
    if (rest.len == 0) return NULL;
    if (*rest.at != ':' || rest.len < 2 || rest.len > 6) return "Host is malformed";
    for (size_t i = 1; i < rest.len; i++) {
        if (rest.at[i] < '0' || rest.at[i] > '9') return "Host has a bad port";
        port = port * 10 + (unsigned)(rest.at[i] - '0');
    }
    return port > 65535 ? "Host has a bad port" : NULL;
}

static const char *http_host_heed(http_head *h)
{
    unsigned hosts;
    const http_field *host = http_find(h, HTTP_HOST, &hosts);
    http_text authority = h->authority;  // of a target in absolute-form
    const char *problem;
    if (hosts > 1) return "it has several Hosts";
    if (!host && h->minor > 0) return "it has no Host";
    if (!host) return NULL;
    problem = http_authority_parse(h, host->value);
    if (problem || !authority.at) return problem;
    // An origin server must ignore Host then (3.2.2); who does not would see another host.
    return http_texts_equal(authority, host->value) ? NULL : "Host is not that of the target";
}

// Each '%' of a path begins an escape (RFC 3986 section 2.1), and none is a NUL, where a reader
// may see the end of the path. A query may have what browsers leave as it is.
static int http_path_is_escaped(http_text path)
{
    for (size_t i = 0; i < path.len && path.at[i] != '?'; i++) {
        if (path.at[i] != '%') continue;
        if (path.len - i < 3 || http_hex(path.at[i + 1]) < 0 || http_hex(path.at[i + 2]) < 0)
            return 0;
        if (path.at[i + 1] == '0' && path.at[i + 2] == '0') return 0;
    }
    return 1;
}

// The byte at *i of such a path, which moves behind it: an escape is what it stands for.
static int http_path_byte(http_text path, size_t *i)
{
    size_t at = *i;
    *i += path.at[at] == '%' ? 3 : 1;
    return path.at[at] == '%' ? http_hex(path.at[at + 1]) << 4 | http_hex(path.at[at + 2])
                              : (unsigned char)path.at[at];
}

// Does it lead above the root, as "/../x" does? Some readers drop such a "..", others refuse it.
static int http_path_climbs(http_text path)
{
    int depth = 0, dots = 0, others = 0, is_end = 0;
    for (size_t i = 0; !is_end;) {
        int c = '/';
        is_end = i == path.len || path.at[i] == '?';
        if (!is_end) c = http_path_byte(path, &i);
        if (c != '/') {
            *(c == '.' ? &dots : &others) += 1;
            continue;
        }
        if (others || dots > 2)
            depth++;
        else if (dots == 2 && depth-- == 0)
            return 1;
        dots = others = 0;
    }
    return 0;
}

// absolute-form (3.2.2) becomes origin-form, and its authority is kept.
static const char *http_target_parse(http_head *h, http_text target)
{
    size_t scheme = http_text_begins(target, "http://")    ? 7
                    : http_text_begins(target, "https://") ? 8
                                                           : 0;
    size_t end = scheme;
    h->target = target;
    if (http_text_is(target, "*") && http_text_is(h->method, "OPTIONS")) return NULL;  // 3.2.4
    if (!http_path_is_escaped(target)) return "a '%' in the path begins no escape";
    if (*target.at != '/' && !scheme) return "the target is neither a path nor http://HOST/PATH";
    while (scheme && end < target.len && target.at[end] != '/' && target.at[end] != '?') end++;
    h->target = http_part(target, end, target.len);
    if (http_path_climbs(h->target)) return "the path leads above the root";
    return scheme ? http_authority_parse(h, http_part(target, scheme, end)) : NULL;
}

// "HTTP/1.1" (2.3). Returns 0 or the status.
static int http_version_parse(http_head *h, http_text text)
{
    h->problem = "the version is malformed";
    if (text.len != 8 || memcmp(text.at, "HTTP/", 5) != 0 || text.at[6] != '.') return HTTP_BAD;
    if (text.at[5] < '0' || text.at[5] > '9' || text.at[7] < '0' || text.at[7] > '9')
        return HTTP_BAD;
    h->problem = "the version is neither HTTP/1.1 nor HTTP/1.0";
    if (text.at[5] != '1' || text.at[7] > '1') return HTTP_NO_VERSION;
    h->minor = text.at[7] - '0';
    h->problem = NULL;
    return 0;
}

// method SP target SP version (3): one blank each. Returns 0 or the status.
static int http_request_line(http_head *h, http_text line)
{
    size_t method = http_span(&http_capital, line), target;
    http_text rest;
    int status;
    h->problem = "the request line is malformed";
    if (method == 0 || method > HTTP_METHOD_MAX || method == line.len) return HTTP_BAD;
    if (line.at[method] != ' ') return HTTP_BAD;
    rest = http_part(line, method + 1, line.len);
    target = http_span(&http_target_set, rest);
    if (target == 0 || target == rest.len || rest.at[target] != ' ') return HTTP_BAD;
    h->method = http_part(line, 0, method);
    status = http_version_parse(h, http_part(rest, target + 1, rest.len));
    if (status) return status;
    h->target = http_part(rest, 0, target);
    h->problem = "the target is too long";
    return target > HTTP_TARGET_MAX ? HTTP_TARGET_LONG : 0;
}

static void http_head_init(http_head *h)
{
    memset(h, 0, offsetof(http_head, fields));
    h->field_count = 0;
    h->problem = NULL;
    h->host.at = h->reason.at = "";
}

// Takes the first line off the text. Returns 0 or the status.
static int http_request_begin(http_head *h, http_text *text)
{
    http_text line;
    http_head_init(h);
    if (text->len > 2 && memcmp(text->at, "\r\n", 2) == 0) *text = http_part(*text, 2, text->len);
    line = http_line_next(h, text);
    h->problem = "the head is not complete";
    return line.at ? http_request_line(h, line) : HTTP_BAD;
}

// What all requests have behind the first line. Returns NULL or the problem.
static const char *http_request_fields(http_head *h, http_text text)
{
    const char *problem = http_fields_parse(h, text);
    if (!problem) problem = http_connection_heed(h);
    return problem ? problem : http_framing_heed(h);
}

int http_connect_parse(http_head *h, const char *data, size_t len)
{
    http_text text = {data, len};
    unsigned hosts = 0;
    int status = http_request_begin(h, &text);
    if (status) return status;
    h->problem = "CONNECT alone is for this port";
    if (!http_text_is(h->method, "CONNECT")) return HTTP_NO_METHOD;
    h->authority = h->target;
    h->problem = http_request_fields(h, text);
    http_find(h, HTTP_HOST, &hosts);
    if (!h->problem && hosts > 1) h->problem = "it has several Hosts";
    if (!h->problem && hosts == 0 && h->minor > 0) h->problem = "it has no Host";
    if (!h->problem && h->body != HTTP_NO_BODY) h->problem = "a CONNECT request has no body";
    return h->problem ? HTTP_BAD : 0;
}

int http_request_parse(http_head *h, const char *data, size_t len)
{
    http_text text = {data, len};
    int status = http_request_begin(h, &text);
    if (status) return status;
    h->problem = "CONNECT and TRACE are not for this port";
    if (http_text_is(h->method, "CONNECT") || http_text_is(h->method, "TRACE"))
        return HTTP_NO_METHOD;
    h->problem = http_target_parse(h, h->target);
    if (!h->problem) h->problem = http_request_fields(h, text);
    if (!h->problem) h->problem = http_host_heed(h);
    if (h->problem) return HTTP_BAD;
    if (h->is_upgrade) h->is_upgrade = http_is_real_upgrade(h);
    h->takes_trailers = http_lists(h, HTTP_TE, "trailers");
    if (h->minor == 0) return 0;  // which has no expectations (9110:10.1.1)
    h->has_expect = http_lists(h, HTTP_EXPECT, "100-continue");
    h->problem = "Expect is not 100-continue";
    if (http_value(h, HTTP_EXPECT).len && !h->has_expect) return HTTP_EXPECTATION;
    h->problem = NULL;
    return 0;
}

int http_is_idempotent(const http_head *h)
{
    static const char *const methods[] = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (http_text_is(h->method, methods[i])) return 1;
    return 0;
}

// Are these characters lower-case hexadecimal digits, and not the one that is for none alone?
static int http_is_id(http_text text, char none)
{
    size_t nones = 0;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.at[i];
        if (http_hex(c) < 0 || (c >= 'A' && c <= 'F')) return 0;
        nones += c == none;
    }
    return nones < text.len;
}

// version "-" trace-id "-" parent-id "-" flags; a later version may go on behind another "-".
static int http_is_trace(http_text v)
{
    enum { ID = 3, PARENT = 36, FLAGS = 53, LEN = 55 };
    if (v.len < LEN || v.len >= HTTP_TRACE_SIZE) return 0;
    if (v.at[ID - 1] != '-' || v.at[PARENT - 1] != '-' || v.at[FLAGS - 1] != '-') return 0;
    if (!http_is_id(http_part(v, 0, 2), 'f') || !http_is_id(http_part(v, ID, PARENT - 1), '0') ||
        !http_is_id(http_part(v, PARENT, FLAGS - 1), '0') ||
        !http_is_id(http_part(v, FLAGS, LEN), 0))
        return 0;
    if (v.len == LEN) return 1;
    return memcmp(v.at, "00", 2) != 0 && v.at[LEN] == '-' && http_span(&http_visible, v) == v.len;
}

void http_trace(const http_head *h, char trace[HTTP_TRACE_SIZE])
{
    http_text found = {NULL, 0};
    int count = 0;
    for (size_t i = 0; i < h->field_count; i++) {
        if (!http_text_is(h->fields[i].name, "traceparent")) continue;
        found = h->fields[i].value;
        count++;
    }
    if (count != 1 || !http_is_trace(found)) found.len = 0;
    if (found.len) memcpy(trace, found.at, found.len);
    trace[found.len] = '\0';
}

// ------------------------------------------------------------------------------------------------
// Responses and trailers

// version SP status [SP reason] (4)
static const char *http_status_line(http_head *h, http_text line)
{
    size_t i;
    if (line.len < 12 || http_version_parse(h, http_part(line, 0, 8)) || line.at[8] != ' ')
        return "the status line is malformed";
    for (i = 9; i < 12 && line.at[i] >= '0' && line.at[i] <= '9'; i++)
        h->status = h->status * 10 + (line.at[i] - '0');
    if (i < 12 || h->status < 100) return "the status is not a number";
    if (line.len == 12) return NULL;
    h->reason = http_part(line, 13, line.len);
    if (line.at[12] != ' ' || http_span(&http_text_set, h->reason) != h->reason.len)
        return "the status line is malformed";
    return NULL;
}

int http_response_parse(http_head *h, int is_head, const char *data, size_t len)
{
    http_text text = {data, len}, line;
    http_head_init(h);
    h->is_answer = 1;
    line = http_line_next(h, &text);
    h->problem = line.at ? http_status_line(h, line) : "the head is not complete";
    if (!h->problem) h->problem = http_fields_parse(h, text);
    if (!h->problem) h->problem = http_connection_heed(h);
    if (!h->problem) h->problem = http_framing_heed(h);
    if (h->problem) return HTTP_BAD_GATEWAY;
    h->is_upgrade = h->status == 101;
    if (is_head || h->status < 200 || h->status == 204 || h->status == 304)
        h->body = HTTP_NO_BODY;
    else if (h->body == HTTP_NO_BODY && !h->has_length)
        h->body = HTTP_UNTIL_CLOSE;
    if (h->body == HTTP_UNTIL_CLOSE) h->is_kept = 0;
    return 0;
}

int http_trailer_parse(http_head *h, int is_answer, const char *data, size_t len)
{
    http_text text = {data, len};
    http_head_init(h);
    h->is_answer = is_answer;
    h->problem = http_fields_parse(h, text);
    for (size_t i = 0; !h->problem && i < h->field_count; i++)
        if (h->fields[i].kind != HTTP_OTHER) h->problem = "a trailer has a field for heads only";
    return h->problem ? HTTP_BAD : 0;
}
