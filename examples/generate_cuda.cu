/* generate_cuda.cu - text from a model on an NVIDIA GPU, with its tables on the device, in host memory or left in the file.
 *
 * Everything by hand, in one file that nvcc compiles: the model is opened as on any machine, l3_cuda_memory_of() says what
 * it takes before anything is allocated, l3_cuda_prefill() runs the prompt, and l3_cuda_generate() writes a few tokens at
 * a time, each chosen on the GPU, so that text appears as it comes. What was written behind the end of the text is taken
 * back.
 *
 *     nvcc -O3 -arch=native -std=c++17 examples/generate_cuda.cu -o build/generate-cuda
 *     build/generate-cuda examples/models/books-l3.gguf -p "Once upon a time" --stats */
#define L3_IMPLEMENTATION
#define L3_NO_SIMD /* nothing is computed on the CPU */
#include "../l3_model.h"

#include "../l3_cuda.cu"

#include <chrono>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint32_t SLICE = 8; /* tokens until text is shown */

static l3_error err;

static void fail(int code, const char *what, const char *why) {
    fflush(stdout);
    fprintf(stderr, "generate-cuda: %s: %s\n", what, why);
    exit(code);
}

static void check(int status, const char *what) {
    if (status != L3_OK) fail(1, what, err.text[0] ? err.text : l3_status_text(status));
}

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* A block as the library wants it; the program ends before it is freed. */
static void *block(size_t n) {
    unsigned char *p = (unsigned char *)malloc(n + L3_ALIGN);
    if (!p) fail(1, "memory", "there is too little");
    return p + (L3_ALIGN - (uintptr_t)p % L3_ALIGN);
}

/* ---- options ---- */

struct number {
    const char *name, *help;
    double      value, least, most;
    bool        whole;
};

enum { COUNT, SEED, CONTEXT, TEMPERATURE, TOP_K, TOP_P, MIN_P, NUMBERS };

struct options {
    const char *model, *prompt;
    number      numbers[NUMBERS];
    int         tables; /* l3_cuda_place */
    bool        exact, stats;
};

static options o = {nullptr,
                    "",
                    {{"-n", "new tokens at most", 256, 0, 1e9, true},
                     {"-s", "the same seed gives the same text; -1: a random one", -1, -1, 9007199254740991, true},
                     {"-c", "positions kept; 0: what the model says", 0, 0, 1e9, true},
                     {"-t", "temperature; 0: always the likeliest token", 0.8, 0, 1000, false},
                     {"--top-k", "choose among so many of the likeliest", 40, 1, 1024, true},
                     {"--top-p", "... which hold this probability; 1: all", 0.95, 0, 1, false},
                     {"--min-p", "... at least so many times as likely as the best", 0.05, 0, 1, false}},
                    L3_CUDA_AUTO,
                    false,
                    false};

static void help() {
    printf("usage: generate-cuda MODEL [options]\n\n  %-10s text to continue (none)\n", "-p");
    for (const number &n : o.numbers) printf("  %-10s %s (%g)\n", n.name, n.help, n.value);
    printf("  %-10s where the tables are: auto, device, host or source (auto)\n", "--tables");
    printf("  %-10s the same bits however the text is split into calls\n", "--exact");
    printf("  %-10s speed and memory, on standard error\n", "--stats");
    exit(fflush(stdout) == 0 ? 0 : 1);
}

static void set(const char *name, const char *value) {
    static const char *const places[] = {"auto", "device", "host", "source"};
    char                    *end;
    char                     why[96];
    if (strcmp(name, "-p") == 0) o.prompt = value;
    else if (strcmp(name, "--tables") == 0) {
        for (o.tables = 0; o.tables < 4 && strcmp(value, places[o.tables]) != 0;) o.tables++;
        if (o.tables == 4) fail(2, name, "auto, device, host or source is expected");
    } else {
        number *n = o.numbers;
        while (n < o.numbers + NUMBERS && strcmp(name, n->name) != 0) n++;
        if (n == o.numbers + NUMBERS) fail(2, name, "unknown option; --help lists what there is");
        n->value = strtod(value, &end);
        snprintf(why, sizeof why, "a %snumber from %g to %g is expected", n->whole ? "whole " : "", n->least, n->most);
        if (end == value || *end || !(n->value >= n->least && n->value <= n->most)) fail(2, name, why);
        if (n->whole && n->value != (double)(int64_t)n->value) fail(2, name, why);
    }
}

static void parse(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) help();
        else if (strcmp(argv[i], "--exact") == 0) o.exact = true;
        else if (strcmp(argv[i], "--stats") == 0) o.stats = true;
        else if (argv[i][0] == '-' && i + 1 == argc) fail(2, argv[i], "it is unknown, or its value is missing");
        else if (argv[i][0] == '-') set(argv[i], argv[i + 1]), i++;
        else if (o.model) fail(2, argv[i], "there is a model already");
        else o.model = argv[i];
    }
    if (!o.model) fail(2, "MODEL", "the path of a GGUF file is expected");
}

static l3_sampling sampling() {
    l3_sampling s = l3_sampling_defaults();
    s.temperature = (float)o.numbers[TEMPERATURE].value;
    s.top_k       = (uint32_t)o.numbers[TOP_K].value;
    s.top_p       = (float)o.numbers[TOP_P].value;
    s.min_p       = (float)o.numbers[MIN_P].value;
    if (o.numbers[SEED].value < 0) {
        uint64_t state        = (uint64_t)time(NULL) ^ (uint64_t)(now() * 1e9) << 20;
        o.numbers[SEED].value = (double)(l3_random(&state) >> 32);
        fprintf(stderr, "seed %.0f\n", o.numbers[SEED].value);
    }
    s.seed = (uint64_t)o.numbers[SEED].value;
    return s;
}

/* ---- text ---- */

struct run {
    l3_file        file;
    l3_model      *model;
    const l3_info *info;
    l3_tokenizer  *tokenizer;
    l3_cuda       *gpu;
    int32_t       *prompt;
    size_t         prompt_count;
    uint32_t       made;            /* new tokens */
    double         prefill, decode; /* seconds */
};

static void print(const char *text, size_t n) {
    if (fwrite(text, 1, n, stdout) != n || fflush(stdout) != 0) fail(1, "standard output", "it cannot be written");
}

static void print_token(run *r, int32_t id) {
    const char *text;
    size_t      n;
    check(l3_detokenize(r->tokenizer, id, &text, &n, &err), "text");
    print(text, n);
}

static void open_model(run *r) {
    const size_t   length = strlen(o.prompt);
    l3_cuda_config config = {};
    l3_cuda_memory memory;
    size_t         size;
    check(l3_source_open_file(&r->file, o.model, L3_FILE_MAP, &err), "MODEL");
    check(l3_model_size(&r->file.source, NULL, &size, &err), o.model);
    check(l3_model_open(&r->model, &r->file.source, NULL, block(size), size, &err), o.model);
    r->info = l3_model_info(r->model);
    if (r->info->kind != L3_KIND_MODEL) fail(1, o.model, "this is no whole model");
    size = l3_tokenizer_size(r->model, length + 1);
    check(l3_tokenizer_init(&r->tokenizer, r->model, length + 1, block(size), size, &err), o.model);
    config.context = (uint32_t)o.numbers[CONTEXT].value;
    config.mode    = o.exact ? L3_EXACT : L3_FAST;
    config.tables  = (l3_cuda_place)o.tables;
    check(l3_cuda_memory_of(r->model, &config, &memory, &err), o.model);
    check(l3_cuda_open(&r->gpu, r->model, &config, block(memory.host), memory.host, &err), o.model);
}

/* The prompt's tokens, BOS in front if the model wants one; never none. */
static void encode_prompt(run *r) {
    const size_t length = strlen(o.prompt), room = 3 * length + 8; /* a space may be three bytes */
    r->prompt = (int32_t *)block(room * sizeof(int32_t));
    check(l3_tokenize(r->tokenizer, o.prompt, length, L3_TEXT_BOS, r->prompt, room, &r->prompt_count, &err),
          "the prompt");
    if (r->prompt_count == 0 && r->info->bos < 0) fail(1, "the prompt", "it is empty and the model has no BOS token");
    if (r->prompt_count == 0) r->prompt[r->prompt_count++] = r->info->bos;
    if (r->prompt_count > l3_cuda_context(r->gpu))
        fail(1, "the prompt", "it is longer than the context; a larger -c is right");
}

/* Writes until something ends it, and says what. The last token of the prompt goes in with the first slice. */
static const char *generate(run *r, const l3_sampling *sampling) {
    const uint32_t count  = (uint32_t)o.numbers[COUNT].value;
    const uint32_t before = (uint32_t)r->prompt_count - 1, context = l3_cuda_context(r->gpu);
    int32_t        last  = r->prompt[before], out[SLICE];
    const double   start = now();
    if (before) check(l3_cuda_prefill(r->gpu, 0, r->prompt, before, NULL, &err), o.model);
    l3_cuda_stats stats;
    check(l3_cuda_get_stats(r->gpu, &stats, &err), o.model); /* waits */
    r->prefill = now() - start;
    while (r->made < count) {
        const uint32_t position = l3_cuda_position(r->gpu, 0), room = context - position;
        uint32_t       n = SLICE < count - r->made ? SLICE : count - r->made;
        if (room == 0) return "the context is full";
        if (n > room) n = room;
        const double begin = now();
        check(l3_cuda_generate(r->gpu, NULL, &last, 1, n, sampling, out, &err), o.model);
        r->decode += now() - begin;
        for (uint32_t i = 0; i < n; i++) {
            const bool eos = out[i] == r->info->eos, bos = out[i] == r->info->bos;
            if (eos || bos) {
                check(l3_cuda_truncate(r->gpu, 0, position + i + 1, &err), o.model);
                return eos ? "the end-of-text token" : "the begin-of-text token";
            }
            print_token(r, out[i]);
            r->made++;
        }
        last = out[n - 1];
    }
    return "as many as -n asks for";
}

static void print_stats(const run *r) {
    static const char *const places[] = {"", "on the device", "in host memory", "in the file"};
    const l3_cuda_memory     m        = l3_cuda_memory_used(r->gpu);
    const double             mb       = 1.0 / (1 << 20);
    fprintf(stderr, "model        %s, tables %s\n", r->info->name[0] ? r->info->name : o.model, places[m.place]);
    fprintf(stderr, "device       %s\n", l3_cuda_name(r->gpu));
    if (r->prompt_count > 1)
        fprintf(stderr, "prefill      %zu tokens, %.1f tokens/s\n", r->prompt_count - 1,
                (double)(r->prompt_count - 1) / r->prefill);
    if (r->made) fprintf(stderr, "decode       %u tokens, %.1f tokens/s\n", r->made, r->made / r->decode);
    fprintf(
        stderr,
        "memory       %.1f MB of the device: weights %.1f, tables %.1f, hot rows %.1f, staging %.1f, KV cache %.1f, "
        "logits %.1f, scratch %.1f; pinned %.1f MB of the host's\n",
        mb * (double)m.device, mb * (double)m.weights, mb * (double)m.tables, mb * (double)m.hot,
        mb * (double)m.staging, mb * (double)m.kv, mb * (double)m.logits, mb * (double)m.scratch,
        mb * (double)m.pinned);
}

int main(int argc, char **argv) {
    static run  r; /* it keeps what is never freed */
    const char *text;
    size_t      n;
    parse(argc, argv);
    open_model(&r);
    encode_prompt(&r);
    const l3_sampling how = sampling();
    for (size_t i = 0; i < r.prompt_count; i++) print_token(&r, r.prompt[i]);
    const char *end = generate(&r, &how);
    l3_detokenize_end(r.tokenizer, &text, &n);
    print(text, n);
    print("\n", 1);
    fprintf(stderr, "ended after %u new tokens: %s\n", r.made, end);
    if (o.stats) print_stats(&r);
    l3_cuda_close(r.gpu);
    l3_source_close_file(&r.file);
    return 0;
}
