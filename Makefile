# GNU make. `make help` lists the targets. CC and CFLAGS can be set: make CC=clang CFLAGS="-O2 -g". Without threads: make THREADS=
CC      = cc
AR      = ar
CFLAGS  = -O2 -Wall -Wextra
THREADS = -pthread -DL3_THREADS
B       = build
FUZZ_SECONDS = 240
NVCC   := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))

# What the code is written for, whatever CFLAGS says: no contraction in tools and tests either (the headers switch it off for
# themselves); gnu99, because with c99 gcc computes floats in double on s390x.
L3FLAGS = -std=gnu99 -ffp-contract=off -D_POSIX_C_SOURCE=200809L -D_FILE_OFFSET_BITS=64 $(THREADS)
COMPILE = $(CC) $(CFLAGS) $(L3FLAGS) $(CPPFLAGS) $(PLAIN) -MMD -MP
LIBS    = -lm
LINKED  = $(B)/libl3.a $(LIBS)

# All cores compile, unless another number was asked for or several goals would get into each other's way.
ifeq ($(MAKELEVEL)$(filter -j% j%,$(MAKEFLAGS))$(word 2,$(MAKECMDGOALS)),0)
MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
endif

MODEL    = examples/models/books-l3.gguf
EXAMPLES = $(patsubst examples/%.c,$(B)/%,$(wildcard examples/*.c))
TOOLS    = $(patsubst tools/l3_%.c,$(B)/l3-%,$(filter-out tools/l3_bench_cuda.c,$(wildcard tools/l3_*.c)))
TESTS    = $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/test_*.c))
SCRIPTS  = $(wildcard tests/test_*.sh)
CUDA     = $(if $(shell command -v $(CXX)),$(patsubst %,$(B)/tests/cuda/%,test_emulator test_arithmetic test_session generate-cuda l3-bench-cuda))
BOARDS   = $(basename $(notdir $(wildcard examples/firmware/boards/*.mk)))

.PHONY: all run test native sanitize cross fuzz fuzz-clang long sizes clean help
.DELETE_ON_ERROR:

## the examples (build/generate, ...) and the tools (build/l3-eval, build/l3-inspect, build/l3-bench)
all: $(EXAMPLES) $(TOOLS)

## build, and write a story with a model of this repository
run: $(B)/generate
	$(B)/generate $(MODEL) -p "Once upon a time" --stats

## every test, minutes, nothing to download; the last line counts them
test: all $(TESTS) $(if $(filter tests/test_cuda.sh,$(SCRIPTS)),$(CUDA))
	@BUILD=$(B) CC="$(CC)" sh tools/run_tests.sh $(SCRIPTS) $(TESTS)

## everything for this machine only, in build/native
native:
	@$(MAKE) --no-print-directory B=build/native CFLAGS="-O2 -march=native -Wall -Wextra" all

## the tests under the address and undefined-behaviour sanitizers, with kernels where those are tested (they take minutes to compile)
SANITIZE = CFLAGS="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra"
KERNELS  = $(B)/tests/test_kernels $(B)/tests/test_kernels_amx $(B)/tests/test_plumbing
sanitize:
	@$(MAKE) --no-print-directory B=build/sanitize $(SANITIZE) PLAIN=-DL3_NO_SIMD= test \
	    TESTS='$(TESTS:$(B)/%=build/sanitize/%)' \
	    SCRIPTS='$(filter-out tests/test_headers.sh tests/test_instructions.sh tests/test_porting.sh tests/test_projects.sh tests/test_sizes.sh,$(SCRIPTS))'
$(KERNELS) $(B)/l3.o: override PLAIN =

## the plain C path gives the same bits on every machine that has a cross compiler and an emulator here
cross:
	@CC="$(CC)" sh tests/cross.sh

## libFuzzer on loader, tokenizer and session for FUZZ_SECONDS (240); needs clang
fuzz:
	@if command -v clang >/dev/null; then $(MAKE) --no-print-directory fuzz-clang; else echo "skipped: fuzzing needs clang"; fi

fuzz-clang: $(B)/tests/fuzz_seeds
	clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -std=gnu99 -ffp-contract=off \
	    tests/fuzz_model.c -o $(B)/fuzz_model
	mkdir -p $(B)/corpus $(B)/seeds && $(B)/tests/fuzz_seeds $(B)/seeds
	$(B)/fuzz_model -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -max_len=65536 -verbosity=0 \
	    -print_final_stats=1 -artifact_prefix=$(B)/ $(B)/corpus $(B)/seeds

## allocation over 100 million tokens, many more damaged files, all of CUDA's session in its emulator: minutes
long: $(B)/tests/long_alloc $(B)/tests/test_bad_files $(filter %/test_session,$(CUDA))
	$(B)/tests/long_alloc
	L3_LONG=1 $(B)/tests/test_bad_files
	$(or $(filter %/test_session,$(CUDA)),@echo "skipped: the emulated session needs a C++ compiler")

## docs/SIZES.md anew: code, constants and stack by machine and switches; minutes
sizes: | $(B)
	sh tests/sizes.sh --table >$(B)/SIZES.md && mv $(B)/SIZES.md docs/SIZES.md

## examples/firmware for every board, in build/firmware; needs arm-none-eabi-gcc
firmware: $(BOARDS:%=firmware-%)
.PHONY: firmware firmware-test $(BOARDS:%=firmware-%)

$(BOARDS:%=firmware-%): firmware-%:
	@$(MAKE) --no-print-directory -C examples/firmware BOARD=$* B=$(abspath $(B))/firmware

## the firmware in QEMU writes what the desktop writes; damage is noticed
firmware-test: $(B)/generate $(B)/l3-embed $(B)/tests/test_firmware
	@BUILD=$(B) MAKE="$(MAKE)" sh tests/firmware.sh

## for NVIDIA GPUs, with nvcc: build/generate-cuda and build/l3-bench-cuda; tools/cuda_check.sh tries them
cuda: $(if $(NVCC),$(B)/generate-cuda $(B)/l3-bench-cuda $(B)/tests/test_cuda_gpu)
	@$(if $(NVCC),:,echo "skipped: there is no nvcc")
.PHONY: cuda

## remove what was built
clean:
	rm -rf build

## this list
help:
	@awk '/^## /{text = substr($$0, 4)} /^[a-z-]+:/{if (text) {sub(/:.*/, ""); printf "make %-13s %s\n", $$0, text; text = ""}}' Makefile

# The library for programs that only declare it; one that contains the implementation takes nothing from here.
$(B)/l3.o: l3_model.h | $(B)
	$(COMPILE) -DL3_IMPLEMENTATION -MF $@.d -x c -c $< -o $@

$(B)/libl3.a: $(B)/l3.o
	$(AR) rcs $@ $<

$(B)/%: examples/%.c | $(B)
	$(COMPILE) -MF $@.d $< -o $@ $(LDFLAGS) $(LIBS)

$(B)/l3-%: tools/l3_%.c $(B)/libl3.a | $(B)
	$(COMPILE) -MF $@.d $< -o $@ $(LDFLAGS) $(LINKED)

$(B)/tests/%.o: tests/%.c | $(B)/tests
	$(COMPILE) -MF $@.d -c $< -o $@

$(B)/tests/test_%: tests/test_%.c $(B)/tests/ref.o $(B)/tests/make_model.o $(B)/libl3.a | $(B)/tests
	$(COMPILE) -MF $@.d $< $(B)/tests/ref.o $(B)/tests/make_model.o -o $@ $(LDFLAGS) $(LINKED)

# Machine code from Turing to Hopper, and PTX for what comes after.
GPUS       = 75 80 86 89 90
NVCCFLAGS  = -O3 -std=c++17 -diag-suppress 1675 $(foreach g,$(GPUS),-gencode arch=compute_$(g),code=sm_$(g)) \
             -gencode arch=compute_90,code=compute_90 -t 0 $(NVCCWARN) -MMD -MP
NVCCWARN   = -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror
# Where nvcc's headers are, by its own word: the nvcc that is found may be a script or a link far from them.
CUDA_HEADERS = $(shell $(NVCC) --dryrun -c tools/l3_bench_cuda.c 2>&1 | sed -n 's/^.* INCLUDES=//p' | tr -d '"')

$(B)/l3_cuda.o: l3_cuda.cu | $(B)
	$(NVCC) $(NVCCFLAGS) -MF $@.d -c $< -o $@

$(B)/generate-cuda: examples/generate_cuda.cu $(B)/l3_cuda.o # whose kernels need not be compiled twice
	$(NVCC) $(NVCCFLAGS) -DL3_CUDA_DECLARATIONS -MF $@.d -c $< -o $@.o
	$(NVCC) $@.o $(B)/l3_cuda.o -o $@

$(B)/l3-bench-cuda: tools/l3_bench_cuda.c $(B)/l3_cuda.o $(B)/libl3.a
	$(COMPILE) $(patsubst -I%,-isystem %,$(CUDA_HEADERS)) -MF $@.d -c $< -o $@.o
	$(NVCC) $@.o $(B)/l3_cuda.o -o $@ $(LINKED)

$(B)/tests/test_cuda_gpu: tests/cuda/test_session.c $(B)/l3_cuda.o $(B)/tests/make_model.o
	$(COMPILE) $(patsubst -I%,-isystem %,$(CUDA_HEADERS)) -MF $@.d -c $< -o $@.o
	$(NVCC) $@.o $(B)/l3_cuda.o $(B)/tests/make_model.o -o $@ $(LIBS)

# CUDA on the CPU
CXXCOMPILE = $(CXX) $(CFLAGS) -std=gnu++17 -ffp-contract=off -Wall -Wextra -MMD -MP

$(B)/tests/cuda/emulated.o: tests/cuda/emulated.cpp | $(B)/tests/cuda
	$(CXXCOMPILE) -MF $@.d -c $< -o $@

$(B)/tests/cuda/test_emulator $(B)/tests/cuda/test_arithmetic: $(B)/tests/cuda/%: tests/cuda/%.cpp | $(B)/tests/cuda
	$(CXXCOMPILE) -MF $@.d $< -o $@ $(LIBS)

$(B)/tests/cuda/test_session: tests/cuda/test_session.c $(B)/tests/cuda/emulated.o $(B)/tests/make_model.o | $(B)/tests/cuda
	$(COMPILE) -DL3_CUDA_EMULATED -MF $@.d $< $(B)/tests/cuda/emulated.o $(B)/tests/make_model.o -o $@ $(LDFLAGS) -lstdc++ $(LIBS)

$(B)/tests/cuda/generate-cuda: examples/generate_cuda.cu $(B)/tests/cuda/emulated.o
	$(CXXCOMPILE) $(filter-out -std=%,$(L3FLAGS)) -DL3_CUDA_DECLARATIONS -x c++ -include tests/cuda/emulator.h -MF $@.d -c $< -o $@.o
	$(CXX) $(CFLAGS) $@.o $(B)/tests/cuda/emulated.o -o $@ $(LDFLAGS) $(LIBS)

$(B)/tests/cuda/l3-bench-cuda: tools/l3_bench_cuda.c $(B)/tests/cuda/emulated.o $(B)/libl3.a
	$(COMPILE) -DL3_CUDA_EMULATED -MF $@.d $< $(B)/tests/cuda/emulated.o -o $@ $(LDFLAGS) -lstdc++ $(LINKED)

$(B)/tests/fuzz_seeds $(B)/tests/long_alloc: $(B)/tests/%: tests/%.c $(B)/tests/make_model.o $(B)/libl3.a | $(B)/tests
	$(COMPILE) -MF $@.d $< $(B)/tests/make_model.o -o $@ $(LDFLAGS) $(LINKED)

$(B) $(B)/tests $(B)/tests/cuda:
	mkdir -p $@

.SECONDARY:
-include $(wildcard $(B)/*.d $(B)/tests/*.d $(B)/tests/cuda/*.d)
