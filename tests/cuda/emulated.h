/* emulated.h - what tests ask of emulator.h, in C. */
#ifndef CUDA_EMULATED_H
#define CUDA_EMULATED_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Another order of threads, blocks and streams. */
void emulated_seed(uint64_t seed);
/* The call of CUDA after so many others fails; the kernel, copy or host function does when it runs. */
void emulated_fail_after(uint64_t calls, int error);
void emulated_fail_run_after(uint64_t runs, int error);
/* Nothing fails any more. */
void emulated_reset(void);
/* Calls since the program began. */
uint64_t emulated_calls(void);
uint64_t emulated_runs(void);
/* Memory, streams, events and graphs that were not given back. */
uint64_t emulated_outstanding(void);
/* What is taken now. */
uint64_t emulated_device_bytes(void);
uint64_t emulated_pinned_bytes(void);
/* Device memory that there is. */
void emulated_limit_memory(uint64_t bytes);
void emulated_set_capability(int major, int minor);
void emulated_set_devices(int n);

#ifdef __cplusplus
}
#endif
#endif
