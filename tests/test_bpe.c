/* test_bpe.c - tools/bpe.h against a trainer that follows its rule literally: before every step each word is tokenized anew
 * and all neighbours are counted again. Its words, characters and classes are found in its own way, too. */
#define TEXT_ROOM 48 /* so that words fall between two reads */

#include "../tools/bpe.h"

#include "make_model.h"
#include "model.h"

/* ---- the plain trainer ---- */

enum { MAX_SYMBOLS = 160, MAX_WORDS = 3000, MAX_TEXTS = 20000 };

typedef struct plain_text {
    char     bytes[700];
    size_t   n;
    uint32_t characters;
    uint64_t count;
    size_t   left; /* bytes of the left neighbour; of a pair */
} plain_text;

typedef struct plain {
    mk_buf      text;                            /* of all words, as the vocabulary writes it */
    uint32_t    starts[MAX_WORDS + 1], n_words;  /* in text */
    uint32_t    symbols[MAX_SYMBOLS], n_symbols; /* starts of the symbols of one word; its end behind them */
    plain_text *pieces, *chars, *pairs;
    uint32_t    n_pieces, n_chars, n_pairs;
    uint64_t    outside;
} plain;

/* Characters that tests use, with what they are: (s)pace, (l)etter, (d)igit, si(g)n, (b)reak. */
static const struct {
    const char *utf8;
    char        is;
} known[] = {{"a", 'l'},
             {"b", 'l'},
             {" ", 's'},
             {"1", 'd'},
             {",", 'g'},
             {"\n", 'b'},
             {"z", 'l'},
             {"\xc3\xa9", 'l'},
             {"\t", 'g'},
             {"\xe2\x80\x94", 'g'},
             {"\xff", 'b'},
             {"\xe2\x96\x81", 's'},
             {"\xe6\x97\xa5", 'l'},
             {"\xf0\x9f\x98\x80", 'g'},
             {"\xc2\xbd", 'g'},
             {"\xf0\x90\x8d\x88", 'l'},
             {"'", 'g'},
             {"Q", 'l'},
             {"9", 'd'},
             {"\xe2\x80", 'b'}};
enum { KNOWN = sizeof known / sizeof known[0] };

/* What stands at p (zero-terminated); *n: its bytes. */
static char look(const char *p, size_t *n) {
    const unsigned char c = (unsigned char)*p;
    for (uint32_t i = 0; i < KNOWN; i++) {
        *n = strlen(known[i].utf8);
        if (known[i].is != 'b' && strncmp(p, known[i].utf8, *n) == 0) return known[i].is;
    }
    *n = 1;
    if (c >= 0x80 || c == '\n') return 'b';
    return c == ' ' ? 's' : c >= '0' && c <= '9' ? 'd' : (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ? 'l' : 'g';
}

static void plain_end_word(plain *t) {
    if (t->text.n > t->starts[t->n_words]) t->starts[++t->n_words] = (uint32_t)t->text.n;
}

/* One document. */
static void plain_words(plain *t, const char *p) {
    char   before = 'b';
    size_t length = 0; /* of the word, a space being one byte unless it came as U+2581 */
    for (size_t n, first = 1; first || *p; p += n) {
        const int  dummy = first != 0;
        const char now   = dummy ? 's' : look(p, &n);
        if (dummy) n = 0, first = 0;
        const size_t bytes = dummy ? 1 : n;
        if (now == 'b' || now == 's' || (before != 's' && before != now) || length + bytes > 128)
            plain_end_word(t), length = 0;
        before = now;
        length += bytes;
        if (now == 'b') t->outside += n;
        else mk_put(&t->text, now == 's' ? "\xe2\x96\x81" : p, now == 's' ? 3 : n);
    }
    plain_end_word(t);
}

static plain_text *plain_find(plain_text *list, uint32_t n, const char *bytes, size_t length) {
    for (uint32_t i = 0; i < n; i++)
        if (list[i].n == length && memcmp(list[i].bytes, bytes, length) == 0) return &list[i];
    return NULL;
}

static plain_text *plain_add(plain_text *list, uint32_t *n, const char *bytes, size_t length, uint32_t characters,
                             uint64_t count) {
    plain_text *t = plain_find(list, *n, bytes, length);
    if (!t) {
        t = &list[(*n)++];
        memcpy(t->bytes, bytes, length);
        t->n          = length;
        t->characters = characters;
        t->count      = 0;
    }
    t->count += count;
    return t;
}

/* More often, shorter, lower. */
static int plain_better(const plain_text *a, const plain_text *b) {
    const int order = memcmp(a->bytes, b->bytes, a->n < b->n ? a->n : b->n);
    if (a->count != b->count) return a->count > b->count;
    if (a->characters != b->characters) return a->characters < b->characters;
    return order ? order < 0 : a->n < b->n;
}

static const char *plain_bytes(const plain *t) {
    const void *bytes = t->text.data;
    return (const char *)bytes;
}

static uint32_t plain_char(const char *p) {
    const unsigned char c = (unsigned char)*p;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

static uint32_t plain_count_chars(const char *p, size_t n) {
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)p[i] & 0xc0) != 0x80;
    return count;
}

static void plain_choose_chars(plain *t, double coverage) {
    uint64_t all = 0, covered = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->text.n; i += plain_char(plain_bytes(t) + i), all++)
        plain_add(t->chars, &t->n_chars, plain_bytes(t) + i, plain_char(plain_bytes(t) + i), 1, 1);
    for (; n < t->n_chars && (double)covered < coverage * (double)all; n++) {
        for (uint32_t i = n + 1; i < t->n_chars; i++)
            if (plain_better(&t->chars[i], &t->chars[n])) {
                const plain_text x = t->chars[n];
                t->chars[n]        = t->chars[i];
                t->chars[i]        = x;
            }
        covered += t->chars[n].count;
    }
    t->n_chars = n;
}

/* The piece that symbols i and i + 1 make: its number, or UINT32_MAX. A rare character is in no piece. */
static uint32_t plain_rank(plain *t, uint32_t i) {
    const plain_text *p =
        plain_find(t->pieces, t->n_pieces, plain_bytes(t) + t->symbols[i], t->symbols[i + 2] - t->symbols[i]);
    return p ? (uint32_t)(p - t->pieces) : UINT32_MAX;
}

/* A word from its characters: the oldest piece, the leftmost of equals, until there is none. */
static void plain_encode(plain *t, uint32_t word) {
    t->n_symbols = 0;
    for (uint32_t at = t->starts[word]; at < t->starts[word + 1]; at += plain_char(plain_bytes(t) + at))
        t->symbols[t->n_symbols++] = at;
    t->symbols[t->n_symbols] = t->starts[word + 1];
    for (;;) {
        uint32_t best = UINT32_MAX, where = 0;
        for (uint32_t i = 0; i + 1 < t->n_symbols; i++) {
            const uint32_t rank = plain_rank(t, i);
            if (rank < best) best = rank, where = i;
        }
        if (best == UINT32_MAX) return;
        memmove(t->symbols + where + 1, t->symbols + where + 2, (t->n_symbols - where - 1) * sizeof *t->symbols);
        t->n_symbols--;
    }
}

static int plain_is_rare(plain *t, uint32_t i) {
    const size_t n = t->symbols[i + 1] - t->symbols[i];
    return n == plain_char(plain_bytes(t) + t->symbols[i]) &&
           !plain_find(t->chars, t->n_chars, plain_bytes(t) + t->symbols[i], n);
}

static void plain_count_pairs(plain *t, uint32_t max_piece) {
    t->n_pairs = 0;
    for (uint32_t word = 0; word < t->n_words; word++) {
        plain_encode(t, word);
        for (uint32_t i = 0; i + 1 < t->n_symbols; i++) {
            const char    *p = plain_bytes(t) + t->symbols[i];
            const size_t   n = t->symbols[i + 2] - t->symbols[i];
            const uint32_t c = plain_count_chars(p, n);
            if (c > max_piece || plain_is_rare(t, i) || plain_is_rare(t, i + 1)) continue;
            plain_text *pair = plain_add(t->pairs, &t->n_pairs, p, n, c, 1);
            if (pair->count == 1) pair->left = t->symbols[i + 1] - t->symbols[i];
            CHECK_EQ(pair->left, t->symbols[i + 1] - t->symbols[i]); /* the same text is always the same two */
        }
    }
}

static int plain_step(plain *t, uint32_t max_piece) {
    plain_text *best = NULL;
    plain_count_pairs(t, max_piece);
    for (uint32_t i = 0; i < t->n_pairs; i++)
        if (!best || plain_better(&t->pairs[i], best)) best = &t->pairs[i];
    if (best) t->pieces[t->n_pieces++] = *best;
    return best != NULL;
}

static uint64_t plain_tokens(plain *t) {
    uint64_t n = t->outside;
    for (uint32_t word = 0; word < t->n_words; word++) {
        plain_encode(t, word);
        for (uint32_t i = 0; i < t->n_symbols; i++) n += plain_is_rare(t, i) ? t->symbols[i + 1] - t->symbols[i] : 1;
    }
    return n;
}

static plain *plain_new(void) {
    plain *t  = (plain *)cli_malloc(sizeof *t);
    t->pieces = (plain_text *)cli_malloc(1000 * sizeof(plain_text));
    t->chars  = (plain_text *)cli_malloc(1000 * sizeof(plain_text));
    t->pairs  = (plain_text *)cli_malloc(MAX_TEXTS * sizeof(plain_text));
    return t;
}

static void plain_free(plain *t) {
    free(t->text.data);
    free(t->pieces);
    free(t->chars);
    free(t->pairs);
    free(t);
}

/* ---- both on one text ---- */

static int same_texts(const bpe *b, const bpe_array *got, const plain_text *want, size_t n) {
    if (!CHECK_EQ(got->n, n)) return 0;
    for (size_t i = 0; i < n; i++) {
        size_t      length;
        const char *text = string_set_get(&b->texts, got->at[i], &length);
        if (CHECK_EQ(length, want[i].n) && CHECK_MEM(text, want[i].bytes, length)) continue;
        fprintf(stderr, "    text %u: \"%.*s\" and \"%.*s\"\n", (unsigned)i, (int)length, text, (int)want[i].n,
                want[i].bytes);
        return 0;
    }
    return 1;
}

typedef struct trial {
    uint32_t pieces, max_piece;
    double   coverage;
} trial;

static void count_all(bpe_words *w, const char *const *paths, size_t n, uint64_t memory) {
    bpe_count(w, paths, n, memory);
    while (bpe_count_more(w)) continue;
}

/* text: zero-terminated, a document. */
static int check_training(const char *text, trial with) {
    char        path[600];
    const char *file = test_temp("text", path, sizeof path);
    plain      *t    = plain_new();
    bpe_words   words;
    bpe         b;
    int         ok = CHECK(test_write(file, text, strlen(text)));
    plain_words(t, text);
    plain_choose_chars(t, with.coverage);
    count_all(&words, &file, 1, 1 << 20);
    bpe_begin(&b, &words, with.coverage, with.max_piece);
    ok = ok && CHECK_EQ(words.all, t->n_words) && same_texts(&b, &b.chars, t->chars, t->n_chars) &&
         CHECK_EQ(bpe_tokens(&b), plain_tokens(t));
    while (ok && t->n_pieces < with.pieces) {
        const int more = plain_step(t, with.max_piece);
        ok             = CHECK_EQ(bpe_step(&b), more);
        if (!more) break;
    }
    ok = ok && same_texts(&b, &b.pieces, t->pieces, t->n_pieces) && CHECK_EQ(bpe_tokens(&b), plain_tokens(t));
    bpe_end(&b);
    bpe_words_close(&words);
    plain_free(t);
    return ok;
}

/* ---- texts ---- */

static void random_words(char *text, size_t room, test_rng *r, uint32_t kinds) {
    size_t n = 0;
    for (uint32_t left = 1 + test_below(r, 200); left > 0; left--) {
        const uint32_t which = test_below(r, kinds), times = test_below(r, 30) ? 1 : 1 + test_below(r, 9);
        for (uint32_t i = 0; i < times && n + 8 < room; i++)
            n += (size_t)snprintf(text + n, room - n, "%s", known[which].utf8);
    }
    text[n] = '\0';
}

TEST(random_texts) {
    static const double coverages[] = {1, 1, 0.97, 0.9, 0.5};
    test_rng            r           = {1};
    for (int turn = 0; turn < (test_flag("L3_LONG") ? 6000 : 500); turn++) {
        char        text[900];
        const trial with = {test_below(&r, 40), 1 + test_below(&r, turn % 2 ? 6 : 40), coverages[turn % 5]};
        random_words(text, sizeof text, &r, 2 + test_below(&r, KNOWN - 1));
        if (strcmp(text, "") == 0 || check_training(text, with)) continue;
        fprintf(stderr, "    turn %d, %u pieces of %u, coverage %g: \"%s\"\n", turn, with.pieces, with.max_piece,
                with.coverage, text);
        return;
    }
}

TEST(repeated_letters) {
    char text[700];
    for (uint32_t n = 1; n < 600; n += 1 + n / 5) {
        memset(text, 'a', n);
        text[n] = '\0';
        check_training(text, (trial){40, 16, 1});
        for (uint32_t i = 0; i < n; i += 3) text[i] = 'b';
        check_training(text, (trial){40, 256, 1});
    }
}

TEST(real_text) {
    unsigned char *readme = test_read("README.md", NULL);
    REQUIRE(readme != NULL);
    const void *bytes = readme;
    if (strlen((const char *)bytes) > 3000) readme[3000] = '\0';
    check_training((const char *)bytes, (trial){150, 16, 1});
    check_training((const char *)bytes, (trial){40, 16, 0.98});
    free(readme);
}

/* ---- the table of words ---- */

static uint64_t count_of(const bpe_words *w, const char *word) {
    const uint32_t i = string_set_find(&w->words, word, strlen(word));
    return i == UINT32_MAX ? 0 : w->counts[i];
}

TEST(rare_words_are_dropped) {
    char        path[600];
    const char *file = test_temp("text", path, sizeof path);
    FILE       *f    = fopen(file, "wb");
    bpe_words   all, few;
    REQUIRE(f != NULL);
    for (int i = 0; i < 20000; i++)
        fprintf(f, "the %c%c%c%c of", 'a' + i % 26, 'a' + i / 26 % 26, 'a' + i / 676 % 26, 'a' + i / 17576);
    fclose(f);
    count_all(&all, &file, 1, 16 << 20);
    count_all(&few, &file, 1, 64 << 10);
    CHECK(all.rare == 0 && count_of(&all, " the") == 1 && count_of(&all, " ofthe") == 19999 &&
          count_of(&all, " baaa") == 1);
    CHECK(few.rare == 2 && few.all == all.all && count_of(&few, " ofthe") == 19999);
    CHECK(all.words.n > 20000 && few.words.n < 3000);
    CHECK(string_set_size(&few.words) + few.words.n * sizeof *few.counts <= 64 << 10);
    bpe_words_close(&all);
    bpe_words_close(&few);
}

TEST(documents_and_files) {
    char        paths[2][600];
    const char *files[2] = {test_temp("one", paths[0], 600), test_temp("two", paths[1], 600)};
    bpe_words   w;
    REQUIRE(test_write(files[0], "one two\n<|endoftext|>\none", 25) && test_write(files[1], " one\none", 8));
    count_all(&w, files, 2, 1 << 20);
    CHECK_EQ(count_of(&w, " one"), 3); /* each begins a document; of the last one only the second space is its own */
    CHECK_EQ(count_of(&w, " "), 1);
    CHECK_EQ(count_of(&w, " two"), 1);
    CHECK_EQ(count_of(&w, "one"), 1);
    CHECK_EQ(w.outside, 1);
    CHECK_EQ(w.window.text.text_bytes, 7 + 3 + 8);
    bpe_words_close(&w);
}

int main(void) {
    RUN(random_texts);
    RUN(repeated_letters);
    RUN(real_text);
    RUN(rare_words_are_dropped);
    RUN(documents_and_files);
    return test_report("bpe");
}
