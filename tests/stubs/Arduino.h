// Just enough of Arduino's interface to compile and run the sketch in examples/projects/arduino on a desktop.
#ifndef ARDUINO_H
#define ARDUINO_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct SerialStub {
    void   begin(unsigned long) {}
    size_t write(const uint8_t *text, size_t n) { return fwrite(text, 1, n, stdout); }
    size_t print(const char *text) { return write(reinterpret_cast<const uint8_t *>(text), __builtin_strlen(text)); }
    size_t println() { return print("\r\n"); }
};
static SerialStub Serial;

static inline void delay(unsigned long) {}

#endif
