# Cortex-M4 with single-precision floats: MPS2, AN386.
MACHINE = mps2-an386
CPU     = -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16
MEMORY  = CODE=0x00000000 CODE_SIZE=4M RAM=0x20000000 RAM_SIZE=4M MODEL=0x21000000 MODEL_SIZE=16M
UART    = -DUART_CMSDK=0x40004000
