    .section .rodata
    .balign 64
    .globl model_start
    .globl model_end
model_start:
    .incbin MODEL_FILE
model_end:
    .section .note.GNU-stack,"",%progbits
