// Checks wrong credentials, so that run.sh can count the instructions: they must not tell how many
// rows a user has, or of what form.     work SCHEME USER SECRET
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdlib.h>

#define HASH "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define LONG "a password of some words that is longer than one block of the hash, and then some"

enum { BASIC = REVDIAL_AUTH_BASIC, DIGEST = REVDIAL_AUTH_DIGEST, BEARER = REVDIAL_AUTH_BEARER };

static const revdial_credential rows[] = {{"s3cret", "plain", "*", BASIC | DIGEST},
                                          {"sha256:" HASH, "hashed", "*", BASIC},
                                          {"ha1:" HASH, "hashed", "*", DIGEST},
                                          {LONG, "longer", "*", BASIC | DIGEST},
                                          {"s3cret", "twice", "cam-1", BASIC},
                                          {"sha256:" HASH, "twice", "cam-2", BASIC},
                                          {"s3cret", "twice", "cam-1", DIGEST},
                                          {"ha1:" HASH, "twice", "cam-2", DIGEST},
                                          {"s3cret", "thrice", "*", BASIC},
                                          {"sha256:" HASH, "thrice", "*", BASIC},
                                          {LONG, "thrice", "*", BASIC},
                                          {"s3cret", "thrice", "*", DIGEST},
                                          {"ha1:" HASH, "thrice", "*", DIGEST},
                                          {LONG, "thrice", "*", DIGEST},
                                          {"t0ken", "robot", "*", BEARER},
                                          {"sha256:" HASH, "robot", "*", BEARER}};

int main(int argc, char **argv)
{
    revdial_digest d = {"revdial", HASH, "/revdial", "00000001", "0a4f113b", HASH};
    revdial_auth_req req = {0};
    if (argc != 4) return 2;
    req.scheme = (unsigned)atoi(argv[1]);
    req.user = argv[2];
    req.secret = argv[3];
    req.name = "cam-1";
    req.digest = req.scheme == DIGEST ? &d : NULL;
    return revdial_auth_verify(&req, rows, sizeof rows / sizeof *rows, NULL) != REVDIAL_EAUTH;
}
