// A text that grows, and tables.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "admin.h"

// Makes room for so many more letters and a NUL.
static int prog_out_room(prog_out *t, size_t more)
{
    size_t size = t->size ? t->size : 1024;
    char *at;
    while (size - t->len <= more && size < SIZE_MAX / 2) size *= 2;
    if (t->failed || size - t->len <= more) return 0;
    if (size == t->size) return 1;
    at = realloc(t->at, size);
    t->failed = !at;
    if (!at) return 0;
    t->at = at;
    t->size = size;
    return 1;
}

static void prog_out_put(prog_out *t, const char *form, va_list args)
{
    va_list again;
    int n;
    va_copy(again, args);
    n = vsnprintf(NULL, 0, form, again);
    va_end(again);
    if (n < 0 || !prog_out_room(t, (size_t)n)) return;
    t->len += (size_t)vsnprintf(t->at + t->len, t->size - t->len, form, args);
}

void prog_out_add(prog_out *t, const char *form, ...)
{
    va_list args;
    va_start(args, form);
    prog_out_put(t, form, args);
    va_end(args);
}

// The library writes a value for a log as a word, or where that is needed as a JSON string.
void prog_out_json(prog_out *t, const char *value)
{
    char field[2048] = "";
    const char *text = field + strlen("x=");
    revdial_log_field(field, sizeof field, "x", value);
    if (!field[0])
        prog_out_add(t, "\"\"");
    else if (*text == '"')
        prog_out_add(t, "%s", text);
    else
        prog_out_add(t, "\"%s\"", text);
}

void prog_out_free(prog_out *t)
{
    free(t->at);
    memset(t, 0, sizeof *t);
}

void prog_table_cell(prog_table *t, const char *form, ...)
{
    size_t from = t->cells.len;
    va_list args;
    va_start(args, form);
    prog_out_put(&t->cells, form, args);
    va_end(args);
    for (; from < t->cells.len; from++)
        if (t->cells.at[from] < ' ' || t->cells.at[from] > '~') t->cells.at[from] = '?';
    if (!prog_out_room(&t->cells, 1)) return;
    t->cells.at[t->cells.len++] = '\0';
    t->cells.at[t->cells.len] = '\0';
    t->count++;
}

void prog_table_end(prog_table *t, prog_out *out)
{
    size_t *widths = calloc(t->columns, sizeof *widths);
    const char *cell = t->cells.at;
    out->failed |= t->cells.failed || !widths;
    for (size_t i = 0; widths && i < t->count; i++, cell += strlen(cell) + 1)
        if (strlen(cell) > widths[i % t->columns]) widths[i % t->columns] = strlen(cell);
    cell = t->cells.at;
    for (size_t i = 0; widths && i < t->count; i++, cell += strlen(cell) + 1) {
        int is_last = i % t->columns == t->columns - 1;
        prog_out_add(out, "%-*s%s", is_last ? 0 : (int)widths[i % t->columns], cell,
                     is_last ? "\n" : "  ");
    }
    free(widths);
    prog_out_free(&t->cells);
    t->count = 0;
}
