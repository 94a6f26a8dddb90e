/* start.c - from reset to main on Cortex-M: vectors, floating point, memory, stack, faults, and the end under an emulator. */
#include "board.h"

/* From link.ld. Arrays, so that their names are addresses. */
extern uint32_t      stack_bottom[], stack_top[], data_load[], data_start[], data_end[], bss_start[], bss_end[];
extern unsigned char model_start[], model_end[];

int  main(void);
void reset(void);
void fault(void);
void fault_report(void);
void SysTick_Handler(void);

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SHCSR             REGISTER(0xE000ED24u) /* which faults have handlers of their own */
#define CFSR              REGISTER(0xE000ED28u) /* why there was a fault */
#define MMFAR             REGISTER(0xE000ED34u) /* where: protected memory ... */
#define BFAR              REGISTER(0xE000ED38u) /* ... or none */
#define CPACR             REGISTER(0xE000ED88u)
#define MPU_CTRL          REGISTER(0xE000ED94u)
#define MPU_RNR           REGISTER(0xE000ED98u)
#define MPU_RBAR          REGISTER(0xE000ED9Cu)
#define MPU_RASR          REGISTER(0xE000EDA0u) /* ARMv7-M; in ARMv8-M the same place is RLAR */
#define MPU_MAIR0         REGISTER(0xE000EDC0u)

enum { PAINT = 0x57ac4ed5 };

/* Ends the program with an exit code where a debugger or an emulator serves semihosting calls; elsewhere this is a fault,
 * and a program without an end is the usual one. */
static void leave(uint32_t code) {
    uint32_t                 why[2]           = {0x20026 /* the application says so */, code};
    register uint32_t        r0 __asm__("r0") = 0x20; /* SYS_EXIT_EXTENDED */
    register const uint32_t *r1 __asm__("r1") = why;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    for (;;) continue;
}

/* From here on any write to the model is a fault, and so is a stack that is too long. */
static void protect(void) {
    const uint32_t start = (uint32_t)(uintptr_t)model_start, end = (uint32_t)(uintptr_t)model_end;
#if __ARM_ARCH >= 8
    MPU_RNR   = 0;
    MPU_MAIR0 = 0xff;                     /* attribute 0: ordinary memory, cached */
    MPU_RBAR  = (start & ~31u) | 3u << 1; /* read-only for all ... */
    MPU_RASR  = ((end - 1) & ~31u) | 1u;  /* ... up to here, attribute 0, on */
    __asm__ volatile("msr msplim, %0" : : "r"(stack_bottom));
#else
    uint32_t log2 = 5; /* regions are powers of two on multiples of their size: the least that holds the model */
    while (log2 < 31 && (start >> log2) != ((end - 1) >> log2)) log2++;
    MPU_RNR  = 0;
    MPU_RBAR = start >> log2 << log2;
    MPU_RASR = 6u << 24 | 1u << 17 | (log2 - 1) << 1 | 1u; /* read-only for all, cached, on */
    MPU_RNR  = 1;
    MPU_RBAR = (uint32_t)(uintptr_t)stack_bottom - 4096;
    MPU_RASR = 1u << 28 | 11u << 1 | 1u; /* 4 KB below the RAM: no access */
#endif
    SHCSR |= 7u << 16;
    MPU_CTRL = 1u << 2 | 1u; /* all else as without it */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
}

static void paint_stack(void) {
    uint32_t *here;
    __asm__ volatile("mov %0, sp" : "=r"(here));
    for (uint32_t *p = stack_bottom; p < here; p++) *p = PAINT;
}

size_t board_stack_used(void) {
    const uint32_t *p = stack_bottom;
    while (p < stack_top && *p == PAINT) p++;
    return (size_t)((uintptr_t)stack_top - (uintptr_t)p);
}

void reset(void) {
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    CPACR |= 0xfu << 20; /* floating point and vectors are off after a reset */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    const uint32_t *from = data_load;
    for (uint32_t *to = data_start; to < data_end; to++) *to = *from++;
    for (uint32_t *to = bss_start; to < bss_end; to++) *to = 0;
    paint_stack();
    protect();
    uart_init();
    leave((uint32_t)main());
}

/* The stack may be what is wrong: begins it anew. */
__attribute__((naked)) void fault(void) {
    __asm__ volatile("ldr r0, =stack_top\n\tmov sp, r0\n\tb fault_report\n\t.ltorg");
}

static char *put_hex(char *p, uint32_t v) {
    for (int shift = 28; shift >= 0; shift -= 4) *p++ = "0123456789abcdef"[v >> shift & 15];
    return p;
}

void fault_report(void) {
    char text[] = "\nfault: cfsr 00000000, memory 00000000, bus 00000000\n";
    put_hex(text + 13, CFSR);
    put_hex(text + 30, MMFAR);
    put_hex(text + 44, BFAR);
    board_write(text, sizeof text - 1);
    leave(99);
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    stack_top,     (void *)reset, (void *)fault, (void *)fault,
    (void *)fault, (void *)fault, (void *)fault, (void *)fault,
    NULL,          NULL,          NULL,          (void *)fault,
    (void *)fault, NULL,          (void *)fault, (void *)SysTick_Handler,
};
