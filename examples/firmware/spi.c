/* spi.c - the hardware under flash.c, simulated, since the emulated boards have no SPI flash with DMA.
 *
 * The chip's bytes are the linked model, which only the interrupt below looks at. SysTick stands for the DMA: each tick
 * brings the page that was begun, while the program runs; who waits for a page gets it at once, as an emulator's clock is no
 * measure of anything. On a real board spi_start() sends the chip its read command (0x0b or 0x6b), tells a DMA channel
 * destination and length and returns; the handler is that of the channel, and spi_idle() sleeps. Where there is a data
 * cache, spi_start() also invalidates it over the destination. */
#include "flash.h"

#include <string.h>

extern const unsigned char model_start[];
void                       SysTick_Handler(void);

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define ICSR              REGISTER(0xE000ED04u) /* bit 26: SysTick's interrupt is due */
#define SYST_CSR          REGISTER(0xE000E010u) /* 7: on, with interrupt, by the processor's clock */
#define SYST_RVR          REGISTER(0xE000E014u)

enum { PERIOD = 2500 }; /* cycles: 0.1 ms on the MPS boards */

/* Volatile, as the interrupt may come between any two of these lines: what it needs is there before n is. */
static volatile struct {
    uint32_t off;
    void    *dst;
    uint32_t n; /* 0: no page is under way */
} page;

void spi_start(uint32_t off, void *dst, uint32_t n) {
    page.off = off;
    page.dst = dst;
    page.n   = n;
    SYST_RVR = PERIOD - 1;
    SYST_CSR = 7;
}

void spi_stop(void) { page.n = 0; }

void spi_idle(void) { ICSR = 1u << 26; }

void SysTick_Handler(void) {
    const uint32_t n = page.n;
    if (n == 0) return;
    page.n = 0;
    memcpy(page.dst, model_start + page.off, n);
    flash_page_done(0);
}
