// The dials' suite once more, over the WebSocket carrier.
#define WORLD_SCHEME "ws"
#include "test_dial.c"
