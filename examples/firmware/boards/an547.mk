# Cortex-M55 with Helium, in its secure state: MPS3, AN547. The model lies in a memory that cannot be written (QSPI flash).
# gcc 12 makes instructions for this core that its own assembler refuses without -fno-if-conversion2; vectors of floats,
# which take subnormal numbers for zero, are not what exact mode promises.
MACHINE = mps3-an547
CPU     = -mcpu=cortex-m55 -mfloat-abi=hard -fno-if-conversion2 -fno-tree-vectorize
MEMORY  = CODE=0x00000000 CODE_SIZE=512K RAM=0x31000000 RAM_SIZE=4M MODEL=0x38000000 MODEL_SIZE=8M
UART    = -DUART_CMSDK=0x59303000
