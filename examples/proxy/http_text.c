// Pieces of text: see http_text.h.
#include "http_text.h"

#include <string.h>

// tchar of 9110:5.6.2
const http_set http_token = {{0, 0x03ff6cfa, 0xc7fffffe, 0x57ffffff}};
// Of methods: A-Z, '-' and '_', as nginx has it. No registered one has others.
const http_set http_capital = {{0, 0x00002000, 0x87fffffe, 0}};
// What can be seen, in ASCII, except '#'
const http_set http_visible = {{0, 0xfffffff6, 0xffffffff, 0x7fffffff}};
// Of targets. Browsers send more than RFC 3986 allows, and curl a path as it was typed, in UTF-8.
const http_set http_target_set = {{0, 0xfffffff6, 0xffffffff, 0x7fffffff, 0xffffffff, 0xffffffff,
                                   0xffffffff, 0xffffffff}};
// Of field values (9110:5.5): no control character except HTAB
const http_set http_text_set = {
    {0x200, 0xffffffff, 0xffffffff, 0x7fffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}};
// The same of answers: all but NUL and the ends of lines
const http_set http_answer_set = {{0xffffdbfe, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
                                   0xffffffff, 0xffffffff, 0xffffffff}};
// Of host names: letters, digits, '-', '.', '_'
const http_set http_name_set = {{0, 0x03ff6000, 0x87fffffe, 0x07fffffe}};
// Of addresses in brackets: hexadecimal digits, ':', '.'
const http_set http_address_set = {{0, 0x07ff4000, 0x0000007e, 0x0000007e}};

int http_has(const http_set *set, char c)
{
    unsigned char u = (unsigned char)c;
    return set->bits[u >> 5] >> (u & 31) & 1;
}

size_t http_span(const http_set *set, http_text text)
{
    size_t n = 0;
    while (n < text.len && http_has(set, text.at[n])) n++;
    return n;
}

char http_lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

int http_hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c = http_lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int http_is_blank(char c)
{
    return c == ' ' || c == '\t';
}

http_text http_part(http_text text, size_t from, size_t to)
{
    http_text part = {text.at + from, to - from};
    return part;
}

http_text http_trim(http_text text)
{
    while (text.len && http_is_blank(text.at[text.len - 1])) text.len--;
    while (text.len && http_is_blank(*text.at)) text.at++, text.len--;
    return text;
}

int http_texts_equal(http_text a, http_text b)
{
    size_t i = 0;
    if (a.len != b.len) return 0;
    while (i < a.len && http_lower(a.at[i]) == http_lower(b.at[i])) i++;
    return i == a.len;
}

int http_text_is(http_text text, const char *word)
{
    http_text other = {word, strlen(word)};
    return http_texts_equal(text, other);
}

int http_text_begins(http_text text, const char *word)
{
    size_t len = strlen(word);
    return text.len >= len && http_text_is(http_part(text, 0, len), word);
}

http_text http_list_next(http_text *list)
{
    const char *comma = list->len ? memchr(list->at, ',', list->len) : NULL;
    size_t len = comma ? (size_t)(comma - list->at) : list->len;
    http_text item = http_trim(http_part(*list, 0, len));
    *list = http_part(*list, comma ? len + 1 : len, list->len);
    return item;
}
