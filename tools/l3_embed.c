/* l3_embed.c - a model as something that a firmware project compiles: an image with checksums and a self-test, an assembler
 * file that includes it or a C array of its bytes, and a header that declares it and says what is in it. */
#define L3_NO_SIMD /* the self-test's numbers are plain C's */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "gguf_copy.h"

enum { LOGITS = 64, KV_TYPES = 3, NAME = 64 };
enum { ASSEMBLER, C_SOURCE, IMAGE }; /* what is written beside the header */

typedef struct settings {
    const char *in, *out, *name, *section;
    uint32_t    align, tokens; /* of the self-test; 0: none */
    int         kind;
    char       *image, *header; /* paths, in malloc memory */
    char        symbol[NAME], upper[NAME];
} settings;

/* What l3_session_selftest() will run and compare. */
typedef struct selftest {
    uint32_t n_tokens, n_logits;
    int32_t *tokens; /* (n_tokens,) */
    float   *logits; /* (KV_TYPES, n_logits) */
} selftest;

/* What the header says. */
typedef struct facts {
    l3_info  info;
    uint64_t bytes;     /* of the image */
    bool     types[32]; /* that its tensors have, by l3_type */
    char     name[64];  /* general.name without what would end a comment */
} facts;

/* ---- arguments ---- */

static char *path_with(const char *stem, size_t n, const char *ending) {
    char *path = (char *)cli_malloc(n + strlen(ending) + 1);
    memcpy(path, stem, n);
    strcpy(path + n, ending);
    return path;
}

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_identifier(const char *s) {
    size_t n = 0;
    while (is_letter(s[n]) || (n && is_digit(s[n]))) n++;
    return n > 0 && n < NAME && !s[n];
}

/* The name from a file's, with what C does not take replaced. */
static void symbol_from(settings *s, const char *base, size_t n) {
    size_t at = 0;
    if (is_digit(*base)) s->symbol[at++] = '_';
    for (size_t i = 0; i < n && at < NAME - 1; i++)
        s->symbol[at++] = is_letter(base[i]) || is_digit(base[i]) ? base[i] : '_';
}

static const char *base_name(const char *path) {
    const char *base = path;
    for (const char *p = path; *p; p++)
        if (*p == '/' || *p == '\\') base = p + 1;
    return base;
}

static void settle_names(settings *s) {
    static const char *const endings[] = {".S", ".c", ".bin"};
    const char              *base = base_name(s->out), *dot = strrchr(base, '.');
    for (s->kind = ASSEMBLER; s->kind <= IMAGE; s->kind++)
        if (dot && dot > base && strcmp(dot, endings[s->kind]) == 0) break;
    if (s->kind > IMAGE) cli_usage("%s: a name that ends in .S, .c or .bin is expected", s->out);
    s->image  = path_with(s->out, (size_t)(dot - s->out), ".bin");
    s->header = path_with(s->out, (size_t)(dot - s->out), ".h");
    if (s->name && !is_identifier(s->name))
        cli_usage("--name %s: a name of C with at most %d letters is expected", s->name, NAME - 1);
    if (s->name) strcpy(s->symbol, s->name);
    else symbol_from(s, base, (size_t)(dot - base));
    for (size_t i = 0; s->symbol[i]; i++)
        s->upper[i] = s->symbol[i] >= 'a' && s->symbol[i] <= 'z' ? (char)(s->symbol[i] - 'a' + 'A') : s->symbol[i];
    if (strcmp(s->upper, s->symbol) == 0)
        cli_usage("--name %s: a name with a small letter is expected; capitals are for the constants", s->symbol);
}

static void parse(settings *s, int argc, char **argv) {
    const char *paths[2]  = {NULL, NULL};
    cli_option  options[] = {
         {"--name", CLI_TEXT, &s->name, "NAME", "of the array; its constants are NAME_... in capitals (from OUT)", 0, 0},
         {"--align", CLI_U32, &s->align, "BYTES", "where the image begins: a multiple of this, a power of two (256)", 1,
          1 << 20},
         {"--section", CLI_TEXT, &s->section, "NAME", "the section it goes to (ELF; .rodata.NAME, in C the compiler's)",
          0, 0},
         {"--selftest", CLI_U32, &s->tokens, "TOKENS", "length of the self-test; 0: none (16)", 0, 4096},
         {0},
    };
    const cli_program program = {
        "l3-embed", "MODEL OUT.S|OUT.c|OUT.bin [--name NAME] [--align BYTES] [--section NAME] [--selftest TOKENS]",
        "Writes a model for firmware: OUT.bin, a copy with checksums and a self-test (l3_session_selftest), and "
        "OUT.h,\n"
        "which declares it and has its constants. OUT.S includes OUT.bin in the assembler, by the path given here;\n"
        "OUT.c is an array of its bytes, for every C and C++ compiler, which take long above a few MB. With OUT.bin\n"
        "alone the image goes to the device by another way.",
        options};
    s->align  = 256;
    s->tokens = 16;
    if (cli_parse(&program, argc, argv, paths, 2) != 2)
        cli_usage("two files are expected: l3-embed MODEL OUT.S (or OUT.c, OUT.bin)");
    s->in  = paths[0];
    s->out = paths[1];
    if (s->align & (s->align - 1)) cli_usage("--align %" PRIu32 ": a power of two is expected", s->align);
    if (s->tokens == 1) cli_usage("--selftest 1: 0, or 2 and more are expected");
    if (s->section && strpbrk(s->section, "\"\\,\n ")) cli_usage("--section %s: a plain name is expected", s->section);
    settle_names(s);
}

/* ---- the self-test ---- */

/* A text of the model's own: tokens are drawn as it likes them, with all of its vocabulary. */
static void draw_tokens(selftest *t, cli_engine *e) {
    l3_sampling sampling = l3_sampling_defaults();
    l3_sampler *sampler;
    l3_error    err;
    memset(&err, 0, sizeof err);
    sampling.temperature = 1;
    sampling.top_k       = 0;
    sampling.top_p       = 1;
    sampling.min_p       = 0;
    sampling.seed        = 1;
    const size_t size    = l3_sampler_size(&sampling, e->info->vocab);
    void        *block   = cli_aligned(size, "the sampler");
    cli_check(l3_sampler_init(&sampler, &sampling, e->info->vocab, block, size, &err), "sampler", &err);
    t->tokens[0] = e->info->bos >= 0 ? e->info->bos : 0;
    for (uint32_t i = 1; i < t->n_tokens; i++) {
        cli_check(l3_decode(e->session, t->tokens[i - 1], &err), e->path, &err);
        cli_check(l3_sample(sampler, l3_logits(e->session), &t->tokens[i], &err), e->path, &err);
    }
    cli_check(l3_truncate(e->session, 0, &err), e->path, &err);
    cli_free_aligned(block);
}

static void compute_selftest(selftest *t, const settings *s) {
    l3_error err;
    memset(&err, 0, sizeof err);
    for (int kv = 0; kv < KV_TYPES; kv++) {
        cli_engine e;
        cli_open_model(&e, s->in, CLI_MAP);
        const cli_setup setup = {.kv = kv, .exact = true, .context = t->n_tokens};
        cli_start_session(&e, &setup);
        if (kv == 0) draw_tokens(t, &e);
        cli_check(l3_prefill(e.session, t->tokens, t->n_tokens, NULL, &err), s->in, &err);
        for (uint32_t i = 0; i < t->n_logits; i++) {
            const float logit = l3_logits(e.session)[(uint64_t)(e.info->vocab - 1) * i / (t->n_logits - 1)];
            if (!cli_finite((double)logit)) cli_fail("%s: its logits are no finite numbers", s->in);
            t->logits[(uint32_t)kv * t->n_logits + i] = logit;
        }
        cli_close(&e);
    }
}

static void make_selftest(selftest *t, const settings *s, const l3_info *info) {
    memset(t, 0, sizeof *t);
    t->n_tokens = s->tokens < info->context ? s->tokens : info->context;
    t->n_logits = info->vocab < LOGITS ? info->vocab : LOGITS;
    if (s->tokens == 0) return;
    if (t->n_tokens < 2 || t->n_logits < 2)
        cli_fail("%s: too small for a self-test; --selftest 0 leaves it out", s->in);
    t->tokens = (int32_t *)cli_malloc(t->n_tokens * sizeof *t->tokens);
    t->logits = (float *)cli_malloc(KV_TYPES * t->n_logits * sizeof *t->logits);
    compute_selftest(t, s);
}

static void put_selftest(gguf_writer *w, const selftest *t) {
    if (!t->tokens) return;
    gguf_array(w, "l3.selftest.tokens", L3_GGUF_I32, t->n_tokens);
    for (uint32_t i = 0; i < t->n_tokens; i++) gguf_put_number(&w->keys, (uint64_t)t->tokens[i], 4);
    gguf_array(w, "l3.selftest.logits", L3_GGUF_F32, KV_TYPES * t->n_logits);
    for (uint32_t i = 0; i < KV_TYPES * t->n_logits; i++) gguf_put_float(&w->keys, t->logits[i]);
}

/* ---- the image ---- */

static bool is_copied(void *user, const l3_gguf_key *k) {
    (void)user;
    return !gguf_is_check_key(k->name);
}

static void note_facts(facts *f, const l3_model *model) {
    const l3_tensor *t;
    char             name[64];
    f->info = *l3_model_info(model);
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++) f->types[t->type] = true;
    for (size_t i = 0; f->info.name[i]; i++) {
        const char c = f->info.name[i];
        f->name[i]   = c < 0x20 || c == '*' || c == '\\' || c == 0x7f ? '?' : c;
    }
}

/* The model's copy. It is closed before the image gets its name, which may be the model's own. */
static void write_image(facts *f, selftest *t, const settings *s) {
    cli_engine  e;
    gguf_writer w;
    l3_error    err;
    memset(&err, 0, sizeof err);
    cli_open_model(&e, s->in, CLI_READ);
    cli_check(l3_model_verify(e.model, &err), s->in, &err); /* no new checksums over damage */
    make_selftest(t, s, e.info);
    note_facts(f, e.model);
    gguf_begin(&w, s->image);
    if (!w.out.beside) cli_fail("%s: a file is expected", s->image);
    gguf_copy_keys(&w, s->in, &e.file.source, is_copied, NULL);
    put_selftest(&w, t);
    gguf_copy_tensors(&w, e.model);
    gguf_begin_data(&w);
    gguf_copy_data(&w, s->in, e.model);
    cli_close(&e);
    f->bytes = gguf_size(&w);
    gguf_end(&w);
}

/* ---- source ---- */

/* The path in a string of C and of the assembler. */
static void print_quoted(cli_output *o, const char *path) {
    for (; *path; path++) cli_print(o, *path == '"' || *path == '\\' ? "\\%c" : "%c", *path);
}

static void write_assembler(const settings *s, const facts *f) {
    cli_output o;
    cli_output_open(&o, s->out);
    cli_print(&o, "/* Made by l3-embed: the bytes of a file as %s. Another path: -D%s_FILE='\"path\"'. */\n", s->symbol,
              s->upper);
    cli_print(&o, "#ifndef %s_FILE\n#define %s_FILE \"", s->upper, s->upper);
    print_quoted(&o, s->image);
    cli_print(&o, "\"\n#endif\n#define L3_JOIN_(a, b) a##b\n#define L3_JOIN(a, b) L3_JOIN_(a, b)\n");
    cli_print(&o, "#define L3_SYMBOL L3_JOIN(__USER_LABEL_PREFIX__, %s)\n\n", s->symbol);
    cli_print(&o, "#if defined(__APPLE__)\n    .section __TEXT,__const\n");
    cli_print(&o, "#elif defined(_WIN32)\n    .section .rdata,\"dr\"\n#else\n");
    if (s->section) cli_print(&o, "    .section %s,\"a\",%%progbits\n", s->section);
    else cli_print(&o, "    .section .rodata.%s,\"a\",%%progbits\n", s->symbol);
    cli_print(&o, "    .type L3_SYMBOL, %%object\n    .size L3_SYMBOL, %" PRIu64 "\n#endif\n", f->bytes);
    cli_print(&o, "    .globl L3_SYMBOL\n    .balign %" PRIu32 "\nL3_SYMBOL:\n", s->align);
    cli_print(&o, "    .incbin %s_FILE, 0, %" PRIu64 "\n", s->upper, f->bytes);
    cli_print(&o, "#if defined(__linux__) && defined(__ELF__)\n    .section .note.GNU-stack,\"\",%%progbits\n#endif\n");
    cli_output_close(&o);
}

static void write_c(const settings *s) {
    unsigned char bytes[4096];
    cli_output    o;
    size_t        column = 0;
    FILE         *in     = cli_fopen(s->image, "rb");
    if (!in) cli_fail("%s: cannot be opened (%s)", s->image, strerror(errno));
    cli_output_open(&o, s->out);
    cli_print(&o, "/* Made by l3-embed: the bytes of a file. */\n#include \"%s\"\n\n", base_name(s->header));
    cli_print(&o, "#if defined(__GNUC__)\n__attribute__((aligned(%" PRIu32 ")", s->align);
    if (s->section) cli_print(&o, ", section(\"%s\")", s->section);
    cli_print(&o, "))\n#elif defined(_MSC_VER)\n__declspec(align(%" PRIu32 "))\n#endif\n", s->align);
    cli_print(&o, "const unsigned char %s[%s_SIZE] = {\n", s->symbol, s->upper);
    for (size_t n; (n = fread(bytes, 1, sizeof bytes, in)) > 0;)
        for (size_t i = 0; i < n; i++) {
            char text[8];
            column += (size_t)snprintf(text, sizeof text, "%d,", bytes[i]);
            cli_write(&o, text, strlen(text));
            if (column < 112) continue;
            cli_write(&o, "\n", 1);
            column = 0;
        }
    if (ferror(in)) cli_fail("%s: cannot be read (%s)", s->image, strerror(errno));
    fclose(in);
    cli_print(&o, "};\n");
    cli_output_close(&o);
}

static void print_constant(cli_output *o, const settings *s, const char *name, int64_t v) {
    cli_print(o, "#define %s_%s %" PRId64 "\n", s->upper, name, v);
}

static void print_switches(cli_output *o, const settings *s, const facts *f) {
    static const int         types[] = {L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0, L3_Q6_K};
    static const char *const names[] = {"F16", "BF16", "Q8_0", "Q4_0", "Q6_K"};
    cli_print(
        o,
        "\n/* Where %s_ALONE is defined and this header comes before those of l3, the types that the model has not\n"
        " * are left out of the build, with which it also cannot have them in its KV cache. */\n#ifdef %s_ALONE\n",
        s->upper, s->upper);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!f->types[types[i]]) cli_print(o, "#define L3_NO_%s\n", names[i]);
    cli_print(o, "#endif\n");
}

/* Blocks of memory that a device can set aside when it is compiled. Of a session only the KV cache depends on the context. */
static void print_memory(cli_output *o, const settings *s) {
    const l3_target   target = l3_target_32();
    l3_session_config config;
    l3_memory         memory;
    cli_engine        e;
    l3_error          err;
    size_t            model = 0;
    memset(&err, 0, sizeof err);
    memset(&config, 0, sizeof config);
    cli_open_model(&e, s->image, CLI_MAP);
    cli_check(l3_model_size_for(&target, &e.file.source, &model, &err), s->image, &err);
    config.kv_type     = L3_Q8_0;
    config.work.batch  = 1;
    const size_t   all = l3_session_memory_for(&target, e.model, &config, &memory);
    const size_t   kv  = l3__kv_row_bytes(L3_Q8_0, e.info->head_dim) * e.info->n_blocks * e.info->n_kv_heads * 2;
    const uint32_t up  = target.align - 1;
    if (l3_session_window_min(e.model) == 0) { /* it is mapped here, as there */
        cli_print(o, "\n/* On a 32-bit machine that maps the image: bytes for l3_model_open(), and for "
                     "l3_session_init() with a KV\n");
        cli_print(o, " * cache of L3_Q8_0 and a batch of 1. Others: l3-inspect --budget. */\n");
        print_constant(o, s, "MODEL_BYTES", (int64_t)model);
        cli_print(o, "#define %s_SESSION_BYTES(context) (%zuu + (((context) * %zuu + %" PRIu32 "u) & ~%" PRIu32 "u))\n",
                  s->upper, all - ((kv * e.info->context + up) & ~(size_t)up), kv, up, up);
    }
    cli_close(&e);
}

static void write_header(const settings *s, const facts *f, const selftest *t) {
    const l3_info *x = &f->info;
    cli_output     o;
    cli_output_open(&o, s->header);
    cli_print(&o, "/* Made by l3-embed: %s%sa model of architecture %s. */\n", f->name, *f->name ? ", " : "",
              x->architecture);
    cli_print(&o, "#ifndef %s_H\n#define %s_H\n\n", s->upper, s->upper);
    cli_print(&o, "#define %s_SIZE %" PRIu64 "u%s /* bytes */\n", s->upper, f->bytes,
              f->bytes > UINT32_MAX ? "ll" : "");
    print_constant(&o, s, "VOCAB", x->vocab);
    print_constant(&o, s, "CONTEXT", x->context);
    print_constant(&o, s, "DIM", x->dim);
    print_constant(&o, s, "FFN_DIM", x->ffn_dim);
    print_constant(&o, s, "BLOCKS", x->n_blocks);
    print_constant(&o, s, "HEADS", x->n_heads);
    print_constant(&o, s, "KV_HEADS", x->n_kv_heads);
    print_constant(&o, s, "HEAD_DIM", x->head_dim);
    print_constant(&o, s, "LOOKUPS", x->n_lookups);
    print_constant(&o, s, "BOS", x->bos);
    print_constant(&o, s, "EOS", x->eos);
    print_constant(&o, s, "LONGEST_PIECE", x->longest_piece);
    print_constant(&o, s, "SELFTEST_TOKENS", t->tokens ? t->n_tokens : 0);
    print_memory(&o, s);
    print_switches(&o, s, f);
    if (s->kind != IMAGE)
        cli_print(&o,
                  "\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n/* Aligned to %" PRIu32
                  " bytes: l3_source_memory(%s, %s_SIZE). */\nextern const unsigned char %s[%s_SIZE];\n#ifdef "
                  "__cplusplus\n}\n#endif\n",
                  s->align, s->symbol, s->upper, s->symbol, s->upper);
    cli_print(&o, "\n#endif\n");
    cli_output_close(&o);
}

int main(int argc, char **argv) {
    static settings s;
    static facts    f;
    selftest        t;
    parse(&s, argc, argv);
    write_image(&f, &t, &s);
    if (s.kind == ASSEMBLER) write_assembler(&s, &f);
    if (s.kind == C_SOURCE) write_c(&s);
    write_header(&s, &f, &t);
    printf("%s: %" PRIu64 " bytes, with checksums", s.image, f.bytes);
    if (t.tokens) printf(" and a self-test of %" PRIu32 " tokens and %" PRIu32 " logits", t.n_tokens, t.n_logits);
    printf("\n%s%s%s: declares %s, %s_SIZE\n", s.kind != IMAGE ? s.out : "", s.kind != IMAGE ? ", " : "", s.header,
           s.kind != IMAGE ? s.symbol : "nothing", s.upper);
    free(t.tokens), free(t.logits), free(s.image), free(s.header);
    cli_end_stdout();
    return 0;
}
