# Cortex-M3, no floating-point unit: Arm's MPS2 board with the image AN385.
MACHINE = mps2-an385
CPU     = -mcpu=cortex-m3
MEMORY  = CODE=0x00000000 CODE_SIZE=4M RAM=0x20000000 RAM_SIZE=4M MODEL=0x21000000 MODEL_SIZE=16M
UART    = -DUART_CMSDK=0x40004000
