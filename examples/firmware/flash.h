/* flash.h - the driver of a flash chip that the processor cannot see as memory: reads of whole pages, by DMA. */
#ifndef FLASH_H
#define FLASH_H

#include "../../l3_model.h"

enum { FLASH_PAGE = 256 };

/* What comes back in l3_error.io. */
enum { FLASH_RANGE = -1 /* not a page, or beyond the end */, FLASH_BUSY = -2, FLASH_FAILED = -3, FLASH_TIMEOUT = -4 };

/* The first size bytes of the chip. There is one chip: opening it again ends what was under way. */
l3_source flash_open(uint32_t size);
/* Bytes that came over the wire since flash_open(). */
uint64_t flash_bytes(void);

/* What the driver needs of the hardware (spi.c): */

/* Begins the transfer of n <= FLASH_PAGE bytes at off, the start of a page, to dst. When all are there an interrupt calls
 * flash_page_done(0); with anything but 0 it failed. */
void spi_start(uint32_t off, void *dst, uint32_t n);
/* Ends a transfer that takes too long; afterwards nothing is written and flash_page_done() is not called. */
void spi_stop(void);
/* Called again and again while the driver waits: the place to sleep, or to let another task run. */
void spi_idle(void);

void flash_page_done(int failure);

#endif
