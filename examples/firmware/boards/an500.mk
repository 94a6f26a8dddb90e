# Cortex-M7 with double-precision floats: MPS2, AN500.
MACHINE = mps2-an500
CPU     = -mcpu=cortex-m7 -mfloat-abi=hard -mfpu=fpv5-d16
MEMORY  = CODE=0x00000000 CODE_SIZE=4M RAM=0x20000000 RAM_SIZE=4M MODEL=0x60000000 MODEL_SIZE=16M
UART    = -DUART_CMSDK=0x40004000
