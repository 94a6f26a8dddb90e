# Cortex-M33 with single-precision floats, in its secure state: MPS2, AN505.
MACHINE = mps2-an505
CPU     = -mcpu=cortex-m33 -mfloat-abi=hard -mfpu=fpv5-sp-d16
MEMORY  = CODE=0x10000000 CODE_SIZE=4M RAM=0x38000000 RAM_SIZE=4M MODEL=0x80000000 MODEL_SIZE=16M
UART    = -DUART_CMSDK=0x50200000
