/* The model's file as it is, where the linker script puts .model. MODEL_FILE is its path. */
    .syntax unified
    .section .model, "a", %progbits
    .balign 64
    .globl model_start
    .globl model_end
model_start:
    .incbin MODEL_FILE
model_end:
