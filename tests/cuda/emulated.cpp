/* emulated.cpp - l3_cuda.cu as an object for machines without a GPU: its kernels run on the CPU. */
#include "emulator.h"

#include "../../l3_cuda.cu"

#include "emulated.h"

void     emulated_seed(uint64_t seed) { emulator_seed(seed); }
void     emulated_fail_after(uint64_t calls, int error) { emulator_fail_after(calls + 1, (cudaError_t)error); }
void     emulated_fail_run_after(uint64_t runs, int error) { emulator_fail_run_after(runs + 1, (cudaError_t)error); }
void     emulated_reset(void) { emulator_reset(); }
uint64_t emulated_calls(void) { return emulator_calls(); }
uint64_t emulated_runs(void) { return emulator_runs(); }
uint64_t emulated_outstanding(void) { return emulator_outstanding(); }
uint64_t emulated_device_bytes(void) { return emulator_device_bytes(); }
uint64_t emulated_pinned_bytes(void) {
    uint64_t n = 0;
    for (const auto &block : emulator.host_memory) n += block.second;
    return n;
}
void emulated_limit_memory(uint64_t bytes) { emulator_limit_memory(bytes); }
void emulated_set_capability(int major, int minor) { emulator_set_capability(major, minor); }
void emulated_set_devices(int n) { emulator_set_devices(n); }
