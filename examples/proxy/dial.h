// "revdial-proxy dial": standard input and output as a client's connection.
#ifndef REVDIAL_PROXY_DIAL_H
#define REVDIAL_PROXY_DIAL_H

// Runs the subcommand with the words behind "dial". Returns what to exit with.
int dial_main(char **argv);

#endif  // REVDIAL_PROXY_DIAL_H
