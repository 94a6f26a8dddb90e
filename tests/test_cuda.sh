#!/bin/sh
# test_cuda.sh - l3_cuda.cu with its kernels run on the CPU. That nvcc compiles it is what `make cuda` tells.
# Here less of it; `make long` runs all.
BUILD=${BUILD:-build}
status=0
export L3_QUICK=1
if [ -x "$BUILD/tests/cuda/test_session" ]; then
    for test in emulator arithmetic session; do "$BUILD/tests/cuda/test_$test" || status=1; done
else
    echo "  skipped: no C++ compiler" >&2
    echo "cuda: 0 passed, 0 failed, 1 skipped"
fi
exit $status
