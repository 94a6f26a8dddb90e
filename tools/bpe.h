/* bpe.h - trains a vocabulary: byte pair encoding as SentencePiece does it, for the tokenizer of l3_model.h.
 *
 *     bpe_words words;
 *     bpe       b;
 *     bpe_count(&words, paths, n_paths, 512 << 20);
 *     while (bpe_count_more(&words)) continue;
 *     bpe_begin(&b, &words, 0.9995, 16);
 *     while (b.pieces.n < 4000 && bpe_step(&b)) continue;
 *     for (size_t i = 0; i < b.pieces.n; i++) string_set_get(&b.texts, b.pieces.at[i], &n); // in the order of merging
 *     bpe_end(&b);
 *     bpe_words_close(&words);
 *
 * THE RULE. Text is cut into words. A word begins at every space (which belongs to it), and where letters, digits and signs
 * meet; nothing is merged across the ends of words. A word begins as its characters. Then, again and again, the two
 * neighbours that most often stand side by side in all words become a piece, and are merged wherever they do, from the left.
 * Ties: fewer characters first, then the lower bytes. Neighbours are counted wherever they stand, in "aaa" twice.
 *
 * The tokenizer, which merges the oldest piece first, arrives at the same symbols: what is between two ends that no merge
 * has crossed was merged as it would have been alone. For the same reason all neighbours that make one text are the same
 * two, so that pairs can be counted by the text they make.
 *
 * Not words, and never part of a piece: '\n', bytes that are no UTF-8, and characters too rare for the coverage that was
 * asked for. All of them go through byte tokens.
 *
 * Sections: >>characters >>words >>texts >>heap >>merging >>training */
#ifndef BPE_H
#define BPE_H

#include "text.h"

/* >>characters ------------------------------------------------------------------------------------------------------- */

#define BPE_MARK "\xe2\x96\x81" /* U+2581: a space, as the vocabulary writes it */

typedef enum bpe_class {
    BPE_BREAK, /* belongs to no word */
    BPE_SPACE,
    BPE_LETTER, /* and everything else that is no space, digit or sign */
    BPE_DIGIT,
    BPE_SIGN
} bpe_class;

/* Blocks of punctuation and symbols beyond ASCII, in Unicode 15. */
static inline bool bpe_is_sign(uint32_t c) {
    static const uint32_t signs[][2] = {
        {0x80, 0xa9},     {0xab, 0xb4},     {0xb6, 0xb9},     {0xbb, 0xbf},     {0xd7, 0xd7},       {0xf7, 0xf7},
        {0x2000, 0x206f}, {0x20a0, 0x20cf}, {0x2190, 0x2bff}, {0x2e00, 0x2e7f}, {0x3000, 0x3004},   {0x3008, 0x3020},
        {0x3030, 0x3030}, {0xfe10, 0xfe1f}, {0xfe30, 0xfe6f}, {0xff00, 0xff0f}, {0x1f000, 0x1faff},
    };
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++)
        if (c >= signs[i][0] && c <= signs[i][1]) return true;
    return false;
}

/* The class of the character at s, and its bytes. */
static inline bpe_class bpe_class_of(const char *s, size_t *n) {
    const unsigned char *p = (const unsigned char *)s;
    *n                     = text_char(s);
    if (*n == 1) {
        if (p[0] == '\n' || p[0] >= 0x80) return BPE_BREAK;
        if (p[0] == ' ') return BPE_SPACE;
        if (p[0] >= '0' && p[0] <= '9') return BPE_DIGIT;
        return (p[0] | 0x20) >= 'a' && (p[0] | 0x20) <= 'z' ? BPE_LETTER : BPE_SIGN;
    }
    if (*n == 3 && memcmp(s, BPE_MARK, 3) == 0) return BPE_SPACE;
    uint32_t c = p[0] & (0x7fu >> *n);
    for (size_t i = 1; i < *n; i++) c = c << 6 | (p[i] & 0x3fu);
    return bpe_is_sign(c) ? BPE_SIGN : BPE_LETTER;
}

/* >>words ------------------------------------------------------------------------------------------------------------
 * How often each word occurs. When the table has grown over `memory` the rarest words are dropped. */

enum { BPE_WORD = 128 }; /* bytes; what is longer is counted in parts */

typedef struct bpe_words {
    text_window window;
    string_set  words;  /* a space is one byte ' ' */
    uint64_t   *counts; /* (words.n,) */
    size_t      room;
    uint64_t    memory;  /* bytes, about */
    uint64_t    all;     /* words counted, the same ones too */
    uint64_t    outside; /* bytes in no word */
    uint64_t    rare;    /* words were dropped that had been seen less often than this; 0: none */
} bpe_words;

/* Where the word at w->from ends, or what is no word; false: not in what is here. */
static inline bool bpe_find_word(const text_window *w, size_t *stop, bool *is_word) {
    size_t i = w->from, n;
    if (!window_has(w, i)) return false;
    bpe_class class = bpe_class_of(w->bytes + i, &n);
    *is_word        = class != BPE_BREAK;
    *stop           = i += n;
    if (!*is_word) return true;
    for (; window_has(w, i); *stop = i += n) {
        const bpe_class now = bpe_class_of(w->bytes + i, &n);
        if (now <= BPE_SPACE || (class != BPE_SPACE && now != class) || i + n - w->from > BPE_WORD) return true;
        class = now;
    }
    return w->ends;
}

/* Words that are in a table already, or not yet. */
static inline void bpe_add_count(bpe_words *w, const char *word, size_t n, uint64_t count) {
    bool           added;
    const uint32_t number = string_set_add(&w->words, word, n, &added);
    if (added) {
        w->counts         = (uint64_t *)string_set_room(w->counts, &w->room, w->words.n, sizeof *w->counts);
        w->counts[number] = 0;
    }
    w->counts[number] += count;
}

/* Keeps at most half of the words, the more frequent ones. */
static inline void bpe_drop_rare(bpe_words *w) {
    string_set old    = w->words;
    uint64_t  *counts = w->counts, least = 1;
    uint32_t   kept = old.n;
    while (kept > old.n / 2) {
        least *= 2;
        kept = 0;
        for (uint32_t i = 0; i < old.n; i++) kept += counts[i] >= least;
    }
    memset(&w->words, 0, sizeof w->words);
    w->counts = NULL;
    w->room   = 0;
    for (uint32_t i = 0; i < old.n; i++) {
        size_t      n;
        const char *word = string_set_get(&old, i, &n);
        if (counts[i] >= least) bpe_add_count(w, word, n, counts[i]);
    }
    if (w->rare < least) w->rare = least;
    string_set_free(&old);
    free(counts);
}

static inline void bpe_add_word(bpe_words *w, const char *word, size_t n) {
    char copy[BPE_WORD + 4];
    w->all++;
    if (*word == BPE_MARK[0] && n >= 3 && memcmp(word, BPE_MARK, 3) == 0) {
        copy[0] = ' ';
        memcpy(copy + 1, word + 3, n - 3);
        word = copy;
        n -= 2;
    }
    bpe_add_count(w, word, n, 1);
    if (string_set_size(&w->words) + w->words.n * sizeof *w->counts > w->memory) bpe_drop_rare(w);
}

/* Begins to count the words of files; bpe_count_more() goes on for a while, and is false when all are counted. */
static inline void bpe_count(bpe_words *w, const char *const *paths, size_t n_paths, uint64_t memory) {
    memset(w, 0, sizeof *w);
    text_open(&w->window.text, paths, n_paths, false);
    w->window.space = true;
    w->memory       = memory;
}

static inline bool bpe_count_more(bpe_words *w) {
    text_window *text = &w->window;
    size_t       stop;
    bool         is_word;
    if (text->ends) window_end(text);
    if (!window_fill(text)) return false;
    while (bpe_find_word(text, &stop, &is_word)) {
        if (is_word) bpe_add_word(w, text->bytes + text->from, stop - text->from);
        else w->outside += stop - text->from;
        window_pass(text, stop);
    }
    return true;
}

static inline void bpe_words_close(bpe_words *w) {
    window_close(&w->window);
    string_set_free(&w->words);
    free(w->counts);
    memset(w, 0, sizeof *w);
}

/* >>texts ------------------------------------------------------------------------------------------------------------
 * Every text that two neighbours anywhere made together, the characters, and so the pieces. Symbols are their numbers. */

enum { BPE_MAX_PIECE = 256 }; /* characters of a piece, at most */
#define BPE_NONE UINT32_MAX

typedef struct bpe_text {
    uint64_t count, key; /* neighbours that make it, now and when the heap was last told */
    uint32_t rank;       /* of the piece, 0 merges first; BPE_NONE: it is none */
    uint32_t uses;       /* list of parts where it was made, in bpe.uses */
    uint32_t heap_at;    /* its place, BPE_NONE: outside */
    uint16_t characters;
    bool     changed; /* its count did, and it waits in bpe.changed */
} bpe_text;

/* A word, or what is between its rare characters. */
typedef struct bpe_part {
    size_t   start; /* in bpe.symbols */
    uint32_t n;
    uint64_t count;
} bpe_part;

typedef struct bpe_use {
    uint32_t part, next;
} bpe_use;

typedef struct bpe_array {
    uint32_t *at;
    size_t    n, room;
} bpe_array;

typedef struct bpe {
    uint32_t   max_piece; /* characters */
    string_set texts;
    bpe_text  *infos; /* (texts.n,) */
    bpe_part  *parts;
    bpe_use   *uses;
    bpe_array  symbols, heap, changed;
    bpe_array  pieces; /* texts, in the order of merging */
    bpe_array  chars;  /* single characters, the most frequent first */
    uint32_t   n_parts, free_use;
    size_t     n_uses, room_infos, room_parts, room_uses;
    uint64_t   outside; /* bytes of the text that go through byte tokens */
} bpe;

static inline void bpe_push(bpe_array *a, uint32_t v) {
    a->at         = (uint32_t *)string_set_room(a->at, &a->room, a->n + 1, sizeof *a->at);
    a->at[a->n++] = v;
}

static inline uint32_t bpe_text_of(bpe *b, const char *s, size_t n, uint32_t characters) {
    bool           added;
    const uint32_t number = string_set_add(&b->texts, s, n, &added);
    if (!added) return number;
    b->infos         = (bpe_text *)string_set_room(b->infos, &b->room_infos, b->texts.n, sizeof *b->infos);
    b->infos[number] = (bpe_text){0, 0, BPE_NONE, BPE_NONE, BPE_NONE, (uint16_t)characters, false};
    return number;
}

/* What two symbols make together, or BPE_NONE if that is too long for a piece. */
static inline uint32_t bpe_join(bpe *b, uint32_t left, uint32_t right) {
    char           both[4 * BPE_MAX_PIECE];
    size_t         n, m;
    const uint32_t characters = (uint32_t)b->infos[left].characters + b->infos[right].characters;
    if (characters > b->max_piece) return BPE_NONE;
    const char *s = string_set_get(&b->texts, left, &n), *t = string_set_get(&b->texts, right, &m);
    memcpy(both, s, n);
    memcpy(both + n, t, m);
    return bpe_text_of(b, both, n + m, characters);
}

/* bpe_join(b, left, right) == text, without looking anything up. */
static inline bool bpe_makes(const bpe *b, uint32_t left, uint32_t right, uint32_t text) {
    size_t      n, m, length;
    const char *s = string_set_get(&b->texts, left, &n), *t = string_set_get(&b->texts, right, &m),
               *both = string_set_get(&b->texts, text, &length);
    return n + m == length && memcmp(both, s, n) == 0 && memcmp(both + n, t, m) == 0;
}

/* >>heap -------------------------------------------------------------------------------------------------------------
 * Texts that are no pieces yet, the next one first. */

static inline bool bpe_before(const bpe *b, uint32_t x, uint32_t y) {
    const bpe_text *p = &b->infos[x], *q = &b->infos[y];
    size_t          n, m;
    if (p->key != q->key) return p->key > q->key;
    if (p->characters != q->characters) return p->characters < q->characters;
    const char *s = string_set_get(&b->texts, x, &n), *t = string_set_get(&b->texts, y, &m);
    const int   order = memcmp(s, t, n < m ? n : m);
    return order ? order < 0 : n < m;
}

static inline void bpe_heap_put(bpe *b, size_t i, uint32_t text) {
    b->heap.at[i]          = text;
    b->infos[text].heap_at = (uint32_t)i;
}

static inline void bpe_heap_up(bpe *b, size_t i, uint32_t text) {
    for (; i > 0 && bpe_before(b, text, b->heap.at[(i - 1) / 2]); i = (i - 1) / 2)
        bpe_heap_put(b, i, b->heap.at[(i - 1) / 2]);
    bpe_heap_put(b, i, text);
}

static inline void bpe_heap_down(bpe *b, size_t i, uint32_t text) {
    for (size_t child; (child = 2 * i + 1) < b->heap.n; i = child) {
        if (child + 1 < b->heap.n && bpe_before(b, b->heap.at[child + 1], b->heap.at[child])) child++;
        if (!bpe_before(b, b->heap.at[child], text)) break;
        bpe_heap_put(b, i, b->heap.at[child]);
    }
    bpe_heap_put(b, i, text);
}

static inline uint32_t bpe_heap_pop(bpe *b) {
    const uint32_t top = b->heap.at[0], last = b->heap.at[--b->heap.n];
    b->infos[top].heap_at = BPE_NONE;
    if (b->heap.n) bpe_heap_down(b, 0, last);
    return top;
}

/* Puts every text whose count changed where it now belongs, one after another. */
static inline void bpe_settle(bpe *b) {
    for (size_t i = 0; i < b->changed.n; i++) {
        const uint32_t text = b->changed.at[i];
        bpe_text      *info = &b->infos[text];
        info->changed       = false;
        info->key           = info->count;
        if (info->rank != BPE_NONE) continue;
        if (info->heap_at == BPE_NONE) bpe_push(&b->heap, text), info->heap_at = (uint32_t)(b->heap.n - 1);
        bpe_heap_up(b, info->heap_at, text);
        bpe_heap_down(b, info->heap_at, text);
    }
    b->changed.n = 0;
}

/* >>merging ---------------------------------------------------------------------------------------------------------- */

/* Remembers that a text is made in a part. */
static inline void bpe_add_use(bpe *b, uint32_t text, uint32_t part) {
    bpe_text *info = &b->infos[text];
    uint32_t  use  = b->free_use;
    if (info->uses != BPE_NONE && b->uses[info->uses].part == part) return;
    if (use != BPE_NONE) {
        b->free_use = b->uses[use].next;
    } else {
        b->uses = (bpe_use *)string_set_room(b->uses, &b->room_uses, b->n_uses + 1, sizeof *b->uses);
        use     = (uint32_t)b->n_uses++;
        if (use == BPE_NONE) cli_fail("the text is too large to train on at once; give less of it");
    }
    b->uses[use] = (bpe_use){part, info->uses};
    info->uses   = use;
}

/* The symbols left and right of a part come to stand side by side, or no longer do. */
static inline void bpe_count_pair(bpe *b, uint32_t part, uint32_t left, uint32_t right, bool come) {
    const uint64_t count = b->parts[part].count;
    const uint32_t text  = bpe_join(b, left, right);
    if (text == BPE_NONE) return;
    bpe_text *info = &b->infos[text];
    info->count += come ? count : 0 - count;
    if (!info->changed) bpe_push(&b->changed, text);
    info->changed = true;
    if (come && info->rank == BPE_NONE) bpe_add_use(b, text, part);
}

/* Symbols i and i + 1 of a part become one. */
static inline void bpe_merge(bpe *b, uint32_t part, uint32_t i, uint32_t text) {
    bpe_part *p = &b->parts[part];
    uint32_t *s = b->symbols.at + p->start;
    if (i > 0) bpe_count_pair(b, part, s[i - 1], s[i], false);
    bpe_count_pair(b, part, s[i], s[i + 1], false);
    if (i + 2 < p->n) bpe_count_pair(b, part, s[i + 1], s[i + 2], false);
    s[i] = text;
    memmove(s + i + 1, s + i + 2, (p->n - i - 2) * sizeof *s);
    p->n--;
    if (i > 0) bpe_count_pair(b, part, s[i - 1], s[i], true);
    if (i + 1 < p->n) bpe_count_pair(b, part, s[i], s[i + 1], true);
}

/* Merges a part with a new piece: the leftmost pair first. */
static inline void bpe_merge_part(bpe *b, uint32_t part, uint32_t text) {
    const bpe_part *p = &b->parts[part];
    for (uint32_t i = 0; i + 1 < p->n; i++) {
        const uint32_t *s = b->symbols.at + p->start + i;
        if (bpe_makes(b, s[0], s[1], text)) bpe_merge(b, part, i, text);
    }
}

/* Makes the next piece. False: there are no two neighbours left that could be merged. */
static inline bool bpe_step(bpe *b) {
    if (b->heap.n == 0 || b->infos[b->heap.at[0]].count == 0) return false;
    const uint32_t text = bpe_heap_pop(b);
    b->infos[text].rank = (uint32_t)b->pieces.n;
    bpe_push(&b->pieces, text);
    for (uint32_t use = b->infos[text].uses, next; use != BPE_NONE; use = next) {
        bpe_merge_part(b, b->uses[use].part, text);
        next              = b->uses[use].next;
        b->uses[use].next = b->free_use;
        b->free_use       = use;
    }
    bpe_settle(b);
    return true;
}

/* >>training --------------------------------------------------------------------------------------------------------- */

/* The next character of a word, as the vocabulary writes it. */
static inline const char *bpe_next_char(const char **at, size_t *n) {
    const char *s = *at;
    *n            = text_char(s);
    *at += *n;
    if (*s != ' ') return s;
    *n = 3;
    return BPE_MARK;
}

typedef struct bpe_char {
    const char *bytes;
    size_t      n;
    uint64_t    count;
} bpe_char;

static inline int bpe_compare_chars(const void *x, const void *y) {
    const bpe_char *a = (const bpe_char *)x, *b = (const bpe_char *)y;
    if (a->count != b->count) return a->count > b->count ? -1 : 1;
    const int order = memcmp(a->bytes, b->bytes, a->n < b->n ? a->n : b->n);
    return order ? order : (int)a->n - (int)b->n;
}

/* Every character of the words with its count, the most frequent first; in malloc memory, its bytes in *set. */
static inline bpe_char *bpe_count_chars(const bpe_words *w, string_set *set) {
    bpe_char *chars = NULL;
    size_t    room  = 0, length, n;
    for (uint32_t i = 0; i < w->words.n; i++) {
        const char *s = string_set_get(&w->words, i, &length), *end = s + length;
        while (s < end) {
            bool           added;
            const char    *c      = bpe_next_char(&s, &n);
            const uint32_t number = string_set_add(set, c, n, &added);
            chars                 = (bpe_char *)string_set_room(chars, &room, set->n, sizeof *chars);
            chars[number].count   = (added ? 0 : chars[number].count) + w->counts[i];
        }
    }
    for (uint32_t i = 0; i < set->n; i++) chars[i].bytes = string_set_get(set, i, &chars[i].n);
    if (set->n) qsort(chars, set->n, sizeof *chars, bpe_compare_chars);
    return chars;
}

/* Makes symbols of the most frequent characters, until they are this share of all. */
static inline void bpe_choose_chars(bpe *b, const bpe_words *w, double coverage) {
    string_set set   = {0};
    bpe_char  *chars = bpe_count_chars(w, &set);
    uint64_t   all = 0, covered = 0;
    for (uint32_t i = 0; i < set.n; i++) all += chars[i].count;
    for (uint32_t i = 0; i < set.n && (double)covered < coverage * (double)all; i++) {
        bpe_push(&b->chars, bpe_text_of(b, chars[i].bytes, chars[i].n, 1));
        covered += chars[i].count;
    }
    string_set_free(&set);
    free(chars);
}

/* The symbols from `start` on are a part. */
static inline void bpe_add_part(bpe *b, size_t start, uint64_t count) {
    const uint32_t part = b->n_parts, n = (uint32_t)(b->symbols.n - start);
    if (n == 0) return;
    b->parts       = (bpe_part *)string_set_room(b->parts, &b->room_parts, (size_t)part + 1, sizeof *b->parts);
    b->parts[part] = (bpe_part){start, n, count};
    b->n_parts++;
    for (uint32_t i = 0; i + 1 < n; i++)
        bpe_count_pair(b, part, b->symbols.at[start + i], b->symbols.at[start + i + 1], true);
}

/* Cuts a word where its characters are too rare to be symbols. */
static inline void bpe_cut_word(bpe *b, const char *s, size_t length, uint64_t count) {
    const char *end   = s + length;
    size_t      start = b->symbols.n, n;
    while (s < end) {
        const char    *c    = bpe_next_char(&s, &n);
        const uint32_t text = string_set_find(&b->texts, c, n);
        if (text < b->chars.n) {
            bpe_push(&b->symbols, text);
            continue;
        }
        b->outside += n * count;
        bpe_add_part(b, start, count);
        start = b->symbols.n;
    }
    bpe_add_part(b, start, count);
}

/* Everything as it is before the first merge. coverage: 0 ... 1; max_piece: characters, 1 ... BPE_MAX_PIECE. */
static inline void bpe_begin(bpe *b, const bpe_words *w, double coverage, uint32_t max_piece) {
    memset(b, 0, sizeof *b);
    b->max_piece = max_piece;
    b->free_use  = BPE_NONE;
    b->outside   = w->outside;
    bpe_choose_chars(b, w, coverage);
    for (uint32_t i = 0; i < w->words.n; i++) {
        size_t      n;
        const char *s = string_set_get(&w->words, i, &n);
        bpe_cut_word(b, s, n, w->counts[i]);
    }
    bpe_settle(b);
}

/* Tokens of the whole text now. Words that were dropped are not in it, nor is a cut that made a long word two. */
static inline uint64_t bpe_tokens(const bpe *b) {
    uint64_t n = b->outside;
    for (uint32_t i = 0; i < b->n_parts; i++) n += b->parts[i].n * b->parts[i].count;
    return n;
}

static inline void bpe_end(bpe *b) {
    string_set_free(&b->texts);
    free(b->infos);
    free(b->parts);
    free(b->uses);
    free(b->symbols.at);
    free(b->heap.at);
    free(b->changed.at);
    free(b->pieces.at);
    free(b->chars.at);
    memset(b, 0, sizeof *b);
}

#endif /* BPE_H */
