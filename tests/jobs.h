/* jobs.h - ways to run pieces of work, for tests: on the caller's thread, backwards, on pools. Needs l3.h. */
#ifndef TEST_JOBS_H
#define TEST_JOBS_H

#include "guard.h"
#include "test.h"

static inline void run_backwards(void *user, uint32_t n, void (*piece)(void *arg, uint32_t i), void *arg) {
    uint32_t *pieces = (uint32_t *)user;
    *pieces += n;
    while (n) piece(arg, --n);
}

static inline l3_jobs backwards(void) {
    static uint32_t pieces;
    l3_jobs         jobs;
    jobs.user  = &pieces;
    jobs.width = 5;
    jobs.run   = run_backwards;
    return jobs;
}

#ifdef L3_THREADS
enum { POOLS = 4 };

static const uint32_t pool_threads[POOLS] = {1, 2, 3, 8};

typedef struct pools {
    guard    mem[POOLS];
    l3_pool *pool[POOLS];
} pools;

static inline pools *all_pools(void) {
    static pools p;
    for (int i = 0; i < POOLS && !p.mem[i].mem; i++) {
        p.mem[i] = guard_new(l3_pool_size(), L3_ALIGN, 0xcd);
        CHECK_EQ(l3_pool_init(&p.pool[i], pool_threads[i], p.mem[i].mem, l3_pool_size(), NULL), L3_OK);
    }
    return &p;
}
#endif

static inline void free_pools(void) {
#ifdef L3_THREADS
    pools *p = all_pools();
    for (int i = 0; i < POOLS; i++) {
        l3_pool_free(p->pool[i]);
        CHECK(guard_free(&p->mem[i]));
    }
#endif
}

enum { JOBS_KINDS = 6 };

/* Kind 0: none, 1: backwards, 2 ... 5: pools of 1, 2, 3 and 8 threads. */
static inline l3_jobs jobs_of(uint32_t kind) {
    const l3_jobs none = {NULL, 0, NULL};
    if (kind == 1) return backwards();
#ifdef L3_THREADS
    if (kind >= 2) return l3_pool_jobs(all_pools()->pool[kind - 2]);
#endif
    return none;
}

#endif
