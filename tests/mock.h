/* mock.h - an l3_source that keeps the library to the rules of l3_source: bounds, alignment of offsets, sizes and
 * destinations, one read under way at a time, every start waited for. What a started read will bring is there only
 * after wait; until then its destination holds garbage. Any call can be made to fail. Needs l3.h. */
#ifndef TEST_MOCK_H
#define TEST_MOCK_H

#include <stdio.h>
#include <string.h>

enum { MOCK_START = 1, MOCK_HINT = 2, MOCK_NO_READ = 4, MOCK_FAILURE = -4242 };

typedef struct mock {
    l3_source            source;
    const unsigned char *bytes;
    uint32_t             map_some; /* 0: nothing is mapped, 1: everything, n: all but about 1 of n ranges */
    uint32_t             reads, starts, waits, maps, hints;
    uint64_t             asked;            /* bytes that were to be read or started */
    uint32_t             calls, fail_at;   /* read, start and wait so far; the one that fails, counted from 1 */
    unsigned char       *touched, *hinted; /* (size,) how often each byte was read or hinted; or NULL */
    unsigned char       *dst;              /* of the read under way, or NULL */
    uint64_t             off;
    size_t               n;
    const unsigned char *mem; /* destinations lie in this block; or NULL */
    size_t               mem_size;
    int                  broken; /* rules */
} mock;

static inline void mock_rule(mock *m, int ok, const char *rule) {
    if (ok) return;
    if (m->broken++ < 5) fprintf(stderr, "  mock source: %s\n", rule);
}

static inline int mock_apart(const unsigned char *a, size_t n, const unsigned char *b, size_t m) {
    return a + n <= b || b + m <= a;
}

static inline void mock_check(mock *m, uint64_t off, const unsigned char *dst, size_t n) {
    const uint64_t mask = (m->source.align > 1 ? m->source.align : 1) - 1;
    m->asked += n;
    mock_rule(m, n > 0 && off <= m->source.size && n <= m->source.size - off, "outside the source");
    mock_rule(m, (off & mask) == 0, "offset not aligned");
    mock_rule(m, ((off + n) & mask) == 0 || off + n == m->source.size, "end not aligned");
    mock_rule(m, ((uintptr_t)dst & mask) == 0, "destination not aligned");
    mock_rule(m, !m->mem || (dst >= m->mem && dst + n <= m->mem + m->mem_size), "destination outside the block");
    mock_rule(m, !m->dst || mock_apart(dst, n, m->dst, m->n), "destination of the read under way used");
}

static inline int mock_fails(mock *m) { return ++m->calls == m->fail_at; }

static inline void mock_touch(unsigned char *count, uint64_t off, size_t n) {
    for (size_t i = 0; count && i < n; i++) count[off + i]++;
}

static inline const void *mock_map(void *user, uint64_t off, size_t n) {
    mock *m = (mock *)user;
    m->maps++;
    mock_rule(m, off <= m->source.size && n <= m->source.size - off, "map outside the source");
    if (m->map_some > 1 && (uint32_t)(off * 2654435761u >> 7) % m->map_some == 0) return NULL;
    return m->bytes + off;
}

static inline int mock_read(void *user, uint64_t off, void *dst, size_t n) {
    mock *m = (mock *)user;
    m->reads++;
    mock_check(m, off, (unsigned char *)dst, n);
    if (mock_fails(m)) {
        memset(dst, 0xff, n);
        return MOCK_FAILURE;
    }
    mock_touch(m->touched, off, n);
    memcpy(dst, m->bytes + off, n);
    return 0;
}

static inline int mock_start(void *user, uint64_t off, void *dst, size_t n) {
    mock *m = (mock *)user;
    m->starts++;
    mock_rule(m, !m->dst, "second start");
    mock_check(m, off, (unsigned char *)dst, n);
    memset(dst, 0xff, n);
    if (mock_fails(m)) return MOCK_FAILURE;
    m->dst = (unsigned char *)dst;
    m->off = off;
    m->n   = n;
    return 0;
}

static inline int mock_wait(void *user) {
    mock          *m   = (mock *)user;
    unsigned char *dst = m->dst;
    m->waits++;
    mock_rule(m, dst != NULL, "wait without a start");
    m->dst = NULL;
    if (!dst || mock_fails(m)) return MOCK_FAILURE;
    for (size_t i = 0; i < m->n; i++) mock_rule(m, dst[i] == 0xff, "destination touched before wait");
    mock_touch(m->touched, m->off, m->n);
    memcpy(dst, m->bytes + m->off, m->n);
    return 0;
}

static inline void mock_hint(void *user, uint64_t off, size_t n) {
    mock *m = (mock *)user;
    m->hints++;
    mock_rule(m, n > 0 && off <= m->source.size && n <= m->source.size - off, "hint outside the source");
    mock_touch(m->hinted, off, n);
}

/* The mock must not move while it is used. */
static inline void mock_init(mock *m, const void *bytes, size_t size, uint32_t align, uint32_t map_some,
                             unsigned flags) {
    memset(m, 0, sizeof *m);
    m->bytes        = (const unsigned char *)bytes;
    m->map_some     = map_some;
    m->source.user  = m;
    m->source.size  = size;
    m->source.align = align;
    m->source.map   = map_some ? mock_map : NULL;
    m->source.read  = flags & MOCK_NO_READ ? NULL : mock_read;
    m->source.start = flags & MOCK_START ? mock_start : NULL;
    m->source.wait  = flags & MOCK_START ? mock_wait : NULL;
    m->source.hint  = flags & MOCK_HINT ? mock_hint : NULL;
}

static inline void mock_reset_counts(mock *m) {
    m->reads = m->starts = m->waits = m->maps = m->hints = m->calls = 0;
    m->asked                                                        = 0;
}

/* Nothing under way, no rule broken. */
static inline int mock_clean(const mock *m) { return !m->dst && m->broken == 0; }

#endif
