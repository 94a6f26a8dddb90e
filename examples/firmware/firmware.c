/* firmware.c - a microcontroller that writes a story. STORAGE_DRIVER: its model lies in a flash chip behind a driver;
 * otherwise in memory that the processor sees. */
#include "board.h"
#include "flash.h"
#include "story.h"

#ifndef TOKENS
#define TOKENS 64
#endif
#ifndef PROMPT
#define PROMPT "Once upon a time"
#endif
#ifndef MODE
#define MODE L3_EXACT
#endif
#ifndef TRUSTED /* 1: a model without checksums, or no time to verify it at every start */
#define TRUSTED 0
#endif

extern unsigned char model_start[], model_end[];

int main(void) {
    const size_t size = (size_t)((uintptr_t)model_end - (uintptr_t)model_start);
    story_plan   plan = {"mapped", PROMPT, TOKENS, MODE, TRUSTED};
#ifdef STORAGE_DRIVER
    const l3_source source = flash_open((uint32_t)size);
    plan.storage           = "driver";
#else
    const l3_source source = l3_source_memory(model_start, size);
#endif
#ifdef WRITE_TO_MODEL /* for a test: this must not return from the next line */
    *(volatile unsigned char *)model_start = 0;
#endif
    return story_write(&source, &plan) == L3_OK ? 0 : 1;
}
