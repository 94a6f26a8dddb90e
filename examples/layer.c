/* layer.c - one L3 layer over plain arrays: no file, no malloc, no model around it.
 *
 * Each token owns a few rows of a table; the hidden state x is a query that attends over the rows of its token only,
 * and what it finds is added to x. Here row r points along element r, so the change of x that is printed shows which
 * rows were used: token 0 owns one and gets it in any context, tokens 1 and 2 own two and the context decides. */
#define L3_IMPLEMENTATION
#include "../l3.h"

#include <stdio.h>

enum { TOKENS = 3, ROWS = 5, WIDTH = 32 }; /* 32 is the least that Q8_0 holds */

/* The layer's bytes as they would lie in flash, and the memory that it works in. */
static unsigned char offsets[(TOKENS + 1) * 4], rows[ROWS * 34], mix[WIDTH * 2 * 34], block[4096 + L3_ALIGN];

static void fill_tables(void) {
    static const int32_t first[TOKENS + 1] = {0, 1, 3, 5}; /* token t owns rows first[t] ... first[t + 1] - 1 */
    l3_pack_i32(first, TOKENS + 1, offsets);
    for (int r = 0; r < ROWS; r++) {
        float row[WIDTH] = {0};
        row[r]           = 4.0f;
        l3_pack(L3_Q8_0, row, WIDTH, rows + r * 34);
    }
    for (int i = 0; i < WIDTH; i++) {
        float row[2 * WIDTH] = {0}; /* weights of what the lookup found, then of x itself */
        row[i]               = 0.1f;
        l3_pack(L3_Q8_0, row, 2 * WIDTH, mix + i * 68);
    }
}

int main(void) {
    static const struct {
        int32_t token;
        int     context;
    } cases[]                   = {{0, 0}, {0, 2}, {1, 1}, {1, 2}, {1, 4}, {2, 4}};
    const l3_lookup      layer  = {.vocab        = TOKENS,
                                   .row_count    = ROWS,
                                   .key_length   = WIDTH,
                                   .value_length = WIDTH,
                                   .up_length    = WIDTH,
                                   .tied         = true,
                                   .query_norm   = true,
                                   .residual     = true,
                                   .score_scale  = 0.1f,
                                   .norm_epsilon = 1e-6f,
                                   .offsets      = {.data = offsets, .rows = 1, .cols = TOKENS + 1, .type = L3_I32},
                                   .rows         = {.data = rows, .rows = ROWS, .cols = WIDTH, .type = L3_Q8_0},
                                   .mix          = {.data = mix, .rows = WIDTH, .cols = 2 * WIDTH, .type = L3_Q8_0}};
    const l3_work_config config = {.batch = 1}; /* one token at a time needs least memory */
    unsigned char       *memory = block + (L3_ALIGN - (uintptr_t)block % L3_ALIGN) % L3_ALIGN;
    l3_work             *work;
    l3_error             err;
    fill_tables();
    int code = l3_lookup_check(&layer, &err);
    if (code == L3_OK) code = l3_work_init(&work, &layer, 1, &config, memory, sizeof block - L3_ALIGN, &err);
    for (size_t c = 0; code == L3_OK && c < sizeof cases / sizeof *cases; c++) {
        float x[WIDTH]      = {0};
        x[cases[c].context] = 1;
        code                = l3_lookup_begin(work, &cases[c].token, 1, &err);
        if (code == L3_OK) code = l3_lookup_forward(work, 0, x, &err);
        x[cases[c].context] -= 1;
        printf("token %d in context %d: x changes by", (int)cases[c].token, cases[c].context);
        for (int i = 0; i < ROWS; i++) printf(" %6.3f", (double)x[i]);
        printf("\n");
    }
    if (code != L3_OK) fprintf(stderr, "%s\n", err.text);
    return code != L3_OK;
}
