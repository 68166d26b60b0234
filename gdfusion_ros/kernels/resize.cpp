// Bicubic resizing in whole numbers, to the last bit what Pillow computes. The twin is prepare_view in
// gdfusion_ros/model/images.py.
#include "simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t SIDE = 16;
constexpr int SHIFT = 22;  // of the weights, which are whole numbers: 1 << SHIFT stands for one

typedef uint8_t Bytes __attribute__((vector_size(SIDE), aligned(1), may_alias));
typedef uint8_t Narrow __attribute__((vector_size(LANES), may_alias));

constexpr Bytes FIRST_HALVES{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
constexpr Bytes LAST_HALVES{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

// Rows and columns of SIDE times SIDE bytes exchanged. To interleave each row with the one half the square below turns
// the eight bits of a byte's place, four of the row and four of the column, by one; done four times, they have changed
// places.
inline void transpose(Bytes* square) {
    for (int round = 0; round < 4; ++round) {
        Bytes turned[SIDE];
        for (int i = 0; i < SIDE / 2; ++i) {
            turned[2 * i] = __builtin_shuffle(square[i], square[i + SIDE / 2], FIRST_HALVES);
            turned[2 * i + 1] = __builtin_shuffle(square[i], square[i + SIDE / 2], LAST_HALVES);
        }
        for (int i = 0; i < SIDE; ++i) square[i] = turned[i];
    }
}

// LANES bytes as numbers of 32 bits. Left to it, GCC 12 goes the long way, by 16 bits and piece by piece.
inline Integers widened(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    return Integers{from[0], from[1], from[2], from[3]};
#endif
}

// The sums of SIDE bytes in each of `taps` places, `stride` apart, by their weights; rounded, and kept within a byte.
inline void weighted(const uint8_t* from, int64_t stride, const int32_t* weights, int64_t taps, uint8_t* to) {
    constexpr int PARTS = SIDE / LANES;
    Integers sum[PARTS];
    for (int p = 0; p < PARTS; ++p) sum[p] = Integers{} + (1 << (SHIFT - 1));
    for (int64_t t = 0; t < taps; ++t)
        for (int p = 0; p < PARTS; ++p) sum[p] += widened(from + t * stride + p * LANES) * weights[t];
    for (int p = 0; p < PARTS; ++p) {
        Integers value = sum[p] >> SHIFT;
        value = value < 0 ? Integers{} : value;
        value = value > 255 ? Integers{} + 255 : value;
        const Narrow narrow = __builtin_convertvector(value, Narrow);
        memcpy(to + p * LANES, &narrow, LANES);
    }
}

}  // namespace

// out (height, width, 3) from `rows` rows of an image, `row` bytes each, of three channels a pixel. Column x is the sum
// of `taps_x` pixels of a row from columns[x] on by the weights weights_x (width, taps_x), row y of it likewise.
GDFUSION_KERNEL(resize)
(const uint8_t* image, int64_t rows, int64_t row, const int64_t* columns, const int32_t* weights_x, int64_t taps_x,
 const int64_t* lines, const int32_t* weights_y, int64_t taps_y, int64_t width, int64_t height, uint8_t* out,
 int32_t) {  // one thread: images come in parallel
    const int64_t wide = round_up(row, SIDE), narrow = round_up(3 * width, SIDE), tall = round_up(rows, SIDE);
    Scratch turned_in(wide * SIDE / 4), turned_out(narrow * SIDE / 4), middle(tall * narrow / 4);
    uint8_t* const source = reinterpret_cast<uint8_t*>(turned_in.data);
    uint8_t* const target = reinterpret_cast<uint8_t*>(turned_out.data);
    uint8_t* const between = reinterpret_cast<uint8_t*>(middle.data);

    // Along the rows, SIDE rows at a time: turned round, a column of them is a vector.
    for (int64_t y = 0; y < rows; y += SIDE) {
        for (int64_t i = 0; i < wide; i += SIDE) {
            Bytes square[SIDE] = {};
            for (int64_t r = 0; r < least(SIDE, rows - y); ++r)
                memcpy(&square[r], image + (y + r) * row + i, static_cast<size_t>(least(SIDE, row - i)));
            transpose(square);
            memcpy(source + i * SIDE, square, sizeof square);
        }
        for (int64_t x = 0; x < width; ++x)
            for (int64_t c = 0; c < 3; ++c)
                weighted(source + (3 * columns[x] + c) * SIDE, 3 * SIDE, weights_x + x * taps_x, taps_x,
                         target + (3 * x + c) * SIDE);
        for (int64_t i = 0; i < narrow; i += SIDE) {
            Bytes square[SIDE];
            memcpy(square, target + i * SIDE, sizeof square);
            transpose(square);
            for (int64_t r = 0; r < SIDE; ++r) memcpy(between + (y + r) * narrow + i, &square[r], SIDE);
        }
    }
    // Along the columns, which lie side by side.
    for (int64_t y = 0; y < height; ++y)
        for (int64_t i = 0; i < 3 * width; i += SIDE) {
            uint8_t part[SIDE];
            weighted(between + lines[y] * narrow + i, narrow, weights_y + y * taps_y, taps_y, part);
            memcpy(out + y * 3 * width + i, part, static_cast<size_t>(least(SIDE, 3 * width - i)));
        }
}
