/* test_text.c - tools/text.h and tools/shard.h: documents against a plain splitter of whole files, tokens against
 * l3_tokenize of whole documents, shards against what went into them. Buffers are tiny here, so that everything that can
 * fall between two of them does. */
#define TEXT_ROOM      48
#define TOKENS_AT_ONCE 5
#define TOKENS_CACHE   12000
#define SHARD_BUFFER   64

#define L3_NO_SIMD /* no model is run here: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../tools/shard.h"

#include "make_model.h"
#include "model.h"

#include <sys/wait.h>

/* ---- sets of strings ---- */

/* So many that some have the same hash of 32 bits. */
TEST(sets_of_strings) {
    enum { STRINGS = 300000 };
    string_set set = {0};
    char       text[64];
    size_t     n, good = 0;
    for (uint32_t turn = 0; turn < 2; turn++)
        for (uint32_t i = 0; i < STRINGS; i++) {
            bool         added;
            const size_t length =
                (size_t)snprintf(text, sizeof text, "%" PRIu32 "%.*s", i, (int)(i % 20), "abcdefghijklmnopqrst");
            const uint32_t number = string_set_add(&set, text, length, &added);
            const char    *back   = string_set_get(&set, number, &n);
            good += number == i && added == !turn && n == length && memcmp(back, text, n) == 0;
        }
    CHECK_EQ(good, 2 * STRINGS);
    CHECK_EQ(set.n, STRINGS);
    CHECK_EQ(string_set_find(&set, "12", 2), UINT32_MAX);
    CHECK_EQ(string_set_find(&set, "12abcdefghijkl", 14), 12);
    string_set_clear(&set);
    CHECK_EQ(string_set_find(&set, "12abcdefghijkl", 14), UINT32_MAX);
    string_set_free(&set);
}

/* ---- bytes that grow ---- */

static void put(mk_buf *b, const char *text, size_t n) { mk_put(b, text, n); }

static void put_any(mk_buf *b, test_rng *r, const char *const *what, uint32_t n) {
    const char *text = what[test_below(r, n)];
    put(b, text, strlen(text));
}

static void put_number(mk_buf *b, uint64_t v) { mk_put_u64(b, v); }

/* ---- documents ---- */

/* A file of marks, things like marks, and lines. */
static mk_buf random_file(test_rng *r) {
    static const char *const parts[] = {"<|endoftext|>\n",
                                        "\n<|endoftext|>\n",
                                        "<|endoftext|>",
                                        "<|endoftext|",
                                        " <|endoftext|>\n",
                                        "<|endoftext|>\r",
                                        "\n",
                                        "\n\n",
                                        "a",
                                        "\r\n",
                                        "<|",
                                        "some words here\n",
                                        "<|endoftext|>x",
                                        "b\n"};
    mk_buf                   b       = {0};
    for (uint32_t left = test_below(r, 40); left > 0; left--) {
        put_any(&b, r, parts, test_below(r, 4) ? 14 : 3);
        if (test_below(r, 9) == 0) put(&b, "\0\xff", 2);
        for (uint32_t n = test_below(r, 8) ? 0 : test_below(r, 300); n > 0; n--) put(&b, "x", 1);
    }
    return b;
}

/* The documents of a file, each with its length before it: what the rule says, in one piece. */
static void split(mk_buf *out, const unsigned char *text, size_t n, int lines) {
    static const char mark[] = "<|endoftext|>";
    size_t            from = 0, at = 0;
    while (at < n) {
        size_t stop = at;
        while (stop < n && text[stop] != '\n') stop++;
        const size_t next = stop < n ? stop + 1 : stop;
        const int    ends = lines || (stop - at == 13 && memcmp(text + at, mark, 13) == 0);
        const size_t end  = lines ? stop : at > from ? at - 1 : at;
        if (ends && end > from) put_number(out, end - from), mk_put(out, text + from, end - from);
        at = next;
        if (ends) from = at;
    }
    if (n > from) put_number(out, n - from), mk_put(out, text + from, n - from);
}

/* The same through the reader. */
static uint64_t read_all(mk_buf *out, const char *const *paths, size_t n_paths, int lines) {
    text_reader r;
    text_piece  p;
    mk_buf      document = {0};
    int         inside   = 0;
    uint64_t    bytes    = 0;
    text_open(&r, paths, n_paths, lines);
    while (text_next(&r, &p)) {
        CHECK(p.n > 0 && p.begins == !inside);
        put(&document, p.bytes, p.n);
        inside = !p.ends;
        if (!p.ends) continue;
        put_number(out, document.n);
        mk_put(out, document.data, document.n);
        bytes += document.n;
        document.n = 0;
    }
    CHECK(!inside);
    CHECK_EQ(r.text_bytes, bytes);
    bytes = r.bytes_read;
    text_close(&r);
    free(document.data);
    return bytes;
}

static int same_bytes(const mk_buf *a, const mk_buf *b) {
    return CHECK_EQ(a->n, b->n) && CHECK_MEM(a->data, b->data, a->n);
}

TEST(documents) {
    test_rng r = {1};
    for (int turn = 0; turn < 3000; turn++) {
        char        paths[3][600];
        const char *list[3];
        const int   lines = turn % 3 == 0;
        mk_buf      want = {0}, got = {0};
        uint32_t    n     = 1 + test_below(&r, 3);
        uint64_t    bytes = 0;
        for (uint32_t i = 0; i < n; i++) {
            mk_buf     b      = random_file(&r);
            const char name[] = {(char)('a' + i), '\0'};
            list[i]           = test_temp(name, paths[i], sizeof paths[i]);
            if (!CHECK(test_write(list[i], b.data ? (const void *)b.data : "", b.n))) return;
            split(&want, b.data, b.n, lines);
            bytes += b.n;
            free(b.data);
        }
        CHECK_EQ(read_all(&got, list, n, lines), bytes);
        const int ok = same_bytes(&want, &got);
        free(want.data);
        free(got.data);
        if (!ok) return;
    }
}

/* cli_next_document, which reads whole files, splits them the same way. */
TEST(documents_of_whole_files) {
    test_rng r = {2};
    for (int turn = 0; turn < 2000; turn++) {
        mk_buf      b = random_file(&r), want = {0}, got = {0};
        const void *bytes = b.data;
        const char *at = (const char *)bytes, *end = at + b.n, *document;
        size_t      n;
        split(&want, b.data, b.n, 0);
        while (b.n && cli_next_document(&at, end, &document, &n)) put_number(&got, n), put(&got, document, n);
        const int ok = same_bytes(&want, &got);
        free(b.data);
        free(want.data);
        free(got.data);
        if (!ok) return;
    }
}

/* ---- tokens ---- */

/* Every document of a text with l3_tokenize, each with its number of tokens before it. */
static void encode_whole(mk_buf *out, const l3_model *model, const mk_buf *text, int lines) {
    cli_tokenizer t;
    mk_buf        documents = {0};
    size_t        n;
    split(&documents, text->data, text->n, lines);
    cli_tokenizer_open(&t, model, 1 << 12);
    for (size_t at = 0, length; at < documents.n; at += length) {
        length            = (size_t)l3__le64(documents.data + at);
        const void *bytes = documents.data + (at += 8);
        int32_t    *ids   = cli_encode(&t, (const char *)bytes, length, 0, &n);
        put_number(out, n);
        mk_put(out, ids, n * sizeof *ids);
        free(ids);
    }
    cli_tokenizer_close(&t);
    free(documents.data);
}

static void encode_pieces(mk_buf *out, const l3_model *model, const char *path, int lines) {
    token_reader r;
    token_piece  p;
    mk_buf       ids    = {0};
    int          inside = 0;
    tokens_open(&r, model, &path, 1, lines);
    while (tokens_next(&r, &p)) {
        CHECK_EQ(p.begins, !inside);
        CHECK(string_set_size(&r.runs) <= TOKENS_CACHE);
        mk_put(&ids, p.ids, p.n * sizeof *p.ids);
        inside = !p.ends;
        if (inside) continue;
        put_number(out, ids.n / sizeof *p.ids);
        mk_put(out, ids.data, ids.n);
        ids.n = 0;
    }
    CHECK(!inside);
    tokens_close(&r);
    free(ids.data);
}

static int check_tokens(const l3_model *model, const mk_buf *text, int lines) {
    char        path[600];
    const char *file = test_temp("text", path, sizeof path);
    mk_buf      want = {0}, got = {0};
    if (!CHECK(test_write(file, text->data ? (const void *)text->data : "", text->n))) return 0;
    encode_whole(&want, model, text, lines);
    encode_pieces(&got, model, file, lines);
    const int ok = same_bytes(&want, &got);
    if (!ok) fprintf(stderr, "    text: \"%.*s\"\n", text->n < 200 ? (int)text->n : 200, (const char *)text->data);
    free(want.data);
    free(got.data);
    return ok;
}

/* Bytes, characters and pieces that are likely to go wrong beside each other. U+2581 is a space. */
static const char *const letters[] = {
    "a",    "b",    " ",    "\n",   "\xc3\xa9", "\xe2\x96\x81", "\xf0\x9f\x98\x81", "\xc3",
    "\xa9", "\xe2", "\x96", "\x81", "\xf0",     "\x9f",         "\xe2\x96",         "<s>"};

static mk_buf random_letters(test_rng *r, uint32_t most, uint32_t kinds) {
    mk_buf b = {0};
    for (uint32_t left = test_below(r, most); left > 0; left--) {
        put_any(&b, r, letters, kinds);
        if (test_below(r, 60) == 0) put(&b, "\n<|endoftext|>\n", 15);
        if (test_below(r, 100) == 0) put(&b, "\0", 1);
    }
    return b;
}

/* n pieces: byte tokens or none, then random letters, cut anywhere, of every type; a dummy space or none. */
static file random_vocabulary(test_rng *r, uint32_t n) {
    static const int32_t types[] = {1, 1, 1, 1, 1, 1, 3, 4, 5, 2};
    const char         **pieces  = (const char **)cli_malloc(n * sizeof *pieces);
    float               *scores  = (float *)cli_malloc(n * sizeof *scores);
    int32_t             *type    = (int32_t *)cli_malloc(n * sizeof *type);
    mk_gguf             *g       = mk_gguf_new();
    const uint32_t       bytes = test_below(r, 4) ? 256 : 0, kinds = 4 + test_below(r, 13);
    const uint32_t       types_of = test_below(r, 2) ? 10 : 6;
    file                 f;
    for (uint32_t i = 0; i < n; i++) {
        mk_buf b = {0};
        if (i < bytes) {
            char name[8];
            put(&b, name, (size_t)snprintf(name, sizeof name, "<0x%02X>", i));
        } else {
            for (uint32_t left = 1 + test_below(r, 4); left > 0; left--) put_any(&b, r, letters, kinds);
        }
        mk_put_u8(&b, 0);
        const void *text = b.data;
        pieces[i]        = (const char *)text;
        scores[i]        = (float)test_below(r, 40);
        type[i]          = i < bytes ? 6 : types[test_below(r, types_of)];
    }
    mk_string(g, "general.architecture", "l3");
    mk_string(g, "general.type", "tokenizer");
    mk_string(g, "tokenizer.ggml.model", "llama");
    mk_strings(g, "tokenizer.ggml.tokens", pieces, n);
    mk_f32s(g, "tokenizer.ggml.scores", scores, n);
    mk_i32s(g, "tokenizer.ggml.token_type", type, n);
    if (test_below(r, 3) == 0) mk_bool(g, "tokenizer.ggml.add_space_prefix", 0);
    for (uint32_t i = 0; i < n; i++) free((void *)(uintptr_t)pieces[i]);
    free(pieces);
    free(scores);
    free(type);
    f.bytes = mk_finish(g, &f.n);
    return f;
}

TEST(tokens_of_random_vocabularies) {
    test_rng r  = {3};
    int      ok = 1;
    for (int turn = 0; ok && turn < (test_flag("L3_LONG") ? 5000 : 250); turn++) {
        rig  rig;
        file f = random_vocabulary(&r, 376);
        if (!CHECK_EQ(rig_open(&rig, f, MAPPED), L3_OK)) return;
        for (int i = 0; ok && i < 12; i++) {
            mk_buf text = random_letters(&r, i % 3 ? 30 : 400, 4 + test_below(&r, 13));
            ok          = check_tokens(rig.model, &text, i % 2);
            free(text.data);
        }
        if (!ok) fprintf(stderr, "    turn %d\n", turn);
        rig_close(&rig);
        free(f.bytes);
    }
}

static void check_model(file f, test_rng *r) {
    rig    rig;
    mk_buf text = {0};
    int    ok;
    if (!CHECK_EQ(rig_open(&rig, f, MAPPED), L3_OK)) return;
    size_t         n;
    unsigned char *readme = test_read("README.md", &n);
    if (readme) mk_put(&text, readme, n);
    ok = check_tokens(rig.model, &text, 0) && check_tokens(rig.model, &text, 1);
    for (int i = 0; ok && i < 60; i++) {
        text.n = 0;
        for (uint32_t left = test_below(r, 3000); left > 0; left--) mk_put_u8(&text, test_below(r, i % 2 ? 256 : 128));
        ok = check_tokens(rig.model, &text, i % 4 == 3);
    }
    free(readme);
    free(text.data);
    rig_close(&rig);
}

TEST(tokens_of_models) {
    static const char *const names[] = {"stories-l3.gguf", "stories260K/stories260K.gguf"};
    test_rng                 r       = {4};
    file                     f       = {NULL, 0};
    f.bytes                          = test_read("examples/models/books-l3.gguf", &f.n);
    REQUIRE(f.bytes != NULL);
    check_model(f, &r);
    free(f.bytes);
    for (int i = 0; i < 2; i++) {
        f = file_fixture(names[i]);
        if (!f.bytes) continue;
        check_model(f, &r);
        free(f.bytes);
    }
}

/* ---- shards ---- */

static int32_t want_token(const mk_buf *ids, size_t i) { return (int32_t)l3__le32(ids->data + 4 * i); }

/* BOS, tokens, EOS of every document. */
static mk_buf with_ends(const l3_model *model, const mk_buf *text) {
    const l3_info *info    = l3_model_info(model);
    mk_buf         encoded = {0}, all = {0};
    encode_whole(&encoded, model, text, 0);
    for (size_t at = 0, n; at < encoded.n;) {
        n = (size_t)l3__le64(encoded.data + at);
        at += 8;
        mk_put_u32(&all, (uint32_t)info->bos);
        for (; n > 0; n--, at += 4) {
            int32_t id;
            memcpy(&id, encoded.data + at, 4);
            mk_put_u32(&all, (uint32_t)id);
        }
        mk_put_u32(&all, (uint32_t)info->eos);
    }
    free(encoded.data);
    return all;
}

static void write_shard(const l3_model *model, const char *from, const char *to) {
    token_reader r;
    token_piece  p;
    shard_writer w;
    tokens_open(&r, model, &from, 1, false);
    shard_begin(&w, to, model);
    while (tokens_next(&r, &p)) {
        if (p.begins) shard_write(&w, &r.info->bos, 1);
        shard_write(&w, p.ids, p.n);
        if (p.ends) shard_write(&w, &r.info->eos, 1);
    }
    shard_end(&w, r.window.text.text_bytes);
    tokens_close(&r);
}

/* Opens files as one store, which has the tokens of the text `times` times over. */
static void check_store(const l3_model *model, const char *const *paths, size_t n, const mk_buf *ids, int times,
                        int mapped) {
    token_store s;
    size_t      i;
    store_open(&s, model, paths, n, false);
    CHECK_EQ(s.n, ids->n / 4 * (size_t)times);
    CHECK_EQ(s.memory == NULL, mapped);
    CHECK_EQ(s.fingerprint, tokenizer_fingerprint(model));
    for (i = 0; i < s.n && store_token(&s, i) == want_token(ids, i % (ids->n / 4)); i++) continue;
    CHECK_EQ(i, s.n);
    store_close(&s);
}

static void check_shards(file f, uint32_t width) {
    char        paths[2][600];
    const char *text_path = test_temp("s.txt", paths[0], 600), *shard_path = test_temp("s.tokens", paths[1], 600),
               *both[3] = {text_path, shard_path, text_path};
    test_rng r          = {5};
    mk_buf   text       = {0};
    rig      rig;
    shard    s;
    if (!CHECK_EQ(rig_open(&rig, f, MAPPED), L3_OK)) return;
    while (text.n < 5000) {
        mk_buf b = random_letters(&r, 300, 16);
        mk_put(&text, b.data, b.n);
        free(b.data);
    }
    mk_buf ids = with_ends(rig.model, &text);
    if (!CHECK(test_write(text_path, text.data, text.n))) return;
    write_shard(rig.model, text_path, shard_path);
    shard_open(&s, shard_path);
    CHECK_EQ(s.width, width);
    CHECK_EQ(s.vocab, l3_model_info(rig.model)->vocab);
    CHECK_EQ(s.n, ids.n / 4);
    shard_close(&s);
    check_store(rig.model, &shard_path, 1, &ids, 1, 1);
    check_store(rig.model, &text_path, 1, &ids, 1, 0);
    check_store(rig.model, both, 3, &ids, 3, 0);
    free(ids.data);
    free(text.data);
    rig_close(&rig);
}

TEST(shards) {
    static const uint32_t vocabularies[] = {400, 65536, 65537};
    test_rng              r              = {6};
    for (int i = 0; i < 3; i++) {
        file f = random_vocabulary(&r, vocabularies[i]);
        check_shards(f, i == 2 ? 4 : 2);
        free(f.bytes);
    }
}

/* How a program ends that opens a shard as a store: its exit code. */
static int exit_code(const l3_model *model, const char *path) {
    int         status;
    token_store s;
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _Exit(2);
        store_open(&s, model, &path, 1, false);
        _Exit(0);
    }
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A byte changed anywhere but in the count of text bytes, an end cut off, a byte too many: refused. */
TEST(damaged_shards) {
    char        paths[3][600];
    const char *text = test_temp("d.txt", paths[0], 600), *whole = test_temp("d.tokens", paths[1], 600),
               *bad  = test_temp("e.tokens", paths[2], 600);
    test_rng       r = {8};
    file           f = random_vocabulary(&r, 376), other = random_vocabulary(&r, 376);
    rig            rig, second;
    size_t         n;
    unsigned char *bytes;
    REQUIRE(rig_open(&rig, f, MAPPED) == L3_OK && rig_open(&second, other, MAPPED) == L3_OK);
    REQUIRE(test_write(text, "a b a b a\n<|endoftext|>\nb a", 27));
    write_shard(rig.model, text, whole);
    bytes = test_read(whole, &n);
    REQUIRE(bytes != NULL && n > SHARD_HEADER + 8);
    CHECK_EQ(exit_code(rig.model, whole), 0);
    CHECK_EQ(exit_code(second.model, whole), 1);
    for (size_t i = 4; i < n; i++) { /* without its magic it is text */
        bytes[i] ^= (unsigned char)(1u << test_below(&r, 8));
        if (i < 32 || i >= 40) CHECK(test_write(bad, bytes, n) && exit_code(rig.model, bad) == 1);
        free(bytes);
        bytes = test_read(whole, &n);
    }
    for (size_t i = 4; i < n; i++) CHECK(test_write(bad, bytes, i) && exit_code(rig.model, bad) == 1);
    CHECK(test_write(bad, bytes, n + 1) && exit_code(rig.model, bad) == 1); /* the zero byte behind it */
    /* an ID outside the vocabulary, with the right checksum */
    bytes[SHARD_HEADER + 3] = 0xff;
    shard_put(bytes + 40, l3_crc32(0, bytes + SHARD_HEADER, n - SHARD_HEADER), 4);
    CHECK(test_write(bad, bytes, n) && exit_code(rig.model, bad) == 1);
    free(bytes);
    rig_close(&rig);
    rig_close(&second);
    free(f.bytes);
    free(other.bytes);
}

/* The fingerprint by its definition, from the bytes of the file. */
TEST(fingerprints) {
    test_rng r = {7};
    for (int i = 0; i < 20; i++) {
        file     f = random_vocabulary(&r, 376);
        rig      a, b;
        uint64_t h = 0xcbf29ce484222325u;
        if (!CHECK_EQ(rig_open(&a, f, MAPPED), L3_OK)) return;
        const l3__vocabulary *v      = &a.model->vocabulary;
        const l3_info        *info   = l3_model_info(a.model);
        const unsigned char  *p      = f.bytes + v->tokens_at;
        const uint32_t        last[] = {1, 2, info->add_space_prefix};
        for (uint32_t id = 0; id < info->vocab; id++) {
            const size_t n = (size_t)l3__le64(p);
            h              = fnv1a(h, p, 4);
            h              = fnv1a(h, p + 8, n);
            h              = fnv1a(h, f.bytes + v->scores_at + 4 * id, 4);
            h              = fnv1a(h, f.bytes + v->types_at + 4 * id, 4);
            p += 8 + n;
        }
        for (int k = 0; k < 3; k++) h = fnv1a_u32(h, last[k]);
        CHECK_EQ(tokenizer_fingerprint(a.model), h);
        CHECK_EQ(rig_open(&b, f, (way){64, 0, 0}), L3_OK);
        CHECK_EQ(tokenizer_fingerprint(b.model), h);
        rig_close(&b);
        f.bytes[v->tokens_at + 8] ^= 1;
        CHECK(tokenizer_fingerprint(a.model) != h);
        rig_close(&a);
        free(f.bytes);
    }
}

int main(void) {
    RUN(sets_of_strings);
    RUN(documents);
    RUN(documents_of_whole_files);
    RUN(tokens_of_random_vocabularies);
    RUN(tokens_of_models);
    RUN(shards);
    RUN(damaged_shards);
    RUN(fingerprints);
    return test_report("text");
}
