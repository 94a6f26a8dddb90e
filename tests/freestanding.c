/* The headers without a C library: nolibc.h supplies the seven functions they use, and this runs a model from memory, so that
 * linking it with -nostdlib proves that nothing else is needed. Started by the system at _start; exits with 0 if the model
 * (an object made from examples/models/books-l3.gguf) gives finite logits that differ between two tokens. */
#define L3_NO_STDIO
#define L3_NO_ALLOCATOR
#define L3_STATIC
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "nolibc.h"

extern const unsigned char model_start[], model_end[];

static unsigned char block[1 << 20] __attribute__((aligned(L3_ALIGN)));

static int run(void) {
    const l3_source   source = l3_source_memory(model_start, (size_t)(model_end - model_start));
    l3_session_config config;
    l3_model         *model;
    l3_session       *session;
    size_t            size;
    memset(&config, 0, sizeof config);
    config.context    = 16;
    config.work.batch = 1;
    if (l3_model_size(&source, NULL, &size, NULL) != L3_OK || size > sizeof block) return 2;
    if (l3_model_open(&model, &source, NULL, block, size, NULL) != L3_OK) return 3;
    size = (size + L3_ALIGN - 1) / L3_ALIGN * L3_ALIGN;
    if (l3_session_init(&session, model, &config, block + size, sizeof block - size, NULL) != L3_OK) return 4;
    if (l3_decode(session, 1, NULL) != L3_OK) return 5;
    const float first = l3_logits(session)[400];
    if (l3_decode(session, 432, NULL) != L3_OK) return 6;
    const float second = l3_logits(session)[400];
    return first - first == 0 && second - second == 0 && first != second ? 0 : 7;
}

#if defined(__x86_64__)
__attribute__((used)) static void leave(int code) {
    __asm__ volatile("syscall" : : "a"(231L), "D"((long)code) : "rcx", "r11", "memory");
    for (;;) {
    }
}
__asm__(".globl _start\n_start: xor %ebp,%ebp\n and $-16,%rsp\n call begin\n");
#elif defined(__aarch64__)
__attribute__((used)) static void leave(int code) {
    register long x8 __asm__("x8") = 94, x0 __asm__("x0") = code;
    __asm__ volatile("svc 0" : : "r"(x8), "r"(x0) : "memory");
    for (;;) {
    }
}
__asm__(".globl _start\n_start: bl begin\n");
#else
#error "this test knows how to leave on x86-64 and AArch64 Linux only"
#endif
void begin(void);
void begin(void) { leave(run()); }
