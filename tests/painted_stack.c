/* How much stack public calls take on a Cortex-M4F, measured: paints what lies below the stack pointer, calls, and looks how far
 * down the paint is gone. Prints "call bytes" by semihosting. tests/test_sizes.sh runs it under qemu-system-arm (mps2-an386) and
 * compares with what the call graph says. */
#define L3_NO_STDIO
#define L3_STATIC
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#define PAINT       0xa5c3a5c3u
#define PAINT_WORDS 4096

extern const unsigned char                                    model_start[], model_end[];
void                                                          reset(void);
__attribute__((section(".vectors"), used)) static void *const vectors[16] = {(void *)0x20400000, (void *)reset};

static unsigned char block[2 << 20] __attribute__((aligned(L3_ALIGN)));
static size_t        taken;
static l3_source     source, snapshot;
static l3_model     *model;
static l3_session   *session;
static l3_sampler   *sampler;
static l3_tokenizer *tokenizer;
static unsigned char saved[1 << 19];
static l3_buffer     buffer;
static const int32_t ids[40] = {1, 300, 301, 302, 303, 304, 305, 306, 307, 308};

static int semihosting(int op, const void *argument) {
    register int         r0 __asm__("r0") = op;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void leave(int code) {
    const uint32_t reason[2] = {0x20026u, (uint32_t)code};
    for (;;) semihosting(0x20, reason);
}

static void must(int code) {
    if (code != L3_OK) leave(1);
}

static int read_flash(void *user, uint64_t off, void *dst, size_t n) {
    memcpy(dst, (const unsigned char *)user + (size_t)off, n);
    return 0;
}

static void *take(size_t n) {
    void *p = block + taken;
    taken += (n + L3_ALIGN - 1) / L3_ALIGN * L3_ALIGN;
    if (n == 0 || taken > sizeof block) leave(2);
    return p;
}

static void do_model_size(void) {
    size_t n;
    must(l3_model_size(&source, NULL, &n, NULL));
}
static void do_model_open(void) { must(l3_model_open(&model, &source, NULL, block, sizeof block / 2, NULL)); }
static void do_verify(void) { must(l3_model_verify(model, NULL)); }
static void do_session_init(void) {
    static l3_session_config config; /* not on the stack that is measured; so below */
    config.context     = 64;
    config.work.batch  = 4;
    config.work.window = 8192;
    const size_t n     = l3_session_size(model, &config);
    must(l3_session_init(&session, model, &config, take(n), n, NULL));
}
static void do_prefill(void) { must(l3_prefill(session, ids, 40, NULL, NULL)); }
static void do_decode(void) { must(l3_decode(session, 400, NULL)); }
static void do_save(void) { must(l3_session_save(session, l3_write_buffer, &buffer, NULL)); }
static void do_load(void) { must(l3_session_load(session, &snapshot, NULL)); }
static void do_sampler_init(void) {
    static l3_sampling sampling;
    const uint32_t     vocab = l3_model_info(model)->vocab;
    sampling                 = l3_sampling_defaults();
    const size_t n           = l3_sampler_size(&sampling, vocab);
    must(l3_sampler_init(&sampler, &sampling, vocab, take(n), n, NULL));
}
static void do_sample(void) {
    int32_t id;
    must(l3_sample(sampler, l3_logits(session), &id, NULL));
}
static void do_tokenizer_init(void) {
    const size_t n = l3_tokenizer_size(model, 64);
    must(l3_tokenizer_init(&tokenizer, model, 64, take(n), n, NULL));
}
static void do_tokenize(void) {
    static int32_t out[16];
    size_t         n;
    must(l3_tokenize(tokenizer, "Once upon a time", 16, L3_TEXT_BOS, out, 16, &n, NULL));
}
static void do_detokenize(void) {
    const char *text;
    size_t      n;
    must(l3_detokenize(tokenizer, 400, &text, &n, NULL));
}
static void do_error(void) { /* the deepest place: a sentence is written while the file is opened */
    static l3_error  err;
    static l3_source cut;
    size_t           n;
    cut      = source;
    cut.size = 3000;
    if (l3_model_size(&cut, NULL, &n, &err) != L3_ERR_FORMAT) leave(3);
}

static uint32_t stack_of(void (*call)(void)) {
    volatile uint32_t *sp, *p;
    __asm__ volatile("mov %0, sp" : "=r"(sp));
    for (p = sp - PAINT_WORDS; p < sp; p++) *p = PAINT;
    call();
    for (p = sp - PAINT_WORDS; *p == PAINT;) p++;
    return (uint32_t)((uintptr_t)sp - (uintptr_t)p);
}

static void measure(const char *name, void (*call)(void)) {
    char     line[64];
    uint32_t n = stack_of(call), digit = 100000;
    char    *p = line;
    while (*name) *p++ = *name++;
    *p++ = ' ';
    for (; digit; digit /= 10) *p++ = (char)('0' + n / digit % 10);
    *p++ = '\n';
    *p   = '\0';
    semihosting(4, line);
}

void reset(void) {
    *(volatile uint32_t *)0xE000ED88u |= 0xfu << 20; /* CPACR: the FPU */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    const union {
        const unsigned char *in;
        void                *out;
    } bytes      = {model_start};
    source.user  = bytes.out;
    source.size  = (uint64_t)(model_end - model_start);
    source.align = L3_MAX_ALIGN;
    source.read  = read_flash;
    buffer.bytes = saved;
    buffer.size  = sizeof saved;
    measure("l3_model_size", do_model_size);
    measure("l3_model_size", do_error);
    measure("l3_model_open", do_model_open);
    taken = sizeof block / 2;
    measure("l3_model_verify", do_verify);
    measure("l3_session_init", do_session_init);
    measure("l3_prefill", do_prefill);
    measure("l3_decode", do_decode);
    measure("l3_session_save", do_save);
    snapshot = l3_source_memory(saved, buffer.used);
    measure("l3_session_load", do_load);
    measure("l3_sampler_init", do_sampler_init);
    measure("l3_sample", do_sample);
    measure("l3_tokenizer_init", do_tokenizer_init);
    measure("l3_tokenize", do_tokenize);
    measure("l3_detokenize", do_detokenize);
    leave(0);
}
