/* story.c - text from a model with static memory only: no heap, no stdio, no operating system.
 *
 * The model, the session, the tokenizer and the sampler each say how many bytes they need, and get them from one array. */
#include "board.h"
#include "flash.h"
#include "story.h"

#include <string.h>

#ifndef STORY_MEMORY
#define STORY_MEMORY (160 * 1024)
#endif
#ifndef STORY_CACHE
#define STORY_CACHE (8 * 1024) /* for rows of tokens read before; without effect when the model is mapped */
#endif

enum {
    CONTEXT       = 256,
    BATCH         = 4,        /* the prompt runs in fours: each weight is read once for four tokens */
    WINDOW        = 4 * 1024, /* of these two, as there are start and wait; without effect when the model is mapped */
    PROMPT_BYTES  = 32,       /* of the longest word of a prompt, and its spaces */
    PROMPT_TOKENS = 64
};

typedef struct story {
    l3_model     *model;
    l3_session   *session;
    l3_tokenizer *tokenizer;
    l3_sampler   *sampler;
    size_t        model_size, session_size, tokenizer_size, sampler_size;
    size_t        prompt; /* tokens */
    uint32_t      made, decoded;
    float         selftest; /* largest difference from the logits that are stored in the file, as part of their range */
    l3_stats      after_prompt;
    uint64_t      flash_after_prompt;
} story;

static unsigned char memory[STORY_MEMORY] __attribute__((aligned(L3_ALIGN)));
static size_t        used, refused; /* refused: bytes of a block that did not fit */

/* The next n bytes, or NULL; n is the file's word. */
static void *take(size_t n) {
    const size_t start = (used + L3_ALIGN - 1) / L3_ALIGN * L3_ALIGN;
    if (start > sizeof memory || n > sizeof memory - start) {
        refused = n;
        return NULL;
    }
    used = start + n;
    return memory + start;
}

/* ---- output ---- */

static void put(const char *text) { board_write(text, strlen(text)); }

static void put_number(uint64_t v) {
    char digits[21], *p = digits + 20;
    *p = '\0';
    do *--p = (char)('0' + (int)(v % 10));
    while ((v /= 10) != 0);
    put(p);
}

static void put_field(const char *name, uint64_t v) {
    put(", \"");
    put(name);
    put("\": ");
    put_number(v);
}

static void put_signed(int v) {
    if (v < 0) put("-");
    put_number((uint64_t)(v < 0 ? -(int64_t)v : v));
}

static int put_token(story *s, int32_t id, l3_error *err) {
    const char *text;
    size_t      n;
    const int   status = l3_detokenize(s->tokenizer, id, &text, &n, err);
    if (status == L3_OK) board_write(text, n);
    return status;
}

/* ---- the model ---- */

static l3_session_config session_config(l3_mode mode) {
    l3_session_config config;
    memset(&config, 0, sizeof config);
    config.context     = CONTEXT;
    config.kv_type     = L3_Q8_0;
    config.work.mode   = mode;
    config.work.batch  = BATCH;
    config.work.window = WINDOW;
    config.work.cache  = STORY_CACHE;
    return config;
}

static int open_model(story *s, const l3_source *source, bool trusted, l3_error *err) {
    l3_model_config config;
    int             status;
    memset(&config, 0, sizeof config);
    config.require_checksums = !trusted; /* or a damaged name of the checksum would hide all other damage */
    if ((status = l3_model_size(source, &config, &s->model_size, err)) != L3_OK) return status;
    status = l3_model_open(&s->model, source, &config, take(s->model_size), s->model_size, err);
    return status == L3_OK && !trusted ? l3_model_verify(s->model, err) : status;
}

static int prepare(story *s, l3_mode mode, l3_error *err) {
    const l3_session_config config   = session_config(mode);
    const uint32_t          vocab    = l3_model_info(s->model)->vocab;
    l3_sampling             sampling = l3_sampling_defaults();
    int                     status;
    sampling.temperature = 0; /* always the likeliest */
    s->session_size      = l3_session_size(s->model, &config);
    s->tokenizer_size    = l3_tokenizer_size(s->model, PROMPT_BYTES);
    s->sampler_size      = l3_sampler_size(&sampling, vocab);
    status               = l3_session_init(&s->session, s->model, &config, take(s->session_size), s->session_size, err);
    if (status == L3_OK)
        status =
            l3_tokenizer_init(&s->tokenizer, s->model, PROMPT_BYTES, take(s->tokenizer_size), s->tokenizer_size, err);
    if (status == L3_OK)
        status = l3_sampler_init(&s->sampler, &sampling, vocab, take(s->sampler_size), s->sampler_size, err);
    /* The file is sound, as its checksums say: is this build? */
    if (status == L3_OK && l3_model_info(s->model)->selftest_tokens)
        status = l3_session_selftest(s->session, &s->selftest, err);
    return status;
}

static int run_prompt(story *s, const char *prompt, l3_error *err) {
    int32_t ids[PROMPT_TOKENS];
    int status = l3_tokenize(s->tokenizer, prompt, strlen(prompt), L3_TEXT_BOS, ids, PROMPT_TOKENS, &s->prompt, err);
    for (size_t i = 0; i < s->prompt && status == L3_OK; i++) status = put_token(s, ids[i], err);
    if (status == L3_OK) status = l3_prefill(s->session, ids, (uint32_t)s->prompt, NULL, err);
    if (status != L3_OK) return status;
    l3_sampler_accept(s->sampler, ids, s->prompt);
    s->after_prompt       = l3_session_stats(s->session);
    s->flash_after_prompt = flash_bytes();
    return L3_OK;
}

static int continue_text(story *s, uint32_t tokens, l3_error *err) {
    const l3_info *info = l3_model_info(s->model);
    int32_t        id;
    int            status;
    while (s->made < tokens) {
        if ((status = l3_sample(s->sampler, l3_logits(s->session), &id, err)) != L3_OK) return status;
        l3_sampler_accept(s->sampler, &id, 1);
        if (id == info->eos || id == info->bos) break;
        if ((status = put_token(s, id, err)) != L3_OK) return status;
        if (++s->made == tokens || l3_position(s->session) == l3_context(s->session)) break;
        if ((status = l3_decode(s->session, id, err)) != L3_OK) return status;
        s->decoded++;
    }
    return L3_OK;
}

static void end_text(story *s) {
    const char *text;
    size_t      n;
    l3_detokenize_end(s->tokenizer, &text, &n);
    board_write(text, n);
    put("\n");
}

/* ---- figures ---- */

static uint64_t each(const story *s, uint64_t all) { return s->decoded ? (all + s->decoded / 2) / s->decoded : 0; }

static void report(const story *s, const story_plan *plan) {
    const l3_stats now = l3_session_stats(s->session), then = s->after_prompt;
    put("{\"board\": \"" BOARD "\", \"storage\": \"");
    put(plan->storage);
    put("\", \"mode\": \"");
    put(plan->mode == L3_EXACT ? "exact" : "fast");
    put("\", \"level\": \"");
    put(l3_level_name(l3_session_level(s->session)));
    put("\"");
    put_field("file_bytes", l3_model_info(s->model)->file_bytes);
    put_field("context", CONTEXT);
    put_field("prompt_tokens", s->prompt);
    put_field("new_tokens", s->made);
    put_field("model_bytes", s->model_size);
    put_field("session_bytes", s->session_size);
    put_field("tokenizer_bytes", s->tokenizer_size);
    put_field("sampler_bytes", s->sampler_size);
    put_field("memory_bytes", used);
    put_field("selftest_tokens", l3_model_info(s->model)->selftest_tokens);
    put_field("selftest_billionths", (uint64_t)(s->selftest * 1e9f));
    put_field("stack_bytes", board_stack_used());
    put_field("row_bytes_per_token", each(s, now.row_bytes_read - then.row_bytes_read));
    put_field("weight_bytes_per_token", each(s, now.weight_bytes_read - then.weight_bytes_read));
    put_field("flash_bytes_per_token", each(s, flash_bytes() - s->flash_after_prompt));
    put("}\n");
}

static void complain(const l3_error *err) {
    put("\nerror ");
    put_signed(err->code);
    put(" (");
    put(l3_status_text(err->code));
    put("), driver ");
    put_signed(err->io);
    put(", byte ");
    put_number(err->offset);
    put(err->text[0] ? ": " : "");
    put(err->text);
    put("\n");
    if (!refused) return;
    put_number(refused);
    put(" bytes do not fit behind ");
    put_number(used);
    put(" in STORY_MEMORY, which is ");
    put_number(sizeof memory);
    put("\n");
}

int story_write(const l3_source *source, const story_plan *plan) {
    story    s;
    l3_error err;
    memset(&s, 0, sizeof s);
    memset(&err, 0, sizeof err);
    used = refused = 0;
    int status     = open_model(&s, source, plan->trusted, &err);
    if (status == L3_OK) status = prepare(&s, plan->mode, &err);
    if (status == L3_OK) status = run_prompt(&s, plan->prompt, &err);
    if (status == L3_OK) status = continue_text(&s, plan->tokens, &err);
    if (status != L3_OK) {
        complain(&err);
        return status;
    }
    end_text(&s);
    report(&s, plan);
    return L3_OK;
}
