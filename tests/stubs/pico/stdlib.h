/* Just enough of the Pico SDK's interface to compile and run examples/projects/pico on a desktop, once. */
#ifndef PICO_STDLIB_H
#define PICO_STDLIB_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

static inline bool stdio_init_all(void) { return true; }
static inline void sleep_ms(uint32_t ms) {
    (void)ms;
    exit(0);
}

#endif
