/* string_set.h - a set of byte strings, numbered 0, 1, 2, ... in the order in which they were added.
 *
 *     string_set set = {0};
 *     bool       added;
 *     uint32_t   number = string_set_add(&set, "word", 4, &added);
 *     string_set_free(&set);
 *
 * A hash table with linear probing; the strings lie one after another in one block. Whoever needs more than the number
 * keeps an array beside it. */
#ifndef STRING_SET_H
#define STRING_SET_H

#include "cli.h"

typedef struct string_slot {
    uint32_t hash, number; /* number + 1; 0: free */
} string_slot;

typedef struct string_set {
    uint32_t     n;
    uint64_t     n_slots; /* a power of two, or 0 */
    string_slot *slots;
    size_t      *ends; /* (n,) where each string ends in bytes */
    char        *bytes;
    size_t       room_ends, room_bytes;
} string_set;

/* Eight bytes at a time. Nothing that is written anywhere depends on the hash. */
static inline uint32_t string_hash(const char *s, size_t n) {
    const uint64_t k = 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio: odd, bits well mixed */
    uint64_t       h = n * k, v = 0;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&v, s, 8);
        h = (h ^ v) * k;
        h ^= h >> 32;
    }
    for (v = 0; n > 0; n--) v = v << 8 | (unsigned char)s[n - 1];
    h = (h ^ v) * k;
    return (uint32_t)((h ^ h >> 32) & UINT32_MAX);
}

static inline const char *string_set_get(const string_set *s, uint32_t number, size_t *n) {
    const size_t start = number ? s->ends[number - 1] : 0;
    *n                 = s->ends[number] - start;
    return s->bytes + start;
}

/* Room for n items of a growing array, and as many again; *room counts items. */
static inline void *string_set_room(void *block, size_t *room, size_t n, size_t size) {
    if (n <= *room) return block;
    *room     = 2 * n + 64;
    void *now = *room > SIZE_MAX / size ? NULL : realloc(block, *room * size);
    if (!now) cli_fail("no memory is left for %zu different strings", n);
    return now;
}

static inline void string_set_place(string_set *s, uint32_t hash, uint32_t number) {
    uint64_t i = hash & (s->n_slots - 1);
    while (s->slots[i].number) i = (i + 1) & (s->n_slots - 1);
    s->slots[i] = (string_slot){hash, number + 1};
}

static inline void string_set_rehash(string_set *s) {
    string_slot   *old   = s->slots;
    const uint64_t n_old = s->n_slots;
    s->n_slots           = n_old ? 2 * n_old : 1024;
    s->slots             = (string_slot *)cli_malloc(s->n_slots * sizeof *s->slots);
    for (uint64_t i = 0; i < n_old; i++)
        if (old[i].number) string_set_place(s, old[i].hash, old[i].number - 1);
    free(old);
}

/* The number of a string whose hash is known, or UINT32_MAX. */
static inline uint32_t string_set_look(const string_set *s, const char *string, size_t n, uint32_t hash) {
    for (uint64_t i = hash; s->n_slots; i++) {
        const string_slot slot = s->slots[i & (s->n_slots - 1)];
        size_t            length;
        if (!slot.number) break;
        if (slot.hash != hash) continue;
        const char *here = string_set_get(s, slot.number - 1, &length);
        if (length == n && memcmp(here, string, n) == 0) return slot.number - 1;
    }
    return UINT32_MAX;
}

/* The number of a string, or UINT32_MAX. */
static inline uint32_t string_set_find(const string_set *s, const char *string, size_t n) {
    return string_set_look(s, string, n, string_hash(string, n));
}

/* The number of a string, which is added if it is new: *added says so. */
static inline uint32_t string_set_add(string_set *s, const char *string, size_t n, bool *added) {
    const uint32_t hash = string_hash(string, n), there = string_set_look(s, string, n, hash);
    *added = there == UINT32_MAX;
    if (!*added) return there;
    const size_t start = s->n ? s->ends[s->n - 1] : 0;
    if (s->n == UINT32_MAX - 1) cli_fail("there are more than %" PRIu32 " different strings", s->n);
    if (s->n >= s->n_slots / 4 * 3) string_set_rehash(s);
    s->ends       = (size_t *)string_set_room(s->ends, &s->room_ends, (size_t)s->n + 1, sizeof *s->ends);
    s->bytes      = (char *)string_set_room(s->bytes, &s->room_bytes, start + n, 1);
    s->ends[s->n] = start + n;
    if (n) memcpy(s->bytes + start, string, n);
    string_set_place(s, hash, s->n);
    return s->n++;
}

/* Bytes in use. */
static inline uint64_t string_set_size(const string_set *s) {
    return s->n_slots * sizeof *s->slots + s->n * sizeof *s->ends + (s->n ? s->ends[s->n - 1] : 0);
}

/* Forgets every string and keeps the memory. */
static inline void string_set_clear(string_set *s) {
    if (s->n) memset(s->slots, 0, (size_t)s->n_slots * sizeof *s->slots);
    s->n = 0;
}

static inline void string_set_free(string_set *s) {
    free(s->slots);
    free(s->ends);
    free(s->bytes);
    memset(s, 0, sizeof *s);
}

#endif /* STRING_SET_H */
