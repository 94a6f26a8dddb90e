/* l3_tokenizer.c - makes a tokenizer from text, and uses one: token IDs of lines, lines of token IDs, shards of tokens. */
#include "../l3_model.h"

#include "bpe.h"
#include "gguf_write.h"
#include "shard.h"

enum { BYTE_PIECES = 256, FIRST_PIECES = 3 + BYTE_PIECES, MAX_VOCAB = 1 << 20 };
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_BYTE = 6 }; /* tokenizer.ggml.token_type */

typedef struct settings {
    const char  *output, *name;
    uint32_t     vocab, max_piece;
    float        coverage;
    size_t       memory;
    cli_words    special;
    bool         lines;
    const char **operands; /* the verb first */
    size_t       n;
} settings;

static const char *const about =
    "train   makes a vocabulary from text: byte pair encoding with byte fallback, as SentencePiece\n"
    "        does it. Words begin at spaces and where letters, digits and signs meet.\n"
    "encode  prints the token IDs of every line of FILE, without BOS.\n"
    "decode  prints the text of every line of token IDs.\n"
    "shard   tokenizes text once, for training: every document as BOS, its tokens, EOS.\n"
    "TOK.gguf is a tokenizer or any model with one. FILE and TEXT may be - for standard input. TEXT\n"
    "may end in .xz or .gz; a line that is exactly <|endoftext|> ends a document.";

static const char usage[] = "train --vocab N -o TOK.gguf TEXT... | encode TOK.gguf FILE | decode TOK.gguf FILE |\n"
                            "       l3-tokenizer shard TOK.gguf -o OUT.tokens [--lines] TEXT...";

static void parse(settings *s, int argc, char **argv) {
    const cli_option options[] = {
        {"-o", CLI_TEXT, &s->output, "FILE", "train, shard: where to write", 0, 0},
        {"--vocab", CLI_U32, &s->vocab, "N", "train: tokens in all", FIRST_PIECES + 1, MAX_VOCAB},
        {"--character-coverage", CLI_REAL, &s->coverage, "SHARE",
         "train: rarer characters than this go through byte tokens (0.9995)", 0, 1},
        {"--max-piece", CLI_U32, &s->max_piece, "N", "train: characters of a piece at most (16)", 1, BPE_MAX_PIECE},
        {"--special", CLI_LIST, &s->special, "TEXT", "train: one more control token; may be repeated", 0, 0},
        {"--memory", CLI_SIZE, &s->memory, "BYTES[K|M|G]",
         "train: for counting words; the rarest go when it is full (512M)", 0, 0},
        {"--name", CLI_TEXT, &s->name, "TEXT", "train: general.name of the file", 0, 0},
        {"--lines", CLI_FLAG, &s->lines, "", "shard: every line is a document", 0, 0},
        {0},
    };
    const cli_program program = {"l3-tokenizer", usage, about, options};
    s->operands               = (const char **)cli_malloc((uint64_t)argc * sizeof *s->operands);
    s->n                      = (size_t)cli_parse(&program, argc, argv, s->operands, argc);
}

/* A tokenizer, or any model with one. */
static void open_tokenizer(cli_engine *e, const char *path) {
    cli_open_file(e, path, 0);
    if (!e->info->has_tokenizer)
        cli_fail("%s: it has no tokenizer, or another than \"llama\" without normalization", path);
}

/* ---- train ---- */

static void count_words(bpe_words *w, const settings *s) {
    bpe_count(w, s->operands + 1, s->n - 1, s->memory);
    while (bpe_count_more(w)) text_report(&w->window.text, false);
    text_report(&w->window.text, true);
    if (w->window.text.text_bytes == 0) cli_fail("%s: there is no text in it", s->operands[1]);
}

static void make_pieces(bpe *b, const bpe_words *w, const settings *s) {
    bpe_begin(b, w, (double)s->coverage, s->max_piece);
    const size_t fixed = FIRST_PIECES + s->special.n + b->chars.n;
    if (s->vocab < fixed)
        cli_fail("--vocab %" PRIu32
                 ": 256 bytes, %zu special tokens and %zu characters of this text are %zu already; at "
                 "least that, or a lower --character-coverage, is right",
                 s->vocab, 3 + s->special.n, b->chars.n, fixed);
    const size_t merges = s->vocab - fixed;
    while (b->pieces.n < merges && bpe_step(b)) {
        if (cli_stopped) cli_fail("stopped");
        cli_report(b->pieces.n, merges, "pieces");
    }
    if (b->pieces.n < merges)
        cli_fail("--vocab %" PRIu32 ": this text allows %zu tokens at most; so many, or more text, is right", s->vocab,
                 fixed + b->pieces.n);
}

static void put_pieces(gguf_writer *w, const bpe *b, const bpe_array *pieces) {
    for (size_t i = 0; i < pieces->n; i++) {
        size_t      n;
        const char *piece = string_set_get(&b->texts, pieces->at[i], &n);
        gguf_put_text(&w->keys, piece, n);
    }
}

static void put_tokens(gguf_writer *w, const bpe *b, const settings *s) {
    static const char *const first[] = {"<unk>", "<s>", "</s>"};
    gguf_array(w, "tokenizer.ggml.tokens", L3_GGUF_STRING, s->vocab);
    for (int i = 0; i < 3; i++) gguf_put_text(&w->keys, first[i], strlen(first[i]));
    for (unsigned i = 0; i < BYTE_PIECES; i++) {
        char piece[8];
        gguf_put_text(&w->keys, piece, (size_t)snprintf(piece, sizeof piece, "<0x%02X>", i));
    }
    put_pieces(w, b, &b->pieces);
    put_pieces(w, b, &b->chars);
    for (size_t i = 0; i < s->special.n; i++) gguf_put_text(&w->keys, s->special.items[i], strlen(s->special.items[i]));
}

/* What merges first has the highest score, 0; characters come last. */
static void put_scores(gguf_writer *w, uint32_t vocab, uint32_t n_pieces) {
    gguf_array(w, "tokenizer.ggml.scores", L3_GGUF_F32, vocab);
    for (uint32_t id = 0; id < vocab; id++) {
        const bool piece = id >= FIRST_PIECES && id - FIRST_PIECES < n_pieces;
        gguf_put_float(&w->keys, piece && id > FIRST_PIECES ? -(float)(id - FIRST_PIECES) : 0);
    }
}

static void put_types(gguf_writer *w, uint32_t vocab, uint32_t n_pieces) {
    gguf_array(w, "tokenizer.ggml.token_type", L3_GGUF_I32, vocab);
    for (uint32_t id = 0; id < vocab; id++)
        gguf_put_number(&w->keys,
                        id == 0                        ? TYPE_UNKNOWN
                        : id < 3                       ? TYPE_CONTROL
                        : id < FIRST_PIECES            ? TYPE_BYTE
                        : id - FIRST_PIECES < n_pieces ? TYPE_NORMAL
                                                       : TYPE_CONTROL,
                        4);
}

static void write_tokenizer(const bpe *b, const bpe_words *words, const settings *s) {
    const uint32_t n_pieces = (uint32_t)(b->pieces.n + b->chars.n);
    char           name[32];
    gguf_writer    w;
    snprintf(name, sizeof name, "bpe-%" PRIu32, s->vocab);
    gguf_begin(&w, s->output);
    gguf_string(&w, "general.architecture", "l3");
    gguf_string(&w, "general.type", "tokenizer");
    gguf_string(&w, "general.name", s->name ? s->name : name);
    gguf_string(&w, "tokenizer.ggml.model", "llama");
    put_tokens(&w, b, s);
    put_scores(&w, s->vocab, n_pieces);
    put_types(&w, s->vocab, n_pieces);
    gguf_u32(&w, "tokenizer.ggml.bos_token_id", 1);
    gguf_u32(&w, "tokenizer.ggml.eos_token_id", 2);
    gguf_u32(&w, "tokenizer.ggml.unknown_token_id", 0);
    gguf_bool(&w, "tokenizer.ggml.add_bos_token", true);
    gguf_bool(&w, "tokenizer.ggml.add_space_prefix", true);
    gguf_key(&w, "tokenizer.l3.text_bytes", L3_GGUF_U64);
    gguf_put_number(&w.keys, words->window.text.text_bytes, 8);
    gguf_f32(&w, "tokenizer.l3.character_coverage", s->coverage);
    gguf_u32(&w, "tokenizer.l3.max_piece", s->max_piece);
    gguf_begin_data(&w);
    gguf_end(&w);
}

/* How much text, how well it compresses, how long it took. */
static void report_training(const bpe *b, const bpe_words *w, double seconds) {
    const double bytes = (double)w->window.text.text_bytes;
    if (w->rare)
        fprintf(stderr, "words seen less than %" PRIu64 " times were dropped when there was no more room; --memory\n",
                w->rare);
    fprintf(stderr,
            "%s of text, %" PRIu64 " words, %" PRIu32 " different; %zu pieces and %zu characters\n"
            "%.4f bytes a token on this text; %.1f s, %s of memory\n",
            cli_bytes(bytes), w->all, w->words.n, b->pieces.n, b->chars.n, bytes / (double)bpe_tokens(b), seconds,
            cli_bytes((double)cli_peak_rss()));
}

static void check_special(const settings *s) {
    for (size_t i = 0; i < s->special.n; i++) {
        const char *text  = s->special.items[i];
        bool        twice = strcmp(text, "<unk>") == 0 || strcmp(text, "<s>") == 0 || strcmp(text, "</s>") == 0;
        for (size_t j = 0; j < i; j++) twice = twice || strcmp(text, s->special.items[j]) == 0;
        if (!*text || strlen(text) > 4096) cli_usage("--special %.20s: 1 to 4096 bytes of text are expected", text);
        if (twice) cli_usage("--special %s: there is such a token already", text);
    }
}

static void train(settings *s) {
    const double start = cli_now();
    bpe_words    words;
    bpe          b;
    if (!s->vocab || !s->output || s->n < 2) cli_usage("train needs more: train --vocab N -o TOK.gguf TEXT...");
    check_special(s);
    count_words(&words, s);
    make_pieces(&b, &words, s);
    write_tokenizer(&b, &words, s);
    report_training(&b, &words, cli_now() - start);
    bpe_end(&b);
    bpe_words_close(&words);
}

/* ---- encode ---- */

static void print_ids(const token_piece *p, bool first) {
    char text[16];
    for (size_t i = 0; i < p->n; i++, first = false) {
        const int n = snprintf(text, sizeof text, first ? "%" PRId32 : " %" PRId32, p->ids[i]);
        fwrite(text, 1, (size_t)n, stdout);
    }
}

static void encode(const settings *s) {
    cli_engine   e;
    token_reader r;
    token_piece  p;
    bool         first = true;
    if (s->n != 3) cli_usage("encode needs two files: encode TOK.gguf FILE");
    open_tokenizer(&e, s->operands[1]);
    tokens_open(&r, e.model, s->operands + 2, 1, true);
    r.window.text.keep_empty = true;
    while (tokens_next(&r, &p)) {
        print_ids(&p, first);
        first = p.ends || (first && p.n == 0);
        if (p.ends) putchar('\n');
    }
    tokens_close(&r);
    cli_end_stdout();
    cli_close(&e);
}

/* ---- decode ---- */

/* Decimal IDs, a line after another. */
typedef struct id_parser {
    const char   *path;
    l3_tokenizer *tokenizer;
    uint64_t      line;
    int64_t       id; /* its digits so far; -1: none */
} id_parser;

static void end_id(id_parser *d) {
    const char *text;
    size_t      n;
    l3_error    err = {0};
    if (d->id < 0) return;
    if (l3_detokenize(d->tokenizer, (int32_t)d->id, &text, &n, &err) != L3_OK)
        cli_fail("%s: line %" PRIu64 ": %s", d->path, d->line, err.text);
    fwrite(text, 1, n, stdout);
    d->id = -1;
}

static void end_line(id_parser *d) {
    const char *text;
    size_t      n;
    end_id(d);
    l3_detokenize_end(d->tokenizer, &text, &n);
    fwrite(text, 1, n, stdout);
    putchar('\n');
    d->line++;
}

static void parse_ids(id_parser *d, const text_piece *p) {
    for (size_t i = 0; i < p->n; i++) {
        const char c = p->bytes[i];
        if (c == ' ' || c == '\t' || c == '\r') {
            end_id(d);
        } else if (c >= '0' && c <= '9') {
            d->id = (d->id < 0 ? 0 : d->id * 10) + (c - '0');
            if (d->id > INT32_MAX)
                cli_fail("%s: line %" PRIu64 ": a number is too large for a token ID", d->path, d->line);
        } else {
            cli_fail("%s: line %" PRIu64 ": decimal token IDs with spaces between are expected", d->path, d->line);
        }
    }
    if (p->ends) end_line(d);
}

static void decode(const settings *s) {
    cli_engine    e;
    cli_tokenizer t;
    text_reader   r;
    text_piece    p;
    id_parser     d = {.line = 1, .id = -1};
    if (s->n != 3) cli_usage("decode needs two files: decode TOK.gguf FILE");
    open_tokenizer(&e, s->operands[1]);
    cli_tokenizer_open(&t, e.model, 0);
    d.path      = s->operands[2];
    d.tokenizer = t.tokenizer;
    text_open(&r, s->operands + 2, 1, true);
    r.keep_empty = true;
    while (text_next(&r, &p)) parse_ids(&d, &p);
    text_close(&r);
    cli_end_stdout();
    cli_tokenizer_close(&t);
    cli_close(&e);
}

/* ---- shard ---- */

static void write_documents(shard_writer *w, token_reader *r) {
    token_piece p;
    while (tokens_next(r, &p)) {
        if (p.begins) shard_write(w, &r->info->bos, 1);
        shard_write(w, p.ids, p.n);
        if (p.ends) shard_write(w, &r->info->eos, 1);
        text_report(&r->window.text, false);
    }
    text_report(&r->window.text, true);
}

static void make_shard(const settings *s) {
    const double start = cli_now();
    cli_engine   e;
    token_reader r;
    shard_writer w;
    if (!s->output || s->n < 3) cli_usage("shard needs more: shard TOK.gguf -o OUT.tokens TEXT...");
    open_tokenizer(&e, s->operands[1]);
    shard_needs_ends(e.info);
    tokens_open(&r, e.model, s->operands + 2, s->n - 2, s->lines);
    shard_begin(&w, s->output, e.model);
    write_documents(&w, &r);
    const uint64_t text = r.window.text.text_bytes;
    if (text == 0) cli_fail("%s: there is no text in it", s->operands[2]);
    shard_end(&w, text);
    fprintf(stderr, "%" PRIu64 " tokens of %s, %.4f bytes a token; %.1f s, %.1f MB/s\n", w.tokens,
            cli_bytes((double)text), (double)text / (double)r.tokens, cli_now() - start,
            (double)text * 1e-6 / (cli_now() - start));
    tokens_close(&r);
    cli_close(&e);
}

int main(int argc, char **argv) {
    settings s = {.coverage = 0.9995f, .max_piece = 16, .memory = (size_t)512 << 20};
    parse(&s, argc, argv);
    const char *verb = s.n ? s.operands[0] : "";
    if (strcmp(verb, "train") == 0) train(&s);
    else if (strcmp(verb, "encode") == 0) encode(&s);
    else if (strcmp(verb, "decode") == 0) decode(&s);
    else if (strcmp(verb, "shard") == 0) make_shard(&s);
    else cli_usage("train, encode, decode or shard is expected first; --help says more");
    free(s.operands);
    free((void *)s.special.items);
    return 0;
}
