/* fuzz_seeds.c - writes a small corpus of models, a tokenizer and an allocation into a directory, for fuzz_model.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "make_model.h"

static const char *directory;

static void write_file(const char *name, const unsigned char *bytes, size_t n) {
    char  path[1024];
    FILE *f;
    snprintf(path, sizeof path, "%s/%s.gguf", directory, name);
    f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
}

static mk_spec tiny(uint64_t seed) {
    mk_spec s;
    memset(&s, 0, sizeof s);
    s.seed = seed, s.dim = 8, s.n_heads = 2, s.n_kv_heads = 1, s.n_blocks = 1, s.ffn = 4, s.vocab = 270, s.context = 16,
    s.k            = 2;
    s.value_length = 4;
    return s;
}

static mk_spec variation(int i) {
    static const uint32_t types[] = {MK_F16, MK_BF16, MK_Q8_0, MK_Q4_0};
    mk_spec               s       = tiny((uint64_t)i + 1);
    switch (i) {
    case 0: s.checksums = 1; break;
    case 1: s.architecture = "llama"; break;
    case 2: s.tied = 1, s.key_norm = 1, s.no_residual = 1, s.separate_head = 1; break;
    case 3: s.layer_norm = 1, s.up_bias = 1, s.up_length = 8, s.norm_epsilon = 1e-4f, s.score_scale = 0.5f; break;
    case 4: s.n_blocks = 2, s.n_lookups = 2, s.lookup_blocks[1] = 1, s.empty_every = 3; break;
    case 5: s.checksums = 1, s.alignment = 8, s.key_norm = 1; break;
    case 6: s.minimal = 1, s.no_bos = 1, s.no_space_prefix = 1, s.vocab = 259; break;
    default: s.dim = 32, s.value_length = 32, s.weight_type = s.row_type = s.embedding_type = types[i - 7]; break;
    }
    return s;
}

static void write_models(void) {
    for (int i = 0; i < 11; i++) {
        const mk_spec  s = variation(i);
        size_t         n;
        char           name[32];
        unsigned char *bytes = mk_model(&s, &n);
        for (int how = 0; how < 2; how++) { /* the last byte: mapped, and read through start and wait */
            unsigned char *copy = (unsigned char *)malloc(n + 1);
            if (!copy) exit(1);
            memcpy(copy, bytes, n);
            copy[n] = how ? 0x1a : 1;
            snprintf(name, sizeof name, "model-%d-%s", i, how ? "read" : "map");
            write_file(name, copy, n + 1);
            free(copy);
        }
        free(bytes);
    }
}

static void add_pieces(mk_gguf *g) {
    static const char *const texts[]  = {"<unk>", "<s>", "</s>", "<0x61>", "\xe2\x96\x81",    "t",
                                         "h",     "e",   "th",   "the",    "\xe2\x96\x81the", "user"};
    static const int32_t     types[]  = {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 4};
    static const float       scores[] = {0, 0, 0, 0, -9, -9, -9, -9, -1, -2, -2, 0};
    mk_string(g, "tokenizer.ggml.model", "llama");
    mk_strings(g, "tokenizer.ggml.tokens", texts, 12);
    mk_f32s(g, "tokenizer.ggml.scores", scores, 12);
    mk_i32s(g, "tokenizer.ggml.token_type", types, 12);
}

static void write_part(const char *type) {
    mk_gguf       *g       = mk_gguf_new();
    const uint64_t dims[1] = {13};
    size_t         n;
    mk_string(g, "general.architecture", "l3");
    mk_string(g, "general.type", type);
    add_pieces(g);
    if (strcmp(type, "allocation") == 0) {
        mk_buf b = {NULL, 0, 0};
        for (int i = 0; i < 13; i++) mk_put_u32(&b, 2 * (uint32_t)i);
        mk_u32(g, "l3.lookup.row_count", 24);
        mk_u32(g, "l3.lookup.rows_per_token_max", 2);
        mk_tensor(g, "blk.0.lookup_offsets", MK_I32, 1, dims, b.data, b.n);
        free(b.data);
    }
    unsigned char *bytes = mk_finish(g, &n);
    write_file(type, bytes, n);
    free(bytes);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]), 2;
    directory = argv[1];
    write_models();
    write_part("tokenizer");
    write_part("allocation");
    return 0;
}
