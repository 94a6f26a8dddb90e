# Cortex-M4 with single-precision floats and little memory: Netduino Plus 2 (STM32F405), 1 MB of flash for code and model,
# 192 KB of RAM, which on the real part is in three pieces.
MACHINE = netduinoplus2
CPU     = -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16
MEMORY  = CODE=0x08000000 CODE_SIZE=256K RAM=0x20000000 RAM_SIZE=192K MODEL=0x08040000 MODEL_SIZE=768K
UART    = -DUART_STM32=0x40011000
