// The suite of joined streams once more, over the WebSocket carrier.
#define WORLD_SCHEME "ws"
#include "test_join.c"
