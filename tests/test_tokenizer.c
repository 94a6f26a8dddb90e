/* test_tokenizer.c - text to token IDs and back: fixtures, random texts against ref.c, what flags mean, streams that
 * never break a character, memory, sources that are slow or fail, and work that grows with the text and no faster. */
#define L3_NO_SIMD /* no model is run here: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "json.h"
#include "make_model.h"
#include "model.h"
#include "ref.h"

enum { MAX_TEXT = 400, MAX_IDS = 3 * (MAX_TEXT + 1) + 1 };

/* ---- a vocabulary: the library's and the reference's ---- */

typedef struct lab {
    file       f;
    rig        rig;
    desk       desk;
    ref_model *ref;
    uint32_t   vocab;
} lab;

/* Takes over f. 0 on failure. */
static int lab_open(lab *b, file f, way w, size_t run) {
    l3_error err;
    b->f   = f;
    b->ref = f.bytes ? ref_load_tokenizer(f.bytes, f.n) : NULL;
    if (!CHECK(b->ref != NULL) || !CHECK_EQ(rig_open(&b->rig, f, w), L3_OK)) return 0;
    b->vocab = l3_model_info(b->rig.model)->vocab;
    return CHECK_EQ(desk_open(&b->desk, b->rig.model, run, &err), L3_OK);
}

static void lab_close(lab *b) {
    desk_close(&b->desk);
    rig_close(&b->rig);
    ref_free(b->ref);
    free(b->f.bytes);
}

static mk_spec spec_words(uint64_t seed) {
    mk_spec s;
    memset(&s, 0, sizeof s);
    s.seed = seed, s.dim = 2, s.n_heads = 1, s.n_blocks = 1, s.ffn = 1, s.no_lookup = 1;
    s.vocab           = seed == 0 ? 259 : 262 + (uint32_t)(seed * 97 % 700);
    s.no_space_prefix = seed % 4 == 3;
    return s;
}

static file words(uint64_t seed) {
    const mk_spec s = spec_words(seed);
    return file_make(&s);
}

/* Makes every n-th piece of ordinary text one of another type. */
static void retype(file f, uint32_t every, uint32_t type) {
    rig r;
    if (!CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) return;
    unsigned char *types = f.bytes + r.model->vocabulary.types_at;
    for (uint32_t i = 259; i < l3_model_info(r.model)->vocab; i++)
        if (i % every == 0) l3__put_le32(types + 4 * i, type);
    rig_close(&r);
}

/* ---- encoding and decoding ---- */

typedef struct ids {
    int32_t id[MAX_IDS];
    size_t  n;
} ids;

static int encode(l3_tokenizer *t, const char *text, size_t n, int flags, ids *out) {
    l3_error  err;
    const int code = l3_tokenize(t, text, n, flags, out->id, MAX_IDS, &out->n, &err);
    return CHECK_EQ(code, L3_OK) || (fprintf(stderr, "    %s\n", err.text), 0);
}

static int same_ids(const ids *a, const ids *b) {
    return CHECK_EQ(a->n, b->n) && CHECK_MEM(a->id, b->id, a->n * sizeof *a->id);
}

typedef struct chars {
    char   c[8 * MAX_TEXT];
    size_t n;
    int    broken; /* pieces that were no whole characters */
} chars;

static int valid_utf8(const char *text, size_t n) {
    const void    *bytes = text;
    const uint8_t *p     = (const uint8_t *)bytes;
    for (size_t i = 0, length; i < n; i += length) {
        length = l3__utf8_length(p + i, n - i);
        if (length == 0 || (length == 1 && p[i] >= 0x80)) return 0;
    }
    return 1;
}

static void add_chars(chars *c, const char *text, size_t n) {
    if (!CHECK(c->n + n <= sizeof c->c)) return;
    memcpy(c->c + c->n, text, n);
    c->n += n;
    c->broken += !valid_utf8(text, n);
}

/* The text of a stream that began with BOS. */
static void decode(l3_tokenizer *t, const ids *in, chars *out) {
    const char *text;
    size_t      n;
    out->n      = 0;
    out->broken = 0;
    for (size_t i = 0; i < in->n; i++) {
        if (!CHECK_EQ(l3_detokenize(t, in->id[i], &text, &n, NULL), L3_OK)) return;
        add_chars(out, text, n);
    }
    l3_detokenize_end(t, &text, &n);
    CHECK(n <= 3);
    add_chars(out, text, n);
}

/* ---- texts ---- */

typedef struct string {
    char   c[MAX_TEXT + 8];
    size_t n;
} string;

static void add(string *s, const char *text, size_t n) {
    if (s->n + n > MAX_TEXT) return;
    memcpy(s->c + s->n, text, n);
    s->n += n;
}

static void add_character(string *s, uint32_t c) {
    char      utf8[4];
    const int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    if (n == 1) utf8[0] = (char)c;
    for (int i = n - 1; n > 1 && i > 0; i--, c >>= 6) utf8[i] = (char)(unsigned char)(0x80 | (c & 63));
    if (n > 1) utf8[0] = (char)(unsigned char)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | c);
    add(s, utf8, (size_t)n);
}

/* A valid character of any length; never U+2581. */
static void add_any_character(string *s, test_rng *r) {
    static const uint32_t end[] = {0x80, 0x800, 0xd800, 0x110000}, begin[] = {0, 0x80, 0x800, 0x10000};
    const uint32_t        kind = test_below(r, 4), c = begin[kind] + test_below(r, end[kind] - begin[kind]);
    add_character(s, c == 0x2581 ? 0x2582 : c);
}

/* A piece of the vocabulary as it would stand in a text. */
static void add_piece(string *s, const lab *b, test_rng *r) {
    size_t      n;
    const char *p = ref_string(ref_file(b->ref), "tokenizer.ggml.tokens", test_below(r, b->vocab), &n);
    for (size_t i = 0; i < n; i++) {
        const int space = n - i >= 3 && memcmp(p + i, "\xe2\x96\x81", 3) == 0;
        add(s, space ? " " : p + i, 1);
        if (space) i += 2;
    }
}

enum { KINDS = 10 };

static string random_text(const lab *b, test_rng *r, uint32_t kind) {
    static const char *const marks[] = {"<s>", "</s>", "<unk>", "<0x41>",       "<0x0A>",
                                        " ",   "<",    "s>",    "\xe2\x96\x81", "\n"};
    string                   s;
    s.n = 0;
    for (uint32_t left = test_below(r, 90); left > 0; left--) switch (kind) {
        case 0: add_piece(&s, b, r); break;
        case 1: add(&s, (const char[]){(char)(unsigned char)test_below(r, 256)}, 1); break;
        case 2: add_any_character(&s, r); break;
        case 3: add(&s, " ", 1); break;
        case 4: add(&s, test_below(r, 3) ? "\n" : "\r\n\t", test_below(r, 2) + 1); break;
        case 5: add(&s, marks[left % 10], strlen(marks[left % 10])); break;
        case 6: add(&s, &"ab"[left % 2], 1); break;
        case 7: add(&s, &"the cat"[left % 6], 1 + left % 2); break;
        case 8: add(&s, &"\xf0\x9f\x98\x80"[test_below(r, 4)], 1); break;
        default: left % 2 ? add_piece(&s, b, r) : add(&s, marks[left % 10], strlen(marks[left % 10]));
        }
    return s;
}

static int has_block(const string *s) {
    for (size_t i = 0; i + 3 <= s->n; i++)
        if (memcmp(s->c + i, "\xe2\x96\x81", 3) == 0) return 1;
    return 0;
}

/* ---- against the reference ---- */

static int check_text(lab *b, const string *s) {
    static ids   got, want;
    static chars back, ref_back;
    int          ok = encode(b->desk.tokenizer, s->c, s->n, 0, &got);
    want.n          = ref_encode(b->ref, s->c, s->n, want.id);
    ok              = ok && same_ids(&got, &want);
    decode(b->desk.tokenizer, &got, &back);
    ref_back.n = ref_decode(b->ref, got.id, got.n, ref_back.c, sizeof ref_back.c);
    ok         = ok && CHECK_EQ(back.n, ref_back.n) && CHECK_MEM(back.c, ref_back.c, back.n);
    if (!has_block(s) && b->vocab > 259) /* there is a piece for a space */
        ok = ok && CHECK_EQ(back.n, s->n) && CHECK_MEM(back.c, s->c, s->n);
    if (valid_utf8(s->c, s->n)) ok = ok && CHECK_EQ(back.broken, 0);
    return ok;
}

static void check_texts(lab *b, uint64_t seed, int count) {
    test_rng r = {seed};
    for (int i = 0; i < count; i++) {
        const string s = random_text(b, &r, (uint32_t)i % KINDS);
        if (check_text(b, &s)) continue;
        fprintf(stderr, "    seed %u, text %d: \"%.*s\"\n", (unsigned)seed, i, (int)s.n, s.c);
        return;
    }
}

TEST(random_vocabularies) {
    const uint64_t n = test_flag("L3_LONG") ? 400 : 24;
    for (uint64_t seed = 0; seed < n; seed++) {
        lab b;
        if (!lab_open(&b, words(seed), MAPPED, MAX_TEXT)) return;
        check_texts(&b, seed, 100);
        lab_close(&b);
    }
}

TEST(other_types_of_pieces) {
    for (uint64_t seed = 0; seed < 24; seed++) {
        lab  b;
        file f = words(seed);
        retype(f, 7 + (uint32_t)seed % 5, seed % 2 ? 4 : 5); /* user-defined, unused */
        if (!lab_open(&b, f, MAPPED, MAX_TEXT)) return;
        check_texts(&b, seed, 100);
        lab_close(&b);
    }
}

TEST(trained_vocabularies) {
    static const char *const names[] = {"stories-l3-q8_0.gguf", "stories260K/stories260K.gguf"};
    for (int i = 0; i < 2; i++) {
        lab  b;
        file f = file_fixture(names[i]);
        if (!f.bytes) SKIP("no fixtures");
        if (!lab_open(&b, f, MAPPED, MAX_TEXT)) return;
        check_texts(&b, 1, 300);
        lab_close(&b);
    }
}

/* Any IDs at all: decoding takes them as they come. */
TEST(random_ids_decode) {
    for (uint64_t seed = 0; seed < 12; seed++) {
        lab          b;
        static ids   in;
        static chars out, want;
        test_rng     r = {seed};
        if (!lab_open(&b, words(seed), MAPPED, MAX_TEXT)) return;
        for (int turn = 0; turn < 50; turn++) {
            in.n = test_below(&r, 60);
            for (size_t i = 0; i < in.n; i++) in.id[i] = (int32_t)test_below(&r, turn % 2 ? b.vocab : 259);
            decode(b.desk.tokenizer, &in, &out);
            want.n = ref_decode(b.ref, in.id, in.n, want.c, sizeof want.c);
            if (!CHECK_EQ(out.n, want.n) || !CHECK_MEM(out.c, want.c, want.n)) break;
        }
        lab_close(&b);
    }
}

/* ---- fixtures ---- */

TEST(fixture_encodings) {
    file f = file_fixture("stories-l3.gguf"), g = file_fixture("stories-l3.encode.json");
    lab  b;
    if (!f.bytes || !g.bytes) SKIP("no fixtures");
    const void *bytes = g.bytes;
    json       *cases = json_parse((const char *)bytes);
    REQUIRE(cases && lab_open(&b, f, MAPPED, 2000));
    for (const json *c = cases->first; c; c = c->next) {
        static ids  got, want;
        const json *text = json_get(c, "text"), *list = json_get(c, "ids");
        if (!CHECK(list->length <= MAX_IDS) || !encode(b.desk.tokenizer, text->string, text->length, 0, &got)) break;
        want.n = 0;
        for (const json *id = list->first; id; id = id->next) want.id[want.n++] = (int32_t)id->number;
        same_ids(&got, &want);
    }
    json_free(cases);
    free(g.bytes);
    lab_close(&b);
}

/* The IDs of one line of a file of numbers; *p moves behind it. */
static void read_line(const char **p, ids *out) {
    char *end;
    for (out->n = 0; **p && **p != '\n' && out->n < MAX_IDS; *p = end) {
        out->id[out->n] = (int32_t)strtol(*p, &end, 10);
        if (end == *p) break;
        out->n++;
        while (*end == ' ') end++;
    }
    *p += **p == '\n';
}

TEST(fixture_lines) {
    file f = file_fixture("stories-l3.gguf"), text = file_fixture("alloc/stories_lines.txt"),
         numbers = file_fixture("alloc/stories_lines.ids.txt");
    lab b;
    int lines = 0;
    if (!f.bytes || !text.bytes || !numbers.bytes) SKIP("no fixtures");
    REQUIRE(lab_open(&b, f, MAPPED, 65536));
    const void *bytes = text.bytes, *digits = numbers.bytes;
    const char *line = (const char *)bytes, *p = (const char *)digits;
    for (const char *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        static ids got, want;
        read_line(&p, &want);
        if (!encode(b.desk.tokenizer, line, (size_t)(end - line), 0, &got) || !same_ids(&got, &want)) break;
    }
    CHECK(lines > 1900);
    free(text.bytes);
    free(numbers.bytes);
    lab_close(&b);
}

/* ---- what flags and calls mean ---- */

static ids concat(const ids *a, int32_t id, const ids *b) {
    ids out = *a;
    if (id >= 0) out.id[out.n++] = id;
    memcpy(out.id + out.n, b->id, b->n * sizeof *b->id);
    out.n += b->n;
    return out;
}

TEST(special_text) {
    lab        b;
    static ids whole, left, right, none, want;
    REQUIRE(lab_open(&b, words(4), MAPPED, MAX_TEXT));
    l3_tokenizer *t = b.desk.tokenizer;
    none.n          = 0;
    encode(t, "the cat", 7, 0, &left);
    encode(t, " sat", 4, 0, &right);
    encode(t, "the cat<s> sat", 14, L3_TEXT_SPECIAL, &whole);
    want = concat(&left, 1, &right); /* after a control token a new text begins */
    same_ids(&whole, &want);
    encode(t, "<s></s>", 7, L3_TEXT_SPECIAL, &whole);
    want = concat(&none, 1, &none);
    want = concat(&want, 2, &none);
    same_ids(&whole, &want);
    encode(t, "<s></s>", 7, 0, &whole);
    CHECK(whole.n > 2 && whole.id[0] > 2);
    encode(t, "<unk><0x41>", 11, L3_TEXT_SPECIAL, &whole); /* neither is a control token */
    encode(t, "<unk><0x41>", 11, 0, &want);
    same_ids(&whole, &want);
    lab_close(&b);
}

/* A control token that is written as a space meets the dummy spaces that begin texts. */
TEST(special_space) {
    lab        b;
    static ids whole;
    file       f = words(4);
    retype(f, 259, 3);
    REQUIRE(lab_open(&b, f, MAPPED, MAX_TEXT));
    encode(b.desk.tokenizer, " a  b ", 6, L3_TEXT_SPECIAL, &whole);
    int spaces = 0;
    for (size_t i = 0; i < whole.n; i++) spaces += whole.id[i] == 259;
    CHECK_EQ(spaces, 4);
    lab_close(&b);
}

TEST(begin_of_text) {
    for (int i = 0; i < 2; i++) {
        mk_spec s = spec_words(4);
        lab     b;
        ids     with, without, none;
        s.no_bos = i;
        REQUIRE(lab_open(&b, file_make(&s), MAPPED, MAX_TEXT));
        none.n = 0;
        encode(b.desk.tokenizer, "a cat", 5, 0, &without);
        encode(b.desk.tokenizer, "a cat", 5, L3_TEXT_BOS, &with);
        without = concat(&none, i ? -1 : 1, &without);
        same_ids(&with, &without);
        encode(b.desk.tokenizer, "", 0, 0, &without);
        CHECK_EQ(without.n, 0);
        encode(b.desk.tokenizer, "", 0, L3_TEXT_BOS, &with);
        CHECK_EQ(with.n, i ? 0 : 1);
        lab_close(&b);
    }
}

/* Continuing is encoding without the dummy space, as a vocabulary without one does always. */
TEST(continued_text) {
    mk_spec  s = spec_words(4), no_space = spec_words(4);
    lab      b, bare;
    test_rng r               = {1};
    no_space.no_space_prefix = 1;
    REQUIRE(lab_open(&b, file_make(&s), MAPPED, MAX_TEXT) && lab_open(&bare, file_make(&no_space), MAPPED, MAX_TEXT));
    for (uint32_t i = 0; i < 100; i++) {
        static ids   got, want;
        const string x = random_text(&b, &r, i % KINDS);
        encode(b.desk.tokenizer, x.c, x.n, L3_TEXT_CONTINUE, &got);
        encode(bare.desk.tokenizer, x.c, x.n, 0, &want);
        if (!same_ids(&got, &want)) break;
    }
    lab_close(&b);
    lab_close(&bare);
}

TEST(too_little_room_for_ids) {
    static const char text[] = "the cat sat on the mat";
    lab               b;
    ids               all;
    l3_error          err;
    size_t            n;
    REQUIRE(lab_open(&b, words(4), MAPPED, 100));
    encode(b.desk.tokenizer, text, 22, 0, &all);
    for (size_t room = 0; room <= all.n; room++) {
        int32_t  *some = (int32_t *)must(room * sizeof *some);
        const int code = l3_tokenize(b.desk.tokenizer, text, 22, 0, room ? some : NULL, room, &n, &err);
        CHECK_EQ(code, room > 0 && room < all.n ? L3_ERR_MEMORY : L3_OK);
        if (code != L3_OK) CHECK(error_sound(code, &err));
        CHECK_EQ(n, all.n);
        CHECK_MEM(some, all.id, room * sizeof *some);
        free(some);
    }
    CHECK_EQ(l3_tokenize(b.desk.tokenizer, text, 0, 0, NULL, 0, &n, &err), L3_OK);
    lab_close(&b);
}

/* A normal piece of at least 4 ASCII bytes: text that no run may end in. Its length, or 0. */
static size_t joined_text(l3_tokenizer *t, uint32_t vocab, char *out) {
    for (uint32_t id = 0; id < vocab; id++) {
        const char *p;
        size_t      n, ascii = 0;
        int         type;
        if (l3_token_piece(t, (int32_t)id, &p, &n, NULL, &type, NULL) != L3_OK || type != 1 || n < 4 || n > 64) continue;
        while (ascii < n && (unsigned char)p[ascii] < 0x80) ascii++;
        memcpy(out, p, n);
        if (ascii == n) return n;
    }
    return 0;
}

/* The length of a text is always enough as `run`; a run that is longer is refused, and others go on. */
TEST(room_for_runs) {
    lab        b;
    test_rng   r = {2};
    static ids want, got;
    l3_error   err;
    desk       d;
    size_t     n;
    REQUIRE(lab_open(&b, words(4), MAPPED, MAX_TEXT));
    for (uint32_t i = 0; i < 200; i++) {
        const string s = random_text(&b, &r, i % KINDS);
        if (s.n == 0) continue;
        REQUIRE(desk_open(&d, b.rig.model, s.n, &err) == L3_OK);
        encode(b.desk.tokenizer, s.c, s.n, 0, &want);
        if (encode(d.tokenizer, s.c, s.n, 0, &got)) same_ids(&got, &want);
        desk_close(&d);
    }
    REQUIRE(desk_open(&d, b.rig.model, 2, &err) == L3_OK);
    char joined[64];
    n = joined_text(d.tokenizer, l3_model_info(b.rig.model)->vocab, joined);
    REQUIRE(n >= 4);
    CHECK_EQ(l3_tokenize(d.tokenizer, joined, 2, L3_TEXT_CONTINUE, got.id, MAX_IDS, &n, &err), L3_OK);
    const int code = l3_tokenize(d.tokenizer, joined, 4, L3_TEXT_CONTINUE, got.id, MAX_IDS, &n, &err);
    CHECK(code == L3_ERR_MEMORY && n == 0 && error_sound(code, &err));
    desk_close(&d);
    REQUIRE(desk_open(&d, b.rig.model, 10, &err) == L3_OK);
    encode(d.tokenizer, "the cat", 7, 0, &got);
    encode(b.desk.tokenizer, "the cat", 7, 0, &want);
    same_ids(&got, &want);
    desk_close(&d);
    lab_close(&b);
}

TEST(calls_that_are_refused) {
    file        f = words(4), other = words(4);
    rig         r;
    desk        d;
    ids         out;
    l3_error    err;
    const char *text;
    size_t      n;
    REQUIRE(rig_open(&r, f, MAPPED) == L3_OK && desk_open(&d, r.model, 0, &err) == L3_OK);
    CHECK_EQ(l3_tokenize(d.tokenizer, "a", 1, 0, out.id, MAX_IDS, &n, &err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_detokenize(d.tokenizer, -1, &text, &n, &err), L3_ERR_TOKEN);
    CHECK_EQ(l3_detokenize(d.tokenizer, (int32_t)l3_model_info(r.model)->vocab, &text, &n, &err), L3_ERR_TOKEN);
    CHECK_EQ(l3_token_piece(d.tokenizer, INT32_MIN, &text, &n, NULL, NULL, &err), L3_ERR_TOKEN);
    CHECK(error_sound(L3_ERR_TOKEN, &err));
    CHECK_EQ(l3_detokenize(d.tokenizer, 3 + 'x', &text, &n, NULL), L3_OK);
    CHECK(n == 1 && text[0] == 'x');
    desk_close(&d);
    rig_close(&r);
    for (size_t i = 0; i + 5 < other.n; i++) /* tokenizer.ggml.model */
        if (memcmp(other.bytes + i, "\5\0\0\0\0\0\0\0llama", 13) == 0) other.bytes[i + 12] = 'o';
    if (CHECK_EQ(rig_open(&r, other, MAPPED), L3_OK)) {
        CHECK(!l3_model_info(r.model)->has_tokenizer);
        CHECK_EQ(l3_tokenizer_size(r.model, 10), 0);
        CHECK_EQ(l3_tokenizer_init(&d.tokenizer, r.model, 10, &r, sizeof r, &err), L3_ERR_UNSUPPORTED);
        rig_close(&r);
    }
    free(f.bytes);
    free(other.bytes);
}

TEST(pieces) {
    lab b;
    REQUIRE(lab_open(&b, words(5), (way){64, 0, 0}, 0));
    const ref_gguf *g = ref_file(b.ref);
    for (uint32_t id = 0; id < b.vocab; id++) {
        const char *piece, *want;
        size_t      n, want_n;
        float       score;
        int         type;
        want = ref_string(g, "tokenizer.ggml.tokens", id, &want_n);
        CHECK_EQ(l3_token_piece(b.desk.tokenizer, (int32_t)id, &piece, &n, &score, &type, NULL), L3_OK);
        CHECK(n == want_n && memcmp(piece, want, n) == 0);
        CHECK_NEAR(score, ref_number(g, "tokenizer.ggml.scores", id, 1), 0);
        CHECK_EQ(type, ref_number(g, "tokenizer.ggml.token_type", id, 0));
    }
    lab_close(&b);
}

/* ---- sources ---- */

TEST(any_source) {
    for (uint32_t align = 1; align <= 4096; align *= 4)
        for (uint32_t some = 0; some < 3; some++) {
            lab b;
            if (!lab_open(&b, words(some), (way){align, some == 1 ? 2 : some == 2 ? 3 : 0, MOCK_START}, MAX_TEXT))
                return;
            check_texts(&b, align, 20);
            lab_close(&b);
        }
}

/* Every call in turn: an error, or the right answer; and the same tokenizer works again. */
TEST(sources_that_fail) {
    static const char text[] = "the cat \xe2\x98\x83 sat";
    lab               b;
    static ids        want, got;
    l3_error          err;
    size_t            n;
    const char       *piece;
    desk              d;
    int               code = L3_ERR_IO;
    REQUIRE(lab_open(&b, words(4), (way){64, 0, 0}, 100));
    mock *m = &b.rig.mock;
    encode(b.desk.tokenizer, text, sizeof text - 1, 0, &want);
    uint32_t k = 1;
    for (m->calls = 0; code != L3_OK; k++) {
        m->calls   = 0;
        m->fail_at = k;
        code       = l3_tokenize(b.desk.tokenizer, text, sizeof text - 1, 0, got.id, MAX_IDS, &got.n, &err);
        m->fail_at = 0;
        if (code != L3_OK && (!CHECK_EQ(code, L3_ERR_IO) || !CHECK(error_sound(code, &err)))) break;
        if (code == L3_OK) same_ids(&got, &want);
        encode(b.desk.tokenizer, text, sizeof text - 1, 0, &got);
        if (!same_ids(&got, &want)) break;
    }
    CHECK(k > 10);
    for (k = 1, code = L3_ERR_IO; code != L3_OK; k += 1 + k / 4) {
        m->calls   = 0;
        m->fail_at = k;
        code       = desk_open(&d, b.rig.model, 100, &err);
        m->fail_at = 0;
        if (code != L3_OK && !CHECK_EQ(code, L3_ERR_IO)) break;
        if (code == L3_OK) desk_close(&d);
    }
    CHECK(k > 10);
    /* a snowman in bytes: what is held back survives a failure */
    static const int32_t snowman[] = {3 + 0xe2, 3 + 0x98, 3 + 0x83};
    for (int i = 0; i < 3; i++) {
        for (k = 1; k < 50; k++) {
            m->calls                      = 0;
            m->fail_at                    = k;
            b.desk.tokenizer->reader.have = 0;
            code                          = l3_detokenize(b.desk.tokenizer, snowman[i], &piece, &n, &err);
            m->fail_at                    = 0;
            if (code == L3_OK) break;
            CHECK_EQ(code, L3_ERR_IO);
        }
        CHECK_EQ(code, L3_OK);
    }
    CHECK(n == 3 && memcmp(piece, "\xe2\x98\x83", 3) == 0);
    lab_close(&b);
}

/* ---- work ---- */

/* Calls of map while a text of n bytes is encoded, a byte. */
static double calls_per_byte(const lab *b, const char *what, size_t n, uint32_t map_some) {
    char        *text = (char *)must(n);
    int32_t     *out  = (int32_t *)must((n + 1) * 3 * sizeof *out);
    const size_t m    = strlen(what);
    mock         meter;
    desk         d;
    size_t       count;
    for (size_t i = 0; i < n; i++) text[i] = what[i % m];
    mock_init(&meter, b->f.bytes, b->f.n, 16, map_some, 0);
    b->rig.model->source = meter.source;
    CHECK_EQ(desk_open(&d, b->rig.model, n, NULL), L3_OK);
    meter.maps = meter.reads = 0;
    CHECK_EQ(l3_tokenize(d.tokenizer, text, n, L3_TEXT_SPECIAL, out, 3 * (n + 1), &count, NULL), L3_OK);
    desk_close(&d);
    b->rig.model->source = b->rig.mock.source;
    free(text);
    free(out);
    return (double)(meter.maps + meter.reads) / (double)n;
}

TEST(work_grows_with_the_text) {
    static const char *const texts[] = {"e",   " ", "the cat ", "<s>", "<", "eteaeoeneiheserdle", "\n", "\xe2\x98\x83",
                                        "\xff"};
    lab                      b;
    double                   most = 0;
    REQUIRE(lab_open(&b, words(6), MAPPED, 10));
    for (int i = 0; i < 9; i++)
        for (uint32_t mapped = 0; mapped < 2; mapped++) {
            const double few  = calls_per_byte(&b, texts[i], 1000, mapped),
                         many = calls_per_byte(&b, texts[i], 64000, mapped);
            CHECK(many <= few * 1.1 + 0.1);
            if (many > most) most = many;
        }
    CHECK(most < 30);
    if (test_verbose()) fprintf(stderr, "  at most %.1f calls of map or read a byte\n", most);
    lab_close(&b);
}

int main(void) {
    RUN(fixture_encodings);
    RUN(fixture_lines);
    RUN(random_vocabularies);
    RUN(other_types_of_pieces);
    RUN(trained_vocabularies);
    RUN(random_ids_decode);
    RUN(special_text);
    RUN(special_space);
    RUN(begin_of_text);
    RUN(continued_text);
    RUN(too_little_room_for_ids);
    RUN(room_for_runs);
    RUN(calls_that_are_refused);
    RUN(pieces);
    RUN(any_source);
    RUN(sources_that_fail);
    RUN(work_grows_with_the_text);
    return test_report("tokenizer");
}
