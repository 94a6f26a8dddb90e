/* guard.h - a block of exactly so many bytes, aligned to `align` and to no more, filled, with guards on both sides.
 * Under AddressSanitizer the guards may not even be read. */
#ifndef TEST_GUARD_H
#define TEST_GUARD_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GUARD_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define GUARD_ASAN 1
#endif
#ifdef GUARD_ASAN
#include <sanitizer/asan_interface.h>
#endif

enum { GUARD_BYTES = 256, GUARD_VALUE = 0x5a };

typedef struct guard {
    unsigned char *whole;
    size_t         whole_size;
    unsigned char *mem;
    size_t         size;
} guard;

static inline guard guard_new(size_t size, size_t align, int fill) {
    guard g;
    g.size       = size;
    g.whole_size = size + 2 * GUARD_BYTES + 2 * align;
    g.whole      = (unsigned char *)malloc(g.whole_size);
    if (!g.whole) abort();
    memset(g.whole, GUARD_VALUE, g.whole_size);
    g.mem = g.whole + GUARD_BYTES;
    while ((uintptr_t)g.mem % (2 * align) != align) g.mem++;
    memset(g.mem, fill, size);
#ifdef GUARD_ASAN
    __asan_poison_memory_region(g.whole, (size_t)(g.mem - g.whole));
    __asan_poison_memory_region(g.mem + size, g.whole_size - size - (size_t)(g.mem - g.whole));
#endif
    return g;
}

/* Frees the block; 0 if something was written outside of it. */
static inline int guard_free(guard *g) {
    size_t i, bad = 0, at = (size_t)(g->mem - g->whole);
#ifdef GUARD_ASAN
    __asan_unpoison_memory_region(g->whole, g->whole_size);
#endif
    for (i = 0; i < g->whole_size; i++) bad += (i < at || i >= at + g->size) && g->whole[i] != GUARD_VALUE;
    free(g->whole);
    g->whole = g->mem = NULL;
    return bad == 0;
}

#endif
