/* fuzz_model.c - a libFuzzer target: any bytes as a model file, opened, verified, tokenized with and run.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz_model.c -o fuzz && ./fuzz corpus    (see fuzz_seeds.c)
 *     cc -DFUZZ_STANDALONE tests/fuzz_model.c -o rerun && ./rerun crash-...
 *
 * The last byte of a file says how it is read: bit 0 maps it, bits 1 and 2 the alignment, bit 3 start and wait. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include <stdio.h>

#include "live.h"
#include "mock.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char        text[]    = "the cat\n <s> \xe2\x98\x83\xff </s>";
    static const live_limits limits[2] = {{8u << 20, 0}, {8u << 20, 7}};
    const unsigned           how       = size ? data[size - 1] : 0;
    l3_error                 err;
    int                      code;
    mock                     m;
    mock_init(&m, data, size, 1u << 3 * (how >> 1 & 3), how & 1, how & 8 ? MOCK_START | MOCK_HINT : 0);
    if (!live(&m.source, text, sizeof text - 1, &limits[how >> 4 & 1], &code, &err)) abort();
    if (!mock_clean(&m)) abort();
    return 0;
}

#ifdef FUZZ_STANDALONE
static int run_file(const char *path) {
    FILE    *f = fopen(path, "rb");
    size_t   n = 0, room = 1u << 24;
    uint8_t *all = (uint8_t *)malloc(room), *exact;
    if (f && all) n = fread(all, 1, room, f);
    if (!f || !all) return fprintf(stderr, "cannot read %s\n", path), 1;
    exact = (uint8_t *)malloc(n ? n : 1);
    if (!exact) abort();
    memcpy(exact, all, n);
    (void)LLVMFuzzerTestOneInput(exact, n);
    fclose(f);
    free(all);
    free(exact);
    return 0;
}

int main(int argc, char **argv) {
    int bad = 0;
    for (int i = 1; i < argc; i++) bad |= run_file(argv[i]);
    return bad;
}
#endif
