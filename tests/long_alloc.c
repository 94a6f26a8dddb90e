/* The allocation of 100 million tokens in a stated memory: the dictionary's block and nothing else. Tokens come from a
 * Zipf-like source with repeated phrases, as text has. Once with a dictionary that holds every codeword, once with one that
 * fills up; both must place every row and stay within their blocks. */
#include "../l3.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

enum { VOCAB = 32000, ROWS = 710000, MAX = 512, PHRASES = 20000, PHRASE = 24, DOCUMENT = 2000 };

static uint64_t next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z          = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    return z ^ z >> 27;
}

/* Roughly 1 / rank: the density of 2^u for a uniform u. */
static int32_t zipf(uint64_t *state, uint32_t n) {
    double x = 1;
    for (uint64_t r = next(state), bits = 0; bits < 15; bits++, r >>= 1) x *= r & 1 ? 2 : 1;
    x *= 1 + (double)(next(state) >> 11) / 9007199254740992.0;
    return (int32_t)((uint32_t)(x - 1) % n);
}

static int32_t phrases[PHRASES][PHRASE];

static void make_document(uint64_t *state, int32_t *doc) {
    for (int n = 0; n < DOCUMENT;) {
        const int32_t *p     = phrases[zipf(state, PHRASES)];
        const int      start = (int)(next(state) % PHRASE);
        for (int i = start; i < PHRASE && n < DOCUMENT; i++) doc[n++] = p[i];
        if (n < DOCUMENT) doc[n++] = zipf(state, VOCAB);
    }
}

static long peak_bytes(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_maxrss * 1024L;
}

static int check(const int32_t *offsets) {
    if (offsets[0] != 0 || offsets[VOCAB] != ROWS) return 0;
    for (int t = 0; t < VOCAB; t++)
        if (offsets[t + 1] - offsets[t] < 1 || offsets[t + 1] - offsets[t] > MAX) return 0;
    return 1;
}

static int run(uint32_t codewords, uint64_t tokens, int must_fill) {
    static int32_t  doc[DOCUMENT], offsets[VOCAB + 1];
    const size_t    size = l3_alloc_size(VOCAB, codewords);
    unsigned char  *raw = (unsigned char *)malloc(size + L3_ALIGN), *mem = raw + (L3_ALIGN - (uintptr_t)raw % L3_ALIGN);
    uint64_t        state = 1;
    l3_alloc       *alloc;
    l3_alloc_report report;
    if (!raw || l3_alloc_init(&alloc, VOCAB, codewords, mem, size, NULL) != L3_OK) return 0;
    for (uint64_t n = 0; n < tokens; n += DOCUMENT) {
        make_document(&state, doc);
        if (l3_alloc_add(alloc, doc, DOCUMENT, NULL) != L3_OK) return 0;
        l3_alloc_end_document(alloc);
    }
    if (l3_alloc_finish(alloc, ROWS, MAX, offsets, &report, NULL) != L3_OK) return 0;
    const long peak = peak_bytes(), bound = (long)size + (32L << 20);
    fprintf(stderr, "%llu tokens, %llu codewords of %u, full after %llu, block %zu bytes, peak %ld bytes\n",
            (unsigned long long)report.tokens, (unsigned long long)report.codewords, codewords,
            (unsigned long long)report.full_after, size, peak);
    free(raw);
    return check(offsets) && peak <= bound && (report.full_after != 0) == must_fill && report.tokens == tokens;
}

int main(int argc, char **argv) {
    const uint64_t tokens = argc > 1 ? strtoull(argv[1], NULL, 10) : 100000000;
    uint64_t       state  = 7;
    for (int i = 0; i < PHRASES; i++)
        for (int j = 0; j < PHRASE; j++) phrases[i][j] = zipf(&state, VOCAB);
    int passed = run(1u << 20, tokens, 1); /* the smaller block first: the peak is of the whole process */
    passed += run(1u << 24, tokens, 0);
    printf("long_alloc: %d passed, %d failed, 0 skipped\n", passed, 2 - passed);
    return passed == 2 ? 0 : 1;
}
