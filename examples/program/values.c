// Numbers, durations and rates as people write them.
#include <limits.h>
#include <string.h>

#include "program.h"

#define PROG_SPEED_MIN 1000u  // what the library takes

int64_t prog_parse_amount(const char *text, int is_duration)
{
    static const struct {
        const char *unit;
        int64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    int64_t value = 0;
    size_t i;
    const char *unit = text;
    for (; *unit >= '0' && *unit <= '9' && value <= INT_MAX; unit++)
        value = value * 10 + (*unit - '0');
    if (unit == text || value > INT_MAX) return -1;
    if (!is_duration || (value == 0 && !*unit)) return *unit ? -1 : value;
    for (i = 0; i < sizeof units / sizeof units[0]; i++)
        if (strcmp(unit, units[i].unit) == 0) return value * units[i].ms;
    return -1;
}

int prog_read_number(const char *text, unsigned max, unsigned *number)
{
    int64_t n = prog_parse_amount(text, 0);
    if (n < 1 || n > max) return -1;
    *number = (unsigned)n;
    return 0;
}

int prog_read_rate(const char *value, uint64_t *to)
{
    static const char units[] = " kMG";
    const char *unit = value;
    size_t power = 0;
    uint64_t rate = 0;
    for (; *unit >= '0' && *unit <= '9' && rate <= PROG_SPEED_MAX; unit++)
        rate = rate * 10 + (uint64_t)(*unit - '0');
    while (units[power] && units[power] != *unit) power++;
    if (!units[power]) power = 0;  // no unit that is known
    if (power > 0) unit++;
    for (; power > 0 && rate <= PROG_SPEED_MAX; power--) rate *= 1000;
    *to = rate;
    return !*unit && rate >= PROG_SPEED_MIN && rate <= PROG_SPEED_MAX ? 0 : -1;
}
