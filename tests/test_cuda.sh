#!/bin/sh
# test_cuda.sh - l3_cuda.cu with its kernels run on the CPU; with nvcc also that it compiles without a warning.
BUILD=${BUILD:-build}
status=0 passed=0 failed=0 skipped=0

skip() {
    echo "  skipped: $1" >&2
    skipped=$((skipped + 1))
}

# Under a sanitizer: these programs, and less of them.
case $BUILD in
*sanitize*) sanitized=1 && L3_QUICK=1 && export L3_QUICK ;;
*) sanitized=0 ;;
esac

if [ -x "$BUILD/tests/cuda/test_session" ]; then
    for test in emulator arithmetic session; do "$BUILD/tests/cuda/test_$test" || status=1; done
else
    skip "no C++ compiler"
fi

if [ $sanitized = 1 ]; then
    :
elif [ -n "${NVCC:-}" ]; then
    object=$(mktemp) || exit 2
    for arch in sm_75 sm_90; do
        if "$NVCC" -std=c++17 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror -arch=$arch -c l3_cuda.cu -o "$object" >&2; then
            passed=$((passed + 1))
        else
            echo "  FAILED: nvcc -arch=$arch l3_cuda.cu" >&2
            failed=$((failed + 1))
        fi
    done
    rm -f "$object"
else
    skip "no nvcc"
fi

if [ $((passed + failed + skipped)) -gt 0 ]; then
    echo "cuda compiled: $passed passed, $failed failed, $skipped skipped"
fi
[ "$failed" -eq 0 ] && exit $status
exit 1
