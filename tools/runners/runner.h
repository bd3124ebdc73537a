// What the C++ runners share: command line, raw files, core pinning, timing, result.json. C++17, nothing but the standard
// library and POSIX.
//
//   RUNNER --model FILE --input DIR --output DIR --batches N --threads T --warmup W --runs R [--cores 4,5] [--events]
//          --result FILE
//
// Input i of batch b is DIR/<b>_<i>.bin: little-endian values, C-contiguous, of the artefact's own dtype and shape.
// DIR/inputs.txt names those, one input a line: "float32 1 3 32 32". Outputs are written in the same way. Each batch runs
// once and its outputs are written; then batch 0 runs W times unmeasured and R times measured; then, with --events, R times
// with the runtime's profiler on. An error is one sentence on stderr and exit status 1.
#pragma once

#include <sched.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgeq {

using Error = std::runtime_error;
using Clock = std::chrono::steady_clock;

inline double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// A dtype by its numpy name, as "float32", and a shape.
struct TensorType {
  std::string dtype;
  std::vector<int64_t> shape;

  size_t bytes() const {
    size_t size = item_size(dtype);
    for (int64_t d : shape) size *= static_cast<size_t>(d);
    return size;
  }

  static size_t item_size(const std::string& dtype) {
    for (const auto& [name, size] : {std::pair<const char*, size_t>{"float64", 8}, {"int64", 8}, {"uint64", 8},
                                     {"float32", 4}, {"int32", 4}, {"uint32", 4}, {"float16", 2}, {"bfloat16", 2},
                                     {"int16", 2}, {"uint16", 2}, {"int8", 1}, {"uint8", 1}, {"bool", 1}}) {
      if (dtype == name) return size;
    }
    throw Error("no tensor type is called " + dtype);
  }
};

struct Output {
  TensorType type;
  const void* data;
};

// One operator or kernel, in the order of its calls; `ms` has one number for each profiled run.
struct Event {
  std::string name;
  std::string kind;
  int instruction = -1;  // of the program, where the runtime has such a number
  std::vector<double> ms;
};

struct Options {
  std::string model, input, output, result;
  int batches = 0, threads = 1, warmup = 0, runs = 0;
  std::vector<int> cores;
  bool events = false;
};

// What each runtime implements. Errors are thrown as Error.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string runtime() const = 0;
  // `inputs`: what inputs.txt says, for runtimes whose artefacts do not say it themselves.
  virtual void load(const Options& options, const std::vector<TensorType>& inputs) = 0;
  virtual std::vector<TensorType> inputs() const = 0;
  virtual void set_input(size_t index, const std::vector<char>& values) = 0;
  virtual void run() = 0;
  virtual std::vector<Output> outputs() = 0;
  // One run with the profiler on: the times of all events, in the same order each time.
  virtual void profiled_run(std::vector<Event>& events) = 0;
};

inline std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path + " cannot be read: " + std::strerror(errno));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const void* data, size_t size) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  file.close();
  if (!file) throw Error(path + " cannot be written: " + std::strerror(errno));
}

inline Options parse(int argc, char** argv) {
  Options options;
  auto number = [](const std::string& name, const std::string& text) {
    char* end = nullptr;
    long value = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || value < 0 || value > 1000000) throw Error(name + " takes a number, not " + text);
    return static_cast<int>(value);
  };
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--events") {
      options.events = true;
      continue;
    }
    if (i + 1 == argc) throw Error(name + " is no option, or wants a value");
    const std::string text = argv[++i];
    if (name == "--model") options.model = text;
    else if (name == "--input") options.input = text;
    else if (name == "--output") options.output = text;
    else if (name == "--result") options.result = text;
    else if (name == "--batches") options.batches = number(name, text);
    else if (name == "--threads") options.threads = number(name, text);
    else if (name == "--warmup") options.warmup = number(name, text);
    else if (name == "--runs") options.runs = number(name, text);
    else if (name == "--cores") {
      std::stringstream parts(text);
      for (std::string part; std::getline(parts, part, ',');) options.cores.push_back(number(name, part));
    } else throw Error(name + " is no option of this runner");
  }
  if (options.model.empty() || options.input.empty() || options.output.empty() || options.result.empty())
    throw Error("--model, --input, --output and --result are needed");
  if (options.batches < 1 || options.threads < 1) throw Error("--batches and --threads are at least 1");
  return options;
}

// Threads started later inherit it.
inline void pin(const std::vector<int>& cores) {
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  std::string named;
  for (int core : cores) {
    if (core >= CPU_SETSIZE) throw Error("there is no core " + std::to_string(core));
    CPU_SET(core, &set);
    named += " " + std::to_string(core);
  }
  if (sched_setaffinity(0, sizeof set, &set) != 0)
    throw Error("cannot run on core" + named + ": " + std::strerror(errno));
}

inline std::vector<TensorType> described_inputs(const std::string& folder) {
  std::ifstream file(folder + "/inputs.txt");
  if (!file) throw Error(folder + "/inputs.txt cannot be read: " + std::strerror(errno));
  std::vector<TensorType> found;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    TensorType type;
    words >> type.dtype;
    for (int64_t d; words >> d;) type.shape.push_back(d);
    TensorType::item_size(type.dtype);
    found.push_back(type);
  }
  return found;
}

inline std::string quoted(const std::string& text) {
  std::string made = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') made += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) made += c;
  }
  return made + "\"";
}

template <typename T>
std::string listed(const std::vector<T>& values) {
  std::ostringstream out;
  out.precision(9);
  out << "[";
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
  out << "]";
  return out.str();
}

inline void set_batch(Engine& engine, const Options& options, int batch) {
  const auto types = engine.inputs();
  for (size_t i = 0; i < types.size(); ++i) {
    const std::string path = options.input + "/" + std::to_string(batch) + "_" + std::to_string(i) + ".bin";
    const auto values = read_file(path);
    if (values.size() != types[i].bytes())
      throw Error(path + " holds " + std::to_string(values.size()) + " bytes, and input " + std::to_string(i) + " takes " +
                  std::to_string(types[i].bytes()));
    engine.set_input(i, values);
  }
}

inline void serve(const Options& options, Engine& engine) {
  pin(options.cores);
  const auto described = described_inputs(options.input);
  const auto begun = Clock::now();
  engine.load(options, described);
  const double load_ms = ms_since(begun);
  if (engine.inputs().size() != described.size())
    throw Error(options.model + " takes " + std::to_string(engine.inputs().size()) + " inputs, and " + options.input +
                "/inputs.txt names " + std::to_string(described.size()));
  mkdir(options.output.c_str(), 0777);
  std::string types;
  for (int batch = 0; batch < options.batches; ++batch) {
    set_batch(engine, options, batch);
    engine.run();
    const auto outputs = engine.outputs();
    types.clear();
    for (size_t i = 0; i < outputs.size(); ++i) {
      const auto& [type, data] = outputs[i];
      write_file(options.output + "/" + std::to_string(batch) + "_" + std::to_string(i) + ".bin", data, type.bytes());
      types += (i ? ", " : "") + ("{\"dtype\": " + quoted(type.dtype)) + ", \"shape\": " + listed(type.shape) + "}";
    }
  }
  std::vector<double> run_ms, events_run_ms;
  std::vector<Event> events;
  if (options.runs > 0) {
    set_batch(engine, options, 0);
    for (int i = 0; i < options.warmup; ++i) engine.run();
    for (int i = 0; i < options.runs; ++i) {
      const auto start = Clock::now();
      engine.run();
      run_ms.push_back(ms_since(start));
    }
    for (int i = 0; options.events && i < options.runs; ++i) {
      const auto start = Clock::now();
      engine.profiled_run(events);
      events_run_ms.push_back(ms_since(start));
    }
  }
  std::string rows;
  for (const auto& event : events) {
    rows += (rows.empty() ? "\n  {\"name\": " : ",\n  {\"name\": ") + quoted(event.name) + ", \"kind\": " + quoted(event.kind);
    if (event.instruction >= 0) rows += ", \"instruction\": " + std::to_string(event.instruction);
    rows += ", \"ms\": " + listed(event.ms) + "}";
  }
  std::ostringstream json;
  json.precision(9);
  json << "{\"runtime\": " << quoted(engine.runtime()) << ",\n \"threads\": " << options.threads
       << ",\n \"cores\": " << listed(options.cores) << ",\n \"outputs\": [" << types << "],\n \"load_ms\": " << load_ms
       << ",\n \"run_ms\": " << listed(run_ms) << ",\n \"events\": [" << rows << "],\n \"events_run_ms\": "
       << listed(events_run_ms) << "}\n";
  write_file(options.result, json.str().data(), json.str().size());
}

// The whole of main().
inline int run_main(int argc, char** argv, Engine& engine) {
  try {
    serve(parse(argc, argv), engine);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace edgeq
