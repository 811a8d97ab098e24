// What options.c and config.c know of each other: the table of options, and values that were given.
#ifndef REVDIAL_PROGRAM_CONFIG_H
#define REVDIAL_PROGRAM_CONFIG_H

#include "program.h"

enum { PROG_NAME_MAX = 64 };  // letters of an option's name; longer ones are nobody's
// The option of both tables at that place; NULL behind the last.
const prog_option *prog_option_at(const prog_cli *cli, size_t i);
// NULL: there is none of that name.
const prog_option *prog_option_find(const prog_cli *cli, const char *name, size_t len);
// How many letters must be added, removed or changed to make one word of the other (Levenshtein).
size_t prog_distance(const char *a, const char *b);
// The option that may be meant, without any of these flags; NULL: none is like that.
const prog_option *prog_option_nearest(const prog_cli *cli, const char *name, unsigned not_flags);
// Where a configuration has the value of an option.
const void *prog_value_at(const prog_cli *cli, const prog_option *o);
// Adds a value. Returns 0 or PROG_FAILED.
int prog_give(prog_cli *cli, const prog_setting *s);
int prog_out_of_memory(const prog_cli *cli);
// Find values in the environment and in a file. Return 0 or an exit code.
int prog_take_env(prog_cli *cli);
int prog_take_file(prog_cli *cli, const char *path);
// Warns of variables REVDIAL_* that mean nothing.
void prog_warn_env(prog_log *log, const prog_cli *cli);
// Prints what counts, as a configuration file, and where each value came from.
void prog_print_config(const prog_cli *cli);
// "REVDIAL_TLS_CERT" for "tls-cert"
void prog_env_name(const char *option, char *name, size_t size);
void prog_texts_free(prog_cli *cli);

#endif  // REVDIAL_PROGRAM_CONFIG_H
