/* board.h - what the program needs of a board: bytes out, the figure of its stack. start.c and uart.c have it. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

/* The board's name, from the Makefile. */
#ifndef BOARD
#define BOARD "host"
#endif

void board_write(const char *text, size_t n);
/* The most that has been used since the start, by main and by interrupts: what is no longer painted. */
size_t board_stack_used(void);

/* start.c's own needs of uart.c. */
void uart_init(void);

#endif
