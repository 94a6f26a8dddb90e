/* uart.c - the serial port: Arm's CMSDK UART of the MPS boards, or the USART of an STM32, by polling. */
#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

#if defined(UART_CMSDK)
#define DATA    REGISTER(UART_CMSDK)
#define STATE   REGISTER(UART_CMSDK + 0x04) /* bit 0: the transmit buffer is full */
#define CONTROL REGISTER(UART_CMSDK + 0x08) /* bit 0: transmit */
#define DIVISOR REGISTER(UART_CMSDK + 0x10)

void uart_init(void) {
    DIVISOR = 25000000 / 115200;
    CONTROL = 1;
}
static int  full(void) { return (STATE & 1) != 0; }
static void put(char c) { DATA = (unsigned char)c; }

#elif defined(UART_STM32)
#define STATUS   REGISTER(UART_STM32) /* bit 7: the data register is empty */
#define DATA     REGISTER(UART_STM32 + 0x04)
#define BAUDRATE REGISTER(UART_STM32 + 0x08)
#define CONTROL  REGISTER(UART_STM32 + 0x0c) /* bit 13: on; bit 3: transmit */

/* On the part itself its clock is turned on first (RCC_APB2ENR), and the pin is given to it (GPIO). */
void uart_init(void) {
    BAUDRATE = 16000000 / 115200;
    CONTROL  = 1u << 13 | 1u << 3;
}
static int  full(void) { return (STATUS & 1u << 7) == 0; }
static void put(char c) { DATA = (unsigned char)c; }

#else
#error "the board has UART_CMSDK=ADDRESS or UART_STM32=ADDRESS"
#endif

void board_write(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        while (full()) continue;
        put(text[i]);
    }
}
