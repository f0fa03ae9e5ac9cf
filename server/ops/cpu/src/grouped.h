// Weights of small codes: w[n, k] = scale[n, g] · code[n, k] + offset[n, g], g the group of input k.
//
// A stripe of 32 outputs is contiguous, as in layout.h, and a row of units: the scales and offsets of a unit's
// groups, filled up to whole cache lines, and behind them the codes, group after group (codes.h). Where scales are
// bytes (kFine), a unit has several groups, and a scale (an offset) is the byte times a number of the unit's.
// A unit has, for each of 32 outputs: [coarse scale, half][coarse offset, half] if fine, then for each group in
// turn a scale, and then for each group in turn an offset.
#pragma once

#include "bytes.h"

// Inputs of a stripe that all rows pass by before the next ones: they stay in the first-level cache.
constexpr int kBlockInputs = 256;

// How a scale is stored, and so an offset of kind kLikeScales. kFine: a signed byte.
enum ScaleKind : int32_t { kFloat, kHalf, kFine };
// None: codes have their middle taken off. kZeros: that, and a signed byte z too. kLikeScales: an offset.
enum OffsetKind : int32_t { kNoOffsets, kZeros, kLikeScales };

struct CodesForm {
    int32_t bits, group, unit;  // inputs of a group, a multiple of 16, and groups of a unit
    int32_t scales, offsets;    // kinds

    int middle() const { return 1 << (bits - 1); }
    bool has_offsets() const { return offsets != kNoOffsets; }
    int scale_size() const { return scales == kFloat ? 4 : scales == kHalf ? 2 : 1; }
    int offset_size() const { return offsets == kNoOffsets ? 0 : offsets == kZeros ? 1 : scale_size(); }
    // From the beginning of a unit to its scales, its offsets and its codes.
    int64_t scales_at() const { return scales == kFine ? 64 * (offsets == kLikeScales ? 2 : 1) : 0; }
    int64_t offsets_at() const { return scales_at() + 32 * unit * scale_size(); }
    int64_t codes_at() const { return ceil_div(offsets_at() + 32 * unit * offset_size(), 64) * 64; }
    int64_t group_size() const { return group / kChunk * chunk_bytes(bits); }
    int64_t unit_size() const { return codes_at() + unit * group_size(); }
    int64_t stripe_size(int inputs) const { return inputs / group / unit * unit_size(); }
};

// A number of 16 bits (IEEE half) as a float.
INLINE F16 load_halves(const uint8_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
#else
    uint16_t bits[16];
    float wide[16];
    std::memcpy(bits, p, 32);
    for (int i = 0; i < 16; ++i) {
        // the exponent moves by 2 ^ 112, which makes denormal numbers right as well; infinities do not occur
        const uint32_t moved = uint32_t(bits[i] & 0x7fff) << 13;
        float value;
        std::memcpy(&value, &moved, 4);
        value *= 0x1p112f;
        wide[i] = bits[i] & 0x8000 ? -value : value;
    }
    return load(wide);
#endif
}

// Sixteen signed bytes as floats.
INLINE F16 load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
#else
    int8_t bytes[16];
    float wide[16];
    std::memcpy(bytes, p, 16);
    for (int i = 0; i < 16; ++i) wide[i] = float(bytes[i]);
    return load(wide);
#endif
}

// For the 32 outputs of a stripe: w = scale · (code − middle) + offset.
struct GroupScales {
    F16 scale[2], offset[2];
};

// Walks the groups of a stripe.
class GroupWalk {
   public:
    GroupWalk(const CodesForm& form, const uint8_t* stripe, int group)
        : form_(form),
          unit_(stripe + group / form.unit * form.unit_size()),
          place_(group % form.unit),
          scales_at_(form.scales_at()),
          offsets_at_(form.offsets_at()),
          codes_at_(form.codes_at()),
          group_size_(form.group_size()),
          unit_size_(form.unit_size()) {}

    INLINE const uint8_t* codes() const { return unit_ + codes_at_ + place_ * group_size_; }
    INLINE void next() {
        if (++place_ < form_.unit) return;
        place_ = 0;
        unit_ += unit_size_;
    }
    // Prefetch the scales `ahead` bytes further on; `ahead` is a multiple of the unit size.
    INLINE void fetch_scales(int64_t ahead) const {
        if (place_ == 0)
            for (int64_t line = 0; line < codes_at_; line += 64) prefetch_far(unit_ + ahead + line);
    }
    INLINE GroupScales scales() const {
        GroupScales found;
        const F16 middle = splat(float(form_.middle()));
        for (int p = 0; p < 2; ++p) {
            const uint8_t* at = unit_ + scales_at_ + (place_ * 32 + p * 16) * form_.scale_size();
            const uint8_t* offsets = unit_ + offsets_at_ + (place_ * 32 + p * 16) * form_.offset_size();
            found.scale[p] = number(at, 0, p);
            found.offset[p] = form_.offsets == kNoOffsets ? splat(0.0f)
                              : form_.offsets == kZeros   ? splat(0.0f) - found.scale[p] * load_bytes(offsets)
                                                          : fma(found.scale[p], middle, number(offsets, 64, p));
        }
        return found;
    }

   private:
    INLINE F16 number(const uint8_t* at, int coarse, int panel) const {
        if (form_.scales == kFloat) return load(reinterpret_cast<const float*>(at));
        if (form_.scales == kHalf) return load_halves(at);
        return load_halves(unit_ + coarse + panel * 32) * load_bytes(at);
    }

    const CodesForm form_;
    const uint8_t* unit_;
    int place_;
    int64_t scales_at_, offsets_at_, codes_at_, group_size_, unit_size_;
};

// Some stripes of a matrix, of one form.
struct CodesPart {
    const void* data;
    int32_t stripes;
    int32_t as_bytes;  // whether activations are rounded to bytes for it
    CodesForm form;

    const uint8_t* stripe(int index, int inputs) const {
        return static_cast<const uint8_t*>(data) + index * form.stripe_size(inputs);
    }
};

// A matrix as the Python side hands it over: numbers of type T packed as in layout.h, or codes.
struct Matrix {
    const void* data;        // numbers
    const int32_t* order;    // place → input, for inputs that are not in the order of their groups; or null
    const CodesPart* parts;  // codes, in the order of their outputs
    int32_t count;           // of parts; 0: numbers

    bool is_there() const { return data || count; }
};

// What a part is packed from, an output after the other, each a row of codes with its scales and offsets as they
// are stored.
struct CodesSource {
    const uint8_t* codes;    // [rows, inputs]
    const void* scales;      // [rows, groups]
    const void* offsets;     // [rows, groups]
    const uint16_t* coarse;  // [rows, units], of scales and then of offsets
    const int32_t* outputs;  // place → row, −1: none, an output of zeros
    int64_t rows;
};

// Write one stripe of a part at its place.
inline void pack_codes_stripe(const CodesSource& source, const CodesPart& part, int inputs, int stripe) {
    const CodesForm& form = part.form;
    const int32_t* outputs = source.outputs + stripe * 32;
    const int groups = inputs / form.group, units = groups / form.unit;
    uint8_t* unit = const_cast<uint8_t*>(part.stripe(stripe, inputs));
    const auto put = [&](uint8_t* at, const void* from, int size, int64_t columns, int64_t column) {
        for (int n = 0; n < 32; ++n)
            if (outputs[n] < 0)
                std::memset(at + n * size, 0, size_t(size));
            else
                std::memcpy(at + n * size, static_cast<const uint8_t*>(from) + (outputs[n] * columns + column) * size,
                            size_t(size));
    };
    for (int u = 0; u < units; ++u, unit += form.unit_size()) {
        std::memset(unit, 0, size_t(form.codes_at()));
        if (form.scales == kFine) {
            put(unit, source.coarse, 2, units, u);
            if (form.offsets == kLikeScales) put(unit + 64, source.coarse + source.rows * units, 2, units, u);
        }
        for (int i = 0; i < form.unit; ++i) {
            const int g = u * form.unit + i;
            put(unit + form.scales_at() + i * 32 * form.scale_size(), source.scales, form.scale_size(), groups, g);
            if (form.has_offsets())
                put(unit + form.offsets_at() + i * 32 * form.offset_size(), source.offsets, form.offset_size(), groups, g);
            uint8_t* chunk = unit + form.codes_at() + i * form.group_size();
            for (int k = g * form.group; k < (g + 1) * form.group; k += kChunk, chunk += chunk_bytes(form.bits)) {
                uint32_t words[4][2][16];
                for (int quad = 0; quad < 4; ++quad)
                    for (int n = 0; n < 32; ++n) {
                        uint32_t word = 0;
                        if (outputs[n] >= 0)
                            std::memcpy(&word, source.codes + int64_t(outputs[n]) * inputs + k + quad * 4, 4);
                        words[quad][n / 16][n % 16] = word;
                    }
                pack_chunk(form.bits, words, chunk);
            }
        }
    }
}

// Call body.operator()<bits>() with the number of bits that is known at run time.
template <class Body>
INLINE void with_bits(int bits, const Body& body) {
    switch (bits) {
        case 4: return body.template operator()<4>();
        case 5: return body.template operator()<5>();
        case 6: return body.template operator()<6>();
        default: return body.template operator()<8>();
    }
}
