/* allocation.h - what the programs that make, read and show allocations share: whose tokens they are for, and histograms of
 * rows per token. */
#ifndef ALLOCATION_H
#define ALLOCATION_H

#include "text.h"

#define ALLOCATION_FINGERPRINT "allocation.tokenizer_fingerprint"

static inline int allocation_key(void *user, const l3_gguf_key *k) {
    if (strcmp(k->name, ALLOCATION_FINGERPRINT) == 0 && k->type == L3_GGUF_U64) *(uint64_t *)user = k->integer;
    return 0;
}

/* Fails if the offsets in a file, an allocation or a model, were made for another tokenizer. A file that does not say passes. */
static inline void allocation_check_tokenizer(const cli_engine *e, const l3_model *tokenizer) {
    uint64_t              made_for = 0;
    const l3_gguf_visitor visitor  = {&made_for, allocation_key, NULL, NULL, NULL};
    l3_error              err;
    memset(&err, 0, sizeof err);
    if (e->info->has_tokenizer) made_for = tokenizer_fingerprint(e->model);
    else cli_check(l3_gguf_scan(&e->file.source, &visitor, &err), e->path, &err);
    if (made_for && made_for != tokenizer_fingerprint(tokenizer))
        cli_fail("%s: the rows were allotted for another tokenizer; with it, or with a new allocation, it would fit",
                 e->path);
}

/* ---- histograms ---- */

/* Bins of a histogram over numbers of rows: 0, 1, 2, 3-4, 5-8, ... */
enum { ROW_BINS = 33 };

static inline uint32_t row_bin(uint32_t rows) {
    uint32_t bin = 0;
    if (rows == 0) return 0;
    while ((1u << bin) < rows && bin < 31) bin++;
    return bin + 1;
}

static inline void row_bin_range(uint32_t bin, uint64_t *from, uint64_t *to) {
    *from = bin < 2 ? bin : ((uint64_t)1 << (bin - 2)) + 1;
    *to   = bin == 0 ? 0 : (uint64_t)1 << (bin - 1);
}

/* "3-4" */
static inline void row_bin_name(uint32_t bin, char name[48]) {
    uint64_t from, to;
    row_bin_range(bin, &from, &to);
    snprintf(name, 48, from == to ? "%" PRIu64 : "%" PRIu64 "-%" PRIu64, from, to);
}

/* A bar of up to 50 signs, and the end of the line. */
static inline void row_bar(uint64_t n, uint64_t most) {
    for (uint64_t i = 0; most && i < (50 * n + most - 1) / most; i++) putchar('#');
    putchar('\n');
}

/* A member "rows_histogram" of a JSON object. */
static inline void row_bins_json(const uint64_t tokens[ROW_BINS]) {
    const char *comma = "";
    cli_json_key("rows_histogram");
    putchar('[');
    for (uint32_t i = 0; i < ROW_BINS; i++) {
        uint64_t from, to;
        row_bin_range(i, &from, &to);
        if (!tokens[i]) continue;
        printf("%s{\"from\": %" PRIu64 ", \"to\": %" PRIu64 ", \"tokens\": %" PRIu64 "}", comma, from, to, tokens[i]);
        comma = ", ";
    }
    putchar(']');
}

#endif /* ALLOCATION_H */
