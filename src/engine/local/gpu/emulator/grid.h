// Runs CUDA kernels on the CPU, one block after the other, so that they can be tested without a GPU.
//
// Every thread of a block is a fibre that runs until it waits at a barrier or a shuffle; then another,
// chosen at random, continues, so that a missing barrier shows as a wrong result. If some threads of
// a block or warp never reach a barrier, the program ends with a message.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads)

struct Dim {
    unsigned x = 1, y = 1;
};

namespace grid {

constexpr unsigned LANES = 32;
constexpr size_t STACK_BYTES = 128 << 10;

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK_BYTES);
    enum { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE } state = READY;
    float given = 0;
};

inline std::vector<Fibre> fibres;
inline unsigned threads = 0, current = 0;
inline ucontext_t scheduler;
inline std::function<void()> kernel;
inline std::mt19937 chance(1);

inline void run_fibre() {
    kernel();
    fibres[current].state = Fibre::DONE;
    swapcontext(&fibres[current].context, &scheduler);
}

inline void wait(decltype(Fibre::state) at) {
    fibres[current].state = at;
    swapcontext(&fibres[current].context, &scheduler);
}

// Frees the fibres `from..to` when all of them wait at the same kind of barrier.
inline bool release(unsigned from, unsigned to, decltype(Fibre::state) at) {
    for (unsigned i = from; i < to; ++i)
        if (fibres[i].state != at) return false;
    for (unsigned i = from; i < to; ++i) fibres[i].state = Fibre::READY;
    return true;
}

} // namespace grid

inline Dim blockIdx, threadIdx;

namespace grid {

inline void run_block() {
    for (unsigned i = 0; i < threads; ++i) {
        Fibre &fibre = fibres[i];
        fibre.state = Fibre::READY;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, run_fibre, 0);
    }
    for (;;) {
        std::vector<unsigned> ready;
        for (unsigned i = 0; i < threads; ++i)
            if (fibres[i].state == Fibre::READY) ready.push_back(i);
        std::shuffle(ready.begin(), ready.end(), chance);
        for (unsigned i : ready) {
            current = i;
            threadIdx.x = i;
            swapcontext(&scheduler, &fibres[i].context);
        }
        bool moved = release(0, threads, Fibre::AT_BLOCK_BARRIER);
        for (unsigned from = 0; from < threads; from += LANES)
            moved |= release(from, from + LANES, Fibre::AT_WARP_BARRIER);
        if (moved) continue;
        for (unsigned i = 0; i < threads; ++i)
            if (fibres[i].state != Fibre::DONE) {
                std::fprintf(stderr, "block (%u, %u): thread %u waits at a barrier that others never reach\n",
                             blockIdx.x, blockIdx.y, i);
                std::exit(1);
            }
        return;
    }
}

// Runs a kernel on a grid of x by y blocks of `count` threads, a multiple of 32.
inline void launch(unsigned x, unsigned y, unsigned count, std::function<void()> body) {
    threads = count;
    if (fibres.size() < count) fibres = std::vector<Fibre>(count);
    kernel = std::move(body);
    for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) run_block();
}

} // namespace grid

inline void __syncthreads() { grid::wait(grid::Fibre::AT_BLOCK_BARRIER); }
inline void __syncwarp() { grid::wait(grid::Fibre::AT_WARP_BARRIER); }

inline float __shfl_xor_sync(unsigned, float value, unsigned mask) {
    unsigned own = grid::current;
    grid::fibres[own].given = value;
    __syncwarp();
    float taken = grid::fibres[own ^ mask].given;
    // The next shuffle must not overwrite values that other threads have yet to read.
    __syncwarp();
    return taken;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
