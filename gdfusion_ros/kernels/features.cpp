// What this library holds and what this processor can run.
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Changes with every change of a kernel's arguments; the Python side compares.
EXPORT int32_t gdfusion_interface() { return 3; }

// Names of the instruction sets whose kernels this processor can run, best first, separated by blanks.
EXPORT const char* gdfusion_instruction_sets() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return __builtin_cpu_supports("avx512bf16") ? "avx512bf16 avx512 avx2 baseline" : "avx512 avx2 baseline";
        return "avx2 baseline";
    }
#endif
    return "baseline";
}
