// A story on the serial port, from a model in flash: stories.c and stories.h are made by
//     build/l3-embed examples/models/stories-l3-small.gguf examples/projects/arduino/story/stories.c
// Needs a board with 512 KB of flash and 96 KB of RAM: Teensy 4, RP2040, ESP32, STM32F4, nRF52840 ...
#include <Arduino.h>

#define STORIES_ALONE // leaves out the element types that this model has not
#include "stories.h"

#define L3_NO_STDIO
#define L3_NO_ALLOCATOR
#include "tell.h"

static void put(void *, const char *text, size_t n) { Serial.write(reinterpret_cast<const uint8_t *>(text), n); }

void setup() { Serial.begin(115200); }

void loop() {
    const l3_source source = l3_source_memory(stories, STORIES_SIZE);
    l3_error        err;
    if (tell(&source, "Once upon a time", 32, put, nullptr, &err) != L3_OK) Serial.print(err.text);
    Serial.println();
    delay(10000);
}
