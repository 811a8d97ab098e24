// The head of an HTTP request, strictly: what two readers could understand in two ways is refused.
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "admin.h"

// Letters of methods and of names of fields, RFC 9110 section 5.6.2.
static int prog_is_token(const char *at, size_t len)
{
    static const char marks[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i < len; i++) {
        char c = at[i];
        int is_word = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
        if (!is_word && (c == '\0' || !strchr(marks, c))) return 0;
    }
    return len > 0;
}

int prog_request_len(const char *buf, size_t len)
{
    for (size_t i = 0; i + 4 <= len; i++)
        if (memcmp(buf + i, "\r\n\r\n", 4) == 0) return (int)(i + 4);
    return len >= PROG_HEAD_SIZE ? -1 : 0;
}

// Copies a text, unless it is too long. Returns 1, or 0.
static int prog_copy(char *to, size_t size, const char *from, size_t len)
{
    if (len >= size) return 0;
    memcpy(to, from, len);
    to[len] = '\0';
    return 1;
}

static int prog_refuse(const char **problem, int status, const char *text)
{
    *problem = text;
    return status;
}

static int prog_request_method(prog_request *r, const char *at, size_t len, const char **problem)
{
    static const char *const names[] = {"GET", "HEAD", "POST"};
    if (!prog_is_token(at, len)) return prog_refuse(problem, 400, "the method is no word");
    for (int i = 0; i < 3; i++) {
        if (strlen(names[i]) != len || memcmp(names[i], at, len) != 0) continue;
        r->method = (enum prog_method)i;
        return 200;
    }
    return prog_refuse(problem, 405, "GET, HEAD and POST are known here");
}

// "GET /status?name=cam-1 HTTP/1.1"
static int prog_request_line(prog_request *r, const char *at, size_t len, const char **problem)
{
    const char *first = memchr(at, ' ', len), *last = at + len;
    const char *mark;
    int status;
    while (last > at && last[-1] != ' ') last--;
    if (!first || last <= first + 1) return prog_refuse(problem, 400, "no METHOD TARGET VERSION");
    status = prog_request_method(r, at, (size_t)(first - at), problem);
    if (status != 200) return status;
    if (at + len - last != 8 || memcmp(last, "HTTP/1.", 7) != 0 || (last[7] | 1) != '1')
        return prog_refuse(problem, 505, "the version is neither HTTP/1.1 nor HTTP/1.0");
    for (const char *c = first + 1; c < last - 1; c++)
        if (*c <= ' ' || *c > '~') return prog_refuse(problem, 400, "the target is not printable");
    if (first[1] != '/') return prog_refuse(problem, 400, "the target is no path");
    mark = memchr(first + 1, '?', (size_t)(last - 1 - (first + 1)));
    if (!mark) mark = last - 1;
    if (!prog_copy(r->path, sizeof r->path, first + 1, (size_t)(mark - (first + 1))))
        return prog_refuse(problem, 414, "the path is too long");
    if (*mark == '?' && !prog_copy(r->query, sizeof r->query, mark + 1, (size_t)(last - 2 - mark)))
        return prog_refuse(problem, 414, "the query is too long");
    return 200;
}

// Keeps what a field says, which may be said once.
static int prog_request_keep(char *to, size_t size, const char *value, size_t len,
                             const char **problem)
{
    if (to[0]) return prog_refuse(problem, 400, "a field is there twice");
    if (!prog_copy(to, size, value, len)) return prog_refuse(problem, 431, "a field is too long");
    return 200;
}

// One of the fields that mean something here.
static int prog_request_field(prog_request *r, const char *name, const char *value, size_t len,
                              const char **problem)
{
    static const char bearer[] = "Bearer ";
    size_t skip = sizeof bearer - 1;
    if (strcasecmp(name, "Host") == 0)
        return prog_request_keep(r->host, sizeof r->host, value, len, problem);
    if (strcasecmp(name, "Origin") == 0)
        return prog_request_keep(r->origin, sizeof r->origin, value, len, problem);
    if (strcasecmp(name, "Sec-Fetch-Site") == 0)
        return prog_request_keep(r->site, sizeof r->site, value, len, problem);
    if (strcasecmp(name, "Transfer-Encoding") == 0)
        return prog_refuse(problem, 501, "there are no bodies here");
    if (strcasecmp(name, "Content-Length") == 0 && (len != 1 || *value != '0'))
        return prog_refuse(problem, 413, "there are no bodies here");
    if (strcasecmp(name, "Authorization") != 0 || len < skip ||
        strncasecmp(value, bearer, skip) != 0)
        return 200;
    return prog_request_keep(r->token, sizeof r->token, value + skip, len - skip, problem);
}

static int prog_request_header(prog_request *r, const char *at, size_t len, const char **problem)
{
    char name[64];
    const char *colon = memchr(at, ':', len), *end = at + len;
    if (!colon || !prog_is_token(at, (size_t)(colon - at)))
        return prog_refuse(problem, 400, "a line is not NAME: VALUE");
    for (const char *c = colon; c < end; c++)
        if ((*c >= 0 && *c < ' ' && *c != '\t') || *c == '\177')
            return prog_refuse(problem, 400, "a control character in a field");
    if (!prog_copy(name, sizeof name, at, (size_t)(colon - at))) return 200;  // not one of ours
    for (colon++; colon < end && (*colon == ' ' || *colon == '\t');) colon++;
    while (end > colon && (end[-1] == ' ' || end[-1] == '\t')) end--;
    return prog_request_field(r, name, colon, (size_t)(end - colon), problem);
}

int prog_request_parse(prog_request *r, const char *head, size_t len, const char **problem)
{
    const char *at = head, *last = head + len - 2;  // the empty line
    int status = 200;
    memset(r, 0, sizeof *r);
    *problem = "";
    for (; status == 200 && at < last; at += 2) {
        const char *line = at;
        while (at < last && *at != '\r' && *at != '\n') at++;
        if (at[0] != '\r' || at[1] != '\n') return prog_refuse(problem, 400, "a line without CRLF");
        if (line == head)
            status = prog_request_line(r, line, (size_t)(at - line), problem);
        else
            status = prog_request_header(r, line, (size_t)(at - line), problem);
    }
    return status;
}

int prog_request_query(const prog_request *r, const char *key, char *value, size_t size)
{
    const char *at = r->query;
    size_t n = strlen(key);
    while (*at) {
        size_t len = strcspn(at, "&");
        if (len > n + 1 && memcmp(at, key, n) == 0 && at[n] == '=')
            return prog_copy(value, size, at + n + 1, len - n - 1);
        at += len + (at[len] == '&');
    }
    return 0;
}

// How long the host of "host:port" is, with the brackets of an address. 0: it is neither.
static size_t prog_host_len(const char *host)
{
    size_t len = strcspn(host, ":");
    const char *port;
    if (host[0] == '[') len = 1 + strspn(host + 1, "0123456789abcdefABCDEF:.");
    if (host[0] == '[' && host[len++] != ']') return 0;
    port = host + len;
    if (!*port) return len;
    return *port == ':' && strspn(port + 1, "0123456789") == strlen(port + 1) ? len : 0;
}

int prog_request_is_ours(const prog_request *r, const char *names)
{
    const char *host = r->host;
    size_t len = prog_host_len(host);
    if (!len) return 0;
    if (host[0] == '[' || strspn(host, "0123456789.") == len) return 1;
    if (len == 9 && strncasecmp(host, "localhost", len) == 0) return 1;
    while (*names) {
        size_t n = strcspn(names, ",");
        if (n == len && strncasecmp(names, host, len) == 0) return 1;
        names += n + (names[n] == ',');
    }
    return 0;
}

int prog_request_is_same_origin(const prog_request *r)
{
    const char *origin = r->origin;
    if (r->site[0] && strcmp(r->site, "same-origin") != 0 && strcmp(r->site, "none") != 0) return 0;
    if (!origin[0]) return 1;
    if (strncmp(origin, "http://", 7) == 0) return strcasecmp(origin + 7, r->host) == 0;
    return strncmp(origin, "https://", 8) == 0 && strcasecmp(origin + 8, r->host) == 0;
}

const char *prog_status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } texts[] = {{200, "OK"},
                 {400, "Bad Request"},
                 {401, "Unauthorized"},
                 {403, "Forbidden"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {408, "Request Timeout"},
                 {409, "Conflict"},
                 {413, "Content Too Large"},
                 {414, "URI Too Long"},
                 {421, "Misdirected Request"},
                 {431, "Request Header Fields Too Large"},
                 {500, "Internal Server Error"},
                 {501, "Not Implemented"},
                 {503, "Service Unavailable"},
                 {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].status == status) return texts[i].text;
    return "";
}
