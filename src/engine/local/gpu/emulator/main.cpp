// Runs one kernel of paged.cu on the CPU. Standard input holds its name, its numbers and its arrays, each
// array preceded by its length in bytes; the result array is written to standard output. Built for one
// set of the macros listed in paged.cu, by scripts/cuda-kernel-check.
#include <algorithm>
#include <string>

#include "grid.h"

#include "../paged.cu"

namespace {

void read(void *to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) {
        std::fprintf(stderr, "the input is too short\n");
        std::exit(1);
    }
}

template <typename T> T number() {
    T value;
    read(&value, sizeof value);
    return value;
}

// Exactly as long as the input says, so that a sanitizer detects accesses beyond the end.
template <typename T> std::vector<T> array() {
    std::vector<T> values(number<u32>() / sizeof(T));
    read(values.data(), values.size() * sizeof(T));
    return values;
}

template <typename T> void write(const std::vector<T> &values) {
    std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

void run_write_kv() {
    auto epsilon = number<float>();
    auto kv_heads = number<u32>();
    auto arena = array<Element>(), qkv = array<Element>();
    auto slots = array<u32>(), positions = array<u32>();
    auto cosines = array<float>(), sines = array<float>(), norm = array<float>();
    const float *norm_or_null = norm.empty() ? nullptr : norm.data();
    grid::launch(slots.size(), 2 * kv_heads, LANES, [&] {
        write_kv(arena.data(), qkv.data(), slots.data(), positions.data(), cosines.data(), sines.data(), norm_or_null,
              epsilon, kv_heads);
    });
    write(arena);
}

void run_attend() {
    auto epsilon = number<float>(), scale = number<float>();
    auto window = number<u32>(), kv_heads = number<u32>();
    auto qkv = array<Element>(), arena = array<Element>();
    auto tasks = array<u32>(), chunks = array<u32>(), tables = array<u32>();
    auto cosines = array<float>(), sines = array<float>(), norm = array<float>();
    const float *norm_or_null = norm.empty() ? nullptr : norm.data();
    std::vector<Element> output(qkv.size() / (GROUP + 2) * GROUP);
    grid::launch(tasks.size() / 2, kv_heads, WARPS * LANES, [&] {
        attend(output.data(), qkv.data(), arena.data(), tasks.data(), chunks.data(), tables.data(), cosines.data(),
               sines.data(), norm_or_null, epsilon, scale, window, kv_heads);
    });
    write(output);
}

void run_swiglu() {
    auto width = number<u32>();
    auto gate_up = array<Element>();
    std::vector<Element> output(gate_up.size() / 2);
    u32 threads = WARPS * LANES, count = output.size();
    grid::launch((count + threads - 1) / threads, 1, threads,
                 [&] { swiglu(output.data(), gate_up.data(), width, count); });
    write(output);
}

} // namespace

int main() {
    char name[8] = {};
    read(name, sizeof name);
    if (std::string(name, 8) == "write_kv")
        run_write_kv();
    else if (std::string(name, 6) == "attend")
        run_attend();
    else if (std::string(name, 6) == "swiglu")
        run_swiglu();
    else {
        std::fprintf(stderr, "unknown kernel\n");
        return 1;
    }
    return 0;
}
