// Runs every path of optim.cpp that this processor has on the same made-up data, and prints a hash of all bytes each leaves.
//
// check MAPS [threads]: MAPS holds the signed and the unsigned `Map` one behind the other (tools/check_native.py writes it).
// Lines are the same whatever the processor and the number of threads. Built with sanitizers, it finds what they find; the
// pieces of a step are then run by std::thread, as the OpenMP library itself is not instrumented.

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "optim.cpp"

namespace {

const char* const kPaths[] = {"plain", "avx2", "avx512", "vbmi"};
const char* const kKinds[] = {"adam", "momentum", "nesterov", "lion", "adagrad"};

// Numbers that are the same everywhere: integers of a linear congruential generator, scaled by powers of two.
struct Numbers {
    uint64_t state;
    float next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const int32_t mantissa = static_cast<int32_t>(state >> 40) - (1 << 23);
        const int exponent = static_cast<int>(state >> 20 & 15);
        return (state & 7) == 0 ? 0.0f : std::ldexp(static_cast<float>(mantissa), -23 - exponent);
    }
};

struct State {
    std::vector<float> weight, gradient, first_max, second_max;
    std::vector<uint8_t> first, second;
};

uint64_t mixed(uint64_t hash, const void* data, size_t size) {  // FNV-1a
    for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
    return hash;
}

template <typename T>
uint64_t mixed(uint64_t hash, const std::vector<T>& data) {
    return mixed(hash, data.data(), data.size() * sizeof(T));
}

uint64_t steps(int path, int kind, int size, const Map* maps, int threads) {
    const int64_t counts[] = {1, 63, 64, size, 3 * size + 17, 40 * size};
    std::vector<State> states;
    std::vector<int64_t> starts = {0};
    Numbers numbers = {static_cast<uint64_t>(kind) * 31 + static_cast<uint64_t>(size)};
    for (const int64_t count : counts) {
        const int64_t blocks = (count + size - 1) / size;
        State made;
        made.weight.resize(count);
        made.gradient.resize(count);
        made.first.assign(count, 127);
        made.second.assign(count, 0);
        made.first_max.assign(blocks, 0);
        made.second_max.assign(blocks, 0);
        for (float& w : made.weight) w = numbers.next();
        states.push_back(made);
        starts.push_back(starts.back() + blocks);
    }
    for (int step = 0; step < 5; ++step) {
        std::vector<Parameter> parameters;
        for (State& s : states) {
            for (float& g : s.gradient) g = numbers.next() * (step == 3 ? 0x1p-120f : 1.0f);
            Parameter p = {};
            p.weight = s.weight.data();
            p.gradient = s.gradient.data();
            p.count = static_cast<int64_t>(s.weight.size());
            if (kind != kAdagrad) p.first = s.first.data(), p.first_max = s.first_max.data();
            if (kind == kAdam || kind == kAdagrad) p.second = s.second.data(), p.second_max = s.second_max.data();
            p.beta1 = 0.9f, p.rest1 = 0.1f, p.beta2 = 0.999f, p.rest2 = 0.001f, p.epsilon = 1e-8f;
            if (kind == kAdam) p.beta1 = 9.0f, p.beta2 = 999.0f;
            p.rate = 1e-3f, p.keep = 0.9999f, p.decay = step & 1 ? 0.01f : 0.0f, p.scale = step & 1 ? -1.0f : 1.0f;
            p.plain = step == 0 && (kind == kMomentum || kind == kNesterov);
            parameters.push_back(p);
        }
        const int count = static_cast<int>(parameters.size());
        if (edgeq_optim_unsound(path, parameters.data(), count, 1) != -1) std::abort();
        std::vector<std::thread> running;
        for (int piece = 0; piece < threads; ++piece)
            running.emplace_back([&, piece] {
                edgeq_optim_piece(path, kind, parameters.data(), starts.data(), count, size, maps, maps + 1, piece, threads);
            });
        for (std::thread& thread : running) thread.join();
    }
    uint64_t hash = 14695981039346656037u;
    for (const State& s : states)
        for (const auto* f : {&s.weight, &s.first_max, &s.second_max}) hash = mixed(hash, *f);
    for (const State& s : states)
        for (const auto* b : {&s.first, &s.second}) hash = mixed(hash, *b);
    return hash;
}

uint64_t there_and_back(int path, int size, const Map& map) {
    Numbers numbers = {7};
    std::vector<float> values(5 * size + 5), back(values.size()), maxima(6);
    std::vector<uint8_t> codes(values.size());
    for (float& v : values) v = map.is_signed ? numbers.next() : std::fabs(numbers.next());
    for (int i = 0; i < size; ++i) values[i] *= 0x1p-130f;  // a block of denormal numbers
    const int64_t count = static_cast<int64_t>(values.size());
    edgeq_optim_encode(path, values.data(), count, size, &map, codes.data(), maxima.data());
    edgeq_optim_decode(path, codes.data(), maxima.data(), count, size, &map, back.data());
    return mixed(mixed(mixed(14695981039346656037u, codes), maxima), back);
}

}  // namespace

int main(int argc, char** argv) {
    Map maps[2];
    std::FILE* file = argc > 1 ? std::fopen(argv[1], "rb") : nullptr;
    if (!file || std::fread(maps, sizeof(Map), 2, file) != 2) return 2;
    std::fclose(file);
    const int threads = argc > 2 ? std::atoi(argv[2]) : 1;
    for (int path = 0; path < 4; ++path) {
        if (!edgeq_optim_can(path)) continue;
        for (const int size : {64, 256, 2048, 4096}) {
            for (int kind = 0; kind < 5; ++kind)
                std::printf("%s %s %d %016llx\n", kPaths[path], kKinds[kind], size,
                            static_cast<unsigned long long>(steps(path, kind, size, maps, threads)));
            for (const Map& map : maps)
                std::printf("%s %s %d %016llx\n", kPaths[path], map.is_signed ? "signed" : "unsigned", size,
                            static_cast<unsigned long long>(there_and_back(path, size, map)));
        }
    }
    return 0;
}
