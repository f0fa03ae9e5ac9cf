// A forward pass of a decoder: all layers in one parallel region.
//
// The residual stream and everything that is summed is float32; what enters a product is T.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "experts.h"
#include "grouped_linear.h"

template <class T>
PackedWeight<T> packed_weight(const void* data, int outputs, int inputs) {
    return {static_cast<const T*>(data), outputs, int(ceil_div(inputs, kDepth<T>))};
}

// Call body with the weight that a matrix is. memory: prepared_size() bytes that all threads share.
template <class T, class Body>
void with_weight(const Matrix& matrix, int outputs, int inputs, uint8_t* memory, const Body& body) {
    if (matrix.count)
        body(CodesWeight{matrix.parts, matrix.count, outputs, inputs, memory});
    else
        body(packed_weight<T>(matrix.data, outputs, inputs));
}

// A model, with the buffers of its passes; one pass at a time.
template <class T>
class Model {
   public:
    Model(const ModelSpec& spec, const Layer* layers)
        : spec_(spec),
          layers_(layers, layers + spec.layers),
          team_(spec.threads),
          exchange_(spec.ranks),
          scratch_(spec.threads) {}

    // logits: [num_logits, vocab]; false: a rank is gone, and they hold anything.
    bool forward(const Step& step, float* logits) {
        std::vector<AttentionStep<T>> attention;
        for (int group = 0; group < spec_.groups; ++group)
            attention.emplace_back(step.batches[group], step.caches[group]);
        const int rows = int(step.batches[0].num_tokens);
        arrange(rows);
        float* part = exchange_.split() ? logits_part_.floats(size_t(step.num_logits) * spec_.vocab_part) : logits;
#pragma omp parallel num_threads(team_.size)
        {
            [[maybe_unused]] const TileRegisters tiles;
            const int rank = omp_get_thread_num();
            Member me(team_, rank);
            me.share(rows, [&](int t) { embed_token(step, t); });
            if (exchange_.split()) {
                add_up(me, x_, rows);
                if (spec_.positions) me.share(rows, [&](int t) { add_position(step, t); });
            }
            for (int index = 0; index < spec_.layers; ++index) {
                keep_input(me, step, index, rows);
                const Layer& layer = layers_[index];
                run_layer(me, layer, attention[layer.cache_group], rows, scratch_[rank]);
            }
            keep_input(me, step, spec_.layers, rows);
            if (step.num_states)
                me.share(int(step.num_states), [&](int row) {
                    const int64_t hidden = spec_.hidden;
                    std::copy_n(x_ + step.state_rows[row] * hidden, hidden, step.states + row * hidden);
                });
            me.share(int(step.num_logits), [&](int row) {
                pack_normalized(x_ + step.logit_rows[row] * spec_.hidden, spec_.norm, spec_.hidden, normed_, row);
            });
            with_weight<T>(spec_.head, spec_.vocab_part, spec_.hidden, prepared_, [&](const auto& weight) {
                linear_to<false>(me, normed_, int(step.num_logits), weight, scratch_[rank], spec_.head_bias, part);
            });
            if (exchange_.split()) join_logits(me, part, int(step.num_logits), logits);
            if (spec_.logit_scale != 1.0f || spec_.logit_softcap)
                me.share(int(step.num_logits), [&](int row) { finish_logits(logits + int64_t(row) * spec_.vocab); });
        }
        return !exchange_.split() || !exchange_.broken();
    }

   private:
    // Copies the residual stream in front of a layer, where it is wanted.
    void keep_input(Member& me, const Step& step, int layer, int rows) {
        const int64_t *begin = step.input_layers, *end = begin + step.num_input_layers;
        const int64_t* place = std::find(begin, end, layer);
        if (place == end) return;
        const int64_t hidden = spec_.hidden;
        float* into = step.layer_inputs + (place - begin) * hidden;
        me.share(rows, [&](int t) {
            std::copy_n(x_ + t * hidden, hidden, into + t * step.num_input_layers * hidden);
        });
    }

    // Of several ranks, each knows some of the tokens, and has zeros for the others.
    void embed_token(const Step& step, int token) {
        const int64_t hidden = spec_.hidden, own = step.token_ids[token] - int64_t(spec_.ranks.rank) * spec_.vocab_part;
        float* x = x_ + token * hidden;
        if (own < 0 || own >= spec_.vocab_part) {
            std::fill(x, x + hidden, 0.0f);
            return;
        }
        embed(static_cast<const T*>(spec_.embedding) + own * hidden, int(hidden), spec_.embedding_scale, x);
        if (spec_.positions && !exchange_.split()) add_position(step, token);
    }

    void add_position(const Step& step, int token) {
        const int64_t hidden = spec_.hidden, position = step.batches[0].positions[token];
        add_row(static_cast<const T*>(spec_.positions) + position * hidden, int(hidden), x_ + token * hidden);
    }

    // Call take(row, place, offset) for each row of y [rows, width], a part of each rank, when all parts of it are in
    // the places of the ranks, `offset` numbers from the beginning.
    template <class Take>
    void exchange(Member& me, const float* y, int rows, int64_t width, const Take& take) {
        const int most = exchange_.rows(width);
        for (int begin = 0; begin < rows; begin += most) {
            const int count = std::min(most, rows - begin);
            me.share(count, [&](int row) {
                const float* part = y + (begin + row) * width;
                std::copy(part, part + width, exchange_.own() + row * width);
            });
            me.share(1, [&](int) { exchange_.meet(); });
            me.share(count, [&](int row) { take(begin + row, row * width); });
        }
    }

    // y [rows, hidden], a part on each rank, becomes the sum over the ranks, in their order.
    void add_up(Member& me, float* y, int rows) {
        const int hidden = spec_.hidden;
        exchange(me, y, rows, hidden, [&](int row, int64_t offset) {
            for (int i = 0; i < hidden; i += 16) {
                F16 total = load(exchange_.of(0) + offset + i);
                for (int rank = 1; rank < exchange_.count(); ++rank)
                    total = total + load(exchange_.of(rank) + offset + i);
                store(y + int64_t(row) * hidden + i, total);
            }
        });
    }

    // logits [rows, vocab] of the parts [rows, vocab_part] of all ranks.
    void join_logits(Member& me, const float* part, int rows, float* logits) {
        const int64_t width = spec_.vocab_part, vocab = spec_.vocab;
        exchange(me, part, rows, width, [&](int row, int64_t offset) {
            for (int rank = 0; rank * width < vocab; ++rank) {
                const float* from = exchange_.of(rank) + offset;
                std::copy(from, from + std::min(width, vocab - rank * width), logits + row * vocab + rank * width);
            }
        });
    }

    // Call body(input, weight) with the input of the product of `rows` rows with `matrix`, in the order that it has
    // inputs in.
    template <class Body>
    void with_product(Member& me, const Matrix& matrix, int outputs, int inputs, PackedRows<T> x, int rows,
                      const Body& body) {
        const PackedRows<T> input = in_order(me, matrix, x, inputs, rows);
        with_weight<T>(matrix, outputs, inputs, prepared_, [&](const auto& weight) { body(input, weight); });
    }

    void run_layer(Member& me, const Layer& w, const AttentionStep<T>& attention, int rows, Scratch& scratch) {
        const int hidden = spec_.hidden, width = w.attention.width();
        const PackedRows<T> attended = rows_of(attended_, width), inner = rows_of(inner_, w.inner);
        const auto product = [&](const Matrix& matrix, int outputs, int inputs, PackedRows<T> x, const auto& body) {
            with_product(me, matrix, outputs, inputs, x, rows, body);
        };
        const auto enter = [&](const Norm& norm) {
            me.share(rows, [&](int row) {
                pack_normalized(x_ + int64_t(row) * hidden, norm, hidden, normed_, row);
            });
        };
        const auto add_to_stream = [&](int row, const Norm& norm) {
            add_normalized(x_ + int64_t(row) * hidden, branch_ + int64_t(row) * hidden, norm, hidden, w.residual_scale);
        };
        const auto add_branch = [&](const Norm& norm) {
            me.share(rows, [&](int row) { add_to_stream(row, norm); });
        };
        // The last product of a part, into the stream, or aside where something comes before that; of several ranks,
        // aside and added up.
        const auto leave = [&](const Matrix& matrix, int inputs, PackedRows<T> x, const float* bias, bool aside) {
            product(matrix, hidden, inputs, x, [&](PackedRows<T> input, const auto& weight) {
                if (aside || exchange_.split())
                    linear_to<false>(me, input, rows, weight, scratch, bias, branch_);
                else
                    linear_to<true>(me, input, rows, weight, scratch, bias, x_, w.residual_scale);
            });
            if (!exchange_.split()) return;
            add_up(me, branch_, rows);
            if (!aside) add_branch(Norm{});
        };
        enter(w.attention_norm);
        product(w.qkv, int(w.attention.row_size()), hidden, normed_, [&](PackedRows<T> input, const auto& weight) {
            linear_to<false>(me, input, rows, weight, scratch, w.qkv_bias, qkv_);
        });
        attention.run(me, w, qkv_, attended, scratch);
        leave(w.out, width, attended, w.out_bias, w.parallel || w.attention_post_norm.weight);
        if (w.attention_post_norm.weight) add_branch(w.attention_post_norm);
        enter(w.feed_forward_norm);
        if (w.experts.count) {
            run_experts(me, w, rows, scratch, [&](int row) { add_to_stream(row, w.feed_forward_post_norm); });
            if (!exchange_.split()) return;
            add_up(me, branch_, rows);
            add_branch(w.feed_forward_post_norm);
            return;
        }
        product(w.up, w.gated ? 2 * w.inner : w.inner, hidden, normed_, [&](PackedRows<T> input, const auto& weight) {
            if (w.gated)
                gated_linear(me, input, rows, weight, scratch, w.up_bias, w.activation, w.clamp, inner);
            else
                activated_linear(me, input, rows, weight, scratch, w.up_bias, w.activation, inner);
        });
        if (w.parallel) add_branch(Norm{});  // not before the feed-forward part has read the stream
        leave(w.down, w.inner, inner, w.down_bias, w.feed_forward_post_norm.weight);
        if (w.feed_forward_post_norm.weight) add_branch(w.feed_forward_post_norm);
    }

    // The products of the rows of each expert with its matrix: numbers in one set of tasks, codes expert by expert.
    // finish_of(expert) takes the pieces of one.
    template <class FinishOf>
    void expert_products(Member& me, PackedRows<T> x, const Matrix* matrices, int outputs, int inputs,
                         Scratch& scratch, const FinishOf& finish_of) {
        if (!matrices->count) return grouped_linear(me, x, routing_.groups, matrices, outputs, finish_of);
        for (const Group& group : routing_.groups) {
            const PackedRows<T> own{x.at(group.begin, 0), x.depth_tiles};
            const auto put = finish_of(group.expert);
            const auto put_own = [&](int row, int count, int index, const float* c) {
                put(group.begin + row, count, index, c);
            };
            with_product(me, matrices[group.expert], outputs, inputs, own, group.count,
                         [&](PackedRows<T> input, const auto& weight) {
                             linear(me, input, group.count, weight, scratch, put_own);
                         });
        }
    }

    // What the experts of a layer make of normed_, in branch_; take(row) takes each row of it, but for ranks, whose
    // parts are to be added up.
    template <class Take>
    void run_experts(Member& me, const Layer& w, int rows, Scratch& scratch, const Take& take) {
        const Experts& e = w.experts;
        const int hidden = spec_.hidden, wide = w.gated ? 2 * w.inner : w.inner;
        const auto to = [&](const Matrix& matrix, int outputs, int inputs, PackedRows<T> x, const float* bias,
                            float* y) {
            with_product(me, matrix, outputs, inputs, x, rows, [&](PackedRows<T> input, const auto& weight) {
                linear_to<false>(me, input, rows, weight, scratch, bias, y);
            });
        };
        to(e.router, e.count, hidden, normed_, e.router_bias, scores_);
        const auto choose = [&](int row) { routing_.choose(row, scores_ + int64_t(row) * e.count); };
        if (rows <= kFewRows) {
            me.share(1, [&](int) {
                routing_.arrange(e, rows, hidden, w.inner);
                for (int row = 0; row < rows; ++row) choose(row);
                routing_.sort(rows);
            });
        } else {
            me.share(1, [&](int) { routing_.arrange(e, rows, hidden, w.inner); });
            me.share(rows, choose);
            me.share(1, [&](int) { routing_.sort(rows); });
        }
        me.share(rows * e.used, [&](int choice) { routing_.gather(choice, normed_); });
        const auto bias_of = [](const float* biases, int expert, int size) {
            return biases ? biases + int64_t(expert) * size : nullptr;
        };
        const PackedRows<T> inner = routing_.inner;
        if (w.gated)
            expert_products(me, routing_.gathered, e.up, wide, hidden, scratch, [&](int expert) {
                return put_gated(w.inner, bias_of(e.up_bias, expert, wide), w.activation, w.clamp, inner);
            });
        else
            expert_products(me, routing_.gathered, e.up, wide, hidden, scratch, [&](int expert) {
                return put_activated(bias_of(e.up_bias, expert, wide), w.activation, inner);
            });
        expert_products(me, inner, e.down, hidden, w.inner, scratch, [&](int expert) {
            return store_rows<false>(hidden, bias_of(e.down_bias, expert, hidden), routing_.parts);
        });
        if (e.shared) {
            const PackedRows<T> between = rows_of(inner_, e.shared);
            const auto put = [&](PackedRows<T> input, const auto& weight) {
                gated_linear(me, input, rows, weight, scratch, nullptr, w.activation, w.clamp, between);
            };
            with_product(me, e.shared_up, 2 * e.shared, hidden, normed_, rows, put);
            to(e.shared_down, hidden, e.shared, between, nullptr, shared_);
            if (e.shared_gate.is_there()) to(e.shared_gate, 1, hidden, normed_, nullptr, scores_);
        }
        me.share(rows, [&](int row) {
            float* y = branch_ + int64_t(row) * hidden;
            routing_.mix(row, y);
            if (e.shared) {
                const float gate = e.shared_gate.is_there() ? 1.0f / (1.0f + std::exp(-scores_[row])) : 1.0f;
                add_normalized(y, shared_ + int64_t(row) * hidden, Norm{}, hidden, gate);
            }
            if (!exchange_.split()) take(row);
        });
    }

    static PackedRows<T> rows_of(float* memory, int64_t width) {
        return {reinterpret_cast<T*>(memory), int(ceil_div(width, kDepth<T>))};
    }

    PackedRows<T> in_order(Member& me, const Matrix& matrix, PackedRows<T> x, int inputs, int rows) {
        if (!matrix.order) return x;
        const PackedRows<T> ordered = rows_of(ordered_, inputs);
        me.share(rows, [&](int row) {
            for (int i = 0; i < inputs; ++i) *ordered.at(row, i) = *x.at(row, matrix.order[i]);
        });
        return ordered;
    }

    void finish_logits(float* logits) const {
        const auto finish = [&](F16 x) {
            x = x * splat(spec_.logit_scale);
            return spec_.logit_softcap ? softcap(x, spec_.logit_softcap) : x;
        };
        int i = 0;
        for (; i + 16 <= spec_.vocab; i += 16) store(logits + i, finish(load(logits + i)));
        alignas(64) float rest[16] = {};
        std::copy(logits + i, logits + spec_.vocab, rest);
        store(rest, finish(load(rest)));
        std::copy(rest, rest + spec_.vocab - i, logits + i);
    }

    // Point the buffers into memory for `rows` tokens. Rows are padded to whole blocks of 32, which
    // the products read but no result depends on.
    void arrange(int64_t rows) {
        int64_t qkv = 0, attended = 0, inner = 0, branch = 0, scores = 0, shared = 0;
        int64_t prepared = prepared_size(spec_.head, rows, spec_.hidden);
        bool reorders = false;
        if (exchange_.split()) branch = spec_.hidden;
        for (const Layer& w : layers_) {
            qkv = std::max(qkv, w.attention.row_size());
            attended = std::max<int64_t>(attended, w.attention.width());
            inner = std::max<int64_t>({inner, w.inner, w.experts.shared});
            scores = std::max<int64_t>(scores, w.experts.count);
            if (w.experts.count) branch = spec_.hidden;
            if (w.experts.shared) shared = spec_.hidden;
            if (w.parallel || w.attention_post_norm.weight || w.feed_forward_post_norm.weight) branch = spec_.hidden;
            const auto prepare = [&](const Matrix& matrix, int64_t inputs) {
                prepared = std::max(prepared, prepared_size(matrix, rows, inputs));
                reorders |= matrix.order != nullptr;
            };
            const Experts& e = w.experts;
            for (const Matrix* matrix : {&w.qkv, &w.up, &e.router, &e.shared_up, &e.shared_gate})
                prepare(*matrix, spec_.hidden);
            prepare(w.out, w.attention.width());
            prepare(w.down, w.inner);
            prepare(e.shared_down, e.shared);
            if (e.count) prepare(e.up[0], spec_.hidden), prepare(e.down[0], w.inner);
        }
        const int64_t ordered = reorders ? std::max({int64_t(spec_.hidden), attended, inner}) : 0;
        const int64_t padded = ceil_div(rows, 32) * 32;
        int64_t total = ceil_div(prepared, 64) * 16;
        const int64_t hidden = spec_.hidden;
        for (int64_t width : {hidden, qkv, hidden, attended, inner, ordered, branch, scores, shared})
            total += padded * ceil_div(width, 32) * 32;
        float* at = buffers_.floats(size_t(total));
        const auto take = [&](int64_t width) {
            float* taken = at;
            at += padded * ceil_div(width, 32) * 32;
            return taken;
        };
        x_ = take(spec_.hidden);
        qkv_ = take(qkv);
        normed_ = rows_of(take(spec_.hidden), spec_.hidden);
        attended_ = take(attended);
        inner_ = take(inner);
        ordered_ = take(ordered);
        branch_ = take(branch);
        scores_ = take(scores);
        shared_ = take(shared);
        prepared_ = reinterpret_cast<uint8_t*>(at);
    }

    const ModelSpec spec_;
    const std::vector<Layer> layers_;
    Team team_;
    Exchange exchange_;
    std::vector<Scratch> scratch_;
    Scratch buffers_, logits_part_;
    float *x_ = nullptr, *qkv_ = nullptr, *branch_ = nullptr;
    float *attended_ = nullptr, *inner_ = nullptr, *ordered_ = nullptr;  // packed, as wide as each layer is
    float *scores_ = nullptr, *shared_ = nullptr;                         // of experts: [rows, experts], [rows, hidden]
    uint8_t* prepared_ = nullptr;  // what is made of a product's input first
    PackedRows<T> normed_{};
    Routing<T> routing_;
};
