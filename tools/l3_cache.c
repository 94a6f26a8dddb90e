/* l3_cache.c - what a cache of row blocks is worth for a model and a text: the text's tokens are replayed through the cache of
 * l3.h itself, and through other policies to compare with. Those keep accounts only; they know neither index nor holes, so
 * each is at least as good here as it would be in memory. Rows are not read, so an allocation will do in place of a model. */
#define L3_NO_SIMD /* no model is run here: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "allocation.h"

enum { SIZES = 16, STREAMS = 64, PHASES = 2, ABSENT = -1, NOT_IN_HEAP = UINT32_MAX };

typedef struct settings {
    const char *path, *tokenizer, *size_list, *policy_list;
    cli_words   texts;
    uint32_t    streams, cold, row_bytes;
    size_t      window;
    bool        json;
} settings;

/* Requests from `from` to `to` - 1: of the first tokens, of the second half of the text. */
typedef struct phase {
    size_t   from, to;
    uint64_t tokens;
} phase;

/* Blocks, a token's rows in one layer each, in the order in which the library asks for them. */
typedef struct replay {
    const settings *s;
    cli_engine      e, other; /* other: the tokenizer, if it is another file */
    uint32_t        vocab, layers, n_blocks;
    uint64_t       *bytes; /* (n_blocks,) of rows */
    uint64_t        table; /* bytes of all */
    int32_t        *tokens;
    size_t          n_tokens, room;
    uint32_t       *requests; /* (n,) */
    size_t         *next;     /* (n,) the next request for the same block, or n */
    size_t          n;
    phase           phases[PHASES];
} replay;

/* ---- the requests ---- */

static void open_files(replay *r) {
    const settings *s = r->s;
    cli_open_file(&r->e, s->path, 0);
    if (s->tokenizer) cli_open_file(&r->other, s->tokenizer, 0);
    const cli_engine *t = s->tokenizer ? &r->other : &r->e;
    if (r->e.info->n_lookups == 0) cli_fail("%s: it has no lookup layer, so there are no rows to cache", s->path);
    if (!t->info->has_tokenizer) cli_fail("%s: it has no tokenizer; --tokenizer TOK.gguf names one", t->path);
    allocation_check_tokenizer(&r->e, t->model);
    if (r->e.info->kind == L3_KIND_ALLOCATION && !s->row_bytes)
        cli_fail("%s: an allocation does not say how long a row is; --row-bytes does", s->path);
}

static void size_blocks(replay *r) {
    uint32_t block;
    r->vocab    = r->e.info->vocab;
    r->layers   = r->e.info->n_lookups;
    r->n_blocks = r->vocab * r->layers;
    r->bytes    = (uint64_t *)cli_malloc((uint64_t)r->n_blocks * sizeof *r->bytes);
    for (uint32_t i = 0; i < r->layers; i++) {
        const l3_lookup *l       = l3_model_lookup(r->e.model, i, &block);
        int32_t         *offsets = cli_offsets(l);
        uint64_t        *bytes   = r->bytes + (size_t)i * r->vocab;
        const uint64_t   row     = r->s->row_bytes ? r->s->row_bytes : l3_row_bytes(l->rows.type, l->rows.cols);
        for (uint32_t t = 0; t < r->vocab; t++) r->table += bytes[t] = row * (uint64_t)(offsets[t + 1] - offsets[t]);
        free(offsets);
    }
}

static void put_tokens(replay *r, const int32_t *ids, size_t n) {
    r->tokens = (int32_t *)string_set_room(r->tokens, &r->room, r->n_tokens + n + 1, sizeof *ids);
    if (n) memcpy(r->tokens + r->n_tokens, ids, n * sizeof *ids);
    r->n_tokens += n;
}

static void read_texts(replay *r) {
    const l3_model *tokenizer = r->s->tokenizer ? r->other.model : r->e.model;
    const l3_info  *info      = l3_model_info(tokenizer);
    token_reader    t;
    token_piece     p;
    tokens_open(&t, tokenizer, r->s->texts.items, r->s->texts.n, false);
    while (tokens_next(&t, &p)) {
        if (p.begins && info->add_bos) put_tokens(r, &info->bos, 1);
        put_tokens(r, p.ids, p.n);
    }
    tokens_close(&t);
    if (r->n_tokens < 2 * r->s->streams) cli_fail("%s: there is too little text in it", r->s->texts.items[0]);
}

static int by_number(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* One token of each stream, as l3_decode_batch() takes them: a layer after the other, each token once, sorted. */
static void request_batch(replay *r, int32_t *batch) {
    qsort(batch, r->s->streams, sizeof *batch, by_number);
    for (uint32_t layer = 0; layer < r->layers; layer++)
        for (uint32_t i = 0; i < r->s->streams; i++) {
            const uint32_t block = layer * r->vocab + (uint32_t)batch[i];
            if ((i == 0 || batch[i] != batch[i - 1]) && r->bytes[block]) r->requests[r->n++] = block;
        }
}

/* The streams begin at equal distances in the text. */
static void make_requests(replay *r) {
    const uint32_t streams = r->s->streams;
    const size_t   steps = r->n_tokens / streams, half = steps / 2, cold = (r->s->cold + streams - 1) / streams;
    int32_t        batch[STREAMS];
    r->requests = (uint32_t *)cli_malloc((uint64_t)r->n_tokens * r->layers * sizeof *r->requests);
    for (size_t i = 0; i < steps; i++) {
        if (i == half) r->phases[1].from = r->n;
        for (uint32_t k = 0; k < streams; k++) batch[k] = r->tokens[k * steps + i];
        request_batch(r, batch);
        if (i < cold) r->phases[0].to = r->n;
    }
    r->phases[0].tokens = (uint64_t)(cold < steps ? cold : steps) * streams;
    r->phases[1].tokens = (uint64_t)(steps - half) * streams;
    r->phases[1].to     = r->n;
}

static void link_requests(replay *r) {
    size_t *last = (size_t *)cli_malloc((uint64_t)r->n_blocks * sizeof *last);
    r->next      = (size_t *)cli_malloc((uint64_t)r->n * sizeof *r->next);
    for (uint32_t i = 0; i < r->n_blocks; i++) last[i] = r->n;
    for (size_t i = r->n; i-- > 0;) {
        r->next[i]           = last[r->requests[i]];
        last[r->requests[i]] = i;
    }
    free(last);
}

/* ---- caches on paper ---- */

typedef enum outcome { MISSED, PLACED, FOUND } outcome; /* of a request; PLACED: read into the cache */

typedef struct queue {
    uint32_t *blocks; /* (n_blocks,) a ring */
    size_t    head, n;
    uint64_t  bytes;
} queue;

typedef struct cache {
    const replay *r;
    uint64_t      size, used;
    uint64_t     *priority, *count; /* (n_blocks,) the least is evicted; uses */
    uint32_t     *heap, *place;     /* (n_blocks,) blocks, the least priority on top; where they are in it */
    uint32_t      n;
    uint64_t      age; /* priority of what was evicted last */
    queue         queues[2];
    int8_t       *where;      /* (n_blocks,) which queue, or ABSENT */
    uint8_t      *used_since; /* (n_blocks,) it came or went round */
    uint64_t     *left, gone; /* bytes that had left the first queue when a block did, and now */
    uint64_t      asked;
    l3__cache     library;
    void         *memory;
} cache;

/* As in l3.h, so that sizes can be compared. */
static uint64_t entry_bytes(const cache *c, uint32_t block) {
    return (c->r->bytes[block] + sizeof(l3__entry) + 7) / 8 * 8;
}

static bool is_less(const cache *c, uint32_t a, uint32_t b) { return c->priority[a] < c->priority[b]; }

static void heap_put(cache *c, uint32_t at, uint32_t block) {
    c->heap[at]     = block;
    c->place[block] = at;
}

/* Puts a block into the hole at `at`, or where it belongs above or below. */
static void heap_settle(cache *c, uint32_t at, uint32_t block) {
    for (; at && is_less(c, block, c->heap[(at - 1) / 2]); at = (at - 1) / 2) heap_put(c, at, c->heap[(at - 1) / 2]);
    for (uint32_t child; (child = 2 * at + 1) < c->n; at = child) {
        if (child + 1 < c->n && is_less(c, c->heap[child + 1], c->heap[child])) child++;
        if (!is_less(c, c->heap[child], block)) break;
        heap_put(c, at, c->heap[child]);
    }
    heap_put(c, at, block);
}

static void heap_pop(cache *c) {
    const uint32_t top = c->heap[0], last = c->heap[--c->n];
    c->place[top] = NOT_IN_HEAP;
    c->used -= entry_bytes(c, top);
    c->age = c->priority[top];
    if (c->n) heap_settle(c, 0, last);
}

/* What has least priority goes. With `worth` nothing goes for a block that is worth less. */
static outcome by_priority(cache *c, uint32_t block, uint64_t priority, const uint64_t *worth) {
    c->priority[block] = priority;
    if (c->place[block] != NOT_IN_HEAP) {
        heap_settle(c, c->place[block], block);
        return FOUND;
    }
    if (entry_bytes(c, block) > c->size) return MISSED;
    while (c->size - c->used < entry_bytes(c, block)) {
        if (worth && worth[c->heap[0]] > worth[block]) return MISSED;
        heap_pop(c);
    }
    c->used += entry_bytes(c, block);
    c->n++;
    heap_settle(c, c->n - 1, block);
    return PLACED;
}

static outcome none(cache *c, uint32_t block, size_t now) {
    (void)c, (void)block, (void)now;
    return MISSED;
}

static outcome lru(cache *c, uint32_t block, size_t now) { return by_priority(c, block, now, NULL); }

/* The most frequent so far, in the text itself. */
static outcome lfu(cache *c, uint32_t block, size_t now) {
    (void)now;
    return by_priority(c, block, ++c->count[block], c->priority);
}

static uint64_t count_since_it_came(cache *c, uint32_t block) {
    if (c->place[block] == NOT_IN_HEAP) c->count[block] = 0;
    return ++c->count[block];
}

/* LFU with dynamic ageing (Arlitt and others, 1999). */
static outcome lfuda(cache *c, uint32_t block, size_t now) {
    (void)now;
    return by_priority(c, block, c->age + count_since_it_came(c, block), NULL);
}

/* GreedyDual-Size-Frequency (Cherkasova, 1998): uses by bytes. */
static outcome gdsf(cache *c, uint32_t block, size_t now) {
    (void)now;
    return by_priority(c, block, c->age + (count_since_it_came(c, block) << 32) / entry_bytes(c, block), NULL);
}

/* LRU with TinyLFU's admission (Einziger, Friedman, Manes, 2017), here with an exact count of each block. */
static outcome tinylfu(cache *c, uint32_t block, size_t now) {
    c->count[block]++;
    if (++c->asked >= 4096 + 16 * (uint64_t)c->n) {
        c->asked = 0;
        for (uint32_t i = 0; i < c->r->n_blocks; i++) c->count[i] /= 2;
    }
    return by_priority(c, block, now, c->count);
}

/* Evicts what is wanted again last, and nothing for what is wanted even later: Belady's rule, blind to sizes. */
static outcome furthest(cache *c, uint32_t block, size_t now) {
    return by_priority(c, block, c->r->n - c->r->next[now], c->priority);
}

static void enqueue(cache *c, int to, uint32_t block) {
    queue *q                                       = &c->queues[to];
    q->blocks[(q->head + q->n++) % c->r->n_blocks] = block;
    q->bytes += entry_bytes(c, block);
    c->where[block] = (int8_t)to;
}

static uint32_t dequeue(cache *c, int from) {
    queue         *q     = &c->queues[from];
    const uint32_t block = q->blocks[q->head];
    q->head              = (q->head + 1) % c->r->n_blocks;
    q->n--;
    q->bytes -= entry_bytes(c, block);
    c->where[block] = ABSENT;
    return block;
}

/* The oldest that was not used since it came goes; the others go round. */
static void evict_unused(cache *c, int from) {
    for (;;) {
        const uint32_t block = dequeue(c, from);
        if (!c->used_since[block]) return;
        c->used_since[block]--;
        enqueue(c, from, block);
    }
}

static bool is_queued(cache *c, uint32_t block, uint8_t most) {
    if (c->where[block] == ABSENT) return false;
    if (c->used_since[block] < most) c->used_since[block]++;
    return true;
}

static outcome place_in_queue(cache *c, int to, uint32_t block) {
    c->used_since[block] = 0;
    c->left[block]       = 0;
    enqueue(c, to, block);
    return PLACED;
}

static outcome clock_ring(cache *c, uint32_t block, size_t now) {
    (void)now;
    if (is_queued(c, block, 1)) return FOUND;
    if (entry_bytes(c, block) > c->size) return MISSED;
    while (c->size - c->queues[0].bytes < entry_bytes(c, block)) evict_unused(c, 0);
    return place_in_queue(c, 0, block);
}

/* From the small queue into the large one if it was used there, else out, to be remembered for a while. */
static void leave_small_queue(cache *c) {
    const uint32_t block = dequeue(c, 0);
    if (c->used_since[block]) {
        c->used_since[block] = 0;
        enqueue(c, 1, block);
        return;
    }
    c->gone += entry_bytes(c, block);
    c->left[block] = c->gone;
}

/* S3-FIFO (Yang and others, 2023): a tenth of the cache for new blocks. */
static outcome s3_fifo(cache *c, uint32_t block, size_t now) {
    const uint64_t need = entry_bytes(c, block), small = c->size / 10;
    const bool     known = c->left[block] && c->gone - c->left[block] < c->size - small;
    (void)now;
    if (is_queued(c, block, 3)) return FOUND;
    if (need > c->size) return MISSED;
    while (c->size - c->queues[0].bytes - c->queues[1].bytes < need) {
        if (c->queues[0].n && (c->queues[0].bytes > small || !c->queues[1].n)) leave_small_queue(c);
        else evict_unused(c, 1);
    }
    return place_in_queue(c, known, block);
}

/* What was chosen before is read once and stays. */
static outcome pinned(cache *c, uint32_t block, size_t now) {
    (void)now;
    if (c->where[block] == ABSENT) return MISSED;
    if (c->used_since[block]) return FOUND;
    c->used_since[block] = 1;
    return PLACED;
}

static outcome library(cache *c, uint32_t block, size_t now) {
    const uint32_t layer = block / c->r->vocab;
    const int32_t  token = (int32_t)(block % c->r->vocab);
    const size_t   size = l3__cache_entry_size(&c->library, c->r->bytes[block] + 1); /* 1: a source without alignment */
    (void)now;
    l3__cache_note(&c->library, token);
    if (l3__cache_find(&c->library, layer, token)) return FOUND;
    l3__entry *e = size ? l3__cache_add(&c->library, layer, token, size) : NULL;
    if (!e) return MISSED;
    e->pinned = 0;
    return PLACED;
}

static void start_library(cache *c) {
    l3__arena counting = l3__arena_of(NULL, NULL), placing = counting;
    l3__cache_layout(&counting, &c->library, (size_t)c->size, c->r->vocab);
    placing.base = (unsigned char *)(c->memory = cli_aligned((size_t)counting.used, "the cache"));
    memset(c->memory, 0, (size_t)counting.used);
    l3__cache_layout(&placing, &c->library, (size_t)c->size, c->r->vocab);
}

static const uint64_t *pin_key;

static int by_pin_key(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (pin_key[x] != pin_key[y]) return pin_key[x] > pin_key[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* A use saves a block's bytes and costs as many, so what is used most goes first. */
static void pin(cache *c, const uint64_t *key) {
    pin_key = key;
    for (uint32_t i = 0; i < c->r->n_blocks; i++) c->heap[i] = i;
    qsort(c->heap, c->r->n_blocks, sizeof *c->heap, by_pin_key);
    for (uint32_t i = 0; i < c->r->n_blocks; i++) {
        const uint32_t block = c->heap[i];
        if (!c->r->bytes[block] || c->size - c->used < entry_bytes(c, block)) continue;
        c->used += entry_bytes(c, block);
        c->where[block] = 0;
    }
}

static void pin_by_rows(cache *c) { pin(c, c->r->bytes); }

static void pin_by_text(cache *c) {
    for (size_t i = 0; i < c->r->n; i++) c->count[c->r->requests[i]]++;
    pin(c, c->count);
}

typedef struct policy {
    const char *name;
    outcome (*use)(cache *c, uint32_t block, size_t now);
    void (*start)(cache *c);
} policy;

static const policy policies[] = {
    {"none", none, NULL},
    {"l3", library, start_library},
    {"clock", clock_ring, NULL},
    {"lru", lru, NULL},
    {"s3-fifo", s3_fifo, NULL},
    {"tinylfu", tinylfu, NULL},
    {"lfuda", lfuda, NULL},
    {"gdsf", gdsf, NULL},
    {"lfu", lfu, NULL},
    {"pin-rows", pinned, pin_by_rows},
    {"pin-text", pinned, pin_by_text},
    {"furthest", furthest, NULL},
    {"bound", NULL, NULL},
};
enum { N_POLICIES = sizeof policies / sizeof *policies };

/* ---- replaying ---- */

/* What was asked for in a phase, and what of it was found. */
typedef struct tally {
    uint64_t blocks, bytes, hits, hit_bytes, reads;
} tally;

static void open_cache(cache *c, const replay *r, uint64_t size) {
    const uint64_t n = r->n_blocks;
    memset(c, 0, sizeof *c);
    c->r          = r;
    c->size       = size;
    c->priority   = (uint64_t *)cli_malloc(n * sizeof *c->priority);
    c->count      = (uint64_t *)cli_malloc(n * sizeof *c->count);
    c->left       = (uint64_t *)cli_malloc(n * sizeof *c->left);
    c->heap       = (uint32_t *)cli_malloc(n * sizeof *c->heap);
    c->place      = (uint32_t *)cli_malloc(n * sizeof *c->place);
    c->where      = (int8_t *)cli_malloc(n);
    c->used_since = (uint8_t *)cli_malloc(n);
    for (int i = 0; i < 2; i++) c->queues[i].blocks = (uint32_t *)cli_malloc(n * sizeof *c->queues[i].blocks);
    memset(c->place, 0xff, (size_t)n * sizeof *c->place); /* NOT_IN_HEAP */
    memset(c->where, ABSENT, (size_t)n);
}

static void close_cache(cache *c) {
    free(c->priority), free(c->count), free(c->left), free(c->heap), free(c->place), free(c->where);
    free(c->used_since), free(c->queues[0].blocks), free(c->queues[1].blocks);
    cli_free_aligned(c->memory);
}

/* What is not read into the cache passes through the window, a part at a time. */
static void count_request(tally *t, uint64_t bytes, outcome how, uint64_t window) {
    t->blocks++;
    t->bytes += bytes;
    if (how == FOUND) t->hits++, t->hit_bytes += bytes;
    else t->reads += how == PLACED ? 1 : (bytes + window - 1) / window;
}

static void replay_policy(const replay *r, const policy *p, uint64_t size, tally tallies[PHASES]) {
    cache c;
    open_cache(&c, r, size);
    if (p->start) p->start(&c);
    for (size_t i = 0; i < r->n; i++) {
        const outcome how = p->use(&c, r->requests[i], i);
        if (cli_stopped) cli_fail("stopped");
        for (int k = 0; k < PHASES; k++)
            if (i >= r->phases[k].from && i < r->phases[k].to)
                count_request(&tallies[k], r->bytes[r->requests[i]], how, r->s->window);
    }
    close_cache(&c);
}

/* From one request for a block to the next. */
typedef struct interval {
    size_t   length;
    uint32_t block;
} interval;

static int by_length(const void *a, const void *b) {
    const size_t x = ((const interval *)a)->length, y = ((const interval *)b)->length;
    return x < y ? -1 : x > y;
}

/* Every interval between requests for a block that ends in the phase, as far as it lies in it. */
static size_t collect_intervals(const replay *r, const phase *p, interval *all) {
    size_t n = 0;
    for (size_t i = 0; i < p->to; i++)
        if (r->next[i] >= p->from && r->next[i] < p->to)
            all[n++] = (interval){r->next[i] - (i < p->from ? p->from : i), r->requests[i]};
    qsort(all, n, sizeof *all, by_length);
    return n;
}

/* No cache can find more bytes (PFOO-L: Berger, Beckmann, Harchol-Balter, 2018): the cache's size times the number of requests
 * is what there is to spend, a block kept from one request to the next costs its size times the requests between, and the
 * cheapest per byte found come first. */
static void replay_bound(const replay *r, uint64_t size, tally tallies[PHASES]) {
    interval *all = (interval *)cli_malloc((uint64_t)r->n * sizeof *all);
    cache     c   = {.r = r};
    for (int k = 0; k < PHASES; k++) {
        const phase *p    = &r->phases[k];
        const size_t n    = collect_intervals(r, p, all);
        double       left = (double)size * (double)(p->to - p->from);
        for (size_t i = p->from; i < p->to; i++) count_request(&tallies[k], r->bytes[r->requests[i]], PLACED, 1);
        for (size_t i = 0; i < n && left > 0; i++) {
            left -= (double)all[i].length * (double)entry_bytes(&c, all[i].block);
            tallies[k].hits++;
            tallies[k].hit_bytes += r->bytes[all[i].block];
        }
        tallies[k].reads -= tallies[k].hits;
    }
    free(all);
}

/* ---- output ---- */

static double share(uint64_t part, uint64_t all) { return all ? (double)part / (double)all : 0; }
static double read_bytes(const tally *t, const phase *p) { return share(t->bytes - t->hit_bytes, p->tokens); }

static void print_head(const replay *r) {
    const settings *s = r->s;
    printf("text       %zu tokens in %" PRIu32 " stream%s, %zu row blocks wanted\n", r->n_tokens, s->streams,
           s->streams == 1 ? "" : "s", r->n);
    printf("tables     %s in %" PRIu32 " layer%s\n", cli_bytes((double)r->table), r->layers, r->layers == 1 ? "" : "s");
    printf("cold       the first %" PRIu64 " tokens; warm: the second half of the text\n\n", r->phases[0].tokens);
    printf("%12s %-9s | cold: %6s %7s %11s %7s | warm: %6s %7s %11s %7s\n", "cache", "policy", "blocks", "bytes",
           "bytes read", "reads", "blocks", "bytes", "bytes read", "reads");
    printf("%12s %-9s |       %6s %7s %11s %7s |       %6s %7s %11s %7s\n", "", "", "found", "found", "a token",
           "a token", "found", "found", "a token", "a token");
}

static void print_case(const replay *r, const char *name, uint64_t size, const tally t[PHASES]) {
    printf("%12" PRIu64 " %-9s", size, name);
    for (int k = 0; k < PHASES; k++)
        printf(" |       %5.1f%% %6.1f%% %11.0f %7.3f", 100 * share(t[k].hits, t[k].blocks),
               100 * share(t[k].hit_bytes, t[k].bytes), read_bytes(&t[k], &r->phases[k]),
               share(t[k].reads, r->phases[k].tokens));
    printf("\n");
    fflush(stdout);
}

static void json_head(const replay *r) {
    printf("{\"file\": ");
    cli_json_string(r->s->path);
    cli_json_u64("tokens", r->n_tokens);
    cli_json_u64("streams", r->s->streams);
    cli_json_u64("requests", r->n);
    cli_json_u64("table_bytes", r->table);
    cli_json_u64("cold_tokens", r->phases[0].tokens);
    cli_json_u64("warm_tokens", r->phases[1].tokens);
    cli_json_key("cases");
    printf("[");
}

static void json_case(const replay *r, const char *name, uint64_t size, const tally t[PHASES]) {
    static const char *const phase_names[PHASES] = {"cold", "warm"};
    printf("{\"policy\": \"%s\"", name);
    cli_json_u64("cache_bytes", size);
    for (int k = 0; k < PHASES; k++) {
        cli_json_key(phase_names[k]);
        printf("{\"blocks\": %" PRIu64, t[k].blocks);
        cli_json_u64("bytes", t[k].bytes);
        cli_json_u64("blocks_found", t[k].hits);
        cli_json_u64("bytes_found", t[k].hit_bytes);
        cli_json_u64("reads", t[k].reads);
        cli_json_real("bytes_read_per_token", read_bytes(&t[k], &r->phases[k]));
        printf("}");
    }
    printf("}");
}

/* ---- the program ---- */

/* "1%", "2.5%", "64K" up to a comma: bytes. */
static uint64_t parse_size(const replay *r, const char *item) {
    const size_t n     = strlen(item);
    double       value = -1;
    size_t       bytes = 0;
    char         number[32];
    snprintf(number, sizeof number, "%.*s", n ? (int)n - 1 : 0, item);
    if (n && n < sizeof number && item[n - 1] == '%' && cli_real(number, &value) && value > 0 && value <= 100)
        return (uint64_t)(value / 100 * (double)r->table);
    if (!cli_size(item, &bytes))
        cli_usage(
            "--sizes %s: a share of the tables as 5%%, or a number of bytes, with K, M or G behind it if you like, "
            "is expected",
            item);
    return bytes;
}

/* The item of a list at *at, and *at after its comma; false: there is none. */
static bool next_item(const char **at, char *item, size_t room) {
    const size_t n = strcspn(*at, ",");
    if (**at == '\0') return false;
    snprintf(item, room, "%.*s", (int)(n < room ? n : room - 1), *at);
    *at += n + ((*at)[n] == ',');
    return true;
}

static bool is_wanted(const settings *s, const char *name) {
    const char *at = s->policy_list;
    char        item[32];
    if (strcmp(at, "all") == 0) return true;
    while (next_item(&at, item, sizeof item))
        if (strcmp(item, name) == 0) return true;
    return false;
}

static void check_policies(const settings *s) {
    const char *at = s->policy_list;
    char        item[32];
    while (strcmp(s->policy_list, "all") != 0 && next_item(&at, item, sizeof item)) {
        int i = 0;
        while (i < N_POLICIES && strcmp(policies[i].name, item) != 0) i++;
        if (i == N_POLICIES) cli_usage("--policies %s: there is none of this name; --help lists them", item);
    }
}

static void parse(settings *s, int argc, char **argv) {
    const cli_option options[] = {
        {"--text", CLI_LIST, &s->texts, "FILE", "the text (.xz, .gz, too); may be given several times", 0, 0},
        {"--sizes", CLI_TEXT, &s->size_list, "SIZE,...", "of caches: 5%, of the tables, or bytes as 64K (1%,5%,20%)", 0,
         0},
        {"--streams", CLI_U32, &s->streams, "N", "texts decoded side by side by l3_decode_batch (1)", 1, STREAMS},
        {"--cold", CLI_U32, &s->cold, "TOKENS", "how many are reported as \"cold\" (1000)", 1, 0},
        {"--window", CLI_SIZE, &s->window, "BYTES[K|M|G]", "in how many reads what is not cached comes (64K)", 0, 0},
        {"--tokenizer", CLI_TEXT, &s->tokenizer, "TOK.gguf", "where MODEL is an allocation", 0, 0},
        {"--row-bytes", CLI_U32, &s->row_bytes, "N", "of one row; needed for an allocation", 1, 0},
        {"--policies", CLI_TEXT, &s->policy_list, "NAME,...",
         "all, or some of: none, l3 (what l3.h does), clock, lru, s3-fifo,\n"
         "                           tinylfu, lfuda, gdsf, lfu, pin-rows (most rows first), and with\n"
         "                           knowledge of the text: pin-text (most frequent first), furthest\n"
         "                           (Belady's), bound (nothing can be better) (none,l3)",
         0, 0},
        {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
        {0},
    };
    const cli_program program = {
        "l3-cache", "MODEL --text FILE [options]",
        "Says what a cache for rows is worth: which share of the row blocks of a text and of their bytes it finds,\n"
        "and what is left to read. MODEL may be an allocation.",
        options};
    s->streams = 1, s->cold = 1000, s->window = 65536;
    s->size_list = "1%,5%,20%", s->policy_list = "none,l3";
    if (cli_parse(&program, argc, argv, &s->path, 1) != 1) cli_usage("a model is expected: l3-cache MODEL --text FILE");
    if (s->texts.n == 0) cli_usage("--text FILE is expected, the text whose tokens are replayed");
    if (s->window == 0) cli_usage("--window 0: at least one byte is expected");
    check_policies(s);
}

static void replay_size(const replay *r, uint64_t size, bool first) {
    for (int i = 0; i < N_POLICIES; i++) {
        tally tallies[PHASES] = {{0}};
        if (!is_wanted(r->s, policies[i].name)) continue;
        if (policies[i].use) replay_policy(r, &policies[i], size, tallies);
        else replay_bound(r, size, tallies);
        if (r->s->json && !first) printf(", ");
        if (r->s->json) json_case(r, policies[i].name, size, tallies);
        else print_case(r, policies[i].name, size, tallies);
        first = false;
    }
}

int main(int argc, char **argv) {
    settings s = {0};
    replay   r = {.s = &s};
    uint64_t sizes[SIZES];
    int      n_sizes = 0;
    char     item[32];
    parse(&s, argc, argv);
    open_files(&r);
    size_blocks(&r);
    for (const char *at = s.size_list; n_sizes < SIZES && next_item(&at, item, sizeof item);)
        sizes[n_sizes++] = parse_size(&r, item);
    read_texts(&r);
    make_requests(&r);
    link_requests(&r);
    if (s.json) json_head(&r);
    else print_head(&r);
    for (int i = 0; i < n_sizes; i++) replay_size(&r, sizes[i], i == 0);
    if (s.json) printf("]}\n");
    cli_end_stdout();
    if (s.tokenizer) cli_close(&r.other);
    cli_close(&r.e);
    free(r.bytes), free(r.tokens), free(r.requests), free(r.next), free((void *)s.texts.items);
    return 0;
}
