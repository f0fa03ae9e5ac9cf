// Feed-forward parts of experts: each row passes a few, on rows that are gathered expert by expert.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "layout.h"
#include "linear.h"
#include "rows.h"
#include "spec.h"

// Rows up to which one thread chooses for all: it is done before others have begun.
constexpr int kFewRows = 16;

// The rows of one expert, side by side from `begin` on, a multiple of 32.
struct Group {
    int expert, begin, count;
};

// Which rows pass which expert, and what they make of it, for the tokens of one step and one layer at a time.
template <class T>
class Routing {
   public:
    // Make room for `rows` tokens of a layer.
    void arrange(const Experts& spec, int rows, int hidden, int inner) {
        spec_ = &spec;
        hidden_ = hidden;
        const int64_t choices = int64_t(rows) * spec.used;
        const int64_t room = (choices + 31 * std::min<int64_t>(spec.count, choices) + 31) / 32 * 32;
        chosen_.resize(size_t(choices));
        places_.resize(size_t(choices));
        shares_.resize(size_t(choices));
        const int64_t widths[] = {hidden, inner, hidden};
        int64_t total = 0;
        for (int64_t width : widths) total += room * ceil_div(width, 32) * 32;
        float* at = memory_.floats(size_t(total));
        gathered = packed(at, hidden);
        at += room * ceil_div(hidden, 32) * 32;
        this->inner = packed(at, inner);
        parts = at + room * ceil_div(inner, 32) * 32;
    }

    // Choose the experts of a row, from their scores.
    void choose(int row, float* scores) {
        const int count = spec_->count, used = spec_->used;
        const float highest = *std::max_element(scores, scores + count);
        float all = 0.0f, picked = 0.0f;
        for (int e = 0; e < count; ++e) all += scores[e] = std::exp(scores[e] - highest);
        for (int i = 0; i < used; ++i) {
            float* best = std::max_element(scores, scores + count);
            chosen_[row * used + i] = int(best - scores);
            picked += shares_[row * used + i] = *best;
            *best = -1.0f;
        }
        const float scale = 1.0f / (spec_->normalized ? picked : all);
        for (int i = 0; i < used; ++i) shares_[row * used + i] *= scale;
    }

    // Give each choice its place among the rows of its expert; by one thread.
    void sort(int rows) {
        std::vector<int> counts(size_t(spec_->count), 0);
        const int choices = rows * spec_->used;
        for (int i = 0; i < choices; ++i) places_[i] = counts[chosen_[i]]++;
        std::vector<int> begins(counts.size(), 0);
        groups.clear();
        int begin = 0;
        for (int e = 0; e < spec_->count; ++e)
            if (counts[e]) {
                begins[e] = begin;
                groups.push_back({e, begin, counts[e]});
                begin += int(ceil_div(counts[e], 32)) * 32;
            }
        for (int i = 0; i < choices; ++i) places_[i] += begins[chosen_[i]];
    }

    // Copy the row of a choice to its place.
    void gather(int choice, PackedRows<T> x) const {
        const int source = choice / spec_->used, target = places_[choice];
        for (int tile = 0; tile < x.depth_tiles; ++tile)
            std::copy_n(x.at(source, tile * kDepth<T>), kDepth<T>, gathered.at(target, tile * kDepth<T>));
    }

    // y = the sum of what the experts of a row made of it, each times its share.
    void mix(int row, float* y) const {
        for (int i = 0; i < hidden_; i += 16) {
            F16 total = splat(0.0f);
            for (int c = row * spec_->used; c < (row + 1) * spec_->used; ++c)
                total = fma(load(parts + int64_t(places_[c]) * hidden_ + i), splat(shares_[c]), total);
            store(y + i, total);
        }
    }

    std::vector<Group> groups;
    PackedRows<T> gathered{}, inner{};
    float* parts = nullptr;  // [places, hidden]

   private:
    static PackedRows<T> packed(float* memory, int64_t width) {
        return {reinterpret_cast<T*>(memory), int(ceil_div(width, kDepth<T>))};
    }

    const Experts* spec_ = nullptr;
    int hidden_ = 0;
    std::vector<int> chosen_, places_;  // [rows × used]
    std::vector<float> shares_;
    Scratch memory_;
};

// The products of all groups with the numbers of their experts; finish_of(expert) takes the pieces of one. All stripes of
// all groups are one set of tasks.
template <class T, class FinishOf>
void grouped_linear(Member& me, PackedRows<T> x, const std::vector<Group>& groups, const Matrix* matrices,
                    int outputs, const FinishOf& finish_of) {
    const int stripes = int(ceil_div(outputs, 32));
    std::vector<int> ends;
    for (const Group& group : groups)
        ends.push_back((ends.empty() ? 0 : ends.back()) + Passes(group.count, x.depth_tiles).count * stripes);
    me.share(ends.empty() ? 0 : ends.back(), [&](int task) {
        const size_t place = size_t(std::upper_bound(ends.begin(), ends.end(), task) - ends.begin());
        const Group& group = groups[place];
        const int own = task - (place ? ends[place - 1] : 0), index = own % stripes;
        const Passes passes(group.count, x.depth_tiles);
        const int begin = group.begin + own / stripes * passes.rows;
        const int end = std::min(group.begin + group.count, begin + passes.rows);
        const PackedWeight<T> weight{static_cast<const T*>(matrices[group.expert].data), outputs, x.depth_tiles};
        pass_stripe(x, begin, end, weight.stripe(index), index, finish_of(group.expert));
    });
}
