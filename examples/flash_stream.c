/* flash_stream.c - a model larger than the memory: everything comes through a driver's read callback.
 *
 * Stands for a microcontroller with the model in SPI flash that is not memory-mapped: whole pages of 256 bytes, started
 * and waited for as a DMA transfer is, and MEMORY bytes of RAM for everything. Weights stream through a small window, but
 * for those that RAM is left for, which are read once; of the lookup tables, most of the file, only the rows of the current
 * token are ever read, and they are on their way while the blocks before the layer run. Nothing is allocated, and no
 * operating system is used but to stand in for the chip.
 *
 *     build/flash_stream [examples/models/stories-l3-small.gguf] */
#define L3_NO_STDIO /* the library sees the callbacks and nothing else */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include <stdio.h>
#include <string.h>

enum { MEMORY = 256 * 1024, PAGE = 256, CONTEXT = 96, PROMPT_BYTES = 32 };

/* ---- the driver ---- */

typedef struct flash {
    FILE    *chip;
    uint64_t pages, commands; /* read so far */
    uint64_t off;             /* the transfer that was started */
    void    *dst;
    size_t   n;
} flash;

static int flash_read(void *user, uint64_t off, void *dst, size_t n) {
    flash *f = (flash *)user;
    if (off % PAGE != 0) return -1;
    if (fseek(f->chip, (long)off, SEEK_SET) != 0 || fread(dst, 1, n, f->chip) != n) return -2;
    f->pages += (n + PAGE - 1) / PAGE;
    f->commands++;
    return 0;
}

static int flash_start(void *user, uint64_t off, void *dst, size_t n) {
    flash *f = (flash *)user;
    f->off = off, f->dst = dst, f->n = n; /* here the DMA would begin ... */
    return 0;
}

static int flash_wait(void *user) {
    flash *f = (flash *)user;
    return flash_read(f, f->off, f->dst, f->n); /* ... and here it would long have ended */
}

static l3_source flash_open(flash *f, const char *path) {
    l3_source source;
    memset(&source, 0, sizeof source);
    source.user  = f;
    source.align = PAGE;
    source.read  = flash_read;
    source.start = flash_start;
    source.wait  = flash_wait;
    f->chip      = fopen(path, "rb");
    if (f->chip && fseek(f->chip, 0, SEEK_END) == 0) source.size = (uint64_t)ftell(f->chip);
    return source;
}

/* ---- the memory ---- */

static unsigned char memory[MEMORY];
static size_t        used;

static void *take(size_t n) {
    const size_t skip = (L3_ALIGN - (size_t)((uintptr_t)(memory + used) % L3_ALIGN)) % L3_ALIGN;
    if (n == 0 || n > MEMORY - used || skip > MEMORY - used - n) return NULL;
    used += skip + n;
    return memory + used - n;
}

/* What is left when so many bytes have been taken, in two pieces. */
static size_t rest(size_t bytes) {
    const size_t reserved = used + bytes + 3 * L3_ALIGN;
    return reserved < MEMORY ? MEMORY - reserved : 0;
}

/* ---- the model ---- */

typedef struct device {
    l3_source     source;
    l3_model     *model;
    l3_session   *session;
    l3_tokenizer *tokenizer;
    size_t        model_size, session_size, tokenizer_size, pinned_size;
} device;

static int start(device *d, l3_error *err) {
    l3_session_config config;
    int               status;
    memset(&config, 0, sizeof config);
    config.context     = CONTEXT;
    config.kv_type     = L3_Q8_0;
    config.work.batch  = 4; /* the prompt runs in fours: each weight is read once for four tokens */
    config.work.window = 8 * 1024;
    if ((status = l3_model_size(&d->source, NULL, &d->model_size, err)) != L3_OK) return status;
    status = l3_model_open(&d->model, &d->source, NULL, take(d->model_size), d->model_size, err);
    if (status != L3_OK) return status;
    d->session_size   = l3_session_size(d->model, &config);
    d->tokenizer_size = l3_tokenizer_size(d->model, PROMPT_BYTES);
    d->pinned_size    = l3_model_pin_size(d->model, rest(d->session_size + d->tokenizer_size));
    if ((status = l3_model_pin(d->model, take(d->pinned_size), d->pinned_size, err)) != L3_OK) return status;
    status = l3_session_init(&d->session, d->model, &config, take(d->session_size), d->session_size, err);
    if (status != L3_OK) return status;
    return l3_tokenizer_init(&d->tokenizer, d->model, PROMPT_BYTES, take(d->tokenizer_size), d->tokenizer_size, err);
}

static int say(device *d, int32_t id, char *last, l3_error *err) {
    const char *text;
    size_t      n;
    const int   status = l3_detokenize(d->tokenizer, id, &text, &n, err);
    if (status != L3_OK) return status;
    printf("%.*s", (int)n, text);
    if (n) *last = text[n - 1];
    return L3_OK;
}

static int32_t likeliest(const float *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* Writes up to the end of two sentences. */
static int tell(device *d, const char *prompt, l3_error *err) {
    const l3_info *info = l3_model_info(d->model);
    int32_t        ids[PROMPT_BYTES + 2], id;
    size_t         n;
    char           last      = 0;
    int            sentences = 0;
    int status = l3_tokenize(d->tokenizer, prompt, strlen(prompt), L3_TEXT_BOS, ids, PROMPT_BYTES + 2, &n, err);
    for (size_t i = 0; i < n && status == L3_OK; i++) status = say(d, ids[i], &last, err);
    if (status == L3_OK) status = l3_prefill(d->session, ids, (uint32_t)n, NULL, err);
    while (status == L3_OK && sentences < 2) {
        id = likeliest(l3_logits(d->session), info->vocab);
        if (id == info->eos || id == info->bos || l3_position(d->session) == CONTEXT) break;
        if ((status = say(d, id, &last, err)) != L3_OK) break;
        sentences += last == '.';
        status = l3_decode(d->session, id, err);
    }
    printf("\n\n");
    return status;
}

static void print_figures(const device *d, const flash *f) {
    const l3_stats   s      = l3_session_stats(d->session);
    const double     tokens = l3_position(d->session), file = (double)d->source.size;
    const double     rows = (double)s.row_bytes_read / tokens, weights = (double)s.weight_bytes_read / tokens;
    uint64_t         tables = 0;
    const l3_lookup *layer;
    for (uint32_t i = 0; (layer = l3_model_lookup(d->model, i, NULL)) != NULL; i++)
        tables += layer->rows.rows * l3_row_bytes(layer->rows.type, layer->rows.cols);
    printf("file             %9.0f bytes, of which %.0f are lookup tables\n", file, (double)tables);
    printf("rows read        %9.0f bytes a token: %.3f%% of the tables\n", rows, 100 * rows / (double)tables);
    printf("weights read     %9.0f bytes a token: %.1f%% of the file\n", weights, 100 * weights / file);
    printf("flash            %9.0f pages of %d bytes in %.0f commands, %.0f tokens\n", (double)f->pages, PAGE,
           (double)f->commands, tokens);
    printf("memory           %9lu bytes in all: model %lu, session %lu, tokenizer %lu, pinned weights %lu\n",
           (unsigned long)used, (unsigned long)d->model_size, (unsigned long)d->session_size,
           (unsigned long)d->tokenizer_size, (unsigned long)d->pinned_size);
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "examples/models/stories-l3-small.gguf";
    flash       f;
    device      d;
    l3_error    err;
    memset(&f, 0, sizeof f);
    memset(&d, 0, sizeof d);
    memset(&err, 0, sizeof err);
    d.source = flash_open(&f, path);
    if (!f.chip) {
        fprintf(stderr, "flash_stream: %s cannot be opened; the path of a model is expected\n", path);
        return 1;
    }
    const int status = start(&d, &err) == L3_OK ? tell(&d, "Once upon a time", &err) : err.code;
    if (status == L3_OK) print_figures(&d, &f);
    else fprintf(stderr, "flash_stream: %s\n", err.text);
    fclose(f.chip);
    return status == L3_OK ? 0 : 1;
}
