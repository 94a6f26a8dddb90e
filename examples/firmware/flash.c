/* flash.c - the driver: reads of any length on page boundaries, one at a time, page after page by interrupt.
 *
 * Between start and wait the processor is free; each page's end begins the next from the interrupt. */
#include "flash.h"

/* Polls without a page before a transfer is given up. Long: a page takes microseconds. A driver with a timer would use it. */
enum { PATIENCE = 1000000 };

/* The interrupt changes the first half. */
static volatile struct {
    uint32_t       off; /* of the page under way */
    unsigned char *dst;
    uint32_t       left;   /* bytes that are not there yet; 0: nothing is under way */
    int            status; /* of the last transfer */
    uint64_t       bytes;

    uint32_t size;
    bool     started;   /* by flash_start(), and not waited for */
    bool     has_ended; /* before that, as it had to make room for another: */
    int      ended;     /* with this status */
} flash;

static uint32_t page_bytes(void) { return flash.left < FLASH_PAGE ? flash.left : FLASH_PAGE; }

/* From the interrupt. */
void flash_page_done(int failure) {
    const uint32_t n = page_bytes(), left = flash.left - n;
    if (failure) {
        flash.status = FLASH_FAILED;
        flash.left   = 0;
        return;
    }
    flash.bytes += n;
    flash.off += n;
    flash.dst += n;
    flash.left = left;
    if (left) spi_start(flash.off, flash.dst, page_bytes());
}

static int begin(uint64_t off, void *dst, size_t n) {
    if (off % FLASH_PAGE != 0 || n == 0 || off > flash.size || n > flash.size - off) return FLASH_RANGE;
    flash.off    = (uint32_t)off;
    flash.dst    = (unsigned char *)dst;
    flash.status = 0;
    flash.left   = (uint32_t)n;
    spi_start((uint32_t)off, dst, page_bytes());
    return 0;
}

static int finish(void) {
    uint32_t left = flash.left, polls = 0;
    while (flash.left != 0) {
        spi_idle();
        if (flash.left != left) left = flash.left, polls = 0;
        else if (++polls == PATIENCE) {
            spi_stop();
            flash.left   = 0;
            flash.status = FLASH_TIMEOUT;
        }
    }
    return flash.status;
}

static int flash_start(void *user, uint64_t off, void *dst, size_t n) {
    (void)user;
    if (flash.started) return FLASH_BUSY;
    const int status = begin(off, dst, n);
    flash.started    = status == 0;
    flash.has_ended  = false;
    return status;
}

static int flash_wait(void *user) {
    (void)user;
    flash.started = false;
    return flash.has_ended ? flash.ended : finish();
}

/* There is one chip: what was started ends first, and its status waits for flash_wait(). */
static int flash_read(void *user, uint64_t off, void *dst, size_t n) {
    (void)user;
    if (flash.started && !flash.has_ended) {
        flash.ended     = finish();
        flash.has_ended = true;
    }
    const int status = begin(off, dst, n);
    return status == 0 ? finish() : status;
}

l3_source flash_open(uint32_t size) {
    const l3_source source = {NULL, size, FLASH_PAGE, NULL, flash_read, flash_start, flash_wait, NULL};
    spi_stop();
    flash.size    = size;
    flash.left    = 0;
    flash.bytes   = 0;
    flash.started = flash.has_ended = false;
    return source;
}

uint64_t flash_bytes(void) { return flash.bytes; }
