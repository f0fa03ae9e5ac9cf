// Memory that is kept from step to step.
#pragma once

#include <cstddef>
#include <cstdlib>
#ifdef __linux__
#include <sys/mman.h>
#endif

// Grow-only memory; what it holds does not survive growth. Large ones are in huge pages.
class Scratch {
   public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    float* floats(size_t count) {
        const size_t bytes = count * sizeof(float);
        if (bytes > size_) {
            std::free(data_);
            const size_t unit = bytes < kHugePage ? kCacheLine : kHugePage;
            size_ = (bytes + unit - 1) / unit * unit;
            data_ = static_cast<float*>(std::aligned_alloc(unit, size_));
#ifdef __linux__
            if (unit == kHugePage) madvise(data_, size_, MADV_HUGEPAGE);
#endif
        }
        return data_;
    }

   private:
    static constexpr size_t kCacheLine = 64, kHugePage = 2 << 20;

    float* data_ = nullptr;
    size_t size_ = 0;
};
