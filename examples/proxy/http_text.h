// Pieces of text, and the characters that may be in them (RFC 9110, RFC 3986).
#ifndef REVDIAL_HTTP_TEXT_H
#define REVDIAL_HTTP_TEXT_H

#include <stddef.h>
#include <stdint.h>

typedef struct http_text {
    const char *at;
    size_t len;
} http_text;

// A set of characters: a bit for each.
typedef struct http_set {
    uint32_t bits[8];
} http_set;

extern const http_set http_token;        // tchar of RFC 9110 section 5.6.2
extern const http_set http_capital;      // of methods
extern const http_set http_visible;      // of what ASCII has to see, without '#'
extern const http_set http_target_set;   // the same and all above ASCII: of targets
extern const http_set http_text_set;     // of field values
extern const http_set http_answer_set;   // the same, in responses
extern const http_set http_name_set;     // of host names
extern const http_set http_address_set;  // of addresses in brackets

int http_has(const http_set *set, char c);
// How many characters from the beginning are of the set.
size_t http_span(const http_set *set, http_text text);
char http_lower(char c);
// The value of a hexadecimal digit, or -1.
int http_hex(char c);
int http_is_blank(char c);
http_text http_part(http_text text, size_t from, size_t to);
// Without blanks at both ends.
http_text http_trim(http_text text);
// Regardless of case:
int http_texts_equal(http_text a, http_text b);
int http_text_is(http_text text, const char *word);
int http_text_begins(http_text text, const char *word);
// Takes the next item off a comma list (RFC 9110 section 5.6.1), without its blanks; len 0 if it is
// empty.
http_text http_list_next(http_text *list);

#endif  // REVDIAL_HTTP_TEXT_H
