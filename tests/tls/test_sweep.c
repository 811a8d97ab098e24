// Each call of the system that fails, as in build/test_world, with TLS between proxy and agent: by
// mbedTLS, or by OpenSSL where the programs have that. The world is the simulated one; only the
// files of the certificates are read from the system.
#define REVDIAL_IMPLEMENTATION  // by world_names.h, against the simulated system
#include "world_sweep.h"

// Its sockets are the world's; files, and locks that no fiber keeps over a wait, are the system's.
#undef close
#undef pthread_mutex_destroy
#undef pthread_mutex_init
#undef pthread_mutex_lock
#undef pthread_mutex_t
#undef pthread_mutex_unlock
#undef read
#undef recv
#undef send
#define recv(...) fault_recv(__VA_ARGS__)
#define send(...) fault_send(__VA_ARGS__)
#define setsockopt(...) fault_setsockopt(__VA_ARGS__)
#define file tls_file  // the world has another one
#define calloc(count, size) (fault_hits(FAULT_memory) ? NULL : calloc(count, size))
#ifdef PROGRAM_TLS_OPENSSL
#define TRANSPORT_OPENSSL_IMPLEMENTATION
#include "examples/transport_openssl.h"
#else
#define REVDIAL_TLS_IMPLEMENTATION
#include "revdial_tls.h"
#endif

static const char *file_of(char *path, const char *name)
{
    const char *dir = getenv("REVDIAL_TLS_CERTS");
    snprintf(path, 300, "%s/%s", dir ? dir : ".", name);
    return path;
}

static int tls_open(revdial_tls **server, revdial_tls **client)
{
    char ca[300], cert[300], key[300];
    revdial_err err = {0};
    revdial_tls_config with_cert = {NULL, file_of(cert, "server.pem"), file_of(key, "server.key")};
    revdial_tls_config with_ca = {file_of(ca, "ca.pem"), NULL, NULL};
    *server = revdial_tls_server(&with_cert, &err);
    *client = *server ? revdial_tls_client(&with_ca, &err) : NULL;
    return *client ? 1 : test_fail(__FILE__, __LINE__, "%s", err.msg);
}

// One run in so many: a handshake takes longer than all the rest of it.
enum { ONE_IN = 200, ONE_IN_THOROUGH = 10 };

static void sweep_by_tls(enum sweep_way way)
{
    CHECK(sweep_way(way, 0, getenv("TEST_THOROUGH") ? ONE_IN_THOROUGH : ONE_IN) > 10);
}

static void with_tls(void (*run)(enum sweep_way way), enum sweep_way way)
{
    revdial_tls *server = NULL, *client = NULL;
    if (tls_open(&server, &client)) {
        people_tls[0] = server;
        people_tls[1] = client;
        run(way);
    }
    people_tls[0] = people_tls[1] = NULL;
    revdial_tls_free(client);
    revdial_tls_free(server);
}

TEST(whatever_call_fails_under_tls_nothing_crashes_leaks_lies_or_lasts)
{
    with_tls(sweep_by_tls, SWEEP_TARGET);
}

TEST(whatever_call_fails_under_tls_and_a_websocket_nothing_crashes_leaks_lies_or_lasts)
{
    with_tls(sweep_by_tls, SWEEP_NAME);
}

TEST(short_reads_and_writes_and_signals_in_every_call_lose_nothing_under_tls)
{
    for (int way = 0; way < SWEEP_HANDLER; way++) with_tls(sweep_interrupted, (enum sweep_way)way);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
