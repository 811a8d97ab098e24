// An independent reader of WebSocket frames (RFC 6455), one direction, byte by byte. A strict one
// notes the first rule that a careful sender would not have broken. It shares no code with the
// library.
#ifndef REVDIAL_TEST_WS_READER_H
#define REVDIAL_TEST_WS_READER_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { WS_CONT = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

typedef struct ws_reader {
    int masked;  // frames have to have a mask; else they must not
    int strict;
    uint8_t head[14];
    size_t have, need;
    uint64_t left, at;
    int opcode, in_body, over;  // over: after Close, or what follows cannot be read
    uint8_t key[4], control[125];
    size_t control_len;
    uint64_t frames, controls, largest;
    const char *wrong;  // NULL, or the first rule that was broken
    void (*payload)(void *ud, const uint8_t *bytes, size_t n);
    void (*seen)(void *ud, int opcode, const uint8_t *bytes, size_t n);  // control frames
    void *ud;
} ws_reader;

static inline void ws_wrong(ws_reader *r, const char *why)
{
    if (!r->wrong) r->wrong = why;
}

static inline void ws_frame_end(ws_reader *r)
{
    r->in_body = 0;
    r->have = 0;
    if (r->opcode < WS_CLOSE) return;
    r->controls++;
    if (r->seen) r->seen(r->ud, r->opcode, r->control, r->control_len);
    if (r->opcode == WS_CLOSE) r->over = 1;
}

static inline void ws_head_strict(ws_reader *r, unsigned length)
{
    if (r->head[0] >> 4 != 8) ws_wrong(r, "reserved bits, or a frame that is not whole");
    if (r->opcode != WS_BINARY && (r->opcode < WS_CLOSE || r->opcode > WS_PONG))
        ws_wrong(r, "an opcode that is not ours");
    if (r->opcode >= WS_CLOSE && length > 125) ws_wrong(r, "a control frame over 125 bytes");
    if (length == 126 && r->left < 126) ws_wrong(r, "16 bits for a length under 126");
    if (length == 127 && r->left < 65536) ws_wrong(r, "64 bits for a length under 65536");
    if (r->opcode == WS_BINARY && (r->left == 0 || r->left > 65536))
        ws_wrong(r, "a data frame that is empty or over 65536 bytes");
    if (r->opcode == WS_BINARY && r->left > r->largest) r->largest = r->left;
}

static inline void ws_head_done(ws_reader *r)
{
    unsigned length = r->head[1] & 127u;
    size_t at = 2, wide = length == 126 ? 2 : length == 127 ? 8 : 0;
    r->left = wide ? 0 : length;
    for (size_t i = 0; i < wide; i++) r->left = r->left << 8 | r->head[at++];
    if (r->masked) {
        if (!memcmp(r->key, r->head + at, 4) && r->frames)
            ws_wrong(r, "the key of the frame before");
        memcpy(r->key, r->head + at, 4);
    }
    r->opcode = r->head[0] & 15;
    r->at = 0;
    r->control_len = 0;
    r->in_body = 1;
    r->frames++;
    if (r->strict) ws_head_strict(r, length);
    if (!r->left) ws_frame_end(r);
}

static inline void ws_head_byte(ws_reader *r, uint8_t c)
{
    r->head[r->have++] = c;
    if (r->have == 1) r->need = 2;
    if (r->have == 2) {
        unsigned length = c & 127u;
        if ((c >> 7) != r->masked) {
            ws_wrong(r, r->masked ? "no mask" : "a mask");
            r->over = 1;
            return;
        }
        r->need = 2 + (length == 126 ? 2u : length == 127 ? 8u : 0u) + (r->masked ? 4u : 0u);
    }
    if (r->have == r->need && r->have >= 2) ws_head_done(r);
}

static inline void ws_read(ws_reader *r, const void *data, size_t n)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = bytes[i];
        if (r->over) {
            if (r->strict) ws_wrong(r, "bytes after Close");
            return;
        }
        if (!r->in_body) {
            ws_head_byte(r, c);
            continue;
        }
        if (r->masked) c ^= r->key[r->at % 4];
        r->at++;
        r->left--;
        if (r->opcode >= WS_CLOSE && r->control_len < sizeof r->control)
            r->control[r->control_len++] = c;
        if (r->opcode < WS_CLOSE && r->payload) r->payload(r->ud, &c, 1);
        if (!r->left) ws_frame_end(r);
    }
}

#endif
