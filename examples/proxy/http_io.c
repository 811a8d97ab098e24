// Sockets and streams that are read and written as far as they go, and what of it has to wait.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http_conn.h"

enum { HTTP_BYTES_LEAST = 1024 };

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0  // the program ignores SIGPIPE
#endif

void http_bytes_free(http_bytes *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

// Makes room for so many bytes behind those that are there. Returns 0, or -1 when out of memory.
static int http_bytes_reserve(http_bytes *b, size_t more)
{
    size_t size = b->size ? b->size : HTTP_BYTES_LEAST;
    char *fresh;
    if (b->at && b->at + b->len + more > b->size) {
        memmove(b->data, b->data + b->at, b->len);
        b->at = 0;
    }
    if (b->at + b->len + more <= b->size) return 0;
    while (size < b->len + more) size *= 2;
    fresh = realloc(b->data, size);
    if (!fresh) return -1;
    b->data = fresh;
    b->size = size;
    return 0;
}

int http_bytes_append(http_bytes *b, const char *at, size_t len)
{
    if (http_bytes_reserve(b, len) != 0) return -1;
    memcpy(b->data + b->at + b->len, at, len);
    b->len += len;
    return 0;
}

static void http_bytes_take(http_bytes *b, size_t len)
{
    b->at += len;
    b->len -= len;
    if (b->len == 0) http_bytes_free(b);
}

// ------------------------------------------------------------------------------------------------

int http_side_open(http_thread *t, http_side *s, int fd, http_conn *c)
{
    s->fd = fd;
    s->can_read = s->can_write = 1;
    return http_events_watch(t, fd, c);
}

int http_side_join(http_thread *t, http_side *s, revdial_stream *st, http_conn *c)
{
    if (revdial_pollset_add(t->set, st, c) != REVDIAL_OK) {
        revdial_reset(st, REVDIAL_RESET_INTERNAL);
        revdial_close(st);
        return -1;
    }
    s->st = st;
    s->can_read = s->can_write = 1;
    return 0;
}

void http_side_close(http_side *s)
{
    if (s->fd >= 0) close(s->fd);
    revdial_close(s->st);
    s->fd = -1;
    s->st = NULL;
    http_bytes_free(&s->in);
    http_bytes_free(&s->out);
}

void http_side_finish(http_side *s)
{
    if (s->st)
        revdial_shutdown(s->st, REVDIAL_WR);
    else
        shutdown(s->fd, SHUT_WR);
}

// What the socket or stream has: > 0 bytes, 0 the end, or -1: nothing now, or it has failed.
static ptrdiff_t http_side_take(http_side *s, char *to, size_t size)
{
    ptrdiff_t n;
    if (!s->st) {
        do n = recv(s->fd, to, size, 0);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno != EAGAIN) s->is_bad = 1;
        return n;
    }
    n = revdial_read(s->st, to, size);
    if (n >= 0) return n;
    if (n != REVDIAL_EAGAIN) s->is_bad = 1;
    s->code = (int)n;
    return -1;
}

static size_t http_side_recv(http_side *s, char *to, size_t size)
{
    ptrdiff_t n;
    if (!s->can_read || s->is_eof || s->is_bad || (s->fd < 0 && !s->st)) return 0;
    n = http_side_take(s, to, size);
    if (n > 0) {
        // An event comes with the next byte, and with an end that has not been announced. Of a
        // stream it comes only when nothing was left.
        if ((size_t)n < size && !s->is_ending && !s->st) s->can_read = 0;
        return (size_t)n;
    }
    s->can_read = 0;
    if (n == 0) s->is_eof = 1;
    return 0;
}

http_text http_side_in(http_thread *t, http_side *s)
{
    http_text in = {t->scratch, 0};
    if (s->in.len) return (http_text){s->in.data + s->in.at, s->in.len};
    in.len = http_side_recv(s, t->scratch, sizeof t->scratch);
    return in;
}

int http_side_more(http_side *s)
{
    size_t n;
    if (http_bytes_reserve(&s->in, HTTP_BYTES_LEAST) != 0) {
        s->is_bad = 1;
        return 0;
    }
    n = http_side_recv(s, s->in.data + s->in.at + s->in.len, s->in.size - s->in.at - s->in.len);
    s->in.len += n;
    return n > 0;
}

int http_side_used(http_side *s, http_text in, size_t used)
{
    if (s->in.len) {
        http_bytes_take(&s->in, used);
        return 0;
    }
    return used < in.len ? http_bytes_append(&s->in, in.at + used, in.len - used) : 0;
}

// Sends some of the pieces. Returns how many bytes went; 0: no more for now, or never.
static size_t http_side_put(http_side *s, struct iovec *pieces, int count)
{
    struct msghdr msg = {.msg_iov = pieces};
    ptrdiff_t n;
    while ((int)msg.msg_iovlen < count) msg.msg_iovlen++;  // of one type or another
    if (s->st) {
        n = revdial_writev(s->st, pieces, count);
        if (n > 0) return (size_t)n;
        if (n != REVDIAL_EAGAIN) s->is_deaf = 1;
    } else {
        do n = sendmsg(s->fd, &msg, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        if (n >= 0) return (size_t)n;
        if (errno != EAGAIN) s->is_deaf = 1;
    }
    s->can_write = 0;
    return 0;
}

int http_side_flush(http_side *s)
{
    while (s->out.len && s->can_write) {
        struct iovec piece = {s->out.data + s->out.at, s->out.len};
        http_bytes_take(&s->out, http_side_put(s, &piece, 1));
        if (s->is_deaf) http_bytes_free(&s->out);
    }
    return s->out.len == 0;
}

size_t http_side_unsent(const http_side *s)
{
    int bytes = 0;
#ifdef TIOCOUTQ  // SIOCOUTQ, by its other name
    if (ioctl(s->fd, TIOCOUTQ, &bytes) < 0 || bytes < 0) bytes = 0;
#endif
    return s->out.len + (size_t)bytes;
}

// ------------------------------------------------------------------------------------------------

void http_add(http_thread *t, const char *at, size_t len)
{
    union {  // sendmsg(2) changes nothing, and has no other form
        const char *from;
        char *to;
    } data = {at};
    struct iovec *last = t->piece_count ? &t->pieces[t->piece_count - 1] : NULL;
    if (len == 0) return;
    if (last && (char *)last->iov_base + last->iov_len == at) {
        last->iov_len += len;
        return;
    }
    t->pieces[t->piece_count].iov_base = data.to;
    t->pieces[t->piece_count++].iov_len = len;
}

int http_side_send(http_thread *t, http_side *s)
{
    size_t sent = 0, n;
    if (t->piece_count && !s->is_deaf && !s->out.len && s->can_write)
        sent = http_side_put(s, t->pieces, t->piece_count);
    for (int i = 0; i < t->piece_count && !s->is_deaf; i++) {
        const struct iovec *piece = &t->pieces[i];
        n = sent < piece->iov_len ? sent : piece->iov_len;
        sent -= n;
        if (n == piece->iov_len) continue;
        s->can_write = 0;
        if (http_bytes_append(&s->out, (char *)piece->iov_base + n, piece->iov_len - n) != 0)
            s->is_deaf = 1;
    }
    t->piece_count = 0;
    return s->is_deaf ? -1 : 0;
}

static void http_add_chunk(http_thread *t, http_text data)
{
    char *head = t->chunk_heads[t->piece_count];
    http_add(t, head, http_chunk_write(head, data.len));
    http_add(t, data.at, data.len);
    http_add(t, "\r\n", 2);
}

// The end of a chunked body. Returns 0, or -1: its trailers are malformed.
static int http_add_end(http_thread *t, http_body *b, http_text trailer, int is_chunked)
{
    char *at = t->written + HTTP_WRITTEN_MAX;  // behind a head that may still be to be sent
    int has_fields = trailer.len > 2;  // more than an empty line
    if (has_fields && http_trailer_parse(&t->head, b->is_answer, trailer.at, trailer.len) != 0) {
        b->problem = t->head.problem;
        return -1;
    }
    if (is_chunked) http_add(t, at, http_trailer_write(at, has_fields ? &t->head : NULL));
    return 0;
}

ptrdiff_t http_add_body(http_thread *t, http_body *b, http_text in, int is_chunked)
{
    size_t used = 0;
    while (used < in.len && b->state != HTTP_BODY_DONE && t->piece_count < HTTP_PIECES_MAX - 4) {
        http_text data;
        ptrdiff_t n = http_body_read(b, in.at + used, in.len - used, &data);
        if (n < 0) return -1;
        if (n == 0) break;
        used += (size_t)n;
        if (b->state == HTTP_BODY_DONE && b->framing == HTTP_CHUNKED) {
            if (http_add_end(t, b, data, is_chunked) != 0) return -1;
        } else if (is_chunked && data.len) {
            http_add_chunk(t, data);
        } else {
            http_add(t, data.at, data.len);
        }
    }
    return (ptrdiff_t)used;
}
