// What all kernels share: the vector type of the instruction set that this file is being compiled for, the names of
// what is exported, a matrix product on small tiles, and exp and log.
//
// Every kernel source is compiled once for each instruction set, with -DGDFUSION_ISA=<name>. Everything here lives in
// an anonymous namespace and no standard library template is used: a function that the linker merged between two of
// these compilations could bring instructions to a processor that does not have them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define GDFUSION_JOIN2(name, isa) gdfusion_##name##_##isa
#define GDFUSION_JOIN(name, isa) GDFUSION_JOIN2(name, isa)
// The exported name of a kernel, as in gdfusion_cost_volume_avx2.
#define GDFUSION_KERNEL(name) extern "C" __attribute__((visibility("default"))) void GDFUSION_JOIN(name, GDFUSION_ISA)

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// The register tile of the matrix product: ROWS rows times PANEL columns. Fits 16 registers.
constexpr int ROWS = 6;
constexpr int PANEL = 2 * LANES;

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// The first `width` floats, and zeros behind them; the other way round, nothing behind them is written.
inline Vector load_part(const float* p, int64_t width) {
    if (width >= LANES) return load(p);
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << width) - 1), p));
#else
    Vector part{};
    for (int64_t k = 0; k < width; ++k) part[k] = p[k];
    return part;
#endif
}
inline void store_part(float* p, Vector v, int64_t width) {
    if (width >= LANES) return store(p, v);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << width) - 1), reinterpret_cast<__m512>(v));
#else
    for (int64_t k = 0; k < width; ++k) p[k] = v[k];
#endif
}

// Minus zero, not plus: that the compiler may drop, since -0 + 0 is not -0.
inline Vector splat(float x) { return x - Vector{}; }
inline Vector select(Integers mask, Vector yes, Vector no) {
    return reinterpret_cast<Vector>((mask & reinterpret_cast<Integers>(yes)) | (~mask & reinterpret_cast<Integers>(no)));
}
inline Vector larger(Vector a, Vector b) { return select(a > b, a, b); }
inline Vector smaller(Vector a, Vector b) { return select(a < b, a, b); }
inline Vector magnitude(Vector a) { return reinterpret_cast<Vector>(reinterpret_cast<Integers>(a) & 0x7fffffff); }

inline float sum(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#endif
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += v[i];
    return total;
}

inline float maximum(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#endif
    float highest = v[0];
    for (int i = 1; i < LANES; ++i) highest = v[i] > highest ? v[i] : highest;
    return highest;
}

// In lane i, the sum of parts[i]; LANES parts.
inline Vector sums(const Vector* parts) {
#if defined(__AVX512F__)
    // Each step adds the halves of two vectors and lets the first go on in the lanes without the step's bit, the second
    // in those with it.
    __m512 rows[LANES];
    for (int i = 0; i < LANES; ++i) rows[i] = reinterpret_cast<__m512>(parts[i]);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int bit = 1, left = LANES; bit < LANES; bit *= 2, left /= 2) {
        // Lanes with the bit take the second operand, whose lanes a permutation numbers from 16.
        const __m512i own = _mm512_mask_add_epi32(
            lane, _mm512_test_epi32_mask(lane, _mm512_set1_epi32(bit)), lane, _mm512_set1_epi32(LANES));
        const __m512i other = _mm512_xor_si512(own, _mm512_set1_epi32(bit));
#pragma GCC unroll 8
        for (int i = 0; i < left / 2; ++i)
            rows[i] = _mm512_add_ps(
                _mm512_permutex2var_ps(rows[2 * i], own, rows[2 * i + 1]),
                _mm512_permutex2var_ps(rows[2 * i], other, rows[2 * i + 1]));
    }
    return reinterpret_cast<Vector>(rows[0]);
#else
    Vector result{};
    for (int i = 0; i < LANES; ++i) result[i] = sum(parts[i]);
    return result;
#endif
}

// values[at] for each lane.
inline Vector gather(const float* values, Integers at) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(_mm512_i32gather_ps(reinterpret_cast<__m512i>(at), values, 4));
#else
    Vector result{};
    for (int i = 0; i < LANES; ++i) result[i] = values[at[i]];
    return result;
#endif
}

inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// exp with a relative error below 2e-7 (Cephes' polynomial); 0 below -87, and exp(88) above 88.
inline Vector exponential(Vector x) {
    const Integers tiny = x < splat(-87.0f);
    x = larger(smaller(x, splat(88.0f)), splat(-87.0f));
    const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers
    const Vector shifted = x * 1.44269504f + magic;
    const Vector n = shifted - magic;
    Vector r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vector p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Integers power = (reinterpret_cast<Integers>(shifted) - 0x4b400000 + 127) << 23;
    return select(tiny, Vector{}, p * reinterpret_cast<Vector>(power));
}

// log for x in [1, 2], absolute error below 2e-7 (Cephes' polynomial).
inline Vector logarithm_1_2(Vector x) {
    const Integers upper = x > splat(1.41421356f);
    const Vector halved = select(upper, x * 0.5f, x);
    const Vector r = halved - 1.0f;
    Vector p = splat(7.0376836292e-2f);
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    const Vector square = r * r;
    const Vector result = r + (p * r * square - square * 0.5f);
    return result + select(upper, splat(0.69314718f), Vector{});
}

// log for normal positive x, absolute error below 2e-7 of the larger of 1 and the result.
inline Vector logarithm(Vector x) {
    const Integers bits = reinterpret_cast<Integers>(x);
    const Vector mantissa = reinterpret_cast<Vector>((bits & 0x7fffff) | 0x3f800000);
    const Vector exponent = __builtin_convertvector((bits >> 23) - 127, Vector);
    return logarithm_1_2(mantissa) + exponent * 0.69314718f;
}

inline Vector softplus(Vector x) {
    return larger(x, Vector{}) + logarithm_1_2(exponential(-magnitude(x)) + 1.0f);
}

inline void softmax(float* values, int64_t count) {
    float highest = values[0], total = 0;
    for (int64_t i = 1; i < count; ++i) highest = values[i] > highest ? values[i] : highest;
    int64_t i = 0;
    Vector partial{};
    for (; i + LANES <= count; i += LANES) {
        const Vector e = exponential(load(values + i) - highest);
        store(values + i, e);
        partial += e;
    }
    for (; i < count; ++i) total += values[i] = expf(values[i] - highest);
    const float scale = 1.0f / (total + sum(partial));
    for (i = 0; i < count; ++i) values[i] *= scale;
}

// out[r][0:PANEL] = start[0:PANEL] + sum_k a[r][k] * panel[k][0:PANEL] for ROWS rows.
inline void multiply_tile(
    const float* a, int64_t a_step, const float* panel, int64_t count, const float* start, float* out, int64_t out_step) {
    Vector left[ROWS], right[ROWS];
    const Vector start_left = start ? load(start) : Vector{}, start_right = start ? load(start + LANES) : Vector{};
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) left[r] = start_left, right[r] = start_right;
    for (int64_t k = 0; k < count; ++k) {
        const Vector w_left = load(panel + k * PANEL), w_right = load(panel + k * PANEL + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const Vector x = splat(a[r * a_step + k]);
            left[r] += x * w_left;
            right[r] += x * w_right;
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r) {
        store(out + r * out_step, left[r]);
        store(out + r * out_step + LANES, right[r]);
    }
}

// out (rows, width) = start + a (rows, count) @ w. `rows` is a multiple of ROWS, `width` of PANEL; w is packed as
// [width / PANEL][count][PANEL].
inline void multiply(
    const float* a, int64_t a_step, int64_t rows, const float* w, int64_t count, int64_t width, const float* start,
    float* out, int64_t out_step) {
    for (int64_t column = 0; column < width; column += PANEL)
        for (int64_t row = 0; row < rows; row += ROWS)
            multiply_tile(
                a + row * a_step, a_step, w + column * count, count, start ? start + column : nullptr,
                out + row * out_step + column, out_step);
}

// Scratch memory of one thread, aligned to cache lines, zero at first, freed at the end of the parallel region.
struct Scratch {
    float* data;
    explicit Scratch(int64_t floats) {
        const size_t bytes = static_cast<size_t>(round_up(floats * 4, 64));
        data = static_cast<float*>(aligned_alloc(64, bytes ? bytes : 64));
        if (!data) abort();
        memset(data, 0, bytes);
    }
    ~Scratch() { free(data); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// A matrix (count, width), packed as `multiply` reads it, that many rows are multiplied by; one for each thread.
// `rounded`: rows and matrix are rounded to bfloat16 where the instruction set multiplies such pairs, and summed in
// float32; elsewhere float32 is no slower, and is taken.
class Matrix {
  public:
    Matrix(const float* packed, int64_t count, int64_t width, int64_t most_rows, bool rounded)
        : packed_(packed), count_(count), width_(width), step_(round_up(count, LANES) / 2),
#if defined(__AVX512BF16__)
          rounded_(rounded), pairs_(rounded ? round_up(count, 2) / 2 * width : 0), rows_(rounded ? most_rows * step_ : 0) {
        if (rounded_) round_matrix();
    }
#else
          rounded_(false), pairs_(0), rows_(0) {
        (void)rounded, (void)most_rows;
    }
#endif

    // out (rows, width) = start + a (rows, count) @ matrix. `rows` is a multiple of ROWS.
    void multiply(const float* a, int64_t a_step, int64_t rows, const float* start, float* out, int64_t out_step) {
#if defined(__AVX512BF16__)
        if (rounded_) {
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t k = 0; k < count_; k += LANES)
                    _mm256_store_si256(
                        reinterpret_cast<__m256i*>(rows_.data + r * step_ + k / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(
                            reinterpret_cast<__m512>(load_part(a + r * a_step + k, count_ - k)))));
            const int64_t count = round_up(count_, 2) / 2;
            for (int64_t column = 0; column < width_; column += PANEL)
                for (int64_t row = 0; row < rows; row += ROWS)
                    multiply_pairs(
                        rows_.data + row * step_, pairs_.data + column * count, count,
                        start ? start + column : nullptr, out + row * out_step + column, out_step);
            return;
        }
#endif
        ::multiply(a, a_step, rows, packed_, count_, width_, start, out, out_step);
    }

  private:
    const float* packed_;
    int64_t count_, width_, step_;  // step_: floats from one rounded row to the next
    bool rounded_;
    Scratch pairs_, rows_;

#if defined(__AVX512BF16__)
    // Two rows of a panel become one of pairs: the product takes two terms of the sum at once.
    void round_matrix() {
        const int64_t half = round_up(count_, 2) / 2;
        const __m512i evens = _mm512_setr_epi32(
            0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008, 0x190009, 0x1a000a,
            0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
        for (int64_t panel = 0; panel < width_ / PANEL; ++panel)
            for (int64_t k = 0; k < half; ++k)
                for (int64_t c = 0; c < PANEL; c += LANES) {
                    const float* first = packed_ + (panel * count_ + 2 * k) * PANEL + c;
                    const Vector second = 2 * k + 1 < count_ ? load(first + PANEL) : Vector{};
                    const __m512bh both = _mm512_cvtne2ps_pbh(
                        reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(load(first)));
                    _mm512_storeu_si512(
                        pairs_.data + (panel * half + k) * PANEL + c,
                        _mm512_permutexvar_epi16(evens, reinterpret_cast<__m512i>(both)));
                }
    }

    // As multiply_tile, of pairs.
    void multiply_pairs(
        const float* a, const float* panel, int64_t count, const float* start, float* out, int64_t out_step) const {
        __m512 left[ROWS], right[ROWS];
        const Vector start_left = start ? load(start) : Vector{}, start_right = start ? load(start + LANES) : Vector{};
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r)
            left[r] = reinterpret_cast<__m512>(start_left), right[r] = reinterpret_cast<__m512>(start_right);
        for (int64_t k = 0; k < count; ++k) {
            const __m512bh w_left = reinterpret_cast<__m512bh>(load(panel + k * PANEL)),
                           w_right = reinterpret_cast<__m512bh>(load(panel + k * PANEL + LANES));
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_ps(a[r * step_ + k]));
                left[r] = _mm512_dpbf16_ps(left[r], x, w_left);
                right[r] = _mm512_dpbf16_ps(right[r], x, w_right);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            _mm512_storeu_ps(out + r * out_step, left[r]);
            _mm512_storeu_ps(out + r * out_step + LANES, right[r]);
        }
    }
#endif
};

}  // namespace
